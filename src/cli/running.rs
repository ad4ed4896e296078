//! The sidecar that runs with a configuration, asked on its admin port.

use std::sync::Arc;
use std::time::Duration;

use http::header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, HOST};
use http::uri::Scheme;
use http::{HeaderValue, Method, Request, StatusCode, Uri};
use http_body_util::{BodyExt, Full};

use crate::config::{Config, Upstream};
use crate::metrics::Metrics;
use crate::upstream::{self, Origin};

/// How long it is waited for.
const PATIENCE: Duration = Duration::from_secs(1);

/// What it answers; `None` where none runs there.
pub async fn ask(
    config: &Config,
    method: Method,
    path: &'static str,
    body: String,
) -> Option<(StatusCode, String)> {
    let asked = answer(config, method, path, body);
    tokio::time::timeout(PATIENCE, asked).await.ok()?
}

async fn answer(
    config: &Config,
    method: Method,
    path: &'static str,
    body: String,
) -> Option<(StatusCode, String)> {
    let address = config.admin.address;
    let place = Upstream {
        connect_timeout: PATIENCE,
        ..Upstream::at(Scheme::HTTP, address.ip().to_string(), address.port())
    };
    let host = HeaderValue::try_from(place.authority()).ok()?;
    let instance = upstream::Upstream::new(&place, Arc::new(Metrics::new())).ok()?;
    let length = body.len();
    let body = Full::from(body).map_err(|never| match never {});
    let mut request = Request::new(body.boxed_unsync());
    *request.method_mut() = method;
    *request.uri_mut() = Uri::from_static(path);
    request.headers_mut().insert(HOST, host);
    request.headers_mut().insert(CONTENT_LENGTH, length.into());
    let media_type = HeaderValue::from_static("application/json");
    request.headers_mut().insert(CONTENT_TYPE, media_type);
    if let Some(token) = &config.admin.token {
        let value = HeaderValue::try_from(format!("Bearer {}", token.text)).ok()?;
        request.headers_mut().insert(AUTHORIZATION, value);
    }
    let response = instance.answer(request).await.ok()?;
    let status = response.status();
    let body = response.into_body().collect().await.ok()?.to_bytes();
    Some((status, String::from_utf8(body.to_vec()).ok()?))
}
