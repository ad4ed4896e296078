//! The paths that an origin may take a canonical one for. Nobody knows how it decodes, cleans and
//! cuts what it gets, and in which order: so all usual steps are taken in all orders.

use std::collections::HashSet;

use super::canonical::without_dot_segments;

/// So many are looked at; a path that has more is made to have them.
const MOST: usize = 256;

/// Longer ones are not looked at: each reading costs as much as the path is long.
const LONGEST: usize = 2048;

/// What is done to a path on its way to being one.
type Step = fn(&[u8]) -> Vec<u8>;

const STEPS: [Step; 9] = [
    decoded,
    with_slashes,
    without_parameters,
    collapsed,
    resolved,
    up_to_nul,
    without_nul,
    up_to_query,
    trimmed,
];

/// Whether an origin may take a path for another one, but for the case of its letters; most it
/// cannot.
pub fn is_ambiguous(path: &str) -> bool {
    let mut before = 0;
    path.bytes().any(|byte| {
        let (doubled, ends_in_dot) = (before == b'/', before == b'.');
        before = byte;
        match byte {
            b'/' => doubled || ends_in_dot,
            byte => matches!(byte, b'%' | b'\\' | b';'),
        }
    }) || (path.len() > 1 && matches!(before, b'/' | b'.'))
}

/// The other paths that an origin may take this one for, each without the slash at its end; `None`
/// where there are too many to tell, or the path is too long.
pub fn readings(path: &str) -> Option<Vec<String>> {
    if path.len() > LONGEST {
        return None;
    }
    let mut found: HashSet<Vec<u8>> = HashSet::from([path.as_bytes().to_vec()]);
    let mut fresh = vec![path.as_bytes().to_vec()];
    while let Some(text) = fresh.pop() {
        for step in STEPS {
            let next = step(&text);
            if next != text && !found.contains(&next) {
                found.insert(next.clone());
                fresh.push(next);
            }
        }
        if found.len() > MOST {
            return None;
        }
    }
    let bare = found.into_iter().map(|text| {
        let text = String::from_utf8_lossy(&text).into_owned();
        match text.strip_suffix('/') {
            Some(bare) if !bare.is_empty() => bare.to_owned(),
            _ => text,
        }
    });
    let bare: HashSet<String> = bare.filter(|reading| reading != path).collect();
    Some(bare.into_iter().collect())
}

/// A path without what frameworks take for the format of its answer: `/me.json` is `/me` to them.
pub fn without_extension(path: &str) -> Option<&str> {
    let (bare, extension) = path.rsplit_once('.')?;
    (!extension.contains('/') && !bare.ends_with('/')).then_some(bare)
}

/// Percent-decoded once, and what are slashes and dots to lax decoders of UTF-8: overlong forms,
/// and those of full width.
fn decoded(path: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(path.len());
    let mut rest = path;
    while let Some((first, behind)) = rest.split_first() {
        let digits = behind
            .get(..2)
            .and_then(|two| std::str::from_utf8(two).ok())
            .filter(|two| two.bytes().all(|byte| byte.is_ascii_hexdigit()));
        let octet = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok());
        match octet.filter(|_| *first == b'%') {
            Some(octet) => {
                out.push(octet);
                rest = &behind[2..];
            }
            None => {
                out.push(*first);
                rest = behind;
            }
        }
    }
    without_overlong(&out)
}

fn without_overlong(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while !rest.is_empty() {
        let (letter, length) = match rest {
            [lead @ 0xc0..=0xc1, tail, ..] => ((lead & 1) << 6 | tail & 0x3f, 2),
            [0xe0, middle @ 0x80..=0x81, tail, ..] => ((middle & 1) << 6 | tail & 0x3f, 3),
            [0xf0, 0x80, middle @ 0x80..=0x81, tail, ..] => ((middle & 1) << 6 | tail & 0x3f, 4),
            [0xef, 0xbc, tail @ 0x81..=0xbf, ..] => (tail - 0x60, 3),
            [byte, ..] => (*byte, 1),
            [] => break,
        };
        out.push(letter);
        rest = &rest[length..];
    }
    out
}

fn with_slashes(path: &[u8]) -> Vec<u8> {
    path.iter()
        .map(|byte| if *byte == b'\\' { b'/' } else { *byte })
        .collect()
}

fn by_segment<'a>(path: &'a [u8], cut: impl Fn(&'a [u8]) -> &'a [u8]) -> Vec<u8> {
    let segments: Vec<&[u8]> = path.split(|byte| *byte == b'/').map(cut).collect();
    segments.join(&b'/')
}

