//! Routes: which requests a `[[route]]` is for, the most specific first.

use std::sync::Arc;

use http::{HeaderName, Method};
use matchit::Router;

use crate::policy::key::QueryRule;
use crate::policy::{Mode, Normalise, Options};

use super::auth::Scope;

/// One checked `[[route]]`.
#[derive(Clone, Debug)]
pub struct Route {
    /// The pattern as written: the label in metrics and tables.
    pub path: String,
    /// `None`: any host. `*.example.org` matches one more label.
    pub host: Option<String>,
    pub methods: Vec<Method>,
    pub options: Options,
    pub query: QueryRule,
    pub sort_query: bool,
    pub normalise: Normalise,
    /// The only client fields that reach the origin; `None`: all.
    pub forward_headers: Option<Vec<HeaderName>>,
    /// How far a verdict on a key reaches that was learned through this route.
    pub verdict_scope: Scope,
    /// Groups that a write through this route makes stale or gone.
    pub invalidates: Vec<(Box<str>, Mode)>,
    /// Where it stands in the file, for messages about it.
    pub line: usize,
}

/// All routes, indexed for look-up: host, then method, then path.
#[derive(Clone, Debug, Default)]
pub struct Routes {
    list: Vec<Arc<Route>>,
    hosts: Vec<(String, ByMethod)>,
    any_host: ByMethod,
    normalises: bool,
}

type ByMethod = Vec<(Method, Router<usize>)>;

/// Why a route cannot be added.
#[derive(Debug)]
pub enum RouteError {
    /// It matches the same requests as an earlier route, at this place of the list.
    SameAs { earlier: usize, method: Method },
    /// The pattern is not one; the text says why.
    Pattern(String),
}

impl Routes {
    pub fn list(&self) -> &[Arc<Route>] {
        &self.list
    }

    /// Adds a route, unless it matches the same requests as one before it.
    pub fn add(&mut self, route: Route) -> Result<(), RouteError> {
        let index = self.list.len();
        let by_method = match &route.host {
            None => &mut self.any_host,
            Some(host) => {
                let at = self.hosts.iter().position(|(known, _)| known == host);
                let at = at.unwrap_or_else(|| {
                    self.hosts.push((host.clone(), ByMethod::new()));
                    self.hosts.len() - 1
                });
                &mut self.hosts[at].1
            }
        };
        for method in &route.methods {
            let at = by_method.iter().position(|(known, _)| known == method);
            let at = at.unwrap_or_else(|| {
                by_method.push((method.clone(), Router::new()));
                by_method.len() - 1
            });
            let router = &mut by_method[at].1;
            router
                .insert(&route.path, index)
                .map_err(|error| match error {
                    matchit::InsertError::Conflict { with } => {
                        let same = |known: &&Arc<Route>| {
                            known.path == with
                                && known.host == route.host
                                && known.methods.contains(method)
                        };
                        let earlier = self.list.iter().position(|known| same(&known));
                        RouteError::SameAs {
                            earlier: earlier.unwrap_or(index),
                            method: method.clone(),
                        }
                    }
                    other => RouteError::Pattern(other.to_string()),
                })?;
        }
        self.normalises |= !route.normalise.is_idle();
        self.list.push(Arc::new(route));
        Ok(())
    }

    /// The route of a request: a named host goes before a wildcard before none, then the most
    /// specific path among those that take the method; with its place in the list. `host` comes without port, in lower case.
    pub fn find(&self, method: &Method, host: &str, path: &str) -> Option<(usize, &Arc<Route>)> {
        if !self.hosts.is_empty() {
            let exact = self.hosts.iter().find(|(known, _)| known == host);
            let parent = host.split_once('.').map(|(_, parent)| parent);
            let wildcard = self.hosts.iter().find(|(known, _)| {
                known
                    .strip_prefix("*.")
                    .is_some_and(|known| Some(known) == parent)
            });
            for (_, by_method) in exact.into_iter().chain(wildcard) {
                if let Some(index) = find_path(by_method, method, path) {
                    return self.list.get(index).map(|route| (index, route));
                }
            }
        }
        find_path(&self.any_host, method, path)
            .and_then(|index| self.list.get(index).map(|route| (index, route)))
    }

    /// The routes that this path may take, of whatever host.
    pub fn for_path(&self, method: &Method, path: &str) -> impl Iterator<Item = &Arc<Route>> {
        let hosts = self.hosts.iter().map(|(_, by_method)| by_method);
        hosts
            .chain([&self.any_host])
            .filter_map(move |by_method| self.list.get(find_path(by_method, method, path)?))
    }

    /// Whether any route rewrites selecting fields.
    pub fn normalise(&self) -> bool {
        self.normalises
    }

    /// Whether any route looks at the host, so that it belongs in every key.
    pub fn match_hosts(&self) -> bool {
        !self.hosts.is_empty()
    }
}

fn find_path(by_method: &ByMethod, method: &Method, path: &str) -> Option<usize> {
    let (_, router) = by_method.iter().find(|(known, _)| known == method)?;
    router.at(path).ok().map(|found| *found.value)
}
