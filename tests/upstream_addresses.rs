//! An upstream whose name stands for other addresses as time goes by: found under steady traffic,
//! raced where one is silent, passed over where one is ill.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use crate::support::dns::NameServer;
use crate::support::process::{FREE_PORTS, Running, file};
use crate::support::{Client, PATIENCE};

/// Origins on the same port of several addresses, each of which says which one it is.
struct Origins {
    port: u16,
    is_ill: Arc<AtomicBool>,
}

impl Origins {
    async fn start(addresses: &[&str]) -> Self {
        let mut this = Self {
            port: 0,
            is_ill: Arc::default(),
        };
        for (at, address) in addresses.iter().enumerate() {
            let place: std::net::SocketAddr = format!("{address}:{}", this.port).parse().unwrap();
            let listener = TcpListener::bind(place).await.unwrap();
            this.port = listener.local_addr().unwrap().port();
            let (name, is_ill) = ((*address).to_owned(), Arc::clone(&this.is_ill));
            tokio::spawn(async move {
                while let Ok((stream, _)) = listener.accept().await {
                    tokio::spawn(answer(stream, name.clone(), Arc::clone(&is_ill), at == 0));
                }
            });
        }
        this
    }
}

async fn answer(mut stream: TcpStream, name: String, is_ill: Arc<AtomicBool>, may_be: bool) {
    let mut head = [0; 8192];
    while let Ok(length @ 1..) = stream.read(&mut head).await {
        let is_check = head[..length].starts_with(b"GET /healthz");
        let fails = is_check && may_be && is_ill.load(Ordering::Relaxed);
        let status = if fails { "503 Ill" } else { "200 OK" };
        let answer = format!(
            "HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n{name}",
            name.len()
        );
        if stream.write_all(answer.as_bytes()).await.is_err() {
            return;
        }
    }
}

/// A sidecar whose name server is this one.
fn sidecar(names: &NameServer, port: u16, more: &str) -> (Running, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let resolver = folder.path().join("resolv.conf");
    std::fs::write(&resolver, names.resolver()).unwrap();
    let text = format!(
        "{FREE_PORTS}[upstream]\nurl = \"http://api.test:{port}\"\nresolve_every \
            = \"200ms\"\n{more}"
    );
    let path = file(folder.path(), &text);
    (Running::start_with_resolver(&resolver, &path), folder)
}

async fn ask(running: &Running) -> (u16, String) {
    let mut client = Client::connect(running.address).await;
    let answer = client.ask("GET", "/a", &[]).await;
    (answer.status, answer.text())
}

/// Asks again and again until it is answered so; nothing may fail meanwhile.
async fn becomes(running: &Running, wanted: &str) {
    let asking = async {
        loop {
            let (status, text) = ask(running).await;
            assert_eq!(status, 200, "{text}");
            if text == wanted {
                return;
            }
        }
    };
    let found = tokio::time::timeout(PATIENCE, asking).await;
    found.unwrap_or_else(|_| panic!("{wanted} is never asked"));
}

