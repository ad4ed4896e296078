//! One stored response: its head in a compact form, its body, and what policy remembers of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::{BufMut, Bytes, BytesMut};
use http::header::{AGE, CONTENT_LENGTH, DATE, HeaderName};
use http::{HeaderMap, HeaderValue, StatusCode};

use crate::clock::Timestamp;
use crate::http::dates;
use crate::http::fields::is_hop_by_hop;
use crate::policy::{Groups, Record, StoredView};

use super::ledger::{Charge, Ledger};
use super::ready::Place;

/// Fields of more bytes are unpacked for each answer.
const MOST_READY: usize = 4096;

/// Header fields as one block of bytes: a small response would otherwise cost more in its
/// `HeaderMap` than in everything else.
///
/// Each field is `name length: u16, value length: u32, name, value`, big-endian.
#[derive(Clone, Debug, Default)]
pub struct Fields {
    /// Begins with the fields; a stored response's body follows in the same allocation.
    block: Bytes,
    length: u32,
    ready: Place,
}

impl Fields {
    /// Packs the fields that may be stored (RFC 9111 §3.1). `Age` is not: it is reckoned anew for
    /// every answer.
    pub fn pack(headers: &HeaderMap) -> Self {
        let mut block = BytesMut::new();
        for (name, value) in headers {
            if !is_hop_by_hop(name) && *name != AGE {
                push_field(&mut block, name, value);
            }
        }
        // hyper and `header_bytes` bound a whole head far below this type.
        let length = u32::try_from(block.len()).unwrap_or(0);
        Self {
            block: block.freeze(),
            length,
            ready: Place::default(),
        }
    }

    /// Fields that came from elsewhere: `None` unless each could have been packed here.
    pub fn from_block(block: Bytes) -> Option<Self> {
        let length = u32::try_from(block.len()).ok()?;
        let fields = Self {
            block,
            length,
            ready: Place::default(),
        };
        let mut size = 0;
        for (name, value) in fields.iter() {
            if is_hop_by_hop(&name) || name == AGE {
                return None;
            }
            size += 6 + name.as_str().len() + value.len();
        }
        // What could not be read ends the iterator early.
        (size == fields.len()).then_some(fields)
    }

    pub(super) fn block(&self) -> &[u8] {
        &self.block[..self.len()]
    }

    /// The fields as a map for an answer, with room for `spare` more, or with those of its `own`
    /// that were named when it was made ready: they are empty where the stored response has none.
    pub fn for_answer(&self, spare: usize) -> HeaderMap {
        self.ready.copy().unwrap_or_else(|| self.unpack(spare))
    }

    /// Keeps the map for the next answers, by chance, where `ledger` has room.
    pub(super) fn make_ready(&self, own: &[HeaderName], ledger: &Arc<Ledger>) {
        if self.len() <= MOST_READY {
            let unpack = || self.unpack(own.len());
            self.ready.make_by_chance(own, ledger, unpack);
        }
    }

    /// The fields as a map with room for `spare` more.
    pub fn unpack(&self, spare: usize) -> HeaderMap {
        // A field takes 30 bytes or more as good as always; a map that must grow still works, and
        // one of more than 24,576 could not be made at once.
        let mut headers = HeaderMap::with_capacity((self.len() / 30).min(512) + spare);
        for (name, value) in self.iter() {
            headers.append(name, value);
        }
        headers
    }

    /// Each field; values share the block.
    pub fn iter(&self) -> impl Iterator<Item = (HeaderName, HeaderValue)> {
        let mut at = 0;
        std::iter::from_fn(move || {
            let block = self.block();
            let lengths = block.get(at..at + 6)?;
            let name_length = usize::from(u16::from_be_bytes([lengths[0], lengths[1]]));
            let value_length = u32::from_be_bytes([lengths[2], lengths[3], lengths[4], lengths[5]]);
            let name_end = at + 6 + name_length;
            let value_end = name_end.checked_add(value_length as usize)?;
            // What was packed here always fits; what came from elsewhere may not.
            block.get(name_end..value_end)?;
            let name = HeaderName::from_bytes(block.get(at + 6..name_end)?).ok()?;
            let value =
                HeaderValue::from_maybe_shared(self.block.slice(name_end..value_end)).ok()?;
            at = value_end;
            Some((name, value))
        })
    }

    pub fn len(&self) -> usize {
        self.length as usize
    }

    pub fn is_empty(&self) -> bool {
        self.length == 0
    }
}

fn push_field(block: &mut BytesMut, name: &HeaderName, value: &HeaderValue) {
    let (name, value) = (name.as_str().as_bytes(), value.as_bytes());
    // hyper and `header_bytes` bound a whole head far below these types.
    let (Ok(name_length), Ok(value_length)) =
        (u16::try_from(name.len()), u32::try_from(value.len()))
    else {
        return;
    };
    block.put_u16(name_length);
    block.put_u32(value_length);
    block.put_slice(name);
    block.put_slice(value);
}

