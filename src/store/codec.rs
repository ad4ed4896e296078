//! Stored responses as bytes for the second tier, and back.
//!
//! What comes back is not trusted: another version, a broken checksum, a length that does not fit,
//! a field that could not stand in a response, each makes the value a miss. Layout, numbers
//! big-endian:
//!
//! ```text
//! version u8 · crc32 of all that follows u32 · flags u16 · status u16
//! born, received, fresh, stale-while-revalidate, stale-if-error, stale since (0: never): u64 milliseconds
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

use super::entry::{Entry, Fields, Head, OTHERS, Selecting};
use super::purge::fleet::Stamp;

/// Of the layout; another one is a miss.
pub const VERSION: u8 = 2;

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
    /// How far the fleet's purge log had been applied when its fetch began.
    pub stamp: Stamp,
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
    #[error("a seal that is not this fleet's, or another key's")]
    Seal,
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

/// A value, and how much of it is body.
#[derive(Clone, Debug)]
pub struct Encoded {
    pub bytes: Vec<u8>,
    /// Bytes of the body in it, packed where it is.
    pub packed: usize,
}

/// Writes `entry`, whose fetch began when the fleet's purge log had been applied up to `stamp`.
pub fn encode(entry: &Entry, stamp: Stamp) -> Encoded {
    let head = &entry.head;
    let body = entry.body();
    let packed = compress(head, &body);
    let mut out = Vec::with_capacity(head.fields.len() + body.len() + 128);
    out.put_u8(VERSION);
    out.put_u32(0);
    let Record {
        lifetimes,
        born,
        received,
        ..
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
    out.put_u64(received.as_millis());
    for duration in [
        lifetimes.fresh,
        lifetimes.stale_while_revalidate,
        lifetimes.stale_if_error,
    ] {
        out.put_u64(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX));
    }
    out.put_u64(entry.view().stale_since.map_or(0, Timestamp::as_millis));
    out.put_u64(stamp.epoch);
    out.put_u64(stamp.position);
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
    let packed = match packed {
        Some(packed) => {
            out.put_u32(body.len() as u32);
            put(&mut out, &packed);
            packed.len()
        }
        None => {
            put(&mut out, &body);
            body.len()
        }
    };
    let checksum = crc32fast::hash(&out[5..]);
    out[1..5].copy_from_slice(&checksum.to_be_bytes());
    Encoded { bytes: out, packed }
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
    let received = Timestamp::from_millis(rest.try_get_u64()?);
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
    let (epoch, position) = (rest.try_get_u64()?, rest.try_get_u64()?);
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
            received,
            has_validator: has(HAS_VALIDATOR),
        },
        selecting,
        // Given where it is stored: positions of this process.
        stamp: 0,
        vouched: Timestamp::EPOCH,
        groups,
        generation: OTHERS,
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
        stamp: Stamp { epoch, position },
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
mod tests;
