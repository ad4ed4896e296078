//! Rules of the RFCs that no other file is about, one by one.

use std::sync::Arc;

use crate::support::{Client, Fixture, Gate, Step, after, ok, reply, route};

const FRESH: (&str, &str) = ("cache-control", "max-age=60");
const TAG: (&str, &str) = ("etag", "\"v1\"");

#[tokio::test(flavor = "multi_thread")]
async fn fields_that_no_cache_names_are_left_out_on_reuse() {
    for lines in [
        &[("cache-control", "max-age=60, no-cache=\"x-user\"")][..],
        &[FRESH, ("cache-control", "no-cache=\"x-user, x-b\"")],
        &[FRESH, ("cache-control", "no-cache=x-user")],
    ] {
        let gate = Gate::new();
        let held = gate.clone();
        let fixture = Arc::new(
            Fixture::start(&route(""), move |_| {
                let fields = [lines, &[("x-user", "me"), TAG]].concat();
                after(&held, ok("body", &fields))
            })
            .await,
        );
        let spawn = || {
            let fixture = Arc::clone(&fixture);
            tokio::spawn(async move { fixture.get("/a").await })
        };
        let first = spawn();
        fixture.origin.asked(1).await;
        let waiter = spawn();
        // Joined, as far as anybody can know.
        tokio::task::yield_now().await;
        gate.open();
        assert_eq!(first.await.unwrap().header("x-user"), Some("me"));
        assert_eq!(waiter.await.unwrap().header("x-user"), None, "{lines:?}");
        let hit = fixture.get("/a").await;
        assert_eq!(
            (hit.cache(), hit.header("x-user")),
            ("HIT", None),
            "{lines:?}"
        );
        assert_eq!(fixture.origin.count(), 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_several_responses_that_match_the_most_recent_is_used() {
    let fixture = Fixture::start(&route(""), |seen| {
        let (vary, date) = match seen.number {
            1 => ("accept-language", "Sun, 06 Nov 1994 08:49:38 GMT"),
            _ => ("x-mode", "Sun, 06 Nov 1994 08:49:37 GMT"),
        };
        let far = ("cache-control", "max-age=2147483648");
        ok(
            format!("{}", seen.number),
            &[far, ("vary", vary), ("date", date)],
        )
    })
    .await;
    fixture.get_with("/a", &[("accept-language", "de")]).await;
    fixture.get_with("/a", &[("x-mode", "1")]).await;
    // Both answer this one; the second was stored later, but is older.
    let both = [("accept-language", "de"), ("x-mode", "1")];
    assert_eq!(fixture.get_with("/a", &both).await.text(), "1");
    assert_eq!(fixture.origin.count(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_304_carries_what_a_cache_before_us_needs() {
    let fixture = Fixture::start(&route(""), |_| {
        let needed = [
            FRESH,
            TAG,
            ("content-location", "/b"),
            ("expires", "Sun, 06 Nov 2094 08:49:37 GMT"),
            ("vary", "x-a"),
            ("content-type", "text/plain"),
        ];
        ok("body", &needed)
    })
    .await;
    fixture.get("/a").await;
    let short = fixture.get_with("/a", &[("if-none-match", "*")]).await;
    assert_eq!((short.status, short.cache()), (304, "HIT"));
    for name in [
        "cache-control",
        "content-location",
        "date",
        "etag",
        "expires",
        "vary",
    ] {
        assert!(short.header(name).is_some(), "{name}");
    }
    assert_eq!(
        (short.header("content-type"), short.header("content-length")),
        (None, None)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_date_stands_in_for_last_modified_of_what_is_stored_alone() {
    for (control, status) in [("max-age=60", 304), ("no-store", 200)] {
        let fixture = Fixture::start(&route(""), move |_| {
            let date = ("date", "Sun, 06 Nov 1994 08:49:37 GMT");
            ok("body", &[("cache-control", control), date])
        })
        .await;
        let since = [("if-modified-since", "Sun, 06 Nov 1994 08:49:37 GMT")];
        assert_eq!(
            fixture.get_with("/a", &since).await.status,
            status,
            "{control}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_origin_answers_conditions_on_what_is_known_as_not_storable() {
    let fixture = Fixture::start(&route(""), |seen| match seen.header("if-none-match") {
        Some("\"v1\"") => reply(304, "", &[TAG]),
        _ => ok("body", &[("cache-control", "no-store"), TAG]),
    })
    .await;
    fixture.get("/a").await;
    let short = fixture.get_with("/a", &[("if-none-match", "\"v1\"")]).await;
    assert_eq!(short.status, 304);
    assert_eq!(
        fixture.origin.last().header("if-none-match"),
        Some("\"v1\"")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn options_and_trace_go_no_further_than_max_forwards() {
    let fixture = Fixture::start(&route(""), |_| ok("origin", &[])).await;
    for (method, status) in [("OPTIONS", 204), ("TRACE", 200)] {
        let mut client = fixture.connect().await;
        let last = client.ask(method, "/a", &[("max-forwards", "0")]).await;
        assert_eq!(last.status, status);
        let asked = fixture.origin.count();
        let next = client.ask(method, "/a", &[("max-forwards", "3")]).await;
        assert_eq!(next.text(), "origin");
        assert_eq!(fixture.origin.last().header("max-forwards"), Some("2"));
        assert_eq!(fixture.origin.count(), asked + 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_goes_in_a_circle_is_508() {
    let fixture = Fixture::start(&route(""), |_| ok("origin", &[])).await;
    let list = ["1.1 iris-sidecar"; 10].join(", ");
    let refused = fixture.get_with("/a", &[("via", &list)]).await;
    assert_eq!((refused.status, fixture.origin.count()), (508, 0));
    assert_eq!(refused.json()["error"]["code"], "LOOP");
    assert_eq!(
        fixture
            .get_with("/a", &[("via", "1.1 iris-sidecar")])
            .await
            .status,
        200
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_of_our_own_have_no_cache_status() {
    let mut fixture = Fixture::start(&route(""), |_| ok("origin", &[])).await;
    fixture.origin.stop().await;
    let failed = fixture.get("/a").await;
    assert_eq!((failed.status, failed.header("cache-status")), (502, None));
    assert_eq!(failed.cache(), "MISS");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_if_cached_counts_for_what_goes_by_too() {
    let fixture = Fixture::start(&route(""), |_| ok("origin", &[FRESH])).await;
    let fields = [("cache-control", "only-if-cached"), ("if-match", "\"a\"")];
    assert_eq!(fixture.get_with("/a", &fields).await.status, 504);
    assert_eq!(fixture.origin.count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn trailers_are_neither_stored_nor_do_they_bring_fields_of_one_hop() {
    let fixture = Fixture::start(&route(""), |_| {
        let text = "HTTP/1.1 200 OK\r\ncache-control: \
            max-age=60\r\netag: \"v1\"\r\ntransfer-encoding: chunked\r\n\r\n\
            4\r\nbody\r\n0\r\nx-sum: 1\r\nkeep-alive: 5\r\n\r\n";
        vec![Step::Send(text.into())]
    })
    .await;
    let te = [("te", "trailers"), ("connection", "te")];
    let first = fixture.get_with("/a", &te).await;
    assert!(!first.trailers.contains("keep-alive"), "{}", first.trailers);
    fixture.metric_reaches("cache_stored_entries", 1.0).await;
    let hit = fixture.get_with("/a", &te).await;
    assert_eq!((hit.cache(), hit.header("x-sum")), ("HIT", None));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_goes_by_keeps_its_origin_field() {
    let config = route("methods = [\"GET\", \"POST\"]\norigins = [\"https://app.example\"]");
    let fixture = Fixture::start(&config, |_| ok("origin", &[])).await;
    let evil = ("origin", "https://evil.example");
    let upgrade = [evil, ("connection", "upgrade"), ("upgrade", "websocket")];
    fixture.get_with("/a", &upgrade).await;
    assert_eq!(fixture.origin.last().header("origin"), Some(evil.1));
    let mut client: Client = fixture.connect().await;
    client
        .ask("POST", "/a", &[evil, ("content-length", "0")])
        .await;
    assert_eq!(fixture.origin.last().header("origin"), Some(evil.1));
    fixture.get_with("/a", &[evil]).await;
    assert_eq!(fixture.origin.last().header("origin"), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_strangers_head_does_not_touch_what_is_not_his() {
    let fixture = Fixture::start(&route("ttl = \"60s\""), |seen| {
        let tag = if seen.header("cookie").is_some() {
            "\"his\""
        } else {
            "\"v1\""
        };
        match seen.method.as_str() {
            "HEAD" => vec![Step::Send(
                format!("HTTP/1.1 200 OK\r\netag: {tag}\r\n\r\n").into(),
            )],
            _ => ok("body", &[("etag", tag)]),
        }
    })
    .await;
    fixture.get("/a").await;
    let mut client = fixture.connect().await;
    client.ask("HEAD", "/a", &[("cookie", "a=1")]).await;
    assert_eq!(fixture.origin.count(), 2);
    assert_eq!(fixture.get("/a").await.cache(), "HIT");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_304_to_a_heads_own_condition_updates_too() {
    let fixture = Fixture::start(&route(""), |seen| match seen.method.as_str() {
        "HEAD" => reply(304, "", &[FRESH, TAG, ("x-a", "new")]),
        _ => ok(
            "body",
            &[("cache-control", "max-age=5"), TAG, ("x-a", "old")],
        ),
    })
    .await;
    fixture.get("/a").await;
    fixture.advance(6);
    let mut client = fixture.connect().await;
    let fields = [("if-none-match", "\"v1\"")];
    assert_eq!(client.ask("HEAD", "/a", &fields).await.status, 304);
    let hit = fixture.get("/a").await;
    assert_eq!((hit.cache(), hit.header("x-a")), ("HIT", Some("new")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_304_updates_the_content_type_but_never_the_coding() {
    let fixture = Fixture::start(&route(""), |seen| match seen.header("if-none-match") {
        Some(_) => reply(
            304,
            "",
            &[
                FRESH,
                TAG,
                ("content-type", "text/b"),
                ("content-encoding", "br"),
            ],
        ),
        None => ok(
            "body",
            &[
                ("cache-control", "max-age=0"),
                TAG,
                ("content-type", "text/a"),
            ],
        ),
    })
    .await;
    fixture.get("/a").await;
    let updated = fixture.get("/a").await;
    assert_eq!(
        (updated.cache(), updated.header("content-type")),
        ("HIT-REVALIDATED", Some("text/b"))
    );
    assert_eq!(updated.header("content-encoding"), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_304_that_nobody_asked_for_is_a_failure_of_the_origin() {
    let fixture = Fixture::start(&route(""), |_| reply(304, "", &[TAG])).await;
    assert_eq!(fixture.get("/a").await.status, 502);
}

#[tokio::test(flavor = "multi_thread")]
async fn targeted_fields_that_are_not_listed_pass_and_do_not_count() {
    let config = format!(
        "[cache]\ntargeted_fields = [\"our-cache-control\"]\n{}",
        route("")
    );
    let fixture = Fixture::start(&config, |_| {
        ok(
            "body",
            &[
                ("cache-control", "no-store"),
                ("cdn-cache-control", "max-age=60"),
            ],
        )
    })
    .await;
    for count in 1..=2 {
        let answer = fixture.get("/a").await;
        assert_eq!(answer.header("cdn-cache-control"), Some("max-age=60"));
        assert_eq!(fixture.origin.count(), count);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn cache_directives_pass_in_both_directions() {
    let fixture = Fixture::start(&route(""), |_| {
        ok(
            "body",
            &[
                ("cache-control", "max-age=5, x-own=1"),
                ("pragma", "no-cache"),
            ],
        )
    })
    .await;
    let theirs = [("cache-control", "max-stale=7, x-own"), ("pragma", "x")];
    let answer = fixture.get_with("/a", &theirs).await;
    assert_eq!(answer.header("cache-control"), Some("max-age=5, x-own=1"));
    let seen = fixture.origin.last();
    assert_eq!(seen.header("cache-control"), Some("max-stale=7, x-own"));
    assert_eq!(seen.header("pragma"), Some("x"));
}
