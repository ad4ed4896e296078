//! `iris-sidecar check`: the routes as they take effect, and what is probably not meant so.

use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use comfy_table::{ContentArrangement, Table, TableStyle};
use http::Method;

use crate::config::{Config, LimitBy, OnDifference, Route, Scope, VerdictSource, units};
use crate::policy::key::QueryRule;
use crate::policy::{Cookies, Share, invalidate};

use super::ending::{Ending, load};
use super::{control, running};

/// Checks a configuration; prints its routes, and what is probably wrong without being a mistake.
pub(super) fn check(file: &Path, against: Option<&str>) -> Ending {
    let config = match load(file) {
        Ok(config) => config,
        Err(ending) => return ending,
    };
    if let Some(admin) = against {
        return compare(&config, admin);
    }
    let upstream = config.upstream.as_ref();
    let upstream = upstream.map_or("the built-in origin".to_owned(), |upstream| {
        upstream.shown()
    });
    let text = format!(
        "{} is valid.\nlisten {}  admin {}  upstream {}  memory {}\n{}\nWhat matches no route is proxied and never stored.\n{}",
        file.display(),
        config.listen.shown(),
        config.admin.address,
        upstream,
        units::show_size(config.cache.memory),
        routes_table(&config),
        control_cost(&config).unwrap_or_default(),
    );
    // A pager that was closed early has seen enough.
    let _ = std::io::stdout().write_all(text.as_bytes());
    for doubt in doubts(&config).into_iter().chain(demotions(&config)) {
        eprintln!("warning: {doubt}");
    }
    Ending::Done
}

/// What would change if the sidecar with this admin port read the file.
fn compare(config: &Config, admin: &str) -> Ending {
    match control::against(config, admin) {
        Ok(changes) if changes.is_empty() => {
            println!("nothing differs from what runs (secrets were not compared)");
            Ending::Done
        }
        Ok(changes) => {
            print!("{changes}");
            Ending::Done
        }
        Err(error) => {
            eprintln!("{error:#}");
            Ending::Missed
        }
    }
}

/// What controls cost an origin, which may count the keys that it refuses.
fn control_cost(config: &Config) -> Option<String> {
    let every = config.auth.control?;
    let routes = config.routes.list();
    let any_verified = routes
        .iter()
        .any(|route| route.options.share == Share::Verified);
    let (whom, each) = match &config.auth.source {
        VerdictSource::Origin => (
            "the API",
            "for each host, path and set of query names on routes with share = \"verified\"",
        ),
        VerdictSource::Url(_) => ("auth.source", "in all"),
        VerdictSource::Table => return None,
    };
    any_verified.then(|| {
        format!(
            "Controls: {whom} is asked with a random key and with none, at most once in {} {each}, by the whole fleet; both are meant to be refused (auth.control).\n",
            units::show_duration(every)
        )
    })
}

/// The routes as they take effect: in the order in which they are tried.
fn routes_table(config: &Config) -> Table {
    let mut routes: Vec<&Route> = config.routes.list().iter().map(|route| &**route).collect();
    routes.sort_by_key(|route| specificity(route));
    let mut table = Table::new();
    table
        .load_style(TableStyle::new())
        .set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header([
        "path", "host", "methods", "lifetime", "stale", "share", "query", "cookies",
    ]);
    for route in routes {
        let methods: Vec<&str> = route.methods.iter().map(http::Method::as_str).collect();
        table.add_row([
            route.path.clone(),
            route.host.clone().unwrap_or_else(|| "any".to_owned()),
            methods.join(" "),
            lifetime(route),
            stale(route),
            route.options.share.as_str().to_owned(),
            match &route.query {
                QueryRule::All => "all".to_owned(),
                QueryRule::None => "none".to_owned(),
                QueryRule::Names(names) => names.join(" "),
            },
            match route.options.cookies {
                Cookies::Bypass => "bypass",
                Cookies::Ignore => "ignore",
                Cookies::Key => "key",
                Cookies::Store => "store",
            }
            .to_owned(),
        ]);
    }
    table
}

/// Hosts before none, named before wildcard; then literal path segments before patterns.
fn specificity(route: &Route) -> (u8, Vec<(u8, &str)>) {
    let host = match &route.host {
        Some(host) if host.starts_with("*.") => 1,
        Some(_) => 0,
        None => 2,
    };
    let segments = route.path.split('/').map(|segment| match segment {
        segment if segment.contains("{*") => (2, segment),
        segment if segment.contains('{') => (1, segment),
        segment => (0, segment),
    });
    (host, segments.collect())
}

fn lifetime(route: &Route) -> String {
    let options = &route.options;
    let parts = [
        options
            .force_ttl
            .map(|ttl| format!("{} forced", units::show_duration(ttl))),
        options
            .ttl
            .filter(|_| options.force_ttl.is_none())
            .map(|ttl| format!("origin's, else {}", units::show_duration(ttl))),
        options
            .max_ttl
            .map(|ttl| format!("at most {}", units::show_duration(ttl))),
        options
            .error_ttl
            .map(|ttl| format!("errors {}", units::show_duration(ttl))),
    ];
    let parts: Vec<String> = parts.into_iter().flatten().collect();
    if parts.is_empty() {
        "origin's".to_owned()
    } else {
        parts.join(", ")
    }
}

fn stale(route: &Route) -> String {
    let options = &route.options;
    let parts = [
        options
            .stale_while_revalidate
            .map(|window| format!("{} refreshing", units::show_duration(window))),
        options
            .stale_if_error
            .map(|window| format!("{} on error", units::show_duration(window))),
    ];
    let parts: Vec<String> = parts.into_iter().flatten().collect();
    if parts.is_empty() {
        "origin's".to_owned()
    } else {
        parts.join(", ")
    }
}

