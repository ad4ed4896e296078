//! How a fetch ends for those who wait for it: it is stored, it is one client's alone, it has
//! failed, or it was refused; and what they, and the fleet, are told.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use http::header::COOKIE;
use http::{Response, StatusCode};

use crate::clock::Timestamp;
use crate::error::Failure;
use crate::flight::{Outcome, Reader};
use crate::guard::source_is_ill;
use crate::metrics::Refresh;
use crate::policy::{Reason, StoredView};
use crate::proxy::parts::store::forget_part;
use crate::store::second::LeaseOutcome;
use crate::store::{Entry, Found, Head};
use crate::upstream::OriginBody;

use super::{Fetch, Validation};

/// What the request that leads a fetch is told.
pub enum Led {
    /// It may be stored, and its body is coming in.
    Streaming {
        head: Arc<Head>,
        reader: Reader,
    },
    /// It is whole and stored; `status` is what the origin said: 304 where it confirmed.
    Stored {
        entry: Arc<Entry>,
        status: StatusCode,
    },
    /// The second tier had it, and it is stored here now.
    Found(Arc<Entry>),
    /// It is this request's alone.
    Own {
        response: Response<OriginBody>,
        reason: Reason,
    },
    Failed(Failure),
}

impl Fetch {
    /// The response is the leader's alone; the waiters are let go at once, and the key is
    /// remembered, so that the next ones do not wait either.
    pub(super) fn not_shared(
        mut self,
        response: Response<OriginBody>,
        reason: Reason,
        validation: Option<&Validation>,
    ) {
        self.release(match reason {
            Reason::TooLarge => LeaseOutcome::TooLarge,
            Reason::Budget => LeaseOutcome::Dropped,
            // The leader's key was refused: that says nothing to those who wait.
            Reason::Credential if self.let_in.is_some() => LeaseOutcome::Dropped,
            _ => LeaseOutcome::NotStorable,
        });
        self.count_not_stored(reason);
        self.refreshed(Refresh::NotStored);
        let until = self.not_asked_until();
        let is_keys = reason == Reason::Credential && self.let_in.is_some();
        self.leave_alone(validation.filter(|_| self.is_background && !is_keys), until);
        if reason.is_of_the_response() {
            self.remember(response.status(), reason);
        } else if reason == Reason::Credential && !is_keys {
            let memory = &self.state().memory;
            memory.mark_not_shared(self.ticket.key(), until, reason, true);
        }
        if is_keys {
            // Those who wait elect another leader: they must not meet this one again.
            self.ticket.unlist();
        }
        self.ticket.publish(Outcome::NotShared(reason));
        self.tell(Led::Own { response, reason });
        self.ticket.finish(Ok(None));
    }

    /// Remembers for a while that the response with this status cannot be stored, by its own
    /// nature.
    pub(super) fn remember(&self, status: StatusCode, reason: Reason) {
        let state = self.state();
        // An error says nothing about what was stored before it, nor does one client's own answer.
        let is_personal = self.client_headers.contains_key(COOKIE)
            || self.options().has_credential(&self.client_headers);
        let keep_stored = is_personal || status.as_u16() >= 400;
        if status.is_success() && reason != Reason::TooLarge {
            forget_part(state, self.primary());
        }
        let (memory, until) = (&state.memory, self.not_asked_until());
        memory.mark_not_shared(&self.key.bytes, until, reason, keep_stored);
        if !keep_stored && reason != Reason::TooLarge {
            state.forget_shared(self.primary());
        }
    }

    /// Whether the response was found too large to be stored, a short while ago.
    pub(super) fn is_known_too_large(&self) -> bool {
        let (memory, now) = (&self.state().memory, self.exchange.received);
        let mut key = self.key.bytes.clone();
        let found = memory.get(&mut key, &self.client_headers, now);
        matches!(found, Found::NotShared(Reason::TooLarge))
    }

    /// The origin is not asked about a stored response again before then.
    pub(super) fn leave_alone(&self, validation: Option<&Validation>, until: Timestamp) {
        if let Some(Validation { entry, .. }) = validation {
            entry
                .refresh_after
                .store(until.as_millis(), Ordering::Relaxed);
        }
    }

    /// Failed: stale stands in where it may, and is left alone for a moment.
    pub(super) async fn failed(mut self, failure: Failure, validation: Option<&Validation>) {
        if let Some(sent) = self.sent_for_others(&failure) {
            let failed = Led::Failed(failure);
            return Box::pin(self.ask_for_others(sent, failed, validation.cloned())).await;
        }
        if let (Some(guard), Some(let_in)) = (&self.plan.guard, self.let_in)
            && failure.kind.is_origins()
            // A status was heard already, when it came.
            && failure.status.is_none()
        {
            guard.failed(&let_in.caller);
        }
        self.leave_alone(validation, self.state().clock.now().plus(pause(&failure)));
        self.release(LeaseOutcome::Failed);
        self.refreshed(Refresh::Failed);
        self.ticket.publish(Outcome::Failed(failure.clone()));
        self.tell(Led::Failed(failure));
        self.ticket.finish(Ok(None));
    }

