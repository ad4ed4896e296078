//! The layout: what is written is read back, and nothing else is read.

use super::*;
use crate::store::Ledger;
use http::{HeaderMap, HeaderValue};
use proptest::prelude::*;

const LIMIT: u64 = 1 << 20;

const STAMP: Stamp = Stamp {
    epoch: 9,
    position: 7,
};

fn entry(head: &Head, body: &[u8]) -> Entry {
    let ledger = Ledger::new(1 << 30);
    let pieces = [Bytes::copy_from_slice(body)];
    Entry::assemble(head, &pieces, None, ledger.open()).unwrap()
}

fn any_head() -> impl Strategy<Value = Head> {
    let fields = proptest::collection::vec(("x-[a-z]{1,12}", "[ -~]{0,40}"), 0..12);
    let names = proptest::option::of(proptest::collection::vec("[a-z-]{1,12}", 1..4));
    let groups = proptest::option::of(proptest::collection::vec(".{1,12}", 1..4));
    let flags = any::<[bool; 5]>();
    let times = any::<[u64; 4]>();
    (fields, names, groups, flags, times, 200_u16..600).prop_map(
        |(fields, names, groups, flags, times, status)| {
            let mut headers = HeaderMap::new();
            for (name, value) in fields {
                let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
                headers.append(name, HeaderValue::from_str(value.trim()).unwrap());
            }
            let [
                has_validator,
                granted_by_operator,
                immutable,
                forbids_stale,
                withholds,
            ] = flags;
            let selecting = names.map(|names| {
                let name = |name: &String| HeaderName::from_bytes(name.as_bytes()).unwrap();
                let values = names.join("\x1f").into_bytes();
                let names = names.iter().map(name).collect();
                Box::new(Selecting { names, values })
            });
            let names = |groups: Vec<String>| groups.into_iter().map(Into::into).collect();
            Head {
                status: StatusCode::from_u16(if status == 304 { 200 } else { status }).unwrap(),
                fields: Fields::pack(&headers),
                record: Record {
                    lifetimes: Lifetimes {
                        fresh: Duration::from_millis(times[0]),
                        stale_while_revalidate: Duration::from_millis(times[1]),
                        stale_if_error: Duration::from_millis(times[2]),
                        granted_by_operator,
                        immutable,
                        forbids_stale,
                    },
                    born: Timestamp::from_millis(times[3]),
                    received: Timestamp::from_millis(times[3].saturating_add(times[0])),
                    has_validator,
                },
                selecting,
                stamp: 0,
                vouched: Timestamp::EPOCH,
                groups: groups.map(|groups| Groups::new(names(groups))),
                generation: OTHERS,
                withholds,
            }
        },
    )
}

fn sample() -> Entry {
    let headers = HeaderMap::from_iter([
        (http::header::ETAG, HeaderValue::from_static("\"v1\"")),
        (
            http::header::VARY,
            HeaderValue::from_static("accept-language"),
        ),
    ]);
    let head = Head {
        status: StatusCode::OK,
        fields: Fields::pack(&headers),
        record: Record {
            lifetimes: Lifetimes {
                fresh: Duration::from_secs(60),
                stale_if_error: Duration::from_secs(3600),
                ..Lifetimes::default()
            },
            born: Timestamp::from_millis(1_795_000_000_000),
            received: Timestamp::from_millis(1_795_000_000_500),
            has_validator: true,
        },
        selecting: Some(Box::new(Selecting {
            names: vec![http::header::ACCEPT_LANGUAGE],
            values: b"\x1faccept-language=de;".to_vec(),
        })),
        stamp: 0,
        vouched: Timestamp::EPOCH,
        groups: Some(Groups::new(vec!["overview".into()])),
        generation: OTHERS,
        withholds: false,
    };
    entry(&head, "{\"projects\":[]}".repeat(100).as_bytes())
}

/// Values of this and former versions, in hexadecimal: what reads one today must not read it
/// otherwise, or not at all, tomorrow without a new version.
const SAMPLES: &str = include_str!("../../../tests/samples/codec.txt");

#[test]
fn samples_of_every_version_are_read_as_ever_or_refused() {
    let mut seen = 0;
    for line in SAMPLES.lines().filter(|line| !line.starts_with('#')) {
        let (version, value) = line.split_once(' ').unwrap();
        let decoded = decode(&hex::decode(value).unwrap(), LIMIT);
        match version.parse().unwrap() {
            VERSION => {
                let (found, sample) = (decoded.unwrap(), sample());
                assert_eq!(found.body, sample.body());
                assert_eq!(found.head.record, sample.head.record);
                assert_eq!(found.head.fields.unpack(0), sample.head.fields.unpack(0));
                assert_eq!(found.stamp, STAMP);
                assert_eq!(
                    hex::encode(&encode(&sample, STAMP).bytes),
                    value,
                    "a new version?"
                );
            }
            old => assert_eq!(decoded.unwrap_err(), Invalid::Version(old)),
        }
        seen += 1;
    }
    assert!(seen >= 2);
}

