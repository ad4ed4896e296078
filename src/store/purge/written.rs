//! How fast groups are written, and how fast they can be fetched again: an isolated write makes
//! what it changes unusable, so that whoever reads next sees it; while writes come faster than
//! fetches, it is stale, for else nothing would be stored any more.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};

use crate::clock::Timestamp;
use crate::policy::invalidate::Mode;

/// A write is isolated that comes so many fetches after the last one: readers wait for one fetch in
/// this many at most.
const FETCHES: u32 = 4;

/// Fetches that are remembered of a group. How long it takes is the second longest of them: one
/// that was slow by chance does not count.
const REMEMBERED: usize = 8;

/// How long it takes where that is not known here: another instance may have fetched it.
const UNKNOWN: Duration = Duration::from_millis(250);

/// The groups that are watched. One process's, with the writes that it hears of from the fleet.
#[derive(Debug, Default)]
pub struct Written(Mutex<HashMap<Box<str>, Pace>>);

#[derive(Clone, Debug, Default)]
struct Pace {
    written: Option<Timestamp>,
    /// How long the latest fetches took.
    took: VecDeque<Duration>,
    /// Somebody waits for the end of a burst.
    is_awaited: bool,
}

impl Pace {
    /// A write that comes sooner after the last one than this is not isolated.
    fn apart(&self) -> Duration {
        let mut took: Vec<Duration> = self.took.iter().copied().collect();
        took.sort_unstable();
        let usual = match took[..] {
            [] => UNKNOWN,
            [only] => only,
            [.., usual, _] => usual,
        };
        usual * FETCHES
    }

    /// How long it is still in a burst.
    fn left(&self, now: Timestamp) -> Option<Duration> {
        let left = self.apart().checked_sub(now.since(self.written?))?;
        (!left.is_zero()).then_some(left)
    }
}

impl Written {
    fn groups(&self) -> MutexGuard<'_, HashMap<Box<str>, Pace>> {
        self.0.lock()
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
                if pace.took.len() == REMEMBERED {
                    pace.took.pop_front();
                }
                pace.took.push_back(took);
            }
        }
    }

    /// What a write that comes now makes of the group.
    pub fn mode(&self, group: &str, now: Timestamp) -> Mode {
        let left = self.groups().get(group).and_then(|pace| pace.left(now));
        match left {
            Some(_) => Mode::Soft,
            None => Mode::Hard,
        }
    }

    /// How long a burst of writes goes on, unless somebody waits for its end already.
    pub fn await_end(&self, group: &str) -> Option<Duration> {
        let mut known = self.groups();
        let pace = known.get_mut(group)?;
        let is_awaited = std::mem::replace(&mut pace.is_awaited, true);
        (!is_awaited).then(|| pace.apart())
    }

    /// What the writes of a burst had left is gone: that was no write itself.
    pub fn ended(&self, group: &str) {
        if let Some(pace) = self.groups().get_mut(group) {
            pace.written = None;
        }
    }

    /// How long it still goes on; `None` where it has ended.
    pub fn goes_on(&self, group: &str, now: Timestamp) -> Option<Duration> {
        let mut known = self.groups();
        let pace = known.get_mut(group)?;
        let left = pace.left(now);
        pace.is_awaited = left.is_some();
        left
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
        // Nothing was written: hard. Nothing was fetched: elsewhere it may have been.
        assert_eq!(written.mode("a", at(0)), Mode::Hard);
        written.changed("a", at(0));
        assert_eq!(written.mode("a", at(1)), Mode::Soft);
        assert_eq!(written.mode("a", at(1001)), Mode::Hard);
        took(100);
        for (now, expected) in [(1, Mode::Soft), (399, Mode::Soft), (400, Mode::Hard)] {
            assert_eq!(written.mode("a", at(now)), expected, "{now}");
        }
        // One that is slow by chance says nothing, two do.
        took(3000);
        assert_eq!(written.mode("a", at(401)), Mode::Hard);
        took(3000);
        assert_eq!(written.mode("a", at(401)), Mode::Soft);
        (0..8).for_each(|_| took(10));
        assert_eq!(written.mode("a", at(41)), Mode::Hard);
        // The end of a burst is awaited once.
        assert_eq!(written.await_end("a"), Some(Duration::from_millis(40)));
        assert_eq!(written.await_end("a"), None);
        assert_eq!(
            written.goes_on("a", at(15)),
            Some(Duration::from_millis(25))
        );
        assert_eq!(written.goes_on("a", at(40)), None);
        assert!(written.await_end("a").is_some());
        // What is not watched is not known.
        written.changed("b", at(0));
        assert_eq!(written.mode("b", at(1)), Mode::Hard);
    }
}
