//! Responses of the built-in origin: the envelopes of the contract, CORS, entity tags.

use bytes::Bytes;
use http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_MAX_AGE, ALLOW, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, ETAG,
    WWW_AUTHENTICATE,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::clock::Timestamp;
use crate::database::DatabaseError;
use crate::error::rfc3339;
use crate::policy::conditional;
use crate::policy::groups::{CACHE_GROUP_INVALIDATION, CACHE_GROUPS};
use crate::upstream::OriginBody;

use super::endpoint::listed;

/// As the requirements' optimized endpoint: a shared cache may keep it for a minute where it keeps
/// those who ask apart, and use it two more while it asks again; and an hour while the database is
/// down, which only we can allow where we say `s-maxage` (RFC 9111 §4.2.4).
const LIFETIME: &str =
    "private, max-age=30, s-maxage=60, stale-while-revalidate=120, stale-if-error=3600";

/// What was computed.
pub struct Computed {
    /// `timestamp`s are null in it: they are of the answer, not of the data.
    pub body: Value,
    /// Where they stand, as JSON pointers.
    pub timestamps: &'static [&'static str],
    /// What a write that changes it calls it (RFC 9875).
    pub group: &'static str,
    /// Two bodies of the same data are the same bytes: its tag is strong (RFC 9110 §8.8.1).
    pub is_exact: bool,
}

impl Computed {
    pub fn of(body: Value, timestamps: &'static [&'static str], group: &'static str) -> Self {
        Self {
            body,
            timestamps,
            group,
            is_exact: false,
        }
    }
}

