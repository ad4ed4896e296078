//! A response head has come: it is cleaned and judged, and what the judgement says is done.

use std::sync::Arc;
use std::time::Duration;

use http::header::RETRY_AFTER;
use http::{HeaderMap, Request, Response, StatusCode};

use crate::error::{Failure, FailureKind};
use crate::guard::Ruling;
use crate::metrics::Refresh;
use crate::policy::storable::ResponseView;
use crate::policy::{Reason, update};
use crate::proxy::parts::Beginning;
use crate::proxy::wire::response_head::clean_response;
use crate::proxy::wire::whole_body;
use crate::upstream::{OriginBody, empty};

use super::judge_head::{CallersKey, Headed, SentRequest, Stored, judge_head, judge_storing};
use super::key_ruling::{Proof, rule};
use super::update_stored::updated;
use super::validation::may_stand_in;
use super::{Fetch, Validation};

/// The same request, as it may have to be sent once more.
pub struct Repeats {
    /// Without our conditions, for an origin that answers them with nonsense.
    pub unconditional: Option<Request<()>>,
    /// With the probe key, where there is one.
    pub probe: Option<Request<()>>,
}

/// A fetch whose request was sent, and answered.
pub struct Answered {
    pub fetch: Fetch,
    pub repeats: Repeats,
    pub validation: Option<Validation>,
    pub begun: Option<Beginning>,
}

impl Answered {
    /// Judges a response head and does what the judgement says.
    pub async fn head(mut self, mut response: Response<OriginBody>) {
        let received = self.fetch.exchange.received;
        if let Err(failure) = clean_response(&mut response, received, &self.fetch.plan.forwarding) {
            return self.broken(failure).await;
        }
        let forwarding = &self.fetch.plan.forwarding;
        forwarding.name_no_upstream(response.headers_mut());
        let caller = self.callers_key(response.status()).await;
        let headed = self.judged(caller, &response);
        match headed {
            Headed::KeyRefused => {
                self.fetch
                    .not_shared(response, Reason::Credential, self.validation.as_ref());
            }
            Headed::KeySourceIll => self.fetch.refused_in_outage(response.status()),
            Headed::KeyUnanswered => self.fetch.failed_its_asker(response),
            Headed::Completes(headers) => {
                // Only what was begun can be completed.
                if let Some(begun) = self.begun.take() {
                    self.complete(begun, headers, response).await;
                }
            }
            Headed::BegunIsOutdated => {
                self.forget_begun();
                self.ask_again(None).await;
            }
            Headed::Confirmed => {
                if let Some(validation) = &self.validation {
                    self.fetch.confirmed(response.headers(), validation);
                }
            }
            Headed::ConfirmsAnother => {
                let stored = self.validation.take();
                self.fetch.is_never_confirmed = stored.as_ref().is_some_and(|stored| {
                    let fields = stored.entry.head.fields.unpack(0);
                    update::differs_in_strength(&fields, response.headers())
                });
                let stale = stored.map(|stored| Validation::only_stale(stored.entry));
                self.ask_again(stale).await;
            }
            Headed::Malformed(failure) => self.broken(failure).await,
            Headed::StaleStandsIn => {
                let failure = origin_failure(&response);
                self.fetch.failed(failure, self.validation.as_ref()).await;
            }
            Headed::LookInside => self.look_inside(response).await,
            headed @ (Headed::Storable(_) | Headed::NotShared(_)) => {
                self.settle(headed, response).await;
            }
        }
    }

    /// What the answer says of its caller's key, where that was the question; a 2xx only once its
    /// body means no failure.
    async fn callers_key(&mut self, status: StatusCode) -> Option<CallersKey> {
        let let_in = self.fetch.let_in.filter(|_| !status.is_success())?;
        let probe = self.repeats.probe.take();
        let plan = &self.fetch.plan;
        Some(CallersKey {
            ruling: rule(plan, Some(let_in), status, self.proof(), probe).await,
            verifies: let_in.verifies,
        })
    }

    /// Only the answer to a plain GET proves a key.
    fn proof(&self) -> Proof {
        let is_asked = self.validation.as_ref().is_some_and(Validation::asks);
        if is_asked || self.begun.is_some() {
            Proof::ProvesNothing
        } else {
            Proof::Proves
        }
    }

    fn judged(&self, caller: Option<CallersKey>, response: &Response<OriginBody>) -> Headed {
        let is_confirmation = response.status() == StatusCode::NOT_MODIFIED;
        let validation = self.validation.as_ref();
        let fields = validation
            .filter(|_| is_confirmation)
            .map_or_else(HeaderMap::new, |stored| stored.entry.head.fields.unpack(0));
        let asked = SentRequest {
            request: self.fetch.view(),
            options: self.fetch.options(),
            caller,
            stored: validation.map(|stored| Stored {
                headers: &fields,
                is_validated: stored.asks(),
                may_stand_in: self.may_stand_in(stored),
            }),
            begun: self.begun.as_ref(),
        };
        judge_head(&asked, view(response), self.fetch.exchange.received)
    }

    fn may_stand_in(&self, stored: &Validation) -> bool {
        let (state, now) = (self.fetch.state(), self.fetch.exchange.received);
        may_stand_in(state, self.fetch.primary(), &stored.entry, now)
    }

    fn forget_begun(&mut self) {
        if let Some(begun) = self.begun.take() {
            begun.forget(self.fetch.state(), self.fetch.primary());
        }
    }

