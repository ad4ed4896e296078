//! The one spelling of a request target (RFC 3986 §6.2.2): what is routed, keyed, purged and sent.
//!
//! Unreserved characters are decoded and nothing else, triplets are in upper case, dot segments are
//! removed. Empty segments, encoded slashes and whatever else is no letter of a URI stay as they
//! are: they may mean something to the origin, and what is keyed is what is sent.

use std::borrow::Cow;

/// Why a target has no canonical spelling: it is sent as it came, and never stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotCanonical {
    /// A `%` without two hexadecimal digits: decoding beside it could make a new escape.
    #[error("a \"%\" is not followed by two hexadecimal digits")]
    BrokenEscape,
    /// A byte that is no ASCII: nobody can say which characters are meant.
    #[error("a character is not ASCII, and not percent-encoded")]
    RawByte,
}

/// Characters that no URI holds (RFC 3986 §2), and that clients send all the same.
const FOREIGN: &str = "\"<>\\^`{|}";

/// The canonical path; an empty one is `/` (§6.2.3).
pub fn path(path: &str) -> Result<Cow<'_, str>, NotCanonical> {
    if path.is_empty() {
        return Ok(Cow::Borrowed("/"));
    }
    // Most paths have nothing in them that could be spelled otherwise.
    if is_plain(path) {
        return Ok(Cow::Borrowed(path));
    }
    let spelled = escapes(path)?;
    if !has_dot_segment(&spelled) {
        return Ok(spelled);
    }
    Ok(Cow::Owned(without_dot_segments(&spelled)))
}

/// The canonical query: without its `?`.
pub fn query(query: &str) -> Result<Cow<'_, str>, NotCanonical> {
    escapes(query)
}

/// The targets that a text may mean which somebody typed, or an origin wrote: what no URI holds may
/// have been sent as it stands or percent-encoded, in the path and in the query. None where it is
/// no target at all.
pub fn targets(text: &str) -> Vec<String> {
    let (path, query) = match text.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (text, None),
    };
    let paths = spellings(path, self::path);
    let queries = query.map_or_else(
        || vec![None],
        |query| {
            let spelled = spellings(query, self::query);
            spelled.into_iter().map(Some).collect()
        },
    );
    let with = |path: &String, query: &Option<String>| match query {
        Some(query) => format!("{path}?{query}"),
        None => path.clone(),
    };
    let all = paths
        .iter()
        .flat_map(|path| queries.iter().map(move |query| with(path, query)));
    all.collect()
}

/// The beginnings of a target that a text may mean which somebody typed.
pub fn prefixes(text: &str) -> Vec<String> {
    spellings(text, escapes)
}

fn spellings(
    text: &str,
    spell: for<'a> fn(&'a str) -> Result<Cow<'a, str>, NotCanonical>,
) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    for text in [text, &encoded(text), &decoded_foreign(text)] {
        let spelled = spell(text).map(Cow::into_owned);
        found.extend(spelled.ok().filter(|spelled| !found.contains(spelled)));
    }
    found
}

/// A text with the ASCII characters that no URI holds as they are, which some clients send so.
fn decoded_foreign(text: &str) -> String {
    let mut out = text.to_owned();
    for letter in FOREIGN.chars() {
        out = out.replace(&format!("%{:02X}", u32::from(letter)), &letter.to_string());
        out = out.replace(&format!("%{:02x}", u32::from(letter)), &letter.to_string());
    }
    out
}

/// Decodes what is unreserved, and writes the other triplets in upper case (§6.2.2.1, §6.2.2.2).
fn escapes(text: &str) -> Result<Cow<'_, str>, NotCanonical> {
    if is_plain(text) {
        return Ok(Cow::Borrowed(text));
    }
    if !text.is_ascii() {
        return Err(NotCanonical::RawByte);
    }
    if !text.contains('%') {
        return Ok(Cow::Borrowed(text));
    }
    let mut pieces = text.split('%');
    let mut out = String::with_capacity(text.len());
    out.push_str(pieces.next().unwrap_or_default());
    for piece in pieces {
        let digits = piece.get(..2).ok_or(NotCanonical::BrokenEscape)?;
        let octet = octet(digits).ok_or(NotCanonical::BrokenEscape)?;
        if is_unreserved(octet) {
            out.push(char::from(octet));
        } else {
            out.push('%');
            out.push_str(&digits.to_ascii_uppercase());
        }
        out.push_str(&piece[2..]);
    }
    Ok(if out == text {
        Cow::Borrowed(text)
    } else {
        Cow::Owned(out)
    })
}

