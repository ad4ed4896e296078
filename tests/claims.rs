//! What a request says of how it came here: what a stranger says never arrives, what a trusted
//! proxy says is in the key.

use crate::support::{Fixture, ok, route};

const TRUSTING: &str = "[listen]\ntrusted_proxies = [\"127.0.0.1\"]\n";

fn open(listen: &str) -> String {
    let methods = "methods = [\"GET\", \"HEAD\", \"POST\", \"DELETE\"]\n";
    format!("{listen}{}", route(&format!("{methods}ttl = \"1h\"")))
}

/// Says all the fields that it got, a line each.
async fn echo(config: &str) -> Fixture {
    Fixture::start(config, |seen| {
        let mut lines: Vec<String> = seen
            .headers
            .iter()
            .map(|(name, value)| format!("{name}: {}", String::from_utf8_lossy(value.as_bytes())))
            .collect();
        lines.sort();
        ok(lines.join("\n"), &[])
    })
    .await
}

#[tokio::test]
async fn what_a_trusted_proxy_says_is_sent_and_keyed_and_a_strangers_is_not() {
    let believing = echo(&open(TRUSTING)).await;
    let doubting = echo(&open("")).await;
    for (number, name) in [
        "front-end-https",
        "x-forwarded-port",
        "x-forwarded-prefix",
        "x-forwarded-scheme",
        "x-forwarded-ssl",
        "x-script-name",
        "x-url-scheme",
        "remote-user",
        "x-forwarded-user",
        "x-auth-request-email",
        "ssl-client-cert",
    ]
    .into_iter()
    .enumerate()
    {
        let path = format!("/{number}");
        for value in ["one", "two"] {
            let line = format!("{name}: {}", String::from_utf8_lossy(value.as_bytes()));
            for expected in ["MISS", "HIT"] {
                let received = believing.get_with(&path, &[(name, value)]).await;
                assert_eq!(received.cache(), expected, "{line}");
                assert!(
                    received.text().contains(&line),
                    "{line}: {}",
                    received.text()
                );
            }
            let received = doubting.get_with(&path, &[(name, value)]).await;
            assert!(!received.text().contains(name), "{}", received.text());
        }
        assert_eq!(doubting.get(&path).await.cache(), "HIT");
    }
}

#[tokio::test]
async fn forwarded_is_kept_extended_and_keyed_but_for_whom_it_is() {
    let fixture = echo(&open(TRUSTING)).await;
    let said = "for=192.0.2.1;proto=https;host=\"shop.example\", for=192.0.2.9";
    let received = fixture.get_with("/a", &[("forwarded", said)]).await.text();
    for line in [
        &format!("forwarded: {said}"),
        "forwarded: for=127.0.0.1",
        "x-forwarded-proto: https",
        "x-forwarded-host: shop.example",
    ] {
        assert!(received.contains(line), "{line}: {received}");
    }
    for (said, expected) in [
        (
            "For=\"[2001:db8::1]\";proto=https;host=\"shop.example\"",
            "HIT",
        ),
        (
            "for=\"a,host=evil\";proto=https;host=\"shop.example\"",
            "MISS",
        ),
        ("for=192.0.2.1;proto=http;host=\"shop.example\"", "MISS"),
        ("for=192.0.2.1;proto=https;host=\"evil.example\"", "MISS"),
        (
            "for=192.0.2.1;proto=https;host=\"shop.example\";x=y",
            "MISS",
        ),
    ] {
        let received = fixture.get_with("/a", &[("forwarded", said)]).await;
        assert_eq!(received.cache(), expected, "{said}");
    }
    let doubting = echo(&open("")).await;
    let received = doubting.get_with("/a", &[("forwarded", said)]).await.text();
    assert!(!received.contains("shop.example") && !received.contains("https"));
}

#[tokio::test]
async fn the_scheme_is_the_first_member_and_wss_is_https() {
    let fixture = echo(&open(TRUSTING)).await;
    for (number, (said, scheme)) in [
        ("https,http", "https"),
        ("HTTPS", "https"),
        ("wss", "https"),
        ("wss, http", "https"),
        ("http, https", "http"),
        ("ws", "http"),
        ("gopher", "http"),
    ]
    .into_iter()
    .enumerate()
    {
        let fields = [("x-forwarded-proto", said)];
        let sent = fixture.get_with(&format!("/{number}"), &fields).await;
        let line = format!("x-forwarded-proto: {scheme}\n");
        assert!(format!("{}\n", sent.text()).contains(&line), "{said}");
        let fields = [("x-forwarded-proto", scheme)];
        let same = fixture.get_with(&format!("/{number}"), &fields).await;
        assert_eq!(same.cache(), "HIT", "{said}");
    }
}

