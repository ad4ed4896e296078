//! What differs between two configurations, in the operator's words, and what of it can take effect
//! without a restart.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde_json::Value;

use super::sections::Config;
use super::settings::{From, Setting};

/// What differs between two configurations, in words.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// What takes effect: `route /api/x: ttl 30s → 60s`.
    pub effective: Vec<String>,
    /// What cannot without a restart.
    pub needs_restart: Vec<String>,
}

impl Changes {
    /// From the keys in force to others.
    pub fn between(old: &[Setting], new: &[Setting]) -> Self {
        let index = |settings: &[Setting]| -> BTreeMap<(String, String), Setting> {
            let by_name = |setting: &Setting| (setting.place.clone(), setting.key.clone());
            settings
                .iter()
                .map(|one| (by_name(one), one.clone()))
                .collect()
        };
        let (before, after) = (index(old), index(new));
        let mut changes = Self::default();
        changes.tables(old, new);
        let names: Vec<_> = before.keys().chain(after.keys()).cloned().collect();
        let mut seen = BTreeSet::new();
        let has = |settings: &[Setting], place: &str| settings.iter().any(|one| one.place == place);
        for (place, key) in names {
            let in_both = has(old, &place) && has(new, &place);
            if !in_both || !seen.insert((place.clone(), key.clone())) {
                continue;
            }
            let name = (place.clone(), key.clone());
            let (was, is) = (before.get(&name), after.get(&name));
            if let (Some(was), Some(is)) = (was, is)
                && was.says_the_same(is)
            {
                continue;
            }
            let (was, is) = (in_words(was), in_words(is));
            let what = if was == is {
                format!("{key} changed")
            } else {
                format!("{key} {was} → {is}")
            };
            let line = match place.as_str() {
                "" => what,
                place => format!("{place}: {what}"),
            };
            changes.list_for(&place, &key).push(line);
        }
        changes
    }

    /// Tables that are in one of them alone.
    fn tables(&mut self, old: &[Setting], new: &[Setting]) {
        for (all, others, word) in [(old, new, "removed"), (new, old, "added")] {
            let mut last = "";
            for setting in all {
                let place = setting.place.as_str();
                if place == last || others.iter().any(|other| other.place == place) {
                    continue;
                }
                last = place;
                let of_it = all.iter().filter(|one| one.place == place);
                let says = of_it.filter(|one| one.from != From::Default && one.key != "path");
                let says: Vec<String> = says
                    .map(|one| format!("{} {}", one.key, in_words(Some(one))))
                    .collect();
                let says = match word {
                    "added" if !says.is_empty() => format!(" ({})", says.join(", ")),
                    _ => String::new(),
                };
                self.list_for(place, "")
                    .push(format!("{place}: {word}{says}"));
            }
        }
    }

    /// What has changed in files of their own, which no key tells.
    pub fn note_secrets(&mut self, old: &Config, new: &Config) {
        let stays_at = new.listen.is_at_the_places_of(&old.listen);
        if !stays_at {
            self.move_to_restart_where(|line| {
                let (place, rest) = line.split_once(": ").unwrap_or((line, ""));
                is_of_a_place(place, rest.split(' ').next().unwrap_or_default())
            });
        }
        let is_told =
            |lines: &[String], begin: &str| lines.iter().any(|line| line.starts_with(begin));
        if old.auth.secret != new.auth.secret && !is_told(&self.needs_restart, "auth: secret") {
            let line = "auth: the content of secret_file changed: keys are others by it";
            self.needs_restart.push(line.to_owned());
        }
        if old.admin.token != new.admin.token && !is_told(&self.effective, "admin: token") {
            self.effective
                .push("admin: the content of token_file changed".to_owned());
        }
        let until = |at: std::time::SystemTime| humantime::format_rfc3339_seconds(at);
        let places = old.listen.places.iter().zip(&new.listen.places);
        for (old, new) in places.filter(|_| stays_at) {
            if let (Some(old), Some(new)) = (&old.tls, &new.tls)
                && old != new
            {
                let expires = until(new.expires);
                self.effective
                    .push(format!("listen.tls: another certificate, until {expires}"));
            }
        }
        if let (Some(old), Some(new)) = (&old.upstream, &new.upstream)
            && old.tls != new.tls
            && new.is_where(old)
        {
            self.effective
                .push("upstream: other roots, or another certificate of ours".to_owned());
        }
        for (name, new) in &new.upstreams {
            let known = old.upstreams.iter().find(|(known, _)| known == name);
            if known.is_some_and(|(_, old)| old.tls != new.tls && old.is_but_for_its_files(new)) {
                self.effective.push(format!(
                    "upstream {name}: other roots, or another certificate of ours"
                ));
            }
        }
        if old.auth.probe_key != new.auth.probe_key && !is_told(&self.effective, "auth: probe_key")
        {
            self.effective
                .push("auth: the content of probe_key_file changed".to_owned());
        }
    }

