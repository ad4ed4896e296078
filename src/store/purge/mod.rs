//! The purge log: what was made unusable (hard) or stale (soft), and in which order.
//!
//! A purge changes no stored response by itself. It is a mark with a position; whoever looks at a
//! stored response asks whether a mark reaches it that is newer than the position at which its
//! fetch began. So one purge costs the same whatever is stored, reaches what is still being
//! fetched, and cannot be overtaken by a fill. An entry remembers up to which position it was
//! judged: as long as nothing is purged, a hit compares two numbers.

mod book;
mod named;
#[cfg(test)]
mod tests;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock};

use crate::clock::Timestamp;
use crate::policy::Groups;
use crate::policy::invalidate::Mode;
use crate::policy::key::Place;

use book::Book;

pub use book::{Judgement, Seen};
pub use named::{Purge, Reach, Target};

/// The log of this process.
#[derive(Debug, Default)]
pub struct PurgeLog {
    /// Of the latest purge; 0 before the first.
    position: AtomicU64,
    book: RwLock<Book>,
}

impl PurgeLog {
    /// Of the latest purge: what is fetched from now on is newer than it.
    pub fn position(&self) -> u64 {
        self.position.load(Ordering::Acquire)
    }

    /// Writes a purge down; its position. Whoever asks after this returns sees it.
    pub fn append(&self, purge: Purge, mode: Mode, now: Timestamp) -> u64 {
        let mut book = self.book.write().unwrap_or_else(PoisonError::into_inner);
        let position = self.position.load(Ordering::Relaxed) + 1;
        book.add(purge, mode, position, now);
        self.position.store(position, Ordering::Release);
        position
    }

    /// What the purges make of a response at `place`, and up to which position that holds.
    pub fn judge(
        &self,
        place: &Place<'_>,
        groups: Option<&Groups>,
        seen: Seen,
    ) -> (Judgement, u64) {
        let book = self.book.read().unwrap_or_else(PoisonError::into_inner);
        let found = book.judge(place, groups, seen);
        (found, self.position.load(Ordering::Relaxed))
    }

    /// Whether a fetch for `key` that began at `since` must not be joined by a request that came at
    /// `asked`.
    pub fn has_purged(&self, key: &[u8], groups: Option<&Groups>, since: u64, asked: u64) -> bool {
        let seen = Seen {
            asked,
            ..Seen::all_since(since)
        };
        since < asked
            && Place::of(key)
                .is_some_and(|place| self.judge(&place, groups, seen).0 == Judgement::Gone)
    }
}
