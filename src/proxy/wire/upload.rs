//! The client's body on its way up, within its limits of size and of time between its pieces.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt;
use pin_project_lite::pin_project;
use tokio::time::{Instant, Sleep, sleep};

use crate::config::Limits;
use crate::error::{Failure, FailureKind};
use crate::upstream::OriginBody;

use super::framing::body_too_large;

pin_project! {
    /// A client's body within its limits of size and of time between its pieces.
    struct ClientBody<B> {
        #[pin]
        body: B,
        left: u64,
        limit: u64,
        between: Duration,
        // Bytes a second that have to come while the client is waited for.
        rate: u64,
        // Since when it is, and for how long in this span of counting, and what came in it.
        waits_since: Option<Instant>,
        waited: Duration,
        taken: u64,
        #[pin]
        deadline: Sleep,
    }
}

/// The body to send to the origin, where there is one: nothing of it is asked for before the
/// origin's connection wants it, so that `Expect: 100-continue` is answered only then.
pub fn client_body<B>(body: B, limits: &Limits) -> Option<OriginBody>
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: std::fmt::Display,
{
    if body.is_end_stream() {
        return None;
    }
    let (limit, between) = (limits.request_body, limits.body_timeout);
    let body = ClientBody {
        body,
        left: limit,
        limit,
        between,
        rate: limits.body_rate,
        waits_since: None,
        waited: Duration::ZERO,
        taken: 0,
        deadline: sleep(between),
    };
    Some(body.boxed_unsync())
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
                    *this.waited += this
                        .waits_since
                        .take()
                        .map_or(Duration::ZERO, |at| at.elapsed());
                    *this.taken += size;
                    if *this.waited >= *this.between {
                        let least = this.rate.saturating_mul(this.waited.as_secs());
                        if *this.taken < least {
                            let message = format!(
                                "the request body comes slower than {} bytes a second \
                                    (limits.body_rate)",
                                this.rate
                            );
                            return Err(Failure::new(FailureKind::RequestTimeout, message));
                        }
                        (*this.waited, *this.taken) = (Duration::ZERO, 0);
                    }
                    *this.left = this
                        .left
                        .checked_sub(size)
                        .ok_or_else(|| body_too_large(*this.limit))?;
                    Ok(frame)
                }))
            }
            Poll::Pending => {
                this.waits_since.get_or_insert_with(Instant::now);
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
