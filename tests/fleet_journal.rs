//! Purges that Redis did not take outlive the instance that knows of them.

use std::time::Duration;

use tempfile::TempDir;

use crate::support::fleet::Fleet;
use crate::support::process::{FREE_PORTS, Running, binary, file};
use crate::support::redis::RedisServer;
use crate::support::wire::Wire;
use crate::support::{Client, Fixture, Gate, Origin, PATIENCE, Received, Step, numbered, route};
use tokio::time::timeout;

const KEPT: &str = "ttl = \"1h\"";

/// Two instances, as processes of their own, with one configuration: they share a folder.
struct Pair {
    origin: Origin,
    redis: RedisServer,
    folder: TempDir,
    config: String,
}

impl Pair {
    async fn new(journal: &str) -> Self {
        let origin = Origin::start(|seen| numbered(seen, &[])).await;
        let redis = RedisServer::start(&[]).await;
        let folder = tempfile::tempdir().unwrap();
        let text = format!(
            "{FREE_PORTS}[upstream]\nurl = \"{}\"\n[cache.redis]\nurl = \"{}\"\ntimeout \
                = \"1s\"\n{journal}\n{}\n{}",
            origin.url(),
            redis.url(),
            route(KEPT),
            "[[route]]\npath = \"/write\"\nmethods = [\"POST\"]\ninvalidates = [\"g\"]\n",
        );
        let text = text.replace(KEPT, &format!("{KEPT}\ngroups = [\"g\"]"));
        let config = file(folder.path(), &text);
        Self {
            origin,
            redis,
            folder,
            config,
        }
    }

    fn join(&self) -> Running {
        Running::start(&self.config)
    }

    fn journals(&self) -> Vec<u64> {
        let all = std::fs::read_dir(self.folder.path()).unwrap();
        all.map(|entry| entry.unwrap())
            .filter(|entry| entry.file_name().to_string_lossy().contains("journal"))
            .map(|entry| entry.metadata().unwrap().len())
            .collect()
    }
}

async fn get(running: &Running, target: &str) -> Received {
    Client::connect(running.address)
        .await
        .ask("GET", target, &[])
        .await
}

async fn purge(running: &Running, order: &str) -> serde_json::Value {
    let received = Client::order(running.admin, "/purge", order).await;
    assert_eq!(received.status, 200, "{}", received.text());
    received.json()
}

