//! Single values that more than one section reads.

use std::path::PathBuf;
use std::time::Duration;

use http::{HeaderName, header};
use serde::de::IntoDeserializer as _;

use crate::http::fields::is_hop_by_hop;

use super::section::{At, Section};

/// Numbers of things of which there can be many.
const COUNT: std::ops::Range<u64> = 1..10_000_001;

pub fn set<T>(slot: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *slot = value;
    }
}

pub fn count(section: &mut Section<'_, '_>, key: &'static str, slot: &mut usize) {
    set(
        slot,
        section.integer(key, COUNT).map(|number| number as usize),
    );
}

/// A file that is there, and may be read.
pub fn readable(text: &str) -> Option<PathBuf> {
    std::fs::File::open(text)
        .is_ok()
        .then(|| PathBuf::from(text))
}

/// A file that is read again when it changes.
pub fn file(section: &mut Section<'_, '_>, key: &'static str) -> Option<At<PathBuf>> {
    let source = section.source();
    section.parsed(key, "the path of a readable PEM file", |text| {
        source.note_file(text.as_ref());
        readable(text)
    })
}

/// `cert_file` and `key_file` of one table, both or none.
pub fn certificate_files(section: &mut Section<'_, '_>) -> Option<(At<PathBuf>, At<PathBuf>)> {
    let (certificate, key) = (file(section, "cert_file"), file(section, "key_file"));
    let alone = |at: &At<PathBuf>, other: &str| {
        let message = format!("{} is missing beside this", section.path(other));
        section.source().mistake(at.span.clone(), message);
    };
    match (certificate, key) {
        (Some(certificate), Some(key)) => return Some((certificate, key)),
        (Some(certificate), None) if section.is_missing("key_file") => {
            alone(&certificate, "key_file");
        }
        (None, Some(key)) if section.is_missing("cert_file") => alone(&key, "cert_file"),
        _ => {}
    }
    None
}

/// hyper's read buffer, which bounds a head, cannot be smaller than 8 KiB.
pub fn header_bytes(section: &mut Section<'_, '_>) -> Option<usize> {
    let range = (8 << 10)..=(1 << 20);
    let parse = |text: &str| super::units::size(text).filter(|size| range.contains(size));
    let found = section.parsed("header_bytes", "a size from \"8KiB\" to \"1MiB\"", parse);
    found.map(|at| at.value as usize)
}

/// The breaker before an origin, of whichever kind.
pub fn breaker(section: &mut Section<'_, '_>, failures: &mut u32, open: &mut Duration) {
    let given = section.integer("breaker_failures", 1..1_000_001);
    set(failures, given.map(|number| number as u32));
    set(open, section.duration("breaker_open"));
}

/// Reads a word as one of an enum's spellings through serde.
pub fn word<T: serde::de::DeserializeOwned>(text: &str) -> Option<T> {
    let deserializer: serde::de::value::StrDeserializer<'_, serde::de::value::Error> =
        text.into_deserializer();
    T::deserialize(deserializer).ok()
}

/// Reads a header field name, but not of one that frames a message or is of one hop: those are not
/// the operator's to set or to read.
pub fn field_name(text: &str) -> Option<HeaderName> {
    let name = HeaderName::from_bytes(text.as_bytes()).ok()?;
    let frames = [header::CONTENT_LENGTH, header::TRAILER].contains(&name);
    (!frames && !is_hop_by_hop(&name)).then_some(name)
}