/// `/a;v=1/b` as `/a/b`.
fn without_parameters(path: &[u8]) -> Vec<u8> {
    let bare = |segment: &'_ [u8]| segment.iter().position(|byte| *byte == b';');
    by_segment(path, |segment| {
        &segment[..bare(segment).unwrap_or(segment.len())]
    })
}

/// `/a//b` as `/a/b`.
fn collapsed(path: &[u8]) -> Vec<u8> {
    let mut out = path.to_vec();
    out.dedup_by(|byte, before| *byte == b'/' && *before == b'/');
    out
}

fn resolved(path: &[u8]) -> Vec<u8> {
    match std::str::from_utf8(path) {
        Ok(path) if path.starts_with('/') => without_dot_segments(path).into_bytes(),
        _ => path.to_vec(),
    }
}

fn up_to(path: &[u8], ends: &[u8]) -> Vec<u8> {
    let end = path.iter().position(|byte| ends.contains(byte));
    path[..end.unwrap_or(path.len())].to_vec()
}

fn up_to_nul(path: &[u8]) -> Vec<u8> {
    up_to(path, b"\0")
}

fn without_nul(path: &[u8]) -> Vec<u8> {
    path.iter().copied().filter(|byte| *byte != 0).collect()
}

fn up_to_query(path: &[u8]) -> Vec<u8> {
    up_to(path, b"?#")
}

/// Blanks, controls and dots at the end of a segment are nothing to some file systems; a segment of
/// dots alone means something else.
fn trimmed(path: &[u8]) -> Vec<u8> {
    let is_kept = |byte: &u8| *byte > b' ' && *byte != b'.' && *byte != 0x7f;
    by_segment(path, |segment| {
        let end = segment.iter().rposition(is_kept).map_or(0, |at| at + 1);
        match end {
            0 => segment,
            end => &segment[..end],
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::canonical;

    #[test]
    fn whatever_way_an_origin_may_read_a_path_is_found() {
        for sent in [
            "/api/x/..%2fme",
            "/api/me/",
            "/api//me",
            "/api/x/..%5cme",
            "/api/x/..\\me",
            "/api/me%2f",
            "/api/x/%2e%2e%2fme",
            "/api/x/..%252fme",
            "/api/x/..%25252fme",
            "/api/me;v=1",
            "/api;v=1/me",
            "/api/me%3bv=1",
            "/api/me%00.png",
            "/api%2fme",
            "//api/me",
            "/api//..\\me",
            "/api//..%5Cme",
            "/api//..%2fme",
            "/api/me//..%2fme",
            "/api/x/..%c0%afme",
            "/api/x/..%e0%80%afme",
            "/api/x/%c0%ae%c0%ae/me",
            "/api/x/..%ef%bc%8fme",
            "/api/x%2f..%2fme;%2fx",
            "/api/me%20",
            "/api/me%09",
            "/api/me%0a",
            "/api/me.",
            "/api./me",
            "/api/m%00e",
            "/api/x/.%00./me",
            "/api/me%3fx",
            "/api/me%23",
        ] {
            let canonical = canonical::path(sent).unwrap();
            assert!(is_ambiguous(&canonical), "{sent}");
            let found = readings(&canonical).unwrap();
            assert!(found.contains(&"/api/me".to_owned()), "{sent}: {found:?}");
        }
        for plain in ["/", "/api/me", "/a.b/c-d_e~f", "/a/{id}", "/.well-known/a"] {
            assert!(!is_ambiguous(plain), "{plain}");
            assert!(readings(plain).unwrap().is_empty(), "{plain}");
        }
        assert_eq!(without_extension("/api/me.json"), Some("/api/me"));
        for none in ["/api/me", "/.me", "/a.b/c"] {
            assert_eq!(without_extension(none), None, "{none}");
        }
    }

    #[test]
    fn a_path_that_is_too_long_to_look_at_may_be_any() {
        let path = format!("/{}%2f", "a".repeat(LONGEST));
        assert!(is_ambiguous(&path));
        assert_eq!(readings(&path), None);
    }

    proptest::proptest! {
        #[test]
        fn there_are_never_too_many_to_look_at(path in "/([a./\\\\;]|%2f|%5c|%00|%25|%c0%af|%20){0,200}") {
            if let Some(found) = readings(&path) {
                assert!(found.len() <= MOST);
            }
        }
    }
}
