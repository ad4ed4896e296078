//! A disk that fills up, and has room again: what got 201 is there after a restart, and what did
//! not is not.

use std::collections::BTreeSet;
use std::process::Command;

use crate::support::Client;
use crate::support::process::{FREE_PORTS, Running, binary, file};

fn origin(config: &str, arguments: &[&str]) -> String {
    let output = binary()
        .arg("origin")
        .args(arguments)
        .args(["--config", config])
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// The most bytes that the process may write to one file; `unlimited` for any.
fn limit_files(running: &Running, most: &str) {
    let process = running.child.0.id().to_string();
    let status = Command::new("prlimit")
        .args(["--pid", &process, &format!("--fsize={most}:unlimited")])
        .status()
        .unwrap();
    assert!(status.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_is_there_after_a_disk_was_full() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite:{}/iris.db", folder.path().display());
    let text = format!("{FREE_PORTS}[origin]\ndatabase = \"{url}\"\n");
    let config = file(folder.path(), &text);
    origin(&config, &["migrate"]);
    let key = origin(&config, &["create-key", "--project", "p"]);
    let mut running = Running::start_deaf_to_file_limits(&config);
    let authorization = format!("Bearer {key}");
    let address = running.address;
    let write = async |name: &str| {
        let body = format!(
            "{{\"expertId\": \"{name}\", \"message\": \"{}\"}}",
            "x".repeat(2000)
        );
        let mut client = Client::connect(address).await;
        let length = body.len().to_string();
        let fields = [
            ("authorization", &*authorization),
            ("content-type", "application/json"),
            ("content-length", &length),
        ];
        client.request("POST", "/api/iris/telemetry", &fields).await;
        client.send(body).await;
        client.response().await.status
    };
    let (mut written, mut refused) = (BTreeSet::new(), 0);
    // A disk that is full at once, and one that is full after some pages of a write, whichever they
    // are.
    let log = folder.path().join("iris.db-wal");
    for round in 0..14 {
        for (full, count) in [(false, 8), (true, 3), (false, 4)] {
            let most = match (full, round) {
                (false, _) => "unlimited".to_owned(),
                (true, 0) => "1".to_owned(),
                (true, _) => {
                    let length = std::fs::metadata(&log).map_or(0, |log| log.len());
                    (length + round * 900).to_string()
                }
            };
            limit_files(&running, &most);
            for number in 0..count {
                let name = format!("w{round}-{full}-{number}-{}", written.len() + refused);
                match write(&name).await {
                    201 => drop(written.insert(name)),
                    _ => refused += 1,
                }
            }
        }
    }
    assert!(refused > 0, "the disk was never full");
    assert!(written.len() >= 100, "{} were written", written.len());
    running.signal("TERM");
    assert_eq!(running.child.0.wait().unwrap().code(), Some(0));
    let database = sqlx::SqlitePool::connect(&url).await.unwrap();
    let stored =
        sqlx::query_scalar("SELECT expert_id FROM iris_telemetry WHERE expert_id LIKE 'w%'");
    let stored: Vec<String> = stored.fetch_all(&database).await.unwrap();
    let stored: BTreeSet<String> = stored.into_iter().collect();
    let lost: Vec<&String> = written.difference(&stored).collect();
    assert!(
        lost.is_empty(),
        "{} of {} are gone",
        lost.len(),
        written.len()
    );
    let strange: Vec<&String> = stored.difference(&written).collect();
    assert!(strange.is_empty(), "{strange:?}");
}
