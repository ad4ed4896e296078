//! The origin's side: `Requested → Headed (storable? shareable?) → Streaming → Complete | Failed`.
//!
//! A fetch is a task of its own. It tells its leader and its waiters what the head showed, streams
//! the body to them and into the store, and ends when the body does.

use std::sync::Arc;
use std::time::Duration;

use http::header::{ETAG, LAST_MODIFIED, RETRY_AFTER};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use tokio::sync::oneshot;

use crate::error::{Failure, FailureKind};
use crate::flight::{Outcome, Reader, Ticket};
use crate::guard::{Ruling, is_refusal};
use crate::metrics::Refresh;
use crate::policy::key::KeyBytes;
use crate::policy::storable::ResponseView;
use crate::policy::{self, Lifetimes, Options, Reason, RequestView, StoredView, update};
use crate::store::second::{Lease, Outcome as LeaseOutcome};
use crate::store::{Entry, Head};
use crate::upstream::{OriginBody, empty};

use super::clean::clean_response;
use super::exchange::Exchange;
use super::fleet::{About, Consulted};
use super::forward::{Conditions, unconditional};
use super::guarded::LetIn;
use super::part::Beginning;
use super::{Proxy, inspect};

/// What the request that leads a fetch is told.
pub(super) enum Led {
    /// It may be stored, and its body is coming in.
    Streaming {
        head: Arc<Head>,
        reader: Reader,
    },
    /// It is whole and stored; `status` is what the origin said: 304 where it confirmed.
    Stored {
        entry: Arc<Entry>,
        status: StatusCode,
    },
    /// The second tier had it, and it is stored here now.
    Found(Arc<Entry>),
    /// It is this request's alone.
    Own {
        response: Response<OriginBody>,
        reason: Reason,
    },
    Failed(Failure),
}

/// A stored response that a fetch confirms, or that stands in where the origin fails.
pub(super) struct Validation {
    pub entry: Arc<Entry>,
    etag: Option<HeaderValue>,
    last_modified: Option<HeaderValue>,
}

impl Validation {
    /// Asks the origin to confirm `entry`, by the validators that came from the origin.
    pub fn of(entry: Arc<Entry>) -> Self {
        let by_origin = entry.head.record.has_validator;
        let field = |name| entry.head.field(name).filter(|_| by_origin);
        Self {
            etag: field(&ETAG),
            last_modified: field(&LAST_MODIFIED),
            entry,
        }
    }

    /// `entry` may stand in for a failed origin, and no more.
    pub fn only_stale(entry: Arc<Entry>) -> Self {
        Self {
            entry,
            etag: None,
            last_modified: None,
        }
    }

    pub fn conditions(&self) -> Conditions<'_> {
        Conditions::Validate {
            etag: self.etag.as_ref(),
            last_modified: self.last_modified.as_ref(),
        }
    }

    fn asks(&self) -> bool {
        self.etag.is_some() || self.last_modified.is_some()
    }
}

/// One fetch, ready to run.
pub(super) struct Fetch {
    pub proxy: Arc<Proxy>,
    pub options: Options,
    /// The fields of the request that set it off, as the client sent them: `Vary` selects by them.
    pub client_headers: HeaderMap,
    pub primary: KeyBytes,
    /// The primary key, or that of the variant that the request selects.
    pub key: KeyBytes,
    pub request: Request<OriginBody>,
    pub ticket: Ticket,
    pub validation: Option<Validation>,
    /// What is known of the response already, where only the rest is asked for.
    pub begun: Option<Beginning>,
    /// `None`: a refresh behind a stale answer.
    pub leader: Option<oneshot::Sender<Led>>,
    /// Others can wait for it, in this process and in the fleet.
    pub is_shared: bool,
    pub let_in: Option<LetIn>,
}

/// A fetch after its request was sent.
pub(super) struct Fetching {
    pub proxy: Arc<Proxy>,
    pub options: Options,
    pub client_headers: HeaderMap,
    pub primary: KeyBytes,
    pub key: KeyBytes,
    pub ticket: Ticket,
    pub leader: Option<oneshot::Sender<Led>>,
    /// A refresh behind a stale answer.
    pub is_background: bool,
    pub exchange: Exchange,
    /// For whom else this fetch is, until they have been told.
    pub lease: Option<Lease>,
    /// The same request without our conditions, for an origin that answers them with nonsense.
    again: Option<Request<()>>,
    pub let_in: Option<LetIn>,
    /// The same request with the probe key, where there is one.
    probe: Option<Request<()>>,
    /// A miss on a shared route, to be asked again with another key.
    plain: Option<Request<()>>,
}

