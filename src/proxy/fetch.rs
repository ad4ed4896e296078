//! The origin's side: `Requested → Headed (storable? shareable?) → Streaming → Complete | Failed`.
//!
//! A fetch is a task of its own. It tells its leader and its waiters what the head showed, streams
//! the body to them and into the store, and ends when the body does.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, ETAG, LAST_MODIFIED, RETRY_AFTER};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body_util::BodyExt;
use sha2::{Digest, Sha256};
use tokio::sync::oneshot;

use crate::clock::Timestamp;
use crate::error::{Failure, FailureKind};
use crate::flight::{Outcome, Reader, Ticket};
use crate::metrics::Refresh;
use crate::policy::key::KeyBytes;
use crate::policy::storable::ResponseView;
use crate::policy::vary::{append_selecting, nominated};
use crate::policy::{self, Lifetimes, Options, Reason, Record, RequestView, update};
use crate::store::{Charge, Entry, Fields, Head, Selecting};
use crate::upstream::OriginBody;

use super::Proxy;
use super::forward::{Conditions, clean_response};
use super::miss::pause;

/// What the request that leads a fetch is told.
pub(super) enum Led {
    /// It may be stored, and its body is coming in.
    Streaming {
        head: Arc<Head>,
        reader: Reader,
    },
    /// It is whole and stored; `status` is what the origin said: 304 where it confirmed.
    Stored {
        entry: Arc<Entry>,
        status: StatusCode,
    },
    /// It is this request's alone.
    Own {
        response: Response<OriginBody>,
        reason: Reason,
    },
    Failed(Failure),
}

/// A stored response that a fetch confirms, or that stands in where the origin fails.
pub(super) struct Validation {
    pub entry: Arc<Entry>,
    etag: Option<HeaderValue>,
    last_modified: Option<HeaderValue>,
}

impl Validation {
    /// Asks the origin to confirm `entry`, by the validators that came from the origin.
    pub fn of(entry: Arc<Entry>) -> Self {
        let by_origin = entry.head.record.has_validator;
        let field = |name| entry.head.field(name).filter(|_| by_origin);
        Self {
            etag: field(&ETAG),
            last_modified: field(&LAST_MODIFIED),
            entry,
        }
    }

    /// `entry` may stand in for a failed origin, and no more.
    pub fn only_stale(entry: Arc<Entry>) -> Self {
        Self {
            entry,
            etag: None,
            last_modified: None,
        }
    }

    pub fn conditions(&self) -> Conditions<'_> {
        Conditions::Validate {
            etag: self.etag.as_ref(),
            last_modified: self.last_modified.as_ref(),
        }
    }

    fn asks(&self) -> bool {
        self.etag.is_some() || self.last_modified.is_some()
    }
}

/// One fetch, ready to run.
pub(super) struct Fetch {
    pub proxy: Arc<Proxy>,
    pub options: Options,
    /// The fields of the request that set it off, as the client sent them: `Vary` selects by them.
    pub client_headers: HeaderMap,
    pub primary: KeyBytes,
    pub request: Request<OriginBody>,
    pub ticket: Ticket,
    pub validation: Option<Validation>,
    /// `None`: a refresh behind a stale answer.
    pub leader: Option<oneshot::Sender<Led>>,
}

/// A fetch after its request was sent.
struct Asked {
    proxy: Arc<Proxy>,
    options: Options,
    client_headers: HeaderMap,
    primary: KeyBytes,
    ticket: Ticket,
    leader: Option<oneshot::Sender<Led>>,
    /// A refresh behind a stale answer.
    is_background: bool,
    requested: Timestamp,
    received: Timestamp,
}

impl Fetch {
    /// Requested, to its end.
    pub async fn run(self) {
        let Self {
            proxy,
            options,
            client_headers,
            primary,
            request,
            ticket,
            validation,
            leader,
        } = self;
        let requested = proxy.clock.now();
        let answer = proxy.origin.answer(request).await;
        let asked = Asked {
            requested,
            received: proxy.clock.now(),
            proxy,
            options,
            client_headers,
            primary,
            ticket,
            is_background: leader.is_none(),
            leader,
        };
        match answer {
            Ok(response) => asked.headed(response, validation).await,
            Err(failure) => asked.failed(failure, validation.as_ref()),
        }
    }
}

