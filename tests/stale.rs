//! Stale responses: served at once while one refresh runs, and in the place of a failed origin.

use crate::support::{Fixture, Gate, Step, after, ok, reply, route};

const WINDOWS: &str = "ttl = \"10s\"\nstale_while_revalidate = \"60s\"\nstale_if_error = \"1h\"";

#[tokio::test]
async fn a_stale_hit_inside_the_window_never_waits_for_the_origin() {
    let gate = Gate::new();
    let held = gate.clone();
    let fixture = Fixture::start(&route(WINDOWS), move |seen| {
        let then = ok(format!("{}", seen.number), &[]);
        if seen.number > 1 {
            after(&held, then)
        } else {
            then
        }
    })
    .await;
    fixture.get("/a").await;
    fixture.advance(15);
    for _ in 0..20 {
        let stale = fixture.get("/a").await;
        assert_eq!((stale.cache(), stale.text().as_str()), ("HIT-STALE", "1"));
        assert_eq!(
            stale.cache_status(),
            "iris-sidecar; hit; ttl=-5; detail=stale-while-revalidate"
        );
    }
    fixture.origin.asked(2).await;
    assert_eq!(fixture.origin.count(), 2, "one refresh for all of them");
    gate.open();
    fixture
        .metric_reaches("cache_background_refreshes_total{result=\"replaced\"}", 1.0)
        .await;
    let fresh = fixture.get("/a").await;
    assert_eq!((fresh.cache(), fresh.text().as_str()), ("HIT", "2"));
}

#[tokio::test]
async fn a_refresh_is_conditional_and_a_304_confirms_what_is_stored() {
    let fixture = Fixture::start(&route(WINDOWS), |seen| match seen.header("if-none-match") {
        Some(_) => reply(304, "", &[("etag", "\"v\"")]),
        None => ok("body", &[("etag", "\"v\"")]),
    })
    .await;
    fixture.get("/a").await;
    fixture.advance(15);
    assert_eq!(fixture.get("/a").await.cache(), "HIT-STALE");
    fixture
        .metric_reaches(
            "cache_background_refreshes_total{result=\"confirmed\"}",
            1.0,
        )
        .await;
    let hit = fixture.get("/a").await;
    assert_eq!(
        (hit.cache(), hit.header("age"), hit.text().as_str()),
        ("HIT", Some("0"), "body")
    );
}

#[tokio::test]
async fn a_refresh_carries_the_credential_that_set_it_off() {
    let fixture = Fixture::start(&route(&format!("{WINDOWS}\nshare = \"per-key\"")), |_| {
        ok("x", &[])
    })
    .await;
    let key = [("authorization", "Bearer k")];
    fixture.get_with("/a", &key).await;
    fixture.advance(15);
    assert_eq!(fixture.get_with("/a", &key).await.cache(), "HIT-STALE");
    fixture.origin.asked(2).await;
    assert_eq!(
        fixture.origin.last().header("authorization"),
        Some("Bearer k")
    );
}

