//! The admin port: metrics, the summary, health. Its own listener, away from the clients' traffic.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE, WWW_AUTHENTICATE};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::net::{TcpListener, TcpStream};
use tracing::{debug, warn};

use crate::proxy::Proxy;

const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
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
            let response = self.answer(request.method(), request.uri().path(), request.headers());
            async move { Ok::<_, Infallible>(response.map(Full::new)) }
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

    fn answer(&self, method: &Method, path: &str, headers: &HeaderMap) -> Response<Bytes> {
        if *method != Method::GET && *method != Method::HEAD {
            let mut response = json_response(
                StatusCode::METHOD_NOT_ALLOWED,
                &json!({"error": "Method not allowed"}),
            );
            response
                .headers_mut()
                .insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            return response;
        }
        // Health is for probes, which have no token.
        match path {
            "/healthz" => return json_response(StatusCode::OK, &json!({"status": "ok"})),
            "/readyz" => return self.readiness(),
            _ => {}
        }
        if !self.is_allowed(headers) {
            let body = json!({"error": "this endpoint needs the bearer token of admin.token"});
            let mut response = json_response(StatusCode::UNAUTHORIZED, &body);
            response
                .headers_mut()
                .insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            return response;
        }
        match path {
            "/metrics" => match self.proxy.metrics.encode(self.proxy.readings()) {
                Ok(text) => respond(StatusCode::OK, OPENMETRICS, text),
                Err(error) => json_response(
                    StatusCode::INTERNAL_SERVER_ERROR,
                    &json!({"error": error.to_string()}),
                ),
            },
            "/api/metrics" => json_response(StatusCode::OK, &self.proxy.metrics.summary()),
            _ => {
                let body = json!({
                    "error": "Not found",
                    "endpoints": ["/metrics", "/api/metrics", "/healthz", "/readyz"],
                });
                json_response(StatusCode::NOT_FOUND, &body)
            }
        }
    }

    /// An open breaker does not make this unready: stale is served, and another replica would
    /// fare no better.
    fn readiness(&self) -> Response<Bytes> {
        let draining = self.draining.load(Ordering::Relaxed);
        let breaker = if self.proxy.readings().breaker_is_open {
            "open"
        } else {
            "closed"
        };
        let status = if draining {
            StatusCode::SERVICE_UNAVAILABLE
        } else {
            StatusCode::OK
        };
        let body =
            json!({"ready": !draining, "draining": draining, "upstream": {"breaker": breaker}});
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