#[test]
fn a_value_is_as_small_as_it_can_be_and_never_packed_twice() {
    let small = encode(&sample(), STAMP).bytes;
    assert!(small.len() < 400, "{}", small.len());
    let mut head = sample().head.clone();
    let mut headers = head.fields.unpack(1);
    headers.remove(http::header::CONTENT_LENGTH);
    headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    head.fields = Fields::pack(&headers);
    let body = vec![b'x'; 5000];
    assert!(encode(&entry(&head, &body), STAMP).bytes.len() > 5000);
}

#[test]
fn a_body_that_claims_to_be_huge_is_refused_before_room_is_made_for_it() {
    let value = encode(&sample(), STAMP).bytes;
    assert_eq!(decode(&value, 100).unwrap_err(), Invalid::TooLarge);
}

proptest! {
    #[test]
    fn what_is_written_is_read_back(
        head in any_head(),
        body in proptest::collection::vec(any::<u8>(), 0..4000),
        epoch in any::<u64>(),
        position in any::<u64>(),
    ) {
        let stored = entry(&head, &body);
        let stamp = Stamp { epoch, position };
        let found = decode(&encode(&stored, stamp).bytes, LIMIT).unwrap();
        prop_assert_eq!(&found.body[..], &body[..]);
        prop_assert_eq!(found.stamp, stamp);
        prop_assert_eq!(found.head.status, head.status);
        prop_assert_eq!(found.head.record, head.record);
        prop_assert_eq!(found.head.withholds, head.withholds);
        prop_assert_eq!(&found.head.groups, &head.groups);
        prop_assert_eq!(&found.head.selecting, &head.selecting);
        prop_assert_eq!(found.head.fields.unpack(0), stored.head.fields.unpack(0));
    }

    #[test]
    fn a_changed_byte_is_noticed(at in any::<prop::sample::Index>(), change in 1_u8..) {
        let mut value = encode(&sample(), STAMP).bytes;
        let at = at.index(value.len());
        value[at] ^= change;
        prop_assert!(decode(&value, LIMIT).is_err());
    }
}

/// Garbage with a right version and checksum, so that it gets past both; more of it by
/// `DECODES=10000000 cargo test --release codec`.
#[test]
fn nothing_that_comes_makes_it_panic_or_take_more_than_it_may() {
    let count: u64 = std::env::var("DECODES").map_or(20_000, |text| text.parse().unwrap());
    let whole = encode(&sample(), STAMP).bytes;
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut read = 0;
    for _ in 0..count {
        let mut value = whole.clone();
        for _ in 0..random() % 4 + 1 {
            let at = random() as usize % value.len();
            value[at] = random() as u8;
        }
        if random() % 4 == 0 {
            value.truncate(random() as usize % whole.len());
        }
        if value.len() > 5 && random() % 8 > 0 {
            value[0] = VERSION;
            let checksum = crc32fast::hash(&value[5..]);
            value[1..5].copy_from_slice(&checksum.to_be_bytes());
        }
        if let Ok(found) = decode(&value, LIMIT) {
            assert!(found.body.len() as u64 <= LIMIT);
            found.head.fields.unpack(0);
            read += 1;
        }
    }
    // Most changes hit the body or a number: those are values like any other.
    assert!(read > 0);
}

#[test]
fn fuzz_codec() {
    let escaped = |hex: &str| {
        let bytes = hex::decode(hex).unwrap();
        let octets = bytes.iter().map(|byte| format!("\\x{byte:02x}"));
        octets.collect::<String>()
    };
    let values = SAMPLES.lines().filter(|line| !line.starts_with('#'));
    let seeds: Vec<String> = values
        .filter_map(|line| Some(escaped(line.split_once(' ')?.1)))
        .collect();
    crate::fuzz::run(&seeds.join("\n"), |input| {
        let mut value = input.to_vec();
        if value.len() > 5 {
            // What is looked at is behind the checksum.
            value[0] = VERSION;
            let checksum = crc32fast::hash(&value[5..]);
            value[1..5].copy_from_slice(&checksum.to_be_bytes());
        }
        if let Ok(decoded) = decode(&value, LIMIT) {
            assert!(decoded.body.len() as u64 <= LIMIT);
            let length = decoded.head.content_length();
            assert!(length.is_none_or(|length| length == decoded.body.len() as u64));
            // As much as one head holds, and no more.
            decoded.head.fields.unpack(0);
        }
    });
}
