//! What limits say of a request, and how its client is told.

use std::fmt::Write as _;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};
use serde_json::json;

use crate::clock::Timestamp;
use crate::config::{LimitBy, RateLimit};
use crate::error::{Failure, FailureKind, rfc3339};

pub const RATELIMIT: HeaderName = HeaderName::from_static("ratelimit");
pub const RATELIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");

/// What one limit says of a request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Said {
    pub is_allowed: bool,
    pub left: u64,
    pub retry: Duration,
    pub reset: Duration,
}

/// What all limits say of a request: the fields of its answer, and a failure for one too many.
#[derive(Debug, Default)]
pub struct Measured {
    policy: String,
    state: String,
    pub refusal: Option<Failure>,
}

impl Measured {
    /// Adds `RateLimit-Policy` and `RateLimit` (draft-ietf-httpapi-ratelimit-headers-10 §3, §4).
    pub fn write(&self, headers: &mut HeaderMap) {
        for (name, text) in [(RATELIMIT_POLICY, &self.policy), (RATELIMIT, &self.state)] {
            if text.is_empty() {
                continue;
            }
            if let Ok(value) = HeaderValue::from_str(text) {
                headers.insert(name, value);
            }
        }
    }
}

impl Measured {
    pub(super) fn add(&mut self, limit: &RateLimit, said: Said, now: Timestamp) {
        let RateLimit {
            by,
            requests,
            window,
            ..
        } = *limit;
        let (comma, name) = (if self.policy.is_empty() { "" } else { ", " }, by.as_str());
        let seconds = |duration: Duration| duration.as_millis().div_ceil(1000);
        let _ = write!(
            self.policy,
            "{comma}\"{name}\";q={requests};w={}",
            seconds(window)
        );
        let wait = if said.is_allowed {
            said.reset
        } else {
            said.retry
        };
        let _ = write!(
            self.state,
            "{comma}\"{name}\";r={};t={}",
            said.left,
            seconds(wait)
        );
        if said.is_allowed {
            return;
        }
        let message = format!(
            "more than {requests} requests within {} s by this {}: try again in {} s",
            seconds(window),
            match by {
                LimitBy::Address => "address",
                LimitBy::Key => "API key",
            },
            seconds(said.retry).max(1)
        );
        let retry = Duration::from_secs(seconds(said.retry).max(1) as u64);
        let mut failure = Failure::new(FailureKind::RateLimited, message).retry_after(retry);
        failure.details = Some(json!({
            "key": name,
            "maxRequests": requests,
            "windowMs": window.as_millis() as u64,
            "resetAt": rfc3339(now.plus(said.retry)),
            "retryAfter": retry.as_secs(),
        }));
        self.refusal = Some(failure);
    }
}
