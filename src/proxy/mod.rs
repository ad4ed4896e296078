//! The way of a request: routed, keyed, looked up, and answered from the store or by the origin.
//!
//! Two machines that never mix: the client's side ([`client`]) and the origin's ([`fetch`]); the
//! list of each one's steps stands at the top of its folder. A request takes the [`Plan`] in force
//! when it is received and keeps it to its end; what outlives plans is the [`State`].
//!
//! # The halls, from the ground
//!
//! No hall imports from one above it; `tests/house.rs` holds this.
//!
//! | hall | what it is for |
//! |---|---|
//! | [`wire`] | what every message goes through: framing, fields of one hop, forwarding, bodies, tunnels, interim responses |
//! | [`state`] | memory, flights, purge log, second tier, verdicts, windows of limits: what outlives plans |
//! | [`plan`] | routes and rules as the configuration has them, exchanged whole |
//! | `client_request`, `keyed_request`, `request_key`, `exchange` | a request on its way, its key, and one exchange with the origin |
//! | [`parts`] | ranges and partial responses |
//! | [`fleet`] | what other instances have, fetch, use and know |
//! | [`fetch`] | the origin's side of a request |
//! | [`purging`] | what writes and the operator make unusable |
//! | [`admission`] | limits and keys of a request |
//! | [`client`] | the client's side of a request |

mod admission;
mod client;
mod client_request;
mod exchange;
mod fetch;
mod fleet;
mod keyed_request;
mod parts;
mod plan;
mod purging;
mod request_key;
mod state;
mod wire;

use std::cell::RefCell;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use arc_swap::cache::Cache;
use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use serde_json::Value;

use crate::access_log::AccessLog;
use crate::clock::{Clock, Timestamp};
use crate::config::Config;
use crate::error::FailureKind;
use crate::guard::{self, Source};
use crate::metrics::{Metrics, Readings};
use crate::policy::{Mode, Reason};
use crate::store::purge::causes::Cause;
use crate::store::second::Second;
use crate::store::{Purge, PurgeLog, Target};
use crate::upstream::Origin;

use fleet::{acknowledged, hand_over, warm_up};
use state::bypass;
use state::seen::Asked;

pub use client::Handled;
pub use fleet::Known;

pub use plan::Plan;
pub use state::State;
pub use state::bypass::Switch;
pub use wire::tunnel::{Handover, Offered};
pub use wire::{Body, InterimQueue, Peer, PeerTls};

/// Answers requests by the plan in force. One per process, shared by all workers.
pub struct Proxy {
    state: Arc<State>,
    plan: Arc<ArcSwap<Plan>>,
}

/// What is shared with the rest of the fleet: by default nothing.
#[derive(Default)]
pub struct Shared {
    pub purges: Arc<PurgeLog>,
    pub second: Option<Arc<Second>>,
    /// Who says whether keys are good.
    pub source: Source,
}

/// A plan that one thread holds: counted by this thread alone, so that two workers never write to
/// the same count.
struct HeldPlan(Arc<Plan>);

/// The plan in force as one thread saw it last.
struct SeenLast {
    cache: Cache<Arc<ArcSwap<Plan>>, Arc<Plan>>,
    held: Rc<HeldPlan>,
}

thread_local! {
    static SEEN_LAST: RefCell<Option<SeenLast>> = const { RefCell::new(None) };
}

impl Proxy {
    pub fn new(
        config: Arc<Config>,
        metrics: Arc<Metrics>,
        origin: Arc<dyn Origin>,
        clock: Clock,
        shared: Shared,
    ) -> Arc<Self> {
        let Shared {
            purges,
            second,
            source,
        } = shared;
        let state = State::new(&config, metrics, origin, clock, purges, second);
        let plan = Plan::new(config, source, Arc::clone(&state));
        Arc::new(Self {
            plan: Arc::new(ArcSwap::from_pointee(plan)),
            state,
        })
    }

    /// Puts another configuration in force: requests that come from now on go by it, those under
    /// way end by the one that they came under. `source` says whether keys are good.
    ///
    /// What was fixed at the start stays: addresses, workers, the sizes of memory and pools, the
    /// upstream and Redis.
    pub fn exchange(&self, config: Arc<Config>, source: Source) {
        let successor = Plan::new(config, source, Arc::clone(&self.state));
        self.plan.store(Arc::new(successor));
        self.state.metrics.retire_routes();
    }

