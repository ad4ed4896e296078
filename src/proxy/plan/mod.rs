//! The plan: everything that is made from the configuration, immutable, exchanged whole. A request
//! takes the plan in force when it is received and keeps it to its end.
//!
//! What must outlive a plan (stored responses, verdicts, counters) is in the [`State`], which the
//! plan knows, so that one pointer is all that a request takes.

mod route;
mod rule_digest;

use std::sync::Arc;

use bytes::Bytes;
use http::header::DATE;
use http::{HeaderName, Method, Response};
use smallvec::SmallVec;

use crate::access_log::AccessLog;
use crate::config::Config;
use crate::error::{self, Failure};
use crate::guard::credential::Credentials;
use crate::guard::{Guard, Limits, Source};
use crate::http::cache_control::Scope;
use crate::http::dates;
use crate::metrics::{NO_ROUTE, RouteSeries};
use crate::policy::storable::ResponseView;
use crate::policy::{self, Invalidation, Options, groups, readings};
use crate::store::Entry;

use super::state::State;
use super::wire::Peer;
use super::wire::{Client, Forwarding, host};

pub use route::{PlannedRoute, Sharing};

/// Everything made from one configuration, and the state that it works on.
pub struct Plan {
    /// Which of this process's plans it is: what is stored says by which it was judged.
    pub generation: u32,
    pub config: Arc<Config>,
    pub state: Arc<State>,
    /// Who says whether keys are good.
    pub source: Source,
    /// By their place in the configuration.
    routes: Vec<Arc<PlannedRoute>>,
    pub forwarding: Forwarding,
    /// `None` where no route verifies keys.
    pub guard: Option<Arc<Guard>>,
    pub limits: Arc<Limits>,
    pub credentials: Credentials,
    /// `None`: none is written.
    pub access_log: Option<Arc<AccessLog>>,
    no_route: Arc<RouteSeries>,
    /// Some routes keep callers apart more than others, or may be found to have to.
    is_mixed: bool,
}

impl Plan {
    /// Makes the plan of a configuration.
    pub fn new(config: Arc<Config>, source: Source, state: Arc<State>) -> Self {
        let (cache, secret) = (&config.cache, config.auth.secret.as_deref());
        let source_name = config.auth.source.as_str();
        let credentials = |fields: &[HeaderName], cookies: &[Box<str>]| {
            Credentials::new(fields, cookies, secret, source_name)
        };
        let forwarding = Forwarding::new(&config);
        let routes: Vec<Arc<PlannedRoute>> = config
            .routes
            .list()
            .iter()
            .map(|route| {
                let options = &route.options;
                let (fields, cookies) = (&options.credential_fields, &options.credential_cookies);
                let credentials = Arc::new(credentials(fields, cookies));
                let volatile = &config.auth.volatile;
                PlannedRoute::of(route, volatile, &forwarding, &credentials, &state)
            })
            .collect();
        for (group, how) in routes.iter().flat_map(|route| &route.rule.invalidates) {
            if *how == Invalidation::Adaptive {
                state.memory.purges().written.watch(group);
            }
        }
        let is_guarded = routes.iter().any(|route| route.sharing.is_some());
        let guard = is_guarded.then(|| {
            let known = Arc::clone(&state.guard);
            Arc::new(Guard::new(config.auth.clone(), source.clone(), known))
        });
        let limits = Limits::new(&config.rate_limits, Arc::clone(&state.limits));
        let strictness = routes.first().map(|route| route.strictness());
        let differs = |route: &Arc<PlannedRoute>| {
            route.sharing.is_some() || Some(route.strictness()) != strictness
        };
        // Whoever puts a plan in force has opened it, or said what is wrong with it.
        let access_log = state.access_logs.of(&config.access_log, &state.metrics);
        Self {
            access_log: access_log.unwrap_or_default(),
            generation: state.next_generation(),
            is_mixed: routes.len() > 1 && routes.iter().any(differs),
            no_route: state.metrics.route_series(NO_ROUTE),
            credentials: credentials(&cache.credential_fields, &cache.credential_cookies),
            limits: Arc::new(limits),
            forwarding,
            source,
            routes,
            guard,
            config,
            state,
        }
    }

    /// The route that takes a request, as it takes effect: one whose answers differ by key is not
    /// shared any more. Where an origin may take the path for another one, whose route is stricter,
    /// that one rules.
    pub fn route(&self, method: &Method, host: &str, path: &str) -> Option<&Arc<PlannedRoute>> {
        let routes = &self.config.routes;
        let host = if routes.match_hosts() {
            // The root that every name may end in tells no host from another (RFC 1034 §3.1).
            host::without_port(host).trim_end_matches('.')
        } else {
            ""
        };
        let (place, _) = routes.find(method, host, path)?;
        let route = self.in_effect(place)?;
        if !self.is_mixed {
            return Some(route);
        }
        let other = self.strictest_reading(method, host, path);
        Some(
            other
                .filter(|other| other.strictness() > route.strictness())
                .unwrap_or(route),
        )
    }

