//! Guard first, look-up second: limits and keys, before anything stored is looked at.
//!
//! On a route with `share = "verified"` a GET or HEAD with one credential goes one of four ways:
//! its key is good, and it is answered as any other; it is bad, and it is refused here; nobody
//! knows, and then the fleet and the source are asked, or its own request is what asks the origin
//! (it *verifies*: nothing stored answers it, it joins nobody's fetch but its key's own, and only a
//! 2xx to it is stored); or the source is ill, and 503 says so. Without a credential it goes by.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, HOST};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, request};

use crate::config::{Route, Scope};
use crate::error::{Failure, FailureKind};
use crate::guard::credential::Malformed;
use crate::guard::limits::Who;
use crate::guard::{Caller, Guard, Measured, Ruling, Standing, address};
use crate::http::fields;
use crate::metrics::CacheResult;
use crate::policy::key::{KeyBytes, normalise_path};
use crate::policy::{Reason, Share};
use crate::store::Found;
use crate::upstream::{OriginBody, empty};

use super::asked::Asked;
use super::body::Body;
use super::deliver::Note;
use super::forward::{X_FORWARDED_HOST, X_FORWARDED_PROTO};
use super::interim::Interim;
use super::request::Handled;
use super::{Client, Proxy, received};

/// A caller that was let in.
#[derive(Clone, Copy, Debug)]
pub(super) struct LetIn {
    pub caller: Caller,
    /// The place of its route.
    pub route: usize,
    /// Its own request is what asks the origin about its key.
    pub verifies: bool,
}

/// What becomes of a request on a guarded route.
pub(super) enum Admission {
    In(LetIn),
    /// There is no credential: it goes by, and is not stored.
    Anonymous,
    Refused(Failure, Reason),
    /// The fleet, or the source, must be asked first.
    Ask(Caller),
}

/// After an unknown key was turned away: what is asked is bounded by the second.
const UNKNOWN_AGAIN: Duration = Duration::from_secs(1);

/// While the source is ill.
const SOURCE_AGAIN: Duration = Duration::from_secs(5);

fn unverified(why: &str, again: Duration) -> Failure {
    let message = format!("nobody can say now whether this API key is good: {why}");
    Failure::new(FailureKind::KeyUnverified, message).retry_after(again)
}

pub(super) fn source_is_ill() -> Failure {
    unverified("what verifies it does not answer", SOURCE_AGAIN)
}

impl Proxy {
    /// The route as it takes effect: one whose answers differ by key is not shared any more.
    pub(super) fn routed(
        &self,
        method: &Method,
        host: &str,
        path: &str,
    ) -> Option<(usize, &Arc<Route>)> {
        let (index, route) = self.config.routes.find(method, host, path)?;
        Some((
            index,
            self.sharing
                .in_effect(index, self.memory.purges())
                .unwrap_or(route),
        ))
    }

    /// Lets a request in on a guarded route, or not. `key` is what it asks for; `asked` is what the
    /// fleet and the source have said, where they were asked.
    pub(super) fn admit(
        &self,
        guard: &Guard,
        headers: &HeaderMap,
        (index, route): (usize, &Route),
        key: &[u8],
        asked: Option<Standing>,
    ) -> Admission {
        let refused = |text: &str| {
            let failure = Failure::new(FailureKind::KeyRefused, text);
            Admission::Refused(failure, Reason::KeyRefused)
        };
        let credential = match guard.credentials.of(headers) {
            Ok(Some(credential)) => credential,
            Ok(None) => return Admission::Anonymous,
            Err(Malformed::More) => return refused("More than one API key"),
            Err(Malformed::Form) => return refused("Invalid API key format"),
        };
        let caller = guard.caller(credential, &scope(route, key));
        let standing = asked.unwrap_or_else(|| {
            let standing = guard.standing(&caller);
            let is_known = !matches!(standing, Standing::Unknown { .. });
            self.metrics.guard.known(is_known);
            standing
        });
        let is_known = match standing {
            Standing::Good => {
                return Admission::In(LetIn {
                    caller,
                    route: index,
                    verifies: false,
                });
            }
            Standing::Bad => return refused("Invalid or inactive API key"),
            Standing::Unknown { known } => known,
        };
        if asked.is_none() {
            if !is_known && !guard.may_ask_about_unknown() {
                let failure = unverified(
                    "too many unknown keys are asked about (auth.unknown_per_second)",
                    UNKNOWN_AGAIN,
                );
                return Admission::Refused(failure, Reason::KeyUnverified);
            }
            if guard.has_others_to_ask() {
                return Admission::Ask(caller);
            }
        }
        if guard.learns_from_origin() {
            return Admission::In(LetIn {
                caller,
                route: index,
                verifies: true,
            });
        }
        Admission::Refused(source_is_ill(), Reason::KeyUnverified)
    }

