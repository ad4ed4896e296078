//! How long fetches of a route usually take: an average in which the latest weigh most.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A fetch changes the average by one part in so many.
const WEIGHT: u64 = 4;

/// Of one route, in microseconds; 0 before the first fetch.
#[derive(Debug, Default)]
pub struct FetchTime(AtomicU64);

impl FetchTime {
    /// Another fetch took so long.
    pub fn note(&self, took: Duration) {
        let took = u64::try_from(took.as_micros()).unwrap_or(u64::MAX / 2);
        // Two at once may count as one.
        let next = match self.0.load(Ordering::Relaxed) {
            0 => took,
            before => before - before / WEIGHT + took / WEIGHT,
        };
        self.0.store(next.max(1), Ordering::Relaxed);
    }

    /// `None` where that is not known yet.
    pub fn usual(&self) -> Option<Duration> {
        let usual = self.0.load(Ordering::Relaxed);
        (usual > 0).then(|| Duration::from_micros(usual))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_weigh_most() {
        let time = FetchTime::default();
        assert_eq!(time.usual(), None);
        time.note(Duration::from_millis(100));
        assert_eq!(time.usual(), Some(Duration::from_millis(100)));
        for _ in 0..20 {
            time.note(Duration::from_millis(500));
        }
        let usual = time.usual().unwrap_or_default().as_millis();
        assert!((490..=500).contains(&usual), "{usual}");
        time.note(Duration::ZERO);
        assert!(time.usual().is_some());
    }
}
