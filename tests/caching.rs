//! Caching as a client sees it: lifetimes, validation, variants, keys and the fields that tell.

use crate::support::{Fixture, numbered, ok, reply, route};

#[tokio::test]
async fn a_fresh_response_is_reused_and_says_so() {
    let fixture = Fixture::start(&route(""), |seen| {
        ok(
            format!("body {}", seen.number),
            &[("cache-control", "max-age=60")],
        )
    })
    .await;
    let miss = fixture.get("/a").await;
    assert_eq!((miss.cache(), miss.text().as_str()), ("MISS", "body 1"));
    assert_eq!(
        miss.cache_status(),
        "iris-sidecar; fwd=uri-miss; fwd-status=200; stored; detail=cold"
    );
    fixture.metric_reaches("cache_stored_entries", 1.0).await;
    fixture.advance(20);
    let hit = fixture.get("/a").await;
    assert_eq!((hit.cache(), hit.text().as_str()), ("HIT", "body 1"));
    assert_eq!(hit.cache_status(), "iris-sidecar; hit; ttl=40");
    assert_eq!(hit.header("age"), Some("20"));
    fixture.advance(40);
    let again = fixture.get("/a").await;
    assert_eq!((again.cache(), again.text().as_str()), ("MISS", "body 2"));
    assert!(
        again.cache_status().contains("fwd=stale"),
        "{}",
        again.cache_status()
    );
}

#[tokio::test]
async fn a_route_gives_a_silent_origin_a_lifetime() {
    let fixture = Fixture::start(&route("ttl = \"30s\""), |seen| {
        ok(format!("{}", seen.number), &[])
    })
    .await;
    assert_eq!(fixture.get("/a").await.cache(), "MISS");
    assert_eq!(fixture.get("/a").await.cache(), "HIT");
    fixture.advance(31);
    assert_eq!(fixture.get("/a").await.text(), "2");
}

#[tokio::test]
async fn force_ttl_overrules_and_max_ttl_caps_the_origin() {
    let keys = "[[route]]\npath = \"/forced\"\nforce_ttl = \"30s\"\n[[route]]\npath \
        = \"/capped\"\nmax_ttl = \"10s\"\n";
    let fixture = Fixture::start(keys, |seen| match seen.target.as_str() {
        "/forced" => ok(
            "x",
            &[("cache-control", "public, max-age=0, must-revalidate")],
        ),
        _ => ok("x", &[("cache-control", "max-age=600")]),
    })
    .await;
    for target in ["/forced", "/capped"] {
        fixture.get(target).await;
    }
    assert_eq!(
        fixture.get("/forced").await.cache_status(),
        "iris-sidecar; hit; ttl=30"
    );
    assert_eq!(
        fixture.get("/capped").await.cache_status(),
        "iris-sidecar; hit; ttl=10"
    );
}

#[tokio::test]
async fn what_may_not_be_stored_is_fetched_each_time_with_its_reason() {
    let fixture = Fixture::start(&route(""), |seen| match seen.target.as_str() {
        "/no-store" => ok("x", &[("cache-control", "no-store")]),
        "/private" => ok("x", &[("cache-control", "private, max-age=60")]),
        "/set-cookie" => ok(
            "x",
            &[("cache-control", "max-age=60"), ("set-cookie", "a=1")],
        ),
        "/vary-any" => ok("x", &[("cache-control", "max-age=60"), ("vary", "*")]),
        _ => ok("x", &[]),
    })
    .await;
    for (target, detail) in [
        ("/no-store", "no-store"),
        ("/private", "private"),
        ("/set-cookie", "set-cookie"),
        ("/vary-any", "vary-any"),
        ("/silent", "no-lifetime"),
    ] {
        let before = fixture.origin.count();
        let first = fixture.get(target).await;
        assert!(
            first.cache_status().ends_with(&format!("detail={detail}")),
            "{}",
            first.cache_status()
        );
        assert_eq!(fixture.get(target).await.cache(), "MISS");
        assert_eq!(fixture.origin.count(), before + 2);
    }
}

#[tokio::test]
async fn a_response_to_a_credential_is_shared_only_when_it_says_so() {
    let fixture = Fixture::start(&route(""), |seen| match seen.target.as_str() {
        "/public" => ok("x", &[("cache-control", "public, max-age=60")]),
        _ => ok("x", &[("cache-control", "max-age=60")]),
    })
    .await;
    let key = [("authorization", "Bearer k")];
    let own = fixture.get_with("/own", &key).await;
    assert!(
        own.cache_status().ends_with("detail=credential"),
        "{}",
        own.cache_status()
    );
    assert_eq!(fixture.get("/own").await.cache(), "MISS");
    fixture.get_with("/public", &key).await;
    assert_eq!(fixture.get("/public").await.cache(), "HIT");
}