#[tokio::test]
async fn stale_stands_in_for_an_origin_that_fails_in_any_way() {
    for failure in ["500", "close", "reset", "garbage", "cut", "429"] {
        let fixture = Fixture::start(
            &route("ttl = \"10s\"\nstale_if_error = \"1h\""),
            move |seen| match seen.number {
                1 => ok("good", &[]),
                _ => match failure {
                    "500" => reply(500, "bad", &[]),
                    "429" => reply(429, "slow down", &[("retry-after", "30")]),
                    "close" => vec![Step::Close],
                    "reset" => vec![Step::Reset],
                    "garbage" => vec![Step::Send(b"not http at all\r\n\r\n".to_vec()), Step::Close],
                    // A small body of known length is awaited whole, so that its loss can be
                    // covered.
                    _ => vec![
                        Step::Send(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf".to_vec()),
                        Step::Close,
                    ],
                },
            },
        )
        .await;
        fixture.get("/a").await;
        fixture.advance(60);
        let stale = fixture.get("/a").await;
        assert_eq!(
            (stale.status, stale.cache(), stale.text().as_str()),
            (200, "HIT-STALE", "good"),
            "{failure}"
        );
        // It was asked: that is no hit (RFC 9211 §2.1).
        let said = stale.cache_status();
        assert!(
            said.starts_with("iris-sidecar; fwd=stale"),
            "{failure}: {said}"
        );
        assert!(
            said.ends_with("ttl=-50; detail=stale-if-error"),
            "{failure}: {said}"
        );
        // The origin is left alone for a moment.
        let asked = fixture.origin.count();
        let next = fixture.get("/a").await;
        assert_eq!(next.cache(), "HIT-STALE", "{failure}");
        let said = next.cache_status();
        assert!(
            said.starts_with("iris-sidecar; hit; ttl=-50"),
            "{failure}: {said}"
        );
        assert_eq!(fixture.origin.count(), asked, "{failure}");
        fixture.advance(if failure == "429" { 31 } else { 2 });
        fixture.get("/a").await;
        assert!(fixture.origin.count() > asked, "{failure}");
    }
}

#[tokio::test]
async fn past_its_window_stale_is_not_served() {
    let fixture =
        Fixture::start(
            &route("ttl = \"10s\"\nstale_if_error = \"60s\""),
            |seen| match seen.number {
                1 => ok("good", &[]),
                _ => vec![Step::Close],
            },
        )
        .await;
    fixture.get("/a").await;
    fixture.advance(80);
    let failed = fixture.get("/a").await;
    assert_eq!((failed.status, failed.cache()), (502, "MISS"));
}

#[tokio::test]
async fn must_revalidate_forbids_stale() {
    let fixture = Fixture::start(
        &route("stale_if_error = \"1h\"\nstale_while_revalidate = \"1h\""),
        |seen| match seen.number {
            1 => ok("good", &[("cache-control", "max-age=10, must-revalidate")]),
            _ => vec![Step::Close],
        },
    )
    .await;
    fixture.get("/a").await;
    fixture.advance(20);
    assert_eq!(fixture.get("/a").await.status, 502);
}

#[tokio::test]
async fn a_failed_refresh_leaves_stale_in_its_place() {
    let fixture = Fixture::start(&route(WINDOWS), |seen| match seen.number {
        1 => ok("good", &[]),
        _ => reply(503, "down", &[("retry-after", "20")]),
    })
    .await;
    fixture.get("/a").await;
    fixture.advance(15);
    assert_eq!(fixture.get("/a").await.cache(), "HIT-STALE");
    fixture
        .metric_reaches("cache_background_refreshes_total{result=\"failed\"}", 1.0)
        .await;
    for _ in 0..5 {
        assert_eq!(fixture.get("/a").await.text(), "good");
    }
    assert_eq!(fixture.origin.count(), 2, "Retry-After is honoured");
    fixture.advance(21);
    assert_eq!(fixture.get("/a").await.cache(), "HIT-STALE");
    fixture.origin.asked(3).await;
}

const JSON: &[(&str, &str)] = &[("content-type", "application/json; charset=utf-8")];

#[tokio::test]
async fn a_stream_of_events_is_never_held_back_to_be_looked_into() {
    let gate = Gate::new();
    let held = gate.clone();
    let keys = "error_when = { pointer = \"/a\", equals = 0 }";
    let fixture = Fixture::start(&route(keys), move |_| {
        let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: \
            chunked\r\n\r\n";
        let begun = Step::Send(format!("{head}9\r\ndata: 1\n\n\r\n").into_bytes());
        vec![begun, Step::Wait(held.clone())]
    })
    .await;
    let mut client = fixture.connect().await;
    client.request("GET", "/events", &[]).await;
    client.head().await;
    assert_eq!(client.chunk().await.unwrap(), b"data: 1\n\n");
    gate.open();
}

#[tokio::test]
async fn what_was_stored_without_a_cookie_does_not_stand_in_for_a_request_with_one() {
    let fixture = Fixture::start(
        &route("ttl = \"60s\"\nstale_if_error = \"1h\""),
        |seen| match seen.header("cookie") {
            None => ok("anonymous", &[]),
            Some(_) => reply(500, "own failure", &[]),
        },
    )
    .await;
    fixture.get("/a").await;
    for seconds in [0, 120] {
        fixture.advance(seconds);
        let own = fixture.get_with("/a", &[("cookie", "a=1")]).await;
        assert_eq!((own.status, own.text().as_str()), (500, "own failure"));
    }
}

#[tokio::test]
async fn a_success_whose_body_means_failure_is_not_stored_and_stale_stands_in() {
    let keys = "ttl = \"10s\"\nstale_if_error = \"1h\"\nerror_when = { pointer \
        = \"/metrics/total\", equals = 0 }";
    let fixture = Fixture::start(&route(keys), |seen| {
        match (seen.target.as_str(), seen.number) {
            ("/a", 1) => ok(r#"{"metrics":{"total":8}}"#, JSON),
            // Says so too, but in 300 KB.
            ("/large", _) => ok(
                format!(
                    r#"{{"metrics":{{"total":0}},"x":"{}"}}"#,
                    "y".repeat(300_000)
                ),
                JSON,
            ),
            _ => ok(r#"{"metrics":{"total":0}}"#, JSON),
        }
    })
    .await;
    assert_eq!(fixture.get("/a").await.cache(), "MISS");
    fixture.advance(20);
    let stale = fixture.get("/a").await;
    assert_eq!(
        (stale.cache(), stale.text().as_str()),
        ("HIT-STALE", r#"{"metrics":{"total":8}}"#)
    );
    // Nothing to stand in: as it came, and never stored.
    for _ in 0..2 {
        let zeros = fixture.get("/cold").await;
        assert_eq!((zeros.status, zeros.cache()), (200, "MISS"));
        assert_eq!(zeros.text(), r#"{"metrics":{"total":0}}"#);
    }
    // Too large to look into: passed on whole, and stored.
    assert!(fixture.get("/large").await.body.len() > 300_000);
    fixture.metric_reaches("cache_stored_entries", 2.0).await;
    assert_eq!(fixture.get("/large").await.cache(), "HIT");
}
