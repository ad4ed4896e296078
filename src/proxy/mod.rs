//! The way of a request: routed, keyed, looked up, and answered from the store or by the origin.
//!
//! Two machines that never mix. The client's side is in [`request`], `guarded`, `keyed`, `miss` and
//! `pass`: `Received → Routed → Admitted → Keyed → Hit | StaleHit | Miss | Bypass → Delivered`, and a
//! hit goes through it without waiting once. The origin's side is in `fetch`, `fill` and `ended`:
//! `Requested → Headed → Streaming → Complete | Failed`, a task of its own, so that a client that
//! leaves kills neither the fetch nor the waiters. `forward` turns a client's request into the
//! origin's, [`deliver`] a stored or fetched head into the client's response.
//!
//! `guarded` lets requests in by limits and keys, `sharing` and `compare` watch the routes that are
//! shared among keys, and `explain` says what would come of a request.
//!
//! Before the origin is asked, `fleet` asks what the other instances have or fetch, and `warm` takes
//! what they use most when an instance starts.
//!
//! Beside that way: `ranges` cuts parts out of a body, `keep` stores partial responses and `part`
//! answers from them and completes them; `learn` is what a 304 or a HEAD tells of stored responses,
//! `invalidate` what a write does to them before its answer goes out; `interim` passes on what the
//! origin says before its final response; `clean` and `hops` are what every message goes through.

#[path = "pending_request.rs"]
mod asked;
#[path = "wire/body.rs"]
mod body;
#[path = "wire/response_head.rs"]
mod clean;
#[path = "shared_routes/compare.rs"]
mod compare;
#[path = "client/deliver.rs"]
pub mod deliver;
#[path = "fetch/outcome.rs"]
mod ended;
mod exchange;
#[path = "client/explain.rs"]
mod explain;
#[path = "fetch/headed.rs"]
mod fetch;
#[path = "fetch/streaming.rs"]
mod fill;
#[path = "fleet/consult.rs"]
mod fleet;
#[path = "wire/forward.rs"]
mod forward;
#[path = "admission/keys.rs"]
mod guarded;
#[path = "wire/hops.rs"]
mod hops;
#[path = "wire/whole_body.rs"]
mod inspect;
#[path = "wire/interim.rs"]
mod interim;
#[path = "purging/write.rs"]
mod invalidate;
#[path = "parts/store.rs"]
mod keep;
#[path = "client/key.rs"]
mod keyed;
#[path = "fetch/update_stored.rs"]
mod learn;
#[path = "client/miss.rs"]
mod miss;
#[path = "parts/extend.rs"]
mod part;
#[path = "client/bypass.rs"]
mod pass;
#[path = "parts/ranges.rs"]
mod ranges;
#[path = "wire/framing.rs"]
mod received;
#[path = "client/way.rs"]
pub mod request;
#[path = "shared_routes/shared_route.rs"]
mod sharing;
#[path = "wire/tunnel.rs"]
mod tunnel;
#[path = "fleet/warm_up.rs"]
mod warm;

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use http::StatusCode;

use crate::clock::Clock;
use crate::config::Config;
use crate::flight::Flights;
use crate::guard::credential::Credentials;
use crate::guard::{Guard, Limits, Source};
use crate::metrics::second::SecondReadings;
use crate::metrics::{Metrics, Readings};
use crate::policy::Reason;
use crate::store::second::used::Used;
use crate::store::second::{Lease, Outcome, Second};
use crate::store::{Entry, Memory, PurgeLog};
use crate::upstream::Origin;

pub use body::Body;
pub use fleet::Known;
pub use interim::Interim;
pub use request::Handled;
use sharing::Sharing;

/// Everything that answering a request needs. One per process, shared by all workers.
pub struct Proxy {
    pub config: Arc<Config>,
    pub metrics: Arc<Metrics>,
    clock: Clock,
    memory: Memory,
    /// What the fleet shares; `None` for an instance alone.
    second: Option<Arc<Second>>,
    /// What is used most, where the fleet is told.
    used: Option<Used>,
    flights: Arc<Flights>,
    origin: Arc<dyn Origin>,
    forwarding: forward::Forwarding,
    /// `None` where no route verifies keys.
    pub guard: Option<Arc<Guard>>,
    pub limits: Arc<Limits>,
    credentials: Credentials,
    sharing: Sharing,
    /// Stored responses are being judged by the purge log, one by one.
    is_sweeping: AtomicBool,
}

