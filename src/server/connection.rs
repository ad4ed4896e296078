//! One client connection: HTTP/1.1 or HTTP/2 by prior knowledge, and its deadlines.
//!
//! hyper's own header timeout also runs while a connection is idle, and its protocol detection has
//! none. So the clock is ours: one timer a connection, looked at when it fires, which tells apart
//! a client that never asked, one that is idle, and one that no longer reads.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Frame, SizeHint};
use hyper::body::Incoming;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper::service::Service;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tracing::debug;

use crate::config::Limits;
use crate::error::Failure;
use crate::proxy::{Body, Client, Handled, Proxy};

/// How long a connection may take to close after it was asked to.
const CLOSE_GRACE: Duration = Duration::from_secs(2);

/// Serves connections with the protocol settings of this process.
pub struct Acceptor {
    proxy: Arc<Proxy>,
    stopped: watch::Receiver<bool>,
    protocol: auto::Builder<TokioExecutor>,
}

/// What happened on a connection, for its timer to judge. Times are milliseconds since accept.
#[derive(Debug)]
struct Activity {
    accepted: Instant,
    heads: AtomicU64,
    in_flight: AtomicU32,
    last: AtomicU64,
    /// Since when a write waits for the client to read; `u64::MAX` when none does.
    blocked: AtomicU64,
}

/// What a connection's timer finds.
enum Verdict {
    WaitUntil(Instant),
    /// Nothing is asked and nothing under way: close in good order.
    Idle,
    /// The client holds the connection without using it: cut.
    Cut(&'static str),
}

impl Activity {
    fn now(&self) -> u64 {
        self.accepted.elapsed().as_millis() as u64
    }

    fn begin(&self) {
        self.heads.fetch_add(1, Ordering::Relaxed);
        self.in_flight.fetch_add(1, Ordering::Relaxed);
    }

    fn end(&self) {
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
        self.last.store(self.now(), Ordering::Relaxed);
    }

    fn verdict(&self, limits: &Limits) -> Verdict {
        let now = self.now();
        let at = |since: u64, limit: Duration| since.saturating_add(limit.as_millis() as u64);
        let wait = |until: u64| Verdict::WaitUntil(self.accepted + Duration::from_millis(until));
        let blocked = self.blocked.load(Ordering::Relaxed);
        if blocked != u64::MAX {
            let until = at(blocked, limits.body_timeout);
            return if until <= now {
                Verdict::Cut("the client does not read")
            } else {
                wait(until)
            };
        }
        if self.heads.load(Ordering::Relaxed) == 0 {
            let until = at(0, limits.head_timeout);
            return if until <= now {
                Verdict::Cut("no request head in time")
            } else {
                wait(until)
            };
        }
        // While a request is under way its own deadlines count: look again later.
        let idle_since = match self.in_flight.load(Ordering::Relaxed) {
            0 => self.last.load(Ordering::Relaxed),
            _ => now,
        };
        let until = at(idle_since, limits.idle_timeout);
        if until <= now {
            return Verdict::Idle;
        }
        // A write that begins to block now must be noticed in its own time.
        wait(until.min(at(now, limits.body_timeout)))
    }
}

impl Acceptor {
    pub fn new(proxy: Arc<Proxy>, stopped: watch::Receiver<bool>) -> Self {
        let limits = &proxy.config.limits;
        let mut protocol = auto::Builder::new(TokioExecutor::new());
        protocol
            .http1()
            .max_buf_size(limits.header_bytes)
            .max_headers(limits.header_count)
            .pipeline_flush(true)
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

    /// Serves one connection to its end.
    pub async fn serve(&self, stream: TcpStream) {
        let Ok(peer) = stream.peer_addr() else { return };
        // Responses leave in one write; waiting for an acknowledgement would only delay them.
        let _ = stream.set_nodelay(true);
        let activity = Arc::new(Activity {
            accepted: Instant::now(),
            heads: AtomicU64::new(0),
            in_flight: AtomicU32::new(0),
            last: AtomicU64::new(0),
            blocked: AtomicU64::new(u64::MAX),
        });
        let service = Serving {
            proxy: Arc::clone(&self.proxy),
            client: self.proxy.client(peer.ip()),
            activity: Arc::clone(&activity),
        };
        let stream = Watched {
            stream: TokioIo::new(stream),
            activity: Arc::clone(&activity),
        };
        let connection = self
            .protocol
            .serve_connection_with_upgrades(stream, service);
        let mut connection = std::pin::pin!(connection);
        let limits = &self.proxy.config.limits;
        let mut timer = std::pin::pin!(sleep_until(activity.accepted + limits.head_timeout));
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
                () = timer.as_mut() => match activity.verdict(limits) {
                    Verdict::WaitUntil(until) => timer.as_mut().reset(until),
                    Verdict::Idle if !is_closing => {
                        is_closing = true;
                        connection.as_mut().graceful_shutdown();
                        timer.as_mut().reset(Instant::now() + CLOSE_GRACE);
                    }
                    Verdict::Idle => return,
                    Verdict::Cut(why) => {
                        debug!(%peer, why, "a connection was cut");
                        return;
                    }
                },
                () = draining.as_mut(), if !is_draining => {
                    is_draining = true;
                    connection.as_mut().graceful_shutdown();
                }
            }
        }
    }
}

/// The service of one connection.
struct Serving {
    proxy: Arc<Proxy>,
    client: Client,
    activity: Arc<Activity>,
}

impl Service<Request<Incoming>> for Serving {
    type Response = Response<TrackedBody>;
    type Error = std::convert::Infallible;
    type Future = Tracked;

    fn call(&self, request: Request<Incoming>) -> Tracked {
        self.activity.begin();
        let guard = InFlight(Arc::clone(&self.activity));
        Tracked {
            handled: self.proxy.handle(request, self.client),
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

/// A request on its way to its response.
struct Tracked {
    handled: Handled,
    guard: Option<InFlight>,
}

impl Future for Tracked {
    type Output = Result<Response<TrackedBody>, std::convert::Infallible>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let response = std::task::ready!(Pin::new(&mut self.handled).poll(context))?;
        let guard = self.guard.take();
        Poll::Ready(Ok(response.map(|body| TrackedBody {
            body,
            _guard: guard,
        })))
    }
}

/// A response body; the request is under way until it is dropped.
struct TrackedBody {
    body: Body,
    _guard: Option<InFlight>,
}

impl http_body::Body for TrackedBody {
    type Data = Bytes;
    type Error = Failure;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Failure>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A stream that notes when the client does not read.
struct Watched {
    stream: TokioIo<TcpStream>,
    activity: Arc<Activity>,
}

impl Watched {
    fn note<T>(&self, written: Poll<T>) -> Poll<T> {
        let blocked = &self.activity.blocked;
        if written.is_ready() {
            if blocked.load(Ordering::Relaxed) != u64::MAX {
                blocked.store(u64::MAX, Ordering::Relaxed);
            }
        } else if blocked.load(Ordering::Relaxed) == u64::MAX {
            blocked.store(self.activity.now(), Ordering::Relaxed);
        }
        written
    }
}

impl Read for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl Write for Watched {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.note(written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, buffers);
        self.note(written)
    }
}