#[tokio::test]
async fn a_forwarded_host_that_is_none_is_not_sent_and_the_first_member_counts() {
    let fixture = echo(&open(TRUSTING)).await;
    for (number, (said, host)) in [
        ("evil.example/\u{ff}", "api.example"),
        ("evil.example/x", "api.example"),
        ("a b", "api.example"),
        ("h:80:90", "api.example"),
        ("shop.example, cdn.example", "shop.example"),
        ("shop.example:80", "shop.example"),
        ("[::1]:81", "[::1]:81"),
    ]
    .into_iter()
    .enumerate()
    {
        let path = format!("/{number}");
        let sent = fixture.get_with(&path, &[("x-forwarded-host", said)]).await;
        let line = format!("x-forwarded-host: {host}\n");
        assert!(sent.text().contains(&line), "{said}: {}", sent.text());
        assert!(!sent.text().contains("evil"), "{said}: {}", sent.text());
        // What is keyed is what was sent.
        let plain = fixture.get(&path).await;
        let is_same = host == "api.example";
        assert_eq!(plain.cache() == "HIT", is_same, "{said}");
    }
}

#[tokio::test]
async fn what_names_another_resource_is_dropped_whoever_sends_it_and_whatever_the_method() {
    for listen in ["", TRUSTING] {
        let fixture = echo(&open(listen)).await;
        for name in [
            "x-original-url",
            "x-rewrite-url",
            "x-original-uri",
            "x-forwarded-uri",
            "x-forwarded-path",
            "x-forwarded-server",
            "x-host",
            "x-rewrite-anything",
            "x-accel-mapping",
            "remote_user",
            "x-original-host",
            "x-real-ip",
            "true-client-ip",
            "proxy",
            "x_original_url",
            "x_forwarded_host",
            "x-forwarded_host",
            "x_api_key",
            "X_Api-Key",
            "accept_language",
            "if_none_match",
            "content_type",
        ] {
            for method in ["GET", "HEAD", "POST", "DELETE"] {
                let mut client = fixture.connect().await;
                client.ask(method, "/a", &[(name, "evil")]).await;
                let seen = fixture.origin.last();
                assert_eq!(seen.method, method);
                let found = seen.headers.iter().find(|(_, value)| *value == "evil");
                assert_eq!(found, None, "{method} {name}");
                let all = serde_json::json!({"all": true});
                fixture.order("/purge", &all).await;
            }
        }
        // Another name with an underscore is the API's own.
        fixture.get_with("/b", &[("tenant_id", "7")]).await;
        assert_eq!(fixture.origin.last().header("tenant_id"), Some("7"));
    }
}

#[tokio::test]
async fn method_overrides_pass_with_unsafe_methods_alone() {
    let fixture = echo(&open("")).await;
    for name in [
        "x-http-method-override",
        "x-http-method",
        "x-method-override",
    ] {
        for (method, passes) in [
            ("GET", false),
            ("HEAD", false),
            ("OPTIONS", false),
            ("SEARCH", false),
            ("POST", true),
        ] {
            let path = format!("/{name}/{method}");
            let before = fixture.get(&path).await;
            assert_eq!(before.status, 200);
            let mut client = fixture.connect().await;
            let all = serde_json::json!({"all": true});
            fixture.order("/purge", &all).await;
            client.ask(method, &path, &[(name, "DELETE")]).await;
            let seen = fixture.origin.last();
            assert_eq!(seen.method, method);
            assert_eq!(seen.header(name).is_some(), passes, "{method} {name}");
        }
        // And such a request makes what is stored unusable, as the POST that it is.
        fixture.get("/item").await;
        assert_eq!(fixture.get("/item").await.cache(), "HIT");
        let fields = [(name, "DELETE")];
        fixture.connect().await.ask("POST", "/item", &fields).await;
        assert_eq!(fixture.get("/item").await.cache(), "MISS");
    }
}
