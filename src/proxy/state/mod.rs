//! The running state: what outlives plans. Memory, flights, purge log, second tier, origin,
//! verdicts, limit windows, the registry of metrics.
//!
//! Nothing here may hold what a configuration says, but for sizes that are fixed at the start.

mod access_logs;
mod by_route;
pub mod bypass;
mod fetch_time;
pub mod seen;
mod shared_route;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use http::StatusCode;

use crate::clock::Clock;
use crate::config::Config;
use crate::flight::Flights;
use crate::guard::{GuardState, LimitState};
use crate::metrics::second::SecondReadings;
use crate::metrics::{Metrics, Readings};
use crate::policy::key::RuleDigest;
use crate::policy::{Mode, Reason};
use crate::store::purge::causes::Cause;
use crate::store::second::used::Used;
use crate::store::second::{Lease, LeaseOutcome, Second};
use crate::store::{Entry, Memory, OTHERS, Purge, PurgeLog};
use crate::upstream::Origin;

pub use fetch_time::FetchTime;
pub use shared_route::SharedRoute;

use access_logs::AccessLogs;
use by_route::ByRoute;
use bypass::Bypass;
use seen::Seen;

/// Stored responses are judged again after so many purges, so that the log can forget.
pub const SWEEP_EVERY: u64 = 16_384;

/// Entries that a sweep looks at before it lets others run.
const SLICE: usize = 256;

/// What outlives plans. One per process, shared by all workers.
pub struct State {
    pub metrics: Arc<Metrics>,
    pub clock: Clock,
    pub memory: Memory,
    /// What the fleet shares; `None` for an instance alone.
    pub second: Option<Arc<Second>>,
    /// What is used most, where the fleet is told.
    pub used: Option<Used>,
    /// What is asked for most.
    pub seen: Seen,
    pub flights: Arc<Flights>,
    pub origin: Arc<dyn Origin>,
    pub guard: Arc<GuardState>,
    pub limits: Arc<LimitState>,
    pub shared_routes: ByRoute<[u8; 32], SharedRoute>,
    /// What the operator has switched off by hand.
    pub bypass: Bypass,
    pub access_logs: AccessLogs,
    pub fetch_times: ByRoute<RuleDigest, FetchTime>,
    /// Stored responses are being judged by the purge log, one by one.
    is_sweeping: AtomicBool,
    /// Plans that have been made.
    plans: AtomicU32,
}

impl State {
    /// The state of a process that starts: sizes come from its first configuration.
    pub fn new(
        config: &Config,
        metrics: Arc<Metrics>,
        origin: Arc<dyn Origin>,
        clock: Clock,
        purges: Arc<PurgeLog>,
        second: Option<Arc<Second>>,
    ) -> Arc<Self> {
        let guard = GuardState::new(
            config.auth.verdicts,
            Arc::clone(&purges),
            second.clone(),
            clock.clone(),
            Arc::clone(&metrics),
        );
        let redis = config.cache.redis.as_ref();
        let warm_up = redis.filter(|redis| redis.warm_up > 0);
        Arc::new(Self {
            memory: Memory::new(config.cache.memory, config.cache.max_object, purges),
            used: warm_up.is_some().then(Used::default),
            seen: Seen::default(),
            flights: Flights::new(config.cache.max_flights),
            guard: Arc::new(guard),
            limits: LimitState::new(second.clone(), clock.clone(), Arc::clone(&metrics)),
            shared_routes: ByRoute::default(),
            bypass: Bypass::default(),
            access_logs: AccessLogs::default(),
            fetch_times: ByRoute::default(),
            is_sweeping: AtomicBool::new(false),
            plans: AtomicU32::new(0),
            second,
            metrics,
            clock,
            origin,
        })
    }

