//! Parts that are kept: a 206 for a range of what is too large to be fetched whole, and the
//! beginning of a response that broke off (RFC 9111 §3.3). Each answers the ranges that it covers;
//! with its strong entity tag the rest, and only the rest, is fetched (§3.4).
//!
//! A part never stands where a whole response does: it has a key of its own beside the primary
//! one, and its stored status is 206.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, ETAG};
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, request};
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt;

use crate::clock::Timestamp;
use crate::error::Failure;
use crate::metrics::CacheResult;
use crate::policy::key::KeyBytes;
use crate::policy::range::{self, Selected, Span};
use crate::policy::storable::storable_part;
use crate::policy::{self, Decision, Lifetimes, Options, Reason, RequestView, update};
use crate::store::{Charge, Entry, Fields, Found, Head};
use crate::upstream::{OriginBody, empty};

use super::Proxy;
use super::asked::Asked;
use super::body::Body;
use super::clean::clean_response;
use super::deliver::{Note, Wanted};
use super::exchange::Exchange;
use super::forward::Conditions;
use super::inspect::collect;

/// What follows a primary key in the key of its part. No partition is as long, and no variant
/// begins so.
const PART: &[u8] = b"\x01part";

fn part_key(primary: &[u8]) -> KeyBytes {
    let mut key = KeyBytes::from_slice(primary);
    key.extend_from_slice(PART);
    key
}

/// The bytes that a stored part holds, and how long the whole is.
fn held(part: &Entry) -> Option<(Span, u64)> {
    let value = part.head.field(&CONTENT_RANGE)?;
    range::part_of(&HeaderMap::from_iter([(CONTENT_RANGE, value)]))
}

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

/// Whether two parts are of the same representation: only a strong validator can tell (§3.4).
/// Many origins give one tag to a representation and to its compressed form, against
/// RFC 9110 §8.8.3.3: those are not one.
fn is_same(stored: &HeaderMap, new: &HeaderMap) -> bool {
    let coding = |headers: &HeaderMap| headers.get(CONTENT_ENCODING).cloned();
    match (range::strong_tag(stored), range::strong_tag(new)) {
        (Some(one), Some(other)) => one.strong_eq(other) && coding(stored) == coding(new),
        _ => false,
    }
}

/// The fields of parts put together: the new ones go before the stored ones (§3.4).
fn joined(mut stored: HeaderMap, new: &HeaderMap) -> HeaderMap {
    update::merge(&mut stored, new);
    stored
}

/// Makes the fields say that they are of this span of a representation, or of the whole.
fn describe(headers: &mut HeaderMap, span: Option<Span>, length: u64) {
    match span {
        Some(span) => {
            headers.insert(CONTENT_RANGE, range::content_range(span, length));
            headers.insert(CONTENT_LENGTH, HeaderValue::from(span.size()));
        }
        None => {
            headers.remove(CONTENT_RANGE);
            headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
        }
    }
}

