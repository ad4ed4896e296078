//! Routed: the route of a request is known; it is counted, let in by its key, and looked up or not.
//! The list of all steps stands at the top of [`client`](super).

use std::ops::Deref;
use std::sync::Arc;
use std::time::Instant;

use http::uri::PathAndQuery;
use http::{Method, Uri, request};

use crate::error::{Failure, FailureKind};
use crate::guard::{Caller, Measured};
use crate::metrics::CacheResult;
use crate::policy::{self, Reason, Wishes};
use crate::proxy::admission::keys::{Admission, Admitted, Answered, admit, ask_about};
use crate::proxy::admission::limits::who;
use crate::proxy::admission::{Purpose, Refusal};
use crate::proxy::client_request::ClientRequest;
use crate::proxy::keyed_request::{KeyedRequest, LetIn};
use crate::proxy::plan::{Plan, PlannedRoute};
use crate::proxy::request_key::RequestKey;
use crate::proxy::wire::{Client, Host, InterimQueue};

use crate::trace::{self, Span};
use crate::upstream::OriginBody;

use super::bypass::Bypassed;
use super::course::Miss;
use super::handled::Handled;
use super::look_up::{Keyed, LookedUp};
use super::miss::answer_miss;
use super::note::Note;
use super::received::{Received, Spelling};
use super::refusal::{count, failure_response, refuse};

/// The route of a request: borrowed from the plan while nothing is waited for, so that a hit counts
/// no references, and its own once something is.
pub enum RouteOf<'p> {
    Plan(&'p Arc<PlannedRoute>),
    Own(Arc<PlannedRoute>),
}

impl Deref for RouteOf<'_> {
    type Target = Arc<PlannedRoute>;

    fn deref(&self) -> &Arc<PlannedRoute> {
        match self {
            Self::Plan(route) => route,
            Self::Own(route) => route,
        }
    }
}

impl RouteOf<'_> {
    pub fn into_own(self) -> Arc<PlannedRoute> {
        match self {
            Self::Plan(route) => Arc::clone(route),
            Self::Own(route) => route,
        }
    }
}

/// A request whose route is known, or that has none.
pub struct Routed<'p> {
    request: ClientRequest,
    upload: Option<OriginBody>,
    route: Option<RouteOf<'p>>,
}

impl<'p> Routed<'p> {
    /// Finds the route of a request.
    pub fn of(
        plan: &'p Plan,
        mut parts: request::Parts,
        received: Received,
        upload: Option<OriginBody>,
        client: Client,
        started: Instant,
    ) -> Self {
        let Received { host, spelling } = received;
        let named = host.as_ref().map_or("", Host::as_str);
        let path = match &spelling {
            Spelling::Other(target) => target.path(),
            Spelling::Canonical | Spelling::None => parts.uri.path(),
        };
        let route = plan.route(&parts.method, named, path).map(RouteOf::Plan);
        let wants_raw = route.as_ref().is_some_and(|route| route.rule.raw_target);
        let is_raw = wants_raw || matches!(spelling, Spelling::None);
        if let (Spelling::Other(target), false) = (spelling, is_raw) {
            parts.uri = respelled(&parts.uri, target);
        }
        Self {
            request: ClientRequest {
                has_body: upload.is_some() && parts.method != Method::TRACE,
                parts,
                host,
                client,
                started,
                is_raw,
                observed: plan.access_log.as_ref().map(|_| Arc::default()),
            },
            upload,
            route,
        }
    }

    pub fn route(&self) -> Option<&PlannedRoute> {
        self.route.as_deref().map(|route| &**route)
    }

    pub fn planned(&self) -> Option<&Arc<PlannedRoute>> {
        self.route.as_deref()
    }

    pub fn request(&self) -> &ClientRequest {
        &self.request
    }

