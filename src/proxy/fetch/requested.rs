//! Requested: the fleet is asked for what another instance has or fetches, then the origin.

use std::sync::Arc;
use std::time::Instant;

use http::{Method, Request};
use tokio::sync::oneshot;

use crate::error::Failure;
use crate::flight::{Outcome, Ticket};
use crate::metrics::Refresh;
use crate::proxy::exchange::Exchange;
use crate::proxy::fleet::consult::{About, Consulted, consult};
use crate::proxy::keyed_request::KeyedRequest;
use crate::proxy::parts::Beginning;
use crate::proxy::plan::Plan;
use crate::proxy::wire::Conditions;
use crate::proxy::wire::conditions::unconditional;
use crate::store::Entry;
use crate::trace::Span;
use crate::upstream::OriginBody;

use super::compare_keys::copied;
use super::headed::{Answered, Repeats};
use super::key_ruling::probe_of;
use super::prove::Proving;
use super::{Fetch, Led, Validation};

/// A fetch whose request has not been sent yet.
pub struct Requested {
    fetch: Fetch,
    request: Request<OriginBody>,
    validation: Option<Validation>,
    /// What is known of the response already, where only the rest is asked for.
    begun: Option<Beginning>,
    /// Others can wait for it, in this process and in the fleet.
    is_shared: bool,
}

impl Requested {
    /// The fetch of what is asked for, to confirm `validation` where there is one; `leader` waits
    /// for what comes of it, and without one it is a refresh behind a stale answer.
    pub fn of(
        plan: &Arc<Plan>,
        keyed: &KeyedRequest,
        ticket: Ticket,
        validation: Option<Validation>,
        leader: Option<oneshot::Sender<Led>>,
    ) -> Result<Self, Failure> {
        let begun = if validation.is_some() || keyed.verifies() {
            None
        } else {
            Beginning::known(plan, keyed)
        };
        let conditions = conditions(validation.as_ref(), begun.as_ref());
        let mut request = keyed.to_origin(plan, conditions)?;
        // A HEAD is fetched as a GET, where it is fetched at all.
        *request.method_mut() = Method::GET;
        let is_shared = ticket.is_listed();
        Ok(Self {
            is_shared,
            fetch: Fetch {
                plan: Arc::clone(plan),
                route: Arc::clone(&keyed.route),
                client_headers: keyed.headers().clone(),
                key: keyed.key.clone(),
                let_in: keyed.let_in,
                proving: Proving::of(plan, keyed, &request),
                is_never_confirmed: validation
                    .as_ref()
                    .is_some_and(Validation::is_never_confirmed),
                is_background: leader.is_none(),
                exchange: Exchange::begin(plan).at(ticket.stamp()),
                lease: None,
                observed: keyed.request.observed.clone(),
                sent: is_shared.then(|| copied(&request)),
                ticket,
                leader,
            },
            request,
            validation,
            begun,
        })
    }

    /// Runs the fetch to its end, in a task of its own.
    pub fn spawn(self) {
        drop(tokio::spawn(self.run()));
    }

    async fn run(mut self) {
        match self.ask_the_fleet().await {
            Some(entry) => self.found_elsewhere(entry),
            None => self.send().await,
        }
    }

    /// The response, where another instance has stored it; else the lease of its fetch where the
    /// fleet gives one, and what may be confirmed.
    async fn ask_the_fleet(&mut self) -> Option<Arc<Entry>> {
        let fetch = &mut self.fetch;
        let plan = Arc::clone(&fetch.plan);
        let state = &plan.state;
        let is_asked = self.is_shared && !fetch.verifies();
        let second = state.second.as_ref();
        let second = second.filter(|second| is_asked && second.is_usable())?;
        let refreshed = self.validation.as_ref().filter(|_| fetch.is_background);
        let about = About {
            primary: fetch.primary(),
            request: &fetch.client_headers,
            options: fetch.options(),
            usual: fetch.route.fetch_time.usual(),
            is_apart: fetch.ticket.key().len() > fetch.key.bytes.len(),
            refreshes: refreshed.map(|validation| validation.entry.head.record.born),
            is_cold: self.validation.is_none(),
        };
        let began = Instant::now();
        let consulted = consult(&plan, second, &about).await;
        if let Some(observed) = &fetch.observed {
            observed.took(Span::SecondTier, began);
        }
        let known = match consulted {
            Consulted::Promoted(entry) => return Some(entry),
            Consulted::Fetch { lease, known } => {
                fetch.lease = lease;
                known
            }
        };
        // That took a while, and the fetch begins now: what was purged meanwhile is not to be
        // confirmed.
        fetch.exchange.stamp = state.purge_position();
        let is_current = |entry: &Entry| state.memory.is_current(fetch.primary(), entry);
        if self.validation.is_none() && self.begun.is_none() {
            self.validation = known.map(Validation::of);
        }
        let validation = self.validation.take();
        self.validation = validation.filter(|validation| is_current(&validation.entry));
        self.begun = self.begun.take().filter(|begun| is_current(&begun.part));
        let conditions = conditions(self.validation.as_ref(), self.begun.as_ref());
        conditions.apply(self.request.headers_mut());
        None
    }

    /// The second tier had it: whoever waits finds it in the store.
    fn found_elsewhere(self, entry: Arc<Entry>) {
        let Fetch {
            plan,
            ticket,
            leader,
            ..
        } = self.fetch;
        ticket.publish(Outcome::Found);
        match leader {
            Some(leader) => drop(leader.send(Led::Found(entry))),
            None => plan.state.metrics.refreshed(Refresh::Replaced),
        }
        ticket.finish(Ok(None));
    }

    async fn send(self) {
        let Self {
            mut fetch,
            request,
            validation,
            begun,
            ..
        } = self;
        let asks = begun.is_some() || validation.as_ref().is_some_and(Validation::asks);
        let repeats = Repeats {
            unconditional: asks.then(|| without_conditions(&request)),
            probe: probe_of(&fetch.plan, fetch.let_in, &request),
        };
        let Some(answer) = fetch.ask(request).await else {
            return;
        };
        match answer {
            Ok(response) => {
                let answered = Answered {
                    fetch,
                    repeats,
                    validation,
                    begun,
                };
                answered.head(response).await;
            }
            Err(failure) => fetch.failed(failure, validation.as_ref()).await,
        }
    }
}

/// What the origin is asked: to confirm, to send the rest, or to send it all.
fn conditions<'a>(
    validation: Option<&'a Validation>,
    begun: Option<&'a Beginning>,
) -> Conditions<'a> {
    match (validation, begun) {
        (Some(validation), _) => validation.conditions(),
        (None, Some(begun)) => begun.conditions(),
        (None, None) => Conditions::Drop,
    }
}

pub(super) fn without_conditions<B>(request: &Request<B>) -> Request<()> {
    let mut again = copied(request);
    unconditional(again.headers_mut());
    again
}
