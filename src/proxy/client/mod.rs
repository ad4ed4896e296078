//! The client's side of a request. Its steps, each a type that owns what it knows and whose method
//! gives the next; no step reaches back:
//!
//! | step | what it is | next |
//! |---|---|---|
//! | received | [`receive`]: framing and Host checked, fields of one hop off, the path in one spelling | [`Routed`], or refused |
//! | [`Routed`] | its route is found, once | [`count`](Routed::count)ed by limits, then [`admit`](Routed::admit)ted; refused; or asked about in Redis or at the source of verdicts, and resumed here |
//! | [`Admitted`](super::admission::keys::Admitted) | it is let in | [`key`](Routed::key): [`Keyed`](look_up::Keyed), or [`Bypassed`](bypass::Bypassed) |
//! | [`Keyed`](look_up::Keyed) | its key is written | [`look_up`](look_up::Keyed::look_up): [`LookedUp`](look_up::LookedUp) |
//! | [`LookedUp`](look_up::LookedUp) | hit, stale hit, or nothing that answers | delivered at once, or [`Miss`](course::Miss) with its course, fetched |
//! | delivered | [`deliver`](deliver::deliver), counted | |
//!
//! A hit takes all of them without waiting; whoever waits owns its step. [`explain()`] takes the
//! same ones, and stops before anything would be sent, counted or changed.
//!
//! Nothing here may decide what caching means: that is [`policy`](crate::policy)'s word.

mod advice;
mod bypass;
mod course;
mod deliver;
mod delivery;
mod explain;
mod handled;
mod led;
mod look_up;
mod miss;
mod note;
mod received;
mod refusal;
mod reuse;
mod routed;

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, EXPECT};
use http::{Method, Request, request};

use crate::policy::Reason;

use super::admission::Refusal;
use super::plan::Plan;
use super::wire::InterimQueue;
use super::wire::Peer;
use super::wire::grpc::{in_its_words, is_grpc};
use super::wire::upload::client_body;
use super::wire::whole_body::unless_empty;

pub use explain::explain;
pub use handled::Handled;
pub use refusal::refuse_head;

use delivery::{Delivery, preflight};
use received::receive;
use refusal::refuse;
use routed::Routed;

/// Answers a request by this plan. What its origin says before the final response goes to
/// `interim`.
pub fn handle<B>(
    plan: &Arc<Plan>,
    request: Request<B>,
    peer: &Peer,
    interim: Option<&Arc<InterimQueue>>,
) -> Handled
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: std::fmt::Display,
{
    let (parts, body) = request.into_parts();
    let is_grpc = is_grpc(&parts);
    let handled = answer(plan, parts, body, peer, interim);
    if is_grpc {
        return handled.map(in_its_words);
    }
    handled
}

fn answer<B>(
    plan: &Arc<Plan>,
    mut parts: request::Parts,
    body: B,
    peer: &Peer,
    interim: Option<&Arc<InterimQueue>>,
) -> Handled
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: std::fmt::Display,
{
    let started = Instant::now();
    let client = plan.client(peer);
    let received = match receive(plan, &mut parts, peer, client) {
        Ok(received) => received,
        Err(refusal) => {
            return Handled::now(refuse(plan, None, &parts.method, started, &refusal));
        }
    };
    let upload = client_body(body, &plan.config.limits);
    match upload {
        Some(upload) if may_be_empty(&parts) => {
            let (plan, interim) = (Arc::clone(plan), interim.cloned());
            Handled::later(async move {
                let upload = match unless_empty(upload).await {
                    Ok(upload) => upload,
                    Err(failure) => {
                        let reason = Reason::RequestBody;
                        let refusal = Refusal { failure, reason };
                        return refuse(&plan, None, &parts.method, started, &refusal);
                    }
                };
                let routed = Routed::of(&plan, parts, received, upload, client, started);
                go_on(&plan, routed, interim.as_ref()).response().await
            })
        }
        upload => {
            let routed = Routed::of(plan, parts, received, upload, client, started);
            go_on(plan, routed, interim)
        }
    }
}

/// Whether the frames of a request have to show whether it has a body at all: a GET that says
/// neither that it has one nor that it has none. A client that waits to be told to go on has one.
fn may_be_empty(parts: &request::Parts) -> bool {
    let length = parts.headers.get(CONTENT_LENGTH);
    matches!(parts.method, Method::GET | Method::HEAD)
        && length.is_none_or(|length| length == "0")
        && !parts.headers.contains_key(EXPECT)
}

fn go_on(plan: &Arc<Plan>, routed: Routed<'_>, interim: Option<&Arc<InterimQueue>>) -> Handled {
    if let Some(answered) = preflight(plan, routed.request()) {
        return answered;
    }
    let delivery = Delivery::of(routed.request(), routed.planned());
    let handled = if plan.limits.concern(&routed.request().parts.method) {
        routed.count(plan, interim)
    } else {
        routed.admit(plan, interim, None)
    };
    match delivery {
        None => handled,
        Some(delivery) => {
            let plan = Arc::clone(plan);
            handled.map(move |response| delivery.apply(&plan, response))
        }
    }
}
