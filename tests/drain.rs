//! The end of a process: requests in flight finish, nothing new is accepted, out by a deadline.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use http_body_util::{BodyExt, Empty};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::support::process::{Running, file};
use crate::support::{Client, Fixture, Gate, Origin, PATIENCE, Step, after, all, ok, route};

#[tokio::test]
async fn requests_in_flight_finish_and_nothing_new_is_accepted() {
    let gate = Gate::new();
    let held = gate.clone();
    let mut fixture = Fixture::start("[listen]\ndrain_timeout = \"20s\"\n", move |_| {
        after(&held, ok("finished", &[]))
    })
    .await;
    let (mut busy, mut idle) = (fixture.connect().await, fixture.connect().await);
    busy.request("GET", "/slow", &[]).await;
    fixture.origin.asked(1).await;
    let sidecar = fixture.take();
    let (address, admin) = (sidecar.address, sidecar.admin_address);
    sidecar.drain();
    let ready = Client::admin(admin, "/readyz").await;
    assert_eq!(
        (ready.status, ready.json()["draining"].as_bool()),
        (503, Some(true))
    );
    assert_eq!(Client::admin(admin, "/healthz").await.status, 200);
    idle.closed().await;
    let refused = async { while TcpStream::connect(address).await.is_ok() {} };
    tokio::time::timeout(crate::support::PATIENCE, refused)
        .await
        .expect("the listener closes");
    gate.open();
    let received = busy.response().await;
    assert_eq!(
        (received.text().as_str(), received.header("connection")),
        ("finished", Some("close"))
    );
    tokio::task::spawn_blocking(move || sidecar.join())
        .await
        .unwrap();
}

#[tokio::test]
async fn what_waits_in_the_backlog_is_still_answered() {
    let gate = Gate::new();
    let held = gate.clone();
    let mut fixture = Fixture::start(
        "[listen]\nworkers = 1\ndrain_timeout = \"20s\"\n",
        move |_| after(&held, ok("x", &[])),
    )
    .await;
    let mut clients = Vec::new();
    for _ in 0..50 {
        let mut client = fixture.connect().await;
        client.request("GET", "/a", &[]).await;
        clients.push(client);
    }
    let sidecar = fixture.take();
    sidecar.drain();
    gate.open();
    for client in &mut clients {
        assert_eq!(client.response().await.status, 200);
    }
    tokio::task::spawn_blocking(move || sidecar.join())
        .await
        .unwrap();
}

#[tokio::test]
async fn a_request_that_does_not_finish_is_cut_at_the_deadline() {
    let never = Gate::new();
    let held = never.clone();
    let mut fixture = Fixture::start("[listen]\ndrain_timeout = \"150ms\"\n", move |_| {
        vec![Step::Wait(held.clone())]
    })
    .await;
    let mut client = fixture.connect().await;
    client.request("GET", "/never", &[]).await;
    fixture.origin.asked(1).await;
    let sidecar = fixture.take();
    sidecar.drain();
    let joined = tokio::task::spawn_blocking(move || sidecar.join());
    tokio::time::timeout(Duration::from_secs(10), joined)
        .await
        .expect("the deadline holds")
        .unwrap();
    client.closed().await;
    never.open();
}

/// A sidecar before an origin that takes its time, as a process of its own.
async fn process(delay: &str) -> (Running, Origin, Gate, tempfile::TempDir) {
    let gate = Gate::new();
    let held = gate.clone();
    let origin = Origin::unrecorded(move |seen| {
        if seen.header("upgrade").is_some() {
            let head = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: \
                websocket\r\n\r\n";
            vec![Step::Send(head.as_bytes().to_vec()), Step::Echo]
        } else if seen.target.starts_with("/events") {
            let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: \
                chunked\r\n\r\n3\r\na\n\n\r\n";
            let end = b"3\r\nb\n\n\r\n0\r\n\r\n".to_vec();
            vec![
                Step::Send(head.into()),
                Step::Wait(held.clone()),
                Step::Send(end),
            ]
        } else if seen.target.starts_with("/slow") {
            after(&held, ok("slow", &[]))
        } else {
            ok("fast", &[])
        }
    })
    .await;
    let folder = tempfile::tempdir().unwrap();
    let text = format!(
        "[listen]\naddress = \"127.0.0.1:0\"\ndrain_delay = \"{delay}\"\ndrain_timeout \
            = \"20s\"\n[admin]\naddress = \"127.0.0.1:0\"\n[upstream]\nurl \
            = \"{}\"\nmax_connections = 2000\nqueue = 2000\n{}",
        origin.url(),
        route("ttl = \"1h\"")
    );
    let running = Running::start(&file(folder.path(), &text));
    (running, origin, gate, folder)
}

