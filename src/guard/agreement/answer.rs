//! One key's answer, as it is compared: what is delivered of it, without what is known to differ
//! from answer to answer.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};

use http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use http::{HeaderMap, StatusCode};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

/// Fields that tell of one message, one moment or one quota, and nothing of what was asked for.
const OF_THE_MESSAGE: [&str; 31] = [
    "age",
    "alt-svc",
    "cache-control",
    "cf-ray",
    "connection",
    "content-encoding",
    "content-length",
    "date",
    "etag",
    "expires",
    "keep-alive",
    "last-modified",
    "nel",
    "report-to",
    "retry-after",
    "server-timing",
    "traceparent",
    "tracestate",
    "trailer",
    "transfer-encoding",
    "vary",
    "via",
    "x-amz-cf-id",
    "x-amzn-requestid",
    "x-amzn-trace-id",
    "x-cache",
    "x-correlation-id",
    "x-request-id",
    "x-response-time",
    "x-runtime",
    "x-trace-id",
];

/// How the names of the fields begin that tell of a quota.
const OF_A_QUOTA: [&str; 2] = ["ratelimit", "x-ratelimit-"];

/// Digits of a number that are read as they stand.
const EXACT: usize = 15;

/// One key's answer, without what is known to differ from answer to answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer(pub(super) Value);

impl Answer {
    /// Of an answer with this status, these fields and this body; `volatile` names members and
    /// fields that are left out, however deep.
    pub fn of(status: StatusCode, fields: &HeaderMap, body: &[u8], volatile: &[String]) -> Self {
        let is_json = fields.get(CONTENT_TYPE).is_some_and(|value| {
            let text = String::from_utf8_lossy(value.as_bytes()).to_ascii_lowercase();
            text.contains("json") && !fields.contains_key(CONTENT_ENCODING)
        });
        let json = (is_json && is_exact(body))
            .then(|| serde_json::from_slice::<Value>(body).ok())
            .flatten();
        // Of two members with one name only one would be seen.
        let json = json.filter(|json| members(json) == colons(body));
        let body = match json {
            Some(json) => without(json, volatile),
            // Only ever equal or not.
            None if body.is_empty() => Value::Null,
            None => Value::String(format!("\0{:x?}", Sha256::digest(body).as_slice())),
        };
        let told = fields
            .iter()
            .filter(|(name, _)| is_told(name.as_str(), volatile));
        let mut shown: BTreeMap<String, Value> = BTreeMap::new();
        for (name, value) in told {
            let value = String::from_utf8_lossy(value.as_bytes()).into_owned();
            let all = shown.entry(name.to_string()).or_insert_with(|| json!([]));
            if let Some(all) = all.as_array_mut() {
                all.push(Value::String(value));
            }
        }
        let fields = Value::Object(shown.into_iter().collect());
        Self(json!({"status": status.as_u16(), "fields": fields, "body": body}))
    }

    /// The same for answers that are equal.
    pub fn digest(&self) -> u64 {
        digest(&self.0)
    }

    /// Whether its body has anything in it: that two keys get nothing says nothing.
    pub fn says_something(&self) -> bool {
        has_content(&self.0["body"])
    }

    /// Where it has something: what is not empty, by the names of members, whatever numbers are in
    /// them, and not by places in lists.
    pub fn places(&self) -> Vec<u64> {
        let mut places = BTreeSet::new();
        look(0, &self.0["body"], &mut places);
        places.into_iter().collect()
    }
}

fn is_told(name: &str, volatile: &[String]) -> bool {
    let is_named = volatile.iter().any(|own| own.eq_ignore_ascii_case(name));
    let is_quota = OF_A_QUOTA.iter().any(|quota| name.starts_with(quota));
    !is_named && !is_quota && !OF_THE_MESSAGE.contains(&name)
}

/// Whether all numbers of a JSON text are read as they stand: others that are near would seem
/// equal.
fn is_exact(json: &[u8]) -> bool {
    let (mut in_text, mut is_escaped, mut digits) = (false, false, 0);
    for byte in json {
        if in_text {
            (in_text, is_escaped) = match byte {
                _ if is_escaped => (true, false),
                b'\\' => (true, true),
                b'"' => (false, false),
                _ => (true, false),
            };
            continue;
        }
        match byte {
            b'"' => in_text = true,
            b'0'..=b'9' => digits += 1,
            b'.' | b'e' | b'E' | b'+' | b'-' => {}
            _ => digits = 0,
        }
        if digits > EXACT + 2 {
            return false;
        }
    }
    true
}

/// Members that a value has, however deep.
fn members(value: &Value) -> usize {
    match value {
        Value::Object(all) => all.len() + all.values().map(members).sum::<usize>(),
        Value::Array(items) => items.iter().map(members).sum(),
        _ => 0,
    }
}

/// Colons of a JSON text that stand in no string: one for each member.
fn colons(json: &[u8]) -> usize {
    let (mut in_text, mut is_escaped, mut found) = (false, false, 0);
    for byte in json {
        match (in_text, byte) {
            (true, _) if is_escaped => is_escaped = false,
            (true, b'\\') => is_escaped = true,
            (_, b'"') => in_text = !in_text,
            (false, b':') => found += 1,
            _ => {}
        }
    }
    found
}

fn has_content(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(_) => false,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => items.iter().any(has_content),
        Value::Object(members) => members.values().any(has_content),
    }
}

fn look(class: u64, value: &Value, places: &mut BTreeSet<u64>) {
    match value {
        Value::Object(members) => {
            for (name, value) in members {
                let name = name.replace(|digit: char| digit.is_ascii_digit(), "");
                look(below(class, &name), value, places);
            }
        }
        Value::Array(items) => {
            for item in items {
                look(below(class, "*"), item, places);
            }
        }
        value if has_content(value) => drop(places.insert(class)),
        _ => {}
    }
}

pub(super) fn below(place: u64, name: &(impl Hash + ?Sized)) -> u64 {
    let mut hasher = DefaultHasher::new();
    place.hash(&mut hasher);
    name.hash(&mut hasher);
    hasher.finish()
}

pub(super) fn digest_of(value: &impl Hash) -> u64 {
    below(1, value)
}

/// The same for values that are equal, whatever the order of their members.
pub(super) fn digest(value: &Value) -> u64 {
    let mut hasher = DefaultHasher::new();
    match value {
        Value::Object(members) => {
            let mut all: Vec<(&String, u64)> = members
                .iter()
                .map(|(name, value)| (name, digest(value)))
                .collect();
            all.sort_unstable();
            (0, all).hash(&mut hasher);
        }
        Value::Array(items) => {
            let all: Vec<u64> = items.iter().map(digest).collect();
            (1, all).hash(&mut hasher);
        }
        Value::String(text) => (2, text).hash(&mut hasher),
        other => (3, other.to_string()).hash(&mut hasher),
    }
    hasher.finish()
}

/// A value without the members of these names, however deep.
pub(super) fn without(value: Value, names: &[String]) -> Value {
    match value {
        Value::Object(members) => {
            let stays = members
                .into_iter()
                .filter(|(name, _)| !names.contains(name));
            let left = stays.map(|(name, value)| (name, without(value, names)));
            Value::Object(left.collect::<Map<String, Value>>())
        }
        Value::Array(items) => {
            let left = items.into_iter().map(|item| without(item, names));
            Value::Array(left.collect())
        }
        other => other,
    }
}
