//! What a client may ask of the cache: the request directives (RFC 9111 §5.2.1) that a route obeys.
//!
//! An origin behind a sidecar needs protection from clients that always say `no-cache`, so a route
//! obeys only what it was told to; `only-if-cached`, which can cost the origin nothing, is the
//! default.

use std::time::Duration;

use http::HeaderMap;
use http::header::{CACHE_CONTROL, PRAGMA};

use crate::http::cache_control::Scope;
use crate::http::{CacheControl, fields};

/// The directives that a route obeys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Obey {
    pub max_age: bool,
    pub min_fresh: bool,
    pub max_stale: bool,
    /// Also `Pragma: no-cache`, where there is no `Cache-Control` (§5.4).
    pub no_cache: bool,
    pub no_store: bool,
    pub only_if_cached: bool,
}

impl Obey {
    /// What a route obeys that says nothing.
    pub const DEFAULT: Self = Self {
        max_age: false,
        min_fresh: false,
        max_stale: false,
        no_cache: false,
        no_store: false,
        only_if_cached: true,
    };

    /// Whether any word is obeyed that is about a stored response: most routes obey none, and their
    /// hits need not read what the client says.
    fn is_about_stored(self) -> bool {
        self.max_age || self.min_fresh || self.max_stale || self.no_cache
    }
}

impl Default for Obey {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// What is left of a client's wishes after the route's word.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wishes {
    /// Only a response that the origin has just confirmed.
    pub no_cache: bool,
    /// Keep nothing of this exchange.
    pub no_store: bool,
    /// Nothing, rather than the origin's answer.
    pub only_if_cached: bool,
    pub max_age: Option<Duration>,
    pub min_fresh: Option<Duration>,
    pub max_stale: Option<Duration>,
}

impl Wishes {
    pub fn of(request: &HeaderMap, obey: Obey) -> Self {
        if !request.contains_key(CACHE_CONTROL) {
            let no_cache = obey.no_cache && fields::has_member(request, PRAGMA, "no-cache");
            return Self {
                no_cache,
                ..Self::default()
            };
        }
        let control = CacheControl::parse(request, CACHE_CONTROL);
        Self {
            no_cache: obey.no_cache && control.no_cache != Scope::Absent,
            no_store: obey.no_store && control.no_store,
            only_if_cached: obey.only_if_cached && control.only_if_cached,
            max_age: control.max_age.filter(|_| obey.max_age),
            min_fresh: control.min_fresh.filter(|_| obey.min_fresh),
            max_stale: control.max_stale.filter(|_| obey.max_stale),
        }
    }

    /// As [`Wishes::of`], as far as they are about a stored response.
    pub fn about_stored(request: &HeaderMap, obey: Obey) -> Self {
        if obey.is_about_stored() {
            Self::of(request, obey)
        } else {
            Self::default()
        }
    }

    /// Whether a response of this `age`, with so much freshness left, is too old for the client.
    /// `max-age`, which a reload sends, does not count against one that will not change
    /// (RFC 8246 §2).
    pub fn refuse(&self, age: Duration, left: Duration, immutable: bool) -> bool {
        self.no_cache
            || self.max_age.is_some_and(|limit| age > limit && !immutable)
            || self.min_fresh.is_some_and(|least| left < least)
    }

    /// Whether the client takes a response that has been stale for so long.
    pub fn accept_stale(&self, over: Duration) -> bool {
        self.max_stale.is_some_and(|limit| over <= limit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    const ALL: Obey = Obey {
        max_age: true,
        min_fresh: true,
        max_stale: true,
        no_cache: true,
        no_store: true,
        only_if_cached: true,
    };

    fn wishes(name: &'static str, value: &'static str, obey: Obey) -> Wishes {
        let mut headers = HeaderMap::new();
        headers.insert(name, HeaderValue::from_static(value));
        Wishes::of(&headers, obey)
    }

    #[test]
    fn only_what_the_route_obeys_is_left() {
        let all = "no-cache, no-store, only-if-cached, max-age=1, min-fresh=2, max-stale=3";
        let found = wishes("cache-control", all, Obey::default());
        assert_eq!(
            found,
            Wishes {
                only_if_cached: true,
                ..Wishes::default()
            }
        );
        let found = wishes("cache-control", all, ALL);
        assert!(found.no_cache && found.no_store);
        assert_eq!(found.max_stale, Some(Duration::from_secs(3)));
    }

    #[test]
    fn pragma_counts_only_without_cache_control() {
        assert!(wishes("pragma", "no-cache", ALL).no_cache);
        assert!(!wishes("pragma", "no-cache", Obey::default()).no_cache);
        let mut both = HeaderMap::new();
        both.insert(PRAGMA, HeaderValue::from_static("no-cache"));
        both.insert(CACHE_CONTROL, HeaderValue::from_static("max-age=60"));
        assert!(!Wishes::of(&both, ALL).no_cache);
    }

    #[test]
    fn max_stale_without_a_value_takes_any_age() {
        let found = wishes("cache-control", "max-stale", ALL);
        assert!(found.accept_stale(Duration::from_secs(1 << 30)));
        assert!(!wishes("cache-control", "max-stale=5", ALL).accept_stale(Duration::from_secs(6)));
    }
}
