//! Looked up: what is stored answers the request, answers it while it is refreshed behind, or does
//! not; then it is clear why, and in which way the answer is to be had.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use http::header::COOKIE;
use http::{HeaderMap, Method, Request, StatusCode};

use crate::clock::Timestamp;
use crate::flight::Boarding;
use crate::metrics::CacheResult;
use crate::policy::key::KeyBytes;
use crate::policy::{self, Cookies, Decision, Options, Reason, Wishes, conditional};
use crate::proxy::client_request::ClientRequest;
use crate::proxy::exchange::Exchange;
use crate::proxy::fetch::boarding::{board, flight_key};
use crate::proxy::fetch::{Requested, Validation};
use crate::proxy::keyed_request::KeyedRequest;
use crate::proxy::parts::extend::{Extension, covering_part, is_known_too_large};
use crate::proxy::plan::Plan;
use crate::proxy::wire::{Body, InterimListener, InterimQueue};
use crate::store::{Entry, Found};

use super::Handled;
use super::deliver::deliver;
use super::miss::answer_miss;
use super::note::Note;
use super::refusal::count;
use super::steps::Keyed;

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

/// Why nothing stored answers, and how the answer is to be had.
pub struct Miss {
    pub keyed: KeyedRequest,
    pub found: Found,
    pub reason: Reason,
    /// The stored response that may be confirmed, or that stands in for a failed origin.
    pub validation: Option<Validation>,
    pub course: Course,
}

/// How the answer to a missed request is to be had.
pub enum Course {
    /// It goes to the origin as it is, for this reason.
    Pass(Reason),
    /// What is missing of a stored part is fetched.
    Extend(Extension, Exchange),
    /// A range of what cannot be had whole is the origin's to answer.
    PassRange,
    /// It is fetched for this request alone, for this reason.
    Alone(Reason),
    /// It joins another request's fetch, or leads one.
    Together,
}

impl Keyed<'_> {
    /// Looks up what is stored under the key.
    pub fn look_up(&mut self, plan: &Plan) -> LookedUp {
        if self.let_in.is_some_and(|let_in| let_in.verifies) {
            return self.missed(Found::Nothing);
        }
        let (memory, now) = (&plan.state.memory, plan.state.clock.now());
        let found = memory.get(&mut self.key.bytes, &self.request.parts.headers, now);
        let (request, options) = (self.request.view(), self.route.options());
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
        if let Some((entry, _)) = covering_part(&plan.state, primary, request, options, now) {
            let note = Note::hit(CacheResult::Hit, Reason::Fresh, entry.view().ttl(now));
            return LookedUp::Hit(Hit { entry, note, now });
        }
        self.missed(found)
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

/// How a stored response answers, if the decision allows it.
pub fn reuse(entry: &Entry, decision: Decision, now: Timestamp) -> Option<Note> {
    let (result, reason) = match decision {
        Decision::Hit { .. } => (CacheResult::Hit, Reason::Fresh),
        Decision::StaleHit { reason, .. } => (CacheResult::Stale, reason),
        // The origin has just failed for this: it is given a pause, and stale stands in.
        Decision::Miss { on_error: true, .. } if !may_refresh(entry, now) => {
            (CacheResult::Stale, Reason::StaleIfError)
        }
        Decision::Miss { .. } => return None,
    };
    Some(Note::hit(result, reason, entry.view().ttl(now)))
}

/// Whether the origin may be asked about a stored response again after a failure.
pub fn may_refresh(entry: &Entry, now: Timestamp) -> bool {
    now.as_millis() >= entry.refresh_after.load(Ordering::Relaxed)
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
        let (request, options) = (keyed.request, keyed.route.options());
        let age = entry.view().age(now);
        let body = Body::Whole(entry.body());
        let delivered = deliver(plan, request, options, &entry.head, age, body, note);
        let (method, started) = (&request.parts.method, request.started);
        let status = delivered.response.status();
        count(plan, Some(keyed.route), method, started, &note, status);
        Handled::now(delivered.response)
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
            normal_path: keyed.request.normal_path.clone(),
            client: keyed.request.client,
            started: keyed.request.started,
            has_body: false,
        },
        route: Arc::clone(keyed.route),
        key: keyed.key.clone(),
        let_in: keyed.let_in,
        arrived: plan.state.purge_position(),
        interim: None,
    }
}

/// Starts a fetch behind a stale answer, unless one is under way (RFC 5861 §3).
pub fn refresh(plan: &Arc<Plan>, keyed: &KeyedRequest, entry: &Arc<Entry>) {
    if let Ok(Boarding::Lead(ticket)) = board(&plan.state, keyed, 0, || None::<()>) {
        let validation = Validation::of(Arc::clone(entry));
        match Requested::of(plan, keyed, ticket, Some(validation), None) {
            Ok(requested) => requested.spawn(),
            Err(failure) => tracing::debug!(%failure, "a stale response could not be refreshed"),
        }
    }
}

