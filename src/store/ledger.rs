//! The budget: every byte of a body or a stored response is charged while anybody holds it.
//!
//! The memory tier bounds what it keeps; the ledger also sees what it does not: bodies in flight,
//! and evicted responses that slow readers still hold. What would go past the budget is refused
//! here, and then streamed without being stored.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes held now, against a budget.
#[derive(Debug)]
pub struct Ledger {
    budget: u64,
    held: AtomicU64,
}

impl Ledger {
    pub fn new(budget: u64) -> Arc<Self> {
        Arc::new(Self {
            budget,
            held: AtomicU64::new(0),
        })
    }

    pub fn budget(&self) -> u64 {
        self.budget
    }

    pub fn held(&self) -> u64 {
        self.held.load(Ordering::Relaxed)
    }

    /// An empty charge that can grow.
    pub fn open(self: &Arc<Self>) -> Charge {
        Charge {
            ledger: Arc::clone(self),
            bytes: 0,
        }
    }
}

/// Bytes that are given back when this is dropped.
#[derive(Debug)]
pub struct Charge {
    ledger: Arc<Ledger>,
    bytes: u64,
}

impl Charge {
    /// Takes `more` bytes, unless that would go over the budget.
    #[must_use]
    pub fn grow(&mut self, more: u64) -> bool {
        let held = &self.ledger.held;
        let fits = held.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |held| {
            held.checked_add(more)
                .filter(|sum| *sum <= self.ledger.budget)
        });
        if fits.is_ok() {
            self.bytes += more;
        }
        fits.is_ok()
    }

    /// Takes `more` bytes that are already held elsewhere or are too few to refuse.
    pub fn grow_anyway(&mut self, more: u64) {
        self.ledger.held.fetch_add(more, Ordering::Relaxed);
        self.bytes += more;
    }

    /// Grows or shrinks to `bytes`, unless that would go over the budget.
    #[must_use]
    pub fn set(&mut self, bytes: u64) -> bool {
        match bytes.checked_sub(self.bytes) {
            Some(more) => self.grow(more),
            None => {
                self.shrink(self.bytes - bytes);
                true
            }
        }
    }

    pub fn shrink(&mut self, less: u64) {
        let less = less.min(self.bytes);
        self.ledger.held.fetch_sub(less, Ordering::Relaxed);
        self.bytes -= less;
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.ledger.held.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_charge_is_refused_over_the_budget_and_given_back_when_dropped() {
        let ledger = Ledger::new(100);
        let mut one = ledger.open();
        let mut other = ledger.open();
        assert!(one.grow(60));
        assert!(!other.grow(41));
        assert!(other.grow(40));
        one.shrink(10);
        assert_eq!(ledger.held(), 90);
        drop((one, other));
        assert_eq!(ledger.held(), 0);
    }
}
