//! A report in the text format of Prometheus.

use std::fmt::Write as _;

use super::report::{Figures, Named, Report};

impl Report {
    /// For a push gateway, or a file that a node exporter reads.
    pub fn prometheus(&self) -> String {
        let mut text = String::new();
        let mut gauge = |name: &str, help: &str, rows: Vec<(String, f64)>| {
            let _ = writeln!(text, "# HELP load_{name} {help}\n# TYPE load_{name} gauge");
            for (labels, value) in rows {
                let _ = writeln!(text, "load_{name}{{{labels}}} {value}");
            }
        };
        let total = Named {
            name: "all".to_owned(),
            figures: self.total.clone(),
        };
        let all: Vec<&Named> = self.endpoints.iter().chain([&total]).collect();
        let label = |named: &Named| {
            format!(
                "run=\"{}\",endpoint=\"{}\"",
                escaped(&self.name),
                escaped(&named.name)
            )
        };
        let rows = |of: &dyn Fn(&Figures) -> f64| -> Vec<(String, f64)> {
            all.iter()
                .map(|named| (label(named), of(&named.figures)))
                .collect()
        };
        gauge(
            "requests",
            "Requests that were sent",
            rows(&|figures| figures.requests as f64),
        );
        gauge(
            "errors",
            "Requests that failed or were answered 400 and above",
            rows(&|figures| figures.errors as f64),
        );
        gauge(
            "throughput",
            "Requests a second",
            rows(&|figures| figures.throughput),
        );
        gauge(
            "bytes",
            "Bytes of bodies",
            rows(&|figures| figures.bytes as f64),
        );
        let hits = all
            .iter()
            .filter_map(|named| Some((label(named), named.figures.hit_rate?)));
        gauge(
            "hit_ratio",
            "Part of the GETs that a cache answered",
            hits.collect(),
        );
        let name = "load_latency_seconds";
        let _ = writeln!(
            text,
            "# HELP {name} How long answers took\n# TYPE {name} summary"
        );
        for named in &all {
            let (label, figures) = (label(named), &named.figures);
            for (quantile, value) in [
                ("0.5", figures.p50),
                ("0.9", figures.p90),
                ("0.95", figures.p95),
                ("0.99", figures.p99),
                ("0.999", figures.p999),
            ] {
                if let Some(value) = value.map(seconds) {
                    let _ = writeln!(text, "{name}{{{label},quantile=\"{quantile}\"}} {value}");
                }
            }
            let answered: u64 = figures.statuses.values().sum();
            let sum = figures.mean.map_or(0.0, seconds) * answered as f64;
            let _ = writeln!(
                text,
                "{name}_sum{{{label}}} {sum}\n{name}_count{{{label}}} {answered}"
            );
        }
        text
    }
}

fn seconds(millis: f64) -> f64 {
    millis / 1000.0
}

fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use crate::load::report::tests::report;

    #[test]
    fn every_family_for_prometheus_is_described_and_typed() {
        let text = report().prometheus();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let (name, value) = line.split_once('{').unwrap();
            let name = name.trim_end_matches("_sum").trim_end_matches("_count");
            let is_summary = name == "load_latency_seconds";
            let kind = if is_summary { "summary" } else { "gauge" };
            assert!(text.contains(&format!("# TYPE {name} {kind}")), "{line}");
            // On a gauge that label would be taken for a summary's.
            assert!(is_summary || !line.contains("quantile="), "{line}");
            value.rsplit_once("} ").unwrap().1.parse::<f64>().unwrap();
        }
        assert!(text.contains(
            "load_latency_seconds{run=\"smoke\",endpoint=\"all\",quantile=\"0.95\"} 0.1"
        ));
    }
}
