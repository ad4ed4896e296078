//! Why a request would be answered as it would: it takes the same steps as one that is answered, up
//! to the point where something would be sent, and nothing is counted, asked or changed.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, Method, Request};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::clock::Timestamp;
use crate::config::units;
use crate::error::rfc3339;
use crate::guard::credential::Malformed;
use crate::guard::units::{Agreement, Control, Unit};
use crate::guard::{Caller, Guard, Standing};
use crate::metrics::CacheResult;
use crate::policy::key::Place;
use crate::policy::{Reason, Share};
use crate::proxy::admission::keys::{Admission, Admitted, admit, caller};
use crate::proxy::admission::limits::who;
use crate::proxy::admission::{Purpose, Refusal};
use crate::proxy::client_request::ClientRequest;
use crate::proxy::plan::{Plan, PlannedRoute};
use crate::proxy::request_key::{RequestKey, units};
use crate::proxy::wire::Peer;
use crate::proxy::wire::upload::client_body;
use crate::store::{Entry, Found, Judgement};

use super::advice;
use super::course::Miss;
use super::delivery::{PREFLIGHT, preflighted};
use super::look_up::LookedUp;
use super::received::receive;
use super::routed::{NOTHING_STORED, Routed};

/// What a request would meet: its route, how that is shared, what is known of its key, what is
/// stored for it, what would come of it, in a sentence too, and what to change so that it is
/// answered from the cache.
pub async fn explain<B>(plan: &Plan, request: Request<B>, peer: &Peer) -> Value
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: std::fmt::Display,
{
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let headers = request.headers().clone();
    let mut missed = None;
    let mut told = steps(plan, request, peer, &mut missed);
    if let Some(key) = missed {
        told["redis"] = told_second(plan, &key, &headers).await;
    }
    let result = told["result"].as_str().unwrap_or_default();
    let code = told["reason"].as_str().unwrap_or_default();
    let sentence = advice::sentence(method.as_str(), &path, result, code);
    // What the last answer could not be shared for is the cause.
    let cause = told["not_stored"].as_str().unwrap_or(code);
    let route = &told["route"];
    let route = route["path"].as_str().zip(route["line"].as_u64());
    let share = told["share"]["configured"].as_str();
    let change = match other_methods(plan, &method, &path) {
        Some(others) if code == Reason::NoRoute.as_str() => Some(others),
        _ => advice::remedy(route, share, &path, cause),
    };
    if plan.state.readings().breaker_is_open() {
        told["upstream"] = json!(
            "a breaker is open: it is asked once a second, and other requests get what is stale, or 503"
        );
    }
    told["sentence"] = json!(with_provenance(sentence, &told));
    told["change"] = json!(change);
    told
}

/// What the steps of a request come to; `missed` becomes the key under which the second tier would
/// be asked next.
fn steps<B>(plan: &Plan, request: Request<B>, peer: &Peer, missed: &mut Option<RequestKey>) -> Value
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: std::fmt::Display,
{
    let client = plan.client(peer);
    let (mut parts, body) = request.into_parts();
    let received = match receive(plan, &mut parts, peer, client) {
        Ok(received) => received,
        Err(refusal) => return told_refusal(json!({}), &refusal),
    };
    let upload = client_body(body, &plan.config.limits);
    let mut routed = Routed::of(plan, parts, received, upload, client, Instant::now());
    let mut told = match routed.route() {
        None => json!({
            "route": null,
            "why": "no [[route]] takes it: it is proxied and never stored",
        }),
        Some(route) => told_route(plan, routed.request(), route),
    };
    if let Some((route, _)) = preflighted(plan, routed.request()) {
        told["route"] = json!({"path": route.rule.path, "line": route.rule.line});
        return told_words(told, PREFLIGHT);
    }
    if plan.limits.concern(&routed.request().parts.method) {
        match who(plan, routed.request(), routed.route()) {
            Err(refusal) => return told_refusal(told, &refusal),
            Ok(who) => {
                if let Some(failure) = plan.limits.foresee(who).refusal {
                    let reason = Reason::RateLimited;
                    return told_refusal(told, &Refusal { failure, reason });
                }
            }
        }
    }
    let (request, route) = (routed.request(), routed.route());
    let mut key = RequestKey::default();
    let admitted = match admit(plan, request, route, &mut key, None, Purpose::Explain) {
        Admission::Admitted(admitted) => admitted,
        Admission::Refused(refusal) => return told_refusal(told, &refusal),
        // The fleet, or the source of verdicts, would be asked before anything is looked up.
        Admission::AskAbout(_) => {
            return told_words(told, (CacheResult::Miss, Reason::KeyUnverified));
        }
    };
    if is_own_without_key(&routed) {
        told["with_key"] = json!(OF_ITS_OWN);
    } else if admitted.is_anonymous {
        told["with_key"] = json!(told_with_key(plan, &mut routed, &told));
    }
    let mut keyed = match routed.key(plan, admitted, &mut key) {
        Ok(keyed) => keyed,
        Err(reason) => return told_words(told, routed.bypass_words(reason)),
    };
    let now = plan.state.clock.now();
    told["stored_under"] = told_key(keyed.key);
    match keyed.look_up(plan) {
        LookedUp::Hit(hit) | LookedUp::StaleHit(hit) => {
            told["stored"] = told_entry(plan, &hit.entry, &keyed.key.bytes, now);
            told_words(told, hit.words())
        }
        LookedUp::Miss(found) => {
            let (route, let_in) = (Arc::clone(keyed.route), keyed.let_in);
            let request = routed.into_keyed_request(plan, let_in, route, key);
            let miss = Miss::of(plan, request, found);
            told_miss(plan, &mut told, &miss);
            let words = miss.words();
            *missed = Some(miss.keyed.key);
            told_words(told, words)
        }
        LookedUp::NothingStored => {
            told["stored"] = Value::Null;
            told["purged"] = told_gone(plan, keyed.key);
            told_words(told, NOTHING_STORED)
        }
    }
}

