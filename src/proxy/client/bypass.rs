//! Bypass: to the origin and back, streamed both ways and never stored. And the answers that the
//! proxy makes by itself, where there is nothing to pass on.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{
    CONTENT_LENGTH, DATE, IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE,
    IF_UNMODIFIED_SINCE, MAX_FORWARDS, RANGE, TRANSFER_ENCODING, UPGRADE,
};
use http::{Method, Response, StatusCode, request};

use crate::error::{self, Failure, FailureKind};
use crate::guard::Ruling;
use crate::http::dates;
use crate::metrics::CacheResult;
use crate::policy::Reason;

use super::asked::Asked;
use super::body::Body;
use super::clean::clean_response;
use super::deliver::Note;
use super::exchange::Exchange;
use super::forward::{self, Conditions};
use super::guarded;
use super::hops::{self, Hops};
use super::invalidate::Write;
use super::{Proxy, tunnel};

impl Proxy {
    /// Bypass: to the origin and back, streamed both ways and never stored.
    pub(super) async fn pass<B>(
        self: Arc<Self>,
        mut asked: Asked,
        body: B,
        note: Note,
    ) -> (Response<Body>, Note)
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: std::fmt::Display,
    {
        let index = asked.route.as_ref().map(|(index, _)| *index);
        match hops::left(&asked.parts) {
            Hops::Unlimited => {}
            Hops::Left(left) => drop(asked.parts.headers.insert(MAX_FORWARDS, left.into())),
            Hops::None => return (self.last_hop(&asked.parts, note), note),
        }
        let route = asked.route.as_ref().map(|(_, route)| &**route);
        let upgrade = forward::upgrade_of(&asked.parts).cloned();
        let limits = &self.config.limits;
        let body = tunnel::client_body(body, limits.request_body, limits.body_timeout);
        let request = self.forwarding.request(
            &asked.parts,
            asked.host.as_deref(),
            asked.client,
            route,
            Conditions::Pass,
            body,
        );
        let mut exchange = Exchange::begin(&self);
        let probe = match &request {
            Ok(request) => self.probe_of(asked.let_in, request),
            Err(_) => None,
        };
        let answer = match request {
            Ok(mut request) => {
                if let Some(ear) = &asked.ear {
                    ear.listen(&mut request);
                }
                match Write::of(&self, &asked) {
                    Some(write) => write.carry_out(request).await,
                    None => self.origin.answer(request).await,
                }
            }
            Err(failure) => Err(failure),
        };
        match answer {
            Ok(mut response) => {
                let note = Note {
                    forward_status: Some(response.status()),
                    ..note
                };
                if response.status() == StatusCode::SWITCHING_PROTOCOLS {
                    let switched = tunnel::switch(&mut asked.parts, &mut response, upgrade);
                    return match switched {
                        Ok(response) => (response, note),
                        Err(failure) => (
                            self.failure_on(index, &asked.parts.method, &failure, note),
                            note,
                        ),
                    };
                }
                if let Err(failure) = clean_response(&mut response, self.clock.now()) {
                    self.metrics.upstream_failed(failure.kind);
                    let note = Note {
                        detail: Some(Reason::OriginFailed),
                        ..note
                    };
                    return (
                        self.failure_on(index, &asked.parts.method, &failure, note),
                        note,
                    );
                }
                exchange.received = self.clock.now();
                let is_proof = is_plain_get(&asked.parts);
                let ruling = self.rule(asked.let_in, response.status(), is_proof, probe);
                let is_unsaid = asked.verifies() && response.status().is_server_error();
                if ruling.await == Ruling::Outage || is_unsaid {
                    let failure = guarded::source_is_ill();
                    return (
                        self.failure_on(index, &asked.parts.method, &failure, note),
                        note,
                    );
                }
                let mut response = if asked.may_teach() {
                    self.learn(&asked, exchange, &response);
                    self.keep_part(&asked, exchange, response)
                } else {
                    response
                };
                note.write(response.headers_mut());
                (response.map(Body::Origin), note)
            }
            Err(failure) => {
                let note = Note {
                    detail: Some(Reason::OriginFailed),
                    ..note
                };
                let is_origins = failure.kind.is_origins();
                if let (Some(guard), Some(let_in), true) = (&self.guard, asked.let_in, is_origins) {
                    guard.failed(&let_in.caller);
                }
                let failure = if asked.verifies() && is_origins {
                    guarded::source_is_ill()
                } else {
                    failure
                };
                (
                    self.failure_on(index, &asked.parts.method, &failure, note),
                    note,
                )
            }
        }
    }

    /// The answer to an OPTIONS or TRACE that goes no further (RFC 9110 §7.6.2).
    fn last_hop(&self, parts: &request::Parts, note: Note) -> Response<Body> {
        let mut response = hops::answer(parts).map(Body::Whole);
        let date = dates::format(self.clock.now());
        response.headers_mut().insert(DATE, date);
        note.write_result(response.headers_mut());
        response
    }

    /// The response to what is not even a request head.
    pub fn refuse_head(&self, kind: FailureKind) -> Response<Bytes> {
        let limits = &self.config.limits;
        let message = match kind {
            FailureKind::HeadTooLarge => format!(
                "the request head has more than {} bytes or {} fields (limits.header_bytes, limits.header_count)",
                limits.header_bytes, limits.header_count
            ),
            FailureKind::TargetTooLong => "the request target is too long".to_owned(),
            _ => "the request head is not valid HTTP/1.1, or its framing is ambiguous".to_owned(),
        };
        // No method was read: counted under "OTHER".
        let method = Method::from_bytes(b"UNKNOWN").unwrap_or_default();
        self.metrics.failed(None, &method, kind);
        self.metrics
            .answered(None, &method, kind.status(), Duration::ZERO);
        self.metrics
            .cache_result(CacheResult::Bypass, Reason::Refused);
        error::response(
            &Failure::new(kind, message),
            self.clock.now(),
            &self.config.error_headers,
        )
    }

    /// The response to a failed request.
    pub(super) fn failure(&self, failure: &Failure, note: Note) -> Response<Body> {
        let response = error::response(failure, self.clock.now(), &self.config.error_headers);
        let mut response = response.map(Body::Whole);
        note.write_result(response.headers_mut());
        response
    }

    pub(super) fn failure_on(
        &self,
        route: Option<usize>,
        method: &Method,
        failure: &Failure,
        note: Note,
    ) -> Response<Body> {
        self.metrics.failed(route, method, failure.kind);
        tracing::debug!(%failure, "a request failed");
        self.failure(failure, note)
    }
}

/// A GET without conditions, of the whole: a 2xx to it proves a key good.
fn is_plain_get(parts: &request::Parts) -> bool {
    let headers = &parts.headers;
    let names = [
        IF_MATCH,
        IF_NONE_MATCH,
        IF_MODIFIED_SINCE,
        IF_UNMODIFIED_SINCE,
        IF_RANGE,
        RANGE,
        UPGRADE,
        TRANSFER_ENCODING,
        CONTENT_LENGTH,
    ];
    parts.method == Method::GET && !names.iter().any(|name| headers.contains_key(name))
}
