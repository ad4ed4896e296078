//! The purge log: what was made unusable (hard) or stale (soft), and in which order.
//!
//! A purge changes no stored response by itself. It is a mark with a position; whoever looks at a
//! stored response asks whether a mark reaches it that is newer than the position at which its
//! fetch began. So one purge costs the same whatever is stored, reaches what is still being
//! fetched, and cannot be overtaken by a fill. An entry remembers up to which position it was
//! judged: as long as nothing is purged, a hit compares two numbers.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock};

use smallvec::SmallVec;

use crate::clock::Timestamp;
use crate::policy::Groups;
use crate::policy::invalidate::Mode;
use crate::policy::key::Place;

/// Marks that are kept; past it the older half goes, and what was not judged by it since is
/// taken for purged.
const MOST_MARKS: usize = 65_536;

/// Prefixes that are kept: each is compared with every response that is judged.
const MOST_PREFIXES: usize = 256;

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
    let without_port = || {
        let colon = known.iter().rposition(|byte| *byte == b':');
        colon.map_or(known, |at| &known[..at])
    };
    known.eq_ignore_ascii_case(wanted) || without_port().eq_ignore_ascii_case(wanted)
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

/// The purges of one target and reach, compacted to the latest of each mode.
#[derive(Clone, Copy, Debug, Default)]
struct Marks {
    /// Position of the latest hard purge; 0 for none.
    hard: u64,
    /// Position and time of the latest soft one.
    soft: Option<(u64, Timestamp)>,
}

impl Marks {
    fn latest(&self) -> u64 {
        self.hard.max(self.soft.map_or(0, |(position, _)| position))
    }

    fn add(&mut self, mode: Mode, position: u64, at: Timestamp) {
        match mode {
            Mode::Hard => self.hard = self.hard.max(position),
            Mode::Soft => self.soft = self.soft.max(Some((position, at))),
        }
    }

    fn merge(&mut self, other: &Self) {
        self.hard = self.hard.max(other.hard);
        self.soft = self.soft.max(other.soft);
    }

