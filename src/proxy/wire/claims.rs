//! What a request says of how it came here: fields by which some origins answer, although no key
//! holds them. One table says what is done with each.

use std::net::IpAddr;

use http::header::{FORWARDED, HeaderMap, HeaderName, HeaderValue};
use http::{Method, request};

use crate::http::fields;
use crate::policy::invalidate;

use super::host::{is_host, without_default_port};

pub const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
pub const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
pub const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

/// Who is at the other end of a connection.
#[derive(Clone, Copy, Debug)]
pub struct Client {
    pub address: IpAddr,
    /// Its `X-Forwarded-*` fields are believed.
    pub is_trusted: bool,
    /// What it sends comes over TLS.
    pub is_secure: bool,
}

/// What is done with a field of a client's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Treatment {
    /// Ours is sent: from a trusted proxy's word, else from what we see ourselves.
    Ours,
    /// A trusted proxy's is sent as it came, and is part of the key; a stranger's is dropped.
    Believed,
    /// A certificate that the client has shown us, or a trusted proxy (RFC 9440): sent, but not
    /// with requests whose answers are everybody's; a stranger's is dropped.
    Shown,
    /// It names another method: sent with unsafe methods, which are never stored and invalidate
    /// whatever they are; dropped from the others.
    Method,
    /// It names another resource, host or client than the request does, and no trusted proxy needs
    /// it for that: dropped, whoever sends it and whatever the method.
    Dropped,
}

const fn field(name: &'static str, treatment: Treatment) -> (HeaderName, Treatment) {
    (HeaderName::from_static(name), treatment)
}

/// The fields, and what is done with them.
pub static TABLE: [(HeaderName, Treatment); 65] = {
    use Treatment::{Believed, Dropped, Method, Ours, Shown};
    [
        field("x-forwarded-for", Ours),
        field("x-forwarded-host", Ours),
        field("x-forwarded-proto", Ours),
        field("client-cert", Shown),
        field("client-cert-chain", Shown),
        field("forwarded", Believed),
        field("front-end-https", Believed),
        field("x-forwarded-port", Believed),
        field("x-forwarded-prefix", Believed),
        field("x-forwarded-protocol", Believed),
        field("x-forwarded-scheme", Believed),
        field("x-forwarded-ssl", Believed),
        field("x-scheme", Believed),
        field("x-script-name", Believed),
        field("x-url-scheme", Believed),
        field("method-override", Method),
        field("x-http-method", Method),
        field("x-http-method-override", Method),
        field("x-method", Method),
        field("x-method-override", Method),
        field("cf-connecting-ip", Dropped),
        field("cf-visitor", Dropped),
        field("client-ip", Dropped),
        field("fastly-client-ip", Dropped),
        field("fly-client-ip", Dropped),
        field("forwarded-for", Dropped),
        field("proxy", Dropped),
        field("remote-user", Believed),
        field("true-client-ip", Dropped),
        field("wl-proxy-client-ip", Dropped),
        field("x-arr-ssl", Dropped),
        field("x-backend-host", Dropped),
        field("x-client-ip", Dropped),
        field("x-cluster-client-ip", Dropped),
        field("x-envoy-external-address", Dropped),
        field("x-envoy-original-host", Dropped),
        field("x-envoy-original-path", Dropped),
        field("x-forwarded", Dropped),
        field("x-forwarded-by", Dropped),
        field("x-forwarded-method", Dropped),
        field("x-forwarded-path", Dropped),
        field("x-forwarded-server", Dropped),
        field("x-forwarded-uri", Dropped),
        field("x-forwarded-url", Dropped),
        field("x-host", Dropped),
        field("x-http-host-override", Dropped),
        field("x-ingress-path", Dropped),
        field("x-middleware-subrequest", Dropped),
        field("x-original-for", Dropped),
        field("x-original-forwarded-for", Dropped),
        field("x-original-host", Dropped),
        field("x-original-method", Dropped),
        field("x-original-path", Dropped),
        field("x-original-prefix", Dropped),
        field("x-original-proto", Dropped),
        field("x-original-scheme", Dropped),
        field("x-original-uri", Dropped),
        field("x-original-url", Dropped),
        field("x-originating-ip", Dropped),
        field("x-override-url", Dropped),
        field("x-real-ip", Dropped),
        field("x-remote-addr", Dropped),
        field("x-remote-ip", Dropped),
        field("x-remote-user", Believed),
        field("x-rewrite-url", Dropped),
    ]
};

