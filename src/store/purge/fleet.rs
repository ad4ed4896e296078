//! The fleet's log as one instance knows it: how far it has read, what it has read, and which of
//! its own purges the others cannot know yet.
//!
//! Two orders stand side by side. Stored responses and flights of this process are judged by the
//! local book, whose positions count what was applied *here*, in the order in which it was. Values
//! of the second tier are judged by the fleet's positions, which mean the same to every instance.
//! A fetch remembers only its local position; [`Fleet::stamp_of`] says how far the fleet's log had
//! been applied then.

use std::collections::{HashSet, VecDeque};
use std::net::SocketAddr;

use crate::clock::Timestamp;
use crate::policy::Groups;
use crate::policy::invalidate::Mode;
use crate::policy::key::Place;

use super::book::{Book, Judgement, Seen};
use super::named::{Purge, Reach, Target};

/// Own purges that wait to be appended; past it they become one that reaches everything.
const MOST_QUEUED: usize = 4096;

/// Local positions for which the fleet's is remembered. What was fetched before that is not given
/// to the second tier.
const MOST_STAMPS: usize = 4096;

/// A place in the fleet's log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stamp {
    /// Of the log; a log that was lost and begun anew has another. 0 before it was ever read.
    pub epoch: u64,
    pub position: u64,
}

/// How far an instance has read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cursor {
    pub stamp: Stamp,
    /// Of the entry at this position: a log that holds another there has lost something.
    pub token: u64,
}

/// What a reader of the log tells of itself.
#[derive(Clone, Debug, Default)]
pub struct Reader {
    pub cursor: Cursor,
    /// Epochs of logs that came before the one that it knows.
    pub before: Vec<u64>,
    /// It serves what is stored, so that whoever purges waits for it; else it says goodbye.
    pub serves: bool,
    /// Where the others reach its admin port.
    pub admin: Option<SocketAddr>,
}

/// A purge on its way into the fleet's log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outgoing {
    /// Random: by it an instance knows its own purges again.
    pub token: u64,
    pub purge: Purge,
    pub mode: Mode,
    pub at: Timestamp,
}

/// An entry of the fleet's log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Logged {
    pub position: u64,
    /// `None` for one that no instance has written: it is passed over.
    pub entry: Option<Outgoing>,
}

/// What a look at the fleet's log brought.
#[derive(Clone, Debug, Default)]
pub struct Synced {
    pub epoch: u64,
    /// Of the latest purge.
    pub latest: u64,
    /// Purges up to this position may be missing: they were trimmed.
    pub floor: u64,
    /// The log is another one, or does not reach back to where the reader stood: the entries begin
    /// at its beginning.
    pub restarts: bool,
    pub entries: Vec<Logged>,
    /// Keys that are revoked, where the reader begins anew.
    pub revoked: Vec<[u8; 32]>,
    /// Epochs of the logs that came before this one.
    pub before: Vec<u64>,
    /// This look has begun the log: what there was is of another age, not whole, or not vouched
    /// for.
    pub begins: bool,
    /// Instances that have looked at it and not said goodbye.
    pub instances: u64,
}

/// What applying a look at the log did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// There is more to read.
    pub is_behind: bool,
    /// Nothing that was stored before could be vouched for: it was dropped.
    pub dropped: bool,
    /// Purges that were new here.
    pub purges: u64,
    /// Own purges that the log has lost, and that go there again.
    pub lost: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Whereabouts {
    Queued,
    /// Sent, and nobody knows yet whether it arrived.
    Sent,
    /// Appended, and not read back yet.
    Appended,
}

/// Keys that a new log is told of in one call.
const RETOLD: usize = 256;

/// A purge of this instance that it has not read back.
#[derive(Debug)]
struct Own {
    entry: Outgoing,
    /// Positions in the local book of the purges that it stands for: of the first, and of the latest.
    first: u64,
    local: u64,
    whereabouts: Whereabouts,
}

#[derive(Debug, Default)]
pub struct Fleet {
    cursor: Cursor,
    /// Epochs of the logs before this one.
    before: Vec<u64>,
    /// By the fleet's positions.
    book: Book,
    /// What the log said up to here may be forgotten.
    floor: u64,
    own: VecDeque<Own>,
    /// Keys that are revoked, and that a new log is to be told of; those that are on their way
    /// there.
    retold: Vec<[u8; 32]>,
    retelling: Vec<[u8; 32]>,
    /// Positions of the log, and by which local position all up to there had taken effect here:
    /// both rising.
    stamps: VecDeque<(u64, u64)>,
}

impl Fleet {
    pub fn cursor(&self) -> Cursor {
        self.cursor
    }

    /// Epochs of the logs before the one that is known.
    pub fn before(&self) -> &[u64] {
        &self.before
    }

