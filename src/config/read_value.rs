//! Single values that more than one section reads.

use std::path::PathBuf;

use super::source::Section;

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
