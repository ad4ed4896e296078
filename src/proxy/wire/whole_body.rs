//! Looking into a body before anybody gets it, and putting it together again.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use http::Response;
use http_body::Frame;
use http_body_util::BodyExt;
use tokio::time::{Instant, timeout};

use crate::error::{Failure, FailureKind};
use crate::policy::ErrorWhen;
use crate::upstream::{FailureOf, OriginBody, begun};

/// Whether a response means failure by `rule`. The response that comes back is as good as new; a
/// body too large to look into, or too slow, is only begun.
pub async fn means_failure(
    response: Response<OriginBody>,
    rule: &ErrorWhen,
    patience: Patience,
) -> Result<(bool, Response<OriginBody>), Failure> {
    let (parts, body) = response.into_parts();
    let (frames, rest) = first_frames(body, ErrorWhen::LIMIT, patience).await?;
    let found = rest.is_none() && {
        let pieces = frames.iter().filter_map(Frame::data_ref);
        rule.matches(&pieces.flatten().copied().collect::<Vec<u8>>())
    };
    Ok((found, Response::from_parts(parts, begun(frames, rest))))
}

/// How long a body is awaited before anybody gets it.
pub struct Patience {
    /// Between two pieces; after that it counts as broken off.
    pub between: Duration,
    /// For all of it; what takes longer is only begun.
    pub whole: Duration,
    /// Who hears that it broke off so.
    pub told: Option<FailureOf>,
}

/// A body whose beginning has come, and whether that is all of it: it has at most `limit` bytes
/// then, and came in time. An error says that it broke off there.
pub async fn look_ahead(
    body: OriginBody,
    limit: u64,
    patience: Patience,
) -> Result<(OriginBody, bool), Failure> {
    let (frames, rest) = first_frames(body, limit, patience).await?;
    let is_whole = rest.is_none();
    Ok((begun(frames, rest), is_whole))
}

/// The body of a request, or nothing where it ends without a byte.
pub async fn unless_empty(mut body: OriginBody) -> Result<Option<OriginBody>, Failure> {
    while let Some(frame) = body.frame().await {
        let frame = frame?;
        if frame.data_ref().is_none_or(|data| !data.is_empty()) {
            return Ok(Some(begun(VecDeque::from([frame]), Some(body))));
        }
    }
    Ok(None)
}

/// The frames of at most a little more than `limit` bytes that come in time, and the rest, where
/// there is one.
async fn first_frames(
    mut body: OriginBody,
    limit: u64,
    patience: Patience,
) -> Result<(VecDeque<Frame<Bytes>>, Option<OriginBody>), Failure> {
    let (mut frames, mut size) = (VecDeque::new(), 0);
    let end = Instant::now() + patience.whole;
    while size <= limit && Instant::now() < end {
        let Ok(frame) = timeout(patience.between, body.frame()).await else {
            let between = patience.between;
            let message =
                format!("nothing came from the upstream for {between:?} in the middle of a body");
            let failure = Failure::new(FailureKind::BodyTimeout, message);
            if let Some(told) = &patience.told {
                told.tell(&failure);
            }
            return Err(failure);
        };
        let Some(frame) = frame.transpose()? else {
            return Ok((frames, None));
        };
        size += frame.data_ref().map_or(0, Bytes::len) as u64;
        frames.push_back(frame);
    }
    Ok((frames, Some(body)))
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
