//! The rule digest of a route: what of its rules decides which response a request gets, or what the
//! origin answered by. It is part of every key, in memory and in Redis.
//!
//! How long a response is good for is no part of it: a stored response keeps the lifetime that it
//! was given when it came.

use http::HeaderValue;
use sha2::{Digest, Sha256};

use crate::config::Route;
use crate::policy::key::{QueryRule, RuleDigest};
use crate::policy::{Cookies, Ignore, Normalise, Options};
use crate::proxy::wire::Forwarding;

/// Writes parts so that no two lists of parts give the same bytes.
struct Parts(Sha256);

impl Parts {
    fn add(&mut self, part: impl AsRef<[u8]>) {
        let part = part.as_ref();
        self.0.update((part.len() as u64).to_be_bytes());
        self.0.update(part);
    }

    fn add_all<T: AsRef<[u8]>>(&mut self, name: &str, parts: impl IntoIterator<Item = T>) {
        let parts: Vec<T> = parts.into_iter().collect();
        self.add(name);
        self.add((parts.len() as u64).to_be_bytes());
        for part in parts {
            self.add(part);
        }
    }

    fn add_flag(&mut self, name: &str, is_set: bool) {
        self.add(name);
        self.add([u8::from(is_set)]);
    }
}

/// The digest of a route's rules, and of how requests are forwarded.
pub fn rule_digest(route: &Route, forwarding: &Forwarding) -> RuleDigest {
    // Field by field: a new one must be sorted in here before it compiles.
    let Route {
        options,
        query,
        sort_query,
        normalise: Normalise { languages, origins },
        forward_headers,
        upstream,
        request_fields,
        // At delivery, never in what is stored.
        response_fields: _,
        cors: _,
        // Which requests it takes, and what it does with writes: said by the key itself, or no
        // business of what is stored.
        path: _,
        host: _,
        methods: _,
        verdict_scope: _,
        raw_target: _,
        drops_unknown_query: _,
        invalidates: _,
        line: _,
    } = route;
    let mut parts = Parts(Sha256::new());
    parts.add("rule 1");
    add_options(&mut parts, options);
    match query {
        QueryRule::All => parts.add("all"),
        QueryRule::None => parts.add("none"),
        QueryRule::Names(names) => parts.add_all("names", names),
    }
    parts.add_flag("sort_query", *sort_query);
    parts.add_all("languages", languages.iter().map(HeaderValue::as_bytes));
    if let Some(origins) = origins {
        parts.add_all("origins", origins.iter().map(HeaderValue::as_bytes));
    }
    if let Some(names) = forward_headers {
        parts.add_all("forward_headers", names.iter().map(|name| name.as_str()));
    }
    if !request_fields.is_empty() {
        parts.add_all(
            "removed",
            request_fields.remove.iter().map(|name| name.as_str()),
        );
        for (kind, fields) in [("set", &request_fields.set), ("added", &request_fields.add)] {
            let fields = fields
                .iter()
                .map(|(name, value)| format!("{name}: {}", value.shown()));
            parts.add_all(kind, fields);
        }
    }
    if let Some(name) = upstream {
        parts.add_all("upstream", [&**name]);
    }
    for value in forwarding.configured_values() {
        let value = value.map(HeaderValue::as_bytes);
        parts.add_all("forwarded", value);
    }
    let changes_query = *query != QueryRule::All || *sort_query;
    RuleDigest::new(&parts.0.finalize().into(), changes_query)
}

