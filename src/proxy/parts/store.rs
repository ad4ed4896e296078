//! How partial responses come into the store: under which key, put together with what, and as they
//! pass (RFC 9111 §3.3, §3.4).

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE};
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode};
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt;

use crate::clock::Timestamp;
use crate::error::Failure;
use crate::policy::key::KeyBytes;
use crate::policy::range::{self, Span};
use crate::policy::storable::storable_part;
use crate::policy::{Lifetimes, Reason, update};
use crate::proxy::exchange::Exchange;
use crate::proxy::keyed_request::KeyedRequest;
use crate::proxy::parts::ranges::forget_digests;
use crate::proxy::plan::{Plan, PlannedRoute};
use crate::proxy::state::State;
use crate::store::{Charge, Entry, Fields, Found, Head};
use crate::upstream::OriginBody;

/// What follows a primary key in the key of its part. No partition is as long, and no variant
/// begins so.
const PART: &[u8] = b"\x01part";

pub fn part_key(primary: &[u8]) -> KeyBytes {
    let mut key = KeyBytes::from_slice(primary);
    key.extend_from_slice(PART);
    key
}

/// The bytes that a stored part holds, and how long the whole is.
pub fn held(part: &Entry) -> Option<(Span, u64)> {
    let value = part.head.field(&CONTENT_RANGE)?;
    range::part_of(&HeaderMap::from_iter([(CONTENT_RANGE, value)]))
}

/// Whether two parts are of the same representation: only a strong validator can tell (§3.4).
/// Many origins give one tag to a representation and to its compressed form, against
/// RFC 9110 §8.8.3.3: those are not one.
pub fn is_same(stored: &HeaderMap, new: &HeaderMap) -> bool {
    let coding = |headers: &HeaderMap| headers.get(CONTENT_ENCODING).cloned();
    match (range::strong_tag(stored), range::strong_tag(new)) {
        (Some(one), Some(other)) => one.strong_eq(other) && coding(stored) == coding(new),
        _ => false,
    }
}

/// The fields of parts put together: the new ones go before the stored ones (§3.4).
pub fn joined(mut stored: HeaderMap, new: &HeaderMap) -> HeaderMap {
    update::merge(&mut stored, new);
    forget_digests(&mut stored);
    stored
}

