//! Why a request would be answered as it would: what every step would say, without taking any.

use std::sync::Arc;

use http::request;
use serde_json::{Value, json};

use crate::clock::Timestamp;
use crate::guard::Standing;
use crate::guard::credential::Malformed;
use crate::policy::key::{KeyBytes, normalise_path};
use crate::policy::{self, Decision, Reason};
use crate::store::{Entry, Found};

use super::asked::view;
use super::guarded::{self, Admission};
use super::{Client, Proxy, received};

impl Proxy {
    /// What a request would meet: its route, how that is shared, what is known of its key, what is
    /// stored for it, and what would come of it. Nothing is asked, counted or changed.
    pub fn explain(&self, parts: &request::Parts, client: Client) -> Value {
        let host = match received::check(parts, &self.config.limits) {
            Ok(host) => host,
            Err(failure) => {
                return json!({
                    "result": failure.kind.status().as_u16(),
                    "reason": Reason::Refused.as_str(),
                    "why": failure.message,
                });
            }
        };
        let path = normalise_path(parts.uri.path());
        let bare = received::without_port(host.as_deref().unwrap_or_default());
        let Some((index, route)) = self.routed(&parts.method, bare, &path) else {
            return json!({
                "route": null,
                "result": "BYPASS",
                "reason": Reason::NoRoute.as_str(),
                "why": "no [[route]] takes it: it is proxied and never stored",
            });
        };
        let configured = self
            .config
            .routes
            .list()
            .get(index)
            .map_or(route.options.share, |route| route.options.share);
        let mut told = json!({
            "route": {"path": route.path, "line": route.line},
            "share": {
                "configured": configured.as_str(),
                "in_effect": route.options.share.as_str(),
                "demoted": self.sharing.why_demoted(index, self.memory.purges()),
            },
        });
        let mut key = KeyBytes::new();
        self.write_key(&mut key, parts, host.as_deref(), &path, route, client);
        if let Some(guard) = &self.guard
            && guarded::is_guarded(parts, route)
        {
            let credential = guard.credentials.of(&parts.headers);
            told["key"] = match &credential {
                Ok(None) => json!("none: it goes to the origin, and is never stored"),
                Err(Malformed::More) => json!("more than one: refused"),
                Err(Malformed::Form) => json!("malformed: refused"),
                Ok(Some(credential)) => {
                    let caller = guard.caller(*credential, &guarded::scope(route, &key));
                    match guard.standing(&caller) {
                        Standing::Good => json!("good"),
                        Standing::Bad => json!("bad or revoked: refused"),
                        Standing::Unknown { known: true } => json!("was good: asked about again"),
                        Standing::Unknown { known: false } => json!("unknown: asked about"),
                    }
                }
            };
            // Known already, so that nothing is counted for it.
            let standing = credential.ok().flatten().map(|credential| {
                let caller = guard.caller(credential, &guarded::scope(route, &key));
                guard.standing(&caller)
            });
            if matches!(standing, Some(Standing::Unknown { .. })) && guard.has_others_to_ask() {
                told["result"] = json!("MISS");
                told["reason"] = json!(Reason::KeyUnverified.as_str());
                return told;
            }
            let admission = self.admit(guard, &parts.headers, (index, route), &key, standing);
            let (result, reason) = match admission {
                Admission::In(let_in) if !let_in.verifies => (None, Reason::Fresh),
                Admission::In(_) | Admission::Ask(_) => {
                    (Some(json!("MISS")), Reason::KeyUnverified)
                }
                Admission::Anonymous => (Some(json!("BYPASS")), Reason::Credential),
                Admission::Refused(failure, reason) => {
                    (Some(json!(failure.kind.status().as_u16())), reason)
                }
            };
            if let Some(result) = result {
                told["result"] = result;
                told["reason"] = json!(reason.as_str());
                return told;
            }
        }
        if let Some(reason) = policy::bypass(view(parts, false), &route.options) {
            told["result"] = json!("BYPASS");
            told["reason"] = json!(reason.as_str());
            return told;
        }
        let now = self.clock.now();
        let entry = match self.memory.get(&mut key, &parts.headers, now) {
            Found::Entry(entry) => Some(entry),
            Found::NotShared(reason) => {
                told["stored"] = json!(format!(
                    "nothing: not storable a moment ago ({})",
                    reason.as_str()
                ));
                None
            }
            Found::NoVariant => {
                told["stored"] = json!("other variants (Vary), not this one");
                None
            }
            Found::Nothing => {
                told["stored"] = Value::Null;
                None
            }
        };
        if let Some(entry) = &entry {
            told["stored"] = described(entry, now);
        }
        let stored = entry.as_deref().map(Entry::view);
        let (result, reason) = match policy::decide(view(parts, false), stored, &route.options, now)
        {
            Decision::Hit { .. } => ("HIT", Reason::Fresh),
            Decision::StaleHit { reason, .. } => ("STALE", reason),
            Decision::Miss { reason, .. } => ("MISS", reason),
        };
        told["result"] = json!(result);
        told["reason"] = json!(reason.as_str());
        told
    }
}

fn described(entry: &Arc<Entry>, now: Timestamp) -> Value {
    let stored = entry.view();
    json!({
        "status": entry.head.status.as_u16(),
        "age": stored.age(now).as_secs(),
        "ttl": stored.ttl(now),
        "bytes": entry.body().len(),
    })
}
