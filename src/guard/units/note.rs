//! What is proved of a unit, as the fleet shares it: a small value of a fixed size.

use bytes::Bytes;

use crate::clock::Timestamp;
use crate::guard::group::Group;

/// What is proved, as the fleet shares it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Note {
    pub kind: u8,
    /// When the next control is due, of one.
    pub due: Timestamp,
    pub until: Timestamp,
    pub group: Group,
}

const VERSION: u8 = 2;

impl Note {
    pub fn of(kind: u8, until: Timestamp, group: Group) -> Self {
        Self {
            kind,
            due: until,
            until,
            group,
        }
    }

    pub fn write(self) -> Bytes {
        let mut bytes = vec![VERSION, self.kind];
        bytes.extend_from_slice(&self.due.as_millis().to_be_bytes());
        bytes.extend_from_slice(&self.until.as_millis().to_be_bytes());
        bytes.extend_from_slice(&self.group.to_bytes());
        bytes.into()
    }

    /// `None` for what is not one.
    pub fn read(bytes: &[u8]) -> Option<Self> {
        let (head, numbers) = bytes.split_at_checked(2)?;
        let (due, rest) = numbers.split_at_checked(8)?;
        let (until, group) = rest.split_at_checked(8)?;
        let number = |bytes: &[u8]| Some(u64::from_be_bytes(bytes.try_into().ok()?));
        (head[0] == VERSION).then_some(Self {
            kind: head[1],
            due: Timestamp::from_millis(number(due)?),
            until: Timestamp::from_millis(number(until)?),
            group: Group::from_number(number(group)?),
        })
    }
}