    /// What takes effect after all only by a restart: lines that begin so.
    pub fn move_to_restart(&mut self, begin: &str) {
        self.move_to_restart_where(|line| line.starts_with(begin));
    }

    fn move_to_restart_where(&mut self, is_it: impl Fn(&str) -> bool) {
        let (moved, left) = std::mem::take(&mut self.effective)
            .into_iter()
            .partition(|line: &String| is_it(line));
        self.effective = left;
        self.needs_restart.extend::<Vec<String>>(moved);
    }

    fn list_for(&mut self, place: &str, key: &str) -> &mut Vec<String> {
        if needs_restart(place, key) {
            &mut self.needs_restart
        } else {
            &mut self.effective
        }
    }

    pub fn is_empty(&self) -> bool {
        self.effective.is_empty() && self.needs_restart.is_empty()
    }
}

impl fmt::Display for Changes {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in &self.effective {
            writeln!(out, "{line}")?;
        }
        for line in &self.needs_restart {
            writeln!(out, "{line} (needs a restart)")?;
        }
        Ok(())
    }
}

fn in_words(setting: Option<&Setting>) -> String {
    match setting.map(Setting::shown) {
        None => "none".to_owned(),
        Some(Value::String(text)) => text,
        Some(other) => other.to_string(),
    }
}

/// Keys of `[upstream]` that may change while it runs; all others say where it is, or what its pool
/// was made by.
const UPSTREAM: [&str; 13] = [
    "ca_file",
    "cert_file",
    "key_file",
    "resolve_every",
    "max_age",
    "health",
    "connect_timeout",
    "response_timeout",
    "read_timeout",
    "idle_timeout",
    "queue",
    "queue_timeout",
    "header_bytes",
];

/// Keys of `[listen]` that are of one place.
const OF_A_PLACE: [&str; 3] = ["address", "proxy_protocol", "tls"];

/// Whether a key is fixed at the start: addresses and threads, what memory and pools were made by,
/// and who keys are by.
pub fn needs_restart(place: &str, key: &str) -> bool {
    // One of several tables has its number after its name.
    match place.split(' ').next().unwrap_or_default() {
        "origin" | "cache.redis" => true,
        "upstream" => !UPSTREAM.contains(&key),
        "listen" => ["address", "workers", ""].contains(&key),
        "admin" => key == "address",
        "cache" => ["memory", "max_object", "max_flights"].contains(&key),
        "auth" => ["secret", "secret_file", "verdicts"].contains(&key),
        "limits" => key == "send_buffer",
        _ => false,
    }
}

/// Whether a key is of one place of `[listen]`: all of those stay as they are where addresses
/// change.
fn is_of_a_place(place: &str, key: &str) -> bool {
    place == "listen.tls"
        || (place.split(' ').next() == Some("listen") && OF_A_PLACE.contains(&key))
}

impl Config {
    /// One key stays as `running` has it.
    pub fn keep_setting(&mut self, running: &Self, place: &str, key: &str) {
        let is_it = |one: &&Setting| one.place == place && one.key == key;
        let kept = running.settings.iter().filter(is_it);
        let others = self.settings.iter().filter(|one| !is_it(one));
        self.settings = others.chain(kept).cloned().collect();
    }

