//! A fleet whose Redis is a cluster of three masters, one of which fails under load.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::support::cluster::RedisCluster;
use crate::support::fleet::Fleet;
use crate::support::{Client, PATIENCE, numbered, ok, route};
use tokio::time::timeout;

const KEPT: &str = "ttl = \"60s\"\nstale_if_error = \"1h\"\ngroups = [\"g\"]";

/// Responses of one instance are found by the other, whatever slot they are in; variants too. Where
/// one is not, because Redis is being failed over or the machine is busy, another one is tried.
async fn is_shared(fleet: &Fleet, name: &str) {
    let fields = [("accept-language", "de")];
    for number in 0..12 {
        let shared = async {
            for attempt in 0.. {
                let target = format!("/{name}{number}?{attempt}");
                let text = fleet.get_with(0, &target, &fields).await.text();
                let found = fleet.get_with(1, &target, &fields).await;
                if found.cache() == "HIT" {
                    assert_eq!(found.text(), text);
                    return;
                }
            }
        };
        let shared = timeout(PATIENCE, shared).await;
        shared.unwrap_or_else(|_| panic!("/{name}{number} is not shared"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_belongs_together_is_in_one_slot_and_all_slots_are_used() {
    let cluster = RedisCluster::start().await;
    let url = cluster.url();
    let fleet = Fleet::start(&[&url, &url], &route(KEPT), |seen| {
        if seen.target.contains("vary") {
            return ok(seen.number.to_string(), &[("vary", "accept-language")]);
        }
        numbered(seen, &[])
    })
    .await;
    is_shared(&fleet, "plain").await;
    is_shared(&fleet, "vary").await;
    for node in &cluster.nodes {
        let is_master = node.ask("ROLE").await.unwrap().contains("master");
        let size = node.ask("DBSIZE").await.unwrap();
        assert!(!is_master || size.trim() != ":0");
    }
    let done = fleet.purge(1, r#"{"group": "g"}"#).await;
    assert_eq!(
        (&done["state"], &done["instances"]),
        (&"done".into(), &2.into()),
        "{done}"
    );
    assert_eq!(fleet.get(0, "/plain0?0").await.cache(), "MISS");
    // Not a script that reached for another slot.
    for at in [0, 1] {
        let failed = fleet
            .metric(at, "cache_l2_reads_total{result=\"failed\"}")
            .await;
        assert_eq!(failed, 0.0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_master_that_fails_under_load_is_nobodys_error() {
    let mut cluster = RedisCluster::start().await;
    let url = cluster.url();
    let extra = format!(
        "[cache.redis]\ntimeout = \"50ms\"\nbreaker_open = \"500ms\"\n{}",
        route(KEPT)
    );
    let fleet = Arc::new(Fleet::start(&[&url, &url], &extra, |seen| numbered(seen, &[])).await);
    is_shared(&fleet, "before").await;
    let ends = Arc::new(AtomicBool::new(false));
    let mut clients = Vec::new();
    for number in 0..8 {
        let address = fleet.instance(number % 2).address;
        let ends = Arc::clone(&ends);
        clients.push(tokio::spawn(async move {
            let mut client = Client::connect(address).await;
            let mut slowest = Duration::ZERO;
            let mut asked = 0;
            while !ends.load(Ordering::SeqCst) {
                // Most are misses.
                let target = format!("/load{number}/{}", asked % 500);
                let begun = Instant::now();
                let found = client.ask("GET", &target, &[]).await;
                slowest = slowest.max(begun.elapsed());
                assert_eq!(found.status, 200, "{}", found.text());
                asked += 1;
            }
            (asked, slowest)
        }));
    }
    // The one that has the purge log.
    let master = cluster.master_of("iris:{purges}meta").await;
    cluster.nodes[master].kill();
    for at in [0, 1] {
        fleet
            .metric_is(at, "cache_l2_heard", |heard| heard == 0.0)
            .await;
    }
    let done = fleet.purge(0, r#"{"url": "/before0"}"#).await;
    assert!(
        done["state"] == "pending" || done["state"] == "done",
        "{done}"
    );
    // Its replica takes over, and everything is as before, under the load that goes on.
    for at in [0, 1] {
        fleet
            .metric_is(at, "cache_l2_heard", |heard| heard == 1.0)
            .await;
        fleet
            .metric_is(at, "cache_purges_pending", |pending| pending == 0.0)
            .await;
    }
    is_shared(&fleet, "after").await;
    let done = fleet.purge(1, r#"{"all": true}"#).await;
    assert_eq!(done["instances"], 2, "{done}");
    ends.store(true, Ordering::SeqCst);
    for client in clients {
        let (asked, slowest) = client.await.expect("no error reached a client");
        assert!(asked > 100, "{asked}");
        // Nothing waited for the failover, which takes longer than this.
        assert!(slowest < Duration::from_secs(2), "{slowest:?}");
    }
}
