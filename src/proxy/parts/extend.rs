//! Parts that are kept: a 206 for a range of what is too large to be fetched whole, and the
//! beginning of a response that broke off (RFC 9111 §3.3). Each answers the ranges that it covers;
//! with its strong entity tag the rest, and only the rest, is fetched (§3.4).
//!
//! A part never stands where a whole response does: it has a key of its own beside the primary
//! one, and its stored status is 206.

use std::sync::Arc;

use http::header::ETAG;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, request};

use crate::clock::Timestamp;
use crate::error::Failure;
use crate::guard::is_refusal;
use crate::metrics::CacheResult;
use crate::policy::range::{self, Selected, Span};
use crate::policy::{self, Decision, Options, Reason, RequestView, update};
use crate::store::Entry;
use crate::upstream::empty;

use super::Proxy;
use super::asked::Asked;
use super::body::Body;
use super::clean::clean_response;
use super::deliver::{Note, Wanted};
use super::exchange::Exchange;
use super::forward::Conditions;
use super::inspect::collect;
use super::keep::{describe, held, is_same, joined, part_key};

/// The entity tag by which the rest of a part can be asked for.
fn strong_tag(part: &Entry) -> Option<HeaderValue> {
    let value = part.head.field(&ETAG)?;
    let fields = HeaderMap::from_iter([(ETAG, value)]);
    range::strong_tag(&fields)?;
    fields.get(ETAG).cloned()
}

/// A stored part from byte 0, and the conditions that complete it.
pub(super) struct Beginning {
    pub part: Arc<Entry>,
    pub etag: HeaderValue,
    rest: Span,
}

impl Beginning {
    /// The beginning of what is asked for, where it is worth completing.
    pub fn known(proxy: &Proxy, asked: &Asked) -> Option<Self> {
        let now = proxy.clock.now();
        let part = proxy.known_part(&asked.primary, &asked.parts.headers, now)?;
        let (held, length) = held(&part)?;
        if held.first > 0 || length > proxy.config.cache.max_object {
            return None;
        }
        let (first, last) = (held.last + 1, length - 1);
        Some(Self {
            etag: strong_tag(&part)?,
            part,
            rest: Span { first, last },
        })
    }

    pub fn conditions(&self) -> Conditions<'_> {
        Conditions::Rest {
            span: self.rest,
            etag: &self.etag,
        }
    }

    /// The beginning is of no use any more: the origin has no rest that fits.
    pub fn forget(&self, proxy: &Proxy, primary: &[u8]) {
        proxy.memory.remove(&part_key(primary), &self.part);
    }

    /// The fields of the whole, where this 206 brings exactly its rest.
    pub fn completed_by(&self, response: &HeaderMap) -> Option<HeaderMap> {
        let (span, length) = range::part_of(response)?;
        let stored = self.part.head.fields.unpack(4);
        if span != self.rest || length != span.last + 1 || !is_same(&stored, response) {
            return None;
        }
        let mut headers = joined(stored, response);
        describe(&mut headers, None, length);
        Some(headers)
    }
}

impl Proxy {
    /// The response to a GET for a range that a stored part covers, without asking the origin.
    pub(super) fn reuse_part(
        &self,
        primary: &[u8],
        parts: &request::Parts,
        options: &Options,
        now: Timestamp,
    ) -> Option<(Response<Body>, Note)> {
        let (method, headers) = (&parts.method, &parts.headers);
        if *method != Method::GET || !range::is_single(headers) {
            return None;
        }
        let part = self.known_part(primary, headers, now)?;
        let view = RequestView {
            method,
            headers,
            has_body: false,
        };
        let stored = part.view();
        let Decision::Hit { age, .. } = policy::decide(view, Some(stored), options, now) else {
            return None;
        };
        let (held, length) = held(&part)?;
        match range::select(headers, &part.head.fields.unpack(0), length) {
            Selected::Parts(wanted) if held.contains(wanted[0]) => {}
            Selected::Unsatisfiable => {}
            _ => return None,
        }
        let note = Note::hit(CacheResult::Hit, Reason::Fresh, stored.ttl(now));
        let wanted = Wanted {
            method,
            headers,
            options,
        };
        let body = Body::Whole(part.body());
        Some((self.deliver(wanted, &part.head, age, body, note), note))
    }

    /// A whole response, or one that may not be stored, has come: parts of what was there before it
    /// are of no use.
    pub(super) fn forget_part(&self, primary: &[u8]) {
        self.memory.forget(&part_key(primary));
    }

    /// Forgets a part that a HEAD shows to be of another representation.
    pub(super) fn compare_part(&self, primary: &[u8], request: &HeaderMap, answer: &HeaderMap) {
        let Some(part) = self.known_part(primary, request, self.clock.now()) else {
            return;
        };
        let mut stored = part.head.fields.unpack(0);
        let length = held(&part).map(|(_, length)| length);
        describe(&mut stored, None, length.unwrap_or_default());
        if !update::describes(&stored, answer) {
            self.memory.remove(&part_key(primary), &part);
        }
    }

