//! Verdicts in memory: bounded, and good ones apart from bad ones, so that a flood of random keys
//! drives out no good one.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use quick_cache::sync::Cache;
use sha2::{Digest, Sha256};

use crate::clock::Timestamp;

use super::credential::{Credential, KeyId};
use super::group::Group;

/// Of a key where it stood, for what a verdict reaches: the name of a verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct VerdictId(pub [u8; 32]);

impl VerdictId {
    /// `scope` says what it reaches: no two scopes are written the same.
    pub fn of(credential: &Credential, scope: &[u8]) -> Self {
        let mut digest = Sha256::new();
        digest.update(credential.key.0);
        digest.update(credential.place);
        digest.update(scope);
        Self(digest.finalize().into())
    }

    /// Of a verdict that opens nothing but the key's own answers.
    pub fn of_its_own(&self) -> Self {
        Self(self.0.map(|byte| !byte))
    }

    /// Of a verdict that opens what the keys of a group have fetched.
    pub fn in_group(&self, group: Group) -> Self {
        let mut id = self.0;
        let parts = id.iter_mut().zip(group.to_bytes());
        parts.for_each(|(byte, part)| *byte ^= part);
        Self(id)
    }
}

/// A good answer to a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Good {
    pub until: Timestamp,
    /// When the last good answer came.
    pub last: Timestamp,
    /// The purge log's position when the source was asked: a later revocation counts.
    pub stamp: u64,
    /// A refusal that came after it.
    pub refused: Option<Timestamp>,
}

/// A refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bad {
    pub at: Timestamp,
    pub until: Timestamp,
    order: u64,
}

/// What is remembered of one key for one scope.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Remembered {
    pub good: Option<Good>,
    /// One that still holds.
    pub bad: Option<Bad>,
}

/// A key that was good anywhere.
#[derive(Clone)]
struct KnownKey {
    /// When last.
    last: Timestamp,
    /// Whose it is, where that was said.
    project: Option<Arc<str>>,
    /// The place of that question in the order of refusals.
    asked: u64,
}

pub struct Verdicts {
    good: Cache<VerdictId, (Good, u64)>,
    bad: Cache<VerdictId, Bad>,
    /// Keys that were refused where they had been good, when, and their place in the order of
    /// refusals: older good verdicts on them, elsewhere, count no more.
    refused: Cache<[u8; 32], (Timestamp, u64)>,
    /// Keys that were good anywhere.
    known: Cache<[u8; 32], KnownKey>,
    /// Counts refusals.
    order: AtomicU64,
    /// One change at a time: each looks before it writes.
    changing: Mutex<()>,
}

impl Verdicts {
    pub fn new(most: usize) -> Self {
        Self {
            good: Cache::new(most),
            bad: Cache::new(most),
            refused: Cache::new(most),
            known: Cache::new(most),
            order: AtomicU64::new(1),
            changing: Mutex::default(),
        }
    }

