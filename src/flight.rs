//! Coalescing: one fetch from the origin, and the requests that wait for it.
//!
//! A [`Ticket`] belongs to the fetch, a [`Waiter`] to each request that found it under way. All
//! wake-ups are events; nothing polls. The first thing a fetch publishes is its [`Outcome`]: only
//! when the response head proves that the response may be shared do waiters get it, and then each
//! reads it from byte 0 at its own pace. A ticket that is dropped without a word abandons the
//! flight, and one of the waiters takes over.

use std::collections::{HashMap, VecDeque};
use std::future::poll_fn;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http::HeaderMap;
use http_body::Frame;

use crate::error::{Failure, FailureKind};
use crate::policy::Reason;
use crate::store::{Charge, Entry, Head};

const SHARDS: usize = 32;

/// Bytes that a body too large to store may run ahead of its fastest reader.
const AHEAD: usize = 256 << 10;

/// Bytes of such a body that are kept for slower readers; one that falls behind is cut.
const WINDOW: usize = 1 << 20;

type Key = Box<[u8]>;

/// All flights of the process, by the key of what they fetch.
#[derive(Debug)]
pub struct Flights {
    shards: [Mutex<HashMap<Key, Arc<Flight>>>; SHARDS],
    hasher: RandomState,
    count: AtomicUsize,
    limit: usize,
}

/// What a request does about a key that must be fetched.
pub enum Boarding {
    /// Nobody fetches it: this request's fetch is the flight.
    Lead(Ticket),
    Wait(Waiter),
    /// Too many flights: fetch alone.
    Full,
}

/// What the head of a fetch tells its waiters.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// The response may be shared, and its body is coming in.
    Streaming(Arc<Head>),
    /// The response is whole and stored.
    Stored(Arc<Entry>),
    /// The response is the leader's alone: everybody fetches.
    NotShared(Reason),
    Failed(Failure),
    /// The leader gave up for reasons of its own: somebody else leads.
    Abandoned,
}

impl Flights {
    pub fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self {
            shards: std::array::from_fn(|_| Mutex::default()),
            hasher: RandomState::new(),
            count: AtomicUsize::new(0),
            limit,
        })
    }

    /// Flights under way.
    pub fn count(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    /// Joins the flight of `key` or leads a new one, which begins at position `stamp` of the purge
    /// log. A flight whose own stamp `is_outdated` is not joined: a new one takes its place.
    /// `stored_meanwhile` is asked, under the lock, before a new flight begins: what a flight
    /// stored just before it ended must not be fetched again.
    pub fn board<T>(
        self: &Arc<Self>,
        key: &[u8],
        stamp: u64,
        is_outdated: impl FnOnce(u64) -> bool,
        stored_meanwhile: impl FnOnce() -> Option<T>,
    ) -> Result<Boarding, T> {
        let mut shard = self.shard(key);
        if let Some(flight) = shard.get(key).filter(|flight| !is_outdated(flight.stamp)) {
            if flight.is_open() {
                return Ok(Boarding::Wait(Waiter {
                    flight: Arc::clone(flight),
                }));
            }
            // Past its size limit: it serves those who are on board and nobody else.
            return Ok(Boarding::Full);
        }
        if let Some(found) = stored_meanwhile() {
            return Err(found);
        }
        if self.count.fetch_add(1, Ordering::Relaxed) >= self.limit {
            self.count.fetch_sub(1, Ordering::Relaxed);
            return Ok(Boarding::Full);
        }
        let flight = Flight::at(stamp);
        if shard.insert(key.into(), Arc::clone(&flight)).is_some() {
            // The outdated one is no longer listed, and will not be counted when it ends.
            self.count.fetch_sub(1, Ordering::Relaxed);
        }
        Ok(Boarding::Lead(Ticket {
            flight,
            flights: Arc::clone(self),
            key: key.into(),
        }))
    }

    /// A flight that nobody can join: a fetch for one request alone.
    pub fn solo(self: &Arc<Self>, key: &[u8], stamp: u64) -> Ticket {
        Ticket {
            flight: Flight::at(stamp),
            flights: Arc::clone(self),
            key: key.into(),
        }
    }

    fn shard(&self, key: &[u8]) -> MutexGuard<'_, HashMap<Key, Arc<Flight>>> {
        let at = self.hasher.hash_one(key) as usize % SHARDS;
        lock(&self.shards[at])
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // No code under these locks can leave its data half-changed by a panic.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One fetch and those who wait for it.
#[derive(Debug)]
struct Flight {
    state: Mutex<State>,
    /// The purge log's position when it began.
    stamp: u64,
}

#[derive(Debug, Default)]
struct State {
    outcome: Option<Outcome>,
    pieces: VecDeque<Bytes>,
    /// Pieces dropped from the front of the window.
    dropped: usize,
    /// Bytes in `pieces`.
    buffered: usize,
    end: Option<Result<Option<HeaderMap>, Failure>>,
    /// The body is only passing through: it is not kept from byte 0, and nobody joins.
    windowed: bool,
    /// Next piece of each reader; `None` where a reader left.
    readers: Vec<Option<usize>>,
    waiting: Vec<Waker>,
    producer: Option<Waker>,
    /// For the pieces, once the fetch has ended: readers may hold them for long.
    charge: Option<Charge>,
}

impl State {
    fn wake_waiting(&mut self) {
        self.waiting.drain(..).for_each(Waker::wake);
    }

    fn wait(&mut self, context: &Context<'_>) {
        let waker = context.waker();
        if !self.waiting.iter().any(|known| known.will_wake(waker)) {
            self.waiting.push(waker.clone());
        }
    }

    /// Bytes between the fastest reader and the end of what has come.
    fn ahead(&self) -> usize {
        let fastest = self.readers.iter().flatten().max().copied().unwrap_or(0);
        let read = fastest.saturating_sub(self.dropped);
        self.pieces.iter().skip(read).map(Bytes::len).sum()
    }

    fn has_readers(&self) -> bool {
        self.readers.iter().any(Option::is_some)
    }
}

impl Flight {
    fn at(stamp: u64) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::default(),
            stamp,
        })
    }

    fn is_open(&self) -> bool {
        !lock(&self.state).windowed
    }
}

