//! gRPC passes as any other request does; only where the answer is a failure of ours, its clients
//! read another form: status 200, and `grpc-status` (gRPC over HTTP/2, "Trailers-Only").

use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, request};

use crate::error::{Failure, FailureKind};

use super::Body;

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
const PUSHBACK: HeaderName = HeaderName::from_static("grpc-retry-pushback-ms");

/// Whether a request is one of gRPC.
pub fn is_grpc(parts: &request::Parts) -> bool {
    let is_it = |value: &HeaderValue| value.as_bytes().starts_with(b"application/grpc");
    parts.method == Method::POST && parts.headers.get(CONTENT_TYPE).is_some_and(is_it)
}

/// A failure of ours as clients of gRPC read it; whatever else unchanged.
pub fn in_its_words(mut response: Response<Body>) -> Response<Body> {
    let Some(failure) = response.extensions_mut().remove::<Failure>() else {
        return response;
    };
    *response.status_mut() = StatusCode::OK;
    *response.body_mut() = Body::Empty;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert(GRPC_STATUS, HeaderValue::from(status(failure.kind)));
    put_message(headers, &failure.message);
    if let Some(after) = failure.retry_after {
        let millis = u32::try_from(after.as_millis()).unwrap_or(u32::MAX);
        headers.insert(PUSHBACK, HeaderValue::from(millis));
    }
    response
}

/// Percent-encoded, but for what is printable (gRPC over HTTP/2, "Responses").
fn put_message(headers: &mut HeaderMap, message: &str) {
    let mut text = String::with_capacity(message.len());
    for byte in message.bytes() {
        match byte {
            b' '..=b'~' if byte != b'%' => text.push(char::from(byte)),
            other => text.push_str(&format!("%{other:02X}")),
        }
    }
    if let Ok(value) = HeaderValue::try_from(text) {
        headers.insert(GRPC_MESSAGE, value);
    }
}

/// The code of a failure (gRPC status codes), after what its mapping of HTTP statuses says.
fn status(kind: FailureKind) -> u16 {
    const DEADLINE_EXCEEDED: u16 = 4;
    const RESOURCE_EXHAUSTED: u16 = 8;
    const UNIMPLEMENTED: u16 = 12;
    const INTERNAL: u16 = 13;
    const UNAVAILABLE: u16 = 14;
    const UNAUTHENTICATED: u16 = 16;
    match kind {
        FailureKind::KeyRefused => UNAUTHENTICATED,
        FailureKind::RateLimited | FailureKind::BodyTooLarge | FailureKind::HeadTooLarge => {
            RESOURCE_EXHAUSTED
        }
        FailureKind::ResponseTimeout
        | FailureKind::BodyTimeout
        | FailureKind::RequestTimeout
        | FailureKind::DatabaseTimeout => DEADLINE_EXCEEDED,
        FailureKind::MethodNotAllowed | FailureKind::NotImplemented => UNIMPLEMENTED,
        kind if kind.status().is_client_error() => INTERNAL,
        FailureKind::Internal | FailureKind::Loop => INTERNAL,
        _ => UNAVAILABLE,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_percent_encoded_and_kinds_have_codes() {
        let mut headers = HeaderMap::new();
        put_message(&mut headers, "100 % größer\n");
        assert_eq!(headers["grpc-message"], "100 %25 gr%C3%B6%C3%9Fer%0A");
        for (kind, code) in [
            (FailureKind::ConnectFailed, 14),
            (FailureKind::BreakerOpen, 14),
            (FailureKind::ResponseTimeout, 4),
            (FailureKind::RateLimited, 8),
            (FailureKind::KeyRefused, 16),
            (FailureKind::BadRequest, 13),
            (FailureKind::Internal, 13),
        ] {
            assert_eq!(status(kind), code, "{kind:?}");
        }
    }
}
