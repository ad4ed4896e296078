//! Stored responses: what one is made of ([`entry`]), the bytes that all of them may take
//! ([`ledger`]), and the tier that holds them in memory ([`memory`]).

pub mod entry;
pub mod ledger;
pub mod memory;

pub use entry::{Entry, Fields, Head, NotAssembled, Selecting};
pub use ledger::{Charge, Ledger};
pub use memory::{Found, Memory};
