//! Clients that read slowly, or not at all: what they cost.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use crate::support::{Fixture, ok, route};

const SIZE: usize = 6 << 20;

async fn large() -> Fixture {
    let text = format!("[cache]\nmemory = \"128MiB\"\n{}", route("ttl = \"60s\""));
    let fixture = Fixture::start(&text, |_| ok(vec![b'x'; SIZE], &[])).await;
    assert_eq!(fixture.get("/a").await.body.len(), SIZE);
    fixture
}

/// A client with a small window that asks and does not read.
async fn stalled(fixture: &Fixture) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut stream = socket.connect(fixture.sidecar().address).await.unwrap();
    let request = b"GET /a HTTP/1.1\r\nhost: api.example\r\nconnection: close\r\n\r\n";
    stream.write_all(request).await.unwrap();
    stream
}

/// Bytes that the kernel holds for the clients of a port (`tx_queue`).
fn unread(port: u16) -> Vec<usize> {
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let local = format!(":{port:04X}");
    let rows = table.lines().skip(1).filter_map(|row| {
        let columns: Vec<&str> = row.split_whitespace().collect();
        let is_established = columns[1].ends_with(&local) && columns[3] == "01";
        let (queue, _) = columns[4].split_once(':')?;
        is_established.then(|| usize::from_str_radix(queue, 16).unwrap())
    });
    rows.collect()
}

#[tokio::test]
async fn what_waits_for_a_client_that_does_not_read_waits_once_and_not_in_the_kernel() {
    let fixture = large().await;
    let port = fixture.sidecar().address.port();
    let mut streams = Vec::new();
    for _ in 0..8 {
        streams.push(stalled(&fixture).await);
    }
    let filled = async {
        while unread(port).iter().filter(|bytes| **bytes > 4096).count() < 8 {
            tokio::task::yield_now().await;
        }
        // Others are served meanwhile: what the kernel takes is there by then.
        for _ in 0..20 {
            assert_eq!(fixture.get("/a").await.body.len(), SIZE);
        }
    };
    tokio::time::timeout(Duration::from_secs(30), filled)
        .await
        .unwrap();
    let most = unread(port).into_iter().max().unwrap_or_default();
    assert!(
        most < 1_400 << 10,
        "{most} bytes in the kernel for one client"
    );
    // And each gets all of it, when it reads.
    for mut stream in streams {
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        assert!(answer.len() > SIZE, "{}", answer.len());
    }
}

#[tokio::test]
async fn a_client_that_reads_or_sends_by_drops_is_cut() {
    let text = format!(
        "[limits]\nbody_timeout = \"1s\"\nbody_rate = \"1MiB\"\n[cache]\nmemory = \"128MiB\"\n{}",
        route("ttl = \"60s\"")
    );
    let fixture = Fixture::start(&text, |_| ok(vec![b'x'; SIZE], &[])).await;
    let mut reads = stalled(&fixture).await;
    let reading = async {
        let (mut read, mut buffer) = (0, vec![0; 2048]);
        while let Ok(count @ 1..) = reads.read(&mut buffer).await {
            read += count;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        read
    };
    let mut client = fixture.connect().await;
    let sending = async {
        client
            .send("POST /a HTTP/1.1\r\nhost: a\r\ncontent-length: 1000000\r\n\r\n")
            .await;
        loop {
            client.send("x").await;
            tokio::select! {
                answer = client.response() => return answer.status,
                () = tokio::time::sleep(Duration::from_millis(20)) => {}
            }
        }
    };
    let both = async { tokio::join!(reading, sending) };
    let (read, status) = tokio::time::timeout(Duration::from_secs(30), both)
        .await
        .expect("both are cut");
    assert!(read < SIZE, "{read}");
    assert_eq!(status, 408);
}

#[tokio::test]
async fn a_client_that_is_cut_leaves_nothing_in_the_kernel() {
    let text = format!(
        "[limits]\nbody_timeout = \"300ms\"\n[cache]\nmemory = \"128MiB\"\n{}",
        route("ttl = \"60s\"")
    );
    let fixture = Fixture::start(&text, |_| ok(vec![b'x'; SIZE], &[])).await;
    let mut streams = Vec::new();
    for _ in 0..4 {
        streams.push(stalled(&fixture).await);
    }
    fixture
        .metric_is("server_connections", |count| count == 4.0)
        .await;
    fixture
        .metric_is("server_connections", |count| count == 0.0)
        .await;
    // Each is reset: its client hears of it.
    for stream in &mut streams {
        let mut answer = Vec::new();
        let error = stream.read_to_end(&mut answer).await.unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
        assert!(answer.len() < SIZE);
    }
}
