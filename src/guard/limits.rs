//! Rate limits: how many requests a client address or a key may make within a window.
//!
//! Alone, an instance counts by itself. In a fleet Redis counts, in one script and one round trip;
//! so that a hit need not wait for that, an instance takes a few requests in advance, a hundredth
//! of the limit, and takes more behind the answers before they are used up. The last tenth of a
//! limit, and all of one below a thousand, is asked for one by one; when it is reached, all
//! instances give back what they hold and have not used. So no more than the limit is ever let
//! through, and less only by what an instance holds that dies, or hears nothing, at that moment.
//!
//! While Redis is out of reach each instance counts its part of the limit, as many parts as
//! instances were heard last, from where the fleet's count stood; a window that Redis has lost goes
//! on with what the instances know of it.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use http::Method;
use parking_lot::Mutex;
use quick_cache::sync::Cache;
use sha2::{Digest, Sha256};

use crate::clock::{Clock, Timestamp};
use crate::config::{LimitBy, RateLimit, WithoutRedis};
use crate::metrics::Metrics;
use crate::metrics::guard::LimitKind;
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

/// Limits that no plan has any more, and that are still remembered.
const MOST_GONE: usize = 16;

/// Whether a request is counted, or only looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Counting {
    Counted,
    Foreseen,
}

/// One caller's place in one limit.
#[derive(Debug, Default)]
struct State {
    /// Counted here.
    window: Window,
    /// Taken in advance and not used.
    held: u64,
    held_until: Timestamp,
    /// The window that it was taken from, and what was used of that by all.
    began: u64,
    used: u64,
    /// What was left when it was taken, and until when.
    left: u64,
    reset_at: Timestamp,
    /// Somebody takes in advance, and will have done so by then.
    asking_until: Timestamp,
}

impl State {
    fn known(&self) -> Known {
        Known {
            began: self.began,
            used: self.used,
        }
    }
}

/// What an instance knows of a window in Redis: when it began, and what was used of it.
#[derive(Clone, Copy, Debug)]
struct Known {
    began: u64,
    used: u64,
}

/// Where the callers of one limit stand in its window.
struct Callers {
    /// What every name of it in Redis begins with: of another rule, another window.
    name: String,
    /// Among those of one plan that are the same but for what is done without Redis.
    number: usize,
    requests: u64,
    window: Duration,
    states: Cache<[u8; 16], Arc<Mutex<State>>>,
}

/// One `[[rate_limit]]` of a plan.
struct Limit {
    settings: RateLimit,
    callers: Arc<Callers>,
}

/// Who asks, for limits: an address and, where there is one, a key.
#[derive(Clone, Copy, Debug)]
pub struct Who<'a> {
    pub address: IpAddr,
    pub key: Option<KeyId>,
    /// The pattern of the route that the request takes, where it takes one.
    pub path: Option<&'a str>,
}

/// The limits of one plan; what was counted is in the [`LimitState`], which outlives plans.
pub struct Limits {
    limits: Vec<Limit>,
    state: Arc<LimitState>,
}

/// What was counted, under the name of each limit.
pub struct LimitState {
    callers: Mutex<Vec<Arc<Callers>>>,
    second: Option<Arc<Second>>,
    clock: Clock,
    metrics: Arc<Metrics>,
}

impl LimitState {
    pub fn new(second: Option<Arc<Second>>, clock: Clock, metrics: Arc<Metrics>) -> Arc<Self> {
        Arc::new(Self {
            callers: Mutex::default(),
            second,
            clock,
            metrics,
        })
    }

    /// What was counted under a limit so far. A limit that no plan has any more is remembered until
    /// [`MOST_GONE`] others have gone.
    fn callers(&self, settings: &RateLimit, number: usize) -> Arc<Callers> {
        let path = settings.path.as_deref().unwrap_or_default();
        let name = format!(
            "rate:{}:{}:{}:{}:",
            settings.by.as_str(),
            settings.requests,
            settings.window.as_millis(),
            hex::encode(digest(path.as_bytes()))
        );
        let mut all = self.callers.lock();
        let is_it = |known: &Arc<Callers>| known.name == name && known.number == number;
        let known = all.iter().position(is_it);
        let callers = match known {
            Some(at) => all.remove(at),
            None => Arc::new(Callers {
                name,
                number,
                requests: settings.requests,
                window: settings.window,
                states: Cache::new(MOST_CALLERS),
            }),
        };
        all.push(Arc::clone(&callers));
        // Only those that no plan has any more.
        let is_gone = |callers: &Arc<Callers>| Arc::strong_count(callers) == 1;
        if all.iter().filter(|callers| is_gone(callers)).count() > MOST_GONE
            && let Some(oldest) = all.iter().position(is_gone)
        {
            all.remove(oldest);
        }
        callers
    }

