//! Streaming and Complete: a response that may be stored goes to the waiters and into the store.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, ETAG};
use http::{Extensions, HeaderMap, HeaderValue, Response, StatusCode};
use http_body_util::BodyExt;
use sha2::{Digest, Sha256};
use tokio::time::Instant;

use crate::error::{Failure, FailureKind};
use crate::flight::{Outcome, Ticket};
use crate::metrics::Refresh;
use crate::policy::storable::ResponseView;
use crate::policy::{self, Lifetimes, Reason};
use crate::proxy::parts::Beginning;
use crate::proxy::parts::store::store_beginning;
use crate::proxy::wire::trailers::clean;
use crate::proxy::wire::whole_body::{Patience, collect, look_ahead};
use crate::store::second::LeaseOutcome;
use crate::store::{Charge, Entry, Head, NotAssembled};
use crate::upstream::OriginBody;

use super::headed::Answered;
use super::outcome::pause;
use super::{Fetch, Led, Validation, may_stand_in};

impl Fetch {
    /// Streaming; or, for a small body that gets an entity tag of ours, awaited whole.
    pub(super) async fn store(
        mut self,
        response: Response<OriginBody>,
        lifetimes: Lifetimes,
        validation: Option<Validation>,
    ) {
        let length = content_length(response.headers());
        let limit = self.plan.config.cache.max_object;
        let is_too_large =
            length.map_or_else(|| self.is_known_too_large(), |length| length > limit);
        if is_too_large {
            return self.not_shared(response, Reason::TooLarge, validation.as_ref());
        }
        let mut charge = self.state().memory.charge();
        if !charge.grow(length.unwrap_or(0)) {
            return self.not_shared(response, Reason::Budget, validation.as_ref());
        }
        let (parts, mut body) = response.into_parts();
        let mut head = self.head(parts.status, &parts.headers, lifetimes);
        let has_validator = head.record.has_validator;
        head.record.has_validator &= !(self.is_never_confirmed && has_weak_tag(&parts.headers));
        let head = Arc::new(head);
        let limit = self.plan.config.cache.await_up_to;
        let mut ahead = self.state().memory.charge();
        let is_awaited = length.map_or_else(|| ahead.grow(limit), |length| length <= limit)
            && self.is_covered(validation.as_ref());
        let mut is_slow = false;
        if is_awaited {
            // What stands in for a failed origin stands in for a body that breaks off too.
            match look_ahead(body, limit, self.patience(true, &parts.extensions)).await {
                Ok((ahead, is_whole)) => (body, is_slow) = (ahead, !is_whole),
                Err(failure) => {
                    self.state().metrics.upstream_failed(failure.kind);
                    return self.failed(failure, validation.as_ref()).await;
                }
            }
        }
        drop(ahead);
        let tagged = length.filter(|length| {
            let is_plain = parts.status == StatusCode::OK && !has_validator && !is_slow;
            is_plain && *length <= self.plan.config.cache.etag_up_to
        });
        if let Some(length) = tagged {
            let whole = collect(body, length).await;
            return self
                .store_whole(&parts.headers, &head, whole, charge, validation.as_ref())
                .await;
        }
        self.begin(&head);
        self.stream(&head, body, length, charge, validation.as_ref())
            .await;
    }

    /// How long a body is awaited before anybody gets it: where something stored may stand in for
    /// it, not for so long that its clients have their deadline first.
    pub(super) fn patience(&self, is_covered: bool, of: &Extensions) -> Patience {
        let config = &self.plan.config;
        let limit = config.limits.request_timeout;
        let between = if is_covered {
            config.cache.wait_timeout.min(limit / 3)
        } else {
            limit
        };
        Patience {
            between,
            whole: limit / 2,
            told: of.get().cloned(),
        }
    }

    /// Whether something stored may stand in for what comes now (RFC 5861 §4).
    pub(super) fn is_covered(&self, validation: Option<&Validation>) -> bool {
        let now = self.exchange.received;
        validation
            .is_some_and(|stored| may_stand_in(self.state(), self.primary(), &stored.entry, now))
    }

