//! Writes to the second tier, behind the response: on a bounded queue, dropped where that is full,
//! and each with the end of its fetch's lease.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use http::HeaderName;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{Instant, timeout};

use crate::clock::Timestamp;
use crate::metrics::second::{Command, Writing};
use crate::store::codec::{self, Encoded};
use crate::store::entry::Entry;
use crate::store::purge::fleet::Stamp;

use super::names::Names;
use super::{Lease, LeaseOutcome, Second, Settlement, Store, TierError};

/// KiB of bodies that are written at one time, each at least a part of that: they are in memory
/// beside the budget, once as they are stored there and once more on their way.
const WRITTEN_AT_ONCE: u32 = 4 << 10;

/// Writes that are under way at one time.
const WRITES_AT_ONCE: u32 = 32;

/// Bodies from this size are packed on a thread of their own.
const PACKED_APART: usize = 32 << 10;

/// A response on its way.
pub(super) struct Write {
    names: Names,
    entry: Arc<Entry>,
    stamp: Stamp,
    ttl: Duration,
    lease: Option<Lease>,
}

impl Second {
    /// Writes behind the caller's back, and ends the lease with it; drops the value where too many
    /// wait already. `stamp` is the place in the fleet's purge log where its fetch began; `None`
    /// where nobody knows.
    pub fn put(
        &self,
        primary: &[u8],
        entry: Arc<Entry>,
        stamp: Option<Stamp>,
        lease: Option<Lease>,
        now: Timestamp,
    ) {
        let ttl = time_to_live(&entry, now);
        let lease = match lease {
            // Who waits could not use it: each must ask the origin.
            Some(lease) if !entry.view().is_reusable(now) => {
                lease.end(LeaseOutcome::NotStorable);
                None
            }
            lease => lease,
        };
        let outcome = match (stamp, ttl) {
            _ if entry.body().len() as u64 > self.extent.max_object => {
                self.metrics.second.wrote(Writing::TooLarge);
                LeaseOutcome::TooLarge
            }
            (Some(stamp), Some(ttl)) if self.is_usable() => {
                let names = Names::of(&self.extent.prefix, primary);
                let write = Write {
                    names,
                    entry,
                    stamp,
                    ttl,
                    lease,
                };
                let Err(refused) = self.writes.try_send(write) else {
                    return;
                };
                self.metrics.second.wrote(Writing::Dropped);
                if let Some(lease) = refused.into_inner().lease {
                    lease.end(LeaseOutcome::Dropped);
                }
                return;
            }
            // Nothing of it would outlast the way there.
            (_, None) => LeaseOutcome::NotStorable,
            _ => {
                self.metrics.second.wrote(Writing::Dropped);
                LeaseOutcome::Dropped
            }
        };
        if let Some(lease) = lease {
            lease.end(outcome);
        }
    }

    /// Removes what is stored for a primary key, behind the caller's back: the origin says that it
    /// may not be, or not any more.
    pub fn forget(&self, primary: &[u8]) {
        if self.is_usable() {
            self.discard(Names::of(&self.extent.prefix, primary).primary().to_owned());
        }
    }

    /// Removes a value that cannot be read, behind the caller's back.
    pub(super) fn discard(&self, value: String) {
        let (tier, limit) = (Arc::clone(&self.tier), self.patience.write);
        self.metrics.second.asked(Command::Delete);
        self.background.spawn(async move {
            // If it fails, it is found again.
            let _ = timeout(limit, tier.delete(&value)).await;
        });
    }

    pub(super) async fn write(self: Arc<Self>, mut waiting: mpsc::Receiver<Write>) {
        let under_way = Arc::new(Semaphore::new(WRITTEN_AT_ONCE as usize));
        while let Some(write) = waiting.recv().await {
            let size = u32::try_from(write.entry.body().len() >> 10).unwrap_or(u32::MAX);
            let size = size.clamp(WRITTEN_AT_ONCE / WRITES_AT_ONCE, WRITTEN_AT_ONCE);
            let Ok(permit) = Arc::clone(&under_way).acquire_many_owned(size).await else {
                return;
            };
            let second = Arc::clone(&self);
            second.settling.fetch_add(1, Ordering::Relaxed);
            tokio::spawn(async move {
                second.write_one(write).await;
                second.settling.fetch_sub(1, Ordering::Relaxed);
                drop(permit);
            });
        }
    }

    async fn write_one(&self, write: Write) {
        let Write {
            names,
            entry,
            stamp,
            ttl,
            lease,
        } = write;
        let body = entry.body().len();
        let packing = Arc::clone(&entry);
        let Encoded { bytes, packed } = if body < PACKED_APART {
            codec::encode(&packing, stamp)
        } else {
            let packed = tokio::task::spawn_blocking(move || codec::encode(&packing, stamp)).await;
            match packed {
                Ok(encoded) => encoded,
                Err(_) => return,
            }
        };
        let (value, record) = match &entry.head.selecting {
            None => (names.primary().to_owned(), None),
            Some(selecting) => (
                names.variant(&selecting.values, false).value,
                Some((names.primary().to_owned(), field_names(&selecting.names))),
            ),
        };
        let mut bytes = bytes;
        self.extent.seal.put(&value, &mut bytes);
        let beside = bytes.len() - packed + value.len();
        let settlement = Settlement {
            lease: lease.map(Lease::into_parts),
            outcome: LeaseOutcome::Stored,
            store: Some(Store {
                value,
                record,
                bytes: bytes.into(),
                ttl,
            }),
        };
        let is_written = self.settle(settlement).await;
        self.metrics.second.wrote(if is_written {
            self.metrics.second.stored(packed, beside);
            Writing::Stored
        } else {
            Writing::Failed
        });
    }

    async fn settle(&self, settlement: Settlement) -> bool {
        if self.breaker.is_open() {
            return false;
        }
        self.metrics.second.asked(Command::Settle);
        let begun = Instant::now();
        let asked = timeout(self.patience.write, self.tier.settle(settlement)).await;
        let result = asked.unwrap_or(Err(TierError::Late));
        // A slow success does not make up for look-ups that come too late.
        if result.is_err() || begun.elapsed() <= self.patience.read {
            self.judge(&result);
        }
        result.is_ok()
    }

    pub(super) async fn release(
        self: Arc<Self>,
        mut releases: mpsc::UnboundedReceiver<Settlement>,
    ) {
        while let Some(settlement) = releases.recv().await {
            let second = Arc::clone(&self);
            second.settling.fetch_add(1, Ordering::Relaxed);
            tokio::spawn(async move {
                second.settle(settlement).await;
                second.settling.fetch_sub(1, Ordering::Relaxed);
            });
        }
    }
}

fn field_names(names: &[HeaderName]) -> Bytes {
    let names: Vec<&str> = names.iter().map(HeaderName::as_str).collect();
    Bytes::from(names.join(","))
}

/// How long it may be of use from now on; `None` where it is of none.
fn time_to_live(entry: &Entry, now: Timestamp) -> Option<Duration> {
    let record = &entry.head.record;
    let lifetimes = &record.lifetimes;
    let grace = lifetimes
        .stale_while_revalidate
        .max(lifetimes.stale_if_error);
    let until = record.counts_from().plus(lifetimes.fresh).plus(grace);
    let left = until.since(now);
    (!left.is_zero()).then_some(left)
}
