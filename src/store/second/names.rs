//! Under which names things stand in the second tier. What belongs to one primary key has one hash
//! tag, so that a cluster keeps it in one slot; so has everything of the purge log.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest, Sha256};

/// Of a digest: enough that nobody finds two keys with one name (2^96 tries).
const DIGEST: usize = 24;

/// The names of one primary key. A key can be as long as a request head, and holds what clients
/// sent; its digest is short and says nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Names {
    /// `prefix{digest}`
    base: String,
}

impl Names {
    pub fn of(prefix: &str, primary: &[u8]) -> Self {
        let digest = digest(primary);
        Self {
            base: format!("{prefix}{{{digest}}}"),
        }
    }

    /// A response without variants, or the record of what its variants are selected by.
    pub fn primary(&self) -> &str {
        &self.base
    }

    /// The response and the lease of what is fetched for the primary key itself. Fetches that only
    /// those with a credential may share (RFC 9111 §3.5) have a lease of their own.
    pub fn place(&self, is_apart: bool) -> ValuePlace {
        let kind = if is_apart { 'C' } else { 'L' };
        ValuePlace {
            value: self.base.clone(),
            lease: format!("{}{kind}", self.base),
        }
    }

    /// Those of a variant, by what [`append_selecting`] wrote.
    ///
    /// [`append_selecting`]: crate::policy::vary::append_selecting
    pub fn variant(&self, selecting: &[u8], is_apart: bool) -> ValuePlace {
        let (base, digest) = (&self.base, digest(selecting));
        let kind = if is_apart { 'C' } else { 'L' };
        ValuePlace {
            value: format!("{base}V{digest}"),
            lease: format!("{base}{kind}{digest}"),
        }
    }
}

/// Where one response stands, and the lease of its fetch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ValuePlace {
    pub value: String,
    pub lease: String,
}

fn digest(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(&Sha256::digest(bytes)[..DIGEST])
}

/// The names of what the whole fleet has one of.
#[derive(Clone, Debug)]
pub struct FleetNames {
    pub meta: String,
    pub stream: String,
    pub compacted: String,
    pub revoked: String,
    pub instances: String,
    /// What was used most, for instances that start.
    used: String,
    /// Channel on which a longer log is announced.
    pub grown: String,
    /// Channel on which what was taken of a limit is recalled.
    pub recalled: String,
    /// Beginning of each instance's own channel.
    pub channels: String,
}

impl FleetNames {
    pub fn new(prefix: &str) -> Self {
        let log = |part: &str| format!("{prefix}{{purges}}{part}");
        Self {
            meta: log("meta"),
            stream: log("log"),
            compacted: log("names"),
            revoked: log("revoked"),
            instances: log("instances"),
            used: format!("{prefix}{{used}}"),
            grown: log("grown"),
            recalled: format!("{prefix}recalled"),
            channels: format!("{prefix}instance:"),
        }
    }

    /// The list of what was used in one hour since 1970.
    pub fn used_in(&self, hour: u64) -> String {
        format!("{}{hour}", self.used)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tag(name: &str) -> &str {
        let begin = name.find('{').unwrap() + 1;
        &name[begin..begin + name[begin..].find('}').unwrap()]
    }

    #[test]
    fn what_belongs_together_has_one_hash_tag() {
        let names = Names::of("iris:", b"http\0h\0\0/a\0\0");
        let variant = names.variant(b"\x1faccept-language=de;", false);
        let place = names.place(false);
        let apart = names.place(true);
        for name in [&variant.value, &variant.lease, &place.lease, &apart.lease] {
            assert_eq!(tag(name), tag(names.primary()));
        }
        let other = Names::of("iris:", b"http\0h\0\0/b\0\0");
        assert_ne!(tag(other.primary()), tag(names.primary()));
        assert_eq!(names.primary().len(), "iris:{}".len() + 32);
        let fleet = FleetNames::new("iris:");
        assert_eq!(tag(&fleet.meta), tag(&fleet.stream));
        assert_eq!(tag(&fleet.compacted), tag(&fleet.instances));
        assert_eq!(tag(&fleet.compacted), tag(&fleet.revoked));
    }

    #[test]
    fn no_two_things_have_one_name() {
        let names = Names::of("", b"k");
        let all = [
            names.place(false),
            names.place(true),
            names.variant(b"x", false),
            names.variant(b"x", true),
            names.variant(b"y", false),
        ];
        let mut leases: Vec<_> = all.iter().map(|place| &place.lease).collect();
        leases.sort_unstable();
        leases.dedup();
        assert_eq!(leases.len(), all.len());
    }
}
