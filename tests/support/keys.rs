//! An origin that knows keys, as the deployed one does: good ones, revoked ones, and none while its
//! key table is down.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};

use super::{Client, Fixture, Origin, Received, Reply, Seen, reply};

#[derive(Debug, Default)]
struct State {
    good: HashSet<String>,
    /// Refuses everybody.
    is_down: bool,
    /// Answers 500 to everybody.
    is_failing: bool,
}

/// What the origin knows of keys; the test changes it while it runs.
#[derive(Clone, Debug, Default)]
pub struct Keys(Arc<Mutex<State>>);

impl Keys {
    pub fn of(good: &[&str]) -> Self {
        let keys = Self::default();
        good.iter().for_each(|key| keys.add(key));
        keys
    }

    pub fn add(&self, key: &str) {
        self.0.lock().unwrap().good.insert(key.to_owned());
    }

    pub fn revoke(&self, key: &str) {
        self.0.lock().unwrap().good.remove(key);
    }

    pub fn go_down(&self, is_down: bool) {
        self.0.lock().unwrap().is_down = is_down;
    }

    pub fn fail(&self, is_failing: bool) {
        self.0.lock().unwrap().is_failing = is_failing;
    }

    /// Whether the origin lets a request in: by `Authorization` alone, with or without `Bearer `.
    fn lets_in(&self, seen: &Seen) -> bool {
        let state = self.0.lock().unwrap();
        let given = seen.header("authorization").unwrap_or_default();
        let key = given.strip_prefix("Bearer ").unwrap_or(given);
        !state.is_down && state.good.contains(key)
    }

    /// `then` for good keys, 401 for others.
    pub fn check(&self, seen: &Seen, then: impl FnOnce() -> Reply) -> Reply {
        if self.0.lock().unwrap().is_failing {
            return reply(500, "{\"error\":\"Failed\"}", &[]);
        }
        if seen.method == "OPTIONS" {
            return reply(204, "", &[("access-control-allow-origin", "*")]);
        }
        if self.lets_in(seen) {
            return then();
        }
        let platform = [("cache-control", "public, max-age=0, must-revalidate")];
        reply(
            401,
            "{\"error\":\"Invalid or inactive API key\"}",
            &platform,
        )
    }
}

/// A route for everything that is shared among verified keys.
pub fn verified(keys: &str) -> String {
    verified_by("", keys)
}

/// The same, with keys of `[auth]`. Nothing is proved, so that questions can be counted.
pub fn verified_by(auth: &str, keys: &str) -> String {
    let route = super::route(&format!(
        "share = \"verified\"\nforce_ttl = \"60s\"\n{keys}"
    ));
    format!("[auth]\n{UNPROVED}{auth}\n{route}")
}

/// Keys of `[auth]` by which one key's answer is another one's without a proof.
pub const UNPROVED: &str = "on_difference = \"off\"\ncontrol = \"off\"\n";

/// A sidecar before an origin that answers `{"n":number}` to keys that it knows.
pub async fn guarded(extra: &str, keys: &Keys) -> Fixture {
    let known = keys.clone();
    let origin = Origin::start(move |seen| {
        known.check(seen, || {
            reply(200, format!("{{\"n\":{}}}", seen.number), &[])
        })
    });
    Fixture::in_front_of(origin.await, extra)
}

/// Whether what `explain` told is shared by all good keys.
pub fn is_shared(told: &serde_json::Value) -> bool {
    told["share"]["in_effect"] == "verified"
}

impl Fixture {
    pub async fn get_as(&self, key: &str, target: &str) -> Received {
        self.send_as(key, "GET", target, &[]).await
    }

    /// An order to the admin port.
    pub async fn order(&self, path: &str, order: &serde_json::Value) -> Received {
        Client::order(self.sidecar().admin_address, path, &order.to_string()).await
    }

    /// What `explain` tells of a target.
    pub async fn explained(&self, target: &str) -> serde_json::Value {
        // What follows `&header=` is a field of the request.
        let (target, field) = target.split_once("&header=").unwrap_or((target, ""));
        let field = if field.is_empty() {
            String::new()
        } else {
            format!("&header={field}")
        };
        let url = format!("http://api.example{target}").replace('&', "%26");
        self.admin(&format!("/explain?url={url}{field}"))
            .await
            .json()
    }

    /// Waits until `explain` tells of a target what is wanted.
    pub async fn until(
        &self,
        target: &str,
        is_right: impl Fn(&serde_json::Value) -> bool,
    ) -> serde_json::Value {
        let waiting = async {
            loop {
                let told = self.explained(target).await;
                if is_right(&told) {
                    return told;
                }
            }
        };
        match tokio::time::timeout(super::PATIENCE, waiting).await {
            Ok(told) => told,
            Err(_) => panic!("{target}: {}", self.explained(target).await),
        }
    }

    /// Waits until all good keys share what is asked for.
    pub async fn shared(&self, target: &str) -> serde_json::Value {
        self.until(target, is_shared).await
    }

    pub async fn send_as(
        &self,
        key: &str,
        method: &str,
        target: &str,
        fields: &[(&str, &str)],
    ) -> Received {
        let authorization = format!("Bearer {key}");
        let own = [("authorization", authorization.as_str())];
        let all = [&own, fields].concat();
        self.connect().await.ask(method, target, &all).await
    }
}
