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
use crate::policy::key::Place as KeyPlace;
use crate::policy::vary::append_selecting;
use crate::policy::{self, Decision, Options, RequestView};
use crate::store::codec::Decoded;
use crate::store::purge::fleet::Stamp;
use crate::store::second::lease::End;
use crate::store::second::{Elsewhere, Found, Instances, Lease, Outcome, Second, Wanted, Wants};
use crate::store::{Entry, Judgement};

use super::Proxy;
use super::invalidate::SWEEP_EVERY;

/// The least time between two looks at one key: what ends a lease is told, not polled for.
const LEAST_WAIT: Duration = Duration::from_millis(15);

/// What a fetch is about, as far as the fleet is concerned.
pub(super) struct About<'a> {
    pub primary: &'a [u8],
    pub request: &'a HeaderMap,
    pub options: &'a Options,
    /// Shared only among requests with a credential.
    pub is_apart: bool,
    /// A refresh behind a stale answer, which is as old as this: no other stale response is of use
    /// to it but a newer one.
    pub refreshes: Option<Timestamp>,
    /// Nothing is stored here that could be confirmed, or stand in for a failed origin.
    pub is_cold: bool,
}

/// What came of it.
pub(super) enum Consulted {
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

/// How long a purge waits to be in the fleet's log, and then for the other instances to know.
const PUBLISHED_WITHIN: Duration = Duration::from_secs(1);
const ACKNOWLEDGED_WITHIN: Duration = Duration::from_secs(1);

/// Who knows of a purge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Known {
    /// Of the fleet's log where there is a fleet, else of this instance's.
    pub position: u64,
    /// The fleet's log does not have it yet: it will when Redis is back.
    pub is_pending: bool,
    /// `None` where nobody could say.
    pub instances: Option<Instances>,
    /// The log has begun anew a moment ago: some instances may not have shown up in it yet.
    pub may_miss_some: bool,
}

impl Known {
    /// To this instance alone.
    pub fn here(position: u64) -> Self {
        let (acknowledged, alive) = (1, 1);
        Self {
            position,
            is_pending: false,
            instances: Some(Instances {
                acknowledged,
                alive,
            }),
            may_miss_some: false,
        }
    }

    /// The word for it on the admin port.
    pub fn state(&self) -> &'static str {
        match self.instances {
            _ if self.is_pending => "pending",
            Some(instances) if instances.acknowledged >= instances.alive && !self.may_miss_some => {
                "done"
            }
            _ => "unconfirmed",
        }
    }
}

impl Proxy {
    /// Waits, not for long, until the fleet knows of the purges up to this local position.
    pub async fn known_to_all(&self, local: u64) -> Known {
        let (purges, alone) = (self.memory.purges(), Known::here(local));
        let Some(second) = &self.second else {
            return alone;
        };
        let Some(stamp) = second.published(purges, local, PUBLISHED_WITHIN).await else {
            return Known {
                position: purges.cursor().stamp.position,
                is_pending: true,
                ..alone
            };
        };
        Known {
            position: stamp.position,
            instances: second.acknowledged(stamp, ACKNOWLEDGED_WITHIN).await,
            may_miss_some: second.may_miss_instances(),
            ..alone
        }
    }

    /// Whether there is a second tier.
    pub fn is_of_fleet(&self) -> bool {
        self.second.is_some()
    }

    /// The end of the process: what the fleet does not know yet is told, if that does not take long.
    pub async fn finish(&self, limit: Duration) {
        let _ = tokio::time::timeout(limit, self.origin.finish()).await;
        if let Some(second) = &self.second {
            self.report_used_now().await;
            second.finish(self.memory.purges(), limit).await;
        }
    }

    /// What others purge makes the log longer, too: stored responses are judged again, for ever.
    pub async fn sweep_by_and_by(self: Arc<Self>) {
        let mut swept = self.purge_position();
        loop {
            tokio::time::sleep(Duration::from_secs(1)).await;
            let position = self.purge_position();
            if position - swept >= SWEEP_EVERY {
                swept = position;
                self.sweep(&[]).await;
            }
        }
    }

