//! The admin port: metrics with bounded labels, the summary, health, and its token.

use crate::support::{Client, Fixture, Step, ok, route};

#[tokio::test]
async fn metrics_carry_the_operators_names_with_route_patterns_as_paths() {
    let text = "[[route]]\npath = \"/api/iris/{project}\"\nttl = \"60s\"\n";
    let fixture = Fixture::start(text, |seen| {
        if seen.target.contains("broken") {
            vec![Step::Close]
        } else {
            ok("x", &[])
        }
    })
    .await;
    for project in ["a", "a", "b", "broken"] {
        fixture.get(&format!("/api/iris/{project}")).await;
    }
    fixture.connect().await.ask("POST", "/elsewhere", &[]).await;
    let path = "path=\"/api/iris/{project}\"";
    for (sample, value) in [
        (
            format!("http_requests_total{{method=\"GET\",{path},status=\"200\"}}"),
            3.0,
        ),
        (
            format!("http_requests_total{{method=\"GET\",{path},status=\"502\"}}"),
            1.0,
        ),
        (
            "http_requests_total{method=\"POST\",path=\"(no route)\",status=\"200\"}".to_owned(),
            1.0,
        ),
        (
            format!("http_request_duration_ms_count{{method=\"GET\",{path}}}"),
            4.0,
        ),
        (
            format!("http_errors_total{{method=\"GET\",{path},error_type=\"connection_closed\"}}"),
            1.0,
        ),
        (
            "cache_requests_total{cache=\"query\",result=\"hit\"}".to_owned(),
            1.0,
        ),
        (
            "cache_requests_total{cache=\"query\",result=\"miss\"}".to_owned(),
            3.0,
        ),
        (
            "cache_results_total{result=\"HIT\",reason=\"fresh\"}".to_owned(),
            1.0,
        ),
        (
            "cache_results_total{result=\"BYPASS\",reason=\"no-route\"}".to_owned(),
            1.0,
        ),
        ("cache_stored_entries".to_owned(), 2.0),
    ] {
        assert_eq!(fixture.metric(&sample).await, value, "{sample}");
    }
    // A request that was refused is an error too.
    fixture
        .connect()
        .await
        .ask("GET", "/a", &[("transfer-encoding", "gzip, chunked")])
        .await;
    let refused =
        "http_errors_total{method=\"GET\",path=\"(no route)\",error_type=\"not_implemented\"}";
    assert_eq!(fixture.metric(refused).await, 1.0);
    assert!(fixture.metric("memory_rss_bytes").await > 1e6);
    let scraped = fixture.admin("/metrics").await;
    assert!(
        scraped
            .header("content-type")
            .unwrap()
            .starts_with("text/plain; version=0.0.4")
    );
}

#[tokio::test]
async fn the_summary_is_the_one_of_the_requirements() {
    let fixture = Fixture::start(&route("ttl = \"60s\""), |_| ok("x", &[])).await;
    for _ in 0..10 {
        fixture.get("/a").await;
    }
    let summary = fixture.admin("/api/metrics").await.json();
    assert_eq!(summary["requests"]["total"], 10);
    assert_eq!(summary["requests"]["errorRate"], 0.0);
    assert_eq!(summary["cache"]["hitRate"], 0.9);
    assert_eq!(summary["rateLimit"]["blockRate"], 0.0);
    assert!(summary["requests"]["p99Latency"].as_f64().unwrap() > 0.0);
    assert_eq!(summary["database"]["totalQueries"], 0);
}

#[tokio::test]
async fn health_needs_no_token_and_everything_else_does() {
    let fixture = Fixture::start("[admin]\ntoken = \"secret\"\n", |_| ok("x", &[])).await;
    for path in ["/healthz", "/readyz"] {
        assert_eq!(fixture.admin(path).await.status, 200);
    }
    let refused = fixture.admin("/metrics").await;
    assert_eq!(
        (refused.status, refused.header("www-authenticate")),
        (401, Some("Bearer"))
    );
    for (token, status) in [
        ("Bearer secret", 200),
        ("Bearer wrong", 401),
        ("secret", 401),
    ] {
        let mut client = Client::connect(fixture.sidecar().admin_address).await;
        assert_eq!(
            client
                .ask(
                    "GET",
                    "/metrics",
                    &[("host", "localhost"), ("authorization", token)]
                )
                .await
                .status,
            status,
            "{token}"
        );
    }
}

#[tokio::test]
async fn what_is_not_there_says_what_is() {
    let fixture = Fixture::start("", |_| ok("x", &[])).await;
    let missing = fixture.admin("/metric").await;
    assert_eq!(missing.status, 404);
    assert!(missing.text().contains("/metrics"));
    let mut client = Client::connect(fixture.sidecar().admin_address).await;
    assert_eq!(
        client.ask("POST", "/metrics", &[]).await.header("allow"),
        Some("GET, HEAD")
    );
}

