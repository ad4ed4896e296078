//! The purge log: what was made unusable (hard) or stale (soft), and in which order.
//!
//! A purge changes no stored response by itself. It is a mark with a position; whoever looks at a
//! stored response asks whether a mark reaches it that is newer than the position at which its
//! fetch began. So one purge costs the same whatever is stored, reaches what is still being
//! fetched, and cannot be overtaken by a fill. An entry remembers up to which position it was
//! judged: as long as nothing is purged, a hit compares two numbers.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock};

use smallvec::SmallVec;

use crate::clock::Timestamp;
use crate::http::fields::without_port;
use crate::policy::Groups;
use crate::policy::invalidate::Mode;
use crate::policy::key::Place;

/// Marks that are kept; past it the older half goes, and what was not judged by it since is
/// taken for purged.
const MOST_MARKS: usize = 32_768;

/// Prefixes and hosts that are kept: each is compared with every response that is judged.
const MOST_COMPARED: usize = 256;

/// What a purge names.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Target {
    All,
    /// Path and query as [`write_target`](crate::policy::key::write_target) writes them.
    Url(Box<[u8]>),
    /// The beginning of a path, or a path and the beginning of its query after a `?`.
    Prefix(Box<str>),
    Group(Box<str>),
}

impl Target {
    /// The word for it on the admin port and in metrics.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::All => "all",
            Self::Url(_) => "url",
            Self::Prefix(_) => "prefix",
            Self::Group(_) => "group",
        }
    }
}

/// Whose responses a purge reaches.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Reach {
    Any,
    /// Of a host, whatever the scheme; of any port where none is named.
    Host(Box<str>),
    /// Of one origin, as [`Place::origin`] writes it.
    Origin(Box<[u8]>),
}

impl Reach {
    fn covers(&self, place: &Place<'_>) -> bool {
        match self {
            Self::Any => true,
            Self::Origin(origin) => **origin == *place.origin,
            Self::Host(host) => {
                // Where the origin never sees a host, no key holds one.
                place.host.is_empty()
                    || [place.host, place.forwarded_host]
                        .iter()
                        .any(|known| is_same_host(known, host.as_bytes()))
            }
        }
    }
}

fn is_same_host(known: &[u8], wanted: &[u8]) -> bool {
    known.eq_ignore_ascii_case(wanted) || without_port(known).eq_ignore_ascii_case(wanted)
}

/// One purge.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Purge {
    pub target: Target,
    pub reach: Reach,
}

impl Purge {
    pub fn covers(&self, place: &Place<'_>, groups: Option<&Groups>) -> bool {
        let names = match &self.target {
            Target::All => true,
            Target::Url(target) => **target == *place.target,
            Target::Prefix(prefix) => has_prefix(place, prefix),
            Target::Group(name) => groups.is_some_and(|groups| groups.contains(name)),
        };
        names && self.reach.covers(place)
    }
}

fn has_prefix(place: &Place<'_>, prefix: &str) -> bool {
    match prefix.split_once('?') {
        None => place.path.starts_with(prefix.as_bytes()),
        Some((path, query)) => {
            place.path == path.as_bytes() && place.query().starts_with(query.as_bytes())
        }
    }
}

/// Purges of one mode that are told apart; older ones are taken for the oldest of these.
const KEPT: usize = 4;

/// The purges of one target and reach, compacted to the last few of each mode.
#[derive(Clone, Copy, Debug, Default)]
struct Marks {
    /// Positions, the newest first; 0 for none.
    hard: [u64; KEPT],
    /// Positions and times, the newest first.
    soft: [(u64, Timestamp); KEPT],
    /// The first soft one that is known: grace counts from the first that reaches a response.
    soft_first: (u64, Timestamp),
}

impl Marks {
    fn latest(&self) -> u64 {
        self.hard[0].max(self.soft[0].0)
    }

