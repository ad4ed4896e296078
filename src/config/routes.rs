//! Routes: which requests a `[[route]]` is for, the most specific first.

use std::sync::Arc;

use http::{HeaderName, Method};
use matchit::Router;

use super::field_rules::{Cors, FieldRules};
use crate::policy::key::QueryRule;
use crate::policy::{Invalidation, Normalise, Options};

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
    /// Parameters that `query` does not name are not forwarded; else a request that has one is
    /// never looked up or stored.
    pub drops_unknown_query: bool,
    /// Its requests are sent as they came, and never stored: signed targets, say.
    pub raw_target: bool,
    pub normalise: Normalise,
    /// The upstream that its requests go to; `None`: the one of `[upstream]`.
    pub upstream: Option<Arc<str>>,
    /// The only client fields that reach the origin; `None`: all.
    pub forward_headers: Option<Vec<HeaderName>>,
    /// What is done with the fields of requests on their way to the origin.
    pub request_fields: FieldRules,
    /// What is done with the fields of answers on their way to clients.
    pub response_fields: FieldRules,
    /// Whose pages may read answers; `None`: what the origin says.
    pub cors: Option<Cors>,
    /// How far a verdict on a key reaches that was learned through this route.
    pub verdict_scope: Scope,
    /// Groups that a write through this route makes stale or gone.
    pub invalidates: Vec<(Box<str>, Invalidation)>,
    /// Where it stands in the file, for messages about it.
    pub line: usize,
}

/// All routes, indexed for look-up: host, then method, then path.
#[derive(Clone, Debug, Default)]
pub struct Routes {
    list: Vec<Arc<Route>>,
    index: Index,
    /// The same with patterns in lower case, for origins that do not tell letters by their case.
    folded: Index,
    has_capitals: bool,
}

#[derive(Clone, Debug, Default)]
struct Index {
    hosts: Vec<(String, ByMethod)>,
    any_host: ByMethod,
}

type ByMethod = Vec<(Method, Router<usize>)>;

impl Index {
    fn add(
        &mut self,
        host: Option<&str>,
        method: &Method,
        path: &str,
        place: usize,
    ) -> Result<(), matchit::InsertError> {
        let by_method = match host {
            None => &mut self.any_host,
            Some(host) => {
                let at = self.hosts.iter().position(|(known, _)| known == host);
                let at = at.unwrap_or_else(|| {
                    self.hosts.push((host.to_owned(), ByMethod::new()));
                    self.hosts.len() - 1
                });
                &mut self.hosts[at].1
            }
        };
        let at = by_method.iter().position(|(known, _)| known == method);
        let at = at.unwrap_or_else(|| {
            by_method.push((method.clone(), Router::new()));
            by_method.len() - 1
        });
        by_method[at].1.insert(path, place)
    }

    /// A named host goes before a wildcard before none, then the most specific path.
    fn find(&self, method: &Method, host: &str, path: &str) -> Option<usize> {
        if !self.hosts.is_empty() {
            let exact = self.hosts.iter().find(|(known, _)| known == host);
            let parent = host.split_once('.').map(|(_, parent)| parent);
            let wildcard = self.hosts.iter().find(|(known, _)| {
                known
                    .strip_prefix("*.")
                    .is_some_and(|known| Some(known) == parent)
            });
            for (_, by_method) in exact.into_iter().chain(wildcard) {
                if let Some(place) = find_path(by_method, method, path) {
                    return Some(place);
                }
            }
        }
        find_path(&self.any_host, method, path)
    }
}

/// Why a route cannot be added.
#[derive(Debug)]
pub enum RouteError {
    /// It matches the same requests as an earlier route, at this place of the list.
    SameAs { earlier: usize, method: Method },
    /// The pattern is not one; the text says why.
    Pattern(String),
}

/// Parameters of one path.
const MOST_PARAMETERS: usize = 32;

impl Routes {
    pub fn list(&self) -> &[Arc<Route>] {
        &self.list
    }

    /// Adds a route, unless it matches the same requests as one before it.
    pub fn add(&mut self, route: Route) -> Result<(), RouteError> {
        // The router keeps a number of few bits for each.
        let parameters = route.path.matches('{').count();
        if parameters > MOST_PARAMETERS {
            let why =
                format!("has {parameters} parameters, and at most {MOST_PARAMETERS} are possible");
            return Err(RouteError::Pattern(why));
        }
        let place = self.list.len();
        let host = route.host.as_deref();
        for method in &route.methods {
            let added = self.index.add(host, method, &route.path, place);
            added.map_err(|error| match error {
                matchit::InsertError::Conflict { with } => {
                    let same = |known: &Arc<Route>| {
                        known.path == with
                            && known.host == route.host
                            && known.methods.contains(method)
                    };
                    let earlier = self.list.iter().position(same);
                    RouteError::SameAs {
                        earlier: earlier.unwrap_or(place),
                        method: method.clone(),
                    }
                }
                other => RouteError::Pattern(other.to_string()),
            })?;
            let folded = route.path.to_ascii_lowercase();
            // Names of parameters match nothing.
            let literal = |part: &str| part.split('}').next_back().unwrap_or_default().to_owned();
            let literals = route.path.split('{').map(literal).collect::<String>();
            self.has_capitals |= literals.bytes().any(|byte| byte.is_ascii_uppercase());
            // Two that differ by case alone are one there: the first stands for both.
            let _ = self.folded.add(host, method, &folded, place);
        }
        self.list.push(Arc::new(route));
        Ok(())
    }

    /// The route of a request, the most specific one, with its place in the list. `host` comes
    /// without port, in lower case.
    pub fn find(&self, method: &Method, host: &str, path: &str) -> Option<(usize, &Arc<Route>)> {
        let place = self.index.find(method, host, path)?;
        self.list.get(place).map(|route| (place, route))
    }

    /// As [`Routes::find`], for a path in lower case, whatever the case of the patterns.
    pub fn find_folded(&self, method: &Method, host: &str, path: &str) -> Option<usize> {
        self.folded.find(method, host, path)
    }

    /// Whether any pattern has letters in upper case.
    pub fn has_capitals(&self) -> bool {
        self.has_capitals
    }

    /// The routes that this path may take, of whatever host.
    pub fn for_path(&self, method: &Method, path: &str) -> impl Iterator<Item = &Arc<Route>> {
        let index = &self.index;
        let hosts = index.hosts.iter().map(|(_, by_method)| by_method);
        hosts
            .chain([&index.any_host])
            .filter_map(move |by_method| self.list.get(find_path(by_method, method, path)?))
    }

    /// All routes whose method and path pattern a request fits, of whatever host: one of them wins.
    /// Slow: for people who ask.
    pub fn fitting(&self, method: &Method, path: &str) -> impl Iterator<Item = &Arc<Route>> {
        self.list.iter().filter(move |route| {
            let mut alone = Router::new();
            let is_in = alone.insert(route.path.as_str(), ()).is_ok();
            is_in && route.methods.contains(method) && alone.at(path).is_ok()
        })
    }

    /// Whether any route looks at the host, so that it belongs in every key.
    pub fn match_hosts(&self) -> bool {
        !self.index.hosts.is_empty()
    }
}

fn find_path(by_method: &ByMethod, method: &Method, path: &str) -> Option<usize> {
    let (_, router) = by_method.iter().find(|(known, _)| known == method)?;
    router.at(path).ok().map(|found| *found.value)
}
