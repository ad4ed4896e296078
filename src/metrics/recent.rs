//! What was done lately by hand, or by a changed file: for people who look at a page and wonder.

use std::collections::VecDeque;

use parking_lot::Mutex;

use crate::clock::Timestamp;

/// So much is remembered.
const MOST: usize = 50;

#[derive(Debug, Default)]
pub struct Recent(Mutex<VecDeque<(Timestamp, String)>>);

impl Recent {
    pub fn note(&self, at: Timestamp, what: String) {
        let mut list = self.0.lock();
        list.push_front((at, what));
        list.truncate(MOST);
    }

    /// The latest first.
    pub fn list(&self) -> Vec<(Timestamp, String)> {
        let list = self.0.lock();
        list.iter().cloned().collect()
    }
}
