//! Who waits for a flight, and who reads its body.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::Frame;
use tokio::time::{Instant, Sleep, sleep_until, timeout};

use crate::error::{Failure, FailureKind};

use super::state::{Flight, Outcome, Place};

/// A request that waits for another request's fetch.
pub struct Waiter {
    flight: Arc<Flight>,
}

impl Waiter {
    pub(super) fn new(flight: Arc<Flight>) -> Self {
        flight.state.lock().waiters += 1;
        Self { flight }
    }

    /// Waits for the head.
    pub async fn outcome(&self) -> Outcome {
        poll_fn(|context| {
            let mut state = self.flight.state.lock();
            if let Some(outcome) = &state.outcome {
                return Poll::Ready(outcome.clone());
            }
            state.wait(context);
            Poll::Pending
        })
        .await
    }

    /// Whether the beginning of the body is still there.
    pub fn is_open(&self) -> bool {
        self.flight.is_open()
    }

    /// A reader from byte 0, once there is something to read; it has this `patience` between two
    /// pieces. `None` where its beginning is no longer there, or nothing comes for so long.
    pub async fn reader(&self, patience: Duration) -> Option<Reader> {
        let mut timer = std::pin::pin!(sleep_until(Instant::now()));
        let comes = poll_fn(|context| {
            loop {
                let mut state = self.flight.state.lock();
                if state.is_passing {
                    return Poll::Ready(false);
                }
                let until = state.patient_until(patience);
                let is_late = until <= Instant::now() && state.end.is_none();
                if is_late || state.end.is_some() || !state.pieces.is_empty() {
                    return Poll::Ready(!is_late);
                }
                state.wait(context);
                drop(state);
                timer.as_mut().reset(until);
                ready!(timer.as_mut().poll(context));
            }
        })
        .await;
        let reader = comes.then(|| Reader::new(Arc::clone(&self.flight), Some(patience)));
        reader.filter(|_| self.flight.is_open())
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        let mut state = self.flight.state.lock();
        state.waiters -= 1;
        if let Some(producer) = state.producer.take() {
            producer.wake();
        }
    }
}

/// What a body came to within a time.
#[derive(Debug)]
pub enum Whole {
    /// All of it, charged as long as its reader lives.
    Pieces(Vec<Bytes>),
    /// It turned out too large to be kept.
    TooLarge,
    StillComing,
    Broken(Failure),
}

/// Reads the body of a flight.
#[derive(Debug)]
pub struct Reader {
    flight: Arc<Flight>,
    slot: usize,
    /// How long it waits for the next piece; `None` for the request whose fetch it is: the
    /// upstream's own deadline is its.
    patience: Option<Duration>,
    /// Made when it waits.
    timer: Option<Pin<Box<Sleep>>>,
}

impl Reader {
    pub(super) fn new(flight: Arc<Flight>, patience: Option<Duration>) -> Self {
        let mut state = flight.state.lock();
        let first = state.dropped;
        state.readers.push(Some(Place::at(first)));
        let slot = state.readers.len() - 1;
        drop(state);
        Self {
            flight,
            slot,
            patience,
            timer: None,
        }
    }

    /// Waits for the end, but no longer than `patience`. A reader that has read nothing yet can be
    /// read from byte 0 afterwards.
    pub async fn whole(&self, patience: Duration) -> Whole {
        let ended = poll_fn(|context| {
            let mut state = self.flight.state.lock();
            if state.is_passing {
                return Poll::Ready(Whole::TooLarge);
            }
            match &state.end {
                Some(Ok(_)) => Poll::Ready(Whole::Pieces(state.pieces.iter().cloned().collect())),
                Some(Err(failure)) => Poll::Ready(Whole::Broken(failure.clone())),
                None => {
                    state.wait(context);
                    Poll::Pending
                }
            }
        });
        timeout(patience, ended).await.unwrap_or(Whole::StillComing)
    }

    /// The next piece, or the trailers; `None` at the end.
    pub fn poll_frame(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Failure>>> {
        let Self {
            flight,
            slot,
            patience,
            timer,
        } = self;
        let (mut state, slot) = (flight.state.lock(), *slot);
        state.count_waiting();
        let Some(mut place) = state.readers[slot] else {
            return Poll::Ready(None);
        };
        if place.is_cut {
            state.readers[slot] = None;
            let message = "the client reads too slowly for a body that others wait for";
            return Poll::Ready(Some(Err(Failure::new(FailureKind::BodyTimeout, message))));
        }
        // No piece is dropped before every reader has had it.
        if let Some(piece) = state.pieces.get(place.next - state.dropped).cloned() {
            place.took(piece.len());
            state.readers[slot] = Some(place);
            if let Some(producer) = state.producer.take() {
                producer.wake();
            }
            return Poll::Ready(Some(Ok(Frame::data(piece))));
        }
        let Some(end) = state.end.clone() else {
            state.wait(context);
            let Some(patience) = *patience else {
                return Poll::Pending;
            };
            loop {
                let until = state.patient_until(patience);
                let timer = timer.get_or_insert_with(|| Box::pin(sleep_until(until)));
                if timer.deadline() != until {
                    timer.as_mut().reset(until);
                }
                ready!(timer.as_mut().poll(context));
                if state.patient_until(patience) <= Instant::now() {
                    break;
                }
            }
            state.readers[slot] = None;
            let message = format!(
                "nothing came for {patience:?} of a body that another request fetches \
                    (cache.wait_timeout)"
            );
            return Poll::Ready(Some(Err(Failure::new(FailureKind::BodyTimeout, message))));
        };
        state.readers[slot] = None;
        Poll::Ready(match end {
            Ok(trailers) => trailers.map(|trailers| Ok(Frame::trailers(trailers))),
            Err(failure) => Some(Err(failure)),
        })
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let mut state = self.flight.state.lock();
        state.readers[self.slot] = None;
        if let Some(producer) = state.producer.take() {
            producer.wake();
        }
    }
}
