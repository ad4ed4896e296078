//! One exchange with the upstream: send, wait for the head, retry once on a dead kept connection,
//! and pass the body on under a deadline between its pieces.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use tokio::time::{Sleep, timeout};
use tracing::{info, warn};

use crate::error::{Failure, FailureKind};

use super::OriginBody;
use super::pool::{Lease, Upstream};

impl Upstream {
    /// Sends `request` and waits for the response head.
    pub(super) async fn exchange(
        &self,
        request: Request<OriginBody>,
    ) -> Result<Response<OriginBody>, Failure> {
        if let Err(wait) = self.breaker.admit(Instant::now()) {
            let message = "the upstream failed too often and is given a pause";
            return Err(Failure::new(FailureKind::BreakerOpen, message).retry_after(wait));
        }
        let asked = Instant::now();
        let result = self.attempts(request).await;
        match &result {
            Ok(_) => {
                if self.breaker.succeeded() {
                    info!("the upstream answers again: the breaker is closed");
                }
                self.metrics.upstream_answered(asked.elapsed());
            }
            Err(failure) => {
                self.metrics.upstream_failed(failure.kind);
                match failure.kind {
                    // Nothing was learned of the upstream.
                    FailureKind::QueueFull => self.breaker.untried(),
                    // The client's own body failed.
                    FailureKind::BodyTooLarge
                    | FailureKind::RequestTimeout
                    | FailureKind::BadRequest => self.breaker.untried(),
                    _ if self.breaker.failed(Instant::now()) => {
                        let pause = self.config.breaker_open;
                        warn!(%failure, ?pause, "the upstream failed too often: the breaker is open");
                    }
                    _ => {}
                }
            }
        }
        result
    }

    async fn attempts(
        &self,
        request: Request<OriginBody>,
    ) -> Result<Response<OriginBody>, Failure> {
        let again = repeatable(&request);
        let lease = self.lease(false).await?;
        let is_reused = lease.is_reused;
        match self.attempt(lease, request).await {
            Ok(response) => Ok(response),
            Err(Attempt {
                unsent: Some(request),
                ..
            }) if is_reused => {
                self.metrics.upstream_retries.inc();
                let lease = self.lease(true).await?;
                self.attempt(lease, *request)
                    .await
                    .map_err(|attempt| attempt.failure)
            }
            Err(Attempt { failure, .. }) => match again {
                // A kept connection that dies before a byte of the answer most likely died before
                // the request reached it; asking again is safe only for idempotent methods
                // (RFC 9112 §9.3.1).
                Some(request) if is_reused && failure.kind == FailureKind::ConnectionClosed => {
                    self.metrics.upstream_retries.inc();
                    let lease = self.lease(true).await?;
                    self.attempt(lease, request)
                        .await
                        .map_err(|attempt| attempt.failure)
                }
                _ => Err(failure),
            },
        }
    }

    async fn attempt(
        &self,
        mut lease: Lease,
        request: Request<OriginBody>,
    ) -> Result<Response<OriginBody>, Attempt> {
        let sent = lease.sender.try_send_request(request);
        let response = match timeout(self.config.response_timeout, sent).await {
            Ok(Ok(response)) => response,
            Ok(Err(mut error)) => {
                let unsent = error.take_message().map(Box::new);
                return Err(Attempt {
                    failure: describe(error.error()),
                    unsent,
                });
            }
            Err(_) => {
                let message = format!(
                    "no response from the upstream within {:?}",
                    self.config.response_timeout
                );
                return Err(Attempt {
                    failure: Failure::new(FailureKind::ResponseTimeout, message),
                    unsent: None,
                });
            }
        };
        let read_timeout = self.config.read_timeout;
        // A switched connection is no longer the pool's.
        let lease = (response.status() != StatusCode::SWITCHING_PROTOCOLS).then_some(lease);
        Ok(response.map(|body| ResponseBody::new(body, lease, read_timeout).boxed_unsync()))
    }
}

/// A failed attempt, and the request if not a byte of it was sent.
struct Attempt {
    failure: Failure,
    unsent: Option<Box<Request<OriginBody>>>,
}

/// A copy of a request that may be sent twice: idempotent (RFC 9110 §9.2.2) and without a body.
fn repeatable(request: &Request<OriginBody>) -> Option<Request<OriginBody>> {
    let method = request.method();
    let is_idempotent = method.is_idempotent() || *method == Method::TRACE;
    if !is_idempotent || !request.body().is_end_stream() {
        return None;
    }
    let mut copy = Request::new(empty());
    *copy.method_mut() = method.clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.headers_mut() = request.headers().clone();
    Some(copy)
}

/// A body without bytes.
pub fn empty() -> OriginBody {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

fn describe(error: &hyper::Error) -> Failure {
    // A body of ours that failed carries its own failure.
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        if let Some(failure) = cause.downcast_ref::<Failure>() {
            return failure.clone();
        }
        source = cause.source();
    }
    let kind = if error.is_parse() {
        FailureKind::ProtocolError
    } else {
        FailureKind::ConnectionClosed
    };
    Failure::new(kind, format!("the upstream did not answer: {error}"))
}

/// The body of a response, which gives its connection back when it has come whole.
struct ResponseBody {
    body: Incoming,
    lease: Option<Lease>,
    read_timeout: Duration,
    /// Made when a piece lets itself be waited for.
    deadline: Option<Pin<Box<Sleep>>>,
}

impl ResponseBody {
    fn new(body: Incoming, lease: Option<Lease>, read_timeout: Duration) -> Self {
        let mut this = Self {
            body,
            lease,
            read_timeout,
            deadline: None,
        };
        if this.body.is_end_stream() {
            this.give_back();
        }
        this
    }

    fn give_back(&mut self) {
        if let Some(lease) = self.lease.take() {
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
                        this.lease = None;
                        let message = format!("the upstream's response broke off: {error}");
                        Poll::Ready(Some(Err(Failure::new(
                            FailureKind::ResponseIncomplete,
                            message,
                        ))))
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
                this.lease = None;
                let message = format!(
                    "nothing came from the upstream for {read_timeout:?} in the middle of a body"
                );
                Poll::Ready(Some(Err(Failure::new(FailureKind::BodyTimeout, message))))
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
