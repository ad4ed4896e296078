//! Routed, Keyed, Bypassed: the steps before anything stored is looked at. The list of all
//! steps stands at the top of [`client`](super).

use std::ops::Deref;
use std::sync::Arc;

use crate::error::{Failure, FailureKind};
use crate::guard::{Measured, Standing};
use crate::metrics::CacheResult;
use crate::policy::key::KeyBytes;
use crate::policy::{self, Reason, Wishes};
use crate::proxy::admission::keys::{Admission, Admitted, admit};
use crate::proxy::admission::limits::who;
use crate::proxy::admission::{Purpose, Refusal};
use crate::proxy::pending_request::{ClientRequest, KeyedRequest, LetIn};
use crate::proxy::plan::{Plan, PlannedRoute};
use crate::proxy::request_key::write_primary_key;
use crate::proxy::wire::InterimQueue;

use crate::upstream::OriginBody;

use super::Handled;
use super::bypass::Bypass;
use super::look_up::{LookedUp, Miss};
use super::note::Note;
use super::received::Received;
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
    pub fn of(plan: &'p Plan, received: Received) -> Self {
        let Received { request, upload } = received;
        let host = request.host().unwrap_or_default();
        let route = plan.route(&request.parts.method, host, request.path());
        Self {
            route: route.map(RouteOf::Plan),
            request,
            upload,
        }
    }

    pub fn route(&self) -> Option<&PlannedRoute> {
        self.route.as_deref().map(|route| &**route)
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

    /// Counts a request by the limits that concern it, then goes on.
    pub fn count(self, plan: &Arc<Plan>, interim: Option<&Arc<InterimQueue>>) -> Handled {
        if !plan.limits.concern(&self.request.parts.method) {
            return self.admit(plan, interim, None);
        }
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
                Ok(who) => plan.limits.ask(who).await,
                Err(refusal) => return routed.refuse(&plan, &refusal).response().await,
            };
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
    fn admit(
        self,
        plan: &Arc<Plan>,
        interim: Option<&Arc<InterimQueue>>,
        answered: Option<Standing>,
    ) -> Handled {
        match admit(plan, &self.request, self.route(), answered, Purpose::Answer) {
            Admission::Admitted(admitted) => match self.key(plan, admitted) {
                Ok(keyed) => keyed.answer(plan, interim),
                Err(bypassed) => bypassed.answer(plan, interim),
            },
            Admission::Refused(refusal) => self.refuse(plan, &refusal),
            Admission::AskAbout(caller) => {
                let (plan, interim, routed) = (Arc::clone(plan), interim.cloned(), self.into_own());
                Handled::later(async move {
                    let headers = &routed.request.parts.headers;
                    let standing = match &plan.guard {
                        Some(guard) => Some(guard.ask(caller, headers).await),
                        None => None,
                    };
                    let handled = routed.admit(&plan, interim.as_ref(), standing);
                    handled.response().await
                })
            }
        }
    }

    /// Writes the key of an admitted request that may be looked up.
    // A box for the error would be an allocation for each request that goes by.
    #[allow(clippy::result_large_err)]
    pub fn key(self, plan: &Plan, admitted: Admitted) -> Result<Keyed<'p>, Bypassed<'p>> {
        let Self {
            request,
            upload,
            route,
        } = self;
        let Admitted {
            let_in,
            is_anonymous,
        } = admitted;
        let by_key = is_anonymous.then_some(Reason::Credential);
        let reason = match &route {
            None => Some(Reason::NoRoute),
            Some(route) => policy::bypass(request.view(), route.options()).or(by_key),
        };
        match (route, reason) {
            (Some(route), None) => {
                let mut keyed = Keyed {
                    request,
                    route,
                    key: KeyBytes::new(),
                    primary_length: 0,
                    let_in,
                };
                keyed.write_key(plan);
                Ok(keyed)
            }
            (route, reason) => Err(Bypassed {
                request,
                upload,
                route,
                let_in,
                reason: reason.unwrap_or(Reason::NoRoute),
            }),
        }
    }
}

/// A request whose key is written: what is stored may answer it.
pub struct Keyed<'p> {
    pub request: ClientRequest,
    pub route: RouteOf<'p>,
    /// The primary key; after a look-up that found variants, that of the one it selects.
    pub key: KeyBytes,
    pub primary_length: usize,
    pub let_in: Option<LetIn>,
}

impl Keyed<'_> {
    fn write_key(&mut self, plan: &Plan) {
        // Selecting fields are rewritten where the route says so, before anything is selected by
        // them. What goes by is left as it is: an origin decides by `Origin` whether a write or a
        // WebSocket may be.
        let normalise = &self.route.rule.normalise;
        if !normalise.is_idle() {
            normalise.apply(&mut self.request.parts.headers);
        }
        write_primary_key(&mut self.key, plan, &self.request, &self.route);
        self.primary_length = self.key.len();
    }

    /// Looks up what is stored, and answers from that or goes on.
    fn answer(mut self, plan: &Arc<Plan>, interim: Option<&Arc<InterimQueue>>) -> Handled {
        match self.look_up(plan) {
            LookedUp::Hit(hit) => hit.answer(plan, &self),
            LookedUp::StaleHit(hit) => {
                hit.refresh(plan, &self);
                hit.answer(plan, &self)
            }
            LookedUp::Miss(found) => {
                Miss::of(plan, self.into_request(plan), found).answer(plan, interim)
            }
            LookedUp::NothingStored => nothing_stored(plan, &self.request, Some(&**self.route)),
        }
    }

    /// The same for whatever waits.
    pub fn into_request(self, plan: &Plan) -> KeyedRequest {
        KeyedRequest {
            arrived: plan.state.purge_position(),
            request: self.request,
            route: self.route.into_own(),
            key: self.key,
            primary_length: self.primary_length,
            let_in: self.let_in,
            interim: None,
        }
    }
}

/// A request that nothing stored answers, and whose answer is not stored.
pub struct Bypassed<'p> {
    request: ClientRequest,
    upload: Option<OriginBody>,
    route: Option<RouteOf<'p>>,
    let_in: Option<LetIn>,
    reason: Reason,
}

impl Bypassed<'_> {
    /// How it is answered, and why: known before anything is sent.
    pub fn words(&self) -> (CacheResult, Reason) {
        if self.wants_only_stored() {
            NOTHING_STORED
        } else {
            (CacheResult::Bypass, self.reason)
        }
    }

    /// The client wants nothing but what is stored, and that is never looked up for it.
    fn wants_only_stored(&self) -> bool {
        let obey = self.route.as_ref().map(|route| route.options().obey);
        let headers = &self.request.parts.headers;
        let only_if_cached = obey.is_some_and(|obey| Wishes::of(headers, obey).only_if_cached);
        self.request.is_read() && only_if_cached
    }

    fn answer(self, plan: &Arc<Plan>, interim: Option<&Arc<InterimQueue>>) -> Handled {
        if self.wants_only_stored() {
            let route = self.route.as_ref().map(|route| &***route);
            return nothing_stored(plan, &self.request, route);
        }
        let note = Note::new(CacheResult::Bypass, self.reason);
        Bypass {
            request: self.request,
            route: self.route.map(RouteOf::into_own),
            let_in: self.let_in,
            note,
        }
        .answer(plan, self.upload, interim)
    }
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
    let response = failure_response(plan, &failure, note);
    let (method, started) = (&request.parts.method, request.started);
    count(plan, route, method, started, &note, response.status());
    Handled::now(response)
}
