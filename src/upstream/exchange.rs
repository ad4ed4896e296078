//! One exchange with the upstream: send, wait for the head, retry once on a dead kept connection,
//! and pass the body on under a deadline between its pieces.

use std::fmt::Display;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{CONNECTION, HOST, TRANSFER_ENCODING, UPGRADE};
use http::uri::Authority;
use http::{Request, Response, StatusCode, Uri, Version};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::time::Sleep;
use tracing::{info, warn};

use crate::config::{self, Protocol};
use crate::error::{Failure, FailureKind};
use crate::http::fields;
use crate::trace::{Observed, Span};

use super::address::Address;
use super::breaker::{Fault, url_hash};
use super::pool::{Lease, Upstream};
use super::sender::was_not_begun;
use super::sending::Sending;
use super::{OriginBody, Started};

impl Upstream {
    /// Sends `request` and waits for the response head.
    pub(super) async fn exchange(
        &self,
        request: Request<OriginBody>,
    ) -> Result<Response<OriginBody>, Failure> {
        let asked = Instant::now();
        if let Err(wait) = self.breaker.admit(asked) {
            let message =
                "most of what the upstream was asked has failed: it is asked once a second";
            return Err(Failure::new(FailureKind::BreakerOpen, message).retry_after(wait));
        }
        let url = url_hash(request.uri());
        let observed = request.extensions().get::<Arc<Observed>>().cloned();
        let result = self.attempts(request).await;
        if let Some(observed) = observed {
            observed.took(Span::Upstream, asked);
        }
        if let Some(name) = &self.name {
            let upstreams = &self.metrics.upstreams;
            upstreams.ended(name, result.is_ok(), asked.elapsed());
        }
        match &result {
            Ok(_) => {
                if self.breaker.succeeded(Instant::now()) {
                    info!("the upstream answers again: the breaker is closed");
                }
                self.metrics.upstream_answered(asked.elapsed());
            }
            Err(failure) => {
                self.metrics.upstream_failed(failure.kind);
                self.count_failure(failure, url);
            }
        }
        result
    }

    /// What a failure teaches the breaker.
    pub(super) fn count_failure(&self, failure: &Failure, url: u64) {
        let fault = match failure.kind {
            FailureKind::DnsFailed
            | FailureKind::ConnectFailed
            | FailureKind::ConnectTimeout
            | FailureKind::TlsFailed => Fault::Connection,
            FailureKind::ConnectionClosed | FailureKind::ResponseTimeout => Fault::Answer(url),
            FailureKind::ResponseIncomplete | FailureKind::BodyTimeout => Fault::Body(url),
            // Nothing was learned of the upstream: the queue was full, descriptors were short, or
            // the client's own body failed.
            _ => return,
        };
        if self.breaker.failed(fault, Instant::now()) {
            warn!(%failure, "most of what the upstream was asked has failed: the breaker is open");
        }
    }

    async fn attempts(
        &self,
        request: Request<OriginBody>,
    ) -> Result<Response<OriginBody>, Failure> {
        self.retries.add();
        let lease = self.lease(false).await?;
        if let Some(started) = request.extensions().get::<Started>() {
            started.tell();
        }
        let is_reused = lease.is_reused;
        let is_multiplexed = self.config().protocol == Protocol::Http2;
        let (sending, request) = Sending::watch(request, is_multiplexed);
        let attempt = match self.attempt(lease, request, &sending).await {
            Ok(response) => return Ok(response),
            Err(attempt) => attempt,
        };
        let Attempt {
            failure,
            unsent,
            was_not_begun,
        } = attempt;
        if !(is_reused || was_not_begun) {
            return Err(failure);
        }
        if let Some(request) = unsent {
            if !self.retries.take() {
                return Err(failure);
            }
            self.metrics.upstream_retries.inc();
            let lease = self.lease(!is_multiplexed).await?;
            let again = self.attempt(lease, *request, &sending).await;
            return again.map_err(|attempt| attempt.failure);
        }
        // A kept connection that dies before a byte of the answer most likely died before the
        // request reached it; asking again is safe only for idempotent methods (RFC 9110 §9.2.2,
        // RFC 9112 §9.3.1).
        let is_dead = matches!(
            failure.kind,
            FailureKind::ConnectionClosed | FailureKind::UploadBroken
        );
        let again = match (was_not_begun, is_dead) {
            (true, _) => sending.again_whatever_it_is().await,
            (false, true) => sending.again().await,
            (false, false) => None,
        };
        let Some(again) = again.filter(|_| self.retries.take()) else {
            return Err(failure);
        };
        self.metrics.upstream_retries.inc();
        // The first attempt may have been acted on: that one is told, not the second.
        let Ok(lease) = self.lease(!is_multiplexed).await else {
            return Err(failure);
        };
        let (sending, again) = Sending::watch(again, is_multiplexed);
        let again = self.attempt(lease, again, &sending).await;
        again.map_err(|attempt| attempt.failure)
    }

