//! What requests are sent over: a connection of HTTP/1.1 carries one at a time, one of HTTP/2 many.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::{TrySendError, http1, http2};
use tokio::task::AbortHandle;

use super::OriginBody;
use super::stream::WriteFailed;

/// The sending end of a connection.
pub enum Sender {
    Http1(http1::SendRequest<OriginBody>),
    Http2(http2::SendRequest<OriginBody>),
}

/// The task that does the work of a connection.
#[derive(Clone)]
pub struct Task {
    pub handle: AbortHandle,
    pub write_failed: WriteFailed,
    /// Requests that the upstream takes at a time over this connection (RFC 9113 §5.1.2).
    pub most_streams: Arc<AtomicUsize>,
}

impl Sender {
    /// Another one over the same connection, where that carries several requests at a time.
    pub fn share(&self) -> Option<Self> {
        match self {
            Self::Http1(_) => None,
            Self::Http2(sender) => Some(Self::Http2(sender.clone())),
        }
    }

    pub fn is_ready(&self) -> bool {
        match self {
            Self::Http1(sender) => sender.is_ready(),
            Self::Http2(sender) => sender.is_ready(),
        }
    }

    pub fn is_closed(&self) -> bool {
        match self {
            Self::Http1(sender) => sender.is_closed(),
            Self::Http2(sender) => sender.is_closed(),
        }
    }

    pub async fn ready(&mut self) -> hyper::Result<()> {
        match self {
            Self::Http1(sender) => sender.ready().await,
            Self::Http2(sender) => sender.ready().await,
        }
    }

    pub async fn send(
        &mut self,
        request: Request<OriginBody>,
    ) -> Result<Response<Incoming>, TrySendError<Request<OriginBody>>> {
        match self {
            Self::Http1(sender) => sender.try_send_request(request).await,
            Self::Http2(sender) => sender.try_send_request(request).await,
        }
    }
}

/// Whether the upstream has said that it did nothing about a request, so that it may be sent once
/// more whatever its method: the stream was refused, or is of after the last one that a connection
/// which ends took (RFC 9113 §6.8, §8.7).
pub fn was_not_begun(error: &hyper::Error) -> bool {
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        if let Some(error) = cause.downcast_ref::<h2::Error>() {
            let refused = error.reason() == Some(h2::Reason::REFUSED_STREAM);
            return error.is_remote() && (error.is_go_away() || refused);
        }
        source = cause.source();
    }
    false
}
