//! The memory tier by itself.

use super::*;
use crate::policy::Mode;
use crate::policy::Record;
use crate::policy::key::{KeyParts, RuleDigest};
use crate::store::entry::{Fields, Selecting};
use crate::store::purge::causes::Cause;
use crate::store::purge::{Reach, Target};
use bytes::Bytes;
use http::{HeaderValue, StatusCode};

const NOW: Timestamp = Timestamp::EPOCH;

fn entry(memory: &Memory, body: &[u8]) -> Arc<Entry> {
    variant(memory, body, &HeaderMap::new(), &[])
}

/// A response to `request`, with this `Vary`.
fn variant(
    memory: &Memory,
    body: &[u8],
    request: &HeaderMap,
    varies_by: &[&'static str],
) -> Arc<Entry> {
    let names: Vec<_> = varies_by
        .iter()
        .map(|name| HeaderName::from_static(name))
        .collect();
    let mut values = Vec::new();
    append_selecting(&names, request, &mut values);
    let head = Head {
        status: StatusCode::OK,
        fields: Fields::default(),
        record: Record::default(),
        selecting: (!names.is_empty()).then(|| Box::new(Selecting { names, values })),
        stamp: 0,
        vouched: Timestamp::EPOCH,
        groups: None,
        generation: 0,
        withholds: false,
    };
    let body = [Bytes::copy_from_slice(body)];
    Arc::new(Entry::assemble(&head, &body, None, memory.charge()).unwrap())
}

fn request(language: &'static str) -> HeaderMap {
    HeaderMap::from_iter([(
        http::header::ACCEPT_LANGUAGE,
        HeaderValue::from_static(language),
    )])
}

fn body(found: &Found) -> Option<Bytes> {
    match found {
        Found::Entry(entry) => Some(entry.body()),
        _ => None,
    }
}

fn get(memory: &Memory, request: &HeaderMap) -> Found {
    memory.get(&mut KeyBytes::from_slice(b"k"), request, NOW)
}

#[test]
fn each_variant_is_found_by_its_own_request_fields() {
    let memory = Memory::new(4 << 20, 1 << 19, Arc::default());
    for language in ["de", "en"] {
        assert!(memory.insert(
            b"k",
            variant(
                &memory,
                language.as_bytes(),
                &request(language),
                &["accept-language"]
            ),
        ));
    }
    assert_eq!(
        body(&get(&memory, &request("de"))),
        Some(Bytes::from_static(b"de"))
    );
    assert_eq!(
        body(&get(&memory, &request("en"))),
        Some(Bytes::from_static(b"en"))
    );
    assert!(matches!(get(&memory, &request("fr")), Found::NoVariant));
}

#[test]
fn a_miss_among_variants_leaves_the_variants_key() {
    let memory = Memory::new(4 << 20, 1 << 19, Arc::default());
    assert!(memory.insert(
        b"k",
        variant(&memory, b"de", &request("de"), &["accept-language"]),
    ));
    let (mut one, mut other) = (KeyBytes::from_slice(b"k"), KeyBytes::from_slice(b"k"));
    memory.get(&mut one, &request("fr"), NOW);
    memory.get(&mut other, &request("es"), NOW);
    assert_ne!(one, other);
}

#[test]
fn variants_are_bounded_and_the_one_unused_for_longest_makes_room() {
    let memory = Memory::new(4 << 20, 1 << 19, Arc::default());
    let language = |name: String| {
        let value = HeaderValue::try_from(name).unwrap();
        HeaderMap::from_iter([(http::header::ACCEPT_LANGUAGE, value)])
    };
    let insert = |language: &HeaderMap| {
        assert!(memory.insert(b"k", variant(&memory, b"x", language, &["accept-language"])));
    };
    let hottest = language("hottest".to_owned());
    insert(&hottest);
    for at in 0..1000 {
        insert(&language(format!("l{at}")));
        assert!(body(&get(&memory, &hottest)).is_some(), "after {at}");
    }
    let is_there = |at: usize| body(&get(&memory, &language(format!("l{at}")))).is_some();
    assert!(is_there(999) && is_there(1000 - MAX_VARIANTS + 1));
    assert!(!is_there(0) && !is_there(1000 - MAX_VARIANTS));
    assert_eq!(memory.stored_entries(), MAX_VARIANTS as u64 + 1);
    assert_eq!(memory.variants_dropped(), 1001 - MAX_VARIANTS as u64);
}

#[test]
fn a_flood_of_what_is_asked_once_does_not_push_out_what_is_used() {
    let memory = Memory::new(8 << 20, 1 << 16, Arc::default());
    let (none, body_of) = (HeaderMap::new(), vec![b'x'; 2000]);
    let ask = |key: &str| {
        let mut at = KeyBytes::from_slice(key.as_bytes());
        let is_hit = matches!(memory.get(&mut at, &none, NOW), Found::Entry(_));
        if !is_hit {
            assert!(memory.insert(key.as_bytes(), entry(&memory, &body_of)));
        }
        is_hit
    };
    // A third of what fits is used all the time; between two of its rounds comes as much that is
    // not.
    let hot: Vec<String> = (0..800).map(|at| format!("hot{at}")).collect();
    (0..3).for_each(|_| {
        hot.iter()
            .for_each(|key| assert!(ask(key) || !key.is_empty()))
    });
    let (mut hits, mut asked) = (0, 0);
    for round in 0..20 {
        for (at, key) in hot.iter().enumerate() {
            hits += u32::from(ask(key));
            asked += 1;
            ask(&format!("random{round}-{at}"));
            ask(&format!("another{round}-{at}"));
        }
    }
    assert!(hits * 100 >= asked * 98, "{hits} of {asked}");
}

#[test]
fn a_mark_lasts_its_time_and_can_leave_the_stored_alone() {
    let memory = Memory::new(4 << 20, 1 << 19, Arc::default());
    let none = HeaderMap::new();
    memory.mark_not_shared(b"k", Timestamp::from_millis(5), Reason::NoStore, false);
    assert!(matches!(
        get(&memory, &none),
        Found::NotShared(Reason::NoStore)
    ));
    let later = memory.get(
        &mut KeyBytes::from_slice(b"k"),
        &none,
        Timestamp::from_millis(5),
    );
    assert!(matches!(later, Found::Nothing));
    assert!(memory.insert(b"k", entry(&memory, b"x")));
    memory.mark_not_shared(b"k", Timestamp::from_millis(9), Reason::Status, true);
    assert!(body(&get(&memory, &none)).is_some());
    memory.mark_not_shared(b"k", Timestamp::from_millis(9), Reason::NoStore, false);
    assert!(body(&get(&memory, &none)).is_none());
}

#[test]
fn the_budget_is_kept_and_evictions_are_counted() {
    let memory = Memory::new(4 << 20, 1 << 16, Arc::default());
    for number in 0_u32..500 {
        let body = vec![0; 30_000];
        assert!(memory.insert(&number.to_be_bytes(), entry(&memory, &body),));
        assert!(memory.held_bytes() <= 4 << 20);
    }
    assert!(memory.evictions() > 300, "{}", memory.evictions());
    assert!(memory.stored_entries() > 80, "{}", memory.stored_entries());
}

#[test]
fn bytes_of_an_evicted_response_count_while_it_is_read() {
    let memory = Memory::new(4 << 20, 1 << 16, Arc::default());
    let none = HeaderMap::new();
    assert!(memory.insert(b"k", entry(&memory, &[0; 1000])));
    let Found::Entry(reader) = get(&memory, &none) else {
        panic!("not stored")
    };
    memory.remove(b"k", &reader);
    assert!(memory.held_bytes() >= 1000);
    drop(reader);
    assert_eq!(memory.held_bytes(), 0);
}

#[test]
fn what_a_purge_reached_is_neither_found_nor_put_back() {
    let memory = Memory::new(4 << 20, 1 << 19, Arc::default());
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
    let find = || memory.get(&mut key.clone(), &request("de"), NOW);
    let purge = |mode| {
        let purge = Purge {
            target: Target::Prefix("/a".into()),
            reach: Reach::Any,
        };
        memory
            .purges()
            .append(purge, mode, Timestamp::from_millis(7), Cause::Order);
    };
    for varies_by in [&[][..], &["accept-language"][..]] {
        let mut head = variant(&memory, b"x", &request("de"), varies_by)
            .head
            .clone();
        head.stamp = memory.purges().position();
        let body = [Bytes::from_static(b"x")];
        let stored = Entry::assemble(&head, &body, None, memory.charge());
        let stored = Arc::new(stored.unwrap());
        assert!(memory.insert(&key, Arc::clone(&stored)));
        purge(Mode::Soft);
        assert!(matches!(find(), Found::Entry(_)));
        assert_eq!(stored.view().stale_since, Some(Timestamp::from_millis(7)));
        purge(Mode::Hard);
        assert_eq!(memory.sweep(&[]).count(), 1);
        assert!(!matches!(find(), Found::Entry(_)));
        assert_eq!(memory.sweep(&[]).count(), 0);
        // A fill that began before the purge.
        assert!(!memory.insert(&key, stored));
    }
}
