//! One client connection: HTTP/1.1 or HTTP/2 by prior knowledge, and its deadlines.
//!
//! hyper's own header timeout also runs while a connection is idle, and its protocol detection has
//! none. So the clock is ours: one timer a connection, looked at when it fires, which tells apart
//! a client that never asked, one that is idle, and one that no longer reads.

use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::CONNECTION;
use http::{HeaderValue, Request, Response, Version};
use http_body::{Body as _, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::service::Service;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tracing::debug;

use crate::error::Failure;
use crate::proxy::{Body, Handled, Proxy};

use super::activity::{Activity, Handed, Verdict};
use super::seat::Seat;
use super::stream::Watched;

/// How long a connection may take to close after it was asked to.
const CLOSE_GRACE: Duration = Duration::from_secs(2);

/// How long a drain waits for the first request of a connection.
const FIRST_REQUEST_GRACE: Duration = Duration::from_millis(500);

/// Serves connections with the protocol settings of this process.
pub struct Acceptor {
    proxy: Arc<Proxy>,
    stopped: watch::Receiver<bool>,
    protocol: auto::Builder<TokioExecutor>,
}

impl Acceptor {
    pub fn new(proxy: Arc<Proxy>, stopped: watch::Receiver<bool>) -> Self {
        let plan = proxy.plan();
        let limits = &plan.config.limits;
        let mut protocol = auto::Builder::new(TokioExecutor::new());
        protocol
            .http1()
            .max_buf_size(limits.header_bytes)
            .max_headers(limits.header_count)
            // Ours tells an idle connection from a slow one.
            .header_read_timeout(None)
            .timer(TokioTimer::new());
        protocol
            .http2()
            .max_header_list_size(u32::try_from(limits.header_bytes).unwrap_or(u32::MAX))
            .max_concurrent_streams(256)
            .max_send_buf_size(64 << 10)
            .timer(TokioTimer::new());
        Self {
            proxy,
            stopped,
            protocol,
        }
    }

    /// Serves one connection to its end. `seat` goes with the stream: a tunnel keeps it.
    pub async fn serve(&self, stream: TcpStream, seat: Seat) {
        let Ok(peer) = stream.peer_addr() else { return };
        // Responses leave in one write; waiting for an acknowledgement would only delay them.
        let _ = stream.set_nodelay(true);
        let activity = Arc::new(Activity::new());
        let service = Serving {
            proxy: Arc::clone(&self.proxy),
            peer: peer.ip(),
            activity: Arc::clone(&activity),
        };
        let stream = Watched::new(stream, Arc::clone(&activity), Arc::clone(&self.proxy), seat);
        let connection = self
            .protocol
            .serve_connection_with_upgrades(stream, service);
        let mut connection = std::pin::pin!(connection);
        // Its own: a plan is not to live as long as a connection.
        let limits = self.proxy.plan().config.limits.clone();
        let first = limits
            .head_timeout
            .min(limits.idle_timeout)
            .min(limits.body_timeout);
        let mut timer = std::pin::pin!(sleep_until(activity.accepted + first));
        let mut stopped = self.stopped.clone();
        let mut draining = std::pin::pin!(async move {
            let _ = stopped.wait_for(|stopped| *stopped).await;
        });
        let (mut is_draining, mut is_closing) = (false, false);
        loop {
            tokio::select! {
                biased;
                ended = connection.as_mut() => {
                    if let Err(error) = ended {
                        debug!(%peer, %error, "a connection ended early");
                    }
                    return;
                }
                () = timer.as_mut() => match activity.verdict(&limits) {
                    _ if is_draining && !is_closing => {
                        is_closing = true;
                        connection.as_mut().graceful_shutdown();
                        timer.as_mut().reset(Instant::now() + CLOSE_GRACE);
                    }
                    Verdict::WaitUntil(until) => timer.as_mut().reset(until),
                    Verdict::Idle if !is_closing => {
                        is_closing = true;
                        connection.as_mut().graceful_shutdown();
                        timer.as_mut().reset(Instant::now() + CLOSE_GRACE);
                    }
                    Verdict::Idle => return,
                    Verdict::Cut(why) => {
                        debug!(%peer, why, "a connection was cut");
                        activity.cut();
                        return;
                    }
                },
                () = draining.as_mut(), if !is_draining => {
                    is_draining = true;
                    activity.drain();
                    if activity.has_asked() {
                        is_closing = true;
                        connection.as_mut().graceful_shutdown();
                    } else {
                        // Accepted, and its first request perhaps still unread in the socket.
                        timer.as_mut().reset(Instant::now() + FIRST_REQUEST_GRACE);
                    }
                }
            }
        }
    }
}

/// The service of one connection.
struct Serving {
    proxy: Arc<Proxy>,
    peer: IpAddr,
    activity: Arc<Activity>,
}

impl Service<Request<Incoming>> for Serving {
    type Response = Response<TrackedBody>;
    type Error = std::convert::Infallible;
    type Future = Tracked;

    fn call(&self, request: Request<Incoming>) -> Tracked {
        self.activity.begin();
        let guard = InFlight(Arc::clone(&self.activity));
        let version = request.version();
        // One request at a time, and after it nothing is read but the next.
        let says_all = (version <= Version::HTTP_11).then(|| Arc::clone(&self.activity));
        let request = request.map(|body| TrackedUpload::new(body, says_all));
        Tracked {
            version,
            handled: self
                .proxy
                .handle(request, self.peer, Some(&self.activity.interim)),
            guard: Some(guard),
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
struct Tracked {
    version: Version,
    handled: Handled,
    guard: Option<InFlight>,
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
        if is_last && self.version <= Version::HTTP_11 {
            response
                .headers_mut()
                .insert(CONNECTION, HeaderValue::from_static("close"));
        }
        let version = self.version;
        Poll::Ready(Ok(
            response.map(|body| TrackedBody::new(body, guard, version))
        ))
    }
}

/// A response body; the request is under way until it is dropped.
struct TrackedBody {
    body: Body,
    guard: Option<InFlight>,
    /// `None` over a protocol whose streams have no windows of their own.
    handed: Option<Arc<Handed>>,
    /// What is left of a piece that is given in parts.
    rest: Bytes,
    start: Start,
}

/// How a body has begun.
enum Start {
    Unasked,
    /// With a failure: it is told when the head is out, which hyper keeps back until then.
    Failed(Failure),
    Begun,
}

/// How much of a body a stream of HTTP/2 is given at once: so much has to be read in `body_timeout`.
const PART: usize = 64 << 10;

impl TrackedBody {
    fn new(body: Body, guard: Option<InFlight>, version: Version) -> Self {
        // Over HTTP/1.1 a client that does not read blocks the connection itself.
        let watched = guard.as_ref().filter(|_| version > Version::HTTP_11);
        let handed = watched.map(|guard| guard.0.watch_body());
        Self {
            body,
            guard,
            handed,
            rest: Bytes::new(),
            start: Start::Unasked,
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
}

impl http_body::Body for TrackedBody {
    type Data = Bytes;
    type Error = Failure;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Failure>>> {
        let this = &mut *self;
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