/// Whether an instance has heard of purges of others.
async fn hears(running: &Running) {
    let hears = async {
        loop {
            let text = Client::admin(running.admin, "/metrics").await.text();
            let heard = text
                .lines()
                .find_map(|line| line.strip_prefix("cache_purges_elsewhere_total "));
            if heard.is_some_and(|count| count != "0") {
                return;
            }
        }
    };
    timeout(PATIENCE, hears).await.expect("it hears");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pending_purge_outlives_an_instance_that_is_killed() {
    let pair = Pair::new("").await;
    let (mut one, other) = (pair.join(), pair.join());
    let old = get(&one, "/a").await.text();
    assert_eq!(get(&other, "/a").await.text(), old);
    pair.redis.signal("STOP");
    let done = purge(&one, r#"{"url": "/a"}"#).await;
    assert_eq!(done["state"], "pending", "{done}");
    one.signal("KILL");
    one.child.0.wait().unwrap();
    pair.redis.signal("CONT");
    assert_eq!(get(&other, "/a").await.text(), old);
    let again = pair.join();
    hears(&other).await;
    assert_ne!(get(&other, "/a").await.text(), old);
    assert_ne!(get(&again, "/a").await.text(), old);
    // Nothing is told twice.
    let empty = async { while pair.journals().iter().any(|length| *length > 0) {} };
    timeout(PATIENCE, empty).await.expect("it is told");
    assert_eq!(pair.origin.count(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_is_stopped_leaves_it_to_another_that_lives() {
    for is_alone in [false, true] {
        let pair = Pair::new("").await;
        let mut one = pair.join();
        let others: Vec<Running> = (0..2 * usize::from(!is_alone))
            .map(|_| pair.join())
            .collect();
        // Each has heard of the others.
        let done = purge(&one, r#"{"url": "/x"}"#).await;
        assert_eq!(done["alive"], 1 + others.len(), "{done}");
        let old = get(&one, "/a").await.text();
        for other in &others {
            assert_eq!(get(other, "/a").await.text(), old);
        }
        pair.redis.signal("STOP");
        let done = purge(&one, r#"{"url": "/a"}"#).await;
        assert_eq!(done["state"], "pending", "{done}");
        one.signal("TERM");
        assert_eq!(one.child.0.wait().unwrap().code(), Some(0));
        pair.redis.signal("CONT");
        for other in &others {
            let new = async { while get(other, "/a").await.text() == old {} };
            timeout(PATIENCE, new).await.expect("it is told");
        }
        // Where nobody else lives, it is there at the next start; else they tell it, and keep it
        // until then.
        let is_kept = || pair.journals().iter().any(|length| *length > 0);
        if is_alone {
            assert!(is_kept());
        } else {
            let told = async { while is_kept() {} };
            timeout(PATIENCE, told).await.expect("it is told");
        }
        let again = pair.join();
        assert_ne!(get(&again, "/a").await.text(), old);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn so_does_what_a_write_has_changed() {
    let pair = Pair::new("").await;
    let (one, other) = (pair.join(), pair.join());
    let old = get(&one, "/a").await.text();
    assert_eq!(get(&other, "/a").await.text(), old);
    pair.redis.signal("STOP");
    let mut client = Client::connect(one.address).await;
    client.ask("POST", "/write", &[]).await;
    let kept = async { while pair.journals().iter().all(|length| *length == 0) {} };
    timeout(PATIENCE, kept).await.expect("it is kept");
    drop(one);
    pair.redis.signal("CONT");
    let _again = pair.join();
    hears(&other).await;
    assert_ne!(get(&other, "/a").await.text(), old);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_wrote_hears_of_it_when_the_journal_has_it() {
    let pair = Pair::new("").await;
    let mut one = pair.join();
    let mut client = Client::connect(one.address).await;
    pair.redis.signal("STOP");
    for _ in 0..2 {
        // The second one finds a Redis that is known to take nothing.
        let before: u64 = pair.journals().iter().sum();
        assert_eq!(client.ask("POST", "/write", &[]).await.status, 200);
        let after: u64 = pair.journals().iter().sum();
        assert!(after > 0 && after >= before, "{before}, {after}");
    }
    one.signal("KILL");
    one.child.0.wait().unwrap();
    pair.redis.signal("CONT");
    let again = pair.join();
    let told = async { while pair.journals().iter().any(|length| *length > 0) {} };
    timeout(PATIENCE, told).await.expect("it is told");
    assert_eq!(get(&again, "/a").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_wrote_hears_of_it_and_of_its_end_when_redis_has_it() {
    let gate = Gate::new();
    let held = gate.clone();
    let redis = RedisServer::start(&[]).await;
    let wire = Wire::to(redis.port).await;
    let fleet = Fleet::start(&[&wire.url()], &route(KEPT), move |_| {
        let head = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n";
        vec![
            Step::Send(head.into()),
            Step::Wait(held.clone()),
            Step::Send(b"0\r\n\r\n".to_vec()),
        ]
    })
    .await;
    let last = async || {
        let told = redis.ask("XREVRANGE iris:{purges}log + - COUNT 1").await;
        told.unwrap()
    };
    wire.slow(Duration::from_millis(100));
    let mut writer = fleet.connect(0).await;
    let before = last().await;
    writer
        .request("POST", "/a", &[("content-length", "0")])
        .await;
    assert_eq!(writer.head().await.status, 200);
    let answered = last().await;
    assert_ne!(answered, before);
    assert!(answered.contains("/a"), "{answered}");
    gate.open();
    while !writer.chunk().await.unwrap().is_empty() {}
    assert_ne!(last().await, answered);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_journal_the_answer_says_so() {
    let pair = Pair::new("journal = \"off\"").await;
    let one = pair.join();
    pair.redis.signal("STOP");
    let done = purge(&one, r#"{"url": "/a"}"#).await;
    assert_eq!(done["state"], "pending-volatile", "{done}");
    assert!(
        done["why"]
            .as_str()
            .is_some_and(|why| why.contains("journal"))
    );
    pair.redis.signal("CONT");
    // A key that is restored is not told later: it may be revoked again by then.
    let pair = Pair::new("").await;
    let one = pair.join();
    pair.redis.signal("STOP");
    let restored = Client::order(one.admin, "/revoke", r#"{"key": "k", "restore": true}"#).await;
    assert_eq!(restored.json()["state"], "pending-volatile");
    pair.redis.signal("CONT");
    let pair = Pair::new("").await;
    let one = pair.join();
    pair.redis.signal("STOP");
    let revoked = Client::order(one.admin, "/revoke", r#"{"key": "k"}"#).await;
    assert_eq!(revoked.json()["state"], "pending");
    pair.redis.signal("CONT");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_journal_that_cannot_be_written_is_refused_at_the_start() {
    let pair = Pair::new("journal = \"/proc/purges\"").await;
    let output = binary()
        .args(["serve", "--config", &pair.config])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    for expected in ["[cache.redis] journal", "/proc/purges", "\"off\""] {
        assert!(said.contains(expected), "{said}");
    }
}

#[tokio::test]
async fn an_instance_that_ends_takes_nothing_over_from_itself_least_of_all() {
    let fixture = Fixture::start("", |seen| numbered(seen, &[])).await;
    let admin = fixture.sidecar().admin_address;
    assert_eq!(Client::order(admin, "/told", "[]").await.status, 200);
    Client::order(admin, "/drain", r#"{"end": false}"#).await;
    let refused = Client::order(admin, "/told", "[]").await;
    assert_eq!(refused.status, 400, "{}", refused.text());
    assert!(
        refused.text().contains("takes nothing over"),
        "{}",
        refused.text()
    );
}
