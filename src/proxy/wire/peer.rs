//! Who is at the other end of a client's connection, as the server knows it.

use std::net::IpAddr;
use std::sync::Arc;

use http::HeaderValue;

use crate::tls::Names;

/// Who is at the other end of a client's connection.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Of the client, or of the last proxy before us.
    pub address: IpAddr,
    /// A proxy passes on the bytes of somebody whom it does not name: what they say is not the
    /// proxy's word.
    pub is_hidden: bool,
    /// `None`: what comes is not encrypted.
    pub tls: Option<Arc<PeerTls>>,
}

/// What a client has said, and shown, in its handshake.
#[derive(Debug)]
pub struct PeerTls {
    /// The name that it wants to speak to (RFC 6066 §3).
    pub server_name: Option<Box<str>>,
    /// Names that the listener's certificates are for.
    pub ours: Arc<Names>,
    /// Its certificate, verified, as `Client-Cert` has it (RFC 9440 §2.2).
    pub certificate: Option<HeaderValue>,
}

impl From<IpAddr> for Peer {
    /// One whose connection is not encrypted.
    fn from(address: IpAddr) -> Self {
        Self {
            address,
            is_hidden: false,
            tls: None,
        }
    }
}

impl PeerTls {
    /// Of a client that has named nobody and shown nothing.
    pub fn unknown() -> Self {
        Self {
            server_name: None,
            ours: Arc::default(),
            certificate: None,
        }
    }

    /// Whether a request for this host may come over the connection: where it is another than the
    /// client has asked to speak to, one of our certificates is for it too (RFC 9110 §7.4, RFC 9113
    /// §9.1.1).
    pub fn is_for(&self, host: &str) -> bool {
        let Some(name) = &self.server_name else {
            return true;
        };
        name.eq_ignore_ascii_case(host.trim_end_matches('.')) || self.ours.cover(host)
    }
}
