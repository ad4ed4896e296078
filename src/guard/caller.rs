//! Who asks, on a route where keys are verified, and which verdicts on it count.

use super::credential::Credential;
use super::group::Group;
use super::verdicts::VerdictId;

/// A caller whose key counts on the route that was asked.
#[derive(Clone, Copy, Debug)]
pub struct Caller {
    pub credential: Credential,
    pub id: VerdictId,
    /// What `id` is made of: of a key in its place, for what a verdict reaches.
    pub(super) base: VerdictId,
    /// Refusals, and the purge log's position, when the question began.
    pub(super) asked: u64,
    pub(super) stamp: u64,
}

impl Caller {
    /// Whether its verdict opens more than its own answers.
    pub(super) fn is_taught(&self) -> bool {
        self.id != self.base.of_its_own()
    }

    /// The same, as one of a group.
    pub fn in_group(&self, group: Group) -> Self {
        Self {
            id: self.base.in_group(group),
            ..*self
        }
    }

    /// The same, whose own answers are all that it gets.
    pub fn apart(&self) -> Self {
        Self {
            id: self.base.of_its_own(),
            ..*self
        }
    }
}
