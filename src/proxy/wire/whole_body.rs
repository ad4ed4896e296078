//! Looking into a body before anybody gets it, and putting it together again.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::Response;
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;

use crate::error::{Failure, FailureKind};
use crate::policy::ErrorWhen;
use crate::upstream::OriginBody;

/// Whether a response means failure by `rule`. The response that comes back is as good as new; a
/// body too large to look into is only begun.
pub async fn means_failure(
    response: Response<OriginBody>,
    rule: &ErrorWhen,
) -> Result<(bool, Response<OriginBody>), Failure> {
    let (parts, mut body) = response.into_parts();
    let (mut frames, mut text) = (VecDeque::new(), Vec::new());
    let mut is_whole = true;
    while let Some(frame) = body.frame().await {
        let frame = frame?;
        text.extend_from_slice(frame.data_ref().map_or(&[][..], |data| data));
        frames.push_back(frame);
        if text.len() as u64 > ErrorWhen::LIMIT {
            is_whole = false;
            break;
        }
    }
    let found = is_whole && rule.matches(&text);
    let begun = Begun {
        frames,
        rest: (!is_whole).then_some(body),
    };
    Ok((found, Response::from_parts(parts, begun.boxed_unsync())))
}

/// A body of `length` bytes; more or fewer are a failure.
pub async fn collect(mut body: OriginBody, length: u64) -> Result<Vec<Bytes>, Failure> {
    let (mut pieces, mut received) = (Vec::new(), 0);
    while let Some(frame) = body.frame().await {
        // Trailers are not kept (RFC 9110 §6.5.1).
        if let Ok(piece) = frame?.into_data() {
            received += piece.len() as u64;
            if received > length {
                break;
            }
            pieces.push(piece);
        }
    }
    if received != length {
        let message = "the response is not as long as its Content-Length says";
        return Err(Failure::new(FailureKind::ResponseIncomplete, message));
    }
    Ok(pieces)
}

/// A body of which the first frames were taken already.
struct Begun {
    frames: VecDeque<Frame<Bytes>>,
    rest: Option<OriginBody>,
}

impl Body for Begun {
    type Data = Bytes;
    type Error = Failure;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Failure>>> {
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
