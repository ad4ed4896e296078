//! A request whose answer may be stored, and that nothing stored has answered: what fetches it, and
//! what answers it later.

use std::sync::Arc;

use http::{HeaderMap, Request};

use crate::error::Failure;
use crate::guard::Caller;
use crate::policy::Options;
use crate::upstream::{OriginBody, empty};

use super::client_request::ClientRequest;
use super::plan::{Plan, PlannedRoute};
use super::request_key::RequestKey;
use super::wire::{Conditions, Form, InterimListener};

/// By what a caller was let in, on a route where keys are verified.
#[derive(Clone, Copy, Debug)]
pub struct LetIn {
    pub caller: Caller,
    /// Its own request is what asks the origin about its key: nothing that is stored answers it.
    pub verifies: bool,
}

/// A request whose answer may be stored, and that nothing stored has answered.
pub struct KeyedRequest {
    pub request: ClientRequest,
    pub route: Arc<PlannedRoute>,
    pub key: RequestKey,
    pub let_in: Option<LetIn>,
    /// The purge log's position when it came: later purges do not concern it.
    pub arrived: u64,
    /// Hears the origin's interim responses; `None` where the client is not to be told.
    pub interim: Option<InterimListener>,
}

impl KeyedRequest {
    pub fn primary(&self) -> &[u8] {
        self.key.primary()
    }

    pub fn options(&self) -> &Options {
        self.route.options()
    }

    pub fn headers(&self) -> &HeaderMap {
        &self.request.parts.headers
    }

    /// Whether its own request is what asks about its key.
    pub fn verifies(&self) -> bool {
        self.let_in.is_some_and(|let_in| let_in.verifies)
    }

    /// The request that the origin gets, without a body.
    pub fn to_origin(
        &self,
        plan: &Plan,
        conditions: Conditions<'_>,
    ) -> Result<Request<OriginBody>, Failure> {
        let interim = self.interim.as_ref();
        let form = match self.let_in {
            Some(_) => Form::Composed,
            None => Form::Keyed,
        };
        let route = Some(&*self.route);
        self.request
            .to_origin(plan, route, form, conditions, empty(), interim)
    }
}
