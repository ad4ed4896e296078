//! Keyed: under which key a request is looked up, as the origin sees it, and kept apart by who asks
//! where the route says so.

use http::{HeaderMap, request};
use sha2::{Digest, Sha256};

use crate::config::Route;
use crate::http::fields;
use crate::policy::key::{KeyBytes, KeyParts, select_query};
use crate::policy::{Cookies, Options, Share};

use super::forward::{client_scheme, forwarded_host};
use super::{Client, Proxy};

impl Proxy {
    /// Keyed: scheme, host, path, query and partition, as the origin sees them.
    pub(super) fn write_key(
        &self,
        key: &mut KeyBytes,
        parts: &request::Parts,
        host: Option<&str>,
        path: &str,
        route: &Route,
        client: Client,
    ) {
        let query = select_query(parts.uri.query(), &route.query, route.sort_query);
        let partition = partition(&parts.headers, &route.options);
        KeyParts {
            path,
            query: query.as_deref(),
            partition: partition.as_ref().map_or(&[], |digest| &digest[..]),
            ..self.origin_parts(&parts.headers, host, client)
        }
        .write(key);
    }

    /// The parts of a key that say which origin; the rest is empty.
    pub(super) fn origin_parts<'a>(
        &self,
        headers: &'a HeaderMap,
        host: Option<&'a str>,
        client: Client,
    ) -> KeyParts<'a> {
        let hides_host = self.forwarding.rewrites_host() && !self.config.routes.match_hosts();
        let scheme = client_scheme(headers, client);
        // A default port says nothing (RFC 9110 §4.2.3).
        let port = if scheme == "https" { ":443" } else { ":80" };
        let bare = |host: &'a str| host.strip_suffix(port).unwrap_or(host);
        KeyParts {
            scheme,
            host: host.filter(|_| !hides_host).map_or("", bare),
            forwarded_host: forwarded_host(headers, client)
                .filter(|_| !hides_host)
                .map(bare),
            path: "",
            query: None,
            partition: &[],
        }
    }
}

/// A digest of who asks, where responses are kept apart by that (`share`, `cookies = "key"`).
fn partition(headers: &HeaderMap, options: &Options) -> Option<[u8; 32]> {
    let by_cookie = options.cookies == Cookies::Key;
    if options.share != Share::PerKey && !by_cookie {
        return None;
    }
    let mut digest = Sha256::new();
    let mut add = |name: &str, value: &[u8]| {
        // Length first: no two lists of fields give the same bytes.
        for part in [name.as_bytes(), value] {
            digest.update((part.len() as u64).to_be_bytes());
            digest.update(part);
        }
    };
    let credentials = options
        .credential_fields
        .iter()
        .filter(|_| options.share == Share::PerKey);
    for name in credentials.chain(by_cookie.then_some(&http::header::COOKIE)) {
        for value in headers.get_all(name) {
            add(name.as_str(), value.as_bytes());
        }
    }
    // No field is named so.
    for name in options.credential_cookies.iter() {
        for value in fields::cookies(headers, name) {
            add(&format!("cookie {name}"), value);
        }
    }
    Some(digest.finalize().into())
}
