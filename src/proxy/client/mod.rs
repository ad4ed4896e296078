//! The client's side of a request. Its steps, each a type that owns what it knows and whose method
//! gives the next; no step reaches back:
//!
//! | step | what it is | next |
//! |---|---|---|
//! | received | [`receive`](received::receive): framing and Host checked, fields of one hop off, the path in one spelling | [`Routed`], or refused |
//! | [`Routed`] | its route is found, once | [`admit`](super::admission::keys::admit) after its limits: [`Admitted`], refused, or asked about and resumed here |
//! | [`Admitted`] | it is let in | [`Routed::key`]: [`Keyed`] or [`Bypassed`] |
//! | [`Keyed`] | its key is written | [`Keyed::look_up`]: [`LookedUp`] |
//! | [`LookedUp`] | hit, stale hit, miss, or nothing that it may have | delivered at once, or fetched ([`Miss`]) |
//! | delivered | [`deliver`](deliver::deliver), counted | |
//!
//! A hit takes all of them without waiting; whoever waits owns its step. [`explain`] takes the same
//! ones, and stops before anything would be sent, counted or changed.
//!
//! Nothing here may decide what caching means: that is [`policy`](crate::policy)'s word.

mod bypass;
mod course;
mod deliver;
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
use http::Request;

use super::plan::Plan;
use super::wire::{Client, InterimQueue};

pub use explain::explain;
pub use handled::Handled;
pub use refusal::refuse_head;

use received::receive;
use refusal::refuse;
use routed::Routed;

#[allow(unused_imports)] // for the table above
use {
    super::admission::keys::Admitted,
    bypass::Bypassed,
    course::Miss,
    look_up::{Keyed, LookedUp},
};

/// Answers a request by this plan. What its origin says before the final response goes to
/// `interim`.
pub fn handle<B>(
    plan: &Arc<Plan>,
    request: Request<B>,
    client: Client,
    interim: Option<&Arc<InterimQueue>>,
) -> Handled
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: std::fmt::Display,
{
    let started = Instant::now();
    let (mut parts, body) = request.into_parts();
    let received = match receive(plan, &mut parts) {
        Ok(received) => received,
        Err(refusal) => {
            return Handled::now(refuse(plan, None, &parts.method, started, &refusal));
        }
    };
    let routed = Routed::of(plan, parts, received, body, client, started);
    if plan.limits.concern(&routed.request().parts.method) {
        routed.count(plan, interim)
    } else {
        routed.admit(plan, interim, None)
    }
}