/// What is shared with the rest of the fleet: by default nothing.
#[derive(Default)]
pub struct Shared {
    pub purges: Arc<PurgeLog>,
    pub second: Option<Arc<Second>>,
    /// Who says whether keys are good.
    pub source: Source,
}

/// Who is at the other end of a connection.
#[derive(Clone, Copy, Debug)]
pub struct Client {
    pub address: IpAddr,
    /// Its `X-Forwarded-*` fields are believed.
    pub is_trusted: bool,
}

impl Proxy {
    pub fn new(
        config: Arc<Config>,
        metrics: Arc<Metrics>,
        origin: Arc<dyn Origin>,
        clock: Clock,
        shared: Shared,
    ) -> Arc<Self> {
        let credentials = || {
            let (cache, secret) = (&config.cache, config.auth.secret.as_deref());
            Credentials::new(&cache.credential_fields, &cache.credential_cookies, secret)
        };
        let sharing = Sharing::new(&config.routes, &config.auth.volatile);
        let guard = sharing.is_wanted().then(|| {
            Arc::new(Guard::new(
                config.auth.clone(),
                credentials(),
                shared.source,
                Arc::clone(&shared.purges),
                shared.second.clone(),
                clock.clone(),
                Arc::clone(&metrics),
            ))
        });
        let routes_of = |path: &str| {
            let routes = config.routes.list().iter().enumerate();
            let same = routes.filter(|(_, route)| route.path == path);
            same.map(|(index, _)| index).collect()
        };
        let limits = Arc::new(Limits::new(
            &config.rate_limits,
            routes_of,
            shared.second.clone(),
            clock.clone(),
            Arc::clone(&metrics),
        ));
        let credentials = credentials();
        let redis = config.cache.redis.as_ref();
        let warm_up = redis.filter(|redis| redis.warm_up > 0);
        Arc::new(Self {
            memory: Memory::new(config.cache.memory, config.cache.max_object, shared.purges),
            second: shared.second,
            used: warm_up.is_some().then(Used::default),
            flights: Flights::new(config.cache.max_flights),
            forwarding: forward::Forwarding::new(&config),
            is_sweeping: AtomicBool::new(false),
            guard,
            limits,
            credentials,
            sharing,
            config,
            metrics,
            clock,
            origin,
        })
    }

    /// Whether `address` is one of the configured trusted proxies.
    pub fn client(&self, address: IpAddr) -> Client {
        let address = address.to_canonical();
        let trusted = &self.config.listen.trusted_proxies;
        Client {
            address,
            is_trusted: trusted.iter().any(|network| network.contains(&address)),
        }
    }

    /// Stores a response, unless a purge came after its fetch had begun; `false` then. What is
    /// whole goes to the second tier too, and the lease of its fetch ends with that.
    fn keep(&self, key: &[u8], entry: Arc<Entry>, lease: Option<Lease>) -> bool {
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
                    lease.end(Outcome::Dropped);
                }
            }
        }
        is_stored
    }

    /// What the gauges of the admin port show now.
    pub fn readings(&self) -> Readings {
        let (upstream_connections, breaker_is_open) = self.origin.readings();
        let stored_bytes = self.memory.stored_bytes();
        Readings {
            stored_bytes,
            stored_entries: self.memory.stored_entries(),
            in_flight_bytes: self.memory.held_bytes().saturating_sub(stored_bytes),
            flights: self.flights.count() as u64,
            evictions: self.memory.evictions(),
            upstream_connections,
            breaker_is_open,
            database_connections: self.origin.database_connections(),
            verdicts: self
                .guard
                .as_ref()
                .map_or((0, 0), |guard| guard.remembered()),
            second: self.second_readings(),
        }
    }

    /// The second tier, too, lets go of what the origin says may not be used any more.
    fn forget_shared(&self, primary: &[u8]) {
        if let Some(second) = &self.second {
            second.forget(primary);
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
