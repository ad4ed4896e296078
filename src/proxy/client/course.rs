//! Why nothing stored answers a request, and how its answer is to be had: all of it known before
//! anything is sent.

use std::sync::Arc;

use http::header::COOKIE;
use http::{HeaderMap, Method};

use crate::clock::Timestamp;
use crate::metrics::CacheResult;
use crate::policy::key::KeyBytes;
use crate::policy::{self, Cookies, Decision, Options, Reason, conditional};
use crate::proxy::exchange::Exchange;
use crate::proxy::fetch::Validation;
use crate::proxy::fetch::boarding::flight_key;
use crate::proxy::keyed_request::KeyedRequest;
use crate::proxy::parts::extend::{Extension, is_known_too_large};
use crate::proxy::plan::Plan;
use crate::store::{Entry, Found};

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
}

impl Course {
    fn of(
        plan: &Plan,
        keyed: &KeyedRequest,
        has_stored: bool,
        reason: Reason,
        now: Timestamp,
    ) -> Self {
        if keyed.request.parts.method == Method::HEAD && !keyed.options().head_as_get {
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
        let is_head = keyed.request.parts.method == Method::HEAD;
        match alone {
            // Known as not storable: the origin may answer the client's conditions, or its HEAD, by
            // itself.
            Some(reason @ Reason::HitForMiss)
                if is_head || conditional::is_conditional(keyed.headers()) =>
            {
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
        let exchange = Exchange::begin(plan);
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
