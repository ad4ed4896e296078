//! What is learned of keys: from the origin's answers, and from the rest of the fleet; and how it
//! is remembered and told.

use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use tracing::info;

use crate::metrics::guard::{VerdictBy, VerdictOutcome};

use super::caller::Caller;
use super::noted::Noted;
use super::outage::{self, Met, Probed};
use super::source::is_refusal;
use super::verdicts::{Good, VerdictId};
use super::{Guard, Ruling, Standing};

/// Within so long one probe speaks for all refusals.
const PROBE_HOLDS: Duration = Duration::from_secs(1);

impl Guard {
    /// What the origin answered to a caller's request, but for a 2xx whose body means failure.
    /// `is_proof`: to a GET without conditions, so that a 2xx proves the key good. `probe` asks the
    /// same with the probe key.
    pub async fn answered(
        &self,
        caller: &Caller,
        status: StatusCode,
        is_proof: bool,
        probe: Option<impl Future<Output = Option<StatusCode>>>,
    ) -> Ruling {
        if !self.learns_from_origin() {
            return Ruling::Passes;
        }
        let verdict = |outcome| self.state.metrics.guard.verdict(VerdictBy::Origin, outcome);
        let now = self.state.clock.now();
        let key = caller.credential.key;
        if is_refusal(status) {
            let was_good = self.known(caller, now).is_some();
            if was_good {
                self.state.outage.note(key, Met::Refused, now);
                if let Some(probe) = probe {
                    self.probe(probe).await;
                }
            }
            let now = self.state.clock.now();
            let is_outage = self.state.outage.is_on(now) && !self.state.purges.is_revoked(&key.0);
            // A stranger's refusal in an outage is not held against it either.
            if was_good || !is_outage {
                let everywhere = status == StatusCode::UNAUTHORIZED;
                self.refuse(caller, everywhere, was_good, !is_outage);
            }
            if is_outage {
                verdict(VerdictOutcome::Outage);
                return Ruling::Outage;
            }
            if was_good {
                info!(
                    ?key,
                    "the origin refuses a key that was good: taken for revoked"
                );
            }
            verdict(VerdictOutcome::Bad);
            return Ruling::Refused;
        }
        if is_proof && status.is_success() {
            // Where anybody is let in, a 2xx does not say that the origin knows keys again.
            if caller.is_taught() || self.known(caller, now).is_some() {
                self.state.outage.note(key, Met::Accepted, now);
            }
            self.accept(caller, None);
            verdict(VerdictOutcome::Good);
        } else if status.is_server_error() {
            self.failed(caller);
        }
        Ruling::Passes
    }

    /// The source gave a caller no answer.
    pub fn failed(&self, caller: &Caller) {
        let now = self.state.clock.now();
        let key = caller.credential.key;
        if self.learns_from_origin() {
            self.state
                .metrics
                .guard
                .verdict(VerdictBy::Origin, VerdictOutcome::Failed);
            if self.known(caller, now).is_some() {
                self.state.outage.note(key, Met::Failed, now);
            }
        }
    }

    pub fn probe_key(&self) -> Option<&str> {
        self.settings.probe_key.as_deref()
    }

    /// One probe at a time, and none where one was made a moment ago.
    async fn probe(&self, probe: impl Future<Output = Option<StatusCode>>) {
        let _one = self.state.probing.lock().await;
        let last = self.state.outage.last_probe(self.state.clock.now());
        if last.is_some_and(|(at, _)| self.state.clock.now().since(at) < PROBE_HOLDS) {
            return;
        }
        let probed = match probe.await {
            Some(status) if status.is_success() => Probed::Revocation,
            Some(status) if is_refusal(status) => Probed::Outage,
            // No answer about keys: what other keys meet decides.
            _ => return,
        };
        self.state.outage.probed(probed, self.state.clock.now());
    }

