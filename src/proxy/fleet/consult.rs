//! What the fleet has to say before the origin is asked: a response that another instance stored is
//! taken from the second tier, and of all instances one fetches.
//!
//! The look-up and the question who fetches share one deadline, so that an ill second tier costs a
//! fetch that deadline once, and nothing while its breaker is open.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, Method};
use tokio::time::Instant;

use crate::clock::Timestamp;
use crate::metrics::second::{Awaited, Worth};
use crate::policy::key::Place;
use crate::policy::vary::append_selecting;
use crate::policy::{self, Decision, Options, RequestView};
use crate::proxy::plan::Plan;
use crate::proxy::state::State;
use crate::store::codec::Decoded;
use crate::store::purge::fleet::Stamp;
use crate::store::second::lease::End;
use crate::store::second::{Elsewhere, Found, Lease, LeaseOutcome, Second, Wanted, Wants};
use crate::store::{Entry, Judgement};

/// The least time between two looks at one key: what ends a lease is told, not polled for.
const LEAST_WAIT: Duration = Duration::from_millis(15);

/// What a fetch is about, as far as the fleet is concerned.
pub struct About<'a> {
    pub primary: &'a [u8],
    pub request: &'a HeaderMap,
    pub options: &'a Options,
    /// Shared only among requests with a credential.
    pub is_apart: bool,
    /// How long a fetch for it usually takes.
    pub usual: Option<Duration>,
    /// A refresh behind a stale answer, which is as old as this: no other stale response is of use
    /// to it but a newer one.
    pub refreshes: Option<Timestamp>,
    /// Nothing is stored here that could be confirmed, or stand in for a failed origin.
    pub is_cold: bool,
}

/// What came of it.
pub enum Consulted {
    /// The second tier's response answers, and is stored here now.
    Promoted(Arc<Entry>),
    /// The origin is asked: with a lease, for the whole fleet. `known` is a stored response that it
    /// may confirm.
    Fetch {
        lease: Option<Lease>,
        known: Option<Arc<Entry>>,
    },
}

/// What a value is worth to a request.
enum Value {
    Answers(Arc<Entry>),
    Known(Arc<Entry>),
    Unusable,
}

/// Asks the second tier before the origin is asked: for the response, or for the lease of its
/// fetch.
pub async fn consult(plan: &Plan, second: &Second, about: &About<'_>) -> Consulted {
    let state = &plan.state;
    let until = Instant::now() + plan.config.cache.wait_timeout;
    let mut known = None;
    let mut patience = about.usual.map(|usual| usual.saturating_mul(2));
    loop {
        let cursor = state.memory.purges().cursor().stamp;
        let wanted = Wanted {
            primary: about.primary,
            request: about.request,
            is_apart: about.is_apart,
            position: cursor.position,
            usual: about.usual,
            deadline: Instant::now() + second.read_deadline(),
        };
        let mut found = second.look_up(wanted).await;
        let elsewhere = loop {
            match found {
                Err(_) => return Consulted::Fetch { lease: None, known },
                Ok(Found::Lead(lease)) => {
                    state.metrics.second.led();
                    let lease = Some(lease);
                    return Consulted::Fetch { lease, known };
                }
                Ok(Found::Value(fresh)) => {
                    let (worth, value) = judge_value(plan, about, fresh.value);
                    state.metrics.second.worth(worth);
                    match value {
                        Value::Answers(entry) => return Consulted::Promoted(entry),
                        Value::Known(entry) => known = Some(entry),
                        Value::Unusable => {}
                    }
                    found = second.claim(fresh.spot, Wants::Lease, wanted).await;
                }
                Ok(Found::Wait(elsewhere)) => {
                    let stamp = Stamp {
                        position: elsewhere.position,
                        ..cursor
                    };
                    // One of ours that others may not join was outdated before this began.
                    if !elsewhere.is_own && !is_outdated(state, about, stamp) {
                        break elsewhere;
                    }
                    let wants = Wants::LeaseOf(elsewhere.token);
                    found = second.claim(elsewhere.spot, wants, wanted).await;
                }
            }
        };
        if !wait_for(state, elsewhere, patience, until).await {
            return Consulted::Fetch { lease: None, known };
        }
        patience = patience.map(|patience| patience.saturating_mul(2));
    }
}

