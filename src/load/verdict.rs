//! Whether what was measured is what was wanted.

use serde::{Deserialize, Serialize};

use super::figure::Unit;

/// What is wanted; each can be given otherwise, and left out.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Targets {
    /// Milliseconds.
    pub p95: Option<f64>,
    pub p99: Option<f64>,
    /// Parts of 1.
    pub error_rate: Option<f64>,
    pub hit_rate: Option<f64>,
    /// Requests a second.
    pub throughput: Option<f64>,
}

impl Targets {
    /// Of a load test (requirements, "The benchmark's and the load test's request mix").
    pub const LOAD_TEST: Self = Self {
        p95: Some(150.0),
        p99: Some(200.0),
        error_rate: Some(0.01),
        hit_rate: None,
        throughput: None,
    };

    pub const BENCHMARK: Self = Self {
        hit_rate: Some(0.85),
        throughput: Some(100.0),
        ..Self::LOAD_TEST
    };
}

/// What was measured, as far as targets are about it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Found {
    pub p95: Option<f64>,
    pub p99: Option<f64>,
    pub error_rate: f64,
    /// With the number of GETs that it is of.
    pub hit_rate: Option<(f64, u64)>,
    pub throughput: f64,
    pub requests: u64,
}

const HIT_RATE: &str = "hit rate";

/// A hit rate of fewer GETs says nothing.
const LEAST_GETS: u64 = 100;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    Met,
    Missed,
    NotJudged,
}

impl Outcome {
    pub fn shown(self) -> &'static str {
        match self {
            Self::Met => "met",
            Self::Missed => "missed",
            Self::NotJudged => "not judged",
        }
    }
}

/// One target, and what became of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Judged {
    pub name: String,
    /// As it is written: `"< 150 ms"`.
    pub wanted: String,
    pub found: Option<f64>,
    #[serde(default)]
    pub unit: Unit,
    pub outcome: Outcome,
    /// How many requests it is of, where too few are no verdict.
    #[serde(default)]
    pub of: Option<u64>,
}

impl Judged {
    /// What became of it, and why nothing did.
    pub fn verdict(&self) -> String {
        match (self.outcome, self.unit) {
            (Outcome::NotJudged, Unit::Part) if self.name == HIT_RATE => {
                let told = self.of.unwrap_or_default();
                format!(
                    "not judged: {told} GETs say how they were answered, {LEAST_GETS} are needed"
                )
            }
            (outcome, _) => outcome.shown().to_owned(),
        }
    }

    /// What was found, with its unit.
    pub fn shown(&self) -> String {
        let found = self.found.map(|found| self.unit.show(found));
        found.unwrap_or_else(|| "–".to_owned())
    }
}

/// Judges each target that there is.
pub fn judge(targets: &Targets, found: &Found) -> Vec<Judged> {
    let mut judged = Vec::new();
    let found_of = found.hit_rate.map(|(_, gets)| gets);
    let mut add =
        |name: &str, unit: Unit, wanted: String, found: Option<f64>, is_met: Option<bool>| {
            judged.push(Judged {
                name: name.to_owned(),
                wanted,
                found,
                unit,
                of: found_of.filter(|_| name == HIT_RATE),
                outcome: match is_met {
                    None => Outcome::NotJudged,
                    Some(true) => Outcome::Met,
                    Some(false) => Outcome::Missed,
                },
            });
        };
    let below = |found: Option<f64>, wanted: f64| found.map(|found| found < wanted);
    let latencies = [
        ("p95", targets.p95, found.p95),
        ("p99", targets.p99, found.p99),
    ];
    for (name, wanted, found) in latencies {
        if let Some(wanted) = wanted {
            let is_met = below(found, wanted);
            add(
                name,
                Unit::Milliseconds,
                format!("< {wanted} ms"),
                found,
                is_met,
            );
        }
    }
    if let Some(wanted) = targets.error_rate {
        let rate = (found.requests > 0).then_some(found.error_rate);
        let is_met = below(rate, wanted);
        add(
            "error rate",
            Unit::Part,
            format!("< {} %", percent(wanted)),
            rate,
            is_met,
        );
    }
    if let Some(wanted) = targets.throughput {
        let rate = (found.requests > 0).then_some(found.throughput);
        let is_met = rate.map(|rate| rate >= wanted);
        add(
            "throughput",
            Unit::PerSecond,
            format!("≥ {wanted} req/s"),
            rate,
            is_met,
        );
    }
    if let Some(wanted) = targets.hit_rate {
        let rate = found.hit_rate.filter(|(_, gets)| *gets >= LEAST_GETS);
        let rate = rate.map(|(rate, _)| rate);
        let is_met = rate.map(|rate| rate > wanted);
        add(
            HIT_RATE,
            Unit::Part,
            format!("> {} %", percent(wanted)),
            rate,
            is_met,
        );
    }
    judged
}

/// Of a rate limit, where that was asked for (requirements).
pub fn judge_limit(accuracy: f64) -> Judged {
    Judged {
        name: "rate limit".to_owned(),
        wanted: "> 99.9 %".to_owned(),
        found: Some(accuracy),
        unit: Unit::Part,
        of: None,
        outcome: if accuracy > 0.999 {
            Outcome::Met
        } else {
            Outcome::Missed
        },
    }
}

/// Without the last bits of what no binary fraction is.
fn percent(part: f64) -> f64 {
    (part * 1e6).round() / 1e4
}

pub fn is_missed(judged: &[Judged]) -> bool {
    judged.iter().any(|one| one.outcome == Outcome::Missed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcomes(found: Found) -> Vec<(String, Outcome)> {
        let judged = judge(&Targets::BENCHMARK, &found);
        judged
            .into_iter()
            .map(|one| (one.name, one.outcome))
            .collect()
    }

    #[test]
    fn each_target_is_judged_at_its_edge() {
        use Outcome::{Met, Missed, NotJudged};
        let good = Found {
            p95: Some(149.9),
            p99: Some(199.9),
            error_rate: 0.0099,
            hit_rate: Some((0.851, 100)),
            throughput: 100.0,
            requests: 1000,
        };
        assert!(outcomes(good).iter().all(|(_, outcome)| *outcome == Met));
        let bad = Found {
            p95: Some(150.0),
            p99: Some(200.0),
            error_rate: 0.01,
            hit_rate: Some((0.85, 100)),
            throughput: 99.9,
            requests: 1000,
        };
        assert!(outcomes(bad).iter().all(|(_, outcome)| *outcome == Missed));
        let few = Found {
            hit_rate: Some((0.1, 99)),
            ..good
        };
        assert_eq!(outcomes(few)[4], ("hit rate".to_owned(), NotJudged));
        let none = outcomes(Found::default());
        assert!(none.iter().all(|(_, outcome)| *outcome == NotJudged));
    }
}
