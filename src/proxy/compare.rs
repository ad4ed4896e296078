//! Whether answers differ by key where they are shared: of some misses the same is asked again, with
//! another key that is good, and where the answers differ for good the route is not shared any more.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{ACCEPT_ENCODING, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, Request};
use http_body_util::{BodyExt, Limited};
use serde_json::Value;
use tracing::{error, warn};

use crate::config::OnDifference;
use crate::guard::Caller;
use crate::policy::Mode;
use crate::upstream::empty;

use super::Proxy;
use super::guarded::LetIn;

/// Larger answers are not compared.
const LARGEST: usize = 1 << 20;

/// How two answers compare.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Compared {
    Same,
    /// By key, and not by time.
    Differs,
    /// One failed, or they change from answer to answer.
    Unclear,
}

impl Compared {
    fn as_str(self) -> &'static str {
        match self {
            Self::Same => "same",
            Self::Differs => "differs",
            Self::Unclear => "unclear",
        }
    }
}

impl Proxy {
    /// A miss by this caller was answered well. One of some is asked again with another key.
    pub(super) fn sample(self: &Arc<Self>, let_in: LetIn, request: &Request<()>) {
        let settings = &self.config.auth;
        if settings.on_difference == OnDifference::Off {
            return;
        }
        let own = self.carried(request.headers());
        let Some(other) = self.sharing.another(let_in.route, let_in.caller, &own) else {
            return;
        };
        if !self
            .sharing
            .is_sampled(let_in.route, settings.compare_every)
        {
            return;
        }
        let (proxy, request) = (Arc::clone(self), copied(request));
        tokio::spawn(async move {
            let compared = proxy.compare(&request, &own, &other).await;
            proxy.metrics.guard.compared(compared.as_str());
            if compared == Compared::Differs {
                proxy.differs(let_in.route, request.uri().path());
            }
            proxy.sharing.compared(let_in.route);
        });
    }

    /// The fields of a request that say who asks.
    fn carried(&self, headers: &HeaderMap) -> HeaderMap {
        let cache = &self.config.cache;
        let is_credential = |name: &http::HeaderName| {
            let in_cookies = *name == http::header::COOKIE && !cache.credential_cookies.is_empty();
            cache.credential_fields.contains(name) || in_cookies
        };
        let own = headers.iter().filter(|(name, _)| is_credential(name));
        own.map(|(name, value)| (name.clone(), value.clone()))
            .collect()
    }

    /// Asks with the other key, and with the own; where the answers differ once more with the
    /// other, for the data may have changed between the two.
    async fn compare(&self, request: &Request<()>, own: &HeaderMap, other: &HeaderMap) -> Compared {
        let answers = async {
            let theirs = self.answer_to(request, other).await?;
            let ours = self.answer_to(request, own).await?;
            if theirs == ours {
                return Some(Compared::Same);
            }
            let again = self.answer_to(request, other).await?;
            Some(match again {
                again if again == ours => Compared::Same,
                again if again == theirs => Compared::Differs,
                _ => Compared::Unclear,
            })
        };
        answers.await.unwrap_or(Compared::Unclear)
    }

    /// What the origin answers to a key, without what differs from answer to answer; `None` where
    /// that is no answer for all.
    async fn answer_to(&self, request: &Request<()>, credential: &HeaderMap) -> Option<Answer> {
        let mut request = copied(request);
        let headers = request.headers_mut();
        for name in self.carried(headers).keys() {
            headers.remove(name);
        }
        headers.extend(credential.clone());
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        let answer = self.origin.answer(request.map(|()| empty())).await.ok()?;
        if !answer.status().is_success() {
            return None;
        }
        let is_json = answer.headers().get(CONTENT_TYPE).is_some_and(|value| {
            let text = value.to_str().unwrap_or_default().to_ascii_lowercase();
            text.contains("json")
        });
        let body = Limited::new(answer.into_body(), LARGEST).collect().await;
        let body = body.ok()?.to_bytes();
        let json = is_json
            .then(|| serde_json::from_slice(&body).ok())
            .flatten();
        Some(match json {
            Some(json) => Answer::Json(without(json, &self.config.auth.volatile)),
            None => Answer::Bytes(body),
        })
    }

    fn differs(self: &Arc<Self>, index: usize, path: &str) {
        let routes = self.config.routes.list();
        let route = routes.get(index).map_or("", |route| &route.path);
        if self.config.auth.on_difference == OnDifference::Warn {
            warn!(
                route,
                path,
                "answers differ by key on a route with share = \"verified\": set share = \"per-key\", or name what differs by itself in auth.volatile"
            );
            return;
        }
        let (purges, now) = (self.memory.purges(), self.clock.now());
        if let Some(purge) = self.sharing.demote(index, path, purges, now) {
            self.purge(purge, Mode::Hard);
            self.metrics.guard.demoted(route);
            error!(
                route,
                path,
                "answers differ by key on a route with share = \"verified\": it is demoted to per-key now, on all instances; set share = \"per-key\", or name what differs by itself in auth.volatile"
            );
        }
    }
}

#[derive(Debug, PartialEq)]
enum Answer {
    Json(Value),
    Bytes(Bytes),
}

fn copied(request: &Request<()>) -> Request<()> {
    let mut copy = Request::new(());
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.headers_mut() = request.headers().clone();
    copy
}

/// A value without the members of these names, however deep.
fn without(value: Value, names: &[String]) -> Value {
    match value {
        Value::Object(members) => {
            let stays = members
                .into_iter()
                .filter(|(name, _)| !names.contains(name));
            Value::Object(
                stays
                    .map(|(name, value)| (name, without(value, names)))
                    .collect(),
            )
        }
        Value::Array(items) => items.into_iter().map(|item| without(item, names)).collect(),
        other => other,
    }
}

/// A caller's credential, in memory only, for as long as the next one takes its place.
#[derive(Clone, Debug)]
pub(super) struct Lent {
    pub caller: Caller,
    pub credential: HeaderMap,
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_volatile_is_left_out_however_deep() {
        let value = json!({"a": 1, "timestamp": 2, "list": [{"timestamp": 3, "b": 4}, 5]});
        let names = ["timestamp".to_owned()];
        assert_eq!(
            without(value, &names),
            json!({"a": 1, "list": [{"b": 4}, 5]})
        );
    }
}
