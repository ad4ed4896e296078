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
use http::header::{CONTENT_LENGTH, CONTENT_RANGE, ETAG};
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
use super::deliver::{Note, Wanted};
use super::exchange::Exchange;
use super::forward::{self, Conditions};
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

    /// The fields of the whole, where this 206 brings exactly its rest.
    pub fn completed_by(&self, response: &HeaderMap) -> Option<HeaderMap> {
        let (span, length) = range::part_of(response)?;
        let stored = self.part.head.fields.unpack(4);
        if span != self.rest || length != span.last + 1 || !is_same(&stored, response) {
            return None;
        }
        Some(joined(stored, response, None, length))
    }
}

/// Whether two parts are of the same representation: only a strong validator can tell (§3.4).
fn is_same(stored: &HeaderMap, new: &HeaderMap) -> bool {
    match (range::strong_tag(stored), range::strong_tag(new)) {
        (Some(stored), Some(new)) => stored.strong_eq(new),
        _ => false,
    }
}

/// The fields of parts put together: the new ones go before the stored ones (§3.4).
fn joined(mut stored: HeaderMap, new: &HeaderMap, span: Option<Span>, length: u64) -> HeaderMap {
    update::merge(&mut stored, new);
    match span {
        Some(span) => {
            stored.insert(CONTENT_RANGE, range::content_range(span, length));
            stored.insert(CONTENT_LENGTH, HeaderValue::from(span.size()));
        }
        None => {
            stored.remove(CONTENT_RANGE);
            stored.insert(CONTENT_LENGTH, HeaderValue::from(length));
        }
    }
    stored
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
        let note = Note {
            reason: Reason::Partial,
            ..note
        };
        if let Some(answered) = self.extend_part(&asked, note).await {
            return answered;
        }
        let note = Note {
            reason: Reason::Range,
            ..note
        };
        self.pass(asked, empty(), note).await
    }

    /// `None` where no stored part can be extended to cover what is asked for.
    async fn extend_part(
        self: &Arc<Self>,
        asked: &Asked,
        note: Note,
    ) -> Option<(Response<Body>, Note)> {
        let (headers, options) = (&asked.parts.headers, asked.options()?);
        let now = self.clock.now();
        let part = self.known_part(&asked.primary, headers, now)?;
        let (held, length) = held(&part)?;
        let stored = part.head.fields.unpack(0);
        let Selected::Parts(wanted) = range::select(headers, &stored, length) else {
            return None;
        };
        let [wanted] = wanted[..] else { return None };
        let missing = wanted.beyond(held)?;
        if held.size() + missing.size() > self.config.cache.max_object {
            return None;
        }
        let etag = strong_tag(&part)?;
        let conditions = Conditions::Rest {
            span: missing,
            etag: &etag,
        };
        let exchange = Exchange::begin(self);
        let answer = self
            .origin
            .answer(self.request_for(asked, conditions).ok()?);
        let mut response = answer.await.ok()?;
        let received = self.clock.now();
        forward::clean_response(&mut response, received).ok()?;
        let (span, of) = range::part_of(response.headers())?;
        let is_missing = response.status() == StatusCode::PARTIAL_CONTENT && span == missing;
        if !is_missing || of != length || !is_same(&stored, response.headers()) {
            // Another representation by now: what is stored of the old one is of no use.
            self.memory.remove(&part_key(&asked.primary), &part);
            return None;
        }
        let lifetimes = storable_part(asked.view(), response.headers(), options, received).ok()?;
        let (head, body) = response.into_parts();
        let pieces = collect(body, span.size()).await.ok()?;
        let new = Keeping {
            proxy: Arc::clone(self),
            primary: asked.primary.clone(),
            client_headers: headers.clone(),
            options: options.clone(),
            headers: head.headers,
            lifetimes,
            exchange: Exchange {
                received,
                ..exchange
            },
            span,
            length,
        };
        let entry = new.keep(&pieces)?;
        let note = Note {
            stored: true,
            forward_status: Some(StatusCode::PARTIAL_CONTENT),
            ..note
        };
        let wanted = Wanted {
            method: &asked.parts.method,
            headers,
            options,
        };
        let body = Body::Whole(entry.body());
        let age = entry.view().age(received);
        Some((self.deliver(wanted, &entry.head, age, body, note), note))
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
        headers.insert(CONTENT_RANGE, range::content_range(span, length));
        headers.insert(CONTENT_LENGTH, HeaderValue::from(span.size()));
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
        let (Some(options), true) = (asked.options(), is_part) else {
            return response;
        };
        let headers = response.headers();
        let judged = storable_part(asked.view(), headers, options, exchange.received);
        let lifetimes = match judged {
            Ok(lifetimes) => lifetimes,
            Err(reason) => {
                self.metrics.not_stored(reason);
                return response;
            }
        };
        let Some((span, length)) = range::part_of(headers) else {
            return response;
        };
        let mut charge = self.memory.charge();
        let fits = span.size() <= self.config.cache.max_object;
        if !fits || !charge.grow(span.size()) {
            self.metrics.not_stored(if fits {
                Reason::Budget
            } else {
                Reason::TooLarge
            });
            return response;
        }
        let keeping = Keeping {
            proxy: Arc::clone(self),
            primary: asked.primary.clone(),
            client_headers: asked.parts.headers.clone(),
            options: options.clone(),
            headers: headers.clone(),
            lifetimes,
            exchange,
            span,
            length,
        };
        response.map(|body| {
            Tee {
                body,
                pieces: Vec::new(),
                received: 0,
                _charge: charge,
                keeping: Some(Box::new(keeping)),
            }
            .boxed_unsync()
        })
    }
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
    /// Stores the part, put together with what is stored of the same representation; what it
    /// became, or nothing where it could not be stored.
    fn keep(self, pieces: &[Bytes]) -> Option<Arc<Entry>> {
        let key = part_key(&self.primary);
        let memory = &self.proxy.memory;
        let known =
            self.proxy
                .known_part(&self.primary, &self.client_headers, self.exchange.received);
        let (mut span, mut body, mut stored) = (self.span, pieces.to_vec(), HeaderMap::new());
        if let Some((known, joint, joint_body)) = known.and_then(|known| self.join(known, pieces)) {
            stored = known.head.fields.unpack(self.headers.len());
            (span, body) = (joint, joint_body);
        }
        let is_whole = span.size() == self.length;
        let headers = joined(
            stored,
            &self.headers,
            Some(span).filter(|_| !is_whole),
            self.length,
        );
        let status = if is_whole {
            StatusCode::OK
        } else {
            StatusCode::PARTIAL_CONTENT
        };
        let head = self.exchange.head(
            status,
            &headers,
            self.lifetimes,
            &self.client_headers,
            &self.options,
        );
        let entry = Arc::new(Entry::assemble(&head, &body, None, memory.charge()).ok()?);
        let place = if is_whole { &self.primary } else { &key };
        if !memory.insert(place, &self.client_headers, Arc::clone(&entry)) {
            self.proxy.metrics.not_stored(Reason::Purged);
        }
        Some(entry)
    }

    /// The span and the bytes of both, where `known` is of the same representation, touches this
    /// part, and leaves room.
    fn join(&self, known: Arc<Entry>, pieces: &[Bytes]) -> Option<(Arc<Entry>, Span, Vec<Bytes>)> {
        let (held, length) = held(&known)?;
        let fields = known.head.fields.unpack(0);
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
        Some((known, joint, body))
    }
}

/// A body that is kept as it passes, if all of it does.
struct Tee {
    body: OriginBody,
    pieces: Vec<Bytes>,
    received: u64,
    _charge: Charge,
    keeping: Option<Box<Keeping>>,
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
            self.received += piece.len() as u64;
            self.pieces.push(piece.clone());
        }
        // hyper does not ask a body of known length again after its last byte.
        let expected = self.keeping.as_ref().map(|keeping| keeping.span.size());
        if expected == Some(self.received) && !matches!(frame, Some(Err(_))) {
            let pieces = std::mem::take(&mut self.pieces);
            if let Some(keeping) = self.keeping.take() {
                keeping.keep(&pieces);
            }
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
