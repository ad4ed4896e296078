//! Who asks: the one credential of a request, as a digest. The key itself is not kept, logged or
//! sent anywhere but to where the request goes.

use std::fmt;
use std::sync::Arc;

use hmac::{Hmac, KeyInit, Mac};
use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderName};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::http::fields;

/// SHA-256 of a key, or its HMAC where a secret is configured.
#[derive(Clone, Copy, Eq)]
pub struct KeyId(pub [u8; 32]);

// What is found by a part of it could be guessed byte by byte, by how long that takes.
impl PartialEq for KeyId {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Enough to find it again, too little to be compared with a list of digests.
        write!(formatter, "key {}…", hex::encode(&self.0[..3]))
    }
}

/// A request's credential: whose, and where it stood. An origin may take a key in one field and not
/// in another, so what is learned of it in one says nothing of the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Credential {
    pub key: KeyId,
    pub carrier: u8,
    /// Of the name of the field or cookie, and of who is asked about keys there: the number above
    /// is that of one configuration.
    pub place: [u8; 8],
}

/// Why a request on a guarded route is refused before anybody is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Malformed {
    /// Two credentials, or one twice: nobody can say which one counts.
    More,
    Form,
}

/// Where credentials stand, and how they become digests.
pub struct Credentials {
    fields: Arc<[HeaderName]>,
    cookies: Arc<[Box<str>]>,
    /// Of each carrier.
    places: Vec<[u8; 8]>,
    secret: Option<Hmac<Sha256>>,
}

const BEARER: &[u8] = b"Bearer ";

impl Credentials {
    /// `source` says who is asked about the keys: what one has said of a key says nothing of
    /// another.
    pub fn new(
        fields: &[HeaderName],
        cookies: &[Box<str>],
        secret: Option<&str>,
        source: &str,
    ) -> Self {
        // HMAC takes a key of any length.
        let keyed = |secret: &str| Hmac::new_from_slice(secret.as_bytes()).ok();
        let place = |text: String| {
            let mut place = [0; 8];
            place.copy_from_slice(&Sha256::digest(format!("{source} {text}"))[..8]);
            place
        };
        let of_fields = fields
            .iter()
            .flat_map(|name| [format!("field {name}"), format!("field {name} Bearer")]);
        let of_cookies = cookies.iter().map(|name| format!("cookie {name}"));
        Self {
            places: of_fields.chain(of_cookies).map(place).collect(),
            fields: fields.into(),
            cookies: cookies.into(),
            secret: secret.and_then(keyed),
        }
    }

    /// The digest of a key.
    pub fn digest(&self, key: &[u8]) -> KeyId {
        KeyId(match &self.secret {
            Some(keyed) => keyed
                .clone()
                .chain_update(key)
                .finalize()
                .into_bytes()
                .into(),
            None => Sha256::digest(key).into(),
        })
    }

    /// Whether credentials stand in this field.
    pub fn is_field(&self, name: &HeaderName) -> bool {
        self.fields.contains(name)
    }

    /// The one credential of a request; `None` without any.
    pub fn of(&self, headers: &HeaderMap) -> Result<Option<Credential>, Malformed> {
        Ok(self.text(headers)?.map(|(key, carrier)| Credential {
            key: self.digest(key),
            carrier,
            place: self
                .places
                .get(usize::from(carrier))
                .copied()
                .unwrap_or_default(),
        }))
    }

    /// What a rate limit counts: the one key, or a text in its place that is none; `None` without
    /// any.
    pub fn counted(&self, headers: &HeaderMap) -> Result<Option<KeyId>, Malformed> {
        match self.of(headers) {
            Ok(credential) => Ok(credential.map(|credential| credential.key)),
            Err(Malformed::More) => Err(Malformed::More),
            Err(Malformed::Form) => {
                let values = self.fields.iter().flat_map(|name| headers.get_all(name));
                let text: Vec<&[u8]> = values.map(|value| value.as_bytes()).collect();
                Ok(Some(self.digest(&text.concat())))
            }
        }
    }

