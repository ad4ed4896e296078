//! Ranges (RFC 9110 §14): from what is stored, from what is still coming in, and from parts.

use crate::support::ranged::{BODY, FRESH, TAG, TYPE, ask, content_range, range_of, ranged};
use crate::support::{Fixture, Gate, Step, ok, reply, route};

async fn stored() -> Fixture {
    let fixture = Fixture::start(&route(""), |_| ok(BODY, &[FRESH, TAG, TYPE])).await;
    fixture.get("/a").await;
    fixture
}

#[tokio::test(flavor = "multi_thread")]
async fn one_range_of_a_stored_response_is_a_206() {
    let fixture = stored().await;
    for (range, expected, text) in [
        ("bytes=0-3", "bytes 0-3/20", "0123"),
        ("bytes=18-", "bytes 18-19/20", "ij"),
        ("bytes=-3", "bytes 17-19/20", "hij"),
        ("bytes=5-500", "bytes 5-19/20", "56789abcdefghij"),
        ("bytes=0-1,0-4,30-", "bytes 0-4/20", "01234"),
    ] {
        let part = ask(&fixture, range).await;
        assert_eq!((part.status, part.cache()), (206, "HIT"), "{range}");
        assert_eq!(content_range(&part), expected);
        assert_eq!(part.text(), text);
        assert_eq!(
            part.header("content-length"),
            Some(&*text.len().to_string())
        );
        for field in ["etag", "cache-control", "date", "age", "content-type"] {
            assert!(part.header(field).is_some(), "{field}");
        }
    }
    assert_eq!(fixture.origin.count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn several_ranges_are_multipart_in_the_order_asked_for() {
    let fixture = stored().await;
    let parts = ask(&fixture, "bytes=10-11, 0-1").await;
    assert_eq!(parts.status, 206);
    assert_eq!(parts.header("content-range"), None);
    let content_type = parts.header("content-type").unwrap();
    let boundary = content_type
        .strip_prefix("multipart/byteranges; boundary=")
        .unwrap();
    let expected = format!(
        "--{boundary}\r\nContent-Type: text/plain\r\nContent-Range: bytes 10-11/20\r\n\r\nab\r\n\
         --{boundary}\r\nContent-Type: text/plain\r\nContent-Range: bytes 0-1/20\r\n\r\n01\r\n\
         --{boundary}--\r\n"
    );
    assert_eq!(parts.text(), expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_there_is_416_and_what_is_nonsense_is_ignored() {
    let fixture = stored().await;
    for range in ["bytes=20-", "bytes=-0", "bytes=30-40,50-"] {
        let refused = ask(&fixture, range).await;
        assert_eq!(
            (refused.status, content_range(&refused)),
            (416, "bytes */20"),
            "{range}"
        );
        assert_eq!(refused.json()["error"]["code"], "RANGE_NOT_SATISFIABLE");
    }
    for range in ["bytes=4-2", "bytes=x", "bytes", "bytes=0-1;2"] {
        let whole = ask(&fixture, range).await;
        assert_eq!(
            (whole.status, whole.text().as_str()),
            (200, BODY),
            "{range}"
        );
    }
    assert_eq!(fixture.origin.count(), 1);
    // Not our unit: the origin may know it.
    ask(&fixture, "lines=0-1").await;
    assert_eq!(fixture.origin.last().header("range"), Some("lines=0-1"));
}

#[tokio::test(flavor = "multi_thread")]
async fn head_ignores_range_and_other_statuses_have_no_parts() {
    let fixture = stored().await;
    let mut client = fixture.connect().await;
    let head = client.ask("HEAD", "/a", &[("range", "bytes=0-3")]).await;
    assert_eq!(
        (head.status, head.header("content-length")),
        (200, Some("20"))
    );
    assert_eq!(head.header("content-range"), None);

    let fixture = Fixture::start(&route(""), |_| reply(404, BODY, &[FRESH])).await;
    for _ in 0..2 {
        let missing = ask(&fixture, "bytes=0-3").await;
        assert_eq!((missing.status, missing.text().as_str()), (404, BODY));
    }
    assert_eq!(fixture.origin.count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn preconditions_come_before_ranges_and_if_range_before_them() {
    let fixture = stored().await;
    let with = async |fields: &[(&str, &str)]| {
        let fields = [&[("range", "bytes=0-3")], fields].concat();
        fixture.get_with("/a", &fields).await
    };
    assert_eq!(with(&[("if-none-match", "\"v1\"")]).await.status, 304);
    assert_eq!(with(&[("if-none-match", "\"v0\"")]).await.status, 206);
    assert_eq!(with(&[("if-range", "\"v0\"")]).await.status, 200);
    let same = with(&[("if-range", "\"v1\"")]).await;
    assert_eq!(same.status, 206);
    // The client has these (RFC 9110 §15.3.7).
    assert_eq!(same.header("content-type"), None);
    assert_eq!(same.header("etag"), Some("\"v1\""));
    assert_eq!(fixture.origin.count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_range_miss_fetches_the_whole_and_streams_its_part() {
    let gate = Gate::new();
    let held = gate.clone();
    let fixture = Fixture::start(&route(""), move |_| {
        let head =
            b"HTTP/1.1 200 OK\r\ncache-control: max-age=60\r\netag: \"v1\"\r\ncontent-length: \
                20\r\n\r\n0123456";
        vec![
            Step::Send(head.to_vec()),
            Step::Wait(held.clone()),
            Step::Send(b"789abcdefghij".to_vec()),
        ]
    })
    .await;
    let mut client = fixture.connect().await;
    client.request("GET", "/a", &[("range", "bytes=2-5")]).await;
    // Comes before the rest of the body does.
    let part = client.response().await;
    assert_eq!((part.status, part.text().as_str()), (206, "2345"));
    assert_eq!(fixture.origin.last().header("range"), None);
    gate.open();
    fixture.metric_reaches("cache_stored_entries", 1.0).await;
    let whole = fixture.get("/a").await;
    assert_eq!((whole.cache(), whole.text().as_str()), ("HIT", BODY));
}

#[tokio::test(flavor = "multi_thread")]
async fn several_ranges_or_an_unknown_length_wait_for_the_whole() {
    let fixture = Fixture::start(&route(""), |_| {
        let chunked = "HTTP/1.1 200 OK\r\ncache-control: max-age=60\r\ntransfer-encoding: \
            chunked\r\n\r\n\
            5\r\n01234\r\nf\r\n56789abcdefghij\r\n0\r\n\r\n";
        vec![Step::Send(chunked.into())]
    })
    .await;
    let part = fixture.get_with("/a", &[("range", "bytes=3-6")]).await;
    assert_eq!(
        (content_range(&part), part.text().as_str()),
        ("bytes 3-6/20", "3456")
    );
    let parts = fixture.get_with("/b", &[("range", "bytes=3-6,-1")]).await;
    assert!(
        parts
            .text()
            .contains("Content-Range: bytes 19-19/20\r\n\r\nj\r\n")
    );
    assert_eq!(fixture.get("/b").await.cache(), "HIT");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_too_large_or_not_storable_passes_with_the_clients_range() {
    let config = format!("[cache]\nmax_object = \"1KiB\"\n{}", route(""));
    let large = "x".repeat(4000);
    for (body, fields) in [
        (large, [FRESH, TAG]),
        (BODY.to_owned(), [("cache-control", "no-store"), TAG]),
    ] {
        let sent = body.clone();
        let fixture = Fixture::start(&config, move |seen| ranged(seen, &sent, &fields)).await;
        let part = ask(&fixture, "bytes=0-3").await;
        assert_eq!((part.status, part.text()), (206, body[0..4].to_owned()));
        assert_eq!(content_range(&part), format!("bytes 0-3/{}", body.len()));
        // The whole was tried first, and the key is remembered: next time it is not.
        assert_eq!(fixture.origin.count(), 2);
        let part = ask(&fixture, "bytes=10-13").await;
        assert_eq!((part.status, part.text()), (206, body[10..14].to_owned()));
        assert_eq!(fixture.origin.count(), 3);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chunked_body_that_turns_out_too_large_passes_too() {
    let config = format!("[cache]\nmax_object = \"1KiB\"\n{}", route(""));
    let fixture = Fixture::start(&config, |seen| match range_of(seen) {
        Some(_) => reply(206, "0123", &[("content-range", "bytes 0-3/4000")]),
        None => {
            let chunk = format!("800\r\n{}\r\n", "x".repeat(2048));
            let head = "HTTP/1.1 200 OK\r\ncache-control: max-age=60\r\ntransfer-encoding: \
                chunked\r\n\r\n";
            vec![Step::Send(format!("{head}{chunk}{chunk}0\r\n\r\n").into())]
        }
    })
    .await;
    for (asks, count) in [("bytes=0-3", 2), ("bytes=0-3", 3)] {
        let part = ask(&fixture, asks).await;
        assert_eq!((part.status, part.text().as_str()), (206, "0123"));
        // The whole was tried once, and what came of it is remembered.
        assert_eq!(fixture.origin.count(), count);
        let said = part.cache_status();
        assert!(!said.contains("stored"), "{said}");
    }
    let mut client = fixture.connect().await;
    client.request("GET", "/a", &[]).await;
    let head = client.head().await;
    let said = head.cache_status();
    assert!(
        said.contains("too-large") && !said.contains("stored"),
        "{said}"
    );
}

#[tokio::test]
async fn a_range_of_a_stream_of_which_nobody_knows_the_length_begins_at_once() {
    let gate = Gate::new();
    let held = gate.clone();
    let fixture = Fixture::start(&route("ttl = \"60s\""), move |_| {
        let head = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n";
        let end = Step::Send(b"0\r\n\r\n".to_vec());
        vec![Step::Send(head.into()), Step::Wait(held.clone()), end]
    })
    .await;
    let mut clients = Vec::new();
    for range in ["bytes=0-", "bytes=1-3", "bytes=0-1,3-3", "bytes=-2"] {
        let mut client = fixture.connect().await;
        client.request("GET", "/a", &[("range", range)]).await;
        // The gate is closed.
        let head = client.head().await;
        assert_eq!(
            (head.status, head.header("content-range")),
            (200, None),
            "{range}"
        );
        assert_eq!(client.chunk().await.unwrap(), b"hello", "{range}");
        clients.push(client);
    }
    gate.open();
    for client in &mut clients {
        assert_eq!(client.chunk().await.unwrap(), b"");
    }
    assert_eq!(fixture.origin.count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_too_large_after_all_does_not_hold_its_connection() {
    // One connection: the whole that is given up must make room for the range.
    let config = format!(
        "[cache]\nmax_object = \"1KiB\"\n[upstream]\nmax_connections = 1\n{}",
        route("")
    );
    let fixture = Fixture::start(&config, |seen| match range_of(seen) {
        Some(_) => reply(
            206,
            "0123",
            &[FRESH, ("content-range", "bytes 0-3/4000000")],
        ),
        None => {
            let head = "HTTP/1.1 200 OK\r\ncache-control: max-age=60\r\ntransfer-encoding: \
                chunked\r\n\r\n";
            let chunk = format!("40000\r\n{}\r\n", "x".repeat(0x40000));
            vec![Step::Send(
                format!("{head}{}0\r\n\r\n", chunk.repeat(16)).into(),
            )]
        }
    })
    .await;
    let part = ask(&fixture, "bytes=0-3").await;
    assert_eq!((part.status, part.text().as_str()), (206, "0123"));
}

#[tokio::test]
async fn a_part_does_not_keep_what_was_said_of_the_bytes_of_the_whole() {
    let fixture = Fixture::start(&route("ttl = \"60s\""), |seen| {
        let fields = [
            FRESH,
            TAG,
            ("content-digest", "sha-256=:AAAA:"),
            ("content-md5", "AAAA"),
            ("repr-digest", "sha-256=:BBBB:"),
        ];
        ranged(seen, BODY, &fields)
    })
    .await;
    fixture.get("/a").await;
    for range in ["bytes=0-3", "bytes=0-1,5-6"] {
        let part = ask(&fixture, range).await;
        assert_eq!((part.status, part.cache()), (206, "HIT"), "{range}");
        for name in ["content-digest", "content-md5"] {
            assert_eq!(part.header(name), None, "{range}");
        }
        assert_eq!(
            part.header("repr-digest"),
            Some("sha-256=:BBBB:"),
            "{range}"
        );
    }
    let whole = fixture.get("/a").await;
    assert_eq!(whole.header("content-digest"), Some("sha-256=:AAAA:"));
}
