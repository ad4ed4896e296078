//! The fleet's purge log followed: what others purge is applied here, what was purged here is
//! appended there, and what is stored is trusted by how long ago the log was heard.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout, timeout_at};
use tracing::{info, warn};

use crate::clock::Clock;
use crate::metrics::second::Command;
use crate::store::purge::PurgeLog;

use super::{Instances, Second, TierError};

/// Purges that are appended in one call.
const BATCH: usize = 128;

/// Between two counts of the instances that know of a purge.
const RECOUNT: Duration = Duration::from_millis(10);

impl Second {
    /// Follows the log for ever: when it grows, when something is to be appended, and by and by.
    pub async fn follow(self: Arc<Self>, purges: Arc<PurgeLog>, clock: Clock) {
        let mut failed = false;
        loop {
            match self.catch_up(&purges, &clock).await {
                Ok(()) => {
                    if std::mem::take(&mut failed) {
                        info!(
                            position = purges.cursor().stamp.position,
                            "the purge log is followed again"
                        );
                    }
                }
                Err(error) => {
                    self.unheard();
                    if !std::mem::replace(&mut failed, true) {
                        warn!(%error, pending = purges.pending(), "the purge log in Redis is out of reach: purges of others are not heard");
                    }
                }
            }
            self.looks.send_modify(|count| *count += 1);
            tokio::select! {
                () = self.grown.notified() => {}
                () = purges.queued(), if !failed => {}
                () = sleep(self.patience.heartbeat) => {}
            }
        }
    }

    /// Appends what waits, reads to the end, and says so.
    pub async fn catch_up(&self, purges: &PurgeLog, clock: &Clock) -> Result<(), TierError> {
        loop {
            let outgoing = purges.take_queued(BATCH);
            let appends = !outgoing.is_empty();
            if appends {
                self.metrics.second.asked(Command::Append);
                let asked = timeout(self.patience.write, self.tier.append(outgoing)).await;
                let appended = asked.unwrap_or(Err(TierError::Late));
                purges.sent(appended.as_ref().ok().map(|stamp| stamp.position));
                appended?;
            }
            let (heard, look, before) = (clock.now(), self.look(), purges.cursor());
            self.metrics.second.asked(Command::Sync);
            let asked = timeout(self.patience.write, self.tier.sync(before)).await;
            let synced = asked.unwrap_or(Err(TierError::Late))?;
            let applied = purges.apply(synced, heard);
            if applied.dropped && before.stamp.epoch != 0 {
                warn!("the purge log was lost or trimmed: what was stored before is not trusted");
            }
            if applied.lost > 0 {
                warn!(
                    purges = applied.lost,
                    "the purge log lost purges of this instance: they are appended again"
                );
            }
            self.metrics.second.purged_elsewhere(applied.purges);
            if applied.is_behind {
                continue;
            }
            self.heard(look);
            // Once more, so that the others hear how far this instance is.
            if !appends && purges.cursor() == before && applied.lost == 0 {
                return Ok(());
            }
        }
    }

    /// Waits until values can be read, or for so long.
    pub async fn becomes_usable(&self, limit: Duration) -> bool {
        let mut looks = self.looks.subscribe();
        let usable = async { while !self.is_usable() && looks.changed().await.is_ok() {} };
        timeout(limit, usable).await.is_ok()
    }

    /// Waits until own purges up to this local position are in the fleet's log; where that then
    /// ends, or `None` if it takes too long.
    pub async fn published(&self, purges: &PurgeLog, local: u64, limit: Duration) -> Option<u64> {
        let deadline = Instant::now() + limit;
        let mut looks = self.looks.subscribe();
        while !purges.has_published(local) {
            timeout_at(deadline, looks.changed()).await.ok()?.ok()?;
        }
        Some(purges.cursor().stamp.position)
    }

    /// Waits until all instances that are alive have applied the log up to `position`; how many
    /// have within the limit, and `None` where nobody says.
    pub async fn acknowledged(&self, position: u64, limit: Duration) -> Option<Instances> {
        let deadline = Instant::now() + limit;
        loop {
            self.metrics.second.asked(Command::Instances);
            let asked = timeout(self.patience.write, self.tier.instances(position)).await;
            let instances = asked.ok()?.ok()?;
            if instances.acknowledged >= instances.alive || Instant::now() >= deadline {
                return Some(instances);
            }
            sleep(RECOUNT).await;
        }
    }
}
