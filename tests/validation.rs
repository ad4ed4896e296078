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
        ("REVALIDATED", Some("new"))
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
