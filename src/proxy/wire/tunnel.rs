//! What is not a plain exchange: the client's body on its way up, and switched protocols.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONNECTION, UPGRADE};
use http::{HeaderValue, Response, StatusCode, request};
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use pin_project_lite::pin_project;
use tokio::time::{Instant, Sleep, sleep};

use crate::error::{Failure, FailureKind};
use crate::upstream::{OriginBody, empty};

use super::body::Body;
use super::received::body_too_large;

pin_project! {
    /// A client's body within its limits of size and of time between its pieces.
    struct ClientBody<B> {
        #[pin]
        body: B,
        left: u64,
        limit: u64,
        between: Duration,
        #[pin]
        deadline: Sleep,
    }
}

/// The body to send to the origin: nothing of it is asked for before the origin's connection wants
/// it, so that `Expect: 100-continue` is answered only then.
pub fn client_body<B>(body: B, limit: u64, between: Duration) -> OriginBody
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: std::fmt::Display,
{
    if body.is_end_stream() {
        return empty();
    }
    ClientBody {
        body,
        left: limit,
        limit,
        between,
        deadline: sleep(between),
    }
    .boxed_unsync()
}

impl<B> http_body::Body for ClientBody<B>
where
    B: http_body::Body<Data = Bytes>,
    B::Error: std::fmt::Display,
{
    type Data = Bytes;
    type Error = Failure;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Failure>>> {
        let mut this = self.project();
        match this.body.poll_frame(context) {
            Poll::Ready(frame) => {
                this.deadline.as_mut().reset(Instant::now() + *this.between);
                Poll::Ready(frame.map(|frame| {
                    let frame = frame.map_err(|error| {
                        Failure::new(
                            FailureKind::BadRequest,
                            format!("the request body broke off: {error}"),
                        )
                    })?;
                    let size = frame.data_ref().map_or(0, Bytes::len) as u64;
                    *this.left = this
                        .left
                        .checked_sub(size)
                        .ok_or_else(|| body_too_large(*this.limit))?;
                    Ok(frame)
                }))
            }
            Poll::Pending => {
                ready!(this.deadline.poll(context));
                let message = format!("nothing of the request body came for {:?}", this.between);
                Poll::Ready(Some(Err(Failure::new(
                    FailureKind::RequestTimeout,
                    message,
                ))))
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

/// Ties both connections together after the origin agreed to switch protocols (RFC 9110 §7.8).
pub fn switch(
    parts: &mut request::Parts,
    response: &mut Response<OriginBody>,
    asked_for: Option<HeaderValue>,
) -> Result<Response<Body>, Failure> {
    let ours = parts.extensions.remove::<OnUpgrade>();
    let (Some(_), Some(ours)) = (asked_for, ours) else {
        let message = "the upstream switched protocols although nobody asked it to";
        return Err(Failure::new(FailureKind::ProtocolError, message));
    };
    let theirs = hyper::upgrade::on(&mut *response);
    tokio::spawn(async move {
        let (ours, theirs) = match futures_util::future::try_join(ours, theirs).await {
            Ok(both) => both,
            Err(error) => return tracing::debug!(%error, "a switch of protocols failed"),
        };
        let (mut ours, mut theirs) = (TokioIo::new(ours), TokioIo::new(theirs));
        if let Err(error) = tokio::io::copy_bidirectional(&mut ours, &mut theirs).await {
            tracing::debug!(%error, "a tunnel broke off");
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
