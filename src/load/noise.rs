//! How far a figure can be told from noise: stretches of time are drawn anew, as they came.
//!
//! What a machine does meanwhile makes the answers of one moment alike: drawn one by one they would
//! seem more certain than they are. So whole stretches are drawn (the block bootstrap, Künsch
//! 1989), of each endpoint and phase as many as there were. The stretches of one run are still more
//! alike than those of two: how much more was measured, by runs of a target against itself (see
//! [`CERTAIN`]).

use std::time::Duration;

use fastrand::Rng;
use serde::{Deserialize, Serialize};

use super::bench::Measured;

/// How often stretches are drawn anew.
const DRAWS: usize = 1000;

/// Stretches of one phase of one endpoint, if there are requests enough.
const BLOCKS: usize = 10;

/// Fewer stretches of each phase tell nothing of what varies.
const LEAST: usize = 3;

/// Milliseconds: no answer takes less.
const TINY: f64 = 1e-6;

/// A difference of more standard deviations is one, in 95 of 100 cases. If stretches were all that
/// varies, 1.96 would do: in 60 runs of 1,000 hits a side against themselves that covered 82 to 98
/// %, by figure, and in 40 of an API of 4 to 60 ms beside a compiler 78 to 98 %. This covered, of
/// 100 other runs of hits: p50 94, p95 99, p99 100, throughput 100.
pub const CERTAIN: f64 = 3.6;

/// Answers of one stretch, in milliseconds.
type Block = Vec<f64>;

/// What was measured, in stretches: by endpoint and phase, in the order of time.
#[derive(Clone, Debug, Default)]
pub struct Stretches(Vec<Vec<Block>>);

/// Figures of answers.
#[derive(Clone, Copy, Debug, Default)]
pub struct Drawn {
    pub p50: f64,
    pub p95: f64,
    pub p99: f64,
    pub mean: f64,
}

impl Stretches {
    pub fn of(measured: &[Measured]) -> Self {
        let mut all = Vec::new();
        for one in measured {
            let sequential = one.sequential.requests as usize;
            let at = sequential.min(one.series.len());
            let (sequential, concurrent) = one.series.split_at(at);
            for phase in [sequential, concurrent] {
                let each = phase.len().div_ceil(BLOCKS).max(1);
                let blocks = phase.chunks(each).map(|chunk| {
                    let answered = chunk.iter().filter(|sample| sample.outcome.is_ok());
                    answered.map(|sample| millis(sample.latency)).collect()
                });
                all.push(blocks.collect());
            }
        }
        Self(all)
    }

    /// The figures of everything.
    pub fn all(&self) -> Option<Drawn> {
        let each = self.0.iter().map(|blocks| (0..blocks.len()).collect());
        self.figures(&each.collect::<Vec<_>>())
    }

    /// How many there are of each endpoint and phase.
    fn shape(&self) -> Vec<usize> {
        self.0.iter().map(Vec::len).collect()
    }

    /// Which of them are drawn: as many of each endpoint and phase as there are.
    fn draw(shape: &[usize], random: &mut Rng) -> Vec<Vec<usize>> {
        let of_each = shape.iter().map(|count| {
            let last = count.saturating_sub(1) as u64;
            (0..*count).map(|_| random.u64(0..=last) as usize).collect()
        });
        of_each.collect()
    }

    /// The figures of those that were drawn; `None` where nothing was answered.
    fn figures(&self, drawn: &[Vec<usize>]) -> Option<Drawn> {
        let mut answers = Vec::new();
        for (blocks, drawn) in self.0.iter().zip(drawn) {
            for at in drawn {
                answers.extend_from_slice(blocks.get(*at).map_or(&[], Vec::as_slice));
            }
        }
        figures(&mut answers)
    }
}

fn figures(answers: &mut [f64]) -> Option<Drawn> {
    if answers.is_empty() {
        return None;
    }
    answers.sort_unstable_by(f64::total_cmp);
    Some(Drawn {
        p50: quantile(answers, 0.5),
        p95: quantile(answers, 0.95),
        p99: quantile(answers, 0.99),
        mean: answers.iter().sum::<f64>() / answers.len() as f64,
    })
}

/// How much figures vary by chance: standard deviations of their logarithms, as parts of 1.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Spread {
    pub p50: f64,
    pub p95: f64,
    pub p99: f64,
    pub throughput: f64,
}

impl Spread {
    /// Nobody can say.
    pub const CERTAINLY_ANYTHING: Self = Self {
        p50: 1e3,
        p95: 1e3,
        p99: 1e3,
        throughput: 1e3,
    };

    /// Of one side, as its own stretches tell; `None` where there are too few to tell anything.
    pub fn of(side: &Stretches, seed: u64) -> Option<Self> {
        if side.shape().iter().all(|count| *count < LEAST) {
            return None;
        }
        let mut random = Rng::with_seed(seed);
        let shape = side.shape();
        let one = |_| side.figures(&Stretches::draw(&shape, &mut random));
        let drawn: Vec<Drawn> = (0..DRAWS).filter_map(one).collect();
        let of = |of: fn(&Drawn) -> f64| deviation(drawn.iter().map(|one| of(one).max(TINY).ln()));
        Some(Self {
            p50: of(|one| one.p50),
            p95: of(|one| one.p95),
            p99: of(|one| one.p99),
            throughput: of(|one| one.mean),
        })
    }
}

/// By which factor a ratio of two such figures varies by chance, at most.
pub fn chance(before: f64, after: f64) -> f64 {
    (CERTAIN * before.hypot(after)).exp()
}

fn deviation(values: impl Iterator<Item = f64> + Clone) -> f64 {
    let count = values.clone().count().max(1) as f64;
    let mean = values.clone().sum::<f64>() / count;
    let square = values.map(|value| (value - mean).powi(2)).sum::<f64>();
    (square / count).sqrt()
}

pub fn millis(latency: Duration) -> f64 {
    latency.as_secs_f64() * 1000.0
}

/// The smallest of sorted values that this part of them does not exceed (nearest rank).
pub fn quantile(sorted: &[f64], part: f64) -> f64 {
    let rank = (part * sorted.len() as f64).ceil() as usize;
    let at = rank.clamp(1, sorted.len().max(1)) - 1;
    sorted.get(at).copied().unwrap_or(0.0)
}