    fn into_own(self) -> Routed<'static> {
        Routed {
            request: self.request,
            upload: self.upload,
            route: self.route.map(|route| RouteOf::Own(route.into_own())),
        }
    }

    /// The route may have been demoted while something was waited for.
    fn in_effect_now(self, plan: &Plan) -> Self {
        let purges = plan.state.memory.purges();
        let route = self.route.map(RouteOf::into_own);
        Self {
            route: route.map(|route| RouteOf::Own(Arc::clone(route.in_effect(purges)))),
            ..self
        }
    }

    /// Counts a request by the limits that concern it, then goes on.
    pub fn count(self, plan: &Arc<Plan>, interim: Option<&Arc<InterimQueue>>) -> Handled {
        let counted = match who(plan, &self.request, self.route()) {
            Ok(who) => plan.limits.check(who),
            Err(refusal) => return self.refuse(plan, &refusal),
        };
        if let Some(measured) = counted {
            return self.measured(plan, interim, measured);
        }
        let (plan, interim, routed) = (Arc::clone(plan), interim.cloned(), self.into_own());
        Handled::later(async move {
            let measured = match who(&plan, &routed.request, routed.route()) {
                Ok(who) => {
                    let began = Instant::now();
                    let measured = plan.limits.ask(who).await;
                    routed.request.took(Span::Guard, began);
                    measured
                }
                Err(refusal) => return routed.refuse(&plan, &refusal).response().await,
            };
            let routed = routed.in_effect_now(&plan);
            let handled = routed.measured(&plan, interim.as_ref(), measured);
            handled.response().await
        })
    }

    /// Answers a request that was counted, or refuses it; says what is left either way.
    fn measured(
        self,
        plan: &Arc<Plan>,
        interim: Option<&Arc<InterimQueue>>,
        mut measured: Measured,
    ) -> Handled {
        let handled = match measured.refusal.take() {
            Some(failure) => {
                let reason = Reason::RateLimited;
                self.refuse(plan, &Refusal { failure, reason })
            }
            None => self.admit(plan, interim, None),
        };
        match handled {
            Handled::Ready(mut response) => {
                if let Some(response) = &mut response {
                    measured.write(response.headers_mut());
                }
                Handled::Ready(response)
            }
            Handled::Later(answering) => Handled::later(async move {
                let mut response = answering.await;
                measured.write(response.headers_mut());
                response
            }),
        }
    }

    fn refuse(&self, plan: &Plan, refusal: &Refusal) -> Handled {
        let request = &self.request;
        let (method, started) = (&request.parts.method, request.started);
        let response = refuse(plan, self.route(), method, started, refusal);
        Handled::now(response)
    }

    /// Lets the request in by its key, and goes on. `answered` is what was found out about its key,
    /// where somebody had to be asked.
    pub fn admit(
        mut self,
        plan: &Arc<Plan>,
        interim: Option<&Arc<InterimQueue>>,
        answered: Option<Answered>,
    ) -> Handled {
        let mut key = RequestKey::default();
        let (request, route, purpose) = (&self.request, self.route(), Purpose::Answer);
        let admission = admit(plan, request, route, &mut key, answered, purpose);
        let admitted = match admission {
            Admission::Admitted(admitted) => admitted,
            Admission::Refused(refusal) => return self.refuse(plan, &refusal),
            Admission::AskAbout(caller) => return self.ask_about(caller, plan, interim),
        };
        match self.key(plan, admitted, &mut key) {
            Ok(mut keyed) => match keyed.look_up_timed(plan) {
                LookedUp::Hit(hit) => hit.answer(plan, &keyed),
                LookedUp::StaleHit(hit) => {
                    hit.refresh(plan, &keyed);
                    hit.answer(plan, &keyed)
                }
                LookedUp::NothingStored => nothing_stored(plan, keyed.request, Some(keyed.route)),
                LookedUp::Miss(found) => {
                    let (route, let_in) = (Arc::clone(keyed.route), keyed.let_in);
                    let request = self.into_keyed_request(plan, let_in, route, key);
                    answer_miss(plan, Miss::of(plan, request, found), interim)
                }
            },
            Err(reason) => self.bypass(reason, admitted.let_in, plan, interim),
        }
    }

    /// Asks about a key, and admits the request with the answer.
    fn ask_about(
        self,
        caller: Caller,
        plan: &Arc<Plan>,
        interim: Option<&Arc<InterimQueue>>,
    ) -> Handled {
        let (plan, interim, mut routed) = (Arc::clone(plan), interim.cloned(), self.into_own());
        Handled::later(async move {
            // Whoever is asked about it hears of the same trace as the origin will.
            let observed = routed.request.observed.clone();
            let fields = &mut routed.request.parts.headers;
            trace::keep_or_start(fields, plan.config.starts_traces, observed.as_deref());
            let began = Instant::now();
            let answered = ask_about(&plan, &routed.request, routed.route(), caller).await;
            routed.request.took(Span::Guard, began);
            let routed = routed.in_effect_now(&plan);
            let handled = routed.admit(&plan, interim.as_ref(), answered);
            handled.response().await
        })
    }

    /// Writes the key of an admitted request; an error says why it is not looked up.
    pub fn key<'r>(
        &'r mut self,
        plan: &Plan,
        admitted: Admitted,
        key: &'r mut RequestKey,
    ) -> Result<Keyed<'r>, Reason> {
        let Some(route) = &self.route else {
            return Err(Reason::NoRoute);
        };
        if plan.is_bypassed(route) {
            return Err(Reason::SwitchedOff);
        }
        if self.request.is_raw {
            return Err(Reason::RawTarget);
        }
        if let Some(reason) = policy::bypass(self.request.view(), route.options()) {
            return Err(reason);
        }
        let query = self.request.parts.uri.query();
        if !route.rule.drops_unknown_query
            && query.is_some_and(|query| route.rule.query.leaves_out(query))
        {
            return Err(Reason::UnknownQuery);
        }
        // Selecting fields are rewritten where the route says so, before anything is selected by
        // them. What goes by is left as it is: an origin decides by `Origin` whether a write or a
        // WebSocket may be.
        let normalise = &route.rule.normalise;
        if !normalise.is_idle() {
            normalise.apply(&mut self.request.parts.headers);
        }
        if admitted.is_anonymous {
            return Err(Reason::Credential);
        }
        key.write(plan, &self.request, route);
        Ok(Keyed {
            request: &self.request,
            route,
            key,
            let_in: admitted.let_in,
        })
    }

    /// The same, keyed, for whatever waits.
    pub fn into_keyed_request(
        self,
        plan: &Plan,
        let_in: Option<LetIn>,
        route: Arc<PlannedRoute>,
        key: RequestKey,
    ) -> KeyedRequest {
        KeyedRequest {
            arrived: plan.state.purge_position(),
            request: self.request,
            route,
            key,
            let_in,
            interim: None,
        }
    }

    /// How a request is answered that is not looked up, and why: known before anything is sent.
    pub fn bypass_words(&self, reason: Reason) -> (CacheResult, Reason) {
        if self.wants_only_stored() {
            NOTHING_STORED
        } else {
            (CacheResult::Bypass, reason)
        }
    }

    /// The client wants nothing but what is stored.
    fn wants_only_stored(&self) -> bool {
        let obey = self.route().map(|route| route.options().obey);
        let headers = &self.request.parts.headers;
        let only_if_cached = obey.is_some_and(|obey| Wishes::of(headers, obey).only_if_cached);
        self.request.is_read() && only_if_cached
    }

    /// Answers a request that is not looked up, and whose answer is not stored.
    fn bypass(
        self,
        reason: Reason,
        let_in: Option<LetIn>,
        plan: &Arc<Plan>,
        interim: Option<&Arc<InterimQueue>>,
    ) -> Handled {
        if self.wants_only_stored() {
            return nothing_stored(plan, &self.request, self.route());
        }
        Bypassed {
            request: self.request,
            route: self.route.map(RouteOf::into_own),
            let_in,
            note: Note::new(CacheResult::Bypass, reason),
        }
        .answer(plan, self.upload, interim)
    }
}

/// The same with another target.
fn respelled(uri: &Uri, target: PathAndQuery) -> Uri {
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = Some(target);
    // Only the path and the query are others, and they are there.
    Uri::from_parts(parts).unwrap_or_else(|_| uri.clone())
}

/// How a request is answered that takes only what is stored, where nothing is.
pub const NOTHING_STORED: (CacheResult, Reason) = (CacheResult::Miss, Reason::ClientDirective);

/// The answer to `only-if-cached` (RFC 9111 §5.2.1.7).
pub fn nothing_stored(
    plan: &Plan,
    request: &ClientRequest,
    route: Option<&PlannedRoute>,
) -> Handled {
    let (result, reason) = NOTHING_STORED;
    let note = Note::new(result, reason);
    let message = "nothing stored answers this request, and the client wants nothing else";
    let failure = Failure::new(FailureKind::OnlyIfCached, message);
    let mut response = failure_response(plan, &failure, note);
    let asked = (&request.parts.method, request.started);
    count(
        plan,
        route,
        asked,
        request.observed.as_ref(),
        &note,
        &mut response,
    );
    Handled::now(response)
}
