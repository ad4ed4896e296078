//! An upstream that fails: the client learns which side it was, nothing broken is stored, and the
//! upstream is not beaten while it is down.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::support::tls_origin::TlsOrigin;
use crate::support::{Client, Fixture, Gate, Origin, Step, all, ok, reply, route};

/// The fields of a failure: status, code and the RFC 9209 error type.
async fn failure(fixture: &Fixture, target: &str) -> (u16, String, String) {
    let received = fixture.get(target).await;
    let code = received.json()["error"]["code"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    let proxy_status = received.header("proxy-status").unwrap_or_default();
    let error = proxy_status
        .split("error=")
        .nth(1)
        .and_then(|rest| rest.split(';').next());
    (received.status, code, error.unwrap_or_default().to_owned())
}

fn expected(status: u16, code: &str, error: &str) -> (u16, String, String) {
    (status, code.to_owned(), error.to_owned())
}

#[tokio::test]
async fn each_failure_has_its_status_code_and_proxy_status() {
    let never = Gate::new();
    let held = never.clone();
    let text = "[upstream]\nresponse_timeout = \"100ms\"\nheader_bytes \
        = \"8KiB\"\n[errors]\nheaders = { \"Access-Control-Allow-Origin\" = \"*\" }\n";
    let mut fixture = Fixture::start(text, move |seen| match seen.target.as_str() {
        "/close" => vec![Step::Close],
        "/reset" => vec![Step::Reset],
        "/garbage" => vec![Step::Send(b"SMTP ready\r\n\r\n".to_vec()), Step::Close],
        "/stall" => vec![Step::Wait(held.clone())],
        "/long" => reply(200, "x", &[("x-long", &"y".repeat(20_000))]),
        _ => ok("x", &[]),
    })
    .await;
    assert_eq!(
        failure(&fixture, "/close").await,
        expected(502, "CONNECTION_CLOSED", "connection_terminated")
    );
    assert_eq!(
        failure(&fixture, "/reset").await,
        expected(502, "CONNECTION_CLOSED", "connection_terminated")
    );
    assert_eq!(
        failure(&fixture, "/garbage").await,
        expected(502, "PROTOCOL_ERROR", "http_protocol_error")
    );
    assert_eq!(
        failure(&fixture, "/long").await,
        expected(502, "PROTOCOL_ERROR", "http_protocol_error")
    );
    assert_eq!(fixture.get("/fine").await.status, 200);
    assert_eq!(
        failure(&fixture, "/stall").await,
        expected(504, "RESPONSE_TIMEOUT", "http_response_timeout")
    );
    fixture.origin.stop().await;
    assert_eq!(
        failure(&fixture, "/down").await,
        expected(502, "CONNECT_FAILED", "connection_refused")
    );
    assert_eq!(
        fixture
            .get("/down")
            .await
            .header("access-control-allow-origin"),
        Some("*")
    );
    fixture
        .metric_reaches(
            "upstream_errors_total{error_type=\"connection_closed\"}",
            2.0,
        )
        .await;
    fixture
        .metric_reaches(
            "http_errors_total{method=\"GET\",path=\"(no route)\",error_type=\"connect_failed\"}",
            2.0,
        )
        .await;
    never.open();
}

#[tokio::test]
async fn a_body_that_breaks_off_reaches_the_client_as_broken_and_is_not_stored() {
    // Known lengths above `etag_up_to` and unknown ones stream; both ways of dying.
    let fixture = Fixture::start(
        &format!("[cache]\netag_up_to = \"0B\"\n{}", route("ttl = \"60s\"")),
        |seen| {
            let framing = if seen.target.contains("chunked") {
                "transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n"
            } else {
                "content-length: 50\r\n\r\nhello"
            };
            let end = if seen.target.contains("reset") {
                Step::Reset
            } else {
                Step::Close
            };
            vec![
                Step::Send(format!("HTTP/1.1 200 OK\r\n{framing}").into_bytes()),
                end,
            ]
        },
    )
    .await;
    for target in ["/length", "/length-reset", "/chunked", "/chunked-reset"] {
        for _ in 0..2 {
            let mut client = fixture.connect().await;
            client.request("GET", target, &[]).await;
            let received = client.response().await;
            assert!(received.is_cut, "{target}");
            assert_eq!(received.cache(), "MISS", "{target}");
        }
    }
    assert_eq!(fixture.metric("cache_stored_entries").await, 0.0);
    assert_eq!(fixture.metric("cache_in_flight_bytes").await, 0.0);
}

#[tokio::test]
async fn a_body_that_stalls_is_cut_after_the_read_timeout() {
    let never = Gate::new();
    let held = never.clone();
    let text = format!(
        "[upstream]\nread_timeout = \"100ms\"\n{}",
        route("ttl = \"60s\"")
    );
    let fixture = Fixture::start(&text, move |_| {
        vec![
            Step::Send(
                b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n".to_vec(),
            ),
            Step::Wait(held.clone()),
        ]
    })
    .await;
    let received = fixture.get("/a").await;
    assert!(received.is_cut);
    assert_eq!(received.text(), "hello");
    assert_eq!(fixture.metric("cache_stored_entries").await, 0.0);
    never.open();
}

#[tokio::test]
async fn a_dead_kept_connection_is_noticed_and_the_request_repeated_once() {
    let fixture = Fixture::start("", |seen| {
        match (seen.on_connection, seen.target.as_str()) {
            // A connection that has carried a request takes this one and dies without a word.
            (2.., "/again") => vec![Step::Close],
            _ => ok(&seen.method, &[]),
        }
    })
    .await;
    let mut client = fixture.connect().await;
    for (retries, method) in [(1.0, "GET"), (2.0, "PUT"), (3.0, "DELETE")] {
        assert_eq!(client.ask(method, "/first", &[]).await.status, 200);
        let again = client.ask(method, "/again", &[]).await;
        assert_eq!((again.status, again.text().as_str()), (200, method));
        assert_eq!(fixture.metric("upstream_retries_total").await, retries);
    }
    // Not so for a method that may not be repeated.
    assert_eq!(client.ask("POST", "/again", &[]).await.status, 502);
    // And once only: a fresh connection that dies is the upstream's answer.
    assert_eq!(fixture.metric("upstream_retries_total").await, 3.0);
}

#[tokio::test]
async fn connections_are_kept_and_shared() {
    let fixture = Fixture::start("", |_| ok("x", &[])).await;
    let mut client = fixture.connect().await;
    for _ in 0..20 {
        client.ask("GET", "/a", &[]).await;
    }
    assert_eq!(fixture.origin.connections(), 1);
    assert_eq!(fixture.metric("upstream_connections").await, 1.0);
}

#[tokio::test]
async fn connections_to_the_upstream_are_bounded_and_the_queue_too() {
    let gate = Gate::new();
    let held = gate.clone();
    let text = "[upstream]\nmax_connections = 3\nqueue = 5\n[listen]\nworkers = 3\n";
    let fixture = Arc::new(
        Fixture::start(text, move |seen| {
            let mut steps = if seen.target == "/warm" {
                Vec::new()
            } else {
                vec![Step::Wait(held.clone())]
            };
            steps.extend(ok("x", &[]));
            steps
        })
        .await,
    );
    let address = fixture.sidecar().address;
    let mut queued = Vec::new();
    for _ in 0..3 {
        queued.push(tokio::spawn(async move {
            Client::connect(address)
                .await
                .ask("GET", "/held", &[])
                .await
        }));
    }
    fixture.origin.asked(3).await;
    let rest = (0..30).map(move |_| async move {
        Client::connect(address)
            .await
            .ask("GET", "/held", &[])
            .await
    });
    let rest = tokio::spawn(all(rest));
    // Five wait, twenty-five are told at once.
    fixture
        .metric_reaches("upstream_errors_total{error_type=\"queue_full\"}", 25.0)
        .await;
    assert_eq!(fixture.origin.count(), 3);
    assert_eq!(fixture.origin.connections(), 3);
    gate.open();
    let answers = rest.await.unwrap();
    let refused: Vec<_> = answers
        .iter()
        .filter(|answer| answer.status == 503)
        .collect();
    assert_eq!(refused.len(), 25);
    assert!(
        refused
            .iter()
            .all(|answer| answer.header("retry-after").is_some())
    );
    for task in queued {
        assert_eq!(task.await.unwrap().status, 200);
    }
    assert!(
        fixture.origin.connections() <= 3 + 5,
        "{}",
        fixture.origin.connections()
    );
    assert!(fixture.metric("upstream_connections").await <= 3.0);
}

#[tokio::test]
async fn the_breaker_opens_answers_503_or_stale_and_closes_again() {
    let broken = Arc::new(AtomicBool::new(false));
    let is_broken = Arc::clone(&broken);
    let text = format!(
        "[upstream]\nbreaker_failures = 3\nbreaker_open = \"300ms\"\n{}",
        route("ttl = \"10s\"\nstale_if_error = \"1h\"")
    );
    let fixture = Fixture::start(&text, move |_| {
        if is_broken.load(Ordering::SeqCst) {
            vec![Step::Close]
        } else {
            ok("good", &[])
        }
    })
    .await;
    fixture.get("/stored").await;
    fixture.advance(60);
    broken.store(true, Ordering::SeqCst);
    // One URL opens nothing, however often it fails.
    for target in ["/a", "/a", "/a", "/a", "/b", "/c"] {
        assert_eq!(fixture.get(target).await.status, 502, "{target}");
    }
    let asked = fixture.origin.count();
    let refused = fixture.get("/a").await;
    assert_eq!(
        (refused.status, refused.json()["error"]["code"].as_str()),
        (503, Some("BREAKER_OPEN"))
    );
    assert_eq!(refused.header("retry-after"), Some("1"));
    assert_eq!(fixture.get("/stored").await.cache(), "HIT-STALE");
    assert_eq!(
        fixture.origin.count(),
        asked,
        "an open breaker asks nothing"
    );
    assert_eq!(fixture.metric("upstream_breaker_open").await, 1.0);
    let ready = fixture.admin("/readyz").await;
    assert_eq!(
        (ready.status, ready.json()["upstream"]["breaker"].as_str()),
        (200, Some("open"))
    );
    broken.store(false, Ordering::SeqCst);
    let closed = async {
        while fixture.get("/b").await.status != 200 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(crate::support::PATIENCE, closed)
        .await
        .expect("the breaker closes by itself");
    assert_eq!(fixture.metric("upstream_breaker_open").await, 0.0);
}

#[tokio::test]
async fn an_https_upstream_is_verified_by_the_configured_roots() {
    let TlsOrigin { port, root } = TlsOrigin::start().await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("ca.pem");
    std::fs::write(&file, root).unwrap();
    let start = |extra: &str| {
        let config = crate::support::config(
            &format!("https://localhost:{port}"),
            &format!("[upstream]\n{extra}"),
        );
        iris_sidecar::process::Sidecar::start(config).unwrap()
    };
    let trusting = start(&format!("ca_file = \"{}\"", file.display()));
    let received = Client::connect(trusting.address)
        .await
        .ask("GET", "/a", &[])
        .await;
    assert_eq!((received.status, received.text().as_str()), (200, "secret"));
    let other = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    std::fs::write(&file, other.cert.pem()).unwrap();
    let distrusting = start(&format!("ca_file = \"{}\"", file.display()));
    let received = Client::connect(distrusting.address)
        .await
        .ask("GET", "/a", &[])
        .await;
    assert_eq!(
        (received.status, received.json()["error"]["code"].as_str()),
        (502, Some("TLS_FAILED"))
    );
    for sidecar in [trusting, distrusting] {
        sidecar.drain();
        sidecar.join();
    }
}

#[tokio::test]
async fn an_origin_that_comes_back_is_used_at_once() {
    let mut origin = Origin::start(|_| ok("x", &[])).await;
    let address = origin.address;
    origin.stop().await;
    let fixture = Fixture::in_front_of(origin, "");
    assert_eq!(fixture.get("/a").await.status, 502);
    let listener = tokio::net::TcpListener::bind(address).await.unwrap();
    tokio::spawn(async move {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut buffer = [0; 1000];
        assert!(stream.read(&mut buffer).await.unwrap() > 0);
        stream
            .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nback")
            .await
            .unwrap();
    });
    assert_eq!(fixture.get("/a").await.text(), "back");
}

#[tokio::test]
async fn a_client_that_sends_slowly_is_not_the_upstreams_fault() {
    let text = "[upstream]\nresponse_timeout = \"100ms\"\nbreaker_failures = \
        1\n[limits]\nbody_timeout = \"300ms\"\n";
    let fixture = Fixture::start(text, |_| ok("x", &[])).await;
    let mut client = fixture.connect().await;
    client
        .send("POST /slow HTTP/1.1\r\nhost: a\r\ncontent-length: 10\r\n\r\nhalf")
        .await;
    assert_eq!(client.response().await.status, 408);
    assert_eq!(fixture.metric("upstream_breaker_open").await, 0.0);
    assert_eq!(fixture.get("/a").await.status, 200);
}

#[tokio::test]
async fn an_upstream_that_answers_early_does_not_hold_up_the_next_request() {
    let fixture = Fixture::in_front_of(
        Origin::answering_early().await,
        "[upstream]\nmax_connections = 4\n[listen]\nworkers = 1\n",
    );
    let mut stalled = fixture.connect().await;
    stalled
        .send("POST /early HTTP/1.1\r\nhost: a\r\ncontent-length: 100000\r\n\r\nsome")
        .await;
    assert_eq!(stalled.response().await.status, 401);
    // While the rest of that body is still to come.
    assert_eq!(fixture.get("/next").await.status, 401);
}
