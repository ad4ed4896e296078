//! The beginning of a response that broke off: what completes it is asked for with its strong
//! entity tag (RFC 9111 §3.4).

use std::sync::Arc;

use http::header::ETAG;
use http::{HeaderMap, HeaderValue};

use crate::policy::range::{self, Span};
use crate::proxy::keyed_request::KeyedRequest;
use crate::proxy::plan::Plan;
use crate::proxy::state::State;
use crate::proxy::wire::Conditions;
use crate::store::Entry;

use super::store::{describe, held, is_same, joined, known_part, part_key};

/// The entity tag by which the rest of a part can be asked for.
pub fn strong_tag(part: &Entry) -> Option<HeaderValue> {
    let value = part.head.field(&ETAG)?;
    let fields = HeaderMap::from_iter([(ETAG, value)]);
    range::strong_tag(&fields)?;
    fields.get(ETAG).cloned()
}

/// A stored part from byte 0, and the conditions that complete it.
pub struct Beginning {
    pub part: Arc<Entry>,
    etag: HeaderValue,
    rest: Span,
}

impl Beginning {
    /// The beginning of what is asked for, where it is worth completing.
    pub fn known(plan: &Plan, keyed: &KeyedRequest) -> Option<Self> {
        let state = &plan.state;
        let part = known_part(state, keyed.primary(), keyed.headers(), state.clock.now())?;
        let (held, length) = held(&part)?;
        if held.first > 0 || length > plan.config.cache.max_object {
            return None;
        }
        let (first, last) = (held.last + 1, length - 1);
        Some(Self {
            etag: strong_tag(&part)?,
            part,
            rest: Span { first, last },
        })
    }

    pub fn conditions(&self) -> Conditions<'_> {
        Conditions::Rest {
            span: self.rest,
            etag: &self.etag,
        }
    }

    /// The beginning is of no use any more: the origin has no rest that fits.
    pub fn forget(&self, state: &State, primary: &[u8]) {
        state.memory.remove(&part_key(primary), &self.part);
    }

    /// The fields of the whole, where this 206 brings exactly its rest.
    pub fn completed_by(&self, response: &HeaderMap) -> Option<HeaderMap> {
        let (span, length) = range::part_of(response)?;
        let stored = self.part.head.fields.unpack(4);
        if span != self.rest || length != span.last + 1 || !is_same(&stored, response) {
            return None;
        }
        let mut headers = joined(stored, response);
        describe(&mut headers, None, length);
        Some(headers)
    }
}
