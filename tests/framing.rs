//! Framing of the origin's answers: what cannot be believed is a 502, what can is put in our words.

use crate::support::{Fixture, Step, ok, route};

#[tokio::test]
async fn a_longer_body_than_promised_ends_where_it_should_and_poisons_nobody() {
    let fixture = Fixture::start(&route("ttl = \"60s\""), |seen| {
        let head = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n";
        vec![Step::Send(
            format!(
                "{head}{}HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil",
                &seen.target[1..3]
            )
            .into_bytes(),
        )]
    })
    .await;
    for target in ["/aa", "/bb", "/cc"] {
        assert_eq!(fixture.get(target).await.text(), &target[1..], "{target}");
    }
}

#[tokio::test]
async fn a_false_length_beside_chunks_neither_cuts_nor_fills_memory() {
    let fixture = Fixture::start(&route("ttl = \"60s\""), |_| {
        let text = "HTTP/1.1 200 OK\r\ncontent-length: 3\r\ntransfer-encoding: \
            chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n";
        vec![Step::Send(text.as_bytes().to_vec())]
    })
    .await;
    for expected in ["MISS", "HIT"] {
        let received = fixture.get("/a").await;
        assert_eq!(
            (received.cache(), received.text().as_str()),
            (expected, "hello")
        );
    }
}

#[tokio::test]
async fn framing_that_cannot_be_believed_is_a_502() {
    let fixture = Fixture::start(&route("ttl = \"60s\""), |seen| {
        let head = match &seen.target[1..] {
            "gzip" => {
                "HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
            }
            "unasked" => {
                "HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n"
            }
            "twice" => {
                "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked, \
                    chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
            }
            "lines" => {
                "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntransfer-encoding: \
                    chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
            }
            "negative" => "HTTP/1.1 200 OK\r\ncontent-length: -5\r\n\r\n",
            _ => "HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello",
        };
        vec![Step::Send(head.as_bytes().to_vec())]
    })
    .await;
    for target in ["/gzip", "/unasked", "/twice", "/lines", "/negative", "/two"] {
        for method in ["GET", "HEAD", "POST"] {
            let received = fixture.connect().await.ask(method, target, &[]).await;
            assert_eq!(received.status, 502, "{method} {target}");
        }
    }
    assert_eq!(fixture.metric("cache_stored_entries").await, 0.0);
}

#[tokio::test]
async fn what_an_origin_says_twice_or_in_an_old_version_is_passed_on_in_ours() {
    let fixture = Fixture::start(&route("ttl = \"60s\""), |seen| match &seen.target[1..] {
        "twice" => vec![Step::Send(
            b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 5\r\n\r\nhello".to_vec(),
        )],
        "empty" => vec![Step::Send(
            b"HTTP/1.1 204 No Content\r\ncontent-length: 5\r\n\r\n".to_vec(),
        )],
        _ => vec![
            Step::Send(b"HTTP/1.0 200 OK\r\ncache-control: no-store\r\n\r\nhello".to_vec()),
            Step::Close,
        ],
    })
    .await;
    let mut client = fixture.connect().await;
    assert_eq!(client.ask("GET", "/twice", &[]).await.text(), "hello");
    let head = client.ask("HEAD", "/twice", &[]).await;
    assert_eq!(
        (head.cache(), head.header("content-length")),
        ("HIT", Some("5"))
    );
    for expected in ["MISS", "HIT"] {
        let empty = client.ask("GET", "/empty", &[]).await;
        assert_eq!(
            (empty.status, empty.cache(), empty.header("content-length")),
            (204, expected, None)
        );
    }
    // HTTP/1.0 and closed at its end; the client's connection is neither.
    let old = client.ask("POST", "/old", &[]).await;
    assert_eq!(
        (old.text().as_str(), old.header("transfer-encoding")),
        ("hello", Some("chunked"))
    );
    assert_eq!(client.ask("GET", "/twice", &[]).await.cache(), "HIT");
}

