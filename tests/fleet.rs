//! A fleet that acts as one cache: what one instance stores, all have; of all, one fetches.

use std::sync::Arc;

use crate::support::fleet::Fleet;
use crate::support::redis::RedisServer;
use crate::support::{Client, Gate, after, all, numbered, ok, reply, route};

const KEPT: &str = "ttl = \"60s\"\nstale_while_revalidate = \"60s\"\nstale_if_error = \"1h\"";

#[tokio::test]
async fn what_one_instance_stores_the_others_have() {
    let redis = RedisServer::start(&[]).await;
    let url = redis.url();
    let fleet = Fleet::start(&[&url, &url], &route(KEPT), |seen| {
        numbered(seen, &[("etag", "\"v\""), ("x-kept", "as it was")])
    })
    .await;
    assert_eq!(fleet.get(0, "/a?b=c").await.cache(), "MISS");
    fleet.written(0, 1.0).await;
    fleet.advance(20);
    let told = fleet
        .admin(1, "/explain?url=http://api.example/a?b=c")
        .await
        .json();
    assert_eq!(
        (&told["stored"], &told["redis"]["status"]),
        (&serde_json::Value::Null, &200.into()),
        "{told}"
    );
    assert_eq!(told["redis"]["purged"], false);
    let found = fleet.get(1, "/a?b=c").await;
    assert_eq!((found.text().as_str(), found.cache()), ("1", "HIT"));
    // With what is left of its lifetime, and all its fields.
    assert_eq!(found.header("age"), Some("20"));
    assert_eq!(found.header("x-kept"), Some("as it was"));
    assert_eq!(
        found.cache_status(),
        "iris-sidecar; hit; ttl=40; detail=second-tier"
    );
    // From memory by now.
    let again = fleet.get(1, "/a?b=c").await;
    assert_eq!(again.cache_status(), "iris-sidecar; hit; ttl=40");
    assert_eq!(fleet.origin.count(), 1);
    let looked = fleet
        .metric(1, "cache_l2_commands_total{command=\"look_up\"}")
        .await;
    // One is of the request, one of whom asked what it would meet.
    assert_eq!(looked, 2.0);
    // Every key has an end, and stands under the prefix.
    let keyspace = redis.ask("INFO keyspace").await.unwrap();
    let count = |name: &str| -> usize {
        let at = keyspace.find(&format!("{name}=")).unwrap() + name.len() + 1;
        let digits = keyspace[at..].chars().take_while(char::is_ascii_digit);
        digits.collect::<String>().parse().unwrap()
    };
    assert_eq!(count("keys"), count("expires"), "{keyspace}");
}

#[tokio::test]
async fn variants_cost_two_round_trips_and_are_told_apart() {
    let redis = RedisServer::start(&[]).await;
    let url = redis.url();
    let fleet = Fleet::start(&[&url, &url], &route(KEPT), |seen| {
        let language = seen.header("accept-language").unwrap_or("none");
        ok(language, &[("vary", "accept-language")])
    })
    .await;
    for language in ["de", "en"] {
        let fields = [("accept-language", language)];
        assert_eq!(fleet.get_with(0, "/a", &fields).await.text(), language);
    }
    fleet.written(0, 2.0).await;
    for (number, language) in ["en", "de"].into_iter().enumerate() {
        let fields = [("accept-language", language)];
        let found = fleet.get_with(1, "/a", &fields).await;
        assert_eq!((found.text().as_str(), found.cache()), (language, "HIT"));
        let looked = fleet
            .metric(1, "cache_l2_commands_total{command=\"look_up\"}")
            .await;
        assert_eq!(looked, 2.0 * (number + 1) as f64);
    }
    let other = fleet.get_with(1, "/a", &[("accept-language", "fr")]).await;
    assert_eq!((other.text().as_str(), other.cache()), ("fr", "MISS"));
    assert_eq!(fleet.origin.count(), 3);
}

