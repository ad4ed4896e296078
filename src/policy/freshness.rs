//! Freshness: how long a stored response may be used, and how old it is now (RFC 9111 §4.2).

use std::time::Duration;

use http::header::{AGE, CONTENT_TYPE, DATE, ETAG, EXPIRES, LAST_MODIFIED};
use http::{HeaderMap, StatusCode};

use crate::clock::Timestamp;
use crate::http::{CacheControl, dates, fields};

use super::{Lifetimes, Options, Record};
use crate::http::cache_control::Scope;

impl Record {
    /// The record of a response asked for at `requested` and come at `received`.
    pub fn new(
        lifetimes: Lifetimes,
        headers: &HeaderMap,
        requested: Timestamp,
        received: Timestamp,
    ) -> Self {
        // What is older than the clock itself is as old as that: both ends of what follows are in
        // it.
        let oldest = received.since(Timestamp::EPOCH);
        let initial_age = initial_age(headers, requested, received).min(oldest);
        Self {
            lifetimes,
            born: received.minus(initial_age),
            received,
            has_validator: has_validator(headers),
        }
    }
}

/// corrected_initial_age (§4.2.3) of a response asked for at `requested` and come at `received`.
fn initial_age(headers: &HeaderMap, requested: Timestamp, received: Timestamp) -> Duration {
    let apparent = headers
        .get(DATE)
        .and_then(dates::parse)
        .map_or(Duration::ZERO, |date| received.since(date));
    let corrected = age_value(headers) + received.since(requested);
    // Clocks of whole seconds make a response look up to a second old that is not: below that,
    // Date tells nothing.
    let apparent = if apparent < Duration::from_secs(1) {
        Duration::ZERO
    } else {
        apparent
    };
    apparent.max(corrected)
}

/// `Age` (§5.1): the first member counts, what is not a number is no age, a large one is capped.
fn age_value(headers: &HeaderMap) -> Duration {
    let first = fields::members(headers, AGE).next();
    let digits = first.filter(|text| text.iter().all(u8::is_ascii_digit));
    let seconds = digits.and_then(|text| std::str::from_utf8(text).ok());
    let seconds = seconds.map_or(0, |text| text.parse().unwrap_or(u64::MAX));
    Duration::from_secs(seconds.min(1 << 31))
}

/// freshness_lifetime (§4.2.1) as the origin states it for a shared cache; `None` if it does not.
fn explicit_lifetime(
    control: &CacheControl,
    headers: &HeaderMap,
    received: Timestamp,
) -> Option<Duration> {
    if let Some(seconds) = control.s_maxage.or(control.max_age) {
        return Some(seconds);
    }
    let mut lines = headers.get_all(EXPIRES).iter();
    let expires = lines.next()?;
    // Repeated or broken: already expired (§5.3).
    if lines.next().is_some() {
        return Some(Duration::ZERO);
    }
    let date = headers.get(DATE).and_then(dates::parse).unwrap_or(received);
    Some(dates::parse(expires).map_or(Duration::ZERO, |expires| expires.since(date)))
}

/// A tenth of the time since the response was last modified (§4.2.2), for the statuses that allow
/// it (RFC 9110 §15.1) or say `public`, and only where the operator asked for guesses.
fn heuristic_lifetime(
    status: StatusCode,
    control: &CacheControl,
    headers: &HeaderMap,
    options: &Options,
    received: Timestamp,
) -> Option<Duration> {
    let cap = options.heuristic_max_ttl?;
    let by_status = matches!(
        status.as_u16(),
        200 | 203 | 204 | 300 | 301 | 308 | 404 | 405 | 410 | 414 | 501
    );
    if !(by_status || control.public) || is_event_stream(headers) {
        return None;
    }
    let modified = headers.get(LAST_MODIFIED).and_then(dates::parse)?;
    let date = headers.get(DATE).and_then(dates::parse).unwrap_or(received);
    Some((date.since(modified) / 10).min(cap))
}