    /// This configuration, as far as it can take the place of `running` without a restart: what is
    /// fixed at the start stays as it is there.
    #[must_use]
    pub fn in_place_of(mut self, running: &Self) -> Self {
        let stays_at = self.listen.is_at_the_places_of(&running.listen);
        if !stays_at {
            self.listen.places.clone_from(&running.listen.places);
        }
        self.listen.workers = running.listen.workers;
        self.admin.address = running.admin.address;
        self.upstream = match (self.upstream.take(), &running.upstream) {
            (Some(upstream), Some(running)) => Some(upstream.in_place_of(running)),
            (_, running) => running.clone(),
        };
        let read = std::mem::take(&mut self.upstreams);
        self.upstreams = running.upstreams.clone();
        for (name, upstream) in read {
            let known = self.upstreams.iter_mut().find(|(known, _)| *known == name);
            // All of its table needs a restart; what stands in its files does not.
            if let Some((_, known)) = known
                && known.is_but_for_its_files(&upstream)
            {
                known.tls = upstream.tls;
            }
        }
        self.origin = running.origin.clone();
        self.cache.memory = running.cache.memory;
        self.cache.max_object = running.cache.max_object;
        self.cache.max_flights = running.cache.max_flights;
        self.cache.redis = running.cache.redis.clone();
        self.auth.secret = running.auth.secret.clone();
        self.auth.verdicts = running.auth.verdicts;
        self.limits.send_buffer = running.limits.send_buffer;
        let is_fixed = |one: &&Setting| {
            let is_of_a_place = !stays_at && is_of_a_place(&one.place, &one.key);
            is_of_a_place || needs_restart(&one.place, &one.key)
        };
        let (own, fixed) = (self.settings.iter(), running.settings.iter());
        let settings = own
            .filter(|one| !is_fixed(one))
            .chain(fixed.filter(is_fixed));
        self.settings = settings.cloned().collect();
        self
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of(text: &str) -> Config {
        let environment = |name: &str| (name == "TTL").then(|| "30s".to_owned());
        Config::parse("t.toml", text, &environment).unwrap()
    }

    fn between(old: &str, new: &str) -> Changes {
        Changes::between(&of(old).settings, &of(new).settings)
    }

    #[test]
    fn each_key_says_its_value_and_where_it_came_from() {
        let config = of(
            "[admin]\ntoken = \"s3cret\"\n[cache.redis]\nurl = \"redis://:pw@h\"\n[[route]]\npath \
                = \"/a\"\nttl = \"${TTL}\"\n",
        );
        let find = |place: &str, key: &str| {
            let is_it = |one: &&Setting| one.place == place && one.key == key;
            config.settings.iter().find(is_it).map(Setting::to_json)
        };
        let ttl = find("route /a", "ttl").unwrap();
        assert_eq!(ttl["value"], "30s");
        assert_eq!(ttl["from"], json!({"line": 7, "environment": ["TTL"]}));
        assert_eq!(find("route /a", "share").unwrap()["from"], "default");
        assert_eq!(find("admin", "token").unwrap()["value"], "…");
        assert_eq!(find("cache.redis", "url").unwrap()["value"], "redis://:…@h");
        assert_eq!(find("limits", "header_count").unwrap()["value"], 100);
        assert_eq!(find("upstream", "queue"), None, "there is none");
        let text = format!(
            "{:?}",
            config
                .settings
                .iter()
                .map(Setting::to_json)
                .collect::<Vec<_>>()
        );
        assert!(!text.contains("s3cret") && !text.contains("pw@"), "{text}");
    }

    #[test]
    fn a_difference_is_told_in_the_operators_words() {
        let route = |keys: &str| format!("[[route]]\npath = \"/a\"\n{keys}\n");
        let changes = between(&route("ttl = \"30s\""), &route("ttl = \"1m 1s\""));
        assert_eq!(changes.effective, ["route /a: ttl 30s → 1m 1s"]);
        let changes = between(&route("ttl = \"60s\""), &route("ttl = \"1m\""));
        assert!(changes.is_empty(), "it is the same: {changes}");
        let changes = between(&route("ttl = \"60s\""), &route(""));
        assert_eq!(changes.effective, ["route /a: ttl 60s → none"]);
        let other = "[[route]]\npath = \"/a\"\nmethods = [\"POST\"]\ninvalidates = [\"g\"]\n";
        let changes = between(&route(""), other);
        assert_eq!(
            changes.effective,
            [
                "route /a: removed",
                "route POST /a: added (invalidates [\"g\"], methods [\"POST\"])"
            ]
        );
        let changes = between("[admin]\ntoken = \"a\"\n", "[admin]\ntoken = \"b\"\n");
        assert_eq!(changes.effective, ["admin: token changed"]);
    }

    #[test]
    fn what_is_fixed_at_the_start_is_told_and_stays() {
        let old = "[listen]\naddress = \"127.0.0.1:1\"\n[upstream]\nurl \
            = \"http://a\"\n[cache]\nmemory = \"64MiB\"\n";
        let new = "[listen]\naddress = \"127.0.0.1:2\"\ndrain_timeout = \"1s\"\n[upstream]\nurl \
            = \"http://b\"\n[cache]\nmemory = \"128MiB\"\n";
        let changes = between(old, new);
        assert_eq!(changes.effective, ["listen: drain_timeout 30s → 1s"]);
        assert_eq!(
            changes.needs_restart,
            [
                "cache: memory 64MiB → 128MiB",
                "listen: address 127.0.0.1:1 → 127.0.0.1:2",
                "upstream: url http://a → http://b"
            ]
        );
        let kept = of(new).in_place_of(&of(old));
        assert_eq!(kept.upstream.unwrap().host, "a");
        assert_eq!(kept.cache.memory, 64 << 20);
        assert_eq!(kept.listen.drain_timeout.as_secs(), 1);
        assert_eq!(kept.listen.first_tcp().unwrap().port(), 1);
    }
}
