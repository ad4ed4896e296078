//! Routed, Admitted, Keyed, Bypassed: the steps before anything stored is looked at. The list of all
//! steps stands at the top of [`client`](super).

use std::ops::Deref;
use std::sync::Arc;

use crate::error::{Failure, FailureKind};
use crate::guard::{Caller, Measured, Standing};
use crate::metrics::CacheResult;
use crate::policy::key::KeyBytes;
use crate::policy::{self, Reason, Wishes};
use crate::proxy::admission::keys::{Admission, admit};
use crate::proxy::admission::limits::who;
use crate::proxy::admission::{Purpose, Refusal};
use crate::proxy::pending_request::{ClientRequest, KeyedRequest, LetIn};
use crate::proxy::plan::{Plan, PlannedRoute};
use crate::proxy::request_key::write_primary_key;
use crate::proxy::wire::InterimQueue;

use crate::upstream::OriginBody;

use super::Handled;
use super::bypass::Bypass;
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

/// What comes after [`Routed`].
pub enum Guarded<'p> {
    In(Admitted<'p>),
    Refused(Routed<'p>, Refusal),
    /// Its key is to be asked about; then it is admitted again, with the answer.
    AskAbout(Routed<'p>, Caller),
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
        match self.guarded(plan, answered, Purpose::Answer) {
            Guarded::In(admitted) => match admitted.key(plan) {
                KeyedOrNot::Keyed(keyed) => keyed.look_up(plan).answer(plan, interim),
                KeyedOrNot::Bypassed(bypassed) => bypassed.answer(plan, interim),
            },
            Guarded::Refused(routed, refusal) => routed.refuse(plan, &refusal),
            Guarded::AskAbout(routed, caller) => {
                let (plan, interim, routed) =
                    (Arc::clone(plan), interim.cloned(), routed.into_own());
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

    /// Whether its key lets the request in.
    pub fn guarded(self, plan: &Plan, answered: Option<Standing>, purpose: Purpose) -> Guarded<'p> {
        let (let_in, bypass) = match admit(plan, &self.request, self.route(), answered, purpose) {
            Admission::Open => (None, None),
            Admission::In(let_in) => (Some(let_in), None),
            Admission::Anonymous => (None, Some(Reason::Credential)),
            Admission::Refused(refusal) => return Guarded::Refused(self, refusal),
            Admission::Ask(caller) => return Guarded::AskAbout(self, caller),
        };
        Guarded::In(Admitted {
            request: self.request,
            upload: self.upload,
            route: self.route,
            let_in,
            bypass,
        })
    }
}

/// A request that was let in.
pub struct Admitted<'p> {
    request: ClientRequest,
    upload: Option<OriginBody>,
    route: Option<RouteOf<'p>>,
    let_in: Option<LetIn>,
    /// Why it goes by, where its key is the reason.
    bypass: Option<Reason>,
}

/// What comes after [`Admitted`].
// A box for the larger variant would be an allocation for each hit.
#[allow(clippy::large_enum_variant)]
pub enum KeyedOrNot<'p> {
    Keyed(Keyed<'p>),
    Bypassed(Bypassed<'p>),
}

impl<'p> Admitted<'p> {
    /// Writes the key of a request that may be looked up.
    pub fn key(self, plan: &Plan) -> KeyedOrNot<'p> {
        let Self {
            mut request,
            upload,
            route,
            let_in,
            bypass,
        } = self;
        let bypassed = |request, route, reason| {
            KeyedOrNot::Bypassed(Bypassed {
                request,
                upload,
                route,
                let_in,
                reason,
            })
        };
        let Some(route) = route else {
            return bypassed(request, None, Reason::NoRoute);
        };
        let by_policy = policy::bypass(request.view(), route.options());
        if let Some(reason) = by_policy.or(bypass) {
            return bypassed(request, Some(route), reason);
        }
        // Selecting fields are rewritten where the route says so, before anything is selected by
        // them. What goes by is left as it is: an origin decides by `Origin` whether a write or a
        // WebSocket may be.
        if !route.rule.normalise.is_idle() {
            route.rule.normalise.apply(&mut request.parts.headers);
        }
        let mut key = KeyBytes::new();
        write_primary_key(&mut key, plan, &request, &route);
        KeyedOrNot::Keyed(Keyed {
            primary_length: key.len(),
            request,
            route,
            key,
            let_in,
        })
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
