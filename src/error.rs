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
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::clock::Timestamp;

/// `Proxy-Status` (RFC 9209).
pub const PROXY_STATUS: HeaderName = HeaderName::from_static("proxy-status");

/// The kind of a failure: its status, its code for programs, and its RFC 9209 error type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FailureKind {
    /// The request cannot be understood, or means two things at once.
    BadRequest,
    /// The request head is not HTTP.
    InvalidHead,
    /// The request head has too many bytes or fields.
    HeadTooLarge,
    TargetTooLong,
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
    KeyRefused,
    /// Nobody can say now whether the key is good.
    KeyUnverified,
    /// More requests than a limit allows.
    RateLimited,
    /// A defect of ours.
    Internal,
}

impl FailureKind {
    /// All kinds, for metrics that show each from the first scrape.
    pub const ALL: [Self; 30] = [
        Self::BadRequest,
        Self::InvalidHead,
        Self::HeadTooLarge,
        Self::TargetTooLong,
        Self::NotImplemented,
        Self::MethodNotAllowed,
        Self::BodyTooLarge,
        Self::RequestTimeout,
        Self::Overloaded,
        Self::DnsFailed,
        Self::ConnectFailed,
        Self::ConnectTimeout,
        Self::TlsFailed,
        Self::ConnectionClosed,
        Self::ProtocolError,
        Self::ResponseTimeout,
        Self::ResponseIncomplete,
        Self::BodyTimeout,
        Self::BreakerOpen,
        Self::QueueFull,
        Self::WaitTimeout,
        Self::OriginFailed,
        Self::DatabaseTimeout,
        Self::RangeNotSatisfiable,
        Self::OnlyIfCached,
        Self::Loop,
        Self::KeyRefused,
        Self::KeyUnverified,
        Self::RateLimited,
        Self::Internal,
    ];

    pub fn status(self) -> StatusCode {
        match self {
            Self::BadRequest | Self::InvalidHead => StatusCode::BAD_REQUEST,
            Self::HeadTooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::TargetTooLong => StatusCode::URI_TOO_LONG,
            Self::NotImplemented => StatusCode::NOT_IMPLEMENTED,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::BodyTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::RangeNotSatisfiable => StatusCode::RANGE_NOT_SATISFIABLE,
            Self::RequestTimeout => StatusCode::REQUEST_TIMEOUT,
            Self::DnsFailed
            | Self::ConnectFailed
            | Self::TlsFailed
            | Self::ConnectionClosed
            | Self::ProtocolError
            | Self::ResponseIncomplete => StatusCode::BAD_GATEWAY,
            Self::ConnectTimeout
            | Self::ResponseTimeout
            | Self::BodyTimeout
            | Self::DatabaseTimeout
            | Self::OnlyIfCached => StatusCode::GATEWAY_TIMEOUT,
            Self::Overloaded
            | Self::BreakerOpen
            | Self::QueueFull
            | Self::WaitTimeout
            | Self::KeyUnverified
            | Self::OriginFailed => StatusCode::SERVICE_UNAVAILABLE,
            Self::KeyRefused => StatusCode::UNAUTHORIZED,
            Self::RateLimited => StatusCode::TOO_MANY_REQUESTS,
            Self::Loop => StatusCode::LOOP_DETECTED,
            Self::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// Whether the origin may have acted on a request that failed so: only what failed before a
    /// byte was sent has surely changed nothing.
    pub fn may_have_arrived(self) -> bool {
        !matches!(
            self,
            Self::DnsFailed
                | Self::ConnectFailed
                | Self::ConnectTimeout
                | Self::TlsFailed
                | Self::BreakerOpen
                | Self::QueueFull
                | Self::WaitTimeout
        )
    }

    /// The label in metrics and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::BadRequest => "bad_request",
            Self::InvalidHead => "invalid_head",
            Self::HeadTooLarge => "head_too_large",
            Self::TargetTooLong => "target_too_long",
            Self::NotImplemented => "not_implemented",
            Self::MethodNotAllowed => "method_not_allowed",
            Self::BodyTooLarge => "body_too_large",
            Self::RequestTimeout => "request_timeout",
            Self::Overloaded => "overloaded",
            Self::DnsFailed => "dns_failed",
            Self::ConnectFailed => "connect_failed",
            Self::ConnectTimeout => "connect_timeout",
            Self::TlsFailed => "tls_failed",
            Self::ConnectionClosed => "connection_closed",
            Self::ProtocolError => "protocol_error",
            Self::ResponseTimeout => "response_timeout",
            Self::ResponseIncomplete => "response_incomplete",
            Self::BodyTimeout => "body_timeout",
            Self::BreakerOpen => "breaker_open",
            Self::QueueFull => "queue_full",
            Self::WaitTimeout => "wait_timeout",
            Self::OriginFailed => "origin_failed",
            Self::DatabaseTimeout => "database_timeout",
            Self::RangeNotSatisfiable => "range_not_satisfiable",
            Self::OnlyIfCached => "only_if_cached",
            Self::Loop => "loop",
            Self::KeyRefused => "unauthorized",
            Self::KeyUnverified => "key_not_verified",
            Self::RateLimited => "rate_limit_exceeded",
            Self::Internal => "internal_error",
        }
    }

