//! Purging: what a write makes unusable before its sender hears of it, and how a URL that is named
//! stands in keys.
//!
//! The purge itself is an entry of the log, which the [`State`](super::state::State) appends.

pub mod targets;
pub mod write;
