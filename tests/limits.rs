//! Limits: what one client may cost, and what it is told when it asks for more.

use crate::support::{Client, Fixture, Gate, Step, after, ok, route};

#[tokio::test]
async fn a_connection_that_never_asks_is_closed() {
    let fixture = Fixture::start("[limits]\nhead_timeout = \"100ms\"\n", |_| ok("x", &[])).await;
    // Silent, in the middle of a head, and in the middle of the HTTP/2 preface.
    for bytes in ["", "GET / HTTP/1.1\r\nhost: a\r\nx-slow:", "PRI * HTT"] {
        let mut client = fixture.connect().await;
        client.send(bytes).await;
        client.closed().await;
    }
    assert_eq!(fixture.origin.count(), 0);
}

#[tokio::test]
async fn an_idle_connection_is_closed_but_a_busy_one_is_not() {
    let gate = Gate::new();
    let held = gate.clone();
    let fixture = Fixture::start("[limits]\nidle_timeout = \"150ms\"\n", move |seen| {
        let then = ok("x", &[]);
        if seen.target == "/slow" {
            after(&held, then)
        } else {
            then
        }
    })
    .await;
    let mut busy = fixture.connect().await;
    busy.request("GET", "/slow", &[]).await;
    let mut idle = fixture.connect().await;
    assert_eq!(idle.ask("GET", "/a", &[]).await.status, 200);
    assert!(idle.closed().await.is_empty());
    // The busy one has been open for longer than that.
    gate.open();
    assert_eq!(busy.response().await.status, 200);
}

#[tokio::test]
async fn heads_are_bounded_in_bytes_and_in_fields() {
    let fixture = Fixture::start(
        "[limits]\nheader_bytes = \"8KiB\"\nheader_count = 20\n",
        |_| ok("x", &[]),
    )
    .await;
    let long = format!(
        "GET /a HTTP/1.1\r\nhost: a\r\nx-long: {}\r\n\r\n",
        "y".repeat(20_000)
    );
    let many = format!(
        "GET /a HTTP/1.1\r\nhost: a\r\n{}\r\n",
        "x: y\r\n".repeat(30)
    );
    for head in [long, many] {
        let mut client = fixture.connect().await;
        client.send(head).await;
        let refused = client.response().await;
        assert_eq!(
            (refused.status, refused.json()["error"]["code"].as_str()),
            (431, Some("HEAD_TOO_LARGE"))
        );
    }
    assert_eq!(fixture.origin.count(), 0);
}

#[tokio::test]
async fn a_target_that_is_too_long_is_414_and_says_so() {
    let fixture = Fixture::start("", |_| ok("x", &[])).await;
    let target = "/a".repeat(20_000);
    for is_first in [true, false] {
        let mut client = fixture.connect().await;
        if !is_first {
            assert_eq!(client.ask("GET", "/a", &[]).await.status, 200);
        }
        client
            .send(format!("GET {target} HTTP/1.1\r\nhost: a\r\n\r\n"))
            .await;
        let refused = client.response().await;
        assert_eq!(refused.status, 414, "{is_first}: {refused:?}");
        assert_eq!(
            (refused.status, refused.json()["error"]["code"].as_str()),
            (414, Some("TARGET_TOO_LONG"))
        );
        assert!(refused.header("date").is_some());
        assert!(refused.text().contains("limits.header_bytes"));
    }
    // What is long is not the target.
    let mut client = fixture.connect().await;
    let long = "y".repeat(40_000);
    client
        .send(format!(
            "GET /a HTTP/1.1\r\nhost: a\r\nx-long: {long}\r\n\r\n"
        ))
        .await;
    assert_eq!(client.response().await.status, 431);
}

#[tokio::test]
async fn a_body_over_the_limit_is_refused_whether_declared_or_not() {
    let fixture = Fixture::start("[limits]\nrequest_body = \"1KiB\"\n", |seen| {
        ok(format!("{}", seen.body.len()), &[])
    })
    .await;
    let mut client = fixture.connect().await;
    client
        .send(format!(
            "POST /a HTTP/1.1\r\nhost: a\r\ncontent-length: 1024\r\n\r\n{}",
            "x".repeat(1024)
        ))
        .await;
    assert_eq!(client.response().await.text(), "1024");
    client
        .send("POST /a HTTP/1.1\r\nhost: a\r\ncontent-length: 1025\r\n\r\n")
        .await;
    let declared = client.response().await;
    assert_eq!(
        (declared.status, declared.json()["error"]["code"].as_str()),
        (413, Some("BODY_TOO_LARGE"))
    );
    let mut client = fixture.connect().await;
    client
        .send("POST /a HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n")
        .await;
    client
        .send(format!("800\r\n{}\r\n0\r\n\r\n", "x".repeat(0x800)))
        .await;
    assert_eq!(client.response().await.status, 413);
    assert_eq!(fixture.origin.count(), 1);
}