    /// Hands the head to the leader, and to the waiters where they may use it as it stands.
    fn begin(&mut self, head: &Arc<Head>) {
        let reader = self.ticket.reader();
        self.tell(Led::Streaming {
            head: Arc::clone(head),
            reader,
        });
        let outcome = Outcome::Streaming(Arc::clone(head));
        self.ticket.publish(self.if_reusable(head, outcome));
    }

    async fn stream(
        mut self,
        head: &Head,
        mut body: OriginBody,
        length: Option<u64>,
        mut charge: Charge,
        validation: Option<&Validation>,
    ) {
        let limit = self.plan.config.cache.max_object;
        let (mut received, mut storing, mut trailers) = (0, true, None);
        let mut alone = Alone::default();
        loop {
            let piece = match body.frame().await {
                None => break,
                Some(Err(failure)) => {
                    if let (true, Some(length)) = (storing, length) {
                        let pieces = self.ticket.pieces();
                        store_beginning(self.state(), self.primary(), head, length, &pieces);
                    }
                    return self.broke_off(failure, charge, validation);
                }
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(piece) => piece,
                    Err(frame) => {
                        trailers = frame.into_trailers().ok();
                        trailers
                            .iter_mut()
                            .for_each(|trailers| clean(trailers, &[]));
                        continue;
                    }
                },
            };
            if alone.for_longer_than(self.plan.config.limits.request_timeout, &self.ticket) {
                self.count_not_stored(Reason::WaitTimeout);
                return self.refreshed(Refresh::NotStored);
            }
            let size = piece.len() as u64;
            received += size;
            // A known length is charged already.
            let beyond = received.saturating_sub(length.unwrap_or(0)).min(size);
            let is_too_large = received > limit;
            if storing && (is_too_large || !charge.grow(beyond)) {
                self.keeps_no_more(head.status, is_too_large);
                storing = false;
            }
            if !storing {
                let mib_timeout = self.plan.config.limits.mib_timeout;
                if !self.ticket.room(&mut charge, mib_timeout).await {
                    return self.refreshed(Refresh::NotStored);
                }
                charge.grow_anyway(size);
            }
            self.ticket.push(piece);
        }
        if storing {
            let own_charge = self.state().memory.charge();
            match Entry::assemble(head, &self.ticket.pieces(), None, own_charge) {
                Ok(entry) => self.store_entry(Arc::new(entry)),
                Err(_) => self.count_not_stored(Reason::Budget),
            }
        }
        self.refreshed(Refresh::Replaced);
        self.ticket.keep_charge(charge);
        self.ticket.finish(Ok(trailers));
    }

    /// The body turns out too large to be stored, or there is no room for it: it goes to those who
    /// read it, and to nobody else.
    fn keeps_no_more(&mut self, status: StatusCode, is_too_large: bool) {
        let (reason, lease) = if is_too_large {
            self.remember(status, Reason::TooLarge);
            (Reason::TooLarge, LeaseOutcome::TooLarge)
        } else {
            (Reason::Budget, LeaseOutcome::Dropped)
        };
        self.count_not_stored(reason);
        self.release(lease);
        self.ticket.pass_through();
    }

    /// The body broke off, and whoever reads it hears so; the origin is given a pause.
    fn broke_off(self, failure: Failure, charge: Charge, validation: Option<&Validation>) {
        self.state().metrics.upstream_failed(failure.kind);
        self.refreshed(Refresh::Failed);
        let until = self.state().clock.now().plus(pause(&failure));
        self.leave_alone(validation, until);
        self.ticket.keep_charge(charge);
        self.ticket.finish(Err(failure));
    }

    /// The hash of a small body without validator becomes its entity tag.
    async fn store_whole(
        mut self,
        headers: &HeaderMap,
        head: &Arc<Head>,
        whole: Result<Vec<Bytes>, Failure>,
        charge: Charge,
        validation: Option<&Validation>,
    ) {
        let pieces = match whole {
            Ok(pieces) => pieces,
            Err(failure) => {
                self.state().metrics.upstream_failed(failure.kind);
                return self.failed(failure, validation).await;
            }
        };
        let etag = entity_tag(headers, &pieces);
        match Entry::assemble(head, &pieces, Some(etag), charge) {
            Ok(entry) => {
                let entry = Arc::new(entry);
                self.store_entry(Arc::clone(&entry));
                self.refreshed(Refresh::Replaced);
                let outcome = Outcome::Stored(Arc::clone(&entry));
                self.ticket.publish(self.if_reusable(head, outcome));
                self.tell(Led::Stored {
                    status: entry.head.status,
                    entry,
                });
            }
            Err(NotAssembled::WrongLength) => {
                let message = "the response is not as long as its Content-Length says";
                let failure = Failure::new(FailureKind::ResponseIncomplete, message);
                return self.failed(failure, validation).await;
            }
            // It is whole, and good; there is only no room to keep it.
            Err(NotAssembled::NoRoom) => {
                self.count_not_stored(Reason::Budget);
                self.refreshed(Refresh::NotStored);
                self.begin(head);
                pieces.into_iter().for_each(|piece| self.ticket.push(piece));
            }
        }
        self.ticket.finish(Ok(None));
    }
}

