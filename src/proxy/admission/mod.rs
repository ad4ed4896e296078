//! Admission: whether a request is let in, by limits and by its key, before anything stored is
//! looked at. Guard first, look-up second.
//!
//! Nothing here may look at what is stored.

pub mod keys;
pub mod limits;

use crate::error::Failure;
use crate::policy::Reason;

/// Why a request is not let in.
pub struct Refusal {
    pub failure: Failure,
    pub reason: Reason,
}

/// For what a request goes through its steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// It is answered, and counted.
    Answer,
    /// Somebody wants to know what would come of it: nothing is counted, asked or changed.
    Explain,
}
