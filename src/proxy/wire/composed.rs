//! Requests that no client alone has written: of its fields they have those only that a route lets
//! choose the answer, so that the answer may be everybody's.

use http::header::{self, ACCEPT_LANGUAGE, CONNECTION, COOKIE, HeaderName, ORIGIN};
use http::{HeaderMap, HeaderValue};

use crate::config::Route;
use crate::http::fields::{self, CLIENT_CERT, set};

use super::claims::{self, X_FORWARDED_FOR};
use super::conditions::Conditions;
use super::hops::CDN_LOOP;

/// Fields that say nothing of what is asked for, or by whom: they trace a request, and say which
/// content codings are understood. `baggage` and `tracestate` are not among them: there are origins
/// that are chosen by those.
const INERT: [HeaderName; 7] = [
    header::ACCEPT_ENCODING,
    header::VIA,
    CONNECTION,
    X_FORWARDED_FOR,
    HeaderName::from_static("traceparent"),
    HeaderName::from_static("x-correlation-id"),
    HeaderName::from_static("x-request-id"),
];

/// The fields by which a route lets the origin choose its answer to a composed request, as they
/// are sent; `None` where it lists none.
pub fn selecting(theirs: &HeaderMap, route: &Route) -> Option<HeaderMap> {
    let listed = route.forward_headers.as_deref().unwrap_or_default();
    let normalise = &route.normalise;
    if listed.is_empty() && normalise.is_idle() {
        return None;
    }
    let is_selecting = |name: &HeaderName| {
        let is_own = route.options.credential_fields.contains(name) || INERT.contains(name);
        !is_own && (listed.contains(name) || is_normalised(route, name))
    };
    let selecting = theirs.iter().filter(|(name, _)| is_selecting(name));
    let mut fields: HeaderMap = selecting
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    normalise.apply(&mut fields);
    Some(fields)
}

/// The fields of a request whose answer proves a key and is shared: the credential, what the
/// route lists, what is inert, and nothing else of the client's.
pub fn composed(
    theirs: &HeaderMap,
    listed: &[HeaderName],
    route: &Route,
    conditions: Conditions<'_>,
) -> HeaderMap {
    let stays = |name: &HeaderName| {
        is_normalised(route, name)
            || listed.contains(name)
            || route.options.credential_fields.contains(name)
            || INERT.contains(name)
            || claims::is_told(name)
            || conditions.leaves(name)
    };
    let kept = theirs.iter().filter(|(name, _)| stays(name));
    let mut headers: HeaderMap = kept
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    if !listed.contains(&COOKIE) {
        set(&mut headers, COOKIE, credential_cookies(theirs, route));
    }
    headers
}

/// Leaves of a request to the origin what no client has chosen freely: the credential, what this
/// proxy says itself, and what the route normalises. What is stored under the key may be fetched
/// so, whoever asks for it.
pub fn make_canonical(headers: &mut HeaderMap, route: &Route) {
    let options = &route.options;
    let cookies = credential_cookies(headers, route);
    let leaves: Vec<HeaderName> = headers
        .iter()
        .filter(|(name, value)| match **name {
            header::HOST | header::VIA => false,
            ref name if *name == CDN_LOOP => false,
            // Many an origin chooses by these and does not say so by Vary.
            header::ACCEPT | ACCEPT_LANGUAGE | header::ACCEPT_ENCODING => !is_plain_list(value),
            _ => {
                let stays = is_normalised(route, name)
                    || *name == CLIENT_CERT
                    || options.credential_fields.contains(name)
                    || claims::is_told(name);
                !stays
            }
        })
        .map(|(name, _)| name.clone())
        .collect();
    for name in leaves {
        headers.remove(name);
    }
    set(headers, COOKIE, cookies);
}

/// A short list of tokens with weights, as the `Accept` fields have in all but odd requests.
fn is_plain_list(value: &HeaderValue) -> bool {
    let is_plain = |byte: &u8| byte.is_ascii_alphanumeric() || b", ;=.*-+/".contains(byte);
    value.len() <= 128 && value.as_bytes().iter().all(is_plain)
}

/// Of the cookies those alone that say who asks.
fn credential_cookies(headers: &HeaderMap, route: &Route) -> Option<HeaderValue> {
    let own = route.options.credential_cookies.iter().flat_map(|name| {
        fields::cookies(headers, name).map(move |value| [name.as_bytes(), b"=", value].concat())
    });
    let own = own.collect::<Vec<_>>().join(&b"; "[..]);
    let own = HeaderValue::from_maybe_shared(bytes::Bytes::from(own));
    own.ok().filter(|own| !own.is_empty())
}

/// Whether a route makes one of a few values of this field.
fn is_normalised(route: &Route, name: &HeaderName) -> bool {
    match *name {
        ORIGIN => route.normalise.origins.is_some(),
        ACCEPT_LANGUAGE => !route.normalise.languages.is_empty(),
        _ => false,
    }
}
