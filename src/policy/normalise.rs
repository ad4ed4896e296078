//! Fewer variants, by the operator's word: what a client says in `Accept-Language` and `Origin`
//! becomes one of a few values, and that value is what the origin sees too. So no answer is ever
//! another variant's: two clients share one only where the origin was told the same of both.

use http::HeaderValue;
use http::header::{ACCEPT_LANGUAGE, HeaderMap, ORIGIN};

use crate::http::fields::{self, set};

/// What a route makes of selecting fields.
#[derive(Clone, Debug, Default)]
pub struct Normalise {
    /// The languages that the origin speaks; empty: `Accept-Language` stays as it is.
    pub languages: Vec<HeaderValue>,
    /// The origins that it answers to (CORS); `None`: `Origin` stays as it is.
    pub origins: Option<Vec<HeaderValue>>,
}

impl Normalise {
    pub fn is_idle(&self) -> bool {
        self.languages.is_empty() && self.origins.is_none()
    }

    /// Rewrites the fields of a request.
    pub fn apply(&self, request: &mut HeaderMap) {
        if !self.languages.is_empty() && request.contains_key(ACCEPT_LANGUAGE) {
            let best = best_language(request, &self.languages).cloned();
            set(request, ACCEPT_LANGUAGE, best);
        }
        if let Some(origins) = &self.origins {
            let said = fields::single(request, &ORIGIN).ok().flatten();
            let known = said.and_then(|said| {
                let is_said =
                    |origin: &&HeaderValue| origin.as_bytes().eq_ignore_ascii_case(said.as_bytes());
                origins.iter().find(is_said).cloned()
            });
            set(request, ORIGIN, known);
        }
    }
}

/// The language that a client likes best (RFC 9110 §12.5.4, RFC 4647 §3.4); of those it likes
/// equally, the one it names first; `None` where it takes none.
fn best_language<'a>(request: &HeaderMap, languages: &'a [HeaderValue]) -> Option<&'a HeaderValue> {
    let ranges: Vec<(String, u16)> = fields::members(request, ACCEPT_LANGUAGE)
        .map(weighted)
        .collect();
    let ranked = languages.iter().enumerate().filter_map(|(at, language)| {
        let tag = language.to_str().ok()?.to_ascii_lowercase();
        let matches = ranges
            .iter()
            .enumerate()
            .filter_map(|(place, (range, weight))| Some((closeness(range, &tag)?, place, *weight)));
        // The most specific range says how much a language is liked.
        let (_, place, weight) =
            matches.max_by_key(|(closeness, place, _)| (*closeness, std::cmp::Reverse(*place)))?;
        (weight > 0).then_some((weight, std::cmp::Reverse(place), std::cmp::Reverse(at)))
    });
    let (_, _, std::cmp::Reverse(at)) = ranked.max()?;
    languages.get(at)
}

/// A language range in lower case, and its weight in thousandths.
fn weighted(member: &[u8]) -> (String, u16) {
    let text = String::from_utf8_lossy(member).to_ascii_lowercase();
    let (range, parameters) = text.split_once(';').unwrap_or((&text, ""));
    let weight = parameters.trim().strip_prefix("q=").map(str::trim);
    let weight = weight.map_or(Some(1.0), |text| text.parse::<f32>().ok());
    // What is no weight counts as none.
    let thousandths = weight.unwrap_or(0.0).clamp(0.0, 1.0) * 1000.0;
    (range.trim().to_owned(), thousandths as u16)
}

/// How closely a range and a language tag belong together: one is the beginning of the other.
fn closeness(range: &str, tag: &str) -> Option<usize> {
    let begins = |long: &str, short: &str| {
        long.strip_prefix(short)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
    };
    match range {
        "*" => Some(0),
        _ if begins(tag, range) || begins(range, tag) => Some(range.len().min(tag.len())),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(texts: &[&'static str]) -> Vec<HeaderValue> {
        texts
            .iter()
            .map(|text| HeaderValue::from_static(text))
            .collect()
    }

    #[test]
    fn a_client_gets_the_language_it_likes_best_of_those_there_are() {
        let rule = Normalise {
            languages: values(&["en", "de-AT", "fr"]),
            origins: None,
        };
        let becomes = |said: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(ACCEPT_LANGUAGE, HeaderValue::from_str(said).unwrap());
            rule.apply(&mut headers);
            let found = headers.get(ACCEPT_LANGUAGE);
            found.map(|value| value.to_str().unwrap().to_owned())
        };
        let is = |said: &str, expected: &str| {
            assert_eq!(becomes(said).as_deref(), Some(expected), "{said}")
        };
        is("en-US,en;q=0.9,de;q=0.8", "en");
        is("de, en;q=0.5", "de-AT");
        is("FR;q=0.9, en;q=0.8", "fr");
        is("es, *;q=0.1", "en");
        is("*, en;q=0", "de-AT");
        is("fr, en", "fr");
        is("it, fr;q=0.2", "fr");
        assert_eq!(becomes("es, it"), None);
        assert_eq!(becomes("en;q=0, *;q=0"), None);
        assert_eq!(becomes("eng"), None);
        let mut none = HeaderMap::new();
        rule.apply(&mut none);
        assert!(none.is_empty());
    }

    #[test]
    fn origins_that_are_not_listed_are_not_told() {
        let rule = Normalise {
            languages: Vec::new(),
            origins: Some(values(&["https://app.example"])),
        };
        let becomes = |said: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for said in said {
                headers.append(ORIGIN, HeaderValue::from_static(said));
            }
            rule.apply(&mut headers);
            headers.get(ORIGIN).cloned()
        };
        let known = Some(HeaderValue::from_static("https://app.example"));
        assert_eq!(becomes(&["https://app.example"]), known);
        assert_eq!(becomes(&["HTTPS://App.example"]), known);
        assert_eq!(becomes(&["https://evil.example"]), None);
        assert_eq!(becomes(&["null"]), None);
        assert_eq!(
            becomes(&["https://app.example", "https://evil.example"]),
            None
        );
    }

    proptest::proptest! {
        #[test]
        fn what_was_normalised_stays(said in "[a-zA-Z*;=q0-9., -]{0,60}") {
            let rule = Normalise { languages: values(&["en", "de-AT"]), origins: None };
            let mut headers = HeaderMap::new();
            headers.insert(ACCEPT_LANGUAGE, HeaderValue::from_str(&said).unwrap());
            rule.apply(&mut headers);
            let once = headers.clone();
            rule.apply(&mut headers);
            assert_eq!(once, headers);
        }
    }
}
