//! Ranges: which bytes of a whole representation a request wants (RFC 9110 §14), and which bytes
//! of one a partial response brings (RFC 9111 §3.3–3.4).

use http::header::{CONTENT_RANGE, DATE, ETAG, IF_RANGE, LAST_MODIFIED, RANGE};
use http::{HeaderMap, HeaderValue};
use std::time::Duration;

use crate::http::{EntityTag, dates, fields};

/// More ranges than this in one request are ignored (§14.2: small ones in great number are an
/// attack).
const MOST_RANGES: usize = 64;

/// Bytes of a representation, from `first` to `last`, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span {
    pub first: u64,
    pub last: u64,
}

impl Span {
    /// In bytes; at least 1.
    pub fn size(self) -> u64 {
        self.last - self.first + 1
    }

    pub fn contains(self, other: Self) -> bool {
        self.first <= other.first && other.last <= self.last
    }

    /// Whether both together are one span without a gap.
    pub fn touches(self, other: Self) -> bool {
        self.first <= other.last.saturating_add(1) && other.first <= self.last.saturating_add(1)
    }

    /// What of `self` is missing in `known`, where that is one span that touches it.
    pub fn beyond(self, known: Self) -> Option<Self> {
        match (self.first < known.first, self.last > known.last) {
            _ if !self.touches(known) => None,
            (false, true) => Some(Self {
                first: known.last + 1,
                ..self
            }),
            (true, false) => Some(Self {
                last: known.first - 1,
                ..self
            }),
            _ => None,
        }
    }
}

/// One wish of a `Range` field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wish {
    From { first: u64, last: u64 },
    Last(u64),
}

impl Wish {
    fn parse(text: &[u8]) -> Option<Self> {
        let dash = text.iter().position(|byte| *byte == b'-')?;
        let (first, last) = (text[..dash].trim_ascii(), text[dash + 1..].trim_ascii());
        match (first.is_empty(), last.is_empty()) {
            (true, false) => Some(Self::Last(position(last)?)),
            (false, true) => Some(Self::From {
                first: position(first)?,
                last: u64::MAX,
            }),
            (false, false) => {
                let (first, last) = (position(first)?, position(last)?);
                (first <= last).then_some(Self::From { first, last })
            }
            (true, true) => None,
        }
    }

    /// The bytes that it means of a representation; `None` where there are none.
    fn of(self, length: u64) -> Option<Span> {
        let end = length.checked_sub(1)?;
        match self {
            Self::From { first, last } => (first <= end).then(|| Span {
                first,
                last: last.min(end),
            }),
            Self::Last(0) => None,
            Self::Last(count) => Some(Span {
                first: length.saturating_sub(count),
                last: end,
            }),
        }
    }
}

/// Digits as a number; one too large for us is as good as the largest.
fn position(digits: &[u8]) -> Option<u64> {
    let all = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
    let text = std::str::from_utf8(digits).ok().filter(|_| all)?;
    Some(text.parse().unwrap_or(u64::MAX))
}

/// The unit and the set of a `Range` field; `None` where there is none, or it is broken.
fn unit_and_set(request: &HeaderMap) -> Option<(&[u8], &[u8])> {
    let value = fields::single(request, &RANGE).ok()??.as_bytes();
    let equals = value.iter().position(|byte| *byte == b'=')?;
    Some((value[..equals].trim_ascii(), &value[equals + 1..]))
}

/// Whether the request asks for ranges in a unit that is not ours to understand (§14.1).
pub fn is_foreign(request: &HeaderMap) -> bool {
    unit_and_set(request).is_some_and(|(unit, _)| !unit.eq_ignore_ascii_case(b"bytes"))
}

