//! One canonical request is routed, keyed, purged and sent.

use serde_json::json;

use crate::support::keys::Keys;
use crate::support::{Fixture, Received, Seen, ok, reply, route};

/// The path that an origin takes a target for which decodes all of it, and then resolves it.
fn resolved(target: &str) -> String {
    let path = target
        .split('?')
        .next()
        .unwrap()
        .replace("%5c", "\\")
        .replace("%5C", "\\");
    let path = path
        .replace("%2f", "/")
        .replace("%2F", "/")
        .replace("%2e", ".");
    let (mut kept, path) = (Vec::new(), path.replace('\\', "/"));
    for segment in path.split('/') {
        match segment.split(';').next().unwrap() {
            "" | "." => {}
            ".." => drop(kept.pop()),
            segment => kept.push(segment),
        }
    }
    format!("/{}", kept.join("/")).to_ascii_lowercase()
}

/// The same page for all, but for `/api/me`.
fn pages(keys: &Keys) -> impl Fn(&Seen) -> crate::support::Reply + use<> {
    let keys = keys.clone();
    move |seen| {
        let key = seen.header("authorization").unwrap_or_default().to_owned();
        let is_me = resolved(&seen.target) == "/api/me";
        let fields = [("cache-control", "max-age=60")];
        keys.check(seen, || ok(if is_me { &key } else { "all" }, &fields))
    }
}

const GUARDED: &str = "
[auth]
on_difference = \"off\"
control = \"off\"
[[route]]
path = \"/api/{*rest}\"
share = \"verified\"
ttl = \"60s\"
[[route]]
path = \"/api/me\"
share = \"per-key\"
ttl = \"60s\"
";

#[tokio::test]
async fn a_path_that_may_be_read_as_a_stricter_routes_is_ruled_by_that_route() {
    let keys = Keys::of(&["one", "two"]);
    let fixture = Fixture::start(GUARDED, pages(&keys)).await;
    for path in [
        "/api/me",
        "/api/x/..%2fme",
        "/api/me/",
        "/api//me",
        "/api/./me",
        "/api/x/../me",
        "/api/x/%2e%2e/me",
        "/api/x/..%5cme",
        "/api/x/..\\me",
        "/api/me%2f",
        "/api/me;v=1",
        "/API/Me",
        "/api/ME",
        "/api/x/..%2Fme?a=1",
        "//api/me",
        "/api//..\\me",
        "/api//..%5Cme",
        "/api/x/..%c0%afme",
        "/api/x%2f..%2fme;%2fx",
        "/api/me%20",
        "/api/m%00e",
        "/api/x/..%25252fme",
        "/api/me.json",
        "/api/me.",
    ] {
        for _ in 0..2 {
            for key in ["one", "two"] {
                let received = fixture.get_as(key, path).await;
                let is_own = received.text() == format!("Bearer {key}");
                // Not all of them lead there at this origin: then it is shared by nobody.
                assert!(
                    is_own || received.text() == "all",
                    "{path}: {}",
                    received.text()
                );
                let told = format!("/explain?url={}", path.replace('%', "%25"));
                let told = fixture.admin(&told).await.json();
                // Where no route takes it, nothing is stored.
                let is_stored = received.cache() != "BYPASS";
                let rules = is_stored.then_some("/api/me");
                assert_eq!(told["route"]["path"].as_str(), rules, "{path}");
            }
        }
    }
    // Too long to be read in all ways: whoever asks has its own.
    let long = format!("/api/{}%2f", "a".repeat(3000));
    for key in ["one", "two"] {
        let told = format!("/explain?url={}", long.replace('%', "%25"));
        let told = fixture.admin(&told).await.json();
        assert_eq!(told["route"]["path"], "/api/me");
        assert_ne!(fixture.get_as(key, &long).await.cache(), "HIT");
    }
    // What leads nowhere else is still shared.
    for path in ["/api/x", "/api/x/y%2fz", "/api/X//y/"] {
        fixture.get_as("one", path).await;
        fixture.get_as("two", path).await;
        let shared = fixture.get_as("two", path).await;
        assert_eq!(
            (shared.cache(), shared.text().as_str()),
            ("HIT", "all"),
            "{path}"
        );
    }
}

