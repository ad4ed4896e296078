//! What all sides of one flight share.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Waker};

use bytes::Bytes;
use http::HeaderMap;

use crate::error::Failure;
use crate::policy::Reason;
use crate::store::{Charge, Entry, Head};

/// Bytes that a body too large to store may run ahead of its fastest reader.
pub(super) const AHEAD: usize = 256 << 10;

/// Bytes of such a body that are kept for slower readers; one that falls behind is cut.
pub(super) const WINDOW: usize = 1 << 20;

/// What the head of a fetch tells its waiters.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// The response may be shared, and its body is coming in.
    Streaming(Arc<Head>),
    /// The response is whole and stored.
    Stored(Arc<Entry>),
    /// There is a response in the store by now: whoever waits looks there.
    Found,
    /// The response is the leader's alone: everybody fetches.
    NotShared(Reason),
    Failed(Failure),
    /// The leader gave up for reasons of its own: somebody else leads.
    Abandoned,
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // No code under these locks can leave its data half-changed by a panic.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One fetch and those who wait for it.
#[derive(Debug)]
pub struct Flight {
    pub state: Mutex<State>,
    /// The purge log's position when it began.
    pub stamp: u64,
}

#[derive(Debug, Default)]
pub struct State {
    pub outcome: Option<Outcome>,
    pub pieces: VecDeque<Bytes>,
    /// Pieces dropped from the front of the window.
    pub dropped: usize,
    /// Bytes in `pieces`.
    pub buffered: usize,
    pub end: Option<Result<Option<HeaderMap>, Failure>>,
    /// The body is only passing through: it is not kept from byte 0, and nobody joins.
    pub windowed: bool,
    /// Next piece of each reader; `None` where a reader left.
    pub readers: Vec<Option<usize>>,
    pub waiting: Vec<Waker>,
    pub producer: Option<Waker>,
    /// For the pieces, once the fetch has ended: readers may hold them for long.
    pub charge: Option<Charge>,
}

impl State {
    pub fn wake_waiting(&mut self) {
        self.waiting.drain(..).for_each(Waker::wake);
    }

    pub fn wait(&mut self, context: &Context<'_>) {
        let waker = context.waker();
        if !self.waiting.iter().any(|known| known.will_wake(waker)) {
            self.waiting.push(waker.clone());
        }
    }

    /// Bytes between the fastest reader and the end of what has come.
    pub fn ahead(&self) -> usize {
        let fastest = self.readers.iter().flatten().max().copied().unwrap_or(0);
        let read = fastest.saturating_sub(self.dropped);
        self.pieces.iter().skip(read).map(Bytes::len).sum()
    }

    pub fn has_readers(&self) -> bool {
        self.readers.iter().any(Option::is_some)
    }
}

impl Flight {
    pub fn at(stamp: u64) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::default(),
            stamp,
        })
    }

    pub fn is_open(&self) -> bool {
        !lock(&self.state).windowed
    }
}
