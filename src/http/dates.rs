//! HTTP dates (RFC 9110 §5.6.7): three formats in, IMF-fixdate out.

use std::time::SystemTime;

use http::HeaderValue;

use crate::clock::Timestamp;

/// Reads a date in any of the three formats; `None` where it is none of them. Case does not count,
/// but the zone is GMT and nothing else (RFC 9111 §4.2).
pub fn parse(value: &HeaderValue) -> Option<Timestamp> {
    let text = value.to_str().ok()?.trim();
    read(text).or_else(|| {
        let text = in_usual_case(text);
        let full = || rfc850_dates(&text).iter().find_map(|text| read(text));
        read(&text).or_else(full).or_else(|| by_another_day(&text))
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
/// say. Of the two centuries of an rfc850-date the one about now is meant.
fn by_another_day(text: &str) -> Option<Timestamp> {
    let letters = text.bytes().take_while(u8::is_ascii_alphabetic).count();
    let (day, rest) = text.split_at(letters);
    if !DAYS.contains(&day) && !FULL.contains(&day) {
        return None;
    }
    let on_another_day = |rest: &str| {
        let mut dates = DAYS.iter().map(|day| format!("{day}{rest}"));
        dates.find_map(|text| read(&text))
    };
    on_another_day(rest).or_else(|| {
        let rest = rest.strip_prefix(", ")?;
        let mut parts = rest.splitn(3, '-');
        let (day, month, rest) = (parts.next()?, parts.next()?, parts.next()?);
        let (year, time) = rest.split_once(' ')?;
        let is_short = year.len() == 2 && year.bytes().all(|byte| byte.is_ascii_digit());
        let century = if year < "70" { "20" } else { "19" };
        let full = format!(", {day} {month} {century}{year} {time}");
        is_short.then(|| on_another_day(&full)).flatten()
    })
}

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

/// An rfc850-date in both centuries that it can mean, written in full. Its day of the week fits
/// only one of them, so that it does not matter when it is read (RFC 9110 §5.6.7 decides by the
/// time of reading, for dates without a day that could be believed).
fn rfc850_dates(text: &str) -> Vec<String> {
    let full = || {
        let (weekday, rest) = text.split_once(", ")?;
        let (date, time) = rest.split_once(' ')?;
        let mut parts = date.split('-');
        let (day, month, year) = (parts.next()?, parts.next()?, parts.next()?);
        let is_short = year.len() == 2 && parts.next().is_none();
        let weekday = weekday.get(..3).filter(|_| is_short)?;
        Some(["19", "20"].map(|century| format!("{weekday}, {day} {month} {century}{year} {time}")))
    };
    full().into_iter().flatten().collect()
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
    fn two_digits_of_a_year_mean_the_century_that_their_weekday_fits() {
        let read = |text: &'static str| parse(&HeaderValue::from_static(text));
        let full = read("Tue, 01 Jan 2075 00:00:00 GMT");
        assert!(full.is_some());
        assert_eq!(read("Tuesday, 01-Jan-75 00:00:00 GMT"), full);
        let past = read("Wed, 01 Jan 1975 00:00:00 GMT");
        assert_eq!(read("Wednesday, 01-Jan-75 00:00:00 GMT"), past);
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
