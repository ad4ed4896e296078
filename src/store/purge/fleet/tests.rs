//! The fleet's log as one instance applies it.

use crate::store::purge::causes::Cause;
use std::time::Duration;

use super::*;
use crate::policy::key::{KeyBytes, KeyParts, RuleDigest, write_target};
use crate::store::PurgeLog;

const NOW: Timestamp = Timestamp::from_millis(5000);

fn log() -> PurgeLog {
    PurgeLog::of_fleet(Duration::from_secs(60), NOW)
}

fn url(path: &str) -> Purge {
    let mut target = KeyBytes::new();
    write_target(path, None, &mut target);
    let (target, reach) = (Target::Url(target[..].into()), Reach::Any);
    Purge { target, reach }
}

/// What a value of `/a` with this stamp is worth.
fn worth(log: &PurgeLog, epoch: u64, position: u64) -> Judgement {
    let mut key = KeyBytes::new();
    KeyParts {
        scheme: "http",
        host: "h",
        forwarded_host: None,
        path: "/a",
        query: None,
        rule: RuleDigest::default(),
        partition: b"",
    }
    .write(&mut key);
    let place = Place::of(&key).unwrap();
    let stamp = Stamp { epoch, position };
    log.judge_shared(&place, None, stamp).0
}

fn entry(token: u64, path: &str, mode: Mode) -> Outgoing {
    let (purge, at) = (url(path), NOW);
    Outgoing {
        token,
        purge,
        mode,
        at,
    }
}

/// A look that brings these, at positions that follow `from`.
fn look(from: u64, entries: Vec<Outgoing>) -> Synced {
    let latest = from + entries.len() as u64;
    let logged = entries.into_iter().zip(from + 1..);
    Synced {
        epoch: 1,
        latest,
        entries: logged
            .map(|(entry, position)| Logged {
                position,
                entry: Some(entry),
            })
            .collect(),
        ..Synced::default()
    }
}

#[test]
fn what_others_purge_takes_effect_here_when_it_is_read() {
    let log = log();
    log.apply(look(0, vec![]), NOW);
    let before = log.position();
    let applied = log.apply(look(0, vec![entry(7, "/a", Mode::Hard)]), NOW);
    assert_eq!((applied.purges, applied.is_behind), (1, false));
    assert_eq!(log.position(), before + 1);
    assert_eq!(log.cursor().stamp.position, 1);
    // Values from before it are gone, newer ones are not.
    assert_eq!(worth(&log, 1, 0), Judgement::Gone);
    assert_eq!(worth(&log, 1, 1), Judgement::Untouched);
    // Once is enough.
    assert_eq!(
        log.apply(look(0, vec![entry(7, "/a", Mode::Hard)]), NOW)
            .purges,
        0
    );
}

#[test]
fn a_value_of_another_log_or_of_none_is_worth_nothing() {
    let log = log();
    assert_eq!(worth(&log, 0, 0), Judgement::Gone);
    log.apply(look(0, vec![]), NOW);
    assert_eq!(worth(&log, 1, 0), Judgement::Untouched);
    assert_eq!(worth(&log, 2, 0), Judgement::Gone);
    assert_eq!(worth(&PurgeLog::default(), 1, 0), Judgement::Gone);
}

#[test]
fn own_purges_count_at_once_and_are_known_again_when_they_come_back() {
    let log = log();
    log.apply(look(0, vec![]), NOW);
    let local = log.append(url("/a"), Mode::Hard, NOW, Cause::Order);
    assert_eq!(worth(&log, 1, 0), Judgement::Gone);
    assert!(!log.has_published(local));
    let sent = log.take_queued(10);
    assert_eq!((sent.len(), log.take_queued(10).len()), (1, 0));
    log.sent(true);
    let applied = log.apply(look(0, sent), NOW);
    assert_eq!((applied.purges, applied.lost), (0, 0));
    assert_eq!((log.position(), log.pending()), (local, 0));
    assert!(log.has_published(local));
    assert_eq!(worth(&log, 1, 0), Judgement::Gone);
    assert_eq!(worth(&log, 1, 1), Judgement::Untouched);
}

#[test]
fn a_soft_purge_on_its_way_makes_stale_and_no_more() {
    let log = log();
    log.apply(look(0, vec![]), NOW);
    log.append(url("/a"), Mode::Soft, NOW, Cause::Order);
    assert_eq!(worth(&log, 1, 0), Judgement::StaleSince(NOW));
}

#[test]
fn a_fetch_knows_how_far_the_fleets_log_was_applied_when_it_began() {
    let log = log();
    assert_eq!(log.stamp_of(0), None);
    log.apply(look(0, vec![]), NOW);
    let position = |local| log.stamp_of(local).map(|stamp| stamp.position);
    let first = log.position();
    assert_eq!(position(first), Some(0));
    let own = log.append(url("/a"), Mode::Hard, NOW, Cause::Order);
    // Not in the log yet.
    assert_eq!(position(own), Some(0));
    let sent = log.take_queued(10);
    let theirs = vec![entry(7, "/b", Mode::Hard)];
    log.apply(look(0, [sent, theirs].concat()), NOW);
    // What began before the own purge, between the two, and after both.
    assert_eq!(position(first), Some(0));
    assert_eq!(position(own), Some(1));
    assert_eq!(position(log.position()), Some(2));
    // In the other order, who began before theirs was applied here knows of neither.
    let own = log.append(url("/a"), Mode::Hard, NOW, Cause::Order);
    let sent = log.take_queued(10);
    let theirs = vec![entry(8, "/b", Mode::Hard)];
    log.apply(look(2, [theirs, sent].concat()), NOW);
    assert_eq!(position(own), Some(2));
    assert_eq!(position(log.position()), Some(4));
}

