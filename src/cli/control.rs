//! Commands that ask a running sidecar on its admin port: what it does, why, and to do otherwise.

use std::io::Write;

use anyhow::Context;
use clap::{Args, Subcommand};
use http::Method;
use serde_json::{Map, Value, json};
use url::form_urlencoded;

use crate::config::Config;
use crate::config::changes::Changes;
use crate::config::settings::Setting;
use crate::config::units;
use crate::load::figure::{Unit, percent};

use super::ending::{Ending, key_from_input};
use super::place::{Place, Reached};

#[derive(Debug, Subcommand)]
pub enum Order {
    /// Is it working: readiness, configuration, what is bypassed, hit rate
    #[command(
        after_help = "Example: iris-sidecar status --admin http://127.0.0.1:9180\n\nExit status: \
            0 done, 1 refused or no sidecar answers, 2 bad arguments."
    )]
    Status {
        #[command(flatten)]
        reached: Reached,
    },
    /// Why a request would be answered as it would, and what to change
    #[command(
        after_help = "Example: iris-sidecar explain GET '/products?page=2' -H 'Authorization: \
            @key.txt'\n\nExit status: 0 done, 1 refused or no sidecar answers, 2 bad arguments."
    )]
    Explain {
        /// The method, e.g. GET
        method: String,
        /// Where: /path?query, or with the host that clients name
        url: String,
        /// A field of the request, "Name: value"; @FILE takes the value from a file, and of Authorization
        /// a bare key becomes "Bearer KEY"
        #[arg(long = "header", short = 'H', value_name = "FIELD")]
        headers: Vec<String>,
        #[command(flatten)]
        reached: Reached,
    },
    /// Make stored responses unusable, or stale
    #[command(
        after_help = "Example: iris-sidecar purge --prefix /products --soft\n\nExit status: 0 \
            done, 1 refused or no sidecar answers, 2 bad arguments."
    )]
    Purge {
        #[command(flatten)]
        what: Purged,
        /// Stale instead of gone: the grace windows begin
        #[arg(long)]
        soft: bool,
        /// Only count what is stored on this instance
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        reached: Reached,
    },
    /// Refuse a key from now on, everywhere; the key is read from standard input
    #[command(
        after_help = "Example: iris-sidecar revoke < key.txt\n\nExit status: 0 done, 1 refused or \
            no sidecar answers, 2 bad arguments."
    )]
    Revoke {
        /// The digest of the key, in the place of the key itself
        #[arg(long, value_name = "HEX")]
        digest: Option<String>,
        /// Take a revocation back
        #[arg(long)]
        restore: bool,
        #[command(flatten)]
        reached: Reached,
    },
    /// Turn the cache off now: nothing is looked up or stored
    #[command(
        after_help = "Example: iris-sidecar bypass --for 30m --fleet\n\nExit status: 0 done, 1 \
            refused or no sidecar answers, 2 bad arguments."
    )]
    Bypass {
        /// For so long, e.g. 30m; without it until --off
        #[arg(long = "for", value_name = "DURATION")]
        lasts: Option<String>,
        /// All instances of the fleet
        #[arg(long)]
        fleet: bool,
        /// Only the route with this path
        #[arg(long, value_name = "PATH")]
        route: Option<String>,
        /// Turn it on again
        #[arg(long)]
        off: bool,
        #[command(flatten)]
        reached: Reached,
    },
    /// Read the configuration again and put it in force, unless it has mistakes
    #[command(
        after_help = "Example: iris-sidecar reload --config iris.toml\n\nExit status: 0 in force, \
            1 refused (its mistakes are printed) or no sidecar answers, 2 bad arguments."
    )]
    Reload {
        #[command(flatten)]
        reached: Reached,
    },
    /// Take this instance out, and end it as SIGTERM does
    #[command(
        after_help = "Example: iris-sidecar drain --stay, and back: iris-sidecar drain \
            --back\n\nExit status: 0 done, 1 refused or no sidecar answers, 2 bad arguments."
    )]
    Drain {
        /// Leave it running: unready, and telling clients to go elsewhere
        #[arg(long)]
        stay: bool,
        /// Put it back
        #[arg(long, conflicts_with = "stay")]
        back: bool,
        #[command(flatten)]
        reached: Reached,
    },
    /// Exit status 0 where it lives, 1 where it does not: for images without a shell
    #[command(
        after_help = "Example: iris-sidecar health --ready\n\nExit status: 0 it lives (or is \
            ready), 1 it does not, 2 bad arguments."
    )]
    Health {
        /// Whether it is ready to be sent clients
        #[arg(long)]
        ready: bool,
        #[command(flatten)]
        reached: Reached,
    },
}

