//! Field values as lists (RFC 9110 §5.6.1), and the fields that never pass a proxy (§7.6.1).

use http::header::{self, HeaderMap, HeaderName, HeaderValue};

/// The certificate of a client, as whoever has verified it passes it on (RFC 9440 §2.2).
pub const CLIENT_CERT: HeaderName = HeaderName::from_static("client-cert");

/// What it was signed by (§2.3).
pub const CLIENT_CERT_CHAIN: HeaderName = HeaderName::from_static("client-cert-chain");

/// The members of a comma-separated list over all lines of one field, empty members dropped.
///
/// A comma inside a quoted string does not separate (RFC 9110 §5.6.4).
pub fn members(
    headers: &HeaderMap,
    name: impl header::AsHeaderName,
) -> impl Iterator<Item = &[u8]> {
    headers
        .get_all(name)
        .iter()
        .flat_map(|value| split_list(value.as_bytes()))
}

/// The members of one list value, trimmed, empty members dropped.
pub fn split_list(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = Some(value);
    std::iter::from_fn(move || {
        let text = rest?;
        let end = unquoted_comma(text);
        rest = end.map(|at| &text[at + 1..]);
        Some(text[..end.unwrap_or(text.len())].trim_ascii())
    })
    .filter(|member| !member.is_empty())
}

/// The values of one cookie, of all `Cookie` lines (RFC 6265 §5.4).
pub fn cookies<'h, 'n>(
    headers: &'h HeaderMap,
    name: &'n str,
) -> impl Iterator<Item = &'h [u8]> + use<'h, 'n> {
    let pairs = headers
        .get_all(header::COOKIE)
        .into_iter()
        .flat_map(|line| line.as_bytes().split(|byte| *byte == b';'));
    pairs.filter_map(move |pair| {
        // Servers take blanks about a name, or before a value, for nothing.
        let equals = pair.iter().position(|byte| *byte == b'=')?;
        let (found, value) = pair.split_at(equals);
        (found.trim_ascii() == name.as_bytes()).then(|| value[1..].trim_ascii())
    })
}

fn unquoted_comma(text: &[u8]) -> Option<usize> {
    let (mut quoted, mut escaped) = (false, false);
    for (at, byte) in text.iter().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b',' if !quoted => return Some(at),
            _ => {}
        }
    }
    None
}

/// Whether a list field has `token` as a member, in any case.
pub fn has_member(headers: &HeaderMap, name: impl header::AsHeaderName, token: &str) -> bool {
    members(headers, name).any(|member| member.eq_ignore_ascii_case(token.as_bytes()))
}

