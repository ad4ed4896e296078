//! Wire: what every message goes through, whatever is stored of it: checks of its framing, the
//! fields of one hop, what says who forwarded it, bodies, tunnels, interim responses.
//!
//! Nothing here may look at what is stored, at keys of clients, or at the clock but to bound a
//! wait.

pub mod body;
pub mod claims;
pub mod composed;
pub mod conditions;
pub mod forward;
pub mod framing;
pub mod grpc;
pub mod hops;
pub mod host;
pub mod interim;
pub mod peer;
pub mod response_head;
pub mod trailers;
pub mod tunnel;
pub mod upload;
pub mod whole_body;

pub use body::{Body, Pieces};
pub use claims::Client;
pub use conditions::Conditions;
pub use forward::{Form, Forwarded, Forwarding};
pub use host::Host;
pub use interim::{InterimListener, InterimQueue};
pub use peer::{Peer, PeerTls};
