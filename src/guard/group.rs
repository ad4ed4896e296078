//! Keys whose own answers agreed in a unit.

use uuid::Uuid;

/// A group of keys, and of what they have fetched. Whoever finds agreement begins a new one:
/// nothing that belongs to one is another one's, however much later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Group(u64);

impl Group {
    /// All keys that are good, by the operator's word.
    pub const ALL: Self = Self(0);

    pub fn begin() -> Self {
        Self(Uuid::new_v4().as_u64_pair().1 | 1)
    }

    pub fn from_number(number: u64) -> Self {
        Self(number)
    }

    pub fn number(self) -> u64 {
        self.0
    }

    /// Under this digest the purge log knows that its keys' answers differ: as of a key that is
    /// revoked.
    pub fn digest(self) -> [u8; 32] {
        let mut digest = [b'g'; 32];
        digest[..8].copy_from_slice(&self.to_bytes());
        digest
    }

    pub fn to_bytes(self) -> [u8; 8] {
        self.0.to_be_bytes()
    }
}