impl Asked {
    /// Headed: what may be done with the response?
    async fn headed(self, mut response: Response<OriginBody>, validation: Option<Validation>) {
        let version = response.version();
        clean_response(response.headers_mut(), version, self.received);
        if let Some(validation) = &validation {
            if response.status() == StatusCode::NOT_MODIFIED && validation.asks() {
                return self.confirmed(response.headers(), validation);
            }
            let usable =
                policy::decide::usable_on_error(&validation.entry.head.record, self.received);
            if counts_as_failure(response.status()) && usable {
                return self.failed(origin_failure(&response), Some(validation));
            }
        }
        let view = ResponseView {
            status: response.status(),
            headers: response.headers(),
        };
        match policy::storable(self.view(), view, &self.options, self.received) {
            Ok(lifetimes) => self.store(response, lifetimes, validation).await,
            Err(reason) => self.own(response, reason),
        }
    }

    fn view(&self) -> RequestView<'_> {
        RequestView {
            // Only GET comes here: HEAD and the rest pass by.
            method: &http::Method::GET,
            headers: &self.client_headers,
            has_body: false,
        }
    }

    /// The stored response, updated by the 304 (RFC 9111 §4.3.4).
    fn confirmed(self, headers: &HeaderMap, validation: &Validation) {
        let stored = &validation.entry;
        let mut merged = stored.head.fields.unpack(headers.len());
        update::merge(&mut merged, headers);
        let view = ResponseView {
            status: stored.head.status,
            headers: &merged,
        };
        let lifetimes = policy::storable(self.view(), view, &self.options, self.received);
        let head = self.head(stored.head.status, &merged, lifetimes.unwrap_or_default());
        let head = Head {
            record: Record {
                has_validator: stored.head.record.has_validator,
                ..head.record
            },
            ..head
        };
        let charge = self.proxy.memory.charge();
        let Some(entry) = Entry::assemble(&head, &[stored.body()], None, charge) else {
            // No room for the update: the old one still answers this once.
            return self.tell_stored(
                Arc::clone(stored),
                StatusCode::NOT_MODIFIED,
                lifetimes.map(drop),
            );
        };
        let entry = Arc::new(entry);
        match lifetimes {
            Ok(_) => {
                self.proxy
                    .memory
                    .insert(&self.primary, &self.client_headers, Arc::clone(&entry))
            }
            Err(_) => self.proxy.memory.remove(&self.primary, stored),
        }
        self.refreshed(Refresh::Confirmed);
        self.tell_stored(entry, StatusCode::NOT_MODIFIED, lifetimes.map(drop));
    }

    fn tell_stored(mut self, entry: Arc<Entry>, status: StatusCode, may_store: Result<(), Reason>) {
        let is_reusable = entry.head.record.is_reusable(self.received);
        self.ticket.publish(match may_store {
            Ok(()) if is_reusable => Outcome::Stored(Arc::clone(&entry)),
            Ok(()) => Outcome::NotShared(Reason::MustValidate),
            Err(reason) => Outcome::NotShared(reason),
        });
        self.tell(Led::Stored { entry, status });
        self.ticket.finish(Ok(None));
    }

    fn head(&self, status: StatusCode, headers: &HeaderMap, lifetimes: Lifetimes) -> Head {
        let names = nominated(headers);
        let selecting = (!names.is_empty()).then(|| {
            let mut values = Vec::new();
            append_selecting(&names, &self.client_headers, &mut values);
            Box::new(Selecting { names, values })
        });
        Head {
            status,
            fields: Fields::pack(headers),
            record: Record::new(lifetimes, headers, self.requested, self.received),
            selecting,
        }
    }

    /// Streaming: to the waiters and into the store.
    async fn store(
        mut self,
        response: Response<OriginBody>,
        lifetimes: Lifetimes,
        validation: Option<Validation>,
    ) {
        let length = content_length(response.headers());
        let limit = self.proxy.config.cache.max_object;
        if length.is_some_and(|length| length > limit) {
            return self.own(response, Reason::TooLarge);
        }
        let mut charge = self.proxy.memory.charge();
        if !charge.grow(length.unwrap_or(0)) {
            return self.own(response, Reason::Budget);
        }
        let (parts, body) = response.into_parts();
        let head = Arc::new(self.head(parts.status, &parts.headers, lifetimes));
        let wants_etag = parts.status == StatusCode::OK
            && !head.record.has_validator
            && length.is_some_and(|length| length <= self.proxy.config.cache.etag_up_to);
        if wants_etag {
            return self
                .store_whole(&parts.headers, head, body, charge, validation)
                .await;
        }
        let is_reusable = head.record.is_reusable(self.received);
        let leader = Led::Streaming {
            head: Arc::clone(&head),
            reader: self.ticket.reader(),
        };
        self.tell(leader);
        self.ticket.publish(if is_reusable {
            Outcome::Streaming(Arc::clone(&head))
        } else {
            Outcome::NotShared(Reason::MustValidate)
        });
        self.stream(&head, body, length, charge).await;
    }

    async fn stream(
        self,
        head: &Head,
        mut body: OriginBody,
        length: Option<u64>,
        mut charge: Charge,
    ) {
        let limit = self.proxy.config.cache.max_object;
        let (mut received, mut storing, mut trailers) = (0, true, None);
        loop {
            let piece = match body.frame().await {
                None => break,
                Some(Err(failure)) => {
                    self.proxy.metrics.upstream_failed(failure.kind);
                    self.refreshed(Refresh::Failed);
                    return self.ticket.finish(Err(failure));
                }
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(piece) => piece,
                    Err(frame) => {
                        trailers = frame.into_trailers().ok();
                        continue;
                    }
                },
            };
            let size = piece.len() as u64;
            received += size;
            // A known length is charged already.
            let beyond = received.saturating_sub(length.unwrap_or(0)).min(size);
            if storing && (received > limit || !charge.grow(beyond)) {
                let reason = if received > limit {
                    Reason::TooLarge
                } else {
                    Reason::Budget
                };
                self.not_stored(reason);
                self.ticket.pass_through();
                storing = false;
            }
            if !storing {
                if !self.ticket.room(&mut charge).await {
                    return;
                }
                charge.grow_anyway(beyond);
            }
            self.ticket.push(piece);
        }
        if storing {
            let pieces = self.ticket.pieces();
            let stored = Entry::assemble(head, &pieces, None, self.proxy.memory.charge());
            match stored {
                Some(entry) => self.keep(Arc::new(entry)),
                None => self.not_stored(Reason::Budget),
            }
        }
        self.refreshed(Refresh::Replaced);
        self.ticket.finish(Ok(trailers));
    }

    /// A small body without validator is awaited whole: its hash becomes its entity tag.
    async fn store_whole(
        mut self,
        headers: &HeaderMap,
        head: Arc<Head>,
        mut body: OriginBody,
        charge: Charge,
        validation: Option<Validation>,
    ) {
        let mut pieces = Vec::new();
        while let Some(frame) = body.frame().await {
            match frame.map(http_body::Frame::into_data) {
                Ok(Ok(piece)) => pieces.push(piece),
                Ok(Err(_)) => {}
                Err(failure) => {
                    self.proxy.metrics.upstream_failed(failure.kind);
                    return self.failed(failure, validation.as_ref());
                }
            }
        }
        drop(charge);
        let etag = entity_tag(headers, &pieces);
        let Some(entry) = Entry::assemble(&head, &pieces, Some(etag), self.proxy.memory.charge())
        else {
            let message = "the response is not as long as its Content-Length says";
            return self.failed(Failure::new(FailureKind::ResponseIncomplete, message), None);
        };
        let entry = Arc::new(entry);
        self.keep(Arc::clone(&entry));
        self.refreshed(Refresh::Replaced);
        self.ticket
            .publish(if entry.head.record.is_reusable(self.received) {
                Outcome::Stored(Arc::clone(&entry))
            } else {
                Outcome::NotShared(Reason::MustValidate)
            });
        self.tell(Led::Stored {
            status: entry.head.status,
            entry,
        });
        self.ticket.finish(Ok(None));
    }

    fn keep(&self, entry: Arc<Entry>) {
        self.proxy
            .memory
            .insert(&self.primary, &self.client_headers, entry);
    }

    /// The response is the leader's alone; the waiters are let go at once, and the key is
    /// remembered, so that the next ones do not wait either.
    fn own(mut self, response: Response<OriginBody>, reason: Reason) {
        self.not_stored(reason);
        self.refreshed(Refresh::NotStored);
        let until = self.received.plus(self.proxy.config.cache.hit_for_miss);
        let memory = &self.proxy.memory;
        // An answer that is an error says nothing about what was stored before it.
        let keep_stored = response.status().as_u16() >= 400;
        if reason.is_of_the_response() {
            memory.mark_not_shared(&self.primary, until, reason, keep_stored);
        } else if reason == Reason::Credential {
            memory.mark_not_shared(self.ticket.key(), until, reason, true);
        }
        self.ticket.publish(Outcome::NotShared(reason));
        self.tell(Led::Own { response, reason });
        self.ticket.finish(Ok(None));
    }

    /// Failed: stale stands in where it may, and is left alone for a moment.
    fn failed(mut self, failure: Failure, validation: Option<&Validation>) {
        if let Some(validation) = validation {
            let again = self.received.plus(pause(&failure));
            validation
                .entry
                .refresh_after
                .store(again.as_millis(), Ordering::Relaxed);
        }
        self.refreshed(Refresh::Failed);
        self.ticket.publish(Outcome::Failed(failure.clone()));
        self.tell(Led::Failed(failure));
        self.ticket.finish(Ok(None));
    }

    fn tell(&mut self, led: Led) {
        if let Some(leader) = self.leader.take() {
            // A leader that has left gets nothing, and the rest goes on without it.
            let _ = leader.send(led);
        }
    }

    fn not_stored(&self, reason: Reason) {
        self.proxy.metrics.not_stored(reason);
    }

    /// Counts the end of a refresh behind a stale answer.
    fn refreshed(&self, how: Refresh) {
        if self.is_background {
            self.proxy.metrics.refreshed(how);
        }
    }
}

