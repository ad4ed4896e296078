//! Delivered: a head and a body become the client's response, with the fields that say how.

use std::time::Duration;

use http::header::{AGE, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_RANGE, RANGE};
use http::{HeaderMap, Method, Response, StatusCode};

use crate::error::{Failure, FailureKind};
use crate::http::cache_control::Scope;
use crate::metrics::CacheResult;
use crate::policy::range::{self, Span};
use crate::policy::{Options, conditional};
use crate::proxy::client_request::ClientRequest;
use crate::proxy::parts::ranges::{self, Cut};
use crate::proxy::plan::Plan;
use crate::proxy::wire::Body;
use crate::store::Head;

use super::note::{Note, age_value};
use super::refusal::failure_response;

/// The response to a request, from a head that is stored or may be; 416 where it asks for ranges of
/// which there are none.
pub fn deliver(
    plan: &Plan,
    request: &ClientRequest,
    options: &Options,
    head: &Head,
    age: Duration,
    body: Body,
    note: Note,
) -> Response<Body> {
    let (method, fields) = (&request.parts.method, &request.parts.headers);
    let made = make_response(method, fields, options, head, age, body, note);
    made.unwrap_or_else(|OutOfRange { length }| {
        let message = format!("none of the ranges is in the representation: it has {length} bytes");
        let failure = Failure::new(FailureKind::RangeNotSatisfiable, message);
        let mut response = failure_response(plan, &failure, note);
        note.write(response.headers_mut());
        let value = range::unsatisfied_range(length);
        response.headers_mut().insert(CONTENT_RANGE, value);
        response
    })
}

/// The response to a request, from a head that is stored or may be. An error is the request's own:
/// it asked for ranges of which there are none.
fn make_response(
    method: &Method,
    request: &HeaderMap,
    options: &Options,
    head: &Head,
    age: Duration,
    body: Body,
    note: Note,
) -> Result<Response<Body>, OutOfRange> {
    let mut headers = head.fields.for_answer(4);
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