    /// Stores a response, unless a purge came after its fetch had begun; `false` then. What is
    /// whole goes to the second tier too, and the lease of its fetch ends with that.
    #[must_use]
    pub fn store(&self, key: &[u8], entry: Arc<Entry>, lease: Option<Lease>) -> bool {
        let is_stored = self.memory.insert(key, Arc::clone(&entry));
        if !is_stored {
            self.metrics.not_stored(Reason::Purged);
        }
        let is_whole = entry.head.status != StatusCode::PARTIAL_CONTENT;
        match &self.second {
            Some(second) if is_stored && is_whole => {
                let stamp = self.memory.purges().stamp_of(entry.head.stamp);
                second.put(key, entry, stamp, lease, self.clock.now());
            }
            _ => {
                if let Some(lease) = lease {
                    lease.end(LeaseOutcome::Dropped);
                }
            }
        }
        is_stored
    }

    /// The number of a plan that is made: none has the one of others.
    pub fn next_generation(&self) -> u32 {
        self.plans.fetch_add(1, Ordering::AcqRel) % OTHERS
    }

    /// Whether responses may be stored by other rules than those of the plan in force: by a plan
    /// before it, or by another instance of the fleet.
    pub fn may_have_other_rules(&self) -> bool {
        self.second.is_some() || self.plans.load(Ordering::Acquire) > 1
    }

    /// The second tier lets go of what the origin says may not be used any more.
    pub fn forget_shared(&self, primary: &[u8]) {
        if let Some(second) = &self.second {
            second.forget(primary);
        }
    }

    /// Writes a purge down; the log's position. Nobody gets an older response from now on.
    pub fn purge(self: &Arc<Self>, purge: Purge, mode: Mode, cause: Cause) -> u64 {
        self.metrics.purged(purge.target.as_str(), mode);
        self.purge_again(purge, mode, cause)
    }

    /// As [`State::purge`], of what is counted already.
    pub fn purge_again(self: &Arc<Self>, purge: Purge, mode: Mode, cause: Cause) -> u64 {
        let now = self.clock.now();
        let position = self.memory.purges().append(purge, mode, now, cause);
        if position.is_multiple_of(SWEEP_EVERY)
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
            && !self.is_sweeping.swap(true, Ordering::AcqRel)
        {
            let state = Arc::clone(self);
            runtime.spawn(async move {
                state.sweep(&[]).await;
                state.is_sweeping.store(false, Ordering::Release);
            });
        }
        position
    }

    /// The log's position now.
    pub fn purge_position(&self) -> u64 {
        self.memory.purges().position()
    }

    /// Lets go of stored responses that purges have made unusable; how many there were that
    /// `purges` name.
    pub async fn sweep(&self, purges: &[Purge]) -> u64 {
        let mut named = 0;
        for (at, is_named) in self.memory.sweep(purges).enumerate() {
            named += u64::from(is_named);
            if at % SLICE == SLICE - 1 {
                tokio::task::yield_now().await;
            }
        }
        named
    }

    /// What the gauges of the admin port show now.
    pub fn readings(&self) -> Readings {
        let stored_bytes = self.memory.stored_bytes();
        Readings {
            stored_bytes,
            stored_entries: self.memory.stored_entries(),
            in_flight_bytes: self.memory.held_bytes().saturating_sub(stored_bytes),
            flights: self.flights.count() as u64,
            evictions: self.memory.evictions(),
            young_evictions: self.memory.young_evictions(),
            variants_dropped: self.memory.variants_dropped(),
            upstreams: self.origin.readings(),
            database_connections: self.origin.database_connections(),
            is_bypassed: self.bypass.is_on(self.memory.purges(), &self.clock, None),
            certificate_expires: 0,
            memory_limit: 0,
            memory_budget: self.memory.budget(),
            verdicts: self.guard.remembered(),
            second: self.second_readings(),
        }
    }

    fn second_readings(&self) -> Option<SecondReadings> {
        let second = self.second.as_ref()?;
        let purges = self.memory.purges();
        let silence = purges.heard().map(|heard| self.clock.now().since(heard));
        Some(SecondReadings {
            breaker_is_open: second.breaker_is_open(),
            is_heard: second.is_heard(),
            position: purges.cursor().stamp.position,
            silence_ms: silence.map_or(0, |silence| silence.as_millis() as u64),
            pending: purges.pending() as u64,
            queued: second.queued() as u64,
            waiting: second.waiting() as u64,
        })
    }
}
