//! What a run has shown, as values that are written down and read again: JSON, a table for the
//! terminal, and the text format of Prometheus.

use std::fmt::Write as _;

use comfy_table::{ContentArrangement, Table, TableStyle};
use serde::{Deserialize, Serialize};

use super::bench::Measured;
use super::figure::{Comparison, percent, shown};
use super::noise::{Spread, Stretches};
use super::plan::{Endpoint, Model, Scenario};
use super::record::{Latencies, Record, Sums, rounded};
use super::verdict::{Found, Judged, Targets, judge};

/// Milliseconds up to which answers are counted for the histogram.
pub const BOUNDS: [f64; 20] = [
    0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 25.0, 50.0, 75.0, 100.0, 150.0, 200.0, 250.0, 300.0,
    500.0, 750.0, 1000.0, 2000.0, 5000.0,
];

/// One run, whole.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Report {
    /// Of the program that made it.
    pub version: String,
    /// `"bench"`, or the scenario's name.
    pub name: String,
    pub target: String,
    /// RFC 3339.
    pub started: String,
    pub seconds: f64,
    /// How latencies are to be read.
    pub model: String,
    pub interrupted: bool,
    pub total: Figures,
    pub endpoints: Vec<Named>,
    /// Answers up to each of `BOUNDS`, and above.
    pub histogram: Vec<u64>,
    pub over_time: Vec<Point>,
    /// How late the generator itself was, in milliseconds.
    pub lag_p99: Option<f64>,
    pub lag_max: Option<f64>,
    pub judged: Vec<Judged>,
    /// How much the figures vary by chance.
    #[serde(default)]
    pub noise: Option<Spread>,
    /// Beside another target, where one was measured in the same run.
    #[serde(default)]
    pub compared: Option<Comparison>,
    /// Of the target, where its admin port was given.
    pub resident_bytes: Option<u64>,
}

/// Figures of one endpoint, or of all; latencies in milliseconds.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Figures {
    pub requests: u64,
    pub errors: u64,
    pub error_rate: f64,
    pub throughput: f64,
    pub bytes: u64,
    pub not_modified: u64,
    pub hit_rate: Option<f64>,
    /// GETs whose cache says how they were answered.
    pub told: u64,
    pub p50: Option<f64>,
    pub p90: Option<f64>,
    pub p95: Option<f64>,
    pub p99: Option<f64>,
    pub p999: Option<f64>,
    pub min: Option<f64>,
    pub max: Option<f64>,
    pub mean: Option<f64>,
    pub deviation: Option<f64>,
    pub statuses: std::collections::BTreeMap<String, u64>,
    pub causes: std::collections::BTreeMap<String, u64>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Named {
    pub name: String,
    #[serde(flatten)]
    pub figures: Figures,
}

/// One second.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Point {
    pub at: f64,
    /// Virtual users, or the wanted rate.
    pub users: f64,
    pub requests: u64,
    pub errors: u64,
    pub p50: Option<f64>,
    pub p95: Option<f64>,
    pub p99: Option<f64>,
}

impl Figures {
    pub fn of(sums: &Sums, seconds: f64) -> Self {
        let latencies = &sums.latencies;
        let causes = sums.causes.iter();
        Self {
            requests: sums.requests,
            errors: sums.errors,
            error_rate: rounded(sums.error_rate() * 1000.0) / 1000.0,
            throughput: if seconds > 0.0 {
                rounded(sums.requests as f64 / seconds)
            } else {
                0.0
            },
            bytes: sums.bytes,
            not_modified: sums.not_modified,
            hit_rate: sums.hit_rate().map(|rate| rounded(rate * 1000.0) / 1000.0),
            told: sums.told,
            p50: latencies.quantile(0.5),
            p90: latencies.quantile(0.9),
            p95: latencies.quantile(0.95),
            p99: latencies.quantile(0.99),
            p999: latencies.quantile(0.999),
            min: latencies.min(),
            max: latencies.max(),
            mean: latencies.mean(),
            deviation: latencies.deviation(),
            statuses: sums
                .statuses
                .iter()
                .map(|(status, count)| (status.to_string(), *count))
                .collect(),
            causes: causes
                .map(|(cause, count)| (cause.as_str().to_owned(), *count))
                .collect(),
        }
    }