    /// What one instance counts of a limit by itself, so that all of them together count no more.
    fn part_of(&self, requests: u64) -> u64 {
        let instances = self.second.as_ref().map_or(1, |second| second.instances());
        (requests / instances).max(1)
    }

    fn shared(&self) -> Option<&Arc<Second>> {
        let second = self.second.as_ref();
        second.filter(|second| !second.breaker_is_open())
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
        let named = |callers: &Arc<Callers>| {
            let caller = callers.caller_of(name)?;
            Some((callers.states.get(&caller)?, Arc::clone(callers), caller))
        };
        let Some((state, callers, caller)) = self.callers.lock().iter().find_map(named) else {
            return;
        };
        let (back, known) = {
            let mut state = state.lock();
            state.left = 0;
            (std::mem::take(&mut state.held), state.known())
        };
        if back > 0 {
            let taking = callers.taking(caller, 0, back, known);
            tokio::spawn(Arc::clone(second).take_back(taking));
        }
    }
}

impl Limits {
    pub fn new(settings: &[RateLimit], state: Arc<LimitState>) -> Self {
        let is_same = |one: &RateLimit, other: &RateLimit| {
            one.by == other.by
                && (one.requests, one.window) == (other.requests, other.window)
                && one.path == other.path
        };
        let limit = |(at, limit): (usize, &RateLimit)| {
            let before = settings[..at].iter().filter(|other| is_same(limit, other));
            Limit {
                callers: state.callers(limit, before.count()),
                settings: limit.clone(),
            }
        };
        let mut limits: Vec<Limit> = settings.iter().enumerate().map(limit).collect();
        // An address that is refused makes no more names in Redis by inventing keys.
        limits.sort_by_key(|limit| limit.settings.by == LimitBy::Key);
        Self { limits, state }
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

    /// The limits that count this request, each with whom it counts.
    fn concerning(&self, who: Who<'_>) -> impl Iterator<Item = (&Limit, [u8; 16])> {
        self.limits.iter().filter_map(move |limit| {
            let counted = limit.settings.path.as_deref();
            if counted.is_some() && counted != who.path {
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

    /// The refusal that a request would meet now, as far as that is known without asking Redis;
    /// nothing is counted.
    pub fn foresee(&self, who: Who<'_>) -> Measured {
        let now = self.state.clock.now();
        let mut measured = Measured::default();
        // What Redis counts is known to Redis alone.
        let known = self
            .concerning(who)
            .filter(|_| self.state.shared().is_none());
        for (limit, caller) in known {
            let said = self.alone(limit, caller, Counting::Foreseen, now);
            measured.add(&limit.settings, said, now);
            if measured.refusal.is_some() {
                break;
            }
        }
        measured
    }

    /// Counts a request without waiting; `None` where Redis must be asked about any of it, and
    /// then nothing was counted.
    pub fn check(&self, who: Who<'_>) -> Option<Measured> {
        let now = self.state.clock.now();
        let is_shared = self.state.shared().is_some();
        if is_shared {
            let has_some = |(limit, caller): (&Limit, [u8; 16])| {
                let state = limit.callers.state(caller);
                let state = state.lock();
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
                self.alone(limit, caller, Counting::Counted, now)
            };
            let guard = &self.state.metrics.guard;
            guard.counted(kind(limit.settings.by), true, said.is_allowed);
            measured.add(&limit.settings, said, now);
            if measured.refusal.is_some() {
                break;
            }
        }
        Some(measured)
    }

    /// Counts a request, asking Redis where that is needed.
    pub async fn ask(&self, who: Who<'_>) -> Measured {
        let mut measured = Measured::default();
        for (limit, caller) in self.concerning(who) {
            let now = self.state.clock.now();
            let held = self.use_held(limit, caller, now);
            let is_at_hand = held.is_some();
            let said = match held {
                Some(said) => said,
                None => {
                    // In a task: who leaves meanwhile must not take along what was taken.
                    let (state, callers) = (Arc::clone(&self.state), Arc::clone(&limit.callers));
                    let taking = async move { state.take(&callers, caller, 1).await };
                    match tokio::spawn(taking).await {
                        Ok(Ok(said)) => said,
                        _ => self.alone(limit, caller, Counting::Counted, now),
                    }
                }
            };
            let guard = &self.state.metrics.guard;
            guard.counted(kind(limit.settings.by), is_at_hand, said.is_allowed);
            measured.add(&limit.settings, said, self.state.clock.now());
            if measured.refusal.is_some() {
                break;
            }
        }
        measured
    }

    /// As this instance counts by itself, or as the operator wants it while Redis is out of reach.
    fn alone(&self, limit: &Limit, caller: [u8; 16], counting: Counting, now: Timestamp) -> Said {
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
            WithoutRedis::Open if self.state.second.is_some() => all(true, requests),
            WithoutRedis::Closed if self.state.second.is_some() => all(false, 0),
            _ => {
                let part = self.state.part_of(requests);
                let state = limit.callers.state(caller);
                let mut state = state.lock();
                let counted = match counting {
                    Counting::Counted => state.window.take(part, window, now),
                    Counting::Foreseen => { state.window }.take(part, window, now),
                };
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
    fn use_held(&self, limit: &Limit, caller: [u8; 16], now: Timestamp) -> Option<Said> {
        let callers = &limit.callers;
        let state = callers.state(caller);
        let mut state = state.lock();
        if now >= state.held_until {
            return None;
        }
        state.held = state.held.checked_sub(1)?;
        let lease = callers.lease();
        let is_low = state.held <= lease / 2 && now >= state.asking_until && state.left > lease;
        if is_low {
            state.asking_until = now.plus(ASKING);
            let (shared, callers) = (Arc::clone(&self.state), Arc::clone(callers));
            tokio::spawn(async move {
                let _ = shared.take(&callers, caller, 0).await;
            });
        }
        Some(Said {
            is_allowed: true,
            left: state.left + state.held,
            retry: Duration::ZERO,
            reset: state.reset_at.since(now),
        })
    }
}

impl LimitState {
    /// Takes out of the window in Redis: `now_used` of it for the request at hand, and some in
    /// advance.
    async fn take(
        &self,
        callers: &Callers,
        caller: [u8; 16],
        now_used: u64,
    ) -> Result<Said, TierError> {
        let Some(second) = self.shared() else {
            return Err(TierError::Open);
        };
        let state = callers.state(caller);
        let (back, known, is_first) = {
            let mut state = state.lock();
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
            (back, state.known(), is_first)
        };
        // Of many that ask at once, one takes in advance.
        let wanted = if is_first { callers.lease() } else { 1 };
        let taken = second
            .take(callers.taking(caller, wanted.max(now_used), back, known))
            .await;
        let mut state = state.lock();
        if is_first {
            state.asking_until = Timestamp::EPOCH;
        }
        let taken: Taken = taken?;
        let now = self.clock.now();
        if taken.began != state.began && state.held > 0 {
            // Of the window before: it goes back there.
            let (back, known) = (std::mem::take(&mut state.held), state.known());
            let second = Arc::clone(second);
            tokio::spawn(second.take_back(callers.taking(caller, 0, back, known)));
        }
        if taken.granted > 0 {
            state.held += taken.granted - now_used.min(taken.granted);
            state.held_until = now.plus(HELD_FOR.min(callers.window / 10));
        }
        state.began = taken.began;
        state.left = taken.left;
        state.reset_at = now.plus(taken.reset);
        let began = now.plus(taken.reset).minus(callers.window);
        state.used = callers.requests.saturating_sub(taken.left);
        state.window = Window::of(began, state.used.div_ceil(second.instances()));
        Ok(Said {
            is_allowed: taken.granted > 0,
            left: taken.left,
            retry: taken.retry,
            reset: taken.reset,
        })
    }
}

impl Callers {
    fn state(&self, caller: [u8; 16]) -> Arc<Mutex<State>> {
        let fresh = || Ok::<_, std::convert::Infallible>(Arc::default());
        match self.states.get_or_insert_with(&caller, fresh) {
            Ok(state) => state,
        }
    }

    /// Requests that are taken in advance; 1 for none.
    fn lease(&self) -> u64 {
        if self.requests < LEASED_FROM {
            1
        } else {
            self.requests / 100
        }
    }

    fn taking(&self, caller: [u8; 16], wanted: u64, back: u64, known: Known) -> Taking {
        let Known { began, used } = known;
        Taking {
            used,
            // The caller's bytes, so that a recall can be told whose it is.
            name: format!("{}{}", self.name, hex::encode(caller)),
            limit: self.requests,
            window: self.window,
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

fn kind(by: LimitBy) -> LimitKind {
    match by {
        LimitBy::Address => LimitKind::Ip,
        LimitBy::Key => LimitKind::ApiKey,
    }
}

fn digest(bytes: &[u8]) -> [u8; 8] {
    let mut half = [0; 8];
    half.copy_from_slice(&Sha256::digest(bytes)[..8]);
    half
}
