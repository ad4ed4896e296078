//! Coalescing: one fetch for many requests, and nobody waits for what cannot be shared.

use std::sync::Arc;

use crate::support::{Client, Fixture, Gate, Reply, Step, after, all, ok, reply, route};

/// A response in pieces: head, then each piece after its gate.
fn dripped(fields: &str, pieces: &[(&str, &Gate)]) -> Reply {
    let mut steps = vec![Step::Send(
        format!("HTTP/1.1 200 OK\r\n{fields}transfer-encoding: chunked\r\n\r\n").into_bytes(),
    )];
    for (piece, gate) in pieces {
        steps.push(Step::Wait((*gate).clone()));
        steps.push(Step::Send(
            format!("{:x}\r\n{piece}\r\n", piece.len()).into_bytes(),
        ));
    }
    steps.push(Step::Send(b"0\r\n\r\n".to_vec()));
    steps
}

async fn waiting(fixture: &Fixture, count: usize) {
    // Every connection's request was read, or its worker would not have been asked.
    fixture
        .metric_reaches("server_connections", count as f64)
        .await;
}

#[tokio::test]
async fn two_hundred_clients_for_one_cold_key_make_one_origin_request() {
    let gate = Gate::new();
    let held = gate.clone();
    let fixture = Arc::new(
        Fixture::start(&route("ttl = \"60s\""), move |_| {
            after(&held, ok(vec![b'x'; 100_000], &[]))
        })
        .await,
    );
    let address = fixture.sidecar().address;
    let clients = (0..200).map(move |_| async move {
        Client::connect(address)
            .await
            .ask("GET", "/cold", &[])
            .await
    });
    let asking = tokio::spawn(all(clients));
    waiting(&fixture, 200).await;
    fixture.origin.asked(1).await;
    gate.open();
    let received = asking.await.unwrap();
    assert!(
        received
            .iter()
            .all(|received| received.status == 200 && received.body.len() == 100_000)
    );
    assert_eq!(fixture.origin.count(), 1);
    let collapsed = received
        .iter()
        .filter(|received| received.cache_status().contains("collapsed"))
        .count();
    let hits = received
        .iter()
        .filter(|received| received.cache() == "HIT")
        .count();
    assert_eq!(collapsed + hits, 199, "{collapsed} collapsed, {hits} hits");
    assert_eq!(
        fixture.metric("cache_coalesced_waiters_total").await,
        collapsed as f64
    );
    assert_eq!(fixture.metric("cache_flights").await, 0.0);
}

#[tokio::test]
async fn waiters_stream_from_the_first_byte_while_it_comes_in() {
    let (first, second) = (Gate::new(), Gate::new());
    let (one, two) = (first.clone(), second.clone());
    let fixture = Fixture::start(&route("ttl = \"60s\""), move |_| {
        dripped("", &[("hello ", &one), ("world", &two)])
    })
    .await;
    let mut leader = fixture.connect().await;
    leader.request("GET", "/a", &[]).await;
    fixture.origin.asked(1).await;
    first.open();
    leader.head().await;
    assert_eq!(leader.chunk().await.unwrap(), b"hello ");
    // Joins in the middle, and reads from the beginning.
    let mut waiter = fixture.connect().await;
    waiter.request("GET", "/a", &[]).await;
    let head = waiter.head().await;
    assert!(
        head.cache_status().contains("collapsed"),
        "{}",
        head.cache_status()
    );
    assert_eq!(waiter.chunk().await.unwrap(), b"hello ");
    assert!(waiter.is_silent());
    second.open();
    assert_eq!(waiter.chunk().await.unwrap(), b"world");
    assert_eq!(leader.chunk().await.unwrap(), b"world");
    assert_eq!(fixture.origin.count(), 1);
}

#[tokio::test]
async fn a_private_answer_goes_to_one_client_only() {
    let gate = Gate::new();
    let held = gate.clone();
    let fixture = Arc::new(
        Fixture::start(&route("ttl = \"60s\""), move |seen| {
            let then = ok(
                format!("secret {}", seen.number),
                &[("cache-control", "private")],
            );
            if seen.number == 1 {
                after(&held, then)
            } else {
                then
            }
        })
        .await,
    );
    let address = fixture.sidecar().address;
    let clients = (0..30).map(move |_| async move {
        Client::connect(address)
            .await
            .ask("GET", "/a", &[])
            .await
            .text()
    });
    let asking = tokio::spawn(all(clients));
    waiting(&fixture, 30).await;
    gate.open();
    let mut bodies = asking.await.unwrap();
    bodies.sort();
    bodies.dedup();
    assert_eq!(bodies.len(), 30, "each client has a body of its own");
    assert_eq!(fixture.origin.count(), 30);
}