    /// The origin refuses good keys: its leader is answered as if the origin had failed, and of
    /// those who wait each sees for itself.
    pub(super) fn refused_in_outage(mut self, status: StatusCode) {
        let mut failure = source_is_ill();
        failure.status = Some(status);
        self.release(LeaseOutcome::Dropped);
        self.refreshed(Refresh::Failed);
        self.ticket.unlist();
        self.ticket.publish(Outcome::NotShared(Reason::Credential));
        self.tell(Led::Failed(failure));
        self.ticket.finish(Ok(None));
    }

    /// The origin's own error, which teaches nothing about the key of its caller: it goes to that
    /// one as it came, and those who wait ask for themselves.
    pub(super) fn failed_its_asker(mut self, response: Response<OriginBody>) {
        self.release(LeaseOutcome::Dropped);
        self.refreshed(Refresh::Failed);
        self.ticket.unlist();
        let reason = Reason::Status;
        self.ticket.publish(Outcome::NotShared(reason));
        self.tell(Led::Own { response, reason });
        self.ticket.finish(Ok(None));
    }

    pub(super) fn tell(&mut self, led: Led) {
        if let Some(leader) = self.leader.take() {
            // A leader that has left gets nothing, and the rest goes on without it.
            let _ = leader.send(led);
        }
    }

    /// Tells the rest of the fleet how it ended, if nobody has yet.
    pub(super) fn release(&mut self, outcome: LeaseOutcome) {
        if let Some(lease) = self.lease.take() {
            lease.end(outcome);
        }
    }

    pub(super) fn count_not_stored(&self, reason: Reason) {
        self.state().metrics.not_stored(reason);
    }

    /// Until when a response that may not be shared is remembered as such.
    pub(super) fn not_asked_until(&self) -> Timestamp {
        let remembered = self.plan.config.cache.hit_for_miss;
        // Not from the head on: a body can come for long before it shows what it is.
        self.state().clock.now().plus(remembered)
    }

    /// It is whole, and the leader gets it; those who wait too, where they may use it as it stands.
    pub(super) fn tell_stored(
        mut self,
        entry: Arc<Entry>,
        status: StatusCode,
        may_store: Result<(), Reason>,
    ) {
        self.release(match may_store {
            Ok(()) => LeaseOutcome::Dropped,
            Err(_) => LeaseOutcome::NotStorable,
        });
        self.ticket.publish(match may_store {
            Ok(()) => self.if_reusable(&entry.head, Outcome::Stored(Arc::clone(&entry))),
            Err(reason) => Outcome::NotShared(reason),
        });
        self.tell(Led::Stored { entry, status });
        self.ticket.finish(Ok(None));
    }

    /// `outcome`, unless the response must be validated by everybody who wants it.
    pub(super) fn if_reusable(&self, head: &Head, outcome: Outcome) -> Outcome {
        if StoredView::of(&head.record).is_reusable(self.exchange.received) {
            outcome
        } else {
            Outcome::NotShared(Reason::MustValidate)
        }
    }

    /// Stores it, unless a purge came while it was fetched.
    pub(super) fn store_entry(&mut self, entry: Arc<Entry>) {
        if let Some(groups) = &entry.head.groups {
            let state = self.state();
            let took = state.clock.now().since(self.exchange.requested);
            let names = groups.iter().map(|name| &**name);
            state.memory.purges().written.fetched(names, took);
        }
        let lease = self.lease.take();
        if let Some(lease) = &lease {
            self.route.fetch_time.note(lease.age());
        }
        // Where a purge came, that is counted, and the answer is its readers' alone.
        let is_stored = self
            .state()
            .store(self.primary(), Arc::clone(&entry), lease);
        if let Some(proving) = self.proving.take().filter(|_| is_stored) {
            proving.answered(&entry);
        }
        forget_part(self.state(), self.primary());
    }

    /// Counts the end of a refresh behind a stale answer.
    pub(super) fn refreshed(&self, how: Refresh) {
        if self.is_background {
            self.state().metrics.refreshed(how);
        }
    }
}

/// How long a failed origin is left alone about one stored response.
pub(super) fn pause(failure: &Failure) -> Duration {
    let asked_for = failure.retry_after.unwrap_or(Duration::from_secs(1));
    asked_for.clamp(Duration::from_secs(1), Duration::from_secs(60))
}
