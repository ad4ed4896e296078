//! The benchmark: each endpoint warmed up, then asked one request after another, then by several at
//! once.

use std::cell::Cell;
use std::time::Duration;

use fastrand::Rng;
use http::Method;
use tokio::time::Instant;

use super::client::{Connection, Target};
use super::plan::Endpoint;
use super::record::{Cause, Sample, Sums};
use super::run::question;

/// How often each endpoint is asked.
#[derive(Clone, Copy, Debug)]
pub struct Counts {
    pub warm_up: u32,
    pub sequential: u32,
    pub concurrent: u32,
    pub concurrency: u32,
}

impl Default for Counts {
    fn default() -> Self {
        Self {
            warm_up: 10,
            sequential: 100,
            concurrent: 100,
            concurrency: 10,
        }
    }
}

impl Counts {
    /// For one of these endpoints: as its weight is to their mean.
    pub fn of(self, endpoint: &Endpoint, endpoints: &[Endpoint]) -> Self {
        let sum: u64 = endpoints.iter().map(|one| u64::from(one.weight)).sum();
        let share = |count: u32| {
            let wanted = u64::from(count) * u64::from(endpoint.weight) * endpoints.len() as u64;
            let share = (wanted / sum.max(1)).min(u64::from(u32::MAX)) as u32;
            // What is asked for at all is asked once at least.
            share.max(u32::from(wanted > 0))
        };
        Self {
            sequential: share(self.sequential),
            concurrent: share(self.concurrent),
            ..self
        }
    }

    /// How many requests that are.
    pub fn all(self) -> u64 {
        [self.warm_up, self.sequential, self.concurrent]
            .map(u64::from)
            .iter()
            .sum()
    }
}

/// Which part of a benchmark a request is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    WarmUp,
    Sequential,
    Concurrent,
}

impl Phase {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::WarmUp => "warm-up",
            Self::Sequential => "one after another",
            Self::Concurrent => "several at once",
        }
    }
}

/// Where a benchmark stands, after an answer.
#[derive(Clone, Copy, Debug)]
pub struct Standing<'a> {
    pub endpoint: &'a Endpoint,
    pub phase: Phase,
    /// Of this phase of this endpoint.
    pub done: u32,
    pub of: u32,
}

/// Hears where a benchmark stands.
pub type Tell<'a> = &'a dyn Fn(Standing<'_>);

/// How well a limit of so many requests holds: more than that are sent, and those counted that are
/// not answered 429. The window must be unused before.
pub async fn limit_accuracy(
    target: &Target,
    endpoint: &Endpoint,
    limit: u32,
    concurrency: u32,
    seed: u64,
    tell: Tell<'_>,
) -> Result<f64, Cause> {
    let counts = Counts {
        warm_up: 0,
        sequential: 0,
        concurrent: limit + (limit / 5).max(10),
        concurrency,
    };
    let measured = measure(target, endpoint, counts, seed, tell).await?.total();
    let refused = measured.statuses.get(&429).copied().unwrap_or(0);
    let answered: u64 = measured.statuses.values().sum();
    let off = (answered - refused).abs_diff(u64::from(limit));
    Ok(1.0 - off as f64 / f64::from(limit.max(1)))
}

/// What was measured of one endpoint.
#[derive(Clone, Debug, Default)]
pub struct Measured {
    pub sequential: Sums,
    pub concurrent: Sums,
    /// Of both phases.
    pub elapsed: Duration,
    /// Answers in the order in which they came: what is told from noise by time.
    pub series: Vec<Sample>,
}

impl Measured {
    pub fn total(&self) -> Sums {
        let mut total = self.sequential.clone();
        total.merge(&self.concurrent);
        total
    }

    pub fn add(&mut self, phase: Phase, sample: Sample) {
        match phase {
            Phase::WarmUp => return,
            Phase::Sequential => self.sequential.add(&sample),
            Phase::Concurrent => self.concurrent.add(&sample),
        }
        self.series.push(sample);
    }
}

/// One request, and how long its answer took.
pub async fn ask(
    target: &Target,
    connection: &mut Option<Connection>,
    endpoint: &Endpoint,
    number: u32,
    random: &mut Rng,
) -> Sample {
    let asked = question(endpoint, u64::from(number), random);
    let sent = Instant::now();
    let outcome = target.ask(connection, asked).await;
    Sample {
        endpoint: 0,
        is_get: endpoint.method == Method::GET,
        latency: sent.elapsed(),
        outcome,
    }
}

/// What is asked before anything is measured. An error where the target cannot be reached at all.
pub async fn warm_up(
    target: &Target,
    connection: &mut Option<Connection>,
    endpoint: &Endpoint,
    counts: Counts,
    random: &mut Rng,
    tell: Tell<'_>,
) -> Result<(), Cause> {
    let (mut last, mut reached) = (None, false);
    for number in 0..counts.warm_up {
        match ask(target, connection, endpoint, number, random)
            .await
            .outcome
        {
            Ok(_) => reached = true,
            Err(cause) => last = Some(cause),
        }
        tell(Standing {
            endpoint,
            phase: Phase::WarmUp,
            done: number + 1,
            of: counts.warm_up,
        });
    }
    match last {
        Some(cause) if !reached => Err(cause),
        _ => Ok(()),
    }
}

/// Measures one endpoint. An error where the target cannot be reached at all: nothing could be
/// measured.
pub async fn measure(
    target: &Target,
    endpoint: &Endpoint,
    counts: Counts,
    seed: u64,
    tell: Tell<'_>,
) -> Result<Measured, Cause> {
    let mut random = Rng::with_seed(seed);
    let mut connection = None;
    warm_up(target, &mut connection, endpoint, counts, &mut random, tell).await?;
    let mut measured = Measured::default();
    let begun = Instant::now();
    for number in 0..counts.sequential {
        let sample = ask(target, &mut connection, endpoint, number, &mut random).await;
        measured.add(Phase::Sequential, sample);
        tell(Standing {
            endpoint,
            phase: Phase::Sequential,
            done: number + 1,
            of: counts.sequential,
        });
    }
    let each = counts.concurrent.div_ceil(counts.concurrency.max(1));
    let (done, crowd) = (Cell::new(0), std::cell::RefCell::new(measured));
    let users = (0..counts.concurrency).map(|user| {
        let mut random = Rng::with_seed(seed ^ u64::from(user) << 32);
        let first = user * each;
        let count = each.min(counts.concurrent.saturating_sub(first));
        let (done, crowd) = (&done, &crowd);
        async move {
            let mut connection = None;
            for number in first..first + count {
                let sample = ask(target, &mut connection, endpoint, number, &mut random).await;
                crowd.borrow_mut().add(Phase::Concurrent, sample);
                done.set(done.get() + 1);
                tell(Standing {
                    endpoint,
                    phase: Phase::Concurrent,
                    done: done.get(),
                    of: counts.concurrent,
                });
            }
        }
    });
    futures_util::future::join_all(users).await;
    let mut measured = crowd.into_inner();
    measured.elapsed = begun.elapsed();
    let total = measured.total();
    // Without a warm-up it shows only now.
    match total.causes.first_key_value() {
        Some((cause, _)) if total.statuses.is_empty() => Err(*cause),
        _ => Ok(measured),
    }
}
