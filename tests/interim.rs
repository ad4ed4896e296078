//! Interim responses (RFC 9110 §15.2): passed on before the final one, never stored or merged.

use crate::support::{Client, Fixture, Gate, Step, ok, route};

const FRESH: (&str, &str) = ("cache-control", "max-age=60");
const HINTS: &str = "HTTP/1.1 103 Early Hints\r\nlink: </style.css>; rel=preload\r\nconnection: \
    x-hop\r\n\
    x-hop: 1\r\ncache-control: no-store\r\nx-early: 1\r\n\r\n";

/// An origin that hints, and answers when the gate is open.
async fn hinting(gate: &Gate, config: &str) -> Fixture {
    let held = gate.clone();
    Fixture::start(config, move |_| {
        let mut reply = vec![Step::Send(HINTS.into()), Step::Wait(held.clone())];
        reply.extend(ok("body", &[FRESH]));
        reply
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn early_hints_come_before_the_answer_and_are_neither_stored_nor_merged() {
    for config in [route(""), route("methods = [\"PUT\"]")] {
        let gate = Gate::new();
        let fixture = hinting(&gate, &config).await;
        let mut client = fixture.connect().await;
        client.request("GET", "/a", &[]).await;
        // The origin has not answered yet.
        let hints = client.head().await;
        assert_eq!(hints.status, 103);
        assert_eq!(hints.header("link"), Some("</style.css>; rel=preload"));
        assert_eq!(
            (hints.header("x-hop"), hints.header("connection")),
            (None, None)
        );
        gate.open();
        let answer = client.response().await;
        assert_eq!((answer.status, answer.text().as_str()), (200, "body"));
        for field in ["link", "x-early"] {
            assert_eq!(answer.header(field), None);
        }
        assert_eq!(answer.header("cache-control"), Some("max-age=60"));
    }
    let gate = Gate::new();
    gate.open();
    let fixture = hinting(&gate, &route("")).await;
    assert_eq!(fixture.get("/a").await.status, 103);
    fixture.metric_reaches("cache_stored_entries", 1.0).await;
    let hit = fixture.get("/a").await;
    assert_eq!(
        (hit.status, hit.cache(), hit.header("link")),
        (200, "HIT", None)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn each_of_several_requests_on_a_connection_gets_its_own() {
    let gate = Gate::new();
    gate.open();
    let fixture = hinting(&gate, "").await;
    let mut client = fixture.connect().await;
    for target in ["/a", "/b"] {
        client.request("GET", target, &[]).await;
    }
    for _ in 0..2 {
        assert_eq!(client.head().await.status, 103);
        assert_eq!(client.response().await.text(), "body");
    }
    assert!(client.is_silent());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_of_http_1_0_and_one_that_waits_for_100_get_no_other() {
    let gate = Gate::new();
    gate.open();
    let fixture = hinting(&gate, "").await;
    let mut old = fixture.connect().await;
    old.send("GET /a HTTP/1.0\r\nhost: a\r\n\r\n").await;
    assert_eq!(old.head().await.status, 200);

    let fixture = Fixture::start("", |_| {
        let mut reply = vec![Step::Send("HTTP/1.1 100 Continue\r\n\r\n".into())];
        reply.extend(ok("body", &[]));
        reply
    })
    .await;
    let mut client: Client = fixture.connect().await;
    client.request("GET", "/a", &[]).await;
    assert_eq!(client.head().await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_comes_between_the_pieces_of_the_response_before() {
    let gate = Gate::new();
    let held = gate.clone();
    let large = "x".repeat(6 << 20);
    let fixture = Fixture::start(&route(""), move |seen| match seen.target.as_str() {
        "/large" => ok(&large, &[FRESH]),
        _ => {
            let mut reply = vec![
                Step::Send(HINTS.repeat(20).into()),
                Step::Wait(held.clone()),
            ];
            reply.extend(ok("body", &[]));
            reply
        }
    })
    .await;
    fixture.get("/large").await;
    fixture.metric_reaches("cache_stored_entries", 1.0).await;
    let mut client = fixture.connect().await;
    client.request("GET", "/large", &[]).await;
    client.request("GET", "/hints", &[]).await;
    // More than the sockets hold: the rest of it waits while the hints come.
    let large = client.head().await;
    assert_eq!(large.status, 200);
    let length = large.header("content-length").unwrap().parse().unwrap();
    let body = client.raw(length).await;
    assert!(body.iter().all(|byte| *byte == b'x'));
    gate.open();
    let answer = loop {
        let next = client.response().await;
        if next.status != 103 {
            break next;
        }
    };
    assert_eq!((answer.status, answer.text().as_str()), (200, "body"));
}
