//! The upstream: the API that is fronted, reached over a pool of connections.
//!
//! [`Origin`] is the seam: whatever answers a request behind the cache. The pool here is one, the
//! built-in origin another, and tests bring their own.

mod address;
mod addresses;
mod ask;
mod breaker;
mod budget;
mod connect;
mod exchange;
mod pool;
mod sender;
mod sending;
mod several;
mod socket;
mod stream;
mod tend;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::combinators::UnsyncBoxBody;

use crate::config::Config;
use crate::error::Failure;
use crate::metrics::UpstreamReading;

pub use ask::ask_admin;
pub use breaker::{Breaker, Fault, url_hash};
pub use exchange::{FailureOf, UploadUnwanted};
pub use pool::{TunnelSeat, Upstream};
pub use sending::{begun, empty};
pub use several::{Several, UpstreamName};

/// A body on its way to or from an origin.
pub type OriginBody = UnsyncBoxBody<Bytes, Failure>;

/// An answer that is being made.
pub type Answer<'a> =
    Pin<Box<dyn Future<Output = Result<Response<OriginBody>, Failure>> + Send + 'a>>;

/// In the extensions of a request: told when work on it has begun. Until then it can be taken back,
/// and nothing is lost.
#[derive(Clone, Debug, Default)]
pub struct Started(Arc<AtomicBool>);

impl Started {
    pub fn tell(&self) {
        self.0.store(true, Ordering::Release);
    }

    pub fn is_told(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// Whatever answers requests behind the cache.
///
/// The request has an origin-form target and a `Host`, and none of the fields of its former hop.
/// The response comes as soon as its head does; its body fails if it ends before it is whole.
pub trait Origin: Send + Sync + 'static {
    fn answer(&self, request: Request<OriginBody>) -> Answer<'_>;

    /// The end of the process: what is still to be written is.
    fn finish(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(std::future::ready(()))
    }

    /// Whether another configuration could be taken; an error says why not.
    fn can_renew(&self, _: &Config) -> Result<(), String> {
        Ok(())
    }

    /// Takes of another configuration what may change while it runs; an error says why it cannot.
    fn renew(&self, _: &Config) -> Result<(), String> {
        Ok(())
    }

    /// Connections to its database, and those of them that nobody uses.
    fn database_connections(&self) -> (u64, u64) {
        (0, 0)
    }

    /// Connections open now, and whether the breaker answers instead.
    fn readings(&self) -> Vec<UpstreamReading> {
        Vec::new()
    }
}