    fn found(&self) -> Found {
        Found {
            p95: self.p95,
            p99: self.p99,
            error_rate: self.error_rate,
            hit_rate: self.hit_rate.map(|rate| (rate, self.told)),
            throughput: self.throughput,
            requests: self.requests,
        }
    }
}

impl Report {
    fn new(name: &str, target: &str, started: String) -> Self {
        Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            name: name.to_owned(),
            target: target.to_owned(),
            started,
            ..Self::default()
        }
    }

    /// Of a load test.
    pub fn of_scenario(
        scenario: &Scenario,
        record: &Record,
        target: &str,
        started: String,
        targets: &Targets,
    ) -> Self {
        let seconds = rounded(record.elapsed.as_secs_f64());
        let total = record.total();
        let figures = Figures::of(&total, seconds);
        let named = scenario.endpoints.iter().zip(&record.by_endpoint);
        let step = record.step.as_secs_f64();
        let points = record.over_time.iter().enumerate().map(|(at, step_of)| {
            let latencies: &Latencies = &step_of.sums.latencies;
            Point {
                at: at as f64 * step,
                users: step_of.users,
                requests: step_of.sums.requests,
                errors: step_of.sums.errors,
                p50: latencies.quantile(0.5),
                p95: latencies.quantile(0.95),
                p99: latencies.quantile(0.99),
            }
        });
        Self {
            seconds,
            model: match scenario.model {
                Model::Open => {
                    "open: latencies count from the moment a request was due, so that \
                    nothing is omitted where the target falls behind"
                }
                Model::Closed { .. } => {
                    "closed: latencies count from sending; a target that \
                    slows down is asked less often (coordinated omission): use model = \"open\" \
                    to see what callers that do not wait would meet"
                }
            }
            .to_owned(),
            interrupted: record.interrupted,
            judged: judge(targets, &figures.found()),
            endpoints: named
                .map(|(endpoint, sums)| Named {
                    name: endpoint.name.clone(),
                    figures: Figures::of(sums, seconds),
                })
                .collect(),
            histogram: total.latencies.steps(&BOUNDS),
            over_time: points.collect(),
            lag_p99: record.lag.quantile(0.99),
            lag_max: record.lag.max(),
            total: figures,
            ..Self::new(&scenario.name, target, started)
        }
    }

    /// Of a benchmark.
    pub fn of_bench(
        endpoints: &[Endpoint],
        measured: &[Measured],
        target: &str,
        started: String,
        targets: &Targets,
    ) -> Self {
        let (mut total, mut seconds) = (Sums::default(), 0.0);
        for one in measured {
            total.merge(&one.total());
            seconds += rounded(one.elapsed.as_secs_f64());
        }
        let figures = Figures::of(&total, seconds);
        let named = endpoints.iter().zip(measured);
        Self {
            seconds,
            model: "one request after another, then several at once: latencies count from sending"
                .to_owned(),
            judged: judge(targets, &figures.found()),
            endpoints: named
                .map(|(endpoint, one)| Named {
                    name: endpoint.name.clone(),
                    figures: Figures::of(&one.total(), one.elapsed.as_secs_f64()),
                })
                .collect(),
            histogram: total.latencies.steps(&BOUNDS),
            noise: Spread::of(&Stretches::of(measured), 1),
            total: figures,
            ..Self::new("bench", target, started)
        }
    }

    /// For the terminal.
    pub fn table(&self) -> String {
        let mut table = Table::new();
        table
            .load_style(TableStyle::new())
            .set_content_arrangement(ContentArrangement::Disabled);
        table.set_header([
            "", "requests", "req/s", "p50", "p90", "p95", "p99", "p99.9", "min", "max", "mean",
            "±", "errors", "hits", "304", "MiB",
        ]);
        let total = Named {
            name: "all".to_owned(),
            figures: self.total.clone(),
        };
        for Named { name, figures } in self.endpoints.iter().chain([&total]) {
            let millis = |value: Option<f64>| value.map_or("–".to_owned(), shown);
            table.add_row([
                name.clone(),
                figures.requests.to_string(),
                format!("{:.1}", figures.throughput),
                millis(figures.p50),
                millis(figures.p90),
                millis(figures.p95),
                millis(figures.p99),
                millis(figures.p999),
                millis(figures.min),
                millis(figures.max),
                millis(figures.mean),
                millis(figures.deviation),
                percent(figures.error_rate),
                figures.hit_rate.map_or("–".to_owned(), percent),
                figures.not_modified.to_string(),
                format!("{:.1}", figures.bytes as f64 / f64::from(1 << 20)),
            ]);
        }
        let compared = self.compared.as_ref();
        let mut text = compared.map_or_else(String::new, |compared| compared.table(&self.target));
        let _ = writeln!(
            text,
            "{} against {}, {:.1} s; latencies in ms\n{table}",
            self.name, self.target, self.seconds
        );
        let list = |counts: Vec<String>| counts.join("  ");
        let statuses = self.total.statuses.iter();
        let statuses = list(
            statuses
                .map(|(status, count)| format!("{status}: {count}"))
                .collect(),
        );
        let causes = self.total.causes.iter();
        let causes = list(
            causes
                .map(|(cause, count)| format!("{cause}: {count}"))
                .collect(),
        );
        let _ = writeln!(text, "status  {statuses}");
        if !causes.is_empty() {
            let _ = writeln!(text, "failed  {causes}");
        }
        if let (Some(p99), Some(max)) = (self.lag_p99, self.lag_max) {
            let _ = writeln!(
                text,
                "the generator itself was late by {} ms (p99), {} ms (max)",
                shown(p99),
                shown(max)
            );
        }
        if let Some(bytes) = self.resident_bytes {
            let _ = writeln!(
                text,
                "memory of the target: {:.1} MiB resident",
                bytes as f64 / f64::from(1 << 20)
            );
        }
        if self.interrupted {
            let _ = writeln!(text, "ended before its time: this is of what was run");
        }
        let _ = writeln!(text, "{}", self.model);
        for one in &self.judged {
            let (found, outcome) = (one.shown(), one.verdict());
            let _ = writeln!(
                text,
                "{:10} {:12} {found:>12}  {outcome}",
                one.name, one.wanted
            );
        }
        text
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::load::record::{Answered, Cached, Sample};
    use http::StatusCode;
    use std::time::Duration;

    pub fn report() -> Report {
        let scenario = Scenario::known("smoke").unwrap();
        let mut record = Record::new(scenario.endpoints.len(), Duration::from_secs(1));
        for millis in 1..=200_u64 {
            let sample = Sample {
                endpoint: (millis % 6) as usize,
                is_get: true,
                latency: Duration::from_millis(millis),
                outcome: Ok(Answered {
                    status: StatusCode::OK,
                    cached: Cached::Hit,
                    bytes: 1000,
                }),
            };
            record.add(&sample, Duration::from_millis(millis * 10));
        }
        record.elapsed = Duration::from_secs(2);
        Report::of_scenario(
            &scenario,
            &record,
            "http://t",
            "now".to_owned(),
            &Targets::LOAD_TEST,
        )
    }

    #[test]
    fn a_report_is_read_again_as_it_was_written() {
        let report = report();
        let text = serde_json::to_string(&report).unwrap();
        let again: Report = serde_json::from_str(&text).unwrap();
        assert_eq!(serde_json::to_string(&again).unwrap(), text);
        assert_eq!((again.total.requests, again.total.throughput), (200, 100.0));
        assert_eq!(again.histogram.iter().sum::<u64>(), 200);
    }

    #[test]
    fn the_table_has_every_endpoint_and_every_target() {
        let text = report().table();
        for word in [
            "overview",
            "reflexion",
            "all",
            "200: 200",
            "p95",
            "missed",
            "100.00 %",
            "coordinated omission",
        ] {
            assert!(text.contains(word), "{word}: {text}");
        }
    }
}
