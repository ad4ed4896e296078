//! The client's side: `Received → Routed → Keyed → looked up: Hit | StaleHit | Miss | Bypass →
//! Delivered`. Each step owns its data and names the next; a hit takes them all without waiting.

use std::borrow::Cow;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, request};
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::clock::Timestamp;
use crate::error::{Failure, FailureKind};
use crate::flight::{Boarding, Ticket};
use crate::guard::Standing;
use crate::http::fields;
use crate::metrics::CacheResult;
use crate::policy::key::{KeyBytes, normalise_path};
use crate::policy::{self, Decision, Options, Reason};
use crate::store::{Entry, Found};
use crate::upstream::{OriginBody, empty};

use super::asked::{Asked, flight_key, view};
use super::body::Body;
use super::deliver::{Note, Wanted};
use super::fetch::{Fetch, Led, Validation};
use super::forward::{self, Conditions};
use super::guarded::{self, Admission};
use super::interim::{Ear, Interim};
use super::part::Beginning;
use super::{Client, Proxy, received};

/// A request on its way to its response: hits are ready at once.
// A box for the larger variant would be an allocation for each hit.
#[allow(clippy::large_enum_variant)]
pub enum Handled {
    Ready(Option<Response<Body>>),
    Later(Pin<Box<dyn Future<Output = Response<Body>> + Send>>),
}

impl Future for Handled {
    type Output = Result<Response<Body>, std::convert::Infallible>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut *self {
            Self::Ready(response) => match response.take() {
                Some(response) => Poll::Ready(Ok(response)),
                // Polled again after it was ready, which no caller of futures may do.
                None => Poll::Pending,
            },
            Self::Later(future) => future.as_mut().poll(context).map(Ok),
        }
    }
}

impl Proxy {
    /// Answers a request. What its origin says before the final response goes to `interim`.
    pub fn handle<B>(
        self: &Arc<Self>,
        request: Request<B>,
        client: Client,
        interim: Option<&Arc<Interim>>,
    ) -> Handled
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: std::fmt::Display,
    {
        let started = Instant::now();
        if self.limits.concern(request.method()) {
            return self.limited(request, client, interim, started);
        }
        self.admitted(request, client, interim, started, None)
    }

