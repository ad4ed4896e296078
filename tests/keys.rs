//! What separates one stored response from another, and what a client cannot mix up.

use crate::support::{Fixture, ok, route};

#[tokio::test]
async fn per_key_routes_keep_each_credential_apart() {
    // `authorization` says who asks even where the list does not name it.
    for fields in ["", "[cache]\ncredential_fields = [\"x-api-key\"]\n"] {
        let text = format!("{fields}{}", route("ttl = \"60s\"\nshare = \"per-key\""));
        let fixture = Fixture::start(&text, |seen| {
            let key = seen.header("authorization").or(seen.header("x-api-key"));
            ok(
                key.unwrap_or("nobody"),
                &[("cache-control", "private, max-age=60")],
            )
        })
        .await;
        let keys = [
            ("authorization", "one"),
            ("authorization", "two"),
            ("x-api-key", "one"),
        ];
        for (name, key) in keys {
            for expected in ["MISS", "HIT"] {
                let received = fixture.get_with("/a", &[(name, key)]).await;
                assert_eq!(
                    (received.cache(), received.text().as_str()),
                    (expected, key)
                );
            }
        }
        assert_eq!(fixture.origin.count(), 3);
        // Nobody in particular has no partition for what is private; nor has somebody whom a cookie
        // may tell apart as well.
        for _ in 0..2 {
            assert_eq!(fixture.get("/b").await.cache(), "MISS");
            let fields = [("authorization", "one"), ("cookie", "session=1")];
            assert_eq!(fixture.get_with("/c", &fields).await.cache(), "MISS");
        }
    }
}

#[tokio::test]
async fn each_variant_answers_only_requests_that_select_it() {
    let fixture = Fixture::start(&route("ttl = \"60s\""), |seen| {
        ok(
            seen.header("accept-language").unwrap_or("none"),
            &[("vary", "Accept-Language")],
        )
    })
    .await;
    for language in ["de", "en"] {
        let fields = [("accept-language", language)];
        assert_eq!(fixture.get_with("/a", &fields).await.text(), language);
    }
    for (fields, body) in [
        (&[("accept-language", "de")][..], "de"),
        (&[("accept-language", "en")][..], "en"),
    ] {
        let hit = fixture.get_with("/a", fields).await;
        assert_eq!((hit.cache(), hit.text().as_str()), ("HIT", body));
    }
    let absent = fixture.get("/a").await;
    assert_eq!((absent.cache(), absent.text().as_str()), ("MISS", "none"));
    assert!(
        absent.cache_status().contains("fwd=vary-miss"),
        "{}",
        absent.cache_status()
    );
}

#[tokio::test]
async fn a_vary_that_cannot_be_read_selects_by_anything() {
    let fixture = Fixture::start(&route("ttl = \"60s\""), |seen| {
        let vary = seen.target[1..].replace('_', " ").replace("%3B", ";");
        let vary = vary.replace("%22", "\"").replace("%C3", "\u{c3}");
        ok(seen.header("cookie").unwrap_or("none"), &[("vary", &vary)])
    })
    .await;
    for vary in [
        "Cookie%3BAuthorization",
        "foo_bar",
        ":_foo",
        "foo%3Bq=1",
        "accept,foo_bar",
        "%22cookie%22",
        "%22accept,cookie%22",
        "(cookie)",
        "%C3",
        "accept,*",
    ] {
        for language in ["de", "en"] {
            let fields = [("accept-language", language)];
            let received = fixture.get_with(&format!("/{vary}"), &fields).await;
            assert_eq!(received.cache(), "MISS", "{vary}");
            let status = received.cache_status();
            assert!(status.contains("detail=vary-any"), "{vary}: {status}");
        }
    }
    // Empty members are none (RFC 9110 §5.6.1.2).
    for expected in ["MISS", "HIT"] {
        let received = fixture.get("/,accept,,").await;
        assert_eq!(received.cache(), expected);
    }
}

#[tokio::test]
async fn what_selects_is_told_apart_as_it_is_sent() {
    let fixture = Fixture::start(&route("ttl = \"60s\"\ncookies = \"store\""), |seen| {
        let said = |name| seen.header(name).unwrap_or("none").to_owned();
        let text = format!("{} {}", said("cookie"), said("accept-encoding"));
        ok(text, &[("vary", "cookie, accept-encoding")])
    })
    .await;
    for (fields, text) in [
        (&[("cookie", "a=1"), ("cookie", "b=2")][..], "a=1; b=2 none"),
        (&[("cookie", "a=1,b=2")], "a=1,b=2 none"),
        (&[("accept-encoding", "any")], "none any"),
        (&[], "none none"),
        (&[("accept-encoding", ";")], "none ;"),
    ] {
        let received = fixture.get_with("/a", fields).await;
        assert_eq!((received.cache(), received.text().as_str()), ("MISS", text));
    }
    let one_line = fixture.get_with("/a", &[("cookie", "a=1; b=2")]).await;
    assert_eq!(one_line.cache(), "HIT");
}