impl Order {
    fn reached(&self) -> &Reached {
        match self {
            Self::Status { reached }
            | Self::Explain { reached, .. }
            | Self::Purge { reached, .. }
            | Self::Revoke { reached, .. }
            | Self::Bypass { reached, .. }
            | Self::Reload { reached }
            | Self::Drain { reached, .. }
            | Self::Health { reached, .. } => reached,
        }
    }
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub struct Purged {
    /// One URL: /path?query, or with its host
    #[arg(long)]
    url: Option<String>,
    /// All URLs that begin so
    #[arg(long, value_name = "PATH")]
    prefix: Option<String>,
    /// A group of responses
    #[arg(long, value_name = "NAME")]
    group: Option<String>,
    /// Everything
    #[arg(long)]
    all: bool,
}

/// Carries out an order.
pub fn carry_out(order: &Order) -> Ending {
    let place = match Place::of(order.reached()) {
        Ok(place) => place,
        Err(ending) => return ending,
    };
    match place.carry_out(order) {
        Ok(ending) => ending,
        Err(error) => {
            eprintln!("{error:#}");
            Ending::Missed
        }
    }
}

impl Place {
    fn carry_out(&self, order: &Order) -> anyhow::Result<Ending> {
        let post = |path: &str, body: Value| self.told(Method::POST, path, &body);
        let told = match order {
            Order::Health { ready, .. } => return self.health(*ready),
            Order::Status { .. } => {
                let mut told = self.told(Method::GET, "/readyz", &Value::Null)?;
                if self.is_json {
                    told["metrics"] = self.told(Method::GET, "/api/metrics", &Value::Null)?;
                    told
                } else {
                    let more = self.told(Method::GET, "/status", &Value::Null)?;
                    in_short(told, &more)
                }
            }
            Order::Explain {
                method,
                url,
                headers,
                ..
            } => {
                let path = explain_path(method, url, headers)?;
                first(
                    self.told(Method::GET, &path, &Value::Null)?,
                    ["sentence", "with_key", "change"],
                )
            }
            Order::Purge {
                what,
                soft,
                dry_run,
                ..
            } => {
                let mut body = json!({"soft": soft, "dry_run": dry_run});
                let named = [
                    ("url", &what.url),
                    ("prefix", &what.prefix),
                    ("group", &what.group),
                ];
                for (name, value) in named {
                    if let Some(value) = value {
                        body[name] = json!(value);
                    }
                }
                if what.all {
                    body["all"] = json!(true);
                }
                with_sentence(post("/purge", body)?)
            }
            Order::Revoke {
                digest, restore, ..
            } => {
                let named = match digest {
                    Some(digest) => json!({"digest": digest, "restore": restore}),
                    None => json!({"key": key_from_input()?, "restore": restore}),
                };
                post("/revoke", named)?
            }
            Order::Bypass {
                lasts,
                fleet,
                route,
                off,
                ..
            } => {
                let mut body = json!({"fleet": fleet, "off": off});
                for (name, value) in [("for", lasts), ("route", route)] {
                    if let Some(value) = value {
                        body[name] = json!(value);
                    }
                }
                post("/bypass", body)?
            }
            Order::Reload { .. } => post("/reload", json!({}))?,
            Order::Drain { stay, back, .. } => post("/drain", json!({"end": !stay, "back": back}))?,
        };
        let text = if self.is_json {
            format!("{told:#}\n")
        } else {
            in_lines(&told)
        };
        // A pager that was closed early has seen enough.
        let _ = std::io::stdout().write_all(text.as_bytes());
        Ok(Ending::Done)
    }

