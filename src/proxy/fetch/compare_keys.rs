//! Whether answers differ by key where they are shared: of some misses the same is asked again, with
//! another key that is good, and where the answers differ for good the route is not shared any more.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{ACCEPT_ENCODING, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, Request, StatusCode};
use http_body_util::{BodyExt, Limited};
use serde_json::{Map, Value};
use tracing::{debug, error, warn};

use crate::config::OnDifference;
use crate::guard::Standing;
use crate::metrics::guard::Compared;
use crate::policy::Mode;
use crate::proxy::keyed_request::LetIn;
use crate::proxy::plan::{Plan, PlannedRoute};
use crate::proxy::state::RememberedKey;
use crate::upstream::empty;

/// Larger answers are not compared.
const LARGEST: usize = 1 << 20;

/// A miss by this caller was answered well. One of some is asked again with another key.
pub fn compare_sampled(
    plan: &Arc<Plan>,
    route: &Arc<PlannedRoute>,
    let_in: LetIn,
    request: &Request<()>,
) {
    let settings = &plan.config.auth;
    let Some(sharing) = &route.sharing else {
        return;
    };
    if settings.on_difference == OnDifference::Off {
        return;
    }
    let own = credential_fields(plan, request.headers());
    let Some(other) = sharing.observed.another_key(let_in.caller, &own) else {
        return;
    };
    if !sharing.observed.is_sampled(settings.compare_every) {
        return;
    }
    let (plan, route, request) = (Arc::clone(plan), Arc::clone(route), copied(request));
    tokio::spawn(async move {
        let compared = compare(&plan, &request, &own, &other).await;
        plan.state.metrics.guard.compared(compared);
        let path = request.uri().path();
        match compared {
            Compared::Same => {}
            Compared::Differs => found_to_differ(&plan, &route, path),
            Compared::Unclear => {
                debug!(
                    path,
                    "answers to two keys could not be compared: one failed, or nothing in them stays the same"
                );
            }
        }
        if let Some(sharing) = &route.sharing {
            sharing.observed.has_compared();
        }
    });
}

/// The fields of a request that say who asks.
fn credential_fields(plan: &Plan, headers: &HeaderMap) -> HeaderMap {
    let cache = &plan.config.cache;
    let is_credential = |name: &http::HeaderName| {
        let in_cookies = *name == http::header::COOKIE && !cache.credential_cookies.is_empty();
        cache.credential_fields.contains(name) || in_cookies
    };
    let own = headers.iter().filter(|(name, _)| is_credential(name));
    own.map(|(name, value)| (name.clone(), value.clone()))
        .collect()
}

/// Asks with the other key and with the own in turn, each once more where the two differ: what
/// one key is answered in two ways differs by time, and is left out.
async fn compare(
    plan: &Plan,
    request: &Request<()>,
    own: &HeaderMap,
    other: &RememberedKey,
) -> Compared {
    let answers = async {
        let theirs = answer_to(plan, request, &other.credential).await?;
        let ours = answer_to(plan, request, own).await?;
        if theirs == ours {
            return Some(Compared::Same);
        }
        let theirs = [theirs, answer_to(plan, request, &other.credential).await?];
        let ours = [ours, answer_to(plan, request, own).await?];
        let guard = plan.guard.as_ref()?;
        // One that was revoked meanwhile says nothing of the others.
        let is_good = guard.standing(&other.caller) == Standing::Good;
        is_good.then(|| judge(&ours, &theirs))
    };
    answers.await.unwrap_or(Compared::Unclear)
}

/// What the origin answers to a key, without what differs from answer to answer; `None` where
/// that is no answer for all.
async fn answer_to(plan: &Plan, request: &Request<()>, credential: &HeaderMap) -> Option<Answer> {
    let mut request = copied(request);
    let headers = request.headers_mut();
    for name in credential_fields(plan, headers).keys() {
        headers.remove(name);
    }
    headers.extend(credential.clone());
    headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    let origin = &plan.state.origin;
    let answer = origin.answer(request.map(|()| empty())).await.ok()?;
    match answer.status() {
        status if status.is_success() => {}
        // About the key, or about what it may see.
        status @ (StatusCode::FORBIDDEN | StatusCode::NOT_FOUND | StatusCode::GONE) => {
            return Some(Answer::Status(status));
        }
        _ => return None,
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
        Some(json) => Answer::Json(without(json, &plan.config.auth.volatile)),
        None => Answer::Bytes(body),
    })
}

