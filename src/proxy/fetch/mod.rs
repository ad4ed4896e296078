//! Fetch: the origin's side of a request, a task of its own, so that a client that leaves kills
//! neither the fetch nor those who wait for it. Its steps, each of which names the next:
//!
//! | step | what it owns | what it does | next |
//! |---|---|---|---|
//! | [`Requested`] | a [`Fetch`] and the request to send | asks the fleet, then the origin | `Answered`, or failed, or found elsewhere |
//! | [`Answered`](headed::Answered) | and what came | [`judge_head`](judge_head::judge_head), then acts on its word | streaming, another question, or an end |
//! | streaming ([`streaming`]) | and the body to come | hands it to the readers and into the store | complete or failed |
//! | an end ([`outcome`]) | | tells the leader, the waiters and the fleet | |
//!
//! Nothing here may answer a client: what comes of a fetch is told as [`Led`] to its
//! leader, and as the flight's outcome to those who wait.

pub mod boarding;
mod compare_keys;
mod control;
mod for_others;
mod headed;
mod judge_head;
pub mod key_ruling;
pub mod outcome;
mod prove;
pub mod requested;
mod streaming;
pub mod update_stored;
mod validation;

use std::sync::Arc;

use http::{HeaderMap, Method, Request, StatusCode};
use tokio::sync::oneshot;

use crate::flight::Ticket;
use crate::policy::{Lifetimes, Options, RequestView};
use crate::store::Head;
use crate::store::second::Lease;
use crate::trace::Observed;

use super::exchange::Exchange;
use super::keyed_request::LetIn;
use super::plan::{Plan, PlannedRoute};
use super::request_key::RequestKey;
use super::state::State;

use prove::Proving;

pub use headed::origin_failure;
pub use outcome::Led;
pub use requested::Requested;
pub use validation::{Validation, may_stand_in};

/// What every step of a fetch knows.
pub struct Fetch {
    plan: Arc<Plan>,
    route: Arc<PlannedRoute>,
    /// The fields of the request that set it off, as the client sent them: `Vary` selects by them.
    client_headers: HeaderMap,
    /// Of the variant that the request selects, where there are known ones.
    key: RequestKey,
    let_in: Option<LetIn>,
    /// What its answer may prove, on a route where keys are verified, until it is stored.
    proving: Option<Proving>,
    ticket: Ticket,
    /// What the origin was sent, where others may wait for the answer.
    sent: Option<Request<()>>,
    /// The request that waits for it; `None` once that has been told.
    leader: Option<oneshot::Sender<Led>>,
    /// The origin confirms by tags of another strength than it sends: it is not asked to confirm.
    is_never_confirmed: bool,
    /// A refresh behind a stale answer: nobody waits for it.
    is_background: bool,
    exchange: Exchange,
    /// What is noted of the request that set it off.
    observed: Option<Arc<Observed>>,
    /// For whom else in the fleet this fetch is, until they have been told.
    lease: Option<Lease>,
}

impl Fetch {
    fn state(&self) -> &Arc<State> {
        &self.plan.state
    }

    fn primary(&self) -> &[u8] {
        self.key.primary()
    }

    fn options(&self) -> &Options {
        self.route.options()
    }

    fn verifies(&self) -> bool {
        self.let_in.is_some_and(|let_in| let_in.verifies)
    }

    /// Only GET comes here: HEAD and the rest pass by.
    fn view(&self) -> RequestView<'_> {
        RequestView {
            method: &Method::GET,
            headers: &self.client_headers,
            has_body: false,
        }
    }

    /// The head of the response, as it is stored.
    fn head(&self, status: StatusCode, headers: &HeaderMap, lifetimes: Lifetimes) -> Head {
        let (request, options) = (&self.client_headers, self.options());
        self.exchange
            .head(status, headers, lifetimes, request, options)
    }
}