    pub(super) async fn consult(&self, second: &Second, about: &About<'_>) -> Consulted {
        let until = Instant::now() + self.config.cache.wait_timeout;
        let mut known = None;
        loop {
            let cursor = self.memory.purges().cursor().stamp;
            let wanted = Wanted {
                primary: about.primary,
                request: about.request,
                is_apart: about.is_apart,
                position: cursor.position,
                deadline: Instant::now() + second.read_deadline(),
            };
            let mut found = second.look_up(wanted).await;
            let elsewhere = loop {
                match found {
                    Err(_) => return Consulted::Fetch { lease: None, known },
                    Ok(Found::Lead(lease)) => {
                        self.metrics.second.led();
                        let lease = Some(lease);
                        return Consulted::Fetch { lease, known };
                    }
                    Ok(Found::Value(fresh)) => {
                        let (worth, value) = self.value(about, fresh.value);
                        self.metrics.second.worth(worth);
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
                        if !elsewhere.is_own && !self.is_outdated(about, stamp) {
                            break elsewhere;
                        }
                        let wants = Wants::LeaseOf(elsewhere.token);
                        found = second.claim(elsewhere.spot, wants, wanted).await;
                    }
                }
            };
            if !self.wait_for(elsewhere, until).await {
                return Consulted::Fetch { lease: None, known };
            }
        }
    }

    /// Waits for another instance's fetch; whether to look again.
    async fn wait_for(&self, mut elsewhere: Elsewhere, until: Instant) -> bool {
        let left = until.saturating_duration_since(Instant::now());
        let lasts = elsewhere.left.max(LEAST_WAIT);
        let end = elsewhere.waiting.end(lasts.min(left)).await;
        let timed_out = Instant::now() >= until;
        self.metrics.second.awaited(match end {
            _ if timed_out => Awaited::TimedOut,
            End::Outcome(Outcome::Stored) => Awaited::Stored,
            End::Outcome(Outcome::NotStorable) => Awaited::NotStorable,
            End::Outcome(Outcome::TooLarge) => Awaited::TooLarge,
            End::Outcome(Outcome::Dropped) => Awaited::Dropped,
            End::Outcome(Outcome::Failed) => Awaited::Failed,
            End::Expired => Awaited::Expired,
            End::Lost => Awaited::Lost,
        });
        !timed_out && matches!(end, End::Outcome(Outcome::Stored) | End::Expired)
    }

    /// Whether a purge that is known here came after a fetch with this stamp had begun.
    fn is_outdated(&self, about: &About<'_>, stamp: Stamp) -> bool {
        let groups = about.options.groups.as_ref();
        KeyPlace::of(about.primary).is_some_and(|place| {
            let judged = self.memory.purges().judge_shared(&place, groups, stamp);
            judged.0 == Judgement::Gone
        })
    }

    /// Judges a value by the purges and by the request; one that answers is stored here.
    fn value(&self, about: &About<'_>, value: Decoded) -> (Worth, Value) {
        let unusable = (Worth::Unusable, Value::Unusable);
        let Some(entry) = self.made_ours(about.primary, value) else {
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
        let now = self.clock.now();
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
        if !(answers || is_known) || !self.memory.insert(about.primary, Arc::clone(&entry)) {
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
    pub(super) fn made_ours(&self, primary: &[u8], value: Decoded) -> Option<Arc<Entry>> {
        let Decoded {
            mut head,
            body,
            stale_since,
            stamp,
        } = value;
        let purges = self.memory.purges();
        let place = KeyPlace::of(primary)?;
        let (judgement, local) = purges.judge_shared(&place, head.groups.as_ref(), stamp);
        head.stamp = local;
        head.vouched = purges.heard().unwrap_or_default();
        let entry = Entry::assemble(&head, &[body.into()], None, self.memory.charge()).ok()?;
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
}