    /// Queues a purge that was applied here at position `local`. One like it that waits already
    /// will come late enough for both.
    pub fn queue(&mut self, purge: Purge, mode: Mode, at: Timestamp, local: u64) {
        let waits = |own: &&mut Own| own.whereabouts == Whereabouts::Queued;
        let mut first = local;
        if matches!(purge.target, Target::Key(_)) {
            // Of a key the last word counts, so an older one that waits must not come after it.
            self.own.retain(|own| {
                let is_older = own.whereabouts == Whereabouts::Queued
                    && own.entry.purge.target == purge.target;
                if is_older {
                    first = first.min(own.first);
                }
                !is_older
            });
        }
        if let Target::Key(key) = purge.target {
            self.retell_no_more(&key);
        }
        let mut waiting = self.own.iter_mut().filter(waits);
        if let Some(known) = waiting.find(|own| own.entry.purge == purge && own.entry.mode == mode)
        {
            known.local = local;
            return;
        }
        let entry = Outgoing {
            token: random(),
            purge,
            mode,
            at,
        };
        self.own.push_back(Own {
            entry,
            first,
            local,
            whereabouts: Whereabouts::Queued,
        });
        if self.own.len() > MOST_QUEUED {
            self.merge_queued();
        }
    }

    /// One purge of everything in the place of too many.
    fn merge_queued(&mut self) {
        // A word on a key says nothing of responses, nor they of it.
        let is_queued = |own: &Own| {
            own.whereabouts == Whereabouts::Queued
                && !matches!(own.entry.purge.target, Target::Key(_))
        };
        let all = std::mem::take(&mut self.own);
        let (merged, kept): (Vec<Own>, Vec<Own>) = all.into_iter().partition(is_queued);
        self.own = kept.into();
        let is_hard = merged.iter().any(|own| own.entry.mode == Mode::Hard);
        let Some(first) = merged.iter().map(|own| own.entry.at).min() else {
            return;
        };
        self.own.push_back(Own {
            first: merged.iter().map(|own| own.first).min().unwrap_or(0),
            local: merged.iter().map(|own| own.local).max().unwrap_or(0),
            entry: Outgoing {
                token: random(),
                purge: everything(),
                mode: if is_hard { Mode::Hard } else { Mode::Soft },
                at: first,
            },
            whereabouts: Whereabouts::Queued,
        });
    }

    /// Takes up to `most` queued purges to be sent now; where none waits, keys that a new log is to
    /// be told of.
    pub fn take_queued(&mut self, most: usize) -> Vec<Outgoing> {
        let queued = |own: &&mut Own| own.whereabouts == Whereabouts::Queued;
        let taken = self.own.iter_mut().filter(queued).take(most);
        let taken: Vec<Outgoing> = taken
            .map(|own| {
                own.whereabouts = Whereabouts::Sent;
                own.entry.clone()
            })
            .collect();
        if !taken.is_empty() || self.retold.is_empty() {
            return taken;
        }
        let left = self.retold.len().saturating_sub(RETOLD);
        self.retelling = self.retold.split_off(left);
        let word = |key: &[u8; 32]| Outgoing {
            token: random(),
            purge: Purge::of_key(*key),
            mode: Mode::Hard,
            at: Timestamp::EPOCH,
        };
        self.retelling.iter().map(word).collect()
    }

    /// How sending ended: they were appended, or nobody knows, and they go once more.
    pub fn sent(&mut self, appended: bool) {
        let retold = std::mem::take(&mut self.retelling);
        if !appended {
            self.retold.extend(retold);
        }
        for own in &mut self.own {
            if own.whereabouts == Whereabouts::Sent {
                own.whereabouts = if appended {
                    Whereabouts::Appended
                } else {
                    Whereabouts::Queued
                };
            }
        }
    }

    /// Queues what another log is to know of: keys that are revoked, but for those of which a word
    /// is on its way.
    pub fn queue_revoked(&mut self, keys: impl Iterator<Item = [u8; 32]>) {
        let awaited = self.awaited_keys();
        self.retelling.clear();
        self.retold = keys.filter(|key| !awaited.contains(key)).collect();
    }

    /// There is a later word on a key than that it is revoked.
    pub fn retell_no_more(&mut self, key: &[u8; 32]) {
        self.retold.retain(|known| known != key);
    }

    /// The keys of which a word is on its way: what the log says of them is older.
    pub fn awaited_keys(&self) -> HashSet<[u8; 32]> {
        let keys = self
            .own
            .iter()
            .filter_map(|own| match own.entry.purge.target {
                Target::Key(key) => Some(key),
                _ => None,
            });
        keys.collect()
    }

    /// Own purges that were not read back yet, in their order.
    pub fn untold(&self) -> Vec<Outgoing> {
        self.own.iter().map(|own| own.entry.clone()).collect()
    }

