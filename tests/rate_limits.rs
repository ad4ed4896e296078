//! Rate limits: by address and by key, alone and shared by a fleet.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::support::fleet::Fleet;
use crate::support::redis::RedisServer;
use crate::support::{Fixture, numbered, route};

const KEPT: &str = "ttl = \"1h\"";

fn limit(by: &str, requests: u64, window: &str, keys: &str) -> String {
    format!("[[rate_limit]]\nby = \"{by}\"\nrequests = {requests}\nwindow = \"{window}\"\n{keys}\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn one_request_too_many_is_429_and_says_when_to_come_again() {
    let config = limit("address", 5, "60s", "") + &route(KEPT);
    let fixture = Fixture::start(&config, |seen| numbered(seen, &[])).await;
    for left in [4, 3, 2, 1, 0] {
        let found = fixture.get("/a").await;
        assert_eq!(found.status, 200);
        assert_eq!(found.header("ratelimit-policy"), Some("\"ip\";q=5;w=60"));
        let expected = format!("\"ip\";r={left};t=60");
        assert_eq!(found.header("ratelimit"), Some(&*expected));
    }
    fixture.advance(10);
    let refused = fixture.get("/a").await;
    assert_eq!(refused.status, 429);
    assert_eq!(refused.header("retry-after"), Some("62"));
    assert_eq!(refused.header("ratelimit"), Some("\"ip\";r=0;t=62"));
    let error = &refused.json()["error"];
    assert_eq!(error["code"], "RATE_LIMIT_EXCEEDED");
    assert_eq!(error["details"]["maxRequests"], 5);
    assert_eq!(error["details"]["windowMs"], 60_000);
    assert_eq!(error["details"]["retryAfter"], 62);
    assert!(error["details"]["resetAt"].is_string());
    // A preflight is not counted; and what was promised holds.
    let preflight = fixture.connect().await.ask("OPTIONS", "/a", &[]).await;
    assert_ne!(preflight.status, 429);
    fixture.advance(61);
    assert_eq!(fixture.get("/a").await.status, 429);
    fixture.advance(1);
    assert_eq!(fixture.get("/a").await.status, 200);
    let blocked = "rate_limit_requests_total{key=\"ip\",result=\"blocked\"}";
    assert_eq!(fixture.metric(blocked).await, 2.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_are_told_apart_by_what_trusted_proxies_say() {
    let limits = limit("address", 1, "60s", "");
    let config = format!(
        "[listen]\ntrusted_proxies = [\"127.0.0.1\"]\n{limits}{}",
        route(KEPT)
    );
    let fixture = Fixture::start(&config, |seen| numbered(seen, &[])).await;
    let mut asked = Vec::new();
    for forwarded in [
        "192.0.2.1",
        "192.0.2.2",
        "9.9.9.9, 192.0.2.1",
        "2001:db8::1",
        "2001:db8::2",
        "2001:db8:0:1::1",
    ] {
        let fields = [("x-forwarded-for", forwarded)];
        asked.push(fixture.get_with("/a", &fields).await.status);
    }
    assert_eq!(asked, [200, 200, 429, 200, 429, 200]);
    // Whoever is not trusted says nothing about himself.
    let config = limit("address", 1, "60s", "") + &route(KEPT);
    let fixture = Fixture::start(&config, |seen| numbered(seen, &[])).await;
    let mut asked = Vec::new();
    for forwarded in ["192.0.2.1", "192.0.2.2"] {
        let fields = [("x-forwarded-for", forwarded)];
        asked.push(fixture.get_with("/a", &fields).await.status);
    }
    assert_eq!(asked, [200, 429]);
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_and_routes_have_limits_of_their_own() {
    let config = limit("key", 2, "60s", "")
        + &limit("address", 1, "60s", "path = \"/narrow\"")
        + "[[route]]\npath = \"/narrow\"\nttl = \"1h\"\n"
        + &route(KEPT);
    let fixture = Fixture::start(&config, |seen| numbered(seen, &[])).await;
    let with = async |key: &str, target: &str| {
        let fields = [("authorization", key)];
        fixture.get_with(target, &fields).await
    };
    assert_eq!(with("a", "/a").await.status, 200);
    assert_eq!(with("Bearer a", "/b").await.status, 200);
    assert_eq!(with("a", "/c").await.status, 429);
    assert_eq!(with("b", "/a").await.status, 200);
    // Two limits count it, and both are told.
    let both = with("c", "/narrow").await;
    assert_eq!(
        both.header("ratelimit-policy"),
        Some("\"ip\";q=1;w=60, \"apikey\";q=2;w=60")
    );
    assert_eq!(with("c", "/narrow").await.status, 429);
    for _ in 0..4 {
        assert_eq!(fixture.get("/a").await.status, 200);
    }
    let blocked = "rate_limit_requests_total{key=\"apikey\",result=\"blocked\"}";
    assert_eq!(fixture.metric(blocked).await, 1.0);
}

/// Sends so many requests over a few connections to each instance; how many were let through.
async fn let_through(fleet: &Arc<Fleet>, at: usize, count: usize, connections: usize) -> usize {
    let through = Arc::new(AtomicUsize::new(0));
    let tasks: Vec<_> = (0..connections)
        .map(|_| {
            let (fleet, through) = (fleet.clone(), through.clone());
            tokio::spawn(async move {
                let mut client = fleet.connect(at).await;
                for _ in 0..count / connections {
                    let fields = [("authorization", "Bearer k")];
                    let found = client.ask("GET", "/a", &fields).await;
                    match found.status {
                        200 => drop(through.fetch_add(1, Ordering::Relaxed)),
                        429 => {}
                        other => panic!("{other}: {}", found.text()),
                    }
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    through.load(Ordering::Relaxed)
}

async fn fleet_of(count: usize, redis: &RedisServer, config: &str) -> Arc<Fleet> {
    let url = redis.url();
    let urls = vec![url.as_str(); count];
    let fleet = Fleet::start(&urls, config, |seen| {
        numbered(seen, &[("cache-control", "public, max-age=3600")])
    })
    .await;
    for at in 0..count {
        fleet
            .metric_is(at, "cache_l2_heard", |heard| heard == 1.0)
            .await;
    }
    Arc::new(fleet)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_small_limit_is_exact_across_the_fleet() {
    let redis = RedisServer::start(&[]).await;
    let config = limit("key", 200, "1h", "") + &route("");
    let fleet = fleet_of(3, &redis, &config).await;
    let all = [0, 1, 2].map(|at| {
        let fleet = fleet.clone();
        tokio::spawn(async move { let_through(&fleet, at, 400, 4).await })
    });
    let mut through = 0;
    for one in all {
        through += one.await.unwrap();
    }
    assert_eq!(through, 200);
    let asked = "cache_l2_commands_total{command=\"take\"}";
    assert_eq!(fleet.metric(0, asked).await, 400.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_limit_is_within_a_thousandth_and_most_requests_wait_for_nobody() {
    for requests in [1000, 10_000] {
        let redis = RedisServer::start(&[]).await;
        let config = limit("key", requests, "1h", "") + &route("");
        let fleet = fleet_of(3, &redis, &config).await;
        // At once, and then one instance alone with what the others may still hold.
        let mut through = 0;
        if requests > 1000 {
            let all = [0, 1, 2].map(|at| {
                let fleet = fleet.clone();
                tokio::spawn(async move { let_through(&fleet, at, 10_000, 5).await })
            });
            for one in all {
                through += one.await.unwrap();
            }
        } else {
            for at in [0, 1, 2] {
                through += let_through(&fleet, at, 300, 3).await;
            }
            through += let_through(&fleet, 2, 9_000, 5).await;
        }
        let error = through.abs_diff(requests as usize);
        assert!(error * 1000 <= requests as usize, "{through} of {requests}");
        let mut at_hand = 0.0;
        for at in 0..3 {
            at_hand += fleet
                .metric(
                    at,
                    "cache_requests_total{cache=\"rateLimit\",result=\"hit\"}",
                )
                .await;
        }
        assert!(at_hand > requests as f64 / 2.0, "{at_hand} of {requests}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn while_redis_is_out_of_reach_the_operator_says_what_counts() {
    for (word, expected) in [("local", 5), ("open", 20), ("closed", 0)] {
        let mut redis = RedisServer::start(&[]).await;
        let keys = format!("when_redis_fails = \"{word}\"");
        let config = format!(
            "[cache.redis]\nbreaker_failures = 1\n{}{}",
            limit("key", 5, "1h", &keys),
            route("")
        );
        let fleet = fleet_of(1, &redis, &config).await;
        redis.kill();
        let mut through = 0;
        for _ in 0..20 {
            let found = fleet.get_as(0, "k", "/a").await;
            through += usize::from(found.status == 200);
            assert!(matches!(found.status, 200 | 429 | 503), "{}", found.text());
        }
        assert_eq!(through, expected, "{word}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_redis_all_instances_together_let_no_more_through_than_the_limit() {
    let mut redis = RedisServer::start(&[]).await;
    let config = format!(
        "[cache.redis]\nbreaker_failures = 1\n{}{}",
        limit("key", 100, "1h", ""),
        route("")
    );
    let fleet = fleet_of(3, &redis, &config).await;
    // All have shown up.
    for at in 0..3 {
        let known = async {
            while fleet.purge(at, r#"{"url": "/x"}"#).await["alive"] != 3 {}
            // Once more, so that each has heard of the others.
            let looks = "cache_l2_commands_total{command=\"sync\"}";
            let seen = fleet.metric(at, looks).await;
            fleet.metric_reaches(at, looks, seen + 1.0).await;
        };
        tokio::time::timeout(crate::support::PATIENCE, known)
            .await
            .expect("three");
    }
    // A part of it is used before, by one that the others do not know of.
    let used = let_through(&fleet, 0, 30, 3).await;
    assert_eq!(used, 30);
    redis.kill();
    for at in 0..3 {
        fleet
            .metric_is(at, "cache_l2_heard", |heard| heard == 0.0)
            .await;
    }
    let mut through = 0;
    for at in 0..3 {
        through += let_through(&fleet, at, 150, 3).await;
    }
    // Each its third, and the first what is left of that.
    assert_eq!(through, 23 + 33 + 33);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_window_that_redis_has_lost_goes_on_with_what_is_known_of_it() {
    let redis = RedisServer::start(&[]).await;
    let config = format!("{}{}", limit("key", 100, "1h", ""), route(""));
    let fleet = fleet_of(2, &redis, &config).await;
    let mut through = 0;
    for at in [0, 1] {
        through += let_through(&fleet, at, 40, 2).await;
    }
    assert_eq!(through, 80);
    for _ in 0..3 {
        redis.ask("FLUSHALL").await;
        for at in [1, 0] {
            through += let_through(&fleet, at, 50, 2).await;
        }
    }
    // What each has seen last; one that was being given back when the window was lost may be taken
    // twice.
    assert!((100..=102).contains(&through), "{through}");
}
