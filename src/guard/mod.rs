//! Who is let in, and how often: guard first, look-up second.
//!
//! On a route with `share = "verified"` one stored response is handed to all whose key has a good
//! verdict. [`Guard::standing`] says from memory what is known of a caller; [`Guard::ask`] asks the
//! fleet, and a source that is not the origin; where the origin is the source, the proxy sends the
//! request there with the caller's key and tells by [`Guard::answered`] what came of it. Rate
//! limits are in [`limits`].
//!
//! A key is nowhere but in the request: here it is a digest.

pub mod address;
pub mod agreement;
mod asking;
mod caller;
pub mod credential;
pub mod group;
mod learned;
pub mod limits;
mod measured;
mod noted;
pub mod outage;
mod pace;
mod proofs;
mod source;
pub mod stranger;
pub mod units;
pub mod verdicts;
mod window;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http::HeaderMap;
use tracing::warn;

use crate::clock::{Clock, Timestamp};
use crate::config::Auth;
use crate::error::{Failure, FailureKind};
use crate::metrics::Metrics;
use crate::metrics::guard::VerdictOutcome;
use crate::store::PurgeLog;
use crate::store::second::Second;

use asking::Asking;
use credential::{Credential, Credentials, KeyId};
use outage::{Met, Outage};
use pace::Pace;
use source::{Answer, Question};
use units::Units;
use verdicts::{Good, VerdictId, Verdicts};

pub use caller::Caller;
pub use limits::{LimitState, Limits};
pub use measured::Measured;
pub use source::{Source, is_refusal};

/// Milliseconds between two complaints.
const COMPLAINS_EVERY: u64 = 10_000;

/// What is known of a caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// What is stored may be used.
    Good,
    /// It is not known now. `known`: it was good before.
    Unknown { known: bool },
    /// It was refused a moment ago, or revoked.
    Bad,
}

/// What an origin's answer says of a caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ruling {
    /// Nothing against it.
    Passes,
    /// It is refused.
    Refused,
    /// It is refused, and that says nothing: the origin refuses good keys.
    Outage,
}

/// The rules by which callers are let in, as one plan has them; what they go by is in the
/// [`GuardState`], which outlives plans.
pub struct Guard {
    settings: Auth,
    source: Source,
    state: Arc<GuardState>,
}

/// What is known of keys: verdicts, outages, questions under way.
pub struct GuardState {
    verdicts: Verdicts,
    outage: Outage,
    purges: Arc<PurgeLog>,
    second: Option<Arc<Second>>,
    clock: Clock,
    metrics: Arc<Metrics>,
    pub units: Units,
    /// Of unknown keys that are asked about.
    unknown: Pace,
    /// Of controls and comparisons.
    proofs: Pace,
    probing: tokio::sync::Mutex<()>,
    /// The source's control is being taken.
    controlling: tokio::sync::Mutex<()>,
    asking: Asking,
    /// When the log last heard of an ill source, in Unix milliseconds.
    complained: AtomicU64,
}

impl GuardState {
    /// Remembers up to `verdicts` verdicts of each kind.
    pub fn new(
        verdicts: usize,
        purges: Arc<PurgeLog>,
        second: Option<Arc<Second>>,
        clock: Clock,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self {
            verdicts: Verdicts::new(verdicts),
            outage: Outage::default(),
            purges,
            second,
            clock,
            metrics,
            units: Units::default(),
            unknown: Pace::default(),
            proofs: Pace::default(),
            probing: tokio::sync::Mutex::default(),
            controlling: tokio::sync::Mutex::default(),
            asking: Asking::default(),
            complained: AtomicU64::new(0),
        }
    }

    /// Verdicts that are remembered: good and bad ones.
    pub fn remembered(&self) -> (u64, u64) {
        self.verdicts.len()
    }
}

impl Guard {
    pub fn new(settings: Auth, source: Source, state: Arc<GuardState>) -> Self {
        let outage = &state.outage;
        outage.set_lone_key_has_grace(settings.lone_key_has_grace);
        Self {
            settings,
            source,
            state,
        }
    }

