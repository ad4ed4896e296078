//! Fleet: what the other instances have, fetch, use and know.
//!
//! Nothing here may ask the origin or answer a client; an ill second tier costs one deadline and
//! never an error.

pub mod acknowledged;
pub mod consult;
pub mod hand_over;
pub mod warm_up;

pub use acknowledged::Known;
