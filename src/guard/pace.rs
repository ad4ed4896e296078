//! So many a second: a bound on questions that strangers can set off.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::clock::Timestamp;

/// When the next one may begin, in nanoseconds since the epoch.
#[derive(Debug, Default)]
pub struct Pace(AtomicU64);

impl Pace {
    /// Whether one more may begin now, of so many a second; it counts as begun.
    pub fn begins(&self, per_second: u64, now: Timestamp) -> bool {
        let step = |next| after(next, per_second, now);
        let next = &self.0;
        next.fetch_update(Ordering::AcqRel, Ordering::Acquire, step)
            .is_ok()
    }

    /// As [`Pace::begins`], but nothing is counted.
    pub fn may_begin(&self, per_second: u64, now: Timestamp) -> bool {
        after(self.0.load(Ordering::Acquire), per_second, now).is_some()
    }
}

/// When the one after the next may begin; `None` while none may.
fn after(next: u64, per_second: u64, now: Timestamp) -> Option<u64> {
    let now = now.as_millis() * 1_000_000;
    let step = 1_000_000_000 / per_second;
    let ahead = 1_000_000_000 - step;
    // A clock that was set back must not keep everybody waiting for it.
    let next = if next > now + 2_000_000_000 {
        now
    } else {
        next
    };
    (next <= now + ahead).then(|| next.max(now) + step)
}