/// A route whose answers differ by key is not shared any more, on any instance.
fn found_to_differ(plan: &Plan, route: &PlannedRoute, path: &str) {
    let pattern = route.series.path();
    if plan.config.auth.on_difference == OnDifference::Warn {
        warn!(
            route = pattern,
            path,
            "answers differ by key on a route with share = \"verified\": set share = \"per-key\", or name what differs by itself in auth.volatile"
        );
        return;
    }
    let state = &plan.state;
    let Some(sharing) = &route.sharing else {
        return;
    };
    if let Some(purge) = sharing.demotion(state.memory.purges()) {
        sharing.observed.set_why_demoted(state.clock.now(), path);
        state.purge(purge, Mode::Hard);
        route.series.demoted();
        error!(
            route = pattern,
            path,
            "answers differ by key on a route with share = \"verified\": it is demoted to per-key now, on all instances; set share = \"per-key\", or name what differs by itself in auth.volatile"
        );
    }
}

#[derive(Debug, PartialEq)]
enum Answer {
    Json(Value),
    Bytes(Bytes),
    Status(StatusCode),
}

/// Two answers to each of two keys.
fn judge(ours: &[Answer; 2], theirs: &[Answer; 2]) -> Compared {
    match (ours, theirs) {
        ([Answer::Json(one), Answer::Json(other)], [Answer::Json(their), Answer::Json(again)]) => {
            same_but([one, other], [their, again])
        }
        ([one, other], [their, again]) if one == other && their == again => {
            if one == their {
                Compared::Same
            } else {
                Compared::Differs
            }
        }
        _ => Compared::Unclear,
    }
}

/// Compares by the parts that are the same in both answers to one key.
fn same_but(ours: [&Value; 2], theirs: [&Value; 2]) -> Compared {
    if ours[0] == ours[1] && theirs[0] == theirs[1] {
        return if ours[0] == theirs[0] {
            Compared::Same
        } else {
            Compared::Differs
        };
    }
    let parts: Vec<Compared> = match (ours, theirs) {
        (
            [Value::Object(one), Value::Object(other)],
            [Value::Object(their), Value::Object(again)],
        ) => {
            let mut names: Vec<&String> = [one, other, their, again]
                .iter()
                .flat_map(|members| members.keys())
                .collect();
            names.sort_unstable();
            names.dedup();
            let at = |members: &'_ Map<String, Value>, name: &String| members.get(name).cloned();
            names
                .into_iter()
                .map(|name| {
                    let part = |members| at(members, name).unwrap_or(Value::Null);
                    same_but([&part(one), &part(other)], [&part(their), &part(again)])
                })
                .collect()
        }
        ([Value::Array(one), Value::Array(other)], [Value::Array(their), Value::Array(again)])
            if [other, their, again]
                .iter()
                .all(|items| items.len() == one.len()) =>
        {
            (0..one.len())
                .map(|at| same_but([&one[at], &other[at]], [&their[at], &again[at]]))
                .collect()
        }
        _ => Vec::new(),
    };
    if parts.contains(&Compared::Differs) {
        Compared::Differs
    } else if parts.contains(&Compared::Same) {
        Compared::Same
    } else {
        Compared::Unclear
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_differs_by_time_is_told_from_what_differs_by_key() {
        let answer = |project: &str, seen: u64| {
            Answer::Json(json!({"data": [{"project": project, "lastSeen": seen}], "count": 1}))
        };
        let judged = |ours: [Answer; 2], theirs: [Answer; 2]| judge(&ours, &theirs);
        let same = [answer("a", 3), answer("a", 4)];
        assert_eq!(
            judged([answer("a", 1), answer("a", 2)], same),
            Compared::Same
        );
        let other = [answer("b", 3), answer("b", 4)];
        assert_eq!(
            judged([answer("a", 1), answer("a", 2)], other),
            Compared::Differs
        );
        let bytes = |text: &'static str| Answer::Bytes(Bytes::from_static(text.as_bytes()));
        let never = [bytes("3"), bytes("4")];
        assert_eq!(judged([bytes("1"), bytes("2")], never), Compared::Unclear);
        let hidden = || Answer::Status(StatusCode::NOT_FOUND);
        let found = [answer("a", 1), answer("a", 1)];
        assert_eq!(judged(found, [hidden(), hidden()]), Compared::Differs);
        // Changed between two questions: nothing about keys.
        let changed = [Answer::Json(json!({"n": 1})), Answer::Json(json!({"n": 2}))];
        let after = [Answer::Json(json!({"n": 1})), Answer::Json(json!({"n": 2}))];
        assert_eq!(judged(changed, after), Compared::Unclear);
    }

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