/// What is valid, and probably not meant so.
fn doubts(config: &Config) -> Vec<String> {
    let mut doubts = Vec::new();
    let routes = config.routes.list();
    let is_verified = |route: &&Arc<Route>| route.options.share == Share::Verified;
    for route in routes {
        let at = format!("route {:?} (line {})", route.path, route.line);
        let options = &route.options;
        if options.share == Share::Verified {
            doubts.extend(takes_other_names(route, routes).map(|doubt| format!("{at}: {doubt}")));
            if route
                .methods
                .iter()
                .all(|method| !invalidate::is_safe(method))
            {
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
                doubts.push(format!("{at}: forward_headers keeps every credential from the API, which cannot verify keys then"));
            }
            if options.cookies == Cookies::Key {
                doubts.push(format!("{at}: share = \"verified\" with cookies = \"key\": each cookie has answers of its own, so nothing is shared by those who have one"));
            }
            if options.cookies == Cookies::Ignore && !options.credential_cookies.is_empty() {
                doubts.push(format!("{at}: cookies = \"ignore\" keeps cache.credential_cookies from the API, which cannot verify them then"));
            }
        } else if route.verdict_scope != Scope::Url {
            doubts.push(format!("{at}: verdict_scope says nothing where share is {:?}: expected share = \"verified\"", options.share.as_str()));
        }
    }
    let any_verified = routes.iter().any(|route| is_verified(&route));
    if any_verified && config.auth.on_difference == OnDifference::Off {
        doubts.push("auth.on_difference = \"off\": nobody notices if the answers of a route with share = \"verified\" differ by key".to_owned());
    }
    if any_verified && config.auth.source == VerdictSource::Origin && config.auth.control.is_none()
    {
        doubts.push("auth.control = \"off\": whatever makes the API answer 2xx without looking at the key (a login page, an open path, a default virtual host) makes a made-up key good there; what \"1h\" costs are two refused requests for each URL path and hour, in the whole fleet".to_owned());
    }
    let is_empty = config.origin.database == "sqlite::memory:" && config.upstream.is_some();
    if any_verified && config.auth.source == VerdictSource::Table && is_empty {
        doubts.push("auth.source = \"table\", and [origin] database is in memory: it knows no key, so every one is refused; expected the database of the API".to_owned());
    }
    let by_address = |limit: &crate::config::RateLimit| limit.by == LimitBy::Address;
    let is_behind = config.listen.is_local() || config.upstream.is_none();
    if config.rate_limits.iter().any(by_address)
        && config.listen.trusted_proxies.is_empty()
        && !is_behind
    {
        doubts.push("[[rate_limit]] by = \"address\" without listen.trusted_proxies: behind a load balancer all clients are one".to_owned());
    }
    doubts
}

/// A verified route that takes whatever no other route does, beside others that were given routes of
/// their own: there may be more of those.
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
            "share = \"verified\" takes every name after {beginning:?} but {}, which have routes of their own: whatever else there answers by key needs one too (share = \"per-key\")",
            taken.join(", ")
        )
    })
}

/// Routes that a running instance, where there is one on the configured admin port, has found to
/// answer by key.
fn demotions(config: &Config) -> Vec<String> {
    let asking = async {
        let answer = running::ask(config, Method::GET, "/metrics", String::new()).await;
        answer.map_or_else(String::new, |(_, text)| text)
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let text = runtime.map_or_else(|_| String::new(), |runtime| runtime.block_on(asking));
    let demoted = |line: &str| {
        let rest = line.strip_prefix("auth_demotions_total{path=\"")?;
        let (path, count) = rest.rsplit_once("\"} ")?;
        (count != "0").then(|| path.to_owned())
    };
    let shared = config.routes.list().iter();
    let shared: Vec<&str> = shared
        .filter(|route| route.options.share == Share::Verified)
        .map(|route| route.path.as_str())
        .collect();
    let paths = text.lines().filter_map(demoted);
    paths
        .filter(|path| shared.contains(&path.as_str()))
        .map(|path| format!("route {path:?}: the instance that runs has found that its answers differ by key, and demoted it, or the URLs that do (GET /explain names one): set share = \"per-key\" for them"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_lists_routes_in_the_order_in_which_they_are_tried() {
        let text = "[[route]]\npath = \"/{*rest}\"\n[[route]]\npath = \"/a/{x}\"\n[[route]]\npath = \"/a/b\"\nttl = \"30s\"\n[[route]]\npath = \"/{*rest}\"\nhost = \"h.example\"\n";
        let config = Config::parse("t", text, &|_| None).unwrap();
        let table = routes_table(&config).to_string();
        let first: Vec<&str> = table
            .lines()
            .skip(1)
            .filter_map(|line| line.split_whitespace().next())
            .collect();
        assert_eq!(first, ["/{*rest}", "/a/b", "/a/{x}", "/{*rest}"], "{table}");
        assert!(table.contains("origin's, else 30s"), "{table}");
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
                format!("[auth]\ncontrol = \"off\"\n{}", route("share = \"verified\"")),
                "makes a made-up key good",
            ),
            (route("share = \"verified\"\ncookies = \"key\""), "nothing is shared"),
            (
                route("share = \"verified\"\nmethods = [\"POST\"]"),
                "takes neither",
            ),
            (
                format!("[auth]\non_difference = \"off\"\n{}", route("share = \"verified\"")),
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
                "[listen]\naddress = \"0.0.0.0:80\"\n[upstream]\nurl = \"http://127.0.0.1:1\"\n[[rate_limit]]\nby = \"address\"\nrequests = 1\nwindow = \"1m\"\n".to_owned(),
                "all clients are one",
            ),
        ] {
            let told = told(&text);
            assert!(told.contains(says), "{text}: {told}");
        }
    }
}