#[tokio::test]
async fn http_2_is_not_tunnelled() {
    let fixture =
        Fixture::start("", |seen| ok(seen.header("upgrade").unwrap_or("none"), &[])).await;
    let fields = [
        ("connection", "upgrade"),
        ("upgrade", "h2c"),
        ("http2-settings", "AAMAAABk"),
    ];
    assert_eq!(fixture.get_with("/a", &fields).await.text(), "none");
    assert_eq!(fixture.origin.last().header("http2-settings"), None);
}

#[tokio::test]
async fn a_response_head_of_exactly_the_limit_passes_and_one_byte_more_does_not() {
    let text = format!(
        "[upstream]\nheader_bytes = \"16KiB\"\n{}",
        route("ttl = \"60s\"")
    );
    let fixture = Fixture::start(&text, |seen| {
        let size: usize = seen.target[1..].parse().unwrap();
        let rest = "HTTP/1.1 200 OK\r\ncontent-length: 1\r\nx-long: \r\n\r\n";
        let value = "y".repeat(size - rest.len());
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: 1\r\nx-long: {value}\r\n\r\nx");
        vec![Step::Send(head.into_bytes())]
    })
    .await;
    let limit = 16 << 10;
    for _ in 0..4 {
        assert_eq!(fixture.get(&format!("/{limit}")).await.status, 200);
        for more in [1, 100, 8000] {
            let received = fixture.get(&format!("/{}", limit + more)).await;
            assert_eq!(received.status, 502, "{more}");
        }
    }
}

#[tokio::test]
async fn a_head_as_large_as_may_be_is_stored_and_given_again() {
    let text = format!(
        "[upstream]\nheader_bytes = \"1MiB\"\n{}",
        route("ttl = \"60s\"")
    );
    let fixture = Fixture::start(&text, |seen| match seen.target.as_str() {
        "/one" => ok("x", &[("x-long", &"y".repeat(900_000))]),
        _ => {
            let fields = (0..500).map(|at| format!("x-{at}: {}\r\n", "y".repeat(1700)));
            let fields: String = fields.collect();
            let head = format!("HTTP/1.1 200 OK\r\n{fields}content-length: 1\r\n\r\nx");
            vec![Step::Send(head.into_bytes())]
        }
    })
    .await;
    for target in ["/one", "/many"] {
        for expected in ["MISS", "HIT"] {
            let mut client = fixture.connect().await;
            client
                .send(format!("GET {target} HTTP/1.1\r\nhost: a\r\n\r\n"))
                .await;
            let text = client.until(b"\r\n\r\nx").await;
            assert!(text.len() > 850_000, "{target} {expected}");
            let text = String::from_utf8(text).unwrap();
            assert!(text.starts_with("HTTP/1.1 200 OK\r\n"));
            assert!(
                text.contains(&format!("x-cache: {expected}\r\n")),
                "{target}"
            );
        }
    }
}

#[tokio::test]
async fn trailers_do_not_say_who_asks_nor_how_it_came() {
    let fixture = Fixture::start(&route("ttl = \"60s\""), |seen| {
        assert_eq!(seen.trailers.to_lowercase(), "x-sum: 1\r\n");
        let text = "HTTP/1.1 200 OK\r\ntrailer: set-cookie, x-forwarded-for, \
            x-sum\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nset-cookie: \
            a=b\r\nx-forwarded-for: 1.2.3.4\r\nx-sum: 2\r\n\r\n";
        vec![Step::Send(text.as_bytes().to_vec())]
    })
    .await;
    let mut client = fixture.connect().await;
    let trailers = "authorization: Bearer x\r\nx-api-key: y\r\nX-Forwarded-For: \
        1.2.3.4\r\nx-real-ip: 1\r\nhost: b\r\nx-sum: 1\r\n";
    client
        .send(format!(
            "POST /a HTTP/1.1\r\nhost: a\r\nte: trailers\r\ntrailer: authorization, x-api-key, \
                x-forwarded-for, x-real-ip, host, x-sum\r\ntransfer-encoding: \
                chunked\r\n\r\n2\r\nhi\r\n0\r\n{trailers}\r\n"
        ))
        .await;
    let answer = client.response().await;
    assert_eq!(answer.status, 200);
    assert!(
        !answer.trailers.contains("set-cookie"),
        "{}",
        answer.trailers
    );
    assert!(
        !answer.trailers.contains("x-forwarded"),
        "{}",
        answer.trailers
    );
}