    async fn attempt(
        &self,
        mut lease: Lease,
        request: Request<OriginBody>,
        sending: &Arc<Sending>,
    ) -> Result<Response<OriginBody>, Attempt> {
        let is_bound = fields::authenticates_connection(request.headers());
        let url = url_hash(request.uri());
        let mut response = self.head(&mut lease, request, sending, url).await?;
        let address = Arc::clone(lease.address());
        address.began_to_answer();
        lease.is_bound = is_bound || fields::binds_connection(response.headers());
        if !sending.is_whole() && fields::has_member(response.headers(), CONNECTION, "close") {
            // It wants no more of the request: neither do we from the client (RFC 9112 §9.5).
            sending.stop();
            lease.is_over = true;
            response.extensions_mut().insert(UploadUnwanted);
        }
        let lease = if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            address.succeeded();
            response.extensions_mut().insert(lease.into_seat());
            None
        } else {
            Some(lease)
        };
        let read_timeout = self.config().read_timeout;
        let told = FailureOf {
            upstream: self.this.clone(),
            address,
            url,
        };
        response.extensions_mut().insert(told.clone());
        Ok(response.map(|body| ResponseBody::new(body, lease, read_timeout, told).boxed_unsync()))
    }

    /// Sends a request and waits for the head of its answer.
    async fn head(
        &self,
        lease: &mut Lease,
        request: Request<OriginBody>,
        sending: &Arc<Sending>,
        url: u64,
    ) -> Result<Response<Incoming>, Attempt> {
        let unanswered = lease.sends();
        let config = self.config();
        let request = match config.protocol {
            Protocol::Http1 => request,
            Protocol::Http2 => as_http_2(request, &config),
        };
        let sent = lease.sender.send(request);
        // The upstream's time begins when it has the whole request: a client that sends slowly is
        // not its fault.
        let limit = config.response_timeout;
        let overdue = async {
            tokio::select! {
                () = sending.let_go() => tokio::time::sleep(limit).await,
                () = sending.stuck_for(limit) => {}
            }
        };
        let answered = tokio::select! {
            answered = sent => Some(answered),
            () = overdue => None,
        };
        let addresses = &self.connector.addresses;
        match answered {
            Some(Ok(response)) => {
                unanswered.was_answered();
                Ok(response)
            }
            Some(Err(mut error)) => {
                let attempt = Attempt {
                    unsent: error.take_message().map(Box::new),
                    failure: describe(error.error(), sending),
                    was_not_begun: was_not_begun(error.error()),
                };
                // That a kept connection was dead says nothing of its address, nor what a client
                // has done.
                let is_news = config.protocol == Protocol::Http2 || !lease.is_reused;
                let is_of_it = attempt.failure.kind == FailureKind::ConnectionClosed;
                if is_news && is_of_it && !attempt.was_not_begun {
                    addresses.failed(lease.address(), url);
                }
                Err(attempt)
            }
            None => {
                addresses.failed(lease.address(), url);
                let message = format!("no response from the upstream within {limit:?}");
                Err(Attempt {
                    failure: Failure::new(FailureKind::ResponseTimeout, message),
                    unsent: None,
                    was_not_begun: false,
                })
            }
        }
    }
}

/// In the extensions of a response: the upstream answered before it had the whole request, and
/// wants no more of it.
#[derive(Clone, Copy, Debug)]
pub struct UploadUnwanted;

/// In the extensions of a response: who hears where its body fails, and of which URL.
#[derive(Clone)]
pub struct FailureOf {
    upstream: Weak<Upstream>,
    address: Arc<Address>,
    url: u64,
}