#[tokio::test]
async fn a_body_that_stops_coming_is_not_waited_for() {
    let fixture = Fixture::start("[limits]\nbody_timeout = \"100ms\"\n", |_| ok("x", &[])).await;
    let mut client = fixture.connect().await;
    client
        .send("POST /a HTTP/1.1\r\nhost: a\r\ncontent-length: 10\r\n\r\nhalf")
        .await;
    let received = client.response().await;
    assert_eq!(
        (received.status, received.json()["error"]["code"].as_str()),
        (408, Some("REQUEST_TIMEOUT"))
    );
    // It was the client's fault: the upstream is not blamed.
    assert_eq!(fixture.metric("upstream_breaker_open").await, 0.0);
}

#[tokio::test]
async fn a_client_that_does_not_read_is_cut() {
    let text = format!(
        "[limits]\nbody_timeout = \"200ms\"\n{}",
        route("ttl = \"60s\"")
    );
    let fixture = Fixture::start(&text, |_| ok(vec![b'x'; 7 << 20], &[])).await;
    fixture.get("/a").await;
    let mut client = fixture.connect().await;
    socket2::SockRef::from(&client.stream)
        .set_recv_buffer_size(4096)
        .unwrap();
    client.request("GET", "/a", &[]).await;
    fixture.metric_reaches("server_connections", 1.0).await;
    // Cut without our reading a byte: the connection is gone from the gauge.
    let gone = async {
        while fixture.metric("server_connections").await > 0.0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(crate::support::PATIENCE, gone)
        .await
        .expect("it is cut");
}

#[tokio::test]
async fn connections_over_the_limit_are_told_so() {
    let fixture = Fixture::start("[limits]\nconnections = 2\n", |_| ok("x", &[])).await;
    let mut first = fixture.connect().await;
    let mut second = fixture.connect().await;
    for client in [&mut first, &mut second] {
        assert_eq!(client.ask("GET", "/a", &[]).await.status, 200);
    }
    let mut third = fixture.connect().await;
    let refused = third.response().await;
    assert_eq!(
        (refused.status, refused.header("retry-after")),
        (503, Some("1"))
    );
    assert_eq!(refused.json()["error"]["code"], "OVERLOADED");
    drop(first);
    let admitted = async {
        loop {
            let mut client = Client::connect(fixture.sidecar().address).await;
            client.request("GET", "/a", &[]).await;
            if client.head().await.status == 200 {
                return;
            }
        }
    };
    tokio::time::timeout(crate::support::PATIENCE, admitted)
        .await
        .expect("a place is free again");
    assert!(fixture.metric("server_connections_refused_total").await >= 1.0);
}

#[tokio::test]
async fn a_response_head_has_a_deadline_but_its_body_does_not() {
    let (gate, events) = (Gate::new(), Gate::new());
    let (held, next) = (gate.clone(), events.clone());
    let fixture = Fixture::start(
        "[limits]\nrequest_timeout = \"150ms\"\n",
        move |seen| match seen.target.as_str() {
            "/events" => vec![
                Step::Send(
                    b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n".to_vec(),
                ),
                Step::Wait(next.clone()),
                Step::Send(b"1\r\nb\r\n0\r\n\r\n".to_vec()),
            ],
            _ => vec![Step::Wait(held.clone())],
        },
    )
    .await;
    let mut stream = fixture.connect().await;
    stream.request("GET", "/events", &[]).await;
    stream.head().await;
    assert_eq!(stream.chunk().await.unwrap(), b"a");
    // This takes longer than the deadline, during which the stream stays open.
    let late = fixture.get("/late").await;
    assert_eq!(
        (late.status, late.json()["error"]["code"].as_str()),
        (504, Some("RESPONSE_TIMEOUT"))
    );
    events.open();
    assert_eq!(stream.chunk().await.unwrap(), b"b");
    gate.open();
}

#[tokio::test]
async fn a_head_of_exactly_the_limit_passes_and_one_byte_more_does_not() {
    let fixture = Fixture::start("[limits]\nheader_bytes = \"16KiB\"\n", |_| ok("x", &[])).await;
    let head = |size: usize| {
        let rest = "GET /a HTTP/1.1\r\nhost: a\r\nx-long: \r\n\r\n";
        let value = "y".repeat(size - rest.len());
        format!("GET /a HTTP/1.1\r\nhost: a\r\nx-long: {value}\r\n\r\n")
    };
    // Also where the buffer has grown by what came before.
    let mut used = fixture.connect().await;
    for more in [0, 1, 2, 1000, 8000, 0, 1, 8000] {
        let expected = if more == 0 { 200 } else { 431 };
        let mut fresh = fixture.connect().await;
        fresh.send(head((16 << 10) + more)).await;
        assert_eq!(fresh.response().await.status, expected, "{more}");
        used.send(format!(
            "POST /a HTTP/1.1\r\nhost: a\r\ncontent-length: 60000\r\n\r\n{}",
            "z".repeat(60_000)
        ))
        .await;
        assert_eq!(used.response().await.status, 200);
        used.send(head((16 << 10) + more)).await;
        assert_eq!(used.response().await.status, expected, "{more}, used");
        if expected != 200 {
            used = fixture.connect().await;
        }
    }
}
