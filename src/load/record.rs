//! What was measured: latencies as histograms, answers by status and cache, failures by cause, and
//! all of it over time.

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;
use http::StatusCode;

/// Latencies from a microsecond to ten minutes, to three significant digits.
const LONGEST_MICROS: u64 = 600_000_000;

/// Microseconds, counted.
#[derive(Clone, Debug)]
pub struct Latencies(Histogram<u64>);

impl Default for Latencies {
    fn default() -> Self {
        let histogram = Histogram::new_with_bounds(1, LONGEST_MICROS, 3);
        // The bounds are constants that the library takes.
        Self(histogram.unwrap_or_else(|error| unreachable!("{error}")))
    }
}

impl Latencies {
    pub fn add(&mut self, latency: Duration) {
        let micros = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
        self.0.saturating_record(micros.clamp(1, LONGEST_MICROS));
    }

    pub fn count(&self) -> u64 {
        self.0.len()
    }

    /// The latency in milliseconds that this part of the requests stayed within; `None` without
    /// any.
    pub fn quantile(&self, part: f64) -> Option<f64> {
        (self.count() > 0).then(|| millis(self.0.value_at_quantile(part)))
    }

    pub fn min(&self) -> Option<f64> {
        (self.count() > 0).then(|| millis(self.0.min()))
    }

    pub fn max(&self) -> Option<f64> {
        (self.count() > 0).then(|| millis(self.0.max()))
    }

    pub fn mean(&self) -> Option<f64> {
        (self.count() > 0).then(|| rounded(self.0.mean() / 1000.0))
    }

    /// Of the population, in milliseconds.
    pub fn deviation(&self) -> Option<f64> {
        (self.count() > 0).then(|| rounded(self.0.stdev() / 1000.0))
    }

    pub fn merge(&mut self, other: &Self) {
        // Of the same bounds.
        let _ = self.0.add(&other.0);
    }

    /// How many there were up to each of these milliseconds, and above the last.
    pub fn steps(&self, bounds: &[f64]) -> Vec<u64> {
        let (mut counts, mut before) = (Vec::with_capacity(bounds.len() + 1), 0);
        for bound in bounds {
            let up_to = self.0.count_between(0, (bound * 1000.0) as u64);
            counts.push(up_to - before);
            before = up_to;
        }
        counts.push(self.count() - before);
        counts
    }
}

/// To a thousandth: what is measured is no finer.
pub fn rounded(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

fn millis(micros: u64) -> f64 {
    micros as f64 / 1000.0
}

/// How the cache says that it answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cached {
    Hit,
    Stale,
    Revalidated,
    Miss,
    Bypass,
    /// It does not say.
    Unsaid,
}

/// Why a request had no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cause {
    Dns,
    Connect,
    Tls,
    Timeout,
    /// The connection ended before the answer did.
    Closed,
    /// What came was no HTTP.
    Protocol,
    /// Not sent: too many were under way.
    Unsent,
}

impl Cause {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Dns => "dns",
            Self::Connect => "connect",
            Self::Tls => "tls",
            Self::Timeout => "timeout",
            Self::Closed => "closed",
            Self::Protocol => "protocol",
            Self::Unsent => "unsent",
        }
    }
}

/// One answer.
#[derive(Clone, Copy, Debug)]
pub struct Answered {
    pub status: StatusCode,
    pub cached: Cached,
    /// Of the body.
    pub bytes: u64,
}

/// One request, measured.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// The place of its endpoint.
    pub endpoint: usize,
    pub is_get: bool,
    /// From the moment it was due to its last byte.
    pub latency: Duration,
    pub outcome: Result<Answered, Cause>,
}

/// Sums of samples.
#[derive(Clone, Debug, Default)]
pub struct Sums {
    /// Of all that were answered.
    pub latencies: Latencies,
    pub requests: u64,
    /// Failures, and statuses from 400 on.
    pub errors: u64,
    pub statuses: BTreeMap<u16, u64>,
    pub causes: BTreeMap<Cause, u64>,
    pub bytes: u64,
    /// GETs whose cache says how they were answered, and those answered from it.
    pub told: u64,
    pub hits: u64,
    pub not_modified: u64,
}

impl Sums {
    pub fn add(&mut self, sample: &Sample) {
        self.requests += 1;
        let answered = match sample.outcome {
            Ok(answered) => answered,
            Err(cause) => {
                self.errors += 1;
                *self.causes.entry(cause).or_default() += 1;
                return;
            }
        };
        self.latencies.add(sample.latency);
        *self.statuses.entry(answered.status.as_u16()).or_default() += 1;
        self.bytes += answered.bytes;
        self.errors += u64::from(answered.status.as_u16() >= 400);
        self.not_modified += u64::from(answered.status == StatusCode::NOT_MODIFIED);
        if sample.is_get && answered.cached != Cached::Unsaid {
            self.told += 1;
            self.hits += u64::from(matches!(
                answered.cached,
                Cached::Hit | Cached::Stale | Cached::Revalidated
            ));
        }
    }

    pub fn merge(&mut self, other: &Self) {
        self.latencies.merge(&other.latencies);
        self.requests += other.requests;
        self.errors += other.errors;
        self.bytes += other.bytes;
        self.told += other.told;
        self.hits += other.hits;
        self.not_modified += other.not_modified;
        for (status, count) in &other.statuses {
            *self.statuses.entry(*status).or_default() += count;
        }
        for (cause, count) in &other.causes {
            *self.causes.entry(*cause).or_default() += count;
        }
    }

