//! Rate limits: how many requests a client address or a key may make within a window.
//!
//! Alone, an instance counts by itself. In a fleet Redis counts, in one script and one round trip;
//! so that a hit need not wait for that, an instance takes a few requests in advance, a hundredth of
//! the limit, and takes more behind the answers before they are used up. The last tenth of a limit,
//! and all of one below a thousand, is asked for one by one; when it is reached, all instances
//! give back what they hold and have not used. So no more than the limit is ever let through, and
//! less only by what an instance holds that dies, or hears nothing, at that moment.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::Method;
use quick_cache::sync::Cache;
use sha2::{Digest, Sha256};

use crate::clock::{Clock, Timestamp};
use crate::config::{LimitBy, RateLimit, WithoutRedis};
use crate::metrics::Metrics;
use crate::store::second::{Second, Taken, Taking, TierError};

use super::address;
use super::credential::KeyId;
use super::measured::{Measured, Said};
use super::window::Window;

/// Limits from here on are taken in advance.
const LEASED_FROM: u64 = 1000;

/// How long what was taken in advance is held.
const HELD_FOR: Duration = Duration::from_secs(1);

/// A question that takes longer has been given up.
const ASKING: Duration = Duration::from_millis(100);

/// Callers of one limit that are told apart; the ones that ask least are forgotten first.
const MOST_CALLERS: usize = 65_536;

/// One caller's place in one limit.
#[derive(Debug, Default)]
struct State {
    /// Counted here.
    window: Window,
    /// Taken in advance and not used.
    held: u64,
    held_until: Timestamp,
    /// The window that it was taken from.
    began: u64,
    /// What was left when it was taken, and until when.
    left: u64,
    reset_at: Timestamp,
    /// Somebody takes in advance, and will have done so by then.
    asking_until: Timestamp,
}

struct Limit {
    /// Among the limits.
    place: usize,
    settings: RateLimit,
    /// The places of the routes that count; `None`: all requests do.
    routes: Option<Vec<usize>>,
    /// What every name of it in Redis begins with.
    name: String,
    callers: Cache<[u8; 16], Arc<Mutex<State>>>,
}

/// Who asks, for limits: an address and, where there is one, a key.
#[derive(Clone, Copy, Debug)]
pub struct Who {
    pub address: IpAddr,
    pub key: Option<KeyId>,
    pub route: Option<usize>,
}

pub struct Limits {
    limits: Vec<Limit>,
    second: Option<Arc<Second>>,
    clock: Clock,
    metrics: Arc<Metrics>,
}

impl Limits {
    /// `routes_of` gives the places of the routes with a path.
    pub fn new(
        settings: &[RateLimit],
        routes_of: impl Fn(&str) -> Vec<usize>,
        second: Option<Arc<Second>>,
        clock: Clock,
        metrics: Arc<Metrics>,
    ) -> Self {
        let limit = |settings: &RateLimit| Limit {
            place: 0,
            routes: settings.path.as_deref().map(&routes_of),
            name: format!(
                "rate:{}:{}:{}:{}:",
                settings.by.as_str(),
                settings.requests,
                settings.window.as_millis(),
                hex(&digest(
                    settings.path.as_deref().unwrap_or_default().as_bytes()
                ))
            ),
            callers: Cache::new(MOST_CALLERS),
            settings: settings.clone(),
        };
        let mut limits: Vec<Limit> = settings.iter().map(limit).collect();
        // An address that is refused makes no more names in Redis by inventing keys.
        limits.sort_by_key(|limit| limit.settings.by == LimitBy::Key);
        for (place, limit) in limits.iter_mut().enumerate() {
            limit.place = place;
        }
        Self {
            limits,
            second,
            clock,
            metrics,
        }
    }

    /// Whether there are any that could concern a request.
    pub fn concern(&self, method: &Method) -> bool {
        // What a browser asks before it asks is not counted twice.
        !self.limits.is_empty() && *method != Method::OPTIONS
    }

    pub fn counts_keys(&self) -> bool {
        let by_key = |limit: &Limit| limit.settings.by == LimitBy::Key;
        self.limits.iter().any(by_key)
    }

    pub fn counts_routes(&self) -> bool {
        self.limits.iter().any(|limit| limit.routes.is_some())
    }

