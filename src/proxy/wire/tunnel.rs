//! Switched protocols: both connections tied together, until one ends or nobody uses them.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::header::{CONNECTION, UPGRADE};
use http::{HeaderValue, Response, StatusCode, request};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until};

use crate::error::{Failure, FailureKind};
use crate::upstream::{OriginBody, TunnelSeat};

use super::body::Body;

/// Ties both connections together after the origin agreed to switch protocols (RFC 9110 §7.8).
pub fn switch(
    parts: &mut request::Parts,
    response: &mut Response<OriginBody>,
    asked_for: Option<HeaderValue>,
    idle_limit: Duration,
) -> Result<Response<Body>, Failure> {
    let ours = parts.extensions.remove::<Handover>();
    let ours = ours.and_then(|handover| handover.take());
    let (Some(_), Some(ours)) = (asked_for, ours) else {
        let message = "the upstream switched protocols although nobody asked it to";
        return Err(Failure::new(FailureKind::ProtocolError, message));
    };
    let theirs = hyper::upgrade::on(&mut *response);
    let seat = response.extensions_mut().remove::<TunnelSeat>();
    tokio::spawn(async move {
        let _held_to_the_end = seat;
        let (ours, theirs) = match tokio::join!(ours, theirs) {
            (Ok(ours), Ok(theirs)) => (ours, theirs),
            (Err(_), _) => {
                return tracing::debug!("the client left before its protocol was switched");
            }
            (_, Err(error)) => return tracing::debug!(%error, "a switch of protocols failed"),
        };
        let used = Used::default();
        let mut ours = Noting {
            stream: ours,
            used: used.clone(),
        };
        let mut theirs = TokioIo::new(theirs);
        tokio::select! {
            copied = tokio::io::copy_bidirectional(&mut ours, &mut theirs) => {
                if let Err(error) = copied {
                    tracing::debug!(%error, "a tunnel broke off");
                }
            }
            () = used.idle_for(idle_limit) => {
                tracing::debug!(?idle_limit, "a tunnel that nobody used was closed \
                    (limits.tunnel_timeout)");
            }
        }
    });
    let mut switched = Response::new(Body::Empty);
    *switched.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    *switched.headers_mut() = response.headers().clone();
    let headers = switched.headers_mut();
    let protocol = response.headers().get(UPGRADE).cloned();
    crate::http::fields::strip_hop_by_hop(headers);
    if let Some(protocol) = protocol {
        headers.insert(UPGRADE, protocol);
    }
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    Ok(switched)
}

/// A client's stream as it is handed over.
pub type ClientStream = Box<dyn Duplex>;

/// What is read and written.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

impl fmt::Debug for dyn Duplex {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a stream")
    }
}

/// In the extensions of a request that asks for another protocol: where the client's stream comes
/// from once its connection has switched.
#[derive(Clone)]
pub struct Handover(Arc<Mutex<Option<oneshot::Receiver<ClientStream>>>>);

/// The other end of a [`Handover`], with the connection.
#[derive(Debug)]
pub struct Offered(oneshot::Sender<ClientStream>);

impl Handover {
    pub fn new() -> (Offered, Self) {
        let (sender, receiver) = oneshot::channel();
        let receiver = Arc::new(Mutex::new(Some(receiver)));
        (Offered(sender), Self(receiver))
    }

    fn take(&self) -> Option<oneshot::Receiver<ClientStream>> {
        self.0.lock().take()
    }
}

impl Offered {
    /// Whether anybody still waits for the stream.
    pub fn is_wanted(&self) -> bool {
        !self.0.is_closed()
    }

    pub fn accept(self, stream: ClientStream) {
        // Nobody is there any more: it is closed.
        drop(self.0.send(stream));
    }
}

/// When a tunnel was last used.
#[derive(Clone)]
struct Used(Arc<Mutex<Instant>>);

impl Default for Used {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(Instant::now())))
    }
}

impl Used {
    fn note<T>(&self, polled: Poll<T>) -> Poll<T> {
        if polled.is_ready() {
            *self.0.lock() = Instant::now();
        }
        polled
    }

    async fn idle_for(&self, limit: Duration) {
        loop {
            let last = *self.0.lock();
            if last.elapsed() >= limit {
                return;
            }
            sleep_until(last + limit).await;
        }
    }
}

/// A stream whose use is noted.
struct Noting<S> {
    stream: S,
    used: Used,
}

impl<S: AsyncRead + Unpin> AsyncRead for Noting<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        self.used.note(read)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Noting<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.used.note(written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
