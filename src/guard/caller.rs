//! Who asks, on a route where keys are verified, and which verdicts on it count.

use super::credential::Credential;
use super::verdicts::VerdictId;

/// A caller whose key counts on the route that was asked.
#[derive(Clone, Copy, Debug)]
pub struct Caller {
    pub credential: Credential,
    pub id: VerdictId,
    /// Of the verdict by which it gets what others have fetched: the same, but where no control says
    /// yet that a 2xx means something. There its own answers are all that its verdict opens.
    pub(super) shared: VerdictId,
    /// Refusals, and the purge log's position, when the question began.
    pub(super) asked: u64,
    pub(super) stamp: u64,
}

impl Caller {
    /// Whether its verdict opens what others have fetched.
    pub(super) fn is_taught(&self) -> bool {
        self.id == self.shared
    }

    /// The same, where a control has said that a 2xx means something.
    pub(super) fn taught(&self) -> Self {
        Self {
            id: self.shared,
            ..*self
        }
    }
}
