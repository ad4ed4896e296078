//! What to do with a request, given what is stored for it (RFC 9111 §4).

use std::time::Duration;

use http::Method;
use http::header::{COOKIE, IF_MATCH, IF_UNMODIFIED_SINCE};

use crate::clock::Timestamp;
use crate::http::fields;

use super::{Cookies, Options, Reason, RequestView, Standing, StoredView, Wishes, range};

/// The answer of [`decide()`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Reuse it as it stands.
    Hit { age: Duration, left: Duration },
    /// Reuse it at once, and refresh it behind the answer.
    StaleHit {
        age: Duration,
        over: Duration,
        reason: Reason,
    },
    /// Ask the origin, conditionally where `validate`; `on_error` says whether what is stored may
    /// stand in if the origin fails.
    Miss {
        reason: Reason,
        validate: bool,
        on_error: bool,
    },
}

/// Why a request must not be looked up at all; `None` if it may be.
pub fn bypass(request: RequestView<'_>, options: &Options) -> Option<Reason> {
    if request.method != Method::GET && request.method != Method::HEAD {
        return Some(Reason::Method);
    }
    if request.has_body {
        return Some(Reason::RequestBody);
    }
    let headers = request.headers;
    if fields::asks_for_tunnel(headers).is_some() {
        return Some(Reason::Upgrade);
    }
    if range::is_foreign(headers) {
        return Some(Reason::Range);
    }
    if headers.contains_key(IF_MATCH) || headers.contains_key(IF_UNMODIFIED_SINCE) {
        return Some(Reason::Precondition);
    }
    if fields::authenticates_connection(headers) {
        return Some(Reason::Credential);
    }
    let by_cookie = options.cookies == Cookies::Bypass && headers.contains_key(COOKIE);
    (by_cookie && options.force_ttl.is_some()).then_some(Reason::Cookie)
}

/// Ranks a stored response for this request, at `now`.
pub fn decide(
    request: RequestView<'_>,
    stored: Option<StoredView<'_>>,
    options: &Options,
    now: Timestamp,
) -> Decision {
    let Some(stored) = stored else {
        return Decision::Miss {
            reason: Reason::Cold,
            validate: false,
            on_error: false,
        };
    };
    let record = stored.record;
    // A lifetime that the operator granted was not granted for requests with cookies.
    let foreign = record.lifetimes.granted_by_operator
        && options.cookies == Cookies::Bypass
        && request.headers.contains_key(COOKIE);
    if foreign {
        return Decision::Miss {
            reason: Reason::Cookie,
            validate: false,
            on_error: false,
        };
    }
    let age = stored.age(now);
    let over = stored.over(now).unwrap_or_default();
    let wishes = Wishes::about_stored(request.headers, options.obey);
    let standing = stored.standing(now);
    let miss = |reason| Decision::Miss {
        reason,
        validate: record.has_validator,
        on_error: standing == Standing::StaleIfError,
    };
    match standing {
        Standing::Fresh { left } if wishes.refuse(age, left, record.lifetimes.immutable) => {
            miss(Reason::ClientDirective)
        }
        Standing::Fresh { left } => Decision::Hit { age, left },
        _ if !record.lifetimes.forbids_stale && !wishes.no_cache && wishes.accept_stale(over) => {
            Decision::StaleHit {
                age,
                over,
                reason: Reason::MaxStale,
            }
        }
        Standing::StaleWhileRevalidate if wishes.refuse(age, Duration::ZERO, false) => {
            miss(Reason::ClientDirective)
        }
        Standing::StaleWhileRevalidate => Decision::StaleHit {
            age,
            over,
            reason: Reason::StaleWhileRevalidate,
        },
        _ if stored.stale_since.is_some() => miss(Reason::Purged),
        _ if record.lifetimes.fresh.is_zero() => miss(Reason::MustValidate),
        _ => miss(Reason::Expired),
    }
}

