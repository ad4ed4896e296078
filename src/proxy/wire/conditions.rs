//! Conditions and ranges of a request to the origin: the client's own, ours, or none.

use http::header::{
    HeaderName, IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE, IF_UNMODIFIED_SINCE, RANGE,
};
use http::{HeaderMap, HeaderValue};

use crate::http::fields::set;
use crate::policy::range::Span;

/// The fields in which a client asks for something on a condition, or for a part of it.
pub const CONDITIONS: [HeaderName; 6] = [
    IF_MATCH,
    IF_NONE_MATCH,
    IF_MODIFIED_SINCE,
    IF_UNMODIFIED_SINCE,
    IF_RANGE,
    RANGE,
];

/// What is done with the client's own `If-None-Match`, `If-Modified-Since`, `Range` and `If-Range`.
#[derive(Clone, Copy, Debug)]
pub enum Conditions<'a> {
    /// The origin is to answer them.
    Pass,
    /// We answer them, from the whole response.
    Drop,
    /// Ours in their place: they validate what is stored (RFC 9111 §4.3.1).
    Validate {
        etag: Option<&'a HeaderValue>,
        last_modified: Option<&'a HeaderValue>,
    },
    /// Only what is missing of the representation with this strong entity tag (RFC 9111 §3.4).
    Rest { span: Span, etag: &'a HeaderValue },
}

impl Conditions<'_> {
    /// Whether a field is a condition of the client's that is passed on.
    pub fn leaves(self, name: &HeaderName) -> bool {
        matches!(self, Conditions::Pass) && CONDITIONS.contains(name)
    }

    /// Puts them in the place of the client's own.
    pub fn apply(self, headers: &mut HeaderMap) {
        if matches!(self, Conditions::Pass) {
            return;
        }
        unconditional(headers);
        match self {
            Conditions::Pass | Conditions::Drop => {}
            Conditions::Validate {
                etag,
                last_modified,
            } => {
                set(headers, IF_NONE_MATCH, etag.cloned());
                set(headers, IF_MODIFIED_SINCE, last_modified.cloned());
            }
            Conditions::Rest { span, etag } => {
                let range = HeaderValue::try_from(format!("bytes={}-{}", span.first, span.last));
                set(headers, RANGE, range.ok());
                set(headers, IF_RANGE, Some(etag.clone()));
            }
        }
    }
}

/// Makes a request for the whole, whatever the client or we have.
pub fn unconditional(headers: &mut HeaderMap) {
    for name in [IF_NONE_MATCH, IF_MODIFIED_SINCE, RANGE, IF_RANGE] {
        headers.remove(name);
    }
}
