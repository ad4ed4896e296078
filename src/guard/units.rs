//! What was proved of a *unit*: host, literal path, the names in the query, and the fields by which
//! the route lets the origin choose. Two things must be proved before one answer is given to two
//! keys there:
//!
//! | proof | what it takes | how long it holds |
//! |---|---|---|
//! | control | the same request with a random key, and with none, was refused: a 2xx says something of a key | twice `auth.control`, after which it is taken again; one that failed, once |
//! | agreement | a second key's own answer agreed with the first one's | [`AGREED`]; a difference as long, what was unclear [`UNCLEAR`] |
//!
//! Until then what a key has fetched is that key's alone; and so it is for each key that comes later,
//! until its own answer agreed as well (it is a *member* then). All of it is shared by the fleet, by Redis
//! notes that end with them; of each unit the fleet takes at most one control in `auth.control` (an
//! instance that cannot reach Redis counts for itself). An instance remembers [`MOST`] units, and
//! forgets those that are used least.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use quick_cache::sync::Cache;
use sha2::{Digest, Sha256};
use smallvec::SmallVec;
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::clock::Timestamp;
pub use crate::metrics::guard::Control;
use crate::store::second::Second;

use super::caller::Caller;
use super::group::Group;
use super::verdicts::VerdictId;

/// How long agreement holds, unless it is found again.
pub const AGREED: Duration = Duration::from_secs(3600);

/// How long a difference keeps keys apart.
pub const DIFFERS: Duration = Duration::from_secs(24 * 3600);

/// How long what was unclear is left alone.
pub const UNCLEAR: Duration = Duration::from_secs(3600);

/// Units that are remembered.
pub const MOST: usize = 16_384;

/// After a control that never reached the origin.
const AGAIN: Duration = Duration::from_secs(10);

/// After a comparison that could not be made.
const PAUSE: Duration = Duration::from_secs(60);

/// Proofs of one unit that are under way or wait; more are left out.
const PLACES: usize = 8;

/// Shapes of answers that are remembered of a unit.
const SHAPES: usize = 16;

/// The fleet is asked about a unit of which too little is known so often.
const HEARD: Duration = Duration::from_secs(1);

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
        let hex = self.0.iter().map(|byte| format!("{byte:02x}"));
        format!("member:{}", hex.collect::<String>())
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

/// Whether answers agree by key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Agreement {
    Agreed,
    Differs,
    Unclear,
}

/// A key whose own answer was the last that came, until another key's is compared with it.
#[derive(Clone, Debug)]
pub struct FirstKey {
    pub caller: Caller,
    pub credential: HeaderMap,
    /// A digest of what it asked for, and one of the answer where that is its own.
    pub asked: [u8; 32],
    pub answer: Option<u64>,
    /// Whose answers it gets.
    pub group: Option<Group>,
}

/// What was proved of one unit.
#[derive(Debug)]
pub struct Unit {
    /// As the fleet names it.
    name: String,
    /// Until when a control holds, in Unix milliseconds.
    held_until: AtomicU64,
    agreed_until: AtomicU64,
    /// Whose answers agree, until then.
    group: AtomicU64,
    known: Mutex<Known>,
    proving: tokio::sync::Mutex<()>,
    /// For proofs under way and waiting.
    places: Semaphore,
}

#[derive(Debug, Default)]
struct Known {
    /// The last control, and when the next one is due.
    control: Option<(Control, Timestamp)>,
    /// What was found of its answers last, and until when that holds.
    agreement: Option<(Agreement, Timestamp)>,
    first: Option<FirstKey>,
    heard: Option<Timestamp>,
    /// No comparison begins before then.
    paused_until: Timestamp,
    /// What answers that agreed are made of.
    shapes: SmallVec<[u64; 4]>,
}