    /// What marks newer than `since` say.
    fn judge(&self, since: u64) -> Judgement {
        if self.hard > since {
            return Judgement::Gone;
        }
        match self.soft {
            Some((position, at)) if position > since => Judgement::StaleSince(at),
            _ => Judgement::Untouched,
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

type Scoped = SmallVec<[(Reach, Marks); 1]>;

#[derive(Debug, Default)]
struct Book {
    all: Scoped,
    urls: HashMap<Box<[u8]>, Scoped>,
    groups: HashMap<Box<str>, Scoped>,
    prefixes: Vec<(Box<str>, Reach, Marks)>,
    /// Marks in `urls` and `groups`.
    count: usize,
    /// What the marks that were dropped said, as if it had been said of everything.
    floor: Marks,
}

impl Book {
    fn add(&mut self, purge: Purge, mode: Mode, position: u64, at: Timestamp) {
        let Purge { target, reach } = purge;
        let list = match target {
            Target::All => &mut self.all,
            Target::Url(target) => self.urls.entry(target).or_default(),
            Target::Group(name) => self.groups.entry(name).or_default(),
            Target::Prefix(prefix) => return self.add_prefix(prefix, reach, mode, position, at),
        };
        let known = list.iter_mut().find(|(known, _)| *known == reach);
        let marks = match known {
            Some((_, marks)) => marks,
            None => {
                self.count += 1;
                list.push((reach, Marks::default()));
                let last = list.len() - 1;
                &mut list[last].1
            }
        };
        marks.add(mode, position, at);
        if self.count > MOST_MARKS {
            self.forget_older_half();
        }
    }

    fn add_prefix(
        &mut self,
        prefix: Box<str>,
        reach: Reach,
        mode: Mode,
        position: u64,
        at: Timestamp,
    ) {
        let known = self
            .prefixes
            .iter()
            .position(|(known, of, _)| *known == prefix && *of == reach);
        // The latest stands last, so that the oldest makes room.
        let mut marks = known.map_or_else(Marks::default, |at| self.prefixes.remove(at).2);
        marks.add(mode, position, at);
        self.prefixes.push((prefix, reach, marks));
        if self.prefixes.len() > MOST_PREFIXES {
            let (_, _, oldest) = self.prefixes.remove(0);
            self.floor.merge(&oldest);
        }
    }

    fn forget_older_half(&mut self) {
        let lists = self.urls.values().chain(self.groups.values());
        let mut positions: Vec<u64> = lists.flatten().map(|(_, marks)| marks.latest()).collect();
        let middle = positions.len() / 2;
        let (_, middle, _) = positions.select_nth_unstable(middle);
        let (middle, floor) = (*middle, &mut self.floor);
        let mut keep = |list: &mut Scoped| {
            list.retain(|(_, marks)| {
                let stays = marks.latest() > middle;
                if !stays {
                    floor.merge(marks);
                }
                stays
            });
            !list.is_empty()
        };
        self.urls.retain(|_, list| keep(list));
        self.groups.retain(|_, list| keep(list));
        let lists = self.urls.values().chain(self.groups.values());
        self.count = lists.map(|list| list.len()).sum();
    }

    fn judge(
        &self,
        place: &Place<'_>,
        groups: Option<&Groups>,
        since: u64,
        judged: u64,
    ) -> Judgement {
        let mut found = self.floor.judge(since.max(judged));
        let mut weigh = |list: Option<&Scoped>| {
            for (reach, marks) in list.into_iter().flatten() {
                if marks.latest() > since && reach.covers(place) {
                    found = found.and(marks.judge(since));
                }
            }
        };
        weigh(Some(&self.all));
        weigh(self.urls.get(place.target));
        if !self.groups.is_empty() {
            for name in groups.into_iter().flat_map(|groups| groups.iter()) {
                weigh(self.groups.get(name));
            }
        }
        for (prefix, reach, marks) in &self.prefixes {
            if marks.latest() > since && has_prefix(place, prefix) && reach.covers(place) {
                found = found.and(marks.judge(since));
            }
        }
        found
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

    /// What the purges after `since` make of a response at `place`, of which all up to `judged`
    /// have been seen; and up to which position that holds.
    pub fn judge(
        &self,
        place: &Place<'_>,
        groups: Option<&Groups>,
        since: u64,
        judged: u64,
    ) -> (Judgement, u64) {
        let book = self.book.read().unwrap_or_else(PoisonError::into_inner);
        let found = book.judge(place, groups, since, judged);
        (found, self.position.load(Ordering::Relaxed))
    }

    /// Whether a fetch for `key` that began at `since` must not be joined any more.
    pub fn has_purged(&self, key: &[u8], groups: Option<&Groups>, since: u64) -> bool {
        since != self.position()
            && Place::of(key)
                .is_some_and(|place| self.judge(&place, groups, since, since).0 == Judgement::Gone)
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
        let groups: Groups = groups.iter().map(|name| Box::from(*name)).collect();
        let place = Place::of(key).unwrap();
        log.judge(&place, Some(&groups), since, since).0
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
        assert_eq!(log.judge(&place, None, 0, judged).0, Judgement::Untouched);
        // Newer than what was forgotten.
        let newer = MOST_MARKS as u64 / 2 + 2;
        assert_eq!(judge(&log, &old, &[], newer), Judgement::Untouched);
        assert!(log.book.read().unwrap().count <= MOST_MARKS);
    }

    #[test]
    fn prefixes_are_few_and_the_oldest_makes_room() {
        let log = PurgeLog::default();
        for number in 0..=MOST_PREFIXES {
            let target = Target::Prefix(format!("/{number}/").into());
            log.append(everywhere(target), Mode::Hard, NOW);
        }
        assert_eq!(judge(&log, &key("h", "/x", None), &[], 0), Judgement::Gone);
        assert_eq!(
            judge(&log, &key("h", "/x", None), &[], 1),
            Judgement::Untouched
        );
        assert_eq!(log.book.read().unwrap().prefixes.len(), MOST_PREFIXES);
    }
}