#[tokio::test]
async fn old_variants_do_not_come_back_after_a_response_without_vary() {
    let redis = RedisServer::start(&[]).await;
    let url = redis.url();
    let fleet = Fleet::start(&[&url, &url], &route("ttl = \"60s\""), |seen| {
        match seen.number {
            2 => numbered(seen, &[("cache-control", "max-age=1")]),
            _ => numbered(seen, &[("vary", "accept-language")]),
        }
    })
    .await;
    let (de, en) = ([("accept-language", "de")], [("accept-language", "en")]);
    // 1: a variant for de. 2: one response for all. 3: a variant for en.
    fleet.get_with(0, "/a", &de).await;
    fleet.written(0, 1.0).await;
    fleet.get_with(0, "/a", &en).await;
    fleet.written(0, 2.0).await;
    fleet.advance(2);
    fleet.get_with(0, "/a", &en).await;
    fleet.written(0, 3.0).await;
    let found = fleet.get_with(1, "/a", &de).await;
    assert_eq!((found.text().as_str(), found.cache()), ("4", "MISS"));
}

#[tokio::test]
async fn three_hundred_clients_of_three_instances_make_one_origin_request() {
    let redis = RedisServer::start(&[]).await;
    let url = redis.url();
    let gate = Gate::new();
    let held = gate.clone();
    let fleet = Fleet::start(&[&url, &url, &url], &route(KEPT), move |seen| {
        after(&held, numbered(seen, &[]))
    })
    .await;
    let addresses = [0, 1, 2].map(|at| fleet.instance(at).address);
    let clients = (0..300).map(move |number| async move {
        let address = addresses[number % 3];
        Client::connect(address)
            .await
            .ask("GET", "/cold", &[])
            .await
    });
    let asking = tokio::spawn(all(clients));
    for at in 0..3 {
        fleet.metric_reaches(at, "server_connections", 100.0).await;
    }
    fleet.origin.asked(1).await;
    // The two others wait for the one that leads.
    let waiting = async {
        loop {
            let mut waiting = 0.0;
            for at in 0..3 {
                waiting += fleet.metric(at, "cache_leases_waiting").await;
            }
            if waiting == 2.0 {
                return;
            }
        }
    };
    tokio::time::timeout(crate::support::PATIENCE, waiting)
        .await
        .expect("two wait");
    gate.open();
    let received = asking.await.unwrap();
    assert!(received.iter().all(|received| received.text() == "1"));
    assert_eq!(fleet.origin.count(), 1);
}

#[tokio::test]
async fn a_stale_response_is_refreshed_once_for_the_fleet() {
    let redis = RedisServer::start(&[]).await;
    let url = redis.url();
    let gate = Gate::new();
    let held = gate.clone();
    let fleet = Fleet::start(&[&url, &url, &url], &route(KEPT), move |seen| {
        match seen.number {
            1 => numbered(seen, &[]),
            _ => after(&held, numbered(seen, &[])),
        }
    })
    .await;
    fleet.get(0, "/a").await;
    fleet.written(0, 1.0).await;
    for at in [1, 2] {
        assert_eq!(fleet.get(at, "/a").await.cache(), "HIT");
    }
    fleet.advance(90);
    for at in [0, 1, 2] {
        assert_eq!(fleet.get(at, "/a").await.cache(), "HIT-STALE");
    }
    fleet.origin.asked(2).await;
    gate.open();
    // Those that did not fetch take the new one from Redis.
    for at in [0, 1, 2] {
        let replaced = "cache_background_refreshes_total{result=\"replaced\"}";
        fleet.metric_reaches(at, replaced, 1.0).await;
        let found = fleet.get(at, "/a").await;
        assert_eq!((found.text().as_str(), found.cache()), ("2", "HIT"));
    }
    assert_eq!(fleet.origin.count(), 2);
}

#[tokio::test]
async fn stale_from_redis_is_served_at_once_and_refreshed_behind() {
    let redis = RedisServer::start(&[]).await;
    let url = redis.url();
    let gate = Gate::new();
    let held = gate.clone();
    let fleet = Fleet::start(&[&url, &url], &route(KEPT), move |seen| match seen.number {
        1 => numbered(seen, &[]),
        _ => after(&held, numbered(seen, &[])),
    })
    .await;
    fleet.get(0, "/a").await;
    fleet.written(0, 1.0).await;
    fleet.advance(90);
    let stale = fleet.get(1, "/a").await;
    assert_eq!((stale.text().as_str(), stale.cache()), ("1", "HIT-STALE"));
    fleet.origin.asked(2).await;
    gate.open();
    let replaced = "cache_background_refreshes_total{result=\"replaced\"}";
    fleet.metric_reaches(1, replaced, 1.0).await;
    assert_eq!(fleet.get(1, "/a").await.text(), "2");
}

