//! Tunnels count as connections to the upstream, and end when nobody uses them.

use crate::support::{Client, Fixture, Step, ok};

async fn opened(fixture: &Fixture) -> Client {
    let mut client = fixture.connect().await;
    let fields = [("connection", "Upgrade"), ("upgrade", "websocket")];
    client.request("GET", "/socket", &fields).await;
    client
}

async fn start(extra: &str) -> Fixture {
    Fixture::start(extra, |seen| {
        if seen.header("upgrade").is_none() {
            return ok("x", &[]);
        }
        let head =
            "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
        vec![Step::Send(head.as_bytes().to_vec()), Step::Echo]
    })
    .await
}

#[tokio::test]
async fn tunnels_take_the_connections_of_the_upstream() {
    let fixture = start("[upstream]\nmax_connections = 2\nqueue_timeout = \"100ms\"\n").await;
    let mut open = Vec::new();
    for expected in [101, 101, 503] {
        let mut client = opened(&fixture).await;
        assert_eq!(client.head().await.status, expected);
        open.push(client);
    }
    assert_eq!(fixture.get("/a").await.status, 503);
    fixture
        .metric_is("upstream_connections", |count| count == 2.0)
        .await;
    open.remove(0);
    fixture
        .metric_is("upstream_connections", |count| count == 1.0)
        .await;
    assert_eq!(fixture.get("/a").await.status, 200);
    assert_eq!(opened(&fixture).await.head().await.status, 101);
}

#[tokio::test]
async fn a_tunnel_that_nobody_uses_ends_and_one_in_use_does_not() {
    let fixture = start("[limits]\ntunnel_timeout = \"300ms\"\n").await;
    let mut client = opened(&fixture).await;
    assert_eq!(client.head().await.status, 101);
    let begun = std::time::Instant::now();
    while begun.elapsed().as_millis() < 900 {
        client.send(b"ping").await;
        assert_eq!(client.raw(4).await, b"ping");
    }
    assert_eq!(client.closed().await, b"");
}
