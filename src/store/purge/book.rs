//! The marks of a purge log, compacted and bounded, and what they say of a response.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};

use smallvec::{SmallVec, smallvec};

use crate::clock::Timestamp;
use crate::policy::Groups;
use crate::policy::invalidate::Mode;
use crate::policy::key::Place;

use super::named::{Purge, Reach, Target, path_of, short};

/// Marks that are kept; past it the older half goes, and what was not judged by it since is
/// taken for purged.
pub const MOST_MARKS: usize = 32_768;

/// Prefixes and hosts that are kept: each is compared with every response that is judged.
pub const MOST_COMPARED: usize = 256;

/// Purges of one mode that are told apart; older ones are taken for the oldest of these.
pub const KEPT: usize = 4;

/// The purges of one target and reach, compacted to the last few of each mode.
#[derive(Clone, Copy, Debug, Default)]
pub struct Marks {
    /// Positions, the newest first; 0 for none.
    hard: [u64; KEPT],
    /// Positions and times, the newest first.
    soft: [(u64, Timestamp); KEPT],
    /// The first soft one that is known: grace counts from the first that reaches a response.
    soft_first: (u64, Timestamp),
}

impl Marks {
    pub fn latest(&self) -> u64 {
        self.hard[0].max(self.soft[0].0)
    }

    pub fn add(&mut self, mode: Mode, position: u64, at: Timestamp) {
        match mode {
            Mode::Hard => {
                self.hard.rotate_right(1);
                self.hard[0] = position;
            }
            Mode::Soft => {
                self.soft.rotate_right(1);
                self.soft[0] = (position, at);
                if self.soft_first.0 == 0 {
                    self.soft_first = (position, at);
                }
            }
        }
    }

    /// Takes `other`, which is forgotten, for said of everything.
    pub fn absorb(&mut self, other: &Self) {
        let mut hard = [self.hard, other.hard].concat();
        hard.sort_unstable_by(|one, other| other.cmp(one));
        self.hard.copy_from_slice(&hard[..KEPT]);
        let mut soft = [self.soft, other.soft].concat();
        soft.sort_unstable_by(|one, other| other.cmp(one));
        self.soft.copy_from_slice(&soft[..KEPT]);
        self.soft_first = self.soft[KEPT - 1];
    }

    /// What marks newer than `since` say to a request that came at position `asked`. Where all that
    /// are known came after it, one that is forgotten may have come before.
    pub fn judge(&self, since: u64, asked: u64) -> Judgement {
        let concerns = |position: u64| position > since && position <= asked;
        let may_concern = |oldest: u64| oldest > since && oldest > asked;
        if self.hard.into_iter().any(concerns) || may_concern(self.hard[KEPT - 1]) {
            return Judgement::Gone;
        }
        // The oldest that concerns it, of those that are known.
        let known = self
            .soft
            .iter()
            .rev()
            .find(|(position, _)| concerns(*position));
        let oldest = self.soft[KEPT - 1];
        let found = known
            .copied()
            .or_else(|| may_concern(oldest.0).then_some(oldest));
        match found {
            Some(_) if concerns(self.soft_first.0) => Judgement::StaleSince(self.soft_first.1),
            Some((_, at)) => Judgement::StaleSince(at),
            None => Judgement::Untouched,
        }
    }
}

/// What the log says of a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judgement {
    Untouched,
    StaleSince(Timestamp),
    Gone,
}

impl Judgement {
    pub(super) fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Gone, _) | (_, Self::Gone) => Self::Gone,
            (Self::StaleSince(one), Self::StaleSince(other)) => Self::StaleSince(one.min(other)),
            (Self::Untouched, other) => other,
            (stale, Self::Untouched) => stale,
        }
    }
}

/// Marks by what they name, of a size that no client can choose: an origin and a URL are up to two
/// request heads long. Two names that fell together would only purge too much.
#[derive(Debug, Default)]
pub struct Names {
    one: RandomState,
    other: RandomState,
}

impl Names {
    /// The names of a target of one reach; none where it must be compared one by one.
    fn of(&self, purge: &Purge) -> SmallVec<[u128; 2]> {
        let origin: &[u8] = match &purge.reach {
            Reach::Any => b"",
            Reach::Origin(origin) => origin,
            Reach::Host(_) => return SmallVec::new(),
        };
        let name = |kind, target: &[u8]| self.name(kind, origin, target);
        match &purge.target {
            Target::All => smallvec![name(0, b"")],
            Target::Url(target) => smallvec![name(1, target)],
            Target::UrlOfAnyRule(target) => {
                smallvec![name(1, target), name(3, path_of(target))]
            }
            Target::Group(group) => smallvec![name(2, group.as_bytes())],
            Target::Prefix(_) | Target::Key(_) => SmallVec::new(),
        }
    }

