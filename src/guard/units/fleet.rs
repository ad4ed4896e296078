//! A unit and the fleet: what other instances have proved of it, and what they are told.

use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;

use crate::clock::Timestamp;
use crate::guard::group::Group;
use crate::store::second::Second;

use super::note::Note;
use super::unit::{AGAIN, AGREED, Agreement, Control, DIFFERS, Unit};

/// The fleet is asked about a unit of which too little is known so often.
const HEARD: Duration = Duration::from_secs(1);

impl Unit {
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

    pub(super) fn hear_control(&self, note: Note) {
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

    /// Begins a group of keys whose answers agree; `None` where another instance has begun one
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

    /// Two keys' answers were found to differ: nobody is to get another's, on no instance.
    pub fn found_to_differ(&self, second: Option<&Second>, now: Timestamp) {
        let until = now.plus(DIFFERS);
        self.set_agreement(&mut self.known(), Agreement::Differs, until);
        if let Some(second) = second {
            let note = Note::of(b'D', until, Group::ALL);
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