/// What `Vary` makes of a response: the request fields that select it, and what its own request
/// said in them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selecting {
    /// Sorted.
    pub names: Vec<HeaderName>,
    /// As [`append_selecting`](crate::policy::vary::append_selecting) writes it.
    pub values: Vec<u8>,
}

/// The generation of what another instance has judged, whose rules may be others.
pub const OTHERS: u32 = u32::MAX;

/// A response head that may be shared, stored or still streaming.
#[derive(Clone, Debug)]
pub struct Head {
    pub status: StatusCode,
    pub fields: Fields,
    pub record: Record,
    /// `None` without a `Vary`. Boxed: most responses have none, and each byte here counts once
    /// for every stored one.
    pub selecting: Option<Box<Selecting>>,
    /// The purge log's position when its fetch began.
    pub stamp: u64,
    /// Until when it is known that nothing purged it unheard: when it came, or the fleet's log was
    /// heard for it.
    pub vouched: Timestamp,
    pub groups: Option<Groups>,
    /// Of the plan by whose rules its lifetimes and groups are.
    pub generation: u32,
    /// `no-cache="field"` names fields that are left out on reuse.
    pub withholds: bool,
}

/// A stored response, or a part of one where its status is 206. Head block and body are one
/// allocation.
#[derive(Debug)]
pub struct Entry {
    pub head: Head,
    /// Unix milliseconds before which a failed background refresh is not tried again.
    pub refresh_after: AtomicU64,
    /// The count of stored variants when it was last used, where it is one itself.
    used: AtomicU64,
    /// Purges up to this position have been taken into account.
    judged: AtomicU64,
    /// Unix milliseconds at which a purge made it stale; 0 for never.
    stale_since: AtomicU64,
}

/// The bytes of an entry, charged to the budget until the last reader lets go of them.
struct Charged {
    block: Vec<u8>,
    _charge: Charge,
}

impl AsRef<[u8]> for Charged {
    fn as_ref(&self) -> &[u8] {
        &self.block
    }
}

/// Why a response did not become an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotAssembled {
    /// The body has not the length that the head promised.
    WrongLength,
    /// The budget has no room.
    NoRoom,
}

impl Entry {
    /// Joins a head and the pieces of its body, copied once so that no receive buffer stays
    /// pinned. `charge` may hold some of the bytes already.
    pub fn assemble(
        head: &Head,
        body: &[Bytes],
        etag: Option<HeaderValue>,
        mut charge: Charge,
    ) -> Result<Self, NotAssembled> {
        let body_length: usize = body.iter().map(Bytes::len).sum();
        let mut extra = BytesMut::new();
        if let Some(etag) = etag {
            push_field(&mut extra, &http::header::ETAG, &etag);
        }
        match head.content_length() {
            Some(promised) if promised != body_length as u64 => {
                return Err(NotAssembled::WrongLength);
            }
            Some(_) => {}
            None => push_field(&mut extra, &CONTENT_LENGTH, &HeaderValue::from(body_length)),
        }
        let head_length = head.fields.len() + extra.len();
        let total = head_length + body_length;
        let weight = u32::try_from(total + head.beside());
        let (Ok(weight), Ok(body_start)) = (weight, u32::try_from(head_length)) else {
            return Err(NotAssembled::NoRoom);
        };
        if !charge.set(u64::from(weight)) {
            return Err(NotAssembled::NoRoom);
        }
        let mut block = Vec::with_capacity(total);
        block.extend_from_slice(head.fields.block());
        block.extend_from_slice(&extra);
        for piece in body {
            block.extend_from_slice(piece);
        }
        let fields = Fields {
            block: Bytes::from_owner(Charged {
                block,
                _charge: charge,
            }),
            length: body_start,
            ready: Place::default(),
        };
        Ok(Self {
            head: Head {
                fields,
                ..head.clone()
            },
            refresh_after: AtomicU64::new(0),
            used: AtomicU64::new(0),
            judged: AtomicU64::new(head.stamp),
            stale_since: AtomicU64::new(0),
        })
    }

    /// The same response, judged by the rules of another plan; shares the entry's allocation. With
    /// other groups, purges of those count that came since its fetch began.
    pub fn judged_again(
        &self,
        record: Record,
        groups: Option<Groups>,
        withholds: bool,
        generation: u32,
    ) -> Self {
        let copy = |number: &AtomicU64| AtomicU64::new(number.load(Ordering::Acquire));
        let judged = if groups == self.head.groups {
            self.judged()
        } else {
            self.head.stamp
        };
        Self {
            refresh_after: copy(&self.refresh_after),
            used: copy(&self.used),
            judged: AtomicU64::new(judged),
            stale_since: copy(&self.stale_since),
            head: Head {
                record,
                groups,
                withholds,
                generation,
                ..self.head.clone()
            },
        }
    }