/// The windows of a response, or `None` where neither origin nor operator gives a lifetime.
pub fn lifetimes(
    status: StatusCode,
    headers: &HeaderMap,
    options: &Options,
    received: Timestamp,
) -> Option<Lifetimes> {
    let (control, is_targeted) = options.control(headers);
    let explicit = if is_targeted {
        control.s_maxage.or(control.max_age)
    } else {
        explicit_lifetime(&control, headers, received)
    };
    let grants = takes_operator_lifetime(options, status, headers);
    let forced = options.force_ttl.filter(|_| grants);
    let of_errors = options.error_ttl.filter(|_| status.as_u16() >= 400);
    let fallback = of_errors.or(options.ttl.filter(|_| grants));

    let stated = forced.or(explicit).or(fallback);
    let guessed = || heuristic_lifetime(status, &control, headers, options, received);
    let fresh = stated.or_else(guessed)?;
    let granted_by_operator = forced.is_some() || (explicit.is_none() && stated.is_some());
    let no_cache = control.no_cache == Scope::All && !options.ignore.no_cache;
    let fresh = options.max_ttl.map_or(fresh, |cap| fresh.min(cap));
    let mut found = Lifetimes {
        fresh: if no_cache { Duration::ZERO } else { fresh },
        granted_by_operator,
        immutable: control.immutable,
        forbids_stale: no_cache || forced.is_none() && forbids_stale(&control),
        ..Lifetimes::default()
    };
    if no_cache {
        return Some(found);
    }
    let windows = (options.stale_while_revalidate, options.stale_if_error);
    let origin = (control.stale_while_revalidate, control.stale_if_error);
    let (revalidate, on_error) = if forced.is_some() {
        (windows.0.or(origin.0), windows.1.or(origin.1))
    } else if control.must_revalidate || control.proxy_revalidate {
        (None, None)
    } else if control.s_maxage.is_some() {
        // s-maxage forbids stale as proxy-revalidate does (§5.2.2.10), but for what the same
        // origin allows in the same breath by RFC 5861.
        origin
    } else {
        (origin.0.or(windows.0), origin.1.or(windows.1))
    };
    found.stale_while_revalidate = revalidate.unwrap_or_default();
    found.stale_if_error = on_error.unwrap_or_default();
    Some(found)
}

/// The windows of a response that is stored for its validator alone: none.
pub fn never_fresh(control: &CacheControl) -> Lifetimes {
    Lifetimes {
        forbids_stale: control.no_cache == Scope::All || forbids_stale(control),
        ..Lifetimes::default()
    }
}

/// §4.2.4, §5.2.2.2, §5.2.2.8, §5.2.2.10.
fn forbids_stale(control: &CacheControl) -> bool {
    control.must_revalidate || control.proxy_revalidate || control.s_maxage.is_some()
}

/// Whether the origin can be asked to confirm a response.
pub fn has_validator(headers: &HeaderMap) -> bool {
    headers.contains_key(ETAG) || headers.contains_key(LAST_MODIFIED)
}

/// Whether an operator's `ttl` or `force_ttl` applies: by its status, and never to a stream of
/// events, whose body does not end.
fn takes_operator_lifetime(options: &Options, status: StatusCode, headers: &HeaderMap) -> bool {
    options.grants_to(status) && !is_event_stream(headers)
}

