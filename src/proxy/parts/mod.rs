//! Parts: ranges of a representation for clients, and partial responses in the store (RFC 9110 §14,
//! RFC 9111 §3.3, §3.4).
//!
//! Nothing here may answer a client or decide whether a request is looked up.

pub mod beginning;
pub mod extend;
pub mod ranges;
pub mod store;

pub use beginning::Beginning;
