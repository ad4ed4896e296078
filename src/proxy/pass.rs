//! Bypass: to the origin and back, streamed both ways and never stored. And the answers that the
//! proxy makes by itself, where there is nothing to pass on.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Response, StatusCode};

use crate::error::{self, Failure, FailureKind};
use crate::metrics::CacheResult;
use crate::policy::storable::ResponseView;
use crate::policy::{self, Reason, RequestView, update};
use crate::store::{Entry, Found};

use super::asked::Asked;
use super::body::Body;
use super::deliver::Note;
use super::exchange::Exchange;
use super::forward::{self, Conditions};
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
                exchange.received = self.clock.now();
                self.update_by_head(&asked, exchange, &response);
                let mut response = self.keep_part(&asked, exchange, response);
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

    /// What a HEAD tells of the response to GET that is stored for the same request: it is updated
    /// where both are about one representation, and else taken for stale (RFC 9111 §4.3.5).
    fn update_by_head<B>(&self, asked: &Asked, exchange: Exchange, response: &Response<B>) {
        let is_telling = asked.parts.method == Method::HEAD && response.status() == StatusCode::OK;
        let (Some(options), true, false) = (asked.options(), is_telling, asked.primary.is_empty())
        else {
            return;
        };
        let request = &asked.parts.headers;
        let mut key = asked.primary.clone();
        let found = self.memory.get(&mut key, request, exchange.received);
        let Found::Entry(stored) = found else { return };
        let mut headers = stored.head.fields.unpack(response.headers().len());
        if stored.head.status != StatusCode::OK || !update::describes(&headers, response.headers())
        {
            return stored.make_stale(exchange.received);
        }
        update::merge(&mut headers, response.headers());
        let view = RequestView {
            method: &Method::GET,
            ..asked.view()
        };
        let updated = ResponseView {
            status: StatusCode::OK,
            headers: &headers,
        };
        let Ok(lifetimes) = policy::storable(view, updated, options, exchange.received) else {
            return self.memory.remove(&asked.primary, &stored);
        };
        let mut head = exchange.head(StatusCode::OK, &headers, lifetimes, request, options);
        head.record.has_validator = stored.head.record.has_validator;
        let charge = self.memory.charge();
        if let Ok(entry) = Entry::assemble(&head, &[stored.body()], None, charge) {
            let entry = Arc::new(entry);
            if !self.memory.insert(&asked.primary, request, entry) {
                self.metrics.not_stored(Reason::Purged);
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
