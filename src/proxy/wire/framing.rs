//! Framing: what is checked before anything else is believed of a request, and the host that it is
//! for.

use http::header::{CONTENT_LENGTH, HOST, TRANSFER_ENCODING};
use http::uri::Authority;
use http::{HeaderMap, Method, Uri, Version, request};

use crate::config::Limits;
use crate::error::{Failure, FailureKind};
use crate::http::fields;

use super::claims::Client;
use super::host::{Host, Letters, is_host, letters_of};

/// Refuses what is ambiguous or not for us; else gives the host that the client means, or nothing
/// for an HTTP/1.0 request without one.
pub fn check(
    parts: &request::Parts,
    client: Client,
    limits: &Limits,
) -> Result<Option<Host>, Failure> {
    if parts.method == Method::CONNECT {
        let message = "CONNECT is refused: this is a proxy of one API, not of the world";
        return Err(Failure::new(FailureKind::MethodNotAllowed, message));
    }
    // HTTP/1.1 heads were counted before they came here.
    if parts.headers.len() > limits.header_count {
        let message = format!(
            "the request has more than {} fields (limits.header_count)",
            limits.header_count
        );
        return Err(Failure::new(FailureKind::HeadTooLarge, message));
    }
    // hyper refuses a head that is larger than its buffer; how large that is depends on what came
    // before.
    let target = written_target_size(&parts.uri);
    if target > limits.header_bytes {
        return Err(target_too_long(limits));
    }
    let line = parts.method.as_str().len() + target + "  HTTP/1.1\r\n".len();
    if line + fields::written_size(&parts.headers) > limits.header_bytes {
        let message = format!(
            "the request head has more than {} bytes (limits.header_bytes)",
            limits.header_bytes
        );
        return Err(Failure::new(FailureKind::HeadTooLarge, message));
    }
    transfer_coding(&parts.headers)?;
    let declared = content_length(&parts.headers)?;
    if declared.is_some_and(|length| length > limits.request_body) {
        return Err(body_too_large(limits.request_body));
    }
    target_form(parts, client)?;
    host(parts)
}

fn written_target_size(uri: &Uri) -> usize {
    let path = uri.path_and_query().map_or(0, |path| path.as_str().len());
    let scheme = uri
        .scheme_str()
        .map_or(0, |scheme| scheme.len() + "://".len());
    let authority = uri
        .authority()
        .map_or(0, |authority| authority.as_str().len());
    scheme + authority + path
}

/// One number, or none: in HTTP/2 nobody has looked at it before (RFC 9110 §8.6, RFC 9113 §8.1.1).
fn content_length(headers: &HeaderMap) -> Result<Option<u64>, Failure> {
    let bad = |message: &str| Err(Failure::new(FailureKind::BadRequest, message));
    let Ok(field) = fields::single(headers, &CONTENT_LENGTH) else {
        return bad("the request has more than one Content-Length");
    };
    let Some(field) = field else { return Ok(None) };
    let digits = field
        .to_str()
        .ok()
        .filter(|text| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()));
    match digits.map(str::parse) {
        Some(Ok(length)) => Ok(Some(length)),
        _ => bad("Content-Length is not a number"),
    }
}

/// The target names a path here, or for `OPTIONS` the server (RFC 9112 §3.2).
fn target_form(parts: &request::Parts, client: Client) -> Result<(), Failure> {
    let bad = |message: &str| Err(Failure::new(FailureKind::BadRequest, message));
    match parts.uri.path() {
        "*" if parts.method == Method::OPTIONS => {}
        "*" => return bad("the request target is \"*\", which is for OPTIONS alone"),
        path if path.starts_with('/') => {}
        // An absolute URI may have an empty path (RFC 3986 §6.2.3).
        "" if parts.uri.scheme().is_some() => {}
        _ => return bad("the request target is no path and no absolute URI"),
    }
    if parts.uri.scheme_str() == Some("https") && !client.is_trusted && !client.is_secure {
        // RFC 9110 §7.4: an "https" resource over a connection that is not secured.
        let message = "the request target is an https URI, and this connection is not secured: \
            ask for the path alone, or, where a proxy before the sidecar ends TLS, name it in \
            listen.trusted_proxies";
        return Err(Failure::new(FailureKind::Misdirected, message));
    }
    Ok(())
}