#[test]
fn a_gap_or_another_log_drops_what_is_stored_and_distrusts_older_values() {
    for (epoch, restarts) in [(1, true), (2, false)] {
        let log = log();
        log.apply(look(0, vec![entry(7, "/b", Mode::Hard)]), NOW);
        let (before, stamp) = (log.position(), log.stamp_of(log.position()));
        let synced = Synced {
            epoch,
            restarts,
            floor: 90,
            ..look(95, vec![entry(8, "/b", Mode::Hard)])
        };
        let applied = log.apply(synced, NOW);
        assert!(applied.dropped);
        let place = KeyBytes::from_slice(b"http\0h\0\0/a\0\0");
        assert!(log.has_purged(&place, None, before, u64::MAX));
        // What was being fetched then cannot be judged by the new log.
        assert!(stamp.is_some() && log.stamp_of(before).is_none());
        assert_eq!(worth(&log, epoch, 89), Judgement::Gone);
        assert_eq!(worth(&log, epoch, 90), Judgement::Untouched);
        assert_eq!(worth(&log, 3 - epoch, 96), Judgement::Gone);
    }
}

#[test]
fn an_own_purge_that_the_log_does_not_have_goes_there_again() {
    let log = log();
    log.apply(look(0, vec![]), NOW);
    log.append(url("/a"), Mode::Hard, NOW, Cause::Order);
    log.take_queued(10);
    log.sent(true);
    // Another stands where it stood.
    let applied = log.apply(look(0, vec![entry(7, "/b", Mode::Hard)]), NOW);
    assert_eq!(applied.lost, 1);
    assert_eq!(log.take_queued(10).len(), 1);
    // Nobody knows whether it arrived: once more is safe.
    log.sent(false);
    assert_eq!(log.take_queued(10).len(), 1);
}

#[test]
fn what_waits_is_bounded_and_repeats_are_one() {
    let log = log();
    log.apply(look(0, vec![]), NOW);
    for _ in 0..100 {
        log.append(url("/a"), Mode::Hard, NOW, Cause::Order);
    }
    assert_eq!(log.pending(), 1);
    // One that was sent already may be older than a fill that has landed since.
    log.take_queued(10);
    let local = log.append(url("/a"), Mode::Hard, NOW, Cause::Order);
    assert_eq!(log.pending(), 2);
    log.sent(true);
    assert!(!log.has_published(local));
    for number in 0..=MOST_QUEUED {
        log.append(url(&format!("/{number}")), Mode::Soft, NOW, Cause::Order);
    }
    assert!(log.pending() < 10, "{}", log.pending());
    let sent = log.take_queued(10);
    assert!(
        sent.iter()
            .any(|own| own.purge == everything() && own.mode == Mode::Hard)
    );
}

#[test]
fn trust_follows_the_log_and_what_was_fetched_since() {
    let log = log();
    let after = |seconds| NOW.plus(Duration::from_secs(seconds));
    assert!(log.is_trusted(NOW, after(60)));
    assert!(!log.is_trusted(NOW, after(61)));
    // Fetched while the log was silent: as good as that for as long.
    assert!(log.is_trusted(after(50), after(110)));
    assert!(!log.is_trusted(after(50), after(111)));
    log.apply(look(0, vec![]), after(100));
    assert!(log.is_trusted(NOW, after(160)));
    // A look that leaves something unread is no news of now.
    let behind = Synced {
        latest: 5,
        ..look(0, vec![])
    };
    log.apply(behind, after(150));
    assert!(!log.is_trusted(NOW, after(161)));
    assert!(PurgeLog::default().is_trusted(Timestamp::EPOCH, after(1 << 40)));
}

#[test]
fn one_that_stands_for_several_is_known_when_it_is_for_the_first_of_them() {
    let mut log = Fleet::default();
    let name = |name: &str| Purge {
        target: Target::Group(name.into()),
        reach: Reach::Any,
    };
    let now = Timestamp::from_millis(1);
    log.queue(name("before"), Mode::Hard, now, 9);
    assert_eq!(log.take_queued(1).len(), 1);
    // Two of one name, while the first batch is under way: one entry.
    log.queue(name("g"), Mode::Hard, now, 10);
    log.queue(name("g"), Mode::Hard, now, 11);
    log.sent(true);
    assert!(log.has_appended(9));
    for local in [10, 11] {
        assert!(
            !log.has_appended(local) && !log.has_published(local),
            "{local}"
        );
    }
    assert_eq!(log.take_queued(10).len(), 1);
    log.sent(true);
    assert!(log.has_appended(11) && !log.has_published(10));
    // And so where too many are made one.
    for number in 0..=MOST_QUEUED as u64 {
        log.queue(name(&number.to_string()), Mode::Hard, now, 12 + number);
    }
    assert!(!log.has_appended(12) && !log.has_published(12));
}