/// Since when nobody reads a body that comes in.
#[derive(Default)]
struct Alone {
    since: Option<Instant>,
}

impl Alone {
    /// Whether nobody has read it for so long: it goes on, so that it may be stored, but does not
    /// hold a connection for ever.
    fn for_longer_than(&mut self, limit: Duration, ticket: &Ticket) -> bool {
        if ticket.has_readers() {
            self.since = None;
            return false;
        }
        self.since.get_or_insert_with(Instant::now).elapsed() > limit
    }
}

impl Answered {
    /// The rest of a response whose beginning is stored (RFC 9111 §3.4): `headers` are those of the
    /// whole.
    pub(super) async fn complete(
        self,
        beginning: Beginning,
        headers: HeaderMap,
        rest: Response<OriginBody>,
    ) {
        let fetch = &self.fetch;
        let mut charge = fetch.state().memory.charge();
        let (size, known) = (content_length(&headers).unwrap_or(0), beginning.part.body());
        let missing = size.saturating_sub(known.len() as u64);
        if !charge.grow(missing) {
            return self.ask_again(None).await;
        }
        let view = ResponseView {
            status: StatusCode::OK,
            headers: &headers,
        };
        let (request, options) = (fetch.view(), fetch.options());
        let judged = policy::storable(request, view, options, fetch.exchange.received);
        let pieces: Vec<Bytes> = match collect(rest.into_body(), missing).await {
            Ok(rest) => std::iter::once(known).chain(rest).collect(),
            Err(failure) => {
                // Nobody has been told anything yet.
                let state = fetch.state();
                state.metrics.upstream_failed(failure.kind);
                beginning.forget(state, fetch.primary());
                return self.ask_again(None).await;
            }
        };
        let mut fetch = self.fetch;
        let head = Arc::new(fetch.head(StatusCode::OK, &headers, judged.unwrap_or_default()));
        match Entry::assemble(&head, &pieces, None, charge) {
            Ok(entry) => {
                let entry = Arc::new(entry);
                match judged {
                    Ok(_) => fetch.store_entry(Arc::clone(&entry)),
                    Err(reason) => fetch.count_not_stored(reason),
                }
                fetch.refreshed(Refresh::Replaced);
                fetch.tell_stored(entry, StatusCode::PARTIAL_CONTENT, judged.map(drop));
            }
            Err(_) => {
                fetch.count_not_stored(Reason::Budget);
                fetch.begin(&head);
                pieces
                    .into_iter()
                    .for_each(|piece| fetch.ticket.push(piece));
                fetch.ticket.finish(Ok(None));
            }
        }
    }
}

fn has_weak_tag(headers: &HeaderMap) -> bool {
    let tag = headers.get(ETAG);
    tag.is_some_and(|tag| tag.as_bytes().starts_with(b"W/"))
}

fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// A strong entity tag from the bytes of the representation and what they are (RFC 9110 §8.8.1).
fn entity_tag(headers: &HeaderMap, body: &[Bytes]) -> HeaderValue {
    let mut digest = Sha256::new();
    for name in [CONTENT_TYPE, CONTENT_ENCODING] {
        digest.update(headers.get(name).map_or(&b""[..], HeaderValue::as_bytes));
        digest.update([0]);
    }
    body.iter().for_each(|piece| digest.update(piece));
    let hex = hex::encode(&digest.finalize()[..16]);
    HeaderValue::try_from(format!("\"{hex}\"")).unwrap_or(HeaderValue::from_static("\"\""))
}