    fn change(&self) -> MutexGuard<'_, ()> {
        self.changing.lock()
    }

    /// Refusals so far: a good answer to a question older than a refusal does not undo it.
    pub fn order(&self) -> u64 {
        self.order.load(Ordering::Acquire)
    }

    pub fn of(&self, key: &KeyId, id: &VerdictId, now: Timestamp) -> Remembered {
        let bad = self.bad.get(id).filter(|bad| now < bad.until);
        let Some((mut good, order)) = self.good.get(id) else {
            return Remembered { good: None, bad };
        };
        let elsewhere = (!self.refused.is_empty())
            .then(|| self.refused.get(&key.0))
            .flatten();
        if elsewhere.is_some_and(|(_, refused)| refused > order) {
            good.until = good.until.min(now);
        }
        Remembered {
            good: Some(good),
            bad,
        }
    }

    /// When a key was good last, wherever that was.
    pub fn last_good(&self, key: &KeyId) -> Option<Timestamp> {
        self.known.get(&key.0).map(|known| known.last)
    }

    /// Whose key it is, unless it was refused after that was said.
    pub fn project(&self, key: &KeyId) -> Option<Arc<str>> {
        let known = self.known.get(&key.0)?;
        let refused = self.refused.get(&key.0).map_or(0, |(_, order)| order);
        known.project.filter(|_| refused <= known.asked)
    }

    /// When this was refused last, as far as that is remembered: older good answers say nothing.
    pub fn last_refused(&self, key: &KeyId, id: &VerdictId) -> Option<Timestamp> {
        let here = self.bad.get(id).map(|bad| bad.at);
        let anywhere = self.refused.get(&key.0).map(|(at, _)| at);
        here.max(anywhere)
    }

    /// The source accepted it, and has said whose key it is or not, asked when so many had been
    /// refused; whether that counts.
    pub fn accept(
        &self,
        key: &KeyId,
        id: VerdictId,
        (good, project): (Good, Option<Arc<str>>),
        asked: u64,
    ) -> bool {
        let _one = self.change();
        let refused = self.refused.get(&key.0).map_or(0, |(_, order)| order);
        let here = self.bad.get(&id).map_or(0, |bad| bad.order);
        if refused.max(here) > asked {
            return false;
        }
        self.good.insert(id, (good, asked));
        let last = good.last;
        let known = KnownKey {
            last,
            project,
            asked,
        };
        self.known.insert(key.0, known);
        self.bad.remove(&id);
        true
    }

    /// The source refused it; `everywhere`, where that is about the key and not the place.
    pub fn refuse(
        &self,
        key: &KeyId,
        id: VerdictId,
        ttl: Duration,
        everywhere: bool,
        now: Timestamp,
    ) {
        let _one = self.change();
        let order = self.order.fetch_add(1, Ordering::AcqRel) + 1;
        let bad = Bad {
            at: now,
            until: now.plus(ttl),
            order,
        };
        self.bad.insert(id, bad);
        if let Some((good, learned)) = self.good.get(&id) {
            let good = Good {
                until: good.until.min(now),
                refused: Some(now),
                ..good
            };
            self.good.insert(id, (good, learned));
            if everywhere {
                self.refused.insert(key.0, (now, order));
            }
        }
    }

    /// Verdicts that are remembered: good and bad ones.
    pub fn len(&self) -> (u64, u64) {
        (self.good.len() as u64, self.bad.len() as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn credential(number: u8) -> Credential {
        Credential {
            key: KeyId([number; 32]),
            carrier: 1,
            place: [1; 8],
        }
    }

    fn at(seconds: u64) -> Timestamp {
        Timestamp::from_millis(seconds * 1000)
    }

    fn good(last: u64) -> Good {
        Good {
            until: at(last + 300),
            last: at(last),
            stamp: 0,
            refused: None,
        }
    }

    const TTL: Duration = Duration::from_secs(10);

    #[test]
    fn a_refusal_ends_a_good_verdict_and_older_answers_do_not_bring_it_back() {
        let verdicts = Verdicts::new(100);
        let (one, here, there) = (credential(1), b"here", b"there");
        let (here, there) = (VerdictId::of(&one, here), VerdictId::of(&one, there));
        verdicts.accept(&one.key, here, (good(0), None), verdicts.order());
        verdicts.accept(&one.key, there, (good(0), None), verdicts.order());
        let asked = verdicts.order();
        verdicts.refuse(&one.key, here, TTL, true, at(5));
        let found = verdicts.of(&one.key, &here, at(6));
        assert_eq!(found.good.unwrap().refused, Some(at(5)));
        assert!(found.bad.is_some());
        assert_eq!(verdicts.last_refused(&one.key, &there), Some(at(5)));
        // Elsewhere it must be asked again; and a question that is older proves nothing.
        assert!(verdicts.of(&one.key, &there, at(6)).good.unwrap().until <= at(6));
        assert!(!verdicts.accept(&one.key, there, (good(6), None), asked));
        assert!(verdicts.of(&one.key, &there, at(7)).good.unwrap().until <= at(7));
        assert!(verdicts.accept(&one.key, here, (good(7), None), verdicts.order()));
        let found = verdicts.of(&one.key, &here, at(8));
        assert!(found.bad.is_none() && found.good.unwrap().until > at(8));
        // A refusal is forgotten.
        verdicts.refuse(&one.key, here, TTL, false, at(20));
        assert!(verdicts.of(&one.key, &here, at(31)).bad.is_none());
    }

    #[test]
    fn a_flood_of_bad_keys_drives_out_no_good_one_and_memory_is_bounded() {
        let verdicts = Verdicts::new(100);
        let good_one = credential(1);
        let id = VerdictId::of(&good_one, b"here");
        verdicts.accept(&good_one.key, id, (good(0), None), 1);
        for number in 0..10_000_u32 {
            let mut key = [2; 32];
            key[..4].copy_from_slice(&number.to_be_bytes());
            let stranger = Credential {
                key: KeyId(key),
                carrier: 1,
                place: [1; 8],
            };
            let id = VerdictId::of(&stranger, b"here");
            verdicts.refuse(&stranger.key, id, TTL, true, at(1));
        }
        assert!(verdicts.of(&good_one.key, &id, at(1)).good.is_some());
        let (good, bad) = verdicts.len();
        assert!(good == 1 && bad <= 110, "{good} {bad}");
    }

    #[test]
    fn what_is_learned_in_one_field_or_place_says_nothing_of_another() {
        let one = credential(1);
        let elsewhere = Credential {
            place: [2; 8],
            ..one
        };
        assert_ne!(VerdictId::of(&one, b"x"), VerdictId::of(&elsewhere, b"x"));
        assert_ne!(VerdictId::of(&one, b"x"), VerdictId::of(&one, b"y"));
    }
}
