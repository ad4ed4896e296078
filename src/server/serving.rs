//! What one connection asks, and what it is answered: requests and bodies under way, counted and
//! watched.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::header::CONNECTION;
use http::{HeaderValue, Request, Response, StatusCode, Version};
use http_body::{Body as _, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::service::Service;
use hyper::upgrade::OnUpgrade;

use crate::access_log::{AccessLog, Answered, Asked, Told};
use crate::error::Failure;
use crate::proxy::{Body, Handled, Handover, Peer, Proxy};

use super::activity::{Activity, Handed};

/// The service of one connection.
#[derive(Clone)]
pub struct Serving {
    pub proxy: Arc<Proxy>,
    pub peer: Arc<Peer>,
    pub activity: Arc<Activity>,
}

impl Service<Request<Incoming>> for Serving {
    type Response = Response<TrackedBody>;
    type Error = std::convert::Infallible;
    type Future = Tracked;

    fn call(&self, request: Request<Incoming>) -> Tracked {
        self.activity.begin();
        let guard = InFlight(Arc::clone(&self.activity));
        let version = request.version();
        let log = self.proxy.access_log().map(|log| {
            let client = self
                .proxy
                .client_address(request.headers(), self.peer.address);
            let asked = Asked::of(&log.config, &request, client);
            Box::new((log, asked))
        });
        // One request at a time, and after it nothing is read but the next.
        let says_all = (version <= Version::HTTP_11).then(|| Arc::clone(&self.activity));
        let mut request = request.map(|body| TrackedUpload::new(body, says_all));
        // The connection is ours to hand over: hyper's own way would keep its buffers for that.
        if request.extensions_mut().remove::<OnUpgrade>().is_some() {
            let (sender, handover) = Handover::new();
            self.activity.offer(sender);
            request.extensions_mut().insert(handover);
        }
        Tracked {
            version,
            handled: self
                .proxy
                .handle(request, &self.peer, Some(&self.activity.interim)),
            guard: Some(guard),
            log,
        }
    }
}

/// One request under way on a connection.
struct InFlight(Arc<Activity>);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.end();
    }
}

/// A request body; at its end the client has said all.
struct TrackedUpload {
    body: Incoming,
    says_all: Option<Arc<Activity>>,
}

impl TrackedUpload {
    fn new(body: Incoming, says_all: Option<Arc<Activity>>) -> Self {
        let mut this = Self { body, says_all };
        if this.body.is_end_stream() {
            this.has_ended();
        }
        this
    }

    fn has_ended(&mut self) {
        if let Some(activity) = self.says_all.take() {
            activity.said_all();
        }
    }
}

impl http_body::Body for TrackedUpload {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = std::task::ready!(Pin::new(&mut self.body).poll_frame(context));
        if frame.is_none() || self.body.is_end_stream() {
            self.has_ended();
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A request on its way to its response.
pub struct Tracked {
    version: Version,
    handled: Handled,
    guard: Option<InFlight>,
    log: Option<Box<(Arc<AccessLog>, Asked)>>,
}

impl Future for Tracked {
    type Output = Result<Response<TrackedBody>, std::convert::Infallible>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        if let (Handled::Later(_), Some(guard)) = (&self.handled, &self.guard) {
            guard.0.interim.wake(context.waker());
        }
        let mut response = std::task::ready!(Pin::new(&mut self.handled).poll(context))?;
        let guard = self.guard.take();
        let is_last = guard.as_ref().is_some_and(|guard| guard.0.is_draining());
        // A switch of protocols is the connection's last answer anyway, and says so by `Upgrade`.
        let switches = response.status() == StatusCode::SWITCHING_PROTOCOLS;
        if is_last && self.version <= Version::HTTP_11 && !switches {
            response
                .headers_mut()
                .insert(CONNECTION, HeaderValue::from_static("close"));
        }
        let (version, log) = (self.version, self.log.take());
        let logged = log.map(|log| Box::new(Logged::new(*log, &mut response)));
        Poll::Ready(Ok(
            response.map(|body| TrackedBody::new(body, guard, version, logged))
        ))
    }
}

/// A request of which a line will be written when its answer is over.
struct Logged {
    log: Arc<AccessLog>,
    answered: Option<Answered>,
    bytes: u64,
    /// The client got all of it.
    is_whole: bool,
}

impl Logged {
    fn new((log, asked): (Arc<AccessLog>, Asked), response: &mut Response<Body>) -> Self {
        let told = response.extensions_mut().remove::<Told>();
        Self {
            log,
            answered: Some(asked.answered(response.status(), told)),
            bytes: 0,
            is_whole: response.body().is_end_stream(),
        }
    }

