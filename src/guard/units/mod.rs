//! What was proved of a *unit*. Two things must be proved before one answer is given to two keys:
//!
//! | proof | of what unit | what it takes | how long it holds |
//! |---|---|---|---|
//! | control | host, literal path, the names in the query, and the fields by which the route lets the origin choose | the same request with a random key, and with none, was refused: a 2xx says something of a key | twice `auth.control`, after which it is taken again; one that failed, once |
//! | agreement | the same, to the letter of the query, where a verdict holds for its URL; with a wider `verdict_scope` the same | a second key's own answer agreed with the first one's | [`AGREED`], found again while it is used; a difference [`DIFFERS`], what was unclear [`UNCLEAR`] |
//!
//! Until then what a key has fetched is that key's alone; and so it is for each key that comes
//! later, until its own answer agreed as well (it is a *member* then). Who agrees is a
//! [group](super::group), which is part of the cache key and of the verdict: what one has fetched
//! is never another one's. All of it is shared by the fleet, by Redis notes that end with it; of
//! each unit the fleet takes at most one control in `auth.control` (an instance that cannot reach
//! Redis counts for itself). An instance remembers [`MOST`] units, and forgets those that are used
//! least. A difference that is found among members ends their group on all instances by the purge
//! log.

mod fleet;
mod note;
#[cfg(test)]
mod tests;
mod unit;

use std::sync::Arc;

use quick_cache::sync::Cache;

use crate::clock::Timestamp;
use crate::store::second::Second;

use super::caller::Caller;
use super::group::Group;
use super::verdicts::VerdictId;

use note::Note;

pub use unit::{AGREED, Agreement, Control, DIFFERS, RecentKey, UNCLEAR, Unit};

/// Units that are remembered.
pub const MOST: usize = 16_384;

/// The units that are known, and the keys whose own answers agreed there.
#[derive(Debug)]
pub struct Units {
    units: Cache<Vec<u8>, Arc<Unit>>,
    members: Cache<[u8; 32], (Membership, Timestamp)>,
}

impl Default for Units {
    fn default() -> Self {
        Self {
            units: Cache::new(MOST),
            members: Cache::new(4 * MOST),
        }
    }
}

/// Whether a key gets what others have fetched in a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Membership {
    /// Its own answer agreed with theirs.
    Of(Group),
    /// They could not be compared.
    Unclear,
}

/// A key in a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemberId([u8; 32]);

impl MemberId {
    /// `unit` as it is written.
    pub fn of(caller: &Caller, unit: &[u8]) -> Self {
        Self(VerdictId::of(&caller.credential, unit).0)
    }

    fn name(&self) -> String {
        format!("member:{}", hex::encode(self.0))
    }
}

impl Units {
    /// What is known of the unit that is written so.
    pub fn get(&self, written: &[u8]) -> Option<Arc<Unit>> {
        self.units.get(written)
    }

    /// Whether a key is known to get what others have fetched in a unit, or not to.
    pub fn membership(&self, member: &MemberId, now: Timestamp) -> Option<Membership> {
        let (membership, until) = self.members.get(&member.0)?;
        (now < until).then_some(membership)
    }

    /// A key's own answer was compared with those of others.
    pub fn join(
        &self,
        member: MemberId,
        membership: Membership,
        second: Option<&Second>,
        now: Timestamp,
    ) {
        let lasts = match membership {
            // Its group may end before.
            Membership::Of(_) => DIFFERS,
            Membership::Unclear => UNCLEAR,
        };
        let until = now.plus(lasts);
        self.members.insert(member.0, (membership, until));
        if let (Membership::Of(group), Some(second)) = (membership, second) {
            let note = Note::of(b'M', until, group);
            second.note(&member.name(), note.write(), lasts);
        }
    }

    /// What other instances have found of a key in a unit.
    pub async fn hear_of_member(&self, member: MemberId, second: &Second, now: Timestamp) {
        if !second.is_usable() {
            return;
        }
        let noted = second.noted(&member.name()).await.ok().flatten();
        if let Some(note) = noted.and_then(|bytes| Note::read(&bytes))
            && note.kind == b'M'
            && now < note.until
        {
            let membership = Membership::Of(note.group);
            self.members.insert(member.0, (membership, note.until));
        }
    }

    /// What other instances have proved of a unit; one of which nobody has proved anything is not
    /// remembered for that.
    pub async fn hear(&self, written: &[u8], second: &Second, now: Timestamp) {
        if let Some(unit) = self.get(written) {
            return unit.hear(second, now).await;
        }
        let unit = Arc::new(Unit::named(written));
        unit.hear(second, now).await;
        if unit.control(now).is_some() || unit.agreement(now).is_some() {
            self.units.insert(written.to_vec(), unit);
        }
    }

    /// The same; from now on it is known.
    pub fn known(&self, written: &[u8]) -> Arc<Unit> {
        if let Some(unit) = self.get(written) {
            return unit;
        }
        let fresh = Arc::new(Unit::named(written));
        let made: Result<_, std::convert::Infallible> = self
            .units
            .get_or_insert_with(written, || Ok(Arc::clone(&fresh)));
        made.unwrap_or(fresh)
    }
}
