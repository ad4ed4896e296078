//! Who knows of a purge, what the fleet is told at the end of a process, and what others' purges do
//! here.

use std::sync::Arc;
use std::time::Duration;

use crate::proxy::state::{SWEEP_EVERY, State};
use crate::store::second::Instances;

use super::warm_up::report_used_now;

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

/// Waits, not for long, until the fleet knows of the purges up to this local position.
pub async fn known_to_all(state: &State, local: u64) -> Known {
    let (purges, alone) = (state.memory.purges(), Known::here(local));
    let Some(second) = &state.second else {
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