    fn gave(&mut self, frame: &Polled, is_last: bool) {
        match frame {
            Poll::Ready(Some(Ok(frame))) => {
                self.bytes += frame.data_ref().map_or(0, Bytes::len) as u64;
                self.is_whole |= is_last;
            }
            Poll::Ready(None) => self.is_whole = true,
            Poll::Ready(Some(Err(_))) | Poll::Pending => {}
        }
    }
}

impl Drop for Logged {
    fn drop(&mut self) {
        if let Some(answered) = self.answered.take() {
            self.log.ended(answered, self.bytes, !self.is_whole);
        }
    }
}

/// A response body; the request is under way until it is dropped.
pub struct TrackedBody {
    body: Body,
    guard: Option<InFlight>,
    /// `None` over a protocol whose streams have no windows of their own.
    handed: Option<Arc<Handed>>,
    /// What is left of a piece that is given in parts.
    rest: Bytes,
    start: Start,
    logged: Option<Box<Logged>>,
}

/// How a body has begun.
enum Start {
    Unasked,
    /// With a failure: it is told when the head is out, which hyper keeps back until then.
    Failed(Failure),
    Begun,
}

/// How much of a body a stream of HTTP/2 is given at once: so much has to be read in
/// `body_timeout`.
const PART: usize = 64 << 10;

impl TrackedBody {
    fn new(
        body: Body,
        guard: Option<InFlight>,
        version: Version,
        logged: Option<Box<Logged>>,
    ) -> Self {
        // Over HTTP/1.1 a client that does not read blocks the connection itself.
        let watched = guard.as_ref().filter(|_| version > Version::HTTP_11);
        let handed = watched.map(|guard| guard.0.watch_body());
        Self {
            body,
            guard,
            handed,
            rest: Bytes::new(),
            start: Start::Unasked,
            logged,
        }
    }
}

type Polled = Poll<Option<Result<Frame<Bytes>, Failure>>>;

impl TrackedBody {
    /// Notes that a stream of HTTP/2 was given something, and gives it a part at a time.
    fn given(&mut self, frame: Polled) -> Polled {
        let (Some(handed), Some(guard)) = (&self.handed, &self.guard) else {
            return frame;
        };
        match frame {
            Poll::Pending => handed.asked(),
            Poll::Ready(_) => handed.gave(&guard.0),
        }
        frame.map_ok(|frame| {
            frame.map_data(|mut piece| {
                if piece.len() <= PART {
                    return piece;
                }
                let part = piece.split_to(PART);
                self.rest = piece;
                part
            })
        })
    }

    fn next_frame(&mut self, context: &mut Context<'_>) -> Polled {
        let this = self;
        match std::mem::replace(&mut this.start, Start::Begun) {
            Start::Begun => {}
            Start::Failed(failure) => return Poll::Ready(Some(Err(failure))),
            Start::Unasked => match Pin::new(&mut this.body).poll_frame(context) {
                Poll::Ready(Some(Err(failure))) => {
                    this.start = Start::Failed(failure);
                    context.waker().wake_by_ref();
                    return Poll::Pending;
                }
                Poll::Pending => {
                    this.start = Start::Unasked;
                    return this.given(Poll::Pending);
                }
                frame => return this.given(frame),
            },
        }
        if this.rest.is_empty() {
            let frame = Pin::new(&mut this.body).poll_frame(context);
            return this.given(frame);
        }
        let part = this.rest.split_to(this.rest.len().min(PART));
        this.given(Poll::Ready(Some(Ok(Frame::data(part)))))
    }
}

impl http_body::Body for TrackedBody {
    type Data = Bytes;
    type Error = Failure;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Polled {
        let frame = self.next_frame(context);
        let is_last = self.logged.is_some() && self.is_end_stream();
        if let Some(logged) = &mut self.logged {
            logged.gave(&frame, is_last);
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (mut hint, rest) = (self.body.size_hint(), self.rest.len() as u64);
        if let Some(upper) = hint.upper() {
            hint.set_upper(upper + rest);
        }
        hint.set_lower(hint.lower() + rest);
        hint
    }
}
