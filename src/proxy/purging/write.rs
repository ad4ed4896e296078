//! Writes: what one has changed is made unusable before its sender hears of it (RFC 9111 §4.4),
//! and also where nobody hears how it ended.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::{Method, Request, Response};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use url::Url;

use crate::error::{Failure, FailureKind};
use crate::policy::key::{KeyBytes, normalise_path, select_query, write_target};
use crate::policy::{Mode, groups, invalidate};
use crate::store::purge::short;
use crate::store::{Purge, Reach, Target};
use crate::upstream::OriginBody;

use super::Proxy;
use super::asked::Asked;
use super::received::without_port;

/// Stored responses are judged again after so many purges, so that the log can forget.
pub(super) const SWEEP_EVERY: u64 = 16_384;

/// Entries that a sweep looks at before it lets others run.
const SLICE: usize = 256;

impl Proxy {
    /// Writes a purge down; the log's position. Nobody gets an older response from now on.
    pub fn purge(self: &Arc<Self>, purge: Purge, mode: Mode) -> u64 {
        self.metrics.purged(purge.target.as_str(), mode);
        self.purge_again(purge, mode)
    }

    /// As [`Proxy::purge`], of what is counted already.
    fn purge_again(self: &Arc<Self>, purge: Purge, mode: Mode) -> u64 {
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
            let target = Target::Url(short(&target).into());
            if !targets.contains(&target) {
                targets.push(target);
            }
        }
        targets
    }
}

/// A write under way. What it may have changed is purged when its answer comes, once more when that
/// ends, for an origin may do the work meanwhile, and also where it never comes.
pub(super) struct Write {
    proxy: Arc<Proxy>,
    origin: Box<[u8]>,
    host: String,
    /// The target URI, where the request says enough to write it.
    url: Option<Url>,
    /// What is purged if nobody hears how it ended.
    changes: Vec<(Purge, Mode)>,
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
        let mut write = Self {
            url: Url::parse(&format!("{}://{named}{target}", parts.scheme)).ok(),
            proxy: Arc::clone(proxy),
            origin: short(&origin).into(),
            host: host.unwrap_or_default().to_owned(),
            changes: Vec::new(),
        };
        write.add_url(uri.path(), uri.query());
        if let Some((_, route)) = &asked.route {
            // The operator's groups are of the whole sidecar, whatever host was written to.
            for (name, mode) in &route.invalidates {
                let (target, reach) = (Target::Group(name.clone()), Reach::Any);
                write.changes.push((Purge { target, reach }, *mode));
            }
        }
        Some(write)
    }

    fn add_url(&mut self, path: &str, query: Option<&str>) {
        for target in self.proxy.targets(Some(&self.host), path, query) {
            self.add(target);
        }
    }

    /// Of this origin alone.
    fn add(&mut self, target: Target) {
        let reach = Reach::Origin(self.origin.clone());
        self.changes.push((Purge { target, reach }, Mode::Hard));
    }

    fn purge(&self) {
        for (purge, mode) in &self.changes {
            self.proxy.purge(purge.clone(), *mode);
        }
    }

    /// The end of an answer: nothing is left to be done when this is dropped.
    fn ends(&mut self) {
        for (purge, mode) in self.changes.drain(..) {
            self.proxy.purge_again(purge, mode);
        }
    }

    /// Sends it, in a task of its own: a client that leaves does not keep us from hearing when the
    /// origin has done it.
    pub async fn carry_out(
        mut self,
        request: Request<OriginBody>,
    ) -> Result<Response<OriginBody>, Failure> {
        let writing = tokio::spawn(async move {
            let proxy = Arc::clone(&self.proxy);
            let answer = proxy.origin.answer(request).await;
            self.answered(&answer);
            self.purge();
            match answer {
                Ok(response) if !response.body().is_end_stream() => {
                    Ok(response.map(|body| Ending { body, write: self }.boxed_unsync()))
                }
                answer => {
                    self.changes.clear();
                    answer
                }
            }
        });
        writing
            .await
            .unwrap_or_else(|error| Err(Failure::new(FailureKind::Internal, error)))
    }

    /// The origin has answered, or it is known why not: what has changed by it.
    fn answered<B>(&mut self, answer: &Result<Response<B>, Failure>) {
        match answer {
            Ok(response) => {
                if !invalidate::has_changed(response.status()) {
                    self.changes.clear();
                } else if let Some(url) = self.url.take() {
                    for url in invalidate::also_changed(&url, response.headers()) {
                        self.add_url(url.path(), url.query());
                    }
                }
                // Whatever the status: the origin says what it changed (RFC 9875 §3).
                for group in groups::invalidated(response.headers()) {
                    self.add(Target::Group(group));
                }
            }
            Err(failure) if failure.kind.may_have_arrived() => {}
            Err(_) => self.changes.clear(),
        }
    }
}

impl Drop for Write {
    fn drop(&mut self) {
        self.ends();
    }
}

/// The body of an answer to a write. Its last piece goes out after the last purge.
struct Ending {
    body: OriginBody,
    write: Write,
}

impl Body for Ending {
    type Data = Bytes;
    type Error = Failure;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Failure>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        if !matches!(frame, Some(Ok(_))) || self.body.is_end_stream() {
            self.write.ends();
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
