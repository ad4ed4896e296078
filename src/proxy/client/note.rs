//! How a response came to be: `Cache-Status` (RFC 9211), `X-Cache`, `Age` and the metrics say it
//! alike.

use std::cell::RefCell;
use std::time::Duration;

use bytes::{BufMut, BytesMut};
use http::header::{AGE, HeaderName};
use http::{HeaderMap, HeaderValue, StatusCode};

use crate::metrics::CacheResult;
use crate::policy::Reason;
use crate::proxy::wire::response_head::X_CACHE;

pub const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");

/// What every answer from a stored response has of its own.
pub const OWN_FIELDS: [HeaderName; 3] = [AGE, X_CACHE, CACHE_STATUS];

thread_local! {
    static AGES: RefCell<Numbered> = const { RefCell::new(Numbered::new()) };
    static HIT_STATUS: RefCell<Numbered> = const { RefCell::new(Numbered::new()) };
}

pub fn age_value(age: Duration) -> HeaderValue {
    let seconds = i64::try_from(age.as_secs()).unwrap_or(i64::MAX);
    AGES.with_borrow_mut(|values| values.get(seconds, HeaderValue::from))
}

/// Field values that differ in one number, kept for the next hit that needs the same one: within
/// one second all hits on a hot response do.
struct Numbered {
    slots: [Option<(i64, HeaderValue)>; 256],
}

impl Numbered {
    const fn new() -> Self {
        Self {
            slots: [const { None }; 256],
        }
    }

    fn get(&mut self, number: i64, make: impl FnOnce(i64) -> HeaderValue) -> HeaderValue {
        let slot = &mut self.slots[number.rem_euclid(256) as usize];
        match slot {
            Some((known, value)) if *known == number => value.clone(),
            _ => {
                let value = make(number);
                *slot = Some((number, value.clone()));
                value
            }
        }
    }
}

/// How a response came to be: `Cache-Status` (RFC 9211), `X-Cache` and the metrics say it alike.
#[derive(Clone, Copy, Debug)]
pub struct Note {
    pub result: CacheResult,
    pub reason: Reason,
    /// Freshness left, negative when stale.
    pub ttl: Option<i64>,
    /// What the origin answered, where it was asked.
    pub forward_status: Option<StatusCode>,
    pub stored: bool,
    /// Answered by another request's fetch.
    pub collapsed: bool,
    /// The origin was asked, and failed.
    pub is_forwarded: bool,
    /// Where it differs from the reason: why the response was not stored.
    pub detail: Option<Reason>,
}

impl Note {
    pub fn new(result: CacheResult, reason: Reason) -> Self {
        Self {
            result,
            reason,
            ttl: None,
            forward_status: None,
            stored: false,
            collapsed: false,
            is_forwarded: false,
            detail: None,
        }
    }

    /// A response reused as it stands, with what is left of its freshness.
    pub fn hit(result: CacheResult, reason: Reason, ttl: i64) -> Self {
        Self {
            ttl: Some(ttl),
            ..Self::new(result, reason)
        }
    }

    /// Adds the one field that every response has. One that is made here, and not of what is
    /// stored, has no `Cache-Status` (RFC 9211 §2).
    pub fn write_result(&self, headers: &mut HeaderMap) {
        headers.insert(X_CACHE, HeaderValue::from_static(self.result.as_field()));
    }

    /// Adds the two fields that tell the client.
    pub fn write(&self, headers: &mut HeaderMap) {
        self.write_result(headers);
        let status = self.cache_status();
        match headers.get_mut(CACHE_STATUS) {
            // A place that was kept for it.
            Some(place) if place.is_empty() => *place = status,
            // An upstream cache has its own member in the list: ours comes after it (RFC 9211 §2).
            _ => {
                headers.append(CACHE_STATUS, status);
            }
        }
    }

    fn cache_status(&self) -> HeaderValue {
        match (self.result, self.reason, self.ttl) {
            (CacheResult::Hit, Reason::Fresh, Some(ttl)) => {
                HIT_STATUS.with_borrow_mut(|values| values.get(ttl, |_| self.format_status()))
            }
            _ => self.format_status(),
        }
    }

    fn format_status(&self) -> HeaderValue {
        let mut out = BytesMut::with_capacity(96);
        out.put_slice(b"iris-sidecar");
        let is_hit = self.forward_status.is_none()
            && !self.is_forwarded
            && matches!(self.result, CacheResult::Hit | CacheResult::Stale);
        if is_hit {
            out.put_slice(b"; hit");
        } else {
            out.put_slice(b"; fwd=");
            out.put_slice(self.reason.forwarded_as().as_bytes());
            if let Some(status) = self.forward_status {
                out.put_slice(b"; fwd-status=");
                out.put_slice(status.as_str().as_bytes());
            }
        }
        if let Some(ttl) = self.ttl {
            out.put_slice(b"; ttl=");
            out.put_slice(itoa::Buffer::new().format(ttl).as_bytes());
        }
        if self.stored {
            out.put_slice(b"; stored");
        }
        if self.collapsed {
            out.put_slice(b"; collapsed");
        }
        let detail = self.detail.unwrap_or(self.reason);
        if detail != Reason::Fresh {
            out.put_slice(b"; detail=");
            out.put_slice(detail.as_str().as_bytes());
        }
        HeaderValue::from_maybe_shared(out.freeze())
            .unwrap_or(HeaderValue::from_static("iris-sidecar"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(note: Note) -> String {
        let mut headers = HeaderMap::new();
        note.write(&mut headers);
        headers[CACHE_STATUS].to_str().unwrap().to_owned()
    }

    #[test]
    fn cache_status_says_what_rfc_9211_has_words_for() {
        let hit = Note::hit(CacheResult::Hit, Reason::Fresh, 26);
        assert_eq!(status(hit), "iris-sidecar; hit; ttl=26");
        let stale = Note::hit(CacheResult::Stale, Reason::StaleWhileRevalidate, -26);
        assert_eq!(
            status(stale),
            "iris-sidecar; hit; ttl=-26; detail=stale-while-revalidate"
        );
        let miss = Note {
            forward_status: Some(StatusCode::OK),
            stored: true,
            collapsed: true,
            ..Note::new(CacheResult::Miss, Reason::Cold)
        };
        assert_eq!(
            status(miss),
            "iris-sidecar; fwd=uri-miss; fwd-status=200; stored; collapsed; detail=cold"
        );
        let private = Note {
            detail: Some(Reason::Private),
            ..Note::new(CacheResult::Miss, Reason::Cold)
        };
        assert_eq!(
            status(private),
            "iris-sidecar; fwd=uri-miss; detail=private"
        );
        let bypass = Note::new(CacheResult::Bypass, Reason::Method);
        assert_eq!(status(bypass), "iris-sidecar; fwd=method; detail=method");
    }

    #[test]
    fn an_upstream_caches_own_member_stays_before_ours() {
        let mut headers = HeaderMap::new();
        headers.insert(CACHE_STATUS, HeaderValue::from_static("cdn; hit"));
        Note::new(CacheResult::Miss, Reason::Cold).write(&mut headers);
        let members: Vec<_> = headers.get_all(CACHE_STATUS).iter().collect();
        assert_eq!(members.len(), 2);
        assert_eq!(members[0], "cdn; hit");
    }
}
