//! What an answer tells of responses that are stored already: a 304 confirms one (RFC 9111 §4.3.4),
//! a HEAD updates it or shows that it is out of date (§4.3.5).

use std::sync::Arc;

use http::{HeaderMap, Method, Response, StatusCode};

use crate::policy::key::KeyBytes;
use crate::policy::storable::ResponseView;
use crate::policy::{self, Decision, Options, Reason, RequestView, update};
use crate::proxy::exchange::Exchange;
use crate::proxy::keyed_request::KeyedRequest;
use crate::proxy::parts::store::compare_part;
use crate::proxy::state::State;
use crate::store::{Entry, Found};

/// A stored response with the fields of an answer about it, and whether that may be stored for
/// this request; no response where there is no room for it.
pub fn updated(
    state: &State,
    stored: &Entry,
    answer: &HeaderMap,
    request: &HeaderMap,
    options: &Options,
    exchange: Exchange,
) -> (Option<Arc<Entry>>, Result<(), Reason>) {
    let mut headers = stored.head.fields.unpack(answer.len());
    update::merge(&mut headers, answer);
    let status = stored.head.status;
    // Only responses to GET are stored, whatever asked about them.
    let view = RequestView {
        method: &Method::GET,
        headers: request,
        has_body: false,
    };
    let response = ResponseView {
        status,
        headers: &headers,
    };
    let judged = policy::storable(view, response, options, exchange.received);
    let lifetimes = judged.unwrap_or_default();
    let mut head = exchange.head(status, &headers, lifetimes, request, options);
    head.record.has_validator = stored.head.record.has_validator;
    let entry = Entry::assemble(&head, &[stored.body()], None, state.memory.charge());
    (entry.ok().map(Arc::new), judged.map(drop))
}

/// What the answer to a HEAD that went by tells of what is stored for the same request.
pub fn update_by_head<B>(
    state: &State,
    keyed: &KeyedRequest,
    exchange: Exchange,
    response: &Response<B>,
) {
    if keyed.request.parts.method != Method::HEAD {
        return;
    }
    let (options, primary) = (keyed.options(), keyed.primary());
    let (request, now) = (keyed.headers(), exchange.received);
    if response.status() == StatusCode::OK {
        compare_part(state, primary, request, response.headers());
    }
    let mut key = KeyBytes::from_slice(primary);
    let Found::Entry(stored) = state.memory.get(&mut key, request, now) else {
        return;
    };
    // Only of what could have answered this request (§4.3.5): not of what is another's.
    let decision = policy::decide(keyed.request.view(), Some(stored.view()), options, now);
    let is_foreign = matches!(
        decision,
        Decision::Miss {
            reason: Reason::Cookie,
            ..
        }
    );
    if is_foreign || stored.head.status != StatusCode::OK {
        return;
    }
    let fields = stored.head.fields.unpack(0);
    let confirms = match response.status() {
        StatusCode::OK if !update::describes(&fields, response.headers()) => {
            stored.make_stale(now);
            return state.forget_shared(primary);
        }
        // One that names nothing may be about anything: the GET would be asked for long ago.
        StatusCode::OK => update::has_validator(response.headers()),
        // To a condition of the client's own: about this one only if it says so.
        StatusCode::NOT_MODIFIED => {
            update::has_validator(response.headers())
                && update::selects(&fields, response.headers(), options.weak_revalidation)
        }
        _ => false,
    };
    if !confirms {
        return;
    }
    match updated(
        state,
        &stored,
        response.headers(),
        request,
        options,
        exchange,
    ) {
        (Some(entry), Ok(())) => drop(state.store(primary, entry, None)),
        (_, Err(reason)) if reason.is_of_the_response() => {
            state.memory.remove(primary, &stored);
            state.forget_shared(primary);
        }
        _ => {}
    }
}
