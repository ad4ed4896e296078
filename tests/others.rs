//! What one client does, or its part of the origin, is not the others' misfortune.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http_body_util::{BodyExt, Empty, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::{Client, Fixture, Gate, Origin, Received, Step, after, all, ok, route};

/// Reads up to the end of a request head, or of the connection.
async fn read_head(stream: &mut TcpStream) {
    let mut buffer = Vec::new();
    while !buffer.windows(4).any(|window| window == b"\r\n\r\n") {
        if stream.read_buf(&mut buffer).await.unwrap_or(0) == 0 {
            return;
        }
    }
}

/// An origin that answers 413 to each head, and closes with the rest unread; or only closes.
async fn refusing(answer: &'static str) -> Origin {
    Origin::connections_of(move |mut stream| async move {
        read_head(&mut stream).await;
        let _ = stream.write_all(answer.as_bytes()).await;
    })
    .await
}

const TOO_LARGE: &str =
    "HTTP/1.1 413 Content Too Large\r\nconnection: close\r\ncontent-length: 6\r\n\r\ntoo b!";

/// Sends all of a large upload before it reads a byte; what it reads then.
async fn uploads(address: std::net::SocketAddr, target: String) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let size = 12 << 20;
    let head = format!("POST {target} HTTP/1.1\r\nhost: a\r\ncontent-length: {size}\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    // Who is answered early may find nobody to read the rest.
    let _ = stream.write_all(&vec![b'x'; size]).await;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_early_answer_to_an_upload_reaches_every_client() {
    let fixture = Fixture::in_front_of(refusing(TOO_LARGE).await, "");
    let address = fixture.sidecar().address;
    let answers = all((0..20).map(move |at| uploads(address, format!("/{at}")))).await;
    for answer in answers {
        assert!(answer.starts_with("HTTP/1.1 413"), "{answer:?}");
        assert!(answer.contains("connection: close"), "{answer:?}");
        assert!(answer.ends_with("too b!"), "{answer:?}");
    }
    assert_eq!(fixture.metric("upstream_breaker_open").await, 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn uploads_at_which_the_origin_hangs_up_do_not_open_the_breaker() {
    let fixture = Fixture::in_front_of(refusing("").await, "");
    let address = fixture.sidecar().address;
    let answers = all((0..8).map(move |at| uploads(address, format!("/{at}")))).await;
    for answer in answers {
        assert!(answer.starts_with("HTTP/1.1 502"), "{answer:?}");
    }
    assert_eq!(fixture.metric("upstream_breaker_open").await, 0.0);
}

#[tokio::test]
async fn an_idempotent_request_on_a_kept_connection_that_died_is_sent_again_with_its_body() {
    let fixture = Fixture::start("[listen]\nworkers = 1\n", |seen| {
        if seen.on_connection == 1 {
            ok(&seen.body, &[])
        } else {
            vec![Step::Reset]
        }
    })
    .await;
    let body = "x".repeat(10_000);
    for method in ["PUT", "DELETE"] {
        fixture.get("/first").await;
        let mut client = fixture.connect().await;
        let length = body.len();
        client
            .send(format!(
                "{method} /a HTTP/1.1\r\nhost: a\r\ncontent-length: {length}\r\n\r\n{body}"
            ))
            .await;
        let answer = client.response().await;
        assert_eq!(
            (answer.status, answer.text()),
            (200, body.clone()),
            "{method}"
        );
    }
    fixture.get("/first").await;
    let mut client = fixture.connect().await;
    client
        .send("POST /a HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\n\r\nx")
        .await;
    assert_eq!(client.response().await.status, 502, "once, and no more");
}

async fn crowd(fixture: &Fixture, count: usize) -> tokio::task::JoinHandle<Vec<Received>> {
    let address = fixture.sidecar().address;
    let clients = (0..count)
        .map(move |_| async move { Client::connect(address).await.ask("GET", "/a", &[]).await });
    let asking = tokio::spawn(all(clients));
    fixture
        .metric_reaches("server_connections", count as f64 + 1.0)
        .await;
    asking
}

#[tokio::test]
async fn a_field_at_which_the_origin_hangs_up_harms_nobody_who_waits() {
    for broken in [
        "",
        "SMTP ready\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf",
    ] {
        let gate = Gate::new();
        let held = gate.clone();
        let fixture = Fixture::start(&route("ttl = \"60s\""), move |seen| {
            if seen.header("x-odd").is_some() {
                let steps = vec![Step::Send(broken.into()), Step::Close];
                after(&held, steps)
            } else {
                ok("good", &[])
            }
        })
        .await;
        let mut leader = fixture.connect().await;
        leader.request("GET", "/a", &[("x-odd", "1")]).await;
        fixture.origin.asked(1).await;
        let asking = crowd(&fixture, 20).await;
        gate.open();
        assert_eq!(leader.response().await.status, 502, "{broken}");
        for received in asking.await.unwrap() {
            assert_eq!((received.status, received.text().as_str()), (200, "good"));
        }
        assert_eq!(fixture.origin.count(), 2, "one more for all of them");
        assert_eq!(fixture.get("/a").await.cache(), "HIT");
    }
}

#[tokio::test]
async fn a_failure_of_the_second_try_and_a_timeout_of_the_first_are_shared() {
    for (times_out, status, count) in [(false, 502, 2), (true, 504, 1)] {
        let (gate, never) = (Gate::new(), Gate::new());
        let (held, hangs) = (gate.clone(), never.clone());
        let text = format!(
            "[upstream]\nresponse_timeout = \"400ms\"\n{}",
            route("ttl = \"60s\"")
        );
        let fixture = Fixture::start(&text, move |_| {
            let wait = if times_out { &hangs } else { &held };
            after(wait, vec![Step::Close])
        })
        .await;
        let mut leader = fixture.connect().await;
        leader.request("GET", "/a", &[]).await;
        fixture.origin.asked(1).await;
        let asking = crowd(&fixture, 10).await;
        gate.open();
        assert_eq!(leader.response().await.status, status);
        let answers = asking.await.unwrap();
        assert!(answers.iter().all(|received| received.status == status));
        // Who came too late to wait leads again.
        let asked = fixture.origin.count();
        assert!((count..10).contains(&asked), "{asked}");
        never.open();
    }
}

/// A sidecar whose only connection to the origin is taken until the gate is opened, by this client.
async fn one_connection_taken() -> (Fixture, Gate, Client) {
    let gate = Gate::new();
    let held = gate.clone();
    let text = format!(
        "[upstream]\nmax_connections = 1\nqueue_timeout = \"1m\"\n{}",
        route("ttl = \"60s\"")
    );
    let fixture = Fixture::start(&text, move |seen| match seen.target.as_str() {
        "/held" => after(&held, ok("x", &[])),
        _ => ok("x", &[]),
    })
    .await;
    let mut first = fixture.connect().await;
    first.request("GET", "/held", &[]).await;
    fixture.origin.asked(1).await;
    (fixture, gate, first)
}

#[tokio::test]
async fn whoever_has_left_does_not_take_a_connection_to_the_origin() {
    let (fixture, gate, mut first) = one_connection_taken().await;
    let mut left = Vec::new();
    for at in 0..5 {
        let mut stream = TcpStream::connect(fixture.sidecar().address).await.unwrap();
        let request = format!("GET /{at} HTTP/1.1\r\nhost: a\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        left.push(stream);
    }
    fixture.metric_reaches("cache_flights", 6.0).await;
    for stream in left {
        SockRef::from(&stream)
            .set_linger(Some(Duration::ZERO))
            .unwrap();
    }
    fixture
        .metric_is("cache_flights", |count| count == 1.0)
        .await;
    gate.open();
    assert_eq!(first.response().await.status, 200);
    assert_eq!(fixture.get("/last").await.status, 200);
    assert_eq!(fixture.origin.count(), 2);
}

#[tokio::test]
async fn a_client_that_has_said_all_still_reads_its_answer() {
    let gate = Gate::new();
    let held = gate.clone();
    let fixture =
        Fixture::start(&route("ttl = \"60s\""), move |_| after(&held, ok("x", &[]))).await;
    let mut stream = TcpStream::connect(fixture.sidecar().address).await.unwrap();
    let request = b"GET /a HTTP/1.1\r\nhost: a\r\n\r\n";
    stream.write_all(request).await.unwrap();
    stream.shutdown().await.unwrap();
    fixture.origin.asked(1).await;
    gate.open();
    let mut answer = String::new();
    // And the connection ends with it.
    let reading = stream.read_to_string(&mut answer);
    let soon = std::time::Duration::from_secs(5);
    tokio::time::timeout(soon, reading).await.unwrap().unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
    assert!(answer.ends_with('x'), "{answer}");
}

/// Ways in which a body is awaited before anybody gets it: for its entity tag, for what stands in
/// for it, for what it says.
const AWAITED: [(&str, &str); 3] = [
    ("", ""),
    ("etag_up_to = \"0B\"\n", ""),
    ("", "error_when = { pointer = \"/a\", equals = 0 }\n"),
];

#[tokio::test]
async fn a_body_that_breaks_off_is_answered_from_what_is_stored() {
    for (cache, more) in AWAITED {
        breaks_off(cache, more).await;
    }
}

async fn breaks_off(cache: &str, more: &str) {
    let windows = format!("ttl = \"10s\"\nstale_if_error = \"1h\"\n{more}");
    let json = [("content-type", "application/json")];
    for (framing, end) in [
        ("content-length: 50\r\n\r\nhello", Step::Close),
        ("content-length: 50\r\n\r\nhello", Step::Reset),
        (
            "transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n",
            Step::Close,
        ),
        ("transfer-encoding: chunked\r\n\r\nZZ\r\n", Step::Close),
    ] {
        let text = format!("[cache]\n{cache}{}", route(&windows));
        let fixture = Fixture::start(&text, move |seen| {
            if seen.number == 1 {
                return ok("good", &json);
            }
            let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json";
            let broken = format!("{head}\r\n{framing}").into_bytes();
            vec![Step::Send(broken), end.clone()]
        })
        .await;
        fixture.get("/a").await;
        fixture.advance(20);
        for _ in 0..20 {
            let stale = fixture.get("/a").await;
            assert_eq!(
                (stale.cache(), stale.text().as_str()),
                ("HIT-STALE", "good")
            );
        }
        // It is given a pause, as after any other failure.
        assert_eq!(fixture.origin.count(), 2, "{framing}");
    }
}

#[tokio::test]
async fn an_offer_of_another_http_and_an_empty_body_are_ordinary_requests() {
    let fixture = Fixture::start(&route("ttl = \"60s\""), |_| ok("x", &[])).await;
    for protocol in ["h2c", "TLS/1.2", "HTTP/2.0"] {
        let target = format!("/{protocol}");
        for expected in ["MISS", "HIT"] {
            let fields = [("connection", "Upgrade"), ("upgrade", protocol)];
            let received = fixture.get_with(&target, &fields).await;
            assert_eq!(received.cache(), expected, "{protocol}");
        }
        assert_eq!(fixture.origin.last().header("upgrade"), None);
    }
    let mut client = fixture.connect().await;
    for (body, expected) in [
        ("0\r\n\r\n", "MISS"),
        ("0\r\n\r\n", "HIT"),
        ("1\r\nx\r\n0\r\n\r\n", "BYPASS"),
    ] {
        client
            .send(format!(
                "GET /a HTTP/1.1\r\nhost: api.example\r\ntransfer-encoding: chunked\r\n\r\n{body}"
            ))
            .await;
        assert_eq!(client.response().await.cache(), expected, "{body}");
    }
    assert_eq!(fixture.origin.last().body, b"x");
    assert_eq!(fixture.get("/a").await.cache(), "HIT");
    // HTTP/1.0 has no Upgrade (RFC 9110 §7.8).
    client
        .send(
            "GET /a HTTP/1.0\r\nhost: api.example\r\nconnection: upgrade\r\nupgrade: \
            websocket\r\n\r\n",
        )
        .await;
    assert_eq!(client.response().await.cache(), "HIT");
}

#[tokio::test]
async fn a_body_that_stands_still_holds_nobody_who_has_nothing_of_it() {
    for begun in ["", "5\r\nhello\r\n"] {
        let never = Gate::new();
        let held = never.clone();
        let text = format!("[cache]\nwait_timeout = \"1s\"\n{}", route("ttl = \"60s\""));
        let fixture = Fixture::start(&text, move |seen| {
            if seen.number > 1 {
                return ok("whole", &[]);
            }
            let head = format!("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n{begun}");
            vec![Step::Send(head.into_bytes()), Step::Wait(held.clone())]
        })
        .await;
        let mut leader = fixture.connect().await;
        leader.request("GET", "/a", &[]).await;
        assert_eq!(leader.head().await.status, 200);
        let mut first = fixture.connect().await;
        first.request("GET", "/a", &[]).await;
        if begun.is_empty() {
            assert_eq!(first.response().await.text(), "whole");
        } else {
            // It has some of it already, and is let go.
            first.head().await;
            assert_eq!(first.chunk().await.unwrap(), b"hello");
            assert_eq!(first.chunk().await, None);
        }
        let late = fixture.get("/a").await;
        assert_eq!((late.status, late.text().as_str()), (200, "whole"));
        never.open();
    }
}

/// A body without bytes of which only its end tells that it has none.
struct EndsLater;

impl http_body::Body for EndsLater {
    type Data = bytes::Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<http_body::Frame<bytes::Bytes>, Self::Error>>> {
        std::task::Poll::Ready(None)
    }
}

type Http2<B> = hyper::client::conn::http2::SendRequest<B>;

async fn http2<B>(fixture: &Fixture) -> Http2<B>
where
    B: http_body::Body<Data = bytes::Bytes> + Send + Unpin + 'static,
    B::Error: std::error::Error + Send + Sync,
{
    let stream = TcpStream::connect(fixture.sidecar().address).await.unwrap();
    let (sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .unwrap();
    tokio::spawn(connection);
    sender
}

fn over_http2<B>(method: &str, path: &str, body: B) -> http::Request<B> {
    let request = http::Request::builder().method(method);
    let request = request.uri(format!("http://api.example{path}"));
    request.body(body).unwrap()
}

#[tokio::test]
async fn over_http_2_an_empty_end_is_no_body_and_an_early_answer_arrives() {
    let fixture = Fixture::start(&route("ttl = \"60s\""), |_| ok("x", &[])).await;
    let mut sender = http2(&fixture).await;
    for expected in ["MISS", "HIT"] {
        let request = over_http2("GET", "/a", EndsLater);
        let response = sender.send_request(request).await.unwrap();
        assert_eq!(response.headers()["x-cache"], expected);
    }
    let fixture = Fixture::in_front_of(refusing(TOO_LARGE).await, "");
    let mut sender = http2(&fixture).await;
    let body = Full::new(bytes::Bytes::from(vec![b'x'; 12 << 20]));
    let response = sender
        .send_request(over_http2("POST", "/a", body))
        .await
        .unwrap();
    assert_eq!(response.status(), 413);
    let body = response.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(body, "too b!");
}

#[tokio::test]
async fn a_stream_of_http_2_that_was_reset_does_not_take_a_connection_to_the_origin() {
    let (fixture, gate, mut first) = one_connection_taken().await;
    let mut sender = http2(&fixture).await;
    let mut asked = Vec::new();
    for at in 0..5 {
        let request = over_http2("GET", &format!("/{at}"), Empty::<bytes::Bytes>::new());
        asked.push(tokio::spawn(sender.send_request(request)));
    }
    fixture.metric_reaches("cache_flights", 6.0).await;
    asked.iter().for_each(tokio::task::JoinHandle::abort);
    fixture
        .metric_is("cache_flights", |count| count == 1.0)
        .await;
    gate.open();
    assert_eq!(first.response().await.status, 200);
    assert_eq!(fixture.origin.count(), 1);
}

#[tokio::test]
async fn an_upstream_that_reads_nothing_of_an_upload_is_not_waited_for() {
    let origin = Origin::connections_of(|mut stream| async move {
        let mut buffer = [0; 1024];
        let read = stream.read(&mut buffer).await.unwrap_or(0);
        if buffer[..read].starts_with(b"GET") {
            let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nx";
            let _ = stream.write_all(answer).await;
        }
        std::future::pending::<()>().await;
    })
    .await;
    let text = "[upstream]\nmax_connections = 1\nresponse_timeout = \"300ms\"\n";
    let fixture = Fixture::in_front_of(origin, text);
    let address = fixture.sidecar().address;
    let answer = uploads(address, "/a".to_owned()).await;
    assert!(answer.starts_with("HTTP/1.1 504"), "{answer:?}");
    assert_eq!(fixture.get("/b").await.status, 200);
    fixture
        .metric_is("upstream_connections", |count| count == 1.0)
        .await;
}

#[tokio::test]
async fn a_body_that_stands_still_is_answered_from_what_is_stored_and_counts_for_the_breaker() {
    for (cache, more) in AWAITED {
        let (stalls, never) = (Arc::new(AtomicBool::new(false)), Gate::new());
        let (is_stalling, held) = (Arc::clone(&stalls), never.clone());
        let text = format!(
            "[cache]\nwait_timeout = \"300ms\"\n{cache}{}",
            route(&format!("ttl = \"10s\"\nstale_if_error = \"1h\"\n{more}"))
        );
        let fixture = Fixture::start(&text, move |seen| {
            if seen.target == "/closed" {
                return vec![Step::Close];
            }
            if !is_stalling.load(Ordering::Relaxed) {
                return ok("good", &[("content-type", "application/json")]);
            }
            let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n";
            let broken = format!("{head}content-length: 50\r\n\r\nhello");
            vec![Step::Send(broken.into()), Step::Wait(held.clone())]
        })
        .await;
        let targets = ["/a", "/b", "/c", "/d", "/e", "/f"];
        for target in targets {
            fixture.get(target).await;
        }
        fixture.advance(20);
        stalls.store(true, Ordering::Relaxed);
        for _ in 0..5 {
            let stale = fixture.get("/a").await;
            assert_eq!(
                (stale.cache(), stale.text().as_str()),
                ("HIT-STALE", "good")
            );
        }
        // It is given a pause, as after any other failure.
        assert_eq!(fixture.origin.count(), 7, "{cache}{more}");
        assert_eq!(fixture.metric("upstream_breaker_open").await, 0.0);
        for target in targets {
            assert_eq!(fixture.get(target).await.cache(), "HIT-STALE");
        }
        // As many as there were answers before: one failure more is most of all.
        assert_eq!(fixture.get("/closed").await.status, 502);
        fixture.metric_reaches("upstream_breaker_open", 1.0).await;
        never.open();
    }
}

#[tokio::test]
async fn a_body_that_comes_by_drops_is_fetched_on_for_a_time_when_nobody_reads_it() {
    let text = format!(
        "[limits]\nrequest_timeout = \"1s\"\n{}",
        route("ttl = \"60s\"")
    );
    let origin = Origin::connections_of(|mut stream| async move {
        read_head(&mut stream).await;
        let head = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
        let _ = stream.write_all(head.as_bytes()).await;
        while stream.write_all(b"1\r\nx\r\n").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    let fixture = Fixture::in_front_of(origin, &text);
    let mut client = fixture.connect().await;
    client.request("GET", "/a", &[]).await;
    assert_eq!(client.head().await.status, 200);
    drop(client);
    // And not for ever.
    let gone = fixture.metric_is("upstream_connections", |count| count == 0.0);
    tokio::time::timeout(Duration::from_secs(10), gone)
        .await
        .expect("the connection is given up");
}

#[tokio::test]
async fn over_http_2_a_head_that_is_fetched_as_a_get_has_no_body() {
    let config = route("head = \"get\"");
    let fixture = Fixture::start(&config, |_| ok("body", &[("cache-control", "no-store")])).await;
    let mut sender = http2(&fixture).await;
    let request = over_http2("HEAD", "/a", Empty::<bytes::Bytes>::new());
    let response = sender.send_request(request).await.unwrap();
    assert_eq!(response.headers()["content-length"], "4");
    let body = response.into_body().collect().await.unwrap().to_bytes();
    assert!(body.is_empty(), "{body:?}");
}

#[tokio::test]
async fn a_body_that_breaks_at_its_first_byte_does_not_take_the_head_with_it() {
    let fixture = Fixture::start(&route("ttl = \"60s\""), |_| {
        let broken = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n";
        vec![Step::Send(broken.into()), Step::Close]
    })
    .await;
    for method in ["GET", "POST"] {
        let mut client = fixture.connect().await;
        client.request(method, "/a", &[]).await;
        assert_eq!(client.head().await.status, 200, "{method}");
        assert_eq!(client.closed().await, b"");
    }
}

#[tokio::test]
async fn a_write_whose_client_left_while_it_was_queued_is_not_sent() {
    let (fixture, gate, mut first) = one_connection_taken().await;
    for method in ["POST", "PUT", "DELETE"] {
        let mut stream = TcpStream::connect(fixture.sidecar().address).await.unwrap();
        let request = format!("{method} /a HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\nxx");
        stream.write_all(request.as_bytes()).await.unwrap();
        fixture
            .metric_is("server_connections", |count| count == 2.0)
            .await;
        SockRef::from(&stream)
            .set_linger(Some(Duration::ZERO))
            .unwrap();
        drop(stream);
        fixture
            .metric_is("server_connections", |count| count == 1.0)
            .await;
    }
    gate.open();
    assert_eq!(first.response().await.status, 200);
    assert_eq!(fixture.get("/last").await.status, 200);
    assert_eq!(fixture.origin.count(), 2);
}
