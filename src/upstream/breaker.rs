//! A breaker: after so many consecutive failures nothing is asked for a while, then one request
//! tries, and its success closes it.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Counts failures in a row and says when to stop asking.
#[derive(Debug)]
pub struct Breaker {
    failures_to_open: u32,
    stays_open: Duration,
    state: Mutex<State>,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Closed {
        failures: u32,
    },
    Open {
        until: Instant,
    },
    /// One trial is under way, since then.
    Trying {
        since: Instant,
    },
}

impl Breaker {
    pub fn new(failures_to_open: u32, stays_open: Duration) -> Self {
        Self {
            failures_to_open,
            stays_open,
            state: Mutex::new(State::Closed { failures: 0 }),
        }
    }

    /// Whether a request may be sent at `now`; else how long to wait.
    pub fn admit(&self, now: Instant) -> Result<(), Duration> {
        let mut state = self.lock();
        match *state {
            State::Closed { .. } => Ok(()),
            State::Open { until } if now < until => Err(until - now),
            // A trial whose outcome never came must not keep the breaker open for ever.
            State::Trying { since } if now < since + self.stays_open => {
                Err(since + self.stays_open - now)
            }
            State::Open { .. } | State::Trying { .. } => {
                *state = State::Trying { since: now };
                Ok(())
            }
        }
    }

    /// Notes a success; `true` where it closed the breaker.
    pub fn succeeded(&self) -> bool {
        let mut state = self.lock();
        let was_open = !matches!(*state, State::Closed { .. });
        if !matches!(*state, State::Closed { failures: 0 }) {
            *state = State::Closed { failures: 0 };
        }
        was_open
    }

    /// Notes a failure; `true` where it opened the breaker.
    pub fn failed(&self, now: Instant) -> bool {
        let mut state = self.lock();
        let failures = match *state {
            State::Closed { failures } => failures + 1,
            State::Trying { .. } => self.failures_to_open,
            State::Open { .. } => return false,
        };
        let was_closed = matches!(*state, State::Closed { .. });
        let opens = failures >= self.failures_to_open;
        *state = if opens {
            State::Open {
                until: now + self.stays_open,
            }
        } else {
            State::Closed { failures }
        };
        opens && was_closed
    }

    /// The admitted request never reached the other side: the next one may try.
    pub fn untried(&self) {
        let mut state = self.lock();
        if let State::Trying { since } = *state {
            *state = State::Open { until: since };
        }
    }

    pub fn is_open(&self) -> bool {
        !matches!(*self.lock(), State::Closed { .. })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_opens_after_failures_in_a_row_and_one_trial_closes_it() {
        let breaker = Breaker::new(2, Duration::from_secs(10));
        let start = Instant::now();
        breaker.failed(start);
        breaker.succeeded();
        breaker.failed(start);
        assert!(breaker.admit(start).is_ok());
        breaker.failed(start);
        assert_eq!(breaker.admit(start), Err(Duration::from_secs(10)));
        let later = start + Duration::from_secs(10);
        assert!(breaker.admit(later).is_ok());
        assert!(breaker.admit(later).is_err(), "only one request tries");
        breaker.succeeded();
        assert!(!breaker.is_open());
    }

    #[test]
    fn a_failed_trial_opens_it_again() {
        let breaker = Breaker::new(3, Duration::from_secs(10));
        let start = Instant::now();
        let opened: Vec<bool> = (0..3).map(|_| breaker.failed(start)).collect();
        assert_eq!(opened, [false, false, true]);
        let later = start + Duration::from_secs(11);
        assert!(breaker.admit(later).is_ok());
        breaker.failed(later);
        assert!(breaker.admit(later + Duration::from_secs(9)).is_err());
    }
}
