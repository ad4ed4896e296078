//! Two sides beside one another: a baseline and the target, asked in turn in one run, so that what
//! the machine does meanwhile does it to both; and a report against an earlier one.

use std::fmt::Write as _;
use std::rc::Rc;
use std::time::Duration;

use comfy_table::{ContentArrangement, Table, TableStyle};
use http::Method;
use serde::Serialize;
use tokio::time::Instant;

use super::bench::{Counts, Measured, warm_up};
use super::client::{Connection, Target};
use super::plan::Endpoint;
use super::record::{Cause, Sample, Sums};
use super::report::{Report, percent, shown};
use super::run::question;
use super::template::Random;

/// How often the samples are drawn anew for an interval (the bootstrap, Efron 1979).
const DRAWS: usize = 1000;

/// One side of a comparison.
#[derive(Clone, Debug, Default)]
pub struct Side {
    /// By endpoint.
    pub measured: Vec<Measured>,
    /// Milliseconds of every answer.
    pub latencies: Vec<f64>,
    /// Seconds of each round of concurrent requests, and how many were in it.
    rounds: Vec<(f64, u32)>,
}

/// Measures both, the first `Target` as the baseline. An error says which side could not be reached.
pub async fn measure_both(
    targets: [&Rc<Target>; 2],
    endpoints: &[Endpoint],
    counts: Counts,
    seed: u64,
    mut tell: impl FnMut(&Endpoint),
) -> Result<[Side; 2], (usize, Cause)> {
    let mut sides = [Side::default(), Side::default()];
    for endpoint in endpoints {
        tell(endpoint);
        let mut connections = [None, None];
        for (at, connection) in connections.iter_mut().enumerate() {
            let mut random = Random::new(seed);
            warm_up(targets[at], connection, endpoint, counts, &mut random)
                .await
                .map_err(|cause| (at, cause))?;
        }
        let mut measured = [Measured::default(), Measured::default()];
        let mut randoms = [Random::new(seed), Random::new(seed)];
        for number in 0..counts.sequential {
            // Who is first changes, so that neither always comes after the other.
            let first = (number % 2) as usize;
            for at in [first, 1 - first] {
                let asked = question(endpoint, u64::from(number), &mut randoms[at]);
                let sent = Instant::now();
                let outcome = targets[at].ask(&mut connections[at], asked).await;
                let sample = Sample {
                    endpoint: 0,
                    is_get: endpoint.method == Method::GET,
                    latency: sent.elapsed(),
                    outcome,
                };
                measured[at].sequential.add(&sample);
                measured[at].elapsed += sample.latency;
                sides[at].note(&sample);
            }
        }
        let rounds = counts.concurrent.div_ceil(counts.concurrency.max(1));
        let mut crowds: [Vec<Option<Connection>>; 2] = Default::default();
        for crowd in &mut crowds {
            crowd.resize_with(counts.concurrency as usize, || None);
        }
        for round in 0..rounds {
            let first = (round % 2) as usize;
            for at in [first, 1 - first] {
                let begun = Instant::now();
                let asking = crowds[at].iter_mut().enumerate().map(|(user, connection)| {
                    let mut random = Random::new(seed ^ (u64::from(round) << 32 | user as u64));
                    let number = u64::from(round * counts.concurrency) + user as u64;
                    let asked = question(endpoint, number, &mut random);
                    let target = targets[at];
                    async move {
                        let sent = Instant::now();
                        let outcome = target.ask(connection, asked).await;
                        (sent.elapsed(), outcome)
                    }
                });
                for (latency, outcome) in futures_util::future::join_all(asking).await {
                    let sample = Sample {
                        endpoint: 0,
                        is_get: endpoint.method == Method::GET,
                        latency,
                        outcome,
                    };
                    measured[at].concurrent.add(&sample);
                    sides[at].note(&sample);
                }
                let lasted = begun.elapsed();
                measured[at].elapsed += lasted;
                sides[at]
                    .rounds
                    .push((lasted.as_secs_f64(), counts.concurrency));
            }
        }
        for (side, measured) in sides.iter_mut().zip(measured) {
            side.measured.push(measured);
        }
    }
    Ok(sides)
}

impl Side {
    fn note(&mut self, sample: &Sample) {
        if sample.outcome.is_ok() {
            self.latencies.push(millis(sample.latency));
        }
    }