impl FailureOf {
    /// The body has failed: whoever reads it has waited for long enough, say.
    pub fn tell(&self, failure: &Failure) {
        if let Some(upstream) = self.upstream.upgrade() {
            upstream.count_failure(failure, self.url);
            upstream.connector.addresses.failed(&self.address, self.url);
        }
    }
}

/// A failed attempt, and the request if not a byte of it was sent.
struct Attempt {
    failure: Failure,
    unsent: Option<Box<Request<OriginBody>>>,
    /// The upstream has said that it did nothing about it.
    was_not_begun: bool,
}

/// The same request for HTTP/2: scheme and host stand in its target, and nothing is of the
/// connection (RFC 9113 §8.2.2, §8.3.1).
pub(super) fn as_http_2(
    mut request: Request<OriginBody>,
    config: &config::Upstream,
) -> Request<OriginBody> {
    if request.version() == Version::HTTP_2 {
        // It is sent once more.
        return request;
    }
    let host = request.headers_mut().remove(HOST);
    let authority = host
        .and_then(|host| Authority::try_from(host.as_bytes()).ok())
        .or_else(|| Authority::try_from(config.authority()).ok());
    let mut parts = std::mem::take(request.uri_mut()).into_parts();
    parts.scheme = Some(config.scheme.clone());
    parts.authority = authority;
    if let Ok(uri) = Uri::from_parts(parts) {
        *request.uri_mut() = uri;
    }
    for name in [CONNECTION, UPGRADE, TRANSFER_ENCODING] {
        request.headers_mut().remove(name);
    }
    *request.version_mut() = Version::HTTP_2;
    request
}

fn describe(error: &hyper::Error, sending: &Sending) -> Failure {
    // A body of ours that failed carries its own failure.
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        if let Some(failure) = cause.downcast_ref::<Failure>() {
            return failure.clone();
        }
        source = cause.source();
    }
    if error.is_parse() {
        let message = format!("the upstream did not answer in HTTP: {error}");
        return Failure::new(FailureKind::ProtocolError, message);
    }
    if !sending.is_whole() {
        let message = "the upstream hung up while the request was being sent, and answered nothing";
        return Failure::new(FailureKind::UploadBroken, message);
    }
    let message = format!("the upstream did not answer: {error}");
    Failure::new(FailureKind::ConnectionClosed, message)
}

/// The body of a response, which gives its connection back when it has come whole.
struct ResponseBody {
    body: Incoming,
    lease: Option<Lease>,
    read_timeout: Duration,
    told: FailureOf,
    /// Made when a piece lets itself be waited for.
    deadline: Option<Pin<Box<Sleep>>>,
}

impl ResponseBody {
    fn new(body: Incoming, lease: Option<Lease>, read_timeout: Duration, told: FailureOf) -> Self {
        let mut this = Self {
            body,
            lease,
            read_timeout,
            told,
            deadline: None,
        };
        if this.body.is_end_stream() {
            this.give_back();
        }
        this
    }

    fn failed(&mut self, kind: FailureKind, message: impl Display) -> Failure {
        self.lease = None;
        let failure = Failure::new(kind, message);
        self.told.tell(&failure);
        failure
    }

    fn give_back(&mut self) {
        if let Some(lease) = self.lease.take() {
            self.told.address.succeeded();
            lease.give_back();
        }
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = Failure;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Failure>>> {
        let this = &mut *self;
        match Pin::new(&mut this.body).poll_frame(context) {
            Poll::Ready(frame) => {
                this.deadline = None;
                match frame {
                    Some(Ok(frame)) => {
                        if this.body.is_end_stream() {
                            this.give_back();
                        }
                        Poll::Ready(Some(Ok(frame)))
                    }
                    Some(Err(error)) => {
                        let message = format!("the upstream's response broke off: {error}");
                        let failure = this.failed(FailureKind::ResponseIncomplete, message);
                        Poll::Ready(Some(Err(failure)))
                    }
                    None => {
                        this.give_back();
                        Poll::Ready(None)
                    }
                }
            }
            Poll::Pending => {
                let read_timeout = this.read_timeout;
                let deadline = this
                    .deadline
                    .get_or_insert_with(|| Box::pin(tokio::time::sleep(read_timeout)));
                ready!(deadline.as_mut().poll(context));
                let message = format!(
                    "nothing came from the upstream for {read_timeout:?} in the middle of a body"
                );
                let failure = this.failed(FailureKind::BodyTimeout, message);
                Poll::Ready(Some(Err(failure)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