/// The wishes of a `Range` field; `None` where it is to be ignored (§14.2).
fn wishes(request: &HeaderMap) -> Option<Vec<Wish>> {
    let (unit, set) = unit_and_set(request)?;
    if !unit.eq_ignore_ascii_case(b"bytes") {
        return None;
    }
    let wishes: Vec<Wish> = fields::split_list(set)
        .map(Wish::parse)
        .collect::<Option<_>>()?;
    (1..=MOST_RANGES).contains(&wishes.len()).then_some(wishes)
}

/// Whether the request asks for a part that we can make.
pub fn is_wanted(request: &HeaderMap) -> bool {
    request.contains_key(RANGE) && wishes(request).is_some()
}

/// Whether the request asks for exactly one range.
pub fn is_single(request: &HeaderMap) -> bool {
    wishes(request).is_some_and(|wishes| wishes.len() == 1)
}

/// What a request gets of a representation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selected {
    /// Nothing was asked, or its condition does not hold.
    Whole,
    /// At least one; in the order asked for, unless some overlapped and were put together.
    Parts(Vec<Span>),
    /// None of the ranges is in it: 416 (§15.5.17).
    Unsatisfiable,
}

/// What a GET gets of the representation that `stored` describes, `length` bytes long.
pub fn select(request: &HeaderMap, stored: &HeaderMap, length: u64) -> Selected {
    // Nothing of an empty representation can be described by Content-Range.
    let Some(wishes) = wishes(request).filter(|_| length > 0) else {
        return Selected::Whole;
    };
    if !condition_holds(request, stored) {
        return Selected::Whole;
    }
    let spans = wishes.into_iter().filter_map(|wish| wish.of(length));
    let spans: Vec<Span> = spans.collect();
    if spans.is_empty() {
        return Selected::Unsatisfiable;
    }
    Selected::Parts(without_overlaps(spans))
}

/// §14.2, §15.3.7.2: overlapping ranges are put together; others stay in the order asked for.
fn without_overlaps(spans: Vec<Span>) -> Vec<Span> {
    let mut sorted = spans.clone();
    sorted.sort_unstable();
    let overlap = |pair: &[Span]| pair[1].first <= pair[0].last;
    if !sorted.windows(2).any(overlap) {
        return spans;
    }
    let mut merged: Vec<Span> = Vec::with_capacity(sorted.len());
    for span in sorted {
        match merged.last_mut() {
            Some(before) if span.first <= before.last => before.last = before.last.max(span.last),
            _ => merged.push(span),
        }
    }
    merged
}

/// `If-Range` (§13.1.5): the part is only of use to a client that has the rest of this very
/// representation. Without the field it holds.
fn condition_holds(request: &HeaderMap, stored: &HeaderMap) -> bool {
    let Ok(condition) = fields::single(request, &IF_RANGE) else {
        return false;
    };
    let Some(condition) = condition else {
        return true;
    };
    if let Some(theirs) = EntityTag::parse(condition.as_bytes()) {
        return strong_tag(stored).is_some_and(|own| own.strong_eq(theirs));
    }
    let (Some(theirs), Some(modified)) = (
        dates::parse(condition),
        stored.get(LAST_MODIFIED).and_then(dates::parse),
    ) else {
        return false;
    };
    // A date is a strong validator only where it is older than the response by a second
    // (§8.8.2.2).
    let date = stored.get(DATE).and_then(dates::parse);
    let is_strong = date.is_some_and(|date| date.since(modified) >= Duration::from_secs(1));
    is_strong && theirs == modified
}

/// The entity tag of a response, if it is a strong one.
pub fn strong_tag(response: &HeaderMap) -> Option<EntityTag<'_>> {
    let tag = EntityTag::parse(response.get(ETAG)?.as_bytes())?;
    (!tag.is_weak()).then_some(tag)
}

/// `Content-Range` of a span of a representation (§14.4).
pub fn content_range(span: Span, length: u64) -> HeaderValue {
    let text = format!("bytes {}-{}/{length}", span.first, span.last);
    HeaderValue::try_from(text).unwrap_or_else(|_| HeaderValue::from_static("bytes */*"))
}

