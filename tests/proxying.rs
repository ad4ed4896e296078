//! Proxying, unchanged: bodies, trailers, fields, protocols, in both directions.

use crate::support::{Fixture, Gate, Step, ok, reply, route};
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;

#[tokio::test]
async fn bodies_of_requests_stream_both_by_length_and_in_chunks_with_trailers() {
    let fixture = Fixture::start("", |seen| {
        ok(format!("{} {}", seen.body.len(), seen.trailers.trim()), &[])
    })
    .await;
    let mut client = fixture.connect().await;
    client
        .send(format!(
            "POST /a HTTP/1.1\r\nhost: a\r\ncontent-length: 200000\r\n\r\n{}",
            "b".repeat(200_000)
        ))
        .await;
    assert_eq!(client.response().await.text(), "200000 ");
    client
        .send(
            "POST /a HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\ntrailer: \
            x-sum\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\nx-sum: 7\r\n\r\n",
        )
        .await;
    assert_eq!(client.response().await.text(), "5 x-sum: 7");
}

#[tokio::test]
async fn trailers_of_a_response_reach_a_client_that_takes_them() {
    let fixture = Fixture::start(&route("ttl = \"60s\""), |_| {
        let text = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: \
            x-sum\r\n\r\n3\r\nabc\r\n0\r\nx-sum: 9\r\n\r\n";
        vec![Step::Send(text.as_bytes().to_vec())]
    })
    .await;
    for target in ["/stored", "/passed"] {
        let method = if target == "/stored" { "GET" } else { "POST" };
        let mut client = fixture.connect().await;
        let received = client
            .ask(method, target, &[("te", "trailers"), ("connection", "te")])
            .await;
        assert_eq!(
            (received.text().as_str(), received.trailers.trim()),
            ("abc", "x-sum: 9"),
            "{target}"
        );
    }
    assert_eq!(fixture.origin.last().header("te"), Some("trailers"));
}

#[tokio::test]
async fn fields_of_one_hop_stay_behind_in_both_directions() {
    let fixture = Fixture::start("", |_| {
        ok(
            "x",
            &[
                ("connection", "x-hop"),
                ("x-hop", "1"),
                ("keep-alive", "timeout=5"),
                ("proxy-authenticate", "Basic"),
                ("x-end", "1"),
            ],
        )
    })
    .await;
    let fields = [
        ("connection", "keep-alive, x-mine, authorization"),
        ("x-mine", "1"),
        ("authorization", "Bearer k"),
        ("proxy-authorization", "Basic x"),
        ("keep-alive", "1"),
        ("x-kept", "1"),
    ];
    let received = fixture.get_with("/a", &fields).await;
    for name in ["x-hop", "keep-alive", "proxy-authenticate"] {
        assert_eq!(received.header(name), None, "{name}");
    }
    assert_eq!(
        (received.header("x-end"), received.header("via")),
        (Some("1"), Some("1.1 iris-sidecar"))
    );
    let seen = fixture.origin.last();
    for name in ["x-mine", "proxy-authorization", "keep-alive"] {
        assert_eq!(seen.header(name), None, "{name}");
    }
    // A client cannot make us drop what says who it is.
    assert_eq!(seen.header("authorization"), Some("Bearer k"));
    assert_eq!(
        (seen.header("x-kept"), seen.header("via")),
        (Some("1"), Some("1.1 iris-sidecar"))
    );
    assert_eq!(seen.header("x-forwarded-for"), Some("127.0.0.1"));
    assert_eq!(seen.header("host"), Some("api.example"));
}

#[tokio::test]
async fn a_rewritten_host_is_the_upstreams_own() {
    let fixture = Fixture::start(
        &format!("[upstream]\nhost = \"rewrite\"\n{}", route("ttl = \"60s\"")),
        |_| ok("x", &[]),
    )
    .await;
    fixture.get_with("/a", &[("host", "one.example")]).await;
    let own = fixture.origin.address.to_string();
    assert_eq!(fixture.origin.last().header("host"), Some(own.as_str()));
    assert_eq!(fixture.origin.last().header("x-forwarded-host"), None);
    // The origin never saw the client's host, so it does not separate.
    assert_eq!(
        fixture
            .get_with("/a", &[("host", "two.example")])
            .await
            .cache(),
        "HIT"
    );
}

