//! A verdict as the fleet shares it: a small value of a fixed size.

use bytes::Bytes;

use crate::clock::Timestamp;
use crate::store::purge::fleet::Stamp;

use super::verdicts::Good;

/// A verdict as the fleet shares it.
pub(super) enum Noted {
    Good(Good),
    Bad(Timestamp),
}

/// Version, kind, epoch and position of the purge log, until, last good answer.
const NOTED: usize = 2 + 4 * 8;

const VERSION: u8 = 1;

impl Noted {
    pub fn write(&self, stamp: Stamp) -> Bytes {
        let (kind, until, last) = match self {
            Self::Good(good) => (b'G', good.until, good.last),
            Self::Bad(until) => (b'B', *until, Timestamp::EPOCH),
        };
        let mut bytes = vec![VERSION, kind];
        for number in [
            stamp.epoch,
            stamp.position,
            until.as_millis(),
            last.as_millis(),
        ] {
            bytes.extend_from_slice(&number.to_be_bytes());
        }
        bytes.into()
    }

    /// `None` for what is not one.
    pub fn read(bytes: &[u8]) -> Option<(Self, Stamp)> {
        if bytes.len() != NOTED || bytes[0] != VERSION {
            return None;
        }
        let mut numbers = bytes[2..]
            .chunks_exact(8)
            .filter_map(|chunk| Some(u64::from_be_bytes(chunk.try_into().ok()?)));
        let stamp = Stamp {
            epoch: numbers.next()?,
            position: numbers.next()?,
        };
        let mut time = || Some(Timestamp::from_millis(numbers.next()?));
        let (until, last) = (time()?, time()?);
        let noted = match bytes[1] {
            b'G' => Self::Good(Good {
                until,
                last,
                stamp: 0,
                refused: None,
            }),
            b'B' => Self::Bad(until),
            _ => return None,
        };
        Some((noted, stamp))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verdict_is_read_as_it_was_written_and_nothing_else_is_one() {
        let stamp = Stamp {
            epoch: 7,
            position: 9,
        };
        let at = Timestamp::from_millis;
        let good = Good {
            until: at(5),
            last: at(3),
            stamp: 0,
            refused: None,
        };
        let bytes = Noted::Good(good).write(stamp);
        let Some((Noted::Good(read), found)) = Noted::read(&bytes) else {
            panic!("{bytes:?}");
        };
        assert_eq!((read, found), (good, stamp));
        let bad = Noted::Bad(at(4)).write(stamp);
        assert!(matches!(Noted::read(&bad), Some((Noted::Bad(until), _)) if until == at(4)));
        let mut broken = bytes.to_vec();
        broken[1] = b'X';
        for broken in [&broken[..], &bytes[..10], b"", &[0; 34]] {
            assert!(Noted::read(broken).is_none(), "{broken:?}");
        }
    }
}
