//! Bypass: the operator switches caching off, and on again.

use crate::support::fleet::Fleet;
use crate::support::keys::Keys;
use crate::support::redis::RedisServer;
use crate::support::{Client, Fixture, Received, numbered, route};

async fn bypass(fixture: &Fixture, order: &str) -> Received {
    Client::order(fixture.sidecar().admin_address, "/bypass", order).await
}

const TWO: &str = "[[route]]\npath = \"/a\"\nttl = \"1h\"\n[[route]]\npath = \"/b\"\nttl \
    = \"1h\"\n[[route]]\npath = \"/write\"\nmethods = [\"POST\"]\ninvalidates = \
    [\"g\"]\n[[route]]\npath = \"/g\"\nttl = \"1h\"\ngroups = [\"g\"]\n";

#[tokio::test]
async fn while_it_is_off_nothing_is_looked_up_or_stored_and_afterwards_all_is_right() {
    let fixture = Fixture::start(TWO, |seen| numbered(seen, &[])).await;
    for target in ["/a", "/g"] {
        assert_eq!(fixture.get(target).await.cache(), "MISS");
    }
    let told = bypass(&fixture, "{}").await.json();
    assert_eq!(told["bypass"][0]["by"], "instance", "{told}");
    for target in ["/a", "/a", "/b", "/b"] {
        let received = fixture.get(target).await;
        assert_eq!(received.cache(), "BYPASS");
        assert!(
            received.cache_status().contains("switched-off"),
            "{}",
            received.cache_status()
        );
    }
    assert_eq!(fixture.metric("cache_bypassed").await, 1.0);
    assert_eq!(
        fixture.admin("/readyz").await.json()["bypass"][0]["by"],
        "instance"
    );
    // A write is heard of.
    let mut client = fixture.connect().await;
    assert_eq!(client.ask("POST", "/write", &[]).await.status, 200);
    let told = bypass(&fixture, r#"{"off": true}"#).await.json();
    assert_eq!(told["bypass"].as_array().unwrap().len(), 0, "{told}");
    assert_eq!(fixture.metric("cache_bypassed").await, 0.0);
    let expected = [("/a", "HIT"), ("/b", "MISS"), ("/g", "MISS")];
    for (target, cache) in expected {
        assert_eq!(fixture.get(target).await.cache(), cache, "{target}");
    }
}

#[tokio::test]
async fn one_route_and_for_a_time() {
    let fixture = Fixture::start(TWO, |seen| numbered(seen, &[])).await;
    for target in ["/a", "/b"] {
        fixture.get(target).await;
    }
    let told = bypass(&fixture, r#"{"route": "/a", "for": "30m"}"#)
        .await
        .json();
    assert_eq!(told["bypass"][0]["route"], "/a");
    assert!(told["bypass"][0]["until"].is_string(), "{told}");
    assert_eq!(fixture.metric("cache_bypassed").await, 0.0);
    assert_eq!(fixture.get("/a").await.cache(), "BYPASS");
    assert_eq!(fixture.get("/b").await.cache(), "HIT");
    fixture.advance(30 * 60);
    assert_eq!(fixture.get("/a").await.cache(), "HIT");
    for (order, says) in [
        (r#"{"route": "/none"}"#, "there are /a, /b"),
        (r#"{"for": "soon"}"#, "expected a duration"),
        (r#"{"fro": "30m"}"#, "unknown field"),
        ("[", "the body"),
    ] {
        let refused = bypass(&fixture, order).await;
        assert_eq!(refused.status, 400, "{order}");
        assert!(refused.text().contains(says), "{order}: {}", refused.text());
    }
}

#[tokio::test]
async fn by_configuration_the_whole_or_a_route() {
    for (text, is_whole) in [
        (format!("bypass = true\n{}", route("ttl = \"1h\"")), true),
        (route("ttl = \"1h\"\nbypass = true"), false),
    ] {
        let origin = crate::support::Origin::start(|seen| numbered(seen, &[])).await;
        let fixture = Fixture::with_file(origin, &route("ttl = \"1h\""));
        fixture.get("/a").await;
        fixture.write_file(&text);
        Client::order(fixture.sidecar().admin_address, "/reload", "{}").await;
        assert_eq!(fixture.get("/a").await.cache(), "BYPASS", "{text}");
        let shown = fixture.metric("cache_bypassed").await;
        assert_eq!(shown, f64::from(u8::from(is_whole)));
        let told = fixture.admin("/readyz").await.json()["bypass"][0].clone();
        assert_eq!(told["by"], "configuration");
        assert_eq!(told["route"].is_null(), is_whole);
        fixture.write_file(&route("ttl = \"1h\""));
        Client::order(fixture.sidecar().admin_address, "/reload", "{}").await;
        assert_eq!(fixture.get("/a").await.cache(), "HIT");
    }
}

#[tokio::test]
async fn keys_and_limits_go_on() {
    let keys = Keys::of(&["good"]);
    let known = keys.clone();
    let text = format!(
        "[auth]\ncontrol = \"off\"\non_difference = \"off\"\n[[rate_limit]]\nby \
            = \"address\"\nrequests = 5\nwindow = \"1m\"\n{}",
        route("ttl = \"1h\"\nshare = \"verified\"")
    );
    let fixture =
        Fixture::start(&text, move |seen| known.check(seen, || numbered(seen, &[]))).await;
    let ask = |key: &'static str| {
        let fixture = &fixture;
        async move {
            let value = format!("Bearer {key}");
            fixture.get_with("/a", &[("authorization", &value)]).await
        }
    };
    assert_eq!(ask("good").await.status, 200);
    bypass(&fixture, "{}").await;
    assert_eq!(ask("good").await.status, 200);
    assert_eq!(ask("bad").await.status, 401);
    Client::order(
        fixture.sidecar().admin_address,
        "/revoke",
        r#"{"key": "good"}"#,
    )
    .await;
    assert_eq!(ask("good").await.status, 401, "a revoked key is refused");
    assert_eq!(ask("good").await.status, 401);
    assert_eq!(ask("good").await.status, 429);
}

#[tokio::test]
async fn a_whole_fleet_hears_of_it_and_who_comes_later_too() {
    let redis = RedisServer::start(&[]).await;
    let url = redis.url();
    let mut fleet = Fleet::start(&[&url, &url], &route("ttl = \"1h\""), |seen| {
        numbered(seen, &[])
    })
    .await;
    fleet.get(0, "/a").await;
    let admin = fleet.instance(0).admin_address;
    let order = r#"{"fleet": true, "for": "30m"}"#;
    let told = Client::order(admin, "/bypass", order).await.json();
    assert_eq!(told["state"], "done", "{told}");
    assert_eq!(told["instances"], 2, "{told}");
    for at in [0, 1] {
        assert_eq!(fleet.get(at, "/a").await.cache(), "BYPASS", "{at}");
    }
    let later = fleet.join(&url).await;
    assert_eq!(fleet.get(later, "/a").await.cache(), "BYPASS");
    let told = Client::order(admin, "/bypass", r#"{"fleet": true, "off": true}"#)
        .await
        .json();
    assert_eq!(told["state"], "done", "{told}");
    for at in [0, 1, later] {
        assert_ne!(fleet.get(at, "/a").await.cache(), "BYPASS", "{at}");
    }
    // It ends by itself: nobody has to think of it. The latest word counts.
    Client::order(admin, "/bypass", r#"{"fleet": true, "for": "2h"}"#).await;
    Client::order(admin, "/bypass", order).await;
    assert_eq!(fleet.get(1, "/a").await.cache(), "BYPASS");
    fleet.advance(30 * 60);
    assert_ne!(fleet.get(1, "/a").await.cache(), "BYPASS");
}
