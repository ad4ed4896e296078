//! A breaker: where most of what was asked in a window of time has failed, nothing is asked for a
//! while but by one request a second, and the first success closes it.
//!
//! What one client can easily bring about does not open it: a request at which the upstream hangs
//! up counts once for its path, however often it is made, and successes weigh against it.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::{Duration, Instant};

use http::Uri;
use parking_lot::{Mutex, MutexGuard};

/// Over one of these, and what has passed of the next, failures and successes are counted.
const WINDOW: Duration = Duration::from_secs(5);

/// Between two requests that try whether the upstream is well again.
const PROBE_EVERY: Duration = Duration::from_secs(1);

/// URLs told apart in one window.
const REMEMBERED: usize = 256;

/// Counts failures and says when to stop asking.
#[derive(Debug)]
pub struct Breaker {
    failures_to_open: u32,
    stays_open: Duration,
    state: Mutex<State>,
}

/// What failed, as far as it tells of the upstream and not of the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// There was no connection: no request can have caused that.
    Connection,
    /// A request got no answer; by a hash of its URL.
    Answer(u64),
    /// Its answer broke off, after it had been counted as a success; by the same.
    Body(u64),
}

/// By what URLs are told apart: their paths. A query is one client's to invent.
pub fn url_hash(uri: &Uri) -> u64 {
    let mut hasher = DefaultHasher::new();
    uri.path().hash(&mut hasher);
    hasher.finish()
}

#[derive(Debug, Default)]
struct State {
    /// When this window began, and what was counted in it and in the one before.
    since: Option<Instant>,
    now: Window,
    before: Window,
    /// Connections that failed one after another.
    lost: u32,
    open: Option<Open>,
}

/// What came of what was asked.
#[derive(Debug, Default)]
struct Window {
    successes: u32,
    connections: u32,
    urls: Vec<u64>,
}

#[derive(Clone, Copy, Debug)]
struct Open {
    until: Instant,
    next_probe: Instant,
}

impl Breaker {
    /// Opens after `failures_to_open` lost connections with nothing between them, or when so many
    /// failures are more than half of all that was asked in a window; closes by itself where
    /// nothing has failed for `stays_open` after that.
    pub fn new(failures_to_open: u32, stays_open: Duration) -> Self {
        Self {
            failures_to_open,
            stays_open,
            state: Mutex::default(),
        }
    }

    /// Whether a request may be sent at `now`; else how long to wait.
    pub fn admit(&self, now: Instant) -> Result<(), Duration> {
        let mut state = self.lock();
        let Some(open) = state.open_at(now) else {
            return Ok(());
        };
        if now < open.next_probe {
            return Err(open.next_probe - now);
        }
        open.next_probe = now + PROBE_EVERY;
        Ok(())
    }

    /// Notes a success; `true` where it closed the breaker.
    pub fn succeeded(&self, now: Instant) -> bool {
        let mut state = self.lock();
        if state.open.is_some() {
            *state = State::default();
            return true;
        }
        state.turn(now);
        state.lost = 0;
        state.now.successes = state.now.successes.saturating_add(1);
        false
    }

    /// Notes a failure; `true` where it opened the breaker.
    pub fn failed(&self, fault: Fault, now: Instant) -> bool {
        let mut state = self.lock();
        let until = now + self.stays_open;
        if let Some(open) = state.open_at(now) {
            open.until = until;
            return false;
        }
        state.turn(now);
        match fault {
            Fault::Connection => {
                state.lost = state.lost.saturating_add(1);
                state.now.connections = state.now.connections.saturating_add(1);
            }
            Fault::Answer(url) => state.now.note(url),
            Fault::Body(url) => {
                state.now.successes = state.now.successes.saturating_sub(1);
                state.now.note(url);
            }
        }
        let half =
            state.failures() >= self.failures_to_open && state.failures() > state.successes();
        let opens = half || state.lost >= self.failures_to_open;
        if opens {
            let next_probe = now + PROBE_EVERY.min(self.stays_open);
            state.open = Some(Open { until, next_probe });
        }
        opens
    }

    pub fn is_open(&self) -> bool {
        self.lock().open_at(Instant::now()).is_some()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }
}

impl Window {
    /// One URL counts once, however often it fails.
    fn note(&mut self, url: u64) {
        if self.urls.len() < REMEMBERED && !self.urls.contains(&url) {
            self.urls.push(url);
        }
    }
}