async fn is_unready(admin: SocketAddr) {
    let unready = async { while Client::admin(admin, "/readyz").await.status != 503 {} };
    timeout(PATIENCE, unready).await.expect("it is unready");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_request_fails_through_a_sigterm() {
    rlimit::increase_nofile_limit(u64::MAX).unwrap();
    let (mut running, _origin, gate, _folder) = process("1500ms").await;
    let address = running.address;
    // A thousand under way, each on a path of its own, and not answered before the listener closes.
    let under_way = (0..1000).map(move |number| async move {
        let mut client = Client::connect(address).await;
        client.request("GET", &format!("/slow?{number}"), &[]).await;
        client.response().await
    });
    let under_way = tokio::spawn(all(under_way));
    let admin = running.admin;
    let all_asked = async {
        loop {
            let metrics = Client::admin(admin, "/metrics").await.text();
            let line = metrics
                .lines()
                .find_map(|line| line.strip_prefix("upstream_connections "));
            if line.is_some_and(|count| count.parse::<f64>().unwrap() >= 1000.0) {
                break;
            }
        }
    };
    timeout(PATIENCE, all_asked)
        .await
        .expect("all are under way");
    // Some that come again and again, by one connection as long as they may.
    let mut kept = Client::connect(address).await;
    assert_eq!(kept.ask("GET", "/fast", &[]).await.status, 200);
    let begun = Instant::now();
    running.signal("TERM");
    is_unready(admin).await;
    let answer = kept.ask("GET", "/fast", &[]).await;
    assert_eq!(
        (answer.status, answer.header("connection")),
        (200, Some("close"))
    );
    // Two hundred new ones a second, for as long as the listener is said to be open.
    let (mut asked, mut next) = (0, begun);
    while begun.elapsed() < Duration::from_millis(1300) {
        let mut client = Client::connect(address).await;
        let answer = client.ask("GET", "/fast", &[]).await;
        assert_eq!(
            (answer.status, answer.header("connection")),
            (200, Some("close"))
        );
        asked += 1;
        next += Duration::from_millis(5);
        tokio::time::sleep_until(next.into()).await;
    }
    assert!(asked > 100, "{asked}");
    let refused = async { while TcpStream::connect(address).await.is_ok() {} };
    timeout(PATIENCE, refused)
        .await
        .expect("the listener closes");
    gate.open();
    for answer in under_way.await.unwrap() {
        assert_eq!((answer.status, answer.text().as_str()), (200, "slow"));
    }
    let ended = tokio::task::block_in_place(|| running.child.0.wait()).unwrap();
    assert!(ended.success(), "{ended}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_skips_the_delay() {
    let (mut running, _origin, _gate, _folder) = process("1h").await;
    running.signal("TERM");
    is_unready(running.admin).await;
    // It cannot be taken back, and what begins now as a tunnel is one.
    let back = Client::order(running.admin, "/drain", r#"{"back": true}"#).await;
    assert_eq!(back.status, 400);
    let mut socket = Client::connect(running.address).await;
    let fields = [("connection", "Upgrade"), ("upgrade", "websocket")];
    socket.request("GET", "/socket", &fields).await;
    let head = socket.head().await;
    assert_eq!(
        (head.status, head.header("connection")),
        (101, Some("upgrade"))
    );
    drop(socket);
    assert_eq!(
        Client::connect(running.address)
            .await
            .ask("GET", "/fast", &[])
            .await
            .status,
        200
    );
    running.signal("TERM");
    let ended = tokio::task::block_in_place(|| running.child.0.wait()).unwrap();
    assert!(ended.success(), "{ended}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_may_be_taken_out_put_back_and_ended_by_order() {
    let (mut running, _origin, _gate, _folder) = process("100ms").await;
    let (address, admin) = (running.address, running.admin);
    let told = Client::order(admin, "/drain", r#"{"end": false}"#).await;
    assert_eq!(told.json()["draining"], true);
    assert_eq!(Client::admin(admin, "/readyz").await.status, 503);
    assert_eq!(Client::admin(admin, "/livez").await.status, 200);
    let answer = Client::connect(address)
        .await
        .ask("GET", "/fast", &[])
        .await;
    assert_eq!(answer.header("connection"), Some("close"));
    // It stays for as long as it is wanted.
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(
        Client::connect(address)
            .await
            .ask("GET", "/fast", &[])
            .await
            .status,
        200
    );
    let told = Client::order(admin, "/drain", r#"{"back": true}"#).await;
    assert_eq!(told.json()["draining"], false);
    assert_eq!(Client::admin(admin, "/readyz").await.status, 200);
    let mut client = Client::connect(address).await;
    for _ in 0..2 {
        assert_eq!(
            client.ask("GET", "/fast", &[]).await.header("connection"),
            None
        );
    }
    // An order may say nothing.
    let told = Client::order(admin, "/drain", "").await;
    assert!(told.json()["closes_in_ms"].as_u64().unwrap() <= 100);
    let ended = tokio::task::block_in_place(|| running.child.0.wait()).unwrap();
    assert!(ended.success(), "{ended}");
}

#[tokio::test(flavor = "multi_thread")]
async fn after_an_order_the_first_signal_is_no_second_one() {
    let (mut running, _origin, _gate, _folder) = process("1500ms").await;
    let begun = Instant::now();
    Client::order(running.admin, "/drain", "{}").await;
    running.signal("TERM");
    while begun.elapsed() < Duration::from_millis(1200) {
        let answer = Client::connect(running.address)
            .await
            .ask("GET", "/fast", &[])
            .await;
        assert_eq!(answer.status, 200);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let ended = tokio::task::block_in_place(|| running.child.0.wait()).unwrap();
    assert!(ended.success(), "{ended}");
}

#[tokio::test(flavor = "multi_thread")]
async fn over_http_2_streams_end_and_the_client_is_told_to_go() {
    let (running, _origin, gate, _folder) = process("1h").await;
    let stream = TcpStream::connect(running.address).await.unwrap();
    let (mut sender, connection) = http2(stream).await;
    let connection = tokio::spawn(connection);
    let request = |path: &str| {
        let uri = format!("http://a{path}");
        http::Request::get(uri).body(Empty::new()).unwrap()
    };
    let slow = sender.send_request(request("/slow"));
    let fast = sender.send_request(request("/fast")).await.unwrap();
    assert_eq!(fast.status(), 200);
    running.signal("TERM");
    is_unready(running.admin).await;
    // GOAWAY: nothing more is asked there, and what is under way ends.
    let gone = async { while sender.send_request(request("/fast")).await.is_ok() {} };
    timeout(PATIENCE, gone).await.expect("the client is told");
    gate.open();
    let body = slow.await.unwrap().into_body().collect().await.unwrap();
    assert_eq!(&body.to_bytes()[..], b"slow");
    connection.await.unwrap().unwrap();
    // A new one is answered, and told after its first request.
    let stream = TcpStream::connect(running.address).await.unwrap();
    let (mut sender, connection) = http2(stream).await;
    let connection = tokio::spawn(connection);
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(
        sender
            .send_request(request("/fast"))
            .await
            .unwrap()
            .status(),
        200
    );
    timeout(PATIENCE, connection)
        .await
        .unwrap()
        .unwrap()
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn tunnels_and_streams_go_on_through_the_delay_and_after_it() {
    let (mut running, _origin, gate, _folder) = process("300ms").await;
    let mut socket = Client::connect(running.address).await;
    let fields = [("connection", "Upgrade"), ("upgrade", "websocket")];
    socket.request("GET", "/socket", &fields).await;
    assert_eq!(socket.head().await.status, 101);
    let mut events = Client::connect(running.address).await;
    events.request("GET", "/events", &[]).await;
    assert_eq!(events.head().await.status, 200);
    assert_eq!(events.chunk().await.unwrap(), b"a\n\n");
    let address = running.address;
    running.signal("TERM");
    is_unready(running.admin).await;
    socket.send(b"ping").await;
    assert_eq!(socket.raw(4).await, b"ping");
    let refused = async { while TcpStream::connect(address).await.is_ok() {} };
    timeout(PATIENCE, refused)
        .await
        .expect("the listener closes");
    // Until drain_timeout they are not cut.
    socket.send(b"pong").await;
    assert_eq!(socket.raw(4).await, b"pong");
    gate.open();
    assert_eq!(events.chunk().await.unwrap(), b"b\n\n");
    drop((socket, events));
    let ended = tokio::task::block_in_place(|| running.child.0.wait()).unwrap();
    assert!(ended.success(), "{ended}");
}

type Http2 = (
    hyper::client::conn::http2::SendRequest<Empty<bytes::Bytes>>,
    hyper::client::conn::http2::Connection<TokioIo<TcpStream>, Empty<bytes::Bytes>, TokioExecutor>,
);

async fn http2(stream: TcpStream) -> Http2 {
    let builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
    builder.handshake(TokioIo::new(stream)).await.unwrap()
}
