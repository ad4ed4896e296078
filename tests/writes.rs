//! What a write makes of stored responses (RFC 9111 §4.4, RFC 9875).

use std::sync::Arc;

use crate::support::{Fixture, Gate, Received, after, all, numbered, ok, reply, route};

const FRESH: (&str, &str) = ("cache-control", "max-age=60");

async fn write(fixture: &Fixture, method: &str, target: &str) -> Received {
    let mut client = fixture.connect().await;
    client.ask(method, target, &[("content-length", "0")]).await
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
        _ => vec![crate::support::Step::Reset],
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

fn groups(keys: &str) -> String {
    format!(
        "[[route]]\npath = \"/read\"\ngroups = [\"g\"]\nstale_while_revalidate = \"1m\"\n\
         [[route]]\npath = \"/write\"\nmethods = [\"POST\"]\n{keys}\n"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_route_invalidates_groups_softly_or_hard() {
    for (key, expected) in [
        ("invalidates = [\"g\"]", ("HIT-STALE", "1")),
        (
            "invalidates = [\"g\"]\ninvalidation = \"hard\"",
            ("MISS", "3"),
        ),
        ("purges = [\"g\"]", ("MISS", "3")),
        ("invalidates = [\"other\"]\npurges = [\"g\"]", ("MISS", "3")),
        (
            "invalidates = [\"g\"]\npurges = [\"other\"]",
            ("HIT-STALE", "1"),
        ),
    ] {
        let fixture = Fixture::start(&groups(key), |seen| numbered(seen, &[FRESH])).await;
        // Of whatever host: the groups are the operator's.
        let host = [("host", "other.example")];
        fixture.get_with("/read", &host).await;
        assert_eq!(write(&fixture, "POST", "/write").await.status, 200);
        let found = fixture.get_with("/read", &host).await;
        assert_eq!((found.cache(), found.text().as_str()), expected);
    }
    let fixture = Fixture::start(&groups("invalidates = [\"g\"]"), |seen| {
        match seen.method.as_str() {
            "GET" => numbered(seen, &[FRESH]),
            _ => reply(400, "", &[]),
        }
    })
    .await;
    fixture.get("/read").await;
    write(&fixture, "POST", "/write").await;
    assert_eq!(fixture.get("/read").await.cache(), "HIT");
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_faster_than_the_origin_never_starve_the_cache() {
    let config = groups("invalidates = [\"g\"]");
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
async fn what_a_write_changes_before_its_answer_ends_is_gone_when_it_has_ended() {
    let gate = Gate::new();
    let held = gate.clone();
    let fixture = Fixture::start(&route(""), move |seen| match seen.method.as_str() {
        "GET" => numbered(seen, &[FRESH]),
        _ => {
            let head = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n";
            vec![
                crate::support::Step::Send(head.into()),
                crate::support::Step::Wait(held.clone()),
                crate::support::Step::Send(b"0\r\n\r\n".to_vec()),
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