/// Whether there is neither an escape nor a dot, and nothing that is no ASCII.
fn is_plain(text: &str) -> bool {
    text.bytes()
        .all(|byte| byte.is_ascii() && byte != b'%' && byte != b'.')
}

fn octet(digits: &str) -> Option<u8> {
    let is_hex = digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_hex
        .then(|| u8::from_str_radix(digits, 16).ok())
        .flatten()
}

fn is_unreserved(octet: u8) -> bool {
    octet.is_ascii_alphanumeric() || b"-._~".contains(&octet)
}

fn has_dot_segment(path: &str) -> bool {
    // Most paths have no dot after a slash.
    path.contains("/.") && path.split('/').any(|segment| matches!(segment, "." | ".."))
}

/// §5.2.4, for a path that begins with a slash.
pub fn without_dot_segments(path: &str) -> String {
    let mut kept: Vec<&str> = Vec::new();
    let segments: Vec<&str> = path.split('/').skip(1).collect();
    for (at, segment) in segments.iter().enumerate() {
        let is_last = at + 1 == segments.len();
        match *segment {
            "." => {}
            ".." => drop(kept.pop()),
            segment => {
                kept.push(segment);
                continue;
            }
        }
        if is_last {
            // The folder itself.
            kept.push("");
        }
    }
    format!("/{}", kept.join("/"))
}