impl Miss {
    /// Why nothing of what was found answers, and how the answer is to be had.
    pub fn of(plan: &Plan, keyed: KeyedRequest, found: Found) -> Self {
        let now = plan.state.clock.now();
        let stored = match &found {
            Found::Entry(entry) => Some(Arc::clone(entry)),
            _ => None,
        };
        let options = keyed.options();
        let view = stored.as_deref().map(Entry::view);
        let decision = policy::decide(keyed.request.view(), view, options, now);
        let reason = match (&found, decision) {
            _ if keyed.verifies() => Reason::KeyUnverified,
            (Found::NotShared(_), _) => Reason::HitForMiss,
            (Found::NoVariant, _) => Reason::VaryMiss,
            (_, Decision::Miss { reason, .. }) => reason,
            (_, Decision::Hit { .. } | Decision::StaleHit { .. }) => Reason::Cold,
        };
        // What was stored for requests without a cookie does not stand in for one with it either.
        let stored = stored.filter(|_| reason != Reason::Cookie);
        let course = Course::of(plan, &keyed, stored.is_some(), reason, now);
        let validation = stored.map(|stored| match decision {
            Decision::Miss { validate: true, .. } => Validation::of(stored),
            _ => Validation::only_stale(stored),
        });
        Self {
            keyed,
            found,
            reason,
            validation,
            course,
        }
    }

    /// How the request is answered, and why: known before anything is sent. What the origin and the
    /// fleet say then may make it another answer (confirmed, found in the second tier).
    pub fn words(&self) -> (CacheResult, Reason) {
        let reason = match &self.course {
            Course::Extend(..) => Reason::Partial,
            Course::Pass(reason) | Course::Alone(reason) => *reason,
            Course::PassRange | Course::Together => self.reason,
        };
        (CacheResult::Miss, reason)
    }

    /// Has the answer fetched. What its origin says before the final response goes to `interim`.
    pub fn answer(mut self, plan: &Arc<Plan>, interim: Option<&Arc<InterimQueue>>) -> Handled {
        let version = self.keyed.request.parts.version;
        self.keyed.interim = InterimListener::open(interim, version);
        answer_miss(plan, self)
    }
}

impl Course {
    fn of(
        plan: &Plan,
        keyed: &KeyedRequest,
        has_stored: bool,
        reason: Reason,
        now: Timestamp,
    ) -> Self {
        if keyed.request.parts.method == Method::HEAD {
            return Self::Pass(reason);
        }
        let alone = alone(plan, keyed, reason, now);
        let is_alone = alone.is_some();
        if !has_stored
            && keyed.request.wants_part()
            && (is_alone || is_known_too_large(plan, keyed))
        {
            return Self::range(plan, keyed);
        }
        match alone {
            // Known as not storable: the origin may answer the client's conditions by itself.
            Some(reason @ Reason::HitForMiss) if conditional::is_conditional(keyed.headers()) => {
                Self::Pass(reason)
            }
            Some(reason) => Self::Alone(reason),
            None => Self::Together,
        }
    }

    /// A range of what cannot be had whole: what is missing of it is put to the part that is
    /// stored, or else the range is the origin's to answer.
    pub fn range(plan: &Plan, keyed: &KeyedRequest) -> Self {
        // Stored bytes are not for whoever must prove a key first.
        if keyed.verifies() {
            return Self::PassRange;
        }
        // It begins before the part is looked up: a purge between the two would be missed.
        let exchange = Exchange::begin(&plan.state);
        match Extension::of(plan, keyed) {
            Some(extension) => Self::Extend(extension, exchange),
            None => Self::PassRange,
        }
    }
}

/// Why nobody can wait for the fetch of this request; `None` where others can.
fn alone(plan: &Plan, keyed: &KeyedRequest, reason: Reason, now: Timestamp) -> Option<Reason> {
    let has_own_answer = matches!(
        reason,
        Reason::HitForMiss | Reason::MustValidate | Reason::ClientDirective
    );
    if has_own_answer || is_by_cookie(keyed.options(), keyed.headers()) {
        return Some(reason);
    }
    let key = flight_key(keyed);
    is_marked(plan, keyed, key, now).then_some(Reason::HitForMiss)
}

/// Whether what the operator grants a lifetime is not granted to this request.
fn is_by_cookie(options: &Options, headers: &HeaderMap) -> bool {
    options.cookies == Cookies::Bypass && options.grants_lifetime() && headers.contains_key(COOKIE)
}

/// Whether those with a credential were found to have answers of their own.
fn is_marked(plan: &Plan, keyed: &KeyedRequest, mut flight_key: KeyBytes, now: Timestamp) -> bool {
    let memory = &plan.state.memory;
    flight_key.len() > keyed.key.bytes.len()
        && matches!(
            memory.get(&mut flight_key, &HeaderMap::new(), now),
            Found::NotShared(_)
        )
}
