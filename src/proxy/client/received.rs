//! Received: what is ambiguous or not for us is refused; of the rest the host is known, the fields
//! of one hop are off, and the path is in one spelling.

use std::borrow::Cow;

use http::header::UPGRADE;
use http::uri::PathAndQuery;
use http::{HeaderName, Uri, Version, request};

use crate::error::{Failure, FailureKind};
use crate::http::fields::{self, CLIENT_CERT, CLIENT_CERT_CHAIN, without_brackets, without_port};
use crate::policy::Reason;
use crate::policy::canonical;
use crate::proxy::admission::Refusal;
use crate::proxy::plan::Plan;
use crate::proxy::wire::claims::client_scheme;
use crate::proxy::wire::{Client, Host, framing};
use crate::proxy::wire::{Peer, PeerTls};

/// What is known of a request that was checked.
pub struct Received {
    /// `None` for an HTTP/1.0 request that names none.
    pub host: Option<Host>,
    pub spelling: Spelling,
}

/// How a target is spelled.
pub enum Spelling {
    Canonical,
    /// Otherwise; this is the canonical one.
    Other(PathAndQuery),
    /// It has no canonical spelling.
    None,
}

/// Checks a request as it came, and takes the fields of one hop off.
pub fn receive(
    plan: &Plan,
    parts: &mut request::Parts,
    peer: &Peer,
    client: Client,
) -> Result<Received, Box<Refusal>> {
    // Before anything is selected by them: the origin will not see these fields.
    fields::strip_named(&mut parts.headers);
    if parts.version < Version::HTTP_11 {
        // Of HTTP/1.0 it means nothing (RFC 9110 §7.8).
        parts.headers.remove(UPGRADE);
    }
    // Before anything is keyed by it: a stranger's word on certificates is nobody's.
    if !client.is_trusted {
        let shown = peer.tls.as_ref().and_then(|tls| tls.certificate.clone());
        let is_one = |name: &HeaderName| *name == CLIENT_CERT || *name == CLIENT_CERT_CHAIN;
        if shown.is_some() || parts.headers.keys().any(is_one) {
            parts.headers.remove(CLIENT_CERT_CHAIN);
            fields::set(&mut parts.headers, CLIENT_CERT, shown);
        }
    }
    let refused = |failure| {
        let reason = Reason::Refused;
        Box::new(Refusal { failure, reason })
    };
    let host = framing::check(parts, client, &plan.config.limits).map_err(refused)?;
    // A proxy that we trust speaks to us by our name, and for clients by theirs.
    if let (Some(tls), Some(host), false) = (&peer.tls, &host, client.is_trusted) {
        is_for_us(tls, host.as_str()).map_err(refused)?;
    }
    let scheme = client_scheme(parts, client);
    Ok(Received {
        host: host.map(|host| host.without_default_port(scheme)),
        spelling: spelling(&parts.uri),
    })
}

/// Whether a request for this host belongs on a connection to the name that the client has asked
/// for in its handshake.
fn is_for_us(tls: &PeerTls, host: &str) -> Result<(), Failure> {
    let name = String::from_utf8_lossy(without_port(host.as_bytes())).into_owned();
    let name = without_brackets(&name);
    if tls.is_for(name) {
        return Ok(());
    }
    let message = format!(
        "{name:?} is not the name that this connection was opened for (SNI), and no certificate \
            here is for it: open another one"
    );
    Err(Failure::new(FailureKind::Misdirected, message))
}

fn spelling(uri: &Uri) -> Spelling {
    // `OPTIONS *` names no path.
    if !uri.path().starts_with('/') {
        return Spelling::Canonical;
    }
    let path = match canonical::path(uri.path()) {
        Ok(path) => path,
        Err(_) => return Spelling::None,
    };
    let query = match uri.query().map(canonical::query).transpose() {
        Ok(query) => query,
        Err(_) => return Spelling::None,
    };
    // That of `http://h?q` begins with its query.
    let whole = uri.path_and_query().map_or("", PathAndQuery::as_str);
    if let (Cow::Borrowed(_), None | Some(Cow::Borrowed(_))) = (&path, &query)
        && whole.starts_with('/')
    {
        return Spelling::Canonical;
    }
    let target = match query {
        Some(query) => format!("{path}?{query}"),
        None => path.into_owned(),
    };
    // It has only characters that were there before.
    target.parse().map_or(Spelling::None, Spelling::Other)
}
