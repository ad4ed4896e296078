//! What was observed on routes that share one answer among all keys: why a route was demoted, and
//! how many misses there were. It is kept by the digest of a route's identity.

use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::clock::Timestamp;

/// What was observed on one shared route.
#[derive(Debug, Default)]
pub struct SharedRoute {
    /// When and by which path its answers were found to differ, for who asks why.
    why_demoted: Mutex<Option<(Timestamp, String)>>,
    /// Misses that could be compared so far.
    misses: AtomicU64,
    /// Differences among keys that had agreed.
    differences: AtomicU64,
}

impl SharedRoute {
    pub fn why_demoted(&self) -> Option<(Timestamp, String)> {
        self.why_demoted.lock().clone()
    }

    pub fn set_why_demoted(&self, at: Timestamp, path: &str) {
        *self.why_demoted.lock() = Some((at, path.to_owned()));
    }

    /// Keys that had agreed were found to differ; how often that was so.
    pub fn differs_again(&self) -> u64 {
        self.differences.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Whether this miss is one of those that are fetched with a second key: one in `every` is.
    pub fn is_sampled(&self, every: u64) -> bool {
        let before = self.misses.fetch_add(1, Ordering::Relaxed);
        (before + 1).is_multiple_of(every)
    }
}