#[tokio::test]
async fn the_query_rule_chooses_what_selects_and_what_is_forwarded() {
    let text = "[[route]]\npath = \"/named\"\nquery = [\"page\"]\nunknown_query \
        = \"drop\"\nsort_query = true\nttl = \"60s\"\n[[route]]\npath = \"/none\"\nquery \
        = \"none\"\nunknown_query = \"drop\"\nttl = \"60s\"\n[[route]]\npath = \"/all\"\nttl \
        = \"60s\"\n";
    let fixture = Fixture::start(text, |seen| ok(&seen.target, &[])).await;
    assert_eq!(
        fixture.get("/named?utm=1&page=2").await.text(),
        "/named?page=2"
    );
    assert_eq!(fixture.get("/named?page=2&x=9").await.cache(), "HIT");
    assert_eq!(fixture.get("/named?page=3").await.cache(), "MISS");
    assert_eq!(fixture.get("/none?x=1").await.text(), "/none");
    assert_eq!(fixture.get("/none").await.cache(), "HIT");
    assert_eq!(fixture.get("/all?b=1&a=2").await.text(), "/all?b=1&a=2");
    assert_eq!(fixture.get("/all?a=2&b=1").await.cache(), "MISS");
}

#[tokio::test]
async fn a_parameter_that_the_route_does_not_name_goes_by_and_is_not_lost() {
    let text = "[[route]]\npath = \"/named\"\nmethods = [\"GET\", \"HEAD\", \"POST\"]\nquery = \
        [\"page\"]\nttl = \"60s\"\n[[route]]\npath = \"/none\"\nquery = \"none\"\nttl = \"60s\"\n";
    let fixture = Fixture::start(text, |seen| ok(&seen.target, &[])).await;
    for target in [
        "/named?page=2&projectId=beacon",
        "/named?projectId=beacon",
        "/named?Page=2",
        "/named?page=1&page%5B%5D=2",
        "/named?x",
        "/none?projectId=beacon",
        "/none?a&",
    ] {
        for _ in 0..2 {
            let received = fixture.get(target).await;
            assert_eq!(
                (received.cache(), received.text().as_str()),
                ("BYPASS", target)
            );
            let status = received.cache_status();
            assert!(status.contains("detail=unknown-query"), "{status}");
        }
        let told = format!("/explain?url={}", target.replace('&', "%26"));
        let told = fixture.admin(&told).await.json();
        assert_eq!(told["reason"], "unknown-query", "{target}");
    }
    // Whatever is named, in whatever spelling, and what is no parameter at all, is stored.
    for (target, sent) in [
        ("/named?page=2", "/named?page=2"),
        ("/named?%70age=2", "/named?page=2"),
        ("/named?page", "/named?page"),
        ("/none", "/none"),
    ] {
        let received = fixture.get(target).await;
        assert_eq!(received.text(), sent);
        assert_eq!(fixture.get(target).await.cache(), "HIT", "{target}");
    }
    // A write loses nothing either.
    let target = "/named?page=1&dry_run=true";
    let written = fixture.connect().await.ask("POST", target, &[]).await;
    assert_eq!(written.text(), target);
}

#[tokio::test]
async fn cookies_under_an_operators_ttl_follow_the_routes_rule() {
    let text = ["bypass", "ignore", "key", "store"].map(|rule| {
        format!("[[route]]\npath = \"/{rule}\"\ncookies = \"{rule}\"\nttl = \"60s\"\n")
    });
    let fixture = Fixture::start(&text.concat(), |seen| {
        ok(seen.header("cookie").unwrap_or("none"), &[])
    })
    .await;
    let cookie = |value| [("cookie", value)];
    // Never stored, never answered from what is stored for others.
    assert_eq!(
        fixture.get_with("/bypass", &cookie("a=1")).await.text(),
        "a=1"
    );
    assert_eq!(fixture.get("/bypass").await.cache(), "MISS");
    assert_eq!(
        fixture.get_with("/bypass", &cookie("a=1")).await.text(),
        "a=1"
    );
    assert_eq!(fixture.get("/bypass").await.text(), "none");

    assert_eq!(
        fixture.get_with("/ignore", &cookie("a=1")).await.text(),
        "none"
    );
    assert_eq!(
        fixture.get_with("/ignore", &cookie("a=2")).await.cache(),
        "HIT"
    );

    assert_eq!(fixture.get_with("/key", &cookie("a=1")).await.text(), "a=1");
    assert_eq!(fixture.get_with("/key", &cookie("a=2")).await.text(), "a=2");
    assert_eq!(
        fixture.get_with("/key", &cookie("a=1")).await.cache(),
        "HIT"
    );

    assert_eq!(
        fixture.get_with("/store", &cookie("a=1")).await.text(),
        "a=1"
    );
    assert_eq!(
        fixture.get_with("/store", &cookie("a=2")).await.text(),
        "a=1"
    );
}