#[tokio::test]
async fn an_expired_response_from_redis_is_confirmed_by_304() {
    let redis = RedisServer::start(&[]).await;
    let url = redis.url();
    let keys = "ttl = \"10s\"\nstale_if_error = \"1h\"";
    let fleet = Fleet::start(&[&url, &url], &route(keys), |seen| {
        match seen.header("if-none-match") {
            Some("\"v\"") => reply(304, "", &[("etag", "\"v\"")]),
            _ => ok("body", &[("etag", "\"v\"")]),
        }
    })
    .await;
    fleet.get(0, "/a").await;
    fleet.written(0, 1.0).await;
    fleet.advance(20);
    let found = fleet.get(1, "/a").await;
    assert_eq!(
        (found.text().as_str(), found.cache()),
        ("body", "HIT-REVALIDATED")
    );
    // The update goes to Redis, too.
    fleet.written(1, 1.0).await;
    assert_eq!(fleet.origin.last().header("if-none-match"), Some("\"v\""));
}

#[tokio::test]
async fn what_may_not_be_stored_lets_everybody_fetch_at_once() {
    let redis = RedisServer::start(&[]).await;
    let url = redis.url();
    let gate = Gate::new();
    let held = gate.clone();
    let fleet = Fleet::start(
        &[&url, &url],
        &route("ttl = \"60s\""),
        move |seen| match seen.number {
            1 => after(&held, numbered(seen, &[("cache-control", "no-store")])),
            _ => numbered(seen, &[("cache-control", "no-store")]),
        },
    )
    .await;
    let fleet = Arc::new(fleet);
    let one = Arc::clone(&fleet);
    let leading = tokio::spawn(async move { one.get(0, "/a").await });
    fleet.origin.asked(1).await;
    let other = Arc::clone(&fleet);
    let waiting = tokio::spawn(async move { other.get(1, "/a").await });
    fleet.metric_reaches(1, "cache_leases_waiting", 1.0).await;
    gate.open();
    assert_eq!(leading.await.unwrap().text(), "1");
    assert_eq!(waiting.await.unwrap().text(), "2");
    let told = "cache_leases_awaited_total{result=\"not_storable\"}";
    assert_eq!(fleet.metric(1, told).await, 1.0);
}

#[tokio::test]
async fn a_failed_fetch_ends_its_lease_at_once() {
    let redis = RedisServer::start(&[]).await;
    let url = redis.url();
    let gate = Gate::new();
    let held = gate.clone();
    let fleet = Fleet::start(
        &[&url, &url],
        &route("ttl = \"60s\""),
        move |seen| match seen.number {
            1 => after(&held, vec![crate::support::Step::Reset]),
            _ => numbered(seen, &[]),
        },
    )
    .await;
    let fleet = Arc::new(fleet);
    let one = Arc::clone(&fleet);
    let leading = tokio::spawn(async move { one.get(0, "/a").await });
    fleet.origin.asked(1).await;
    let other = Arc::clone(&fleet);
    let waiting = tokio::spawn(async move { other.get(1, "/a").await });
    fleet.metric_reaches(1, "cache_leases_waiting", 1.0).await;
    gate.open();
    assert_eq!(leading.await.unwrap().status, 502);
    assert_eq!(waiting.await.unwrap().text(), "2");
}

#[tokio::test]
async fn too_large_for_redis_is_for_memory_alone() {
    let redis = RedisServer::start(&[]).await;
    let url = redis.url();
    let extra = format!("[cache.redis]\nmax_object = \"1KiB\"\n{}", route(KEPT));
    let fleet = Fleet::start(&[&url, &url], &extra, |_| ok([b'x'; 2000], &[])).await;
    fleet.get(0, "/a").await;
    let too_large = "cache_l2_writes_total{result=\"too_large\"}";
    fleet.metric_reaches(0, too_large, 1.0).await;
    assert_eq!(fleet.get(0, "/a").await.cache(), "HIT");
    assert_eq!(fleet.get(1, "/a").await.cache(), "MISS");
}

#[tokio::test]
async fn stale_from_redis_stands_in_for_a_failed_origin() {
    let redis = RedisServer::start(&[]).await;
    let url = redis.url();
    let keys = "ttl = \"10s\"\nstale_if_error = \"1h\"";
    let mut fleet = Fleet::start(&[&url, &url], &route(keys), |seen| numbered(seen, &[])).await;
    fleet.get(0, "/a").await;
    fleet.written(0, 1.0).await;
    fleet.advance(60);
    fleet.origin.stop().await;
    let address = fleet.instance(1).address;
    let clients =
        (0..20).map(|_| async move { Client::connect(address).await.ask("GET", "/a", &[]).await });
    for found in all(clients).await {
        assert_eq!((found.text().as_str(), found.cache()), ("1", "HIT-STALE"));
    }
}