/// The fetch's side of a flight.
pub struct Ticket {
    flight: Arc<Flight>,
    flights: Arc<Flights>,
    key: Key,
}

impl Ticket {
    pub fn key(&self) -> &[u8] {
        &self.key
    }

    /// The purge log's position when the flight began.
    pub fn stamp(&self) -> u64 {
        self.flight.stamp
    }

    /// Tells the waiters what the head showed. Only the first word counts.
    pub fn publish(&self, outcome: Outcome) {
        let mut state = lock(&self.flight.state);
        if state.outcome.is_none() {
            state.outcome = Some(outcome);
            state.wake_waiting();
        }
    }

    /// A reader from byte 0, for the request that leads.
    pub fn reader(&self) -> Reader {
        Reader::new(Arc::clone(&self.flight))
    }

    /// Hands a piece of the body to the readers. The pieces are kept from byte 0 until
    /// [`Ticket::pass_through`].
    pub fn push(&self, piece: Bytes) {
        let mut state = lock(&self.flight.state);
        state.buffered += piece.len();
        state.pieces.push_back(piece);
        state.wake_waiting();
    }

    /// The pieces so far.
    pub fn pieces(&self) -> Vec<Bytes> {
        lock(&self.flight.state).pieces.iter().cloned().collect()
    }

    /// From now on the body is only passed through: nobody joins, and little of it is kept.
    pub fn pass_through(&self) {
        lock(&self.flight.state).windowed = true;
        self.unlist();
    }

    /// Waits until there is room in the window of a body that passes through; `false` when nobody
    /// reads it any more. Gives back, through `charge`, what has left the window.
    pub async fn room(&self, charge: &mut Charge) -> bool {
        poll_fn(|context| {
            let mut state = lock(&self.flight.state);
            while state.buffered > WINDOW {
                let Some(piece) = state.pieces.pop_front() else {
                    break;
                };
                state.buffered -= piece.len();
                state.dropped += 1;
                charge.shrink(piece.len() as u64);
            }
            if !state.has_readers() {
                return Poll::Ready(false);
            }
            if state.ahead() <= AHEAD {
                return Poll::Ready(true);
            }
            state.producer = Some(context.waker().clone());
            Poll::Pending
        })
        .await
    }

    /// Leaves the charge for the pieces with them.
    pub fn keep_charge(&self, charge: Charge) {
        lock(&self.flight.state).charge = Some(charge);
    }