/// How names begin that proxies write for their own origins, and nobody's clients: treated alike
/// where the table does not name them.
const BY_BEGINNING: [(&str, Treatment); 8] = [
    ("cloudfront-", Treatment::Believed),
    ("ssl-client-", Treatment::Believed),
    ("x-auth-request-", Treatment::Believed),
    ("x-forwarded-", Treatment::Believed),
    ("x-ssl-", Treatment::Believed),
    ("x-accel-", Treatment::Dropped),
    ("x-rewrite-", Treatment::Dropped),
    ("x-sendfile-", Treatment::Dropped),
];

/// What is done with a field that the table does not name; `None` with one that says nothing of how
/// a request came.
fn by_beginning(name: &HeaderName) -> Option<Treatment> {
    let begins = |(begin, _): &&(&str, Treatment)| name.as_str().starts_with(begin);
    let (_, treatment) = BY_BEGINNING.iter().find(begins)?;
    let is_named = TABLE.iter().any(|(known, _)| known == name);
    (!is_named).then_some(*treatment)
}

/// How names begin that CGI-like origins know with dashes: they read `X_Forwarded_Host` as
/// `X-Forwarded-Host`.
const DASHED: [&str; 13] = [
    "accept-",
    "access-",
    "cache-",
    "content-",
    "front-",
    "if-",
    "last-",
    "max-",
    "proxy-",
    "sec-",
    "transfer-",
    "user-",
    "x-",
];

/// Takes away what the origin is not to see: by the table, and what it may take for such a field or
/// for a credential because of its underscores. `is_told` says whether the origin is told the
/// client's own host and scheme at all.
pub fn strip(
    headers: &mut HeaderMap,
    client: Client,
    method: &Method,
    credentials: &[HeaderName],
    is_told: bool,
) {
    let stays = |treatment| match treatment {
        Treatment::Ours => true,
        Treatment::Believed => client.is_trusted && is_told,
        // What a stranger has said of certificates is gone already.
        Treatment::Shown => true,
        Treatment::Method => !invalidate::is_safe(method),
        Treatment::Dropped => false,
    };
    for (name, treatment) in &TABLE {
        if !stays(*treatment) {
            headers.remove(name);
        }
    }
    let goes = |name: &&HeaderName| {
        is_twin(name.as_str(), credentials)
            || by_beginning(name).is_some_and(|treatment| !stays(treatment))
    };
    let others: Vec<HeaderName> = headers.keys().filter(goes).cloned().collect();
    for name in others {
        headers.remove(name);
    }
}

/// Whether a field is one that the origin is told of a trusted proxy.
pub fn is_told(name: &HeaderName) -> bool {
    let is_kept = |treatment| matches!(treatment, Treatment::Ours | Treatment::Believed);
    let mut named = TABLE.iter().filter(|(known, _)| known == name);
    named.any(|(_, treatment)| is_kept(*treatment)) || by_beginning(name).is_some_and(is_kept)
}

/// Whether an origin that reads underscores as dashes takes a field for another one.
fn is_twin(name: &str, credentials: &[HeaderName]) -> bool {
    if !name.contains('_') {
        return false;
    }
    let dashed = name.replace('_', "-");
    DASHED.iter().any(|begin| dashed.starts_with(begin))
        || TABLE.iter().any(|(known, _)| known.as_str() == dashed)
        || credentials.iter().any(|known| known.as_str() == dashed)
}

/// What a trusted proxy says and the origin sees: part of the key. The client's address is not: it
/// says who asks, not for what.
pub fn believed(headers: &HeaderMap, client: Client) -> impl Iterator<Item = (&str, &[u8])> {
    let kept = TABLE
        .iter()
        .filter(move |(_, treatment)| client.is_trusted && *treatment == Treatment::Believed);
    let named = kept.flat_map(move |(name, _)| {
        let values = headers.get_all(name).into_iter().map(HeaderValue::as_bytes);
        let is_forwarded = *name == FORWARDED;
        let split = values.flat_map(move |value| -> Box<dyn Iterator<Item = &[u8]>> {
            if is_forwarded {
                Box::new(forwarded_pairs(value))
            } else {
                Box::new(std::iter::once(value))
            }
        });
        split.map(|value| (name.as_str(), value))
    });
    let all = headers.iter().filter(move |_| client.is_trusted);
    let others = all.filter(|(name, _)| by_beginning(name) == Some(Treatment::Believed));
    named.chain(others.map(|(name, value)| (name.as_str(), value.as_bytes())))
}

