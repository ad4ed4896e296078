//! The budget is a promise: resident memory stays within it, whatever is asked for.

mod support;

use std::time::Duration;

use support::{Client, Origin, Step, all};

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

struct Killed(std::process::Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The real binary in a process of its own: its memory is nobody else's.
fn start(origin: &Origin) -> (Killed, std::net::SocketAddr, std::net::SocketAddr) {
    use std::io::BufRead;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("iris.toml");
    let text = format!(
        "[listen]\naddress = \"127.0.0.1:0\"\n[admin]\naddress = \"127.0.0.1:0\"\n[upstream]\nurl = \"{}\"\n[cache]\nmemory = \"64MiB\"\n[[route]]\npath = \"/{{*rest}}\"\nttl = \"1h\"\n",
        origin.url()
    );
    std::fs::write(&path, text).unwrap();
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_iris-sidecar"));
    command
        .args(["serve", "--log-format", "json", "--config"])
        .arg(&path)
        .stderr(std::process::Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut lines = std::io::BufReader::new(child.stderr.take().unwrap()).lines();
    let line = lines
        .find_map(|line| line.ok().filter(|line| line.contains("serving")))
        .unwrap();
    let fields: serde_json::Value = serde_json::from_str(&line).unwrap();
    let address = |name: &str| fields["fields"][name].as_str().unwrap().parse().unwrap();
    let addresses = (address("address"), address("admin"));
    (Killed(child), addresses.0, addresses.1)
}

async fn sample(admin: std::net::SocketAddr, name: &str) -> u64 {
    let text = Client::connect(admin)
        .await
        .ask("GET", "/metrics", &[])
        .await
        .text();
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
    let (process, address, admin) = start(&origin);
    assert_eq!(
        Client::connect(address)
            .await
            .ask("GET", "/api/objects/first", &[])
            .await
            .status,
        200
    );
    let before = resident_bytes(process.0.id());
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
    let resident = resident_bytes(process.0.id());
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
