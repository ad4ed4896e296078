//! Coalescing: one fetch from the origin, and the requests that wait for it.
//!
//! A [`Ticket`] belongs to the fetch, a [`Waiter`] to each request that found it under way. All
//! wake-ups are events; nothing polls. The first thing a fetch publishes is its [`Outcome`]: only
//! when the response head proves that the response may be shared do waiters get it, and then each
//! reads it from byte 0 at its own pace. A ticket that is dropped without a word abandons the
//! flight, and one of the waiters takes over.

mod reader;
mod state;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::future::{Future, poll_fn};
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use parking_lot::{Mutex, MutexGuard};
use tokio::time::{Instant, sleep_until};

use crate::error::{Failure, FailureKind};
use crate::store::Charge;

use state::{AHEAD, Flight};

pub use reader::{Reader, Waiter, Whole};
pub use state::Outcome;

const SHARDS: usize = 32;

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
                return Ok(Boarding::Wait(Waiter::new(Arc::clone(flight))));
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
        self.shards[at].lock()
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

    /// Whether others can find it.
    pub fn is_listed(&self) -> bool {
        let shard = self.flights.shard(&self.key);
        let listed = shard.get(&self.key);
        listed.is_some_and(|listed| Arc::ptr_eq(listed, &self.flight))
    }

    /// The purge log's position when the flight began.
    pub fn stamp(&self) -> u64 {
        self.flight.stamp
    }

    /// Tells the waiters what the head showed. Only the first word counts.
    pub fn publish(&self, outcome: Outcome) {
        let mut state = self.flight.state.lock();
        if state.outcome.is_none() {
            state.outcome = Some(outcome);
            state.note_word();
            state.wake_waiting();
        }
    }

    /// Waits until nobody waits for the head.
    pub async fn unawaited(&self) {
        poll_fn(|context| {
            let mut state = self.flight.state.lock();
            if state.waiters == 0 {
                return Poll::Ready(());
            }
            state.producer = Some(context.waker().clone());
            Poll::Pending
        })
        .await;
    }

    /// Lets nobody join any more, where nobody waits for the head; whether that is so.
    pub fn unlist_unawaited(&self) -> bool {
        let mut shard = self.flights.shard(&self.key);
        let is_unawaited = self.flight.state.lock().waiters == 0;
        if is_unawaited {
            self.unlist_in(&mut shard);
        }
        is_unawaited
    }

    /// A reader from byte 0, for the request that leads.
    pub fn reader(&self) -> Reader {
        Reader::new(Arc::clone(&self.flight), None)
    }

    /// Hands a piece of the body to the readers. The pieces are kept from byte 0 until
    /// [`Ticket::pass_through`].
    pub fn push(&self, piece: Bytes) {
        let mut state = self.flight.state.lock();
        state.note_word();
        state.buffered += piece.len();
        state.pieces.push_back(piece);
        state.wake_waiting();
    }

    /// The pieces so far.
    pub fn pieces(&self) -> Vec<Bytes> {
        self.flight.state.lock().pieces.iter().cloned().collect()
    }

    /// From now on the body is only passed through: nobody joins, and what every reader has had is
    /// not kept.
    pub fn pass_through(&self) {
        let mut state = self.flight.state.lock();
        state.is_passing = true;
        state.wake_waiting();
        drop(state);
        self.unlist();
    }

    /// Waits until the slowest reader of a body that passes through has caught up; `false` when
    /// nobody reads it any more. A reader for whom others have waited `mib_timeout` for a MiB is
    /// cut. Gives back, through `charge`, what all have had.
    pub async fn room(&self, charge: &mut Charge, mib_timeout: Duration) -> bool {
        let mut timer = std::pin::pin!(sleep_until(Instant::now()));
        poll_fn(|context| {
            loop {
                let mut state = self.flight.state.lock();
                state.count_waiting();
                state.cut_slow(mib_timeout);
                charge.shrink(state.drop_read() as u64);
                if !state.has_readers() {
                    return Poll::Ready(false);
                }
                state.is_held = state.buffered > AHEAD;
                if !state.is_held {
                    state.looked = None;
                    state.note_word();
                    return Poll::Ready(true);
                }
                state.producer = Some(context.waker().clone());
                let Some(until) = state.patience(mib_timeout) else {
                    return Poll::Pending;
                };
                drop(state);
                timer.as_mut().reset(until);
                ready!(timer.as_mut().poll(context));
            }
        })
        .await
    }

    /// Whether anybody reads the body, or waits for its head.
    pub fn has_readers(&self) -> bool {
        let mut state = self.flight.state.lock();
        state.waiters > 0 || state.has_readers()
    }

    /// Leaves the charge for the pieces with them.
    pub fn keep_charge(&self, charge: Charge) {
        self.flight.state.lock().charge = Some(charge);
    }

    /// Ends the body: with its trailers, if any, or with what broke it off.
    pub fn finish(self, end: Result<Option<HeaderMap>, Failure>) {
        let mut state = self.flight.state.lock();
        state.end = Some(end);
        state.wake_waiting();
    }

    /// Takes the flight out of the table, so that the next request looks at the store.
    pub fn unlist(&self) {
        self.unlist_in(&mut self.flights.shard(&self.key));
    }

    fn unlist_in(&self, shard: &mut HashMap<Key, Arc<Flight>>) {
        let listed = shard.get(&self.key);
        if listed.is_some_and(|listed| Arc::ptr_eq(listed, &self.flight)) {
            shard.remove(&self.key);
            self.flights.count.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.unlist();
        let mut state = self.flight.state.lock();
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