impl Proxy {
    /// The stored part of what is asked for, fresh or not.
    fn known_part(
        &self,
        primary: &[u8],
        request: &HeaderMap,
        now: Timestamp,
    ) -> Option<Arc<Entry>> {
        match self.memory.get(&mut part_key(primary), request, now) {
            Found::Entry(part) => Some(part),
            _ => None,
        }
    }

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
        match self.extend_part(&asked, extending).await {
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

    /// What is needed to keep a 206 with these fields; else why it may not be kept.
    fn keeping(
        self: &Arc<Self>,
        asked: &Asked,
        exchange: Exchange,
        headers: &HeaderMap,
    ) -> Result<Keeping, Reason> {
        let options = asked.options().ok_or(Reason::NoRoute)?;
        let lifetimes = storable_part(asked.view(), headers, options, exchange.received)?;
        let (span, length) = range::part_of(headers).ok_or(Reason::Partial)?;
        if span.size() > self.config.cache.max_object {
            return Err(Reason::TooLarge);
        }
        Ok(Keeping {
            proxy: Arc::clone(self),
            primary: asked.primary.clone(),
            client_headers: asked.parts.headers.clone(),
            options: options.clone(),
            headers: headers.clone(),
            lifetimes,
            exchange,
            span,
            length,
        })
    }

    /// Keeps the beginning of a response that broke off, where the rest can be asked for later.
    pub(super) fn keep_beginning(
        self: &Arc<Self>,
        primary: &[u8],
        client_headers: &HeaderMap,
        head: &Head,
        length: u64,
        pieces: &[Bytes],
    ) {
        let received: usize = pieces.iter().map(Bytes::len).sum();
        let mut headers = head.fields.unpack(2);
        let is_known = head.status == StatusCode::OK && range::strong_tag(&headers).is_some();
        if !is_known || received == 0 || received as u64 >= length {
            return;
        }
        let (first, last) = (0, received as u64 - 1);
        let span = Span { first, last };
        describe(&mut headers, Some(span), length);
        let head = Head {
            status: StatusCode::PARTIAL_CONTENT,
            fields: Fields::pack(&headers),
            ..head.clone()
        };
        let charge = self.memory.charge();
        if let Ok(entry) = Entry::assemble(&head, pieces, None, charge) {
            // Where a purge came meanwhile, it is just not kept.
            let _ = self
                .memory
                .insert(&part_key(primary), client_headers, Arc::new(entry));
        }
    }

    /// Lets a 206 that may be kept be kept while it passes.
    pub(super) fn keep_part(
        self: &Arc<Self>,
        asked: &Asked,
        exchange: Exchange,
        response: Response<OriginBody>,
    ) -> Response<OriginBody> {
        let is_part = response.status() == StatusCode::PARTIAL_CONTENT
            && asked.parts.method == Method::GET
            && !asked.primary.is_empty();
        if !is_part {
            return response;
        }
        match self.keeping(asked, exchange, response.headers()) {
            Ok(keeping) => {
                let charge = self.memory.charge();
                response.map(|body| Tee::new(body, charge, keeping).boxed_unsync())
            }
            Err(reason) => {
                self.metrics.not_stored(reason);
                response
            }
        }
    }
}

/// How a stored part becomes one that covers what is asked for.
struct Extension {
    part: Arc<Entry>,
    missing: Span,
    length: u64,
    etag: HeaderValue,
}

/// A part on its way into the store.
struct Keeping {
    proxy: Arc<Proxy>,
    primary: KeyBytes,
    client_headers: HeaderMap,
    options: Options,
    headers: HeaderMap,
    lifetimes: Lifetimes,
    exchange: Exchange,
    span: Span,
    length: u64,
}

impl Keeping {
    /// Stores the part, put together with `known` where both are of the same representation and
    /// touch; `None` where there is no room for it.
    fn keep(self, pieces: &[Bytes], known: Option<Arc<Entry>>) -> Option<Kept> {
        let memory = &self.proxy.memory;
        let joint = known.and_then(|known| self.join(&known, pieces));
        let (span, body, mut headers) = match joint {
            Some((joint, body, stored)) => (joint, body, joined(stored, &self.headers)),
            None => (self.span, pieces.to_vec(), self.headers.clone()),
        };
        let is_whole = span.size() == self.length;
        describe(&mut headers, Some(span).filter(|_| !is_whole), self.length);
        let (status, place) = if is_whole {
            (StatusCode::OK, self.primary.clone())
        } else {
            (StatusCode::PARTIAL_CONTENT, part_key(&self.primary))
        };
        let (request, options) = (&self.client_headers, &self.options);
        let head = self
            .exchange
            .head(status, &headers, self.lifetimes, request, options);
        let entry = Arc::new(Entry::assemble(&head, &body, None, memory.charge()).ok()?);
        let is_stored = self.proxy.keep(&place, request, Arc::clone(&entry));
        if is_whole {
            memory.forget(&part_key(&self.primary));
        }
        Some(Kept { entry, is_stored })
    }

    /// The span, the bytes and the stored fields of both, where `known` is of the same
    /// representation, touches this part, and leaves room.
    fn join(&self, known: &Entry, pieces: &[Bytes]) -> Option<(Span, Vec<Bytes>, HeaderMap)> {
        let (held, length) = held(known)?;
        let fields = known.head.fields.unpack(self.headers.len());
        let joint = Span {
            first: held.first.min(self.span.first),
            last: held.last.max(self.span.last),
        };
        let fits = joint.size() <= self.proxy.config.cache.max_object;
        let is_same = length == self.length && is_same(&fields, &self.headers);
        if !fits || !is_same || !held.touches(self.span) {
            return None;
        }
        // The stored bytes before and after the new ones, which count where both have some.
        let (bytes, first) = (known.body(), held.first);
        let before = bytes.slice(..(self.span.first.max(first) - first) as usize);
        let after = (self.span.last + 1).clamp(first, held.last + 1) - first;
        let after = bytes.slice(after as usize..);
        let mut body = vec![before];
        body.extend(pieces.iter().cloned());
        body.push(after);
        Some((joint, body, fields))
    }
}

/// What a part became.
struct Kept {
    entry: Arc<Entry>,
    is_stored: bool,
}

/// A body that is kept as it passes, if all of it does and there is room.
struct Tee {
    body: OriginBody,
    pieces: Vec<Bytes>,
    received: u64,
    charge: Charge,
    keeping: Option<Box<Keeping>>,
}

impl Tee {
    fn new(body: OriginBody, charge: Charge, keeping: Keeping) -> Self {
        Self {
            body,
            pieces: Vec::new(),
            received: 0,
            charge,
            keeping: Some(Box::new(keeping)),
        }
    }

    /// One more piece. hyper does not ask a body of known length again after its last byte.
    fn keep(&mut self, piece: &Bytes) {
        let Some(keeping) = self.keeping.take() else {
            return;
        };
        self.received += piece.len() as u64;
        let size = keeping.span.size();
        if self.received > size || !self.charge.grow(piece.len() as u64) {
            keeping.proxy.metrics.not_stored(Reason::Budget);
            self.pieces.clear();
            self.charge.shrink(u64::MAX);
            return;
        }
        self.pieces.push(piece.clone());
        if self.received < size {
            self.keeping = Some(keeping);
            return;
        }
        let (proxy, now) = (Arc::clone(&keeping.proxy), keeping.exchange.received);
        let known = proxy.known_part(&keeping.primary, &keeping.client_headers, now);
        keeping.keep(&std::mem::take(&mut self.pieces), known);
        self.charge.shrink(u64::MAX);
    }
}

impl http_body::Body for Tee {
    type Data = Bytes;
    type Error = Failure;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Failure>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        if let Some(Ok(frame)) = &frame
            && let Some(piece) = frame.data_ref()
        {
            self.keep(piece);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
