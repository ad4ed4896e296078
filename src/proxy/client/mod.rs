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
mod deliver;
mod explain;
mod led;
mod look_up;
mod miss;
mod note;
mod received;
mod refusal;
mod steps;

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Request, Response};

use super::plan::Plan;
use super::wire::{Body, Client, InterimQueue};

pub use explain::explain;
pub use refusal::refuse_head;

use received::receive;
use steps::Routed;

#[allow(unused_imports)] // for the table above
use {
    super::admission::keys::Admitted,
    bypass::Bypassed,
    look_up::{LookedUp, Miss},
    steps::Keyed,
};

/// A request on its way to its response: hits are ready at once.
// A box for the larger variant would be an allocation for each hit.
#[allow(clippy::large_enum_variant)]
pub enum Handled {
    Ready(Option<Response<Body>>),
    Later(Pin<Box<dyn Future<Output = Response<Body>> + Send>>),
}

impl Future for Handled {
    type Output = Result<Response<Body>, Infallible>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut *self {
            Self::Ready(response) => match response.take() {
                Some(response) => Poll::Ready(Ok(response)),
                // Polled again after it was ready, which no caller of futures may do.
                None => Poll::Pending,
            },
            Self::Later(future) => future.as_mut().poll(context).map(Ok),
        }
    }
}

impl Handled {
    fn now(response: Response<Body>) -> Self {
        Self::Ready(Some(response))
    }

    fn later(future: impl Future<Output = Response<Body>> + Send + 'static) -> Self {
        Self::Later(Box::pin(future))
    }

    /// Waits for the response.
    async fn response(self) -> Response<Body> {
        match self.await {
            Ok(response) => response,
            Err(never) => match never {},
        }
    }
}

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
    match receive(plan, request, client) {
        Ok(received) => Routed::of(plan, received).count(plan, interim),
        Err(refused) => Handled::now(refused.answer(plan)),
    }
}
