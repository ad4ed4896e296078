//! Parts that answer: a range that a stored 206 covers, and one that it covers once what is missing
//! has been fetched, and only that (RFC 9111 §3.3, §3.4).
//!
//! A part never stands where a whole response does: it has a key of its own beside the primary
//! one, and its stored status is 206.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderValue, Method, Response, StatusCode};

use crate::clock::Timestamp;
use crate::error::Failure;
use crate::guard::is_refusal;
use crate::policy::range::{self, Selected, Span};
use crate::policy::{self, Decision, Options, RequestView};
use crate::proxy::exchange::Exchange;
use crate::proxy::keyed_request::KeyedRequest;
use crate::proxy::plan::Plan;
use crate::proxy::state::State;
use crate::proxy::wire::Conditions;
use crate::proxy::wire::response_head::clean_response;
use crate::proxy::wire::whole_body::collect;
use crate::store::Entry;
use crate::upstream::OriginBody;

use super::beginning::strong_tag;
use super::store::{PartToStore, StoredPart, held, is_same, known_part, part_key};

/// A stored part that covers what a GET asks for, and its age.
pub fn covering_part(
    plan: &Plan,
    primary: &[u8],
    request: RequestView<'_>,
    options: &Options,
    now: Timestamp,
) -> Option<(Arc<Entry>, Duration)> {
    let headers = request.headers;
    if *request.method != Method::GET || !range::is_single(headers) {
        return None;
    }
    let part = known_part(&plan.state, primary, headers, now)?;
    let part = plan.in_force(&part_key(primary), part, options)?;
    let stored = part.view();
    let Decision::Hit { age, .. } = policy::decide(request, Some(stored), options, now) else {
        return None;
    };
    let (held, length) = held(&part)?;
    match range::select(headers, &part.head.fields.unpack(0), length) {
        Selected::Parts(wanted) if held.contains(wanted[0]) => {}
        Selected::Unsatisfiable => {}
        _ => return None,
    }
    Some((part, age))
}

/// Whether a part is known of something too large to be fetched whole.
pub fn is_known_too_large(plan: &Plan, keyed: &KeyedRequest) -> bool {
    let state = &plan.state;
    let part = known_part(state, keyed.primary(), keyed.headers(), state.clock.now());
    let length = part.and_then(|part| held(&part));
    length.is_some_and(|(_, length)| length > plan.config.cache.max_object)
}

/// What came of a fetch of what is missing.
pub enum Extended {
    /// The part covers what is asked for now.
    Covers { part: StoredPart, age: Duration },
    /// The origin answered with something else, which is the client's.
    Other(Response<OriginBody>),
    /// Nothing came of it: the range is the origin's to answer.
    Nothing,
}

/// How a stored part becomes one that covers what is asked for.
pub struct Extension {
    part: Arc<Entry>,
    missing: Span,
    length: u64,
    etag: HeaderValue,
}

impl Extension {
    /// What is to be fetched so that a stored part covers the one range that is asked for.
    pub fn of(plan: &Plan, keyed: &KeyedRequest) -> Option<Self> {
        let (state, headers) = (&plan.state, keyed.headers());
        let part = known_part(state, keyed.primary(), headers, state.clock.now())?;
        let (held, length) = held(&part)?;
        let stored = part.head.fields.unpack(0);
        let Selected::Parts(wanted) = range::select(headers, &stored, length) else {
            return None;
        };
        let [wanted] = wanted[..] else { return None };
        let missing = wanted.beyond(held)?;
        let fits = held.size() + missing.size() <= plan.config.cache.max_object;
        let etag = strong_tag(&part).filter(|_| fits)?;
        Some(Self {
            part,
            missing,
            length,
            etag,
        })
    }

    /// Fetches what is missing. `exchange` began before the part was looked up: a purge between the
    /// two would be missed.
    pub async fn fetch(
        self,
        plan: &Plan,
        keyed: &KeyedRequest,
        mut exchange: Exchange,
    ) -> Result<Extended, Failure> {
        let state = &plan.state;
        // Held until the part has grown by it.
        let mut charge = state.memory.charge();
        if !charge.grow(self.missing.size()) {
            return Ok(Extended::Nothing);
        }
        let conditions = Conditions::Rest {
            span: self.missing,
            etag: &self.etag,
        };
        let request = keyed.to_origin(plan, conditions)?;
        let mut response = state.origin.answer(request).await?;
        exchange.received = state.clock.now();
        clean_response(&mut response, exchange.received, &plan.forwarding)?;
        plan.forwarding.name_no_upstream(response.headers_mut());
        if !self.fits(&response) {
            return Ok(self.not_fitting(state, keyed, response));
        }
        let Ok(part) = PartToStore::of(plan, keyed, exchange, response.headers()) else {
            return Ok(Extended::Nothing);
        };
        let pieces = collect(response.into_body(), self.missing.size()).await?;
        Ok(match part.store(&pieces, Some(self.part)) {
            Some(part) => Extended::Covers {
                age: part.entry.view().age(exchange.received),
                part,
            },
            None => Extended::Nothing,
        })
    }

    /// Whether a response brings just what is missing of the representation that is stored.
    fn fits<B>(&self, response: &Response<B>) -> bool {
        let brought = range::part_of(response.headers());
        response.status() == StatusCode::PARTIAL_CONTENT
            && brought == Some((self.missing, self.length))
            && is_same(&self.part.head.fields.unpack(0), response.headers())
    }

    fn not_fitting(
        &self,
        state: &State,
        keyed: &KeyedRequest,
        response: Response<OriginBody>,
    ) -> Extended {
        let status = response.status();
        // It goes by, where what that says of the key is heard.
        if keyed.let_in.is_some() && is_refusal(status) {
            return Extended::Nothing;
        }
        let is_of_ours = matches!(
            status,
            StatusCode::NOT_MODIFIED
                | StatusCode::PRECONDITION_FAILED
                | StatusCode::RANGE_NOT_SATISFIABLE
        );
        if status.is_success() || is_of_ours {
            // Another representation by now, or an answer to our range and not to the client's:
            // what is stored of the old one is of no use.
            state.memory.remove(&part_key(keyed.primary()), &self.part);
            return Extended::Nothing;
        }
        Extended::Other(response)
    }
}