const OF_ITS_OWN: &str = "each key gets answers of its own here (share = \"per-key\", or not \
    proved yet to be the same for all): a MISS the first time, a HIT from then on";

/// Whether each key has its own answers there, and the request has none.
fn is_own_without_key(routed: &Routed<'_>) -> bool {
    let fields = &routed.request().parts.headers;
    routed.route().is_some_and(|route| {
        let options = route.options();
        let mut credentials = options.credential_fields.iter();
        options.share == Share::PerKey && !credentials.any(|name| fields.contains_key(name))
    })
}

/// What a request without a key would get if it had a good one, on a route where keys are verified.
fn told_with_key(plan: &Plan, routed: &mut Routed<'_>, told: &Value) -> String {
    if told["share"]["in_effect"] == Share::PerKey.as_str() {
        return OF_ITS_OWN.to_owned();
    }
    let mut key = RequestKey::default();
    let keyed = routed.key(plan, Admitted::default(), &mut key);
    let (result, reason) = match keyed.map(|mut keyed| keyed.look_up(plan)) {
        Ok(LookedUp::Hit(hit) | LookedUp::StaleHit(hit)) => hit.words(),
        Ok(LookedUp::Miss(_)) => (CacheResult::Miss, Reason::Cold),
        Ok(LookedUp::NothingStored) => NOTHING_STORED,
        Err(reason) => routed.bypass_words(reason),
    };
    let then = match result {
        CacheResult::Miss => ", and then a HIT for all good keys",
        _ => "",
    };
    format!(
        "a {} ({}){then}; pass one by -H 'Authorization: @key.txt'",
        result.as_field(),
        reason.as_str()
    )
}

/// What is stored where nothing of that answers, and why nothing is.
fn told_miss(plan: &Plan, told: &mut Value, miss: &Miss) {
    let key = &miss.keyed.key;
    told["stored"] = match &miss.found {
        Found::Entry(entry) => {
            let now = plan.state.clock.now();
            told_entry(plan, entry, &key.bytes, now)
        }
        Found::NotShared(reason) => {
            told["not_stored"] = json!(reason.as_str());
            let code = reason.as_str();
            json!(format!("nothing: not storable a moment ago ({code})"))
        }
        Found::NoVariant => json!("other variants (Vary), not this one"),
        Found::Nothing => Value::Null,
    };
    if matches!(miss.found, Found::Nothing) {
        // The mark holds for some seconds; why it was made is of interest for longer.
        let reason = plan.state.memory.last_not_shared(&key.bytes);
        if let Some(reason) = reason {
            told["not_stored"] = json!(reason.as_str());
        }
    }
    if matches!(miss.found, Found::NoVariant | Found::Nothing) {
        told["purged"] = told_gone(plan, key);
    }
}

