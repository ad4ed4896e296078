//! How often requests may be sent once more: where everything fails, a second attempt of everything
//! would only be more load.

use std::sync::atomic::{AtomicI64, Ordering};

/// What each request adds, and what a second attempt takes.
const ADDED: i64 = 1;
const TAKEN: i64 = 10;

/// So much is saved at most: ten attempts in a row.
const MOST: i64 = 100;

/// Second attempts for a tenth of the requests.
#[derive(Debug)]
pub struct Budget(AtomicI64);

impl Default for Budget {
    fn default() -> Self {
        Self(AtomicI64::new(MOST))
    }
}

impl Budget {
    /// A request is sent.
    pub fn add(&self) {
        if self.0.load(Ordering::Relaxed) < MOST {
            self.0.fetch_add(ADDED, Ordering::Relaxed);
        }
    }

    /// Whether one may be sent once more.
    pub fn take(&self) -> bool {
        let has_enough = |left: i64| (left >= TAKEN).then(|| left - TAKEN);
        let taken = self
            .0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, has_enough);
        taken.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenth_of_the_requests_may_be_repeated() {
        let budget = Budget::default();
        assert_eq!((0..20).filter(|_| budget.take()).count(), 10);
        let repeated = (0..1000).filter(|_| {
            budget.add();
            budget.take()
        });
        assert_eq!(repeated.count(), 100);
    }
}
