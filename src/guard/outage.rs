//! Is the source of verdicts ill, or were keys revoked? An origin whose key table is down refuses
//! good keys; what a few known keys met within a moment tells the two apart.
//!
//! The rule, without a probe key: within ten seconds at least two known keys were refused, they are
//! more than half of the known ones that were tried, and none was accepted. A lone key's refusal is
//! a revocation, unless the operator says otherwise. The worst cases: two keys revoked within ten
//! seconds, while no other is used, are served what is stored until their grace ends (60 s after
//! the last good answer); and in an outage the first key that is tried is refused until a second
//! one is.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tracing::{info, warn};

use crate::clock::Timestamp;

use super::credential::KeyId;

/// How long what a key met counts.
pub const WINDOW: Duration = Duration::from_secs(10);

/// Outages that have ended and are remembered.
const MOST_ENDED: usize = 64;

/// What is remembered of one window.
const MOST: usize = 1024;

/// What a known key met at the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Met {
    Accepted,
    Refused,
    /// The source failed, or said nothing about the key.
    Failed,
}

/// What the probe key met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probed {
    Outage,
    Revocation,
}

#[derive(Debug, Default)]
pub struct Outage {
    /// Of the plan that was made last.
    lone_key_has_grace: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    met: VecDeque<(Timestamp, KeyId, Met)>,
    probed: Option<(Timestamp, Probed)>,
    /// When it was found, and when it was still on, while it is.
    current: Option<(Timestamp, Timestamp)>,
    /// Those that have ended, the latest last.
    ended: VecDeque<(Timestamp, Timestamp)>,
}

impl Outage {
    /// Says whether the refusal of the only known key is an outage too.
    pub fn set_lone_key_has_grace(&self, lone_key_has_grace: bool) {
        let shared = &self.lone_key_has_grace;
        shared.store(lone_key_has_grace, Ordering::Relaxed);
    }

    fn with<T>(&self, now: Timestamp, look: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.state.lock();
        let is_old = |at: Timestamp| now.since(at) > WINDOW;
        while state.met.front().is_some_and(|(at, _, _)| is_old(*at)) {
            state.met.pop_front();
        }
        state.probed = state.probed.filter(|(at, _)| !is_old(*at));
        look(&mut state)
    }

    pub fn note(&self, key: KeyId, met: Met, now: Timestamp) {
        self.with(now, |state| {
            state.met.push_back((now, key, met));
            if state.met.len() > MOST {
                state.met.pop_front();
            }
            // The source works: what the probe met before is settled.
            if met == Met::Accepted {
                state.probed = None;
            }
        });
    }

    pub fn probed(&self, probed: Probed, now: Timestamp) {
        self.with(now, |state| state.probed = Some((now, probed)));
    }

    /// What the probe key met lately.
    pub fn last_probe(&self, now: Timestamp) -> Option<(Timestamp, Probed)> {
        self.with(now, |state| state.probed)
    }

    /// Whether refusals of known keys are the source's fault now.
    pub fn is_on(&self, now: Timestamp) -> bool {
        let lone_key_has_grace = self.lone_key_has_grace.load(Ordering::Relaxed);
        self.with(now, |state| state.look(lone_key_has_grace, now))
    }

    /// Whether a refusal at this time is the fault of an outage, this one or one before.
    pub fn explains(&self, refused: Timestamp, now: Timestamp) -> bool {
        let lone_key_has_grace = self.lone_key_has_grace.load(Ordering::Relaxed);
        self.with(now, |state| {
            state.look(lone_key_has_grace, now);
            let known = state.ended.iter().chain(&state.current);
            let mut covering =
                known.filter(|(since, until)| refused >= since.minus(WINDOW) && refused <= *until);
            covering.next().is_some()
        })
    }
}

