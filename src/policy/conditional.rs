//! Conditional requests of clients against a stored response (RFC 9110 §13, RFC 9111 §4.3.2).

use http::header::{DATE, ETAG, IF_MODIFIED_SINCE, IF_NONE_MATCH, LAST_MODIFIED};
use http::{HeaderMap, HeaderName};

use crate::http::{EntityTag, dates, fields};

/// Whether the client already has what `stored` describes: answer 304 instead of the body.
///
/// `If-None-Match` decides alone where it is present (§13.2.2); comparison is weak (§13.1.2).
/// `Date` stands in for a missing `Last-Modified` of what is stored, and of nothing else (RFC 9111
/// §4.3.2).
pub fn is_not_modified(request: &HeaderMap, response: &HeaderMap, is_stored: bool) -> bool {
    if request.contains_key(IF_NONE_MATCH) {
        let own = response
            .get(ETAG)
            .and_then(|tag| EntityTag::parse(tag.as_bytes()));
        return fields::members(request, IF_NONE_MATCH).any(|member| {
            member == b"*"
                || match (own, EntityTag::parse(member)) {
                    (Some(own), Some(theirs)) => own.weak_eq(theirs),
                    _ => false,
                }
        });
    }
    // A repeated or broken If-Modified-Since is ignored (§13.1.3).
    let Ok(Some(since)) = fields::single(request, &IF_MODIFIED_SINCE) else {
        return false;
    };
    let date = || response.get(DATE).filter(|_| is_stored);
    let modified = response.get(LAST_MODIFIED).or_else(date);
    match (dates::parse(since), modified.and_then(dates::parse)) {
        (Some(since), Some(modified)) => modified <= since,
        _ => false,
    }
}

/// Whether a request asks a question that a stored response can answer with 304.
pub fn is_conditional(request: &HeaderMap) -> bool {
    request.contains_key(IF_NONE_MATCH) || request.contains_key(IF_MODIFIED_SINCE)
}

/// Leaves the fields of a 304 (RFC 9110 §15.4.5): those that a cache or client needs to update what
/// it has; `Last-Modified` where there is no entity tag to know it by.
pub fn keep_for_304(headers: &mut HeaderMap) {
    let has_tag = headers.contains_key(ETAG);
    let dropped: Vec<HeaderName> = headers
        .keys()
        .filter(|name| !belongs_in_304(name) && (has_tag || **name != LAST_MODIFIED))
        .cloned()
        .collect();
    for name in dropped {
        headers.remove(name);
    }
}

fn belongs_in_304(name: &HeaderName) -> bool {
    use http::header;
    !matches!(
        *name,
        header::CONTENT_LENGTH
            | header::CONTENT_TYPE
            | header::CONTENT_ENCODING
            | header::CONTENT_LANGUAGE
            | header::CONTENT_RANGE
            | header::LAST_MODIFIED
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    fn map(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        lines
            .iter()
            .map(|(name, value)| {
                (
                    HeaderName::from_static(name),
                    HeaderValue::from_static(value),
                )
            })
            .collect()
    }

    const EARLY: &str = "Sun, 06 Nov 1994 08:49:37 GMT";
    const LATE: &str = "Mon, 07 Nov 1994 08:49:37 GMT";

    #[test]
    fn the_preconditions_are_taken_in_their_order() {
        let stored = map(&[("etag", "\"a\""), ("last-modified", EARLY)]);
        let table: &[(&[(&str, &str)], bool)] = &[
            (&[("if-none-match", "W/\"a\"")], true),
            (&[("if-none-match", "\"b\", \"a\"")], true),
            (&[("if-none-match", "*")], true),
            (
                &[("if-none-match", "\"b\""), ("if-modified-since", LATE)],
                false,
            ),
            (&[("if-modified-since", EARLY)], true),
            (&[("if-modified-since", "yesterday")], false),
            (&[], false),
        ];
        for (request, expected) in table {
            let request = request
                .iter()
                .map(|(name, value)| {
                    let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
                    (name, HeaderValue::from_str(value).unwrap())
                })
                .collect();
            assert_eq!(
                is_not_modified(&request, &stored, true),
                *expected,
                "{request:?}"
            );
        }
    }

    #[test]
    fn date_stands_in_for_a_missing_last_modified() {
        let (request, response) = (map(&[("if-modified-since", LATE)]), map(&[("date", EARLY)]));
        assert!(is_not_modified(&request, &response, true));
        assert!(!is_not_modified(&request, &response, false));
    }

    #[test]
    fn fuzz_etags() {
        crate::fuzz::run(include_str!("../../tests/fuzz/etags.txt"), |input| {
            let headers = crate::fuzz::fields(input);
            let is_not_modified = is_not_modified(&headers, &headers, true);
            assert!(is_conditional(&headers) || !is_not_modified);
            let mut kept = headers.clone();
            keep_for_304(&mut kept);
            assert!(kept.len() <= headers.len());
        });
    }
}
