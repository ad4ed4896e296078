//! How often keys are used: counted in memory, written in batches, never in a request's way.

use std::collections::HashMap;

use parking_lot::Mutex;

#[derive(Debug, Default)]
pub struct Usage {
    counts: Mutex<HashMap<String, u64>>,
}

impl Usage {
    pub fn note(&self, key: &str) {
        let mut counts = self.counts.lock();
        match counts.get_mut(key) {
            Some(count) => *count += 1,
            None => drop(counts.insert(key.to_owned(), 1)),
        }
    }

    pub fn take(&self) -> Vec<(String, u64)> {
        let mut counts = self.counts.lock();
        let mut taken: Vec<_> = std::mem::take(&mut *counts).into_iter().collect();
        // Rows in one order: two instances that write the same keys never wait for one another.
        taken.sort();
        taken
    }

    /// What could not be written counts next time.
    pub fn put_back(&self, taken: Vec<(String, u64)>) {
        let mut counts = self.counts.lock();
        for (key, count) in taken {
            *counts.entry(key).or_default() += count;
        }
    }
}
