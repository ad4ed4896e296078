//! A sliding window of requests: what the window before this one counted weighs as much as of it is
//! still within reach. Exact as long as nothing came before; never more than the limit by its own
//! measure.

use std::time::Duration;

use crate::clock::Timestamp;

/// What one caller has used of one limit, counted here.
#[derive(Clone, Copy, Debug, Default)]
pub struct Window {
    began: Timestamp,
    before: u64,
    count: u64,
}

/// How a request was counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counted {
    pub is_allowed: bool,
    pub left: u64,
    /// How long until one more is allowed; zero where it is.
    pub retry: Duration,
    /// How long this window lasts.
    pub reset: Duration,
}

impl Window {
    /// One that began then, and of which so much is used.
    pub fn of(began: Timestamp, count: u64) -> Self {
        Self {
            began,
            count,
            before: 0,
        }
    }

    /// Counts one request, if there is room for it.
    pub fn take(&mut self, limit: u64, length: Duration, now: Timestamp) -> Counted {
        let length = length.as_millis() as u64;
        let since = now.as_millis().checked_sub(self.began.as_millis());
        match since {
            Some(since) if since < length => {}
            Some(since) if since < 2 * length => {
                let began = self.began.as_millis() + length;
                *self = Self {
                    began: Timestamp::from_millis(began),
                    before: self.count,
                    count: 0,
                };
            }
            // Long ago, or a clock that was set back.
            _ => {
                *self = Self {
                    began: now,
                    ..Self::default()
                };
            }
        }
        let since = now.since(self.began).as_millis() as u64;
        let reset = Duration::from_millis(length - since);
        // In fractions of a window: whole numbers, so that nothing is rounded twice.
        let used = self.before * (length - since) + self.count * length;
        let is_allowed = used + length <= limit * length;
        if is_allowed {
            self.count += 1;
            let left = (limit * length - used - length) / length;
            return Counted {
                is_allowed,
                left,
                retry: Duration::ZERO,
                reset,
            };
        }
        let retry = if self.count < limit {
            // In this window, as the one before fades.
            (used + length - limit * length).div_ceil(self.before.max(1))
        } else {
            // In the next one, as this one does.
            let over = (self.count + 1 - limit) * length;
            length - since + over.div_ceil(self.count.max(1))
        };
        Counted {
            is_allowed,
            left: 0,
            retry: Duration::from_millis(retry),
            reset,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn at(millis: u64) -> Timestamp {
        Timestamp::from_millis(1_000_000 + millis)
    }

    #[test]
    fn the_limit_is_exact_and_fades_in_the_next_window() {
        let mut window = Window::default();
        let allowed = (0..150)
            .filter(|_| window.take(100, MINUTE, at(0)).is_allowed)
            .count();
        assert_eq!(allowed, 100);
        let refused = window.take(100, MINUTE, at(59_000));
        assert_eq!(
            (refused.is_allowed, refused.left, refused.retry),
            (false, 0, Duration::from_millis(1600))
        );
        assert!(!window.take(100, MINUTE, at(60_599)).is_allowed);
        assert!(window.take(100, MINUTE, at(60_600)).is_allowed);
        // Half a window later, half of it is free.
        let allowed = (0..150)
            .filter(|_| window.take(100, MINUTE, at(90_000)).is_allowed)
            .count();
        assert_eq!(allowed, 49);
        let allowed = (0..150)
            .filter(|_| window.take(100, MINUTE, at(300_000)).is_allowed)
            .count();
        assert_eq!(allowed, 100);
    }

    proptest! {
        #[test]
        fn retry_after_is_the_first_moment_that_works(
            limit in 1_u64..50,
            steps in proptest::collection::vec(0_u64..40_000, 1..200),
        ) {
            let (mut window, mut time) = (Window::default(), 0);
            for step in steps {
                time += step;
                let counted = window.take(limit, MINUTE, at(time));
                if counted.is_allowed {
                    prop_assert!(counted.left < limit);
                } else {
                    let retry = counted.retry.as_millis() as u64;
                    prop_assert!(retry > 0);
                    let mut later = window;
                    prop_assert!(later.take(limit, MINUTE, at(time + retry)).is_allowed);
                    let mut sooner = window;
                    prop_assert!(!sooner.take(limit, MINUTE, at(time + retry - 1)).is_allowed);
                }
            }
        }
    }
}