    fn add(&mut self, mode: Mode, position: u64, at: Timestamp) {
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
    fn absorb(&mut self, other: &Self) {
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
    fn judge(&self, since: u64, asked: u64) -> Judgement {
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
    fn and(self, other: Self) -> Self {
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
struct Names {
    one: RandomState,
    other: RandomState,
}

impl Names {
    /// The name of a target of one reach; `None` where it must be compared one by one.
    fn of(&self, purge: &Purge) -> Option<u128> {
        let origin: &[u8] = match &purge.reach {
            Reach::Any => b"",
            Reach::Origin(origin) => origin,
            Reach::Host(_) => return None,
        };
        match &purge.target {
            Target::All => Some(self.name(0, origin, b"")),
            Target::Url(target) => Some(self.name(1, origin, target)),
            Target::Group(name) => Some(self.name(2, origin, name.as_bytes())),
            Target::Prefix(_) => None,
        }
    }

    fn name(&self, kind: u8, origin: &[u8], target: &[u8]) -> u128 {
        let parts = (kind, origin, target);
        let half = |state: &RandomState| u128::from(state.hash_one(parts));
        half(&self.one) << 64 | half(&self.other)
    }

    /// All names that reach a response at `place`.
    fn reaching(&self, place: &Place<'_>, groups: Option<&Groups>) -> impl Iterator<Item = u128> {
        let of_each = move |kind, target: &[u8]| {
            [b"", place.origin].map(|origin| self.name(kind, origin, target))
        };
        let groups = groups.into_iter().flat_map(|groups| groups.iter());
        let names: SmallVec<[u128; 8]> = of_each(0, b"")
            .into_iter()
            .chain(of_each(1, place.target))
            .chain(groups.flat_map(|group| of_each(2, group.as_bytes())))
            .collect();
        names.into_iter()
    }
}

#[derive(Debug, Default)]
struct Book {
    names: Names,
    named: HashMap<u128, Marks>,
    /// Prefixes, and what names a host: compared one by one, the latest last.
    compared: Vec<(Purge, Marks)>,
    /// What the marks that were dropped said, as if it had been said of everything.
    floor: Marks,
}

impl Book {
    fn add(&mut self, purge: Purge, mode: Mode, position: u64, at: Timestamp) {
        if let Some(name) = self.names.of(&purge) {
            self.named.entry(name).or_default().add(mode, position, at);
            if self.named.len() > MOST_MARKS {
                self.forget_older_half();
            }
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

    fn judge(&self, place: &Place<'_>, groups: Option<&Groups>, seen: Seen) -> Judgement {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::key::{KeyBytes, KeyParts, write_target};

    fn key(host: &str, path: &str, query: Option<&str>) -> KeyBytes {
        let mut key = KeyBytes::new();
        KeyParts {
            scheme: "http",
            host,
            forwarded_host: None,
            path,
            query,
            partition: b"",
        }
        .write(&mut key);
        key
    }

    fn url(path: &str, query: Option<&str>) -> Target {
        let mut target = KeyBytes::new();
        write_target(path, query, &mut target);
        Target::Url(target[..].into())
    }

    fn everywhere(target: Target) -> Purge {
        let reach = Reach::Any;
        Purge { target, reach }
    }

    fn judge(log: &PurgeLog, key: &[u8], groups: &[&str], since: u64) -> Judgement {
        let groups = Groups::new(groups.iter().map(|name| Box::from(*name)).collect());
        let place = Place::of(key).unwrap();
        log.judge(&place, Some(&groups), Seen::all_since(since)).0
    }

    const NOW: Timestamp = Timestamp::from_millis(5000);

    #[test]
    fn a_purge_reaches_what_began_before_it_and_nothing_else() {
        let log = PurgeLog::default();
        let (a, b) = (key("h", "/a", Some("x=1")), key("h", "/a", None));
        let before = log.position();
        log.append(everywhere(url("/a", Some("x=1"))), Mode::Hard, NOW);
        assert_eq!(judge(&log, &a, &[], before), Judgement::Gone);
        assert_eq!(judge(&log, &b, &[], before), Judgement::Untouched);
        assert_eq!(judge(&log, &a, &[], log.position()), Judgement::Untouched);
    }

    #[test]
    fn each_target_reaches_its_own() {
        let reaches = |target: Target, key: &[u8], groups: &[&str]| {
            let log = PurgeLog::default();
            log.append(everywhere(target), Mode::Soft, NOW);
            judge(&log, key, groups, 0) == Judgement::StaleSince(NOW)
        };
        let key = key("h", "/api/x", Some("page=2&limit=1"));
        assert!(reaches(Target::All, &key, &[]));
        assert!(reaches(Target::Prefix("/api/".into()), &key, &[]));
        assert!(reaches(Target::Prefix("/api/x?page=2".into()), &key, &[]));
        assert!(!reaches(Target::Prefix("/api/x?limit".into()), &key, &[]));
        assert!(!reaches(Target::Prefix("/api/y".into()), &key, &[]));
        assert!(reaches(Target::Group("g".into()), &key, &["f", "g"]));
        assert!(!reaches(Target::Group("g".into()), &key, &["G"]));
    }

    #[test]
    fn a_host_is_any_scheme_and_port_and_an_origin_is_exact() {
        let purge = |reach| Purge {
            target: Target::All,
            reach,
        };
        let covers = |reach: Reach, host: &str| {
            let key = key(host, "/", None);
            purge(reach).covers(&Place::of(&key).unwrap(), None)
        };
        let host = |text: &str| Reach::Host(text.into());
        assert!(covers(host("API.example"), "api.example:8080"));
        assert!(covers(host("api.example:8080"), "api.example:8080"));
        assert!(!covers(host("api.example:81"), "api.example:8080"));
        assert!(!covers(host("other.example"), "api.example"));
        assert!(covers(host("api.example"), ""));
        let origin = Reach::Origin(Box::from(&b"http\0a\0\0"[..]));
        assert!(covers(origin.clone(), "a"));
        assert!(!covers(origin, "b"));
    }

    #[test]
    fn a_hard_purge_is_not_softened_by_a_later_soft_one() {
        let log = PurgeLog::default();
        let key = key("h", "/a", None);
        log.append(everywhere(Target::All), Mode::Hard, NOW);
        log.append(everywhere(url("/a", None)), Mode::Soft, NOW);
        log.append(everywhere(Target::All), Mode::Soft, NOW);
        assert_eq!(judge(&log, &key, &[], 0), Judgement::Gone);
        assert_eq!(judge(&log, &key, &[], 1), Judgement::StaleSince(NOW));
    }

    #[test]
    fn a_request_is_not_concerned_by_what_was_purged_after_it_came() {
        let log = PurgeLog::default();
        let key = key("h", "/a", None);
        let judge = |since, asked| {
            let seen = Seen {
                asked,
                ..Seen::all_since(since)
            };
            log.judge(&Place::of(&key).unwrap(), None, seen).0
        };
        log.append(everywhere(Target::All), Mode::Hard, NOW);
        assert_eq!(judge(0, 0), Judgement::Untouched);
        assert_eq!(judge(0, 1), Judgement::Gone);
        log.append(everywhere(Target::All), Mode::Hard, NOW);
        // One before it, one after it.
        assert_eq!(judge(0, 1), Judgement::Gone);
        assert_eq!(judge(1, 1), Judgement::Untouched);
        log.append(everywhere(url("/a", None)), Mode::Soft, NOW);
        assert_eq!(judge(2, 2), Judgement::Untouched);
        assert_eq!(judge(2, 3), Judgement::StaleSince(NOW));
        // Two purges by one write: who came before both is not concerned, who came between is.
        log.append(everywhere(url("/a", None)), Mode::Soft, NOW);
        assert_eq!(judge(2, 2), Judgement::Untouched);
        assert_eq!(judge(2, 3), Judgement::StaleSince(NOW));
        for _ in 0..2 {
            log.append(everywhere(Target::All), Mode::Hard, NOW);
        }
        assert_eq!(judge(4, 4), Judgement::Untouched);
        assert_eq!(judge(4, 5), Judgement::Gone);
        // More came since than are told apart: to be on the safe side.
        for _ in 0..KEPT {
            log.append(everywhere(Target::All), Mode::Hard, NOW);
        }
        assert_eq!(judge(4, 5), Judgement::Gone);
    }

    #[test]
    fn what_is_forgotten_still_concerns_who_came_after_it() {
        let mut floor = Marks::default();
        for position in [9, 3, 7] {
            let mut marks = Marks::default();
            marks.add(Mode::Hard, position, NOW);
            floor.absorb(&marks);
        }
        assert_eq!(floor.judge(2, 3), Judgement::Gone);
        assert_eq!(floor.judge(3, 6), Judgement::Untouched);
        assert_eq!(floor.judge(3, 7), Judgement::Gone);
    }

    #[test]
    fn grace_counts_from_the_first_soft_purge_that_reaches_a_response() {
        let log = PurgeLog::default();
        let key = key("h", "/a", None);
        let later = NOW.plus(std::time::Duration::from_secs(60));
        let last = later.plus(std::time::Duration::from_secs(60));
        for at in [NOW, later, last] {
            log.append(everywhere(url("/a", None)), Mode::Soft, at);
        }
        assert_eq!(judge(&log, &key, &[], 0), Judgement::StaleSince(NOW));
        assert_eq!(judge(&log, &key, &[], 1), Judgement::StaleSince(later));
    }

    #[test]
    fn what_the_log_forgot_is_taken_for_purged_unless_it_was_judged_before() {
        let log = PurgeLog::default();
        let old = key("h", "/old", None);
        for number in 0..MOST_MARKS + 2 {
            let target = url(&format!("/{number}"), None);
            log.append(everywhere(target), Mode::Hard, NOW);
        }
        assert_eq!(judge(&log, &old, &[], 0), Judgement::Gone);
        let place = Place::of(&old).unwrap();
        let judged = log.position() - 1;
        let seen = Seen {
            judged,
            ..Seen::all_since(0)
        };
        assert_eq!(log.judge(&place, None, seen).0, Judgement::Untouched);
        // Newer than what was forgotten.
        let newer = MOST_MARKS as u64 / 2 + 2;
        assert_eq!(judge(&log, &old, &[], newer), Judgement::Untouched);
        assert!(log.book.read().unwrap().named.len() <= MOST_MARKS);
    }

    #[test]
    fn prefixes_are_few_and_the_oldest_makes_room() {
        let log = PurgeLog::default();
        for number in 0..=MOST_COMPARED {
            let target = Target::Prefix(format!("/{number}/").into());
            log.append(everywhere(target), Mode::Hard, NOW);
        }
        assert_eq!(judge(&log, &key("h", "/x", None), &[], 0), Judgement::Gone);
        assert_eq!(
            judge(&log, &key("h", "/x", None), &[], 1),
            Judgement::Untouched
        );
        assert_eq!(log.book.read().unwrap().compared.len(), MOST_COMPARED);
    }
}
