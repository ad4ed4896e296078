//! How a URL stands in keys, so that purges and writes reach what requests have stored.

use std::borrow::Cow;
use std::sync::Arc;

use http::Method;

use crate::config::{Route, Routes};
use crate::policy::key::{KeyBytes, normalise_path, select_query, write_target};
use crate::proxy::plan::Plan;
use crate::proxy::wire::framing::without_port;
use crate::store::Target;
use crate::store::purge::{LONGEST, short};

/// How a URL of this host stands in keys: its path, and of its query what the routes for it let
/// through. Without a host, as each route of any host has it. Empty where no route answers it, for
/// then nothing of it is stored.
///
/// Another instance of the fleet may have another rule for the query, and so may a plan before this
/// one: where that may be, a URL with a query is named for whatever rule it was stored under.
pub fn url_targets(
    plan: &Plan,
    host: Option<&str>,
    path: &str,
    query: Option<&str>,
) -> Vec<Target> {
    let path = normalise_path(path);
    let host = host.map(|host| without_port(host).to_ascii_lowercase());
    let mut queries = selected(&plan.config.routes, host.as_deref(), &path, query);
    let has_one_rule = plan.generation == 0 && plan.state.second.is_none();
    if query.is_some() && !has_one_rule && !queries.is_empty() {
        return vec![url_of_any_rule(&path, query)];
    }
    queries.sort_unstable();
    queries.dedup();
    let named = queries.into_iter().map(|query| {
        let mut target = KeyBytes::new();
        write_target(&path, query.as_deref(), &mut target);
        Target::Url(short(&target).into())
    });
    named.collect()
}

fn url_of_any_rule(path: &str, query: Option<&str>) -> Target {
    let mut target = KeyBytes::new();
    write_target(path, query, &mut target);
    if target.len() > LONGEST {
        // The log keeps no such name: whatever the query.
        return Target::Prefix(format!("{path}?").into());
    }
    Target::UrlOfAnyRule(target[..].into())
}

/// What the routes that answer a path let through of a query.
fn selected<'a>(
    routes: &Routes,
    host: Option<&str>,
    path: &str,
    query: Option<&'a str>,
) -> Vec<Option<Cow<'a, str>>> {
    let of_route = |route: &Arc<Route>| select_query(query, &route.query, route.sort_query);
    match host {
        Some(host) => {
            let found = routes.find(&Method::GET, host, path);
            found
                .into_iter()
                .map(|(_, route)| of_route(route))
                .collect()
        }
        None => routes.for_path(&Method::GET, path).map(of_route).collect(),
    }
}