    /// The limits that count this request, each with whom it counts.
    fn concerning(&self, who: Who) -> impl Iterator<Item = (&Limit, [u8; 16])> {
        self.limits.iter().filter_map(move |limit| {
            if let Some(routes) = &limit.routes
                && !who.route.is_some_and(|route| routes.contains(&route))
            {
                return None;
            }
            let caller = match limit.settings.by {
                LimitBy::Address => address::counted(who.address),
                LimitBy::Key => {
                    let mut half = [0; 16];
                    half.copy_from_slice(&who.key?.0[..16]);
                    half
                }
            };
            Some((limit, caller))
        })
    }

    /// Counts a request without waiting; `None` where Redis must be asked about any of it, and
    /// then nothing was counted.
    pub fn check(self: &Arc<Self>, who: Who) -> Option<Measured> {
        let now = self.clock.now();
        let is_shared = self.shared().is_some();
        if is_shared {
            let has_some = |(limit, caller): (&Limit, [u8; 16])| {
                let state = limit.state(caller);
                let state = lock(&state);
                state.held > 0 && now < state.held_until
            };
            if !self.concerning(who).all(has_some) {
                return None;
            }
        }
        let mut measured = Measured::default();
        for (limit, caller) in self.concerning(who) {
            let said = if is_shared {
                // Another request may have used the last one meanwhile.
                self.use_held(limit, caller, now)?
            } else {
                self.alone(limit, caller, now)
            };
            self.metrics
                .guard
                .counted(limit.settings.by.as_str(), true, said.is_allowed);
            measured.add(&limit.settings, said, now);
            if measured.refusal.is_some() {
                break;
            }
        }
        Some(measured)
    }

    /// Counts a request, asking Redis where that is needed.
    pub async fn ask(self: Arc<Self>, who: Who) -> Measured {
        let mut measured = Measured::default();
        let concerning: Vec<(usize, [u8; 16])> = self
            .concerning(who)
            .map(|(limit, caller)| (limit.place, caller))
            .collect();
        for (at, caller) in concerning {
            let limit = &self.limits[at];
            let now = self.clock.now();
            let held = self.use_held(limit, caller, now);
            let is_at_hand = held.is_some();
            let said = match held {
                Some(said) => said,
                None => {
                    // In a task: who leaves meanwhile must not take along what was taken.
                    let limits = Arc::clone(&self);
                    let taking = async move { limits.take(at, caller, 1).await };
                    match tokio::spawn(taking).await {
                        Ok(Ok(said)) => said,
                        _ => self.alone(limit, caller, now),
                    }
                }
            };
            let by = limit.settings.by.as_str();
            self.metrics.guard.counted(by, is_at_hand, said.is_allowed);
            measured.add(&limit.settings, said, self.clock.now());
            if measured.refusal.is_some() {
                break;
            }
        }
        measured
    }

    fn shared(&self) -> Option<&Arc<Second>> {
        let second = self.second.as_ref();
        second.filter(|second| !second.breaker_is_open())
    }

    /// As this instance counts by itself, or as the operator wants it while Redis is out of reach.
    fn alone(&self, limit: &Limit, caller: [u8; 16], now: Timestamp) -> Said {
        let RateLimit {
            requests,
            window,
            when_redis_fails,
            ..
        } = limit.settings;
        let all = |is_allowed, left| Said {
            is_allowed,
            left,
            retry: Duration::from_secs(1),
            reset: window,
        };
        match when_redis_fails {
            WithoutRedis::Open if self.second.is_some() => all(true, requests),
            WithoutRedis::Closed if self.second.is_some() => all(false, 0),
            _ => {
                let state = limit.state(caller);
                let counted = lock(&state).window.take(requests, window, now);
                Said {
                    is_allowed: counted.is_allowed,
                    left: counted.left,
                    retry: counted.retry,
                    reset: counted.reset,
                }
            }
        }
    }

    /// Uses one that was taken in advance, and takes more behind the answer where few are left;
    /// `None` where none is.
    fn use_held(self: &Arc<Self>, limit: &Limit, caller: [u8; 16], now: Timestamp) -> Option<Said> {
        let state = limit.state(caller);
        let mut state = lock(&state);
        if now >= state.held_until {
            return None;
        }
        state.held = state.held.checked_sub(1)?;
        let lease = limit.lease();
        let is_low = state.held <= lease / 2 && now >= state.asking_until && state.left > lease;
        if is_low {
            state.asking_until = now.plus(ASKING);
            let (limits, at) = (Arc::clone(self), limit.place);
            tokio::spawn(async move {
                let _ = limits.take(at, caller, 0).await;
            });
        }
        Some(Said {
            is_allowed: true,
            left: state.left + state.held,
            retry: Duration::ZERO,
            reset: state.reset_at.since(now),
        })
    }

