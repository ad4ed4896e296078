//! Stored responses as bytes for the second tier, and back.
//!
//! What comes back is not trusted: another version, a broken checksum, a length that does not fit,
//! a field that could not stand in a response, each makes the value a miss. Layout, numbers
//! big-endian:
//!
//! ```text
//! version u8 · crc32 of all that follows u32 · flags u16 · status u16
//! born, fresh, stale-while-revalidate, stale-if-error, stale since (0: never): u64 milliseconds
//! epoch u64 · position u64 of the purge log
//! fields: length u32, block
//! selecting, by its flag: count u16, each name: length u16, text · values: length u32, bytes
//! groups, by their flag: count u32, each: length u32, text
//! body: length u32, and by the flag the length of the compressed bytes u32, bytes
//! ```

use bytes::{Buf, BufMut, Bytes};
use http::header::CONTENT_ENCODING;
use http::{HeaderName, StatusCode};
use std::time::Duration;

use crate::clock::Timestamp;
use crate::policy::{Groups, Lifetimes, Record};

use super::entry::{Entry, Fields, Head, Selecting};

/// Of the layout; another one is a miss.
pub const VERSION: u8 = 1;

/// Bodies below this are not worth compressing.
const COMPRESSED_FROM: usize = 1 << 10;

const HAS_VALIDATOR: u16 = 1;
const GRANTED_BY_OPERATOR: u16 = 1 << 1;
const IMMUTABLE: u16 = 1 << 2;
const FORBIDS_STALE: u16 = 1 << 3;
const WITHHOLDS: u16 = 1 << 4;
const SELECTING: u16 = 1 << 5;
const GROUPS: u16 = 1 << 6;
const COMPRESSED: u16 = 1 << 7;

/// What a value says.
#[derive(Clone, Debug)]
pub struct Decoded {
    pub head: Head,
    pub body: Vec<u8>,
    pub stale_since: Option<Timestamp>,
    /// Of the purge log that `head.stamp` is a position of.
    pub epoch: u64,
}

/// Why a value is no stored response.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    #[error("a layout of version {0}, not {VERSION}")]
    Version(u8),
    #[error("a checksum that does not fit")]
    Checksum,
    #[error("an end before everything was said, or something after it")]
    Length,
    #[error("a status that no response has")]
    Status,
    #[error("a field that no stored response has")]
    Field,
    #[error("a body larger than any that is stored")]
    TooLarge,
    #[error("a body that cannot be unpacked")]
    Compression,
}

impl From<bytes::TryGetError> for Invalid {
    fn from(_: bytes::TryGetError) -> Self {
        Self::Length
    }
}

/// Writes `entry`, whose purge stamp is a position of the log with this `epoch`.
pub fn encode(entry: &Entry, epoch: u64) -> Vec<u8> {
    let head = &entry.head;
    let body = entry.body();
    let packed = compress(head, &body);
    let mut out = Vec::with_capacity(head.fields.len() + body.len() + 128);
    out.put_u8(VERSION);
    out.put_u32(0);
    let Record {
        lifetimes, born, ..
    } = head.record;
    let flag = |is_set: bool, flag: u16| if is_set { flag } else { 0 };
    out.put_u16(
        flag(head.record.has_validator, HAS_VALIDATOR)
            | flag(lifetimes.granted_by_operator, GRANTED_BY_OPERATOR)
            | flag(lifetimes.immutable, IMMUTABLE)
            | flag(lifetimes.forbids_stale, FORBIDS_STALE)
            | flag(head.withholds, WITHHOLDS)
            | flag(head.selecting.is_some(), SELECTING)
            | flag(head.groups.is_some(), GROUPS)
            | flag(packed.is_some(), COMPRESSED),
    );
    out.put_u16(head.status.as_u16());
    out.put_u64(born.as_millis());
    for duration in [
        lifetimes.fresh,
        lifetimes.stale_while_revalidate,
        lifetimes.stale_if_error,
    ] {
        out.put_u64(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX));
    }
    out.put_u64(entry.view().stale_since.map_or(0, Timestamp::as_millis));
    out.put_u64(epoch);
    out.put_u64(head.stamp);
    put(&mut out, head.fields.block());
    if let Some(selecting) = &head.selecting {
        out.put_u16(u16::try_from(selecting.names.len()).unwrap_or(u16::MAX));
        for name in &selecting.names {
            out.put_u16(u16::try_from(name.as_str().len()).unwrap_or(u16::MAX));
            out.put_slice(name.as_str().as_bytes());
        }
        put(&mut out, &selecting.values);
    }
    if let Some(groups) = &head.groups {
        out.put_u32(u32::try_from(groups.len()).unwrap_or(u32::MAX));
        groups
            .iter()
            .for_each(|name| put(&mut out, name.as_bytes()));
    }
    match packed {
        Some(packed) => {
            out.put_u32(body.len() as u32);
            put(&mut out, &packed);
        }
        None => put(&mut out, &body),
    }
    let checksum = crc32fast::hash(&out[5..]);
    out[1..5].copy_from_slice(&checksum.to_be_bytes());
    out
}

