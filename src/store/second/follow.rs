//! The fleet's purge log followed: what others purge is applied here, what was purged here is
//! appended there, and what is stored is trusted by how long ago the log was heard.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout, timeout_at};
use tracing::{debug, info, warn};

use crate::clock::Clock;
use crate::metrics::second::Command;
use crate::store::purge::PurgeLog;
use crate::store::purge::fleet::Stamp;

use super::{Appended, Instance, Instances, Second, TierError};

/// Purges that are appended in one call.
const BATCH: usize = 128;

/// Between two counts of the instances that know of a purge.
const RECOUNT: Duration = Duration::from_millis(10);

/// Between two counts where nobody purges.
const COUNTED_EVERY: Duration = Duration::from_secs(5);

/// Between two appends: purges of one name that come meanwhile are one.
const BREATH: Duration = Duration::from_millis(3);

/// What came of one look at the log.
#[derive(Debug, Default)]
pub struct CaughtUp {
    has_appended: bool,
    /// Everything was read, and own purges could not be appended.
    refused: Option<TierError>,
}

/// How following went so far, so that each change is told once.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Following {
    Well,
    /// Others are heard, and not told.
    Mute,
    Deaf,
}

impl Second {
    /// Follows the log for ever: when it grows, when something is to be appended, and by and by.
    pub async fn follow(self: Arc<Self>, purges: Arc<PurgeLog>, clock: Clock) {
        let (mut following, mut is_advised) = (Following::Well, false);
        let mut counted: Option<Instant> = None;
        loop {
            let caught_up = self.catch_up(&purges, &clock).await;
            if caught_up.is_err() {
                // A start that takes a moment to connect says nothing of the others.
                if purges.cursor().stamp.epoch != 0 || !self.starts() {
                    self.is_blind();
                }
                self.unheard();
            } else if self.revive() {
                debug!("Redis answers and nothing is heard from it");
            }
            let now = match &caught_up {
                Ok(CaughtUp { refused: None, .. }) => Following::Well,
                Ok(_) => Following::Mute,
                Err(_) => Following::Deaf,
            };
            self.note_taken(now == Following::Well);
            if now != std::mem::replace(&mut following, now) {
                self.tell(&caught_up, &purges);
            }
            if now == Following::Well && !std::mem::replace(&mut is_advised, true) {
                self.background.spawn(Arc::clone(&self).advise());
            }
            let is_due = counted.is_none_or(|counted| counted.elapsed() > COUNTED_EVERY);
            if now == Following::Well && is_due {
                counted = Some(Instant::now());
                // Those that are gone without a word leave the list by that.
                self.metrics.second.asked(Command::Instances);
                let asking = self.tier.instances(self.patience.max_silence);
                if let Ok(Ok(all)) = timeout(self.patience.write, asking).await {
                    self.note_others(&all);
                }
            }
            self.looks.send_modify(|count| *count += 1);
            // What waits for long, and what does not wait any more.
            if purges.has_untold() && (now != Following::Well || purges.pending() == 0) {
                let _ = timeout(self.patience.write, purges.keep_untold()).await;
            }
            if caught_up.is_ok_and(|caught_up| caught_up.has_appended) {
                sleep(BREATH).await;
            }
            tokio::select! {
                () = self.grown.notified() => {}
                () = purges.queued(), if following == Following::Well => {}
                () = sleep(self.patience.heartbeat) => {}
            }
        }
    }

