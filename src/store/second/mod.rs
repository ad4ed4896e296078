//! The second tier: what the fleet shares. [`SecondTier`] is the seam, Redis behind it or a test's
//! fake; [`Second`] is what the rest of the house asks, and what keeps an ill tier from making
//! anything slower: one deadline for a look-up, a breaker that opens after failures in a row,
//! writes that nobody waits for.
//!
//! | file | holds |
//! |---|---|
//! | `tier` | whether it can be asked, and what goes on behind it |
//! | `look_up`, `write` | look-ups within a deadline · writes behind a queue |
//! | `lease` | one fetch per fleet: who leads, who waits, and how they hear of it |
//! | `breaker` | when an ill tier is left alone, and how it is found well again |
//! | `notes` | small values: verdicts on keys, what was proved of units, windows of rate limits |
//! | `used` | what is used most, for instances that start |
//! | `follow` | the purge log followed, own purges appended |
//! | `names`, `redis`, `lua/` | under which names, by which commands |

pub mod breaker;
pub mod follow;
pub mod lease;
pub mod look_up;
pub mod names;
mod notes;
pub mod redis;
pub mod seal;
#[cfg(test)]
mod tests;
pub mod tier;
pub mod used;
mod write;

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;

use super::purge::fleet::{Outgoing, Reader, Stamp, Synced};

pub use lease::{Lease, LeaseOutcome, Waiting};
pub use look_up::{Elsewhere, Found, Fresh, Wanted};
pub use names::ValuePlace;
pub use redis::Redis;
pub use tier::Second;

/// What is asked of a second tier.
pub type Asking<'a, T> = Pin<Box<dyn Future<Output = Result<T, TierError>> + Send + 'a>>;

/// A store that several instances share. Every value has an end; each call is one round trip.
pub trait SecondTier: Send + Sync + 'static {
    /// A value, or else the lease of its key.
    fn look_up(&self, question: Question) -> Asking<'_, Answer>;
    /// Stores what a fetch brought, ends its lease, and tells those who wait.
    fn settle(&self, settlement: Settlement) -> Asking<'_, ()>;
    /// Keeps a lease whose fetch still runs for so long.
    fn renew<'a>(&'a self, lease: &'a str, token: u64, ttl: Duration) -> Asking<'a, ()>;
    fn delete<'a>(&'a self, value: &'a str) -> Asking<'a, ()>;
    /// What was noted under a name.
    fn noted(&self, name: String) -> Asking<'_, Option<Bytes>>;
    /// Notes a small value.
    fn note(&self, name: String, value: Bytes, ttl: Duration) -> Asking<'_, ()>;
    /// Notes a small value, unless something is noted under the name; whether it was.
    fn note_first(&self, name: String, value: Bytes, ttl: Duration) -> Asking<'_, bool>;
    /// Takes requests out of a window that the fleet shares.
    fn take(&self, taking: Taking) -> Asking<'_, Taken>;
    /// Nothing was heard for a while although it answers: listens over a new connection.
    fn listen_anew(&self);
    /// Whether it answers at all.
    fn ping(&self) -> Asking<'_, ()>;
    /// Appends purges to the fleet's log of this epoch.
    fn append(&self, epoch: u64, purges: Vec<Outgoing>) -> Asking<'_, Appended>;
    /// What the fleet's log has after a reader's place.
    fn sync(&self, reader: Reader) -> Asking<'_, Synced>;
    /// The instances that were heard within so long, and how far each has applied the fleet's log.
    fn instances(&self, within: Duration) -> Asking<'_, Vec<Instance>>;
    /// What this instance is called there.
    fn name(&self) -> &str;
    /// What its settings keep it from promising.
    fn advice(&self) -> Asking<'_, Vec<String>>;
    /// Counts uses of responses, by their keys, in this hour since 1970.
    fn note_used(&self, hour: u64, counts: Vec<(Bytes, u64)>) -> Asking<'_, ()>;
    /// The keys that were used most in this hour and the last, with their uses.
    fn most_used(&self, hour: u64, most: usize) -> Asking<'_, Vec<(Bytes, u64)>>;
}

/// A look-up by its names.
#[derive(Clone, Debug)]
pub struct Question {
    pub place: ValuePlace,
    pub wants: Wants,
    /// A variant of another generation is of no use; empty for what is no variant.
    pub generation: Bytes,
    /// How the value begins that is known to be of no use, and that another may have replaced.
    pub known: Bytes,
    /// Of the lease, should this instance get it.
    pub token: u64,
    pub lease_ttl: Duration,
    /// Of the fleet's purge log, as far as this instance has read.
    pub position: u64,
}

/// What a look-up is content with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wants {
    Value,
    /// The value, and no lease where there is none.
    ValueAlone,
    /// The value is known to be of no use, unless it has changed.
    Lease,
    /// And so is the fetch of whoever holds this token: a purge came after it began.
    LeaseOf(u64),
}

#[derive(Clone, Debug)]
pub enum Answer {
    Value(Bytes),
    /// There is none, and nothing was claimed.
    Nothing,
    /// The lease is this instance's now.
    Lead,
    /// Another instance fetches, since this position of the purge log; its lease ends in this time.
    Wait {
        token: u64,
        position: u64,
        left: Duration,
    },
}