/// What `Forwarded` says (RFC 7239 §4) beside whom it is for; what cannot be read, whole.
fn forwarded_pairs(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    let elements = fields::split_list(value);
    let pairs = elements.flat_map(|element| element.split(|byte| *byte == b';'));
    pairs.filter(|pair| {
        let is_address = is_named(pair, "for") || is_named(pair, "by");
        // One that holds more may be read as more.
        let mut rest = pair.iter().skip_while(|byte| **byte != b'=').skip(1);
        let is_plain = rest.all(|byte| byte.is_ascii_alphanumeric() || b"\".:_-[]".contains(byte));
        !is_address || !is_plain
    })
}

fn is_named(pair: &[u8], name: &str) -> bool {
    let pair = pair.trim_ascii();
    pair.len() > name.len()
        && pair[name.len()] == b'='
        && pair[..name.len()].eq_ignore_ascii_case(name.as_bytes())
}

/// What the first element of a trusted proxy's `Forwarded` says, without quotes.
fn forwarded_word<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let first = fields::members(headers, FORWARDED).next()?;
    let pair = first
        .split(|byte| *byte == b';')
        .find(|pair| is_named(pair, name))?;
    let value = std::str::from_utf8(&pair.trim_ascii()[name.len() + 1..]).ok()?;
    Some(value.trim_matches('"'))
}

/// The first member of a list of a trusted proxy's: what the client itself asked.
fn first_member<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    let first = fields::members(headers, name).next()?;
    std::str::from_utf8(first).ok()
}

/// The scheme by which the client came, as far as it or its proxy can be believed.
pub fn client_scheme(parts: &request::Parts, client: Client) -> &'static str {
    let seen = if client.is_secure { "https" } else { "http" };
    if !client.is_trusted {
        return seen;
    }
    let said = first_member(&parts.headers, &X_FORWARDED_PROTO)
        .or_else(|| forwarded_word(&parts.headers, "proto"))
        .or_else(|| parts.uri.scheme_str());
    let is_https =
        |said: &str| said.eq_ignore_ascii_case("https") || said.eq_ignore_ascii_case("wss");
    match said.map(is_https) {
        None => seen,
        Some(true) => "https",
        Some(false) => "http",
    }
}

/// The host that the origin is told by `X-Forwarded-Host` where it is not the one in `Host`: a
/// trusted proxy's word, where it is a host.
pub fn forwarded_host(parts: &request::Parts, client: Client) -> Option<&str> {
    if !client.is_trusted {
        return None;
    }
    let said = first_member(&parts.headers, &X_FORWARDED_HOST)
        .or_else(|| forwarded_word(&parts.headers, "host"))?;
    let is_named = is_host(said) && !said.is_empty();
    is_named.then(|| without_default_port(said, client_scheme(parts, client)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guide_has_a_row_for_every_field() {
        let guide = include_str!("../../guide.md");
        for (name, treatment) in &TABLE {
            let word = match treatment {
                Treatment::Ours => "ours",
                Treatment::Believed => "believed",
                Treatment::Shown => "shown",
                Treatment::Method => "method",
                Treatment::Dropped => "dropped",
            };
            let row = guide
                .lines()
                .find(|line| line.starts_with(&format!("| {word} |")))
                .unwrap_or_default();
            assert!(row.contains(&format!("`{name}`")), "{word}: {name}");
        }
    }

    #[test]
    fn twins_of_known_fields_are_told_from_other_names() {
        let credentials = [HeaderName::from_static("api-key")];
        for twin in [
            "x_original_url",
            "x_forwarded-host",
            "x-forwarded_host",
            "api_key",
            "accept_language",
            "if_none_match",
            "content_length",
            "true_client_ip",
        ] {
            assert!(is_twin(twin, &credentials), "{twin}");
        }
        for other in ["tenant_id", "x-forwarded-host", "api-key", "ifx_y"] {
            assert!(!is_twin(other, &credentials), "{other}");
        }
    }
}