impl Fetch {
    /// Requested, to its end.
    pub async fn run(self) {
        let Self {
            proxy,
            options,
            client_headers,
            primary,
            key,
            mut request,
            ticket,
            mut validation,
            mut begun,
            leader,
            is_shared,
            let_in,
        } = self;
        let verifies = let_in.is_some_and(|let_in| let_in.verifies);
        let mut lease = None;
        let mut stamp = ticket.stamp();
        let second = proxy
            .second
            .as_ref()
            .filter(|second| is_shared && !verifies && second.is_usable());
        if let Some(second) = second {
            let refreshed = validation
                .as_ref()
                .map(|validation| &validation.entry)
                .filter(|_| leader.is_none());
            let about = About {
                primary: &primary,
                request: &client_headers,
                options: &options,
                is_apart: ticket.key().len() > key.len(),
                refreshes: refreshed.map(|entry| entry.head.record.born),
                is_cold: validation.is_none(),
            };
            let known = match proxy.consult(second, &about).await {
                Consulted::Promoted(entry) => return found(&proxy, ticket, leader, entry),
                Consulted::Fetch { lease: got, known } => {
                    lease = got;
                    known
                }
            };
            // That took a while, and the fetch begins now: what was purged meanwhile is not to be
            // confirmed.
            stamp = proxy.purge_position();
            let is_current = |entry: &Entry| proxy.memory.is_current(&primary, entry);
            if validation.is_none() && begun.is_none() {
                validation = known.map(Validation::of);
            }
            validation = validation.filter(|validation| is_current(&validation.entry));
            begun = begun.filter(|begun| is_current(&begun.part));
            let conditions = match (&validation, &begun) {
                (Some(validation), _) => validation.conditions(),
                (None, Some(begun)) => begun.conditions(),
                (None, None) => Conditions::Drop,
            };
            conditions.apply(request.headers_mut());
        }
        let asks = begun.is_some() || validation.as_ref().is_some_and(Validation::asks);
        let again = asks.then(|| without_conditions(&request));
        let probe = proxy.probe_of(let_in, &request);
        let plain = (let_in.is_some() && leader.is_some()).then(|| without_conditions(&request));
        let mut exchange = Exchange {
            stamp,
            ..Exchange::begin(&proxy)
        };
        let answer = proxy.origin.answer(request).await;
        exchange.received = proxy.clock.now();
        let asked = Fetching {
            exchange,
            again,
            proxy,
            options,
            client_headers,
            primary,
            key,
            ticket,
            is_background: leader.is_none(),
            leader,
            lease,
            let_in,
            probe,
            plain,
        };
        match answer {
            Ok(response) => asked.headed(response, validation, begun).await,
            Err(failure) => asked.failed(failure, validation.as_ref()),
        }
    }
}

/// The second tier had it: whoever waits finds it in the store.
fn found(proxy: &Proxy, ticket: Ticket, leader: Option<oneshot::Sender<Led>>, entry: Arc<Entry>) {
    ticket.publish(Outcome::Found);
    match leader {
        Some(leader) => drop(leader.send(Led::Found(entry))),
        None => proxy.metrics.refreshed(Refresh::Replaced),
    }
    ticket.finish(Ok(None));
}

pub(super) fn without_conditions<B>(request: &Request<B>) -> Request<()> {
    let mut again = Request::new(());
    *again.method_mut() = request.method().clone();
    *again.uri_mut() = request.uri().clone();
    *again.headers_mut() = request.headers().clone();
    unconditional(again.headers_mut());
    again
}

