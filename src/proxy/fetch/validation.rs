//! A stored response that a fetch may confirm (RFC 9111 §4.3), or that stands in where the origin
//! fails (RFC 5861 §4).

use std::sync::Arc;

use http::HeaderValue;
use http::header::{ETAG, LAST_MODIFIED};

use crate::clock::Timestamp;
use crate::policy;
use crate::proxy::state::State;
use crate::proxy::wire::Conditions;
use crate::store::Entry;

/// A stored response, and the conditions by which the origin is asked to confirm it.
#[derive(Clone)]
pub struct Validation {
    pub entry: Arc<Entry>,
    etag: Option<HeaderValue>,
    last_modified: Option<HeaderValue>,
}

impl Validation {
    /// Asks the origin to confirm `entry`, by the validators that came from the origin.
    pub fn of(entry: Arc<Entry>) -> Self {
        let by_origin = entry.head.record.has_validator;
        let field = |name| entry.head.field(name).filter(|_| by_origin);
        Self {
            etag: field(&ETAG),
            last_modified: field(&LAST_MODIFIED),
            entry,
        }
    }

    /// `entry` may stand in for a failed origin, and no more.
    pub fn only_stale(entry: Arc<Entry>) -> Self {
        Self {
            entry,
            etag: None,
            last_modified: None,
        }
    }

    pub fn conditions(&self) -> Conditions<'_> {
        Conditions::Validate {
            etag: self.etag.as_ref(),
            last_modified: self.last_modified.as_ref(),
        }
    }

    /// Whether the origin was found to confirm by tags of another strength than it sends. What has
    /// no validator of the origin's has a tag of ours, and those are strong.
    pub fn is_never_confirmed(&self) -> bool {
        let tag = self.entry.head.field(&ETAG);
        let is_weak = tag.is_some_and(|tag| tag.as_bytes().starts_with(b"W/"));
        is_weak && !self.entry.head.record.has_validator
    }

    /// Whether the origin is asked a condition at all.
    pub fn asks(&self) -> bool {
        self.etag.is_some() || self.last_modified.is_some()
    }
}

/// Whether a stored response may stand in for a failed origin: nothing has purged it meanwhile.
pub fn may_stand_in(state: &State, primary: &[u8], entry: &Entry, now: Timestamp) -> bool {
    state.memory.is_current(primary, entry)
        && state.memory.is_trusted(entry, now)
        && policy::decide::usable_on_error(entry.view(), now)
}