    pub fn error_rate(&self) -> f64 {
        part(self.errors, self.requests)
    }

    /// Of the GETs whose cache says so; `None` where none does.
    pub fn hit_rate(&self) -> Option<f64> {
        (self.told > 0).then(|| part(self.hits, self.told))
    }
}

fn part(of: u64, all: u64) -> f64 {
    if all == 0 {
        0.0
    } else {
        of as f64 / all as f64
    }
}

/// What happened within one step of time.
#[derive(Clone, Debug, Default)]
pub struct Step {
    pub sums: Sums,
    /// Virtual users, or the rate that was wanted, at its end.
    pub users: f64,
}

/// All that was measured.
#[derive(Clone, Debug)]
pub struct Record {
    pub by_endpoint: Vec<Sums>,
    /// Each `step` long, the first from the start on.
    pub over_time: Vec<Step>,
    pub step: Duration,
    pub elapsed: Duration,
    /// How late the generator itself was: from the moment a request was due, or a user had thought
    /// enough, to the moment it was sent.
    pub lag: Latencies,
    /// It was ended before its time.
    pub interrupted: bool,
}

impl Record {
    pub fn new(endpoints: usize, step: Duration) -> Self {
        Self {
            by_endpoint: vec![Sums::default(); endpoints],
            over_time: Vec::new(),
            step,
            elapsed: Duration::ZERO,
            lag: Latencies::default(),
            interrupted: false,
        }
    }

    /// A sample that was complete so long after the start.
    pub fn add(&mut self, sample: &Sample, elapsed: Duration) {
        if let Some(sums) = self.by_endpoint.get_mut(sample.endpoint) {
            sums.add(sample);
        }
        self.at(elapsed).sums.add(sample);
    }

    /// The step of a time after the start.
    pub fn at(&mut self, elapsed: Duration) -> &mut Step {
        let place = elapsed.div_duration_f64(self.step) as usize;
        while self.over_time.len() <= place {
            let users = self.over_time.last().map_or(0.0, |step| step.users);
            self.over_time.push(Step {
                users,
                ..Step::default()
            });
        }
        &mut self.over_time[place]
    }

    pub fn total(&self) -> Sums {
        let mut total = Sums::default();
        for sums in &self.by_endpoint {
            total.merge(sums);
        }
        total
    }

    /// Requests a second, over the whole time.
    pub fn throughput(&self) -> f64 {
        let seconds = self.elapsed.as_secs_f64();
        let requests: u64 = self.by_endpoint.iter().map(|sums| sums.requests).sum();
        if seconds > 0.0 {
            requests as f64 / seconds
        } else {
            0.0
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(millis: u64, status: u16, cached: Cached) -> Sample {
        Sample {
            endpoint: 0,
            is_get: true,
            latency: Duration::from_millis(millis),
            outcome: Ok(Answered {
                status: StatusCode::from_u16(status).unwrap(),
                cached,
                bytes: 10,
            }),
        }
    }

    #[test]
    fn percentiles_of_known_samples_are_right_to_three_digits() {
        let mut latencies = Latencies::default();
        for millis in 1..=1000 {
            latencies.add(Duration::from_millis(millis));
        }
        for (part, expected) in [(0.5, 500.0), (0.9, 900.0), (0.99, 990.0), (0.999, 999.0)] {
            let found = latencies.quantile(part).unwrap();
            assert!(
                (found - expected).abs() <= expected / 1000.0 + 0.001,
                "{part}: {found}"
            );
        }
        assert!((latencies.mean().unwrap() - 500.5).abs() < 0.6);
        // Of the population 1 to 1000: √((1000² − 1) ∕ 12).
        assert!((latencies.deviation().unwrap() - 288.67).abs() < 0.4);
        assert_eq!(latencies.steps(&[100.0, 500.0]).iter().sum::<u64>(), 1000);
        assert_eq!(Latencies::default().quantile(0.5), None);
    }

    #[test]
    fn rates_count_what_they_say() {
        let mut record = Record::new(1, Duration::from_secs(1));
        let outcomes = [
            sample(1, 200, Cached::Hit),
            sample(1, 200, Cached::Stale),
            sample(1, 304, Cached::Revalidated),
            sample(1, 200, Cached::Miss),
            sample(1, 500, Cached::Unsaid),
            Sample {
                outcome: Err(Cause::Connect),
                ..sample(1, 200, Cached::Unsaid)
            },
        ];
        for (at, outcome) in outcomes.iter().enumerate() {
            record.add(outcome, Duration::from_millis(at as u64 * 500));
        }
        record.elapsed = Duration::from_secs(3);
        let total = record.total();
        assert_eq!(
            (total.requests, total.errors, total.not_modified),
            (6, 2, 1)
        );
        assert_eq!((total.hit_rate(), total.bytes), (Some(0.75), 50));
        assert!((total.error_rate() - 1.0 / 3.0).abs() < 1e-9);
        assert_eq!(total.causes[&Cause::Connect], 1);
        assert_eq!(record.over_time.len(), 3);
        assert_eq!(record.throughput(), 2.0);
    }
}
