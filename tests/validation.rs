//! What a 304 and a HEAD tell of stored responses (RFC 9111 §4.3.4, §4.3.5), and fewer variants.

use crate::support::{Fixture, ok, reply, route};

const FRESH: (&str, &str) = ("cache-control", "max-age=60");
const TAG: (&str, &str) = ("etag", "\"v1\"");

#[tokio::test(flavor = "multi_thread")]
async fn a_304_about_another_representation_updates_nothing_and_is_asked_again() {
    let fixture = Fixture::start(&route(""), |seen| match seen.header("if-none-match") {
        Some(_) => reply(304, "", &[FRESH, ("etag", "\"v9\""), ("x-a", "wrong")]),
        None if seen.number == 1 => ok("old", &[("cache-control", "max-age=1"), TAG]),
        None => ok("new", &[FRESH, ("etag", "\"v2\"")]),
    })
    .await;
    fixture.get("/a").await;
    fixture.advance(2);
    let answer = fixture.get("/a").await;
    assert_eq!((answer.status, answer.text().as_str()), (200, "new"));
    assert_eq!(answer.header("x-a"), None);
    assert_eq!(fixture.origin.count(), 3);
    assert_eq!(fixture.get("/a").await.cache(), "HIT");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_weak_validator_confirms_weakly() {
    let fixture = Fixture::start(&route(""), |seen| match seen.header("if-none-match") {
        Some("W/\"v1\"") => reply(304, "", &[FRESH, ("etag", "W/\"v1\""), ("x-a", "new")]),
        _ => ok(
            "body",
            &[("cache-control", "max-age=1"), ("etag", "W/\"v1\"")],
        ),
    })
    .await;
    fixture.get("/a").await;
    fixture.advance(2);
    let answer = fixture.get("/a").await;
    assert_eq!(
        (answer.cache(), answer.header("x-a")),
        ("HIT-REVALIDATED", Some("new"))
    );
}

/// What a HEAD that says `fields` makes of a stored GET that has gone stale.
async fn after_head(fields: &'static [(&str, &str)]) -> (Fixture, crate::support::Received) {
    let config = route("stale_while_revalidate = \"10s\"");
    let fixture = Fixture::start(&config, move |seen| match seen.method.as_str() {
        "HEAD" => {
            let mut head = "HTTP/1.1 200 OK\r\n".to_owned();
            for (name, value) in fields {
                head.push_str(&format!("{name}: {value}\r\n"));
            }
            vec![crate::support::Step::Send(format!("{head}\r\n").into())]
        }
        _ => ok(
            "12345",
            &[("cache-control", "max-age=5"), TAG, ("x-a", "old")],
        ),
    })
    .await;
    fixture.get("/a").await;
    fixture.advance(20);
    let mut client = fixture.connect().await;
    let head = client.ask("HEAD", "/a", &[]).await;
    assert_eq!((head.status, head.cache()), (200, "MISS"));
    let answer = fixture.get("/a").await;
    (fixture, answer)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_updates_the_stored_response_to_get() {
    let (fixture, answer) =
        after_head(&[FRESH, TAG, ("content-length", "5"), ("x-a", "new")]).await;
    assert_eq!((answer.cache(), answer.text().as_str()), ("HIT", "12345"));
    assert_eq!(answer.header("x-a"), Some("new"));
    assert_eq!(answer.header("content-length"), Some("5"));
    assert_eq!(fixture.origin.count(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_about_another_representation_makes_the_stored_response_stale() {
    for fields in [
        &[FRESH, ("etag", "\"v2\"")][..],
        &[FRESH, TAG, ("content-length", "6")],
        &[FRESH, ("last-modified", "Sun, 06 Nov 1994 08:49:37 GMT")],
    ] {
        let (fixture, answer) = after_head(fields).await;
        assert_eq!(answer.cache(), "MISS");
        assert_eq!(fixture.origin.count(), 3);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_does_not_touch_what_it_could_not_have_been_answered_from() {
    let fixture = Fixture::start(&route(""), |seen| {
        let language = seen.header("accept-language").unwrap_or("none").to_owned();
        let fields = [FRESH, ("vary", "accept-language"), TAG];
        match seen.method.as_str() {
            "HEAD" => vec![crate::support::Step::Send(
                b"HTTP/1.1 200 OK\r\netag: \"v2\"\r\nvary: accept-language\r\n\r\n".to_vec(),
            )],
            _ => ok(language, &fields),
        }
    })
    .await;
    let german = [("accept-language", "de")];
    fixture.get_with("/a", &german).await;
    let mut client = fixture.connect().await;
    client.ask("HEAD", "/a", &[("accept-language", "en")]).await;
    assert_eq!(fixture.get_with("/a", &german).await.cache(), "HIT");
}

#[tokio::test(flavor = "multi_thread")]
async fn languages_and_origins_make_as_many_variants_as_the_operator_names() {
    let config = route("languages = [\"en\", \"de\"]\norigins = [\"https://app.example\"]");
    let fixture = Fixture::start(&config, |seen| {
        let said = |name| seen.header(name).unwrap_or("none").to_owned();
        let body = format!("{} {}", said("accept-language"), said("origin"));
        ok(body, &[FRESH, ("vary", "accept-language, origin")])
    })
    .await;
    let ask = async |language: &str, origin: &str| {
        let fields = [("accept-language", language), ("origin", origin)];
        fixture.get_with("/a", &fields).await.text()
    };
    assert_eq!(
        ask("de-AT, en;q=0.5", "https://app.example").await,
        "de https://app.example"
    );
    assert_eq!(
        ask("de", "https://app.example").await,
        "de https://app.example"
    );
    assert_eq!(ask("fr, de;q=0.1", "https://evil.example").await, "de none");
    assert_eq!(ask("fr", "null").await, "none none");
    assert_eq!(fixture.origin.count(), 3);
}

/// An origin that compresses what it tagged: the tag of the 200 is weak, that of the 304 is not.
async fn compressing(extra: &str) -> Fixture {
    Fixture::start(&route(extra), |seen| {
        let short = ("cache-control", "max-age=1");
        match seen.header("if-none-match") {
            Some(_) => reply(304, "", &[short, TAG]),
            None => ok("body", &[short, ("etag", "W/\"v1\"")]),
        }
    })
    .await
}

#[tokio::test]
async fn an_origin_that_confirms_by_other_tags_than_it_sends_is_asked_once_each_time() {
    let fixture = compressing("").await;
    let mut asked = Vec::new();
    for _ in 0..6 {
        let before = fixture.origin.count();
        assert_eq!(fixture.get("/a").await.text(), "body");
        asked.push(fixture.origin.count() - before);
        fixture.advance(5);
    }
    // The second time it is found out.
    assert_eq!(asked, [1, 2, 1, 1, 1, 1]);
    // Clients are still answered by the tag.
    let fields = [("if-none-match", "W/\"v1\"")];
    assert_eq!(fixture.get_with("/a", &fields).await.status, 304);
}

#[tokio::test]
async fn an_operator_may_take_a_strong_tag_for_the_weak_one() {
    let fixture = compressing("weak_revalidation = true").await;
    for expected in ["MISS", "HIT-REVALIDATED", "HIT-REVALIDATED"] {
        assert_eq!(fixture.get("/a").await.cache(), expected);
        fixture.advance(5);
    }
    assert_eq!(fixture.origin.count(), 3);
}

#[tokio::test]
async fn a_head_that_names_nothing_freshens_nothing() {
    let fixture = Fixture::start(&route(""), |seen| {
        let short = ("cache-control", "max-age=2");
        match seen.method.as_str() {
            "HEAD" => vec![crate::support::Step::Send(
                b"HTTP/1.1 200 OK\r\ncache-control: max-age=2\r\n\r\n".to_vec(),
            )],
            _ => ok("body", &[short]),
        }
    })
    .await;
    fixture.get("/a").await;
    let mut client = fixture.connect().await;
    for _ in 0..9 {
        client.ask("HEAD", "/a", &[]).await;
        fixture.advance(1);
    }
    assert_eq!(fixture.get("/a").await.cache(), "MISS");
}

#[tokio::test]
async fn a_head_may_be_fetched_as_a_get_and_warms_the_cache() {
    let config = route("ttl = \"60s\"\nhead = \"get\"");
    let fixture = Fixture::start(&config, |seen| match seen.target.as_str() {
        "/private" => ok("body", &[("cache-control", "no-store")]),
        _ => ok("body", &[]),
    })
    .await;
    let mut client = fixture.connect().await;
    for (target, results) in [("/a", ["MISS", "HIT"]), ("/private", ["MISS", "MISS"])] {
        for expected in results {
            let head = client.ask("HEAD", target, &[]).await;
            assert_eq!((head.status, head.cache()), (200, expected), "{target}");
            assert_eq!(head.header("content-length"), Some("4"), "{target}");
        }
    }
    assert_eq!(client.ask("GET", "/a", &[]).await.text(), "body");
    assert_eq!(fixture.origin.seen()[0].method, "GET");
    // What is known as not storable goes by as it is.
    assert_eq!(fixture.origin.last().method, "HEAD");
}

#[tokio::test]
async fn the_statuses_of_a_lifetime_and_of_stale_are_the_operators() {
    let config = route(
        "ttl = \"10s\"\nstale_if_error = \"1h\"\nttl_statuses = [200, 404]\nerror_statuses = \
            [404, 500]",
    );
    let fixture = Fixture::start(&config, |seen| match seen.number {
        1 => reply(404, "first", &[]),
        2 => reply(500, "", &[]),
        3 => reply(503, "", &[]),
        _ => reply(203, "last", &[]),
    })
    .await;
    assert_eq!(fixture.get("/a").await.cache(), "MISS");
    assert_eq!(fixture.get("/a").await.cache(), "HIT");
    fixture.advance(20);
    let stale = fixture.get("/a").await;
    assert_eq!((stale.status, stale.cache()), (404, "HIT-STALE"));
    fixture.advance(20);
    assert_eq!(fixture.get("/a").await.status, 503);
    for _ in 0..2 {
        assert_eq!(fixture.get("/b").await.cache(), "MISS");
    }
}

#[tokio::test]
async fn via_may_be_off_and_loops_are_found_all_the_same() {
    let said = |seen: &crate::support::Seen| {
        let lists = ["via", "cdn-loop"].map(|name| {
            let lines = seen.headers.get_all(name).iter();
            lines
                .map(|line| line.to_str().unwrap())
                .collect::<Vec<_>>()
                .join(", ")
        });
        ok(lists.join("|"), &[])
    };
    // Whatever of a request is forwarded, its way so far stays in it.
    let config = format!(
        "[upstream]\nvia = \"off\"\n{}",
        route("forward_headers = [\"accept\"]")
    );
    let fixture = Fixture::start(&config, said).await;
    let fields = [
        ("via", "1.1 a"),
        ("cdn-loop", "b; c=1, iris-sidecar"),
        // Nor may `Connection` take it off.
        ("connection", "cdn-loop, via"),
    ];
    let answer = fixture.get_with("/b", &fields).await;
    assert_eq!(answer.text(), "1.1 a|b; c=1, iris-sidecar, iris-sidecar");
    let fixture = Fixture::start("[upstream]\nvia = \"off\"\n", said).await;
    let answer = fixture.get("/a").await;
    assert_eq!(answer.text(), "|iris-sidecar");
    assert_eq!(answer.header("via"), None);
    let circling = ["iris-sidecar"; 10].join(", ");
    let answer = fixture.get_with("/a", &[("cdn-loop", &circling)]).await;
    assert_eq!(answer.status, 508);
}
