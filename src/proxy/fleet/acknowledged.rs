//! Who knows of a purge, what the fleet is told at the end of a process, and what others' purges do
//! here.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use strum::IntoStaticStr;

use crate::clock::Timestamp;
use crate::error::rfc3339;
use crate::proxy::state::{SWEEP_EVERY, State};
use crate::store::second::Instances;

use super::warm_up::report_used_now;

/// How long a purge waits to be in the fleet's log, and then for the other instances to know.
const PUBLISHED_WITHIN: Duration = Duration::from_secs(1);
const ACKNOWLEDGED_WITHIN: Duration = Duration::from_secs(1);

/// Who knows of a purge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    /// Of the fleet's log where there is a fleet, else of this instance's.
    pub position: u64,
    /// What holds of it now.
    pub state: KnownState,
    /// `None` where nobody could say.
    pub instances: Option<Instances>,
    /// Until then an instance that does not know of it may serve what is older.
    pub until: Timestamp,
}

/// What the answer to a purge promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr)]
#[strum(serialize_all = "kebab-case")]
pub enum KnownState {
    /// No instance that serves has anything older.
    Done,
    /// It is in the fleet's log: instances that are named may serve what is older, for a while.
    Unconfirmed(Doubt),
    /// The fleet's log does not have it yet: it will when Redis is back, or when an instance starts
    /// here after that.
    Pending,
    /// The fleet's log does not have it yet, and will only if this instance lives until Redis is
    /// back.
    PendingVolatile,
}

/// Why nobody can say that all know of a purge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doubt {
    /// Some that were heard have not said so.
    Missing,
    /// This instance was deaf, or the log began anew: others may not have shown up yet.
    Blind,
    /// Redis did not say who lives.
    Untold,
    /// It is in one server of Redis, and in no replica.
    InOneServer,
}

impl Known {
    /// To this instance alone.
    pub fn here(position: u64, now: Timestamp) -> Self {
        Self {
            position,
            state: KnownState::Done,
            instances: Some(Instances {
                acknowledged: 1,
                alive: 1,
                missing: Vec::new(),
            }),
            until: now,
        }
    }

    /// As it stands in the answer of the admin port, without what was ordered.
    pub fn told(&self) -> Value {
        let instances = self.instances.as_ref();
        let missing = instances.map(|instances| {
            let missing = instances.missing.iter();
            let told = missing.map(|instance| {
                json!({
                    "instance": instance.name,
                    "silent_seconds": instance.silent.as_secs(),
                    "may_serve_older_until": rfc3339(self.until),
                })
            });
            told.collect::<Vec<_>>()
        });
        json!({
            "position": self.position,
            "state": <&str>::from(self.state),
            "why": self.state.why(),
            "instances": instances.map(|instances| instances.acknowledged),
            "alive": instances.map(|instances| instances.alive),
            "missing": missing,
        })
    }
}

/// As a log line says it: `done, known to 3 of 3 instances`.
impl fmt::Display for Known {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.state.into())?;
        match &self.instances {
            Some(instances) => {
                let (known, alive) = (instances.acknowledged, instances.alive);
                write!(out, ", known to {known} of {alive} instances")
            }
            None => Ok(()),
        }
    }
}

impl KnownState {
    /// What an operator can make of it.
    fn why(self) -> Option<&'static str> {
        Some(match self {
            Self::Done => return None,
            Self::Pending => {
                "Redis does not take it now: this instance knows, the others when Redis is back; \
                    it is kept in cache.redis.journal until then"
            }
            Self::PendingVolatile => {
                "Redis does not take it now: this instance knows, the others when Redis is back, \
                    and never if this instance ends before: set cache.redis.journal to a file \
                    that can be written, and order it once more when Redis is back"
            }
            Self::Unconfirmed(Doubt::Missing) => {
                "the instances under \"missing\" were heard a while ago and have not confirmed \
                    it: they are slow, cut off, or dead"
            }
            Self::Unconfirmed(Doubt::Blind) => {
                "a while ago this instance did not hear Redis, or its log was lost: others that \
                    live may not have shown up yet"
            }
            Self::Unconfirmed(Doubt::Untold) => "Redis did not say which instances live",
            Self::Unconfirmed(Doubt::InOneServer) => {
                "no replica of Redis has it yet, though there have been some: a failover now \
                    would lose it"
            }
        })
    }
}

/// Waits, not for long, until the fleet knows of the purges up to this local position.
pub async fn known_to_all(state: &State, local: u64) -> Known {
    let now = state.clock.now();
    let (purges, alone) = (state.memory.purges(), Known::here(local, now));
    let Some(second) = &state.second else {
        return alone;
    };
    let until = now.plus(second.max_silence());
    let Some(stamp) = second.published(purges, local, PUBLISHED_WITHIN).await else {
        let is_kept = purges.keep_untold().await;
        return Known {
            position: purges.cursor().stamp.position,
            state: if is_kept {
                KnownState::Pending
            } else {
                KnownState::PendingVolatile
            },
            until,
            ..alone
        };
    };
    let instances = second.acknowledged(stamp, ACKNOWLEDGED_WITHIN).await;
    let doubt = match &instances {
        None => Some(Doubt::Untold),
        Some(instances) if !instances.missing.is_empty() => Some(Doubt::Missing),
        Some(_) if second.may_miss_instances() => Some(Doubt::Blind),
        Some(_) if second.is_in_one_server() => Some(Doubt::InOneServer),
        Some(_) => None,
    };
    Known {
        position: stamp.position,
        state: doubt.map_or(KnownState::Done, KnownState::Unconfirmed),
        instances,
        until,
    }
}

/// Waits until the purges up to this local position outlive this process, as far as they can, and
/// not for long.
pub async fn outlives_us(state: &State, local: u64) {
    if let Some(second) = &state.second {
        second.outlives_us(state.memory.purges(), local).await;
    }
}

/// The end of the process: what the fleet does not know yet is told, if that does not take long.
pub async fn finish(state: &State, limit: Duration) {
    let _ = tokio::time::timeout(limit, state.origin.finish()).await;
    if let Some(second) = &state.second {
        report_used_now(state).await;
        second.finish(state.memory.purges(), limit).await;
    }
}

/// What others purge makes the log longer, too: stored responses are judged again, for ever.
pub async fn sweep_by_and_by(state: Arc<State>) {
    let mut swept = state.purge_position();
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let position = state.purge_position();
        if position - swept >= SWEEP_EVERY {
            swept = position;
            state.sweep(&[]).await;
        }
    }
}
