//! TLS: whom we trust when we connect somewhere, and who we are to clients.

mod client;
mod names;
mod pem;
pub mod server;

use std::sync::Arc;

use rustls::crypto::CryptoProvider;

pub use client::{ClientTls, client};
pub use names::Names;
pub use pem::Identity;

/// What encrypts.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}
