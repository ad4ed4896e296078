//! Responses of the admin port.

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderValue, Response, StatusCode};
use serde_json::{Value, json};

const JSON: &str = "application/json";

pub fn json_response(status: StatusCode, body: &Value) -> Response<Bytes> {
    respond(status, JSON, body.to_string())
}

pub fn respond(status: StatusCode, content_type: &'static str, body: String) -> Response<Bytes> {
    let mut response = Response::new(Bytes::from(body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// Why an order is not carried out: what is wrong with it, as `error`.
pub struct Refused(pub Value);

impl From<String> for Refused {
    fn from(error: String) -> Self {
        Self(json!({"error": error}))
    }
}
