//! The client's side: `Received → Routed → Keyed → looked up: Hit | StaleHit | Miss | Bypass →
//! Delivered`. Each step owns its data and names the next; a hit takes them all without waiting.

use std::borrow::Cow;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode, request};
use sha2::{Digest, Sha256};
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::clock::Timestamp;
use crate::config::Route;
use crate::error::{self, Failure, FailureKind};
use crate::flight::{Boarding, Outcome, Ticket};
use crate::metrics::CacheResult;
use crate::policy::key::{KeyBytes, KeyParts, normalise_path, select_query};
use crate::policy::vary::append_selecting;
use crate::policy::{self, Cookies, Decision, Options, Reason, RequestView, Share};
use crate::store::{Entry, Found, Head};
use crate::upstream::{OriginBody, empty};

use super::deliver::{self, Body, Note};
use super::fetch::{Fetch, Led, Validation};
use super::forward::{self, Conditions, client_scheme};
use super::{Client, Proxy, received, tunnel};

/// Elections of a leader that one request takes part in; after that it fetches alone.
const ELECTIONS: u32 = 2;

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

/// What the later steps need to know of a request, owned.
pub(super) struct Asked {
    pub parts: request::Parts,
    pub host: Option<String>,
    pub client: Client,
    pub route: Option<(usize, Arc<Route>)>,
    pub primary: KeyBytes,
    /// The primary key, or that of a variant where there are known ones.
    pub key: KeyBytes,
    started: Instant,
}

impl Asked {
    pub fn options(&self) -> Option<&Options> {
        self.route.as_ref().map(|(_, route)| &route.options)
    }

    fn view(&self) -> RequestView<'_> {
        view(&self.parts, false)
    }
}

fn view(parts: &request::Parts, has_body: bool) -> RequestView<'_> {
    RequestView {
        method: &parts.method,
        headers: &parts.headers,
        has_body,
    }
}

impl Proxy {
    /// Answers a request.
    pub fn handle<B>(self: &Arc<Self>, request: Request<B>, client: Client) -> Handled
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: std::fmt::Display,
    {
        let started = Instant::now();
        let (parts, body) = request.into_parts();
        let host = match received::check(&parts, self.config.limits.request_body) {
            Ok(host) => host,
            Err(failure) => {
                let note = Note::new(CacheResult::Bypass, Reason::Refused);
                let response = self.failure(&failure, note);
                return self.ready(None, &parts.method, started, note, response);
            }
        };
        let path = normalise_path(parts.uri.path());
        let bare_host = received::without_port(host.as_deref().unwrap_or_default());
        let routed = self.config.routes.find(&parts.method, bare_host, &path);
        let has_body = forward::has_body(&parts, body.is_end_stream());
        let bypass = match routed {
            None => Some(Reason::NoRoute),
            Some((_, route)) => policy::bypass(view(&parts, has_body), &route.options),
        };
        let (Some((index, route)), None) = (routed, bypass) else {
            let host = host.map(Cow::into_owned);
            let route = routed.map(|(index, route)| (index, Arc::clone(route)));
            let asked = Asked {
                parts,
                host,
                client,
                route,
                primary: KeyBytes::new(),
                key: KeyBytes::new(),
                started,
            };
            let note = Note::new(CacheResult::Bypass, bypass.unwrap_or(Reason::NoRoute));
            return self.later(asked, |proxy, asked| proxy.pass(asked, body, note));
        };

        let mut key = KeyBytes::new();
        self.write_key(&mut key, &parts, host.as_deref(), &path, route, client);
        let primary_length = key.len();
        let now = self.clock.now();
        let found = self.memory.get(&mut key, &parts.headers, now);
        if let Found::Entry(entry) = &found {
            let decision = policy::decide(
                view(&parts, false),
                Some(&entry.head.record),
                &route.options,
                now,
            );
            if let Some(served) = self.reuse(entry, decision, &parts, now) {
                let (response, note) = served;
                if note.result == CacheResult::Stale && self.may_refresh(entry, now) {
                    let asked = Asked {
                        primary: KeyBytes::from_slice(&key[..primary_length]),
                        host: host.map(Cow::into_owned),
                        route: Some((index, Arc::clone(route))),
                        parts: copy_of(&parts),
                        client,
                        key,
                        started,
                    };
                    self.refresh(&asked, entry);
                }
                return self.ready(Some(index), &parts.method, started, note, response);
            }
        }
        let host = host.map(Cow::into_owned);
        let route = Some((index, Arc::clone(route)));
        drop(path);
        let primary = KeyBytes::from_slice(&key[..primary_length]);
        let asked = Asked {
            parts,
            host,
            client,
            route,
            primary,
            key,
            started,
        };
        self.later(asked, |proxy, asked| proxy.miss(asked, found))
    }

