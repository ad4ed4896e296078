//! What clients ask of the cache, obeyed as far as the route says (RFC 9111 §5.2.1).

use crate::support::{Fixture, ok, reply, route};

const ALL: &str = "ttl = \"60s\"\nobey = \
    [\"max-age\", \"min-fresh\", \"max-stale\", \"no-cache\", \"no-store\", \"only-if-cached\"]";

async fn start(keys: &str) -> Fixture {
    Fixture::start(&route(keys), |seen| match seen.header("if-none-match") {
        Some(_) => reply(304, "", &[("etag", "\"v\"")]),
        None => ok(format!("{}", seen.number), &[("etag", "\"v\"")]),
    })
    .await
}

async fn ask(fixture: &Fixture, field: (&str, &str)) -> String {
    fixture.get_with("/a", &[field]).await.cache().to_owned()
}

#[tokio::test]
async fn by_default_a_client_cannot_make_the_origin_work() {
    let fixture = start("ttl = \"60s\"").await;
    fixture.get("/a").await;
    fixture.metric_reaches("cache_stored_entries", 1.0).await;
    for value in ["no-cache", "no-store", "max-age=0", "min-fresh=1000"] {
        assert_eq!(
            ask(&fixture, ("cache-control", value)).await,
            "HIT",
            "{value}"
        );
    }
    assert_eq!(ask(&fixture, ("pragma", "no-cache")).await, "HIT");
    assert_eq!(fixture.origin.count(), 1);
}

#[tokio::test]
async fn what_is_obeyed_makes_the_origin_confirm() {
    let fixture = start(ALL).await;
    fixture.get("/a").await;
    fixture.metric_reaches("cache_stored_entries", 1.0).await;
    for field in [
        ("cache-control", "no-cache"),
        ("pragma", "no-cache"),
        ("cache-control", "min-fresh=61"),
    ] {
        assert_eq!(ask(&fixture, field).await, "HIT-REVALIDATED", "{field:?}");
    }
    fixture.advance(10);
    assert_eq!(
        ask(&fixture, ("cache-control", "max-age=9")).await,
        "HIT-REVALIDATED"
    );
    fixture.advance(10);
    assert_eq!(ask(&fixture, ("cache-control", "max-age=10")).await, "HIT");
}

#[tokio::test]
async fn only_if_cached_never_reaches_the_origin() {
    for keys in ["ttl = \"60s\"", ALL] {
        let fixture = start(keys).await;
        let missing = fixture
            .get_with("/a", &[("cache-control", "only-if-cached")])
            .await;
        assert_eq!(
            (missing.status, missing.json()["error"]["code"].as_str()),
            (504, Some("ONLY_IF_CACHED"))
        );
        assert_eq!(fixture.origin.count(), 0);
        fixture.get("/a").await;
        fixture.metric_reaches("cache_stored_entries", 1.0).await;
        assert_eq!(
            ask(&fixture, ("cache-control", "only-if-cached")).await,
            "HIT"
        );
    }
}

#[tokio::test]
async fn no_store_keeps_nothing_of_the_exchange() {
    let fixture = start(ALL).await;
    let received = fixture
        .get_with("/a", &[("cache-control", "no-store")])
        .await;
    assert!(
        received.cache_status().ends_with("detail=client-directive"),
        "{}",
        received.cache_status()
    );
    assert_eq!(fixture.get("/a").await.cache(), "MISS");
}

#[tokio::test]
async fn max_stale_is_given_what_may_be_given() {
    let fixture = Fixture::start(&route(ALL), |seen| match seen.target.as_str() {
        "/a" => ok("x", &[]),
        _ => ok("x", &[("cache-control", "max-age=60, must-revalidate")]),
    })
    .await;
    for target in ["/a", "/strict"] {
        fixture.get(target).await;
    }
    fixture.metric_reaches("cache_stored_entries", 2.0).await;
    fixture.advance(100);
    let fields = [("cache-control", "max-stale=50")];
    let stale = fixture.get_with("/a", &fields).await;
    assert_eq!(
        stale.cache_status(),
        "iris-sidecar; hit; ttl=-40; detail=max-stale"
    );
    assert_eq!(fixture.get_with("/strict", &fields).await.cache(), "MISS");
}

#[tokio::test]
async fn a_route_may_guess_a_lifetime_from_last_modified() {
    let fixture = Fixture::start(&route("heuristic_max_ttl = \"1h\""), |_| {
        ok("x", &[("last-modified", "Sun, 06 Nov 1994 08:49:37 GMT")])
    })
    .await;
    fixture.get("/a").await;
    fixture.metric_reaches("cache_stored_entries", 1.0).await;
    fixture.advance(3599);
    assert_eq!(fixture.get("/a").await.cache(), "HIT");
    fixture.advance(1);
    assert_eq!(fixture.get("/a").await.cache(), "MISS");
}