#[tokio::test]
async fn what_is_keyed_is_what_is_sent() {
    let fixture = Fixture::start(&route("ttl = \"60s\""), |seen| {
        let host = seen.header("host").unwrap_or_default();
        let forwarded = seen.header("x-forwarded-host").unwrap_or_default();
        ok(format!("{} {host} {forwarded}", seen.target), &[])
    })
    .await;
    let ask = |target: &'static str, host: &'static str| {
        let fixture = &fixture;
        async move { fixture.get_with(target, &[("host", host)]).await }
    };
    for (target, host, sent) in [
        (
            "/api/%63onfig",
            "t.example:80",
            "/api/config t.example t.example",
        ),
        (
            "/api/config",
            "T.example",
            "/api/config t.example t.example",
        ),
        ("/a/./b/../c?%7e=%c3%a9", "h", "/a/c?~=%C3%A9 h h"),
        ("/a/c?~=%C3%A9", "h:80", "/a/c?~=%C3%A9 h h"),
        ("/a%2fb//c", "h:81", "/a%2Fb//c h:81 h:81"),
        ("/a?b=1+2", "h", "/a?b=1+2 h h"),
        ("/a?b=1%2b2", "h", "/a?b=1%2B2 h h"),
    ] {
        assert_eq!(ask(target, host).await.text(), sent, "{target}");
    }
    assert_eq!(fixture.origin.count(), 5);
}

#[tokio::test]
async fn what_has_no_canonical_spelling_goes_by_as_it_came_and_is_400_where_keys_are_verified() {
    let keys = Keys::of(&["one"]);
    let text = format!(
        "{GUARDED}[[route]]\npath = \"/open/{{*rest}}\"\nttl = \"60s\"\nquery = \
            [\"q\"]\n[[route]]\npath = \"/signed/{{*rest}}\"\nttl = \"60s\"\nraw_target = true\n"
    );
    let fixture = Fixture::start(&text, {
        let pages = pages(&keys);
        move |seen| match seen.target.starts_with("/api") {
            true => pages(seen),
            false => ok(&seen.target, &[]),
        }
    })
    .await;
    for target in ["/open/a?q=100%&x=1", "/open/%zz", "/signed/%7e/../a?%61=1"] {
        for _ in 0..2 {
            let received = fixture.get(target).await;
            assert_eq!(
                (received.cache(), received.text().as_str()),
                ("BYPASS", target)
            );
            assert!(received.cache_status().contains("detail=raw-target"));
        }
    }
    let asked = fixture.origin.count();
    for target in ["/api/x?q=100%", "/api/%zz"] {
        let received = fixture.get_as("one", target).await;
        assert_eq!(received.status, 400, "{target}: {}", received.text());
    }
    assert_eq!(fixture.origin.count(), asked);
}

async fn purge(fixture: &Fixture, order: serde_json::Value) -> Received {
    fixture.order("/purge", &order).await
}

#[tokio::test]
async fn purges_speak_the_spelling_of_keys() {
    let fixture = Fixture::start(&route("ttl = \"1h\""), |seen| {
        ok(format!("{}", seen.number), &[])
    })
    .await;
    for (stored, order) in [
        ("/caf%C3%A9", json!({"url": "/café"})),
        ("/caf%c3%a9", json!({"url": "http://origin/café"})),
        ("/q?n='a'", json!({"url": "http://origin/q?n='a'"})),
        ("/x/{id}", json!({"url": "http://origin/x/{id}"})),
        ("/y/%7Bid%7D", json!({"url": "http://origin/y/{id}"})),
        ("/a/b?x=%7e", json!({"url": "/a/./c/../%62?%78=~"})),
        ("/caf%C3%A9/1", json!({"prefix": "/café/"})),
        ("/~a/1", json!({"prefix": "http://origin/%7ea"})),
        ("/z/{p}", json!({"prefix": "/z/{"})),
        ("/w/%7Bp%7D", json!({"prefix": "/w/{"})),
        ("/v/%7Bx%7D?q={y}", json!({"url": "/v/{x}?q={y}"})),
    ] {
        let fields = [("host", "origin")];
        let before = fixture.get_with(stored, &fields).await.text();
        assert_eq!(fixture.get_with(stored, &fields).await.text(), before);
        let done = purge(&fixture, order.clone()).await.json();
        assert_eq!(done["matches"], 1, "{stored} {order}: {done}");
        assert_ne!(fixture.get_with(stored, &fields).await.text(), before);
    }
    for no_uri in [json!({"url": "/100%"}), json!({"prefix": "/%zz"})] {
        assert_eq!(purge(&fixture, no_uri).await.status, 400);
    }
}

