//! A lease that is lost, with its instance or by Redis, keeps the others waiting for about as long
//! as a fetch takes.

use std::time::Duration;

use tokio::time::timeout;

use crate::support::fleet::Fleet;
use crate::support::process::{FREE_PORTS, Running, file};
use crate::support::redis::RedisServer;
use crate::support::{Client, Gate, Origin, after, numbered, route};

const KEPT: &str = "ttl = \"1h\"";

/// Half of what a lease lasted: fetches here take milliseconds.
const SOON: Duration = Duration::from_millis(1500);

/// An origin that answers at once, but the first request for `/held`.
fn script(gate: &Gate) -> impl Fn(&crate::support::Seen) -> crate::support::Reply + use<> {
    let gate = gate.clone();
    let held = std::sync::atomic::AtomicBool::new(false);
    move |seen| {
        let is_first =
            seen.target == "/held" && !held.swap(true, std::sync::atomic::Ordering::SeqCst);
        match is_first {
            true => after(&gate, numbered(seen, &[])),
            false => numbered(seen, &[]),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_that_redis_has_lost_is_noticed_in_twice_a_fetch() {
    for loses in [
        "EVAL \"for _,k in ipairs(redis.call('KEYS','*}L')) do redis.call('DEL',k) end\" 0",
        "FLUSHALL",
    ] {
        let redis = RedisServer::start(&[]).await;
        let url = redis.url();
        let gate = Gate::new();
        let fleet = Fleet::start(&[&url, &url], &route(KEPT), script(&gate)).await;
        for at in [0, 1] {
            for number in 0..4 {
                fleet.get(at, &format!("/{at}-{number}")).await;
            }
        }
        fleet.written(0, 4.0).await;
        fleet.written(1, 4.0).await;
        let leads = fleet.connect(0).await;
        let waits = fleet.connect(1).await;
        let leading = tokio::spawn(async move {
            let mut leads = leads;
            leads.ask("GET", "/held", &[]).await
        });
        fleet.origin.asked(9).await;
        let waiting = tokio::spawn(async move {
            let mut waits = waits;
            waits.ask("GET", "/held", &[]).await
        });
        fleet.metric_reaches(1, "cache_leases_waiting", 1.0).await;
        redis.ask(loses).await;
        let found = timeout(SOON, waiting)
            .await
            .expect("it is noticed")
            .unwrap();
        assert_eq!(found.text(), "10", "{loses}");
        gate.open();
        leading.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nor_does_an_instance_that_was_killed_keep_others_waiting() {
    let redis = RedisServer::start(&[]).await;
    let gate = Gate::new();
    let origin = Origin::start(script(&gate)).await;
    let folder = tempfile::tempdir().unwrap();
    let text = format!(
        "{FREE_PORTS}[upstream]\nurl = \"{}\"\n[cache.redis]\nurl = \"{}\"\ntimeout = \"1s\"\n{}",
        origin.url(),
        redis.url(),
        route(KEPT)
    );
    let config = file(folder.path(), &text);
    let (one, other) = (Running::start(&config), Running::start(&config));
    let mut client = Client::connect(one.address).await;
    for number in 0..4 {
        client.ask("GET", &format!("/{number}"), &[]).await;
    }
    client.request("GET", "/held", &[]).await;
    origin.asked(5).await;
    let address = other.address;
    let waiting = tokio::spawn(async move {
        Client::connect(address)
            .await
            .ask("GET", "/held", &[])
            .await
    });
    let waits = async {
        loop {
            let told = Client::admin(other.admin, "/metrics").await.text();
            if told.lines().any(|line| line == "cache_leases_waiting 1") {
                return;
            }
        }
    };
    timeout(crate::support::PATIENCE, waits)
        .await
        .expect("it waits");
    drop(one);
    let found = timeout(SOON, waiting)
        .await
        .expect("it is noticed")
        .unwrap();
    assert_eq!(found.text(), "6");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fetch_that_takes_longer_than_usual_keeps_its_lease() {
    let redis = RedisServer::start(&[]).await;
    let url = redis.url();
    let gate = Gate::new();
    let fleet = Fleet::start(&[&url, &url], &route(KEPT), script(&gate)).await;
    for at in [0, 1] {
        for number in 0..4 {
            fleet.get(at, &format!("/{at}-{number}")).await;
        }
    }
    let (mut leads, mut waits) = (fleet.connect(0).await, fleet.connect(1).await);
    leads.request("GET", "/held", &[]).await;
    fleet.origin.asked(9).await;
    waits.request("GET", "/held", &[]).await;
    fleet.metric_reaches(1, "cache_leases_waiting", 1.0).await;
    // It is renewed again and again.
    let renewed = "cache_l2_commands_total{command=\"renew\"}";
    let before = fleet.metric(0, renewed).await;
    fleet.metric_reaches(0, renewed, before + 8.0).await;
    gate.open();
    assert_eq!(leads.response().await.text(), "9");
    assert_eq!(waits.response().await.text(), "9");
    assert_eq!(fleet.origin.count(), 9);
}
