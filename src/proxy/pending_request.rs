//! A request that is not answered at once: what its later steps need to know, owned.

use std::sync::Arc;
use std::time::Instant;

use http::{Method, request};

use crate::config::Route;
use crate::policy::key::KeyBytes;
use crate::policy::{Options, RequestView, Share, range};

use super::Client;
use super::guarded::{self, LetIn};
use super::interim::Ear;

/// What the later steps need to know of a request, owned.
pub(super) struct Asked {
    pub parts: request::Parts,
    pub host: Option<String>,
    pub client: Client,
    pub route: Option<(usize, Arc<Route>)>,
    pub primary: KeyBytes,
    /// The primary key, or that of a variant where there are known ones.
    pub key: KeyBytes,
    pub started: Instant,
    /// The purge log's position when it came: later purges do not concern it.
    pub arrived: u64,
    /// By what it was let in, where keys are verified.
    pub let_in: Option<LetIn>,
    /// Hears the origin's interim responses; `None` where the client is not to be told.
    pub ear: Option<Ear>,
}

impl Asked {
    pub fn options(&self) -> Option<&Options> {
        self.route.as_ref().map(|(_, route)| &route.options)
    }

    /// Whether its own request is what asks about its key: nothing that is stored answers it.
    pub(super) fn verifies(&self) -> bool {
        self.let_in.is_some_and(|let_in| let_in.verifies)
    }

    /// Whether keys are verified where it goes.
    pub(super) fn is_guarded(&self) -> bool {
        let route = self.route.as_ref();
        route.is_some_and(|(_, route)| guarded::is_guarded(&self.parts, route))
    }

    /// Whether what the origin answers to it may change what others get.
    pub(super) fn may_teach(&self) -> bool {
        !self.is_guarded() || self.let_in.is_some() && !self.verifies()
    }

    /// Whether it asks for a part of a representation that we could make.
    pub(super) fn wants_part(&self) -> bool {
        self.parts.method == Method::GET && range::is_wanted(&self.parts.headers)
    }

    pub(super) fn view(&self) -> RequestView<'_> {
        view(&self.parts, false)
    }
}

pub(super) fn view(parts: &request::Parts, has_body: bool) -> RequestView<'_> {
    RequestView {
        method: &parts.method,
        headers: &parts.headers,
        has_body,
    }
}

/// Requests with a credential do not wait for ones without, nor the other way round, where the
/// answer may only be shared among those without (RFC 9111 §3.5).
pub(super) fn flight_key(asked: &Asked) -> KeyBytes {
    let mut key = asked.key.clone();
    let apart = asked.options().is_some_and(|options| {
        options.share == Share::Standard && options.has_credential(&asked.parts.headers)
    });
    if apart {
        key.extend_from_slice(b"\x02credential");
    }
    // Who must prove a key waits for nobody but those with the same one.
    if let Some(let_in) = asked.let_in.filter(|let_in| let_in.verifies) {
        key.extend_from_slice(b"\x03key");
        key.extend_from_slice(&let_in.caller.id.0);
    }
    key
}