fn add_options(parts: &mut Parts, options: &Options) {
    let Options {
        share,
        cookies,
        ignore:
            Ignore {
                no_store,
                no_cache,
                private,
                set_cookie,
            },
        groups,
        credential_fields,
        credential_cookies,
        // How long a response is good for, and how it looks: of the answer, not of what is stored.
        // What is stored is right when it is switched back.
        bypass: _,
        ttl: _,
        force_ttl: _,
        max_ttl: _,
        error_ttl: _,
        stale_while_revalidate: _,
        stale_if_error: _,
        obey: _,
        heuristic_max_ttl: _,
        ttl_statuses: _,
        error_statuses: _,
        weak_revalidation: _,
        head_as_get: _,
        error_when: _,
        targeted_fields,
        hides_targeted: _,
        client_cache_control: _,
    } = options;
    parts.add(share.as_str());
    parts.add(match cookies {
        Cookies::Bypass => "bypass",
        Cookies::Ignore => "ignore",
        Cookies::Key => "key",
        Cookies::Store => "store",
    });
    parts.add_flag("no_store", *no_store);
    parts.add_flag("no_cache", *no_cache);
    parts.add_flag("private", *private);
    parts.add_flag("set_cookie", *set_cookie);
    // What is stored carries its groups: under another list a purge would pass it by.
    if let Some(groups) = groups {
        parts.add_all("groups", groups.iter().map(|group| group.as_bytes()));
    }
    let fields = targeted_fields.iter().map(|name| name.as_str());
    parts.add_all("targeted_fields", fields);
    let fields = credential_fields.iter().map(|name| name.as_str());
    parts.add_all("credential_fields", fields);
    let cookies = credential_cookies.iter().map(|name| name.as_bytes());
    parts.add_all("credential_cookies", cookies);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn digest(global: &str, route: &str) -> RuleDigest {
        let text = format!(
            "[upstream]\nurl = \"http://a\"\n{global}\n[[route]]\npath = \"/a\"\n{route}\n"
        );
        let config = Config::parse("test", &text, &|_| None).unwrap();
        rule_digest(&config.routes.list()[0], &Forwarding::new(&config))
    }

    #[test]
    fn each_rule_that_decides_what_is_shared_gives_another_digest() {
        let rules = [
            ("", ""),
            ("", "share = \"per-key\""),
            ("", "share = \"verified\""),
            ("", "query = \"none\""),
            ("", "query = [\"a\"]"),
            ("", "query = [\"a\", \"b\"]"),
            ("", "sort_query = true"),
            ("", "cookies = \"ignore\""),
            ("", "cookies = \"key\""),
            ("", "cookies = \"store\""),
            ("", "ignore = [\"private\"]"),
            ("", "ignore = [\"no-store\"]"),
            ("", "ignore = [\"no-cache\"]"),
            ("", "ignore = [\"set-cookie\"]"),
            ("", "languages = [\"de\"]"),
            ("", "origins = [\"http://a\"]"),
            ("", "origins = []"),
            ("", "forward_headers = [\"accept\"]"),
            ("", "groups = [\"g\"]"),
            ("", "request_headers = { remove = [\"x-a\"] }"),
            ("", "request_headers = { set = { x-a = \"1\" } }"),
            ("", "request_headers = { add = { x-a = \"1\" } }"),
            ("", "request_headers = { set = { x-a = \"{client}\" } }"),
            ("[upstream.b]\nurl = \"http://b\"", "upstream = \"b\""),
            ("[upstream.c]\nurl = \"http://b\"", "upstream = \"c\""),
            ("host = \"rewrite\"", ""),
            ("host = \"rewrite\"\nforwarded_host = \"x\"", ""),
            ("host = \"rewrite\"\nforwarded_proto = \"https\"", ""),
            ("[cache]\ncredential_fields = [\"x-key\"]", ""),
            ("[cache]\ncredential_cookies = [\"session\"]", ""),
        ];
        let mut digests: Vec<_> = rules.iter().map(|(all, one)| digest(all, one)).collect();
        digests.sort_unstable_by_key(|digest| format!("{digest:?}"));
        digests.dedup();
        assert_eq!(digests.len(), rules.len());
    }

    #[test]
    fn lifetimes_and_methods_leave_the_digest_as_it_is() {
        let none = digest("", "");
        for same in [
            "ttl = \"1s\"",
            "force_ttl = \"1s\"",
            "stale_if_error = \"1h\"",
            "methods = [\"GET\", \"HEAD\", \"POST\"]",
            "response_headers = { set = { x-a = \"1\" } }",
            "cors = { origins = [\"https://a.example\"] }",
        ] {
            assert_eq!(digest("", same), none, "{same}");
        }
    }
}
