//! What of a configuration is valid, and probably not meant so.

use std::sync::Arc;

use http::Method;

use crate::config::{Config, LimitBy, OnDifference, RateLimit, Route, Scope, VerdictSource};
use crate::policy::{Cookies, Share, invalidate};

/// The methods that IANA's registry has (RFC 9110 §16.1), but for those that no proxy is asked for.
const METHODS: [&str; 39] = [
    "GET",
    "HEAD",
    "POST",
    "PUT",
    "DELETE",
    "OPTIONS",
    "PATCH",
    "TRACE",
    "QUERY",
    "ACL",
    "BASELINE-CONTROL",
    "BIND",
    "CHECKIN",
    "CHECKOUT",
    "COPY",
    "LABEL",
    "LINK",
    "LOCK",
    "MERGE",
    "MKACTIVITY",
    "MKCALENDAR",
    "MKCOL",
    "MKREDIRECTREF",
    "MKWORKSPACE",
    "MOVE",
    "ORDERPATCH",
    "PROPFIND",
    "PROPPATCH",
    "REBIND",
    "REPORT",
    "SEARCH",
    "UNBIND",
    "UNCHECKOUT",
    "UNLINK",
    "UNLOCK",
    "UPDATE",
    "UPDATEREDIRECTREF",
    "VERSION-CONTROL",
    "PURGE",
];

/// What is valid, and probably not meant so.
pub fn doubts(config: &Config) -> Vec<String> {
    let mut doubts = Vec::new();
    let routes = config.routes.list();
    let is_verified = |route: &&Arc<Route>| route.options.share == Share::Verified;
    for route in routes {
        doubts.extend(of_route(route, routes));
    }
    doubts.extend(strange_groups(routes));
    let any_verified = routes.iter().any(|route| is_verified(&route));
    if any_verified && config.auth.on_difference == OnDifference::Off {
        doubts.push(
            "auth.on_difference = \"off\": nobody notices if the answers of a route with \
            share = \"verified\" differ by key"
                .to_owned(),
        );
    }
    if any_verified && config.auth.source == VerdictSource::Origin && config.auth.control.is_none()
    {
        doubts.push(
            "auth.control = \"off\": whatever makes the API answer 2xx without looking at \
            the key (a login page, an open path, a default virtual host) makes a made-up key good \
            there; what \"1h\" costs are two refused requests for each URL path and hour, in the \
            whole fleet"
                .to_owned(),
        );
    }
    let is_empty = config.origin.database == "sqlite::memory:" && config.upstream.is_some();
    if any_verified && config.auth.source == VerdictSource::Table && is_empty {
        doubts.push(
            "auth.source = \"table\", and [origin] database is in memory: it knows no \
            key, so every one is refused; expected the database of the API"
                .to_owned(),
        );
    }
    let by_address = |limit: &RateLimit| limit.by == LimitBy::Address;
    let is_behind = config.listen.is_local() || config.upstream.is_none();
    if config.rate_limits.iter().any(by_address)
        && config.listen.trusted_proxies.is_empty()
        && !is_behind
    {
        doubts.push(
            "[[rate_limit]] by = \"address\" without listen.trusted_proxies: behind a \
            load balancer all clients are one"
                .to_owned(),
        );
    }
    doubts
}

/// What of one route is probably not meant so.
fn of_route(route: &Route, routes: &[Arc<Route>]) -> Vec<String> {
    let at = format!("route {:?} (line {})", route.path, route.line);
    let options = &route.options;
    let mut methods = route.methods.iter();
    let takes_no_reads = methods.all(|method| !invalidate::is_safe(method));
    let mut doubts = Vec::new();
    doubts.extend(
        route
            .methods
            .iter()
            .filter_map(unknown_method)
            .map(|doubt| format!("{at}: {doubt}")),
    );
    let lifetimes = options.ttl.or(options.force_ttl).or(options.max_ttl);
    if lifetimes.is_some() && takes_no_reads {
        doubts.push(format!(
            "{at}: its lifetime says nothing: only answers to GET are stored, and the route takes none"
        ));
    }
    if options.share == Share::Verified {
        doubts.extend(takes_other_names(route, routes).map(|doubt| format!("{at}: {doubt}")));
        if takes_no_reads {
            doubts.push(format!(
                "{at}: share = \"verified\" is for GET and HEAD, and the route takes neither"
            ));
        }
        if let Some(forwarded) = &route.forward_headers
            && !options
                .credential_fields
                .iter()
                .any(|name| forwarded.contains(name))
        {
            doubts.push(format!(
                "{at}: forward_headers keeps every credential from the API, \
                which cannot verify keys then"
            ));
        }
        if options.cookies == Cookies::Key {
            doubts.push(format!(
                "{at}: share = \"verified\" with cookies = \"key\": each \
                cookie has answers of its own, so nothing is shared by those who have one"
            ));
        }
        if options.cookies == Cookies::Ignore && !options.credential_cookies.is_empty() {
            doubts.push(format!(
                "{at}: cookies = \"ignore\" keeps cache.credential_cookies \
                from the API, which cannot verify them then"
            ));
        }
    } else if route.verdict_scope != Scope::Url {
        doubts.push(format!(
            "{at}: verdict_scope says nothing where share is {:?}: expected \
            share = \"verified\"",
            options.share.as_str()
        ));
    }
    doubts
}

