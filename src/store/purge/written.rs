//! How fast groups are written, and how fast they can be fetched again: an isolated write makes what it
//! changes unusable, so that whoever reads next sees it; while writes come faster than fetches, it is
//! stale, for else nothing would be stored any more.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::clock::Timestamp;
use crate::policy::invalidate::Mode;

/// A write is isolated that comes so many fetches after the last one: readers wait for one fetch in
/// this many at most.
const FETCHES: u32 = 4;

/// What a slow fetch says fades by so much with each that is faster.
const FADES: f64 = 0.95;

/// The groups that are watched. One process's, with the writes that it hears of from the fleet.
#[derive(Debug, Default)]
pub struct Written(Mutex<HashMap<Box<str>, Pace>>);

#[derive(Clone, Copy, Debug, Default)]
struct Pace {
    written: Option<Timestamp>,
    /// How long it takes to fetch the slowest of it.
    took: Duration,
}

impl Written {
    fn groups(&self) -> MutexGuard<'_, HashMap<Box<str>, Pace>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on writes and fetches of this group are looked at.
    pub fn watch(&self, group: &str) {
        self.groups().entry(group.into()).or_default();
    }

    /// The group was changed then.
    pub fn changed(&self, group: &str, at: Timestamp) {
        if let Some(pace) = self.groups().get_mut(group) {
            pace.written = pace.written.max(Some(at));
        }
    }

    /// A response of these groups was fetched, which took so long.
    pub fn fetched<'a>(&self, groups: impl Iterator<Item = &'a str>, took: Duration) {
        let mut known = self.groups();
        for group in groups {
            if let Some(pace) = known.get_mut(group) {
                pace.took = pace.took.mul_f64(FADES).max(took);
            }
        }
    }

    /// What a write that comes now makes of the group.
    pub fn mode(&self, group: &str, now: Timestamp) -> Mode {
        let pace = self.groups().get(group).copied().unwrap_or_default();
        match pace.written {
            Some(written) if now.since(written) < pace.took * FETCHES => Mode::Soft,
            _ => Mode::Hard,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Timestamp {
        Timestamp::from_millis(1_000_000 + millis)
    }

    #[test]
    fn a_write_is_isolated_by_how_long_a_fetch_takes() {
        let written = Written::default();
        written.watch("a");
        let took = |millis| written.fetched(["a", "b"].into_iter(), Duration::from_millis(millis));
        // Nothing was fetched, or nothing written: hard.
        assert_eq!(written.mode("a", at(0)), Mode::Hard);
        written.changed("a", at(0));
        assert_eq!(written.mode("a", at(1)), Mode::Hard);
        took(100);
        for (now, expected) in [(1, Mode::Soft), (399, Mode::Soft), (400, Mode::Hard)] {
            assert_eq!(written.mode("a", at(now)), expected, "{now}");
        }
        // The slowest counts, and is forgotten by and by.
        took(10);
        assert_eq!(written.mode("a", at(370)), Mode::Soft);
        (0..100).for_each(|_| took(10));
        assert_eq!(written.mode("a", at(100)), Mode::Hard);
        // What is not watched is not known.
        written.changed("b", at(0));
        assert_eq!(written.mode("b", at(1)), Mode::Hard);
    }
}
