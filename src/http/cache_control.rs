//! `Cache-Control` as data (RFC 9111 §5.2), requests and responses alike.

use std::time::Duration;

use http::header::{AsHeaderName, HeaderMap, HeaderName, HeaderValue};
use sfv::{BareItem, Dictionary, ListEntry, Parser};

use super::fields::{members, split_list};

/// delta-seconds above this mean "as long as can be" (RFC 9111 §1.2.2).
const DELTA_CAP: u64 = 1 << 31;

/// A directive that stands alone or names fields: `no-cache`, `private`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Scope {
    #[default]
    Absent,
    /// Only these fields are meant.
    Fields(Vec<HeaderName>),
    /// The whole message is meant.
    All,
}

impl Scope {
    fn narrow(&mut self, argument: Option<&[u8]>) {
        let named: Option<Vec<HeaderName>> = argument.map(|text| {
            split_list(unquote(text))
                .filter_map(|name| HeaderName::from_bytes(name).ok())
                .collect()
        });
        // Without a usable argument the directive means everything: the more restrictive reading.
        *self = match (std::mem::take(self), named) {
            (Self::All, _) | (_, None) => Self::All,
            (_, Some(names)) if names.is_empty() => Self::All,
            (Self::Fields(mut before), Some(mut names)) => {
                before.append(&mut names);
                Self::Fields(before)
            }
            (Self::Absent, Some(names)) => Self::Fields(names),
        };
    }
}

/// The directives of one message. Where one repeats, the most restrictive value is kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CacheControl {
    pub no_store: bool,
    pub no_cache: Scope,
    pub private: Scope,
    pub public: bool,
    pub must_revalidate: bool,
    pub proxy_revalidate: bool,
    pub must_understand: bool,
    pub immutable: bool,
    pub only_if_cached: bool,
    pub max_age: Option<Duration>,
    pub s_maxage: Option<Duration>,
    pub stale_while_revalidate: Option<Duration>,
    pub stale_if_error: Option<Duration>,
    pub min_fresh: Option<Duration>,
    /// `max-stale` without a value accepts any age: [`Duration::MAX`].
    pub max_stale: Option<Duration>,
}

impl CacheControl {
    /// Reads all lines of `name`, which is `Cache-Control` or a targeted field of its syntax.
    pub fn parse(headers: &HeaderMap, name: impl AsHeaderName) -> Self {
        let mut found = Self::default();
        for member in members(headers, name) {
            found.take(member);
        }
        found
    }

    /// Reads the first of the targeted fields `names` that is valid and not empty
    /// (RFC 9213 §2.1–2.2): a Dictionary of Structured Fields (RFC 9651), not a list of tokens.
    pub fn targeted(headers: &HeaderMap, names: &[HeaderName]) -> Option<Self> {
        names
            .iter()
            .find_map(|name| Self::from_dictionary(headers, name))
    }

    fn from_dictionary(headers: &HeaderMap, name: &HeaderName) -> Option<Self> {
        let lines: Vec<&[u8]> = headers
            .get_all(name)
            .iter()
            .map(HeaderValue::as_bytes)
            .collect();
        if lines.is_empty() {
            return None;
        }
        let text = lines.join(&b", "[..]);
        let dictionary: Dictionary = Parser::new(&text).parse().ok()?;
        if dictionary.is_empty() {
            return None;
        }
        let mut found = Self::default();
        for (name, entry) in &dictionary {
            let ListEntry::Item(item) = entry else {
                continue;
            };
            let name = name.as_str().as_bytes();
            // Parameters are ignored (§2.1).
            match &item.bare_item {
                BareItem::Boolean(true) => found.take_directive(name, None),
                BareItem::Boolean(false) => {}
                BareItem::Integer(number) => {
                    found.take_directive(name, Some(number.to_string().as_bytes()));
                }
                // Only what names fields is a string (RFC 9213 §2.1); a number in quotes is none.
                BareItem::String(text) if matches!(name, b"no-cache" | b"private") => {
                    found.take_directive(name, Some(text.as_str().as_bytes()));
                }
                // No directive has such a value: where a number is wanted it is none, so stale.
                _ => found.take_directive(name, Some(b"?")),
            }
        }
        Some(found)
    }