    /// Counts a request before anything else is done with it.
    pub(super) fn limited<B>(
        self: &Arc<Self>,
        mut request: Request<B>,
        client: Client,
        interim: Option<&Arc<Interim>>,
        started: Instant,
    ) -> Handled
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: std::fmt::Display,
    {
        fields::strip_named(request.headers_mut());
        let who = match self.who(&request, client) {
            Ok(who) => who,
            Err(failure) => {
                let (route, method) = (self.place_of(&request), request.method());
                return self.refuse(route, method, started, &failure, Reason::KeyRefused);
            }
        };
        if let Some(measured) = self.limits.check(who) {
            return self.measured(request, client, interim, started, measured);
        }
        let (proxy, interim) = (Arc::clone(self), interim.cloned());
        Handled::Later(Box::pin(async move {
            let measured = Arc::clone(&proxy.limits).ask(who).await;
            let handled = proxy.measured(request, client, interim.as_ref(), started, measured);
            handled.response().await
        }))
    }

    /// An error for a request with two keys, where keys are counted: nobody can say which one to
    /// count, and a second one that the origin ignores must not hide the first.
    fn who<B>(&self, request: &Request<B>, client: Client) -> Result<Who, Failure> {
        let headers = request.headers();
        let trusted = &self.config.listen.trusted_proxies;
        let key = if self.limits.counts_keys() {
            match self.credentials.counted(headers) {
                Ok(key) => key,
                Err(_) => {
                    let message = "More than one API key";
                    return Err(Failure::new(FailureKind::KeyRefused, message));
                }
            }
        } else {
            None
        };
        let counts_routes = self.limits.counts_routes();
        Ok(Who {
            address: address::of(headers, client.address, trusted),
            key,
            route: counts_routes.then(|| self.place_of(request)).flatten(),
        })
    }

    /// The place of the route that a request takes.
    fn place_of<B>(&self, request: &Request<B>) -> Option<usize> {
        let path = normalise_path(request.uri().path());
        let named = request.uri().host();
        let host = named.or_else(|| request.headers().get(HOST)?.to_str().ok());
        let host = received::without_port(host.unwrap_or_default()).to_ascii_lowercase();
        let found = self.config.routes.find(request.method(), &host, &path);
        found.map(|(index, _)| index)
    }

    /// Answers a request that was counted, or refuses it; says what is left either way.
    fn measured<B>(
        self: &Arc<Self>,
        request: Request<B>,
        client: Client,
        interim: Option<&Arc<Interim>>,
        started: Instant,
        measured: Measured,
    ) -> Handled
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: std::fmt::Display,
    {
        let handled = match &measured.refusal {
            Some(refusal) => {
                let (route, method) = (self.place_of(&request), request.method());
                self.refuse(route, method, started, refusal, Reason::RateLimited)
            }
            None => self.admitted(request, client, interim, started, None),
        };
        match handled {
            Handled::Ready(mut response) => {
                if let Some(response) = &mut response {
                    measured.write(response.headers_mut());
                }
                Handled::Ready(response)
            }
            Handled::Later(answering) => Handled::Later(Box::pin(async move {
                let mut response = answering.await;
                measured.write(response.headers_mut());
                response
            })),
        }
    }