    /// Appends what waits, reads to the end, and says so.
    async fn catch_up(&self, purges: &PurgeLog, clock: &Clock) -> Result<CaughtUp, TierError> {
        let mut done = CaughtUp::default();
        loop {
            // What others purged is read even where nothing can be written.
            let outgoing = match done.refused {
                None => purges.take_queued(BATCH),
                Some(_) => Vec::new(),
            };
            let appends = !outgoing.is_empty();
            if appends {
                self.metrics.second.asked(Command::Append);
                let epoch = purges.cursor().stamp.epoch;
                let appending = self.tier.append(epoch, outgoing);
                let appended = timeout(self.patience.write, appending).await;
                let appended = appended.unwrap_or(Err(TierError::Late));
                let is_in = matches!(appended, Ok(Appended::In | Appended::InOneServer));
                if !is_in {
                    self.note_taken(false);
                }
                purges.sent(is_in);
                self.note_appended(matches!(appended, Ok(Appended::InOneServer)));
                done.has_appended = true;
                done.refused = appended.err();
            }
            let serves = !self.has_left.load(Ordering::Relaxed);
            let (heard, look, reader) = (
                clock.now(),
                self.look(),
                purges.reader(serves, self.admin()),
            );
            let before = reader.cursor;
            self.metrics.second.asked(Command::Sync);
            let asked = timeout(self.patience.write, self.tier.sync(reader)).await;
            let synced = asked.unwrap_or(Err(TierError::Late))?;
            let strange = synced
                .entries
                .iter()
                .filter(|logged| logged.entry.is_none());
            self.metrics.second.passed_over(strange.count());
            let begins = synced.begins;
            self.note_instances(synced.instances);
            let applied = purges.apply(synced, heard);
            if applied.dropped && before.stamp.epoch != 0 {
                self.is_blind();
                warn!(
                    "the purge log was lost or trimmed, or Redis is back with an older one: what \
                        was stored before is not trusted"
                );
            } else if begins {
                info!(
                    "a new purge log begins: what is stored in Redis from before it is not trusted"
                );
            }
            if applied.lost > 0 {
                let purges = applied.lost;
                warn!(
                    purges,
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
                return Ok(done);
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
    pub async fn published(&self, purges: &PurgeLog, local: u64, limit: Duration) -> Option<Stamp> {
        let deadline = Instant::now() + limit;
        let mut looks = self.looks.subscribe();
        while !purges.has_published(local) {
            timeout_at(deadline, looks.changed()).await.ok()?.ok()?;
        }
        Some(purges.cursor().stamp)
    }

    /// Waits until own purges up to this local position are where they outlive this process: in
    /// Redis, which is waited for no longer than for a look-up and not at all where it took the last
    /// ones in vain, or in the journal; whether they are.
    pub async fn outlives_us(&self, purges: &Arc<PurgeLog>, local: u64) -> bool {
        let appended = purges.appended(local);
        if self.takes_purges() && timeout(self.patience.read, appended).await.is_ok() {
            return true;
        }
        // A disk may hang, too.
        let keeping = timeout(self.patience.write, purges.keep_untold());
        keeping.await.unwrap_or(false)
    }

    /// Waits until all instances that may be alive have applied the log up to `stamp`: who has
    /// within the limit, and who has not; `None` where nobody says.
    pub async fn acknowledged(&self, stamp: Stamp, limit: Duration) -> Option<Instances> {
        let deadline = Instant::now() + limit;
        loop {
            self.metrics.second.asked(Command::Instances);
            let asking = self.tier.instances(self.patience.max_silence);
            let all = timeout(self.patience.write, asking).await.ok()?.ok()?;
            self.note_others(&all);
            let alive = all.len() as u64;
            let is_missing = |instance: &Instance| !instance.has_applied(stamp);
            let missing: Vec<Instance> = all.into_iter().filter(is_missing).collect();
            if missing.is_empty() || Instant::now() >= deadline {
                return Some(Instances {
                    acknowledged: alive - missing.len() as u64,
                    alive,
                    missing,
                });
            }
            sleep(RECOUNT).await;
        }
    }

    /// Warns of what the settings of Redis keep it from promising.
    async fn advise(self: Arc<Self>) {
        let asked = timeout(self.patience.write, self.tier.advice()).await;
        for advice in asked.unwrap_or(Err(TierError::Late)).unwrap_or_default() {
            warn!("Redis: {advice}");
        }
    }

    /// The end of the process: waits, not for long, until the fleet has its purges and Redis what
    /// was stored, and says goodbye.
    pub async fn finish(&self, purges: &Arc<PurgeLog>, limit: Duration) {
        let published = self.published(purges, purges.position(), limit).await;
        let written = timeout(limit, async {
            while self.queued() > 0 || self.settling() > 0 {
                sleep(RECOUNT).await;
            }
        });
        let written = written.await.is_ok();
        if published.is_none() || !written {
            let (pending, writes) = (purges.pending(), self.queued());
            let are_kept = pending > 0 && purges.keep_untold().await;
            warn!(
                pending,
                are_kept,
                writes,
                "Redis was not told everything: purges that others do not know of (kept ones are \
                    told at the next start), and responses that were not written"
            );
        }
        self.leave(limit).await;
    }

    /// Nobody who purges waits for this instance from now on: it serves nothing any more.
    async fn leave(&self, limit: Duration) {
        let mut looks = self.looks.subscribe();
        self.has_left.store(true, Ordering::Relaxed);
        // The look that is under way may not say so yet.
        let said = timeout(limit, async {
            for _ in 0..2 {
                self.grown.notify_one();
                let _ = looks.changed().await;
            }
        });
        let _ = said.await;
    }

    /// Tells how following the log goes from now on.
    fn tell(&self, caught_up: &Result<CaughtUp, TierError>, purges: &PurgeLog) {
        let (position, pending) = (purges.cursor().stamp.position, purges.pending());
        match caught_up {
            Ok(CaughtUp { refused: None, .. }) => {
                info!(position, "the purge log is followed");
            }
            Ok(CaughtUp {
                refused: Some(error),
                ..
            }) => {
                warn!(%error, pending, "the purge log in Redis takes no purges: the others do not \
                    hear of those made here (is its memory full, with maxmemory-policy noeviction?)");
            }
            Err(error) => {
                let why = self.trouble().unwrap_or_else(|| error.to_string());
                warn!(
                    why,
                    pending,
                    "the purge log in Redis is out of reach: purges of others are not heard"
                );
            }
        }
    }
}