    /// Takes out of the window in Redis: `now_used` of it for the request at hand, and some in
    /// advance.
    async fn take(&self, at: usize, caller: [u8; 16], now_used: u64) -> Result<Said, TierError> {
        let limit = &self.limits[at];
        let Some(second) = self.shared() else {
            return Err(TierError::Open);
        };
        let state = limit.state(caller);
        let (back, began, is_first) = {
            let mut state = lock(&state);
            // What is held for too long goes back.
            let now = self.clock.now();
            let is_old = now >= state.held_until;
            let back = if is_old {
                std::mem::take(&mut state.held)
            } else {
                0
            };
            let is_first = now_used == 0 || now >= state.asking_until;
            if is_first {
                state.asking_until = now.plus(ASKING);
            }
            (back, state.began, is_first)
        };
        // Of many that ask at once, one takes in advance.
        let wanted = if is_first { limit.lease() } else { 1 };
        let taken = second
            .take(limit.taking(caller, wanted.max(now_used), back, began))
            .await;
        let mut state = lock(&state);
        if is_first {
            state.asking_until = Timestamp::EPOCH;
        }
        let taken: Taken = taken?;
        let now = self.clock.now();
        if taken.began != state.began && state.held > 0 {
            // Of the window before: it goes back there.
            let (back, began) = (std::mem::take(&mut state.held), state.began);
            let second = Arc::clone(second);
            tokio::spawn(second.take_back(limit.taking(caller, 0, back, began)));
        }
        if taken.granted > 0 {
            state.held += taken.granted - now_used.min(taken.granted);
            state.held_until = now.plus(HELD_FOR.min(limit.settings.window / 10));
        }
        state.began = taken.began;
        state.left = taken.left;
        state.reset_at = now.plus(taken.reset);
        Ok(Said {
            is_allowed: taken.granted > 0,
            left: taken.left,
            retry: taken.retry,
            reset: taken.reset,
        })
    }

    /// Gives back what is held of a limit whose last tenth is reached, whenever that is heard.
    pub async fn hear_recalls(self: Arc<Self>) {
        use tokio::sync::broadcast::error::RecvError;
        let Some(second) = &self.second else { return };
        let mut recalls = second.recalls();
        loop {
            match recalls.recv().await {
                Ok(name) => self.give_back(second, second.bare(&name)),
                Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => return,
            }
        }
    }

    fn give_back(&self, second: &Arc<Second>, name: &str) {
        let named = |limit: &Limit| {
            let caller = limit.caller_of(name)?;
            Some((limit.callers.get(&caller)?, limit.place, caller))
        };
        let Some((state, at, caller)) = self.limits.iter().find_map(named) else {
            return;
        };
        let (back, began) = {
            let mut state = lock(&state);
            state.left = 0;
            (std::mem::take(&mut state.held), state.began)
        };
        if back > 0 {
            let taking = self.limits[at].taking(caller, 0, back, began);
            tokio::spawn(Arc::clone(second).take_back(taking));
        }
    }
}

impl Limit {
    fn state(&self, caller: [u8; 16]) -> Arc<Mutex<State>> {
        let fresh = || Ok::<_, std::convert::Infallible>(Arc::default());
        match self.callers.get_or_insert_with(&caller, fresh) {
            Ok(state) => state,
        }
    }

    /// Requests that are taken in advance; 1 for none.
    fn lease(&self) -> u64 {
        if self.settings.requests < LEASED_FROM {
            1
        } else {
            self.settings.requests / 100
        }
    }

    fn taking(&self, caller: [u8; 16], wanted: u64, back: u64, began: u64) -> Taking {
        Taking {
            // The caller's bytes, so that a recall can be told whose it is.
            name: format!("{}{}", self.name, hex(&caller)),
            limit: self.settings.requests,
            window: self.settings.window,
            wanted,
            back,
            began,
        }
    }

    fn caller_of(&self, name: &str) -> Option<[u8; 16]> {
        let caller = name.strip_prefix(&self.name)?;
        let number = u128::from_str_radix(caller, 16).ok()?;
        Some(number.to_be_bytes())
    }
}

fn lock(state: &Mutex<State>) -> std::sync::MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

fn digest(bytes: &[u8]) -> [u8; 8] {
    let mut half = [0; 8];
    half.copy_from_slice(&Sha256::digest(bytes)[..8]);
    half
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
