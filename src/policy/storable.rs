//! Whether a response may be stored in a shared cache (RFC 9111 §3).

use http::header::{AUTHORIZATION, COOKIE, SET_COOKIE, VARY};
use http::{HeaderMap, HeaderName, Method, StatusCode};

use crate::clock::Timestamp;
use crate::http::cache_control::Scope;
use crate::http::{CacheControl, fields};

use super::freshness::{has_validator, is_event_stream, lifetimes, never_fresh};
use super::{Cookies, Lifetimes, Options, Reason, Record, RequestView, Share, Wishes, range};

/// What policy sees of a response head.
#[derive(Clone, Copy, Debug)]
pub struct ResponseView<'a> {
    pub status: StatusCode,
    pub headers: &'a HeaderMap,
}

/// Whether this response to this request may be stored, and for how long it is of use; else why
/// not. The lifetimes may be zero: such a response is kept for its validator alone.
pub fn storable(
    request: RequestView<'_>,
    response: ResponseView<'_>,
    options: &Options,
    now: Timestamp,
) -> Result<Lifetimes, Reason> {
    if request.method != Method::GET {
        return Err(Reason::Method);
    }
    if Wishes::of(request.headers, options.obey).no_store {
        return Err(Reason::ClientDirective);
    }
    let (control, _) = options.control(response.headers);
    understood(response.status)?;
    // must-understand overrules no-store where the status is understood, and forbids storing where
    // it is not (§5.2.2.3).
    if control.must_understand && !is_understood(response.status) {
        return Err(Reason::Status);
    }
    if control.no_store && !control.must_understand && !options.ignore.no_store {
        return Err(Reason::NoStore);
    }
    // `private="field"` is read as the whole response: the more careful of the two readings that
    // §5.2.2.7 allows a cache that does not strip fields.
    if control.private != Scope::Absent
        && !is_partitioned(request.headers, options)
        && !options.ignore.private
    {
        return Err(Reason::Private);
    }
    if response.headers.contains_key(SET_COOKIE) && !options.ignore.set_cookie {
        return Err(Reason::SetCookie);
    }
    // Its caller is whoever had authenticated the connection.
    if fields::binds_connection(response.headers) {
        return Err(Reason::Credential);
    }
    if fields::members(response.headers, VARY).any(selects_beyond_the_request) {
        return Err(Reason::VaryAny);
    }
    let found = lifetimes(response.status, response.headers, options, now);
    credential_allows(request.headers, &control, options)?;
    match found {
        Some(found) => {
            let cookies_matter = options.cookies == Cookies::Bypass;
            if found.granted_by_operator && cookies_matter && request.headers.contains_key(COOKIE) {
                return Err(Reason::Cookie);
            }
            Ok(found)
        }
        // No lifetime: worth keeping only where the origin can confirm it by 304 (§4.3).
        None if may_be_revalidated(response) => Ok(never_fresh(&control)),
        None if is_event_stream(response.headers) => Err(Reason::EventStream),
        None => Err(Reason::NoLifetime),
    }
}

/// What is remembered of a stored response, by other options than it was stored by: for how long it
/// is of use. Everything else by which it was stored belongs to its key.
pub fn again(response: ResponseView<'_>, options: &Options, record: &Record) -> Record {
    let status = match response.status {
        StatusCode::PARTIAL_CONTENT => StatusCode::OK,
        status => status,
    };
    let lifetimes = lifetimes(status, response.headers, options, record.received);
    let nobodys = || never_fresh(&options.control(response.headers).0);
    Record {
        lifetimes: lifetimes.unwrap_or_else(nobodys),
        ..*record
    }
}

/// Whether a part of a representation may be kept, to answer what it covers (§3.3): where the
/// whole might be. Only with a strong validator is it ever put together with others (§3.4).
pub fn storable_part(
    request: RequestView<'_>,
    response: &HeaderMap,
    options: &Options,
    now: Timestamp,
) -> Result<Lifetimes, Reason> {
    if range::part_of(response).is_none() {
        return Err(Reason::Partial);
    }
    let whole = ResponseView {
        status: StatusCode::OK,
        headers: response,
    };
    storable(request, whole, options, now)
}

/// `*`, and the fields that this proxy writes itself on the way to the origin: the client's own
/// say nothing about what the origin answered by.
fn selects_beyond_the_request(member: &[u8]) -> bool {
    // What cannot be read may name anything (§4.1).
    if HeaderName::from_bytes(member).is_err() {
        return true;
    }
    let own: [&[u8]; 4] = [b"*", b"x-forwarded-for", b"forwarded", b"via"];
    own.iter().any(|name| member.eq_ignore_ascii_case(name))
}

