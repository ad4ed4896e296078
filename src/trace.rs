//! What follows one request through several systems: its id, its place in a trace (W3C Trace
//! Context), and what its steps note of it here.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use http::{HeaderMap, HeaderName, HeaderValue};

pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
pub const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// What took a request's time.
#[derive(Clone, Copy, Debug)]
pub enum Span {
    /// Limits and keys that somebody had to be asked about.
    Guard,
    LookUp,
    SecondTier,
    Upstream,
}

/// What the steps of one request note of it, wherever they run.
#[derive(Debug, Default)]
pub struct Observed {
    /// Microseconds, by [`Span`].
    spans: [AtomicU64; 4],
    pub request_id: OnceLock<HeaderValue>,
    pub traceparent: OnceLock<HeaderValue>,
}

impl Observed {
    /// Adds what has passed since `began`.
    pub fn took(&self, span: Span, began: Instant) {
        let micros = began.elapsed().as_micros() as u64;
        self.spans[span as usize].fetch_add(micros, Ordering::Relaxed);
    }

    pub fn span(&self, span: Span) -> Duration {
        Duration::from_micros(self.spans[span as usize].load(Ordering::Relaxed))
    }
}

/// Gives a request that goes on an id where it has none, and, where `starts`, a trace: one that
/// cannot be read is begun anew, without what was said of it (Trace Context §4.2). `observed` hears
/// of them.
pub fn keep_or_start(headers: &mut HeaderMap, starts: bool, observed: Option<&Observed>) {
    let once = |slot: Option<&OnceLock<HeaderValue>>, make: &dyn Fn() -> HeaderValue| match slot {
        // The same request may be sent more than once.
        Some(slot) => slot.get_or_init(make).clone(),
        None => make(),
    };
    if !headers.contains_key(&REQUEST_ID) {
        let id = || {
            let text = uuid::Uuid::new_v4().to_string();
            HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static("-"))
        };
        let id = once(observed.map(|observed| &observed.request_id), &id);
        headers.insert(REQUEST_ID, id);
    }
    let mut given = headers.get_all(&TRACEPARENT).iter();
    let is_one = given.next().is_some_and(is_traceparent) && given.next().is_none();
    if !starts || is_one {
        return;
    }
    headers.remove(&TRACESTATE);
    let fresh = once(
        observed.map(|observed| &observed.traceparent),
        &new_traceparent,
    );
    headers.insert(TRACEPARENT, fresh);
}

/// Whether a value is one of the format (§3.2): of a later version what this one knows of it.
fn is_traceparent(value: &HeaderValue) -> bool {
    let bytes = value.as_bytes();
    let is_hex = |part: &[u8]| {
        part.iter()
            .all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(byte))
    };
    let is_set = |part: &[u8]| is_hex(part) && part.iter().any(|byte| *byte != b'0');
    let (Some(version), Some(trace), Some(parent), Some(flags)) = (
        bytes.get(..2),
        bytes.get(3..35),
        bytes.get(36..52),
        bytes.get(53..55),
    ) else {
        return false;
    };
    let dashes = [2, 35, 52].iter().all(|at| bytes[*at] == b'-');
    let ends = match version {
        b"00" => bytes.len() == 55,
        _ => bytes.len() == 55 || bytes[55] == b'-',
    };
    is_hex(version)
        && version != b"ff"
        && is_set(trace)
        && is_set(parent)
        && is_hex(flags)
        && dashes
        && ends
}

/// A trace that begins here, and is to be recorded.
fn new_traceparent() -> HeaderValue {
    let trace = uuid::Uuid::new_v4().simple();
    let parent = uuid::Uuid::new_v4().as_u64_pair().1;
    HeaderValue::try_from(format!("00-{trace}-{parent:016x}-01"))
        .unwrap_or(HeaderValue::from_static("-"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(given: &[&'static str], starts: bool) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for value in given {
            headers.append(TRACEPARENT, HeaderValue::from_static(value));
        }
        headers.insert(TRACESTATE, HeaderValue::from_static("a=1"));
        keep_or_start(&mut headers, starts, None);
        headers
    }

    #[test]
    fn a_trace_is_passed_on_and_one_that_is_none_begun_anew() {
        const GOOD: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        const LATER: &str = "cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more";
        for good in [GOOD, LATER] {
            let headers = kept(&[good], true);
            assert_eq!(headers[&TRACEPARENT], good);
            assert!(headers.contains_key(&TRACESTATE));
        }
        for bad in [
            "",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00_4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        ] {
            let headers = kept(&[bad], true);
            assert_ne!(headers[&TRACEPARENT], bad);
            assert!(is_traceparent(&headers[&TRACEPARENT]), "{headers:?}");
            assert!(!headers.contains_key(&TRACESTATE), "{bad}");
        }
        assert_eq!(
            kept(&[GOOD, GOOD], true)
                .get_all(&TRACEPARENT)
                .iter()
                .count(),
            1
        );
        let passed = kept(&[], false);
        assert!(!passed.contains_key(&TRACEPARENT) && passed.contains_key(&REQUEST_ID));
    }

    #[test]
    fn what_is_sent_again_is_the_same_request() {
        let observed = Observed::default();
        let ids = || {
            let mut headers = HeaderMap::new();
            keep_or_start(&mut headers, true, Some(&observed));
            (headers[&REQUEST_ID].clone(), headers[&TRACEPARENT].clone())
        };
        assert_eq!(ids(), ids());
    }
}
