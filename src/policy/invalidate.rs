//! What a write makes of stored responses (RFC 9111 §4.4).

use http::header::{CONTENT_LOCATION, LOCATION};
use http::{HeaderMap, Method, StatusCode};
use strum::{EnumString, IntoStaticStr, VariantArray};
use url::{Position, Url};

use super::canonical;

/// Whether a purged response is gone or stale.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, EnumString, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum Mode {
    /// Never used again.
    #[default]
    Hard,
    /// Stale from this moment on: its windows of grace begin.
    Soft,
}

/// What the operator wants a write to do to the groups that it changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumString)]
#[strum(serialize_all = "snake_case")]
pub enum Invalidation {
    Hard,
    Soft,
    /// Hard, so that whoever reads next sees it; soft while a group is written faster than it can
    /// be fetched again.
    Adaptive,
}

impl Mode {
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

/// Whether a method is known to change nothing: those of RFC 9110 §9.2.1, and those that IANA's
/// registry of methods calls safe. Of every other the safety is unknown.
pub fn is_safe(method: &Method) -> bool {
    let safe = ["PROPFIND", "REPORT", "SEARCH", "QUERY", "PRI"];
    method.is_safe() || safe.contains(&method.as_str())
}

/// Whether a write with this answer has changed what it names: it was not refused (§4.4), or nobody
/// can know, a gateway behind us least of all.
pub fn has_changed(status: StatusCode) -> bool {
    let is_unknown = matches!(
        status,
        StatusCode::BAD_GATEWAY | StatusCode::GATEWAY_TIMEOUT | StatusCode::SWITCHING_PROTOCOLS
    );
    status.is_success() || status.is_redirection() || is_unknown
}

/// The other URIs that a write to `target` has changed: what its answer says in `Location` and
/// `Content-Location`, where that is of the same origin (§4.4 forbids any other). Each as path and
/// query, in the letters of the origin where it wrote them.
pub fn also_changed(target: &Url, response: &HeaderMap) -> Vec<String> {
    let named = [LOCATION, CONTENT_LOCATION];
    let named = named.iter().filter_map(|name| response.get(name));
    named
        .filter_map(|value| changed_target(target, std::str::from_utf8(value.as_bytes()).ok()?))
        .collect()
}

fn changed_target(target: &Url, reference: &str) -> Option<String> {
    let url = target.join(&canonical::encoded(reference)).ok()?;
    if url.origin() != target.origin() {
        return None;
    }
    let written = reference.split('#').next().unwrap_or_default();
    Some(match target_of(written) {
        Some(written) => written.to_owned(),
        // A relative one has no letters of its own for the whole.
        None => url[Position::BeforePath..Position::AfterQuery].to_owned(),
    })
}

/// Path and query of a URL, or of a reference that begins with its path, as they are written; an
/// empty path where a query follows the authority.
pub fn target_of(text: &str) -> Option<&str> {
    let is_scheme = |scheme: &str| {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte);
        scheme.starts_with(|letter: char| letter.is_ascii_alphabetic())
            && scheme.bytes().all(allowed)
    };
    let after_scheme = text
        .split_once("://")
        .filter(|(scheme, _)| is_scheme(scheme))
        .map(|(_, rest)| rest);
    let after_authority = |rest: &str| rest.find(['/', '?']).unwrap_or(rest.len());
    match after_scheme.or_else(|| text.strip_prefix("//")) {
        Some(rest) => Some(&rest[after_authority(rest)..]),
        None => text.starts_with('/').then_some(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    #[test]
    fn methods_of_unknown_safety_are_unsafe() {
        for method in ["GET", "HEAD", "OPTIONS", "TRACE", "SEARCH", "QUERY"] {
            assert!(is_safe(&method.parse().unwrap()), "{method}");
        }
        for method in ["POST", "PUT", "DELETE", "PATCH", "BREW", "get"] {
            assert!(!is_safe(&method.parse().unwrap()), "{method}");
        }
    }

    #[test]
    fn a_refused_write_changes_nothing() {
        let changed = |status: u16| has_changed(StatusCode::from_u16(status).unwrap());
        assert!(
            [101, 200, 201, 204, 303, 304, 502, 504]
                .into_iter()
                .all(changed)
        );
        assert!(![400, 401, 404, 500, 503].into_iter().any(changed));
    }

    #[test]
    fn other_uris_are_resolved_and_never_of_another_origin() {
        let target = Url::parse("http://api.example/items/?x=1").unwrap();
        let also = |value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(LOCATION, HeaderValue::from_static(value));
            headers.insert(CONTENT_LOCATION, HeaderValue::from_static("?x=2"));
            let found = also_changed(&target, &headers);
            assert_eq!(found.last().unwrap(), "/items/?x=2");
            (found.len() > 1).then(|| found[0].clone())
        };
        let there = |text: &str| Some(text.to_owned());
        assert_eq!(also("7"), there("/items/7"));
        assert_eq!(also("/other"), there("/other"));
        assert_eq!(also("http://API.example:80/x"), there("/x"));
        assert_eq!(also("//api.example/x"), there("/x"));
        for foreign in [
            "https://api.example/x",
            "http://other/x",
            "http://api.example:81/x",
            "//evil/x",
        ] {
            assert_eq!(also(foreign), None, "{foreign}");
        }
    }
}
