//! Variants: which request fields select a stored response (RFC 9111 §4.1).

use http::header::{ACCEPT_ENCODING, ACCEPT_LANGUAGE, COOKIE, HeaderMap, HeaderName, VARY};

use sha2::{Digest, Sha256};

use crate::http::fields;

/// The request fields that `Vary` names, sorted and without repetition. `Vary: *` is not storable
/// and does not come here.
pub fn nominated(response: &HeaderMap) -> Vec<HeaderName> {
    let mut names: Vec<HeaderName> = fields::members(response, VARY)
        .filter_map(|member| HeaderName::from_bytes(member).ok())
        .collect();
    names.sort_unstable_by(|one, other| one.as_str().cmp(other.as_str()));
    names.dedup();
    names
}

/// Appends what `request` says in the `names` fields, so that two requests select the same variant
/// exactly when they append the same bytes. An absent field differs from an empty one.
pub fn append_selecting(names: &[HeaderName], request: &HeaderMap, key: &mut impl Extend<u8>) {
    for name in names {
        key.extend([0x1f]);
        key.extend(name.as_str().bytes());
        if *name == ACCEPT_ENCODING {
            key.extend([b'=']);
            key.extend(encoding_class(request).into_bytes());
            continue;
        }
        if *name == ACCEPT_LANGUAGE {
            // Neither spaces nor case mean anything in it (RFC 9110 §12.5.4, RFC 5646 §2.1.1).
            for (at, member) in fields::members(request, name).enumerate() {
                key.extend([if at == 0 { b'=' } else { b',' }]);
                let text = member.iter().filter(|byte| !byte.is_ascii_whitespace());
                key.extend(text.map(u8::to_ascii_lowercase));
            }
            if request.contains_key(name) {
                key.extend([b';']);
            }
            continue;
        }
        // Several lines mean their list (RFC 9110 §5.2); those of cookies are joined in another way
        // (RFC 9113 §8.2.3).
        let between: &[u8] = if *name == COOKIE { b"; " } else { b"," };
        let mut said = Vec::new();
        for (at, value) in request.get_all(name).iter().enumerate() {
            said.extend_from_slice(if at == 0 { b"=" } else { between });
            said.extend_from_slice(value.as_bytes().trim_ascii());
        }
        if says_who(name) && !said.is_empty() {
            key.extend([b'#']);
            key.extend(Sha256::digest(&said));
        } else {
            key.extend(said);
        }
    }
}

/// Whether a field may say who asks: what it says is kept with the response, and in Redis, as a
/// digest only. Of the fields that `Vary` names for other reasons, most are these.
fn says_who(name: &HeaderName) -> bool {
    let name = name.as_str();
    let is_harmless = name.starts_with("accept") || name.starts_with("sec-");
    !is_harmless
        && !matches!(
            name,
            "origin" | "user-agent" | "save-data" | "x-requested-with"
        )
}

/// The content codings that a request accepts, in one spelling: order and weights above zero do
/// not make a variant, for any member of the class accepts whatever another was sent.
fn encoding_class(request: &HeaderMap) -> String {
    if !request.contains_key(ACCEPT_ENCODING) {
        // No coding is named so.
        return ";".to_owned();
    }
    let mut accepted: Vec<String> = fields::members(request, ACCEPT_ENCODING)
        .map(|member| {
            let text = String::from_utf8_lossy(member).to_ascii_lowercase();
            let mut parts = text.split(';').map(str::trim);
            let coding = match parts.next().unwrap_or_default() {
                "x-gzip" => "gzip",
                "x-compress" => "compress",
                coding => coding,
            };
            let refused = parts.any(|part| {
                let weight = part.strip_prefix("q=").map(str::trim);
                weight.is_some_and(|text| text.parse::<f32>().is_ok_and(|weight| weight <= 0.0))
            });
            let mark = if refused { "!" } else { "" };
            format!("{mark}{coding}")
        })
        .collect();
    // Accepted unless refused: saying so changes nothing, but beside `*;q=0` (RFC 9110 §12.5.3).
    if !accepted.iter().any(|coding| coding == "!*") {
        accepted.retain(|coding| coding != "identity");
    }
    accepted.sort_unstable();
    accepted.dedup();
    accepted.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    fn selecting(names: &[&'static str], request: &[(&'static str, &'static str)]) -> Vec<u8> {
        let names: Vec<_> = names
            .iter()
            .map(|name| HeaderName::from_static(name))
            .collect();
        let mut headers = HeaderMap::new();
        for (name, value) in request {
            headers.append(*name, HeaderValue::from_static(value));
        }
        let mut key = Vec::new();
        append_selecting(&names, &headers, &mut key);
        key
    }

    #[test]
    fn absent_and_empty_are_different_and_lines_are_one_list() {
        let one = |request: &[_]| selecting(&["accept-language"], request);
        assert_ne!(one(&[]), one(&[("accept-language", "")]));
        let lines = [("accept-language", "de"), ("accept-language", "en")];
        assert_eq!(one(&lines), one(&[("accept-language", "de,en")]));
        assert_eq!(one(&lines), one(&[("accept-language", "DE , en")]));
        assert_ne!(one(&lines), one(&[("accept-language", "en,de")]));
        let other = |value| selecting(&["x-a"], &[("x-a", value)]);
        assert_ne!(other("a"), other("A"));
    }

    #[test]
    fn what_may_say_who_asks_is_kept_as_a_digest_only() {
        for name in ["authorization", "cookie", "x-api-key", "x-own-token"] {
            let one = |value| selecting(&[name], &[(name, value)]);
            assert_eq!(one("secret"), one(" secret "));
            assert_ne!(one("secret"), one("other"));
            assert_ne!(one(""), selecting(&[name], &[]));
            assert!(!String::from_utf8_lossy(&one("secret")).contains("secret"));
        }
    }

    #[test]
    fn encodings_are_reduced_to_what_is_accepted() {
        let class = |value| selecting(&["accept-encoding"], &[("accept-encoding", value)]);
        assert_eq!(class("gzip, br;q=0.8"), class("br, GZIP;q=0.1, identity"));
        assert_ne!(class("gzip"), class("gzip;q=0"));
        assert_ne!(class("gzip"), class("br"));
        assert_ne!(class(""), selecting(&["accept-encoding"], &[]));
        assert_ne!(class("identity;q=0, gzip"), class("gzip"));
        assert_ne!(class("*;q=0"), class("identity, *;q=0"));
    }

    #[test]
    fn names_are_sorted_and_unique() {
        let mut headers = HeaderMap::new();
        headers.append(VARY, HeaderValue::from_static("Origin, accept"));
        headers.append(VARY, HeaderValue::from_static("ACCEPT"));
        assert_eq!(
            nominated(&headers),
            ["accept", "origin"].map(HeaderName::from_static)
        );
    }

    #[test]
    fn fuzz_vary() {
        crate::fuzz::run(include_str!("../../tests/fuzz/vary.txt"), |input| {
            let headers = crate::fuzz::fields(input);
            let names = nominated(&headers);
            let selected = |request: &HeaderMap| {
                let mut key = Vec::new();
                append_selecting(&names, request, &mut key);
                key
            };
            // What a request is selected by does not depend on what it is not.
            let mut other = headers.clone();
            other.insert("x-other", http::HeaderValue::from_static("1"));
            if !names.iter().any(|name| name == "x-other") {
                assert_eq!(selected(&headers), selected(&other));
            }
            for name in &names {
                let mut without = headers.clone();
                if without.remove(name).is_some() {
                    assert_ne!(selected(&headers), selected(&without), "{name}");
                }
            }
        });
    }
}