#[tokio::test]
async fn connect_is_refused() {
    let fixture = Fixture::start("", |_| ok("x", &[])).await;
    let mut client = fixture.connect().await;
    client
        .send("CONNECT other.example:443 HTTP/1.1\r\nhost: other.example:443\r\n\r\n")
        .await;
    let received = client.head().await;
    assert_eq!(received.status, 405);
    assert!(received.header("allow").is_some());
    assert_eq!(fixture.origin.count(), 0);
}

#[tokio::test]
async fn the_body_is_asked_for_only_when_the_request_goes_to_the_origin() {
    let fixture = Fixture::start("[limits]\nrequest_body = \"10B\"\n", |seen| {
        ok(&seen.body, &[])
    })
    .await;
    let mut client = fixture.connect().await;
    client
        .send("POST /a HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\nexpect: 100-continue\r\n\r\n")
        .await;
    assert_eq!(client.head().await.status, 100);
    client.send("hello").await;
    assert_eq!(client.response().await.text(), "hello");
    // Too large: refused without being asked for.
    let mut client = fixture.connect().await;
    client
        .send("POST /a HTTP/1.1\r\nhost: a\r\ncontent-length: 50\r\nexpect: 100-continue\r\n\r\n")
        .await;
    assert_eq!(client.head().await.status, 413);
    assert_eq!(fixture.origin.count(), 1);
}

#[tokio::test]
async fn a_switch_of_protocols_is_tunnelled() {
    let fixture = Fixture::start("", |seen| {
        assert_eq!(
            (seen.header("upgrade"), seen.header("connection")),
            (Some("websocket"), Some("upgrade"))
        );
        let head = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: \
            websocket\r\nsec-websocket-accept: x\r\n\r\n";
        vec![Step::Send(head.as_bytes().to_vec()), Step::Echo]
    })
    .await;
    let mut client = fixture.connect().await;
    client
        .request(
            "GET",
            "/socket",
            &[("connection", "Upgrade"), ("upgrade", "websocket")],
        )
        .await;
    let head = client.head().await;
    assert_eq!(
        (
            head.status,
            head.header("upgrade"),
            head.header("sec-websocket-accept")
        ),
        (101, Some("websocket"), Some("x"))
    );
    client.send(b"ping \x00\xff").await;
    assert_eq!(client.raw(7).await, b"ping \x00\xff");
}

#[tokio::test]
async fn a_real_websocket_goes_through() {
    use futures_util::{SinkExt, StreamExt};
    use tokio_tungstenite::tungstenite::Message;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let mut socket = tokio_tungstenite::accept_async(stream).await.unwrap();
        let message = socket.next().await.unwrap().unwrap();
        socket.send(message).await.unwrap();
    });
    let sidecar = iris_sidecar::process::Sidecar::start(crate::support::config(
        &format!("http://{address}"),
        &route(""),
    ))
    .unwrap();
    let url = format!("ws://{}/chat", sidecar.address);
    let stream = TcpStream::connect(sidecar.address).await.unwrap();
    let (mut socket, response) = tokio_tungstenite::client_async(url, stream).await.unwrap();
    assert_eq!(response.status(), 101);
    socket.send(Message::text("hello")).await.unwrap();
    assert_eq!(
        socket.next().await.unwrap().unwrap(),
        Message::text("hello")
    );
    drop(socket);
    sidecar.drain();
    sidecar.join();
}

#[tokio::test]
async fn server_sent_events_pass_one_by_one_as_they_come() {
    let gates = [Gate::new(), Gate::new()];
    let (one, two) = (gates[0].clone(), gates[1].clone());
    let fixture = Fixture::start(&route("ttl = \"60s\"\nforce_ttl = \"60s\""), move |_| {
        let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: \
            chunked\r\n\r\n";
        let event = |text: &str| Step::Send(format!("{:x}\r\n{text}\r\n", text.len()).into_bytes());
        vec![
            Step::Send(head.as_bytes().to_vec()),
            event("data: 1\n\n"),
            Step::Wait(one.clone()),
            event("data: 2\n\n"),
            Step::Wait(two.clone()),
            Step::Send(b"0\r\n\r\n".to_vec()),
        ]
    })
    .await;
    let mut client = fixture.connect().await;
    client.request("GET", "/events", &[]).await;
    let head = client.head().await;
    assert!(
        head.cache_status().ends_with("detail=event-stream"),
        "{}",
        head.cache_status()
    );
    assert_eq!(client.chunk().await.unwrap(), b"data: 1\n\n");
    assert!(client.is_silent());
    gates[0].open();
    assert_eq!(client.chunk().await.unwrap(), b"data: 2\n\n");
    gates[1].open();
    assert_eq!(client.chunk().await.unwrap(), b"");
}

