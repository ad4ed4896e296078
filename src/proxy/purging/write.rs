//! Writes: what one has changed is made unusable before its sender hears of it (RFC 9111 §4.4),
//! and also where nobody hears how it ended.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use tokio::task::AbortHandle;
use url::Url;

use crate::error::{Failure, FailureKind};
use crate::policy::key::KeyBytes;
use crate::policy::{Invalidation, Mode, groups, invalidate};
use crate::proxy::client_request::ClientRequest;
use crate::proxy::fleet::acknowledged::outlives_us;
use crate::proxy::plan::{Plan, PlannedRoute};
use crate::proxy::state::State;
use crate::store::purge::causes::{ByWrite, Cause};
use crate::store::purge::short;
use crate::store::{Purge, Reach, Target};
use crate::trace::REQUEST_ID;
use crate::upstream::{OriginBody, Started};

use super::targets::url_targets;

/// A write under way. What it may have changed is purged when its answer comes, once more when that
/// ends, for an origin may do the work meanwhile, and also where it never comes.
pub struct Write {
    plan: Arc<Plan>,
    origin: Box<[u8]>,
    host: String,
    /// The target URI, where the request says enough to write it.
    url: Option<Url>,
    /// What it is called where somebody asks why something was purged.
    by: Arc<ByWrite>,
    /// What is purged if nobody hears how it ended.
    changes: Vec<Change>,
}

/// What a write may have changed.
enum Change {
    /// A URL of its host, by path and query: how that stands in keys is asked when it is purged.
    Url(String),
    Named(Purge, Mode),
    /// A group, made unusable or stale by how fast it is written when that is known to have been
    /// done.
    Adaptive(Box<str>),
}

impl Write {
    /// `None` for a request that changes nothing.
    pub fn of(
        plan: &Arc<Plan>,
        request: &ClientRequest,
        route: Option<&PlannedRoute>,
    ) -> Option<Self> {
        if invalidate::is_safe(&request.parts.method) {
            return None;
        }
        let host = request.host().unwrap_or_default();
        let parts = request.origin_parts(plan);
        let mut origin = KeyBytes::new();
        parts.write_origin(&mut origin);
        let uri = &request.parts.uri;
        let named = parts.forwarded_host.unwrap_or(host);
        let target = uri.path_and_query().map_or("/", |target| target.as_str());
        let mut write = Self {
            url: Url::parse(&format!("{}://{named}{target}", parts.scheme)).ok(),
            plan: Arc::clone(plan),
            origin: short(&origin).into(),
            host: host.to_owned(),
            by: Arc::new(ByWrite {
                method: request.parts.method.as_str().into(),
                path: request.path().chars().take(LONGEST).collect(),
                request_id: request_id(&request.parts.headers),
            }),
            changes: Vec::new(),
        };
        write.changes.push(Change::Url(target.to_owned()));
        // The operator's groups are of the whole sidecar, whatever host was written to.
        for (name, how) in route.into_iter().flat_map(|route| &route.rule.invalidates) {
            let purge = of_group(name);
            write.changes.push(match how {
                Invalidation::Hard => Change::Named(purge, Mode::Hard),
                Invalidation::Soft => Change::Named(purge, Mode::Soft),
                Invalidation::Adaptive => Change::Adaptive(name.clone()),
            });
        }
        Some(write)
    }

    /// What the changes name.
    fn named(&self, changes: &[Change]) -> Vec<(Purge, Mode)> {
        let mut named = Vec::new();
        for change in changes {
            match change {
                Change::Named(purge, mode) => named.push((purge.clone(), *mode)),
                // Settled when it was answered; where it never is, nothing else will tell.
                Change::Adaptive(group) => named.push((of_group(group), Mode::Hard)),
                Change::Url(target) => {
                    for target in url_targets(&self.plan, Some(&self.host), target) {
                        named.push((self.of_this_origin(target), Mode::Hard));
                    }
                }
            }
        }
        named
    }

    /// Of this origin alone; of any where other rules may have spelled it otherwise.
    fn of_this_origin(&self, target: Target) -> Purge {
        let hides_hosts = self.plan.forwarding.rewrites_host();
        let reach = if hides_hosts && self.plan.state.may_have_other_rules() {
            Reach::Any
        } else {
            Reach::Origin(self.origin.clone())
        };
        Purge { target, reach }
    }

    /// Decides what becomes of groups, once for the whole write.
    fn settle(&mut self) {
        let state = &self.plan.state;
        let (purges, now) = (state.memory.purges(), state.clock.now());
        for change in &mut self.changes {
            if let Change::Adaptive(group) = change {
                let mode = purges.written.mode(group, now);
                if mode == Mode::Soft {
                    end_burst(state, group);
                }
                *change = Change::Named(of_group(group), mode);
            }
        }
    }

    fn cause(&self) -> Cause {
        Cause::Write(Arc::clone(&self.by))
    }

    /// Up to which position of the log that goes; `None` where nothing is purged.
    fn purge(&self) -> Option<u64> {
        let named = self.named(&self.changes).into_iter();
        let state = &self.plan.state;
        named
            .map(|(purge, mode)| state.purge(purge, mode, self.cause()))
            .max()
    }