#[tokio::test]
async fn a_key_known_as_not_storable_makes_nobody_wait() {
    let gate = Gate::new();
    let held = gate.clone();
    let fixture = Fixture::start(&route("ttl = \"60s\""), move |seen| {
        let then = ok("x", &[("cache-control", "no-store")]);
        if seen.number == 2 {
            after(&held, then)
        } else {
            then
        }
    })
    .await;
    fixture.get("/a").await;
    let mut slow = fixture.connect().await;
    slow.request("GET", "/a", &[]).await;
    fixture.origin.asked(2).await;
    // The slow one does not hold this one up.
    let fast = fixture.get("/a").await;
    assert!(
        fast.cache_status().contains("fwd=uri-miss"),
        "{}",
        fast.cache_status()
    );
    assert_eq!(fixture.origin.count(), 3);
    gate.open();
    slow.response().await;
}

#[tokio::test]
async fn a_failure_is_shared_by_all_waiters() {
    let gate = Gate::new();
    let held = gate.clone();
    let fixture = Arc::new(
        Fixture::start(&route("ttl = \"60s\""), move |_| {
            vec![Step::Wait(held.clone()), Step::Close]
        })
        .await,
    );
    let address = fixture.sidecar().address;
    let clients = (0..20)
        .map(move |_| async move { Client::connect(address).await.ask("GET", "/a", &[]).await });
    let asking = tokio::spawn(all(clients));
    waiting(&fixture, 20).await;
    fixture.origin.asked(1).await;
    gate.open();
    let received = asking.await.unwrap();
    assert!(received.iter().all(|received| received.status == 502));
    assert!(
        fixture.origin.count() < 20,
        "{} fetches for one failure",
        fixture.origin.count()
    );
}

#[tokio::test]
async fn a_leader_that_leaves_kills_neither_the_fetch_nor_the_waiters() {
    let (first, second) = (Gate::new(), Gate::new());
    let (one, two) = (first.clone(), second.clone());
    let fixture = Fixture::start(&route("ttl = \"60s\""), move |_| {
        dripped("", &[("a", &one), ("b", &two)])
    })
    .await;
    let mut leader = fixture.connect().await;
    leader.request("GET", "/a", &[]).await;
    fixture.origin.asked(1).await;
    let mut waiter = fixture.connect().await;
    waiter.request("GET", "/a", &[]).await;
    waiting(&fixture, 2).await;
    drop(leader);
    first.open();
    waiter.head().await;
    assert_eq!(waiter.chunk().await.unwrap(), b"a");
    drop(waiter);
    second.open();
    fixture.metric_reaches("cache_stored_entries", 1.0).await;
    let hit = fixture.get("/a").await;
    assert_eq!((hit.cache(), hit.text().as_str()), ("HIT", "ab"));
    assert_eq!(fixture.origin.count(), 1);
}

#[tokio::test]
async fn a_waiter_of_another_variant_fetches_its_own() {
    let gate = Gate::new();
    let held = gate.clone();
    let fixture = Fixture::start(&route("ttl = \"60s\""), move |seen| {
        let then = ok(
            seen.header("accept-language").unwrap(),
            &[("vary", "accept-language")],
        );
        if seen.number == 1 {
            after(&held, then)
        } else {
            then
        }
    })
    .await;
    let (mut german, mut english) = (fixture.connect().await, fixture.connect().await);
    german
        .request("GET", "/a", &[("accept-language", "de")])
        .await;
    fixture.origin.asked(1).await;
    english
        .request("GET", "/a", &[("accept-language", "en")])
        .await;
    waiting(&fixture, 2).await;
    gate.open();
    assert_eq!(german.response().await.text(), "de");
    assert_eq!(english.response().await.text(), "en");
}

#[tokio::test]
async fn a_waiter_fetches_for_itself_after_its_patience() {
    let gate = Gate::new();
    let held = gate.clone();
    let text = format!(
        "[cache]\nwait_timeout = \"50ms\"\n{}",
        route("ttl = \"60s\"")
    );
    let fixture = Fixture::start(&text, move |seen| {
        let then = ok(format!("{}", seen.number), &[]);
        if seen.number == 1 {
            after(&held, then)
        } else {
            then
        }
    })
    .await;
    let mut leader = fixture.connect().await;
    leader.request("GET", "/a", &[]).await;
    fixture.origin.asked(1).await;
    let waiter = fixture.get("/a").await;
    assert_eq!(waiter.text(), "2");
    assert!(
        waiter.cache_status().ends_with("detail=wait-timeout"),
        "{}",
        waiter.cache_status()
    );
    gate.open();
    leader.response().await;
}