    fn total(&self) -> Sums {
        let mut total = Sums::default();
        for measured in &self.measured {
            total.merge(&measured.total());
        }
        total
    }

    /// Of the rounds of concurrent requests, as these are drawn.
    fn throughput(rounds: &[(f64, u32)]) -> f64 {
        let seconds: f64 = rounds.iter().map(|(seconds, _)| seconds).sum();
        let requests: u32 = rounds.iter().map(|(_, requests)| requests).sum();
        if seconds > 0.0 {
            f64::from(requests) / seconds
        } else {
            0.0
        }
    }
}

fn millis(latency: Duration) -> f64 {
    latency.as_secs_f64() * 1000.0
}

/// One figure of both sides.
#[derive(Clone, Debug, Serialize)]
pub struct Compared {
    pub name: String,
    pub unit: &'static str,
    pub before: f64,
    pub after: f64,
    /// After to before, and where it lies with 95 % confidence; `None` where nothing was drawn.
    pub ratio: Option<f64>,
    pub interval: Option<(f64, f64)>,
}

/// The figures of the requirements' table.
pub fn compare(before: &Side, after: &Side, seed: u64) -> Vec<Compared> {
    let mut random = Random::new(seed);
    let mut compared = Vec::new();
    for (name, part) in [("p50", 0.5), ("p95", 0.95), ("p99", 0.99)] {
        let of = |samples: &[f64]| quantile(samples, part);
        compared.push(figure(
            name,
            "ms",
            [&before.latencies, &after.latencies],
            of,
            &mut random,
        ));
    }
    let rounds = [&before.rounds, &after.rounds];
    let throughput = |drawn: &[(f64, u32)]| Side::throughput(drawn);
    compared.push(figure(
        "throughput",
        "req/s",
        rounds,
        throughput,
        &mut random,
    ));
    let rate = |side: &Side| side.total().hit_rate();
    if let (Some(before), Some(after)) = (rate(before).or(Some(0.0)), rate(after)) {
        compared.push(Compared {
            name: "hit rate".to_owned(),
            unit: "%",
            before: before * 100.0,
            after: after * 100.0,
            ratio: (before > 0.0).then(|| after / before),
            interval: None,
        });
    }
    compared.push(Compared {
        name: "error rate".to_owned(),
        unit: "%",
        before: before.total().error_rate() * 100.0,
        after: after.total().error_rate() * 100.0,
        ratio: None,
        interval: None,
    });
    compared
}

fn figure<T: Copy>(
    name: &str,
    unit: &'static str,
    samples: [&Vec<T>; 2],
    of: impl Fn(&[T]) -> f64,
    random: &mut Random,
) -> Compared {
    let [before, after] = samples.map(|samples| of(samples));
    let ratio = |before: f64, after: f64| (before > 0.0).then(|| after / before);
    let mut drawn: Vec<f64> = (0..DRAWS)
        .filter_map(|_| {
            let [before, after] = samples.map(|samples| of(&draw(samples, random)));
            ratio(before, after)
        })
        .collect();
    drawn.sort_unstable_by(f64::total_cmp);
    let interval = (!drawn.is_empty()).then(|| {
        (
            quantile_of_sorted(&drawn, 0.025),
            quantile_of_sorted(&drawn, 0.975),
        )
    });
    Compared {
        name: name.to_owned(),
        unit,
        before,
        after,
        ratio: ratio(before, after),
        interval,
    }
}

/// As many as there are, each picked from all of them.
fn draw<T: Copy>(samples: &[T], random: &mut Random) -> Vec<T> {
    let last = samples.len().saturating_sub(1) as u64;
    let pick = |_| samples.get(random.within(0, last) as usize).copied();
    (0..samples.len()).filter_map(pick).collect()
}

fn quantile(samples: &[f64], part: f64) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    quantile_of_sorted(&sorted, part)
}

/// The smallest value that this part of them does not exceed (nearest rank).
fn quantile_of_sorted(sorted: &[f64], part: f64) -> f64 {
    let rank = (part * sorted.len() as f64).ceil() as usize;
    let at = rank.clamp(1, sorted.len().max(1)) - 1;
    sorted.get(at).copied().unwrap_or(0.0)
}