    /// The key itself, and where it stands.
    pub fn text<'a>(&self, headers: &'a HeaderMap) -> Result<Option<(&'a [u8], u8)>, Malformed> {
        let mut all = self.all(headers);
        let (Some((key, carrier)), second) = (all.next(), all.next()) else {
            return Ok(None);
        };
        if second.is_some() {
            return Err(Malformed::More);
        }
        let is_whole = !key.is_empty() && key.iter().all(u8::is_ascii_graphic);
        let carrier = u8::try_from(carrier).map_err(|_| Malformed::Form)?;
        if !is_whole {
            return Err(Malformed::Form);
        }
        Ok(Some((key, carrier)))
    }

    /// The digests of all that an origin may take for a key in a request: each credential as it
    /// stands, and its last word, whatever scheme is named before it in whatever case (RFC 9110
    /// §11.4).
    pub fn digests(&self, headers: &HeaderMap) -> impl Iterator<Item = KeyId> {
        let words = self.all(headers).flat_map(|(key, _)| {
            let mut words = key.split(|byte| byte.is_ascii_whitespace() || *byte == b',');
            let last = words.rfind(|word| !word.is_empty());
            [Some(key), last.filter(|last| *last != key)]
        });
        words.flatten().map(|key| self.digest(key))
    }

    /// All that stands where credentials do, and where.
    fn all<'a>(&self, headers: &'a HeaderMap) -> impl Iterator<Item = (&'a [u8], usize)> {
        let in_fields = self.fields.iter().enumerate().flat_map(|(at, name)| {
            let values = headers.get_all(name).into_iter();
            values.map(move |value| {
                let value = value.as_bytes();
                // With that capital, as the origin has it; anything else is a bare key.
                match value
                    .strip_prefix(BEARER)
                    .filter(|_| *name == AUTHORIZATION)
                {
                    Some(key) => (key, 2 * at + 1),
                    None => (value, 2 * at),
                }
            })
        });
        let first = 2 * self.fields.len();
        let in_cookies = self.cookies.iter().enumerate().flat_map(move |(at, name)| {
            fields::cookies(headers, name).map(move |value| (value, first + at))
        });
        in_fields.chain(in_cookies)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    fn found(lines: &[(&str, &str)]) -> Result<Option<Credential>, Malformed> {
        let fields = [AUTHORIZATION, HeaderName::from_static("x-api-key")];
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
            headers.append(name, HeaderValue::from_str(value).unwrap());
        }
        Credentials::new(&fields, &["session".into()], None, "origin").of(&headers)
    }

    #[test]
    fn one_key_is_one_wherever_it_stands_and_its_place_is_told() {
        let places = [
            ("authorization", "Bearer k"),
            ("authorization", "k"),
            ("x-api-key", "k"),
            ("cookie", "a=b; session=k"),
        ];
        let all: Vec<Credential> = places
            .iter()
            .map(|place| found(&[*place]).unwrap().unwrap())
            .collect();
        assert!(all.iter().all(|one| one.key == all[0].key));
        let carriers: Vec<u8> = all.iter().map(|one| one.carrier).collect();
        assert_eq!(carriers, [1, 0, 2, 4]);
        assert_eq!(found(&[("cookie", "a=b; xsession=k")]), Ok(None));
    }

    #[test]
    fn more_than_one_and_what_is_none_is_refused() {
        let key = ("authorization", "Bearer k");
        for second in [key, ("x-api-key", "k"), ("cookie", "session=k")] {
            assert_eq!(found(&[key, second]), Err(Malformed::More), "{second:?}");
        }
        for form in [
            "",
            "Bearer ",
            "Bearer a b",
            "Basic a",
            "bearer k",
            "Bearer k, Bearer j",
        ] {
            let given = found(&[("authorization", form)]);
            assert_eq!(given, Err(Malformed::Form), "{form}");
        }
        assert_eq!(found(&[("cookie", "session=")]), Err(Malformed::Form));
    }

    #[test]
    fn a_secret_changes_every_digest_and_none_shows_the_key() {
        let with =
            |secret| Credentials::new(&[AUTHORIZATION], &[], secret, "origin").digest(b"sk_live_x");
        assert_ne!(with(None), with(Some("a")));
        assert_ne!(with(Some("b")), with(Some("a")));
        assert_eq!(with(None).0, <[u8; 32]>::from(Sha256::digest(b"sk_live_x")));
        assert!(!format!("{:?}", with(None)).contains("sk_live"));
    }
}
