//! What can go wrong with one request, and the one function that turns it into a response.
//!
//! Every answer that the sidecar makes by itself is JSON with a code, and says by `Proxy-Status`
//! (RFC 9209) which side failed.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use http::header::{
    CACHE_CONTROL, CONNECTION, CONTENT_TYPE, HeaderName, RETRY_AFTER, WWW_AUTHENTICATE,
};
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use serde_json::{Value, json};
use strum::{EnumIter, IntoStaticStr};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::clock::Timestamp;

/// `Proxy-Status` (RFC 9209).
pub const PROXY_STATUS: HeaderName = HeaderName::from_static("proxy-status");

/// The kind of a failure: its status, its code for programs, and its RFC 9209 error type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EnumIter, IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum FailureKind {
    /// The request cannot be understood, or means two things at once.
    BadRequest,
    /// The request head is not HTTP.
    InvalidHead,
    /// The request head has too many bytes or fields.
    HeadTooLarge,
    TargetTooLong,
    /// The target is not one of this connection's (RFC 9110 §15.5.20).
    Misdirected,
    /// A transfer coding or method that this proxy does not implement.
    NotImplemented,
    MethodNotAllowed,
    BodyTooLarge,
    /// The client stopped sending its request.
    RequestTimeout,
    /// More connections or work than the limits allow.
    Overloaded,
    DnsFailed,
    ConnectFailed,
    ConnectTimeout,
    TlsFailed,
    /// The upstream closed or reset the connection before a response head.
    ConnectionClosed,
    /// The upstream hung up while the client's body was being sent, without an answer.
    UploadBroken,
    /// This process may open no more files or connections.
    OutOfDescriptors,
    /// The upstream sent something that is not HTTP.
    ProtocolError,
    /// No response head in time.
    ResponseTimeout,
    /// The response ended before its framing said it would.
    ResponseIncomplete,
    /// Nothing came for too long in the middle of a body.
    BodyTimeout,
    /// The breaker is open: the upstream failed too often a moment ago.
    BreakerOpen,
    /// Too many requests already wait for a connection to the upstream.
    QueueFull,
    /// A wait for another request's fetch, or for a connection, took too long.
    WaitTimeout,
    /// The built-in origin could not answer.
    OriginFailed,
    /// A query of the built-in origin took too long.
    DatabaseTimeout,
    /// None of the ranges asked for is in the representation (RFC 9110 §15.5.17).
    RangeNotSatisfiable,
    /// `only-if-cached`, and nothing is (RFC 9111 §5.2.1.7).
    OnlyIfCached,
    /// The request goes in a circle (RFC 9110 §7.6).
    Loop,
    /// No credential that counts, or one that was refused a moment ago.
    #[strum(serialize = "unauthorized")]
    KeyRefused,
    /// Nobody can say now whether the key is good.
    #[strum(serialize = "key_not_verified")]
    KeyUnverified,
    /// More requests than a limit allows.
    #[strum(serialize = "rate_limit_exceeded")]
    RateLimited,
    /// A defect of ours.
    #[strum(serialize = "internal_error")]
    Internal,
}

/// Who is to blame for a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// The request itself, or a limit of this proxy's that it met.
    Request,
    /// As with [`Fault::Request`], and the rest of the request cannot be found or is not wanted:
    /// the connection ends (RFC 9112 §6.3, §9.6).
    RequestAndItsFraming,
    /// The origin, before a byte of the request was sent: it has surely changed nothing.
    OriginUnasked,
    /// The origin, or a defect of ours after it was asked: it may have acted on the request.
    OriginAsked,
}