    /// The end of an answer, as [`Write::purge`]: nothing is left to be done when this is dropped.
    fn ends(&mut self) -> Option<u64> {
        let changes = std::mem::take(&mut self.changes);
        let named = self.named(&changes).into_iter();
        let state = &self.plan.state;
        named
            .map(|(purge, mode)| state.purge_again(purge, mode, self.cause()))
            .max()
    }

    /// Sends it, in a task of its own: a client that leaves does not keep us from hearing when the
    /// origin has done it. One that leaves while it is still queued takes it back.
    pub async fn carry_out(
        mut self,
        mut request: Request<OriginBody>,
    ) -> Result<Response<OriginBody>, Failure> {
        // Where the client has given it none, it has one by now.
        if let Some(by) = Arc::get_mut(&mut self.by) {
            by.request_id = request_id(request.headers());
        }
        let started = Started::default();
        request.extensions_mut().insert(started.clone());
        let writing = tokio::spawn(async move {
            let state = Arc::clone(&self.plan.state);
            let mut answer = state.origin.answer(request).await;
            if let Ok(response) = &mut answer {
                // Before it is read what they name.
                self.plan
                    .forwarding
                    .name_no_upstream(response.headers_mut());
            }
            self.answered(&answer);
            self.settle();
            // Who hears that it is done is promised that nobody of the fleet serves anything older
            // for long.
            if let Some(position) = self.purge() {
                outlives_us(&state, position).await;
            }
            match answer {
                Ok(response) if !response.body().is_end_stream() => {
                    let ending = |body| Ending {
                        body,
                        write: self,
                        last: None,
                    };
                    Ok(response.map(|body| ending(body).boxed_unsync()))
                }
                answer => {
                    self.changes.clear();
                    answer
                }
            }
        });
        let _taken_back_where_it_is_queued = Queued {
            task: writing.abort_handle(),
            started,
        };
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
                    for target in invalidate::also_changed(&url, response.headers()) {
                        self.changes.push(Change::Url(target));
                    }
                }
                // Whatever the status: the origin says what it changed (RFC 9875 §3).
                for group in groups::invalidated(response.headers()) {
                    let purge = self.of_this_origin(Target::Group(group));
                    self.changes.push(Change::Named(purge, Mode::Hard));
                }
            }
            Err(failure) if failure.kind.may_have_arrived() => {}
            Err(_) => self.changes.clear(),
        }
    }
}

/// When no write of a group has come for as long as makes one isolated, what the last ones left
/// stale is gone: whoever reads then sees them.
fn end_burst(state: &Arc<State>, group: &str) {
    let Some(mut left) = state.memory.purges().written.await_end(group) else {
        return;
    };
    let (state, group) = (Arc::clone(state), group.to_owned());
    tokio::spawn(async move {
        let written = &state.memory.purges().written;
        loop {
            tokio::time::sleep(left.max(LEAST_WAIT)).await;
            match written.goes_on(&group, state.clock.now()) {
                Some(longer) => left = longer,
                None => break,
            }
        }
        state.purge(of_group(&group), Mode::Hard, Cause::BurstEnded);
        written.ended(&group);
    });
}

/// Between two looks at whether a burst of writes has ended.
const LEAST_WAIT: Duration = Duration::from_millis(10);

/// So much of a path, or of an id, is remembered.
const LONGEST: usize = 200;

fn request_id(headers: &HeaderMap) -> Option<Box<str>> {
    let id = headers.get(REQUEST_ID)?.to_str().ok()?;
    Some(id.chars().take(LONGEST).collect())
}

/// The operator's groups are of the whole sidecar.
fn of_group(name: &str) -> Purge {
    Purge {
        target: Target::Group(name.into()),
        reach: Reach::Any,
    }
}

/// A write that may still wait for a connection to the origin.
struct Queued {
    task: AbortHandle,
    started: Started,
}

impl Drop for Queued {
    fn drop(&mut self) {
        // The task runs on this very thread: it cannot begin meanwhile.
        if !self.started.is_told() {
            self.task.abort();
        }
    }
}

impl Drop for Write {
    fn drop(&mut self) {
        self.ends();
    }
}

/// The body of an answer to a write. Its last piece goes out when the last purge outlives this
/// process.
struct Ending {
    body: OriginBody,
    write: Write,
    last: Option<Last>,
}

/// The last piece of a body, and what it waits for.
struct Last {
    frame: Option<Result<Frame<Bytes>, Failure>>,
    purged: Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl Body for Ending {
    type Data = Bytes;
    type Error = Failure;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Failure>>> {
        if self.last.is_none() {
            let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
            let is_last = !matches!(frame, Some(Ok(_))) || self.body.is_end_stream();
            let Some(position) = is_last.then(|| self.write.ends()).flatten() else {
                return Poll::Ready(frame);
            };
            let state = Arc::clone(&self.write.plan.state);
            let purged = Box::pin(async move { outlives_us(&state, position).await });
            self.last = Some(Last { frame, purged });
        }
        if let Some(last) = &mut self.last {
            ready!(last.purged.as_mut().poll(context));
        }
        Poll::Ready(self.last.take().and_then(|last| last.frame))
    }

    fn is_end_stream(&self) -> bool {
        self.last.is_none() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