    /// Ends the body: with its trailers, if any, or with what broke it off.
    pub fn finish(self, end: Result<Option<HeaderMap>, Failure>) {
        let mut state = lock(&self.flight.state);
        state.end = Some(end);
        state.wake_waiting();
    }

    /// Takes the flight out of the table, so that the next request looks at the store.
    fn unlist(&self) {
        let mut shard = self.flights.shard(&self.key);
        if shard
            .get(&self.key)
            .is_some_and(|listed| Arc::ptr_eq(listed, &self.flight))
        {
            shard.remove(&self.key);
            self.flights.count.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.unlist();
        let mut state = lock(&self.flight.state);
        if state.outcome.is_none() {
            state.outcome = Some(Outcome::Abandoned);
        }
        if state.end.is_none() {
            let message = "the fetch ended before its body did";
            state.end = Some(Err(Failure::new(FailureKind::ResponseIncomplete, message)));
        }
        state.wake_waiting();
    }
}

/// A request that waits for another request's fetch.
pub struct Waiter {
    flight: Arc<Flight>,
}

impl Waiter {
    /// Waits for the head.
    pub async fn outcome(&self) -> Outcome {
        poll_fn(|context| {
            let mut state = lock(&self.flight.state);
            if let Some(outcome) = &state.outcome {
                return Poll::Ready(outcome.clone());
            }
            state.wait(context);
            Poll::Pending
        })
        .await
    }

    /// A reader from byte 0; `None` where its beginning is no longer there.
    pub fn reader(&self) -> Option<Reader> {
        self.flight
            .is_open()
            .then(|| Reader::new(Arc::clone(&self.flight)))
    }
}

/// Reads the body of a flight.
#[derive(Debug)]
pub struct Reader {
    flight: Arc<Flight>,
    slot: usize,
}

impl Reader {
    fn new(flight: Arc<Flight>) -> Self {
        let mut state = lock(&flight.state);
        let first = state.dropped;
        state.readers.push(Some(first));
        let slot = state.readers.len() - 1;
        drop(state);
        Self { flight, slot }
    }

    /// Waits for the end; the pieces of the body, shared with the flight. `Ok(None)` where it turns
    /// out too large to be kept.
    pub async fn whole(mut self) -> Result<Option<Vec<Bytes>>, Failure> {
        let mut pieces = Vec::new();
        while self.flight.is_open() {
            match poll_fn(|context| self.poll_frame(context)).await {
                None => return Ok(Some(pieces)),
                Some(frame) => pieces.extend(frame?.into_data().ok()),
            }
        }
        Ok(None)
    }