    /// Answers a request that no limit refuses. `asked` is what was found out about its key, where
    /// somebody had to be asked.
    pub(super) fn admitted<B>(
        self: &Arc<Self>,
        request: Request<B>,
        client: Client,
        interim: Option<&Arc<Interim>>,
        started: Instant,
        standing: Option<Standing>,
    ) -> Handled
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: std::fmt::Display,
    {
        let (mut parts, body) = request.into_parts();
        // Before anything is selected by them: the origin will not see these fields.
        fields::strip_named(&mut parts.headers);
        if self.config.routes.normalise() {
            self.normalise(&mut parts, body.is_end_stream());
        }
        let host = match received::check(&parts, &self.config.limits) {
            Ok(host) => host,
            Err(failure) => {
                let note = Note::new(CacheResult::Bypass, Reason::Refused);
                let response = self.failure_on(None, &parts.method, &failure, note);
                return self.ready(None, &parts.method, started, note, response);
            }
        };
        let path = normalise_path(parts.uri.path());
        let bare_host = received::without_port(host.as_deref().unwrap_or_default());
        let routed = self.routed(&parts.method, bare_host, &path);
        let has_body = forward::has_body(&parts, body.is_end_stream());
        let mut bypass = match routed {
            None => Some(Reason::NoRoute),
            Some((_, route)) => policy::bypass(view(&parts, has_body), &route.options),
        };
        let mut key = KeyBytes::new();
        if let Some((_, route)) = routed
            && (bypass.is_none() || guarded::is_guarded(&parts, route))
        {
            self.write_key(&mut key, &parts, host.as_deref(), &path, route, client);
        }
        let mut let_in = None;
        if let (Some(guard), Some((index, route))) = (&self.guard, routed)
            && guarded::is_guarded(&parts, route)
        {
            match self.admit(guard, &parts.headers, (index, route), &key, standing) {
                Admission::In(admitted) => let_in = Some(admitted),
                Admission::Anonymous => bypass = bypass.or(Some(Reason::Credential)),
                Admission::Refused(failure, reason) => {
                    return self.refuse(Some(index), &parts.method, started, &failure, reason);
                }
                Admission::Ask(caller) => {
                    let (proxy, guard) = (Arc::clone(self), Arc::clone(guard));
                    drop((host, path));
                    let (request, interim) = (Request::from_parts(parts, body), interim.cloned());
                    return Handled::Later(Box::pin(async move {
                        let standing = guard.ask(caller, request.headers()).await;
                        let (interim, standing) = (interim.as_ref(), Some(standing));
                        let handled = proxy.admitted(request, client, interim, started, standing);
                        handled.response().await
                    }));
                }
            }
        }
        if let Some((index, route)) = routed.filter(|_| bypass.is_some())
            && matches!(parts.method, Method::GET | Method::HEAD)
            && policy::Wishes::of(&parts.headers, route.options.obey).only_if_cached
        {
            return self.nothing_stored(index, &parts.method, started);
        }
        let (Some((index, route)), None) = (routed, bypass) else {
            let host = host.map(Cow::into_owned);
            let route = routed.map(|(index, route)| (index, Arc::clone(route)));
            let asked = Asked {
                arrived: self.purge_position(),
                ear: Ear::open(interim, parts.version),
                parts,
                host,
                client,
                route,
                primary: KeyBytes::new(),
                key: KeyBytes::new(),
                started,
                let_in,
            };
            let note = Note::new(CacheResult::Bypass, bypass.unwrap_or(Reason::NoRoute));
            return self.later(asked, |proxy, asked| proxy.pass(asked, body, note));
        };

        let primary_length = key.len();
        let now = self.clock.now();
        let verifies = let_in.is_some_and(|let_in| let_in.verifies);
        let found = if verifies {
            Found::Nothing
        } else {
            self.memory.get(&mut key, &parts.headers, now)
        };
        if let Found::Entry(entry) = &found {
            let decision =
                policy::decide(view(&parts, false), Some(entry.view()), &route.options, now);
            if let Some(served) = self.reuse(entry, decision, &parts, &route.options, now) {
                let (response, note) = served;
                if let Some(used) = &self.used {
                    used.note(&key, primary_length);
                }
                if note.result == CacheResult::Stale && self.may_refresh(entry, now) {
                    let asked = Asked {
                        primary: KeyBytes::from_slice(&key[..primary_length]),
                        host: host.map(Cow::into_owned),
                        route: Some((index, Arc::clone(route))),
                        parts: copy_of(&parts),
                        client,
                        key,
                        started,
                        arrived: self.purge_position(),
                        let_in,
                        ear: None,
                    };
                    self.refresh(&asked, entry);
                }
                return self.ready(Some(index), &parts.method, started, note, response);
            }
        }
        if !verifies
            && let Some((response, note)) =
                self.reuse_part(&key[..primary_length], &parts, &route.options, now)
        {
            return self.ready(Some(index), &parts.method, started, note, response);
        }
        if policy::Wishes::of(&parts.headers, route.options.obey).only_if_cached {
            return self.nothing_stored(index, &parts.method, started);
        }
        let host = host.map(Cow::into_owned);
        let route = Some((index, Arc::clone(route)));
        drop(path);
        let primary = KeyBytes::from_slice(&key[..primary_length]);
        let asked = Asked {
            arrived: self.purge_position(),
            ear: Ear::open(interim, parts.version),
            parts,
            host,
            client,
            route,
            primary,
            key,
            started,
            let_in,
        };
        self.later(asked, |proxy, asked| proxy.miss(asked, found))
    }