/// Statuses for which stale may stand in (RFC 5861 §4), and the one that asks for a pause.
fn counts_as_failure(status: StatusCode) -> bool {
    matches!(status.as_u16(), 429 | 500 | 502 | 503 | 504)
}

fn origin_failure(response: &Response<OriginBody>) -> Failure {
    let message = format!("the origin answered {}", response.status());
    let failure = Failure::new(FailureKind::OriginFailed, message);
    let seconds = response
        .headers()
        .get(RETRY_AFTER)
        .and_then(|value| value.to_str().ok()?.parse().ok());
    match seconds {
        Some(seconds) => failure.retry_after(Duration::from_secs(seconds)),
        None => failure,
    }
}

fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// A strong entity tag from the bytes of the representation and what they are (RFC 9110 §8.8.1).
fn entity_tag(headers: &HeaderMap, body: &[Bytes]) -> HeaderValue {
    let mut digest = Sha256::new();
    for name in [CONTENT_TYPE, http::header::CONTENT_ENCODING] {
        digest.update(headers.get(name).map_or(&b""[..], HeaderValue::as_bytes));
        digest.update([0]);
    }
    body.iter().for_each(|piece| digest.update(piece));
    let digest = digest.finalize();
    let hex: String = digest
        .iter()
        .take(16)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    HeaderValue::try_from(format!("\"{hex}\"")).unwrap_or(HeaderValue::from_static("\"\""))
}
