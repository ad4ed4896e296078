//! Two sides beside one another: a baseline and the target, asked in turn in one run, so that what
//! the machine does meanwhile does it to both; and a report against an earlier one.

use std::fmt::Write as _;

use fastrand::Rng;
use tokio::time::Instant;

use super::bench::{Counts, Measured, Phase, Standing, Tell, ask, warm_up};
use super::client::{Connection, Target};
use super::figure::{Compared, Comparison, Unit, percent};
use super::noise::{self, Spread, Stretches};
use super::plan::Endpoint;
use super::record::{Cause, Sums};
use super::report::Report;

/// One side of a comparison.
#[derive(Clone, Debug, Default)]
pub struct Side {
    /// By endpoint.
    pub measured: Vec<Measured>,
    /// By endpoint, seconds of each round of concurrent requests, and how many were in it.
    rounds: Vec<Vec<(f64, u32)>>,
}

/// Measures both, the first `Target` as the baseline. An error says which side could not be
/// reached.
pub async fn measure_both(
    targets: [&Target; 2],
    endpoints: &[Endpoint],
    counts: Counts,
    seed: u64,
    tell: Tell<'_>,
) -> Result<[Side; 2], (usize, Cause)> {
    let mut sides = [Side::default(), Side::default()];
    for endpoint in endpoints {
        let counts = counts.of(endpoint, endpoints);
        let mut connections = [None, None];
        for (at, connection) in connections.iter_mut().enumerate() {
            let mut random = Rng::with_seed(seed);
            warm_up(targets[at], connection, endpoint, counts, &mut random, tell)
                .await
                .map_err(|cause| (at, cause))?;
        }
        let mut measured = [Measured::default(), Measured::default()];
        let mut randoms = [Rng::with_seed(seed), Rng::with_seed(seed)];
        for number in 0..counts.sequential {
            for at in in_turn(number) {
                let (connection, random) = (&mut connections[at], &mut randoms[at]);
                let sample = ask(targets[at], connection, endpoint, number, random).await;
                measured[at].elapsed += sample.latency;
                measured[at].add(Phase::Sequential, sample);
            }
            tell(Standing {
                endpoint,
                phase: Phase::Sequential,
                done: number + 1,
                of: counts.sequential,
            });
        }
        let rounds = counts.concurrent.div_ceil(counts.concurrency.max(1));
        let mut crowds: [Vec<Option<Connection>>; 2] = Default::default();
        let mut lasted = [Vec::new(), Vec::new()];
        for crowd in &mut crowds {
            crowd.resize_with(counts.concurrency as usize, || None);
        }
        for round in 0..rounds {
            for at in in_turn(round) {
                let begun = Instant::now();
                let left = (counts.concurrent - round * counts.concurrency).min(counts.concurrency);
                let asking = crowds[at].iter_mut().take(left as usize).zip(0_u32..).map(
                    |(connection, user)| {
                        let mut random =
                            Rng::with_seed(seed ^ (u64::from(round) << 32 | u64::from(user)));
                        let number = round * counts.concurrency + user;
                        let target = targets[at];
                        async move { ask(target, connection, endpoint, number, &mut random).await }
                    },
                );
                for sample in futures_util::future::join_all(asking).await {
                    measured[at].add(Phase::Concurrent, sample);
                }
                let round = begun.elapsed();
                measured[at].elapsed += round;
                lasted[at].push((round.as_secs_f64(), left));
            }
            tell(Standing {
                endpoint,
                phase: Phase::Concurrent,
                done: ((round + 1) * counts.concurrency).min(counts.concurrent),
                of: counts.concurrent,
            });
        }
        for ((side, measured), lasted) in sides.iter_mut().zip(measured).zip(lasted) {
            side.measured.push(measured);
            side.rounds.push(lasted);
        }
    }
    for (at, side) in sides.iter().enumerate() {
        let total = side.total();
        // As of a run of one side: nothing could be measured.
        if let (Some((cause, _)), true) =
            (total.causes.first_key_value(), total.statuses.is_empty())
        {
            return Err((at, *cause));
        }
    }
    Ok(sides)
}

/// Who is first changes, so that neither always comes after the other.
fn in_turn(number: u32) -> [usize; 2] {
    let first = (number % 2) as usize;
    [first, 1 - first]
}

