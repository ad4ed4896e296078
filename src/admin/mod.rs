//! The admin port: metrics, the summary, health, purges. Its own listener, away from the clients'
//! traffic.

mod explain;
mod purge;
mod revoke;

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::header::{
    ALLOW, AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE, HOST, ORIGIN, WWW_AUTHENTICATE,
};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tracing::{debug, warn};

use crate::http::fields::without_port;
use crate::proxy::Proxy;

const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// How long the body of a request may take.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
const JSON: &str = "application/json";

/// What the handlers answer from.
pub struct Admin {
    proxy: Arc<Proxy>,
    /// Set when the drain begins.
    draining: Arc<AtomicBool>,
    /// A digest, so that comparing takes the same time wherever two tokens differ.
    token: Option<[u8; 32]>,
}

impl Admin {
    pub fn new(proxy: Arc<Proxy>, draining: Arc<AtomicBool>) -> Arc<Self> {
        let token = proxy
            .plan()
            .config
            .admin
            .token
            .as_ref()
            .map(|token| Sha256::digest(token).into());
        Arc::new(Self {
            proxy,
            draining,
            token,
        })
    }

    /// Serves until the task is dropped.
    pub async fn serve(self: Arc<Self>, listener: TcpListener) {
        loop {
            match listener.accept().await {
                Ok((stream, peer)) => {
                    drop(tokio::spawn(Arc::clone(&self).connection(stream, peer)))
                }
                Err(error) => {
                    warn!(%error, "an admin connection could not be accepted");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    }

    async fn connection(self: Arc<Self>, stream: TcpStream, peer: SocketAddr) {
        let service = service_fn(move |request: Request<Incoming>| {
            let admin = Arc::clone(&self);
            async move { Ok::<_, Infallible>(admin.answer(request, peer.ip()).await.map(Full::new)) }
        });
        let mut protocol = http1::Builder::new();
        protocol
            .timer(TokioTimer::new())
            .header_read_timeout(Duration::from_secs(30));
        if let Err(error) = protocol
            .serve_connection(TokioIo::new(stream), service)
            .await
        {
            debug!(%peer, %error, "an admin connection ended early");
        }
    }

    async fn answer(&self, request: Request<Incoming>, peer: IpAddr) -> Response<Bytes> {
        let (parts, body) = request.into_parts();
        let path = parts.uri.path();
        let (takes, allowed): (&[Method], _) = match path {
            "/purge" | "/revoke" => (&[Method::POST], "POST"),
            _ => (&[Method::GET, Method::HEAD], "GET, HEAD"),
        };
        if !takes.contains(&parts.method) {
            let body = json!({"error": format!("Method not allowed: {path} takes {allowed}")});
            let mut response = json_response(StatusCode::METHOD_NOT_ALLOWED, &body);
            response
                .headers_mut()
                .insert(ALLOW, HeaderValue::from_static(allowed));
            return response;
        }
        // Health is for probes, which have no token.
        match path {
            "/healthz" => return json_response(StatusCode::OK, &json!({"status": "ok"})),
            "/readyz" => return self.readiness(),
            _ => {}
        }
        if !self.is_allowed(&parts.headers) {
            let body = json!({"error": "this endpoint needs the bearer token of admin.token"});
            let mut response = json_response(StatusCode::UNAUTHORIZED, &body);
            response
                .headers_mut()
                .insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            return response;
        }
        if is_of_another_site(&parts.headers, self.token.is_some()) {
            let body = json!({"error": "a page of another site may not use this port (Origin)"});
            return json_response(StatusCode::FORBIDDEN, &body);
        }
        match path {
            "/metrics" => match self.proxy.metrics().encode(self.proxy.readings()) {
                Ok(text) => respond(StatusCode::OK, OPENMETRICS, text),
                Err(error) => json_response(
                    StatusCode::INTERNAL_SERVER_ERROR,
                    &json!({"error": error.to_string()}),
                ),
            },
            "/api/metrics" => json_response(StatusCode::OK, &self.proxy.metrics().summary()),
            "/purge" | "/revoke" => self.order(path, body).await,
            "/explain" => match explain::explain(&self.proxy, parts.uri.query(), peer) {
                Ok(told) => json_response(StatusCode::OK, &told),
                Err(error) => json_response(StatusCode::BAD_REQUEST, &json!({"error": error})),
            },
            _ => {
                let body = json!({
                    "error": "Not found",
                    "endpoints": ["/metrics", "/api/metrics", "/healthz", "/readyz", "/explain?url=/path", "POST /purge", "POST /revoke"],
                });
                json_response(StatusCode::NOT_FOUND, &body)
            }
        }
    }

    /// An order of the operator's: what to purge, or which key to revoke.
    async fn order(&self, path: &str, body: Incoming) -> Response<Bytes> {
        let refuse = |status, error: String| json_response(status, &json!({"error": error}));
        let reading = Limited::new(body, purge::BODY_LIMIT).collect();
        let body = match timeout(BODY_TIMEOUT, reading).await {
            Ok(Ok(body)) => body.to_bytes(),
            Ok(Err(error)) if error.is::<LengthLimitError>() => {
                let limit = purge::BODY_LIMIT;
                let error = format!("the body is larger than {limit} bytes");
                return refuse(StatusCode::PAYLOAD_TOO_LARGE, error);
            }
            Ok(Err(error)) => return refuse(StatusCode::BAD_REQUEST, error.to_string()),
            Err(_) => {
                let error = format!("the body did not come within {BODY_TIMEOUT:?}");
                return refuse(StatusCode::REQUEST_TIMEOUT, error);
            }
        };
        let done = match path {
            "/revoke" => revoke::revoke(&self.proxy, &body).await,
            _ => purge::purge(&self.proxy, &body).await,
        };
        match done {
            Ok(done) => json_response(StatusCode::OK, &done),
            Err(error) => refuse(StatusCode::BAD_REQUEST, error),
        }
    }

    /// An open breaker does not make this unready: stale is served, or memory alone answers, and
    /// another replica would fare no better.
    fn readiness(&self) -> Response<Bytes> {
        let draining = self.draining.load(Ordering::Relaxed);
        let readings = self.proxy.readings();
        let state = |is_open| if is_open { "open" } else { "closed" };
        let breaker = state(readings.breaker_is_open);
        let status = if draining {
            StatusCode::SERVICE_UNAVAILABLE
        } else {
            StatusCode::OK
        };
        let mut body =
            json!({"ready": !draining, "draining": draining, "upstream": {"breaker": breaker}});
        if let Some(second) = readings.second {
            body["redis"] = json!({
                "breaker": state(second.breaker_is_open),
                "purge_log": {
                    "heard": second.is_heard,
                    "silence_ms": second.silence_ms,
                    "position": second.position,
                    "pending": second.pending,
                },
            });
        }
        json_response(status, &body)
    }

    fn is_allowed(&self, headers: &HeaderMap) -> bool {
        let Some(expected) = &self.token else {
            return true;
        };
        let given = headers.get(AUTHORIZATION).map(HeaderValue::as_bytes);
        let given = given.and_then(|value| value.strip_prefix(b"Bearer "));
        given.is_some_and(|token| <[u8; 32]>::from(Sha256::digest(token)) == *expected)
    }
}

/// Whether a browser sends this for a page that is not ours: without a token, any page that the
/// operator looks at could purge otherwise.
/// By a name that it makes point here, a page can be of the same site: so without a token the host
/// must be an address.
fn is_of_another_site(headers: &HeaderMap, has_token: bool) -> bool {
    let Some(origin) = headers.get(ORIGIN) else {
        return false;
    };
    let authority = origin.to_str().ok().and_then(|text| text.split_once("://"));
    let host = headers.get(HOST).and_then(|host| host.to_str().ok());
    let bare = host.map(|host| without_port(host.as_bytes()));
    let is_address = bare.is_some_and(|bare| {
        let text = std::str::from_utf8(bare).unwrap_or_default();
        let address = text.trim_start_matches('[').trim_end_matches(']');
        text == "localhost" || address.parse::<IpAddr>().is_ok()
    });
    authority.map(|(_, authority)| authority) != host || !(has_token || is_address)
}

fn json_response(status: StatusCode, body: &Value) -> Response<Bytes> {
    respond(status, JSON, body.to_string())
}

fn respond(status: StatusCode, content_type: &'static str, body: String) -> Response<Bytes> {
    let mut response = Response::new(Bytes::from(body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