#[tokio::test]
async fn writes_and_what_they_name_speak_the_spelling_of_keys() {
    let routes =
        "[[route]]\npath = \"/{*rest}\"\nmethods = [\"GET\", \"HEAD\", \"POST\"]\nttl = \"1h\"\n";
    let fixture = Fixture::start(routes, |seen| match seen.method.as_str() {
        "POST" => {
            let location = seen.header("x-says").unwrap_or("/nothing").to_owned();
            reply(201, "", &[("location", &location)])
        }
        _ => ok(format!("{}", seen.number), &[]),
    })
    .await;
    for (stored, written, location) in [
        ("/a?n=%C3%A9", "/a?n=%c3%a9", ""),
        ("/b~", "/%62%7e", ""),
        ("/c/{id}?q='1'", "/other", "/c/{id}?q='1'"),
        ("/d%2Fe", "/other", "http://origin/x/../d%2fe"),
        ("/f/1", "/f/", "1"),
        ("/g?u=http://b/c", "/other", "/g?u=http://b/c"),
        ("/h?u=http://b/c", "/", "h?u=http://b/c"),
    ] {
        let fields = [("host", "origin")];
        let before = fixture.get_with(stored, &fields).await.text();
        assert_eq!(fixture.get_with(stored, &fields).await.text(), before);
        let fields = [("host", "origin"), ("x-says", location)];
        let fields = if location.is_empty() {
            &fields[..1]
        } else {
            &fields
        };
        fixture.connect().await.ask("POST", written, fields).await;
        let fields = [("host", "origin")];
        assert_ne!(
            fixture.get_with(stored, &fields).await.text(),
            before,
            "{stored}"
        );
    }
}

#[tokio::test]
async fn a_location_that_names_the_upstream_becomes_the_path_that_it_means_here() {
    let text = "[upstream]\nhost = \"rewrite\"\n[[route]]\npath = \"/{*rest}\"\nmethods = \
        [\"GET\", \"HEAD\", \"POST\"]\nttl = \"1h\"\n";
    let fixture = Fixture::start(text, |seen| {
        let own = seen.header("host").unwrap_or_default().to_owned();
        let location = match seen.target.as_str() {
            "/foreign" => "http://other.example/x".to_owned(),
            _ => format!("http://{own}/items/1?a=b"),
        };
        match seen.method.as_str() {
            "POST" => reply(201, "", &[("location", &location)]),
            "GET" if seen.target == "/moved" => reply(
                301,
                "",
                &[("location", &location), ("cache-control", "max-age=60")],
            ),
            _ => ok(format!("{}", seen.number), &[]),
        }
    })
    .await;
    let before = fixture.get("/items/1?a=b").await.text();
    let written = fixture.connect().await.ask("POST", "/items", &[]).await;
    assert_eq!(written.header("location"), Some("/items/1?a=b"));
    assert_ne!(fixture.get("/items/1?a=b").await.text(), before);
    for expected in ["MISS", "HIT"] {
        let moved = fixture.get("/moved").await;
        assert_eq!(
            (moved.cache(), moved.header("location")),
            (expected, Some("/items/1?a=b"))
        );
    }
    let foreign = fixture.connect().await.ask("POST", "/foreign", &[]).await;
    assert_eq!(foreign.header("location"), Some("http://other.example/x"));
}

#[tokio::test]
async fn requests_that_mean_another_origin_share_nothing() {
    let trusting = "[listen]\ntrusted_proxies = [\"127.0.0.1\"]\n";
    for listen in ["", trusting] {
        let text = format!("{listen}{}", route("ttl = \"1h\""));
        let fixture = Fixture::start(&text, |seen| {
            let scheme = seen.header("x-forwarded-proto").unwrap_or_default();
            let host = seen.header("host").unwrap_or("none");
            ok(format!("{scheme} {host:?}"), &[])
        })
        .await;
        let mut client = fixture.connect().await;
        let plain = client.ask("GET", "/s", &[("host", "h")]).await;
        assert_eq!(plain.text(), "http \"h\"");
        let same = client.ask("GET", "http://h/s", &[("host", "h")]).await;
        assert_eq!((same.cache(), same.text()), ("HIT", plain.text()));
        // RFC 9110 §7.4: nobody has secured this connection, unless a proxy before us has.
        let secured = client.ask("GET", "https://h/s", &[("host", "h")]).await;
        match listen {
            "" => assert_eq!(secured.status, 421, "{}", secured.text()),
            _ => assert_eq!(secured.text(), "https \"h\""),
        }
        // One names no host, the other an empty one.
        let mut answers = Vec::new();
        for head in [
            "GET /n HTTP/1.0\r\n\r\n",
            "GET /n HTTP/1.1\r\nhost:\r\n\r\n",
        ] {
            let mut client = fixture.connect().await;
            client.send(head).await;
            let received = client.response().await;
            assert_eq!((received.status, received.cache()), (200, "MISS"), "{head}");
            answers.push(received.text());
        }
        assert_ne!(answers[0], answers[1]);
    }
}

