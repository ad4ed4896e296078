//! What a 304 changes in the response that it confirms (RFC 9111 §3.2, §4.3.4).

use http::HeaderMap;
use http::header::{
    CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, ETAG, HeaderName, LAST_MODIFIED,
};

use crate::http::{EntityTag, dates, fields};

/// Whether a 304 is about the response that we asked to have confirmed (§4.3.4): by the validator
/// that it brings, the strongest it has. One that brings none can only mean that one. With
/// `is_weak_enough` tags that differ in strength alone are the same: against the RFC, by the word
/// of an operator whose origin compresses what it tagged.
pub fn selects(stored: &HeaderMap, update: &HeaderMap, is_weak_enough: bool) -> bool {
    let tag = |headers: &HeaderMap| headers.get(ETAG).map(|value| value.as_bytes().to_owned());
    match (tag(update), tag(stored)) {
        (Some(new), Some(old)) => match (EntityTag::parse(&new), EntityTag::parse(&old)) {
            (Some(new), Some(old)) if new.is_weak() || is_weak_enough => new.weak_eq(old),
            (Some(new), Some(old)) => new.strong_eq(old),
            _ => new == old,
        },
        (Some(_), None) => false,
        (None, _) => match (update.get(LAST_MODIFIED), stored.get(LAST_MODIFIED)) {
            (Some(new), Some(old)) => dates::parse(new) == dates::parse(old),
            (Some(_), None) => false,
            (None, _) => true,
        },
    }
}

/// Whether a 304 about `stored` will name it by a tag of another strength, so that it cannot be
/// used (§4.3.4): `answer` did.
pub fn differs_in_strength(stored: &HeaderMap, answer: &HeaderMap) -> bool {
    let (Some(old), Some(new)) = (stored.get(ETAG), answer.get(ETAG)) else {
        return false;
    };
    match (
        EntityTag::parse(old.as_bytes()),
        EntityTag::parse(new.as_bytes()),
    ) {
        (Some(old), Some(new)) => old.is_weak() && !new.is_weak() && new.weak_eq(old),
        _ => false,
    }
}

/// Whether an answer names what it is about.
pub fn has_validator(answer: &HeaderMap) -> bool {
    answer.contains_key(ETAG) || answer.contains_key(LAST_MODIFIED)
}

/// Whether a HEAD's 200 is about the same representation as a stored response to GET (§4.3.5).
pub fn describes(stored: &HeaderMap, head: &HeaderMap) -> bool {
    let same = |name: HeaderName| match head.get(&name) {
        Some(new) => stored.get(&name) == Some(new),
        None => true,
    };
    [ETAG, LAST_MODIFIED, CONTENT_LENGTH].into_iter().all(same)
}

/// Replaces the stored fields by those of the 304, but for the ones that describe the body that
/// we hold and the 304 did not bring.
pub fn merge(stored: &mut HeaderMap, update: &HeaderMap) {
    for name in update.keys().filter(|name| updates(name)) {
        stored.remove(name);
        for value in update.get_all(name) {
            stored.append(name.clone(), value.clone());
        }
    }
}

fn updates(name: &HeaderName) -> bool {
    let of_the_body = [CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE];
    // A digest of the content is one of this message's, which has none (RFC 9530 §2).
    let is_of_the_body = of_the_body.contains(name) || fields::DIGESTS_OF_CONTENT.contains(name);
    !is_of_the_body && !fields::is_hop_by_hop(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    fn map(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        let line = |(name, value): &(&'static str, &'static str)| {
            (
                HeaderName::from_static(name),
                HeaderValue::from_static(value),
            )
        };
        lines.iter().map(line).collect()
    }

    #[test]
    fn a_304_selects_by_its_own_strongest_validator() {
        const ONE: &str = "Sun, 06 Nov 1994 08:49:37 GMT";
        const OTHER: &str = "Sun, 06 Nov 1994 08:49:38 GMT";
        let strong = [("etag", "\"a\""), ("last-modified", ONE)];
        let weak = [("etag", "W/\"a\""), ("last-modified", ONE)];
        let dated = [("last-modified", ONE)];
        let is = |stored: &[(&'static str, &'static str)],
                  update: &[(&'static str, &'static str)]| {
            selects(&map(stored), &map(update), false)
        };
        assert!(is(&strong, &[("etag", "\"a\"")]));
        assert!(!is(&strong, &[("etag", "\"b\"")]));
        assert!(is(&strong, &[("etag", "W/\"a\"")]));
        assert!(is(&weak, &[("etag", "W/\"a\"")]));
        assert!(!is(&weak, &[("etag", "\"a\"")]));
        assert!(!is(&dated, &[("etag", "\"a\"")]));
        assert!(is(&dated, &dated));
        assert!(!is(&dated, &[("last-modified", OTHER)]));
        assert!(is(&strong, &[]));
        let tagged = map(&[("etag", "\"a\"")]);
        assert!(selects(&map(&weak), &tagged, true));
        assert!(!selects(&map(&weak), &map(&[("etag", "\"b\"")]), true));
    }

    #[test]
    fn a_head_is_about_the_stored_response_where_nothing_says_otherwise() {
        let stored = map(&[("etag", "\"a\""), ("content-length", "5")]);
        assert!(describes(&stored, &map(&[("etag", "\"a\"")])));
        assert!(describes(&stored, &map(&[])));
        assert!(!describes(&stored, &map(&[("etag", "\"b\"")])));
        assert!(!describes(&stored, &map(&[("content-length", "6")])));
        let dated = map(&[("last-modified", "Sun, 06 Nov 1994 08:49:37 GMT")]);
        assert!(!describes(&stored, &dated));
    }

    #[test]
    fn new_fields_replace_old_ones_but_never_describe_another_body() {
        let value = HeaderValue::from_static;
        let mut stored = HeaderMap::new();
        stored.insert("content-length", value("5"));
        stored.insert("cache-control", value("max-age=1"));
        stored.insert("x-kept", value("1"));
        stored.insert("content-digest", value("sha-256=:b25l:"));
        let mut update = HeaderMap::new();
        update.insert("content-length", value("0"));
        update.insert("content-digest", value("sha-256=:bm9uZQ==:"));
        update.insert("repr-digest", value("sha-256=:YWxs:"));
        update.insert("cache-control", value("max-age=9"));
        update.append("x-new", value("a"));
        update.append("x-new", value("b"));
        merge(&mut stored, &update);
        assert_eq!(stored["content-length"], "5");
        assert_eq!(stored["cache-control"], "max-age=9");
        assert_eq!(stored["x-kept"], "1");
        assert_eq!(stored["content-digest"], "sha-256=:b25l:");
        assert_eq!(stored["repr-digest"], "sha-256=:YWxs:");
        assert_eq!(stored.get_all("x-new").iter().count(), 2);
    }
}