/// What a request was refused for.
#[derive(Debug)]
pub enum Refusal {
    /// The key, in the flat envelope of the handlers.
    Key(&'static str),
    /// Another project than the key's.
    Forbidden,
    NotFound,
    Method(&'static [Method]),
    /// Each issue, with its path in the query or the body.
    Invalid(Vec<(String, String)>),
    TooLarge(usize),
    MediaType,
}

/// Adds what browsers need to every answer.
fn with_cors(response: &mut Response<OriginBody>) {
    let headers = response.headers_mut();
    let fields = [
        (ACCESS_CONTROL_ALLOW_ORIGIN, "*"),
        (
            ACCESS_CONTROL_ALLOW_METHODS,
            "GET, POST, PUT, DELETE, OPTIONS",
        ),
        (
            ACCESS_CONTROL_ALLOW_HEADERS,
            "Content-Type, Authorization, X-API-Key, X-Admin-Key",
        ),
        (ACCESS_CONTROL_MAX_AGE, "86400"),
    ];
    for (name, value) in fields {
        headers.insert(name, HeaderValue::from_static(value));
    }
}

fn response(status: StatusCode, body: String) -> Response<OriginBody> {
    let length = body.len();
    let body = Full::new(Bytes::from(body));
    let mut response = Response::new(body.map_err(|never| match never {}).boxed_unsync());
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    with_cors(&mut response);
    response
}

fn set(response: &mut Response<OriginBody>, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        response.headers_mut().insert(name, value);
    }
}

/// The answer to OPTIONS.
pub fn options() -> Response<OriginBody> {
    let mut response = response(StatusCode::NO_CONTENT, String::new());
    response.headers_mut().remove(CONTENT_TYPE);
    response.headers_mut().remove(CONTENT_LENGTH);
    response
}

/// A computed body with its own cache fields, or 304 where the client has the same data. The tag is
/// weak: two bodies of the same data differ by their time.
pub fn computed(request: &HeaderMap, computed: Computed, now: Timestamp) -> Response<OriginBody> {
    let Computed {
        mut body,
        timestamps,
        group,
        is_exact,
    } = computed;
    let digest = Sha256::digest(body.to_string());
    let hex = hex::encode(&digest[..16]);
    let weak = if is_exact { "" } else { "W/" };
    let tag = format!("{weak}\"{hex}\"");
    let time = rfc3339(now);
    for pointer in timestamps {
        if let Some(slot) = body.pointer_mut(pointer) {
            *slot = Value::String(time.clone());
        }
    }
    let mut answer = response(StatusCode::OK, body.to_string());
    set(&mut answer, ETAG, &tag);
    set(&mut answer, CACHE_CONTROL, LIFETIME);
    set(&mut answer, CACHE_GROUPS, &format!("\"{group}\""));
    if conditional::is_not_modified(request, answer.headers(), false) {
        let mut headers = std::mem::take(answer.headers_mut());
        conditional::keep_for_304(&mut headers);
        let mut short = options();
        *short.status_mut() = StatusCode::NOT_MODIFIED;
        short.headers_mut().extend(headers);
        return short;
    }
    answer
}

/// What was written, and the groups that are gone by it (RFC 9875 §3).
pub fn created(body: &Value, changed: &[&str]) -> Response<OriginBody> {
    let mut answer = response(StatusCode::CREATED, body.to_string());
    let groups: Vec<String> = changed.iter().map(|group| format!("\"{group}\"")).collect();
    set(&mut answer, CACHE_GROUP_INVALIDATION, &groups.join(", "));
    set(&mut answer, CACHE_CONTROL, "no-store");
    answer
}

/// The process's own counters.
pub fn counters(body: &Value) -> Response<OriginBody> {
    let mut answer = response(StatusCode::OK, body.to_string());
    set(&mut answer, CACHE_CONTROL, "no-store");
    answer
}

/// A query that failed, in the flat envelope of the handlers.
pub fn failed(method: &Method, path: &str, error: &DatabaseError) -> Response<OriginBody> {
    let done = if *method == Method::POST {
        "store"
    } else {
        "fetch"
    };
    let what = path.rsplit('/').next().unwrap_or_default();
    let body = json!({"error": format!("Failed to {done} {what}"), "message": error.to_string()});
    let mut answer = response(StatusCode::INTERNAL_SERVER_ERROR, body.to_string());
    set(&mut answer, CACHE_CONTROL, "no-store");
    answer
}

pub fn refused(refusal: &Refusal, path: &str, now: Timestamp) -> Response<OriginBody> {
    let time = rfc3339(now);
    let nested = |status: StatusCode, code: &str, message: String, details: Option<Value>| {
        let mut error = json!({"message": message, "code": code, "statusCode": status.as_u16()});
        if let Some(details) = details {
            error["details"] = details;
        }
        error["timestamp"] = json!(time);
        error["path"] = json!(path);
        response(status, json!({"error": error}).to_string())
    };
    let mut answer = match refusal {
        Refusal::Key(text) => {
            let body = json!({
                "error": text,
                "statusCode": 401,
                "hint": "send Authorization: Bearer sk_live_… with a key of `iris-sidecar origin \
                    create-key`",
                "timestamp": time,
            });
            let mut answer = response(StatusCode::UNAUTHORIZED, body.to_string());
            set(&mut answer, WWW_AUTHENTICATE, "Bearer");
            answer
        }
        Refusal::Forbidden => {
            let message = "this key is of another project".to_owned();
            nested(StatusCode::FORBIDDEN, "FORBIDDEN", message, None)
        }
        Refusal::NotFound => {
            let message = format!("there is no {path} here, for this key");
            let details = Some(json!({"endpoints": listed()}));
            nested(StatusCode::NOT_FOUND, "NOT_FOUND", message, details)
        }
        Refusal::Method(allowed) => {
            let body = json!({"error": "Method not allowed"});
            let mut answer = response(StatusCode::METHOD_NOT_ALLOWED, body.to_string());
            let allowed: Vec<&str> = allowed.iter().map(Method::as_str).collect();
            set(
                &mut answer,
                ALLOW,
                &format!("{}, OPTIONS", allowed.join(", ")),
            );
            answer
        }
        Refusal::Invalid(issues) => {
            let issues: Vec<Value> = issues
                .iter()
                .map(|(path, message)| json!({"path": path, "message": message}))
                .collect();
            let message = "the request is not valid".to_owned();
            let details = Some(json!({"issues": issues}));
            nested(
                StatusCode::BAD_REQUEST,
                "VALIDATION_ERROR",
                message,
                details,
            )
        }
        Refusal::TooLarge(limit) => {
            let message = format!("the body is larger than {limit} bytes");
            nested(
                StatusCode::PAYLOAD_TOO_LARGE,
                "VALIDATION_ERROR",
                message,
                None,
            )
        }
        Refusal::MediaType => {
            let message = "expected Content-Type: application/json".to_owned();
            nested(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "VALIDATION_ERROR",
                message,
                None,
            )
        }
    };
    set(&mut answer, CACHE_CONTROL, "no-store");
    answer
}

/// Rounds a computed average as the API shows it.
pub fn rounded(value: f64) -> f64 {
    (value * 10_000.0).round() / 10_000.0
}