    fn health(&self, ready: bool) -> anyhow::Result<Ending> {
        let path = if ready { "/readyz" } else { "/livez" };
        let (status, text) = self.ask(Method::GET, path, String::new())?;
        if status.is_success() {
            return Ok(Ending::Done);
        }
        eprintln!("{path}: {status} {text}");
        Ok(Ending::Missed)
    }
}

/// What differs between a file and what a sidecar runs with.
pub fn against(config: &Config, admin: &str) -> anyhow::Result<Changes> {
    let place = Place::named(admin, config)?;
    let told = place.told(Method::GET, "/config", &Value::Null)?;
    let running = told["settings"].as_array().cloned().unwrap_or_default();
    let running: Vec<Setting> = running.iter().filter_map(Setting::from_json).collect();
    let ours = config.settings.iter().map(Setting::to_json);
    // Secrets are compared by nobody: both sides show none.
    let ours: Vec<Setting> = ours.filter_map(|told| Setting::from_json(&told)).collect();
    Ok(Changes::between(&running, &ours))
}

/// The value of a field as a file has it: a bare key becomes what clients send.
fn with_scheme(name: &str, text: &str) -> String {
    let is_bare = name.trim().eq_ignore_ascii_case("authorization") && !text.contains(' ');
    if is_bare {
        format!("Bearer {text}")
    } else {
        text.to_owned()
    }
}

fn explain_path(method: &str, url: &str, headers: &[String]) -> anyhow::Result<String> {
    let mut query = form_urlencoded::Serializer::new(String::new());
    query.append_pair("url", url).append_pair("method", method);
    for field in headers {
        let (name, value) = field
            .split_once(':')
            .with_context(|| format!("-H {field:?}: expected \"Name: value\""))?;
        let value = match value.trim().strip_prefix('@') {
            Some(file) => {
                let text = std::fs::read_to_string(file);
                let text = text.with_context(|| format!("-H {name}: {file} cannot be read"))?;
                with_scheme(name, text.trim())
            }
            None => value.trim().to_owned(),
        };
        query.append_pair("header", &format!("{}:{value}", name.trim()));
    }
    Ok(format!("/explain?{}", query.finish()))
}

/// The same with these members before all others.
fn first<const N: usize>(mut told: Value, names: [&str; N]) -> Value {
    let mut ordered = Map::new();
    for name in names {
        if told.get(name).is_none() {
            continue;
        }
        ordered.insert(name.to_owned(), told[name].take());
    }
    for (name, value) in told.as_object().into_iter().flatten() {
        if !names.contains(&name.as_str()) {
            ordered.insert(name.clone(), value.clone());
        }
    }
    ordered.into()
}

/// Readiness, and of all that is known what an operator looks at first, with units.
fn in_short(mut ready: Value, status: &Value) -> Value {
    let number = |path: &str| {
        status
            .pointer(path)
            .and_then(Value::as_f64)
            .unwrap_or_default()
    };
    let millis = |path: &str| Unit::Milliseconds.show(number(path));
    ready["version"] = json!(format!(
        "{} ({})",
        in_a_line(&status["version"]),
        in_a_line(&status["commit"])
    ));
    ready["upstream"]["at"] = status["upstream"].clone();
    ready["requests"] = json!({
        "total": number("/summary/requests/total"),
        "hits": percent(number("/summary/cache/hitRate")),
        "errors": percent(number("/summary/requests/errorRate")),
        "p50": millis("/summary/requests/p50Latency"),
        "p95": millis("/summary/requests/p95Latency"),
        "p99": millis("/summary/requests/p99Latency"),
    });
    let stored = number("/memory/stored") as u64;
    ready["memory"] = json!(format!(
        "{} of {} stored, {} responses",
        units::show_size(stored),
        units::show_size(number("/memory/budget") as u64),
        number("/memory/entries")
    ));
    first(
        ready,
        ["ready", "version", "upstream", "requests", "memory"],
    )
}

/// What came of a purge, in a sentence before the rest.
fn with_sentence(mut told: Value) -> Value {
    let count = told["matches"].as_u64().unwrap_or_default();
    let stored = match count {
        0 => "nothing that is stored on this instance".to_owned(),
        1 => "one response that is stored on this instance".to_owned(),
        count => format!("{count} responses that are stored on this instance"),
    };
    let sentence = match (told["dry_run"] == true, told["state"].as_str()) {
        (true, _) => format!("it would concern {stored}; nothing was done"),
        (false, Some("done")) => format!("it concerned {stored}; no instance serves what is older"),
        (false, state) => format!(
            "it concerned {stored}; of the others see state ({}) and why",
            state.unwrap_or("not known")
        ),
    };
    told["sentence"] = json!(sentence);
    first(told, ["sentence"])
}

/// JSON as lines for people: what stands in something is further to the right.
fn in_lines(told: &Value) -> String {
    let mut out = String::new();
    if let Value::Object(members) = told {
        write_members(&mut out, members, 0);
    }
    out
}

fn write_members(out: &mut String, members: &Map<String, Value>, depth: usize) {
    for (name, value) in members {
        let indent = "  ".repeat(depth);
        match value {
            Value::Null => {}
            Value::Object(inner) => {
                out.push_str(&format!("{indent}{name}:\n"));
                write_members(out, inner, depth + 1);
            }
            Value::Array(items) if items.is_empty() => {}
            Value::Array(items) => {
                out.push_str(&format!("{indent}{name}:\n"));
                for item in items {
                    out.push_str(&format!("{indent}  - {}\n", in_a_line(item)));
                }
            }
            value => out.push_str(&format!("{indent}{name}: {}\n", in_a_line(value))),
        }
    }
}

fn in_a_line(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Object(members) => {
            let told = members.iter().filter(|(_, value)| !value.is_null());
            let told = told.map(|(name, value)| format!("{name} {}", in_a_line(value)));
            told.collect::<Vec<_>>().join(", ")
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_lines_for_people() {
        let told = json!({"ready": true, "none": null, "redis": {"breaker": "closed"}, "list": [{"a": 1, "b": "x"}], "empty": []});
        assert_eq!(
            in_lines(&told),
            "ready: true\nredis:\n  breaker: closed\nlist:\n  - a 1, b x\n"
        );
    }
}