/// A verified route that takes whatever no other route does, beside others that were given routes
/// of their own: there may be more of those.
fn takes_other_names(route: &Route, routes: &[Arc<Route>]) -> Option<String> {
    let (beginning, _) = route.path.split_once('{')?;
    let names = |other: &Arc<Route>| {
        let name = other.path.strip_prefix(beginning)?.split('/').next()?;
        let is_literal = !name.is_empty() && !name.contains('{');
        (is_literal && other.host == route.host).then(|| name.to_owned())
    };
    let mut taken: Vec<String> = routes.iter().filter_map(names).collect();
    taken.sort_unstable();
    taken.dedup();
    (!taken.is_empty()).then(|| {
        format!(
            "share = \"verified\" takes every name after {beginning:?} but {}, which have routes \
                of their own: whatever else there answers by key needs one too (share \
                = \"per-key\")",
            taken.join(", ")
        )
    })
}

/// A method that nobody has registered: likely a slip, and then no request ever has it.
fn unknown_method(method: &Method) -> Option<String> {
    if METHODS.contains(&method.as_str()) {
        return None;
    }
    let likeness = |known: &&str| (strsim::jaro_winkler(known, method.as_str()) * 1000.0) as u32;
    let nearest = METHODS.into_iter().max_by_key(likeness);
    let nearest = nearest.filter(|known| likeness(known) > 700);
    let meant = nearest.map(|known| format!(": did you mean {known:?}?"));
    let meant = meant.unwrap_or_default();
    Some(format!(
        "methods: {method:?} is no method that is registered{meant}"
    ))
}

/// Groups that a write names and no route has.
fn strange_groups(routes: &[Arc<Route>]) -> Vec<String> {
    let has = |name: &str| {
        let mut groups = routes
            .iter()
            .filter_map(|route| route.options.groups.as_ref());
        groups.any(|groups| groups.iter().any(|known| **known == *name))
    };
    let mut strange = Vec::new();
    for route in routes {
        for (name, _) in route.invalidates.iter().filter(|(name, _)| !has(name)) {
            strange.push(format!(
                "route {:?} (line {}): no route has the group {name:?}, which its writes change: \
                    only what the API itself puts into it (Cache-Groups) would go",
                route.path, route.line
            ));
        }
    }
    strange
}

/// Groups that no write names: they go by hand, or by the API's own word.
pub fn idle_groups(routes: &[Arc<Route>]) -> Vec<String> {
    let is_named = |name: &str| {
        let mut named = routes.iter().flat_map(|route| &route.invalidates);
        named.any(|(known, _)| **known == *name)
    };
    let groups = routes
        .iter()
        .filter_map(|route| route.options.groups.as_ref());
    let mut idle: Vec<String> = groups
        .flat_map(|groups| groups.iter())
        .filter(|name| !is_named(name))
        .map(ToString::to_string)
        .collect();
    idle.sort_unstable();
    idle.dedup();
    idle
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_that_nobody_names_are_known() {
        let route = |keys: &str| format!("[[route]]\npath = \"/a{keys}\"\nttl = \"1s\"\n");
        let text = format!(
            "{}groups = [\"a\", \"b\"]\n{}methods = [\"POST\"]\ninvalidates = [\"a\"]\n",
            route(""),
            route("/write").replace("ttl = \"1s\"\n", "")
        );
        let config = Config::parse("t", &text, &|_| None).unwrap();
        assert_eq!(idle_groups(config.routes.list()), ["b"]);
        assert!(doubts(&config).is_empty(), "{:?}", doubts(&config));
    }

    #[test]
    fn what_is_probably_not_meant_so_is_told() {
        let told = |text: &str| {
            let config = Config::parse("t", text, &|_| None).unwrap();
            doubts(&config).join("\n")
        };
        let route = |keys: &str| format!("[[route]]\npath = \"/a\"\nttl = \"1s\"\n{keys}\n");
        assert_eq!(
            told(&format!(
                "[auth]\nsource = \"http://127.0.0.1:1/me\"\n{}",
                route("share = \"verified\"\nverdict_scope = \"all\"")
            )),
            ""
        );
        for (text, says) in [
            (
                route("methods = [\"GET\", \"PSOT\"]"),
                "did you mean \"POST\"",
            ),
            (
                "[[route]]\npath = \"/w\"\nmethods = [\"POST\"]\npurges = [\"gone\"]\n".to_owned(),
                "no route has the group \"gone\"",
            ),
            (
                format!(
                    "[auth]\nsource = \"table\"\n{}",
                    route("verdict_scope = \"route\"")
                ),
                "verdict_scope says nothing",
            ),
            (
                format!(
                    "{}[[route]]\npath = \"/{{name}}\"\nshare = \"verified\"\n",
                    route("")
                ),
                "takes every name after \"/\" but a,",
            ),
            (
                format!(
                    "[auth]\ncontrol = \"off\"\n{}",
                    route("share = \"verified\"")
                ),
                "makes a made-up key good",
            ),
            (
                route("share = \"verified\"\ncookies = \"key\""),
                "nothing is shared",
            ),
            (
                route("share = \"verified\"\nmethods = [\"POST\"]"),
                "takes neither",
            ),
            (
                format!(
                    "[auth]\non_difference = \"off\"\n{}",
                    route("share = \"verified\"")
                ),
                "nobody notices",
            ),
            (
                format!(
                    "[upstream]\nurl = \"http://127.0.0.1:1\"\n[auth]\nsource = \"table\"\n{}",
                    route("share = \"verified\"")
                ),
                "it knows no key",
            ),
            (
                "[listen]\naddress = \"0.0.0.0:80\"\n[upstream]\nurl \
                    = \"http://127.0.0.1:1\"\n[[rate_limit]]\nby = \"address\"\nrequests = \
                    1\nwindow = \"1m\"\n"
                    .to_owned(),
                "all clients are one",
            ),
        ] {
            let told = told(&text);
            assert!(told.contains(says), "{text}: {told}");
        }
    }
}