    /// The registered error type (RFC 9209 §2.3).
    fn proxy_error(self) -> &'static str {
        match self {
            Self::BadRequest
            | Self::InvalidHead
            | Self::HeadTooLarge
            | Self::TargetTooLong
            | Self::NotImplemented
            | Self::BodyTooLarge
            | Self::RangeNotSatisfiable
            | Self::RequestTimeout => "http_request_error",
            Self::MethodNotAllowed | Self::OnlyIfCached | Self::KeyRefused | Self::RateLimited => {
                "http_request_denied"
            }
            Self::Overloaded | Self::QueueFull => "connection_limit_reached",
            Self::DnsFailed => "dns_error",
            Self::ConnectFailed => "connection_refused",
            Self::ConnectTimeout => "connection_timeout",
            Self::TlsFailed => "tls_protocol_error",
            Self::ConnectionClosed => "connection_terminated",
            Self::ProtocolError => "http_protocol_error",
            Self::ResponseTimeout | Self::WaitTimeout | Self::DatabaseTimeout => {
                "http_response_timeout"
            }
            Self::ResponseIncomplete => "http_response_incomplete",
            Self::BodyTimeout => "connection_read_timeout",
            Self::BreakerOpen | Self::OriginFailed | Self::KeyUnverified => {
                "destination_unavailable"
            }
            Self::Loop => "proxy_loop_detected",
            Self::Internal => "proxy_internal_error",
        }
    }

    /// Whether the origin, rather than the client or this proxy's limits, is to blame: such a
    /// failure may be answered from a stale response (RFC 5861 §4).
    pub fn is_origins(self) -> bool {
        !matches!(
            self,
            Self::BadRequest
                | Self::InvalidHead
                | Self::HeadTooLarge
                | Self::TargetTooLong
                | Self::NotImplemented
                | Self::MethodNotAllowed
                | Self::BodyTooLarge
                | Self::RequestTimeout
                | Self::Overloaded
                | Self::RangeNotSatisfiable
                | Self::OnlyIfCached
                | Self::KeyRefused
                | Self::RateLimited
                | Self::Loop
        )
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

/// The response to a failed request: `extra` holds the operator's `[errors] headers`.
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
        failure.kind.proxy_error(),
        failure.kind.as_str()
    );
    if let Ok(value) = HeaderValue::try_from(proxy_status) {
        headers.insert(PROXY_STATUS, value);
    }
    if let Some(after) = failure.retry_after {
        headers.insert(RETRY_AFTER, HeaderValue::from(after.as_secs().max(1)));
    }
    // The rest of the request cannot be found, or is not wanted: RFC 9112 §6.3, §9.6.
    if matches!(
        failure.kind,
        FailureKind::BadRequest
            | FailureKind::InvalidHead
            | FailureKind::HeadTooLarge
            | FailureKind::TargetTooLong
            | FailureKind::NotImplemented
            | FailureKind::BodyTooLarge
            | FailureKind::RequestTimeout
    ) {
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
    fn what_leaves_the_framing_in_doubt_closes_the_connection() {
        let failure = Failure::new(FailureKind::BadRequest, "two hosts");
        let response = response(&failure, Timestamp::EPOCH, &HeaderMap::new());
        assert_eq!(response.headers()["connection"], "close");
    }
}
