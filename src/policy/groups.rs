//! Groups: names by which stored responses are made unusable together (RFC 9875), whether the
//! origin gives them or the operator.

use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue};
use sfv::{BareItem, List, ListEntry, Parser};

use crate::http::fields;

/// Groups of a response, as a Structured List of Strings (RFC 9875 §2).
pub const CACHE_GROUPS: HeaderName = HeaderName::from_static("cache-groups");
/// Groups that an unsafe request has changed (RFC 9875 §3).
pub const CACHE_GROUP_INVALIDATION: HeaderName =
    HeaderName::from_static("cache-group-invalidation");
/// What other caches call groups: words between spaces, and words between commas.
pub const SURROGATE_KEY: HeaderName = HeaderName::from_static("surrogate-key");
pub const CACHE_TAG: HeaderName = HeaderName::from_static("cache-tag");

/// The names of the groups that a response is in.
// Thin: every stored response has room for one.
pub type Groups = Arc<Vec<Box<str>>>;

/// The groups of a response: the route's, and those that the origin gives; `None` for none.
///
/// The RFC asks for at least 32 groups of 32 characters (§2); here the limits of a response head
/// are the only ones.
pub fn of(response: &HeaderMap, route: Option<&Groups>) -> Option<Groups> {
    let mut names = listed(response, &CACHE_GROUPS);
    let words = response.get_all(SURROGATE_KEY).iter();
    let words = words.flat_map(|value| value.as_bytes().split(u8::is_ascii_whitespace));
    let tags = fields::members(response, CACHE_TAG);
    names.extend(words.chain(tags).filter_map(name));
    if names.is_empty() {
        return route.cloned();
    }
    names.extend(route.into_iter().flat_map(|groups| groups.iter().cloned()));
    names.sort_unstable();
    names.dedup();
    Some(Arc::new(names))
}

/// The groups that the response to an unsafe request says it has changed (§3). On the response to
/// a safe one the field means nothing: the caller sees to that.
pub fn invalidated(response: &HeaderMap) -> Vec<Box<str>> {
    listed(response, &CACHE_GROUP_INVALIDATION)
}

/// The members of a Structured List of Strings; parameters are ignored. A field that is not one
/// is as good as absent (RFC 9651 §4.2).
fn listed(headers: &HeaderMap, name: &HeaderName) -> Vec<Box<str>> {
    let lines = headers.get_all(name).iter().map(HeaderValue::as_bytes);
    let text = lines.collect::<Vec<_>>().join(&b", "[..]);
    let Ok(list) = Parser::new(&text).parse::<List>() else {
        return Vec::new();
    };
    let string = |entry: &ListEntry| match entry {
        ListEntry::Item(item) => match &item.bare_item {
            BareItem::String(text) => Some(Box::from(text.as_str())),
            _ => None,
        },
        ListEntry::InnerList(_) => None,
    };
    let names: Option<Vec<_>> = list.iter().map(string).collect();
    names.unwrap_or_default()
}

fn name(word: &[u8]) -> Option<Box<str>> {
    let word = std::str::from_utf8(word.trim_ascii()).ok()?;
    (!word.is_empty()).then(|| word.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn groups(lines: &[(&'static str, &str)], route: &[&str]) -> Vec<String> {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, HeaderValue::from_str(value).unwrap());
        }
        let route: Groups = Arc::new(route.iter().map(|name| Box::from(*name)).collect());
        let found = of(&headers, Some(&route).filter(|route| !route.is_empty()));
        let found = found.iter().flat_map(|groups| groups.iter());
        found.map(ToString::to_string).collect()
    }

    #[test]
    fn groups_come_from_the_route_and_from_three_fields() {
        let all = [
            ("cache-groups", r#""b c";x=1, "a""#),
            ("cache-groups", r#""d""#),
            ("surrogate-key", "k1 \tk2"),
            ("cache-tag", "t1, t2,,t1"),
        ];
        let names = ["a", "b c", "d", "k1", "k2", "r", "t1", "t2"];
        assert_eq!(groups(&all, &["r", "a"]), names);
        assert_eq!(groups(&[], &["r"]), ["r"]);
        assert_eq!(groups(&[], &[]), [""; 0]);
    }

    #[test]
    fn a_list_with_anything_but_strings_is_no_list_of_groups() {
        for broken in ["a, \"b\"", "\"b", "(\"a\")", "1", "\"a\","] {
            assert_eq!(
                groups(&[("cache-groups", broken)], &[]),
                [""; 0],
                "{broken}"
            );
        }
    }

    #[test]
    fn thirty_two_groups_of_thirty_two_characters_fit_and_case_counts() {
        let names: Vec<String> = (0..40).map(|at| format!("{at:0>40}")).collect();
        let quoted: Vec<String> = names.iter().map(|name| format!("{name:?}")).collect();
        assert_eq!(groups(&[("cache-groups", &quoted.join(","))], &[]), names);
        let both = groups(&[("cache-groups", r#""A", "a""#)], &[]);
        assert_eq!(both, ["A", "a"]);
    }

    proptest::proptest! {
        #[test]
        fn reading_groups_never_panics(line in "[ -~]*") {
            for name in ["cache-groups", "surrogate-key", "cache-tag"] {
                groups(&[(name, line.as_str())], &[]);
            }
        }
    }

    #[test]
    fn fuzz_structured_fields() {
        crate::fuzz::run(
            include_str!("../../tests/fuzz/structured_fields.txt"),
            |input| {
                let headers = crate::fuzz::fields(input);
                let groups = of(&headers, None);
                let sorted = groups.is_none_or(|groups| groups.is_sorted() && !groups.is_empty());
                assert!(sorted);
                invalidated(&headers);
            },
        );
    }
}