    /// What came cannot be used: the upstream's fault.
    async fn broken(self, failure: Failure) {
        self.fetch.state().metrics.upstream_failed(failure.kind);
        self.fetch.failed(failure, self.validation.as_ref()).await;
    }

    /// A response whose body may mean failure (`error_when`): it is looked into before anybody gets
    /// it.
    async fn look_inside(self, response: Response<OriginBody>) {
        let Some(rule) = self.fetch.options().error_when.clone() else {
            return;
        };
        let is_covered = self.fetch.is_covered(self.validation.as_ref());
        let patience = self.fetch.patience(is_covered, response.extensions());
        match whole_body::means_failure(response, &rule, patience).await {
            Ok((false, response)) => {
                let (request, options) = (self.fetch.view(), self.fetch.options());
                let received = self.fetch.exchange.received;
                let headed = judge_storing(request, options, view(&response), received);
                self.settle(headed, response).await;
            }
            Ok((true, response)) => self.false_success(response).await,
            Err(failure) => self.broken(failure).await,
        }
    }

    /// A 2xx whose body means failure: stale in its place where there is some, else the client gets
    /// it as it came. It is stored in no case.
    async fn false_success(self, response: Response<OriginBody>) {
        let validation = self.validation.as_ref();
        if validation.is_some_and(|stored| self.may_stand_in(stored)) {
            let message = "the body of the origin's answer means failure (error_when)";
            return self
                .broken(Failure::new(FailureKind::OriginFailed, message))
                .await;
        }
        self.fetch
            .not_shared(response, Reason::OriginFailed, validation);
    }

    /// A response that means no failure: it proves a key, is compared with another key's, and is
    /// stored or not.
    async fn settle(mut self, headed: Headed, response: Response<OriginBody>) {
        let (plan, let_in) = (Arc::clone(&self.fetch.plan), self.fetch.let_in);
        let status = response.status();
        if status.is_success() {
            // A 2xx is never held against a key.
            let _: Ruling = rule(&plan, let_in, status, self.proof(), None).await;
        }
        let proves = status.is_success() && self.proof() == Proof::Proves;
        if !proves {
            self.fetch.proving = None;
        }
        // One key's error is not everybody's.
        let is_for_all = let_in.is_none() || self.fetch.key.is_apart() || status.is_success();
        let reason = match headed {
            Headed::Storable(_) if !is_for_all => Reason::Status,
            Headed::Storable(lifetimes) => {
                let validation = self.validation;
                return self.fetch.store(response, lifetimes, validation).await;
            }
            Headed::NotShared(reason) => reason,
            // Nothing else is settled here.
            _ => Reason::Status,
        };
        self.fetch
            .not_shared(response, reason, self.validation.as_ref());
    }

    /// Once more, without conditions: the answer to them was about something that is not stored
    /// (RFC 9111 §4.3.4).
    pub async fn ask_again(mut self, stale: Option<Validation>) {
        let Some(again) = self.repeats.unconditional.take() else {
            let message = "the origin answered a condition that nobody had set";
            let failure = Failure::new(FailureKind::ProtocolError, message);
            return self.fetch.failed(failure, stale.as_ref()).await;
        };
        let Some(answer) = self.fetch.ask(again.map(|()| empty())).await else {
            return;
        };
        match answer {
            Ok(response) => {
                let again = Self {
                    validation: stale,
                    begun: None,
                    ..self
                };
                Box::pin(again.head(response)).await;
            }
            Err(failure) => self.fetch.failed(failure, stale.as_ref()).await,
        }
    }
}

impl Fetch {
    /// The stored response, updated by the 304 (RFC 9111 §4.3.4).
    fn confirmed(mut self, headers: &HeaderMap, validation: &Validation) {
        let (state, stored) = (Arc::clone(self.state()), &validation.entry);
        let (request, options) = (&self.client_headers, self.options());
        let (entry, judged) = updated(&state, stored, headers, request, options, self.exchange);
        let Some(entry) = entry else {
            // No room for the update: the old one still answers this once.
            let status = StatusCode::NOT_MODIFIED;
            return self.tell_stored(Arc::clone(stored), status, judged);
        };
        match judged {
            Ok(()) => self.store_entry(Arc::clone(&entry)),
            // It may no longer be stored, or not by this request's leave.
            Err(reason) if reason.is_of_the_response() => {
                state.memory.remove(self.primary(), stored);
                state.forget_shared(self.primary());
            }
            Err(_) => {
                let until = self.not_asked_until();
                self.leave_alone(Some(validation).filter(|_| self.is_background), until);
            }
        }
        self.refreshed(Refresh::Confirmed);
        self.tell_stored(entry, StatusCode::NOT_MODIFIED, judged);
    }
}

fn view(response: &Response<OriginBody>) -> ResponseView<'_> {
    ResponseView {
        status: response.status(),
        headers: response.headers(),
    }
}

pub fn origin_failure(response: &Response<OriginBody>) -> Failure {
    let message = format!("the origin answered {}", response.status());
    let failure = Failure {
        status: Some(response.status()),
        ..Failure::new(FailureKind::OriginFailed, message)
    };
    let seconds = response
        .headers()
        .get(RETRY_AFTER)
        .and_then(|value| value.to_str().ok()?.parse().ok());
    match seconds {
        Some(seconds) => failure.retry_after(Duration::from_secs(seconds)),
        None => failure,
    }
}