impl FailureKind {
    /// Its status, its registered error type (RFC 9209 §2.3) and whose fault it is: all that is to
    /// be said of a kind, in one place.
    fn profile(self) -> (StatusCode, &'static str, Fault) {
        use Fault::{OriginAsked, OriginUnasked, Request, RequestAndItsFraming};
        const INVALID: &str = "http_request_error";
        const DENIED: &str = "http_request_denied";
        const FULL: &str = "connection_limit_reached";
        const SLOW: &str = "http_response_timeout";
        const GONE: &str = "destination_unavailable";
        type Status = StatusCode;
        match self {
            Self::BadRequest => (Status::BAD_REQUEST, INVALID, RequestAndItsFraming),
            Self::InvalidHead => (Status::BAD_REQUEST, INVALID, RequestAndItsFraming),
            Self::HeadTooLarge => (
                Status::REQUEST_HEADER_FIELDS_TOO_LARGE,
                INVALID,
                RequestAndItsFraming,
            ),
            Self::TargetTooLong => (Status::URI_TOO_LONG, INVALID, RequestAndItsFraming),
            Self::Misdirected => (Status::MISDIRECTED_REQUEST, INVALID, Request),
            Self::NotImplemented => (Status::NOT_IMPLEMENTED, INVALID, RequestAndItsFraming),
            Self::MethodNotAllowed => (Status::METHOD_NOT_ALLOWED, DENIED, Request),
            Self::BodyTooLarge => (Status::PAYLOAD_TOO_LARGE, INVALID, RequestAndItsFraming),
            Self::RequestTimeout => (Status::REQUEST_TIMEOUT, INVALID, RequestAndItsFraming),
            Self::Overloaded => (Status::SERVICE_UNAVAILABLE, FULL, Request),
            Self::DnsFailed => (Status::BAD_GATEWAY, "dns_error", OriginUnasked),
            Self::ConnectFailed => (Status::BAD_GATEWAY, "connection_refused", OriginUnasked),
            Self::ConnectTimeout => (Status::GATEWAY_TIMEOUT, "connection_timeout", OriginUnasked),
            Self::TlsFailed => (Status::BAD_GATEWAY, "tls_protocol_error", OriginUnasked),
            Self::ConnectionClosed => (Status::BAD_GATEWAY, "connection_terminated", OriginAsked),
            Self::UploadBroken => (
                Status::BAD_GATEWAY,
                "connection_terminated",
                RequestAndItsFraming,
            ),
            Self::OutOfDescriptors => (Status::SERVICE_UNAVAILABLE, FULL, OriginUnasked),
            Self::ProtocolError => (Status::BAD_GATEWAY, "http_protocol_error", OriginAsked),
            Self::ResponseTimeout => (Status::GATEWAY_TIMEOUT, SLOW, OriginAsked),
            Self::ResponseIncomplete => {
                (Status::BAD_GATEWAY, "http_response_incomplete", OriginAsked)
            }
            Self::BodyTimeout => (
                Status::GATEWAY_TIMEOUT,
                "connection_read_timeout",
                OriginAsked,
            ),
            Self::BreakerOpen => (Status::SERVICE_UNAVAILABLE, GONE, OriginUnasked),
            Self::QueueFull => (Status::SERVICE_UNAVAILABLE, FULL, OriginUnasked),
            Self::WaitTimeout => (Status::SERVICE_UNAVAILABLE, SLOW, OriginUnasked),
            Self::OriginFailed => (Status::SERVICE_UNAVAILABLE, GONE, OriginAsked),
            Self::DatabaseTimeout => (Status::GATEWAY_TIMEOUT, SLOW, OriginAsked),
            Self::RangeNotSatisfiable => (Status::RANGE_NOT_SATISFIABLE, INVALID, Request),
            Self::OnlyIfCached => (Status::GATEWAY_TIMEOUT, DENIED, Request),
            Self::Loop => (Status::LOOP_DETECTED, "proxy_loop_detected", Request),
            Self::KeyRefused => (Status::UNAUTHORIZED, DENIED, Request),
            Self::KeyUnverified => (Status::SERVICE_UNAVAILABLE, GONE, OriginAsked),
            Self::RateLimited => (Status::TOO_MANY_REQUESTS, DENIED, Request),
            Self::Internal => (
                Status::INTERNAL_SERVER_ERROR,
                "proxy_internal_error",
                OriginAsked,
            ),
        }
    }

    pub fn status(self) -> StatusCode {
        self.profile().0
    }

    /// The label in metrics and logs.
    pub fn as_str(self) -> &'static str {
        self.into()
    }

    fn fault(self) -> Fault {
        self.profile().2
    }

    /// Whether the origin may have acted on a request that failed so.
    pub fn may_have_arrived(self) -> bool {
        self.fault() != Fault::OriginUnasked
    }

    /// Whether the origin, rather than the client or this proxy's limits, is to blame: such a
    /// failure may be answered from a stale response (RFC 5861 §4).
    pub fn is_origins(self) -> bool {
        matches!(self.fault(), Fault::OriginUnasked | Fault::OriginAsked)
    }
}

/// A failed request: what was being done, with what, and when to try again.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{}: {message}", kind.as_str())]
pub struct Failure {
    pub kind: FailureKind,
    pub message: String,
    pub retry_after: Option<Duration>,
    /// What the origin answered, where it did.
    pub status: Option<StatusCode>,
    /// More that programs may want to know.
    pub details: Option<Value>,
}

impl Failure {
    pub fn new(kind: FailureKind, message: impl fmt::Display) -> Self {
        Self {
            kind,
            message: message.to_string(),
            retry_after: None,
            status: None,
            details: None,
        }
    }

    pub fn retry_after(mut self, after: Duration) -> Self {
        self.retry_after = Some(after);
        self
    }
}

/// A text in which no password stands any more that a URL in it had: neither before its host nor in
/// its query.
pub fn without_passwords(text: &str) -> String {
    let mut shown = text.to_owned();
    let at = shown.rfind('@').filter(|_| !text.contains("://"));
    if let Some(end) = at
        && let Some(colon) = shown[..end].find(':')
    {
        // No URL; but who meant one has written a password, where nobody looks for it.
        let start = shown[..colon].rfind(['"', '\'', ' ']);
        shown.replace_range(start.map_or(0, |at| at + 1)..end, "…");
    } else if let Some(start) = shown.find("://").map(|at| at + 3)
        && let Some(end) = shown[start..].rfind('@').map(|at| start + at)
        && let Some(colon) = shown[start..end].find(':').map(|at| start + at)
    {
        shown.replace_range(colon + 1..end, "…");
    }
    for name in ["password=", "pwd="] {
        let mut from = 0;
        while let Some(at) = shown[from..].to_ascii_lowercase().find(name) {
            let start = from + at + name.len();
            let end = shown[start..].find(['&', '#', '"', '\'']);
            let end = end.map_or(shown.len(), |end| start + end);
            shown.replace_range(start..end, "…");
            from = start;
        }
    }
    shown
}