    /// The answer to `only-if-cached` (RFC 9111 §5.2.1.7).
    fn nothing_stored(&self, route: usize, method: &Method, started: Instant) -> Handled {
        let note = Note::new(CacheResult::Miss, Reason::ClientDirective);
        let message = "nothing stored answers this request, and the client wants nothing else";
        let failure = Failure::new(FailureKind::OnlyIfCached, message);
        let response = self.failure(&failure, note);
        self.ready(Some(route), method, started, note, response)
    }

    /// Rewrites selecting fields where the route says so, before anything is selected by them. What
    /// goes by is left as it is: an origin decides by `Origin` whether a write or a WebSocket may be.
    fn normalise(&self, parts: &mut request::Parts, is_end_stream: bool) {
        let Ok(host) = received::check(parts, &self.config.limits) else {
            return;
        };
        let host = received::without_port(host.as_deref().unwrap_or_default());
        let path = normalise_path(parts.uri.path());
        let routed = self.config.routes.find(&parts.method, host, &path);
        let Some((_, route)) = routed else { return };
        let has_body = forward::has_body(parts, is_end_stream);
        if policy::bypass(view(parts, has_body), &route.options).is_none() {
            let route = Arc::clone(route);
            drop(path);
            route.normalise.apply(&mut parts.headers);
        }
    }

    pub(super) fn ready(
        &self,
        route: Option<usize>,
        method: &Method,
        started: Instant,
        note: Note,
        response: Response<Body>,
    ) -> Handled {
        self.count(route, method, started, note, response.status());
        Handled::Ready(Some(response))
    }

    /// Runs the waiting part of a request, bounded by the deadline for a response head.
    fn later<F>(self: &Arc<Self>, asked: Asked, run: impl FnOnce(Arc<Self>, Asked) -> F) -> Handled
    where
        F: Future<Output = (Response<Body>, Note)> + Send + 'static,
    {
        let proxy = Arc::clone(self);
        let (started, method) = (asked.started, asked.parts.method.clone());
        let ear = asked.ear.clone();
        let route = asked.route.as_ref().map(|(index, _)| *index);
        let answering = run(Arc::clone(self), asked);
        Handled::Later(Box::pin(async move {
            let limit = proxy.config.limits.request_timeout;
            let (response, note) = match timeout(limit, answering).await {
                Ok(answered) => answered,
                Err(_) => {
                    let message = format!("no response within {limit:?} (limits.request_timeout)");
                    let note = Note::new(CacheResult::Miss, Reason::OriginFailed);
                    (
                        proxy.failure_on(
                            route,
                            &method,
                            &Failure::new(FailureKind::ResponseTimeout, message),
                            note,
                        ),
                        note,
                    )
                }
            };
            if let Some(ear) = ear {
                ear.close();
            }
            proxy.count(route, &method, started, note, response.status());
            response
        }))
    }

    fn count(
        &self,
        route: Option<usize>,
        method: &Method,
        started: Instant,
        note: Note,
        status: StatusCode,
    ) {
        self.metrics
            .answered(route, method, status, started.elapsed());
        self.metrics.cache_result(note.result, note.reason);
    }

    /// The response to a request from what is stored, if the decision allows it.
    pub(super) fn reuse(
        &self,
        entry: &Arc<Entry>,
        decision: Decision,
        parts: &request::Parts,
        options: &Options,
        now: Timestamp,
    ) -> Option<(Response<Body>, Note)> {
        self.reuse_as(Reason::Fresh, entry, decision, parts, options, now)
    }

    /// As [`Proxy::reuse`], where a hit has this reason.
    pub(super) fn reuse_as(
        &self,
        fresh: Reason,
        entry: &Arc<Entry>,
        decision: Decision,
        parts: &request::Parts,
        options: &Options,
        now: Timestamp,
    ) -> Option<(Response<Body>, Note)> {
        let stored = entry.view();
        let (result, reason) = match decision {
            Decision::Hit { .. } => (CacheResult::Hit, fresh),
            Decision::StaleHit { reason, .. } => (CacheResult::Stale, reason),
            // The origin has just failed for this: it is given a pause, and stale stands in.
            Decision::Miss { on_error: true, .. } if !self.may_refresh(entry, now) => {
                (CacheResult::Stale, Reason::StaleIfError)
            }
            Decision::Miss { .. } => return None,
        };
        let (age, note) = (stored.age(now), Note::hit(result, reason, stored.ttl(now)));
        let body = Body::Whole(entry.body());
        let wanted = Wanted {
            method: &parts.method,
            headers: &parts.headers,
            options,
        };
        Some((self.deliver(wanted, &entry.head, age, body, note), note))
    }

