//! What each state of a purge's answer promises, as readers check it. The table in
//! `src/operators.md` is this one.
//!
//! | state | on the instance that answered | on the others |
//! |---|---|---|
//! | `done` | nothing older, at once | nothing older, at once |
//! | `unconfirmed` | nothing older, at once | nothing older after `may_serve_older_until`, unless Redis has two masters; in any case once Redis and all instances are well |
//! | `pending` | nothing older, at once | the same |
//! | a write that was answered | nothing older, at once | the same |

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::fleet::INSTANCES;

/// Between the origin's clock and a reader's.
const SLACK: Duration = Duration::from_secs(1);

/// One instance's process: a place, and how often it was started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Process {
    pub place: usize,
    pub run: u32,
}

#[derive(Clone, Copy, Debug)]
struct Promise {
    version: u64,
    /// Everybody keeps it from then on.
    all_from: Instant,
    /// It keeps it at once.
    by: Process,
}

/// What was promised of each key.
pub struct Promises {
    /// As the instances are configured.
    max_silence: Duration,
    /// Redis may have two masters, each with listeners of its own, for as long as nobody can say.
    may_be_split: bool,
    keys: Mutex<HashMap<usize, Vec<Promise>>>,
}

impl Promises {
    pub fn new(max_silence: Duration, may_be_split: bool) -> Self {
        Self {
            max_silence,
            may_be_split,
            keys: Mutex::default(),
        }
    }

    /// A purge of `key` was answered with this state: what readers get is from now on at least
    /// `version`.
    pub fn note(&self, key: usize, version: u64, state: &str, by: Process) {
        let now = Instant::now();
        let all_from = match state {
            "done" => now,
            "unconfirmed" | "pending" | "write" if self.may_be_split => {
                now + Duration::from_secs(3600)
            }
            "unconfirmed" | "pending" | "write" => now + self.max_silence + SLACK,
            other => panic!("a purge was answered {other:?}"),
        };
        let promise = Promise {
            version,
            all_from,
            by,
        };
        self.keys
            .lock()
            .unwrap()
            .entry(key)
            .or_default()
            .push(promise);
    }

    /// The least version that a reader of this process may get that asks now.
    pub fn least(&self, key: usize, process: Process) -> u64 {
        let now = Instant::now();
        let keys = self.keys.lock().unwrap();
        let all = keys.get(&key).into_iter().flatten();
        let bound = all.filter(|promise| promise.all_from <= now || promise.by == process);
        bound.map(|promise| promise.version).max().unwrap_or(0)
    }

    /// All is well, and everybody has heard of everything: what was promised so far holds
    /// everywhere.
    pub fn all_hold(&self) {
        let now = Instant::now();
        for promises in self.keys.lock().unwrap().values_mut() {
            let newest = promises
                .iter()
                .max_by_key(|promise| promise.version)
                .copied();
            *promises = newest
                .map(|promise| Promise {
                    all_from: now,
                    ..promise
                })
                .into_iter()
                .collect();
        }
    }
}

/// Where the instances are now; `None` for one that does not run.
pub type Places =
    Arc<Mutex<[Option<(Process, std::net::SocketAddr, std::net::SocketAddr)>; INSTANCES]>>;
