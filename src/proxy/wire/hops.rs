//! Who a message came through (`Via`), and how far a request may go: `Max-Forwards` on OPTIONS and
//! TRACE (RFC 9110 §7.6.2), and requests that go round in a circle (§7.6).

use bytes::Bytes;
use http::header::{
    ALLOW, AUTHORIZATION, CONTENT_TYPE, COOKIE, HeaderName, MAX_FORWARDS, PROXY_AUTHORIZATION, VIA,
};
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, Version, request};

use crate::config::Via;
use crate::http::fields;

/// Our name in `Via`.
pub const VIA_US: &str = "iris-sidecar";

/// A request that has come through so many of us goes in a circle.
const MOST_ROUNDS: usize = 10;

/// How many more hops a request may take.
pub enum Hops {
    Unlimited,
    Left(u32),
    /// It is to be answered here.
    None,
}

/// What `Max-Forwards` leaves; it means nothing for other methods, nor where it is no number.
pub fn left(parts: &request::Parts) -> Hops {
    if !matches!(parts.method, Method::OPTIONS | Method::TRACE) {
        return Hops::Unlimited;
    }
    let value = fields::single(&parts.headers, &MAX_FORWARDS).ok().flatten();
    let digits = value.and_then(|value| value.to_str().ok());
    match digits.map(str::parse::<u32>) {
        Some(Ok(count)) => count.checked_sub(1).map_or(Hops::None, Hops::Left),
        _ => Hops::Unlimited,
    }
}

/// The answer of the last hop: what may be asked, or for TRACE the request as it came (§9.3.8),
/// without what it carries of secrets.
pub fn answer(parts: &request::Parts) -> Response<Bytes> {
    if parts.method == Method::OPTIONS {
        let mut response = Response::new(Bytes::new());
        *response.status_mut() = StatusCode::NO_CONTENT;
        let allowed =
            HeaderValue::from_static("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS, TRACE");
        response.headers_mut().insert(ALLOW, allowed);
        return response;
    }
    let secret = |name: &HeaderName| {
        let own = [AUTHORIZATION, COOKIE, PROXY_AUTHORIZATION];
        own.contains(name) || name.as_str().contains("key") || name.as_str().contains("token")
    };
    let mut out = format!("TRACE {} {:?}\r\n", parts.uri, parts.version).into_bytes();
    for (name, value) in parts.headers.iter().filter(|(name, _)| !secret(name)) {
        for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
            out.extend_from_slice(part);
        }
    }
    out.extend_from_slice(b"\r\n");
    let mut response = Response::new(Bytes::from(out));
    let media_type = HeaderValue::from_static("message/http");
    response.headers_mut().insert(CONTENT_TYPE, media_type);
    response
}

/// In which cache or proxy networks a request has been (RFC 8586).
pub const CDN_LOOP: HeaderName = HeaderName::from_static("cdn-loop");

/// Puts what a request says of its way so far into the one that goes on, whichever fields of it
/// were chosen: nobody on the way may take that out (RFC 9110 §7.6.3, RFC 8586 §2).
pub fn keep_way(headers: &mut HeaderMap, received: &HeaderMap) {
    for name in [VIA, CDN_LOOP] {
        headers.remove(&name);
        for value in received.get_all(&name) {
            headers.append(name.clone(), value.clone());
        }
    }
}

/// Names us to the origin: in `Via`, or where that is off in `CDN-Loop`, so that loops are found
/// all the same. nginx does not compress what is asked for with `Via`.
pub fn name_us(headers: &mut HeaderMap, version: Version, via: Via) {
    match via {
        Via::Full => append_via(headers, version),
        Via::Off => drop(headers.append(CDN_LOOP, HeaderValue::from_static(VIA_US))),
    }
}

/// Names us in `Via` (RFC 9110 §7.6.3).
pub fn append_via(headers: &mut HeaderMap, version: Version) {
    let received = match version {
        Version::HTTP_2 => "2",
        Version::HTTP_10 => "1.0",
        _ => "1.1",
    };
    if let Ok(value) = HeaderValue::try_from(format!("{received} {VIA_US}")) {
        headers.append(VIA, value);
    }
}

/// Whether a request has been here too often.
pub fn is_circling(headers: &HeaderMap) -> bool {
    let us = |member: &&[u8]| {
        member
            .split(|byte| *byte == b' ')
            .any(|word| word == VIA_US.as_bytes())
    };
    let by_via = fields::members(headers, VIA).filter(us).count();
    // Parameters may follow the name (RFC 8586 §2).
    let named = |member: &[u8]| {
        let name = member.split(|byte| *byte == b';').next();
        name.is_some_and(|name| name.trim_ascii() == VIA_US.as_bytes())
    };
    let loops = fields::members(headers, CDN_LOOP);
    let by_loop = loops.filter(|member| named(member)).count();
    by_via.max(by_loop) >= MOST_ROUNDS
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Request;

    fn parts(method: Method, fields: &[(&str, &str)]) -> request::Parts {
        let mut request = Request::builder().method(method).uri("/a");
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    #[test]
    fn max_forwards_counts_for_options_and_trace_alone() {
        let left = |method, value| match left(&parts(method, &[("max-forwards", value)])) {
            Hops::Unlimited => None,
            Hops::Left(left) => Some(left.to_string()),
            Hops::None => Some("answered".to_owned()),
        };
        assert_eq!(left(Method::OPTIONS, "0").as_deref(), Some("answered"));
        assert_eq!(left(Method::TRACE, "5").as_deref(), Some("4"));
        assert_eq!(left(Method::GET, "0"), None);
        assert_eq!(left(Method::TRACE, "x"), None);
    }

    #[test]
    fn a_trace_comes_back_without_its_secrets() {
        let fields = [
            ("host", "a"),
            ("authorization", "x"),
            ("x-api-key", "y"),
            ("cookie", "z"),
        ];
        let answer = answer(&parts(Method::TRACE, &fields));
        assert_eq!(answer.body(), "TRACE /a HTTP/1.1\r\nhost: a\r\n\r\n");
    }

    #[test]
    fn a_request_that_was_here_ten_times_goes_in_a_circle() {
        let via = |count: usize| {
            let list = vec!["1.1 iris-sidecar"; count].join(", ");
            is_circling(&parts(Method::GET, &[("via", &list)]).headers)
        };
        assert!(!via(9));
        assert!(via(10));
        let named = |count: usize| {
            let list = vec!["other, iris-sidecar; x=1"; count].join(", ");
            is_circling(&parts(Method::GET, &[("cdn-loop", &list)]).headers)
        };
        assert!(!named(9));
        assert!(named(10));
    }
}