async fn names() -> Option<NameServer> {
    let names = NameServer::start().await;
    if names.is_none() {
        eprintln!("names that change are held by unit tests alone here: port 53 is not to be had");
    }
    names
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_is_followed_under_steady_traffic_and_by_who_is_well() {
    let Some(names) = names().await else { return };
    let [one, two, three] = ["127.1.0.1", "127.1.0.2", "127.1.0.3"];
    let origins = Origins::start(&[one, two, three]).await;
    names.say(Some(&[one]));
    let health = "health = { path = \"/healthz\", interval = \"100ms\" }\n";
    let (running, _folder) = sidecar(&names, origins.port, health);
    assert_eq!(ask(&running).await, (200, one.to_owned()));
    // A service that has moved, while its old address answers on.
    names.say(Some(&[two]));
    becomes(&running, two).await;
    for _ in 0..20 {
        assert_eq!(ask(&running).await.1, two, "it does not come back");
    }
    // A name server that fails, or knows nothing, takes nothing away.
    for nothing in [None, Some(&[][..])] {
        names.say(nothing);
        // Twice for both kinds of addresses, so that what came of the first is known.
        let asked = tokio::time::timeout(PATIENCE, names.is_asked(4));
        asked.await.expect("it is looked up again and again");
        assert_eq!(ask(&running).await, (200, two.to_owned()));
    }
    // Of several all are used, by connections that are new.
    names.say(Some(&[one, two, three]));
    let (running, _folder) = sidecar(
        &names,
        origins.port,
        &format!("idle_timeout = \"0s\"\n{health}"),
    );
    for each in [one, three, two] {
        becomes(&running, each).await;
    }
    // One that says that it is ill is passed over, and taken back.
    origins.is_ill.store(true, Ordering::Relaxed);
    let passed_over = async {
        let mut others = 0;
        while others < 40 {
            others = if ask(&running).await.1 == one {
                0
            } else {
                others + 1
            };
        }
    };
    let passed_over = tokio::time::timeout(PATIENCE, passed_over);
    passed_over.await.expect("it is passed over");
    origins.is_ill.store(false, Ordering::Relaxed);
    becomes(&running, one).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_address_is_passed_over_until_it_answers() {
    let Some(names) = names().await else { return };
    let [hole, well] = ["127.1.0.4", "127.1.0.5"];
    let origins = Origins::start(&[well]).await;
    // Its queue is full: it accepts nothing and refuses nothing.
    let socket = TcpSocket::new_v4().unwrap();
    socket
        .bind(format!("{hole}:{}", origins.port).parse().unwrap())
        .unwrap();
    let listener = socket.listen(1).unwrap();
    let address = listener.local_addr().unwrap();
    let mut filling = Vec::new();
    let limit = Duration::from_millis(200);
    while let Ok(Ok(stream)) = tokio::time::timeout(limit, TcpStream::connect(address)).await {
        filling.push(stream);
    }
    names.say(Some(&[hole, well]));
    let (running, _folder) = sidecar(
        &names,
        origins.port,
        "idle_timeout = \"0s\"\nconnect_timeout = \"2s\"\n",
    );
    // Each of these needs a connection of its own.
    for _ in 0..10 {
        assert_eq!(ask(&running).await, (200, well.to_owned()));
    }
    // It is let go: somebody accepts there now.
    tokio::spawn(async move {
        drop(filling);
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(answer(stream, hole.to_owned(), Arc::default(), false));
        }
    });
    becomes(&running, hole).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_whose_bodies_break_off_is_passed_over_and_its_failures_are_counted() {
    let Some(names) = names().await else { return };
    let [broken, well] = ["127.1.0.6", "127.1.0.7"];
    let origins = Origins::start(&[well]).await;
    let port = origins.port;
    let listener = TcpListener::bind((broken, port)).await.unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.read(&mut [0; 8192]).await;
            let half = b"HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\nhalf";
            let _ = stream.write_all(half).await;
        }
    });
    names.say(Some(&[broken, well]));
    let (running, _folder) = sidecar(&names, port, "idle_timeout = \"0s\"\n");
    let metric = async |name: &str| {
        let text = Client::admin(running.admin, "/metrics").await.text();
        let sample = format!("{name}{{upstream=\"default\",address=\"{broken}:{port}\"}} ");
        let found = text.lines().find_map(|line| line.strip_prefix(&sample));
        found.map(|value| value.parse::<f64>().unwrap())
    };
    let passed_over = async {
        for number in 0.. {
            let mut client = Client::connect(running.address).await;
            let target = format!("/{number}");
            let _ = client.try_ask("GET", &target, &[("host", "a")], "").await;
            if metric("upstream_address_passed_over").await == Some(1.0) {
                return;
            }
        }
    };
    let passed_over = tokio::time::timeout(PATIENCE, passed_over);
    passed_over.await.expect("it is passed over");
    assert!(metric("upstream_address_failures_total").await >= Some(5.0));
    // The name does not stand for it any more: nothing is told of it.
    names.say(Some(&[well]));
    let forgotten = async { while metric("upstream_address_connections").await.is_some() {} };
    let forgotten = tokio::time::timeout(PATIENCE, forgotten);
    forgotten.await.expect("it is forgotten");
    assert_eq!(ask(&running).await, (200, well.to_owned()));
}
