//! Keys that were revoked by hand, as the purge log has it: the latest word counts, and no key that
//! is revoked is forgotten.

use std::collections::HashMap;

use crate::policy::Mode;

/// Keys of which it is remembered that they were given back; past it the older half is forgotten,
/// and what was learned of them before counts again.
const MOST_RESTORED: usize = 32_768;

/// How the digests begin of what is no key, but something that the operator has switched off
/// ([`bypass`](crate::proxy)): the log keeps words on keys, and tells them to whoever comes later.
pub const SWITCH: [u8; 16] = *b"switched off\0\0\0\0";

/// The log's latest word on a key.
#[derive(Clone, Copy, Debug)]
struct Word {
    mode: Mode,
    /// Its position here.
    local: u64,
    /// Its position in the fleet's log; 0 as long as it is not known to stand there.
    shared: u64,
}

#[derive(Debug, Default)]
pub struct Revoked {
    words: HashMap<[u8; 32], Word>,
    restored: usize,
    /// What is switched off, of all these.
    switches: Vec<[u8; 32]>,
}

impl Revoked {
    /// `shared` is its position in the fleet's log, 0 where it is not known to stand there. A word
    /// that stands there before a known one is an old one that is read again.
    pub fn note(&mut self, key: [u8; 32], mode: Mode, local: u64, shared: u64) {
        let known = self.words.get(&key).map_or(0, |word| word.shared);
        if shared > 0 && known > shared {
            return;
        }
        let word = Word {
            mode,
            local,
            shared,
        };
        if key.starts_with(&SWITCH) {
            self.switches.retain(|known| *known != key);
            if mode == Mode::Hard {
                self.switches.push(key);
            }
        }
        let before = self.words.insert(key, word).map(|word| word.mode);
        self.restored += usize::from(mode == Mode::Soft);
        self.restored -= usize::from(before == Some(Mode::Soft));
        if self.restored > MOST_RESTORED {
            self.forget_restored();
        }
    }

    fn forget_restored(&mut self) {
        let restored = self.words.values().filter(|word| word.mode == Mode::Soft);
        let mut positions: Vec<u64> = restored.map(|word| word.local).collect();
        let at = positions.len() / 2;
        let (_, middle, _) = positions.select_nth_unstable(at);
        let middle = *middle;
        self.words
            .retain(|_, word| word.mode == Mode::Hard || word.local > middle);
        let restored = self.words.values().filter(|word| word.mode == Mode::Soft);
        self.restored = restored.count();
    }

    /// The fleet's log is another one: positions of the old one mean nothing.
    pub fn forget_positions(&mut self) {
        for word in self.words.values_mut() {
            word.shared = 0;
        }
    }

    /// The keys that are revoked.
    pub fn keys(&self) -> impl Iterator<Item = [u8; 32]> {
        let hard = |(key, word): (&[u8; 32], &Word)| (word.mode == Mode::Hard).then_some(*key);
        self.words.iter().filter_map(hard)
    }

    /// What is switched off.
    pub fn switches(&self) -> &[[u8; 32]] {
        &self.switches
    }

    /// Refused from now on, until the log says otherwise.
    pub fn is_revoked(&self, key: &[u8; 32]) -> bool {
        self.words
            .get(key)
            .is_some_and(|word| word.mode == Mode::Hard)
    }

    /// Whether what was learned of a key at this local position still counts.
    pub fn allows(&self, key: &[u8; 32], stamp: u64) -> bool {
        self.words
            .get(key)
            .is_none_or(|word| word.mode != Mode::Hard && stamp >= word.local)
    }

    /// As [`Revoked::allows`], by a position of the fleet's log.
    pub fn allows_shared(&self, key: &[u8; 32], position: u64) -> bool {
        self.words.get(key).is_none_or(|word| {
            word.mode != Mode::Hard && word.shared > 0 && position >= word.shared
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_word_counts_and_older_verdicts_do_not() {
        let mut revoked = Revoked::default();
        let key = [1; 32];
        assert!(revoked.allows(&key, 0) && revoked.allows_shared(&key, 0));
        revoked.note(key, Mode::Hard, 5, 0);
        assert!(revoked.is_revoked(&key) && !revoked.allows(&key, 9));
        revoked.note(key, Mode::Soft, 7, 0);
        assert!(!revoked.is_revoked(&key));
        assert!(!revoked.allows(&key, 6) && revoked.allows(&key, 7));
        assert!(!revoked.allows_shared(&key, 100));
        revoked.note(key, Mode::Soft, 7, 12);
        assert!(!revoked.allows_shared(&key, 11) && revoked.allows_shared(&key, 12));
    }

    #[test]
    fn what_is_revoked_is_never_forgotten_and_what_was_restored_not_for_ever() {
        let mut revoked = Revoked::default();
        let key_of = |number: u64| {
            let mut key = [0; 32];
            key[..8].copy_from_slice(&number.to_be_bytes());
            key
        };
        for number in 0..100_000 {
            // As a fresh instance learns them: all at one position.
            revoked.note(key_of(number), Mode::Hard, 7, 9);
        }
        for number in 100_000..200_000 {
            revoked.note(key_of(number), Mode::Hard, number, 0);
            revoked.note(key_of(number), Mode::Soft, number, 0);
        }
        assert!((0..100_000).all(|number| revoked.is_revoked(&key_of(number))));
        assert!(!(100_000..200_000).any(|number| revoked.is_revoked(&key_of(number))));
        assert!(revoked.words.len() <= 100_000 + MOST_RESTORED);
        assert!(!revoked.allows(&key_of(199_999), 0));
    }
}