impl Side {
    fn total(&self) -> Sums {
        let mut total = Sums::default();
        for measured in &self.measured {
            total.merge(&measured.total());
        }
        total
    }
}

/// The figures of the requirements' table.
pub fn compare(baseline: &str, before: &Side, after: &Side, seed: u64) -> Comparison {
    let stretches = [before, after].map(|side| Stretches::of(&side.measured));
    let [was, is] = [&stretches[0], &stretches[1]].map(|side| side.all().unwrap_or_default());
    let [quiet, noisy] = [&stretches[0], &stretches[1]].map(|side| Spread::of(side, seed));
    let figure = |name: &str, unit: Unit, before: f64, after: f64, of: fn(&Spread) -> f64| {
        let ratio = (before > 0.0).then(|| after / before);
        let both = quiet.as_ref().zip(noisy.as_ref());
        let chance = both.map(|(quiet, noisy)| noise::chance(of(quiet), of(noisy)));
        Compared {
            name: name.to_owned(),
            unit,
            before,
            after,
            ratio,
            interval: ratio
                .zip(chance)
                .map(|(ratio, chance)| (ratio / chance, ratio * chance)),
        }
    };
    let mut figures = vec![
        figure("p50", Unit::Milliseconds, was.p50, is.p50, |one| one.p50),
        figure("p95", Unit::Milliseconds, was.p95, is.p95, |one| one.p95),
        figure("p99", Unit::Milliseconds, was.p99, is.p99, |one| one.p99),
    ];
    let [fast, faster] = [before, after].map(|side| throughput(&side.rounds));
    // Rounds of so many at once: their number is the same, and their time that of the answers.
    figures.push(figure("at once", Unit::PerSecond, fast, faster, |one| {
        one.throughput
    }));
    let rate = |side: &Side| side.total().hit_rate();
    if let (Some(before), Some(after)) = (rate(before).or(Some(0.0)), rate(after)) {
        figures.push(Compared {
            name: "hit rate".to_owned(),
            unit: Unit::Part,
            before,
            after,
            ratio: (before > 0.0).then(|| after / before),
            interval: None,
        });
    }
    figures.push(Compared {
        name: "error rate".to_owned(),
        unit: Unit::Part,
        before: before.total().error_rate(),
        after: after.total().error_rate(),
        ratio: None,
        interval: None,
    });
    Comparison {
        baseline: baseline.to_owned(),
        figures,
    }
}

/// Requests a second of rounds.
fn throughput(rounds: &[Vec<(f64, u32)>]) -> f64 {
    let all = || rounds.iter().flatten();
    let seconds: f64 = all().map(|(seconds, _)| seconds).sum();
    let requests: u32 = all().map(|(_, requests)| requests).sum();
    if seconds > 0.0 {
        f64::from(requests) / seconds
    } else {
        0.0
    }
}

