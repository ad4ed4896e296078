//! What is read on the admin port: metrics, health, explanations.

use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use http::{Response, StatusCode};
use parking_lot::Mutex;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::clock::Timestamp;
use crate::config::settings::Setting;
use crate::config::{self, Secret};
use crate::container;
use crate::error::rfc3339;
use crate::metrics::text::Format;
use crate::proxy::Proxy;
use crate::reload::Reloader;
use crate::server::hearts::{Hearts, STUCK_AFTER};
use crate::server::phase::{Phase, Phases};

use super::explain;
use super::request::AdminRequest;
use super::response::{json_response, respond};

/// What the handlers answer from.
pub struct Admin {
    pub(super) proxy: Arc<Proxy>,
    pub(super) reloader: Arc<Reloader>,
    pub(super) phases: Arc<Phases>,
    hearts: Arc<Hearts>,
    pub(super) token: Token,
}

/// The token of the port: as the configuration in force has it, or as its file says now.
#[derive(Default)]
pub(super) struct Token(Mutex<Known>);

#[derive(Default)]
struct Known {
    /// What the rest is of.
    secret: Option<Secret>,
    /// When its file was changed last.
    changed: Option<SystemTime>,
    /// A digest of the token: comparing takes the same time wherever two differ.
    digest: [u8; 32],
}

impl Token {
    /// Whether this is the token that `secret` means. A file that cannot be read, or is empty,
    /// leaves the old one.
    pub(super) fn is(&self, given: &[u8], secret: &Secret) -> bool {
        let mut known = self.0.lock();
        if known.secret.as_ref() != Some(secret) {
            *known = Known {
                secret: Some(secret.clone()),
                changed: None,
                digest: Sha256::digest(&secret.text).into(),
            };
        }
        if let Some(file) = &secret.file {
            let changed = std::fs::metadata(file)
                .and_then(|file| file.modified())
                .ok();
            if changed.is_some() && changed != known.changed {
                let text = std::fs::read_to_string(file).unwrap_or_default();
                let token = text.lines().next().filter(|token| !token.is_empty());
                known.digest = token.map_or(known.digest, |token| Sha256::digest(token).into());
                known.changed = changed;
            }
        }
        <[u8; 32]>::from(Sha256::digest(given)) == known.digest
    }
}

impl Admin {
    pub fn new(reloader: Arc<Reloader>, (phases, hearts): (Arc<Phases>, Arc<Hearts>)) -> Arc<Self> {
        Arc::new(Self {
            proxy: Arc::clone(reloader.proxy()),
            reloader,
            phases,
            hearts,
            token: Token::default(),
        })
    }

    /// As it is configured now.
    pub(super) fn config(&self) -> config::Admin {
        self.proxy.plan().config.admin.clone()
    }

    pub(super) fn metrics(&self, asked: &AdminRequest<'_>) -> Response<Bytes> {
        let mut readings = self.proxy.readings();
        // A container can be resized while it runs.
        readings.memory_limit = container::memory_limit().unwrap_or(0);
        readings.is_bypassed |= self.proxy.plan().config.bypass;
        let expires = self.proxy.plan().config.listen.expires();
        readings.certificate_expires = expires.map_or(0, |at| Timestamp::from(at).as_secs());
        let format = Format::of(asked.accept);
        match self.proxy.metrics().encode(readings, format) {
            Ok(text) => respond(StatusCode::OK, format.content_type(), text),
            Err(error) => json_response(
                StatusCode::INTERNAL_SERVER_ERROR,
                &json!({"error": error.to_string()}),
            ),
        }
    }

    pub(super) async fn explained(&self, asked: &AdminRequest<'_>) -> Response<Bytes> {
        match explain::explain(&self.proxy, asked.query, asked.peer).await {
            Ok(told) => json_response(StatusCode::OK, &told),
            Err(error) => json_response(StatusCode::BAD_REQUEST, &json!({"error": error})),
        }
    }

