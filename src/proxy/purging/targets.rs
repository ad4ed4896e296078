//! How a URL stands in keys, so that purges and writes reach what requests have stored.

use std::borrow::Cow;

use http::Method;

use crate::config::Route;
use crate::policy::key::{KeyBytes, select_query, write_target};
use crate::policy::{canonical, readings};
use crate::proxy::plan::Plan;
use crate::store::Target;
use crate::store::purge::{LONGEST, short};

/// How a URL of this host stands in keys: `target` is its path and query, as somebody typed or
/// wrote them, and of the query what the routes for it let through. Without a host, as each route
/// of any host has it. Empty where no route answers it, for then nothing of it is stored.
///
/// Another instance of the fleet may have other routes and another rule for the query, and so may
/// the plan before this one: where that may be, a URL is named for whatever rule it was stored
/// under.
pub fn url_targets(plan: &Plan, host: Option<&str>, target: &str) -> Vec<Target> {
    let mut targets: Vec<Target> = Vec::new();
    for target in canonical::targets(target) {
        let (path, query) = match target.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (target.as_str(), None),
        };
        if plan.state.may_have_other_rules() {
            targets.extend(of_any_rule(path, query));
            continue;
        }
        for query in selected(plan, host, path, query) {
            let target = url(path, query.as_deref());
            if !targets.contains(&target) {
                targets.push(target);
            }
        }
    }
    targets
}

fn url(path: &str, query: Option<&str>) -> Target {
    let mut target = KeyBytes::new();
    write_target(path, query, &mut target);
    Target::Url(short(&target).into())
}

fn of_any_rule(path: &str, query: Option<&str>) -> Vec<Target> {
    let mut target = KeyBytes::new();
    write_target(path, query, &mut target);
    if query.is_none() || target.len() > LONGEST {
        // Without a query every rule spells it alike; and of a long one the log keeps a digest, so
        // that the path is named apart.
        let mut whole = vec![url(path, query)];
        if query.is_some() {
            let path = short(path.as_bytes()).into_owned();
            whole.push(Target::UrlOfAnyRule([&path[..], b"\0\0"].concat().into()));
        }
        return whole;
    }
    vec![Target::UrlOfAnyRule(target[..].into())]
}

/// What the routes that answer a path let through of a query.
fn selected<'a>(
    plan: &Plan,
    host: Option<&str>,
    path: &str,
    query: Option<&'a str>,
) -> Vec<Option<Cow<'a, str>>> {
    let of_route = |route: &Route| select_query(query, &route.query, route.sort_query);
    if let Some(host) = host {
        let host = host.to_ascii_lowercase();
        let found = plan.route(&Method::GET, &host, path);
        return found
            .map(|route| of_route(&route.rule))
            .into_iter()
            .collect();
    }
    let routes = &plan.config.routes;
    let Some(mut paths) = readings::readings(path) else {
        return routes.list().iter().map(|route| of_route(route)).collect();
    };
    paths.push(path.to_owned());
    paths.extend(readings::without_extension(path).map(str::to_owned));
    let found = paths
        .iter()
        .flat_map(|path| routes.for_path(&Method::GET, path));
    found.map(|route| of_route(route)).collect()
}