#[tokio::test]
async fn many_requests_for_one_key_share_one_look_up() {
    let redis = RedisServer::start(&[]).await;
    let url = redis.url();
    let fleet = Fleet::start(&[&url, &url], &route(KEPT), |seen| numbered(seen, &[])).await;
    fleet.get(0, "/a").await;
    fleet.written(0, 1.0).await;
    // Frozen, so that all are there before the answer is.
    redis.signal("STOP");
    let address = fleet.instance(1).address;
    let clients = (0..50)
        .map(move |_| async move { Client::connect(address).await.ask("GET", "/a", &[]).await });
    let asking = tokio::spawn(all(clients));
    fleet.metric_reaches(1, "server_connections", 50.0).await;
    fleet
        .metric_reaches(1, "cache_l2_commands_total{command=\"look_up\"}", 1.0)
        .await;
    redis.signal("CONT");
    for found in asking.await.unwrap() {
        assert_eq!(found.text(), "1");
    }
    let looked = fleet
        .metric(1, "cache_l2_commands_total{command=\"look_up\"}")
        .await;
    assert_eq!((looked, fleet.origin.count()), (1.0, 1));
}

#[tokio::test]
async fn what_must_be_validated_each_time_makes_nobody_queue() {
    let redis = RedisServer::start(&[]).await;
    let url = redis.url();
    let gate = Gate::new();
    let held = gate.clone();
    let fields = [("etag", "\"v\""), ("cache-control", "no-cache")];
    let keys = "stale_if_error = \"1h\"";
    let fleet = Fleet::start(&[&url, &url, &url], &route(keys), move |seen| {
        match seen.number {
            1 => after(&held, numbered(seen, &fields)),
            _ => numbered(seen, &fields),
        }
    })
    .await;
    let fleet = Arc::new(fleet);
    let ask = |at| {
        let fleet = Arc::clone(&fleet);
        tokio::spawn(async move { fleet.get(at, "/a").await })
    };
    let leading = ask(0);
    fleet.origin.asked(1).await;
    let waiting = [ask(1), ask(2)];
    for at in [1, 2] {
        fleet.metric_reaches(at, "cache_leases_waiting", 1.0).await;
    }
    gate.open();
    leading.await.unwrap();
    for waiting in waiting {
        assert_eq!(waiting.await.unwrap().status, 200);
    }
    let told = "cache_leases_awaited_total{result=\"not_storable\"}";
    for at in [1, 2] {
        assert_eq!(fleet.metric(at, told).await, 1.0);
    }
}

#[tokio::test]
async fn what_the_origin_no_longer_allows_does_not_come_back_from_redis() {
    let redis = RedisServer::start(&[]).await;
    let url = redis.url();
    let keys = "ttl = \"10s\"\nstale_while_revalidate = \"1h\"";
    let fleet = Fleet::start(&[&url, &url], &route(keys), |seen| match seen.number {
        1 => numbered(seen, &[]),
        _ => numbered(seen, &[("cache-control", "private")]),
    })
    .await;
    fleet.get(0, "/a").await;
    fleet.written(0, 1.0).await;
    fleet.advance(20);
    assert_eq!(fleet.get(0, "/a").await.cache(), "HIT-STALE");
    let refreshed = "cache_background_refreshes_total{result=\"not_stored\"}";
    fleet.metric_reaches(0, refreshed, 1.0).await;
    fleet
        .metric_reaches(0, "cache_l2_commands_total{command=\"delete\"}", 1.0)
        .await;
    fleet.advance(20);
    let deleted = async { while fleet.get(1, "/a").await.text() == "1" {} };
    tokio::time::timeout(crate::support::PATIENCE, deleted)
        .await
        .expect("it is gone");
    assert_ne!(fleet.get(0, "/a").await.text(), "1");
}

/// The names of values in Redis: those of one response each.
async fn values(redis: &RedisServer) -> Vec<String> {
    let listed = redis.ask("KEYS iris:{*}").await.unwrap();
    let names = listed.lines().map(str::trim);
    let values = names.filter(|name| name.starts_with("iris:{") && name.ends_with('}'));
    values.map(str::to_owned).collect()
}

