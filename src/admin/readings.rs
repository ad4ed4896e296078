//! What is read on the admin port: metrics, health, explanations.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use bytes::Bytes;
use http::{Response, StatusCode};
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::config::{self, Secret};
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
    pub(super) token: Option<Token>,
    pub(super) config: config::Admin,
}

/// The token of the port: as it was given at the start, or as its file says now.
pub(super) struct Token {
    file: Option<PathBuf>,
    /// When the file was changed last, and a digest of the token: comparing takes the same time wherever
    /// two differ.
    known: Mutex<(Option<SystemTime>, [u8; 32])>,
}

impl Token {
    fn new(secret: Secret) -> Self {
        let digest = Sha256::digest(secret.text).into();
        Self {
            file: secret.file,
            known: Mutex::new((None, digest)),
        }
    }

    /// Whether this is the token. A file that cannot be read, or is empty, leaves the old one.
    pub(super) fn is(&self, given: &[u8]) -> bool {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = &self.file {
            let changed = std::fs::metadata(file)
                .and_then(|file| file.modified())
                .ok();
            if changed.is_some() && changed != known.0 {
                let text = std::fs::read_to_string(file).unwrap_or_default();
                let token = text.lines().next().filter(|token| !token.is_empty());
                known.1 = token.map_or(known.1, |token| Sha256::digest(token).into());
                known.0 = changed;
            }
        }
        <[u8; 32]>::from(Sha256::digest(given)) == known.1
    }
}

impl Admin {
    pub fn new(proxy: Arc<Proxy>, draining: Arc<AtomicBool>) -> Arc<Self> {
        let config = proxy.plan().config.admin.clone();
        let token = config.token.clone().map(Token::new);
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
