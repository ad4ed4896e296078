//! What all sides of one flight share.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::error::Failure;
use crate::policy::Reason;
use crate::store::{Charge, Entry, Head};

/// Bytes that a body too large to store may run ahead of its slowest reader.
pub(super) const AHEAD: usize = 256 << 10;

const MIB: usize = 1 << 20;

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
    /// Pieces dropped from the front, which every reader has had.
    pub dropped: usize,
    /// Bytes in `pieces`.
    pub buffered: usize,
    pub end: Option<Result<Option<HeaderMap>, Failure>>,
    /// When the head or the last piece came.
    last_word: Option<Instant>,
    /// The origin is not asked for more: a reader has to catch up first.
    pub is_held: bool,
    /// The body is only passing through: it is not kept from byte 0, and nobody joins.
    pub is_passing: bool,
    /// Where each reader is; `None` where one left.
    pub readers: Vec<Option<Place>>,
    /// When readers were last found waiting for slower ones.
    pub looked: Option<Instant>,
    /// Requests that wait for the head.
    pub waiters: usize,
    pub waiting: Vec<Waker>,
    pub producer: Option<Waker>,
    /// For the pieces, once the fetch has ended: readers may hold them for long.
    pub charge: Option<Charge>,
}

/// Where a reader is in the body.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// The piece that it gets next, counted from the first of the body.
    pub next: usize,
    /// Bytes since its last whole MiB.
    since: usize,
    /// How long others have waited for it, in this MiB.
    waited: Duration,
    /// Others have waited too long: it gets nothing more.
    pub is_cut: bool,
}

impl Place {
    pub fn at(next: usize) -> Self {
        Self {
            next,
            since: 0,
            waited: Duration::ZERO,
            is_cut: false,
        }
    }

    pub fn took(&mut self, bytes: usize) {
        self.next += 1;
        self.since += bytes;
        if self.since >= MIB {
            self.since %= MIB;
            self.waited = Duration::ZERO;
        }
    }
}

impl State {
    pub fn wake_waiting(&mut self) {
        self.waiting.drain(..).for_each(Waker::wake);
    }

    /// The origin has said something.
    pub fn note_word(&mut self) {
        self.last_word = Some(Instant::now());
    }

    /// Until when those who wait for more of the body have patience.
    pub fn patient_until(&self, patience: Duration) -> Instant {
        let now = Instant::now();
        let last = self.last_word.filter(|_| !self.is_held);
        last.unwrap_or(now) + patience
    }

    pub fn wait(&mut self, context: &Context<'_>) {
        let waker = context.waker();
        if !self.waiting.iter().any(|known| known.will_wake(waker)) {
            self.waiting.push(waker.clone());
        }
    }

    fn reading(&mut self) -> impl Iterator<Item = &mut Place> {
        self.readers.iter_mut().flatten().filter(|at| !at.is_cut)
    }

    pub fn has_readers(&mut self) -> bool {
        self.reading().next().is_some()
    }

    /// Drops what every reader has had; how many bytes that is.
    pub fn drop_read(&mut self) -> usize {
        let Some(slowest) = self.slowest() else {
            return 0;
        };
        let count = slowest.saturating_sub(self.dropped);
        let bytes = self.pieces.drain(..count).map(|piece| piece.len()).sum();
        self.dropped += count;
        self.buffered -= bytes;
        bytes
    }

    fn slowest(&mut self) -> Option<usize> {
        self.reading().map(|at| at.next).min()
    }

    /// Counts against the slowest reader how long others have waited for it since that was last
    /// counted.
    pub fn count_waiting(&mut self) {
        let Some(slowest) = self.looked.and(self.slowest()) else {
            return;
        };
        let now = Instant::now();
        let waited = self.looked.replace(now).map(|looked| now - looked);
        let places = self.reading().filter(|at| at.next == slowest);
        places.for_each(|at| at.waited += waited.unwrap_or_default());
    }

    /// Cuts readers for which others have waited `mib_timeout` for one MiB of their reading.
    pub fn cut_slow(&mut self, mib_timeout: Duration) {
        let mut cuts = false;
        for at in self.reading().filter(|at| at.waited >= mib_timeout) {
            at.is_cut = true;
            cuts = true;
        }
        if cuts {
            self.wake_waiting();
        }
    }

    /// When the slowest reader is to be cut, if it stays where it is; `None` where nobody waits for
    /// it.
    pub fn patience(&mut self, mib_timeout: Duration) -> Option<Instant> {
        let end = self.dropped + self.pieces.len();
        self.looked = None;
        if !self.reading().any(|at| at.next == end) {
            return None;
        }
        let (now, slowest) = (Instant::now(), self.slowest()?);
        self.looked = Some(now);
        let waited = self.reading().filter(|at| at.next == slowest);
        let waited = waited.map(|at| at.waited).max()?;
        Some(now + mib_timeout.saturating_sub(waited))
    }
}

impl Flight {
    pub fn at(stamp: u64) -> Arc<Self> {
        let state = State {
            last_word: Some(Instant::now()),
            ..State::default()
        };
        Arc::new(Self {
            state: Mutex::new(state),
            stamp,
        })
    }

    pub fn is_open(&self) -> bool {
        !self.state.lock().is_passing
    }
}