/// Whether the partition that a response would be stored in is one principal's own: the request
/// says who asks, and does not also say it in a cookie that the partition does not hold.
fn is_partitioned(request: &HeaderMap, options: &Options) -> bool {
    options.share == Share::PerKey
        && options.has_credential(request)
        && (options.cookies != Cookies::Bypass || !request.contains_key(COOKIE))
}

/// Statuses that are never reused whatever they say: interim and partial ones, 304 (an update, not
/// a response of its own), 426, which is about one connection, and the two that are about one
/// client's credential.
fn understood(status: StatusCode) -> Result<(), Reason> {
    match status {
        StatusCode::PARTIAL_CONTENT => Err(Reason::Partial),
        // 304 is an update; the others MUST NOT be stored (RFC 6585 §3–6).
        StatusCode::NOT_MODIFIED
        | StatusCode::UPGRADE_REQUIRED
        | StatusCode::PRECONDITION_REQUIRED
        | StatusCode::TOO_MANY_REQUESTS
        | StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE
        | StatusCode::NETWORK_AUTHENTICATION_REQUIRED => Err(Reason::Status),
        StatusCode::UNAUTHORIZED | StatusCode::PROXY_AUTHENTICATION_REQUIRED => {
            Err(Reason::Credential)
        }
        status if status.is_informational() => Err(Reason::Status),
        _ => Ok(()),
    }
}

/// Statuses whose caching requirements this cache implements (RFC 9110 §15).
fn is_understood(status: StatusCode) -> bool {
    matches!(
        status.as_u16(),
        200 | 203 | 204 | 300 | 301 | 302 | 303 | 307 | 308 | 400..=417 | 421..=425 | 451 | 500..=508 | 510
    )
}

/// §3.5, extended from `Authorization` to every field that the operator named as a credential.
fn credential_allows(
    request: &HeaderMap,
    control: &CacheControl,
    options: &Options,
) -> Result<(), Reason> {
    let has_credential = request.contains_key(AUTHORIZATION) || options.has_credential(request);
    match options.share {
        Share::PerKey => return Ok(()),
        // Without one nobody was verified: such a response is never shared.
        Share::Verified if has_credential => return Ok(()),
        Share::Verified => return Err(Reason::Credential),
        Share::Standard => {}
    }
    let allowed = control.public || control.must_revalidate || control.s_maxage.is_some();
    if has_credential && !allowed {
        return Err(Reason::Credential);
    }
    Ok(())
}

