//! One line of the log: JSON, or the Common format with the quoted fields that most tools expect
//! after it.

use std::fmt::Write as _;
use std::time::{Duration, SystemTime};

use http::{HeaderValue, Uri, Version};
use serde_json::{Map, Value, json};

use crate::config::{AccessLog, LogFormat};

use crate::error::without_passwords;
use crate::trace::{Observed, Span};

use super::{Asked, Entry};

/// What stands in the place of a secret.
const MASK: &str = "…";

/// Writes one line, its end included.
pub fn write(out: &mut String, config: &AccessLog, entry: &Entry) {
    match config.format {
        LogFormat::Common => common(out, config, entry),
        // There is no log then.
        LogFormat::Off | LogFormat::Json => json_line(out, config, entry),
    }
    out.push('\n');
}

fn json_line(out: &mut String, config: &AccessLog, entry: &Entry) {
    let (answered, asked) = (&entry.answered, &entry.answered.asked);
    let told = answered.told.as_ref();
    let mut line = Map::new();
    let mut put = |name: &str, value: Value| drop(line.insert(name.to_owned(), value));
    put("time", time(asked.at).into());
    put("client", asked.client.to_string().into());
    let read = (!asked.is_unread).then_some(asked);
    put("method", read.map(|asked| asked.method.as_str()).into());
    put("host", text(asked.host.as_ref()));
    put("path", read.map(|asked| asked.uri.path()).into());
    if let Some(query) = masked_query(config, &asked.uri) {
        put("query", query.into());
    }
    put("protocol", read.map(|asked| protocol(asked.version)).into());
    put("route", told.and_then(|told| told.route.as_deref()).into());
    put("status", answered.status.as_u16().into());
    put("result", told.map(|told| told.result).into());
    put("reason", told.map(|told| told.reason).into());
    put("bytes", entry.bytes.into());
    if entry.is_cut {
        put("cut", true.into());
    }
    put("total_ms", millis(entry.total));
    put("head_ms", millis(answered.head));
    let observed = told.and_then(|told| told.observed.as_deref());
    let spans = [
        ("guard_ms", Span::Guard),
        ("look_up_ms", Span::LookUp),
        ("second_tier_ms", Span::SecondTier),
        ("upstream_ms", Span::Upstream),
    ];
    for (name, span) in spans {
        if let Some(took) = observed
            .map(|observed| observed.span(span))
            .filter(|took| !took.is_zero())
        {
            put(name, millis(took));
        }
    }
    let (id, traceparent) = ids(asked, observed);
    let made = || read.map(|_| uuid::Uuid::new_v4().to_string()).into();
    put("request_id", id.map_or_else(made, |id| text(Some(id))));
    put("traceparent", text(traceparent));
    for (name, value) in config.fields.iter().zip(&asked.fields) {
        let is_secret = config.is_secret(name.as_str());
        let value = value.as_ref().map(|value| match is_secret {
            true => MASK.to_owned().into(),
            false => Value::from(masked_field(config, value)),
        });
        put(name.as_str(), value.unwrap_or_default());
    }
    let _ = write!(out, "{}", Value::Object(line));
}

/// `client - - [time] "request" status bytes "referer" "user agent"`, as Apache's and nginx's
/// combined format has it.
fn common(out: &mut String, config: &AccessLog, entry: &Entry) {
    let (answered, asked) = (&entry.answered, &entry.answered.asked);
    let query = masked_query(config, &asked.uri);
    let query = query.map_or_else(String::new, |query| format!("?{query}"));
    let request = match asked.is_unread {
        true => "-".to_owned(),
        false => format!(
            "{} {}{} {}",
            asked.method,
            quoted(asked.uri.path()),
            quoted(&query),
            protocol(asked.version)
        ),
    };
    let _ = write!(
        out,
        "{} - - [{}] \"{request}\" {} {}",
        asked.client,
        clf_time(asked.at),
        answered.status.as_u16(),
        entry.bytes,
    );
    for (name, value) in config.fields.iter().zip(&asked.fields) {
        let value = match value {
            Some(_) if config.is_secret(name.as_str()) => MASK.to_owned(),
            Some(value) => quoted(&masked_field(config, value)),
            None => "-".to_owned(),
        };
        let _ = write!(out, " \"{value}\"");
    }
}

fn ids<'a>(
    asked: &'a Asked,
    observed: Option<&'a Observed>,
) -> (Option<&'a HeaderValue>, Option<&'a HeaderValue>) {
    let made = observed.and_then(|observed| observed.request_id.get());
    let started = observed.and_then(|observed| observed.traceparent.get());
    (
        made.or(asked.request_id.as_ref()),
        started.or(asked.traceparent.as_ref()),
    )
}

fn text(value: Option<&HeaderValue>) -> Value {
    value
        .map(|value| String::from_utf8_lossy(value.as_bytes()))
        .into()
}

/// The query, with the values of secret parameters masked.
fn masked_query(config: &AccessLog, uri: &Uri) -> Option<String> {
    uri.query().map(|query| masked(config, query))
}

/// The value of a field; where it is a URL, as that of `Referer`, masked as the target is.
fn masked_field(config: &AccessLog, value: &HeaderValue) -> String {
    let text = String::from_utf8_lossy(value.as_bytes());
    let text = without_passwords(&text);
    match text.split_once('?') {
        Some((before, query)) => format!("{before}?{}", masked(config, query)),
        None => text,
    }
}

fn masked(config: &AccessLog, query: &str) -> String {
    let parts = query.split('&').map(|part| match part.split_once('=') {
        Some((name, _)) if config.is_secret(&decoded(name)) => format!("{name}={MASK}"),
        _ => part.to_owned(),
    });
    parts.collect::<Vec<_>>().join("&")
}

/// A name as an origin reads it, whatever of it is encoded.
fn decoded(name: &str) -> String {
    let mut pairs = url::form_urlencoded::parse(name.as_bytes());
    pairs
        .next()
        .map_or_else(String::new, |(name, _)| name.into_owned())
}

fn protocol(version: Version) -> &'static str {
    match version {
        Version::HTTP_10 => "HTTP/1.0",
        Version::HTTP_2 => "HTTP/2.0",
        _ => "HTTP/1.1",
    }
}

fn millis(duration: Duration) -> Value {
    json!(duration.as_micros() as f64 / 1000.0)
}

fn time(at: SystemTime) -> String {
    humantime::format_rfc3339_millis(at).to_string()
}

/// `26/Nov/2026:09:52:43 +0000`, out of an HTTP date.
fn clf_time(at: SystemTime) -> String {
    let date = httpdate::fmt_http_date(at);
    let mut words = date.split(' ').skip(1);
    let mut word = || words.next().unwrap_or_default();
    format!("{}/{}/{}:{} +0000", word(), word(), word(), word())
}

/// Without what would end the quotes, or the line.
fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '"' | '\\' => {
                out.push('\\');
                out.push(letter);
            }
            letter if letter.is_control() => {
                let _ = write!(out, "\\x{:02x}", u32::from(letter));
            }
            letter => out.push(letter),
        }
    }
    out
}
