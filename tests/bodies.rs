//! Bodies that are too large to keep reach every reader whole, at the pace of the slowest.

use crate::support::{Client, Fixture, Gate, Reply, Step, all, route};

const MIB: usize = 1 << 20;

/// A body of so many MiB without a length: after its first byte nothing comes before the gate is
/// open.
fn chunked(mib: usize, gate: &Gate) -> Reply {
    let head = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n";
    let mut out = format!("{:x}\r\n", MIB - 1).into_bytes();
    out.resize(out.len() + MIB - 1, b'a');
    out.extend_from_slice(b"\r\n");
    for at in 1..mib {
        out.extend_from_slice(format!("{MIB:x}\r\n").as_bytes());
        out.resize(out.len() + MIB, b'a' + at as u8);
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(b"0\r\n\r\n");
    let begun = Step::Send(head.as_bytes().to_vec());
    vec![begun, Step::Wait(gate.clone()), Step::Send(out)]
}

/// The bytes of a chunked body up to its last chunk, or to where it breaks off.
async fn length(client: &mut Client) -> usize {
    let mut length = 0;
    while let Some(chunk) = client.chunk().await.filter(|chunk| !chunk.is_empty()) {
        length += chunk.len();
    }
    length
}

async fn begun(fixture: &Fixture) -> Client {
    let mut client = fixture.connect().await;
    client.request("GET", "/a", &[]).await;
    assert_eq!(client.head().await.status, 200);
    client
}

const TOO_LARGE: &str = "cache_not_stored_total{reason=\"too-large\"}";

#[tokio::test]
async fn a_reader_that_falls_behind_a_large_body_gets_it_whole() {
    let text = format!(
        "[cache]\nmemory = \"128MiB\"\nmax_object = \"16MiB\"\n{}",
        route("ttl = \"60s\"")
    );
    let gate = Gate::new();
    let held = gate.clone();
    let fixture = Fixture::start(&text, move |_| chunked(26, &held)).await;
    let mut client = begun(&fixture).await;
    gate.open();
    fixture.metric_reaches(TOO_LARGE, 1.0).await;
    assert_eq!(length(&mut client).await, 26 * MIB);
}

#[tokio::test]
async fn the_slower_of_two_gets_a_large_body_whole() {
    let text = format!(
        "[cache]\nmemory = \"128MiB\"\nmax_object = \"16MiB\"\n[limits]\nmib_timeout = \"1h\"\n{}",
        route("ttl = \"60s\"")
    );
    let gate = Gate::new();
    let held = gate.clone();
    let fixture = Fixture::start(&text, move |_| chunked(26, &held)).await;
    let mut clients = [begun(&fixture).await, begun(&fixture).await];
    let [fast, slow] = &mut clients;
    gate.open();
    let mut read = 0;
    while read < 12 * MIB {
        read += fast.chunk().await.unwrap().len();
    }
    fixture.metric_reaches(TOO_LARGE, 1.0).await;
    let (rest, whole) = tokio::join!(length(fast), length(slow));
    assert_eq!((read + rest, whole), (26 * MIB, 26 * MIB));
}

#[tokio::test]
async fn a_reader_that_lets_others_wait_too_long_is_cut_and_they_get_it_whole() {
    let text = format!(
        "[cache]\nmemory = \"16MiB\"\nmax_object = \"2MiB\"\n[limits]\nmib_timeout = \"300ms\"\n{}",
        route("ttl = \"60s\"")
    );
    let gate = Gate::new();
    let held = gate.clone();
    let fixture = Fixture::start(&text, move |_| chunked(26, &held)).await;
    let (mut fast, mut slow) = (begun(&fixture).await, begun(&fixture).await);
    gate.open();
    assert_eq!(length(&mut fast).await, 26 * MIB);
    assert!(length(&mut slow).await < 26 * MIB);
}

#[tokio::test]
async fn a_body_for_which_the_budget_has_no_room_reaches_the_slower_of_two_whole() {
    let text = format!(
        "[cache]\nmemory = \"8MiB\"\nmax_object = \"1MiB\"\n[limits]\nmib_timeout = \"1h\"\n{}",
        route("ttl = \"60s\"")
    );
    let gate = Gate::new();
    let held = gate.clone();
    // Each would be kept; for all of them together, as far as they have come, there is no room.
    const PART: usize = 900 << 10;
    let fixture = Fixture::start(&text, move |_| {
        let part = |size: usize| {
            let mut out = format!("{size:x}\r\n").into_bytes();
            out.resize(out.len() + size, b'a');
            out.extend_from_slice(b"\r\n");
            out
        };
        let mut begin = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n".to_vec();
        begin.extend(part(PART));
        let mut end = part(MIB - PART);
        end.extend_from_slice(b"0\r\n\r\n");
        vec![Step::Send(begin), Step::Wait(held.clone()), Step::Send(end)]
    })
    .await;
    let mut clients = Vec::new();
    for number in 0..12 {
        for _ in 0..2 {
            let mut client = fixture.connect().await;
            client.request("GET", &format!("/{number}"), &[]).await;
            assert_eq!(client.head().await.status, 200);
            clients.push(client);
        }
    }
    fixture
        .metric_reaches("cache_not_stored_total{reason=\"budget\"}", 1.0)
        .await;
    gate.open();
    let reading = clients
        .into_iter()
        .map(|mut client| async move { length(&mut client).await });
    for length in all(reading).await {
        assert_eq!(length, MIB);
    }
}