    fn ready(
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

    /// Keyed: scheme, host, path, query and partition, as the origin sees them.
    fn write_key(
        &self,
        key: &mut KeyBytes,
        parts: &request::Parts,
        host: Option<&str>,
        path: &str,
        route: &Route,
        client: Client,
    ) {
        let hides_host = self.forwarding.rewrites_host() && !self.config.routes.match_hosts();
        let query = select_query(parts.uri.query(), &route.query, route.sort_query);
        let partition = partition(&parts.headers, &route.options);
        KeyParts {
            scheme: client_scheme(&parts.headers, client),
            host: host.filter(|_| !hides_host).unwrap_or_default(),
            path,
            query: query.as_deref(),
            partition: partition.as_ref().map_or(&[], |digest| &digest[..]),
        }
        .write(key);
    }

    /// The response to a request from what is stored, if the decision allows it.
    fn reuse(
        &self,
        entry: &Arc<Entry>,
        decision: Decision,
        parts: &request::Parts,
        now: Timestamp,
    ) -> Option<(Response<Body>, Note)> {
        let fresh = entry.head.record.lifetimes.fresh;
        let (age, note) = match decision {
            Decision::Hit { age, .. } => {
                (age, Note::hit(CacheResult::Hit, Reason::Fresh, fresh, age))
            }
            Decision::StaleHit { age, .. } => (
                age,
                Note::hit(CacheResult::Stale, Reason::StaleWhileRevalidate, fresh, age),
            ),
            // The origin has just failed for this: it is given a pause, and stale stands in.
            Decision::Miss { on_error: true, .. } if !self.may_refresh(entry, now) => {
                let age = entry.head.record.age(now);
                (
                    age,
                    Note::hit(CacheResult::Stale, Reason::StaleIfError, fresh, age),
                )
            }
            Decision::Miss { .. } => return None,
        };
        let body = Body::Whole(entry.body());
        Some((
            deliver::deliver(&parts.method, &parts.headers, &entry.head, age, body, note),
            note,
        ))
    }

    /// Whether the origin may be asked about a stored response again after a failure.
    fn may_refresh(&self, entry: &Entry, now: Timestamp) -> bool {
        now.as_millis() >= entry.refresh_after.load(Ordering::Relaxed)
    }

    /// Starts a fetch behind a stale answer, unless one is under way (RFC 5861 §3).
    fn refresh(self: &Arc<Self>, asked: &Asked, entry: &Arc<Entry>) {
        let flight_key = flight_key(asked);
        if let Ok(Boarding::Lead(ticket)) = self.flights.board(&flight_key, || None::<()>) {
            let validation = Validation::of(Arc::clone(entry));
            match self.fetch(asked, ticket, Some(validation), None) {
                Ok(fetch) => drop(tokio::spawn(fetch.run())),
                Err(failure) => {
                    tracing::debug!(%failure, "a stale response could not be refreshed")
                }
            }
        }
    }

    fn fetch(
        self: &Arc<Self>,
        asked: &Asked,
        ticket: Ticket,
        validation: Option<Validation>,
        leader: Option<oneshot::Sender<Led>>,
    ) -> Result<Fetch, Failure> {
        let conditions = validation
            .as_ref()
            .map_or(Conditions::Drop, Validation::conditions);
        let route = asked.route.as_ref().map(|(_, route)| &**route);
        let host = asked.host.as_deref();
        let request = self.forwarding.request(
            &asked.parts,
            host,
            asked.client,
            route,
            conditions,
            empty(),
        )?;
        Ok(Fetch {
            proxy: Arc::clone(self),
            options: asked.options().cloned().unwrap_or_default(),
            client_headers: asked.parts.headers.clone(),
            primary: asked.primary.clone(),
            request,
            ticket,
            validation,
            leader,
        })
    }

    /// Miss: joins the fetch of this key or leads it.
    async fn miss(self: Arc<Self>, asked: Asked, found: Found) -> (Response<Body>, Note) {
        let stored = match &found {
            Found::Entry(entry) => Some(Arc::clone(entry)),
            _ => None,
        };
        let options = asked.options().cloned().unwrap_or_default();
        let now = self.clock.now();
        let decision = policy::decide(
            asked.view(),
            stored.as_deref().map(|entry| &entry.head.record),
            &options,
            now,
        );
        let reason = match (&found, decision) {
            (Found::NotShared(_), _) => Reason::HitForMiss,
            (Found::NoVariant, _) => Reason::VaryMiss,
            (_, Decision::Miss { reason, .. }) => reason,
            (_, Decision::Hit { .. } | Decision::StaleHit { .. }) => Reason::Cold,
        };
        let note = Note::new(CacheResult::Miss, reason);
        if asked.parts.method == Method::HEAD {
            return self.pass(asked, empty(), note).await;
        }
        let validation = match decision {
            Decision::Miss { validate: true, .. } => stored.clone().map(Validation::of),
            _ => stored.clone().map(Validation::only_stale),
        };
        let flight_key = flight_key(&asked);
        let by_cookie = options.cookies == Cookies::Bypass
            && options.grants_lifetime()
            && asked.parts.headers.contains_key(http::header::COOKIE);
        let marked = flight_key.len() > asked.key.len()
            && matches!(
                self.memory
                    .get(&mut flight_key.clone(), &HeaderMap::new(), now),
                Found::NotShared(_)
            );
        let mut alone = if marked {
            Some(Reason::HitForMiss)
        } else {
            None
        };
        if by_cookie || matches!(reason, Reason::HitForMiss | Reason::MustValidate) {
            alone = Some(reason);
        }

        for _ in 0..ELECTIONS {
            if alone.is_some() {
                break;
            }
            match self
                .flights
                .board(&flight_key, || self.stored_meanwhile(&asked, &options))
            {
                Err(served) => return served,
                Ok(Boarding::Lead(ticket)) => {
                    return self.lead(asked, ticket, validation, note).await;
                }
                Ok(Boarding::Full) => alone = Some(Reason::FlightsFull),
                Ok(Boarding::Wait(waiter)) => {
                    let limit = self.config.cache.wait_timeout;
                    let Ok(outcome) = timeout(limit, waiter.outcome()).await else {
                        alone = Some(Reason::WaitTimeout);
                        continue;
                    };
                    match outcome {
                        Outcome::Streaming(head) => {
                            let reader = waiter
                                .reader()
                                .filter(|_| self.is_for(&asked, &options, &head));
                            if let Some(reader) = reader {
                                return self.collapsed(&asked, &head, Body::Flight(reader), note);
                            }
                            // Another variant, or another cookie: whatever it is now, it is not this one.
                            alone = Some(reason);
                        }
                        Outcome::Stored(entry) => {
                            if self.is_for(&asked, &options, &entry.head) {
                                let body = Body::Whole(entry.body());
                                return self.collapsed(&asked, &entry.head, body, note);
                            }
                            alone = Some(reason);
                        }
                        Outcome::NotShared(_) => alone = Some(Reason::HitForMiss),
                        Outcome::Failed(failure) => {
                            return self.stale_or_failure(&asked, stored.as_ref(), &failure, note);
                        }
                        Outcome::Abandoned => {}
                    }
                }
            }
        }
        let note = Note {
            reason: alone.unwrap_or(reason),
            ..note
        };
        let ticket = self.flights.solo(&flight_key);
        self.lead(asked, ticket, validation, note).await
    }

    /// What a flight stored between this request's look-up and its boarding.
    fn stored_meanwhile(&self, asked: &Asked, options: &Options) -> Option<(Response<Body>, Note)> {
        let now = self.clock.now();
        let mut key = asked.primary.clone();
        let Found::Entry(entry) = self.memory.get(&mut key, &asked.parts.headers, now) else {
            return None;
        };
        let decision = policy::decide(asked.view(), Some(&entry.head.record), options, now);
        self.reuse(&entry, decision, &asked.parts, now)
    }

    /// Whether a response that another request fetched answers this one too.
    fn is_for(&self, asked: &Asked, options: &Options, head: &Head) -> bool {
        let decision = policy::decide(asked.view(), Some(&head.record), options, self.clock.now());
        let is_usable = matches!(decision, Decision::Hit { .. } | Decision::StaleHit { .. });
        let is_selected = head.selecting.as_ref().is_none_or(|selecting| {
            let mut values = Vec::new();
            append_selecting(&selecting.names, &asked.parts.headers, &mut values);
            values == selecting.values
        });
        is_usable && is_selected
    }

    fn collapsed(
        &self,
        asked: &Asked,
        head: &Head,
        body: Body,
        note: Note,
    ) -> (Response<Body>, Note) {
        self.metrics.coalesced_waiters.inc();
        let note = Note {
            collapsed: true,
            ..note
        };
        let age = head.record.age(self.clock.now());
        (
            deliver::deliver(
                &asked.parts.method,
                &asked.parts.headers,
                head,
                age,
                body,
                note,
            ),
            note,
        )
    }

    /// Leads a fetch and waits for its head.
    async fn lead(
        self: &Arc<Self>,
        asked: Asked,
        ticket: Ticket,
        validation: Option<Validation>,
        note: Note,
    ) -> (Response<Body>, Note) {
        let stored = validation
            .as_ref()
            .map(|validation| Arc::clone(&validation.entry));
        let (sender, answered) = oneshot::channel();
        match self.fetch(&asked, ticket, validation, Some(sender)) {
            Ok(fetch) => drop(tokio::spawn(fetch.run())),
            Err(failure) => return self.stale_or_failure(&asked, None, &failure, note),
        }
        let led = answered.await.unwrap_or_else(|_| {
            Led::Failed(Failure::new(
                FailureKind::Internal,
                "the fetch ended without an answer",
            ))
        });
        let (method, headers) = (&asked.parts.method, &asked.parts.headers);
        let now = self.clock.now();
        match led {
            Led::Streaming { head, reader } => {
                let note = Note {
                    stored: true,
                    forward_status: Some(head.status),
                    ..note
                };
                let age = head.record.age(now);
                (
                    deliver::deliver(method, headers, &head, age, Body::Flight(reader), note),
                    note,
                )
            }
            Led::Stored { entry, status } => {
                let revalidated = status == StatusCode::NOT_MODIFIED;
                let result = if revalidated {
                    CacheResult::Revalidated
                } else {
                    note.result
                };
                let reason = if revalidated {
                    Reason::Revalidated
                } else {
                    note.reason
                };
                let note = Note {
                    result,
                    reason,
                    stored: true,
                    forward_status: Some(status),
                    ..note
                };
                let body = Body::Whole(entry.body());
                (
                    deliver::deliver(
                        method,
                        headers,
                        &entry.head,
                        entry.head.record.age(now),
                        body,
                        note,
                    ),
                    note,
                )
            }
            Led::Own { response, reason } => {
                let note = Note {
                    forward_status: Some(response.status()),
                    detail: Some(reason),
                    ..note
                };
                (self.own(&asked, response, note), note)
            }
            Led::Failed(failure) => self.stale_or_failure(&asked, stored.as_ref(), &failure, note),
        }
    }

    /// A response for this client alone; its own condition is still answered by us, for the
    /// origin was asked without it.
    fn own(&self, asked: &Asked, response: Response<OriginBody>, note: Note) -> Response<Body> {
        let (mut parts, body) = response.into_parts();
        note.write(&mut parts.headers);
        let conditional = policy::conditional::is_conditional(&asked.parts.headers);
        if conditional
            && parts.status == StatusCode::OK
            && policy::conditional::is_not_modified(&asked.parts.headers, &parts.headers)
        {
            let mut short = Response::new(Body::Empty);
            *short.status_mut() = StatusCode::NOT_MODIFIED;
            let kept = parts
                .headers
                .iter()
                .filter(|(name, _)| policy::conditional::belongs_in_304(name));
            *short.headers_mut() = kept
                .map(|(name, value)| (name.clone(), value.clone()))
                .collect();
            return short;
        }
        Response::from_parts(parts, Body::Origin(body))
    }

    /// Stale stands in for a failed origin where it may (RFC 5861 §4); else the failure is told.
    fn stale_or_failure(
        &self,
        asked: &Asked,
        stored: Option<&Arc<Entry>>,
        failure: &Failure,
        note: Note,
    ) -> (Response<Body>, Note) {
        let now = self.clock.now();
        let usable = stored.filter(|entry| {
            failure.kind.is_origins() && policy::decide::usable_on_error(&entry.head.record, now)
        });
        let Some(entry) = usable else {
            let note = Note {
                detail: Some(Reason::OriginFailed),
                ..note
            };
            let index = asked.route.as_ref().map(|(index, _)| *index);
            return (
                self.failure_on(index, &asked.parts.method, failure, note),
                note,
            );
        };
        let (fresh, age) = (
            entry.head.record.lifetimes.fresh,
            entry.head.record.age(now),
        );
        let note = Note::hit(CacheResult::Stale, Reason::StaleIfError, fresh, age);
        let body = Body::Whole(entry.body());
        (
            deliver::deliver(
                &asked.parts.method,
                &asked.parts.headers,
                &entry.head,
                age,
                body,
                note,
            ),
            note,
        )
    }

    /// Bypass: to the origin and back, streamed both ways and never stored.
    async fn pass<B>(
        self: Arc<Self>,
        mut asked: Asked,
        body: B,
        note: Note,
    ) -> (Response<Body>, Note)
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: std::fmt::Display,
    {
        let index = asked.route.as_ref().map(|(index, _)| *index);
        let route = asked.route.as_ref().map(|(_, route)| &**route);
        let upgrade = forward::upgrade_of(&asked.parts).cloned();
        let limits = &self.config.limits;
        let body = tunnel::client_body(body, limits.request_body, limits.body_timeout);
        let request = self.forwarding.request(
            &asked.parts,
            asked.host.as_deref(),
            asked.client,
            route,
            Conditions::Pass,
            body,
        );
        let answer = match request {
            Ok(request) => self.origin.answer(request).await,
            Err(failure) => Err(failure),
        };
        match answer {
            Ok(mut response) => {
                let note = Note {
                    forward_status: Some(response.status()),
                    ..note
                };
                if response.status() == StatusCode::SWITCHING_PROTOCOLS {
                    let switched = tunnel::switch(&mut asked.parts, &mut response, upgrade);
                    return match switched {
                        Ok(response) => (response, note),
                        Err(failure) => (
                            self.failure_on(index, &asked.parts.method, &failure, note),
                            note,
                        ),
                    };
                }
                let version = response.version();
                forward::clean_response(response.headers_mut(), version, self.clock.now());
                note.write(response.headers_mut());
                (response.map(Body::Origin), note)
            }
            Err(failure) => {
                let note = Note {
                    detail: Some(Reason::OriginFailed),
                    ..note
                };
                (
                    self.failure_on(index, &asked.parts.method, &failure, note),
                    note,
                )
            }
        }
    }

    /// The response to what is not even a request head.
    pub fn refuse_head(&self, kind: FailureKind) -> Response<Bytes> {
        let limits = &self.config.limits;
        let message = match kind {
            FailureKind::HeadTooLarge => format!(
                "the request head has more than {} bytes or {} fields (limits.header_bytes, limits.header_count)",
                limits.header_bytes, limits.header_count
            ),
            FailureKind::TargetTooLong => "the request target is too long".to_owned(),
            _ => "the request head is not valid HTTP/1.1, or its framing is ambiguous".to_owned(),
        };
        // No method was read: counted under "OTHER".
        let method = Method::from_bytes(b"UNKNOWN").unwrap_or_default();
        self.metrics.failed(None, &method, kind);
        self.metrics
            .answered(None, &method, kind.status(), Duration::ZERO);
        self.metrics
            .cache_result(CacheResult::Bypass, Reason::Refused);
        error::response(
            &Failure::new(kind, message),
            self.clock.now(),
            &self.config.error_headers,
        )
    }

    /// The response to a failed request.
    fn failure(&self, failure: &Failure, note: Note) -> Response<Body> {
        let response = error::response(failure, self.clock.now(), &self.config.error_headers);
        let mut response = response.map(Body::Whole);
        note.write(response.headers_mut());
        response
    }

    fn failure_on(
        &self,
        route: Option<usize>,
        method: &Method,
        failure: &Failure,
        note: Note,
    ) -> Response<Body> {
        self.metrics.failed(route, method, failure.kind);
        tracing::debug!(%failure, "a request failed");
        self.failure(failure, note)
    }
}

/// A digest of who asks, where responses are kept apart by that (`share`, `cookies = "key"`).
fn partition(headers: &HeaderMap, options: &Options) -> Option<[u8; 32]> {
    let by_cookie = options.cookies == Cookies::Key;
    if options.share != Share::PerKey && !by_cookie {
        return None;
    }
    let mut digest = Sha256::new();
    let credentials = options
        .credential_fields
        .iter()
        .filter(|_| options.share == Share::PerKey);
    for name in credentials.chain(by_cookie.then_some(&http::header::COOKIE)) {
        for value in headers.get_all(name) {
            // Length first: no two lists of fields give the same bytes.
            for part in [name.as_str().as_bytes(), value.as_bytes()] {
                digest.update((part.len() as u64).to_be_bytes());
                digest.update(part);
            }
        }
    }
    Some(digest.finalize().into())
}

/// Requests with a credential do not wait for ones without, nor the other way round, where the
/// answer may only be shared among those without (RFC 9111 §3.5).
fn flight_key(asked: &Asked) -> KeyBytes {
    let mut key = asked.key.clone();
    let apart = asked.options().is_some_and(|options| {
        options.share == Share::Standard && options.has_credential(&asked.parts.headers)
    });
    if apart {
        key.extend_from_slice(b"\x02credential");
    }
    key
}

fn copy_of(parts: &request::Parts) -> request::Parts {
    let mut request = Request::new(());
    *request.method_mut() = Method::GET;
    *request.uri_mut() = parts.uri.clone();
    *request.version_mut() = parts.version;
    *request.headers_mut() = parts.headers.clone();
    request.into_parts().0
}

/// How long a failed origin is left alone about one stored response.
pub(super) fn pause(failure: &Failure) -> Duration {
    let asked_for = failure.retry_after.unwrap_or(Duration::from_secs(1));
    asked_for.clamp(Duration::from_secs(1), Duration::from_secs(60))
}