#[tokio::test]
async fn a_token_in_a_file_is_read_again_when_it_changes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("token");
    std::fs::write(&path, "first\n").unwrap();
    let config = format!("[admin]\ntoken_file = \"{}\"\n", path.display());
    let fixture = Fixture::start(&config, |_| ok("x", &[])).await;
    let with = async |token: &str| {
        let authorization = format!("Bearer {token}");
        let fields = [("host", "localhost"), ("authorization", &*authorization)];
        ask(&fixture, "GET", "/metrics", &fields).await
    };
    assert_eq!((with("first").await, with("second").await), (200, 401));
    // As a Secret of Kubernetes is exchanged: another file in its place.
    let next = folder.path().join("next");
    std::fs::write(&next, "second\n").unwrap();
    let later = std::time::SystemTime::now() + std::time::Duration::from_secs(10);
    std::fs::File::open(&next)
        .unwrap()
        .set_modified(later)
        .unwrap();
    std::fs::rename(&next, &path).unwrap();
    assert_eq!((with("first").await, with("second").await), (401, 200));
    // A file that is gone, or empty, leaves the last one in force.
    std::fs::write(&path, "").unwrap();
    assert_eq!(with("second").await, 200);
    std::fs::remove_file(&path).unwrap();
    assert_eq!(with("second").await, 200);
}

async fn ask(fixture: &Fixture, method: &str, target: &str, fields: &[(&str, &str)]) -> u16 {
    let mut client = Client::connect(fixture.sidecar().admin_address).await;
    client.ask(method, target, fields).await.status
}

#[tokio::test]
async fn the_port_answers_to_addresses_to_localhost_and_to_listed_names_alone() {
    let fixture = Fixture::start("[admin]\nhosts = [\"iris.default.svc\"]\n", |_| {
        ok("x", &[])
    })
    .await;
    for (host, status) in [
        ("127.0.0.1:9180", 200),
        ("10.1.2.3", 200),
        ("[::1]:9180", 200),
        ("localhost:1", 200),
        ("Iris.default.svc:9180", 200),
        ("evil.example", 421),
        ("127.0.0.1.evil.example", 421),
        ("localhost.evil.example:9180", 421),
    ] {
        let asked = ask(&fixture, "GET", "/metrics", &[("host", host)]).await;
        assert_eq!(asked, status, "{host}");
        // Probes come by whatever name.
        let asked = ask(&fixture, "GET", "/healthz", &[("host", host)]).await;
        assert_eq!(asked, 200, "{host}");
    }
}

#[tokio::test]
async fn orders_are_json_and_come_from_no_other_site() {
    let fixture = Fixture::start("", |_| ok("x", &[])).await;
    let json = ("content-type", "application/json; charset=utf-8");
    let none = ("x-nothing", "1");
    for (media_type, site, status) in [
        (json, none, 200),
        (json, ("sec-fetch-site", "none"), 200),
        (json, ("sec-fetch-site", "same-origin"), 200),
        (json, ("sec-fetch-site", "cross-site"), 403),
        (json, ("sec-fetch-site", "same-site"), 403),
        (json, ("origin", "http://localhost:3000"), 403),
        (none, none, 415),
        (("content-type", "text/plain"), none, 415),
        (
            ("content-type", "application/x-www-form-urlencoded"),
            none,
            415,
        ),
        (("content-type", "application/jsonp"), none, 415),
    ] {
        let order = r#"{"all": true}"#;
        let length = order.len().to_string();
        let mut client = Client::connect(fixture.sidecar().admin_address).await;
        let fields = [
            ("host", "127.0.0.1"),
            ("content-length", &*length),
            media_type,
            site,
        ];
        client.request("POST", "/purge", &fields).await;
        client.send(order).await;
        assert_eq!(
            client.response().await.status,
            status,
            "{media_type:?} {site:?}"
        );
    }
}

#[tokio::test]
async fn metrics_may_be_public_and_health_may_not() {
    let config = "[admin]\ntoken = \"secret\"\npublic = [\"metrics\"]\n";
    let fixture = Fixture::start(config, |_| ok("x", &[])).await;
    for (path, status) in [("/metrics", 200), ("/readyz", 401), ("/api/metrics", 401)] {
        assert_eq!(fixture.admin(path).await.status, status, "{path}");
    }
}

#[tokio::test]
async fn who_holds_admin_connections_keeps_nobody_out() {
    let fixture = Fixture::start("[admin]\nconnections = 8\n", |_| ok("x", &[])).await;
    let mut held = Vec::new();
    for _ in 0..100 {
        let mut client = Client::connect(fixture.sidecar().admin_address).await;
        client
            .ask("GET", "/healthz", &[("host", "localhost")])
            .await;
        held.push(client);
    }
    // The oldest have made room.
    for client in &mut held[..92] {
        assert_eq!(client.closed().await, b"");
    }
    assert_eq!(fixture.admin("/healthz").await.status, 200);
}