/// A text that somebody typed, as a URI has it: what is no ASCII, a space, or a character that no
/// URI holds is percent-encoded, and nothing that is encoded already is touched.
pub fn encoded(text: &str) -> Cow<'_, str> {
    let is_foreign = |byte: u8| !byte.is_ascii_graphic() || FOREIGN.as_bytes().contains(&byte);
    if !text.bytes().any(is_foreign) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 8);
    for byte in text.bytes() {
        if is_foreign(byte) {
            out.push_str(&format!("%{byte:02X}"));
        } else {
            out.push(char::from(byte));
        }
    }
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_normalised_only_where_meaning_stays() {
        for (sent, canonical) in [
            ("", "/"),
            ("/a/%7euser/%e4", "/a/~user/%E4"),
            ("/a%2fb//c/", "/a%2Fb//c/"),
            ("/api/./me", "/api/me"),
            ("/api/x/../me", "/api/me"),
            ("/api/x/%2e%2E/me", "/api/me"),
            ("/a/..", "/"),
            ("/a/b/.", "/a/b/"),
            ("/../../a", "/a"),
            ("/a/...", "/a/..."),
            ("/x/{id}|+!", "/x/{id}|+!"),
            ("/a%2e", "/a."),
        ] {
            assert_eq!(path(sent).unwrap(), canonical, "{sent}");
        }
        assert_eq!(path("/100%"), Err(NotCanonical::BrokenEscape));
        assert_eq!(path("/%zz"), Err(NotCanonical::BrokenEscape));
        assert_eq!(path("/café"), Err(NotCanonical::RawByte));
        assert_eq!(query("%61=1+2%2b&x=%c3%a9").unwrap(), "a=1+2%2B&x=%C3%A9");
        assert_eq!(query("q=100%"), Err(NotCanonical::BrokenEscape));
    }

    #[test]
    fn what_was_typed_becomes_a_uri() {
        assert_eq!(targets("/café?q=é"), ["/caf%C3%A9?q=%C3%A9"]);
        assert_eq!(targets("/x/{id}"), ["/x/{id}", "/x/%7Bid%7D"]);
        assert_eq!(targets("/a/../q?n='%41'"), ["/q?n='A'"]);
        let mixed = targets("/x/{i}?q={y}");
        assert!(mixed.contains(&"/x/%7Bi%7D?q={y}".to_owned()), "{mixed:?}");
        assert_eq!(targets("/%7Bi%7d"), ["/%7Bi%7D", "/{i}"]);
        assert!(targets("/100%").is_empty());
        assert_eq!(encoded("/café {x}"), "/caf%C3%A9%20%7Bx%7D");
        assert_eq!(encoded("/q?n='a'&b=%41"), "/q?n='a'&b=%41");
    }

    /// The slow reference: octet by octet, by the letter of RFC 3986 §5.2.4 and §6.2.2.
    fn reference(path: &str) -> Option<String> {
        let bytes = path.as_bytes();
        let mut text = String::new();
        let mut at = 0;
        while at < bytes.len() {
            if bytes[at] == b'%' {
                let value = u8::from_str_radix(path.get(at + 1..at + 3)?, 16).ok()?;
                if bytes[at + 1] == b'+' {
                    return None;
                }
                let letter = char::from(value);
                if letter.is_ascii_alphanumeric() || "-._~".contains(letter) {
                    text.push(letter);
                } else {
                    text.push_str(&format!("%{value:02X}"));
                }
                at += 3;
            } else {
                text.push(char::from(bytes[at]));
                at += 1;
            }
        }
        let (mut input, mut output) = (text, String::new());
        while !input.is_empty() {
            if input.starts_with("../") {
                input.drain(..3);
            } else if input.starts_with("./") || input.starts_with("/./") {
                input.drain(..2);
            } else if input == "/." {
                input = "/".to_owned();
            } else if input.starts_with("/../") || input == "/.." {
                input = match input.strip_prefix("/..") {
                    Some("") => "/".to_owned(),
                    Some(rest) => rest.to_owned(),
                    None => input,
                };
                output.truncate(output.rfind('/').unwrap_or(0));
            } else if input == "." || input == ".." {
                input.clear();
            } else {
                let end = input[1..].find('/').map_or(input.len(), |end| end + 1);
                output.push_str(&input[..end]);
                input.drain(..end);
            }
        }
        Some(output)
    }

    proptest::proptest! {
        #[test]
        fn the_canonical_path_is_that_of_the_rfc(path in "/([a-zA-Z./%;~_+-]|%[0-9a-fA-F]{2}|%2[eEfF]|\\.\\.|//){0,12}") {
            assert_eq!(super::path(&path).ok().map(Cow::into_owned), reference(&path), "{path}");
        }

        #[test]
        fn to_make_it_canonical_twice_changes_nothing(path in "/([a-z./]|%[0-9a-f]{2}){0,12}") {
            if let Ok(once) = super::path(&path) {
                assert_eq!(super::path(&once).as_deref(), Ok(&*once));
            }
        }

        /// No two targets share a key that an origin may tell apart: all that is changed are
        /// escapes of unreserved characters and dot segments, which mean the same (§6.2.2).
        #[test]
        fn what_an_origin_tells_apart_stays_apart(
            one in "/([ab/]|%2[fF]|%5[cC]|%3[bB]|;|\\+|%2[bB]){0,6}",
            other in "/([ab/]|%2[fF]|%5[cC]|%3[bB]|;|\\+|%2[bB]){0,6}",
        ) {
            let same = one.eq_ignore_ascii_case(&other);
            let (one, other) = (super::path(&one), super::path(&other));
            assert_eq!(one == other, same);
        }
    }

    #[test]
    fn fuzz_canonical() {
        crate::fuzz::run(include_str!("../../tests/fuzz/canonical.txt"), |input| {
            let text = String::from_utf8_lossy(input);
            let (before, after) = text.split_once('?').unwrap_or((&text, ""));
            if let Ok(once) = path(before) {
                assert_eq!(
                    path(&once).as_deref(),
                    Ok(&*once),
                    "one spelling, and no other"
                );
                assert!(!has_dot_segment(&once), "{once}");
            }
            if let Ok(once) = query(after) {
                assert_eq!(query(&once).as_deref(), Ok(&*once));
            }
            targets(&text);
            prefixes(&text);
            encoded(&text);
        });
    }
}
