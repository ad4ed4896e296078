//! HTTP dates (RFC 9110 §5.6.7): three formats in, IMF-fixdate out.

use std::sync::LazyLock;
use std::time::SystemTime;

use http::HeaderValue;

use crate::clock::Timestamp;

/// Reads a date in any of the three formats; `None` where it is none of them. Case does not count,
/// but the zone is GMT and nothing else (RFC 9111 §4.2).
pub fn parse(value: &HeaderValue) -> Option<Timestamp> {
    let text = value.to_str().ok()?.trim();
    read(text).or_else(|| {
        let text = in_usual_case(text);
        read(&text).or_else(|| by_another_day(&text))
    })
}

fn read(text: &str) -> Option<Timestamp> {
    httpdate::parse_http_date(text).ok().map(Timestamp::from)
}

const DAYS: [&str; 7] = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"];

const FULL: [&str; 7] = [
    "Monday",
    "Tuesday",
    "Wednesday",
    "Thursday",
    "Friday",
    "Saturday",
    "Sunday",
];

/// A date of which all but the day of the week is right: that says nothing which the rest does not
/// say. Of an rfc850-date it tells which of two centuries is meant, where both can be.
fn by_another_day(text: &str) -> Option<Timestamp> {
    let letters = text.bytes().take_while(u8::is_ascii_alphabetic).count();
    let (day, rest) = text.split_at(letters);
    if !DAYS.contains(&day) && !FULL.contains(&day) {
        return None;
    }
    let on_any_day = |rest: &str| {
        let mut dates = DAYS.iter().map(|day| format!("{day}{rest}"));
        dates.find_map(|text| read(&text))
    };
    let in_full = |rest: &str| {
        let dates = in_its_centuries(rest)?;
        let mut on_its_day = dates.iter().map(|rest| format!("{}{rest}", &day[..3]));
        let found = on_its_day.find_map(|text| read(&text));
        found.or_else(|| on_any_day(dates.first()?))
    };
    on_any_day(rest).or_else(|| in_full(rest))
}

/// What follows the day of an rfc850-date, written in full: in this century, unless that is more
/// than 50 years ahead, and in the last (RFC 9110 §5.6.7).
fn in_its_centuries(rest: &str) -> Option<Vec<String>> {
    let (date, time) = rest.strip_prefix(", ")?.split_once(' ')?;
    let mut parts = date.split('-');
    let (day, month, year) = (parts.next()?, parts.next()?, parts.next()?);
    if parts.next().is_some() || year.len() != 2 {
        return None;
    }
    let year: u64 = year.parse().ok()?;
    let years = [2000 + year, 1900 + year].into_iter();
    let possible = years.filter(|year| *year <= *THIS_YEAR + 50);
    Some(
        possible
            .map(|year| format!(", {day} {month} {year} {time}"))
            .collect(),
    )
}

/// By the system's clock, whatever a test says that the time is: in tens of years.
static THIS_YEAR: LazyLock<u64> = LazyLock::new(|| {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    1970 + now.unwrap_or_default().as_secs() / 31_556_952
});

/// The words of a date with their first letter alone in upper case, the zone but for its own.
fn in_usual_case(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut in_word = false;
    for letter in text.chars() {
        out.push(if in_word {
            letter.to_ascii_lowercase()
        } else {
            letter.to_ascii_uppercase()
        });
        in_word = letter.is_ascii_alphabetic();
    }
    match out.strip_suffix(" Gmt") {
        Some(date) => format!("{date} GMT"),
        None => out,
    }
}

/// Writes a date as IMF-fixdate.
pub fn format(time: Timestamp) -> HeaderValue {
    // httpdate can only write years up to 9999; its output is always visible ASCII.
    let time = SystemTime::from(time.min(Timestamp::from_millis(253_402_300_799_000)));
    HeaderValue::try_from(httpdate::fmt_http_date(time))
        .unwrap_or_else(|_| HeaderValue::from_static("Thu, 01 Jan 1970 00:00:00 GMT"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_three_formats_mean_the_same_moment() {
        for text in [
            "Sun, 06 Nov 1994 08:49:37 GMT",
            "Sunday, 06-Nov-94 08:49:37 GMT",
            "Sun Nov  6 08:49:37 1994",
        ] {
            let parsed = parse(&HeaderValue::from_static(text)).unwrap();
            assert_eq!(parsed.as_secs(), 784_111_777, "{text}");
        }
        assert_eq!(parse(&HeaderValue::from_static("0")), None);
    }

    #[test]
    fn case_does_not_count_and_gmt_is_the_only_zone() {
        let read = |text: &'static str| parse(&HeaderValue::from_static(text));
        let usual = read("Sun, 06 Nov 1994 08:49:37 GMT");
        for text in [
            "sun, 06 nov 1994 08:49:37 gmt",
            "SUN, 06 NOV 1994 08:49:37 GMT",
            "sunday, 06-nov-94 08:49:37 gmt",
            "sun nov  6 08:49:37 1994",
        ] {
            assert_eq!(read(text), usual, "{text}");
        }
        for text in [
            "Mon, 06 Nov 1994 08:49:37 GMT",
            "Wednesday, 06-Nov-94 08:49:37 GMT",
            "Tue Nov  6 08:49:37 1994",
        ] {
            assert_eq!(read(text), usual, "but for the day: {text}");
        }
        for text in [
            "Mon, 31 Feb 1994 08:49:37 GMT",
            "Xyz, 06 Nov 1994 08:49:37 GMT",
            "Monaday, 06 Nov 1994 08:49:37 GMT",
            ", 06 Nov 1994 08:49:37 GMT",
            "Sun, 06 Nov 1994 08:49:37 CET",
            "Sun, 06 Nov 1994 08:49:37 UTC",
            "Sun, 06 Nov 1994 08:49:37 +0000",
            "Sun, 06 Nov 1994 08:49:37",
        ] {
            assert_eq!(read(text), None, "{text}");
        }
    }

    #[test]
    fn two_digits_of_a_year_mean_at_most_fifty_years_ahead_and_else_what_their_weekday_fits() {
        let read = |text: &str| parse(&HeaderValue::from_str(text).unwrap());
        let full = read("Tue, 01 Jan 2075 00:00:00 GMT");
        assert!(full.is_some());
        assert_eq!(read("Tuesday, 01-Jan-75 00:00:00 GMT"), full);
        let past = read("Wed, 01 Jan 1975 00:00:00 GMT");
        assert_eq!(read("Wednesday, 01-Jan-75 00:00:00 GMT"), past);
        let past = read("Sun, 06 Nov 1994 08:49:37 GMT");
        for day in FULL {
            // Saturday is the day of 2094.
            assert_eq!(
                read(&format!("{day}, 06-Nov-94 08:49:37 GMT")),
                past,
                "{day}"
            );
        }
    }

    proptest::proptest! {
        #[test]
        fn what_was_written_is_read_back(seconds in 0_u64..253_402_300_799) {
            let time = Timestamp::from_millis(seconds * 1000);
            assert_eq!(parse(&format(time)), Some(time));
        }
    }

    #[test]
    fn fuzz_dates() {
        crate::fuzz::run(include_str!("../../tests/fuzz/dates.txt"), |input| {
            let Ok(value) = HeaderValue::from_bytes(input) else {
                return;
            };
            if let Some(time) = parse(&value) {
                assert_eq!(
                    parse(&format(time)).map(Timestamp::as_secs),
                    Some(time.as_secs())
                );
            }
        });
    }
}
