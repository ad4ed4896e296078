//! Redis killed, frozen and slow: nobody's request fails, it is left alone, and found well again.

use std::time::Duration;

use crate::support::fleet::Fleet;
use crate::support::redis::RedisServer;
use crate::support::wire::Wire;
use crate::support::{Gate, after, numbered, route};

const EXTRA: &str = "[cache.redis]\ntimeout = \"50ms\"\nbreaker_open = \"300ms\"\n";
const LOOKED: &str = "cache_l2_commands_total{command=\"look_up\"}";

async fn start(redis: &RedisServer, wire: &Wire) -> Fleet {
    let extra = format!("{EXTRA}{}", route("ttl = \"60s\""));
    let urls = [wire.url(), redis.url()];
    let urls = [urls[0].as_str(), urls[1].as_str()];
    Fleet::start(&urls, &extra, |seen| numbered(seen, &[])).await
}

/// Hits and misses go on as if there were no Redis, and soon it is not asked any more.
async fn goes_on(fleet: &Fleet, name: &str) {
    fleet.get(0, "/known").await;
    let mut number = 0;
    while fleet.metric(0, "cache_l2_breaker_open").await == 0.0
        && fleet.metric(0, "cache_l2_heard").await == 1.0
    {
        let missed = fleet.get(0, &format!("/{name}{number}")).await;
        assert_eq!((missed.status, missed.cache()), (200, "MISS"));
        assert_eq!(fleet.get(0, "/known").await.cache(), "HIT");
        number += 1;
        // Five that fail open the breaker, and what was under way may have been answered.
        assert!(number < 20, "it is still asked");
    }
    let ready = fleet.admin(0, "/readyz").await;
    assert_eq!(ready.status, 200, "{}", ready.text());
}

/// What is stored goes to Redis again, and what another instance stored comes from there.
async fn recovers(fleet: &Fleet, name: &str) {
    fleet
        .metric_is(0, "cache_l2_breaker_open", |open| open == 0.0)
        .await;
    fleet
        .metric_is(0, "cache_l2_heard", |heard| heard == 1.0)
        .await;
    fleet
        .metric_is(1, "cache_l2_heard", |heard| heard == 1.0)
        .await;
    fleet
        .metric_is(1, "cache_l2_breaker_open", |open| open == 0.0)
        .await;
    let mut number = 0;
    loop {
        number += 1;
        let target = format!("/again{name}{number}");
        let written = fleet
            .metric(1, "cache_l2_writes_total{result=\"stored\"}")
            .await;
        let text = fleet.get(1, &target).await.text();
        // Where the machine is so busy that a healthy Redis is late, once more.
        let stored = async {
            fleet.written(1, written + 1.0).await;
        };
        if tokio::time::timeout(Duration::from_secs(2), stored)
            .await
            .is_err()
        {
            continue;
        }
        let found = fleet.get(0, &target).await;
        if found.cache() == "HIT" {
            assert_eq!(found.text(), text);
            return;
        }
        assert!(number < 10, "{}", found.cache_status());
    }
}

#[tokio::test]
async fn killed_and_started_again() {
    let mut redis = RedisServer::start(&[]).await;
    let wire = Wire::to(redis.port).await;
    let fleet = start(&redis, &wire).await;
    recovers(&fleet, "first").await;
    redis.kill();
    goes_on(&fleet, "killed").await;
    redis.launch().await;
    recovers(&fleet, "killed").await;
}

#[tokio::test]
async fn frozen_and_let_go_on() {
    let redis = RedisServer::start(&[]).await;
    let wire = Wire::to(redis.port).await;
    let fleet = start(&redis, &wire).await;
    recovers(&fleet, "first").await;
    redis.signal("STOP");
    goes_on(&fleet, "frozen").await;
    redis.signal("CONT");
    recovers(&fleet, "frozen").await;
}

#[tokio::test]
async fn slow_and_fast_again() {
    let redis = RedisServer::start(&[]).await;
    let wire = Wire::to(redis.port).await;
    let fleet = start(&redis, &wire).await;
    recovers(&fleet, "first").await;
    wire.slow(Duration::from_millis(200));
    goes_on(&fleet, "slow").await;
    // Left alone: no client's request is a probe.
    let looked = fleet.metric(0, LOOKED).await;
    for number in 0..10 {
        fleet.get(0, &format!("/alone{number}")).await;
    }
    assert_eq!(fleet.metric(0, LOOKED).await, looked);
    wire.slow(Duration::ZERO);
    recovers(&fleet, "slow").await;
}

#[tokio::test]
async fn a_redis_that_comes_late_is_found() {
    let mut redis = RedisServer::start(&[]).await;
    redis.kill();
    let wire = Wire::to(redis.port).await;
    let fleet = start(&redis, &wire).await;
    assert_eq!(fleet.get(0, "/a").await.cache(), "MISS");
    assert_eq!(fleet.get(0, "/a").await.cache(), "HIT");
    redis.launch().await;
    recovers(&fleet, "late").await;
}

