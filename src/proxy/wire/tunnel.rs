//! Switched protocols: both connections tied together, until one ends or nobody uses them.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use http::header::{CONNECTION, UPGRADE};
use http::{HeaderValue, Response, StatusCode, request};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
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
    let ours = parts.extensions.remove::<OnUpgrade>();
    let (Some(_), Some(ours)) = (asked_for, ours) else {
        let message = "the upstream switched protocols although nobody asked it to";
        return Err(Failure::new(FailureKind::ProtocolError, message));
    };
    let theirs = hyper::upgrade::on(&mut *response);
    let seat = response.extensions_mut().remove::<TunnelSeat>();
    tokio::spawn(async move {
        let _held_to_the_end = seat;
        let (ours, theirs) = match futures_util::future::try_join(ours, theirs).await {
            Ok(both) => both,
            Err(error) => return tracing::debug!(%error, "a switch of protocols failed"),
        };
        let used = Used::default();
        let mut ours = Noting {
            stream: TokioIo::new(ours),
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
                tracing::debug!(?idle_limit, "a tunnel that nobody used was closed (limits.tunnel_timeout)");
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
            *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        }
        polled
    }

    async fn idle_for(&self, limit: Duration) {
        loop {
            let last = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
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
