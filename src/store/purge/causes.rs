//! What asked for the latest purges, for people who ask why a response is stale, or gone.

use std::collections::VecDeque;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};
use serde_json::{Value, json};

use crate::clock::Timestamp;
use crate::error::rfc3339;
use crate::policy::key::Place;
use crate::policy::{Groups, Mode};

use super::named::Purge;

/// Purges of which it is remembered what asked for them.
const MOST_PURGES: usize = 256;

/// Responses of which it is remembered which purge took them.
const MOST_GONE: usize = 1024;

/// What asked for a purge.
#[derive(Clone, Debug)]
pub enum Cause {
    /// An order at the admin port.
    Order,
    /// A request that changed something here, or its answer.
    Write(Arc<ByWrite>),
    /// A burst of writes to a group has ended.
    BurstEnded,
    /// Answers of the origin showed that something must not be shared, or that a key is bad.
    Proof,
    /// Another instance of the fleet.
    OtherInstance,
    /// It was left untold when a process ended.
    Journal,
}

/// A write, as it can be found again.
#[derive(Clone, Debug)]
pub struct ByWrite {
    pub method: Box<str>,
    /// Without its query, which may hold a secret.
    pub path: Box<str>,
    /// Its `X-Request-Id`.
    pub request_id: Option<Box<str>>,
}

/// One purge, and what asked for it.
#[derive(Debug)]
pub struct Caused {
    position: u64,
    pub purge: Purge,
    pub mode: Mode,
    pub at: Timestamp,
    pub cause: Cause,
}

impl Caused {
    /// It for people: what was named, by whom, when, and all of it in a few words.
    pub fn told(&self) -> Value {
        let (kind, value, _, _) = self.purge.words();
        let value = match value.first() {
            // A digest stands for a long one.
            Some(0xff) => "(too long to be remembered)".to_owned(),
            // As keys hold them, path and query end in a zero.
            _ => String::from_utf8_lossy(value).replace('\0', ""),
        };
        let kind = kind.trim_end_matches("-of-any-rule");
        let named = if value.is_empty() {
            "everything".to_owned()
        } else {
            format!("{kind} {value}")
        };
        let (by, write) = match &self.cause {
            Cause::Order => ("an order at the admin port".to_owned(), None),
            Cause::Write(by) => (format!("{} {}", by.method, by.path), Some(by)),
            Cause::BurstEnded => ("the end of a burst of writes to it".to_owned(), None),
            Cause::Proof => ("what answers of the origin showed".to_owned(), None),
            Cause::OtherInstance => ("another instance of the fleet".to_owned(), None),
            Cause::Journal => ("the journal, left by a process that ended".to_owned(), None),
        };
        let id = write.and_then(|by| by.request_id.as_deref());
        let (mode, at) = (self.mode.as_str(), rfc3339(self.at));
        let request = id.map_or_else(String::new, |id| format!(" (request {id})"));
        json!({
            "sentence": format!("a {mode} purge of {named} at {at}, asked for by {by}{request}"),
            "at": at,
            "mode": mode,
            "named": named,
            "by": by,
            "request_id": id,
        })
    }
}

/// The latest purges, and what the hard ones among them took.
#[derive(Debug, Default)]
pub struct Causes {
    hasher: RandomState,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    /// The oldest first.
    purges: VecDeque<Arc<Caused>>,
    /// By a hash of their keys in memory.
    gone: VecDeque<(u64, Arc<Caused>)>,
}

impl Causes {
    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock()
    }

    pub fn note(&self, purge: Purge, mode: Mode, position: u64, at: Timestamp, cause: Cause) {
        let caused = Caused {
            position,
            purge,
            mode,
            at,
            cause,
        };
        push(&mut self.lock().purges, MOST_PURGES, Arc::new(caused));
    }

    /// What made a response stale at that time.
    pub fn of_stale(
        &self,
        place: &Place<'_>,
        groups: Option<&Groups>,
        since: Timestamp,
    ) -> Option<Arc<Caused>> {
        let known = self.lock();
        let mut soft = known.purges.iter().filter(|known| known.mode == Mode::Soft);
        let found = soft.find(|known| known.at == since && known.purge.covers(place, groups));
        found.cloned()
    }

    /// Notes that the response under `key`, whose fetch began at the position `since`, is gone.
    pub fn note_gone(&self, key: &[u8], place: &Place<'_>, groups: Option<&Groups>, since: u64) {
        let mut known = self.lock();
        let mut newer = known.purges.iter().filter(|known| known.position > since);
        let found =
            newer.find(|known| known.mode == Mode::Hard && known.purge.covers(place, groups));
        if let Some(caused) = found.cloned() {
            let gone = (self.hasher.hash_one(key), caused);
            push(&mut known.gone, MOST_GONE, gone);
        }
    }

    /// What took the response that was last under `key`.
    pub fn of_gone(&self, key: &[u8]) -> Option<Arc<Caused>> {
        let hash = self.hasher.hash_one(key);
        let known = self.lock();
        let mut latest = known.gone.iter().rev();
        let found = latest.find(|(gone, _)| *gone == hash);
        found.map(|(_, caused)| Arc::clone(caused))
    }
}

fn push<T>(list: &mut VecDeque<T>, most: usize, item: T) {
    if list.len() == most {
        list.pop_front();
    }
    list.push_back(item);
}