/// What takes requests for this path by other methods, where nothing takes this one.
fn other_methods(plan: &Plan, method: &Method, path: &str) -> Option<String> {
    let routes = plan.config.routes.list().iter();
    let of_path = routes.filter(|route| {
        let mut methods = route.methods.iter();
        methods.any(|one| {
            plan.config
                .routes
                .fitting(one, path)
                .any(|fits| fits.line == route.line)
        })
    });
    let taken: Vec<String> = of_path
        .map(|route| {
            let methods: Vec<&str> = route.methods.iter().map(Method::as_str).collect();
            format!(
                "the route {} at line {} takes {}",
                route.path,
                route.line,
                methods.join(", ")
            )
        })
        .collect();
    let is_small = method
        .as_str()
        .bytes()
        .any(|byte| byte.is_ascii_lowercase());
    let spelled = if is_small {
        "; methods are written in capitals"
    } else {
        ""
    };
    let method = method.as_str().to_uppercase();
    (!taken.is_empty()).then(|| {
        format!(
            "nothing for the cache, as only answers to GET are stored: {}{spelled}; where a write is \
                to change groups, add a [[route]] with methods = [{method:?}]",
            taken.join(", ")
        )
    })
}

fn told_words(mut told: Value, (result, reason): (CacheResult, Reason)) -> Value {
    debug_assert!(
        reason.is_of_look_up() || reason == Reason::Preflight,
        "{reason:?} is known before anything is sent"
    );
    told["result"] = json!(result.as_field());
    told["reason"] = json!(reason.as_str());
    told
}

fn told_refusal(mut told: Value, refusal: &Refusal) -> Value {
    told["status"] = json!(refusal.failure.kind.status().as_u16());
    told["why"] = json!(refusal.failure.message);
    told_words(told, (CacheResult::Bypass, refusal.reason))
}

fn told_route(plan: &Plan, request: &ClientRequest, route: &PlannedRoute) -> Value {
    let purges = plan.state.memory.purges();
    let configured = plan.configured(route);
    let demoted = configured.and_then(|route| route.sharing.as_ref()?.why_demoted(purges));
    let share = configured.map_or(route.options().share, |route| route.options().share);
    let mut told = json!({
        "route": {
            "path": route.rule.path,
            "host": route.rule.host,
            "line": route.rule.line,
            "why": why_it_won(plan, request, route),
        },
        "share": {
            "configured": share.as_str(),
            "in_effect": route.options().share.as_str(),
            "demoted": demoted,
        },
    });
    if let Some(guard) = &plan.guard
        && request.is_guarded_on(route)
    {
        let mut key = RequestKey::default();
        let caller = caller(plan, guard, request, route, &mut key);
        told["key"] = json!(key_told(&caller));
        if let Some(sharing) = &route.sharing
            && guard.needs_proof()
        {
            key.write(plan, request, route);
            let [unit, agreeing] = units(sharing, route, &key);
            let known = |written: &[u8]| guard.units().get(written);
            let (unit, agreeing) = (known(&unit), known(&agreeing));
            let group = guard.group(unit.as_deref(), agreeing.as_deref());
            if key.is_apart() || group.is_none() {
                told["share"]["in_effect"] = json!(Share::PerKey.as_str());
            }
            let now = plan.state.clock.now();
            told["proof"] = proof_told(guard, [unit.as_deref(), agreeing.as_deref()], now);
        }
    }
    told
}

/// What is proved of what is asked for, and what is missing before one key gets another one's
/// answer.
fn proof_told(guard: &Guard, [unit, agreeing]: [Option<&Unit>; 2], now: Timestamp) -> Value {
    let control = match unit.and_then(|unit| unit.control(now)) {
        _ if guard.control_every().is_none() => "not needed",
        Some(Control::Held) => "held: a random key and none are refused",
        Some(Control::Failed) => "failed: a random key, or none, is let in",
        Some(Control::Unanswered | Control::Unsent) => "the origin gave no answer about it",
        None => "not taken yet",
    };
    let agreement = match agreeing.and_then(|unit| unit.agreement(now)) {
        _ if !guard.needs_agreement() => "not needed",
        Some(Agreement::Agreed) => "two keys' answers agreed",
        Some(Agreement::Differs) => "two keys' answers differ",
        Some(Agreement::Unclear) => "two keys' answers could not be compared",
        None => "no second key's answer has come yet",
    };
    json!({"control": control, "agreement": agreement})
}

fn key_told(caller: &Result<Option<(Caller, Standing)>, Malformed>) -> &'static str {
    match caller {
        Ok(None) => "none: it goes to the origin, and is never stored",
        Err(Malformed::More) => "more than one: refused",
        Err(Malformed::Form) => "malformed: refused",
        Ok(Some((_, standing))) => match standing {
            Standing::Good => "good",
            Standing::Bad => "bad or revoked: refused",
            Standing::Unknown { known: true } => "was good: asked about again",
            Standing::Unknown { known: false } => "unknown: asked about",
        },
    }
}

