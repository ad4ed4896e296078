//! The benchmark: each endpoint warmed up, then asked one request after another, then by several at
//! once.

use std::rc::Rc;
use std::time::Duration;

use http::Method;
use tokio::time::Instant;

use super::client::{Connection, Target};
use super::plan::Endpoint;
use super::record::{Cause, Sample, Sums};
use super::run::question;
use super::template::Random;

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

/// How well a limit of so many requests holds: more than that are sent, and those counted that are
/// not answered 429. The window must be unused before.
pub async fn limit_accuracy(
    target: &Rc<Target>,
    endpoint: &Endpoint,
    limit: u32,
    concurrency: u32,
    seed: u64,
) -> Result<f64, Cause> {
    let counts = Counts {
        warm_up: 0,
        sequential: 0,
        concurrent: limit + (limit / 5).max(10),
        concurrency,
    };
    let measured = measure(target, endpoint, counts, seed).await?.total();
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
}

impl Measured {
    pub fn total(&self) -> Sums {
        let mut total = self.sequential.clone();
        total.merge(&self.concurrent);
        total
    }
}

/// What is asked before anything is measured. An error where the target cannot be reached at all.
pub async fn warm_up(
    target: &Target,
    connection: &mut Option<Connection>,
    endpoint: &Endpoint,
    counts: Counts,
    random: &mut Random,
) -> Result<(), Cause> {
    let (mut last, mut reached) = (None, false);
    for number in 0..counts.warm_up {
        let asked = question(endpoint, u64::from(number), random);
        match target.ask(connection, asked).await {
            Ok(_) => reached = true,
            Err(cause) => last = Some(cause),
        }
    }
    match last {
        Some(cause) if !reached => Err(cause),
        _ => Ok(()),
    }
}

/// Measures one endpoint. An error where the target cannot be reached at all: nothing could be
/// measured.
pub async fn measure(
    target: &Rc<Target>,
    endpoint: &Endpoint,
    counts: Counts,
    seed: u64,
) -> Result<Measured, Cause> {
    let is_get = endpoint.method == Method::GET;
    let mut random = Random::new(seed);
    let mut connection = None;
    warm_up(target, &mut connection, endpoint, counts, &mut random).await?;
    let mut measured = Measured::default();
    let begun = Instant::now();
    for number in 0..counts.sequential {
        let asked = question(endpoint, u64::from(number), &mut random);
        let sent = Instant::now();
        let outcome = target.ask(&mut connection, asked).await;
        measured.sequential.add(&Sample {
            endpoint: 0,
            is_get,
            latency: sent.elapsed(),
            outcome,
        });
    }
    let each = counts.concurrent.div_ceil(counts.concurrency.max(1));
    let users = (0..counts.concurrency).map(|user| {
        let (target, mut random) = (Rc::clone(target), Random::new(seed ^ u64::from(user) << 32));
        let first = user * each;
        let count = each.min(counts.concurrent.saturating_sub(first));
        async move {
            let (mut sums, mut connection) = (Sums::default(), None);
            for number in first..first + count {
                let asked = question(endpoint, u64::from(number), &mut random);
                let sent = Instant::now();
                let outcome = target.ask(&mut connection, asked).await;
                sums.add(&Sample {
                    endpoint: 0,
                    is_get,
                    latency: sent.elapsed(),
                    outcome,
                });
            }
            sums
        }
    });
    for sums in futures_util::future::join_all(users).await {
        measured.concurrent.merge(&sums);
    }
    measured.elapsed = begun.elapsed();
    let total = measured.total();
    // Without a warm-up it shows only now.
    match total.causes.first_key_value() {
        Some((cause, _)) if total.statuses.is_empty() => Err(*cause),
        _ => Ok(measured),
    }
}