/// Heuristically cacheable (RFC 9110 §15.1), so storable without explicit freshness, and with a
/// validator of the origin.
fn may_be_revalidated(response: ResponseView<'_>) -> bool {
    let status = matches!(response.status.as_u16(), 200 | 203 | 204 | 300 | 301 | 308);
    status && has_validator(response.headers) && !is_event_stream(response.headers)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Ignore;
    use http::{HeaderName, HeaderValue};
    use std::time::Duration;

    fn map(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        lines
            .iter()
            .map(|(name, value)| {
                (
                    HeaderName::from_static(name),
                    HeaderValue::from_static(value),
                )
            })
            .collect()
    }

    type Lines = [(&'static str, &'static str)];

    fn judge(
        status: u16,
        request: &Lines,
        response: &Lines,
        options: &Options,
    ) -> Result<u64, Reason> {
        let (request, response) = (map(request), map(response));
        let request = RequestView {
            method: &Method::GET,
            headers: &request,
            has_body: false,
        };
        let response = ResponseView {
            status: StatusCode::from_u16(status).unwrap(),
            headers: &response,
        };
        storable(request, response, options, Timestamp::EPOCH).map(|found| found.fresh.as_secs())
    }

    #[test]
    fn each_refusal_names_its_reason() {
        let none = Options::default();
        let fresh = ("cache-control", "max-age=60");
        let table: &[(u16, &Lines, &Lines, Result<u64, Reason>)] = &[
            (200, &[], &[fresh], Ok(60)),
            (404, &[], &[fresh], Ok(60)),
            (200, &[], &[], Err(Reason::NoLifetime)),
            (200, &[], &[("etag", "\"a\"")], Ok(0)),
            (500, &[], &[("etag", "\"a\"")], Err(Reason::NoLifetime)),
            (206, &[], &[fresh], Err(Reason::Partial)),
            (401, &[], &[fresh], Err(Reason::Credential)),
            (428, &[], &[fresh], Err(Reason::Status)),
            (429, &[], &[fresh], Err(Reason::Status)),
            (431, &[], &[fresh], Err(Reason::Status)),
            (511, &[], &[fresh], Err(Reason::Status)),
            (
                200,
                &[],
                &[("cache-control", "private=\"x-a\", max-age=60")],
                Err(Reason::Private),
            ),
            (
                200,
                &[],
                &[("cache-control", "no-store, max-age=60")],
                Err(Reason::NoStore),
            ),
            (
                200,
                &[],
                &[("cache-control", "private, max-age=60")],
                Err(Reason::Private),
            ),
            (
                200,
                &[],
                &[fresh, ("set-cookie", "a=1")],
                Err(Reason::SetCookie),
            ),
            (
                200,
                &[],
                &[fresh, ("vary", "X-Forwarded-For")],
                Err(Reason::VaryAny),
            ),
            (
                200,
                &[],
                &[fresh, ("vary", "accept, *")],
                Err(Reason::VaryAny),
            ),
            (
                200,
                &[("authorization", "x")],
                &[fresh],
                Err(Reason::Credential),
            ),
            (
                200,
                &[("authorization", "x")],
                &[("cache-control", "public, max-age=9")],
                Ok(9),
            ),
            (
                200,
                &[("authorization", "x")],
                &[("cache-control", "s-maxage=9")],
                Ok(9),
            ),
        ];
        let understood: &[(u16, &Lines, &Lines, Result<u64, Reason>)] = &[
            (
                200,
                &[],
                &[("cache-control", "no-store, must-understand, max-age=9")],
                Ok(9),
            ),
            (
                299,
                &[],
                &[("cache-control", "must-understand, max-age=9")],
                Err(Reason::Status),
            ),
        ];
        for (status, request, response, expected) in table.iter().chain(understood) {
            let found = judge(*status, request, response, &none);
            assert_eq!(found, *expected, "{status} {request:?} {response:?}");
        }
    }

    #[test]
    fn what_a_route_ignores_no_longer_forbids() {
        let options = Options {
            force_ttl: Some(Duration::from_secs(5)),
            ignore: Ignore {
                private: true,
                set_cookie: true,
                ..Ignore::default()
            },
            ..Options::default()
        };
        let response = [("cache-control", "private"), ("set-cookie", "a=1")];
        assert_eq!(judge(200, &[], &response, &options), Ok(5));
        let response = [("cache-control", "no-store")];
        assert_eq!(judge(200, &[], &response, &options), Err(Reason::NoStore));
    }

    #[test]
    fn per_key_partitions_may_hold_what_is_one_principals_own() {
        let options = Options {
            share: Share::PerKey,
            credential_fields: [AUTHORIZATION].into(),
            ..Options::default()
        };
        let response = [("cache-control", "private, max-age=8")];
        let key = ("authorization", "x");
        assert_eq!(judge(200, &[key], &response, &options), Ok(8));
        // Nobody in particular, or somebody whom the cookie tells apart as well.
        for request in [&[][..], &[key, ("cookie", "a=1")][..]] {
            assert_eq!(
                judge(200, request, &response, &options),
                Err(Reason::Private)
            );
        }
    }

    #[test]
    fn an_operators_ttl_skips_cookies_errors_and_event_streams() {
        let options = Options {
            ttl: Some(Duration::from_secs(5)),
            ..Options::default()
        };
        assert_eq!(judge(200, &[], &[], &options), Ok(5));
        assert_eq!(
            judge(200, &[("cookie", "a")], &[], &options),
            Err(Reason::Cookie)
        );
        let own = [("cache-control", "max-age=3")];
        assert_eq!(judge(200, &[("cookie", "a")], &own, &options), Ok(3));
        assert_eq!(judge(500, &[], &[], &options), Err(Reason::NoLifetime));
        let events = [("content-type", "text/event-stream; charset=utf-8")];
        assert_eq!(judge(200, &[], &events, &options), Err(Reason::EventStream));
    }

    #[test]
    fn an_error_is_kept_by_its_own_word_or_by_error_ttl() {
        let options = Options {
            error_ttl: Some(Duration::from_secs(2)),
            ..Options::default()
        };
        assert_eq!(judge(404, &[], &[], &options), Ok(2));
        assert_eq!(judge(401, &[], &[], &options), Err(Reason::Credential));
    }
}