/// Fields of one hop (RFC 9110 §7.6.1, and the older ones that senders still use).
const HOP_BY_HOP: [HeaderName; 10] = [
    HeaderName::from_static("http2-settings"),
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    HeaderName::from_static("proxy-authentication-info"),
    header::TE,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// Fields that `Connection` may not take away: a client that names one of these is trying to hide
/// it from the origin or from the cache, not describing its hop.
const END_TO_END: [HeaderName; 30] = [
    CLIENT_CERT,
    CLIENT_CERT_CHAIN,
    header::AGE,
    header::AUTHORIZATION,
    header::CACHE_CONTROL,
    header::CONTENT_ENCODING,
    header::CONTENT_LENGTH,
    header::CONTENT_RANGE,
    header::CONTENT_TYPE,
    header::COOKIE,
    header::DATE,
    header::ETAG,
    header::EXPIRES,
    header::FORWARDED,
    header::HOST,
    header::IF_MATCH,
    header::IF_MODIFIED_SINCE,
    header::IF_NONE_MATCH,
    header::IF_RANGE,
    header::LAST_MODIFIED,
    header::PRAGMA,
    header::RANGE,
    header::SET_COOKIE,
    header::VARY,
    header::VIA,
    HeaderName::from_static("cdn-loop"),
    HeaderName::from_static("x-api-key"),
    HeaderName::from_static("x-forwarded-for"),
    HeaderName::from_static("x-forwarded-host"),
    HeaderName::from_static("x-forwarded-proto"),
];

/// Removes the fields of one hop: the fixed ones and whatever `Connection` names.
pub fn strip_hop_by_hop(headers: &mut HeaderMap) {
    strip_named(headers);
    for name in &HOP_BY_HOP {
        headers.remove(name);
    }
}

/// How many bytes the fields of a head take as HTTP/1.1 writes them, and the empty line after them
/// (RFC 9112 §5).
pub fn written_size(headers: &HeaderMap) -> usize {
    let lines = headers.iter().map(|(name, value)| {
        let separators = ": \r\n".len();
        name.as_str().len() + value.len() + separators
    });
    lines.sum::<usize>() + "\r\n".len()
}

/// Digests of the bytes of one message's content (RFC 9530 §2; `Content-MD5` is RFC 1864's), and
/// not of the whole representation as `Repr-Digest` is.
pub const DIGESTS_OF_CONTENT: [HeaderName; 2] = [
    HeaderName::from_static("content-digest"),
    HeaderName::from_static("content-md5"),
];

/// Removes what `Connection` names, but for the fixed fields of one hop, which say how this very
/// message is to be read.
pub fn strip_named(headers: &mut HeaderMap) {
    if !headers.contains_key(header::CONNECTION) {
        return;
    }
    let named: Vec<HeaderName> = members(headers, header::CONNECTION)
        .filter_map(|member| HeaderName::from_bytes(member).ok())
        .filter(|name| !END_TO_END.contains(name) && !HOP_BY_HOP.contains(name))
        .collect();
    for name in named {
        headers.remove(name);
    }
}

/// Whether a response field belongs to one hop and so is never stored (RFC 9111 §3.1).
pub fn is_hop_by_hop(name: &HeaderName) -> bool {
    HOP_BY_HOP.contains(name)
}

/// Schemes that authenticate a connection rather than a request: NTLM, and Negotiate (RFC 4559) as
/// its servers have it.
const OF_CONNECTIONS: [&[u8]; 2] = [b"ntlm", b"negotiate"];

/// The protocol to which a request asks to switch, and which is then tunnelled (RFC 9110 §7.8).
/// Another HTTP, or TLS, on the same connection is none: HTTP inside a tunnel would pass every rule
/// of this proxy by, and a server may ignore the wish.
pub fn asks_for_tunnel(headers: &HeaderMap) -> Option<&HeaderValue> {
    let protocol = headers.get(header::UPGRADE)?;
    let is_no_tunnel = |member: &[u8]| {
        let name = member.split(|byte| *byte == b'/').next().unwrap_or(member);
        [&b"h2c"[..], b"http", b"tls"]
            .iter()
            .any(|other| name.eq_ignore_ascii_case(other))
    };
    let is_asked = has_member(headers, header::CONNECTION, "upgrade");
    let mut protocols = members(headers, header::UPGRADE);
    (is_asked && !protocols.any(is_no_tunnel)).then_some(protocol)
}

/// Whether a request authenticates the connection that it comes by.
pub fn authenticates_connection(headers: &HeaderMap) -> bool {
    // `Proxy-Authorization` is of one hop, and never sent on.
    headers.get_all(header::AUTHORIZATION).iter().any(|value| {
        let value = value.as_bytes().trim_ascii_start();
        let begins = |scheme: &&[u8]| {
            let begin = value.get(..scheme.len());
            begin.is_some_and(|begin| begin.eq_ignore_ascii_case(scheme))
        };
        OF_CONNECTIONS.iter().any(begins)
    })
}

/// Whether a response asks for that, or says that it was done. Challenges are written in so many
/// ways that the name of a scheme anywhere counts.
pub fn binds_connection(headers: &HeaderMap) -> bool {
    // What Microsoft's servers say of a connection that is authenticated from now on.
    if headers.contains_key("persistent-auth") {
        return true;
    }
    let fields = [
        header::WWW_AUTHENTICATE,
        header::PROXY_AUTHENTICATE,
        HeaderName::from_static("authentication-info"),
    ];
    let mut values = fields.iter().flat_map(|name| headers.get_all(name));
    values.any(|value| {
        let value = value.as_bytes();
        let names = |scheme: &&[u8]| {
            let mut parts = value.windows(scheme.len());
            parts.any(|part| part.eq_ignore_ascii_case(scheme))
        };
        OF_CONNECTIONS.iter().any(names)
    })
}

/// Sets a field, or removes it.
pub fn set(headers: &mut HeaderMap, name: HeaderName, value: Option<HeaderValue>) {
    match value {
        Some(value) => drop(headers.insert(name, value)),
        None => drop(headers.remove(name)),
    }
}

/// A host without its port; the colons of an IPv6 address are none of one.
pub fn without_port(host: &[u8]) -> &[u8] {
    match host.iter().rposition(|byte| *byte == b':') {
        Some(at) if !host[at..].contains(&b']') => &host[..at],
        _ => host,
    }
}

/// A host without the brackets that an IPv6 address has in a URL.
pub fn without_brackets(host: &str) -> &str {
    host.trim_start_matches('[').trim_end_matches(']')
}

/// A field that must stand on one line at most stands on several.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Repeated;

/// The value of a field that must stand on one line at most.
pub fn single<'a>(
    headers: &'a HeaderMap,
    name: &HeaderName,
) -> Result<Option<&'a HeaderValue>, Repeated> {
    let mut lines = headers.get_all(name).iter();
    let first = lines.next();
    if lines.next().is_some() {
        return Err(Repeated);
    }
    Ok(first)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(value: &str) -> Vec<&str> {
        split_list(value.as_bytes())
            .map(|member| std::str::from_utf8(member).unwrap())
            .collect()
    }

    #[test]
    fn empty_members_are_dropped_and_quoted_commas_kept() {
        assert_eq!(list(" , a,, b ,"), ["a", "b"]);
        assert_eq!(
            list(r#"private="a, b", max-age=1"#),
            [r#"private="a, b""#, "max-age=1"]
        );
        assert_eq!(list(r#""a\", b", c"#), [r#""a\", b""#, "c"]);
    }

    #[test]
    fn what_connection_names_goes_but_end_to_end_fields_stay() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("connection", "close, X-Hop, Authorization"),
            ("x-hop", "1"),
            ("authorization", "Bearer k"),
            ("keep-alive", "timeout=5"),
            ("x-stays", "1"),
        ] {
            headers.append(name, HeaderValue::from_static(value));
        }
        strip_hop_by_hop(&mut headers);
        let left: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        assert_eq!(left, ["authorization", "x-stays"]);
    }

    proptest::proptest! {
        #[test]
        fn splitting_never_panics_and_members_are_trimmed(value in ".*") {
            for member in split_list(value.as_bytes()) {
                assert!(!member.is_empty() && member == member.trim_ascii());
            }
        }
    }
}