/// Whether the system or this process may open no more descriptors (`ENFILE`, `EMFILE`): a lack of
/// ours, and nothing that the other side did.
pub fn is_out_of_descriptors(error: &std::io::Error) -> bool {
    matches!(error.raw_os_error(), Some(23 | 24))
}

/// The response to a failed request, with the failure in its extensions: `extra` holds the
/// operator's `[errors] headers`.
pub fn response(failure: &Failure, now: Timestamp, extra: &HeaderMap) -> Response<Bytes> {
    let status = failure.kind.status();
    let body = body(failure, now);
    let mut response = Response::new(Bytes::from(body.to_string()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    let proxy_status = format!(
        "iris-sidecar; error={}; details=\"{}\"",
        failure.kind.profile().1,
        failure.kind.as_str()
    );
    if let Ok(value) = HeaderValue::try_from(proxy_status) {
        headers.insert(PROXY_STATUS, value);
    }
    if let Some(after) = failure.retry_after {
        headers.insert(RETRY_AFTER, HeaderValue::from(after.as_secs().max(1)));
    }
    if failure.kind.fault() == Fault::RequestAndItsFraming {
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    if failure.kind == FailureKind::KeyRefused {
        // Not a challenge to browsers: they know no such scheme (RFC 6750 §3).
        headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    if failure.kind == FailureKind::MethodNotAllowed {
        let allow = HeaderValue::from_static("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS");
        headers.insert(http::header::ALLOW, allow);
    }
    for (name, value) in extra {
        headers.insert(name.clone(), value.clone());
    }
    // For whoever has to say it otherwise.
    response.extensions_mut().insert(failure.clone());
    response
}

/// Nested, but for refused keys, which the Iris API answers flat.
fn body(failure: &Failure, now: Timestamp) -> Value {
    let status = failure.kind.status().as_u16();
    if failure.kind == FailureKind::KeyRefused {
        return json!({
            "error": failure.message,
            "statusCode": status,
            "timestamp": rfc3339(now),
        });
    }
    let mut error = json!({
        "message": failure.message,
        "code": failure.kind.as_str().to_ascii_uppercase(),
        "statusCode": status,
        "timestamp": rfc3339(now),
    });
    if let Some(details) = &failure.details {
        error["details"] = details.clone();
    }
    json!({"error": error})
}

/// A time as RFC 3339 with milliseconds, as the Iris API writes its timestamps.
pub fn rfc3339(time: Timestamp) -> String {
    let nanos = i128::from(time.as_millis()) * 1_000_000;
    OffsetDateTime::from_unix_timestamp_nanos(nanos)
        .ok()
        .and_then(|time| time.format(&Rfc3339).ok())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_names_its_side_and_keeps_the_operators_headers() {
        let mut extra = HeaderMap::new();
        extra.insert("access-control-allow-origin", HeaderValue::from_static("*"));
        let failure = Failure::new(FailureKind::BreakerOpen, "the upstream is unavailable")
            .retry_after(Duration::from_secs(7));
        let response = response(&failure, Timestamp::from_millis(0), &extra);
        assert_eq!(response.status(), 503);
        assert_eq!(response.headers()["retry-after"], "7");
        assert_eq!(response.headers()["access-control-allow-origin"], "*");
        let status = response.headers()["proxy-status"].to_str().unwrap();
        assert!(status.starts_with("iris-sidecar; error=destination_unavailable"));
        let body: serde_json::Value = serde_json::from_slice(response.body()).unwrap();
        assert_eq!(body["error"]["code"], "BREAKER_OPEN");
        assert_eq!(body["error"]["statusCode"], 503);
    }

    #[test]
    fn a_url_is_shown_without_its_password() {
        for (url, shown) in [
            ("redis://:s3cret@host:6379/1", "redis://:…@host:6379/1"),
            ("postgres://me:s3cret@host/db", "postgres://me:…@host/db"),
            ("redis://me:s3/c@re:t@host", "redis://me:…@host"),
            (
                "postgres://me@host/db?password=s3cret&x=1",
                "postgres://me@host/db?password=…&x=1",
            ),
            ("http://host:80/a", "http://host:80/a"),
            ("sqlite:file.db", "sqlite:file.db"),
        ] {
            assert_eq!(without_passwords(url), shown);
        }
    }

    #[test]
    fn what_leaves_the_framing_in_doubt_closes_the_connection() {
        let failure = Failure::new(FailureKind::BadRequest, "two hosts");
        let response = response(&failure, Timestamp::EPOCH, &HeaderMap::new());
        assert_eq!(response.headers()["connection"], "close");
    }
}
