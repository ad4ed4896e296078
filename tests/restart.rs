//! A fresh instance with a warm Redis: it serves from there at once, and takes what is used most.

use crate::support::fleet::Fleet;
use crate::support::redis::RedisServer;
use crate::support::{numbered, ok, route};

const KEPT: &str = "ttl = \"60s\"\nstale_if_error = \"1h\"";

#[tokio::test]
async fn a_fresh_instance_serves_from_redis_at_once_and_nothing_that_was_purged() {
    let redis = RedisServer::start(&[]).await;
    let url = redis.url();
    let mut fleet = Fleet::start(&[&url], &route(KEPT), |seen| numbered(seen, &[])).await;
    for target in ["/a", "/b", "/c"] {
        fleet.get(0, target).await;
    }
    fleet.written(0, 3.0).await;
    fleet.purge(0, r#"{"url": "/b"}"#).await;
    fleet.purge(0, r#"{"url": "/c", "soft": true}"#).await;
    // The whole fleet goes, and another comes.
    fleet.stop(0);
    let fresh = fleet.join(&url).await;
    let found = fleet.get(fresh, "/a").await;
    assert_eq!((found.text().as_str(), found.cache()), ("1", "HIT"));
    let gone = fleet.get(fresh, "/b").await;
    assert_eq!((gone.text().as_str(), gone.cache()), ("4", "MISS"));
    let stale = fleet.get(fresh, "/c").await;
    assert_eq!(stale.text(), "5", "{}", stale.cache_status());
}

#[tokio::test]
async fn what_is_used_most_is_taken_before_anybody_asks_within_its_budget() {
    let redis = RedisServer::start(&[]).await;
    let url = redis.url();
    let extra = format!("[cache.redis]\nwarm_up = \"3KiB\"\n{}", route(KEPT));
    let mut fleet = Fleet::start(&[&url], &extra, |seen| {
        let body = vec![b'x'; 1024];
        match seen.target.as_str() {
            "/second" => ok(body, &[("vary", "accept-language")]),
            _ => ok(body, &[]),
        }
    })
    .await;
    let german = [("accept-language", "de")];
    let mut client = fleet.connect(0).await;
    for (target, uses) in [
        ("/least", 40),
        ("/first", 400),
        ("/third", 120),
        ("/second", 200),
    ] {
        for _ in 0..uses {
            client.ask("GET", target, &german).await;
        }
    }
    fleet.written(0, 4.0).await;
    fleet.instance(0).proxy.report_used_now().await;
    let fresh = fleet.join(&url).await;
    fleet
        .metric_reaches(fresh, "cache_l2_warmed_total", 3.0)
        .await;
    // From memory, not from Redis.
    for target in ["/first", "/second", "/third"] {
        let found = fleet.get_with(fresh, target, &german).await;
        assert_eq!(
            found.cache_status(),
            "iris-sidecar; hit; ttl=60",
            "{target}"
        );
    }
    let rest = fleet.get_with(fresh, "/least", &german).await;
    assert_eq!(
        rest.cache_status(),
        "iris-sidecar; hit; ttl=60; detail=second-tier"
    );
    assert_eq!(fleet.metric(fresh, "cache_l2_warmed_total").await, 3.0);
    assert_eq!(fleet.origin.count(), 4);
}