    /// The time now, by the clock that all go by.
    pub fn now(&self) -> Timestamp {
        self.state.clock.now()
    }

    /// Opens the access log that a configuration wants, before that is put in force; an error says
    /// what is wrong with its place.
    pub fn open_access_log(&self, config: &Config) -> Result<(), String> {
        let opened = self
            .state
            .access_logs
            .of(&config.access_log, &self.state.metrics);
        opened.map(drop)
    }

    /// The access log, where one is written.
    pub fn access_log(&self) -> Option<Arc<AccessLog>> {
        if self.state.access_logs.is_on() {
            self.in_force().0.access_log.clone()
        } else {
            None
        }
    }

    /// The address of whoever asks, as trusted proxies tell it.
    pub fn client_address(&self, headers: &HeaderMap, peer: IpAddr) -> IpAddr {
        let held = self.in_force();
        guard::address::of(headers, peer, &held.0.config.listen.trusted_proxies)
    }

    /// Lets the origin take of another configuration what may change while it runs; an error says
    /// why it cannot.
    pub fn renew_origin(&self, config: &Config) -> Result<(), String> {
        self.state.origin.can_renew(config)?;
        self.state.origin.renew(config)
    }

    /// What the access log's file was called is another file by now: one of that name is begun.
    pub fn reopen_access_log(&self) {
        if let Some(log) = self.state.access_logs.current() {
            log.reopen();
        }
    }

