//! `POST /purge`: what an operator, or a program of theirs, makes unusable by hand.

use serde::Deserialize;
use serde_json::{Value, json};
use tracing::info;
use url::Url;

use crate::policy::{Mode, canonical, invalidate};
use crate::proxy::Proxy;
use crate::store::{Purge, Reach, Target};
use std::sync::Arc;

/// Largest order.
pub const BODY_LIMIT: usize = 64 << 10;

const EXPECTED: &str = r#"expected one of {"url": "/path?query"}, {"prefix": "/path"}, {"group": "name"}, {"all": true}; beside it "soft": true (stale instead of gone) and "dry_run": true (only count)"#;

/// The body of the request.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Order {
    url: Option<String>,
    prefix: Option<String>,
    group: Option<String>,
    all: Option<bool>,
    #[serde(default)]
    soft: bool,
    #[serde(default)]
    dry_run: bool,
}

/// Carries out an order: who knows of it ([`Known::told`](crate::proxy::Known::told)), and how many
/// responses in this instance's memory it named. An error says what is wrong with the order.
pub async fn purge(proxy: &Arc<Proxy>, body: &[u8]) -> Result<Value, String> {
    let order = Order::parse(body)?;
    let purges = order.purges(proxy)?;
    let mode = if order.soft { Mode::Soft } else { Mode::Hard };
    let mut position = proxy.purge_position();
    if !order.dry_run {
        for purge in &purges {
            position = proxy.purge(purge.clone(), mode);
        }
    }
    let known = if order.dry_run {
        proxy.known_here()
    } else {
        proxy.known_to_all(position).await
    };
    let matches = proxy.sweep(&purges).await;
    if !order.dry_run {
        let what = String::from_utf8_lossy(body);
        info!(order = %what.trim(), mode = mode.as_str(), %known, matches, "purged");
    }
    let mut told = known.told();
    told["mode"] = json!(mode.as_str());
    told["dry_run"] = json!(order.dry_run);
    told["matches"] = json!(matches);
    Ok(told)
}

/// Takes over what another instance could not tell: how many purges those were, and who knows of
/// them now. An error says what is wrong with it.
pub async fn told(proxy: &Arc<Proxy>, body: &[u8]) -> Result<Value, String> {
    let taken = proxy.take_over(body)?;
    let known = proxy.known_to_all(proxy.purge_position()).await;
    info!(taken, %known, "took over purges of an instance that ended");
    let mut told = known.told();
    told["taken"] = json!(taken);
    Ok(told)
}

impl Order {
    fn parse(body: &[u8]) -> Result<Self, String> {
        // By way of an object: serde would take an array for the fields in their order.
        serde_json::from_slice(body)
            .and_then(|object: serde_json::Map<String, Value>| {
                serde_json::from_value(object.into())
            })
            .map_err(|error| format!("{error}; {EXPECTED}"))
    }

    fn purges(&self, proxy: &Proxy) -> Result<Vec<Purge>, String> {
        let any = |target| {
            let reach = Reach::Any;
            Purge { target, reach }
        };
        match (&self.url, &self.prefix, &self.group, self.all) {
            (Some(url), None, None, None) => urls(proxy, url),
            (None, Some(prefix), None, None) => {
                let (host, prefix) = place(prefix)?;
                let reach = reach(host);
                let named = |prefix: String| Purge {
                    target: Target::Prefix(prefix.into()),
                    reach: reach.clone(),
                };
                Ok(canonical_prefixes(&prefix)?
                    .into_iter()
                    .map(named)
                    .collect())
            }
            (None, None, Some(group), None) if !group.is_empty() => {
                Ok(vec![any(Target::Group(group.as_str().into()))])
            }
            (None, None, None, Some(true)) => Ok(vec![any(Target::All)]),
            _ => Err(EXPECTED.to_owned()),
        }
    }
}

fn urls(proxy: &Proxy, url: &str) -> Result<Vec<Purge>, String> {
    let (host, target) = place(url)?;
    if canonical::targets(&target).is_empty() {
        return Err(format!(
            "\"url\": {url:?} is no URI: after a \"%\" two hexadecimal digits are wanted"
        ));
    }
    let targets = proxy.targets(host.as_deref(), &target);
    if targets.is_empty() {
        return Err(format!(
            "\"url\": {url:?}: no [[route]] takes GET requests for it, so nothing of it is stored"
        ));
    }
    let purges = targets.into_iter().map(|target| Purge {
        target,
        reach: reach(host.clone()),
    });
    Ok(purges.collect())
}

fn reach(host: Option<String>) -> Reach {
    host.map_or(Reach::Any, |host| Reach::Host(host.into()))
}

/// Host, where one is named, and the rest of a URL; the scheme does not matter, for who ends TLS
/// before us decides it.
fn place(text: &str) -> Result<(Option<String>, String), String> {
    if text.contains('#') {
        return Err(format!(
            "{text:?}: no request has a fragment: leave out what begins with \"#\""
        ));
    }
    // Two slashes begin a path too, and no host: that needs its scheme.
    if text.starts_with('/') {
        return Ok((None, text.to_owned()));
    }
    let expected = || {
        format!(
            "{text:?}: expected a path such as \"/api\", or a URL such \
                as \"https://api.example.org/api\""
        )
    };
    let url = Url::parse(text).map_err(|_| expected())?;
    let host = url
        .host_str()
        .filter(|_| matches!(url.scheme(), "http" | "https"));
    let host = host.ok_or_else(expected)?;
    let host = match url.port() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    };
    let target = invalidate::target_of(text).ok_or_else(expected)?;
    Ok((Some(host), target.to_owned()))
}

/// A prefix of a path, perhaps with the beginning of a query, as it may stand in keys.
fn canonical_prefixes(prefix: &str) -> Result<Vec<String>, String> {
    let spelled = canonical::prefixes(prefix);
    if spelled.is_empty() {
        return Err(format!(
            "\"prefix\": {prefix:?} is the beginning of no URI: after a \"%\" two hexadecimal \
                digits are wanted"
        ));
    }
    Ok(spelled)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_a_path_or_a_url_with_its_host() {
        let read = |text| place(text).ok();
        let here = |rest: &str| Some((None, rest.to_owned()));
        let there = |host: &str, rest: &str| Some((Some(host.to_owned()), rest.to_owned()));
        assert_eq!(read("/a?x=1"), here("/a?x=1"));
        assert_eq!(read("https://H.example/a?x"), there("h.example", "/a?x"));
        assert_eq!(read("http://h:81"), there("h:81", ""));
        assert_eq!(read("//a"), here("//a"));
        for broken in ["", "a", "/a#b", "ftp://h/a", "http://"] {
            assert_eq!(read(broken), None, "{broken}");
        }
    }

    #[test]
    fn fuzz_purges() {
        crate::fuzz::run(include_str!("../../tests/fuzz/purges.txt"), |input| {
            if let Ok(order) = Order::parse(input) {
                let is_object = input.trim_ascii_start().first() == Some(&b'{');
                assert!(is_object);
                for text in [order.url, order.prefix].into_iter().flatten() {
                    canonical::targets(&text);
                    canonical::prefixes(&text);
                }
            }
        });
    }
}
