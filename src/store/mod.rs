//! Stored responses: what one is made of ([`entry`]), the bytes that all of them may take
//! ([`ledger`]), the tier that holds them in memory ([`memory`]), and what was made unusable
//! ([`purge`]).
//!
//! The second tier is begun and not in use: its codec ([`codec`]) and its seam ([`second`]) stand
//! and are tested, but no request reaches them before purges do (a value in Redis must never
//! outlive one), so that `[cache.redis]` is still refused.

pub mod codec;
pub mod entry;
pub mod ledger;
pub mod memory;
pub mod purge;
pub mod second;

pub use entry::{Entry, Fields, Head, NotAssembled, Selecting};
pub use ledger::{Charge, Ledger};
pub use memory::{Found, Memory};
pub use purge::{Judgement, Purge, PurgeLog, Reach, Seen, Target};