    /// Whether Redis has taken all own purges up to this local position, as far as it has said.
    pub fn has_appended(&self, local: u64) -> bool {
        let is_in = |own: &Own| own.first > local || own.whereabouts == Whereabouts::Appended;
        self.own.iter().all(is_in)
    }

    /// How many own purges were not read back yet.
    pub fn pending(&self) -> usize {
        self.own.len() + self.retold.len() + self.retelling.len()
    }

    /// Whether all own purges up to this local position are in the fleet's log.
    pub fn has_published(&self, local: u64) -> bool {
        self.own.iter().all(|own| own.first > local)
    }

    /// How far the fleet's log had been applied at this local position; `None` where nobody knows
    /// any more.
    pub fn stamp_of(&self, local: u64) -> Option<Stamp> {
        let after = self
            .stamps
            .partition_point(|(_, effective)| *effective <= local);
        let (position, _) = self.stamps.get(after.checked_sub(1)?)?;
        Some(Stamp {
            epoch: self.cursor.stamp.epoch,
            position: *position,
        })
    }

    /// Whether this log tells of everything after that place.
    pub fn reaches(&self, stamp: Stamp) -> bool {
        stamp.epoch != 0 && stamp.epoch == self.cursor.stamp.epoch && stamp.position >= self.floor
    }

    /// What the fleet's purges, and those on their way there, make of a value with this stamp.
    pub fn judge(&self, place: &Place<'_>, groups: Option<&Groups>, stamp: Stamp) -> Judgement {
        if stamp.epoch != self.cursor.stamp.epoch || stamp.epoch == 0 {
            return Judgement::Gone;
        }
        let by_own = self
            .own
            .iter()
            .filter(|own| own.entry.purge.covers(place, groups))
            .map(|own| match own.entry.mode {
                Mode::Hard => Judgement::Gone,
                Mode::Soft => Judgement::StaleSince(own.entry.at),
            });
        let by_log = self
            .book
            .judge(place, groups, Seen::all_since(stamp.position));
        by_own.fold(by_log, Judgement::and)
    }

    /// Applies a look at the log. Purges that are new here go to `apply`, which gives the local
    /// position after them; without one it only gives the position.
    pub fn apply(
        &mut self,
        synced: Synced,
        mut apply: impl FnMut(Option<&Outgoing>) -> u64,
    ) -> Applied {
        let mut applied = Applied::default();
        self.before = synced.before;
        if synced.restarts || synced.epoch != self.cursor.stamp.epoch {
            self.restart(synced.epoch, synced.floor);
            applied.dropped = true;
            let effective = apply(Some(&Outgoing {
                token: 0,
                purge: everything(),
                mode: Mode::Hard,
                at: Timestamp::EPOCH,
            }));
            self.note_stamp(0, effective);
        }
        for Logged { position, entry } in synced.entries {
            if position <= self.cursor.stamp.position {
                continue;
            }
            let Some(entry) = entry else {
                self.cursor.stamp.position = position;
                self.cursor.token = 0;
                let effective = apply(None);
                self.note_stamp(position, effective);
                continue;
            };
            // They come back in the order in which they were sent.
            let is_it = |own: &Own| own.entry.token == entry.token;
            let own = self.own.iter().position(is_it);
            let own = own.and_then(|at| self.own.remove(at));
            let effective = match own {
                Some(own) => own.local,
                None => {
                    applied.purges += 1;
                    apply(Some(&entry).filter(|_| !applied.dropped))
                }
            };
            self.cursor.stamp.position = position;
            self.cursor.token = entry.token;
            self.note_stamp(position, effective);
            self.book.add(entry.purge, entry.mode, position, entry.at);
        }
        applied.is_behind = self.cursor.stamp.position < synced.latest;
        // Whatever was appended before this look began would have been read by now.
        for own in &mut self.own {
            if own.whereabouts == Whereabouts::Appended && !applied.is_behind {
                own.whereabouts = Whereabouts::Queued;
                applied.lost += 1;
            }
        }
        applied
    }

    fn restart(&mut self, epoch: u64, floor: u64) {
        self.cursor = Cursor {
            stamp: Stamp { epoch, position: 0 },
            token: 0,
        };
        self.book = Book::forgetting(floor);
        self.floor = floor;
        self.stamps.clear();
    }

    fn note_stamp(&mut self, position: u64, effective: u64) {
        let before = self.stamps.back().map_or(0, |(_, effective)| *effective);
        self.stamps.push_back((position, before.max(effective)));
        if self.stamps.len() > MOST_STAMPS {
            self.stamps.pop_front();
        }
    }
}

fn everything() -> Purge {
    Purge {
        target: Target::All,
        reach: Reach::Any,
    }
}

/// Nothing that others could guess hangs on it; that two are the same, much.
fn random() -> u64 {
    uuid::Uuid::new_v4().as_u64_pair().1.max(1)
}

#[cfg(test)]
mod tests;