pub fn target_too_long(limits: &Limits) -> Failure {
    let message = format!(
        "the request target is longer than a whole request head may be, {} bytes \
            (limits.header_bytes)",
        limits.header_bytes
    );
    Failure::new(FailureKind::TargetTooLong, message)
}

pub fn body_too_large(limit: u64) -> Failure {
    let message = format!("the request body is larger than {limit} bytes (limits.request_body)");
    Failure::new(FailureKind::BodyTooLarge, message)
}

/// `chunked`, once, is the only transfer coding that we understand (RFC 9112 §6.1, §7).
fn transfer_coding(headers: &HeaderMap) -> Result<(), Failure> {
    let mut codings = fields::members(headers, TRANSFER_ENCODING);
    let mut chunked = 0;
    if codings.any(|coding| {
        let known = coding.eq_ignore_ascii_case(b"chunked");
        chunked += u32::from(known);
        !known
    }) {
        let message = "a transfer coding other than chunked is not implemented";
        return Err(Failure::new(FailureKind::NotImplemented, message));
    }
    if chunked > 1 {
        let message = "the body is chunked more than once";
        return Err(Failure::new(FailureKind::BadRequest, message));
    }
    Ok(())
}

/// The host of the target URI (RFC 9110 §7.1, RFC 9112 §3.2.2): from the request target where it
/// has one, from `Host` otherwise; the two must agree.
fn host(parts: &request::Parts) -> Result<Option<Host>, Failure> {
    let bad = |message: &str| Err(Failure::new(FailureKind::BadRequest, message));
    let Ok(field) = fields::single(&parts.headers, &HOST) else {
        return bad("the request has more than one Host");
    };
    let field = match field.map(|value| value.to_str()) {
        Some(Err(_)) => return bad("Host is not ASCII"),
        Some(Ok(text)) => match letters_of(text) {
            Some(letters) => Some((text, letters)),
            None => return bad("Host is not a host"),
        },
        None => None,
    };
    match (parts.uri.authority(), field) {
        (Some(authority), _) if authority.as_str().contains('@') => {
            bad("the request target holds user information")
        }
        (Some(authority), _) if !is_host(authority.as_str()) || authority.host().is_empty() => {
            bad("the request target names no host")
        }
        (Some(authority), Some((text, _))) if !same_host(&parts.uri, authority, text) => {
            bad("Host does not agree with the request target")
        }
        // RFC 9112 §3.2: HTTP/1.1 wants the field whatever the form of the target.
        (Some(_), None) if parts.version == Version::HTTP_11 => bad("the request has no Host"),
        (Some(_), _) if !matches!(parts.uri.scheme_str(), None | Some("http" | "https")) => {
            bad("the request target has another scheme than http or https")
        }
        (Some(authority), _) => Ok(Some(Host::new(authority.as_str(), Letters::Upper))),
        (None, Some((text, letters))) => Ok(Some(Host::new(text, letters))),
        (None, None) if parts.version == Version::HTTP_10 => Ok(None),
        (None, None) => bad("the request has no Host"),
    }
}

