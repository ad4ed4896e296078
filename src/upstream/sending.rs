//! A request on its way to the upstream: how far its body has got, and what is needed to send it
//! once more.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Uri};
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt, Empty};
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, sleep_until};

use super::OriginBody;

/// Bytes of a body that are kept, so that it can be sent once more.
const KEPT: usize = 64 << 10;

/// How far a request has got.
#[derive(Debug)]
pub struct Sending {
    /// Told when the body has ended, or was let go.
    let_go: Notify,
    is_let_go: AtomicBool,
    /// All of the body was handed over.
    is_whole: AtomicBool,
    /// Since when the upstream has taken nothing of what it was given; `None` while more is asked
    /// for.
    given: Mutex<Option<Instant>>,
    /// The upstream wants no more of it.
    is_unwanted: AtomicBool,
    is_idempotent: bool,
    kept: Mutex<Kept>,
}

/// What is needed to send a request once more.
#[derive(Debug, Default)]
struct Kept {
    head: Option<(Method, Uri, HeaderMap)>,
    /// The frames so far; `None` where they are too many.
    frames: Option<Vec<Piece>>,
    size: usize,
    /// What of the body was not asked for yet.
    rest: Option<OriginBody>,
}

#[derive(Clone, Debug)]
enum Piece {
    Data(Bytes),
    Trailers(HeaderMap),
}

impl Sending {
    /// Watches a request. Where its method is idempotent (RFC 9110 §9.2.2), or `keeps_all`, what is
    /// needed to send it once more is kept.
    pub fn watch(
        request: Request<OriginBody>,
        keeps_all: bool,
    ) -> (Arc<Self>, Request<OriginBody>) {
        let method = request.method();
        let is_idempotent = method.is_idempotent() || *method == Method::TRACE;
        let head = (is_idempotent || keeps_all).then(|| {
            let headers = request.headers().clone();
            (method.clone(), request.uri().clone(), headers)
        });
        let sending = Arc::new(Self {
            let_go: Notify::new(),
            is_let_go: AtomicBool::new(false),
            is_whole: AtomicBool::new(false),
            given: Mutex::default(),
            is_unwanted: AtomicBool::new(false),
            is_idempotent,
            kept: Mutex::new(Kept {
                frames: head.is_some().then(Vec::new),
                head,
                ..Kept::default()
            }),
        });
        let request = request.map(|body| Self::watch_body(&sending, body));
        (sending, request)
    }

    fn watch_body(sending: &Arc<Self>, body: OriginBody) -> OriginBody {
        if body.is_end_stream() {
            sending.is_whole.store(true, Ordering::Relaxed);
            sending.tell();
            return body;
        }
        let sending = Arc::clone(sending);
        let body = Some(body);
        WatchedBody { body, sending }.boxed_unsync()
    }

    /// Waits until the body is sent, or never will be.
    pub async fn let_go(&self) {
        // Told from here on: what comes after the look is not missed.
        let told = self.let_go.notified();
        if !self.is_let_go.load(Ordering::Acquire) {
            told.await;
        }
    }

    /// Waits until the upstream has taken nothing of the body for so long, although there was more:
    /// it does not read. A client that sends slowly is waited for by its own deadline.
    pub async fn stuck_for(&self, limit: Duration) {
        loop {
            let given = *self.given();
            match given {
                Some(at) if at.elapsed() >= limit => return,
                Some(at) => sleep_until(at + limit).await,
                None => sleep(limit).await,
            }
        }
    }

