//! Bypass: to the origin and back, streamed both ways and never stored. And the answers that the
//! proxy makes by itself, where there is nothing to pass on.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Response, StatusCode};

use crate::error::{self, Failure, FailureKind};
use crate::metrics::CacheResult;
use crate::policy::Reason;

use super::deliver::{Body, Note};
use super::fetch::Origins;
use super::forward::{self, Conditions};
use super::invalidate::Write;
use super::request::Asked;
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
        let mut origins = Origins::begin(&self);
        let answer = match request {
            Ok(mut request) => {
                if let Some(ear) = &asked.ear {
                    ear.listen(&mut request);
                }
                let write = Write::of(&self, &asked);
                let answer = self.origin.answer(request).await;
                if let Some(write) = write {
                    write.answered(&answer);
                }
                answer
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
                if let Err(failure) = forward::clean_response(&mut response, self.clock.now()) {
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
                origins.received = self.clock.now();
                let mut response = self.keep_part(&asked, origins, response);
                note.write(response.headers_mut());
                (response.map(Body::Origin), note)
            }
            Err(failure) => {
                let note = Note {
                    detail: Some(Reason::OriginFailed),
                    ..note
                };
                (
                    self.failure_on(index, &asked.parts.method, &failure, note),
                    note,
                )
            }
        }
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
        note.write(response.headers_mut());
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