fn same_host(uri: &Uri, authority: &Authority, field: &str) -> bool {
    let default = match uri.scheme_str() {
        Some("https") => 443,
        _ => 80,
    };
    let Ok(other) = field.parse::<Authority>() else {
        return false;
    };
    let port = |authority: &Authority| authority.port_u16().unwrap_or(default);
    authority.host().eq_ignore_ascii_case(other.host()) && port(authority) == port(&other)
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Request;

    const STRANGER: Client = Client {
        address: std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST),
        is_trusted: false,
        is_secure: false,
    };

    fn checked(target: &str, lines: &[(&str, &str)]) -> Result<Option<String>, FailureKind> {
        let mut request = Request::builder().uri(target);
        for (name, value) in lines {
            request = request.header(*name, *value);
        }
        let (parts, ()) = request.body(()).unwrap().into_parts();
        let limits = Limits {
            request_body: 100,
            ..Limits::default()
        };
        let host = check(&parts, STRANGER, &limits);
        host.map(|host| host.map(|host| host.as_str().to_owned()))
            .map_err(|failure| failure.kind)
    }

    #[test]
    fn target_and_host_must_agree() {
        let ok = |host: &str| Ok(Some(host.to_owned()));
        assert_eq!(checked("/", &[("host", "A.example")]), ok("a.example"));
        assert_eq!(
            checked("http://a.example/", &[("host", "a.example:80")]),
            ok("a.example")
        );
        let bad = Err(FailureKind::BadRequest);
        assert_eq!(checked("http://a.example/", &[("host", "b.example")]), bad);
        assert_eq!(
            checked("http://a.example:81/", &[("host", "a.example")]),
            bad
        );
        assert_eq!(checked("/", &[]), bad);
        assert_eq!(checked("/", &[("host", "a"), ("host", "a")]), bad);
        assert_eq!(checked("/", &[("host", "u@a")]), bad);
        assert_eq!(checked("/", &[("host", "a/b")]), bad);
        assert_eq!(checked("/", &[("host", "a:99999")]), bad);
        assert_eq!(checked("http://a.example/", &[]), bad);
        assert_eq!(
            checked("ftp://a.example/", &[("host", "a.example:80")]),
            bad
        );
    }

    #[test]
    fn only_one_chunked_is_understood() {
        let with = |value| checked("/", &[("host", "a"), ("transfer-encoding", value)]);
        assert!(with("Chunked").is_ok());
        assert_eq!(with("gzip, chunked"), Err(FailureKind::NotImplemented));
        assert_eq!(with("chunked, chunked"), Err(FailureKind::BadRequest));
    }

    #[test]
    fn a_declared_length_over_the_limit_is_refused_at_once() {
        let with = |value| checked("/", &[("host", "a"), ("content-length", value)]);
        assert!(with("100").is_ok());
        assert_eq!(with("101"), Err(FailureKind::BodyTooLarge));
    }

    #[test]
    fn fuzz_heads() {
        crate::fuzz::run(include_str!("../../../tests/fuzz/heads.txt"), |input| {
            let mut fields = [httparse::EMPTY_HEADER; 64];
            let mut parsed = httparse::Request::new(&mut fields);
            let (Ok(_), Some(method), Some(target)) =
                (parsed.parse(input), parsed.method, parsed.path)
            else {
                return;
            };
            let version = match parsed.version {
                Some(0) => Version::HTTP_10,
                _ => Version::HTTP_11,
            };
            let mut request = Request::builder()
                .method(method)
                .uri(target)
                .version(version);
            for field in parsed.headers.iter() {
                request = request.header(field.name, field.value);
            }
            let Ok(request) = request.body(()) else {
                return;
            };
            let (parts, ()) = request.into_parts();
            let limits = Limits::default();
            for is_trusted in [false, true] {
                let client = Client {
                    is_trusted,
                    ..STRANGER
                };
                let Ok(host) = check(&parts, client, &limits) else {
                    continue;
                };
                assert!(parts.headers.get_all(HOST).iter().count() <= 1);
                assert!(parts.headers.get_all(CONTENT_LENGTH).iter().count() <= 1);
                let host = host.map(|host| host.as_str().to_owned());
                assert!(host.is_none_or(|host| host.bytes().all(|byte| byte.is_ascii_graphic())));
            }
        });
    }
}
