//! Whether a stored response answers, and the refresh behind one that is stale.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::clock::Timestamp;
use crate::flight::Boarding;
use crate::metrics::CacheResult;
use crate::policy::{Decision, Reason};
use crate::proxy::fetch::boarding::board;
use crate::proxy::fetch::{Requested, Validation};
use crate::proxy::keyed_request::KeyedRequest;
use crate::proxy::plan::Plan;
use crate::store::Entry;

use super::note::Note;

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
