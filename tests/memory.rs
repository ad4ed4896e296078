//! The budget is a promise: resident memory stays within it, whatever is asked for.

#![allow(clippy::expect_used, clippy::unwrap_used)]

// It uses a small part of it; what nobody uses is found where the other tests are.
#[allow(dead_code, unused_imports)]
mod support;

use std::time::Duration;

use support::process::{FREE_PORTS, Running, file};
use support::{Client, Origin, Step, all, route};

/// The numbers of the promise.
const BUDGET: u64 = 64 << 20;
const SLACK: u64 = 64 << 20;
/// The fields below as they are stored, with `via` and `content-length`, and the key.
const HEAD_AND_KEY: u64 = 300;
const A_CONNECTION: u64 = 16 << 10;

fn resident_bytes(process: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
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
    let response = "HTTP/1.1 200 OK\r\nserver: nginx/1.22.1\r\ndate: Mon, 23 Nov 2026 12:00:00 GMT\r\ncontent-type: application/json\r\ncontent-length: 100\r\nlast-modified: Mon, 23 Nov 2026 12:00:00 GMT\r\netag: \"6921a2b0-64\"\r\n\r\n";
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
        "resident {} MiB ({} MiB before), stored {} MiB in {entries} entries, {evicted} evicted; an object takes {each} bytes, {} by our reckoning",
        resident >> 20,
        before >> 20,
        stored >> 20,
        stored / entries,
    );
    assert!(
        resident <= BUDGET + SLACK + CLIENTS as u64 * A_CONNECTION,
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
