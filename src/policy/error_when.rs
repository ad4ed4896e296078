//! Bodies that say "failure" under a status that says "success": some origins answer 200 with zeros
//! when their tables are down.

use http::header::CONTENT_TYPE;
use http::{HeaderMap, StatusCode};
use serde_json::Value;

/// A 2xx whose JSON body has `equals` at `pointer` (RFC 6901) counts as the origin's failure.
#[derive(Clone, Debug, PartialEq)]
pub struct ErrorWhen {
    pub pointer: String,
    pub equals: Value,
}

impl ErrorWhen {
    /// Bodies over this are not looked into.
    pub const LIMIT: u64 = 256 << 10;

    /// Whether a response is one to look into: a JSON 2xx. A stream of events, say, never ends.
    pub fn concerns(&self, status: StatusCode, headers: &HeaderMap) -> bool {
        let media_type = headers
            .get(CONTENT_TYPE)
            .and_then(|value| value.to_str().ok());
        let media_type = media_type
            .and_then(|text| text.split(';').next())
            .unwrap_or_default();
        let media_type = media_type.trim().to_ascii_lowercase();
        status.is_success() && (media_type == "application/json" || media_type.ends_with("+json"))
    }

    /// Whether this body means a failure. What is no JSON does not.
    pub fn matches(&self, body: &[u8]) -> bool {
        let Ok(body) = serde_json::from_slice::<Value>(body) else {
            return false;
        };
        body.pointer(&self.pointer)
            .is_some_and(|found| is_equal(found, &self.equals))
    }
}

/// 0 and 0.0 are the same number.
fn is_equal(one: &Value, other: &Value) -> bool {
    match (one.as_f64(), other.as_f64()) {
        (Some(one), Some(other)) => one == other,
        _ => one == other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_the_named_value_at_the_named_place_is_a_failure() {
        let rule = ErrorWhen {
            pointer: "/metrics/total".to_owned(),
            equals: json!(0),
        };
        assert!(rule.matches(br#"{"metrics": {"total": 0}}"#));
        assert!(rule.matches(br#"{"metrics": {"total": 0.0}}"#));
        for body in [
            r#"{"metrics": {"total": 1}}"#,
            r#"{"metrics": {}}"#,
            r#"{"metrics": {"total": "0"}}"#,
            "<html>",
            "",
        ] {
            assert!(!rule.matches(body.as_bytes()), "{body}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_body_makes_it_panic(body: Vec<u8>) {
            ErrorWhen { pointer: "/a".to_owned(), equals: json!(null) }.matches(&body);
        }
    }
}