    /// Whether the origin may be asked about a stored response again after a failure.
    pub(super) fn may_refresh(&self, entry: &Entry, now: Timestamp) -> bool {
        now.as_millis() >= entry.refresh_after.load(Ordering::Relaxed)
    }

    /// Starts a fetch behind a stale answer, unless one is under way (RFC 5861 §3).
    pub(super) fn refresh(self: &Arc<Self>, asked: &Asked, entry: &Arc<Entry>) {
        if let Ok(Boarding::Lead(ticket)) = self.board(asked, 0, || None::<()>) {
            let validation = Validation::of(Arc::clone(entry));
            match self.fetch(asked, ticket, Some(validation), None) {
                Ok(fetch) => drop(tokio::spawn(fetch.run())),
                Err(failure) => {
                    tracing::debug!(%failure, "a stale response could not be refreshed")
                }
            }
        }
    }

    /// Joins the flight of what is asked for, or leads one. A flight that began before position
    /// `least` of the purge log, or that a hard purge has outdated, is not joined.
    pub(super) fn board<T>(
        &self,
        asked: &Asked,
        least: u64,
        stored_meanwhile: impl FnOnce() -> Option<T>,
    ) -> Result<Boarding, T> {
        let key = flight_key(asked);
        let purges = self.memory.purges();
        let groups = asked.options().and_then(|options| options.groups.as_ref());
        let is_outdated =
            |stamp| stamp < least || purges.has_purged(&key, groups, stamp, asked.arrived);
        self.flights
            .board(&key, purges.position(), is_outdated, stored_meanwhile)
    }

    pub(super) fn fetch(
        self: &Arc<Self>,
        asked: &Asked,
        ticket: Ticket,
        validation: Option<Validation>,
        leader: Option<oneshot::Sender<Led>>,
    ) -> Result<Fetch, Failure> {
        let begun = match &validation {
            _ if asked.verifies() => None,
            Some(_) => None,
            None => Beginning::known(self, asked),
        };
        let conditions = match (&validation, &begun) {
            (Some(validation), _) => validation.conditions(),
            (None, Some(begun)) => begun.conditions(),
            (None, None) => Conditions::Drop,
        };
        let request = self.request_for(asked, conditions)?;
        let is_shared = ticket.is_listed();
        Ok(Fetch {
            proxy: Arc::clone(self),
            options: asked.options().cloned().unwrap_or_default(),
            client_headers: asked.parts.headers.clone(),
            primary: asked.primary.clone(),
            key: asked.key.clone(),
            request,
            ticket,
            validation,
            begun,
            leader,
            is_shared,
            let_in: asked.let_in,
        })
    }
}

impl Proxy {
    /// What the origin is asked, without a body.
    pub(super) fn request_for(
        &self,
        asked: &Asked,
        conditions: Conditions<'_>,
    ) -> Result<Request<OriginBody>, Failure> {
        let route = asked.route.as_ref().map(|(_, route)| &**route);
        let (parts, host) = (&asked.parts, asked.host.as_deref());
        let mut request =
            self.forwarding
                .request(parts, host, asked.client, route, conditions, empty())?;
        if let Some(ear) = &asked.ear {
            ear.listen(&mut request);
        }
        Ok(request)
    }
}

fn copy_of(parts: &request::Parts) -> request::Parts {
    let mut request = Request::new(());
    *request.method_mut() = Method::GET;
    *request.uri_mut() = parts.uri.clone();
    *request.version_mut() = parts.version;
    *request.headers_mut() = parts.headers.clone();
    request.into_parts().0
}
