//! What is read on the admin port: metrics, health, explanations.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use http::{Response, StatusCode};
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::config;
use crate::proxy::Proxy;

use super::explain;
use super::request::AdminRequest;
use super::response::{json_response, respond};

const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What the handlers answer from.
pub struct Admin {
    pub(super) proxy: Arc<Proxy>,
    /// Set when the drain begins.
    draining: Arc<AtomicBool>,
    /// A digest, so that comparing takes the same time wherever two tokens differ.
    pub(super) token: Option<[u8; 32]>,
    pub(super) config: config::Admin,
}

impl Admin {
    pub fn new(proxy: Arc<Proxy>, draining: Arc<AtomicBool>) -> Arc<Self> {
        let config = proxy.plan().config.admin.clone();
        let token = config.token.as_ref();
        let token = token.map(|token| Sha256::digest(token).into());
        Arc::new(Self {
            proxy,
            draining,
            token,
            config,
        })
    }

    pub(super) fn metrics(&self) -> Response<Bytes> {
        match self.proxy.metrics().encode(self.proxy.readings()) {
            Ok(text) => respond(StatusCode::OK, OPENMETRICS, text),
            Err(error) => json_response(
                StatusCode::INTERNAL_SERVER_ERROR,
                &json!({"error": error.to_string()}),
            ),
        }
    }

    pub(super) fn explained(&self, asked: &AdminRequest<'_>) -> Response<Bytes> {
        match explain::explain(&self.proxy, asked.query, asked.peer) {
            Ok(told) => json_response(StatusCode::OK, &told),
            Err(error) => json_response(StatusCode::BAD_REQUEST, &json!({"error": error})),
        }
    }

    /// An open breaker does not make this unready: stale is served, or memory alone answers, and
    /// another replica would fare no better.
    pub(super) fn readiness(&self) -> Response<Bytes> {
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
}