    /// A caller, and what a verdict on it reaches.
    pub fn caller(&self, credential: Credential, scope: &[u8]) -> Caller {
        let base = VerdictId::of(&credential, scope);
        Caller {
            credential,
            id: base,
            base,
            asked: self.state.verdicts.order(),
            stamp: self.state.purges.position(),
        }
    }

    /// What is known of a caller here and now.
    pub fn standing(&self, caller: &Caller) -> Standing {
        let now = self.state.clock.now();
        let key = &caller.credential.key;
        if self.state.purges.is_revoked(&key.0) {
            return Standing::Bad;
        }
        let found = self.state.verdicts.of(key, &caller.id, now);
        let good = found
            .good
            .filter(|good| self.state.purges.allows(&key.0, good.stamp));
        if let Some(good) = good
            && found.bad.is_none()
            && now < good.until
        {
            return Standing::Good;
        }
        // While the origin refuses good keys, its refusals say nothing.
        let is_explained = good
            .and_then(|good| good.refused)
            .is_some_and(|refused| self.state.outage.explains(refused, now));
        match good {
            Some(good)
                if is_explained
                    && self.state.outage.is_on(now)
                    && self.is_graced(good.last, now) =>
            {
                Standing::Good
            }
            _ if found.bad.is_some() && !is_explained => Standing::Bad,
            _ => Standing::Unknown {
                known: self.was_good_lately(key, now),
            },
        }
    }

    fn is_graced(&self, last: Timestamp, now: Timestamp) -> bool {
        now.since(last) <= self.settings.grace
    }

    /// Whether a key was good anywhere within the time for which that is of use.
    fn was_good_lately(&self, key: &KeyId, now: Timestamp) -> bool {
        let lasts = self.settings.good_ttl + self.settings.grace;
        let last = self.state.verdicts.last_good(key);
        last.is_some_and(|last| now.since(last) <= lasts)
    }

    /// What is known to have been good here, lately, and was not refused since but by an outage.
    fn known(&self, caller: &Caller, now: Timestamp) -> Option<Good> {
        let key = &caller.credential.key;
        let good = self.state.verdicts.of(key, &caller.id, now).good?;
        let lasts = self.settings.good_ttl + self.settings.grace;
        let is_refused = good
            .refused
            .is_some_and(|refused| !self.state.outage.explains(refused, now));
        let counts = now.since(good.last) <= lasts && self.state.purges.allows(&key.0, good.stamp);
        (counts && !is_refused).then_some(good)
    }

    /// Whether a caller may be served what is stored, now that its source has failed: it is good,
    /// or was a moment ago.
    pub fn may_use_stored(&self, caller: &Caller) -> bool {
        let now = self.state.clock.now();
        match self.standing(caller) {
            Standing::Good => true,
            Standing::Bad => false,
            Standing::Unknown { .. } => self
                .known(caller, now)
                .is_some_and(|good| self.is_graced(good.last, now)),
        }
    }

    /// The project of a key that is good somewhere, where the source names projects.
    pub fn project(&self, key: &KeyId) -> Option<Arc<str>> {
        self.state.verdicts.project(key)
    }

    /// Whether refusals of known keys are taken for an outage now.
    pub fn is_in_outage(&self) -> bool {
        self.state.outage.is_on(self.state.clock.now())
    }

    /// Whether one more unknown key may be asked about now, of so many a second; it counts as
    /// asked about.
    pub fn asks_about_unknown(&self) -> bool {
        let (per_second, now) = (self.settings.unknown_per_second, self.state.clock.now());
        self.state.unknown.begins(per_second, now)
    }

    /// As [`Guard::asks_about_unknown`], but nothing is counted.
    pub fn may_ask_about_unknown(&self) -> bool {
        let (per_second, now) = (self.settings.unknown_per_second, self.state.clock.now());
        self.state.unknown.may_begin(per_second, now)
    }