impl Fetching {
    /// Headed: what may be done with the response?
    async fn headed(
        mut self,
        mut response: Response<OriginBody>,
        validation: Option<Validation>,
        begun: Option<Beginning>,
    ) {
        if let Err(failure) = clean_response(&mut response, self.exchange.received) {
            self.proxy.metrics.upstream_failed(failure.kind);
            return self.failed(failure, validation.as_ref());
        }
        let status = response.status();
        let asks = validation.as_ref().is_some_and(Validation::asks);
        let is_proof = !asks && begun.is_none();
        let verifies = self.let_in.is_some_and(|let_in| let_in.verifies);
        if !status.is_success() && self.let_in.is_some() {
            let probe = self.probe.take();
            match self.proxy.rule(self.let_in, status, is_proof, probe).await {
                Ruling::Passes => {}
                Ruling::Refused => {
                    return self.own(response, Reason::Credential, validation.as_ref());
                }
                Ruling::Outage => return self.refused_in_outage(status),
            }
            if verifies && status.is_server_error() {
                return self.failed(origin_failure(&response), None);
            }
            // A page that asks to log in, say, or a refusal that its source has no word in: nothing
            // for those whose keys are good.
            if verifies || is_refusal(status) {
                return self.own(response, Reason::Credential, validation.as_ref());
            }
        }
        if let Some(begun) = begun {
            match response.status() {
                StatusCode::PARTIAL_CONTENT => {
                    if let Some(headers) = begun.completed_by(response.headers()) {
                        return self.complete(begun, headers, response).await;
                    }
                    begun.forget(&self.proxy, &self.primary);
                    return self.ask_again(None).await;
                }
                // It is shorter by now, say, and the origin does not know If-Range.
                StatusCode::RANGE_NOT_SATISFIABLE | StatusCode::PRECONDITION_FAILED => {
                    begun.forget(&self.proxy, &self.primary);
                    return self.ask_again(None).await;
                }
                _ => {}
            }
        }
        if response.status() == StatusCode::NOT_MODIFIED && !asks {
            let message = "the upstream answered 304 although nobody had set a condition";
            let failure = Failure::new(FailureKind::ProtocolError, message);
            self.proxy.metrics.upstream_failed(failure.kind);
            return self.failed(failure, validation.as_ref());
        }
        if let Some(validation) = &validation {
            if response.status() == StatusCode::NOT_MODIFIED && validation.asks() {
                let stored = validation.entry.head.fields.unpack(0);
                if !update::selects(&stored, response.headers()) {
                    let stale = Validation::only_stale(Arc::clone(&validation.entry));
                    return self.ask_again(Some(stale)).await;
                }
                return self.confirmed(response.headers(), validation);
            }
            let usable = self.may_stand_in(validation);
            if counts_as_failure(response.status()) && usable {
                return self.failed(origin_failure(&response), Some(validation));
            }
        }
        let rule = self.options.error_when.clone();
        if let Some(rule) = rule.filter(|rule| rule.concerns(response.status(), response.headers()))
        {
            response = match inspect::means_failure(response, &rule).await {
                Ok((false, response)) => response,
                Ok((true, response)) => return self.false_success(response, validation),
                Err(failure) => {
                    self.proxy.metrics.upstream_failed(failure.kind);
                    return self.failed(failure, validation.as_ref());
                }
            };
        }
        if status.is_success() {
            let none = None::<Request<()>>;
            let ruling = self.proxy.rule(self.let_in, status, is_proof, none);
            // A 2xx is never held against a key.
            let _ = ruling.await;
        }
        let view = ResponseView {
            status: response.status(),
            headers: response.headers(),
        };
        let judged = policy::storable(self.view(), view, &self.options, self.exchange.received);
        if let (Ok(_), Some(let_in), Some(plain)) = (&judged, self.let_in, self.plain.take()) {
            self.proxy.sample(let_in, &plain);
        }
        match judged {
            Ok(lifetimes) => self.store(response, lifetimes, validation).await,
            Err(reason) => self.own(response, reason, validation.as_ref()),
        }
    }

    /// Once more, without conditions: the answer to them was about something that is not stored
    /// (§4.3.4).
    pub(super) async fn ask_again(mut self, stale: Option<Validation>) {
        let Some(again) = self.again.take() else {
            let message = "the origin answered a condition that nobody had set";
            let failure = Failure::new(FailureKind::ProtocolError, message);
            return self.failed(failure, stale.as_ref());
        };
        self.exchange.requested = self.proxy.clock.now();
        let proxy = Arc::clone(&self.proxy);
        let answer = proxy.origin.answer(again.map(|()| empty())).await;
        self.exchange.received = proxy.clock.now();
        match answer {
            Ok(response) => Box::pin(self.headed(response, stale, None)).await,
            Err(failure) => self.failed(failure, stale.as_ref()),
        }
    }