fn told_entry(plan: &Plan, entry: &Entry, key: &[u8], now: Timestamp) -> Value {
    let (stored, head) = (entry.view(), &entry.head);
    let lifetimes = head.record.lifetimes;
    let shown = |duration: Duration| units::show_duration(Duration::from_secs(duration.as_secs()));
    let selecting = head.selecting.as_ref();
    let names = selecting.map(|selecting| selecting.names.iter().map(HeaderName::as_str));
    let groups = head.groups.as_ref();
    let causes = &plan.state.memory.purges().causes;
    let caused = stored
        .stale_since
        .zip(Place::of(key))
        .and_then(|(since, place)| causes.of_stale(&place, groups, since));
    json!({
        "tier": "memory",
        "status": head.status.as_u16(),
        "age": stored.age(now).as_secs(),
        "ttl": stored.ttl(now),
        "bytes": entry.body().len(),
        "came": rfc3339(head.record.received),
        "lifetimes": {
            "fresh": shown(lifetimes.fresh),
            "by": if lifetimes.granted_by_operator { "configuration" } else { "origin" },
            "stale_while_revalidate": shown(lifetimes.stale_while_revalidate),
            "stale_if_error": shown(lifetimes.stale_if_error),
        },
        "vary": names.map(|names| names.collect::<Vec<_>>()),
        "groups": groups.map(|groups| groups.iter().map(|name| &**name).collect::<Vec<_>>()),
        "purged_stale_since": stored.stale_since.map(rfc3339),
        "purged_stale_by": caused.map(|caused| caused.told()),
    })
}

/// What took the response that stood under a key, as far as that is remembered.
fn told_gone(plan: &Plan, key: &RequestKey) -> Value {
    let causes = &plan.state.memory.purges().causes;
    let caused = causes.of_gone(&key.bytes);
    caused.map_or(Value::Null, |caused| caused.told())
}

/// What the second tier holds for a request that memory does not answer.
async fn told_second(plan: &Plan, key: &RequestKey, headers: &HeaderMap) -> Value {
    let (state, Some(second)) = (&plan.state, &plan.state.second) else {
        return Value::Null;
    };
    let asked = second.stored_for(key.primary(), headers, key.is_apart());
    let value = match asked.await {
        Ok(Some(value)) => value,
        Ok(None) => return json!("nothing"),
        Err(error) => return json!(format!("not known: {error}")),
    };
    let place = Place::of(key.primary());
    let purges = state.memory.purges();
    let groups = value.head.groups.as_ref();
    let judged = place.map(|place| purges.judge_shared(&place, groups, value.stamp).0);
    json!({
        "status": value.head.status.as_u16(),
        "bytes": value.body.len(),
        "came": rfc3339(value.head.record.received),
        "purged": judged == Some(Judgement::Gone),
    })
}

/// The sentence, and who is to thank for it.
fn with_provenance(sentence: String, told: &Value) -> String {
    let stale = told["stored"]["purged_stale_by"]["sentence"].as_str();
    let gone = told["purged"]["sentence"].as_str();
    match (stale, gone) {
        (Some(why), _) => format!("{sentence}; it was made stale by {why}"),
        (None, Some(why)) => format!("{sentence}; what was stored went by {why}"),
        (None, None) => sentence,
    }
}

/// Why of all routes that a request fits this one takes it.
fn why_it_won(plan: &Plan, request: &ClientRequest, route: &PlannedRoute) -> String {
    let routes = &plan.config.routes;
    let fitting = routes.fitting(&request.parts.method, request.path());
    let others = fitting.filter(|other| other.line != route.rule.line);
    let others: Vec<String> = others
        .map(|other| {
            format!(
                "{}{}",
                other.host.as_deref().unwrap_or_default(),
                other.path
            )
        })
        .collect();
    if others.is_empty() {
        "no other route fits".to_owned()
    } else {
        format!(
            "a named host goes before none, and then the most specific path: {} would fit too",
            others.join(", ")
        )
    }
}

/// What a request is looked up under: the same for all requests that one stored answer is for.
fn told_key(key: &RequestKey) -> Value {
    let primary = key.primary();
    let text = |part: &[u8]| String::from_utf8_lossy(part).into_owned();
    let digest = hex::encode(&Sha256::digest(primary)[..6]);
    let place = Place::of(primary);
    json!({
        "digest": digest,
        "host": place.map(|place| text(place.host)),
        "path": place.map(|place| text(place.path)),
        "query": place.map(|place| text(place.query())).filter(|query| !query.is_empty()),
        "of_one_key_alone": key.is_apart(),
    })
}
