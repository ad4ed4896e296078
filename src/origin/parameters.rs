//! Query parameters: each checked, all mistakes told at once.

use http::Uri;
use time::format_description::well_known::Rfc3339;
use time::{Date, OffsetDateTime, UtcOffset, format_description};

use crate::clock::Timestamp;
use crate::database::stored_time;

/// Most rows of one answer.
const MOST_ROWS: i64 = 1000;

/// The deepest page: what lies beyond is found by its date.
const MOST_PAGES: i64 = 10_000;

/// The parameters of one request, and what is wrong with them.
pub struct Parameters {
    pairs: Vec<(String, String)>,
    issues: Vec<(String, String)>,
}

impl Parameters {
    pub fn of(uri: &Uri) -> Self {
        let query = uri.query().unwrap_or_default();
        Self {
            pairs: url::form_urlencoded::parse(query.as_bytes())
                .into_owned()
                .collect(),
            issues: Vec::new(),
        }
    }

    /// The mistakes of those that were read.
    pub fn finish(self) -> Result<(), Vec<(String, String)>> {
        if self.issues.is_empty() {
            Ok(())
        } else {
            Err(self.issues)
        }
    }

    /// Not there, or empty, is the same.
    pub fn text(&self, name: &str) -> Option<String> {
        let found = self.pairs.iter().find(|(known, _)| known == name);
        found
            .map(|(_, value)| value.clone())
            .filter(|value| !value.is_empty())
    }

    fn parsed<T>(
        &mut self,
        name: &str,
        expected: &str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Option<T> {
        let text = self.text(name)?;
        let parsed = parse(&text);
        if parsed.is_none() {
            self.issues.push((
                name.to_owned(),
                format!("expected {expected}, got {text:?}"),
            ));
        }
        parsed
    }

    pub fn limit(&mut self, default: i64) -> i64 {
        let expected = format!("a whole number from 1 to {MOST_ROWS}");
        let parse = |text: &str| {
            text.parse()
                .ok()
                .filter(|limit| (1..=MOST_ROWS).contains(limit))
        };
        self.parsed("limit", &expected, parse).unwrap_or(default)
    }

    pub fn page(&mut self) -> i64 {
        let expected = format!("a whole number from 1 to {MOST_PAGES}");
        let parse = |text: &str| {
            text.parse()
                .ok()
                .filter(|page| (1..=MOST_PAGES).contains(page))
        };
        self.parsed("page", &expected, parse).unwrap_or(1)
    }

    pub fn confidence(&mut self) -> Option<f64> {
        let parse = |text: &str| text.parse().ok().filter(|part| (0.0..=1.0).contains(part));
        self.parsed("minConfidence", "a number from 0 to 1", parse)
    }

    /// `fromDate` and `toDate`, both included, in UTC; a day as `toDate` is meant to its end.
    pub fn dates(&mut self) -> (Option<String>, Option<String>) {
        let expected = "a date such as \"2026-11-24\" or a time such as \"2026-11-24T18:00:00Z\"";
        let from = self.parsed("fromDate", expected, |text| moment(text, false));
        let to = self.parsed("toDate", expected, |text| moment(text, true));
        if let (Some(from), Some(to)) = (&from, &to)
            && from > to
        {
            self.issues.push((
                "toDate".to_owned(),
                "expected a date after fromDate".to_owned(),
            ));
        }
        (from, to)
    }
}

fn moment(text: &str, is_end: bool) -> Option<String> {
    let time = match OffsetDateTime::parse(text, &Rfc3339) {
        Ok(time) => time.to_offset(UtcOffset::UTC),
        Err(_) => {
            let format = format_description::parse_borrowed::<2>("[year]-[month]-[day]").ok()?;
            let day = Date::parse(text, &format).ok()?;
            if is_end {
                day.with_hms_milli(23, 59, 59, 999).ok()?.assume_utc()
            } else {
                day.midnight().assume_utc()
            }
        }
    };
    let millis = u64::try_from(time.unix_timestamp_nanos() / 1_000_000).ok()?;
    Some(stored_time(Timestamp::from_millis(millis)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parameters(query: &str) -> Parameters {
        Parameters::of(&format!("/x?{query}").parse().unwrap())
    }

    #[test]
    fn all_mistakes_are_told_at_once() {
        let mut wrong = parameters("limit=0&page=x&minConfidence=2&fromDate=yesterday");
        assert_eq!((wrong.limit(50), wrong.page()), (50, 1));
        assert_eq!(wrong.confidence(), None);
        assert_eq!(wrong.dates(), (None, None));
        let issues = wrong.finish().unwrap_err();
        let names: Vec<&str> = issues.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["limit", "page", "minConfidence", "fromDate"]);
    }

    #[test]
    fn dates_are_moments_in_utc_and_a_day_lasts_to_its_end() {
        let mut some = parameters("fromDate=2026-11-24T01:00:00%2B02:00&toDate=2026-11-24");
        let (from, to) = some.dates();
        assert_eq!(from.as_deref(), Some("2026-11-23T23:00:00.000Z"));
        assert_eq!(to.as_deref(), Some("2026-11-24T23:59:59.999Z"));
        assert!(some.finish().is_ok());
        let mut turned = parameters("fromDate=2026-11-25&toDate=2026-11-24");
        turned.dates();
        assert!(turned.finish().is_err());
    }

    #[test]
    fn what_is_missing_or_empty_has_its_default() {
        let mut none = parameters("limit=&x=1");
        assert_eq!(
            (none.limit(7), none.page(), none.confidence()),
            (7, 1, None)
        );
        assert!(none.finish().is_ok());
    }
}