    /// Whether a part is known of something too large to be fetched whole.
    pub(super) fn is_known_too_large(&self, asked: &Asked) -> bool {
        let now = self.clock.now();
        let part = self.known_part(&asked.primary, &asked.parts.headers, now);
        let length = part.and_then(|part| held(&part));
        length.is_some_and(|(_, length)| length > self.config.cache.max_object)
    }

    /// A range of what cannot be had whole: what is missing of it is fetched and put to the part
    /// that is stored, or else the range is the origin's to answer.
    pub(super) async fn part(self: Arc<Self>, asked: Asked, note: Note) -> (Response<Body>, Note) {
        let extending = Note {
            reason: Reason::Partial,
            ..note
        };
        // Stored bytes are not for whoever must prove a key first.
        let extended = if asked.verifies() {
            Ok(None)
        } else {
            self.extend_part(&asked, extending).await
        };
        match extended {
            Ok(Some(answered)) => return answered,
            Ok(None) => {}
            Err(failure) => {
                tracing::debug!(%failure, "a stored part could not be extended");
            }
        }
        let note = Note {
            detail: Some(Reason::Range),
            ..note
        };
        self.pass(asked, empty(), note).await
    }

    /// `None` where no stored part can be extended to cover what is asked for.
    async fn extend_part(
        self: &Arc<Self>,
        asked: &Asked,
        note: Note,
    ) -> Result<Option<(Response<Body>, Note)>, Failure> {
        // Before the part is looked up: a purge between the two would be missed.
        let mut exchange = Exchange::begin(self);
        let Some(plan) = self.extension(asked) else {
            return Ok(None);
        };
        // Held until the part has grown by it.
        let mut charge = self.memory.charge();
        if !charge.grow(plan.missing.size()) {
            return Ok(None);
        }
        let conditions = Conditions::Rest {
            span: plan.missing,
            etag: &plan.etag,
        };
        let mut response = self
            .origin
            .answer(self.request_for(asked, conditions)?)
            .await?;
        exchange.received = self.clock.now();
        clean_response(&mut response, exchange.received)?;
        let brought = range::part_of(response.headers());
        let fits = response.status() == StatusCode::PARTIAL_CONTENT
            && brought == Some((plan.missing, plan.length))
            && is_same(&plan.part.head.fields.unpack(0), response.headers());
        if !fits {
            // It goes by, where what that says of the key is heard.
            if asked.let_in.is_some() && is_refusal(response.status()) {
                return Ok(None);
            }
            let is_of_ours = matches!(
                response.status(),
                StatusCode::NOT_MODIFIED
                    | StatusCode::PRECONDITION_FAILED
                    | StatusCode::RANGE_NOT_SATISFIABLE
            );
            if response.status().is_success() || is_of_ours {
                // Another representation by now, or an answer to our range and not to the
                // client's: what is stored of the old one is of no use.
                self.memory.remove(&part_key(&asked.primary), &plan.part);
                return Ok(None);
            }
            let note = Note {
                forward_status: Some(response.status()),
                ..note
            };
            note.write(response.headers_mut());
            return Ok(Some((response.map(Body::Origin), note)));
        }
        let Ok(keeping) = self.keeping(asked, exchange, response.headers()) else {
            return Ok(None);
        };
        let pieces = collect(response.into_body(), plan.missing.size()).await?;
        let Some(kept) = keeping.keep(&pieces, Some(plan.part)) else {
            return Ok(None);
        };
        let note = Note {
            stored: kept.is_stored,
            forward_status: Some(StatusCode::PARTIAL_CONTENT),
            ..note
        };
        let options = asked.options().cloned().unwrap_or_default();
        let wanted = Wanted {
            method: &asked.parts.method,
            headers: &asked.parts.headers,
            options: &options,
        };
        let age = kept.entry.view().age(exchange.received);
        let body = Body::Whole(kept.entry.body());
        let response = self.deliver(wanted, &kept.entry.head, age, body, note);
        Ok(Some((response, note)))
    }

    /// What is to be fetched so that a stored part covers the one range that is asked for.
    fn extension(&self, asked: &Asked) -> Option<Extension> {
        let headers = &asked.parts.headers;
        let part = self.known_part(&asked.primary, headers, self.clock.now())?;
        let (held, length) = held(&part)?;
        let stored = part.head.fields.unpack(0);
        let Selected::Parts(wanted) = range::select(headers, &stored, length) else {
            return None;
        };
        let [wanted] = wanted[..] else { return None };
        let missing = wanted.beyond(held)?;
        let fits = held.size() + missing.size() <= self.config.cache.max_object;
        let etag = strong_tag(&part).filter(|_| fits)?;
        Some(Extension {
            part,
            missing,
            length,
            etag,
        })
    }
}

/// How a stored part becomes one that covers what is asked for.
struct Extension {
    part: Arc<Entry>,
    missing: Span,
    length: u64,
    etag: HeaderValue,
}