#[tokio::test]
async fn who_waits_for_another_instance_goes_on_alone_when_redis_is_gone() {
    let mut redis = RedisServer::start(&[]).await;
    let url = redis.url();
    let gate = Gate::new();
    let held = gate.clone();
    let fleet = Fleet::start(
        &[&url, &url],
        &route("ttl = \"60s\""),
        move |seen| match seen.number {
            1 => after(&held, numbered(seen, &[])),
            _ => numbered(seen, &[]),
        },
    )
    .await;
    let fleet = std::sync::Arc::new(fleet);
    let one = std::sync::Arc::clone(&fleet);
    let leading = tokio::spawn(async move { one.get(0, "/a").await });
    fleet.origin.asked(1).await;
    let other = std::sync::Arc::clone(&fleet);
    let waiting = tokio::spawn(async move { other.get(1, "/a").await });
    fleet.metric_reaches(1, "cache_leases_waiting", 1.0).await;
    redis.kill();
    assert_eq!(waiting.await.unwrap().text(), "2");
    gate.open();
    assert_eq!(leading.await.unwrap().text(), "1");
}

#[tokio::test]
async fn the_lease_of_an_instance_that_died_ends_by_itself() {
    let redis = RedisServer::start(&[]).await;
    let wire = Wire::to(redis.port).await;
    let gate = Gate::new();
    let held = gate.clone();
    let urls = [wire.url(), redis.url()];
    let urls = [urls[0].as_str(), urls[1].as_str()];
    let fleet = Fleet::start(&urls, &route("ttl = \"60s\""), move |seen| {
        match seen.number {
            1 => after(&held, numbered(seen, &[])),
            _ => numbered(seen, &[]),
        }
    })
    .await;
    let fleet = std::sync::Arc::new(fleet);
    let one = std::sync::Arc::clone(&fleet);
    let leading = tokio::spawn(async move { one.get(0, "/a").await });
    fleet.origin.asked(1).await;
    // As good as dead, for the others.
    wire.cut();
    let found = fleet.get(1, "/a").await;
    assert_eq!(found.text(), "2");
    let expired = fleet
        .metric(1, "cache_leases_awaited_total{result=\"expired\"}")
        .await;
    assert!(expired >= 1.0, "{expired}");
    gate.open();
    assert_eq!(leading.await.unwrap().text(), "1");
}

#[tokio::test]
async fn who_waits_for_another_instance_goes_on_alone_when_redis_is_frozen() {
    let redis = RedisServer::start(&[]).await;
    let url = redis.url();
    let gate = Gate::new();
    let held = gate.clone();
    let fleet = Fleet::start(
        &[&url, &url],
        &route("ttl = \"60s\""),
        move |seen| match seen.number {
            1 => after(&held, numbered(seen, &[])),
            _ => numbered(seen, &[]),
        },
    )
    .await;
    let fleet = std::sync::Arc::new(fleet);
    let one = std::sync::Arc::clone(&fleet);
    let leading = tokio::spawn(async move { one.get(0, "/a").await });
    fleet.origin.asked(1).await;
    let other = std::sync::Arc::clone(&fleet);
    let waiting = tokio::spawn(async move { other.get(1, "/a").await });
    fleet.metric_reaches(1, "cache_leases_waiting", 1.0).await;
    redis.signal("STOP");
    assert_eq!(waiting.await.unwrap().text(), "2");
    gate.open();
    assert_eq!(leading.await.unwrap().text(), "1");
    redis.signal("CONT");
}

#[tokio::test]
async fn a_full_redis_takes_no_purges_and_lets_read_what_there_is() {
    let redis = RedisServer::start(&[]).await;
    let url = redis.url();
    let fleet = Fleet::start(&[&url, &url], &route("ttl = \"60s\""), |seen| {
        numbered(seen, &[])
    })
    .await;
    fleet.get(0, "/a").await;
    fleet.written(0, 1.0).await;
    redis.ask("CONFIG SET maxmemory 1").await.unwrap();
    let done = fleet.purge(0, r#"{"url": "/b"}"#).await;
    assert_eq!(done["state"], "pending", "{done}");
    assert_eq!(fleet.metric(1, "cache_l2_heard").await, 1.0);
    assert_eq!(fleet.get(1, "/a").await.cache(), "HIT");
    redis.ask("CONFIG SET maxmemory 0").await.unwrap();
    fleet
        .metric_is(0, "cache_purges_pending", |pending| pending == 0.0)
        .await;
}

#[tokio::test]
async fn a_password_in_a_file_can_be_exchanged_while_it_runs() {
    let redis = RedisServer::start(&[]).await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("password");
    std::fs::write(&path, "one\n").unwrap();
    redis
        .ask("ACL SETUSER cache on >one ~* &* +@all")
        .await
        .unwrap();
    let url = redis.url().replace("redis://", "redis://cache@");
    let extra = format!(
        "[cache.redis]\npassword_file = \"{}\"\n{}",
        path.display(),
        route("ttl = \"60s\"")
    );
    let fleet = Fleet::start(&[&url], &extra, |seen| numbered(seen, &[])).await;
    fleet.get(0, "/a").await;
    fleet.written(0, 1.0).await;
    std::fs::write(&path, "two\n").unwrap();
    redis.ask("ACL SETUSER cache resetpass >two").await.unwrap();
    redis.ask("CLIENT KILL USER cache").await.unwrap();
    fleet
        .metric_is(0, "cache_l2_heard", |heard| heard == 0.0)
        .await;
    fleet
        .metric_is(0, "cache_l2_heard", |heard| heard == 1.0)
        .await;
    fleet.get(0, "/b").await;
    fleet.written(0, 2.0).await;
}