/// Makes the fields say that they are of this span of a representation, or of the whole.
pub fn describe(headers: &mut HeaderMap, span: Option<Span>, length: u64) {
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

/// The stored part of what is asked for, fresh or not.
pub fn known_part(
    state: &State,
    primary: &[u8],
    request: &HeaderMap,
    now: Timestamp,
) -> Option<Arc<Entry>> {
    match state.memory.get(&mut part_key(primary), request, now) {
        Found::Entry(part) => Some(part),
        _ => None,
    }
}

/// A whole response, or one that may not be stored, has come: parts of what was there before it
/// are of no use.
pub fn forget_part(state: &State, primary: &[u8]) {
    state.memory.forget(&part_key(primary));
}

/// Forgets a part that a HEAD shows to be of another representation.
pub fn compare_part(state: &State, primary: &[u8], request: &HeaderMap, answer: &HeaderMap) {
    let Some(part) = known_part(state, primary, request, state.clock.now()) else {
        return;
    };
    let mut stored = part.head.fields.unpack(0);
    let length = held(&part).map(|(_, length)| length);
    describe(&mut stored, None, length.unwrap_or_default());
    if !update::describes(&stored, answer) {
        state.memory.remove(&part_key(primary), &part);
    }
}

/// Stores the beginning of a response that broke off, where the rest can be asked for later.
pub fn store_beginning(state: &State, primary: &[u8], head: &Head, length: u64, pieces: &[Bytes]) {
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
    let charge = state.memory.charge();
    if let Ok(entry) = Entry::assemble(&head, pieces, None, charge) {
        // Where a purge came meanwhile, it is just not kept.
        let _ = state.memory.insert(&part_key(primary), Arc::new(entry));
    }
}

/// Lets a 206 that may be stored be stored while it passes.
pub fn store_as_it_passes(
    plan: &Plan,
    keyed: &KeyedRequest,
    exchange: Exchange,
    response: Response<OriginBody>,
) -> Response<OriginBody> {
    let is_part = response.status() == StatusCode::PARTIAL_CONTENT
        && keyed.request.parts.method == Method::GET;
    if !is_part {
        return response;
    }
    match PartToStore::of(plan, keyed, exchange, response.headers()) {
        Ok(part) => {
            let charge = plan.state.memory.charge();
            response.map(|body| Tee::new(body, charge, part).boxed_unsync())
        }
        Err(reason) => {
            plan.state.metrics.not_stored(reason);
            response
        }
    }
}

/// A part on its way into the store.
pub struct PartToStore {
    state: Arc<State>,
    route: Arc<PlannedRoute>,
    max_object: u64,
    primary: KeyBytes,
    client_headers: HeaderMap,
    headers: HeaderMap,
    lifetimes: Lifetimes,
    exchange: Exchange,
    span: Span,
    length: u64,
}

impl PartToStore {
    /// What is needed to store a 206 with these fields; else why it may not be stored.
    pub fn of(
        plan: &Plan,
        keyed: &KeyedRequest,
        exchange: Exchange,
        headers: &HeaderMap,
    ) -> Result<Self, Reason> {
        let (request, options) = (keyed.request.view(), keyed.options());
        let lifetimes = storable_part(request, headers, options, exchange.received)?;
        let (span, length) = range::part_of(headers).ok_or(Reason::Partial)?;
        let max_object = plan.config.cache.max_object;
        if span.size() > max_object {
            return Err(Reason::TooLarge);
        }
        Ok(Self {
            state: Arc::clone(&plan.state),
            route: Arc::clone(&keyed.route),
            max_object,
            primary: KeyBytes::from_slice(keyed.primary()),
            client_headers: keyed.headers().clone(),
            headers: headers.clone(),
            lifetimes,
            exchange,
            span,
            length,
        })
    }

    /// Stores the part, put together with `known` where both are of the same representation and
    /// touch; `None` where there is no room for it.
    pub fn store(self, pieces: &[Bytes], known: Option<Arc<Entry>>) -> Option<StoredPart> {
        let memory = &self.state.memory;
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
        let (request, options) = (&self.client_headers, self.route.options());
        let head = self
            .exchange
            .head(status, &headers, self.lifetimes, request, options);
        let entry = Arc::new(Entry::assemble(&head, &body, None, memory.charge()).ok()?);
        let is_stored = self.state.store(&place, Arc::clone(&entry), None);
        if is_whole {
            memory.forget(&part_key(&self.primary));
        }
        Some(StoredPart { entry, is_stored })
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
        let fits = joint.size() <= self.max_object;
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
pub struct StoredPart {
    pub entry: Arc<Entry>,
    pub is_stored: bool,
}

/// A body that is kept as it passes, if all of it does and there is room.
struct Tee {
    body: OriginBody,
    pieces: Vec<Bytes>,
    received: u64,
    charge: Charge,
    part: Option<Box<PartToStore>>,
}

impl Tee {
    fn new(body: OriginBody, charge: Charge, part: PartToStore) -> Self {
        Self {
            body,
            pieces: Vec::new(),
            received: 0,
            charge,
            part: Some(Box::new(part)),
        }
    }

    /// One more piece. hyper does not ask a body of known length again after its last byte.
    fn take(&mut self, piece: &Bytes) {
        let Some(part) = self.part.take() else {
            return;
        };
        self.received += piece.len() as u64;
        let size = part.span.size();
        if self.received > size || !self.charge.grow(piece.len() as u64) {
            part.state.metrics.not_stored(Reason::Budget);
            self.pieces.clear();
            self.charge.shrink(u64::MAX);
            return;
        }
        self.pieces.push(piece.clone());
        if self.received < size {
            self.part = Some(part);
            return;
        }
        let now = part.exchange.received;
        let known = known_part(&part.state, &part.primary, &part.client_headers, now);
        part.store(&std::mem::take(&mut self.pieces), known);
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
            self.take(piece);
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