/// Bytes after their length. An entry's whole weight is a `u32`.
fn put(out: &mut Vec<u8>, bytes: &[u8]) {
    out.put_u32(bytes.len() as u32);
    out.put_slice(bytes);
}

/// The body in fewer bytes, where that saves a tenth and nobody has packed it already.
fn compress(head: &Head, body: &[u8]) -> Option<Vec<u8>> {
    if body.len() < COMPRESSED_FROM || head.field(&CONTENT_ENCODING).is_some() {
        return None;
    }
    let packed = lz4_flex::block::compress(body);
    (packed.len() < body.len() / 10 * 9).then_some(packed)
}

/// Reads a value. `limit` is the largest body that is stored.
pub fn decode(value: &[u8], limit: u64) -> Result<Decoded, Invalid> {
    let mut rest = value;
    let version = rest.try_get_u8()?;
    if version != VERSION {
        return Err(Invalid::Version(version));
    }
    if rest.try_get_u32()? != crc32fast::hash(rest) {
        return Err(Invalid::Checksum);
    }
    let flags = rest.try_get_u16()?;
    let has = |flag: u16| flags & flag != 0;
    let status = StatusCode::from_u16(rest.try_get_u16()?).map_err(|_| Invalid::Status)?;
    if status.is_informational() || status == StatusCode::NOT_MODIFIED {
        return Err(Invalid::Status);
    }
    let born = Timestamp::from_millis(rest.try_get_u64()?);
    let mut duration = || rest.try_get_u64().map(Duration::from_millis);
    let lifetimes = Lifetimes {
        fresh: duration()?,
        stale_while_revalidate: duration()?,
        stale_if_error: duration()?,
        granted_by_operator: has(GRANTED_BY_OPERATOR),
        immutable: has(IMMUTABLE),
        forbids_stale: has(FORBIDS_STALE),
    };
    let stale_since = Some(rest.try_get_u64()?).filter(|since| *since > 0);
    let (epoch, stamp) = (rest.try_get_u64()?, rest.try_get_u64()?);
    let fields = Bytes::copy_from_slice(take_long(&mut rest)?);
    let fields = Fields::from_block(fields).ok_or(Invalid::Field)?;
    let selecting = if has(SELECTING) {
        Some(Box::new(take_selecting(&mut rest)?))
    } else {
        None
    };
    let groups = if has(GROUPS) {
        Some(take_groups(&mut rest)?)
    } else {
        None
    };
    let body = take_body(&mut rest, has(COMPRESSED), limit)?;
    if !rest.is_empty() {
        return Err(Invalid::Length);
    }
    let head = Head {
        status,
        fields,
        record: Record {
            lifetimes,
            born,
            has_validator: has(HAS_VALIDATOR),
        },
        selecting,
        stamp,
        groups,
        withholds: has(WITHHOLDS),
    };
    // A length that is not the body's would be believed by clients.
    if head
        .content_length()
        .is_some_and(|length| length != body.len() as u64)
    {
        return Err(Invalid::Field);
    }
    Ok(Decoded {
        head,
        body,
        stale_since: stale_since.map(Timestamp::from_millis),
        epoch,
    })
}

fn take<'a>(rest: &mut &'a [u8], length: usize) -> Result<&'a [u8], Invalid> {
    let (taken, left) = rest.split_at_checked(length).ok_or(Invalid::Length)?;
    *rest = left;
    Ok(taken)
}

fn take_long<'a>(rest: &mut &'a [u8]) -> Result<&'a [u8], Invalid> {
    let length = rest.try_get_u32()?;
    take(rest, length as usize)
}

fn take_selecting(rest: &mut &[u8]) -> Result<Selecting, Invalid> {
    let mut names = Vec::new();
    for _ in 0..rest.try_get_u16()? {
        let length = rest.try_get_u16()?;
        let name = HeaderName::from_bytes(take(rest, length.into())?);
        names.push(name.map_err(|_| Invalid::Field)?);
    }
    let values = take_long(rest)?.to_vec();
    Ok(Selecting { names, values })
}