    /// `project`: whose key it is, where the source names that.
    pub(super) fn accept(&self, caller: &Caller, project: Option<Arc<str>>) {
        let now = self.state.clock.now();
        let good = Good {
            until: now.plus(jittered(self.settings.good_ttl)),
            last: now,
            stamp: caller.stamp,
            refused: None,
        };
        self.remember(caller, good, project);
    }

    pub(super) fn remember(&self, caller: &Caller, good: Good, project: Option<Arc<str>>) {
        let (key, asked) = (&caller.credential.key, caller.asked);
        let verdicts = &self.state.verdicts;
        if verdicts.accept(key, caller.id, (good, project.clone()), asked) {
            let names = self.settings.names_projects();
            let project = names.then(|| project.unwrap_or_default());
            self.note(caller, Noted::Good(good, project));
        }
    }

    /// `was_good`: it was known here; then nothing is remembered for longer than an outage takes to
    /// be found out. `tells`: the fleet is told.
    pub(super) fn refuse(&self, caller: &Caller, everywhere: bool, was_good: bool, tells: bool) {
        let mut ttl = jittered(self.settings.bad_ttl);
        if was_good {
            ttl = ttl.min(outage::WINDOW);
        }
        let now = self.state.clock.now();
        let key = &caller.credential.key;
        self.state
            .verdicts
            .refuse(key, caller.id, ttl, everywhere, now);
        if tells {
            self.note(caller, Noted::Bad(now.plus(ttl)));
        }
    }

    /// Tells the fleet.
    fn note(&self, caller: &Caller, noted: Noted) {
        let Some(second) = &self.state.second else {
            return;
        };
        let Some(stamp) = self.state.purges.stamp_of(caller.stamp) else {
            return;
        };
        let now = self.state.clock.now();
        let until = match noted {
            Noted::Good(ref good, _) => good.until,
            Noted::Bad(until) => until,
        };
        let ttl = until.since(now).max(Duration::from_millis(1));
        second.note(&name(&caller.id), noted.write(stamp), ttl);
    }

    pub(super) async fn ask_the_fleet(&self, caller: &Caller) -> Option<Standing> {
        let second = self
            .state
            .second
            .as_ref()
            .filter(|second| second.is_usable())?;
        let bytes = second.noted(&name(&caller.id)).await.ok()??;
        let (noted, stamp) = Noted::read(&bytes)?;
        let now = self.state.clock.now();
        let key = &caller.credential.key;
        if !self.state.purges.allows_shared(&key.0, stamp) {
            return None;
        }
        let refused = self.state.verdicts.last_refused(key, &caller.id);
        let verdict = |outcome| self.state.metrics.guard.verdict(VerdictBy::Fleet, outcome);
        match noted {
            // What this instance saw refused after that is asked about again.
            // One that was noted where projects are not named says too little.
            Noted::Good(good, project)
                if now < good.until
                    && refused < Some(good.last)
                    && (project.is_some() || !self.settings.names_projects()) =>
            {
                let good = Good {
                    stamp: caller.stamp,
                    ..good
                };
                let verdicts = &self.state.verdicts;
                let project = project.filter(|project| !project.is_empty());
                verdicts.accept(key, caller.id, (good, project), caller.asked);
                verdict(VerdictOutcome::Good);
            }
            // A key that was good here is refused by its source alone: it may be an outage.
            Noted::Bad(until) if now < until && self.known(caller, now).is_none() => {
                let ttl = until.since(now);
                self.state.verdicts.refuse(key, caller.id, ttl, false, now);
                verdict(VerdictOutcome::Bad);
            }
            _ => return None,
        }
        Some(self.standing(caller)).filter(|standing| !matches!(standing, Standing::Unknown { .. }))
    }
}

/// Up to a tenth shorter, so that what was learned at one time is not asked again at one time.
fn jittered(ttl: Duration) -> Duration {
    let chance = uuid::Uuid::new_v4().as_u64_pair().1 % 1000;
    ttl - ttl.mul_f64(chance as f64 / 10_000.0)
}

fn name(id: &VerdictId) -> String {
    format!("verdict:{}", hex::encode(id.0))
}
