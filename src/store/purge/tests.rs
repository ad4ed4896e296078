//! The log as those who ask it see it.

use super::book::{KEPT, MOST_COMPARED, MOST_MARKS, Marks};
use super::*;
use crate::policy::key::{KeyBytes, KeyParts, RuleDigest, write_target};

fn key(host: &str, path: &str, query: Option<&str>) -> KeyBytes {
    let mut key = KeyBytes::new();
    KeyParts {
        scheme: "http",
        host,
        forwarded_host: None,
        path,
        query,
        rule: RuleDigest::default(),
        partition: b"",
    }
    .write(&mut key);
    key
}

fn url(path: &str, query: Option<&str>) -> Target {
    let mut target = KeyBytes::new();
    write_target(path, query, &mut target);
    Target::Url(short(&target).into())
}

#[test]
fn a_purge_of_a_long_url_is_as_small_as_any_and_reaches_its_own() {
    let log = PurgeLog::default();
    let path = |last| format!("/{}{last}", "x".repeat(30_000));
    let Target::Url(target) = url(&path('a'), None) else {
        panic!("a URL")
    };
    assert!(target.len() < 64);
    log.append(
        everywhere(url(&path('a'), None)),
        Mode::Hard,
        NOW,
        Cause::Order,
    );
    assert_eq!(
        judge(&log, &key("h", &path('a'), None), &[], 0),
        Judgement::Gone
    );
    assert_eq!(
        judge(&log, &key("h", &path('b'), None), &[], 0),
        Judgement::Untouched
    );
    let host = "h".repeat(5000);
    let origin = key(&host, "", None);
    let origin = Place::of(&origin).unwrap().origin.to_vec();
    let reach = Reach::Origin(short(&origin).into());
    let target = url("/", None);
    log.append(Purge { target, reach }, Mode::Hard, NOW, Cause::Order);
    assert_eq!(judge(&log, &key(&host, "/", None), &[], 0), Judgement::Gone);
    assert_eq!(
        judge(&log, &key("h", "/", None), &[], 0),
        Judgement::Untouched
    );
}

fn everywhere(target: Target) -> Purge {
    let reach = Reach::Any;
    Purge { target, reach }
}

fn judge(log: &PurgeLog, key: &[u8], groups: &[&str], since: u64) -> Judgement {
    let groups = Groups::new(groups.iter().map(|name| Box::from(*name)).collect());
    let place = Place::of(key).unwrap();
    log.judge(&place, Some(&groups), Seen::all_since(since)).0
}

const NOW: Timestamp = Timestamp::from_millis(5000);

#[test]
fn a_purge_reaches_what_began_before_it_and_nothing_else() {
    let log = PurgeLog::default();
    let (a, b) = (key("h", "/a", Some("x=1")), key("h", "/a", None));
    let before = log.position();
    log.append(
        everywhere(url("/a", Some("x=1"))),
        Mode::Hard,
        NOW,
        Cause::Order,
    );
    assert_eq!(judge(&log, &a, &[], before), Judgement::Gone);
    assert_eq!(judge(&log, &b, &[], before), Judgement::Untouched);
    assert_eq!(judge(&log, &a, &[], log.position()), Judgement::Untouched);
}

#[test]
fn each_target_reaches_its_own() {
    let reaches = |target: Target, key: &[u8], groups: &[&str]| {
        let log = PurgeLog::default();
        log.append(everywhere(target), Mode::Soft, NOW, Cause::Order);
        judge(&log, key, groups, 0) == Judgement::StaleSince(NOW)
    };
    let key = key("h", "/api/x", Some("page=2&limit=1"));
    assert!(reaches(Target::All, &key, &[]));
    assert!(reaches(Target::Prefix("/api/".into()), &key, &[]));
    assert!(reaches(Target::Prefix("/api/x?page=2".into()), &key, &[]));
    assert!(!reaches(Target::Prefix("/api/x?limit".into()), &key, &[]));
    assert!(!reaches(Target::Prefix("/api/y".into()), &key, &[]));
    assert!(reaches(Target::Group("g".into()), &key, &["f", "g"]));
    assert!(!reaches(Target::Group("g".into()), &key, &["G"]));
}

#[test]
fn a_host_is_any_scheme_and_port_and_an_origin_is_exact() {
    let purge = |reach| Purge {
        target: Target::All,
        reach,
    };
    let covers = |reach: Reach, host: &str| {
        let key = key(host, "/", None);
        purge(reach).covers(&Place::of(&key).unwrap(), None)
    };
    let host = |text: &str| Reach::Host(text.into());
    assert!(covers(host("API.example"), "api.example:8080"));
    assert!(covers(host("api.example:8080"), "api.example:8080"));
    assert!(!covers(host("api.example:81"), "api.example:8080"));
    assert!(!covers(host("other.example"), "api.example"));
    assert!(covers(host("api.example"), ""));
    let origin = Reach::Origin(Box::from(&b"http\0a\0\0"[..]));
    assert!(covers(origin.clone(), "a"));
    assert!(!covers(origin, "b"));
}