    fn given(&self) -> MutexGuard<'_, Option<Instant>> {
        self.given.lock()
    }

    fn tell(&self) {
        self.is_let_go.store(true, Ordering::Release);
        self.let_go.notify_waiters();
    }

    pub fn is_whole(&self) -> bool {
        self.is_whole.load(Ordering::Relaxed)
    }

    /// No more of the body is asked for.
    pub fn stop(&self) {
        self.is_unwanted.store(true, Ordering::Relaxed);
    }

    pub fn is_stopped(&self) -> bool {
        self.is_unwanted.load(Ordering::Relaxed)
    }

    /// The request once more, from its first byte, where that is safe and all of it is still there.
    pub async fn again(&self) -> Option<Request<OriginBody>> {
        if !self.is_idempotent {
            return None;
        }
        self.again_whatever_it_is().await
    }

    /// The same of a request about which nothing was done.
    pub async fn again_whatever_it_is(&self) -> Option<Request<OriginBody>> {
        if !self.kept().can_be_repeated() {
            return None;
        }
        if !self.is_whole() {
            // The connection's task has the rest until it ends.
            self.let_go().await;
        }
        let mut kept = self.kept();
        let (method, uri, headers) = kept.head.take()?;
        let frames = kept.frames.take()?;
        let rest = kept.rest.take();
        drop(kept);
        let body = if frames.is_empty() {
            rest.unwrap_or_else(empty)
        } else {
            let frames = frames.into_iter().map(|piece| match piece {
                Piece::Data(data) => Frame::data(data),
                Piece::Trailers(trailers) => Frame::trailers(trailers),
            });
            begun(frames.collect(), rest)
        };
        let mut request = Request::new(body);
        *request.method_mut() = method;
        *request.uri_mut() = uri;
        *request.headers_mut() = headers;
        Some(request)
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock()
    }
}

impl Kept {
    fn can_be_repeated(&self) -> bool {
        self.head.is_some() && self.frames.is_some()
    }

    fn keep(&mut self, frame: &Frame<Bytes>) {
        let Some(frames) = &mut self.frames else {
            return;
        };
        if let Some(data) = frame.data_ref() {
            self.size += data.len();
            frames.push(Piece::Data(data.clone()));
        } else if let Some(trailers) = frame.trailers_ref() {
            frames.push(Piece::Trailers(trailers.clone()));
        }
        if self.size > KEPT {
            self.frames = None;
        }
    }
}

/// The body of a request that is being sent.
struct WatchedBody {
    /// Taken out at the end.
    body: Option<OriginBody>,
    sending: Arc<Sending>,
}

impl Body for WatchedBody {
    type Data = Bytes;
    type Error = crate::error::Failure;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let Self {
            body: slot,
            sending,
        } = &mut *self;
        if sending.is_stopped() {
            return Poll::Pending;
        }
        let Some(body) = slot else {
            return Poll::Ready(None);
        };
        *sending.given() = None;
        let frame = std::task::ready!(Pin::new(&mut *body).poll_frame(context));
        *sending.given() = Some(Instant::now());
        let is_end = frame.is_none() || body.is_end_stream();
        match &frame {
            Some(Ok(frame)) => sending.kept().keep(frame),
            // What the client broke off is not sent again.
            Some(Err(_)) => sending.kept().head = None,
            None => {}
        }
        if is_end {
            *slot = None;
            sending.is_whole.store(true, Ordering::Relaxed);
            sending.tell();
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        let hint = self.body.as_ref().map(Body::size_hint);
        hint.unwrap_or_else(|| SizeHint::with_exact(0))
    }
}

impl Drop for WatchedBody {
    fn drop(&mut self) {
        if let Some(body) = self.body.take() {
            self.sending.kept().rest = Some(body);
            self.sending.tell();
        }
    }
}

/// A body without bytes.
pub fn empty() -> OriginBody {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

/// A body of which the first frames were taken already, put together again.
pub fn begun(frames: VecDeque<Frame<Bytes>>, rest: Option<OriginBody>) -> OriginBody {
    Begun { frames, rest }.boxed_unsync()
}

struct Begun {
    frames: VecDeque<Frame<Bytes>>,
    rest: Option<OriginBody>,
}

impl Body for Begun {
    type Data = Bytes;
    type Error = crate::error::Failure;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        if let Some(frame) = self.frames.pop_front() {
            return Poll::Ready(Some(Ok(frame)));
        }
        match &mut self.rest {
            Some(rest) => Pin::new(rest).poll_frame(context),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.frames.is_empty() && self.rest.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}