impl State {
    /// Whether it is open; where its time is over, all begins anew.
    fn open_at(&mut self, now: Instant) -> Option<&mut Open> {
        if self.open.is_some_and(|open| now >= open.until) {
            *self = Self::default();
        }
        self.open.as_mut()
    }

    fn successes(&self) -> u32 {
        self.now.successes.saturating_add(self.before.successes)
    }

    fn failures(&self) -> u32 {
        let earlier = self.before.urls.iter();
        let earlier = earlier.filter(|url| !self.now.urls.contains(url)).count();
        let urls = u32::try_from(self.now.urls.len() + earlier).unwrap_or(u32::MAX);
        let connections = self.now.connections.saturating_add(self.before.connections);
        urls.saturating_add(connections)
    }

    /// Begins a new window where this one is over.
    fn turn(&mut self, now: Instant) {
        let since = *self.since.get_or_insert(now);
        let windows = now.duration_since(since).as_nanos() / WINDOW.as_nanos();
        if windows > 0 {
            let last = std::mem::take(&mut self.now);
            self.before = if windows == 1 {
                last
            } else {
                Window::default()
            };
            self.since = Some(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    #[test]
    fn it_opens_when_most_of_a_window_fails_and_one_success_closes_it() {
        let breaker = Breaker::new(3, seconds(10));
        let start = Instant::now();
        breaker.succeeded(start);
        breaker.succeeded(start);
        let opened: Vec<bool> = (0..3)
            .map(|url| breaker.failed(Fault::Answer(url), start))
            .collect();
        assert_eq!(opened, [false, false, true]);
        assert_eq!(breaker.admit(start), Err(PROBE_EVERY));
        let later = start + PROBE_EVERY;
        assert!(breaker.admit(later).is_ok());
        assert!(breaker.admit(later).is_err(), "one request a second");
        assert!(breaker.succeeded(later));
        assert!(breaker.admit(later).is_ok());
    }

    #[test]
    fn one_url_opens_nothing_however_often_it_fails_but_a_lost_connection_does() {
        let breaker = Breaker::new(3, seconds(10));
        let start = Instant::now();
        (0..100).for_each(|_| assert!(!breaker.failed(Fault::Answer(7), start)));
        let opened: Vec<bool> = (0..2)
            .map(|_| breaker.failed(Fault::Connection, start))
            .collect();
        assert_eq!(opened, [false, true]);
    }

    #[test]
    fn successes_weigh_against_failures_for_a_window() {
        let breaker = Breaker::new(3, seconds(10));
        let start = Instant::now();
        (0..20).for_each(|_| assert!(!breaker.succeeded(start)));
        let fails = |urls: std::ops::Range<u64>, at| {
            urls.map(|url| breaker.failed(Fault::Answer(url), at))
                .filter(|opened| *opened)
                .count()
        };
        assert_eq!(fails(0..19, start), 0);
        assert_eq!(fails(19..30, start), 1);
        // What is long past counts neither way.
        let breaker = Breaker::new(3, seconds(10));
        breaker.failed(Fault::Answer(1), start);
        breaker.failed(Fault::Answer(2), start);
        assert!(!breaker.failed(Fault::Answer(3), start + 2 * WINDOW));
        // However much there is of either.
        let breaker = Breaker::new(3, seconds(10));
        (0..6000).for_each(|_| assert!(!breaker.succeeded(start)));
        let opened = (0..6000).position(|at| {
            breaker.succeeded(start);
            breaker.failed(Fault::Connection, start) || at > 9000
        });
        assert_eq!(opened, None);
        assert!((0..3).any(|_| breaker.failed(Fault::Connection, start)));
    }

    #[test]
    fn an_upstream_that_breaks_off_all_bodies_opens_it() {
        let breaker = Breaker::new(3, seconds(10));
        let start = Instant::now();
        let opened = (0..30).position(|at| {
            breaker.succeeded(start);
            breaker.failed(Fault::Body(at % 10), start)
        });
        assert_eq!(opened, Some(2));
    }

    #[test]
    fn one_request_a_second_tries_while_trials_fail_or_say_nothing() {
        let breaker = Breaker::new(1, seconds(10));
        let start = Instant::now();
        assert!(breaker.failed(Fault::Connection, start));
        for second in 1..30 {
            let now = start + seconds(second);
            assert!(breaker.admit(now).is_ok(), "{second}");
            assert!(breaker.admit(now).is_err(), "{second}");
            breaker.failed(Fault::Connection, now);
        }
        let quiet = start + seconds(29 + 10);
        assert!((0..5).all(|_| breaker.admit(quiet).is_ok()));
    }
}