#[tokio::test]
async fn a_stale_response_is_validated_and_a_304_renews_it() {
    let fixture = Fixture::start(&route(""), |seen| match seen.header("if-none-match") {
        Some("\"v1\"") => reply(
            304,
            "",
            &[
                ("cache-control", "max-age=90"),
                ("etag", "\"v1\""),
                ("x-new", "1"),
            ],
        ),
        _ => ok(
            "body",
            &[
                ("cache-control", "max-age=60"),
                ("etag", "\"v1\""),
                ("last-modified", "Sun, 06 Nov 1994 08:49:37 GMT"),
            ],
        ),
    })
    .await;
    fixture.get("/a").await;
    fixture.advance(61);
    let renewed = fixture.get("/a").await;
    assert_eq!(
        (renewed.status, renewed.cache(), renewed.text().as_str()),
        (200, "HIT-REVALIDATED", "body")
    );
    assert_eq!(renewed.header("x-new"), Some("1"));
    assert_eq!(
        renewed.cache_status(),
        "iris-sidecar; fwd=stale; fwd-status=304; stored; detail=revalidated"
    );
    assert_eq!(
        fixture.origin.last().header("if-modified-since"),
        Some("Sun, 06 Nov 1994 08:49:37 GMT")
    );
    assert_eq!(
        fixture.get("/a").await.cache_status(),
        "iris-sidecar; hit; ttl=90"
    );
}

#[tokio::test]
async fn a_client_that_has_it_gets_304_without_the_origin_being_asked() {
    let fixture = Fixture::start(&route(""), |_| {
        ok(
            "body",
            &[
                ("cache-control", "max-age=60"),
                ("etag", "\"v1\""),
                ("last-modified", "Sun, 06 Nov 1994 08:49:37 GMT"),
            ],
        )
    })
    .await;
    // Even the first one: the origin is asked for the whole, which is stored.
    let first = fixture.get_with("/a", &[("if-none-match", "\"v1\"")]).await;
    assert_eq!((first.status, first.cache()), (304, "MISS"));
    assert_eq!(fixture.origin.last().header("if-none-match"), None);
    fixture.metric_reaches("cache_stored_entries", 1.0).await;
    for field in [
        ("if-none-match", "W/\"v1\", \"x\""),
        ("if-modified-since", "Sun, 06 Nov 1994 08:49:37 GMT"),
    ] {
        let hit = fixture.get_with("/a", &[field]).await;
        assert_eq!((hit.status, hit.cache()), (304, "HIT"));
        assert_eq!(hit.header("etag"), Some("\"v1\""));
        assert_eq!(hit.header("content-length"), None);
    }
    let other = fixture.get_with("/a", &[("if-none-match", "\"v2\"")]).await;
    assert_eq!((other.status, other.text().as_str()), (200, "body"));
    assert_eq!(fixture.origin.count(), 1);
}

#[tokio::test]
async fn a_small_body_without_validator_gets_an_entity_tag_of_its_bytes() {
    let fixture = Fixture::start(&route("ttl = \"10s\""), |seen| {
        ok(
            "the same",
            &[(
                "content-type",
                if seen.target == "/other" {
                    "text/plain"
                } else {
                    "text/html"
                },
            )],
        )
    })
    .await;
    let first = fixture.get("/a").await;
    let etag = first.header("etag").expect("an entity tag").to_owned();
    assert!(etag.starts_with('"') && etag.len() == 34, "{etag}");
    let again = fixture.get_with("/a", &[("if-none-match", &etag)]).await;
    assert_eq!((again.status, again.cache()), (304, "HIT"));
    assert_ne!(
        fixture.get("/other").await.header("etag"),
        Some(etag.as_str())
    );
    // It is ours: the origin is never asked about it, but the same bytes keep the same tag.
    fixture.advance(11);
    let later = fixture.get_with("/a", &[("if-none-match", &etag)]).await;
    assert_eq!(later.status, 304);
    assert_eq!(fixture.origin.last().header("if-none-match"), None);
}

#[tokio::test]
async fn head_is_answered_from_a_stored_get_and_forwarded_as_head_otherwise() {
    let fixture = Fixture::start(&route(""), |seen| match seen.method.as_str() {
        "HEAD" => vec![crate::support::Step::Send(
            b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\ncache-control: max-age=60\r\n\r\n".to_vec(),
        )],
        _ => ok("body", &[("cache-control", "max-age=60")]),
    })
    .await;
    let mut client = fixture.connect().await;
    let miss = client.ask("HEAD", "/a", &[]).await;
    assert_eq!(
        (miss.status, miss.cache(), miss.header("content-length")),
        (200, "MISS", Some("4"))
    );
    assert_eq!(fixture.origin.last().method, "HEAD");
    client.ask("GET", "/a", &[]).await;
    fixture.metric_reaches("cache_stored_entries", 1.0).await;
    let hit = client.ask("HEAD", "/a", &[]).await;
    assert_eq!(
        (hit.status, hit.cache(), hit.header("content-length")),
        (200, "HIT", Some("4"))
    );
    // No body came with it: the connection goes on.
    assert_eq!(client.ask("GET", "/a", &[]).await.text(), "body");
    assert_eq!(fixture.origin.count(), 2);
}