#[tokio::test]
async fn what_is_no_host_and_no_target_is_400_and_not_forwarded() {
    let fixture = Fixture::start(&route("ttl = \"1h\""), |seen| ok(&seen.target, &[])).await;
    for host in [
        "example.com:8080:9090",
        "::1",
        "[::1",
        "[::1]80",
        "[zz]",
        "[::1]:x",
        "h:+80",
        "h:99999",
        "h%zz",
        "h%4",
        "h%41",
        ":80",
        "a/b",
        "u@h",
    ] {
        let received = fixture.get_with("/a", &[("host", host)]).await;
        assert_eq!(received.status, 400, "{host}");
        assert!(received.header("date").is_some(), "{host}");
        assert!(received.header("content-type").is_some(), "{host}");
    }
    for (target, host) in [
        ("http://h:99999/", "h:99999"),
        ("http://h:99999/", "h"),
        ("http://:80/", ":80"),
        ("*", "h"),
        ("h:80", "h:80"),
        ("h", "h"),
    ] {
        let received = fixture.get_with(target, &[("host", host)]).await;
        assert_eq!(received.status, 400, "{target}");
        assert!(received.header("date").is_some(), "{target}");
    }
    assert_eq!(fixture.origin.count(), 0);
    for (target, host, sent) in [
        ("http://h?q", "h", "/?q"),
        ("http://h", "h:80", "/"),
        ("/a", "[::1]:81", "/a"),
        ("/a", "h:", "/a"),
        ("/a", "[v1.x]", "/a"),
        ("/a", "xn--caf-dma.example", "/a"),
    ] {
        let received = fixture.get_with(target, &[("host", host)]).await;
        assert_eq!(received.text(), sent, "{target} {host}");
    }
}

#[tokio::test]
async fn a_426_says_to_which_protocol() {
    let fixture = Fixture::start(&route("ttl = \"1h\"\nerror_ttl = \"1h\""), |_| {
        reply(
            426,
            "",
            &[("upgrade", "TLS/1.0, HTTP/1.1"), ("connection", "upgrade")],
        )
    })
    .await;
    for _ in 0..2 {
        let received = fixture.get("/a").await;
        assert_eq!((received.status, received.cache()), (426, "MISS"));
        assert_eq!(received.header("upgrade"), Some("TLS/1.0, HTTP/1.1"));
        assert_eq!(received.header("connection"), Some("upgrade"));
    }
}

#[tokio::test]
async fn a_host_by_another_spelling_takes_the_same_route() {
    let keys = Keys::of(&["one", "two"]);
    let rules = "[auth]\non_difference = \"off\"\ncontrol = \"off\"\n[[route]]\npath \
        = \"/{*rest}\"\nshare = \"verified\"\nttl = \"60s\"\n[[route]]\npath = \"/me\"\nhost \
        = \"h.example\"\nshare = \"per-key\"\nttl = \"60s\"\n";
    let known = keys.clone();
    let fixture = Fixture::start(rules, move |seen| {
        let key = seen.header("authorization").unwrap_or_default().to_owned();
        known.check(seen, || ok(key, &[]))
    })
    .await;
    for host in [
        "h.example",
        "H.Example",
        "h.example.",
        "h.example:80",
        "h.example:",
        "h.example:0080",
    ] {
        for key in ["one", "two", "one"] {
            let own = format!("Bearer {key}");
            let fields = [("host", host), ("authorization", own.as_str())];
            assert_eq!(fixture.get_with("/me", &fields).await.text(), own, "{host}");
        }
    }
    assert_eq!(
        fixture
            .get_with("/me", &[("host", "h%2eexample")])
            .await
            .status,
        400
    );
}

#[tokio::test]
async fn a_sorted_query_keeps_the_order_of_what_may_be_one_variable_and_is_sent_sorted() {
    let fixture = Fixture::start(&route("ttl = \"1h\"\nsort_query = true"), |seen| {
        ok(&seen.target, &[])
    })
    .await;
    for (one, other) in [
        ("a=1&%61=2", "%61=2&a=1"),
        ("ids[]=1&ids%5B%5D=2", "ids%5B%5D=2&ids[]=1"),
        ("a+b=1&a%20b=2", "a%20b=2&a+b=1"),
        ("A=1&a=2", "a=2&A=1"),
        ("a.b=1&a_b=2", "a_b=2&a.b=1"),
    ] {
        fixture.get(&format!("/x?{one}")).await;
        let received = fixture.get(&format!("/x?{other}")).await;
        assert_eq!(received.cache(), "MISS", "{one} {other}");
    }
    assert_eq!(fixture.get("/y?b=1&a=2").await.text(), "/y?a=2&b=1");
    assert_eq!(fixture.get("/y?a=2&b=1").await.cache(), "HIT");
}
