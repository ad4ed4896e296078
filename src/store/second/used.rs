//! Which responses are used most: a sample of the hits, for instances that start.

use std::cell::Cell;
use std::collections::HashMap;

use bytes::{BufMut, Bytes, BytesMut};
use parking_lot::Mutex;

/// One hit of so many is counted: the others cost an addition.
const SAMPLED: u32 = 32;

/// Different responses between two reports.
const MOST_COUNTED: usize = 4096;

/// Longer keys are not reported: they are seldom those of many.
const LONGEST: usize = 2048;

thread_local! {
    static PASSED: Cell<u32> = const { Cell::new(0) };
}

/// A stored response by its key in memory: the primary key, then what selects a variant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UsedKey {
    /// Length of the primary key, then all of it.
    bytes: Bytes,
}

impl UsedKey {
    pub fn new(key: &[u8], primary: usize) -> Self {
        let mut bytes = BytesMut::with_capacity(key.len() + 2);
        bytes.put_u16(u16::try_from(primary).unwrap_or(u16::MAX));
        bytes.put_slice(key);
        let bytes = bytes.freeze();
        Self { bytes }
    }

    /// What came from Redis; `None` for what is no such key.
    pub fn read(bytes: Bytes) -> Option<Self> {
        let primary = usize::from(u16::from_be_bytes(*bytes.first_chunk()?));
        (primary > 0 && primary + 2 <= bytes.len()).then_some(Self { bytes })
    }

    pub fn as_bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// The key under which it stands in memory.
    pub fn in_memory(&self) -> &[u8] {
        &self.bytes[2..]
    }

    pub fn primary(&self) -> &[u8] {
        &self.bytes[2..2 + self.primary_length()]
    }

    /// As `append_selecting` wrote it; empty for what is no variant.
    pub fn selecting(&self) -> &[u8] {
        &self.bytes[2 + self.primary_length()..]
    }

    fn primary_length(&self) -> usize {
        usize::from(u16::from_be_bytes([self.bytes[0], self.bytes[1]]))
    }
}

/// Uses since the last report.
#[derive(Debug, Default)]
pub struct Used {
    counts: Mutex<HashMap<Bytes, u64>>,
}

impl Used {
    /// A hit on `key`, whose primary part is so long. Never waits.
    pub fn note(&self, key: &[u8], primary: usize) {
        let passed = PASSED.get().wrapping_add(1);
        PASSED.set(passed);
        if !passed.is_multiple_of(SAMPLED) || key.len() > LONGEST {
            return;
        }
        let Some(mut counts) = self.counts.try_lock() else {
            return;
        };
        let key = UsedKey::new(key, primary).bytes;
        if counts.len() < MOST_COUNTED || counts.contains_key(&key) {
            *counts.entry(key).or_default() += u64::from(SAMPLED);
        }
    }

    /// What was counted since the last call.
    pub fn take(&self) -> Vec<(Bytes, u64)> {
        let mut counts = self.counts.lock();
        std::mem::take(&mut *counts).into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_read_as_it_was_written_and_nothing_else_is() {
        let key = UsedKey::new(b"primary\x1fvary=de", 7);
        let again = UsedKey::read(key.as_bytes().clone()).unwrap();
        assert_eq!(
            (again.primary(), again.selecting()),
            (&b"primary"[..], &b"\x1fvary=de"[..])
        );
        for broken in [&b""[..], b"\0", b"\0\0", b"\0\x09short", b"\xff\xff"] {
            assert_eq!(UsedKey::read(Bytes::copy_from_slice(broken)), None);
        }
    }

    #[test]
    fn of_many_hits_as_many_are_counted() {
        let used = Used::default();
        for _ in 0..SAMPLED * 100 {
            used.note(b"k", 1);
        }
        let counted = used.take();
        assert_eq!(counted.len(), 1);
        assert_eq!(counted[0].1, u64::from(SAMPLED * 100));
        assert!(used.take().is_empty());
    }
}