/// Whether a stored response may stand in for an origin that has just failed (RFC 5861 §4).
pub fn usable_on_error(stored: StoredView<'_>, now: Timestamp) -> bool {
    let over = stored.over(now).unwrap_or_default();
    stored.is_reusable(now) || over < stored.record.lifetimes.stale_if_error
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{Lifetimes, Obey, Record};
    use http::header::CACHE_CONTROL;
    use http::{HeaderMap, HeaderValue};

    fn seconds(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    fn record() -> Record {
        Record {
            lifetimes: Lifetimes {
                fresh: seconds(10),
                stale_while_revalidate: seconds(10),
                stale_if_error: seconds(60),
                granted_by_operator: true,
                ..Lifetimes::default()
            },
            has_validator: true,
            ..Record::default()
        }
    }

    fn at(second: u64, headers: &HeaderMap) -> Decision {
        let request = RequestView {
            method: &Method::GET,
            headers,
            has_body: false,
        };
        let now = Timestamp::from_millis(second * 1000);
        decide(
            request,
            Some(StoredView::of(&record())),
            &Options::default(),
            now,
        )
    }

    #[test]
    fn a_stored_response_goes_from_hit_to_stale_to_miss() {
        let none = HeaderMap::new();
        let (age, left) = (seconds(4), seconds(6));
        assert_eq!(at(4, &none), Decision::Hit { age, left });
        let (age, over) = (seconds(12), seconds(2));
        let reason = Reason::StaleWhileRevalidate;
        assert_eq!(at(12, &none), Decision::StaleHit { age, over, reason });
        let late = |on_error| Decision::Miss {
            reason: Reason::Expired,
            validate: true,
            on_error,
        };
        assert_eq!(at(30, &none), late(true));
        assert_eq!(at(90, &none), late(false));
    }

    #[test]
    fn a_lifetime_of_the_operator_is_not_for_requests_with_cookies() {
        let headers = HeaderMap::from_iter([(COOKIE, HeaderValue::from_static("a=1"))]);
        let found = at(4, &headers);
        assert!(matches!(
            found,
            Decision::Miss {
                reason: Reason::Cookie,
                ..
            }
        ));
    }

    #[test]
    fn a_clients_wishes_count_where_the_route_obeys_them() {
        let obey = Obey {
            max_age: true,
            min_fresh: true,
            max_stale: true,
            no_cache: true,
            ..Obey::DEFAULT
        };
        let options = Options {
            obey,
            ..Options::default()
        };
        let ask = |second: u64, value: &'static str, forbids_stale| {
            let headers = HeaderMap::from_iter([(CACHE_CONTROL, HeaderValue::from_static(value))]);
            let request = RequestView {
                method: &Method::GET,
                headers: &headers,
                has_body: false,
            };
            let mut record = record();
            record.lifetimes.forbids_stale = forbids_stale;
            decide(
                request,
                Some(StoredView::of(&record)),
                &options,
                Timestamp::from_millis(second * 1000),
            )
        };
        let refused = |found| {
            matches!(
                found,
                Decision::Miss {
                    reason: Reason::ClientDirective,
                    ..
                }
            )
        };
        assert!(refused(ask(4, "no-cache", false)));
        assert!(refused(ask(4, "max-age=3", false)));
        assert!(!refused(ask(4, "max-age=4", false)));
        assert!(refused(ask(4, "min-fresh=7", false)));
        assert!(!refused(ask(4, "min-fresh=6", false)));
        assert!(refused(ask(12, "max-age=5", false)));
        let late = ask(90, "max-stale=100", false);
        assert!(matches!(
            late,
            Decision::StaleHit {
                reason: Reason::MaxStale,
                ..
            }
        ));
        assert!(matches!(
            ask(90, "max-stale=10", false),
            Decision::Miss { .. }
        ));
        assert!(matches!(ask(90, "max-stale", true), Decision::Miss { .. }));
    }

    #[test]
    fn requests_that_need_the_origin_itself_are_not_looked_up() {
        let table = [("range", Reason::Range), ("if-match", Reason::Precondition)];
        let bypassed = |fields: &[(&'static str, &'static str)]| {
            let pairs = fields.iter().map(|(name, value)| {
                let name = http::HeaderName::from_static(name);
                (name, HeaderValue::from_static(value))
            });
            let headers: HeaderMap = pairs.collect();
            let request = RequestView {
                method: &Method::GET,
                headers: &headers,
                has_body: false,
            };
            bypass(request, &Options::default())
        };
        for (name, reason) in table {
            assert_eq!(bypassed(&[(name, "x=0-1")]), Some(reason));
        }
        // Nothing is tunnelled where another HTTP is offered, or nobody asks for a switch.
        let asked = ("connection", "Upgrade");
        let upgrades = [
            ("websocket", Some(Reason::Upgrade)),
            ("h2c", None),
            ("TLS/1.2", None),
            ("HTTP/2.0", None),
            ("websocket, h2c", None),
        ];
        for (protocol, reason) in upgrades {
            assert_eq!(
                bypassed(&[asked, ("upgrade", protocol)]),
                reason,
                "{protocol}"
            );
            assert_eq!(bypassed(&[("upgrade", protocol)]), None, "{protocol}");
        }
    }

    #[test]
    fn a_soft_purge_ends_freshness_and_the_windows_count_from_it() {
        let (record, headers) = (record(), HeaderMap::new());
        let purged = |at: u64, now: u64| {
            let stored = StoredView {
                record: &record,
                stale_since: Some(Timestamp::from_millis(at * 1000)),
            };
            let request = RequestView {
                method: &Method::GET,
                headers: &headers,
                has_body: false,
            };
            let now = Timestamp::from_millis(now * 1000);
            (
                decide(request, Some(stored), &Options::default(), now),
                stored.ttl(now),
            )
        };
        let stale = |age: u64, over: u64| Decision::StaleHit {
            age: seconds(age),
            over: seconds(over),
            reason: Reason::StaleWhileRevalidate,
        };
        assert_eq!(purged(3, 4), (stale(4, 1), -1));
        let late = Decision::Miss {
            reason: Reason::Purged,
            validate: true,
            on_error: true,
        };
        assert_eq!(purged(3, 14).0, late);
        // It had been stale for longer than that already.
        assert_eq!(purged(18, 19).0, stale(19, 9));
    }

    #[test]
    fn a_reload_of_what_is_immutable_is_a_hit_while_it_is_fresh() {
        let obey = Obey {
            max_age: true,
            no_cache: true,
            ..Obey::DEFAULT
        };
        let options = Options {
            obey,
            ..Options::default()
        };
        let mut record = record();
        record.lifetimes.immutable = true;
        let hits = |second: u64, value: &'static str| {
            let headers = HeaderMap::from_iter([(CACHE_CONTROL, HeaderValue::from_static(value))]);
            let request = RequestView {
                method: &Method::GET,
                headers: &headers,
                has_body: false,
            };
            let now = Timestamp::from_millis(second * 1000);
            let found = decide(request, Some(StoredView::of(&record)), &options, now);
            !matches!(found, Decision::Miss { .. })
        };
        assert!(hits(4, "max-age=0"));
        // The user's own word, and a stale response: as if it said nothing (RFC 8246 §2).
        assert!(!hits(4, "no-cache"));
        assert!(!hits(12, "max-age=0"));
    }
}
