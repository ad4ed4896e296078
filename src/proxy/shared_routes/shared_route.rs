//! Routes that share one answer among all keys, for as long as answers do not differ by key.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use http::HeaderMap;
use sha2::{Digest, Sha256};

use crate::clock::Timestamp;
use crate::config::{Route, Routes};
use crate::error::rfc3339;
use crate::guard::Caller;
use crate::policy::Share;
use crate::store::{Purge, PurgeLog, Reach, Target};

use super::compare::Lent;

/// What is known of the sharing of each route, by its place.
pub struct Sharing {
    routes: Vec<Option<Shared>>,
}

/// A route with `share = "verified"`.
struct Shared {
    /// Under this digest the purge log, and so the fleet, knows that it was demoted: as of a key
    /// that is revoked. With other volatile members it is another route.
    digest: [u8; 32],
    /// The same route, not shared.
    per_key: Arc<Route>,
    /// When and by which path that was found, for who asks why.
    why: Mutex<Option<(Timestamp, String)>>,
    /// Misses that could be compared so far.
    misses: AtomicU64,
    is_comparing: AtomicBool,
    /// The last two keys that were good there.
    lent: Mutex<Vec<Lent>>,
}

impl Sharing {
    pub fn new(routes: &Routes, volatile: &[String]) -> Self {
        let shared = |route: &Arc<Route>| {
            (route.options.share == Share::Verified).then(|| {
                let mut per_key = Route::clone(route);
                per_key.options.share = Share::PerKey;
                Shared {
                    digest: digest(route, volatile),
                    per_key: Arc::new(per_key),
                    why: Mutex::default(),
                    misses: AtomicU64::new(0),
                    is_comparing: AtomicBool::new(false),
                    lent: Mutex::default(),
                }
            })
        };
        Self {
            routes: routes.list().iter().map(shared).collect(),
        }
    }

    /// Whether any route is shared so.
    pub fn is_wanted(&self) -> bool {
        self.routes.iter().any(Option::is_some)
    }

    fn of(&self, index: usize) -> Option<&Shared> {
        self.routes.get(index)?.as_ref()
    }

    /// What stands in for a route that was demoted, by this instance or another.
    pub fn in_effect(&self, index: usize, purges: &PurgeLog) -> Option<&Arc<Route>> {
        let shared = self.of(index)?;
        let is_demoted = purges.is_revoked(&shared.digest);
        is_demoted.then_some(&shared.per_key)
    }

    /// What is to be purged so that from now on each key has its own answers there; `None` where
    /// that was done before.
    pub fn demote(
        &self,
        index: usize,
        path: &str,
        purges: &PurgeLog,
        now: Timestamp,
    ) -> Option<Purge> {
        let shared = self.of(index)?;
        if purges.is_revoked(&shared.digest) {
            return None;
        }
        *lock(&shared.why) = Some((now, path.to_owned()));
        Some(Purge {
            target: Target::Key(shared.digest),
            reach: Reach::Any,
        })
    }

    /// Why a route is not shared any more.
    pub fn why_demoted(&self, index: usize, purges: &PurgeLog) -> Option<String> {
        self.in_effect(index, purges)?;
        let why = lock(&self.of(index)?.why).clone();
        let Some((at, path)) = why else {
            return Some(
                "another instance has found that answers differ by key: its log says by which path"
                    .to_owned(),
            );
        };
        Some({
            let at = rfc3339(at);
            format!(
                "answers for {path} were found to differ by key at {at}: set share = \"per-key\", or name what differs by itself in auth.volatile"
            )
        })
    }

    /// Remembers a good key, and gives another one that is.
    pub(super) fn another(
        &self,
        index: usize,
        caller: Caller,
        credential: &HeaderMap,
    ) -> Option<Lent> {
        let mut lent = lock(&self.of(index)?.lent);
        let is_own = |lent: &Lent| lent.caller.credential.key == caller.credential.key;
        let other = lent.iter().rev().find(|lent| !is_own(lent));
        let other = other.cloned();
        lent.retain(|lent| !is_own(lent));
        lent.push(Lent {
            caller,
            credential: credential.clone(),
        });
        if lent.len() > 2 {
            lent.remove(0);
        }
        other
    }

    /// Whether this miss is one of those that are fetched with a second key: the first is, and then
    /// one in `every`; one at a time.
    pub fn is_sampled(&self, index: usize, every: u64) -> bool {
        self.of(index).is_some_and(|shared| {
            let number = shared.misses.fetch_add(1, Ordering::Relaxed);
            number.is_multiple_of(every) && !shared.is_comparing.swap(true, Ordering::AcqRel)
        })
    }

    /// The comparison of a sampled miss has ended.
    pub fn compared(&self, index: usize) {
        if let Some(shared) = self.of(index) {
            shared.is_comparing.store(false, Ordering::Release);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn digest(route: &Route, volatile: &[String]) -> [u8; 32] {
    let mut digest = Sha256::new();
    let parts = ["a route whose answers differ by key", &route.path];
    let host = route.host.as_deref().unwrap_or_default();
    let parts = parts.into_iter().chain([host]);
    for part in parts.chain(volatile.iter().map(String::as_str)) {
        digest.update((part.len() as u64).to_be_bytes());
        digest.update(part);
    }
    digest.finalize().into()
}
