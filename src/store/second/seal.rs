//! A seal ties what stands in the second tier to the name under which it stands: copied under
//! another name it is nothing. With the fleet's secret it is also nobody's but the fleet's: who can
//! write to Redis alone cannot forge a response or a verdict.

use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

/// Bytes of a seal, at the end of each value: of a digest, enough that nobody finds another value
/// with it.
const SEAL: usize = 16;

/// What seals are made with.
#[derive(Clone, Default)]
pub struct Seal {
    secret: Option<Hmac<Sha256>>,
}

impl std::fmt::Debug for Seal {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "Seal(secret: {})", self.secret.is_some())
    }
}

impl Seal {
    /// With `auth.secret`, HMAC-SHA256 (RFC 2104) over the name and the value; without, a digest of
    /// the name: values have a checksum of their own against mishaps.
    pub fn new(secret: Option<&str>) -> Self {
        let key = secret.and_then(|secret| {
            let mut mac = <Hmac<Sha256> as KeyInit>::new_from_slice(secret.as_bytes()).ok()?;
            // Keys are digested with the same secret, for another purpose.
            mac.update(b"iris-sidecar: value in the second tier\0");
            Some(mac)
        });
        Self { secret: key }
    }

    fn of(&self, name: &str, value: &[u8]) -> [u8; SEAL] {
        let digest: [u8; 32] = match &self.secret {
            Some(secret) => {
                let mut mac = secret.clone();
                mac.update(&(name.len() as u64).to_be_bytes());
                mac.update(name.as_bytes());
                mac.update(value);
                mac.finalize().into_bytes().into()
            }
            None => Sha256::digest(name).into(),
        };
        let mut seal = [0; SEAL];
        seal.copy_from_slice(&digest[..SEAL]);
        seal
    }

    /// Puts the seal of a value under `name` behind it.
    pub fn put(&self, name: &str, value: &mut Vec<u8>) {
        let seal = self.of(name, value);
        value.extend_from_slice(&seal);
    }

    /// What was sealed under `name`; `None` for what was not, or was changed.
    pub fn open<'v>(&self, name: &str, sealed: &'v [u8]) -> Option<&'v [u8]> {
        let (value, seal) = sealed.split_at_checked(sealed.len().checked_sub(SEAL)?)?;
        bool::from(self.of(name, value).ct_eq(seal)).then_some(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sealed(seal: &Seal, name: &str) -> Vec<u8> {
        let mut value = b"value".to_vec();
        seal.put(name, &mut value);
        value
    }

    #[test]
    fn what_is_copied_under_another_name_is_nothing() {
        for seal in [Seal::new(None), Seal::new(Some("secret"))] {
            let value = sealed(&seal, "name");
            assert_eq!(seal.open("name", &value), Some(&b"value"[..]));
            assert_eq!(seal.open("nam", &value), None);
            assert_eq!(seal.open("name", &value[..20]), None);
            assert_eq!(seal.open("name", b"short"), None);
        }
    }

    #[test]
    fn what_is_forged_without_the_secret_is_nothing() {
        let seal = Seal::new(Some("secret"));
        for other in [Seal::new(None), Seal::new(Some("another"))] {
            assert_eq!(seal.open("name", &sealed(&other, "name")), None);
        }
        let mut changed = sealed(&seal, "name");
        changed[0] ^= 1;
        assert_eq!(seal.open("name", &changed), None);
    }
}