    /// The strictest of the routes that an origin may take a path for.
    fn strictest_reading(
        &self,
        method: &Method,
        host: &str,
        path: &str,
    ) -> Option<&Arc<PlannedRoute>> {
        let routes = &self.config.routes;
        let exact = |path: &str| routes.find(method, host, path).map(|(place, _)| place);
        let folded = |path: &str| {
            let has_upper = path.bytes().any(|byte| byte.is_ascii_uppercase());
            match (has_upper, routes.has_capitals()) {
                (true, _) => routes.find_folded(method, host, &path.to_ascii_lowercase()),
                (false, true) => routes.find_folded(method, host, path),
                (false, false) => None,
            }
        };
        let bare = readings::without_extension(path).and_then(exact);
        let mut places: SmallVec<[usize; 4]> = bare.into_iter().chain(folded(path)).collect();
        if readings::is_ambiguous(path) {
            let Some(found) = readings::readings(path) else {
                let takes = |route: &&Arc<PlannedRoute>| route.rule.methods.contains(method);
                let all = self.routes.iter().filter(takes);
                return all.max_by_key(|route| route.strictness());
            };
            for reading in &found {
                places.extend(exact(reading).into_iter().chain(folded(reading)));
            }
        }
        let all = places.into_iter().filter_map(|place| self.in_effect(place));
        all.max_by_key(|route| route.strictness())
    }

    /// Whether nothing is looked up or stored, by the configuration or by the operator's order.
    pub fn is_bypassed(&self, route: &PlannedRoute) -> bool {
        let (state, path) = (&self.state, Some(&*route.rule.path));
        self.config.bypass
            || route.options().bypass
            || state
                .bypass
                .is_on(state.memory.purges(), &state.clock, path)
    }

    /// A stored response as this plan has it, judged again where another plan, or another instance,
    /// has judged it; `None` where it is in a group now that was purged.
    pub fn in_force(&self, key: &[u8], entry: Arc<Entry>, options: &Options) -> Option<Arc<Entry>> {
        if entry.head.generation == self.generation {
            return Some(entry);
        }
        let headers = &entry.head.fields.unpack(0);
        let status = entry.head.status;
        let record = policy::again(
            ResponseView { status, headers },
            options,
            &entry.head.record,
        );
        let groups = groups::of(headers, options.groups.as_ref());
        let withholds = matches!(options.control(headers).0.no_cache, Scope::Fields(_));
        let again = entry.judged_again(record, groups, withholds, self.generation);
        let again = Arc::new(again);
        let memory = &self.state.memory;
        memory.exchange(key, &entry, &again);
        memory.is_current(key, &again).then_some(again)
    }

    fn in_effect(&self, place: usize) -> Option<&Arc<PlannedRoute>> {
        let route = self.routes.get(place)?;
        Some(route.in_effect(self.state.memory.purges()))
    }

    /// A route as it is configured, whatever takes effect of it.
    pub fn configured(&self, route: &PlannedRoute) -> Option<&Arc<PlannedRoute>> {
        let same = |known: &&Arc<PlannedRoute>| known.rule.line == route.rule.line;
        self.routes.iter().find(same)
    }

    /// Who is at `address`: whether it is one of the configured trusted proxies.
    pub fn client(&self, peer: &Peer) -> Client {
        let address = peer.address.to_canonical();
        let trusted = &self.config.listen.trusted_proxies;
        let is_of_a_proxy = trusted.iter().any(|network| network.contains(&address));
        Client {
            address,
            is_trusted: is_of_a_proxy && !peer.is_hidden,
            is_secure: peer.tls.is_some(),
        }
    }

    /// The series of a request by its route.
    pub fn series<'a>(&'a self, route: Option<&'a PlannedRoute>) -> &'a RouteSeries {
        route.map_or(&*self.no_route, |route| &*route.series)
    }

    /// The response to a failed request, with the operator's fields.
    pub fn failure_response(&self, failure: &Failure) -> Response<Bytes> {
        let now = self.state.clock.now();
        let mut response = error::response(failure, now, &self.config.error_headers);
        // Also where hyper does not write it (RFC 9110 §6.6.1).
        response.headers_mut().insert(DATE, dates::format(now));
        response
    }
}
