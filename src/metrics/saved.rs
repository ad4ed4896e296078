//! What the origin did not have to do: requests and bytes that were answered from what is stored.
//! Each worker counts for itself.

use std::sync::atomic::{AtomicU64, Ordering};

use super::latency::{SHARDS, shard};

/// Padded to whole cache lines, so that two workers never write to the same one.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Shard {
    requests: AtomicU64,
    bytes: AtomicU64,
}

#[derive(Debug, Default)]
pub struct Saved {
    shards: [Shard; SHARDS],
}

impl Saved {
    /// One answer with a body of so many bytes.
    pub fn note(&self, bytes: u64) {
        let shard = &self.shards[shard()];
        shard.requests.fetch_add(1, Ordering::Relaxed);
        shard.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Requests and bytes so far.
    pub fn totals(&self) -> (u64, u64) {
        let sum = |of: fn(&Shard) -> &AtomicU64| -> u64 {
            let shards = self.shards.iter();
            shards.map(|shard| of(shard).load(Ordering::Relaxed)).sum()
        };
        (sum(|shard| &shard.requests), sum(|shard| &shard.bytes))
    }
}
