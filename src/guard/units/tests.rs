//! What holds for how long, and what ends it.

use std::time::Duration;

use crate::clock::Timestamp;

use super::note::Note;
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
    // No answer ends nothing, and the next one is due as late; one that was not sent is tried
    // again.
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
    unit.found_to_differ(None, at(3600));
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