/// What is stored at the end of a fetch, and what its lease ends with.
#[derive(Clone, Debug)]
pub struct Settlement {
    pub lease: Option<(String, u64)>,
    pub outcome: LeaseOutcome,
    pub store: Option<Store>,
}

#[derive(Clone, Debug)]
pub struct Store {
    /// Name of the value.
    pub value: String,
    /// For a variant: name of the record, and the fields that select.
    pub record: Option<(String, Bytes)>,
    pub bytes: Bytes,
    pub ttl: Duration,
}

/// What is taken out of a window of requests that the fleet shares, and given back to it.
#[derive(Clone, Debug)]
pub struct Taking {
    pub name: String,
    /// Requests within a window.
    pub limit: u64,
    pub window: Duration,
    /// For this request, and for later ones as far as the last tenth of the limit is not touched;
    /// 0 to give back only.
    pub wanted: u64,
    /// Taken before and not used, of the window that began then.
    pub back: u64,
    pub began: u64,
    /// What was used of that window by all when it was last asked; 0 where that is not known.
    pub used: u64,
}

/// What was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken {
    /// 0: this request is one too many.
    pub granted: u64,
    /// What is left now.
    pub left: u64,
    /// How long until one more is.
    pub retry: Duration,
    /// How long until nothing of what was taken counts any more.
    pub reset: Duration,
    /// When the window began, in milliseconds of the tier's clock.
    pub began: u64,
}

/// So many bytes tell one value from another: its checksum is among them.
pub const FINGERPRINT: usize = 24;

/// The first byte of a record of variants; the next eight are its generation, then come the names
/// of the selecting fields between commas. A stored response begins with its version.
pub const RECORD: u8 = b'V';

/// How appending purges ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Appended {
    /// They are in the log.
    In,
    /// They are in the log of this server, and no replica has confirmed that it has them too,
    /// though there have been some: a failover may lose them.
    InOneServer,
    /// The log is another one than was meant, or not whole: who looks at it can append again.
    OfAnotherLog,
}

/// An instance of the fleet, as the second tier knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance {
    /// Host, process and some random digits.
    pub name: String,
    /// How far it has applied the fleet's log.
    pub stamp: Stamp,
    /// Since it was heard.
    pub silent: Duration,
    /// Where its admin port is, as far as others can reach it.
    pub admin: Option<SocketAddr>,
}

impl Instance {
    /// Whether it has applied the log up to there.
    pub fn has_applied(&self, stamp: Stamp) -> bool {
        self.stamp.epoch == stamp.epoch && self.stamp.position >= stamp.position
    }
}

/// How many instances there are, how many know of something, and which do not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Instances {
    pub acknowledged: u64,
    pub alive: u64,
    pub missing: Vec<Instance>,
}

/// What a second tier tells without being asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A lease that this instance waits for has ended.
    Settled {
        lease: String,
        outcome: LeaseOutcome,
    },
    /// The fleet's purge log has grown.
    LogGrew,
    /// The last tenth of a limit is reached: what was taken and is not used goes back.
    Recalled { name: String },
    /// What each look at the purge log sends to its own instance: listening works.
    Beat,
    /// From now on everything is told; before it something may have been missed.
    Listening,
    /// From now on something may be missed.
    Interrupted,
    /// What the system or Redis said when a connection failed, and where.
    Trouble { why: String },
}

/// Why a second tier gave no answer.
#[derive(Clone, Debug, thiserror::Error)]
pub enum TierError {
    #[error("no answer in time")]
    Late,
    /// After failures in a row it is not asked for a while.
    #[error("not asked: it failed too often")]
    Open,
    /// Not asked: too many look-ups are under way.
    #[error("not asked: too many look-ups are under way")]
    Busy,
    /// What it holds cannot be judged before the purge log is read again.
    #[error("not asked: the purge log is out of reach")]
    Unheard,
    #[error("{0}")]
    Failed(String),
}

/// How long a second tier is waited for, and when it is given a pause.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// For one look-up, all of its round trips, and for a probe.
    pub read: Duration,
    /// For anything that nobody waits for.
    pub write: Duration,
    /// Failures in a row that open the breaker.
    pub failures: u32,
    /// How long it then is not asked.
    pub open: Duration,
    /// Probes in a row that close it again.
    pub successes: u32,
    /// Writes that may wait; the next one is dropped.
    pub queue: usize,
    /// How long a lease lasts that is not renewed.
    pub lease: Duration,
    /// Between two looks at the purge log when nothing is announced.
    pub heartbeat: Duration,
    /// Without a look at the purge log for so long, values cannot be judged.
    pub unheard: Duration,
    /// How long an instance that is not heard may serve what it has stored.
    pub max_silence: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            read: Duration::from_millis(20),
            write: Duration::from_secs(1),
            failures: 5,
            open: Duration::from_secs(10),
            successes: 2,
            queue: 1024,
            lease: Duration::from_secs(3),
            heartbeat: Duration::from_millis(500),
            unheard: Duration::from_secs(2),
            max_silence: Duration::from_secs(60),
        }
    }
}
