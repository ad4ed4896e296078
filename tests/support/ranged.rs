//! What the tests of ranges and of parts share.

use super::origin::{Reply, Seen, ok, reply};
use super::{Fixture, Received};

pub const FRESH: (&str, &str) = ("cache-control", "max-age=60");
pub const TAG: (&str, &str) = ("etag", "\"v1\"");
pub const TYPE: (&str, &str) = ("content-type", "text/plain");
pub const BODY: &str = "0123456789abcdefghij";

pub fn range_of(seen: &Seen) -> Option<(usize, usize)> {
    let (first, last) = seen
        .header("range")?
        .strip_prefix("bytes=")?
        .split_once('-')?;
    Some((first.parse().ok()?, last.parse().ok()?))
}

/// An origin that does ranges of `body` by itself.
pub fn ranged(seen: &Seen, body: &str, fields: &[(&str, &str)]) -> Reply {
    let tag = fields
        .iter()
        .find(|(name, _)| *name == "etag")
        .map(|(_, tag)| *tag);
    let holds = seen.header("if-range").is_none() || seen.header("if-range") == tag;
    match range_of(seen) {
        Some((first, last)) if holds => {
            let last = last.min(body.len() - 1);
            let content_range = format!("bytes {first}-{last}/{}", body.len());
            let mut fields = fields.to_vec();
            fields.push(("content-range", &content_range));
            reply(206, &body[first..=last], &fields)
        }
        _ => ok(body, fields),
    }
}

pub async fn ask(fixture: &Fixture, range: &str) -> Received {
    fixture.get_with("/a", &[("range", range)]).await
}

pub fn content_range(received: &Received) -> &str {
    received.header("content-range").unwrap_or("none")
}

pub fn large() -> String {
    let digits = (0..1000).map(|number| format!("{number:04}"));
    digits.collect()
}
