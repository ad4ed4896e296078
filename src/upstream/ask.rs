//! One request to the admin port of a sidecar: the one that runs with a configuration, or another
//! one of the fleet.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, HOST};
use http::uri::Scheme;
use http::{HeaderValue, Method, Request, StatusCode, Uri};
use http_body_util::{BodyExt, Full};

use crate::config::Upstream as Place;
use crate::metrics::Metrics;

use super::{Origin, Upstream};

/// What it answers within `limit`; `None` where none runs there.
pub async fn ask_admin(
    address: SocketAddr,
    token: Option<&str>,
    (method, path): (Method, &str),
    body: String,
    limit: Duration,
) -> Option<(StatusCode, String)> {
    let asked = answer(address, token, (method, path), body, limit);
    tokio::time::timeout(limit, asked).await.ok()?
}

async fn answer(
    address: SocketAddr,
    token: Option<&str>,
    (method, path): (Method, &str),
    body: String,
    limit: Duration,
) -> Option<(StatusCode, String)> {
    let place = Place {
        connect_timeout: limit,
        ..Place::at(Scheme::HTTP, address.ip().to_string(), address.port())
    };
    let host = HeaderValue::try_from(place.authority()).ok()?;
    let instance = Upstream::new(&place, Arc::new(Metrics::new())).ok()?;
    let length = body.len();
    let body = Full::from(body).map_err(|never| match never {});
    let mut request = Request::new(body.boxed_unsync());
    *request.method_mut() = method;
    *request.uri_mut() = path.parse::<Uri>().ok()?;
    let headers = request.headers_mut();
    headers.insert(HOST, host);
    headers.insert(CONTENT_LENGTH, length.into());
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if let Some(token) = token {
        let value = HeaderValue::try_from(format!("Bearer {token}")).ok()?;
        headers.insert(AUTHORIZATION, value);
    }
    let response = instance.answer(request).await.ok()?;
    let status = response.status();
    let body = response.into_body().collect().await.ok()?.to_bytes();
    Some((status, String::from_utf8(body.to_vec()).ok()?))
}
