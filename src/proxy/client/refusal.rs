//! Answers that are made here: to requests that are not let in, and to what is not even a request.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Method, Response};
use http_body::Body as _;

use crate::access_log::Told;
use crate::error::{Failure, FailureKind};
use crate::metrics::CacheResult;
use crate::policy::Reason;
use crate::proxy::admission::Refusal;
use crate::proxy::plan::{Plan, PlannedRoute};
use crate::proxy::wire::Body;
use crate::proxy::wire::framing::target_too_long;
use crate::trace::Observed;

use super::note::Note;

/// Counts an answer, and notes on it how it came to be where a log is written of that.
pub fn count(
    plan: &Plan,
    route: Option<&PlannedRoute>,
    (method, started): (&Method, Instant),
    observed: Option<&Arc<Observed>>,
    note: &Note,
    response: &mut Response<Body>,
) {
    plan.series(route)
        .answered(method, response.status(), started.elapsed());
    let metrics = &plan.state.metrics;
    metrics.cache_result(note.result, note.reason);
    let cause = note.detail.unwrap_or(note.reason);
    if note.result != CacheResult::Hit {
        plan.series(route).came_to(note.result, cause);
    }
    if matches!(note.result, CacheResult::Hit | CacheResult::Stale) {
        metrics.saved.note(response.body().size_hint().lower());
    }
    if note.result == CacheResult::Stale {
        let over = note.ttl.map_or(0, |ttl| ttl.min(0).unsigned_abs());
        metrics.answered_stale(Duration::from_secs(over));
    }
    if plan.access_log.is_some() {
        response.extensions_mut().insert(Told {
            route: route.map(|route| Arc::clone(&route.label)),
            result: note.result.as_str(),
            reason: cause.as_str(),
            observed: observed.cloned(),
        });
    }
}

/// The answer to a request that is not let in, counted.
pub fn refuse(
    plan: &Plan,
    route: Option<&PlannedRoute>,
    method: &Method,
    started: Instant,
    refusal: &Refusal,
) -> Response<Body> {
    let note = Note::new(CacheResult::Bypass, refusal.reason);
    let mut response = failure_on(plan, route, method, &refusal.failure, note);
    count(plan, route, (method, started), None, &note, &mut response);
    response
}

/// The response to a failed request.
pub fn failure_on(
    plan: &Plan,
    route: Option<&PlannedRoute>,
    method: &Method,
    failure: &Failure,
    note: Note,
) -> Response<Body> {
    plan.series(route).failed(method, failure.kind);
    tracing::debug!(%failure, "a request failed");
    failure_response(plan, failure, note)
}

/// As [`failure_on`], of what is no error of the route's.
pub fn failure_response(plan: &Plan, failure: &Failure, note: Note) -> Response<Body> {
    let mut response = plan.failure_response(failure).map(Body::Whole);
    note.write_result(response.headers_mut());
    response
}

/// The response to what is not even a request head.
pub fn refuse_head(plan: &Plan, kind: FailureKind, client: IpAddr) -> Response<Bytes> {
    let limits = &plan.config.limits;
    let message = match kind {
        FailureKind::HeadTooLarge => format!(
            "the request head has more than {} bytes or {} fields (limits.header_bytes, \
                limits.header_count)",
            limits.header_bytes, limits.header_count
        ),
        FailureKind::TargetTooLong => target_too_long(limits).message,
        _ => "the request head is not valid HTTP/1.1, or its framing is ambiguous".to_owned(),
    };
    // No method was read: counted under "OTHER".
    let method = Method::from_bytes(b"UNKNOWN").unwrap_or_default();
    let series = plan.series(None);
    series.failed(&method, kind);
    series.answered(&method, kind.status(), Duration::ZERO);
    let metrics = &plan.state.metrics;
    metrics.cache_result(CacheResult::Bypass, Reason::Refused);
    series.came_to(CacheResult::Bypass, Reason::Refused);
    let response = plan.failure_response(&Failure::new(kind, message));
    if let Some(log) = &plan.access_log {
        let bytes = response.body().len() as u64;
        log.refused(client, kind.status(), Reason::Refused.as_str(), bytes);
    }
    response
}
