//! HTTP dates (RFC 9110 §5.6.7): three formats in, IMF-fixdate out.

use std::time::SystemTime;

use http::HeaderValue;

use crate::clock::Timestamp;

/// Reads a date in any of the three formats; `None` where it is none of them.
pub fn parse(value: &HeaderValue) -> Option<Timestamp> {
    let text = value.to_str().ok()?.trim();
    httpdate::parse_http_date(text).ok().map(Timestamp::from)
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

    proptest::proptest! {
        #[test]
        fn what_was_written_is_read_back(seconds in 0_u64..253_402_300_799) {
            let time = Timestamp::from_millis(seconds * 1000);
            assert_eq!(parse(&format(time)), Some(time));
        }
    }
}
