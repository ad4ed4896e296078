//! The budget is a promise: resident memory stays within it, a base and so much a connection,
//! whatever is asked for; what the kernel holds for a connection is bounded; and all of it comes
//! back.

#![allow(clippy::expect_used, clippy::unwrap_used)]

// It uses a small part of it; what nobody uses is found where the other tests are.
#[allow(dead_code, unused_imports)]
mod support;

use std::time::Duration;

use support::process::{FREE_PORTS, Running, file};
use support::{Client, Origin, Step, all, route};

/// The numbers of the promise, as the README gives it.
const BUDGET: u64 = 64 << 20;
const BASE: u64 = 40 << 20;
/// Of a connection for which the upstream is asked.
const A_FETCH: u64 = 256 << 10;
/// Of the base, what a release takes before anybody asks.
const AT_THE_START: u64 = 11 << 20;
/// Of a connection that is idle, by its protocol.
const AN_IDLE_CONNECTION: u64 = 8 << 10;
const AN_IDLE_CONNECTION_OF_HTTP_2: u64 = 24 << 10;
/// What the kernel holds of what is sent on one connection: `limits.send_buffer`, and as much for
/// its own account.
const A_SEND_BUFFER: u64 = 512 << 10;
/// The fields below as they are stored, with `via` and `content-length`, and the key.
const HEAD_AND_KEY: u64 = 300;
const A_CONNECTION: u64 = 32 << 10;

fn resident_bytes(process: u32) -> u64 {
    resident(process).expect("it runs")
}

/// `None` where the process has ended.
fn resident(process: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let mut lines = status.lines();
    let line = lines.find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.trim().trim_end_matches(" kB").parse::<u64>().ok()? << 10)
}

async fn sample(admin: std::net::SocketAddr, name: &str) -> u64 {
    let text = Client::admin(admin, "/metrics").await.text();
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))
        .unwrap();
    line.parse::<f64>().unwrap() as u64
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_thousand_small_objects_stay_within_the_budget() {
    const OBJECTS: usize = 200_000;
    const CLIENTS: usize = 16;
    // The head of a small object as nginx sends it.
    let response = "HTTP/1.1 200 OK\r\nserver: nginx/1.22.1\r\ndate: Mon, 23 Nov 2026 12:00:00 \
        GMT\r\ncontent-type: application/json\r\ncontent-length: 100\r\nlast-modified: Mon, 23 \
        Nov 2026 12:00:00 GMT\r\netag: \"6921a2b0-64\"\r\n\r\n";
    let response = format!("{response}{}", "x".repeat(100)).into_bytes();
    let origin = Origin::unrecorded(move |_| vec![Step::Send(response.clone())]).await;
    let folder = tempfile::tempdir().unwrap();
    let text = format!(
        "{FREE_PORTS}[upstream]\nurl = \"{}\"\n[cache]\nmemory = \"64MiB\"\n{}",
        origin.url(),
        route("ttl = \"1h\"")
    );
    let running = Running::start(&file(folder.path(), &text));
    let (address, admin, process) = (running.address, running.admin, running.child.0.id());
    assert_eq!(
        Client::connect(address)
            .await
            .ask("GET", "/api/objects/first", &[])
            .await
            .status,
        200
    );
    let before = resident_bytes(process);
    let clients = (0..CLIENTS).map(move |client| async move {
        let mut connection = Client::connect(address).await;
        for number in (client..OBJECTS).step_by(CLIENTS) {
            connection
                .request("GET", &format!("/api/objects/{number}"), &[])
                .await;
            assert_eq!(connection.response().await.body.len(), 100);
        }
    });
    tokio::time::timeout(Duration::from_secs(300), all(clients))
        .await
        .expect("the fill ends");
    let resident = resident_bytes(process);
    let (stored, entries) = (
        sample(admin, "cache_stored_bytes").await,
        sample(admin, "cache_stored_entries").await,
    );
    let evicted = sample(admin, "cache_evictions_total").await;
    let each = (resident - before) / entries;
    println!(
        "resident {} MiB ({} MiB before), stored {} MiB in {entries} entries, {evicted} evicted; \
            an object takes {each} bytes, {} by our reckoning",
        resident >> 20,
        before >> 20,
        stored >> 20,
        stored / entries,
    );
    assert!(
        resident <= BUDGET + BASE + CLIENTS as u64 * A_CONNECTION,
        "{resident}"
    );
    assert!(stored <= BUDGET);
    assert!(
        evicted > 0 && entries > 40_000,
        "{entries} entries, {evicted} evicted"
    );
    // What an object costs beside its body, its head and its key.
    let metadata = each.saturating_sub(100 + HEAD_AND_KEY);
    assert!(metadata <= 600, "{metadata} bytes of metadata an object");
}

/// A sidecar of 64 MiB before an origin, and as many connections as they like.
async fn start(origin: &Origin) -> (Running, tempfile::TempDir) {
    rlimit::increase_nofile_limit(u64::MAX).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let text = format!(
        "{FREE_PORTS}[upstream]\nurl = \"{}\"\n[cache]\nmemory = \"64MiB\"\n{}",
        origin.url(),
        route("ttl = \"1h\"")
    );
    (Running::start(&file(folder.path(), &text)), folder)
}

