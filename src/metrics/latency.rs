//! A latency histogram that costs a few uncontended additions: each worker counts in a shard of
//! its own, and a scrape adds the shards up.

use std::cell::Cell;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prometheus_client::encoding::{EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::{MetricType, TypedMetric};

/// Upper bounds in milliseconds: the Iris operators' own from 5 ms up, finer ones below.
pub const BOUNDS_MS: [f64; 22] = [
    0.1, 0.25, 0.5, 1.0, 2.0, 3.0, 4.0, 5.0, 10.0, 25.0, 50.0, 75.0, 100.0, 150.0, 200.0, 250.0,
    300.0, 500.0, 750.0, 1000.0, 2000.0, 5000.0,
];

/// Threads beyond this many share shards, which is slower but counts the same.
pub const SHARDS: usize = 16;

thread_local! {
    static SHARD: Cell<usize> = const { Cell::new(0) };
}

/// Gives the calling thread a shard of its own; each worker calls it once as it starts.
pub fn use_shard(worker: usize) {
    SHARD.set((worker + 1) % SHARDS);
}

/// The shard of the calling thread.
pub fn shard() -> usize {
    SHARD.get()
}

/// Padded to whole cache lines, so that two workers never write to the same one.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Shard {
    buckets: [AtomicU64; BOUNDS_MS.len() + 1],
    sum_micros: AtomicU64,
}

/// A histogram of durations, shown in milliseconds.
#[derive(Clone, Default)]
pub struct Latency {
    shards: Arc<[Shard; SHARDS]>,
}

impl Latency {
    pub fn observe(&self, elapsed: Duration) {
        let millis = elapsed.as_secs_f64() * 1000.0;
        let bucket = BOUNDS_MS.partition_point(|bound| *bound < millis);
        let micros = u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX);
        let shard = &self.shards[SHARD.get()];
        shard.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        shard.sum_micros.fetch_add(micros, Ordering::Relaxed);
    }

    /// The counts of all shards, bucket by bucket, the last one for what is over every bound.
    pub fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        for shard in self.shards.iter() {
            for (sum, bucket) in counts.buckets.iter_mut().zip(&shard.buckets) {
                *sum += bucket.load(Ordering::Relaxed);
            }
            counts.sum_micros += shard.sum_micros.load(Ordering::Relaxed);
        }
        counts
    }
}

impl fmt::Debug for Latency {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_tuple("Latency")
            .field(&self.counts().total())
            .finish()
    }
}

impl TypedMetric for Latency {
    const TYPE: MetricType = MetricType::Histogram;
}

impl EncodeMetric for Latency {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        let counts = self.counts();
        let bounds = BOUNDS_MS.into_iter().chain([f64::INFINITY]);
        let buckets: Vec<(f64, u64)> = bounds.zip(counts.buckets).collect();
        let sum = counts.sum_micros as f64 / 1000.0;
        encoder.encode_histogram::<NoLabelSet>(sum, counts.total(), &buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}

/// What a histogram holds at one moment; several add up.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    buckets: [u64; BOUNDS_MS.len() + 1],
    pub sum_micros: u64,
}

impl Counts {
    pub fn total(&self) -> u64 {
        self.buckets.iter().sum()
    }

    pub fn add(&mut self, other: &Self) {
        for (sum, more) in self.buckets.iter_mut().zip(other.buckets) {
            *sum += more;
        }
        self.sum_micros += other.sum_micros;
    }

    /// The `quantile` (0 to 1) in milliseconds, linear within its bucket as Prometheus does it;
    /// zero where nothing was counted.
    pub fn quantile_ms(&self, quantile: f64) -> f64 {
        let rank = quantile * self.total() as f64;
        let mut below = 0.0;
        let mut lower = 0.0;
        for (bound, count) in BOUNDS_MS.into_iter().zip(self.buckets) {
            let count = count as f64;
            if count > 0.0 && below + count >= rank {
                return lower + (bound - lower) * ((rank - below) / count);
            }
            below += count;
            lower = bound;
        }
        if self.total() == 0 { 0.0 } else { lower }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_fall_into_the_bucket_of_their_rank() {
        let latency = Latency::default();
        for millis in 1..=100 {
            latency.observe(Duration::from_millis(millis));
        }
        let counts = latency.counts();
        assert_eq!(counts.total(), 100);
        assert!((counts.quantile_ms(0.5) - 50.0).abs() < 1.0);
        assert!((counts.quantile_ms(0.95) - 95.0).abs() < 1.5);
        assert_eq!(Latency::default().counts().quantile_ms(0.99), 0.0);
    }

    #[test]
    fn shards_add_up() {
        let latency = Latency::default();
        let other = latency.clone();
        latency.observe(Duration::from_millis(3));
        std::thread::spawn(move || {
            use_shard(1);
            other.observe(Duration::from_secs(9));
        })
        .join()
        .unwrap();
        assert_eq!(latency.counts().total(), 2);
        assert_eq!(latency.counts().quantile_ms(1.0), 5000.0);
    }
}