    fn name(&self, kind: u8, origin: &[u8], target: &[u8]) -> u128 {
        let parts = (kind, origin, target);
        let half = |state: &RandomState| u128::from(state.hash_one(parts));
        half(&self.one) << 64 | half(&self.other)
    }

    /// All names that reach a response at `place`.
    fn reaching(&self, place: &Place<'_>, groups: Option<&Groups>) -> impl Iterator<Item = u128> {
        let (origin, target) = (short(place.origin), short(place.target));
        let of_each = move |kind, target: &[u8]| {
            [b"", &*origin].map(|origin| self.name(kind, origin, target))
        };
        let groups = groups.into_iter().flat_map(|groups| groups.iter());
        let changed = place.changes_query.then(|| of_each(3, &short(place.path)));
        let names: SmallVec<[u128; 8]> = of_each(0, b"")
            .into_iter()
            .chain(of_each(1, &target))
            .chain(changed.into_iter().flatten())
            .chain(groups.flat_map(|group| of_each(2, group.as_bytes())))
            .collect();
        names.into_iter()
    }
}

#[derive(Debug, Default)]
pub struct Book {
    names: Names,
    pub named: HashMap<u128, Marks>,
    /// Prefixes, and what names a host: compared one by one, the latest last.
    pub compared: Vec<(Purge, Marks)>,
    /// What the marks that were dropped said, as if it had been said of everything.
    floor: Marks,
}

impl Book {
    /// One that knows nothing of what was said up to `floor`.
    pub fn forgetting(floor: u64) -> Self {
        let mut book = Self::default();
        book.floor.add(Mode::Hard, floor, Timestamp::EPOCH);
        book
    }

    pub fn add(&mut self, purge: Purge, mode: Mode, position: u64, at: Timestamp) {
        // That reaches no response.
        if matches!(purge.target, Target::Key(_)) {
            return;
        }
        let names = self.names.of(&purge);
        for name in &names {
            self.named.entry(*name).or_default().add(mode, position, at);
        }
        if self.named.len() > MOST_MARKS {
            self.forget_older_half();
        }
        if !names.is_empty() {
            return;
        }
        let known = self.compared.iter().position(|(known, _)| *known == purge);
        let mut marks = known.map_or_else(Marks::default, |at| self.compared.remove(at).1);
        marks.add(mode, position, at);
        self.compared.push((purge, marks));
        if self.compared.len() > MOST_COMPARED {
            let (_, oldest) = self.compared.remove(0);
            self.floor.absorb(&oldest);
        }
    }

    fn forget_older_half(&mut self) {
        let mut positions: Vec<u64> = self.named.values().map(Marks::latest).collect();
        let middle = positions.len() / 2;
        let (_, middle, _) = positions.select_nth_unstable(middle);
        let (middle, floor) = (*middle, &mut self.floor);
        self.named.retain(|_, marks| {
            let stays = marks.latest() > middle;
            if !stays {
                floor.absorb(marks);
            }
            stays
        });
    }

    pub fn judge(&self, place: &Place<'_>, groups: Option<&Groups>, seen: Seen) -> Judgement {
        let Seen {
            since,
            judged,
            asked,
        } = seen;
        let mut found = self.floor.judge(since.max(judged), asked);
        let mut weigh = |marks: &Marks| {
            if marks.latest() > since {
                found = found.and(marks.judge(since, asked));
            }
        };
        if !self.named.is_empty() {
            let names = self.names.reaching(place, groups);
            names
                .filter_map(|name| self.named.get(&name))
                .for_each(&mut weigh);
        }
        for (purge, marks) in &self.compared {
            if marks.latest() > since && purge.covers(place, groups) {
                weigh(marks);
            }
        }
        found
    }
}

/// From where to where purges count for one response and one request.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    /// Where the response's fetch began.
    pub since: u64,
    /// Up to where the response was judged before.
    pub judged: u64,
    /// Where the request came: what was purged after that does not concern it.
    pub asked: u64,
}

impl Seen {
    /// By everything since the fetch began.
    pub fn all_since(since: u64) -> Self {
        Self {
            since,
            judged: since,
            asked: u64::MAX,
        }
    }
}