/// The table of the requirements: before, after, and what became of it.
pub fn table(compared: &[Compared], targets: [&str; 2]) -> String {
    let mut table = Table::new();
    table
        .load_style(TableStyle::new())
        .set_content_arrangement(ContentArrangement::Disabled);
    table.set_header([
        "",
        "before",
        "after",
        "ratio",
        "95 % of it within",
        "change",
    ]);
    for one in compared {
        let value = |value: f64| format!("{} {}", shown(value), one.unit);
        let change = one.ratio.map_or("–".to_owned(), |ratio| {
            let arrow = if ratio < 1.0 { "↓" } else { "↑" };
            format!("{:.0} % {arrow}", (ratio - 1.0).abs() * 100.0)
        });
        table.add_row([
            one.name.clone(),
            value(one.before),
            value(one.after),
            one.ratio
                .map_or("–".to_owned(), |ratio| format!("{ratio:.3}")),
            one.interval.map_or("–".to_owned(), |(from, to)| {
                format!("{from:.3} – {to:.3}")
            }),
            change,
        ]);
    }
    let [before, after] = targets;
    format!("before: {before}   after: {after}   asked in turn, in one run\n{table}\n")
}

/// What is worse than in an earlier report by more than `threshold`, a part of 1; each with its
/// figures.
pub fn regressions(earlier: &Report, now: &Report, threshold: f64) -> Vec<String> {
    let mut worse = Vec::new();
    let mut look = |name: &str, before: Option<f64>, after: Option<f64>, more_is_worse: bool| {
        let (Some(before), Some(after)) = (before, after) else {
            return;
        };
        let is_worse = if more_is_worse {
            after > before * (1.0 + threshold) && after > 0.0
        } else {
            after < before * (1.0 - threshold)
        };
        if is_worse {
            let mut line = String::new();
            let _ = write!(
                line,
                "{name}: {} before, {} now",
                shown(before),
                shown(after)
            );
            worse.push(line);
        }
    };
    let (before, after) = (&earlier.total, &now.total);
    look("p50", before.p50, after.p50, true);
    look("p95", before.p95, after.p95, true);
    look("p99", before.p99, after.p99, true);
    look(
        "throughput",
        Some(before.throughput),
        Some(after.throughput),
        false,
    );
    look("hit rate", before.hit_rate, after.hit_rate, false);
    if after.error_rate > before.error_rate + threshold / 10.0 {
        worse.push(format!(
            "error rate: {} before, {} now",
            percent(before.error_rate),
            percent(after.error_rate)
        ));
    }
    worse
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::report::Figures;

    fn side(latencies: impl Iterator<Item = f64>, seconds: f64) -> Side {
        Side {
            latencies: latencies.collect(),
            rounds: vec![(seconds, 10); 20],
            ..Side::default()
        }
    }

    #[test]
    fn ratios_and_intervals_of_known_samples() {
        let before = side((1..=1000).map(f64::from), 1.0);
        let after = side((1..=1000).map(|number| f64::from(number) / 4.0), 0.5);
        let compared = compare(&before, &after, 1);
        let p95 = &compared[1];
        assert_eq!(
            (p95.before, p95.after, p95.ratio),
            (950.0, 237.5, Some(0.25))
        );
        let (from, to) = p95.interval.unwrap();
        assert!(from < 0.25 && 0.25 < to && to - from < 0.03, "{from} {to}");
        let throughput = &compared[3];
        assert_eq!((throughput.before, throughput.after), (10.0, 20.0));
        let text = table(&compared, ["a", "b"]);
        assert!(
            text.contains("75 % ↓") && text.contains("100 % ↑"),
            "{text}"
        );
    }

    #[test]
    fn the_same_against_itself_is_no_difference() {
        let one = side((1..=500).map(|number| f64::from(number % 37)), 1.0);
        for compared in compare(&one, &one, 3) {
            if let Some((from, to)) = compared.interval {
                assert!(from <= 1.0 && 1.0 <= to, "{compared:?}");
            }
        }
    }

    #[test]
    fn a_regression_is_what_is_worse_by_more_than_the_threshold() {
        let report = |p95: f64, throughput: f64, error_rate: f64| Report {
            total: Figures {
                p95: Some(p95),
                throughput,
                error_rate,
                ..Figures::default()
            },
            ..Report::default()
        };
        let earlier = report(100.0, 50.0, 0.0);
        assert!(regressions(&earlier, &report(110.0, 45.0, 0.01), 0.1).is_empty());
        let worse = regressions(&earlier, &report(111.0, 44.0, 0.02), 0.1);
        assert_eq!(worse.len(), 3, "{worse:?}");
    }
}
