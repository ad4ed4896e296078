//! Writes: what one has changed is made unusable before its sender hears of it (RFC 9111 §4.4),
//! and also where nobody hears how it ended.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use http::{HeaderMap, Method, Request, Response};
use url::Url;

use crate::error::{Failure, FailureKind};
use crate::policy::key::{KeyBytes, normalise_path, select_query, write_target};
use crate::policy::{Mode, groups, invalidate};
use crate::store::{Purge, Reach, Target};
use crate::upstream::OriginBody;

use super::Proxy;
use super::asked::Asked;
use super::received::without_port;

/// Stored responses are judged again after so many purges, so that the log can forget.
const SWEEP_EVERY: u64 = 16_384;

/// Entries that a sweep looks at before it lets others run.
const SLICE: usize = 256;

impl Proxy {
    /// Writes a purge down; the log's position. Nobody gets an older response from now on.
    pub fn purge(self: &Arc<Self>, purge: Purge, mode: Mode) -> u64 {
        self.metrics.purged(purge.target.as_str(), mode);
        let position = self.memory.purges().append(purge, mode, self.clock.now());
        if position.is_multiple_of(SWEEP_EVERY)
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
            && !self.is_sweeping.swap(true, Ordering::AcqRel)
        {
            let proxy = Arc::clone(self);
            runtime.spawn(async move {
                proxy.sweep(&[]).await;
                proxy.is_sweeping.store(false, Ordering::Release);
            });
        }
        position
    }

    /// The log's position now.
    pub fn purge_position(&self) -> u64 {
        self.memory.purges().position()
    }

    /// Lets go of stored responses that purges have made unusable; how many there were that
    /// `purges` name.
    pub async fn sweep(&self, purges: &[Purge]) -> u64 {
        let mut named = 0;
        for (at, is_named) in self.memory.sweep(purges).enumerate() {
            named += u64::from(is_named);
            if at % SLICE == SLICE - 1 {
                tokio::task::yield_now().await;
            }
        }
        named
    }

    /// How a URL of this host stands in keys: its path, and of its query what the routes for it
    /// let through. Without a host, as each route of any host has it. Empty where no route
    /// answers it, for then nothing of it is stored.
    pub fn targets(&self, host: Option<&str>, path: &str, query: Option<&str>) -> Vec<Target> {
        let path = normalise_path(path);
        let routes = &self.config.routes;
        let of_host = host.map(|host| {
            let host = without_port(host).to_ascii_lowercase();
            routes.find(&Method::GET, &host, &path)
        });
        let routes: Vec<_> = match of_host {
            Some(found) => found.into_iter().map(|(_, route)| route).collect(),
            None => routes.for_path(&Method::GET, &path).collect(),
        };
        let mut targets: Vec<Target> = Vec::new();
        for route in routes {
            let query = select_query(query, &route.query, route.sort_query);
            let mut target = KeyBytes::new();
            write_target(&path, query.as_deref(), &mut target);
            let target = Target::Url(target[..].into());
            if !targets.contains(&target) {
                targets.push(target);
            }
        }
        targets
    }
}

/// A write under way. Dropped without an answer, at the end of the process, it invalidates too: it
/// may have been done.
pub(super) struct Write {
    proxy: Arc<Proxy>,
    origin: Box<[u8]>,
    host: String,
    /// The target URI, where the request says enough to write it.
    url: Option<Url>,
    targets: Vec<Target>,
    groups: Vec<Box<str>>,
    mode: Mode,
    is_settled: bool,
}

impl Write {
    /// `None` for a request that changes nothing.
    pub fn of(proxy: &Arc<Proxy>, asked: &Asked) -> Option<Self> {
        if invalidate::is_safe(&asked.parts.method) {
            return None;
        }
        let host = asked.host.as_deref();
        let parts = proxy.origin_parts(&asked.parts.headers, host, asked.client);
        let mut origin = KeyBytes::new();
        parts.write_origin(&mut origin);
        let uri = &asked.parts.uri;
        let named = parts.forwarded_host.or(host).unwrap_or_default();
        let target = uri.path_and_query().map_or("/", |target| target.as_str());
        let route = asked.route.as_ref().map(|(_, route)| route);
        Some(Self {
            targets: proxy.targets(Some(host.unwrap_or_default()), uri.path(), uri.query()),
            url: Url::parse(&format!("{}://{named}{target}", parts.scheme)).ok(),
            proxy: Arc::clone(proxy),
            origin: origin[..].into(),
            host: host.unwrap_or_default().to_owned(),
            groups: route.map_or_else(Vec::new, |route| route.invalidates.clone()),
            mode: route.map_or(Mode::Hard, |route| route.invalidation),
            is_settled: false,
        })
    }

    /// Sends it, in a task of its own: a client that leaves does not keep us from hearing when the
    /// origin has done it.
    pub async fn carry_out(
        self,
        request: Request<OriginBody>,
    ) -> Result<Response<OriginBody>, Failure> {
        let writing = tokio::spawn(async move {
            let proxy = Arc::clone(&self.proxy);
            let answer = proxy.origin.answer(request).await;
            self.answered(&answer);
            answer
        });
        writing
            .await
            .unwrap_or_else(|error| Err(Failure::new(FailureKind::Internal, error)))
    }

    /// The origin has answered, or it is known why not.
    fn answered<B>(mut self, answer: &Result<Response<B>, Failure>) {
        self.is_settled = true;
        match answer {
            Ok(response) => {
                // Whatever the status: the origin says what it changed (RFC 9875 §3).
                for group in groups::invalidated(response.headers()) {
                    self.purge(Target::Group(group), Mode::Hard);
                }
                if invalidate::has_changed(response.status()) {
                    self.has_changed(response.headers());
                }
            }
            Err(failure) if failure.kind.may_have_arrived() => self.has_changed(&HeaderMap::new()),
            Err(_) => {}
        }
    }

    fn has_changed(&mut self, response: &HeaderMap) {
        let mut targets = std::mem::take(&mut self.targets);
        let also = self.url.iter();
        for url in also.flat_map(|target| invalidate::also_changed(target, response)) {
            let more = self
                .proxy
                .targets(Some(&self.host), url.path(), url.query());
            targets.extend(more);
        }
        for target in targets {
            self.purge(target, Mode::Hard);
        }
        // The operator's groups are of the whole sidecar, whatever host was written to.
        for group in std::mem::take(&mut self.groups) {
            let (target, reach) = (Target::Group(group), Reach::Any);
            self.proxy.purge(Purge { target, reach }, self.mode);
        }
    }

    /// Purges of this origin alone.
    fn purge(&self, target: Target, mode: Mode) {
        let reach = Reach::Origin(self.origin.clone());
        self.proxy.purge(Purge { target, reach }, mode);
    }
}

impl Drop for Write {
    fn drop(&mut self) {
        if !self.is_settled {
            self.has_changed(&HeaderMap::new());
        }
    }
}
