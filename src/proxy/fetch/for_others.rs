//! A fetch and those who wait for it: it is taken back when nobody does any more, and made once
//! more for them where its leader's own request may have made it fail.

use std::sync::Arc;

use http::{Request, Response};

use crate::config::Route;
use crate::error::{Failure, FailureKind};
use crate::proxy::wire::composed::make_canonical;
use crate::store::second::LeaseOutcome;
use crate::upstream::{OriginBody, Started, empty};

use super::headed::{Answered, Repeats};
use super::requested::without_conditions;
use super::{Fetch, Led, Validation};

/// What the origin said, or why it did not.
type Answer = Result<Response<OriginBody>, Failure>;

impl Fetch {
    /// Asks the origin, and notes when; `None` where the request was taken back before work on it
    /// began.
    pub(super) async fn ask(&mut self, mut request: Request<OriginBody>) -> Option<Answer> {
        let state = Arc::clone(self.state());
        let started = Started::default();
        request.extensions_mut().insert(started.clone());
        self.exchange.requested = state.clock.now();
        let answer = tokio::select! {
            biased;
            answer = state.origin.answer(request) => answer,
            () = self.taken_back(&started) => return None,
        };
        self.exchange.received = state.clock.now();
        Some(answer)
    }

    /// Waits until the request can be taken back: its client is gone, nobody else waits, and work
    /// on it has not begun.
    pub(super) async fn taken_back(&mut self, started: &Started) {
        loop {
            match &mut self.leader {
                Some(leader) => leader.closed().await,
                // A refresh: nobody waits for it from the beginning.
                None if self.is_background => std::future::pending().await,
                // It has been told.
                None => {}
            }
            self.ticket.unawaited().await;
            if started.is_told() {
                std::future::pending::<()>().await;
            }
            if !self.ticket.unlist_unawaited() {
                continue;
            }
            return self.release(LeaseOutcome::Dropped);
        }
    }

    /// What the origin was sent, where others wait and the request itself may have made it fail:
    /// some field of its client's, at which the origin hangs up. A timeout is shared at once, and
    /// so is the want of a connection.
    pub(super) fn sent_for_others(&mut self, failure: &Failure) -> Option<Request<()>> {
        let may_be_its_doing = matches!(
            failure.kind,
            FailureKind::ConnectionClosed
                | FailureKind::ProtocolError
                | FailureKind::ResponseIncomplete
        );
        // Where the fields that a route lists choose for whom an answer is, one without them would
        // be for others than its place says.
        let chooses = |route: &Route| route.forward_headers.is_some() || !route.normalise.is_idle();
        let is_chosen = self.let_in.is_some() && chooses(&self.route.rule);
        let sent = self
            .sent
            .take()
            .filter(|_| may_be_its_doing && !is_chosen)?;
        (!self.ticket.unlist_unawaited()).then_some(sent)
    }

    /// Asks once more for those who wait, without any field that a client has chosen freely; the
    /// leader is told how it fared by itself. Whatever comes of it is shared, a failure too.
    pub(super) async fn ask_for_others(
        mut self,
        mut sent: Request<()>,
        failed: Led,
        validation: Option<Validation>,
    ) {
        self.tell(failed);
        // What the leader's own request would have proved this one does not.
        self.proving = None;
        let route = Arc::clone(&self.route);
        make_canonical(sent.headers_mut(), &route.rule);
        make_canonical(&mut self.client_headers, &route.rule);
        let unconditional = without_conditions(&sent);
        if let Some(validation) = &validation {
            validation.conditions().apply(sent.headers_mut());
        }
        let asks = validation.as_ref().is_some_and(Validation::asks);
        let Some(answer) = self.ask(sent.map(|()| empty())).await else {
            return;
        };
        match answer {
            Ok(response) => {
                let repeats = Repeats {
                    unconditional: asks.then_some(unconditional),
                    probe: None,
                };
                let answered = Answered {
                    fetch: self,
                    repeats,
                    validation,
                    begun: None,
                };
                answered.head(response).await;
            }
            Err(failure) => self.failed(failure, validation.as_ref()).await,
        }
    }
}