#[tokio::test]
async fn host_scheme_and_path_are_in_the_key() {
    let fixture = Fixture::start(
        &format!(
            "[listen]\ntrusted_proxies = [\"127.0.0.1\"]\n{}",
            route("ttl = \"60s\"")
        ),
        |seen| {
            ok(
                format!(
                    "{} {}",
                    seen.header("host").unwrap(),
                    seen.header("x-forwarded-proto").unwrap()
                ),
                &[],
            )
        },
    )
    .await;
    assert_eq!(
        fixture
            .get_with("/a", &[("host", "one.example")])
            .await
            .text(),
        "one.example http"
    );
    assert_eq!(
        fixture
            .get_with("/a", &[("host", "two.example")])
            .await
            .text(),
        "two.example http"
    );
    let https = [("host", "one.example"), ("x-forwarded-proto", "https")];
    assert_eq!(
        fixture.get_with("/a", &https).await.text(),
        "one.example https"
    );
    assert_eq!(
        fixture
            .get_with("/%61", &[("host", "ONE.example")])
            .await
            .cache(),
        "HIT"
    );
}

#[tokio::test]
async fn what_connection_names_selects_nothing() {
    let fixture = Fixture::start(&route("ttl = \"60s\""), |seen| {
        ok(
            seen.header("origin").unwrap_or("none"),
            &[("vary", "origin")],
        )
    })
    .await;
    let poison = [("origin", "https://app.example"), ("connection", "origin")];
    assert_eq!(fixture.get_with("/a", &poison).await.text(), "none");
    let honest = fixture
        .get_with("/a", &[("origin", "https://app.example")])
        .await;
    assert_eq!(
        (honest.cache(), honest.text().as_str()),
        ("MISS", "https://app.example")
    );
}

#[tokio::test]
async fn unkeyed_inputs_never_reach_the_origin_even_through_a_trusted_proxy() {
    let text = format!(
        "[listen]\ntrusted_proxies = [\"127.0.0.1\"]\n{}",
        route("ttl = \"60s\"")
    );
    let fixture = Fixture::start(&text, |seen| {
        ok(seen.header("x-forwarded-host").unwrap_or("none"), &[])
    })
    .await;
    for name in [
        "x-original-url",
        "x-rewrite-url",
        "x-http-method-override",
        "x-forwarded-uri",
        "x-real-ip",
    ] {
        fixture
            .get_with(&format!("/{name}"), &[(name, "/admin")])
            .await;
        assert_eq!(fixture.origin.last().header(name), None, "{name}");
    }
    // What the trusted proxy may say is in the key.
    for host in ["one.example", "two.example"] {
        let received = fixture.get_with("/a", &[("x-forwarded-host", host)]).await;
        assert_eq!((received.cache(), received.text().as_str()), ("MISS", host));
    }
}

#[tokio::test]
async fn one_clients_own_answer_does_not_throw_out_what_all_share() {
    let fixture = Fixture::start(&route("ttl = \"60s\""), |seen| {
        match (seen.header("cookie"), seen.header("accept")) {
            (Some(_), _) => ok("own", &[("set-cookie", "a=1")]),
            (None, Some("weird/x")) => ok(
                "weird",
                &[("cache-control", "no-store"), ("vary", "accept")],
            ),
            (None, accept) => ok(
                accept.unwrap_or("plain"),
                &[(
                    "vary",
                    if seen.target == "/vary" {
                        "accept"
                    } else {
                        "x-none"
                    },
                )],
            ),
        }
    })
    .await;
    fixture.get("/plain").await;
    assert_eq!(
        fixture
            .get_with("/plain", &[("cookie", "a=1")])
            .await
            .text(),
        "own"
    );
    assert_eq!(fixture.get("/plain").await.cache(), "HIT");
    fixture.get_with("/vary", &[("accept", "text/html")]).await;
    assert_eq!(
        fixture
            .get_with("/vary", &[("accept", "weird/x")])
            .await
            .text(),
        "weird"
    );
    assert_eq!(
        fixture
            .get_with("/vary", &[("accept", "text/html")])
            .await
            .cache(),
        "HIT"
    );
}