    fn take(&mut self, member: &[u8]) {
        let equals = member.iter().position(|byte| *byte == b'=');
        let (name, argument) = match equals {
            Some(at) => (&member[..at], Some(member[at + 1..].trim_ascii())),
            None => (member, None),
        };
        self.take_directive(&name.trim_ascii().to_ascii_lowercase(), argument);
    }

    fn take_directive(&mut self, name: &[u8], argument: Option<&[u8]>) {
        match name {
            b"no-store" => self.no_store = true,
            b"no-cache" => self.no_cache.narrow(argument),
            b"private" => self.private.narrow(argument),
            b"public" => self.public = true,
            b"must-revalidate" => self.must_revalidate = true,
            b"proxy-revalidate" => self.proxy_revalidate = true,
            b"must-understand" => self.must_understand = true,
            b"immutable" => self.immutable = true,
            b"only-if-cached" => self.only_if_cached = true,
            b"max-age" => shortest(&mut self.max_age, delta_seconds(argument)),
            b"s-maxage" => shortest(&mut self.s_maxage, delta_seconds(argument)),
            b"stale-while-revalidate" => {
                shortest(&mut self.stale_while_revalidate, delta_seconds(argument));
            }
            b"stale-if-error" => shortest(&mut self.stale_if_error, delta_seconds(argument)),
            b"min-fresh" => longest(&mut self.min_fresh, delta_seconds(argument)),
            b"max-stale" => {
                let bound = argument.map_or(Duration::MAX, |_| delta_seconds(argument));
                shortest(&mut self.max_stale, bound);
            }
            _ => {}
        }
    }
}

fn shortest(slot: &mut Option<Duration>, value: Duration) {
    *slot = Some(slot.map_or(value, |before| before.min(value)));
}

fn longest(slot: &mut Option<Duration>, value: Duration) {
    *slot = Some(slot.map_or(value, |before| before.max(value)));
}

/// delta-seconds (RFC 9111 §1.2.2), quoted or not. What is not a number counts as zero: invalid
/// freshness information is best taken for stale (§4.2.1). Over-large values are capped.
fn delta_seconds(argument: Option<&[u8]>) -> Duration {
    let digits = argument.map(unquote).unwrap_or_default();
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return Duration::ZERO;
    }
    let seconds = digits
        .iter()
        .try_fold(0_u64, |sum, digit| {
            sum.checked_mul(10)?.checked_add(u64::from(digit - b'0'))
        })
        .map_or(DELTA_CAP, |seconds| seconds.min(DELTA_CAP));
    Duration::from_secs(seconds)
}

