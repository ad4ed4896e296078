//! Purges by the admin port, and what a write makes of stored responses (RFC 9111 §4.4, RFC 9875).

mod support;

use std::sync::Arc;

use support::{Client, Fixture, Gate, Received, after, all, ok, reply, route};

const FRESH: (&str, &str) = ("cache-control", "max-age=60");

/// A body that tells which of the origin's answers it is.
fn numbered(seen: &support::Seen, fields: &[(&str, &str)]) -> support::Reply {
    ok(format!("{}", seen.number), fields)
}

async fn order(fixture: &Fixture, body: &str) -> Received {
    let mut client = Client::connect(fixture.sidecar().admin_address).await;
    let length = body.len().to_string();
    client
        .request("POST", "/purge", &[("content-length", &length)])
        .await;
    client.send(body).await;
    client.response().await
}

async fn purge(fixture: &Fixture, body: &str) -> serde_json::Value {
    let received = order(fixture, body).await;
    assert_eq!(received.status, 200, "{}", received.text());
    received.json()
}

async fn write(fixture: &Fixture, method: &str, target: &str) -> Received {
    let mut client = fixture.connect().await;
    client.ask(method, target, &[("content-length", "0")]).await
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
    let config = "[[route]]\npath = \"/n\"\nquery = \"none\"\n\
        [[route]]\npath = \"/s\"\nquery = [\"a\", \"b\"]\nsort_query = true\n";
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
    assert_eq!((stale.cache(), stale.text().as_str()), ("STALE", "1"));
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
    assert_eq!(fixture.get("/a").await.cache(), "REVALIDATED");
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
    assert_eq!((stale.cache(), stale.text().as_str()), ("STALE", "1"));
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
async fn a_write_invalidates_its_target_before_its_sender_sees_the_answer() {
    for (method, status, goes) in [
        ("POST", 200, true),
        ("PUT", 204, true),
        ("DELETE", 303, true),
        ("BREW", 200, true),
        ("POST", 504, true),
        ("POST", 404, false),
        ("POST", 500, false),
        ("OPTIONS", 200, false),
    ] {
        let fixture = Fixture::start(&route(""), move |seen| match seen.method.as_str() {
            "GET" => numbered(seen, &[FRESH]),
            _ => reply(status, "", &[]),
        })
        .await;
        fixture.get("/a?x=1").await;
        fixture.get("/b").await;
        assert_eq!(write(&fixture, method, "/a?x=1").await.status, status);
        let expected = if goes { "MISS" } else { "HIT" };
        let found = fixture.get("/a?x=1").await;
        assert_eq!(found.cache(), expected, "{method} {status}");
        assert_eq!(fixture.get("/b").await.cache(), "HIT", "{method} {status}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn location_and_content_location_go_too_but_never_of_another_origin() {
    let fixture = Fixture::start(&route(""), |seen| match seen.method.as_str() {
        "GET" => numbered(seen, &[FRESH]),
        _ => {
            let named = seen.header("x-location").unwrap().to_owned();
            reply(201, "", &[("location", &named), ("content-location", "/c")])
        }
    })
    .await;
    let other_host = [("host", "other.example")];
    for (location, goes, foreign_goes) in [
        ("/items/7", true, false),
        ("7", true, false),
        ("http://api.example/items/7", true, false),
        ("http://other.example/items/7", false, false),
        ("https://api.example/items/7", false, false),
    ] {
        fixture.get("/items/7").await;
        fixture.get("/c").await;
        fixture.get_with("/items/7", &other_host).await;
        let fields = [("content-length", "0"), ("x-location", location)];
        let mut client = fixture.connect().await;
        assert_eq!(client.ask("POST", "/items/", &fields).await.status, 201);
        let gone = |found: Received| found.cache() == "MISS";
        assert_eq!(gone(fixture.get("/items/7").await), goes, "{location}");
        assert!(gone(fixture.get("/c").await), "{location}");
        let foreign = fixture.get_with("/items/7", &other_host).await;
        assert_eq!(gone(foreign), foreign_goes, "{location}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_whose_outcome_nobody_knows_invalidates_too() {
    let fixture = Fixture::start(&route(""), |seen| match seen.method.as_str() {
        "GET" => numbered(seen, &[FRESH]),
        _ => vec![support::Step::Reset],
    })
    .await;
    fixture.get("/a").await;
    assert_eq!(write(&fixture, "POST", "/a").await.status, 502);
    assert_eq!(fixture.get("/a").await.cache(), "MISS");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_whose_sender_leaves_invalidates_when_the_origin_has_done_it() {
    let gate = Gate::new();
    let held = gate.clone();
    let fixture = Fixture::start(&route(""), move |seen| match seen.method.as_str() {
        "GET" => numbered(seen, &[FRESH]),
        _ => after(&held, ok("", &[])),
    })
    .await;
    let mut client = fixture.connect().await;
    client
        .request("POST", "/a", &[("content-length", "0")])
        .await;
    fixture.origin.asked(1).await;
    drop(client);
    // Read before the origin has done it, and so to be gone afterwards.
    fixture.get("/a").await;
    assert_eq!(fixture.get("/a").await.cache(), "HIT");
    gate.open();
    fixture
        .metric_reaches("cache_purges_total{target=\"url\",mode=\"hard\"}", 1.0)
        .await;
    assert_eq!(fixture.get("/a").await.cache(), "MISS");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_never_left_changes_nothing() {
    let mut fixture = Fixture::start(&route(""), |seen| numbered(seen, &[FRESH])).await;
    fixture.get("/a").await;
    fixture.origin.stop().await;
    // A kept connection may have died before or after: the first write can be unknown.
    write(&fixture, "POST", "/b").await;
    assert_eq!(write(&fixture, "POST", "/a").await.status, 502);
    assert_eq!(fixture.get("/a").await.cache(), "HIT");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_begun_before_a_write_does_not_bring_back_what_it_changed() {
    let gate = Gate::new();
    let held = gate.clone();
    let fixture = Arc::new(
        Fixture::start(&route(""), move |seen| match (seen.number, &*seen.method) {
            (1, "GET") => after(&held, numbered(seen, &[FRESH])),
            _ => numbered(seen, &[FRESH]),
        })
        .await,
    );
    let reading = tokio::spawn({
        let fixture = Arc::clone(&fixture);
        async move { fixture.get("/a").await.text() }
    });
    fixture.origin.asked(1).await;
    write(&fixture, "PUT", "/a").await;
    gate.open();
    assert_eq!(reading.await.unwrap(), "1");
    assert_eq!(fixture.get("/a").await.text(), "3");
    assert_eq!(fixture.get("/a").await.cache(), "HIT");
}

fn groups(invalidation: &str) -> String {
    format!(
        "[[route]]\npath = \"/read\"\ngroups = [\"g\"]\nstale_while_revalidate = \"1m\"\n\
         [[route]]\npath = \"/write\"\nmethods = [\"POST\"]\ninvalidates = [\"g\"]\n{invalidation}\n"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_route_invalidates_groups_softly_or_hard() {
    for (key, expected) in [
        ("", ("STALE", "1")),
        ("invalidation = \"hard\"", ("MISS", "3")),
    ] {
        let fixture = Fixture::start(&groups(key), |seen| numbered(seen, &[FRESH])).await;
        // Of whatever host: the groups are the operator's.
        let host = [("host", "other.example")];
        fixture.get_with("/read", &host).await;
        assert_eq!(write(&fixture, "POST", "/write").await.status, 200);
        let found = fixture.get_with("/read", &host).await;
        assert_eq!((found.cache(), found.text().as_str()), expected);
    }
    let fixture = Fixture::start(&groups(""), |seen| match seen.method.as_str() {
        "GET" => numbered(seen, &[FRESH]),
        _ => reply(400, "", &[]),
    })
    .await;
    fixture.get("/read").await;
    write(&fixture, "POST", "/write").await;
    assert_eq!(fixture.get("/read").await.cache(), "HIT");
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_faster_than_the_origin_never_starve_the_cache() {
    let config = groups("");
    let fixture = Arc::new(Fixture::start(&config, |seen| numbered(seen, &[FRESH])).await);
    fixture.get("/read").await;
    for _ in 0..50 {
        write(&fixture, "POST", "/write").await;
        assert_ne!(fixture.get("/read").await.cache(), "MISS");
    }
    let reads = all((0..50).map(|_| {
        let fixture = Arc::clone(&fixture);
        async move {
            write(&fixture, "POST", "/write").await;
            fixture.get("/read").await
        }
    }));
    assert!(reads.await.iter().all(|read| read.cache() != "MISS"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_origin_names_groups_to_invalidate_on_unsafe_answers_only() {
    let fixture = Fixture::start(&route(""), |seen| {
        let invalidation = ("cache-group-invalidation", "\"g\";a=1, \"h\"");
        match (&*seen.method, &*seen.target) {
            ("GET", "/safe") => numbered(seen, &[FRESH, invalidation]),
            ("GET", "/other") => numbered(seen, &[FRESH, ("cache-groups", "\"G\"")]),
            ("GET", _) => numbered(seen, &[FRESH, ("cache-groups", "\"g\", \"x\"")]),
            _ => reply(200, "", &[invalidation]),
        }
    })
    .await;
    let foreign = [("host", "other.example")];
    for target in ["/a", "/other"] {
        fixture.get(target).await;
    }
    fixture.get_with("/a", &foreign).await;
    // MUST be ignored on the answer to a safe method (RFC 9875 §3).
    fixture.get("/safe").await;
    assert_eq!(fixture.get("/a").await.cache(), "HIT");
    write(&fixture, "POST", "/write").await;
    assert_eq!(fixture.get("/a").await.cache(), "MISS");
    assert_eq!(fixture.get("/other").await.cache(), "HIT");
    // Groups are of one origin (§2.1).
    assert_eq!(fixture.get_with("/a", &foreign).await.cache(), "HIT");
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
        ("evil.example", "http://evil.example", 403),
    ] {
        let fields = [("host", host), ("origin", origin), ("content-length", "13")];
        let mut client = Client::connect(address).await;
        client.request("POST", "/purge", &fields).await;
        client.send(r#"{"all": true}"#).await;
        assert_eq!(client.response().await.status, status, "{origin}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_write_changes_before_its_answer_ends_is_gone_when_it_has_ended() {
    let gate = Gate::new();
    let held = gate.clone();
    let fixture = Fixture::start(&route(""), move |seen| match seen.method.as_str() {
        "GET" => numbered(seen, &[FRESH]),
        _ => {
            let head = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n";
            vec![
                support::Step::Send(head.into()),
                support::Step::Wait(held.clone()),
                support::Step::Send(b"0\r\n\r\n".to_vec()),
            ]
        }
    })
    .await;
    let mut writer = fixture.connect().await;
    writer
        .request("POST", "/a", &[("content-length", "0")])
        .await;
    assert_eq!(writer.head().await.status, 200);
    // The origin has not done it yet: what is read now is old.
    fixture.get("/a").await;
    assert_eq!(fixture.get("/a").await.cache(), "HIT");
    gate.open();
    assert_eq!(writer.chunk().await.unwrap(), b"abc");
    assert_eq!(writer.chunk().await.unwrap(), b"");
    assert_eq!(fixture.get("/a").await.cache(), "MISS");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_default_port_is_no_other_origin() {
    let fixture = Fixture::start(&route(""), |seen| numbered(seen, &[FRESH])).await;
    fixture.get_with("/a", &[("host", "h.example")]).await;
    let with_port = [("host", "h.example:80"), ("content-length", "0")];
    assert_eq!(fixture.get_with("/a", &with_port[..1]).await.cache(), "HIT");
    let mut client = fixture.connect().await;
    client.ask("POST", "/a", &with_port).await;
    let gone = fixture.get_with("/a", &[("host", "h.example")]).await;
    assert_eq!(gone.cache(), "MISS");
}
