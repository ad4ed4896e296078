//! Purges by the admin port, and what they do to fetches under way.

use std::sync::Arc;

use crate::support::{Client, Fixture, Gate, Received, after, numbered, ok, reply, route};

const FRESH: (&str, &str) = ("cache-control", "max-age=60");

async fn order(fixture: &Fixture, body: &str) -> Received {
    Client::order(fixture.sidecar().admin_address, "/purge", body).await
}

async fn purge(fixture: &Fixture, body: &str) -> serde_json::Value {
    let received = order(fixture, body).await;
    assert_eq!(received.status, 200, "{}", received.text());
    received.json()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hard_purge_is_gone_at_once_by_url_prefix_group_and_all() {
    let orders = [
        (r#"{"url": "/a/x?q=1"}"#, [false, true, true]),
        (
            r#"{"url": "http://api.example/a/x?q=1"}"#,
            [false, true, true],
        ),
        (
            r#"{"url": "http://other.example/a/x?q=1"}"#,
            [true, true, true],
        ),
        (r#"{"prefix": "/a/"}"#, [false, false, true]),
        (r#"{"prefix": "/a/x?q"}"#, [false, true, true]),
        (r#"{"group": "tag"}"#, [true, false, false]),
        (r#"{"all": true}"#, [false, false, false]),
    ];
    for (body, stays) in orders {
        let fixture = Fixture::start(&route(""), |seen| match seen.target.as_str() {
            "/a/x?q=1" => numbered(seen, &[FRESH]),
            "/a/y" => numbered(seen, &[FRESH, ("cache-groups", "\"tag\"")]),
            _ => numbered(seen, &[FRESH, ("surrogate-key", "other tag")]),
        })
        .await;
        let targets = ["/a/x?q=1", "/a/y", "/b"];
        for target in targets {
            fixture.get(target).await;
        }
        let expected = stays.iter().filter(|stays| !**stays).count();
        let dry = body.replace('}', r#", "dry_run": true}"#);
        assert_eq!(purge(&fixture, &dry).await["matches"], expected, "{body}");
        let done = purge(&fixture, body).await;
        assert_eq!(done["matches"], expected, "{body}");
        assert_eq!(
            (&done["position"], &done["instances"]),
            (&1.into(), &1.into())
        );
        for (target, stays) in targets.into_iter().zip(stays) {
            let is_hit = fixture.get(target).await.cache() == "HIT";
            assert_eq!(is_hit, stays, "{body} {target}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_purged_url_is_named_as_its_route_keys_it() {
    let config = "[[route]]\npath = \"/n\"\nquery = \"none\"\nunknown_query = \"drop\"\n\
        [[route]]\npath = \"/s\"\nquery = [\"a\", \"b\"]\nunknown_query = \"drop\"\nsort_query = \
        true\n";
    let fixture = Fixture::start(config, |seen| numbered(seen, &[FRESH])).await;
    fixture.get("/n?utm=1").await;
    fixture.get("/s?b=2&utm=1&a=1").await;
    assert_eq!(
        purge(&fixture, r#"{"url": "/n?utm=2"}"#).await["matches"],
        1
    );
    assert_eq!(
        purge(&fixture, r#"{"url": "/%73?a=1&b=2"}"#).await["matches"],
        1
    );
    assert_eq!(fixture.get("/n").await.cache(), "MISS");
    assert_eq!(fixture.get("/s?a=1&b=2").await.cache(), "MISS");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_variant_and_partition_of_a_url_goes() {
    let config = route("share = \"per-key\"");
    let fixture = Fixture::start(&config, |seen| {
        numbered(seen, &[FRESH, ("vary", "accept-language")])
    })
    .await;
    let ask = |key: &'static str, language: &'static str| {
        let fields = [("authorization", key), ("accept-language", language)];
        let fixture = &fixture;
        async move { fixture.get_with("/a", &fields).await.cache().to_owned() }
    };
    for (key, language) in [("k1", "de"), ("k1", "en"), ("k2", "de")] {
        assert_eq!(ask(key, language).await, "MISS");
        assert_eq!(ask(key, language).await, "HIT");
    }
    assert_eq!(purge(&fixture, r#"{"url": "/a"}"#).await["matches"], 3);
    for (key, language) in [("k1", "de"), ("k1", "en"), ("k2", "de")] {
        assert_eq!(ask(key, language).await, "MISS");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_soft_purge_makes_stale_and_grace_counts_from_it() {
    let config = route("stale_while_revalidate = \"10s\"");
    let fixture = Fixture::start(&config, |seen| numbered(seen, &[FRESH])).await;
    fixture.get("/a").await;
    fixture.advance(5);
    purge(&fixture, r#"{"url": "/a", "soft": true}"#).await;
    fixture.advance(3);
    let stale = fixture.get("/a").await;
    assert_eq!((stale.cache(), stale.text().as_str()), ("HIT-STALE", "1"));
    assert!(
        stale.cache_status().contains("ttl=-3"),
        "{}",
        stale.cache_status()
    );
    fixture.origin.asked(2).await;
    fixture
        .metric_reaches("cache_background_refreshes_total{result=\"replaced\"}", 1.0)
        .await;
    let fresh = fixture.get("/a").await;
    assert_eq!((fresh.cache(), fresh.text().as_str()), ("HIT", "2"));

    purge(&fixture, r#"{"all": true, "soft": true}"#).await;
    fixture.advance(11);
    let late = fixture.get("/a").await;
    assert_eq!((late.cache(), late.text().as_str()), ("MISS", "3"));
    assert!(
        late.cache_status().contains("fwd=stale"),
        "{}",
        late.cache_status()
    );
    assert!(
        late.cache_status().ends_with("detail=purged"),
        "{}",
        late.cache_status()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_soft_purge_made_stale_is_confirmed_by_304() {
    let fixture = Fixture::start(&route(""), |seen| match seen.header("if-none-match") {
        Some("\"e\"") => reply(304, "", &[("etag", "\"e\""), FRESH]),
        _ => numbered(seen, &[FRESH, ("etag", "\"e\"")]),
    })
    .await;
    fixture.get("/a").await;
    purge(&fixture, r#"{"url": "/a", "soft": true}"#).await;
    assert_eq!(fixture.get("/a").await.cache(), "HIT-REVALIDATED");
    assert_eq!(fixture.get("/a").await.cache(), "HIT");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fill_begun_before_a_hard_purge_does_not_land_and_is_not_joined() {
    let gate = Gate::new();
    let held = gate.clone();
    let fixture = Arc::new(
        Fixture::start(&route(""), move |seen| match seen.number {
            1 => after(&held, numbered(seen, &[FRESH])),
            _ => numbered(seen, &[FRESH]),
        })
        .await,
    );
    let first = tokio::spawn({
        let fixture = Arc::clone(&fixture);
        async move { fixture.get("/a").await }
    });
    fixture.origin.asked(1).await;
    purge(&fixture, r#"{"url": "/a"}"#).await;
    // Comes after the purge: it must not get what was read before it.
    let second = fixture.get("/a").await;
    assert_eq!(second.text(), "2");
    gate.open();
    assert_eq!(first.await.unwrap().text(), "1");
    fixture
        .metric_reaches("cache_not_stored_total{reason=\"purged\"}", 1.0)
        .await;
    let third = fixture.get("/a").await;
    assert_eq!((third.cache(), third.text().as_str()), ("HIT", "2"));
    assert_eq!(fixture.metric("cache_flights").await, 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn waiters_of_an_outdated_flight_share_one_new_fetch() {
    let gate = Gate::new();
    let held = gate.clone();
    let fixture = Arc::new(
        Fixture::start(&route(""), move |seen| match seen.number {
            1 => after(&held, numbered(seen, &[FRESH, ("cache-groups", "\"g\"")])),
            _ => numbered(seen, &[FRESH]),
        })
        .await,
    );
    let spawn = |fixture: &Arc<Fixture>| {
        let fixture = Arc::clone(fixture);
        tokio::spawn(async move { fixture.get("/a").await.text() })
    };
    let leader = spawn(&fixture);
    fixture.origin.asked(1).await;
    purge(&fixture, r#"{"group": "g"}"#).await;
    // Nobody can know yet that the response under way will be in the group.
    let waiters: Vec<_> = (0..20).map(|_| spawn(&fixture)).collect();
    gate.open();
    assert_eq!(leader.await.unwrap(), "1");
    for waiter in waiters {
        assert_eq!(waiter.await.unwrap(), "2");
    }
    assert_eq!(fixture.origin.count(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fill_begun_before_a_soft_purge_lands_stale() {
    let gate = Gate::new();
    let held = gate.clone();
    let config = route("stale_while_revalidate = \"10s\"\ngroups = [\"g\"]");
    let fixture = Arc::new(
        Fixture::start(&config, move |seen| match seen.number {
            1 => after(&held, numbered(seen, &[FRESH])),
            _ => numbered(seen, &[FRESH]),
        })
        .await,
    );
    let first = tokio::spawn({
        let fixture = Arc::clone(&fixture);
        async move { fixture.get("/a").await.text() }
    });
    fixture.origin.asked(1).await;
    purge(&fixture, r#"{"group": "g", "soft": true}"#).await;
    gate.open();
    assert_eq!(first.await.unwrap(), "1");
    fixture.advance(4);
    let stale = fixture.get("/a").await;
    assert_eq!((stale.cache(), stale.text().as_str()), ("HIT-STALE", "1"));
    assert!(
        stale.cache_status().contains("ttl=-4"),
        "{}",
        stale.cache_status()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn orders_that_cannot_be_read_say_what_is_expected() {
    let config = format!("[admin]\ntoken = \"t\"\n{}", route(""));
    let fixture = Fixture::start(&config, |_| ok("x", &[])).await;
    assert_eq!(order(&fixture, r#"{"all": true}"#).await.status, 401);
    drop(fixture);

    let config = "[[route]]\npath = \"/a\"\n";
    let fixture = Fixture::start(config, |_| ok("x", &[])).await;
    for (body, says) in [
        ("", "EOF while parsing"),
        ("[]", "expected a map"),
        ("{}", "expected one of"),
        (r#"{"url": "/a", "all": true}"#, "expected one of"),
        (r#"{"all": false}"#, "expected one of"),
        (r#"{"urls": "/a"}"#, "unknown field `urls`"),
        (r#"{"url": "a"}"#, "expected a path such as"),
        (r#"{"url": "/b"}"#, "no [[route]] takes GET requests for it"),
        (r#"{"all": true, "soft": 1}"#, "expected a boolean"),
    ] {
        let refused = order(&fixture, body).await;
        assert_eq!(refused.status, 400, "{body}");
        assert!(refused.text().contains(says), "{}", refused.text());
    }
    let large = format!(r#"{{"url": "/{}"}}"#, "a".repeat(70_000));
    assert_eq!(order(&fixture, &large).await.status, 413);
    let wrong = fixture.admin("/purge").await;
    assert_eq!((wrong.status, wrong.header("allow")), (405, Some("POST")));
}

#[tokio::test(flavor = "multi_thread")]
async fn soft_purges_during_a_fetch_do_not_turn_its_waiters_loose() {
    let gate = Gate::new();
    let held = gate.clone();
    let config = route("groups = [\"g\"]");
    let fixture = Arc::new(
        Fixture::start(&config, move |seen| match seen.number {
            1 => after(&held, numbered(seen, &[FRESH])),
            _ => numbered(seen, &[FRESH]),
        })
        .await,
    );
    let spawn = || {
        let fixture = Arc::clone(&fixture);
        tokio::spawn(async move { fixture.get("/a").await.text() })
    };
    let leader = spawn();
    fixture.origin.asked(1).await;
    let early: Vec<_> = (0..20).map(|_| spawn()).collect();
    purge(&fixture, r#"{"group": "g", "soft": true}"#).await;
    let late: Vec<_> = (0..20).map(|_| spawn()).collect();
    gate.open();
    assert_eq!(leader.await.unwrap(), "1");
    for waiter in early.into_iter().chain(late) {
        waiter.await.unwrap();
    }
    // Who came after the purge fetches once more, for all of them.
    assert!(fixture.origin.count() <= 3, "{}", fixture.origin.count());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_purged_meanwhile_does_not_stand_in_for_a_failure() {
    let gate = Gate::new();
    let held = gate.clone();
    let config = route("stale_if_error = \"1h\"");
    let fixture = Arc::new(
        Fixture::start(&config, move |seen| match seen.number {
            1 => numbered(seen, &[("cache-control", "max-age=1")]),
            _ => after(&held, reply(500, "sorry", &[])),
        })
        .await,
    );
    fixture.get("/a").await;
    fixture.advance(5);
    let asking = tokio::spawn({
        let fixture = Arc::clone(&fixture);
        async move { fixture.get("/a").await }
    });
    fixture.origin.asked(2).await;
    purge(&fixture, r#"{"url": "/a"}"#).await;
    gate.open();
    let answer = asking.await.unwrap();
    assert_eq!((answer.status, answer.text().as_str()), (500, "sorry"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_of_another_site_cannot_purge() {
    let fixture = Fixture::start(&route(""), |_| ok("x", &[])).await;
    let address = fixture.sidecar().admin_address;
    let own = format!("http://{address}");
    let host = address.to_string();
    // The last one has made its own name point here.
    for (host, origin, status) in [
        (&*host, "https://evil.example", 403),
        (&*host, "null", 403),
        (&*host, &*own, 200),
        ("evil.example", "http://evil.example", 421),
    ] {
        let fields = [
            ("host", host),
            ("origin", origin),
            ("content-type", "application/json"),
            ("content-length", "13"),
        ];
        let mut client = Client::connect(address).await;
        client.request("POST", "/purge", &fields).await;
        client.send(r#"{"all": true}"#).await;
        assert_eq!(client.response().await.status, status, "{origin}");
    }
}

#[tokio::test]
async fn explain_says_who_asked_for_what_made_it_stale_or_took_it() {
    let read = route("ttl = \"1h\"\nstale_while_revalidate = \"1h\"\ngroups = [\"articles\"]");
    let write = "[[route]]\npath = \"/publish\"\nmethods = [\"POST\"]\ninvalidates = \
        [\"articles\"]\ninvalidation = \"soft\"\n";
    let fixture = Fixture::start(&format!("{read}{write}"), |seen| {
        match seen
            .target
            .split_once('?')
            .map_or(&*seen.target, |(path, _)| path)
        {
            "/publish" if seen.target.ends_with("gone") => {
                ok("done", &[("cache-group-invalidation", "\"named\"")])
            }
            _ => numbered(seen, &[("cache-groups", "\"named\"")]),
        }
    })
    .await;
    let explained = async || {
        fixture
            .admin("/explain?url=http://api.example/a")
            .await
            .json()
    };
    let write = async |target: &str, id: &str| {
        let mut client = fixture.connect().await;
        client.ask("POST", target, &[("x-request-id", id)]).await;
    };
    fixture.get("/a").await;
    let told = explained().await;
    assert_eq!(told["stored"]["tier"], "memory");
    assert!(told["stored"]["purged_stale_by"].is_null(), "{told}");

    write("/publish?token=secret", "req-1").await;
    let by = &explained().await["stored"]["purged_stale_by"];
    assert_eq!(by["named"], "group articles");
    assert_eq!(by["by"], "POST /publish");
    assert_eq!(
        (&by["request_id"], &by["mode"]),
        (&"req-1".into(), &"soft".into())
    );

    write("/publish?gone", "req-2").await;
    let told = explained().await;
    let sentence = told["sentence"].as_str().unwrap();
    assert!(told["stored"].is_null(), "{told}");
    assert!(
        sentence.contains("went by a hard purge of group named at ")
            && sentence.ends_with("asked for by POST /publish (request req-2)"),
        "{sentence}"
    );

    fixture.get("/a").await;
    assert!(explained().await["purged"].is_null());
    purge(&fixture, r#"{"url": "/a"}"#).await;
    let told = explained().await;
    assert_eq!(told["purged"]["named"], "url /a");
    assert_eq!(told["purged"]["by"], "an order at the admin port");
}
