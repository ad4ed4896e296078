//! One unit, as far as this instance knows it.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http::HeaderMap;
use parking_lot::{Mutex, MutexGuard};
use sha2::{Digest, Sha256};
use smallvec::SmallVec;
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::clock::Timestamp;
use crate::guard::caller::Caller;
use crate::guard::group::Group;
pub use crate::metrics::guard::Control;

/// How long agreement holds, unless it is found again.
pub const AGREED: Duration = Duration::from_secs(3600);

/// How long a difference keeps keys apart.
pub const DIFFERS: Duration = Duration::from_secs(24 * 3600);

/// How long what was unclear is left alone.
pub const UNCLEAR: Duration = Duration::from_secs(3600);

/// After a control that never reached the origin.
pub(super) const AGAIN: Duration = Duration::from_secs(10);

/// After a comparison that could not be made.
const PAUSE: Duration = Duration::from_secs(60);

/// Proofs of one unit that are under way or wait; more are left out.
const PLACES: usize = 64;

/// Keys that are remembered of a unit, to be compared with.
const RECENT: usize = 8;

/// Places in answers that are remembered of a unit; past it none is new.
const PLACES_KNOWN: usize = 2048;

/// Whether answers agree by key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Agreement {
    Agreed,
    Differs,
    Unclear,
}

/// A key to which something was answered lately.
#[derive(Clone, Debug)]
pub struct RecentKey {
    pub caller: Caller,
    pub credential: HeaderMap,
    /// A digest of what it asked for, and one of the answer where that is its own, and when it
    /// came.
    pub asked: [u8; 32],
    pub answer: Option<(u64, Timestamp)>,
    /// Whose answers it gets.
    pub group: Option<Group>,
}

/// What was proved of one unit.
#[derive(Debug)]
pub struct Unit {
    /// As the fleet names it.
    pub(super) name: String,
    /// Until when a control holds, in Unix milliseconds.
    pub(super) held_until: AtomicU64,
    agreed_until: AtomicU64,
    /// Whose answers agree, until then.
    group: AtomicU64,
    known: Mutex<Known>,
    proving: tokio::sync::Mutex<()>,
    /// For proofs under way and waiting.
    places: Semaphore,
}

#[derive(Debug, Default)]
pub(super) struct Known {
    /// The last control, and when the next one is due.
    pub(super) control: Option<(Control, Timestamp)>,
    /// What was found of its answers last, and until when that holds.
    agreement: Option<(Agreement, Timestamp)>,
    /// The latest last.
    recent: SmallVec<[RecentKey; RECENT]>,
    pub(super) heard: Option<Timestamp>,
    /// No comparison begins before then.
    paused_until: Timestamp,
    /// Where answers that agreed have something.
    places: HashSet<u64>,
}

impl Unit {
    pub(super) fn named(written: &[u8]) -> Self {
        Self {
            name: hex::encode(Sha256::digest(written)),
            held_until: AtomicU64::new(0),
            agreed_until: AtomicU64::new(0),
            group: AtomicU64::new(0),
            known: Mutex::default(),
            proving: tokio::sync::Mutex::default(),
            places: Semaphore::new(PLACES),
        }
    }

