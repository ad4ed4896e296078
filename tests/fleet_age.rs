//! Logs of another age, and answers to purges that promise no more than what holds: whatever Redis
//! comes back with, nothing that was purged is served again.

use serde_json::Value;
use tokio::time::timeout;

use crate::support::fleet::Fleet;
use crate::support::redis::RedisServer;
use crate::support::wire::Wire;
use crate::support::{PATIENCE, numbered, route};

const KEPT: &str = "ttl = \"1h\"\nstale_if_error = \"1h\"";

/// A fleet whose Redis has a snapshot of what was purged since: `/a` as it was first.
async fn with_old_snapshot(instances: usize) -> (RedisServer, Fleet, String) {
    let redis = RedisServer::start(&[]).await;
    let url = redis.url();
    let urls = vec![url.as_str(); instances];
    let fleet = Fleet::start(&urls, &route(KEPT), |seen| numbered(seen, &[])).await;
    let old = fleet.get(0, "/a").await.text();
    fleet.written(0, 1.0).await;
    for at in 1..instances {
        assert_eq!(fleet.get(at, "/a").await.text(), old);
    }
    redis.ask("SAVE").await;
    let done = fleet.purge(0, r#"{"url": "/a"}"#).await;
    assert_eq!(done["state"], "done", "{done}");
    for at in 0..instances {
        assert_ne!(fleet.get(at, "/a").await.text(), old);
    }
    (redis, fleet, old)
}

/// Redis dies, and comes back with its snapshot.
async fn crashes(redis: &mut RedisServer, fleet: &Fleet, instances: &[usize]) {
    redis.kill();
    for at in instances {
        fleet
            .metric_is(*at, "cache_l2_heard", |heard| heard == 0.0)
            .await;
    }
    redis.launch().await;
    for at in instances {
        fleet
            .metric_is(*at, "cache_l2_heard", |heard| heard == 1.0)
            .await;
    }
}

#[tokio::test]
async fn a_snapshot_that_is_restored_again_and_again_brings_back_nothing_purged() {
    let (mut redis, fleet, old) = with_old_snapshot(3).await;
    for round in 0..3 {
        crashes(&mut redis, &fleet, &[0, 1, 2]).await;
        for at in 0..3 {
            let found = fleet.get(at, "/a").await;
            assert_ne!(found.text(), old, "{round}, {at}: {}", found.cache_status());
        }
    }
}

#[tokio::test]
async fn nor_does_one_where_all_instances_are_new() {
    let (mut redis, mut fleet, old) = with_old_snapshot(2).await;
    for at in 0..2 {
        fleet.stop(at);
    }
    redis.kill();
    redis.launch().await;
    for _ in 0..2 {
        let at = fleet.join(&redis.url()).await;
        let found = fleet.get(at, "/a").await;
        assert_ne!(found.text(), old, "{}", found.cache_status());
    }
}

#[tokio::test]
async fn a_restart_of_redis_that_lost_nothing_costs_nothing_while_an_instance_lives() {
    let (mut redis, mut fleet, _) = with_old_snapshot(2).await;
    let kept = fleet.get(0, "/a").await.text();
    redis.ask("SAVE").await;
    let position = fleet.metric(0, "cache_purge_log_position").await;
    crashes(&mut redis, &fleet, &[0, 1]).await;
    assert_eq!(fleet.metric(0, "cache_purge_log_position").await, position);
    let new = fleet.join(&redis.url()).await;
    for at in [0, 1, new] {
        let found = fleet.get(at, "/a").await;
        assert_eq!((found.text(), found.cache()), (kept.clone(), "HIT"), "{at}");
    }
}

#[tokio::test]
async fn a_replica_of_an_earlier_log_that_is_promoted_brings_back_nothing_purged() {
    let first = RedisServer::start(&[]).await;
    let replication = Wire::to(first.port).await;
    let port = replication.port.to_string();
    let second = RedisServer::start(&["--replicaof", "127.0.0.1", &port]).await;
    let wires = [Wire::to(first.port).await, Wire::to(first.port).await];
    let urls = [wires[0].url(), wires[1].url()];
    let urls = [urls[0].as_str(), urls[1].as_str()];
    let fleet = Fleet::start(&urls, &route(KEPT), |seen| numbered(seen, &[])).await;
    let old = fleet.get(0, "/a").await.text();
    fleet.written(0, 1.0).await;
    let replicated = async { while second.size().await.trim() != first.size().await.trim() {} };
    timeout(PATIENCE, replicated)
        .await
        .expect("it is replicated");
    replication.cut();
    // Another log begins on the first one, and the purge is in that.
    first.ask("DEL iris:{purges}meta iris:{purges}log").await;
    fleet.purge(0, r#"{"url": "/a"}"#).await;
    for at in [0, 1] {
        assert_ne!(fleet.get(at, "/a").await.text(), old);
    }
    second.ask("REPLICAOF NO ONE").await;
    for wire in &wires {
        wire.lead_to(second.port);
    }
    for at in [0, 1] {
        fleet
            .metric_is(at, "cache_purge_log_position", |position| position == 0.0)
            .await;
        fleet
            .metric_is(at, "cache_l2_heard", |heard| heard == 1.0)
            .await;
    }
    for at in [0, 1] {
        let found = fleet.get(at, "/a").await;
        assert_ne!(found.text(), old, "{}", found.cache_status());
    }
}

async fn redis_seconds(redis: &RedisServer) -> u64 {
    let told = redis.ask("TIME").await.expect("it answers");
    told.lines()
        .nth(2)
        .and_then(|text| text.parse().ok())
        .expect("seconds")
}

fn missing(done: &Value) -> usize {
    done["missing"].as_array().map_or(0, Vec::len)
}

#[tokio::test]
async fn an_instance_that_is_cut_off_is_missed_as_long_as_it_may_serve_what_is_older() {
    let redis = RedisServer::start(&[]).await;
    let wire = Wire::to(redis.port).await;
    let urls = [redis.url(), wire.url()];
    let urls = [urls[0].as_str(), urls[1].as_str()];
    let extra = format!("[cache.redis]\nmax_silence = \"8s\"\n{}", route(KEPT));
    let fleet = Fleet::start(&urls, &extra, |seen| numbered(seen, &[])).await;
    let done = fleet.purge(0, r#"{"url": "/a"}"#).await;
    assert_eq!(
        (&done["state"], missing(&done)),
        (&"done".into(), 0),
        "{done}"
    );
    wire.cut();
    let cut = redis_seconds(&redis).await;
    let mut missed = 0;
    // It was taken for gone after three seconds.
    while redis_seconds(&redis).await < cut + 7 {
        let done = fleet.purge(0, r#"{"url": "/a"}"#).await;
        assert_eq!(done["state"], "unconfirmed", "{done}");
        assert_eq!(
            (&done["instances"], &done["alive"]),
            (&1.into(), &2.into()),
            "{done}"
        );
        assert_eq!(missing(&done), 1, "{done}");
        let one = &done["missing"][0];
        assert!(
            one["instance"]
                .as_str()
                .is_some_and(|name| name.contains('-'))
        );
        assert!(
            one["may_serve_older_until"]
                .as_str()
                .is_some_and(|at| at.ends_with('Z'))
        );
        assert!(
            done["why"]
                .as_str()
                .is_some_and(|why| why.contains("missing"))
        );
        missed += 1;
    }
    assert!(missed > 3, "{missed}");
    // After that it serves nothing that it had then.
    let done = async { while fleet.purge(0, r#"{"url": "/a"}"#).await["state"] != "done" {} };
    timeout(PATIENCE, done)
        .await
        .expect("it is not missed for ever");
}

#[tokio::test]
async fn who_was_deaf_does_not_say_done_before_the_others_had_time_to_show_up() {
    let mut redis = RedisServer::start(&[]).await;
    let wire = Wire::to(redis.port).await;
    let urls = [redis.url(), wire.url()];
    let urls = [urls[0].as_str(), urls[1].as_str()];
    let extra = format!("[cache.redis]\nmax_silence = \"6s\"\n{}", route(KEPT));
    let fleet = Fleet::start(&urls, &extra, |seen| numbered(seen, &[])).await;
    let old = fleet.get(1, "/a").await.text();
    // Redis is away for all, and back without its memory; the second one does not reach it.
    wire.cut();
    crashes(&mut redis, &fleet, &[0]).await;
    let back = redis_seconds(&redis).await;
    while redis_seconds(&redis).await < back + 5 {
        let done = fleet.purge(0, r#"{"url": "/a"}"#).await;
        assert_eq!(done["state"], "unconfirmed", "{done}");
        assert_eq!(fleet.get(1, "/a").await.text(), old);
    }
}

#[tokio::test]
async fn an_instance_that_stops_says_goodbye() {
    let redis = RedisServer::start(&[]).await;
    let url = redis.url();
    let mut fleet = Fleet::start(&[&url, &url], &route(KEPT), |seen| numbered(seen, &[])).await;
    fleet.stop(1);
    let done = fleet.purge(0, r#"{"url": "/a"}"#).await;
    assert_eq!(
        (&done["state"], &done["alive"]),
        (&"done".into(), &1.into()),
        "{done}"
    );
    fleet.stop(0);
    assert_eq!(
        redis
            .ask("HLEN iris:{purges}instances")
            .await
            .unwrap()
            .trim(),
        ":0"
    );
}

#[tokio::test]
async fn a_purge_that_no_replica_has_is_not_done() {
    let redis = RedisServer::start(&[]).await;
    let port = redis.port.to_string();
    let replica = RedisServer::start(&["--replicaof", "127.0.0.1", &port]).await;
    let url = redis.url();
    let fleet = Fleet::start(&[&url], &route(KEPT), |seen| numbered(seen, &[])).await;
    let follows = async {
        while !replica
            .ask("INFO replication")
            .await
            .unwrap()
            .contains("master_link_status:up")
        {}
    };
    timeout(PATIENCE, follows).await.expect("it follows");
    let done = async { while fleet.purge(0, r#"{"url": "/a"}"#).await["state"] != "done" {} };
    timeout(PATIENCE, done).await.expect("both have it");
    replica.signal("STOP");
    let done = fleet.purge(0, r#"{"url": "/a"}"#).await;
    assert_eq!(done["state"], "unconfirmed", "{done}");
    assert!(
        done["why"]
            .as_str()
            .is_some_and(|why| why.contains("replica")),
        "{done}"
    );
    replica.signal("CONT");
    let done = async { while fleet.purge(0, r#"{"url": "/a"}"#).await["state"] != "done" {} };
    timeout(PATIENCE, done).await.expect("both have it again");
}