#[tokio::test]
async fn a_value_copied_under_another_key_or_forged_is_a_miss() {
    for auth in ["", "[auth]\nsecret = \"of the fleet\"\n"] {
        let redis = RedisServer::start(&[]).await;
        let url = redis.url();
        let extra = format!("{auth}{}", route(KEPT));
        let fleet = Fleet::start(&[&url, &url], &extra, |seen| ok(&seen.target, &[])).await;
        for target in ["/a", "/b"] {
            assert_eq!(fleet.get(0, target).await.text(), target);
        }
        fleet.written(0, 2.0).await;
        let names = values(&redis).await;
        assert_eq!(names.len(), 2, "{names:?}");
        // Both ways: one of them is the other's now.
        redis
            .ask(&format!("COPY {} {} REPLACE", names[0], names[1]))
            .await;
        for target in ["/a", "/b"] {
            assert_eq!(fleet.get(1, target).await.text(), target, "{auth}");
        }
        let invalid = "cache_l2_reads_total{result=\"invalid\"}";
        assert_eq!(fleet.metric(1, invalid).await, 1.0, "{auth}");
        assert_eq!(fleet.origin.count(), 3, "{auth}");
    }
}

#[tokio::test]
async fn what_a_fleet_with_another_secret_has_stored_is_a_miss() {
    let redis = RedisServer::start(&[]).await;
    let url = redis.url();
    let with = |secret: &str| format!("{secret}{}", route(KEPT));
    let first = with("[auth]\nsecret = \"one\"\n");
    let mut fleet = Fleet::start(&[&url], &first, |seen| numbered(seen, &[])).await;
    assert_eq!(fleet.get(0, "/a").await.text(), "1");
    fleet.written(0, 1.0).await;
    let strange = fleet
        .join_with(&url, &with("[auth]\nsecret = \"another\"\n"))
        .await;
    let missed = fleet.get(strange, "/a").await;
    assert_eq!((missed.text().as_str(), missed.cache()), ("2", "MISS"));
}

#[tokio::test]
async fn what_is_no_value_or_too_large_for_one_is_a_miss_and_written_anew() {
    let redis = RedisServer::start(&[]).await;
    let url = redis.url();
    let extra = format!("[cache.redis]\nmax_object = \"64KiB\"\n{}", route(KEPT));
    let mut fleet = Fleet::start(&[&url], &extra, |seen| ok(&seen.target, &[])).await;
    fleet.get(0, "/a").await;
    fleet.written(0, 1.0).await;
    let name = values(&redis).await.remove(0);
    for garbage in [
        format!("RPUSH {name} a b c"),
        format!("HSET {name} a b"),
        format!("SETRANGE {name} 20000000 x"),
        format!("SET {name} x"),
    ] {
        redis.ask(&format!("DEL {name}")).await;
        redis.ask(&garbage).await;
        let at = fleet.join_with(&url, &extra).await;
        let asked = fleet.get(at, "/a").await;
        let seen = (asked.text(), asked.cache().to_owned());
        assert_eq!(seen, ("/a".to_owned(), "MISS".to_owned()), "{garbage}");
        let invalid = "cache_l2_reads_total{result=\"invalid\"}";
        assert_eq!(fleet.metric(at, invalid).await, 1.0, "{garbage}");
        // It is written anew, and found by the next one.
        fleet.written(at, 1.0).await;
        let next = fleet.join_with(&url, &extra).await;
        assert_eq!(fleet.get(next, "/a").await.cache(), "HIT", "{garbage}");
    }
}

#[tokio::test]
async fn strange_instances_and_revoked_keys_make_nobody_deaf() {
    let redis = RedisServer::start(&[]).await;
    let url = redis.url();
    let mut fleet = Fleet::start(&[&url], &route(KEPT), |seen| numbered(seen, &[])).await;
    for field in ["x y", "z 1"] {
        redis
            .ask(&format!("HSET iris:{{purges}}instances {field}"))
            .await;
        redis
            .ask(&format!("HSET iris:{{purges}}revoked {field}"))
            .await;
    }
    let other = fleet.join(&url).await;
    fleet.get(other, "/a").await;
    let purged = fleet.purge(0, r#"{"url": "/a"}"#).await;
    assert_eq!(
        (&purged["state"], &purged["instances"]),
        (&"done".into(), &2.into())
    );
    assert_eq!(fleet.get(other, "/a").await.text(), "2");
}