/// What is worse than in an earlier report by more than `threshold`, a part of 1, and by more than
/// both runs vary by chance; each with its figures.
pub fn regressions(earlier: &Report, now: &Report, threshold: f64) -> Vec<String> {
    let mut worse = Vec::new();
    let (before, after) = (&earlier.total, &now.total);
    let mut look = |name: &str, unit: Unit, [before, after]: [Option<f64>; 2], noise: [f64; 2]| {
        let (Some(before), Some(after)) = (before, after) else {
            return;
        };
        // Of a rate less is worse.
        let ratio = match unit {
            Unit::Milliseconds => after / before,
            Unit::Part | Unit::PerSecond => before / after,
        };
        let chance = noise::chance(noise[0], noise[1]);
        if ratio.is_nan() || ratio <= 1.0 + threshold || ratio <= chance {
            return;
        }
        let mut line = format!(
            "{name}: {} before, {} now",
            unit.show(before),
            unit.show(after)
        );
        if chance > 1.0 {
            let _ = write!(
                line,
                " (chance alone: up to {:.0} %)",
                (chance - 1.0) * 100.0
            );
        }
        worse.push(line);
    };
    // Without a word on chance there is no verdict on what it moves.
    let noises = earlier.noise.zip(now.noise);
    let (was, is) = noises.unwrap_or((Spread::CERTAINLY_ANYTHING, Spread::CERTAINLY_ANYTHING));
    let millis = Unit::Milliseconds;
    look("p50", millis, [before.p50, after.p50], [was.p50, is.p50]);
    look("p95", millis, [before.p95, after.p95], [was.p95, is.p95]);
    look("p99", millis, [before.p99, after.p99], [was.p99, is.p99]);
    let throughput = [before, after].map(|figures| Some(figures.throughput));
    let noise = [was, is].map(|noise| noise.throughput);
    look("throughput", Unit::PerSecond, throughput, noise);
    let hits = [before.hit_rate, after.hit_rate];
    look("hit rate", Unit::Part, hits, [0.0, 0.0]);
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
    use crate::load::record::{Answered, Cached, Sample};
    use crate::load::report::Figures;
    use http::StatusCode;
    use std::time::Duration;

    fn side(latencies: impl Iterator<Item = f64>, seconds: f64) -> Side {
        let mut measured = Measured::default();
        for millis in latencies {
            let answered = Answered {
                status: StatusCode::OK,
                cached: Cached::Hit,
                bytes: 1,
            };
            let sample = Sample {
                endpoint: 0,
                is_get: true,
                latency: Duration::from_secs_f64(millis / 1000.0),
                outcome: Ok(answered),
            };
            measured.add(Phase::Sequential, sample);
        }
        Side {
            measured: vec![measured],
            rounds: vec![vec![(seconds, 10); 20]],
        }
    }

    #[test]
    fn ratios_and_intervals_of_known_samples() {
        let numbers = || (0..1000).map(|number| f64::from(number * 7 % 1000 + 1));
        let (before, after) = (
            side(numbers(), 1.0),
            side(numbers().map(|number| number / 4.0), 0.5),
        );
        let compared = compare("a", &before, &after, 1);
        let p95 = &compared.figures[1];
        assert_eq!(
            (p95.before, p95.after, p95.ratio),
            (950.0, 237.5, Some(0.25))
        );
        let (from, to) = p95.interval.unwrap();
        assert!(
            from <= 0.25 && 0.25 <= to && to - from < 0.06,
            "{from} {to}"
        );
        let throughput = &compared.figures[3];
        assert_eq!((throughput.before, throughput.after), (10.0, 20.0));
        let text = compared.table("b");
        assert!(
            text.contains("75 % ↓") && text.contains("100 % ↑"),
            "{text}"
        );
    }

    #[test]
    fn the_same_against_itself_is_no_difference() {
        let one = side((1..=500).map(|number| f64::from(number % 37 + 1)), 1.0);
        let compared = compare("a", &one, &one, 3);
        for figure in &compared.figures[..4] {
            assert_eq!(figure.change(), "no difference", "{figure:?}");
        }
    }

    #[test]
    fn what_disturbs_a_stretch_of_both_sides_is_no_difference() {
        // Both are slow for a tenth of the time, and one of them is a little less so.
        let series = |factor: f64| {
            (0..1000).map(move |number| match number {
                400..500 => 50.0 * factor,
                _ => f64::from(number % 10 + 1),
            })
        };
        let compared = compare("a", &side(series(1.0), 1.0), &side(series(0.8), 1.0), 1);
        let p99 = &compared.figures[2];
        assert!(p99.before > p99.after, "{p99:?}");
        assert_eq!(p99.change(), "no difference", "{p99:?}");
    }

    #[test]
    fn a_regression_is_what_is_worse_by_more_than_the_threshold_and_than_chance() {
        let report = |p95: f64, throughput: f64, error_rate: f64, noise: f64| Report {
            total: Figures {
                p95: Some(p95),
                throughput,
                error_rate,
                ..Figures::default()
            },
            noise: Some(Spread {
                p95: noise,
                throughput: noise,
                ..Spread::default()
            }),
            ..Report::default()
        };
        let earlier = report(100.0, 50.0, 0.0, 0.0);
        assert!(regressions(&earlier, &report(110.0, 46.0, 0.01, 0.0), 0.1).is_empty());
        let worse = regressions(&earlier, &report(111.0, 44.0, 0.02, 0.0), 0.1);
        assert_eq!(worse.len(), 3, "{worse:?}");
        // The same differences, where each run varies as much by itself.
        let noisy = report(111.0, 44.0, 0.0, 0.1);
        assert!(regressions(&report(100.0, 50.0, 0.0, 0.1), &noisy, 0.1).is_empty());
    }
}
