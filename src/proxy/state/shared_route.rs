//! What was observed on routes that share one answer among all keys: why a route was demoted, and how
//! many misses there were. It is kept by the digest of a route's identity.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

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
        lock(&self.why_demoted).clone()
    }

    pub fn set_why_demoted(&self, at: Timestamp, path: &str) {
        *lock(&self.why_demoted) = Some((at, path.to_owned()));
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

/// What was observed on all shared routes of the plans that are held somewhere.
#[derive(Debug, Default)]
pub struct SharedRoutes {
    routes: Mutex<HashMap<[u8; 32], Weak<SharedRoute>>>,
}

impl SharedRoutes {
    /// What was observed on the route with this digest; every plan that has it shares that.
    pub fn of(&self, digest: [u8; 32]) -> Arc<SharedRoute> {
        let mut routes = lock(&self.routes);
        if let Some(known) = routes.get(&digest).and_then(Weak::upgrade) {
            return known;
        }
        routes.retain(|_, route| route.strong_count() > 0);
        let fresh = Arc::new(SharedRoute::default());
        routes.insert(digest, Arc::downgrade(&fresh));
        fresh
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