fn take_groups(rest: &mut &[u8]) -> Result<Groups, Invalid> {
    let mut names = Vec::new();
    for _ in 0..rest.try_get_u32()? {
        let name = std::str::from_utf8(take_long(rest)?).map_err(|_| Invalid::Field)?;
        names.push(name.into());
    }
    Ok(Groups::new(names))
}

fn take_body(rest: &mut &[u8], is_packed: bool, limit: u64) -> Result<Vec<u8>, Invalid> {
    let length = rest.try_get_u32()?;
    // Before anything is made room for.
    if u64::from(length) > limit {
        return Err(Invalid::TooLarge);
    }
    if !is_packed {
        return Ok(take(rest, length as usize)?.to_vec());
    }
    let body = lz4_flex::block::decompress(take_long(rest)?, length as usize);
    let body = body.map_err(|_| Invalid::Compression)?;
    if body.len() != length as usize {
        return Err(Invalid::Compression);
    }
    Ok(body)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Ledger;
    use http::{HeaderMap, HeaderValue};
    use proptest::prelude::*;

    const LIMIT: u64 = 1 << 20;

    fn entry(head: &Head, body: &[u8]) -> Entry {
        let ledger = Ledger::new(1 << 30);
        let pieces = [Bytes::copy_from_slice(body)];
        Entry::assemble(head, &pieces, None, ledger.open()).unwrap()
    }

    fn any_head() -> impl Strategy<Value = Head> {
        let fields = proptest::collection::vec(("x-[a-z]{1,12}", "[ -~]{0,40}"), 0..12);
        let names = proptest::option::of(proptest::collection::vec("[a-z-]{1,12}", 1..4));
        let groups = proptest::option::of(proptest::collection::vec(".{1,12}", 1..4));
        let flags = any::<[bool; 5]>();
        let times = any::<[u64; 5]>();
        (fields, names, groups, flags, times, 200_u16..600).prop_map(
            |(fields, names, groups, flags, times, status)| {
                let mut headers = HeaderMap::new();
                for (name, value) in fields {
                    let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
                    headers.append(name, HeaderValue::from_str(value.trim()).unwrap());
                }
                let [
                    has_validator,
                    granted_by_operator,
                    immutable,
                    forbids_stale,
                    withholds,
                ] = flags;
                let selecting = names.map(|names| {
                    let name = |name: &String| HeaderName::from_bytes(name.as_bytes()).unwrap();
                    let values = names.join("\x1f").into_bytes();
                    let names = names.iter().map(name).collect();
                    Box::new(Selecting { names, values })
                });
                let names = |groups: Vec<String>| groups.into_iter().map(Into::into).collect();
                Head {
                    status: StatusCode::from_u16(if status == 304 { 200 } else { status }).unwrap(),
                    fields: Fields::pack(&headers),
                    record: Record {
                        lifetimes: Lifetimes {
                            fresh: Duration::from_millis(times[0]),
                            stale_while_revalidate: Duration::from_millis(times[1]),
                            stale_if_error: Duration::from_millis(times[2]),
                            granted_by_operator,
                            immutable,
                            forbids_stale,
                        },
                        born: Timestamp::from_millis(times[3]),
                        has_validator,
                    },
                    selecting,
                    stamp: times[4],
                    groups: groups.map(|groups| Groups::new(names(groups))),
                    withholds,
                }
            },
        )
    }

    fn sample() -> Entry {
        let headers = HeaderMap::from_iter([
            (http::header::ETAG, HeaderValue::from_static("\"v1\"")),
            (
                http::header::VARY,
                HeaderValue::from_static("accept-language"),
            ),
        ]);
        let head = Head {
            status: StatusCode::OK,
            fields: Fields::pack(&headers),
            record: Record {
                lifetimes: Lifetimes {
                    fresh: Duration::from_secs(60),
                    stale_if_error: Duration::from_secs(3600),
                    ..Lifetimes::default()
                },
                born: Timestamp::from_millis(1_795_000_000_000),
                has_validator: true,
            },
            selecting: Some(Box::new(Selecting {
                names: vec![http::header::ACCEPT_LANGUAGE],
                values: b"\x1faccept-language=de;".to_vec(),
            })),
            stamp: 7,
            groups: Some(Groups::new(vec!["overview".into()])),
            withholds: false,
        };
        entry(&head, "{\"projects\":[]}".repeat(100).as_bytes())
    }

    /// Values of this and former versions, in hexadecimal: what reads one today must not read it
    /// otherwise, or not at all, tomorrow without a new version.
    const SAMPLES: &str = include_str!("../../tests/samples/codec.txt");

    fn from_hex(text: &str) -> Vec<u8> {
        let octet = |at| u8::from_str_radix(&text[at..at + 2], 16).unwrap();
        (0..text.len()).step_by(2).map(octet).collect()
    }

    fn to_hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn samples_of_every_version_are_read_as_ever_or_refused() {
        let mut seen = 0;
        for line in SAMPLES.lines().filter(|line| !line.starts_with('#')) {
            let (version, value) = line.split_once(' ').unwrap();
            let decoded = decode(&from_hex(value), LIMIT);
            match version.parse().unwrap() {
                VERSION => {
                    let (found, sample) = (decoded.unwrap(), sample());
                    assert_eq!(found.body, sample.body());
                    assert_eq!(found.head.record, sample.head.record);
                    assert_eq!(found.head.fields.unpack(0), sample.head.fields.unpack(0));
                    assert_eq!((found.head.stamp, found.epoch), (7, 9));
                    assert_eq!(to_hex(&encode(&sample, 9)), value, "a new version?");
                }
                old => assert_eq!(decoded.unwrap_err(), Invalid::Version(old)),
            }
            seen += 1;
        }
        assert!(seen >= 2);
    }

    #[test]
    fn a_value_is_as_small_as_it_can_be_and_never_packed_twice() {
        let small = encode(&sample(), 0);
        assert!(small.len() < 400, "{}", small.len());
        let mut head = sample().head.clone();
        let mut headers = head.fields.unpack(1);
        headers.remove(http::header::CONTENT_LENGTH);
        headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        head.fields = Fields::pack(&headers);
        let body = vec![b'x'; 5000];
        assert!(encode(&entry(&head, &body), 0).len() > 5000);
    }

    #[test]
    fn a_body_that_claims_to_be_huge_is_refused_before_room_is_made_for_it() {
        let value = encode(&sample(), 0);
        assert_eq!(decode(&value, 100).unwrap_err(), Invalid::TooLarge);
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(
            head in any_head(),
            body in proptest::collection::vec(any::<u8>(), 0..4000),
            epoch in any::<u64>(),
        ) {
            let stored = entry(&head, &body);
            let found = decode(&encode(&stored, epoch), LIMIT).unwrap();
            prop_assert_eq!(&found.body[..], &body[..]);
            prop_assert_eq!(found.epoch, epoch);
            prop_assert_eq!(found.head.status, head.status);
            prop_assert_eq!(found.head.record, head.record);
            prop_assert_eq!(found.head.stamp, head.stamp);
            prop_assert_eq!(found.head.withholds, head.withholds);
            prop_assert_eq!(&found.head.groups, &head.groups);
            prop_assert_eq!(&found.head.selecting, &head.selecting);
            prop_assert_eq!(found.head.fields.unpack(0), stored.head.fields.unpack(0));
        }

        #[test]
        fn a_changed_byte_is_noticed(at in any::<prop::sample::Index>(), change in 1_u8..) {
            let mut value = encode(&sample(), 9);
            let at = at.index(value.len());
            value[at] ^= change;
            prop_assert!(decode(&value, LIMIT).is_err());
        }
    }

    /// Garbage with a right version and checksum, so that it gets past both; more of it by
    /// `DECODES=10000000 cargo test --release codec`.
    #[test]
    fn nothing_that_comes_makes_it_panic_or_take_more_than_it_may() {
        let count: u64 = std::env::var("DECODES").map_or(20_000, |text| text.parse().unwrap());
        let whole = encode(&sample(), 9);
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut random = move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        let mut read = 0;
        for _ in 0..count {
            let mut value = whole.clone();
            for _ in 0..random() % 4 + 1 {
                let at = random() as usize % value.len();
                value[at] = random() as u8;
            }
            if random() % 4 == 0 {
                value.truncate(random() as usize % whole.len());
            }
            if value.len() > 5 && random() % 8 > 0 {
                value[0] = VERSION;
                let checksum = crc32fast::hash(&value[5..]);
                value[1..5].copy_from_slice(&checksum.to_be_bytes());
            }
            if let Ok(found) = decode(&value, LIMIT) {
                assert!(found.body.len() as u64 <= LIMIT);
                found.head.fields.unpack(0);
                read += 1;
            }
        }
        // Most changes hit the body or a number: those are values like any other.
        assert!(read > 0);
    }
}