    /// The body; shares the entry's allocation.
    pub fn body(&self) -> Bytes {
        self.head.fields.block.slice(self.head.fields.len()..)
    }

    /// Notes a use; written only where it is news, as many threads may read it.
    pub fn use_at(&self, time: u64) {
        if self.used.load(Ordering::Relaxed) != time {
            self.used.store(time, Ordering::Relaxed);
        }
    }

    pub fn used_at(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// As policy sees it now.
    pub fn view(&self) -> StoredView<'_> {
        let since = self.stale_since.load(Ordering::Relaxed);
        StoredView {
            record: &self.head.record,
            stale_since: (since > 0).then(|| Timestamp::from_millis(since)),
        }
    }

    /// Ends its freshness, unless that happened before.
    pub fn make_stale(&self, at: Timestamp) {
        let earlier = |since: u64| (since == 0 || at.as_millis() < since).then(|| at.as_millis());
        let _ = self
            .stale_since
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, earlier);
    }

    /// The position of the purge log up to which it was judged.
    pub fn judged(&self) -> u64 {
        self.judged.load(Ordering::Acquire)
    }

    /// Whoever reads that also reads that it was made stale.
    pub fn set_judged(&self, position: u64) {
        self.judged.fetch_max(position, Ordering::Release);
    }

    /// Bytes of head and body, and of what stands beside them.
    pub fn weight(&self) -> u64 {
        (self.head.fields.block.len() + self.head.beside()) as u64
    }
}

impl Head {
    /// The value of `Content-Length`, where there is one.
    pub fn content_length(&self) -> Option<u64> {
        self.field(&CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
    }

    /// When the origin says that it made the response.
    pub fn date(&self) -> Option<Timestamp> {
        dates::parse(&self.field(&DATE)?)
    }

    /// Bytes that it holds outside of its block.
    fn beside(&self) -> usize {
        let selecting = self.selecting.as_deref();
        let selecting = selecting.map_or(0, |selecting| {
            size_of::<Selecting>()
                + selecting.values.len()
                + selecting.names.len() * size_of::<HeaderName>()
        });
        let groups = self.groups.iter().flat_map(|groups| groups.iter());
        selecting + groups.map(|name| name.len() + 32).sum::<usize>()
    }

    /// The first value of a field.
    pub fn field(&self, wanted: &HeaderName) -> Option<HeaderValue> {
        let mut fields = self.fields.iter();
        fields
            .find(|(name, _)| name == wanted)
            .map(|(_, value)| value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(lines: &[(&'static str, &'static str)]) -> Head {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, HeaderValue::from_static(value));
        }
        Head {
            status: StatusCode::OK,
            fields: Fields::pack(&headers),
            record: Record::default(),
            selecting: None,
            stamp: 0,
            groups: None,
            vouched: Timestamp::EPOCH,
            generation: 0,
            withholds: false,
        }
    }

    #[test]
    fn fields_come_back_as_they_went_in_but_for_those_of_one_hop() {
        let head = head(&[
            ("x-a", "1"),
            ("x-a", "2"),
            ("connection", "close"),
            ("age", "9"),
            ("etag", "\"e\""),
        ]);
        let headers = head.fields.unpack(2);
        let lines: Vec<_> = headers
            .iter()
            .map(|(name, value)| (name.as_str(), value.to_str().unwrap()))
            .collect();
        assert_eq!(lines, [("x-a", "1"), ("x-a", "2"), ("etag", "\"e\"")]);
    }

    #[test]
    fn an_entry_knows_its_length_and_is_charged_while_it_lives() {
        let ledger = Ledger::new(1000);
        let pieces = [Bytes::from_static(b"ab"), Bytes::from_static(b"cde")];
        let entry = Entry::assemble(&head(&[("x-a", "1")]), &pieces, None, ledger.open()).unwrap();
        assert_eq!(&entry.body()[..], b"abcde");
        assert_eq!(entry.head.content_length(), Some(5));
        assert_eq!(ledger.held(), entry.weight());
        // A reader holds the bytes longer than the store holds the entry.
        let body = entry.body();
        drop(entry);
        assert!(ledger.held() > 0);
        drop(body);
        assert_eq!(ledger.held(), 0);
    }

    #[test]
    fn a_body_that_is_not_as_long_as_promised_makes_no_entry() {
        let ledger = Ledger::new(1000);
        let head = head(&[("content-length", "9")]);
        let pieces = [Bytes::from_static(b"short")];
        let assembled = Entry::assemble(&head, &pieces, None, ledger.open());
        assert_eq!(assembled.err(), Some(NotAssembled::WrongLength));
        assert_eq!(ledger.held(), 0);
    }
}
