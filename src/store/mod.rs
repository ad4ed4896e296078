//! Stored responses: what one is made of ([`entry`]), the bytes that all of them may take
//! ([`ledger`]), the tier that holds them in memory ([`memory`]), the tier that the fleet shares
//! ([`second`]) with its values' layout ([`codec`]), and what was made unusable ([`purge`]).

pub mod codec;
pub mod entry;
pub mod ledger;
pub mod memory;
pub mod purge;
mod ready;
pub mod second;

pub use entry::{Entry, Fields, Head, NotAssembled, OTHERS, Selecting};
pub use ledger::{Charge, Ledger};
pub use memory::{Found, Memory};
pub use purge::{Judgement, Purge, PurgeLog, Reach, Seen, Target};
