//! A key that nobody has: what an origin answers to it is what it answers to anybody.

use http::header::COOKIE;
use http::{HeaderMap, HeaderValue};

use super::credential::Credentials;

/// Of the end of a key, so much at least is random.
const LEAST: usize = 8;

/// The fields that carry a request's credential, with a random key of the same form in its place;
/// `None` where there is not exactly one.
pub fn with_random_key(credentials: &Credentials, headers: &HeaderMap) -> Option<HeaderMap> {
    let (key, _) = credentials.text(headers).ok()??;
    let random = random_like(key);
    let mut changed = HeaderMap::new();
    for (name, value) in headers {
        if *name != COOKIE && !credentials.is_field(name) {
            continue;
        }
        let value = value.as_bytes();
        let at = value.windows(key.len()).position(|part| part == key);
        let Some(at) = at else { continue };
        let parts = [&value[..at], &random, &value[at + key.len()..]];
        let mut value = HeaderValue::from_bytes(&parts.concat()).ok()?;
        value.set_sensitive(true);
        changed.append(name.clone(), value);
    }
    Some(changed)
}

/// A key of the same length and alphabet; what stands before its last `_` or `.`, such as
/// `sk_live_`, or the parts of a JSON Web Token that are signed, is the same.
fn random_like(key: &[u8]) -> Vec<u8> {
    let is_mark = |byte: &u8| matches!(byte, b'_' | b'.');
    let prefix = key.iter().rposition(is_mark).map_or(0, |at| at + 1);
    let kept = if key.len() - prefix >= LEAST {
        prefix
    } else {
        0
    };
    let (kept, rest) = key.split_at(kept);
    let is_hex = rest
        .iter()
        .all(|byte| byte.is_ascii_hexdigit() || *byte == b'-');
    let random = rest.iter().map(|byte| match byte {
        b'a'..=b'f' if is_hex => fastrand::digit(16) as u8,
        b'A'..=b'F' if is_hex => (fastrand::digit(16) as u8).to_ascii_uppercase(),
        b'0'..=b'9' => fastrand::digit(10) as u8,
        b'a'..=b'z' => fastrand::lowercase() as u8,
        b'A'..=b'Z' => fastrand::uppercase() as u8,
        other => *other,
    });
    kept.iter().copied().chain(random).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::header::AUTHORIZATION;

    #[test]
    fn a_strangers_key_has_the_form_of_the_callers_and_is_another() {
        let credentials = Credentials::new(&[AUTHORIZATION], &["session".into()], None, "origin");
        for (name, value, kept) in [
            (
                AUTHORIZATION,
                "Bearer sk_live_abcdef012345ABC",
                "Bearer sk_live_",
            ),
            (AUTHORIZATION, "0123456789abcdef", ""),
            (COOKIE, "a=b; session=abcdefgh12345; c=d", "a=b; session="),
            (AUTHORIZATION, "Bearer abcdefgh_x", "Bearer "),
            (
                AUTHORIZATION,
                "Bearer eyJh.eyJz.c2lnbmF0dXJl",
                "Bearer eyJh.eyJz.",
            ),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(name.clone(), HeaderValue::from_static(value));
            headers.insert("accept", HeaderValue::from_static("*/*"));
            let changed = with_random_key(&credentials, &headers).unwrap();
            let text = changed[&name].to_str().unwrap();
            assert_eq!(changed.len(), 1);
            assert!(
                text.starts_with(kept) && text.len() == value.len(),
                "{text}"
            );
            assert_ne!(text, value);
            let [one, other] = [&headers, &changed].map(|it| credentials.of(it).unwrap().unwrap());
            assert_ne!(one.key, other.key);
            assert_eq!(one.place, other.place);
        }
        assert!(with_random_key(&credentials, &HeaderMap::new()).is_none());
        let random = random_like(b"5f078a61-127f-4c77-9a0e-0123456789ab");
        let is_hex = |byte: &u8| byte.is_ascii_hexdigit() || *byte == b'-';
        assert!(random.iter().all(is_hex), "{random:?}");
    }
}