    fn may_stand_in(&self, stale: &Validation) -> bool {
        let now = self.exchange.received;
        self.proxy.may_stand_in(&self.primary, &stale.entry, now)
    }

    /// A 2xx whose body means failure: stale in its place where there is some, else the client gets
    /// it as it came. It is stored in no case.
    fn false_success(self, response: Response<OriginBody>, validation: Option<Validation>) {
        let usable = validation
            .as_ref()
            .is_some_and(|validation| self.may_stand_in(validation));
        if usable {
            let message = "the body of the origin's answer means failure (error_when)";
            let failure = Failure::new(FailureKind::OriginFailed, message);
            self.proxy.metrics.upstream_failed(failure.kind);
            return self.failed(failure, validation.as_ref());
        }
        self.own(response, Reason::OriginFailed, validation.as_ref());
    }

    pub(super) fn view(&self) -> RequestView<'_> {
        RequestView {
            // Only GET comes here: HEAD and the rest pass by.
            method: &http::Method::GET,
            headers: &self.client_headers,
            has_body: false,
        }
    }

    /// The stored response, updated by the 304 (RFC 9111 §4.3.4).
    fn confirmed(mut self, headers: &HeaderMap, validation: &Validation) {
        let stored = &validation.entry;
        let (request, options) = (&self.client_headers, &self.options);
        let (entry, judged) = self
            .proxy
            .updated(stored, headers, request, options, self.exchange);
        let Some(entry) = entry else {
            // No room for the update: the old one still answers this once.
            let status = StatusCode::NOT_MODIFIED;
            return self.tell_stored(Arc::clone(stored), status, judged);
        };
        match judged {
            Ok(()) => self.keep(Arc::clone(&entry)),
            // It may no longer be stored, or not by this request's leave.
            Err(reason) if reason.is_of_the_response() => {
                self.proxy.memory.remove(&self.primary, stored);
                self.proxy.forget_shared(&self.primary);
            }
            Err(_) => {
                let until = self
                    .exchange
                    .received
                    .plus(self.proxy.config.cache.hit_for_miss);
                self.leave_alone(Some(validation).filter(|_| self.is_background), until);
            }
        }
        self.refreshed(Refresh::Confirmed);
        self.tell_stored(entry, StatusCode::NOT_MODIFIED, judged);
    }

    pub(super) fn tell_stored(
        mut self,
        entry: Arc<Entry>,
        status: StatusCode,
        may_store: Result<(), Reason>,
    ) {
        self.release(match may_store {
            Ok(()) => LeaseOutcome::Dropped,
            Err(_) => LeaseOutcome::NotStorable,
        });
        let is_reusable = StoredView::of(&entry.head.record).is_reusable(self.exchange.received);
        self.ticket.publish(match may_store {
            Ok(()) if is_reusable => Outcome::Stored(Arc::clone(&entry)),
            Ok(()) => Outcome::NotShared(Reason::MustValidate),
            Err(reason) => Outcome::NotShared(reason),
        });
        self.tell(Led::Stored { entry, status });
        self.ticket.finish(Ok(None));
    }

    pub(super) fn head(
        &self,
        status: StatusCode,
        headers: &HeaderMap,
        lifetimes: Lifetimes,
    ) -> Head {
        let (request, options) = (&self.client_headers, &self.options);
        self.exchange
            .head(status, headers, lifetimes, request, options)
    }
}

/// Statuses for which stale may stand in (RFC 5861 §4), and the one that asks for a pause.
fn counts_as_failure(status: StatusCode) -> bool {
    matches!(status.as_u16(), 429 | 500 | 502 | 503 | 504)
}

fn origin_failure(response: &Response<OriginBody>) -> Failure {
    let message = format!("the origin answered {}", response.status());
    let failure = Failure {
        status: Some(response.status()),
        ..Failure::new(FailureKind::OriginFailed, message)
    };
    let seconds = response
        .headers()
        .get(RETRY_AFTER)
        .and_then(|value| value.to_str().ok()?.parse().ok());
    match seconds {
        Some(seconds) => failure.retry_after(Duration::from_secs(seconds)),
        None => failure,
    }
}

/// How long a failed origin is left alone about one stored response.
pub(super) fn pause(failure: &Failure) -> Duration {
    let asked_for = failure.retry_after.unwrap_or(Duration::from_secs(1));
    asked_for.clamp(Duration::from_secs(1), Duration::from_secs(60))
}