    /// Whether there is somebody but the origin to ask about an unknown caller.
    pub fn has_others_to_ask(&self) -> bool {
        self.state.second.is_some() || !matches!(self.source, Source::Origin)
    }

    /// Whether the origin's answers are what verdicts come from.
    pub fn learns_from_origin(&self) -> bool {
        matches!(self.source, Source::Origin)
    }

    /// Asks the fleet, and the source where that is not the origin; `credentials` says where keys
    /// stand in `headers`. What is still unknown after that is the origin's to say, or nobody's.
    pub async fn ask(
        self: &Arc<Self>,
        caller: Caller,
        headers: &HeaderMap,
        credentials: &Credentials,
    ) -> Standing {
        if let Some(standing) = self.ask_the_fleet(&caller).await {
            return standing;
        }
        match self.ask_the_source(caller, headers, credentials).await {
            None => self.standing(&caller),
            // Revoked by hand while it was asked about.
            Some(Met::Accepted)
                if !self
                    .state
                    .purges
                    .allows(&caller.credential.key.0, caller.stamp) =>
            {
                Standing::Bad
            }
            Some(Met::Accepted) => Standing::Good,
            Some(Met::Refused) => Standing::Bad,
            Some(Met::Failed) if self.may_use_stored(&caller) => Standing::Good,
            Some(Met::Failed) => Standing::Unknown { known: false },
        }
    }

    /// What the source says; `None` where the origin is the source.
    async fn ask_the_source(
        self: &Arc<Self>,
        caller: Caller,
        headers: &HeaderMap,
        credentials: &Credentials,
    ) -> Option<Met> {
        if self.learns_from_origin() {
            return None;
        }
        let question = Question::of(credentials, headers);
        let strange = Question::strange(credentials, headers);
        let (asking, hearing) = (Arc::clone(self), Arc::clone(self));
        let answer = async move {
            let complain = |cause: &(dyn std::fmt::Display + Sync)| asking.complain(cause);
            let answer = asking.source.answer(question, complain).await;
            if answer.met != Met::Accepted || asking.source_is_controlled(strange).await {
                return answer;
            }
            asking.complain(
                &"it was not found to refuse a random key and a request without one \
                (auth.control), so that its 2xx says nothing",
            );
            Met::Failed.into()
        };
        let heard = move |answer| hearing.source_answered(&caller, answer);
        Some(self.state.asking.ask(caller.id, answer, heard).await)
    }

    /// Once in a while: every unknown key meets it.
    fn complain(&self, cause: &dyn std::fmt::Display) {
        let now = self.state.clock.now().as_millis();
        let last = self.state.complained.load(Ordering::Relaxed);
        if now.abs_diff(last) >= COMPLAINS_EVERY {
            self.state.complained.store(now, Ordering::Relaxed);
            warn!(%cause, "auth.source says neither good nor bad: unknown keys get 503");
        }
    }

    /// The source, asked by this instance, has answered.
    fn source_answered(&self, caller: &Caller, answer: Answer) {
        let outcome = match answer.met {
            Met::Accepted => {
                self.accept(caller, answer.project);
                VerdictOutcome::Good
            }
            Met::Refused => {
                self.refuse(caller, true, false, true);
                VerdictOutcome::Bad
            }
            Met::Failed => VerdictOutcome::Failed,
        };
        self.state
            .metrics
            .guard
            .verdict(self.source.label(), outcome);
    }
}

/// While the source is ill, clients are asked to come again after this.
const SOURCE_AGAIN: Duration = Duration::from_secs(5);

/// Nobody can say now whether a key is good: `why`, and when to ask again.
pub fn unverified(why: &str, again: Duration) -> Failure {
    let message = format!("nobody can say now whether this API key is good: {why}");
    Failure::new(FailureKind::KeyUnverified, message).retry_after(again)
}

/// The failure of a request whose key nobody can verify now.
pub fn source_is_ill() -> Failure {
    unverified("what verifies it does not answer", SOURCE_AGAIN)
}
