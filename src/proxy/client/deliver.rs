//! Delivered: a head and a body become the client's response, with the fields that say how.

use std::cell::RefCell;
use std::time::Duration;

use bytes::{BufMut, BytesMut};
use http::header::{AGE, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_RANGE, HeaderName, RANGE};
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode};

use crate::error::{Failure, FailureKind};
use crate::http::cache_control::Scope;
use crate::metrics::CacheResult;
use crate::policy::range::{self, Span};
use crate::policy::{Options, Reason, conditional};
use crate::store::Head;

use super::Proxy;
use super::body::Body;
use super::ranges::{self, Cut};

pub const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");
pub const X_CACHE: HeaderName = HeaderName::from_static("x-cache");

thread_local! {
    static AGES: RefCell<Numbered> = const { RefCell::new(Numbered::new()) };
    static HIT_STATUS: RefCell<Numbered> = const { RefCell::new(Numbered::new()) };
}

fn age_value(age: Duration) -> HeaderValue {
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
        headers.insert(X_CACHE, HeaderValue::from_static(self.result.as_str()));
    }

    /// Adds the two fields that tell the client.
    pub fn write(&self, headers: &mut HeaderMap) {
        self.write_result(headers);
        // An upstream cache has its own member in the list: ours comes after it (RFC 9211 §2).
        headers.append(CACHE_STATUS, self.cache_status());
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

/// The request that a response is for.
#[derive(Clone, Copy)]
pub struct Wanted<'a> {
    pub method: &'a Method,
    pub headers: &'a HeaderMap,
    pub options: &'a Options,
}

impl Proxy {
    /// The response to a request, from a head that is stored or may be; 416 where it asks for
    /// ranges of which there are none.
    pub(super) fn deliver(
        &self,
        wanted: Wanted<'_>,
        head: &Head,
        age: Duration,
        body: Body,
        note: Note,
    ) -> Response<Body> {
        deliver(wanted, head, age, body, note).unwrap_or_else(|OutOfRange { length }| {
            let message =
                format!("none of the ranges is in the representation: it has {length} bytes");
            let failure = Failure::new(FailureKind::RangeNotSatisfiable, message);
            let mut response = self.failure(&failure, note);
            note.write(response.headers_mut());
            let value = range::unsatisfied_range(length);
            response.headers_mut().insert(CONTENT_RANGE, value);
            response
        })
    }
}

/// The response to a request, from a head that is stored or may be. An error is the request's own:
/// it asked for ranges of which there are none.
fn deliver(
    wanted: Wanted<'_>,
    head: &Head,
    age: Duration,
    body: Body,
    note: Note,
) -> Result<Response<Body>, OutOfRange> {
    let Wanted {
        method,
        headers: request,
        options,
    } = wanted;
    let mut headers = head.fields.unpack(4);
    // Of a part too: preconditions come before ranges (RFC 9110 §13.2.2).
    let is_ok = matches!(head.status, StatusCode::OK | StatusCode::PARTIAL_CONTENT);
    let not_modified = is_ok
        && conditional::is_conditional(request)
        && conditional::is_not_modified(request, &headers, true);
    let is_reused = note.collapsed || matches!(note.result, CacheResult::Hit | CacheResult::Stale);
    if is_reused && head.withholds {
        remove_named_by_no_cache(&mut headers, options);
    }
    if let Some(value) = &options.client_cache_control {
        headers.insert(CACHE_CONTROL, value.clone());
    }
    if options.hides_targeted {
        for name in options.targeted_fields.iter() {
            headers.remove(name);
        }
    }
    headers.insert(AGE, age_value(age));
    note.write(&mut headers);

    let mut response = Response::new(Body::Empty);
    if not_modified {
        conditional::keep_for_304(&mut headers);
        headers.remove(CONTENT_RANGE);
        *response.status_mut() = StatusCode::NOT_MODIFIED;
    } else {
        let wants_part = *method == Method::GET && request.contains_key(RANGE);
        let (status, body) = if wants_part {
            part(request, &mut headers, head, body)?
        } else {
            (head.status, body)
        };
        *response.status_mut() = status;
        if *method != Method::HEAD {
            *response.body_mut() = body;
        }
        if matches!(status, StatusCode::NO_CONTENT) {
            headers.remove(CONTENT_LENGTH);
        }
    }
    *response.headers_mut() = headers;
    Ok(response)
}

/// 416: none of the ranges asked for is in a representation of this length.
#[derive(Clone, Copy, Debug)]
pub struct OutOfRange {
    pub length: u64,
}

/// What a GET with a `Range` gets: of a 200 what it asks for, of another status the whole (RFC 9110
/// §14.2); and of a stored 206 what its caller has seen to be there.
fn part(
    request: &HeaderMap,
    headers: &mut HeaderMap,
    head: &Head,
    body: Body,
) -> Result<(StatusCode, Body), OutOfRange> {
    let held = match head.status {
        StatusCode::OK => {
            let length = match &body {
                Body::Whole(bytes) => Some(bytes.len() as u64),
                Body::Pieces(pieces) => Some(pieces.size()),
                _ => head.content_length(),
            };
            length.filter(|length| *length > 0).map(|length| {
                let (first, last) = (0, length - 1);
                (Span { first, last }, length)
            })
        }
        StatusCode::PARTIAL_CONTENT => range::part_of(headers),
        _ => None,
    };
    let Some((held, length)) = held else {
        return Ok((head.status, body));
    };
    match ranges::cut(request, headers, body, held, length) {
        Cut::Whole(body) => Ok((head.status, body)),
        Cut::Part(body) => Ok((StatusCode::PARTIAL_CONTENT, body)),
        Cut::Unsatisfiable { length } => Err(OutOfRange { length }),
    }
}

/// `no-cache="field"`: these fields may not be reused unvalidated (RFC 9111 §5.2.2.4).
fn remove_named_by_no_cache(headers: &mut HeaderMap, options: &Options) {
    if let Scope::Fields(names) = options.control(headers).0.no_cache {
        for name in names {
            headers.remove(name);
        }
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