#[test]
fn a_hard_purge_is_not_softened_by_a_later_soft_one() {
    let log = PurgeLog::default();
    let key = key("h", "/a", None);
    log.append(everywhere(Target::All), Mode::Hard, NOW, Cause::Order);
    log.append(everywhere(url("/a", None)), Mode::Soft, NOW, Cause::Order);
    log.append(everywhere(Target::All), Mode::Soft, NOW, Cause::Order);
    assert_eq!(judge(&log, &key, &[], 0), Judgement::Gone);
    assert_eq!(judge(&log, &key, &[], 1), Judgement::StaleSince(NOW));
}

#[test]
fn a_request_is_not_concerned_by_what_was_purged_after_it_came() {
    let log = PurgeLog::default();
    let key = key("h", "/a", None);
    let judge = |since, asked| {
        let seen = Seen {
            asked,
            ..Seen::all_since(since)
        };
        log.judge(&Place::of(&key).unwrap(), None, seen).0
    };
    log.append(everywhere(Target::All), Mode::Hard, NOW, Cause::Order);
    assert_eq!(judge(0, 0), Judgement::Untouched);
    assert_eq!(judge(0, 1), Judgement::Gone);
    log.append(everywhere(Target::All), Mode::Hard, NOW, Cause::Order);
    // One before it, one after it.
    assert_eq!(judge(0, 1), Judgement::Gone);
    assert_eq!(judge(1, 1), Judgement::Untouched);
    log.append(everywhere(url("/a", None)), Mode::Soft, NOW, Cause::Order);
    assert_eq!(judge(2, 2), Judgement::Untouched);
    assert_eq!(judge(2, 3), Judgement::StaleSince(NOW));
    // Two purges by one write: who came before both is not concerned, who came between is.
    log.append(everywhere(url("/a", None)), Mode::Soft, NOW, Cause::Order);
    assert_eq!(judge(2, 2), Judgement::Untouched);
    assert_eq!(judge(2, 3), Judgement::StaleSince(NOW));
    for _ in 0..2 {
        log.append(everywhere(Target::All), Mode::Hard, NOW, Cause::Order);
    }
    assert_eq!(judge(4, 4), Judgement::Untouched);
    assert_eq!(judge(4, 5), Judgement::Gone);
    // More came since than are told apart: to be on the safe side.
    for _ in 0..KEPT {
        log.append(everywhere(Target::All), Mode::Hard, NOW, Cause::Order);
    }
    assert_eq!(judge(4, 5), Judgement::Gone);
}

#[test]
fn what_is_forgotten_still_concerns_who_came_after_it() {
    let mut floor = Marks::default();
    for position in [9, 3, 7] {
        let mut marks = Marks::default();
        marks.add(Mode::Hard, position, NOW);
        floor.absorb(&marks);
    }
    assert_eq!(floor.judge(2, 3), Judgement::Gone);
    assert_eq!(floor.judge(3, 6), Judgement::Untouched);
    assert_eq!(floor.judge(3, 7), Judgement::Gone);
}

#[test]
fn grace_counts_from_the_first_soft_purge_that_reaches_a_response() {
    let log = PurgeLog::default();
    let key = key("h", "/a", None);
    let later = NOW.plus(std::time::Duration::from_secs(60));
    let last = later.plus(std::time::Duration::from_secs(60));
    for at in [NOW, later, last] {
        log.append(everywhere(url("/a", None)), Mode::Soft, at, Cause::Order);
    }
    assert_eq!(judge(&log, &key, &[], 0), Judgement::StaleSince(NOW));
    assert_eq!(judge(&log, &key, &[], 1), Judgement::StaleSince(later));
}

#[test]
fn what_the_log_forgot_is_taken_for_purged_unless_it_was_judged_before() {
    let log = PurgeLog::default();
    let old = key("h", "/old", None);
    for number in 0..MOST_MARKS + 2 {
        let target = url(&format!("/{number}"), None);
        log.append(everywhere(target), Mode::Hard, NOW, Cause::Order);
    }
    assert_eq!(judge(&log, &old, &[], 0), Judgement::Gone);
    let place = Place::of(&old).unwrap();
    let judged = log.position() - 1;
    let seen = Seen {
        judged,
        ..Seen::all_since(0)
    };
    assert_eq!(log.judge(&place, None, seen).0, Judgement::Untouched);
    // Newer than what was forgotten.
    let newer = MOST_MARKS as u64 / 2 + 2;
    assert_eq!(judge(&log, &old, &[], newer), Judgement::Untouched);
    assert!(log.read().book.named.len() <= MOST_MARKS);
}

#[test]
fn prefixes_are_few_and_the_oldest_makes_room() {
    let log = PurgeLog::default();
    for number in 0..=MOST_COMPARED {
        let target = Target::Prefix(format!("/{number}/").into());
        log.append(everywhere(target), Mode::Hard, NOW, Cause::Order);
    }
    assert_eq!(judge(&log, &key("h", "/x", None), &[], 0), Judgement::Gone);
    assert_eq!(
        judge(&log, &key("h", "/x", None), &[], 1),
        Judgement::Untouched
    );
    assert_eq!(log.read().book.compared.len(), MOST_COMPARED);
}
