//! What is asked for most: a sample of the requests that are looked up.

use std::cell::Cell;
use std::collections::HashMap;

use parking_lot::Mutex;

/// Of one thread so many are all counted: a sidecar that was just started has seen few.
const FIRST: u32 = 256;

/// Later one of so many is.
const SAMPLED: u32 = 32;

/// Different ones that are remembered; the rare ones make room.
const MOST: usize = 1024;

/// No host name is longer (RFC 1035 §2.3.4).
const LONGEST_HOST: usize = 255;

/// Longer targets are not remembered: they are seldom those of many.
const LONGEST: usize = 512;

thread_local! {
    static PASSED: Cell<u32> = const { Cell::new(0) };
}

/// Host and target of a request.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Asked {
    pub host: Box<str>,
    /// Path and query.
    pub target: Box<str>,
}

/// How often each was asked for, about.
#[derive(Debug, Default)]
pub struct Seen {
    counts: Mutex<HashMap<Asked, u64>>,
}

impl Seen {
    /// Counts a request, by chance; never waits. `target` is asked for where it counts.
    pub fn note(&self, host: &str, target: impl FnOnce() -> Option<Box<str>>) {
        let passed = PASSED.get();
        // Where the number begins anew, the first ones do not.
        PASSED.set(passed.checked_add(1).unwrap_or(FIRST));
        let weight = match passed {
            ..FIRST => 1,
            passed if passed.is_multiple_of(SAMPLED) => SAMPLED,
            _ => return,
        };
        let Some(target) = target().filter(|target| target.len() <= LONGEST) else {
            return;
        };
        let Some(mut counts) = self.counts.try_lock() else {
            return;
        };
        let host = host.get(..LONGEST_HOST).unwrap_or(host).into();
        *counts.entry(Asked { host, target }).or_default() += u64::from(weight);
        // Where they are too many, what was asked for least makes room, and the others fade by that
        // (Misra and Gries 1982).
        if counts.len() > MOST {
            let least = counts.values().min().copied().unwrap_or_default();
            counts.retain(|_, count| {
                *count -= least;
                *count > 0
            });
        }
    }

    /// Those that were asked for most, and how often about.
    pub fn most(&self, count: usize) -> Vec<(Asked, u64)> {
        let counts = self.counts.lock();
        let mut all: Vec<_> = counts
            .iter()
            .map(|(asked, count)| (asked.clone(), *count))
            .collect();
        drop(counts);
        all.sort_by(|one, other| (other.1, &one.0).cmp(&(one.1, &other.0)));
        all.truncate(count);
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(seen: &Seen, target: &str, times: u32) {
        for _ in 0..times {
            seen.note("h", || Some(target.into()));
        }
    }

    #[test]
    fn the_first_ones_are_all_counted_and_then_a_sample() {
        let seen = Seen::default();
        note(&seen, "/a", 3);
        note(&seen, "/b", 2);
        let names = |count: usize| -> Vec<(String, u64)> {
            let most = seen.most(count).into_iter();
            most.map(|(asked, count)| (asked.target.into(), count))
                .collect()
        };
        assert_eq!(names(9), [("/a".to_owned(), 3), ("/b".to_owned(), 2)]);
        assert_eq!(names(1).len(), 1);
        note(&seen, "/c", FIRST + 320 * SAMPLED);
        let (first, count) = names(1).remove(0);
        assert_eq!(first, "/c");
        assert!((10_000..11_000).contains(&count), "{count}");
    }

    #[test]
    fn it_remembers_so_many_and_the_frequent_ones_stay() {
        let seen = Seen::default();
        note(&seen, "/often", 200);
        for number in 0..40 * MOST as u32 {
            note(&seen, &format!("/{number}"), 1);
            if number.is_multiple_of(8) {
                note(&seen, "/often", 8);
            }
        }
        assert!(seen.most(usize::MAX).len() <= MOST);
        assert_eq!(&*seen.most(1)[0].0.target, "/often");
    }
}