    /// The plan in force.
    pub fn plan(&self) -> Arc<Plan> {
        self.plan.load_full()
    }

    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.state.metrics
    }

    /// The plan in force, for something short on this thread: to look whether it still is in force,
    /// and to hold it, costs no write to memory that other workers read.
    fn in_force(&self) -> Rc<HeldPlan> {
        SEEN_LAST.with_borrow_mut(|slot| {
            let is_ours = |seen: &&mut SeenLast| std::ptr::eq(seen.cache.arc_swap(), &*self.plan);
            if let Some(seen) = slot.as_mut().filter(is_ours) {
                let plan = seen.cache.load();
                if !Arc::ptr_eq(plan, &seen.held.0) {
                    seen.held = Rc::new(HeldPlan(Arc::clone(plan)));
                }
                return Rc::clone(&seen.held);
            }
            let held = Rc::new(HeldPlan(self.plan.load_full()));
            let cache = Cache::new(Arc::clone(&self.plan));
            *slot = Some(SeenLast {
                cache,
                held: Rc::clone(&held),
            });
            held
        })
    }

    /// Answers a request of a client. What its origin says before the final response
    /// goes to `interim`.
    pub fn handle<B>(
        &self,
        request: Request<B>,
        peer: &Peer,
        interim: Option<&Arc<InterimQueue>>,
    ) -> Handled
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: std::fmt::Display,
    {
        client::handle(&self.in_force().0, request, peer, interim)
    }

    /// The response to what is not even a request head.
    pub fn refuse_head(&self, kind: FailureKind, client: IpAddr) -> Response<Bytes> {
        client::refuse_head(&self.in_force().0, kind, client)
    }

    /// Notes that a connection was one too many, and told so in so many bytes.
    pub fn refused_connection(&self, client: IpAddr, bytes: usize) {
        self.state.metrics.connections_refused.inc();
        if let Some(log) = self.access_log() {
            let (status, reason) = (FailureKind::Overloaded.status(), Reason::Refused);
            log.refused(client, status, reason.as_str(), bytes as u64);
        }
    }

    /// Why a request would be answered as it would; nothing is asked, counted or changed.
    pub async fn explain<B>(&self, request: Request<B>, peer: &Peer) -> Value
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: std::fmt::Display,
    {
        let plan = Arc::clone(&self.in_force().0);
        client::explain(&plan, request, peer).await
    }

    /// The digest of a key, as revocations name it.
    pub fn digest_of(&self, key: &str) -> [u8; 32] {
        self.in_force().0.credentials.digest(key.as_bytes()).0
    }

    /// How a URL stands in keys, by the rules of its routes; empty where no route answers it.
    pub fn targets(&self, host: Option<&str>, target: &str) -> Vec<Target> {
        purging::targets::url_targets(&self.in_force().0, host, target)
    }

    /// Writes a purge down; the log's position. Nobody gets an older response from now on.
    pub fn purge(&self, purge: Purge, mode: Mode) -> u64 {
        self.state.purge(purge, mode, Cause::Order)
    }

    /// Has nothing looked up or stored from now on: all of it, or what takes the route with this
    /// path; here, or in the whole fleet, which hears of it up to the position that comes back.
    pub fn switch_off(&self, path: Option<&str>, until: Option<Timestamp>, in_fleet: bool) -> u64 {
        let switch = Switch::new(path, until, in_fleet);
        if in_fleet {
            // The latest word counts, also where it ends earlier.
            let purges = self.state.memory.purges();
            for (purge, mode) in bypass::words_to_take_back(purges, self.now(), Some(path)) {
                self.state.purge(purge, mode, Cause::Order);
            }
            self.state.purge(switch.purge(), Mode::Hard, Cause::Order)
        } else {
            self.state.bypass.add(switch);
            self.state.purge_position()
        }
    }

    /// Takes [`Proxy::switch_off`] back: of one route, or everything; with `in_fleet` what the
    /// fleet was told too.
    pub fn switch_on(&self, path: Option<&str>, in_fleet: bool) -> u64 {
        self.state.bypass.remove_own(path);
        if in_fleet {
            let purges = self.state.memory.purges();
            for (purge, mode) in bypass::words_to_take_back(purges, self.now(), path.map(Some)) {
                self.state.purge(purge, mode, Cause::Order);
            }
        }
        self.state.purge_position()
    }

    /// What is switched off now, but for what the configuration says.
    pub fn switched_off(&self) -> Vec<Switch> {
        let purges = self.state.memory.purges();
        self.state.bypass.list(purges, self.now())
    }

    /// The purge log's position now.
    pub fn purge_position(&self) -> u64 {
        self.state.purge_position()
    }

    /// Lets go of stored responses that purges have made unusable; how many there were that
    /// `purges` name.
    pub async fn sweep(&self, purges: &[Purge]) -> u64 {
        self.state.sweep(purges).await
    }

    /// What this instance alone knows, and nobody else has to.
    pub fn known_here(&self) -> Known {
        Known::here(self.purge_position(), self.state.clock.now())
    }

    /// Waits, not for long, until the fleet knows of the purges up to this local position.
    pub async fn known_to_all(&self, local: u64) -> Known {
        acknowledged::known_to_all(&self.state, local).await
    }

    /// What was asked for most, and how often about.
    pub fn seen_most(&self, count: usize) -> Vec<(Asked, u64)> {
        self.state.seen.most(count)
    }

    /// What the gauges of the admin port show now.
    pub fn readings(&self) -> Readings {
        self.state.readings()
    }

    /// What runs beside the requests, for ever, on the runtime that calls this.
    pub fn spawn_background(&self) {
        let state = &self.state;
        tokio::spawn(Arc::clone(&state.limits).hear_recalls());
        if state.second.is_some() {
            tokio::spawn(acknowledged::sweep_by_and_by(Arc::clone(state)));
        }
        let redis = self.plan().config.cache.redis.clone();
        if let Some(redis) = redis.filter(|redis| redis.warm_up > 0) {
            tokio::spawn(warm_up::keep_warm(Arc::clone(state), redis.warm_up));
        }
    }

    /// Reports what was used now, and not only when that is due.
    pub async fn report_used_now(&self) {
        warm_up::report_used_now(&self.state).await;
    }

    /// The end of the process: what the fleet does not know yet is told, if that does not take
    /// long.
    pub async fn finish(&self, limit: Duration) {
        acknowledged::finish(&self.state, limit).await;
        let plan = self.plan();
        let token = plan.config.admin.token.as_ref();
        hand_over::hand_over(&self.state, token.map(|token| token.text.as_str())).await;
        if let Some(log) = self.state.access_logs.current() {
            log.flush(limit);
        }
    }

    /// Tells the fleet where the admin port of this instance is.
    pub fn set_admin(&self, address: SocketAddr) {
        if let Some(second) = &self.state.second {
            second.set_admin(address);
        }
    }

    /// Takes over what another instance could not tell the fleet: how many purges those were. An
    /// error says what is wrong with it.
    pub fn take_over(&self, part: &[u8]) -> Result<usize, String> {
        hand_over::take_over(&self.state, part)
    }
}
