//! Looked up: what is stored answers the request, answers it while it is refreshed behind, or does
//! not; then it is clear why, and in which way the answer is to be had.

use std::sync::Arc;
use std::time::Instant;

use http::{Method, Request, StatusCode};

use crate::clock::Timestamp;
use crate::metrics::CacheResult;
use crate::policy::{self, Reason, Wishes};
use crate::proxy::client_request::ClientRequest;
use crate::proxy::keyed_request::{KeyedRequest, LetIn};
use crate::proxy::parts::extend::covering_part;
use crate::proxy::plan::{Plan, PlannedRoute};
use crate::proxy::request_key::RequestKey;
use crate::proxy::wire::Body;
use crate::store::{Entry, Found};
use crate::trace::Span;

use super::deliver::deliver;
use super::handled::Handled;
use super::note::{Note, OWN_FIELDS};
use super::refusal::count;
use super::reuse::{may_refresh, refresh, reuse};

/// A request whose key is written: what is stored may answer it.
pub struct Keyed<'r> {
    pub request: &'r ClientRequest,
    pub route: &'r Arc<PlannedRoute>,
    pub key: &'r mut RequestKey,
    pub let_in: Option<LetIn>,
}

/// What a look-up comes to.
pub enum LookedUp {
    Hit(Hit),
    /// A hit that is refreshed behind the answer (RFC 5861 §3).
    StaleHit(Hit),
    Miss(Found),
    /// The client wants only what is stored (RFC 9111 §5.2.1.7).
    NothingStored,
}

/// A stored response that answers.
pub struct Hit {
    pub entry: Arc<Entry>,
    note: Note,
    /// When it was looked up.
    now: Timestamp,
}

impl Keyed<'_> {
    /// Looks up what is stored under the key.
    pub fn look_up(&mut self, plan: &Plan) -> LookedUp {
        if self.let_in.is_some_and(|let_in| let_in.verifies) {
            return self.missed(Found::Nothing);
        }
        let (memory, now) = (&plan.state.memory, plan.state.clock.now());
        let mut found = memory.get(&mut self.key.bytes, &self.request.parts.headers, now);
        let (request, options) = (self.request.view(), self.route.options());
        if let Found::Entry(entry) = found {
            let entry = plan.in_force(&self.key.bytes, entry, options);
            found = entry.map_or(Found::Nothing, Found::Entry);
        }
        if let Found::Entry(entry) = &found {
            let decision = policy::decide(request, Some(entry.view()), options, now);
            if let Some(note) = reuse(entry, decision, now) {
                let entry = Arc::clone(entry);
                let hit = Hit { entry, note, now };
                return if note.result == CacheResult::Stale {
                    LookedUp::StaleHit(hit)
                } else {
                    LookedUp::Hit(hit)
                };
            }
        }
        let primary = self.key.primary();
        if let Some((entry, _)) = covering_part(plan, primary, request, options, now) {
            let note = Note::hit(CacheResult::Hit, Reason::Fresh, entry.view().ttl(now));
            return LookedUp::Hit(Hit { entry, note, now });
        }
        self.missed(found)
    }

    /// The same; how long it took is noted where somebody wants to know.
    pub fn look_up_timed(&mut self, plan: &Plan) -> LookedUp {
        let (request, log) = (self.request, &plan.config.access_log);
        plan.state
            .seen
            .note(request.host().unwrap_or_default(), || {
                let query = request.parts.uri.query();
                let is_secret = query.is_some_and(|query| log.names_secret(query));
                let target = request.parts.uri.path_and_query();
                target
                    .filter(|_| !is_secret)
                    .map(|target| target.as_str().into())
            });
        let began = self.request.observed.as_ref().map(|_| Instant::now());
        let looked_up = self.look_up(plan);
        if let Some(began) = began {
            self.request.took(Span::LookUp, began);
        }
        looked_up
    }

    fn missed(&self, found: Found) -> LookedUp {
        let obey = self.route.options().obey;
        if Wishes::of(&self.request.parts.headers, obey).only_if_cached {
            LookedUp::NothingStored
        } else {
            LookedUp::Miss(found)
        }
    }
}

impl Hit {
    /// How the request is answered, and why.
    pub fn words(&self) -> (CacheResult, Reason) {
        (self.note.result, self.note.reason)
    }

    pub fn answer(self, plan: &Plan, keyed: &Keyed<'_>) -> Handled {
        let Self { entry, note, now } = self;
        let is_whole = entry.head.status != StatusCode::PARTIAL_CONTENT;
        if let Some(used) = plan.state.used.as_ref().filter(|_| is_whole) {
            used.note(&keyed.key.bytes, keyed.key.primary_length());
        }
        plan.state.memory.keep_ready(&entry, &OWN_FIELDS);
        let (request, options) = (keyed.request, keyed.route.options());
        let age = entry.view().age(now);
        let body = Body::Whole(entry.body());
        let mut response = deliver(plan, request, options, &entry.head, age, body, note);
        let asked = (&request.parts.method, request.started);
        let observed = request.observed.as_ref();
        count(
            plan,
            Some(keyed.route),
            asked,
            observed,
            &note,
            &mut response,
        );
        Handled::now(response)
    }

    /// Has a stale response refreshed behind its answer, unless the origin has just failed for it.
    pub fn refresh(&self, plan: &Arc<Plan>, keyed: &Keyed<'_>) {
        if may_refresh(&self.entry, self.now) {
            refresh(plan, &copy_of_request(plan, keyed), &self.entry);
        }
    }
}

/// The request for the whole once more, for a refresh behind the answer.
fn copy_of_request(plan: &Plan, keyed: &Keyed<'_>) -> KeyedRequest {
    let sent = &keyed.request.parts;
    let mut request = Request::new(());
    *request.method_mut() = Method::GET;
    *request.uri_mut() = sent.uri.clone();
    *request.version_mut() = sent.version;
    *request.headers_mut() = sent.headers.clone();
    let (parts, ()) = request.into_parts();
    KeyedRequest {
        request: ClientRequest {
            parts,
            host: keyed.request.host.clone(),
            client: keyed.request.client,
            started: keyed.request.started,
            has_body: false,
            is_raw: false,
            // What is done behind the answer is not the client's time.
            observed: None,
        },
        route: Arc::clone(keyed.route),
        key: keyed.key.clone(),
        let_in: keyed.let_in,
        arrived: plan.state.purge_position(),
        interim: None,
    }
}
