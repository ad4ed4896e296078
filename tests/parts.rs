//! Parts that are kept (RFC 9111 §3.3, §3.4): what they answer, how they grow, and when they end.

use crate::support::ranged::{BODY, FRESH, TAG, TYPE, ask, content_range, large, range_of, ranged};
use crate::support::{Fixture, Gate, Step, ok, reply, route};

async fn large_fixture() -> Fixture {
    let config = format!("[cache]\nmax_object = \"1KiB\"\n{}", route(""));
    Fixture::start(&config, |seen| ranged(seen, &large(), &[FRESH, TAG])).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stored_part_answers_what_it_covers_and_grows_by_what_is_missing() {
    let (fixture, body) = (large_fixture().await, large());
    let check = async |first: usize, last: usize, cache: &str, asked: usize| {
        let range = format!("bytes={first}-{last}");
        let part = ask(&fixture, &range).await;
        assert_eq!(
            (part.status, part.text()),
            (206, body[first..=last].to_owned()),
            "{range}"
        );
        assert_eq!(
            (part.cache(), fixture.origin.count()),
            (cache, asked),
            "{range}"
        );
        part
    };
    check(100, 199, "MISS", 2).await;
    let hit = check(120, 130, "HIT", 2).await;
    assert_eq!(content_range(&hit), "bytes 120-130/4000");
    // Only the rest is asked for, by the strong validator.
    let grown = check(150, 299, "MISS", 3).await;
    assert!(
        grown.cache_status().contains("fwd=partial; fwd-status=206"),
        "{}",
        grown.cache_status()
    );
    let seen = fixture.origin.last();
    assert_eq!(seen.header("range"), Some("bytes=200-299"));
    assert_eq!(seen.header("if-range"), Some("\"v1\""));
    check(50, 110, "MISS", 4).await;
    assert_eq!(fixture.origin.last().header("range"), Some("bytes=50-99"));
    check(50, 299, "HIT", 4).await;
    // Elsewhere: the new part takes the place of the old one.
    check(2000, 2099, "MISS", 5).await;
    check(2000, 2001, "HIT", 5).await;
    check(100, 101, "MISS", 6).await;
    // A whole GET never gets a part.
    let whole = fixture.get("/a").await;
    assert_eq!((whole.status, whole.body.len()), (200, 4000));
    // Nor does anybody once it is stale.
    fixture.advance(61);
    check(100, 101, "MISS", 8).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_range_that_no_part_reaches_is_416_by_the_length_known() {
    let fixture = large_fixture().await;
    ask(&fixture, "bytes=0-9").await;
    let refused = ask(&fixture, "bytes=4000-").await;
    assert_eq!(
        (refused.status, content_range(&refused)),
        (416, "bytes */4000")
    );
    assert_eq!(fixture.origin.count(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn parts_of_different_representations_are_never_put_together() {
    let config = format!("[cache]\nmax_object = \"1KiB\"\n{}", route(""));
    let fixture = Fixture::start(&config, |seen| {
        let (letter, tag) = if seen.number <= 2 {
            ("a", "\"v1\"")
        } else {
            ("b", "\"v2\"")
        };
        ranged(seen, &letter.repeat(4000), &[FRESH, ("etag", tag)])
    })
    .await;
    assert_eq!(ask(&fixture, "bytes=0-9").await.text(), "a".repeat(10));
    assert_eq!(ask(&fixture, "bytes=5-14").await.text(), "b".repeat(10));
    assert_eq!(ask(&fixture, "bytes=0-9").await.text(), "b".repeat(10));
    assert_eq!(ask(&fixture, "bytes=0-14").await.text(), "b".repeat(15));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_part_without_a_strong_validator_is_never_put_together_with_another() {
    for tag in ["W/\"v1\"", ""] {
        let config = format!("[cache]\nmax_object = \"1KiB\"\n{}", route(""));
        let fixture = Fixture::start(&config, move |seen| {
            ranged(seen, &large(), &[FRESH, ("etag", tag)])
        })
        .await;
        ask(&fixture, "bytes=0-9").await;
        assert_eq!(ask(&fixture, "bytes=2-9").await.cache(), "HIT", "{tag}");
        assert_eq!(ask(&fixture, "bytes=5-14").await.cache(), "MISS", "{tag}");
        assert_eq!(fixture.origin.last().header("range"), Some("bytes=5-14"));
        assert_eq!(fixture.origin.count(), 3);
        assert_eq!(ask(&fixture, "bytes=5-14").await.cache(), "HIT", "{tag}");
        assert_eq!(ask(&fixture, "bytes=0-9").await.cache(), "MISS", "{tag}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_response_that_broke_off_is_completed_by_its_rest() {
    let fixture = Fixture::start(&route(""), |seen| match seen.number {
        1 => {
            let head = "HTTP/1.1 200 OK\r\ncache-control: max-age=60\r\netag: \"v1\"\r\nx-a: \
                1\r\nrepr-digest: sha-256=:AAAA:\r\ncontent-length: 20\r\n\r\n0123456";
            vec![Step::Send(head.into()), Step::Close]
        }
        _ => {
            // Of the bytes of this part (RFC 9530 §2).
            let digest = ("content-digest", "sha-256=:BBBB:");
            ranged(
                seen,
                BODY,
                &[FRESH, TAG, ("x-b", "2"), digest, ("content-md5", "BBBB")],
            )
        }
    })
    .await;
    let broken = fixture.get("/a").await;
    assert!(broken.is_cut);
    // What is there answers ranges, and nothing else.
    let part = ask(&fixture, "bytes=2-4").await;
    assert_eq!((part.cache(), part.text().as_str()), ("HIT", "234"));
    let whole = fixture.get("/a").await;
    assert_eq!((whole.status, whole.text().as_str()), (200, BODY));
    assert!(
        whole.cache_status().contains("fwd-status=206; stored"),
        "{}",
        whole.cache_status()
    );
    assert_eq!(whole.header("content-range"), None);
    assert_eq!(
        (whole.header("x-a"), whole.header("x-b")),
        (Some("1"), Some("2"))
    );
    let seen = fixture.origin.last();
    assert_eq!(seen.header("range"), Some("bytes=7-19"));
    assert_eq!(seen.header("if-range"), Some("\"v1\""));
    let hit = fixture.get("/a").await;
    assert_eq!(hit.cache(), "HIT");
    for answer in [&whole, &hit] {
        let digests = ["content-digest", "content-md5", "repr-digest"];
        let digests = digests.map(|name| answer.header(name));
        assert_eq!(digests, [None, None, Some("sha-256=:AAAA:")]);
    }
    assert_eq!(fixture.origin.count(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_response_that_broke_off_and_changed_is_fetched_whole() {
    // By If-Range the origin sends the new whole; one that ignores it is asked again.
    for obeys in [true, false] {
        let fixture = Fixture::start(&route(""), move |seen| {
            match (seen.number, seen.header("range")) {
                (1, _) => broken(),
                (_, Some(_)) if !obeys => {
                    let fields = [
                        FRESH,
                        ("etag", "\"v2\""),
                        ("content-range", "bytes 7-19/20"),
                    ];
                    reply(206, "NEWNEWNEWNEWN", &fields)
                }
                _ => ok("new", &[FRESH, ("etag", "\"v2\"")]),
            }
        })
        .await;
        fixture.get("/a").await;
        let whole = fixture.get("/a").await;
        assert_eq!(
            (whole.status, whole.text().as_str()),
            (200, "new"),
            "{obeys}"
        );
        assert_eq!(fixture.get("/a").await.text(), "new");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_206_that_nobody_asked_for_is_not_stored_as_the_whole() {
    let fixture = Fixture::start(&route(""), |_| {
        reply(
            206,
            "0123",
            &[FRESH, TAG, ("content-range", "bytes 0-3/20")],
        )
    })
    .await;
    for count in 1..=2 {
        assert_eq!(fixture.get("/a").await.status, 206);
        assert_eq!(fixture.origin.count(), count);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_part_keeps_what_describes_it_and_answers_conditions() {
    let config = format!("[cache]\nmax_object = \"1KiB\"\n{}", route(""));
    let fixture = Fixture::start(&config, |seen| {
        ranged(
            seen,
            &large(),
            &[FRESH, TAG, TYPE, ("content-encoding", "x-test")],
        )
    })
    .await;
    for range in ["bytes=0-9", "bytes=0-9", "bytes=5-14", "bytes=5-14"] {
        let part = ask(&fixture, range).await;
        assert_eq!(part.header("content-type"), Some("text/plain"), "{range}");
        assert_eq!(part.header("content-encoding"), Some("x-test"), "{range}");
    }
    let known = [("range", "bytes=0-4"), ("if-none-match", "\"v1\"")];
    let short = fixture.get_with("/a", &known).await;
    assert_eq!((short.status, short.cache()), (304, "HIT"));
    assert_eq!(short.header("content-range"), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_part_that_changes_while_it_is_extended_gives_no_wrong_bytes() {
    // While the rest for one client is under way, another range takes the part's place.
    for (range, first, last) in [("bytes=150-299", 150, 299), ("bytes=50-110", 50, 110)] {
        let gate = Gate::new();
        let held = gate.clone();
        let config = format!("[cache]\nmax_object = \"1KiB\"\n{}", route(""));
        let fixture = std::sync::Arc::new(
            Fixture::start(&config, move |seen| {
                let answer = ranged(seen, &large(), &[FRESH, TAG]);
                match seen.number {
                    3 => crate::support::after(&held, answer),
                    _ => answer,
                }
            })
            .await,
        );
        ask(&fixture, "bytes=100-199").await;
        let extending = tokio::spawn({
            let fixture = std::sync::Arc::clone(&fixture);
            async move { fixture.get_with("/a", &[("range", range)]).await }
        });
        fixture.origin.asked(3).await;
        ask(&fixture, "bytes=2000-2099").await;
        gate.open();
        let part = extending.await.unwrap();
        assert_eq!(
            (part.status, part.text()),
            (206, large()[first..=last].to_owned())
        );
        assert_eq!(content_range(&part), format!("bytes {first}-{last}/4000"));
    }
}

/// An origin whose first answer breaks off after 7 of 20 bytes.
fn broken() -> crate::support::Reply {
    let head = "HTTP/1.1 200 OK\r\ncache-control: max-age=60\r\netag: \"v1\"\r\ncontent-length: \
        20\r\n\r\n0123456";
    vec![Step::Send(head.into()), Step::Close]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_beginning_that_cannot_be_completed_is_fetched_whole() {
    for wrong in ["416", "short"] {
        let fixture = Fixture::start(&route(""), move |seen| {
            match (seen.number, seen.header("range"), wrong) {
                (1, ..) => broken(),
                (_, Some(_), "416") => reply(416, "", &[("content-range", "bytes */3")]),
                (_, Some(_), _) => reply(
                    206,
                    "789",
                    &[FRESH, TAG, ("content-range", "bytes 7-19/20")],
                ),
                _ => ok("new", &[FRESH, ("etag", "\"v2\"")]),
            }
        })
        .await;
        fixture.get("/a").await;
        let whole = fixture.get("/a").await;
        assert_eq!(
            (whole.status, whole.text().as_str()),
            (200, "new"),
            "{wrong}"
        );
        assert_eq!(fixture.origin.count(), 3);
        assert_eq!(fixture.get("/a").await.cache(), "HIT", "{wrong}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_ends_a_representation_ends_its_parts() {
    for how in ["whole", "write", "head", "purge", "no-store"] {
        let fixture = Fixture::start(&route(""), move |seen| match (seen.number, &*seen.method) {
            (1, _) => broken(),
            (_, "HEAD") => vec![Step::Send(
                b"HTTP/1.1 200 OK\r\netag: \"v2\"\r\n\r\n".to_vec(),
            )],
            (_, "POST") => ok("", &[]),
            _ if how == "no-store" => ok("new", &[("cache-control", "no-store")]),
            _ => ok("new", &[("cache-control", "max-age=1"), ("etag", "\"v2\"")]),
        })
        .await;
        fixture.get("/a").await;
        assert_eq!(ask(&fixture, "bytes=0-3").await.text(), "0123", "{how}");
        let mut client = fixture.connect().await;
        match how {
            "write" => drop(client.ask("POST", "/a", &[("content-length", "0")]).await),
            "head" => drop(client.ask("HEAD", "/a", &[]).await),
            "purge" => {
                let all = serde_json::json!({"all": true});
                assert_eq!(fixture.order("/purge", &all).await.status, 200);
            }
            _ => drop(fixture.get("/a").await),
        }
        fixture.advance(2);
        let part = ask(&fixture, "bytes=0-3").await;
        assert_ne!(
            (part.cache(), part.text().as_str()),
            ("HIT", "0123"),
            "{how}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_to_our_own_range_is_never_the_clients() {
    let config = format!("[cache]\nmax_object = \"1KiB\"\n{}", route(""));
    // 4,000 bytes at first, then 300; the origin ignores If-Range.
    let fixture = Fixture::start(&config, |seen| {
        let body = if seen.number <= 2 {
            large()
        } else {
            large()[..300].to_owned()
        };
        match range_of(seen) {
            Some((first, last)) if first < body.len() => {
                let last = last.min(body.len() - 1);
                let content_range = format!("bytes {first}-{last}/{}", body.len());
                reply(
                    206,
                    &body[first..=last],
                    &[FRESH, TAG, ("content-range", &content_range)],
                )
            }
            Some(_) => reply(416, "", &[("content-range", "bytes */300")]),
            None => ok(body, &[FRESH, TAG]),
        }
    })
    .await;
    ask(&fixture, "bytes=0-499").await;
    let part = ask(&fixture, "bytes=0-999").await;
    assert_eq!((part.status, part.body.len()), (206, 300));
}
