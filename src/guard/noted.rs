//! A verdict as the fleet shares it: a small value of a fixed size.

use std::sync::Arc;

use bytes::Bytes;

use crate::clock::Timestamp;
use crate::store::purge::fleet::Stamp;

use super::verdicts::Good;

/// A verdict as the fleet shares it.
pub(super) enum Noted {
    /// With the project of the key, where the source names projects; empty where this key has none.
    Good(Good, Option<Arc<str>>),
    Bad(Timestamp),
}

/// Version, kind, epoch and position of the purge log, until, last good answer.
const NOTED: usize = 2 + 4 * 8;

const VERSION: u8 = 1;

/// A good one with a project behind it. A reader that knows none of these asks the source.
const WITH_PROJECT: u8 = 2;

impl Noted {
    pub fn write(&self, stamp: Stamp) -> Bytes {
        let (kind, until, last, project) = match self {
            Self::Good(good, project) => (b'G', good.until, good.last, project.as_deref()),
            Self::Bad(until) => (b'B', *until, Timestamp::EPOCH, None),
        };
        let version = project.map_or(VERSION, |_| WITH_PROJECT);
        let mut bytes = vec![version, kind];
        for number in [
            stamp.epoch,
            stamp.position,
            until.as_millis(),
            last.as_millis(),
        ] {
            bytes.extend_from_slice(&number.to_be_bytes());
        }
        bytes.extend_from_slice(project.unwrap_or_default().as_bytes());
        bytes.into()
    }

    /// `None` for what is not one.
    pub fn read(bytes: &[u8]) -> Option<(Self, Stamp)> {
        let (fixed, project) = bytes.split_at_checked(NOTED)?;
        let project = match (fixed[0], project) {
            (VERSION, []) => None,
            (WITH_PROJECT, project) if fixed[1] == b'G' => {
                Some(Arc::from(std::str::from_utf8(project).ok()?))
            }
            _ => return None,
        };
        let mut numbers = fixed[2..]
            .chunks_exact(8)
            .filter_map(|chunk| Some(u64::from_be_bytes(chunk.try_into().ok()?)));
        let stamp = Stamp {
            epoch: numbers.next()?,
            position: numbers.next()?,
        };
        let mut time = || Some(Timestamp::from_millis(numbers.next()?));
        let (until, last) = (time()?, time()?);
        let noted = match bytes[1] {
            b'G' => {
                let good = Good {
                    until,
                    last,
                    stamp: 0,
                    refused: None,
                };
                Self::Good(good, project)
            }
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
        for project in [None, Some(Arc::from("")), Some(Arc::from("alpha"))] {
            let bytes = Noted::Good(good, project.clone()).write(stamp);
            let Some((Noted::Good(read, whose), found)) = Noted::read(&bytes) else {
                panic!("{bytes:?}");
            };
            assert_eq!((read, whose, found), (good, project, stamp));
        }
        let bytes = Noted::Good(good, None).write(stamp);
        let bad = Noted::Bad(at(4)).write(stamp);
        assert!(matches!(Noted::read(&bad), Some((Noted::Bad(until), _)) if until == at(4)));
        let mut broken = bytes.to_vec();
        broken[1] = b'X';
        let longer = [&bytes[..], b"alpha"].concat();
        for broken in [&broken[..], &longer, &bytes[..10], b"", &[0; 34]] {
            assert!(Noted::read(broken).is_none(), "{broken:?}");
        }
    }
}