impl Unit {
    fn named(written: &[u8]) -> Self {
        let digest = Sha256::digest(written);
        let name = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        Self {
            name,
            held_until: AtomicU64::new(0),
            agreed_until: AtomicU64::new(0),
            group: AtomicU64::new(0),
            known: Mutex::default(),
            proving: tokio::sync::Mutex::default(),
            places: Semaphore::new(PLACES),
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
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

    /// One proof at a time; `None` while some wait already.
    pub async fn begin(&self) -> Option<(SemaphorePermit<'_>, tokio::sync::MutexGuard<'_, ()>)> {
        let place = self.places.try_acquire().ok()?;
        Some((place, self.proving.lock().await))
    }

    /// Remembers a key whose answer came; the one before it, where that is another key.
    pub fn exchange_first(&self, first: FirstKey) -> Option<FirstKey> {
        let key = first.caller.credential.key;
        let before = self.known().first.replace(first)?;
        (before.caller.credential.key != key).then_some(before)
    }

    /// The key that was answered last, unless it is this one.
    pub fn first_but(&self, caller: &Caller) -> Option<FirstKey> {
        let known = self.known();
        let first = known.first.as_ref()?;
        (first.caller.credential.key != caller.credential.key).then(|| first.clone())
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

    /// Answers were compared, and no two keys are to get each other's.
    pub fn found(&self, agreement: Agreement, now: Timestamp) {
        let lasts = match agreement {
            Agreement::Agreed => return,
            Agreement::Differs => DIFFERS,
            Agreement::Unclear => UNCLEAR,
        };
        self.set_agreement(&mut self.known(), agreement, now.plus(lasts));
    }

    /// The keys of a group agree, as far as this instance knows.
    pub fn agree(&self, group: Group, until: Timestamp) {
        let mut known = self.known();
        if self.group.swap(group.number(), Ordering::AcqRel) != group.number() {
            known.shapes.clear();
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
        known.first = None;
        self.agreed_until.store(0, Ordering::Release);
    }

    fn set_agreement(&self, known: &mut Known, agreement: Agreement, until: Timestamp) {
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

    /// Whether an answer is made of something of which those that agreed had nothing.
    pub fn is_of_new_shape(&self, shape: u64) -> bool {
        !self.known().shapes.contains(&shape)
    }

    /// An answer of this shape agreed.
    pub fn knows_shape(&self, shape: u64) {
        let mut known = self.known();
        if !known.shapes.contains(&shape) {
            if known.shapes.len() == SHAPES {
                known.shapes.remove(0);
            }
            known.shapes.push(shape);
        }
    }

    /// Whether the fleet was not asked about it a moment ago; it counts as asked.
    fn may_hear(&self, now: Timestamp) -> bool {
        let mut known = self.known();
        let may = known.heard.is_none_or(|heard| now.since(heard) >= HEARD);
        if may {
            known.heard = Some(now);
        }
        may
    }

    /// What other instances have proved of it, unless they were asked a moment ago.
    pub async fn hear(&self, second: &Second, now: Timestamp) {
        if second.is_usable() && self.may_hear(now) {
            self.hear_now(second, now).await;
        }
    }

    /// What other instances have proved of it.
    pub async fn hear_now(&self, second: &Second, now: Timestamp) {
        let names = [
            self.control_name(),
            self.agreement_name(),
            self.difference_name(),
        ];
        let [control, agreement, difference] = &names;
        let (control, agreement, difference) = tokio::join!(
            second.noted(control),
            second.noted(agreement),
            second.noted(difference)
        );
        let read = |noted: Result<Option<Bytes>, _>| {
            Note::read(&noted.ok()??).filter(|note| now < note.until)
        };
        if let Some(note) = read(difference) {
            let mut known = self.known();
            self.set_agreement(&mut known, Agreement::Differs, note.until);
        } else if let Some(note) = read(agreement)
            && self.agreement(now) != Some(Agreement::Differs)
        {
            // Where two have begun, the one that all hear of stands.
            self.agree(note.group, note.until);
        }
        if let Some(note) = read(control) {
            self.hear_control(note);
        }
    }

    fn hear_control(&self, note: Note) {
        let control = match note.kind {
            b'H' => Control::Held,
            b'F' => Control::Failed,
            _ => return,
        };
        let mut known = self.known();
        // The latest counts, whoever took it.
        if known.control.is_some_and(|(_, due)| due >= note.due) {
            return;
        }
        known.control = Some((control, note.due));
        let until = if control == Control::Held {
            note.until.as_millis()
        } else {
            0
        };
        self.held_until.store(until, Ordering::Release);
    }

    /// Begins a group of keys whose answers agree; `false` where another instance has begun one
    /// before.
    pub async fn begin_group(&self, second: Option<&Second>, now: Timestamp) -> Option<Group> {
        let (group, until) = (Group::begin(), now.plus(AGREED));
        if let Some(second) = second.filter(|second| second.is_usable()) {
            let note = Note::of(b'A', until, group).write();
            let name = self.agreement_name();
            let is_first = second.note_first(&name, note, AGREED);
            if !is_first.await.unwrap_or(true) {
                self.hear_now(second, now).await;
                return None;
            }
        }
        self.agree(group, until);
        Some(group)
    }

    /// Whether this instance is the one of the fleet that takes the control that is due.
    pub async fn claim_control(&self, second: Option<&Second>, now: Timestamp) -> bool {
        let Some(second) = second.filter(|second| second.is_usable()) else {
            return true;
        };
        // Short, should this instance not live to take it.
        let note = Note::of(b'P', now.plus(AGAIN), Group::ALL);
        let name = self.claim_name();
        let is_first = second.note_first(&name, note.write(), AGAIN);
        // Out of reach, each instance counts for itself.
        is_first.await.unwrap_or(true)
    }

    /// Tells the fleet what a control came to.
    pub fn tell_control(
        &self,
        second: Option<&Second>,
        control: Control,
        every: Duration,
        now: Timestamp,
    ) {
        let Some(second) = second else { return };
        let due = now.plus(every);
        if control != Control::Unsent {
            let note = Note::of(b'P', due, Group::ALL);
            second.note(&self.claim_name(), note.write(), every);
        }
        let (kind, until) = match control {
            Control::Held => (b'H', due.plus(every)),
            Control::Failed => (b'F', due),
            Control::Unanswered | Control::Unsent => return,
        };
        let note = Note {
            due,
            ..Note::of(kind, until, Group::ALL)
        };
        second.note(&self.control_name(), note.write(), until.since(now));
    }

    /// Tells the fleet that a group's keys were found to agree once more.
    pub fn tell_renewed(&self, second: Option<&Second>, group: Group, now: Timestamp) {
        if let Some(second) = second {
            let note = Note::of(b'A', now.plus(AGREED), group);
            second.note(&self.agreement_name(), note.write(), AGREED);
        }
    }

    /// Tells the fleet that answers differ.
    pub fn tell_difference(&self, second: Option<&Second>, now: Timestamp) {
        if let Some(second) = second {
            let note = Note::of(b'D', now.plus(DIFFERS), Group::ALL);
            second.note(&self.difference_name(), note.write(), DIFFERS);
        }
    }

    fn claim_name(&self) -> String {
        format!("unit:{}:claim", self.name)
    }

    fn difference_name(&self) -> String {
        format!("unit:{}:difference", self.name)
    }

    fn control_name(&self) -> String {
        format!("unit:{}:control", self.name)
    }

    fn agreement_name(&self) -> String {
        format!("unit:{}:agreement", self.name)
    }
}

/// What is proved, as the fleet shares it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Note {
    kind: u8,
    due: Timestamp,
    until: Timestamp,
    group: Group,
}

const VERSION: u8 = 2;

impl Note {
    fn of(kind: u8, until: Timestamp, group: Group) -> Self {
        Self {
            kind,
            due: until,
            until,
            group,
        }
    }

    fn write(self) -> Bytes {
        let mut bytes = vec![VERSION, self.kind];
        bytes.extend_from_slice(&self.due.as_millis().to_be_bytes());
        bytes.extend_from_slice(&self.until.as_millis().to_be_bytes());
        bytes.extend_from_slice(&self.group.to_bytes());
        bytes.into()
    }

    /// `None` for what is not one.
    fn read(bytes: &[u8]) -> Option<Self> {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Timestamp {
        Timestamp::from_millis(1_000_000 + seconds * 1000)
    }

    const HOUR: Duration = Duration::from_secs(3600);

    #[test]
    fn a_control_holds_for_twice_as_long_as_until_the_next_and_ends_when_that_fails() {
        let unit = Units::default().known(b"one");
        assert!(unit.wants_control(at(0)) && !unit.is_controlled(at(0)));
        unit.controlled(Control::Held, HOUR, at(0));
        assert!(!unit.wants_control(at(3599)) && unit.wants_control(at(3600)));
        assert!(unit.is_controlled(at(7199)) && !unit.is_controlled(at(7200)));
        // No answer ends nothing, and the next one is due as late; one that was not sent is tried again.
        unit.controlled(Control::Unanswered, HOUR, at(3600));
        assert!(unit.is_controlled(at(7199)) && !unit.wants_control(at(7199)));
        unit.controlled(Control::Unsent, HOUR, at(7200));
        assert!(unit.wants_control(at(7210)));
        unit.controlled(Control::Held, HOUR, at(7300));
        unit.controlled(Control::Failed, HOUR, at(7400));
        assert!(!unit.is_controlled(at(7401)));
        assert_eq!(unit.control(at(7401)), Some(Control::Failed));
    }

    #[test]
    fn agreement_ends_by_itself_and_by_a_difference_and_what_begins_anew_is_another() {
        let units = Units::default();
        let unit = units.known(b"one");
        let (one, other) = (Group::begin(), Group::begin());
        unit.agree(one, at(3600));
        let found = units.get(b"one").unwrap().group(at(1));
        assert_eq!((found, units.get(b"two").is_none()), (Some(one), true));
        assert_eq!(unit.group(at(3600)), None);
        assert!(unit.renew(one, at(3599)) && !unit.renew(other, at(3599)));
        assert_eq!(unit.group(at(3600)), Some(one));
        unit.found(Agreement::Differs, at(3600));
        assert_eq!(unit.group(at(3601)), None);
        assert_eq!(unit.agreement(at(3601)), Some(Agreement::Differs));
        // A comparison that was under way does not undo it.
        assert!(!unit.renew(one, at(3601)));
        assert_eq!(unit.agreement(at(3601)), Some(Agreement::Differs));
        // A new group has none of the old one's members.
        let member = MemberId([1; 32]);
        units.join(member, Membership::Of(one), None, at(0));
        assert_eq!(units.membership(&member, at(1)), Some(Membership::Of(one)));
        assert_ne!(
            units.membership(&member, at(1)),
            Some(Membership::Of(other))
        );
    }

    #[test]
    fn what_was_heard_does_not_replace_what_was_found_later() {
        let unit = Units::default().known(b"one");
        let heard = |kind, due| Note {
            due: at(due),
            ..Note::of(kind, at(due + 3600), Group::ALL)
        };
        unit.hear_control(heard(b'H', 3600));
        assert!(unit.is_controlled(at(1)));
        unit.controlled(Control::Failed, HOUR, at(10));
        unit.hear_control(heard(b'H', 3600));
        assert!(!unit.is_controlled(at(11)));
        unit.hear_control(heard(b'H', 3700));
        assert!(unit.is_controlled(at(101)));
    }

    #[test]
    fn a_note_is_read_as_it_was_written_and_nothing_else_is_one() {
        let note = Note {
            kind: b'H',
            due: at(1),
            until: at(2),
            group: Group::begin(),
        };
        let bytes = note.write();
        assert_eq!(Note::read(&bytes), Some(note));
        for broken in [
            &bytes[..25],
            b"",
            b"\x01H000000001111111122222222",
            &[2; 27],
        ] {
            assert_eq!(Note::read(broken), None, "{broken:?}");
        }
    }
}