#[tokio::test]
async fn absolute_form_must_agree_with_host() {
    let fixture = Fixture::start("", |seen| ok(&seen.target, &[])).await;
    let mut client = fixture.connect().await;
    client
        .send("GET http://api.example/a?b HTTP/1.1\r\nhost: api.example\r\n\r\n")
        .await;
    assert_eq!(client.response().await.text(), "/a?b");
    client
        .send("GET http://other.example/a HTTP/1.1\r\nhost: api.example\r\n\r\n")
        .await;
    let received = client.response().await;
    assert_eq!(
        (received.status, received.header("connection")),
        (400, Some("close"))
    );
    client.closed().await;
    assert_eq!(fixture.origin.count(), 1);
}

#[tokio::test]
async fn ambiguous_framing_is_never_forwarded_as_it_came() {
    for (head, status) in [
        ("transfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501),
        ("transfer-encoding: chunked, chunked\r\n\r\n0\r\n\r\n", 400),
        (
            "transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
            400,
        ),
        // Not chunked at the end, so of no length at all: 400 by RFC 9112 §6.3.
        ("transfer-encoding: gzip\r\n\r\n", 400),
        ("content-length: 1\r\ncontent-length: 2\r\n\r\nab", 400),
        ("content-length: +1\r\n\r\na", 400),
        ("content-length: 1, 1\r\n\r\na", 400),
        (" folded: x\r\n\r\n", 400),
        ("bad name: x\r\n\r\n", 400),
        ("x: a\0b\r\n\r\n", 400),
    ] {
        let fixture = Fixture::start("", |_| ok("x", &[])).await;
        let mut client = fixture.connect().await;
        client
            .send(format!("POST /a HTTP/1.1\r\nhost: a\r\n{head}"))
            .await;
        let received = client.response().await;
        assert_eq!(received.status, status, "{head:?}");
        assert_eq!(received.header("connection"), Some("close"), "{head:?}");
        client.closed().await;
        assert_eq!(fixture.origin.count(), 0, "{head:?}");
    }
}

#[tokio::test]
async fn length_and_chunks_together_are_framed_anew_and_the_connection_closed() {
    let fixture = Fixture::start("", |seen| ok(&seen.body, &[])).await;
    let both = "POST /a HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\ntransfer-encoding: \
        chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n";
    let mut client = fixture.connect().await;
    client.send(both).await;
    let received = client.response().await;
    assert_eq!(
        (received.text().as_str(), received.header("connection")),
        ("hello", Some("close"))
    );
    client.closed().await;
    assert_eq!(fixture.origin.last().header("content-length"), None);
    // What a smuggler puts behind it is never read as a request.
    let mut client = fixture.connect().await;
    client
        .send(format!("{both}GET /smuggled HTTP/1.1\r\nhost: a\r\n\r\n"))
        .await;
    client.closed().await;
    assert!(fixture.origin.seen().iter().all(|seen| seen.target == "/a"));
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_their_order() {
    let fixture = Fixture::start(&route("ttl = \"60s\""), |seen| ok(&seen.target, &[])).await;
    let mut client = fixture.connect().await;
    let requests: String = (0..20)
        .map(|at| format!("GET /{} HTTP/1.1\r\nhost: a\r\n\r\n", at % 3))
        .collect();
    client.send(requests).await;
    for at in 0..20 {
        assert_eq!(client.response().await.text(), format!("/{}", at % 3));
    }
}

#[tokio::test]
async fn http_2_by_prior_knowledge_shares_the_port_and_the_cache() {
    let fixture = Fixture::start(&route("ttl = \"60s\""), |_| {
        ok("body", &[("connection", "keep-alive")])
    })
    .await;
    assert_eq!(
        fixture
            .get_with("/a", &[("host", "api.example")])
            .await
            .cache(),
        "MISS"
    );
    let stream = TcpStream::connect(fixture.sidecar().address).await.unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .unwrap();
    tokio::spawn(connection);
    for host in ["api.example", "API.example"] {
        let request = http::Request::builder()
            .uri(format!("http://{host}/a"))
            .body(Empty::<bytes::Bytes>::new())
            .unwrap();
        let response = sender.send_request(request).await.unwrap();
        assert_eq!(
            (
                response.status().as_u16(),
                response.headers()["x-cache"].to_str().unwrap()
            ),
            (200, "HIT")
        );
        assert_eq!(
            response.into_body().collect().await.unwrap().to_bytes(),
            "body"
        );
    }
    // :authority and Host that disagree.
    let request = http::Request::builder()
        .uri("http://api.example/a")
        .header("host", "evil.example")
        .body(Empty::new())
        .unwrap();
    assert_eq!(sender.send_request(request).await.unwrap().status(), 400);
}

#[tokio::test]
async fn http_1_0_and_close_are_understood() {
    let fixture = Fixture::start("", |_| reply(200, "old", &[])).await;
    let mut client = fixture.connect().await;
    client.send("GET /a HTTP/1.0\r\n\r\n").await;
    assert_eq!(client.response().await.text(), "old");
    client.closed().await;
    let own = fixture.origin.address.to_string();
    assert_eq!(fixture.origin.last().header("host"), Some(own.as_str()));
    assert_eq!(
        fixture.origin.last().header("via"),
        Some("1.0 iris-sidecar")
    );
}

#[tokio::test]
async fn a_large_body_streams_through_without_being_held() {
    const PIECES: usize = 64;
    let fixture = Fixture::start(&route(""), |_| {
        let mut steps = vec![Step::Send(
            format!(
                "HTTP/1.1 200 OK\r\ncontent-length: {}\r\ncache-control: max-age=60\r\n\r\n",
                PIECES << 20
            )
            .into_bytes(),
        )];
        steps.extend((0..PIECES).map(|_| Step::Send(vec![b'x'; 1 << 20])));
        steps
    })
    .await;
    let received = fixture.get("/large").await;
    assert_eq!(received.body.len(), PIECES << 20);
    assert!(
        received.cache_status().ends_with("detail=too-large"),
        "{}",
        received.cache_status()
    );
    assert_eq!(fixture.metric("cache_in_flight_bytes").await, 0.0);
}

#[tokio::test]
async fn a_get_of_unknown_length_keeps_its_body() {
    let fixture = Fixture::start(&route("ttl = \"60s\""), |seen| ok(&seen.body, &[])).await;
    let mut client = fixture.connect().await;
    client
        .send(
            "GET /search HTTP/1.1\r\nhost: a\r\ntransfer-encoding: \
        chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        )
        .await;
    assert_eq!(client.response().await.text(), "abc");
}

#[tokio::test]
async fn fields_are_counted_and_cookies_joined_over_http_2() {
    let fixture = Fixture::start("[limits]\nheader_count = 20\n", |seen| {
        ok(seen.header("cookie").unwrap_or("none"), &[])
    })
    .await;
    let stream = TcpStream::connect(fixture.sidecar().address).await.unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .unwrap();
    tokio::spawn(connection);
    let request = || http::Request::builder().uri("http://api.example/a");
    let cookies = request()
        .header("cookie", "a=1")
        .header("cookie", "b=2")
        .body(Empty::<bytes::Bytes>::new())
        .unwrap();
    let response = sender.send_request(cookies).await.unwrap();
    assert_eq!(
        response.into_body().collect().await.unwrap().to_bytes(),
        "a=1; b=2"
    );
    let many = (0..30).fold(request(), |request, number| {
        request.header(format!("x-{number}"), "y")
    });
    let response = sender
        .send_request(many.body(Empty::new()).unwrap())
        .await
        .unwrap();
    assert_eq!(response.status(), 431);
    // One number, in a form that leaves no doubt.
    for lengths in [&["", ""][..], &[""], &["1", "2"], &["0", "0"], &["+0"]] {
        let request = lengths.iter().fold(request(), |request, length| {
            request.header("content-length", *length)
        });
        let answered = sender
            .send_request(request.body(Empty::new()).unwrap())
            .await;
        let status = answered.map(|response| response.status().as_u16());
        assert!(
            status.as_ref().is_err() || *status.as_ref().unwrap() == 400,
            "{lengths:?}: {status:?}"
        );
    }
    assert_eq!(fixture.origin.count(), 1);
}