    /// The answer to a request that is not let in.
    pub(super) fn refuse(
        &self,
        route: Option<usize>,
        method: &Method,
        started: Instant,
        failure: &Failure,
        reason: Reason,
    ) -> Handled {
        let note = Note::new(CacheResult::Bypass, reason);
        let response = self.failure_on(route, method, failure, note);
        self.ready(route, method, started, note, response)
    }

    /// What the origin's answer to a caller says of its key. `probe` is the request to send once
    /// more with the probe key, where there is one.
    pub(super) async fn rule(
        &self,
        let_in: Option<LetIn>,
        status: StatusCode,
        is_proof: bool,
        probe: Option<Request<()>>,
    ) -> Ruling {
        let (Some(guard), Some(let_in)) = (&self.guard, let_in) else {
            return Ruling::Passes;
        };
        let probing = probe.map(|probe| async {
            let answer = self.origin.answer(probe.map(|()| empty())).await;
            answer.ok().map(|response| response.status())
        });
        guard
            .answered(&let_in.caller, status, is_proof, probing)
            .await
    }

    /// A plain GET of the same with the probe key, and nothing else that the caller sent: what it
    /// sent could make the answer one about anything.
    pub(super) fn probe_of(
        &self,
        let_in: Option<LetIn>,
        request: &Request<OriginBody>,
    ) -> Option<Request<()>> {
        let guard = self.guard.as_ref().filter(|_| let_in.is_some())?;
        let key = guard.probe_key()?;
        let mut probe = Request::new(());
        *probe.uri_mut() = request.uri().clone();
        let headers = probe.headers_mut();
        for name in [HOST, X_FORWARDED_HOST, X_FORWARDED_PROTO] {
            fields::set(headers, name.clone(), request.headers().get(name).cloned());
        }
        let mut value = HeaderValue::try_from(format!("Bearer {key}")).ok()?;
        value.set_sensitive(true);
        headers.insert(AUTHORIZATION, value);
        headers.insert(ACCEPT, HeaderValue::from_static("*/*"));
        Some(probe)
    }

    /// The digest of a key, as revocations name it.
    pub fn digest_of(&self, key: &str) -> [u8; 32] {
        self.credentials.digest(key.as_bytes()).0
    }

    /// Whether what is stored may be given to this request now that the origin has failed.
    pub(super) fn may_use_stored(&self, asked: &Asked) -> bool {
        match (&self.guard, asked.let_in) {
            (Some(guard), Some(let_in)) => guard.may_use_stored(&let_in.caller),
            _ => !asked.is_guarded(),
        }
    }

    /// For a caller whose question went unanswered, and that may use what is stored: that, as far as
    /// it may stand in.
    pub(super) fn graced(&self, asked: &Asked) -> Option<Arc<crate::store::Entry>> {
        let mut key = asked.primary.clone();
        let now = self.clock.now();
        match self.memory.get(&mut key, &asked.parts.headers, now) {
            Found::Entry(entry) => Some(entry),
            _ => None,
        }
    }
}

/// What a verdict reaches that is learned on this route by a request for `key`.
pub(super) fn scope(route: &Route, key: &[u8]) -> KeyBytes {
    let mut scope = KeyBytes::new();
    match route.verdict_scope {
        Scope::Url => {
            scope.push(b'u');
            scope.extend_from_slice(key);
        }
        Scope::Route => {
            scope.push(b'r');
            scope.extend_from_slice(route.host.as_deref().unwrap_or_default().as_bytes());
            scope.push(0);
            scope.extend_from_slice(route.path.as_bytes());
        }
        Scope::All => scope.push(b'a'),
    }
    scope
}

/// Whether keys are verified on this route for such requests.
pub(super) fn is_guarded(parts: &request::Parts, route: &Route) -> bool {
    route.options.share == Share::Verified && matches!(parts.method, Method::GET | Method::HEAD)
}

impl Handled {
    /// Waits for the response.
    pub(super) async fn response(self) -> Response<Body> {
        match self.await {
            Ok(response) => response,
            Err(never) => match never {},
        }
    }
}