    /// The next piece, or the trailers; `None` at the end.
    pub fn poll_frame(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Failure>>> {
        let mut state = lock(&self.flight.state);
        let Some(next) = state.readers[self.slot] else {
            return Poll::Ready(None);
        };
        let Some(at) = next.checked_sub(state.dropped) else {
            state.readers[self.slot] = None;
            let message = "the client reads too slowly for a body that is too large to keep";
            return Poll::Ready(Some(Err(Failure::new(FailureKind::BodyTimeout, message))));
        };
        if let Some(piece) = state.pieces.get(at).cloned() {
            state.readers[self.slot] = Some(next + 1);
            if let Some(producer) = state.producer.take() {
                producer.wake();
            }
            return Poll::Ready(Some(Ok(Frame::data(piece))));
        }
        let Some(end) = state.end.clone() else {
            state.wait(context);
            return Poll::Pending;
        };
        state.readers[self.slot] = None;
        Poll::Ready(match end {
            Ok(trailers) => trailers.map(|trailers| Ok(Frame::trailers(trailers))),
            Err(failure) => Some(Err(failure)),
        })
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let mut state = lock(&self.flight.state);
        state.readers[self.slot] = None;
        if let Some(producer) = state.producer.take() {
            producer.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Ledger;

    fn board(flights: &Arc<Flights>, key: &[u8]) -> Boarding {
        flights.board(key, 0, |_| false, || None::<()>).unwrap()
    }

    fn lead(flights: &Arc<Flights>) -> Ticket {
        match board(flights, b"k") {
            Boarding::Lead(ticket) => ticket,
            _ => panic!("somebody else leads"),
        }
    }

    fn wait(flights: &Arc<Flights>) -> Waiter {
        match board(flights, b"k") {
            Boarding::Wait(waiter) => waiter,
            _ => panic!("nobody leads"),
        }
    }

    async fn read(reader: &mut Reader) -> Option<Result<Bytes, FailureKind>> {
        let frame = poll_fn(|context| reader.poll_frame(context)).await;
        frame.map(|frame| match frame {
            Ok(frame) => Ok(frame.into_data().unwrap()),
            Err(failure) => Err(failure.kind),
        })
    }

    #[tokio::test]
    async fn waiters_read_from_byte_zero_while_the_body_comes_in() {
        let flights = Flights::new(10);
        let ticket = lead(&flights);
        let waiter = wait(&flights);
        ticket.push(Bytes::from_static(b"a"));
        let mut reader = waiter.reader().unwrap();
        let reading = tokio::spawn(async move {
            let first = read(&mut reader).await;
            let second = read(&mut reader).await;
            (first, second, read(&mut reader).await)
        });
        tokio::task::yield_now().await;
        ticket.push(Bytes::from_static(b"b"));
        ticket.finish(Ok(None));
        let (first, second, end) = reading.await.unwrap();
        assert_eq!(first.unwrap().unwrap(), "a");
        assert_eq!(second.unwrap().unwrap(), "b");
        assert!(end.is_none());
        assert_eq!(flights.count(), 0);
    }

    #[tokio::test]
    async fn a_dropped_ticket_abandons_its_flight_and_another_may_lead() {
        let flights = Flights::new(10);
        let ticket = lead(&flights);
        let waiter = wait(&flights);
        drop(ticket);
        assert!(matches!(waiter.outcome().await, Outcome::Abandoned));
        lead(&flights);
    }

    #[tokio::test]
    async fn a_failure_reaches_every_reader() {
        let flights = Flights::new(10);
        let ticket = lead(&flights);
        let mut readers = [ticket.reader(), wait(&flights).reader().unwrap()];
        ticket.push(Bytes::from_static(b"a"));
        ticket.finish(Err(Failure::new(FailureKind::ResponseIncomplete, "cut")));
        for reader in &mut readers {
            assert!(read(reader).await.unwrap().is_ok());
            assert_eq!(
                read(reader).await,
                Some(Err(FailureKind::ResponseIncomplete))
            );
        }
    }

    #[tokio::test]
    async fn past_the_size_limit_nobody_joins_and_the_window_is_bounded() {
        let flights = Flights::new(10);
        let ticket = lead(&flights);
        let waiter = wait(&flights);
        let (mut fast, mut slow) = (ticket.reader(), waiter.reader().unwrap());
        ticket.pass_through();
        assert!(waiter.reader().is_none());
        let mut charge = Ledger::new(u64::MAX).open();
        let piece = Bytes::from(vec![0; 64 << 10]);
        for _ in 0..40 {
            assert!(ticket.room(&mut charge).await);
            charge.grow_anyway(piece.len() as u64);
            ticket.push(piece.clone());
            assert!(read(&mut fast).await.unwrap().is_ok());
        }
        assert!(ticket.room(&mut charge).await);
        assert!(lock(&ticket.flight.state).buffered <= WINDOW);
        // The slow reader has lost its beginning.
        assert_eq!(read(&mut slow).await, Some(Err(FailureKind::BodyTimeout)));
        drop((fast, slow));
        assert!(!ticket.room(&mut charge).await);
    }

    #[tokio::test]
    async fn the_producer_waits_for_its_fastest_reader() {
        let flights = Flights::new(10);
        let ticket = lead(&flights);
        let mut reader = ticket.reader();
        ticket.pass_through();
        ticket.push(Bytes::from(vec![0; AHEAD + 1]));
        let mut charge = Ledger::new(u64::MAX).open();
        let producing = tokio::spawn(async move { ticket.room(&mut charge).await });
        tokio::task::yield_now().await;
        assert!(!producing.is_finished());
        assert!(read(&mut reader).await.unwrap().is_ok());
        assert!(producing.await.unwrap());
    }

    #[test]
    fn flights_are_bounded() {
        let flights = Flights::new(1);
        let _ticket = lead(&flights);
        assert!(matches!(board(&flights, b"other"), Boarding::Full));
    }

    #[test]
    fn what_was_stored_meanwhile_is_not_fetched_again() {
        let flights = Flights::new(1);
        let stored = flights.board(b"k", 0, |_| false, || Some("stored"));
        assert_eq!(stored.err(), Some("stored"));
        assert_eq!(flights.count(), 0);
    }
}