    /// What was asked for most, up to `most=…`.
    pub(super) fn seen(&self, asked: &AdminRequest<'_>) -> Response<Bytes> {
        let most = match asked.query.map(|query| query.strip_prefix("most=")) {
            None => Some(10),
            Some(number) => number.and_then(|number| number.parse().ok()),
        };
        let Some(most) = most else {
            let error = "expected /seen, or /seen?most=10";
            return json_response(StatusCode::BAD_REQUEST, &json!({"error": error}));
        };
        let seen = self.proxy.seen_most(most).into_iter();
        let seen: Vec<_> = seen
            .map(|(asked, count)| {
                json!({"host": asked.host, "target": asked.target, "requests": count})
            })
            .collect();
        json_response(StatusCode::OK, &json!({"seen": seen}))
    }

    /// Whether clients can come: the upstream and Redis may come later.
    pub(super) fn startup(&self) -> Response<Bytes> {
        let has_started = self.phases.has_started();
        let status = if has_started {
            StatusCode::OK
        } else {
            StatusCode::SERVICE_UNAVAILABLE
        };
        json_response(status, &json!({"started": has_started}))
    }

    /// Whether all workers come back from what they do.
    pub(super) fn liveness(&self) -> Response<Bytes> {
        let stuck = self.hearts.stuck(STUCK_AFTER);
        let status = if stuck.is_empty() {
            StatusCode::OK
        } else {
            StatusCode::SERVICE_UNAVAILABLE
        };
        let stuck: Vec<Value> = stuck
            .into_iter()
            .map(|(worker, silent)| json!({"worker": worker, "silent_ms": silent.as_millis() as u64}))
            .collect();
        json_response(status, &json!({"alive": stuck.is_empty(), "stuck": stuck}))
    }

    /// An open breaker does not make this unready: stale is served, or memory alone answers, and
    /// another replica would fare no better.
    pub(super) fn readiness(&self, asked: &AdminRequest<'_>) -> Response<Bytes> {
        let draining = self.phases.now() > Phase::Serving;
        let readings = self.proxy.readings();
        let state = |is_open| if is_open { "open" } else { "closed" };
        let breaker = state(readings.breaker_is_open());
        let status = if draining {
            StatusCode::SERVICE_UNAVAILABLE
        } else {
            StatusCode::OK
        };
        let mut body =
            json!({"ready": !draining, "draining": draining, "upstream": {"breaker": breaker}});
        if let Some(second) = readings.second {
            body["redis"] = json!({
                "reachable": second.is_heard && !second.breaker_is_open,
                "breaker": state(second.breaker_is_open),
                "purge_log": {
                    "heard": second.is_heard,
                    "silence_ms": second.silence_ms,
                    "position": second.position,
                    "pending": second.pending,
                },
            });
        }
        body["config"] = self.configuration();
        if !asked.is_operator {
            // What stands in the file is nobody else's business.
            for (list, name) in [("/failed", "mistakes"), ("", "needs_restart")] {
                let place = body["config"].pointer_mut(list);
                if let Some(lines) = place.and_then(|place| place.get_mut(name)) {
                    *lines = json!(lines.as_array().map_or(0, Vec::len));
                }
            }
        }
        body["bypass"] = self.bypass();
        json_response(status, &body)
    }

    /// Which configuration is in force, and what is wrong with the file where that is another one.
    pub(super) fn configuration(&self) -> Value {
        let status = self.reloader.status();
        let mut told = json!({"hash": status.digest, "loaded": rfc3339(status.loaded)});
        if !status.needs_restart.is_empty() {
            told["needs_restart"] = json!(status.needs_restart);
        }
        if let Some(failed) = status.failed {
            told["failed"] = json!({"at": rfc3339(failed), "mistakes": status.mistakes});
        }
        told
    }

    /// `GET /config`: every key as it takes effect.
    pub(super) fn effective(&self) -> Response<Bytes> {
        let plan = self.proxy.plan();
        let settings: Vec<Value> = plan.config.settings.iter().map(Setting::to_json).collect();
        let mut told = self.configuration();
        told["file"] = json!(plan.config.file);
        told["settings"] = json!(settings);
        json_response(StatusCode::OK, &told)
    }
}