pub fn is_event_stream(headers: &HeaderMap) -> bool {
    headers.get(CONTENT_TYPE).is_some_and(|value| {
        let media_type = value.as_bytes().split(|byte| *byte == b';').next();
        media_type
            .unwrap_or_default()
            .trim_ascii()
            .eq_ignore_ascii_case(b"text/event-stream")
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::policy::{Standing, StoredView};
    use http::{HeaderName, HeaderValue};

    const NOW: Timestamp = Timestamp::from_millis(784_111_777_000);

    fn headers(lines: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            let value = HeaderValue::from_str(value).unwrap();
            headers.append(HeaderName::from_static(name), value);
        }
        headers
    }

    fn seconds(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    fn windows(lines: &[(&'static str, &str)], options: &Options) -> Option<Lifetimes> {
        lifetimes(StatusCode::OK, &headers(lines), options, NOW)
    }

    #[test]
    fn s_maxage_goes_before_max_age_before_expires() {
        let none = Options::default();
        let expires = ("expires", "Sun, 06 Nov 1994 08:50:37 GMT");
        let date = ("date", "Sun, 06 Nov 1994 08:49:37 GMT");
        let fresh = |lines: &[_]| windows(lines, &none).map(|found| found.fresh);
        assert_eq!(
            fresh(&[("cache-control", "max-age=5, s-maxage=9"), expires]),
            Some(seconds(9))
        );
        assert_eq!(
            fresh(&[("cache-control", "max-age=5"), expires, date]),
            Some(seconds(5))
        );
        assert_eq!(fresh(&[expires, date]), Some(seconds(60)));
        assert_eq!(fresh(&[("expires", "0")]), Some(Duration::ZERO));
        assert_eq!(fresh(&[("etag", "\"a\"")]), None);
    }

    #[test]
    fn the_operators_three_keys_say_what_they_mean() {
        let options = |ttl, force, max| Options {
            ttl: Option::map(ttl, seconds),
            force_ttl: Option::map(force, seconds),
            max_ttl: Option::map(max, seconds),
            ..Options::default()
        };
        let origin = &[("cache-control", "max-age=100")][..];
        let fresh = |lines, options: &Options| windows(lines, options).map(|found| found.fresh);
        assert_eq!(
            fresh(&[], &options(Some(30), None, None)),
            Some(seconds(30))
        );
        assert_eq!(
            fresh(origin, &options(Some(30), None, None)),
            Some(seconds(100))
        );
        assert_eq!(
            fresh(origin, &options(None, Some(7), None)),
            Some(seconds(7))
        );
        assert_eq!(
            fresh(origin, &options(None, None, Some(50))),
            Some(seconds(50))
        );
    }

    #[test]
    fn must_revalidate_forbids_stale_and_force_ttl_overrules_it() {
        let mut options = Options {
            stale_while_revalidate: Some(seconds(9)),
            ..Options::default()
        };
        let origin = &[("cache-control", "public, max-age=0, must-revalidate")][..];
        assert_eq!(
            windows(origin, &options).unwrap().stale_while_revalidate,
            Duration::ZERO
        );
        options.force_ttl = Some(seconds(30));
        let found = windows(origin, &options).unwrap();
        assert_eq!(
            (found.fresh, found.stale_while_revalidate),
            (seconds(30), seconds(9))
        );
        assert!(found.granted_by_operator);
    }

    #[test]
    fn s_maxage_allows_only_the_stale_that_the_origin_itself_allows() {
        let options = Options {
            stale_if_error: Some(seconds(60)),
            ..Options::default()
        };
        let found = windows(
            &[("cache-control", "s-maxage=60, stale-while-revalidate=120")],
            &options,
        );
        let found = found.unwrap();
        assert_eq!(found.stale_while_revalidate, seconds(120));
        assert_eq!(found.stale_if_error, Duration::ZERO);
    }

    #[test]
    fn what_an_operator_grants_counts_from_receipt() {
        let late = headers(&[("date", "Sun, 06 Nov 1994 08:44:37 GMT")]);
        let granted = Lifetimes {
            fresh: seconds(30),
            granted_by_operator: true,
            ..Lifetimes::default()
        };
        let record = Record::new(granted, &late, NOW, NOW);
        assert_eq!(record.age(NOW), seconds(300));
        assert_eq!(
            StoredView::of(&record).standing(NOW),
            Standing::Fresh { left: seconds(30) }
        );
        let stated = Lifetimes {
            fresh: seconds(30),
            ..Lifetimes::default()
        };
        assert_eq!(
            StoredView::of(&Record::new(stated, &late, NOW, NOW)).standing(NOW),
            Standing::Expired
        );
    }

    #[test]
    fn a_targeted_field_speaks_in_the_place_of_cache_control_and_expires() {
        let options = Options {
            targeted_fields: [HeaderName::from_static("cdn-cache-control")].into(),
            ..Options::default()
        };
        let public = ("cache-control", "max-age=5");
        let fresh = |lines: &[_]| windows(lines, &options).map(|found| found.fresh);
        assert_eq!(
            fresh(&[public, ("cdn-cache-control", "max-age=60")]),
            Some(seconds(60))
        );
        assert_eq!(
            fresh(&[public, ("cdn-cache-control", "max-age=60,")]),
            Some(seconds(5))
        );
        let expires = ("expires", "Sun, 06 Nov 1994 08:50:37 GMT");
        assert_eq!(fresh(&[expires, ("cdn-cache-control", "public")]), None);
        assert_eq!(fresh(&[expires]), Some(seconds(60)));
    }

    #[test]
    fn guesses_are_a_tenth_of_the_interval_capped_and_only_on_request() {
        let lines = &[
            ("date", "Sun, 06 Nov 1994 08:49:37 GMT"),
            ("last-modified", "Sun, 06 Nov 1994 08:39:37 GMT"),
        ][..];
        let with = |cap| Options {
            heuristic_max_ttl: Some(seconds(cap)),
            ..Options::default()
        };
        let fresh = |lines, options: &Options| windows(lines, options).map(|found| found.fresh);
        assert_eq!(fresh(lines, &Options::default()), None);
        assert_eq!(fresh(lines, &with(3600)), Some(seconds(60)));
        assert_eq!(fresh(lines, &with(20)), Some(seconds(20)));
        let stated = [lines, &[("cache-control", "max-age=5")]].concat();
        assert_eq!(fresh(&stated, &with(3600)), Some(seconds(5)));
        let not_found = lifetimes(StatusCode::NOT_FOUND, &headers(lines), &with(3600), NOW);
        assert!(not_found.is_some_and(|found| !found.granted_by_operator));
        assert_eq!(
            lifetimes(StatusCode::FORBIDDEN, &headers(lines), &with(3600), NOW),
            None
        );
    }

    /// Numbers about the ends of what they are kept in.
    fn extreme() -> impl Strategy<Value = u64> {
        const ENDS: [u64; 8] = [
            0,
            1,
            2,
            1 << 31,
            1 << 32,
            1 << 53,
            u64::MAX / 1000,
            u64::MAX,
        ];
        prop_oneof![
            proptest::sample::select(&ENDS[..]),
            proptest::sample::select(&ENDS[..]).prop_map(|end| end.wrapping_sub(1)),
            any::<u64>(),
        ]
    }

    fn moment() -> impl Strategy<Value = Timestamp> {
        prop_oneof![
            extreme().prop_map(Timestamp::from_millis),
            Just(NOW),
            (0_u64..4_000_000_000_000).prop_map(Timestamp::from_millis),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        /// Whatever a response says of its age and its times, no addition or subtraction of times
        /// goes over an end, and nothing lives longer than it was granted.
        #[test]
        fn no_time_is_so_extreme_that_a_response_lives_longer_than_granted(
            (requested, received, now) in (moment(), moment(), moment()),
            (age, max_age, window) in (extreme(), proptest::option::of(extreme()), extreme()),
            (date, expires) in (moment(), proptest::option::of(moment())),
            (ttl, force, cap) in (0_u64..1 << 31, any::<bool>(), proptest::option::of(0_u64..1 << 31)),
        ) {
            let mut fields = HeaderMap::new();
            let mut set = |name: &'static str, value: String| {
                fields.insert(name, http::HeaderValue::try_from(value).unwrap());
            };
            set("age", age.to_string());
            let lifetime = max_age.map_or(String::new(), |seconds| format!("max-age={seconds}, "));
            set("cache-control", format!(
                "{lifetime}stale-while-revalidate={window}, stale-if-error={window}"
            ));
            fields.insert(DATE, dates::format(date));
            if let Some(expires) = expires {
                fields.insert(EXPIRES, dates::format(expires));
            }
            let options = Options {
                ttl: Some(seconds(ttl)),
                force_ttl: force.then_some(seconds(ttl)),
                max_ttl: cap.map(seconds),
                stale_if_error: Some(seconds(window.min(1 << 31))),
                ..Options::default()
            };
            let found = lifetimes(StatusCode::OK, &fields, &options, received).unwrap();
            let granted = found.granted_by_operator;
            let record = Record::new(found, &fields, requested, received);
            let left = match crate::policy::StoredView::of(&record).standing(received) {
                Standing::Fresh { left } => left,
                _ => Duration::ZERO,
            };
            if granted {
                prop_assert!(left <= seconds(ttl), "{left:?} of {ttl}");
            }
            if let Some(cap) = cap {
                prop_assert!(left <= seconds(cap), "{left:?} of {cap}");
            }
            let view = crate::policy::StoredView::of(&record);
            let _ = (view.is_reusable(now), view.ttl(now), view.age(now));
            // Older by a moment is never fresher.
            let later = record.age(now.plus(seconds(1)));
            prop_assert!(later >= record.age(now));
        }
    }

    #[test]
    fn age_counts_date_age_and_delay() {
        let asked = NOW.minus(seconds(2));
        assert_eq!(
            initial_age(&headers(&[("age", "7")]), asked, NOW),
            seconds(9)
        );
        let date = headers(&[("date", "Sun, 06 Nov 1994 08:49:07 GMT")]);
        assert_eq!(initial_age(&date, asked, NOW), seconds(30));
        // The first member of a list counts (§5.1).
        assert_eq!(
            initial_age(&headers(&[("age", "7, 3")]), NOW, NOW),
            seconds(7)
        );
        for broken in ["-1", "x", "1.5"] {
            assert_eq!(
                initial_age(&headers(&[("age", broken)]), NOW, NOW),
                Duration::ZERO
            );
        }
        let large = headers(&[("age", "99999999999999999999")]);
        assert_eq!(initial_age(&large, NOW, NOW), seconds(1 << 31));
    }
}