fn unquote(text: &[u8]) -> &[u8] {
    text.strip_prefix(b"\"")
        .and_then(|inner| inner.strip_suffix(b"\""))
        .unwrap_or(text)
        .trim_ascii()
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;
    use http::header::CACHE_CONTROL;

    fn parse(lines: &[&str]) -> CacheControl {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(CACHE_CONTROL, HeaderValue::from_str(line).unwrap());
        }
        CacheControl::parse(&headers, CACHE_CONTROL)
    }

    #[test]
    fn names_are_read_in_any_case_over_several_lines() {
        let found = parse(&[
            "Public, MAX-AGE=60",
            "s-maxage=\"30\", , unknown=x, immutable=1",
        ]);
        // Arguments of what takes none mean nothing (RFC 8246 §2).
        assert!(found.public && found.immutable);
        assert_eq!(found.max_age, Some(Duration::from_secs(60)));
        assert_eq!(found.s_maxage, Some(Duration::from_secs(30)));
    }

    #[test]
    fn the_most_restrictive_of_repeated_directives_wins() {
        let found = parse(&["max-age=60, max-age=5", r#"private="x-a", private"#]);
        assert_eq!(found.max_age, Some(Duration::from_secs(5)));
        assert_eq!(found.private, Scope::All);
    }

    #[test]
    fn broken_numbers_are_stale_and_large_ones_capped() {
        for broken in [
            "max-age=-1",
            "max-age=1.5",
            "max-age=",
            "max-age",
            "max-age=a",
        ] {
            assert_eq!(parse(&[broken]).max_age, Some(Duration::ZERO), "{broken}");
        }
        let large = parse(&["max-age=99999999999999999999999"]);
        assert_eq!(large.max_age, Some(Duration::from_secs(DELTA_CAP)));
    }

    #[test]
    fn named_fields_are_kept_and_an_empty_list_means_all() {
        let found = parse(&[r#"no-cache="Set-Cookie, X-A""#]);
        let names = ["set-cookie", "x-a"].map(HeaderName::from_static).to_vec();
        assert_eq!(found.no_cache, Scope::Fields(names));
        assert_eq!(parse(&[r#"no-cache="""#]).no_cache, Scope::All);
    }

    #[test]
    fn a_targeted_field_is_a_dictionary_and_the_first_valid_one_counts() {
        let names = ["our-cache-control", "cdn-cache-control"].map(HeaderName::from_static);
        let read = |lines: &[(&'static str, &str)]| {
            let mut headers = HeaderMap::new();
            for (name, value) in lines {
                headers.append(*name, HeaderValue::from_str(value).unwrap());
            }
            CacheControl::targeted(&headers, &names)
        };
        let age = |found: Option<CacheControl>| {
            found
                .and_then(|found| found.max_age)
                .map(|age| age.as_secs())
        };
        assert_eq!(
            age(read(&[("cdn-cache-control", "max-age=60;p=1, public")])),
            Some(60)
        );
        let both = [
            ("cdn-cache-control", "max-age=60"),
            ("our-cache-control", "max-age=5"),
        ];
        assert_eq!(age(read(&both)), Some(5));
        // Invalid or empty: as if it were not there.
        for broken in ["max-age=", "MAX-AGE=60", "max-age=60,", "", "max-age==1"] {
            assert_eq!(read(&[("our-cache-control", broken)]), None, "{broken:?}");
            let next = [
                ("our-cache-control", broken),
                ("cdn-cache-control", "max-age=7"),
            ];
            assert_eq!(age(read(&next)), Some(7), "{broken:?}");
        }
        // Valid, but of no meaning for the directive.
        for wrong in ["max-age=1.5", "max-age=\"60\"", "max-age=a60", "max-age"] {
            let found = age(read(&[("cdn-cache-control", wrong)]));
            assert_eq!(found, Some(0), "{wrong}");
        }
        assert!(
            !read(&[("cdn-cache-control", "no-store=?0, max-age=1")])
                .unwrap()
                .no_store
        );
        let fields = read(&[("cdn-cache-control", "no-cache=\"x-a\"")]).unwrap();
        assert_eq!(
            fields.no_cache,
            Scope::Fields(vec![HeaderName::from_static("x-a")])
        );
    }

    proptest::proptest! {
        #[test]
        fn parsing_never_panics(line in "[ -~]*") {
            parse(&[&line]);
        }
    }

    #[test]
    fn fuzz_cache_control() {
        let names = ["cdn-cache-control", "iris-cache-control"].map(HeaderName::from_static);
        crate::fuzz::run(
            include_str!("../../tests/fuzz/cache_control.txt"),
            |input| {
                let headers = crate::fuzz::fields(input);
                let control = CacheControl::parse(&headers, CACHE_CONTROL);
                let most = Duration::from_secs(1 << 31);
                let stated = [
                    control.max_age,
                    control.s_maxage,
                    control.stale_while_revalidate,
                    control.stale_if_error,
                    control.min_fresh,
                ];
                assert!(stated.into_iter().flatten().all(|age| age <= most));
                // Said once more, nothing is allowed that was not.
                let mut twice = headers.clone();
                for value in headers.get_all(CACHE_CONTROL) {
                    let _ = twice.try_append(CACHE_CONTROL, value.clone());
                }
                let without_names = |mut control: CacheControl| {
                    for scope in [&mut control.no_cache, &mut control.private] {
                        if let Scope::Fields(names) = scope {
                            names.clear();
                        }
                    }
                    control
                };
                let twice = CacheControl::parse(&twice, CACHE_CONTROL);
                assert_eq!(without_names(twice), without_names(control));
                CacheControl::targeted(&headers, &names);
            },
        );
    }
}
