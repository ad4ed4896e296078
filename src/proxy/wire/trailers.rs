//! Trailers (RFC 9110 §6.5): what comes after a body may not say again, or otherwise, what its head
//! had to say: who asks, by what way, for what, and how the message is to be read (§6.5.1). An
//! origin or a client that puts both together would take it for the head's word.

use http::header::{self, HeaderName};
use http::{HeaderMap, Method};
use http_body::Frame;

use crate::http::fields;

use super::claims::{self, Client};

/// Fields that only a head can have: framing, routing, conditions and other words on the request,
/// credentials, control of the response, and how the content is to be processed.
const OF_A_HEAD: [HeaderName; 32] = [
    header::ACCEPT_RANGES,
    header::AGE,
    header::AUTHORIZATION,
    header::CACHE_CONTROL,
    HeaderName::from_static("cdn-loop"),
    header::CONTENT_ENCODING,
    header::CONTENT_LENGTH,
    header::CONTENT_RANGE,
    header::CONTENT_TYPE,
    header::COOKIE,
    header::DATE,
    header::EXPECT,
    header::EXPIRES,
    header::FORWARDED,
    header::HOST,
    header::IF_MATCH,
    header::IF_MODIFIED_SINCE,
    header::IF_NONE_MATCH,
    header::IF_RANGE,
    header::IF_UNMODIFIED_SINCE,
    header::LOCATION,
    header::MAX_FORWARDS,
    header::ORIGIN,
    header::PRAGMA,
    header::RANGE,
    header::RETRY_AFTER,
    header::SET_COOKIE,
    header::TRAILER,
    header::VARY,
    header::VIA,
    header::WARNING,
    header::WWW_AUTHENTICATE,
];

/// Leaves of the trailers what may come so late. `credentials` are fields that say who asks.
pub fn clean(trailers: &mut HeaderMap, credentials: &[HeaderName]) {
    fields::strip_hop_by_hop(trailers);
    let stranger = Client {
        address: std::net::Ipv4Addr::UNSPECIFIED.into(),
        is_trusted: false,
        is_secure: false,
    };
    claims::strip(trailers, stranger, &Method::GET, credentials, false);
    let late = trailers.keys().filter(|name| {
        OF_A_HEAD.contains(name) || credentials.contains(name) || claims::is_told(name)
    });
    let late: Vec<HeaderName> = late.cloned().collect();
    for name in late {
        trailers.remove(name);
    }
}

/// The same of a frame, where it has trailers.
pub fn cleaned<T>(mut frame: Frame<T>, credentials: &[HeaderName]) -> Frame<T> {
    if let Some(trailers) = frame.trailers_mut() {
        clean(trailers, credentials);
    }
    frame
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    #[test]
    fn what_a_head_has_to_say_is_not_said_afterwards() {
        let names = [
            "authorization",
            "x-api-key",
            "x_api_key",
            "x-forwarded-for",
            "x-forwarded-anything",
            "x-real-ip",
            "x-http-method-override",
            "content-length",
            "transfer-encoding",
            "host",
            "set-cookie",
            "x-checksum",
            "etag",
            "repr-digest",
            "grpc-status",
        ];
        let mut trailers: HeaderMap = names
            .iter()
            .map(|name| (HeaderName::from_static(name), HeaderValue::from_static("1")))
            .collect();
        clean(&mut trailers, &[HeaderName::from_static("x-api-key")]);
        let mut left: Vec<&str> = trailers.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["etag", "grpc-status", "repr-digest", "x-checksum"]);
    }
}