impl State {
    /// Looks whether there is one now, and notes where one begins and ends.
    fn look(&mut self, lone_key_has_grace: bool, now: Timestamp) -> bool {
        let is_on = self.is_on(lone_key_has_grace);
        match (is_on, self.current) {
            (true, None) => {
                warn!(
                    "the origin refuses keys that were good a moment ago: taken for an outage of \
                        its key table; they are served what is stored until their grace ends, \
                        unknown keys get 503"
                );
                self.current = Some((now, now));
            }
            (true, Some((since, _))) => self.current = Some((since, now)),
            (false, Some(ended)) => {
                info!("the origin's key table is taken for well again");
                self.ended.push_back(ended);
                if self.ended.len() > MOST_ENDED {
                    self.ended.pop_front();
                }
                self.current = None;
            }
            (false, None) => {}
        }
        is_on
    }

    fn is_on(&self, lone_key_has_grace: bool) -> bool {
        if let Some((_, probed)) = self.probed {
            return probed == Probed::Outage;
        }
        // The last that each met.
        let met = self.met.iter();
        let last: HashMap<[u8; 32], Met> = met.map(|(_, key, met)| (key.0, *met)).collect();
        let refused = last.values().filter(|met| **met == Met::Refused).count();
        let none_accepted = self.met.iter().all(|(_, _, met)| *met != Met::Accepted);
        let is_lone = lone_key_has_grace && refused == 1 && last.len() == 1;
        (refused >= 2 || is_lone) && refused * 2 > last.len() && none_accepted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: u8) -> KeyId {
        KeyId([number; 32])
    }

    fn at(seconds: u64) -> Timestamp {
        Timestamp::from_millis(1_000_000 + seconds * 1000)
    }

    fn after(met: &[(u8, Met, u64)], lone_key_has_grace: bool, now: u64) -> bool {
        let outage = Outage::default();
        outage.set_lone_key_has_grace(lone_key_has_grace);
        for (number, met, second) in met {
            outage.note(key(*number), *met, at(*second));
        }
        outage.is_on(at(now))
    }

    #[test]
    fn two_known_keys_refused_and_none_accepted_is_an_outage() {
        use Met::{Accepted, Failed, Refused};
        for (met, expected) in [
            (&[(1, Refused, 0)][..], false),
            (&[(1, Refused, 0), (1, Refused, 1)], false),
            (&[(1, Refused, 0), (2, Refused, 1)], true),
            (&[(1, Refused, 0), (2, Refused, 11)], false),
            (&[(1, Refused, 0), (2, Refused, 1), (3, Accepted, 2)], false),
            (&[(3, Accepted, 0), (1, Refused, 0), (2, Refused, 1)], false),
            (&[(1, Refused, 0), (2, Refused, 1), (3, Failed, 2)], true),
            (
                &[
                    (1, Refused, 0),
                    (2, Refused, 1),
                    (3, Failed, 2),
                    (4, Failed, 2),
                ],
                false,
            ),
        ] {
            let now = met.iter().map(|(_, _, second)| *second).max().unwrap();
            assert_eq!(after(met, false, now), expected, "{met:?}");
        }
        // It ends with its window, where nobody is refused any more.
        assert!(!after(&[(1, Refused, 0), (2, Refused, 1)], false, 12));
    }

    #[test]
    fn a_lone_keys_refusal_is_an_outage_where_the_operator_says_so() {
        let refused = [(1, Met::Refused, 0)];
        assert!(after(&refused, true, 0));
        let other = [(2, Met::Failed, 0), (1, Met::Refused, 0)];
        assert!(!after(&other, true, 0));
    }

    #[test]
    fn the_probe_key_settles_it_either_way() {
        let outage = Outage::default();
        outage.note(key(1), Met::Refused, at(0));
        outage.probed(Probed::Outage, at(0));
        assert!(outage.is_on(at(1)));
        outage.note(key(2), Met::Refused, at(1));
        outage.probed(Probed::Revocation, at(1));
        assert!(!outage.is_on(at(1)));
        outage.probed(Probed::Outage, at(1));
        outage.note(key(3), Met::Accepted, at(2));
        assert!(!outage.is_on(at(2)));
    }
}
