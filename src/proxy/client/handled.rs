//! A request on its way to its response: ready at once, or waited for within a deadline, and
//! counted when it is there.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use http::{Method, Response};
use tokio::time::timeout;

use crate::error::{Failure, FailureKind};
use crate::metrics::CacheResult;
use crate::policy::Reason;
use crate::proxy::plan::{Plan, PlannedRoute};
use crate::proxy::wire::{Body, InterimListener};
use crate::trace::Observed;

use super::note::Note;
use super::refusal::{count, failure_on};

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
    pub fn now(response: Response<Body>) -> Self {
        Self::Ready(Some(response))
    }

    pub fn later(future: impl Future<Output = Response<Body>> + Send + 'static) -> Self {
        Self::Later(Box::pin(future))
    }

    /// The same with another response.
    pub fn map(self, into: impl FnOnce(Response<Body>) -> Response<Body> + Send + 'static) -> Self {
        match self {
            Self::Ready(response) => Self::Ready(response.map(into)),
            later @ Self::Later(_) => Self::later(async move { into(later.response().await) }),
        }
    }

    /// Waits for the response.
    pub async fn response(self) -> Response<Body> {
        match self.await {
            Ok(response) => response,
            Err(never) => match never {},
        }
    }
}

/// A response on its way to the client, and how it came to be.
pub struct Delivered {
    pub response: Response<Body>,
    pub note: Note,
}

/// A request whose answer is waited for.
pub struct Awaited {
    pub plan: Arc<Plan>,
    pub route: Option<Arc<PlannedRoute>>,
    pub method: Method,
    pub started: Instant,
    pub observed: Option<Arc<Observed>>,
    pub interim: Option<InterimListener>,
}

impl Awaited {
    /// Waits for an answer, no longer than to the deadline for a response head, and counts it.
    pub fn handle(self, answering: impl Future<Output = Delivered> + Send + 'static) -> Handled {
        Handled::later(async move {
            let Self {
                plan,
                route,
                method,
                started,
                observed,
                interim,
            } = self;
            let limit = plan.config.limits.request_timeout;
            let Delivered { mut response, note } = match timeout(limit, answering).await {
                Ok(delivered) => delivered,
                Err(_) => {
                    let message = format!("no response within {limit:?} (limits.request_timeout)");
                    let failure = Failure::new(FailureKind::ResponseTimeout, message);
                    let note = Note::new(CacheResult::Miss, Reason::OriginFailed);
                    let response = failure_on(&plan, route.as_deref(), &method, &failure, note);
                    Delivered { response, note }
                }
            };
            if let Some(interim) = interim {
                interim.close();
            }
            let (asked, observed) = ((&method, started), observed.as_ref());
            count(
                &plan,
                route.as_deref(),
                asked,
                observed,
                &note,
                &mut response,
            );
            response
        })
    }
}