/// Waits for another instance's fetch; whether to look again. After `patience` its lease may have
/// been lost, and nobody would hear of its end.
async fn wait_for(
    state: &State,
    mut elsewhere: Elsewhere,
    patience: Option<Duration>,
    until: Instant,
) -> bool {
    let left = until.saturating_duration_since(Instant::now());
    let lasts = elsewhere.left.min(patience.unwrap_or(Duration::MAX));
    let lasts = lasts.max(LEAST_WAIT);
    let end = elsewhere.waiting.end(lasts.min(left)).await;
    let timed_out = Instant::now() >= until;
    if end == End::Expired && !timed_out && lasts < elsewhere.left {
        return true;
    }
    state.metrics.second.awaited(match end {
        _ if timed_out => Awaited::TimedOut,
        End::Outcome(LeaseOutcome::Stored) => Awaited::Stored,
        End::Outcome(LeaseOutcome::NotStorable) => Awaited::NotStorable,
        End::Outcome(LeaseOutcome::TooLarge) => Awaited::TooLarge,
        End::Outcome(LeaseOutcome::Dropped) => Awaited::Dropped,
        End::Outcome(LeaseOutcome::Failed) => Awaited::Failed,
        End::Expired => Awaited::Expired,
        End::Lost => Awaited::Lost,
    });
    !timed_out && matches!(end, End::Outcome(LeaseOutcome::Stored) | End::Expired)
}

/// Whether a purge that is known here came after a fetch with this stamp had begun.
fn is_outdated(state: &State, about: &About<'_>, stamp: Stamp) -> bool {
    let groups = about.options.groups.as_ref();
    Place::of(about.primary).is_some_and(|place| {
        let judged = state.memory.purges().judge_shared(&place, groups, stamp);
        judged.0 == Judgement::Gone
    })
}

/// Judges a value by the purges and by the request; one that answers is stored here.
fn judge_value(plan: &Plan, about: &About<'_>, value: Decoded) -> (Worth, Value) {
    let (state, unusable) = (&plan.state, (Worth::Unusable, Value::Unusable));
    // Another instance may have other lifetimes, and groups: ours count here.
    let entry = made_ours(state, about.primary, value)
        .and_then(|entry| plan.in_force(about.primary, entry, about.options));
    let Some(entry) = entry else {
        return unusable;
    };
    let is_selected = entry.head.selecting.as_ref().is_none_or(|selecting| {
        let mut values = Vec::new();
        append_selecting(&selecting.names, about.request, &mut values);
        values == selecting.values
    });
    let view = RequestView {
        method: &Method::GET,
        headers: about.request,
        has_body: false,
    };
    let now = state.clock.now();
    let stored = Some(entry.view()).filter(|_| is_selected);
    let answers = match policy::decide(view, stored, about.options, now) {
        Decision::Hit { .. } => true,
        Decision::StaleHit { .. } => {
            let born = entry.head.record.born;
            about.refreshes.is_none_or(|known| born > known)
        }
        Decision::Miss { .. } => false,
    };
    // What cannot answer may still be confirmed, or stand in for a failed origin.
    let is_known = is_selected && about.is_cold;
    if !(answers || is_known) || !state.memory.insert(about.primary, Arc::clone(&entry)) {
        return unusable;
    }
    if answers {
        (Worth::Used, Value::Answers(entry))
    } else {
        (Worth::Validated, Value::Known(entry))
    }
}

/// A value as an entry of this process; `None` where a purge has made it unusable, or where
/// there is no room.
pub fn made_ours(state: &State, primary: &[u8], value: Decoded) -> Option<Arc<Entry>> {
    let Decoded {
        mut head,
        body,
        stale_since,
        stamp,
    } = value;
    let purges = state.memory.purges();
    let place = Place::of(primary)?;
    let (judgement, local) = purges.judge_shared(&place, head.groups.as_ref(), stamp);
    head.stamp = local;
    head.vouched = purges.heard().unwrap_or_default();
    let entry = Entry::assemble(&head, &[body.into()], None, state.memory.charge()).ok()?;
    match judgement {
        Judgement::Gone => return None,
        Judgement::StaleSince(at) => entry.make_stale(at),
        Judgement::Untouched => {}
    }
    if let Some(at) = stale_since {
        entry.make_stale(at);
    }
    Some(Arc::new(entry))
}
