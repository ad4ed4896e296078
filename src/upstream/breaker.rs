//! A breaker: where most of what was asked in a window of time has failed, nothing is asked for a
//! while but by one request a second, and the first success closes it.
//!
//! What one client can bring about does not open it: a request at which the upstream hangs up counts
//! once for its URL, however often it is made, and successes weigh against it.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Over which failures and successes are counted.
const WINDOW: Duration = Duration::from_secs(10);

/// Between two requests that try whether the upstream is well again.
const PROBE_EVERY: Duration = Duration::from_secs(1);

/// Failures remembered at one time; they are told apart by URL, so this bounds the search.
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
    /// A request got no answer, or no whole one; by a hash of its URL.
    Url(u64),
}

#[derive(Debug, Default)]
struct State {
    /// Since when successes are counted, and how many there were; and of the window before.
    counted_since: Option<Instant>,
    successes: u32,
    successes_before: u32,
    /// Oldest first.
    failures: VecDeque<(Instant, Fault)>,
    open: Option<Open>,
}

#[derive(Clone, Copy, Debug)]
struct Open {
    until: Instant,
    next_probe: Instant,
}

impl Breaker {
    /// Opens after `failures_to_open` failures that are half of all that was asked in ten seconds,
    /// and closes by itself where nothing has failed for `stays_open` after that.
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
        state.successes = state.successes.saturating_add(1);
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
        state
            .failures
            .retain(|(at, _)| now.duration_since(*at) < WINDOW);
        let is_known =
            fault != Fault::Connection && state.failures.iter().any(|(_, known)| *known == fault);
        if is_known {
            return false;
        }
        state.failures.push_back((now, fault));
        if state.failures.len() > REMEMBERED {
            state.failures.pop_front();
        }
        let failures = u32::try_from(state.failures.len()).unwrap_or(u32::MAX);
        let successes = state.successes.saturating_add(state.successes_before);
        let opens =
            failures >= self.failures_to_open.min(REMEMBERED as u32) && failures >= successes;
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
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
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

    /// Begins a new window of successes where the last one is over.
    fn turn(&mut self, now: Instant) {
        let since = *self.counted_since.get_or_insert(now);
        let windows = now.duration_since(since).as_secs() / WINDOW.as_secs();
        if windows > 0 {
            self.successes_before = if windows == 1 { self.successes } else { 0 };
            self.successes = 0;
            self.counted_since = Some(now);
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
    fn it_opens_when_half_of_a_window_fails_and_one_success_closes_it() {
        let breaker = Breaker::new(3, seconds(10));
        let start = Instant::now();
        breaker.succeeded(start);
        breaker.succeeded(start);
        let opened: Vec<bool> = (0..3)
            .map(|url| breaker.failed(Fault::Url(url), start))
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
        (0..100).for_each(|_| assert!(!breaker.failed(Fault::Url(7), start)));
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
            urls.map(|url| breaker.failed(Fault::Url(url), at))
                .filter(|opened| *opened)
                .count()
        };
        assert_eq!(fails(0..19, start), 0);
        assert_eq!(fails(20..30, start), 1);
        // What is long past counts neither way.
        let breaker = Breaker::new(3, seconds(10));
        breaker.failed(Fault::Connection, start);
        breaker.failed(Fault::Connection, start);
        assert!(!breaker.failed(Fault::Connection, start + WINDOW));
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