#[tokio::test]
async fn a_request_without_a_route_is_proxied_and_never_stored() {
    let fixture = Fixture::start("[[route]]\npath = \"/known\"\n", |_| {
        ok("x", &[("cache-control", "max-age=60")])
    })
    .await;
    for _ in 0..2 {
        let received = fixture.get("/unknown").await;
        assert_eq!((received.status, received.cache()), (200, "BYPASS"));
        assert_eq!(
            received.cache_status(),
            "iris-sidecar; fwd=bypass; fwd-status=200; detail=no-route"
        );
    }
    assert_eq!(fixture.origin.count(), 2);
}

#[tokio::test]
async fn what_needs_the_origin_itself_goes_by() {
    let fixture = Fixture::start(
        &route("methods = [\"GET\", \"POST\"]\nttl = \"60s\""),
        |_| ok("x", &[]),
    )
    .await;
    fixture.get("/a").await;
    for (method, fields, detail) in [
        ("POST", &[][..], "method"),
        ("GET", &[("range", "lines=0-1")][..], "range"),
        ("GET", &[("if-match", "\"a\"")][..], "precondition"),
    ] {
        let received = fixture.connect().await.ask(method, "/a", fields).await;
        assert_eq!(received.cache(), "BYPASS");
        assert!(
            received
                .cache_status()
                .ends_with(&format!("detail={detail}")),
            "{}",
            received.cache_status()
        );
    }
    let mut client = fixture.connect().await;
    client
        .send("GET /a HTTP/1.1\r\nhost: api.example\r\ncontent-length: 2\r\n\r\nhi")
        .await;
    let with_body = client.response().await;
    assert!(
        with_body.cache_status().ends_with("detail=request-body"),
        "{}",
        with_body.cache_status()
    );
    assert_eq!(fixture.origin.last().body, b"hi");
}

#[tokio::test]
async fn an_entry_is_no_older_than_the_origin_says() {
    let fixture = Fixture::start(&route(""), |_| {
        ok("x", &[("cache-control", "max-age=60"), ("age", "50")])
    })
    .await;
    let miss = fixture.get("/a").await;
    assert_eq!(miss.header("age"), Some("50"));
    fixture.advance(5);
    assert_eq!(fixture.get("/a").await.header("age"), Some("55"));
    fixture.advance(5);
    assert_eq!(fixture.get("/a").await.cache(), "MISS");
}

#[tokio::test]
async fn a_targeted_field_counts_for_us_and_clients_see_what_the_route_says() {
    let text = format!(
        "[cache]\nhide_targeted_fields = true\n{}",
        route("client_cache_control = \"no-cache\"")
    );
    let fixture = Fixture::start(&text, |seen| match seen.header("if-none-match") {
        Some(_) => reply(
            304,
            "",
            &[("etag", "\"v\""), ("cdn-cache-control", "max-age=90")],
        ),
        None => ok(
            "x",
            &[
                ("cache-control", "private"),
                ("cdn-cache-control", "max-age=60"),
                ("etag", "\"v\""),
            ],
        ),
    })
    .await;
    for (expected, seconds) in [
        ("MISS", 0),
        ("HIT", 0),
        ("HIT-REVALIDATED", 61),
        ("HIT", 80),
    ] {
        fixture.advance(seconds);
        let received = fixture.get("/a").await;
        assert_eq!(
            (received.cache(), received.header("cache-control")),
            (expected, Some("no-cache"))
        );
        assert_eq!(received.header("cdn-cache-control"), None);
        fixture.metric_reaches("cache_stored_entries", 1.0).await;
    }
}

#[tokio::test]
async fn what_is_said_to_be_older_than_time_does_not_live_on() {
    for (age, keys) in [
        ("2147483648", "ttl = \"2s\""),
        ("2147483647", "ttl = \"2s\"\nmax_ttl = \"3s\""),
        ("18446744073709551615", "force_ttl = \"2s\""),
        ("99999999999999999999999", "ttl = \"2s\""),
    ] {
        let fixture =
            Fixture::start(&route(keys), move |seen| numbered(seen, &[("age", age)])).await;
        fixture.get("/a").await;
        assert_eq!(fixture.get("/a").await.cache(), "HIT", "{age} {keys}");
        fixture.advance(4);
        assert_eq!(fixture.get("/a").await.cache(), "MISS", "{age} {keys}");
    }
}