    pub(super) fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock()
    }

    /// Whether a 2xx says something of a key here.
    pub fn is_controlled(&self, now: Timestamp) -> bool {
        now.as_millis() < self.held_until.load(Ordering::Acquire)
    }

    /// Whose answers were found to agree.
    pub fn group(&self, now: Timestamp) -> Option<Group> {
        let until = self.agreed_until.load(Ordering::Acquire);
        let group = Group::from_number(self.group.load(Ordering::Acquire));
        (now.as_millis() < until).then_some(group)
    }

    /// The last control, where one was taken that still says something.
    pub fn control(&self, now: Timestamp) -> Option<Control> {
        if self.is_controlled(now) {
            return Some(Control::Held);
        }
        let (control, due) = self.known().control?;
        (now < due).then_some(control)
    }

    pub fn agreement(&self, now: Timestamp) -> Option<Agreement> {
        let (agreement, until) = self.known().agreement?;
        (now < until).then_some(agreement)
    }

    /// Whether agreement is to be found again, before it ends.
    pub fn is_aging(&self, now: Timestamp) -> bool {
        self.group(now.plus(AGREED / 2)).is_none()
    }

    /// Whether a control is due.
    pub fn wants_control(&self, now: Timestamp) -> bool {
        self.known().control.is_none_or(|(_, due)| now >= due)
    }

    /// One proof at a time; `None` while too many wait already.
    pub async fn begin(&self) -> Option<(SemaphorePermit<'_>, tokio::sync::MutexGuard<'_, ()>)> {
        let place = self.places.try_acquire().ok()?;
        Some((place, self.proving.lock().await))
    }

    /// Remembers a key to which something was answered.
    pub fn note_key(&self, key: RecentKey) {
        let mut known = self.known();
        let is_same =
            |known: &mut RecentKey| known.caller.credential.key == key.caller.credential.key;
        known.recent.retain(|known| !is_same(known));
        // Any, lest the many keys of one client leave no other one to be compared with.
        if known.recent.len() == RECENT {
            known.recent.remove(fastrand::usize(..RECENT));
        }
        known.recent.push(key);
    }

    /// Other keys to which something was answered lately, the latest first.
    pub fn others(&self, caller: &Caller) -> Vec<RecentKey> {
        let own = caller.credential.key;
        let known = self.known();
        let others = known.recent.iter().rev();
        others
            .filter(|known| known.caller.credential.key != own)
            .cloned()
            .collect()
    }

    /// A control was taken, of which one is due in this time.
    pub fn controlled(&self, control: Control, every: Duration, now: Timestamp) {
        let due = now.plus(match control {
            Control::Unsent => AGAIN,
            _ => every,
        });
        self.known().control = Some((control, due));
        let until = match control {
            Control::Held => due.plus(every).as_millis(),
            Control::Failed => 0,
            // The one before it holds to its end.
            Control::Unanswered | Control::Unsent => return,
        };
        self.held_until.store(until, Ordering::Release);
    }

    /// Answers were compared and never stayed the same: no two keys are to get each other's.
    pub fn found_unclear(&self, now: Timestamp) {
        self.set_agreement(&mut self.known(), Agreement::Unclear, now.plus(UNCLEAR));
    }

    /// The keys of a group agree, as far as this instance knows.
    pub fn agree(&self, group: Group, until: Timestamp) {
        let mut known = self.known();
        if self.group.swap(group.number(), Ordering::AcqRel) != group.number() {
            known.places.clear();
        }
        self.set_agreement(&mut known, Agreement::Agreed, until);
    }

    /// The keys of a group were found to agree once more; whether they are still the ones.
    pub fn renew(&self, group: Group, now: Timestamp) -> bool {
        let mut known = self.known();
        let is_current = self.group(now) == Some(group);
        if is_current {
            self.set_agreement(&mut known, Agreement::Agreed, now.plus(AGREED));
        }
        is_current
    }

    /// Nobody is left with whom another key could be compared.
    pub fn dissolve(&self) {
        let mut known = self.known();
        known.agreement = None;
        known.recent.clear();
        self.agreed_until.store(0, Ordering::Release);
    }

    pub(super) fn set_agreement(&self, known: &mut Known, agreement: Agreement, until: Timestamp) {
        known.agreement = Some((agreement, until));
        let agreed_until = match agreement {
            Agreement::Agreed => until.as_millis(),
            Agreement::Differs | Agreement::Unclear => 0,
        };
        self.agreed_until.store(agreed_until, Ordering::Release);
    }

    /// Whether a comparison may begin, since none has failed a moment ago.
    pub fn may_compare(&self, now: Timestamp) -> bool {
        now >= self.known().paused_until
    }

    /// A comparison could not be made.
    pub fn pause(&self, now: Timestamp) {
        self.known().paused_until = now.plus(PAUSE);
    }

    /// Whether an answer has something where those that agreed had nothing.
    pub fn has_new_place(&self, places: &[u64]) -> bool {
        let known = self.known();
        known.places.len() < PLACES_KNOWN && !places.iter().all(|at| known.places.contains(at))
    }

    /// An answer agreed that has something there.
    pub fn knows_places(&self, places: &[u64]) {
        let mut known = self.known();
        let room = PLACES_KNOWN.saturating_sub(known.places.len());
        known.places.extend(places.iter().take(room));
    }
}