#[tokio::test]
async fn over_the_limit_of_flights_requests_fetch_alone() {
    let gate = Gate::new();
    let held = gate.clone();
    let text = format!("[cache]\nmax_flights = 1\n{}", route("ttl = \"60s\""));
    let fixture = Fixture::start(&text, move |seen| {
        let then = ok("x", &[]);
        if seen.target == "/held" {
            after(&held, then)
        } else {
            then
        }
    })
    .await;
    let mut leader = fixture.connect().await;
    leader.request("GET", "/held", &[]).await;
    fixture.origin.asked(1).await;
    let other = fixture.get("/other").await;
    assert!(
        other.cache_status().ends_with("detail=flights-full"),
        "{}",
        other.cache_status()
    );
    assert_eq!(fixture.get("/other").await.cache(), "HIT");
    gate.open();
    leader.response().await;
}

#[tokio::test]
async fn a_body_that_grows_too_large_is_passed_through_to_all_and_not_stored() {
    let (first, second) = (Gate::new(), Gate::new());
    let (one, two) = (first.clone(), second.clone());
    let large = "y".repeat(80_000);
    let piece = large.clone();
    let text = format!(
        "[cache]\nmax_object = \"64KiB\"\n{}",
        route("ttl = \"60s\"")
    );
    let fixture = Fixture::start(&text, move |_| {
        dripped("", &[("start ", &one), (&piece, &two)])
    })
    .await;
    let mut leader = fixture.connect().await;
    leader.request("GET", "/a", &[]).await;
    fixture.origin.asked(1).await;
    first.open();
    leader.head().await;
    let mut waiter = fixture.connect().await;
    waiter.request("GET", "/a", &[]).await;
    waiter.head().await;
    second.open();
    for client in [&mut leader, &mut waiter] {
        let mut length = 0;
        while let Some(chunk) = client.chunk().await.filter(|chunk| !chunk.is_empty()) {
            length += chunk.len();
        }
        assert_eq!(length, 80_006);
    }
    // What came of it is remembered, not the response.
    assert!(fixture.metric("cache_stored_bytes").await < 2_000.0);
    assert_eq!(fixture.get("/a").await.cache(), "MISS");
    fixture
        .metric_reaches("cache_not_stored_total{reason=\"too-large\"}", 1.0)
        .await;
}

#[tokio::test]
async fn a_refused_credential_does_not_speak_for_the_others() {
    let gate = Gate::new();
    let held = gate.clone();
    let fixture = Fixture::start(&route(""), move |seen| {
        let then = match seen.header("authorization") {
            Some("good") => ok("data", &[("cache-control", "public, max-age=60")]),
            _ => reply(401, "no", &[]),
        };
        if seen.number == 1 {
            after(&held, then)
        } else {
            then
        }
    })
    .await;
    let mut bad = fixture.connect().await;
    bad.request("GET", "/a", &[("authorization", "bad")]).await;
    fixture.origin.asked(1).await;
    let mut good = fixture.connect().await;
    good.request("GET", "/a", &[("authorization", "good")])
        .await;
    waiting(&fixture, 2).await;
    gate.open();
    assert_eq!(bad.response().await.status, 401);
    let received = good.response().await;
    assert_eq!((received.status, received.text().as_str()), (200, "data"));
}

#[tokio::test]
async fn coalescing_reaches_across_workers() {
    let gate = Gate::new();
    let held = gate.clone();
    let fixture = Arc::new(
        Fixture::start(
            &format!("[listen]\nworkers = 4\n{}", route("ttl = \"60s\"")),
            move |_| after(&held, ok("x", &[])),
        )
        .await,
    );
    let address = fixture.sidecar().address;
    let clients = (0..64).map(move |_| async move {
        Client::connect(address)
            .await
            .ask("GET", "/a", &[])
            .await
            .status
    });
    let asking = tokio::spawn(all(clients));
    waiting(&fixture, 64).await;
    gate.open();
    assert!(asking.await.unwrap().iter().all(|status| *status == 200));
    assert_eq!(fixture.origin.count(), 1);
}
