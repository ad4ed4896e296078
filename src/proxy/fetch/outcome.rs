//! How a fetch ends for those who wait for it: it is one client's alone, it has failed, or it was
//! refused; and what they, and the fleet, are told.

use std::sync::atomic::Ordering;

use http::header::COOKIE;
use http::{Response, StatusCode};

use crate::clock::Timestamp;
use crate::error::Failure;
use crate::flight::Outcome;
use crate::metrics::Refresh;
use crate::policy::Reason;
use crate::store::second::Outcome as LeaseOutcome;
use crate::upstream::OriginBody;

use super::fetch::{Fetching, Led, Validation, pause};
use super::guarded;

impl Fetching {
    /// The response is the leader's alone; the waiters are let go at once, and the key is
    /// remembered, so that the next ones do not wait either.
    pub(super) fn own(
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
        self.not_stored(reason);
        self.refreshed(Refresh::NotStored);
        let until = self
            .exchange
            .received
            .plus(self.proxy.config.cache.hit_for_miss);
        let is_keys = reason == Reason::Credential && self.let_in.is_some();
        self.leave_alone(validation.filter(|_| self.is_background && !is_keys), until);
        let memory = &self.proxy.memory;
        // An error says nothing about what was stored before it, nor does one client's own answer.
        let is_personal = self.client_headers.contains_key(COOKIE)
            || self.options.has_credential(&self.client_headers);
        let keep_stored = is_personal || response.status().as_u16() >= 400;
        if reason.is_of_the_response() {
            if response.status().is_success() && reason != Reason::TooLarge {
                self.proxy.forget_part(&self.primary);
            }
            memory.mark_not_shared(&self.key, until, reason, keep_stored);
            if !keep_stored && reason != Reason::TooLarge {
                self.proxy.forget_shared(&self.primary);
            }
        } else if reason == Reason::Credential && !is_keys {
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

    /// The origin is not asked about a stored response again before then.
    pub(super) fn leave_alone(&self, validation: Option<&Validation>, until: Timestamp) {
        if let Some(Validation { entry, .. }) = validation {
            entry
                .refresh_after
                .store(until.as_millis(), Ordering::Relaxed);
        }
    }

    /// Failed: stale stands in where it may, and is left alone for a moment.
    pub(super) fn failed(mut self, failure: Failure, validation: Option<&Validation>) {
        if let (Some(guard), Some(let_in)) = (&self.proxy.guard, self.let_in)
            && failure.kind.is_origins()
            // A status was heard already, when it came.
            && failure.status.is_none()
        {
            guard.failed(&let_in.caller);
        }
        self.leave_alone(validation, self.exchange.received.plus(pause(&failure)));
        self.release(LeaseOutcome::Failed);
        self.refreshed(Refresh::Failed);
        self.ticket.publish(Outcome::Failed(failure.clone()));
        self.tell(Led::Failed(failure));
        self.ticket.finish(Ok(None));
    }

    /// The origin refuses good keys: its leader is answered as if the origin had failed, and of those
    /// who wait each sees for itself.
    pub(super) fn refused_in_outage(mut self, status: StatusCode) {
        let mut failure = guarded::source_is_ill();
        failure.status = Some(status);
        self.release(LeaseOutcome::Dropped);
        self.refreshed(Refresh::Failed);
        self.ticket.unlist();
        self.ticket.publish(Outcome::NotShared(Reason::Credential));
        self.tell(Led::Failed(failure));
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

    pub(super) fn not_stored(&self, reason: Reason) {
        self.proxy.metrics.not_stored(reason);
    }

    /// Counts the end of a refresh behind a stale answer.
    pub(super) fn refreshed(&self, how: Refresh) {
        if self.is_background {
            self.proxy.metrics.refreshed(how);
        }
    }
}
