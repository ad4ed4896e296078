//! The meaning of caching: RFC 9110, 9111, 5861, 8246, 9213 and 9875 as pure functions.
//!
//! Nothing here does I/O, reads a clock or knows the configuration file: `now` and a small
//! [`Options`] are parameters. [`decide()`] says what a stored response is good for, [`storable()`]
//! whether a response may be kept; every other answer of the proxy follows from these two.
//! [`requirements`] lists the rules of the RFCs with the tests that hold them.

pub mod canonical;
pub mod client;
pub mod conditional;
pub mod decide;
pub mod error_when;
pub mod freshness;
pub mod groups;
pub mod invalidate;
pub mod key;
pub mod normalise;
pub mod range;
pub mod readings;
pub mod reason;
#[doc = include_str!("requirements.md")]
pub mod requirements {}
pub mod standing;
pub mod storable;
pub mod update;
pub mod vary;

use std::sync::Arc;
use std::time::Duration;

use http::header::CACHE_CONTROL;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};

use crate::http::CacheControl;
use crate::http::fields::{self, CLIENT_CERT};

pub use client::{Obey, Wishes};
pub use decide::{Decision, bypass, decide};
pub use error_when::ErrorWhen;
pub use groups::Groups;
pub use invalidate::{Invalidation, Mode};
pub use normalise::Normalise;
pub use reason::Reason;
pub use standing::{Lifetimes, Record, Standing, StoredView};
pub use storable::{again, storable};

/// Between whom one stored response is shared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Share {
    /// A shared cache by the letter of RFC 9111 §3.5.
    #[default]
    Standard,
    /// Each credential is a partition of its own; there `private` may be stored.
    PerKey,
    /// One stored response for all whose credential has a good verdict; the operator's word, in the
    /// place of RFC 9111 §3.5.
    Verified,
}

impl Share {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Standard => "standard",
            Self::PerKey => "per-key",
            Self::Verified => "verified",
        }
    }
}

/// What a request's `Cookie` means under an operator's `ttl` or `force_ttl`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Cookies {
    /// Such a request is not answered from, nor stored for, the operator's lifetime.
    #[default]
    Bypass,
    /// Not forwarded, so the origin cannot answer by them.
    Ignore,
    /// Part of the key.
    Key,
    /// Stored as if there were none: the operator knows that the answer does not depend on them.
    Store,
}

/// Origin directives that a route was told not to honour.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ignore {
    pub no_store: bool,
    pub no_cache: bool,
    pub private: bool,
    pub set_cookie: bool,
}

/// To what an operator's `ttl` or `force_ttl` applies by default: the plain successes and the
/// permanent redirects.
pub const TTL_STATUSES: [u16; 5] = [200, 203, 204, 301, 308];

/// For what stale may stand in by default: what RFC 5861 §4 names, and the one that asks for a
/// pause.
pub const ERROR_STATUSES: [u16; 5] = [429, 500, 502, 503, 504];

fn is_among(status: StatusCode, listed: Option<&[StatusCode]>, default: &[u16]) -> bool {
    match listed {
        Some(listed) => listed.contains(&status),
        None => default.contains(&status.as_u16()),
    }
}

/// The part of a route that caching policy needs.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Nothing is looked up or stored.
    pub bypass: bool,
    /// Lifetime where the origin gives none.
    pub ttl: Option<Duration>,
    /// Lifetime that replaces the origin's.
    pub force_ttl: Option<Duration>,
    /// Cap on every lifetime.
    pub max_ttl: Option<Duration>,
    /// Lifetime of a status of 400 or more that brings none of its own.
    pub error_ttl: Option<Duration>,
    pub stale_while_revalidate: Option<Duration>,
    pub stale_if_error: Option<Duration>,
    pub share: Share,
    pub cookies: Cookies,
    pub ignore: Ignore,
    /// Request directives that count.
    pub obey: Obey,
    /// Cap of a lifetime guessed from `Last-Modified` where nobody states one; `None`: no guessing.
    pub heuristic_max_ttl: Option<Duration>,
    /// Statuses to which an operator's lifetime applies; `None`: [`TTL_STATUSES`].
    pub ttl_statuses: Option<Arc<[StatusCode]>>,
    /// Statuses for which stale may stand in; `None`: [`ERROR_STATUSES`].
    pub error_statuses: Option<Arc<[StatusCode]>>,
    /// Whether a 304 with a strong tag confirms what is stored with a weak one, and the other way
    /// round.
    pub weak_revalidation: bool,
    /// Whether a HEAD that nothing stored answers is fetched as a GET.
    pub head_as_get: bool,
    /// Bodies that mean a failure whatever their status says.
    pub error_when: Option<ErrorWhen>,
    /// Fields that speak to this cache in the place of `Cache-Control` and `Expires`, the first
    /// before the next (RFC 9213).
    pub targeted_fields: Arc<[HeaderName]>,
    /// Whether clients see those fields.
    pub hides_targeted: bool,
    /// What clients see as `Cache-Control` of a response that may be stored.
    pub client_cache_control: Option<HeaderValue>,
    /// Groups that every response of the route is in.
    pub groups: Option<Groups>,
    /// Fields that carry a principal's credential: `Authorization` and its like.
    pub credential_fields: Arc<[HeaderName]>,
    /// Cookies that carry one.
    pub credential_cookies: Arc<[Box<str>]>,
}

impl Options {
    /// Whether a lifetime can come from the operator rather than from the origin.
    pub fn grants_lifetime(&self) -> bool {
        self.ttl.is_some() || self.force_ttl.is_some()
    }

    /// Whether an operator's lifetime applies to a status.
    pub fn grants_to(&self, status: StatusCode) -> bool {
        is_among(status, self.ttl_statuses.as_deref(), &TTL_STATUSES)
    }

    /// Whether stale may stand in for a response with this status (RFC 5861 §4).
    pub fn counts_as_failure(&self, status: StatusCode) -> bool {
        is_among(status, self.error_statuses.as_deref(), &ERROR_STATUSES)
    }

    /// What a response says to this cache, and whether it says so in a field of its own: then
    /// `Expires` is ignored with `Cache-Control` (RFC 9213 §2.2).
    pub fn control(&self, response: &HeaderMap) -> (CacheControl, bool) {
        match CacheControl::targeted(response, &self.targeted_fields) {
            Some(control) => (control, true),
            None => (CacheControl::parse(response, CACHE_CONTROL), false),
        }
    }

    /// Whether a request carries a credential that the response may depend on.
    pub fn has_credential(&self, headers: &HeaderMap) -> bool {
        // A look at each name: requests have few, and to hash one of no standard's costs more.
        let is_one =
            |name: &HeaderName| *name == CLIENT_CERT || self.credential_fields.contains(name);
        headers.keys().any(is_one)
            || self
                .credential_cookies
                .iter()
                .any(|name| fields::cookies(headers, name).next().is_some())
    }
}

/// What policy sees of a request.
#[derive(Clone, Copy, Debug)]
pub struct RequestView<'a> {
    pub method: &'a Method,
    pub headers: &'a HeaderMap,
    pub has_body: bool,
}