/// `Content-Range` of a 416 (§14.4).
pub fn unsatisfied_range(length: u64) -> HeaderValue {
    HeaderValue::try_from(format!("bytes */{length}"))
        .unwrap_or_else(|_| HeaderValue::from_static("bytes */*"))
}

/// What a 206 brings: one span, and how long the whole is. `None` for several parts, for a length
/// that is not told, and for nonsense.
pub fn part_of(response: &HeaderMap) -> Option<(Span, u64)> {
    let value = fields::single(response, &CONTENT_RANGE).ok()??;
    let text = value.to_str().ok()?;
    let (unit, rest) = text.split_once(' ')?;
    let (range, length) = rest.trim().split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let number = |text: &str| position(text.as_bytes());
    let (first, last, length) = (number(first)?, number(last)?, number(length)?);
    let is_sound = unit.eq_ignore_ascii_case("bytes") && first <= last && last < length;
    is_sound.then_some((Span { first, last }, length))
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderName;

    fn map(lines: &[(&'static str, &str)]) -> HeaderMap {
        let line = |(name, value): &(&'static str, &str)| {
            let value = HeaderValue::from_str(value).unwrap();
            (HeaderName::from_static(name), value)
        };
        lines.iter().map(line).collect()
    }

    fn spans(list: &[(u64, u64)]) -> Selected {
        let span = |(first, last): &(u64, u64)| Span {
            first: *first,
            last: *last,
        };
        Selected::Parts(list.iter().map(span).collect())
    }

    #[test]
    fn ranges_are_read_as_rfc_9110_writes_them() {
        let ask = |range: &str| select(&map(&[("range", range)]), &HeaderMap::new(), 10);
        assert_eq!(ask("bytes=0-4"), spans(&[(0, 4)]));
        assert_eq!(ask("Bytes=4-"), spans(&[(4, 9)]));
        assert_eq!(ask("bytes=-3"), spans(&[(7, 9)]));
        assert_eq!(ask("bytes=-30"), spans(&[(0, 9)]));
        assert_eq!(ask("bytes=5-99999999999999999999999"), spans(&[(5, 9)]));
        assert_eq!(ask("bytes=8-9, 0-1"), spans(&[(8, 9), (0, 1)]));
        assert_eq!(ask("bytes= , 0-1 ,, 4-5"), spans(&[(0, 1), (4, 5)]));
        assert_eq!(ask("bytes=4-8,0-5,9-9"), spans(&[(0, 8), (9, 9)]));
        assert_eq!(ask("bytes=0-1,20-"), spans(&[(0, 1)]));
        assert_eq!(ask("bytes=10-"), Selected::Unsatisfiable);
        assert_eq!(ask("bytes=-0"), Selected::Unsatisfiable);
        for broken in [
            "bytes=",
            "bytes=4-2",
            "bytes=a-",
            "bytes=0-1,x",
            "bytes",
            "lines=0-1",
            "bytes=-",
            "bytes=--1",
            "bytes=0 -1x",
        ] {
            assert_eq!(ask(broken), Selected::Whole, "{broken}");
        }
        let many = vec!["0-0"; 65].join(",");
        assert_eq!(ask(&format!("bytes={many}")), Selected::Whole);
        let empty = select(&map(&[("range", "bytes=0-")]), &HeaderMap::new(), 0);
        assert_eq!(empty, Selected::Whole);
        let twice = map(&[("range", "bytes=0-1"), ("range", "bytes=0-1")]);
        assert_eq!(select(&twice, &HeaderMap::new(), 10), Selected::Whole);
    }

    #[test]
    fn if_range_compares_strongly() {
        const MODIFIED: &str = "Sun, 06 Nov 1994 08:49:37 GMT";
        const LATER: &str = "Sun, 06 Nov 1994 08:49:38 GMT";
        let holds = |condition: &str, stored: &[(&'static str, &str)]| {
            let request = map(&[("range", "bytes=0-1"), ("if-range", condition)]);
            select(&request, &map(stored), 10) != Selected::Whole
        };
        assert!(holds("\"a\"", &[("etag", "\"a\"")]));
        assert!(!holds("\"b\"", &[("etag", "\"a\"")]));
        assert!(!holds("W/\"a\"", &[("etag", "W/\"a\"")]));
        assert!(!holds("\"a\"", &[("etag", "W/\"a\"")]));
        assert!(!holds("\"a\"", &[]));
        let dated = [("last-modified", MODIFIED), ("date", LATER)];
        assert!(holds(MODIFIED, &dated));
        // Exact, not "not modified since".
        assert!(!holds(LATER, &dated));
        assert!(!holds(
            MODIFIED,
            &[("last-modified", MODIFIED), ("date", MODIFIED)]
        ));
        assert!(!holds("nonsense", &dated));
    }

    #[test]
    fn content_range_is_written_and_read() {
        let span = Span { first: 2, last: 5 };
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_RANGE, content_range(span, 10));
        assert_eq!(headers[CONTENT_RANGE], "bytes 2-5/10");
        assert_eq!(part_of(&headers), Some((span, 10)));
        assert_eq!(unsatisfied_range(10), "bytes */10");
        for broken in [
            "bytes 2-5/*",
            "bytes */10",
            "bytes 5-2/10",
            "bytes 2-10/10",
            "b 0-1/9",
            "",
        ] {
            assert_eq!(
                part_of(&map(&[("content-range", broken)])),
                None,
                "{broken}"
            );
        }
    }

    #[test]
    fn what_is_missing_of_a_span_is_one_span_or_not_asked_for() {
        let span = |first, last| Span { first, last };
        let known = span(10, 19);
        assert_eq!(span(15, 29).beyond(known), Some(span(20, 29)));
        assert_eq!(span(20, 29).beyond(known), Some(span(20, 29)));
        assert_eq!(span(0, 12).beyond(known), Some(span(0, 9)));
        assert_eq!(span(21, 29).beyond(known), None);
        assert_eq!(span(0, 29).beyond(known), None);
        assert_eq!(span(12, 13).beyond(known), None);
    }

    proptest::proptest! {
        #[test]
        fn every_part_lies_inside_and_none_overlap(text in "bytes=[0-9, -]{0,40}", length in 1_u64..50) {
            let request = map(&[("range", &text)]);
            if let Selected::Parts(parts) = select(&request, &HeaderMap::new(), length) {
                let mut sorted = parts.clone();
                sorted.sort_unstable();
                assert!(!parts.is_empty() && parts.iter().all(|part| part.last < length));
                assert!(sorted.windows(2).all(|pair| pair[0].last < pair[1].first));
            }
        }

        #[test]
        fn reading_a_range_never_panics(text in "[ -~]*") {
            select(&map(&[("range", &text)]), &HeaderMap::new(), 10);
            part_of(&map(&[("content-range", &text)]));
        }
    }

    #[test]
    fn fuzz_range() {
        crate::fuzz::run(include_str!("../../tests/fuzz/range.txt"), |input| {
            let headers = crate::fuzz::fields(input);
            for length in [0, 1, 10, u64::MAX] {
                if let Selected::Parts(parts) = select(&headers, &headers, length) {
                    assert!(!parts.is_empty());
                    for (at, part) in parts.iter().enumerate() {
                        assert!(part.first <= part.last && part.last < length);
                        // No byte is sent twice.
                        let others = &parts[at + 1..];
                        let overlaps =
                            |other: &Span| part.first <= other.last && other.first <= part.last;
                        assert!(!others.iter().any(overlaps));
                    }
                }
            }
            if let Some((span, length)) = part_of(&headers) {
                assert!(span.first <= span.last && span.last < length);
            }
            is_single(&headers);
            is_foreign(&headers);
        });
    }
}