/// Waits until what a process holds is as little as that.
async fn comes_down_to(process: u32, bytes: u64) {
    let down = async {
        while resident_bytes(process) > bytes {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let down = tokio::time::timeout(Duration::from_secs(20), down).await;
    assert!(down.is_ok(), "{} of {bytes}", resident_bytes(process));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_of_all_sizes_stay_within_the_promise() {
    const CLIENTS: u64 = 100;
    let origin = Origin::unrecorded(|seen| {
        let number: usize = seen.target.trim_start_matches("/o/").parse().unwrap_or(0);
        let length = (number * 7919) % (3 << 20);
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n");
        vec![
            Step::Send(head.into_bytes()),
            Step::Send(vec![b'x'; length]),
        ]
    })
    .await;
    let (running, _folder) = start(&origin).await;
    let (address, process) = (running.address, running.child.0.id());
    let before = resident_bytes(process);
    let clients = (0..CLIENTS as usize).map(move |client| async move {
        let mut connection = Client::connect(address).await;
        for number in 0..12 {
            let target = format!("/o/{}", client * 1000 + number * 37);
            connection.request("GET", &target, &[]).await;
            assert_eq!(connection.response().await.status, 200);
        }
    });
    let watching = tokio::spawn(async move {
        let mut most = 0;
        while let Some(now) = resident(process) {
            most = now.max(most);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        most
    });
    tokio::time::timeout(Duration::from_secs(300), all(clients))
        .await
        .expect("all are answered");
    drop(running);
    let most = watching.await.unwrap();
    println!("bodies of 0 to 3 MiB: {} MiB at most", most >> 20);
    // A build for tests is larger than a release, and takes more before anybody asks.
    let promised = before.max(AT_THE_START) - AT_THE_START + BUDGET + BASE + CLIENTS * A_FETCH;
    assert!(most <= promised, "{most} of {promised}");
}

/// Requests `/small` over HTTP/2 by prior knowledge, and reads the answer.
async fn ask_over_http_2(address: std::net::SocketAddr) -> tokio::net::TcpStream {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let frame = |kind: u8, flags: u8, stream: u8, payload: &[u8]| {
        let mut frame = vec![0, 0, payload.len() as u8, kind, flags, 0, 0, 0, stream];
        frame.extend_from_slice(payload);
        frame
    };
    let mut out = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    out.extend(frame(4, 0, 0, b""));
    out.extend(frame(4, 1, 0, b""));
    out.extend(frame(1, 5, 1, b"\x82\x86\x04\x06/small\x01\x01a"));
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    stream.write_all(&out).await.unwrap();
    let mut seen = Vec::new();
    while !seen.windows(8).any(|window| window == b"a-small-") {
        assert!(stream.read_buf(&mut seen).await.unwrap() > 0, "{seen:?}");
    }
    stream
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_connections_cost_little_and_give_it_back() {
    const COUNT: u64 = 1500;
    let origin = Origin::unrecorded(|_| support::ok("a-small-body", &[])).await;
    for (name, most) in [
        ("HTTP/1.1", AN_IDLE_CONNECTION),
        ("HTTP/2", AN_IDLE_CONNECTION_OF_HTTP_2),
    ] {
        let (running, _folder) = start(&origin).await;
        let (address, process) = (running.address, running.child.0.id());
        let (mut plain, mut others) = (Vec::new(), Vec::new());
        let mut before = 0;
        for number in 0..COUNT + 100 {
            if number == 100 {
                tokio::time::sleep(Duration::from_secs(3)).await;
                before = resident_bytes(process);
            }
            if name == "HTTP/2" {
                others.push(ask_over_http_2(address).await);
                continue;
            }
            let mut client = Client::connect(address).await;
            assert_eq!(client.ask("GET", "/small", &[]).await.status, 200);
            plain.push(client);
        }
        // They have to be idle for a moment: that is what is measured.
        comes_down_to(process, before + COUNT * most).await;
        tokio::time::sleep(Duration::from_secs(2)).await;
        let each = resident_bytes(process).saturating_sub(before) / COUNT;
        println!("an idle connection of {name}: {each} bytes");
        assert!(each <= most, "{name}: {each}");
        drop((plain, others));
        comes_down_to(process, before + (6 << 20)).await;
    }
}

/// Bytes that the kernel holds of what was sent from this port and not acknowledged, or not sent
/// yet.
fn held_by_the_kernel(port: u16) -> (u64, u64) {
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let ours = format!(":{port:04X}");
    let queues = table.lines().skip(1).filter_map(|line| {
        let mut columns = line.split_whitespace().skip(1);
        let (local, _, state) = (columns.next()?, columns.next()?, columns.next()?);
        let queues = columns.next()?.split(':').next()?;
        let is_open = local.ends_with(&ours) && state == "01";
        is_open.then(|| u64::from_str_radix(queues, 16).unwrap_or(0))
    });
    queues.fold((0, 0), |(count, sum), queue| (count + 1, sum + queue))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_that_stand_still_leave_little_in_the_kernel() {
    const READERS: u64 = 200;
    let origin = Origin::unrecorded(|_| support::ok(vec![b'x'; 4 << 20], &[])).await;
    let (running, _folder) = start(&origin).await;
    let mut readers = Vec::new();
    for _ in 0..READERS {
        let mut client = Client::connect(running.address).await;
        client.request("GET", "/big", &[]).await;
        readers.push(client);
    }
    // Until nothing moves.
    let mut last = (0, 0);
    loop {
        tokio::time::sleep(Duration::from_millis(500)).await;
        let now = held_by_the_kernel(running.address.port());
        if now == last && now.0 >= READERS {
            break;
        }
        last = now;
    }
    let each = last.1 / last.0;
    println!("{READERS} readers that stand still: {each} bytes of each in the kernel");
    assert!(each <= A_SEND_BUFFER, "{each}");
}
