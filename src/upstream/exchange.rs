//! One exchange with the upstream: send, wait for the head, retry once on a dead kept connection,
//! and pass the body on under a deadline between its pieces.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use tokio::sync::Notify;
use tokio::time::Sleep;
use tracing::{info, warn};

use crate::error::{Failure, FailureKind};
use crate::http::fields;

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
        let mut trial = Trial {
            upstream: self,
            asked: Instant::now(),
            is_judged: false,
        };
        let result = self.attempts(request).await;
        trial.judge(&result);
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
                    // The first attempt may have been acted on: that one is told, not the second.
                    let Ok(lease) = self.lease(true).await else {
                        return Err(failure);
                    };
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
        let is_bound = fields::authenticates_connection(request.headers());
        let body_sent = Arc::new(Notify::new());
        let request = request.map(|body| watched(body, &body_sent));
        let sent = lease.sender.try_send_request(request);
        // The upstream's time begins when it has the whole request: a client that sends slowly is
        // not its fault.
        let overdue = async {
            body_sent.notified().await;
            tokio::time::sleep(self.config.response_timeout).await;
        };
        let answered = tokio::select! {
            answered = sent => Some(answered),
            () = overdue => None,
        };
        let response = match answered {
            Some(Ok(response)) => response,
            Some(Err(mut error)) => {
                let unsent = error.take_message().map(Box::new);
                return Err(Attempt {
                    failure: describe(error.error()),
                    unsent,
                });
            }
            None => {
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
        lease.is_bound = is_bound || fields::binds_connection(response.headers());
        // A switched connection is no longer the pool's.
        let lease = (response.status() != StatusCode::SWITCHING_PROTOCOLS).then_some(lease);
        Ok(response.map(|body| ResponseBody::new(body, lease, read_timeout).boxed_unsync()))
    }
}

/// What one exchange teaches the breaker, also where its client leaves before the answer.
struct Trial<'a> {
    upstream: &'a Upstream,
    asked: Instant,
    is_judged: bool,
}

impl Trial<'_> {
    fn judge(&mut self, result: &Result<Response<OriginBody>, Failure>) {
        self.is_judged = true;
        let Upstream {
            breaker, metrics, ..
        } = self.upstream;
        match result {
            Ok(_) => {
                if breaker.succeeded() {
                    info!("the upstream answers again: the breaker is closed");
                }
                metrics.upstream_answered(self.asked.elapsed());
            }
            Err(failure) => {
                metrics.upstream_failed(failure.kind);
                match failure.kind {
                    // Nothing was learned of the upstream: the queue was full, or the client's own
                    // body failed.
                    FailureKind::QueueFull
                    | FailureKind::BodyTooLarge
                    | FailureKind::RequestTimeout
                    | FailureKind::BadRequest => breaker.untried(),
                    _ => self.count_failure(failure),
                }
            }
        }
    }

    fn count_failure(&self, failure: &Failure) {
        if self.upstream.breaker.failed(Instant::now()) {
            let pause = self.upstream.config.breaker_open;
            warn!(%failure, ?pause, "the upstream failed too often: the breaker is open");
        }
    }
}

impl Drop for Trial<'_> {
    fn drop(&mut self) {
        if !self.is_judged {
            self.upstream.breaker.untried();
        }
    }
}

/// Tells `sent` when the body has been sent, or never will be.
fn watched(body: OriginBody, sent: &Arc<Notify>) -> OriginBody {
    if body.is_end_stream() {
        sent.notify_one();
        return body;
    }
    let tell = Tell(Arc::clone(sent));
    let body = body.map_frame(move |frame| {
        let _lives_as_long_as_the_body = &tell;
        frame
    });
    body.boxed_unsync()
}

struct Tell(Arc<Notify>);

impl Drop for Tell {
    fn drop(&mut self) {
        self.0.notify_one();
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
