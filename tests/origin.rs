//! The built-in origin: one suite over both databases, straight at it and through the cache.

mod support;

use iris_sidecar::clock::Clock;
use iris_sidecar::config::{Config, DEFAULT};
use iris_sidecar::process::Sidecar;
use serde_json::{Value, json};
use support::golden::{self, Golden, execute};
use support::postgres::PostgresServer;
use support::process::FREE_PORTS;
use support::{Client, Received};

/// A sidecar whose origin is a database with the golden data.
struct Api {
    clock: Clock,
    key: String,
    /// Of another project.
    other_key: String,
    database: iris_sidecar::database::Database,
    sidecar: Option<Sidecar>,
}

impl Api {
    /// `routes`: the configuration beside the origin; none for straight at it.
    async fn start(url: &str, routes: &str, golden: &Golden) -> Self {
        let clock = golden::clock();
        let database = golden::open(url).await;
        golden.write(&database).await;
        let key = database
            .create_key("alpha", "Alpha Project", Some("test"), clock.now())
            .await
            .unwrap();
        let other_key = database
            .create_key("beta", "Beta", None, clock.now())
            .await
            .unwrap();
        let text =
            format!("{FREE_PORTS}[origin]\ndatabase = \"{url}\"\nquery_timeout = \"2s\"\n{routes}");
        let config = Config::parse("test", &text, &|_| None).unwrap();
        let starting = {
            let clock = clock.clone();
            move || Sidecar::start_with(config, clock, None).expect("it starts")
        };
        let sidecar = tokio::task::spawn_blocking(starting).await.unwrap();
        Self {
            clock,
            key,
            other_key,
            database,
            sidecar: Some(sidecar),
        }
    }

    async fn send(
        &self,
        method: &str,
        target: &str,
        fields: &[(&str, &str)],
        body: &str,
    ) -> Received {
        let address = self.sidecar.as_ref().unwrap().address;
        let mut client = Client::connect(address).await;
        let length = body.len().to_string();
        let mut all = fields.to_vec();
        if !body.is_empty() {
            all.push(("content-length", &length));
        }
        client.request(method, target, &all).await;
        if !body.is_empty() {
            client.send(body).await;
        }
        if method == "HEAD" {
            return client.head().await;
        }
        client.response().await
    }

    async fn get(&self, target: &str) -> Received {
        self.get_with(target, &[]).await
    }

    async fn get_with(&self, target: &str, fields: &[(&str, &str)]) -> Received {
        let authorization = format!("Bearer {}", self.key);
        let mut all = vec![("authorization", authorization.as_str())];
        all.extend(fields);
        self.send("GET", target, &all, "").await
    }

    async fn post(&self, target: &str, body: &Value) -> Received {
        self.post_text(target, &body.to_string(), "application/json")
            .await
    }

    async fn post_text(&self, target: &str, body: &str, media_type: &str) -> Received {
        let authorization = format!("Bearer {}", self.key);
        let fields = [
            ("authorization", authorization.as_str()),
            ("content-type", media_type),
        ];
        self.send("POST", target, &fields, body).await
    }

    async fn total(&self) -> i64 {
        self.get("/api/iris/events?limit=1").await.json()["total"]
            .as_i64()
            .unwrap()
    }
}

impl Drop for Api {
    fn drop(&mut self) {
        if let Some(sidecar) = self.sidecar.take() {
            sidecar.drain();
            sidecar.join();
        }
    }
}

/// Runs a part of the suite over SQLite and over Postgres, each with data of its own.
async fn over_both<F, R>(routes: &str, part: F)
where
    F: Fn(Api, Golden) -> R,
    R: Future<Output = ()>,
{
    let golden = || Golden::new(golden::clock().now());
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite:{}/iris.db", folder.path().display());
    let api = Api::start(&url, routes, &golden()).await;
    part(api, golden()).await;
    let server = PostgresServer::start().await;
    let api = Api::start(&server.url(), routes, &golden()).await;
    part(api, golden()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_are_what_the_data_says_past_a_hundred_rows() {
    over_both("", async |api: Api, golden: Golden| {
        let overview = api.get("/api/iris/overview").await;
        assert_eq!(overview.status, 200, "{}", overview.text());
        let overview = overview.json();
        let (metrics, projects) = golden.overview();
        assert_eq!(overview["metrics"], metrics);
        assert_eq!(overview["projects"], projects);
        assert_eq!(overview["anomalies"], json!([]));
        let events = overview["events"].as_array().unwrap();
        assert_eq!(events.len(), 50);
        assert_eq!(events[0]["message"], "event 0");
        assert_eq!(events[49]["message"], "event 49");

        let analytics = api.get("/api/iris/analytics").await.json();
        assert_eq!(analytics["success"], true);
        let data = &analytics["data"];
        assert_eq!(
            (&data["projectId"], &data["projectName"]),
            (&json!("alpha"), &json!("Alpha Project"))
        );
        let expected = golden.analytics();
        for (part, value) in expected.as_object().unwrap() {
            assert_eq!(&data[part], value, "{part}");
        }
        for list in ["modelRuns", "reflexions", "consensusDecisions"] {
            assert_eq!(data["recent"][list].as_array().unwrap().len(), 10, "{list}");
        }

        let history = api.get("/api/iris/alpha").await.json();
        let own: Vec<_> = golden
            .events
            .iter()
            .filter(|event| event.project == "alpha")
            .collect();
        assert_eq!(
            (&history["count"], &history["historical"]),
            (&json!(own.len()), &json!(true))
        );
        let metrics = &history["data"]["metrics"];
        let confidence = golden::rounded(golden::mean(own.iter().map(|event| event.confidence)));
        assert_eq!(metrics["avgConfidence"], confidence);
        let latency = golden::rounded(golden::mean(own.iter().map(|event| event.latency as f64)));
        assert_eq!(metrics["avgLatencyMs"], latency);
        let success = golden::mean(own.iter().map(|event| f64::from(u8::from(event.success))));
        assert_eq!(metrics["successRate"], golden::rounded(success));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_are_filtered_bounded_and_paged() {
    over_both("", async |api: Api, golden: Golden| {
        let patterns = api.get("/api/iris/patterns").await.json();
        assert_eq!(
            (&patterns["count"], &patterns["projectId"]),
            (&json!(50), &json!("alpha"))
        );
        assert_eq!(patterns["data"][0]["name"], "p0");
        let wanted =
            |(category, confidence): &&(&str, f64)| *category == "drift" && *confidence >= 0.5;
        let expected = golden.patterns.iter().filter(wanted).count();
        let some = api
            .get("/api/iris/patterns?category=drift&minConfidence=0.5&limit=1000")
            .await
            .json();
        assert_eq!(some["count"], expected);
        let from = iris_sidecar::database::stored_time(
            golden.now.minus(std::time::Duration::from_secs(10 * 3600)),
        );
        let some = api
            .get(&format!("/api/iris/patterns?fromDate={from}"))
            .await
            .json();
        assert_eq!(some["count"], 11);
        let some = api
            .get(&format!("/api/iris/patterns?toDate={from}&limit=1000"))
            .await
            .json();
        assert_eq!(some["count"], 50);

        for (target, total) in [("events", 150), ("reflexion", 120)] {
            let mut seen = std::collections::BTreeSet::new();
            for page in 1..=3 {
                let found = api
                    .get(&format!("/api/iris/{target}?page={page}&limit=60"))
                    .await
                    .json();
                assert_eq!(
                    (&found["total"], &found["page"], &found["limit"]),
                    (&json!(total), &json!(page), &json!(60))
                );
                let data = found["data"].as_array().unwrap();
                assert_eq!(found["hasMore"], page * 60 < total);
                seen.extend(
                    data.iter()
                        .map(|row| row["id"].as_str().unwrap().to_owned()),
                );
            }
            assert_eq!(seen.len(), total, "{target}");
            let beyond = api.get(&format!("/api/iris/{target}?page=9")).await.json();
            assert_eq!(
                (&beyond["data"], &beyond["hasMore"]),
                (&json!([]), &json!(false))
            );
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_data_gives_the_same_bytes_and_a_revalidation_is_304() {
    over_both("", async |api: Api, _| {
        for target in [
            "overview",
            "analytics",
            "patterns",
            "events",
            "reflexion",
            "alpha",
        ] {
            let target = format!("/api/iris/{target}");
            let first = api.get(&target).await;
            let again = api.get(&target).await;
            assert_eq!(first.body, again.body, "{target}");
            api.clock.advance(std::time::Duration::from_secs(61));
            let later = api.get(&target).await;
            let tag = first.header("etag").unwrap().to_owned();
            assert!(tag.starts_with("W/\""), "{tag}");
            assert_eq!(later.header("etag"), Some(tag.as_str()), "{target}");
            let cache =
                "private, max-age=30, s-maxage=60, stale-while-revalidate=120, stale-if-error=3600";
            assert_eq!(first.header("cache-control"), Some(cache));
            let short = api.get_with(&target, &[("if-none-match", &tag)]).await;
            assert_eq!((short.status, short.body.len()), (304, 0), "{target}");
            let head = [("authorization", format!("Bearer {}", api.key))];
            let head = api
                .send("HEAD", &target, &[("authorization", &head[0].1)], "")
                .await;
            assert_eq!(
                (head.status, head.header("etag")),
                (200, Some(tag.as_str()))
            );
        }
        let before = api
            .get("/api/iris/events")
            .await
            .header("etag")
            .unwrap()
            .to_owned();
        assert_eq!(
            api.post("/api/iris/events", &json!({"eventType": "x"}))
                .await
                .status,
            201
        );
        let after = api
            .get_with("/api/iris/events", &[("if-none-match", &before)])
            .await;
        assert_eq!(after.status, 200);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_open_their_own_project_and_nothing_else() {
    over_both("", async |api: Api, _| {
        let refused = async |fields: &[(&str, &str)]| {
            let found = api.send("GET", "/api/iris/overview", fields, "").await;
            assert_eq!(found.status, 401, "{fields:?}");
            let body = found.json();
            assert!(
                body["error"].is_string()
                    && body["statusCode"] == 401
                    && body["timestamp"].is_string(),
                "{body}"
            );
        };
        refused(&[]).await;
        refused(&[("x-api-key", &api.key)]).await;
        for wrong in [
            "",
            "Bearer ",
            "bearer x",
            "Bearer sk_live_short",
            "Bearer sk_test_0123456789012345678901234",
        ] {
            refused(&[("authorization", wrong)]).await;
        }
        refused(&[("authorization", &format!("bearer {}", api.key))]).await;
        refused(&[("authorization", &format!("Bearer {}x", api.key))]).await;
        let bare = api
            .send(
                "GET",
                "/api/iris/overview",
                &[("authorization", &api.key)],
                "",
            )
            .await;
        assert_eq!(bare.status, 200);
        for target in ["/api/iris/beta", "/api/iris/patterns?projectId=beta"] {
            let found = api.get(target).await;
            assert_eq!(
                (found.status, &found.json()["error"]["code"]),
                (403, &json!("FORBIDDEN"))
            );
        }
        let listed = api.database.list_keys().await.unwrap();
        assert_eq!(listed.len(), 2);
        assert!(
            listed[0].is_active
                && api.key.starts_with(&listed[0].prefix)
                && listed[0].prefix.len() < 16
        );
        assert!(
            api.database
                .revoke_key(&api.other_key, api.clock.now())
                .await
                .unwrap()
        );
        assert!(
            !api.database
                .revoke_key(&api.other_key, api.clock.now())
                .await
                .unwrap()
        );
        refused(&[("authorization", &api.other_key)]).await;
        assert!(
            api.database
                .revoke_key(&listed[0].id, api.clock.now())
                .await
                .unwrap()
        );
        refused(&[("authorization", &api.key)]).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_are_checked_whole_and_written_whole() {
    over_both("", async |api: Api, golden: Golden| {
        api.clock.advance(std::time::Duration::from_secs(1));
        let done = api.post("/api/iris/telemetry", &json!({"expertId": "e9", "confidence": 0.5, "latencyMs": 7, "outcome": "success", "metadata": {"a": [1]}, "unknown": 1})).await;
        assert_eq!(done.status, 201, "{}", done.text());
        assert_eq!(done.json(), json!({"success": true, "projectId": "alpha", "projectName": "Alpha Project", "expertId": "e9"}));
        let newest = &api.get("/api/iris/events?limit=1").await.json()["data"][0];
        assert_eq!((&newest["expertId"], &newest["metadata"], &newest["confidence"]), (&json!("e9"), &json!({"a": [1]}), &json!(0.5)));
        assert_eq!(newest["eventType"], "telemetry");

        let batch: Vec<Value> = (0..1000).map(|number| json!({"expertId": format!("e{number}")})).collect();
        let done = api.post("/api/iris/telemetry", &json!(batch)).await;
        assert_eq!((done.status, &done.json()["count"]), (201, &json!(1000)));
        assert_eq!(api.total().await, 150 + 1001);
        // One bad event among many: it is named, and nothing is written.
        let mut bad = batch.clone();
        bad[998] = json!({"expertId": "", "confidence": 2, "latencyMs": 1.5, "metadata": []});
        let refused = api.post("/api/iris/telemetry", &json!(bad)).await;
        assert_eq!(refused.status, 400);
        let error = &refused.json()["error"];
        assert_eq!((&error["code"], &error["statusCode"]), (&json!("VALIDATION_ERROR"), &json!(400)));
        let paths: Vec<&str> = error["details"]["issues"].as_array().unwrap().iter().map(|issue| issue["path"].as_str().unwrap()).collect();
        assert_eq!(paths, ["998.expertId", "998.confidence", "998.latencyMs", "998.metadata"]);
        let mut many = batch.clone();
        many.push(json!({"expertId": "x"}));
        for wrong in [json!(many), json!([]), json!("x"), json!({}), json!({"expertId": 7}), json!({"expertId": "a\u{0}b"}), json!({"expertId": "x", "metadata": {"a\u{0}": 1}})] {
            assert_eq!(api.post("/api/iris/telemetry", &wrong).await.status, 400, "{:.60}", wrong.to_string());
        }
        assert_eq!(api.post_text("/api/iris/telemetry", "{", "application/json").await.status, 400);
        assert_eq!(api.post_text("/api/iris/telemetry", "a=b", "application/x-www-form-urlencoded").await.status, 415);
        let large = format!("{{\"expertId\": \"x\", \"metadata\": {{\"a\": \"{}\"}}}}", "x".repeat(5 << 20));
        assert_eq!(api.post_text("/api/iris/telemetry", &large, "application/json").await.status, 413);
        assert_eq!(api.total().await, 150 + 1001);

        let done = api.post("/api/iris/events", &json!({"eventType": "deployed"})).await;
        assert_eq!((done.status, &done.json()["eventType"]), (201, &json!("deployed")));
        assert_eq!(api.post("/api/iris/events", &json!({})).await.status, 400);
        api.clock.advance(std::time::Duration::from_secs(1));
        let reflexion = json!({"reflexionType": "failure", "context": {"a": 1}, "outcome": "lost", "success": false, "impactScore": 0.25});
        let done = api.post("/api/iris/reflexion", &reflexion).await;
        assert_eq!((done.status, &done.json()["reflexionType"]), (201, &json!("failure")), "{}", done.text());
        let newest = &api.get("/api/iris/reflexion?limit=1").await.json()["data"][0];
        assert_eq!((&newest["context"], &newest["outcome"], &newest["success"]), (&json!({"a": 1}), &json!("lost"), &json!(false)));
        let refused = api.post("/api/iris/reflexion", &json!({"success": "yes"})).await.json();
        assert_eq!(refused["error"]["details"]["issues"].as_array().unwrap().len(), 4, "{refused}");
        drop(golden);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_methods_paths_and_parameters_are_told() {
    over_both("", async |api: Api, _| {
        let found = api.post("/api/iris/overview", &json!({})).await;
        assert_eq!(
            (found.status, found.header("allow")),
            (405, Some("GET, HEAD, OPTIONS"))
        );
        assert_eq!(found.json(), json!({"error": "Method not allowed"}));
        let found = api.get("/api/iris/telemetry").await;
        assert_eq!(
            (found.status, found.header("allow")),
            (405, Some("POST, OPTIONS"))
        );
        let found = api.send("OPTIONS", "/api/iris/events", &[], "").await;
        assert_eq!(
            (found.status, found.header("access-control-allow-origin")),
            (204, Some("*"))
        );
        assert_eq!(
            found.header("access-control-allow-methods"),
            Some("GET, POST, PUT, DELETE, OPTIONS")
        );
        assert_eq!(api.get("/nowhere").await.status, 404);
        let found = api.get("/api/iris/events?page=0&limit=5000").await;
        assert_eq!(found.status, 400);
        assert_eq!(
            found.json()["error"]["details"]["issues"]
                .as_array()
                .unwrap()
                .len(),
            2
        );
        let counters = api.send("GET", "/api/metrics", &[], "").await.json();
        assert!(
            counters["database"]["totalQueries"].as_u64().unwrap() > 0,
            "{counters}"
        );
    })
    .await;
}

/// The routes of the configuration that runs without a file.
fn default_routes() -> String {
    DEFAULT
        .lines()
        .filter(|line| !line.starts_with('#'))
        .collect::<Vec<_>>()
        .join("\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn who_writes_and_then_reads_through_the_cache_finds_it() {
    over_both(&default_routes(), async |api: Api, _| {
        let count = async || {
            let found = api.get("/api/iris/analytics").await;
            let count = found.json()["data"]["overview"]["totalTelemetryEvents"]
                .as_i64()
                .unwrap();
            (count, found.cache().to_owned())
        };
        assert_eq!(count().await, (150, "MISS".to_owned()));
        assert_eq!(count().await, (150, "HIT".to_owned()));
        assert_eq!(api.get("/api/iris/overview").await.cache(), "MISS");
        assert_eq!(api.get("/api/iris/overview").await.cache(), "HIT");
        let done = api
            .post("/api/iris/telemetry", &json!({"expertId": "e"}))
            .await;
        assert_eq!(done.status, 201);
        // Gone, and stale.
        assert_eq!(count().await, (151, "MISS".to_owned()));
        assert_eq!(api.get("/api/iris/overview").await.cache(), "STALE");
        // Another key has answers of its own.
        let other = [("authorization", format!("Bearer {}", api.other_key))];
        let found = api
            .send(
                "GET",
                "/api/iris/analytics",
                &[("authorization", &other[0].1)],
                "",
            )
            .await;
        assert_eq!(
            (found.cache(), &found.json()["data"]["projectId"]),
            ("MISS", &json!("beta"))
        );
        // Unchanged data is confirmed.
        api.clock.advance(std::time::Duration::from_secs(200));
        let found = api.get("/api/iris/analytics").await;
        assert_eq!(found.cache(), "REVALIDATED", "{}", found.cache_status());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn uses_of_keys_are_counted_and_written_at_the_end() {
    over_both("", async |mut api: Api, _| {
        for _ in 0..7 {
            api.get("/api/iris/patterns").await;
        }
        let database = api.database.clone();
        let sidecar = api.sidecar.take().unwrap();
        let stopping = move || {
            sidecar.drain();
            sidecar.join();
        };
        tokio::task::spawn_blocking(stopping).await.unwrap();
        let listed = database.list_keys().await.unwrap();
        assert_eq!(
            (listed[0].usage_count, listed[0].last_used_at.is_some()),
            (7, true)
        );
        assert_eq!(listed[1].usage_count, 0);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_down_is_503_and_stale_from_the_cache() {
    let golden = Golden::new(golden::clock().now());
    let mut server = PostgresServer::start().await;
    let api = Api::start(&server.url(), &default_routes(), &golden).await;
    assert_eq!(api.get("/api/iris/analytics").await.status, 200);
    server.stop();
    api.clock.advance(std::time::Duration::from_secs(300));
    let stale = api.get("/api/iris/analytics").await;
    assert_eq!((stale.status, stale.cache()), (200, "STALE"));
    let down = api.get("/api/iris/patterns").await;
    assert_eq!(down.status, 503, "{}", down.text());
    server.launch().await;
    assert_eq!(api.get("/api/iris/patterns").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_over_its_deadline_is_cancelled_and_504() {
    let golden = Golden::new(golden::clock().now());
    let server = PostgresServer::start().await;
    let api = Api::start(&server.url(), "", &golden).await;
    // A lock that nobody lets go of: the query waits until it is cancelled.
    let options: sqlx::postgres::PgConnectOptions = server.url().parse().unwrap();
    let mut holding = sqlx::ConnectOptions::connect(&options).await.unwrap();
    for statement in [
        "BEGIN",
        "LOCK TABLE discovered_patterns IN ACCESS EXCLUSIVE MODE",
    ] {
        sqlx::query(statement).execute(&mut holding).await.unwrap();
    }
    let late = api.get("/api/iris/patterns").await;
    assert_eq!(late.status, 504, "{}", late.text());
    sqlx::query("ROLLBACK").execute(&mut holding).await.unwrap();
    assert_eq!(api.get("/api/iris/patterns").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_existing_iris_database_gets_what_is_missing_and_keeps_the_rest() {
    let server = PostgresServer::start().await;
    let options: sqlx::postgres::PgConnectOptions = server.url().parse().unwrap();
    let mut connection = sqlx::ConnectOptions::connect(&options).await.unwrap();
    for statement in [
        "CREATE TABLE iris_telemetry (id uuid PRIMARY KEY, project_id text, expert_id text, confidence numeric, latency_ms int, outcome text, event_type text DEFAULT 'telemetry', severity text, message text, metadata jsonb, created_at timestamptz, of_theirs text)",
        "INSERT INTO iris_telemetry (id, project_id, of_theirs) VALUES ('00000000-0000-4000-8000-000000000001', 'p', 'kept')",
        "CREATE FUNCTION increment_usage_count(key_id uuid) RETURNS void LANGUAGE sql AS 'SELECT'",
    ] {
        sqlx::query(statement)
            .execute(&mut connection)
            .await
            .unwrap();
    }
    let database = golden::open(&server.url()).await;
    // The second time nothing is done.
    database.migrate().await.unwrap();
    let kept: (String,) = sqlx::query_as("SELECT of_theirs FROM iris_telemetry")
        .fetch_one(&mut connection)
        .await
        .unwrap();
    assert_eq!(kept.0, "kept");
    let (functions,): (i64,) = sqlx::query_as("SELECT COUNT(*) FROM pg_proc WHERE proname IN ('get_token_stats', 'get_performance_stats', 'increment_usage_count')").fetch_one(&mut connection).await.unwrap();
    assert_eq!(functions, 3);
    let (indexes,): (i64,) =
        sqlx::query_as("SELECT COUNT(*) FROM pg_indexes WHERE tablename = 'iris_telemetry'")
            .fetch_one(&mut connection)
            .await
            .unwrap();
    assert_eq!(indexes, 4);
    execute(&database, "INSERT INTO model_run_log (id, project, expert_id, confidence, latency_ms, tokens_in, tokens_out, cost_usd, outcome) VALUES ('00000000-0000-4000-8000-000000000002', 'p', 'e', 0.5, 10, 3, 4, 0.25, 'success')").await;
    let (tokens, cost): (i64, f64) =
        sqlx::query_as("SELECT total_tokens_in, total_cost_usd::float8 FROM get_token_stats('p')")
            .fetch_one(&mut connection)
            .await
            .unwrap();
    assert_eq!((tokens, cost), (3, 0.25));
}

#[tokio::test(flavor = "multi_thread")]
async fn advice_names_what_is_missing_as_sql_that_runs() {
    let folder = tempfile::tempdir().unwrap();
    let server = PostgresServer::start().await;
    for url in [
        format!("sqlite:{}/iris.db", folder.path().display()),
        server.url(),
    ] {
        let database = golden::open(&url).await;
        assert_eq!(database.advice().await.unwrap(), Vec::<String>::new());
        execute(&database, "DROP INDEX iris_telemetry_created_idx").await;
        // One of another name that does the same is as good.
        execute(&database, "DROP INDEX model_run_log_expert_idx").await;
        execute(
            &database,
            "CREATE INDEX of_theirs ON model_run_log (expert_id, project)",
        )
        .await;
        let advice = database.advice().await.unwrap();
        assert_eq!(advice.len(), 2, "{advice:?}");
        assert!(
            advice[1].contains("iris_telemetry (created_at"),
            "{advice:?}"
        );
        execute(&database, &advice[1].replace("CONCURRENTLY ", "")).await;
        assert_eq!(database.advice().await.unwrap(), Vec::<String>::new());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_answer_reads_and_the_primary_takes_writes() {
    let golden = Golden::new(golden::clock().now());
    let (primary, replica) = (PostgresServer::start().await, PostgresServer::start().await);
    // Not a real one: a database of its own, so that it can be told which one answers.
    let other = golden::open(&replica.url()).await;
    let routes = format!("replicas = [\"{}\"]\n", replica.url());
    let api = Api::start(&primary.url(), &routes, &golden).await;
    let copied = "INSERT INTO iris_api_keys (id, project_id, project_name, api_key_hash, api_key_prefix) VALUES ('00000000-0000-4000-8000-000000000001', 'alpha', 'A Replica', '@', 'x')";
    let hash = {
        use sha2::{Digest, Sha256};
        let digest = Sha256::digest(&api.key);
        digest
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect::<String>()
    };
    execute(&other, &copied.replace('@', &hash)).await;
    let found = api.get("/api/iris/analytics").await.json();
    assert_eq!(found["data"]["projectName"], "A Replica");
    assert_eq!(
        api.post("/api/iris/events", &json!({"eventType": "x"}))
            .await
            .status,
        201
    );
    assert_eq!(api.total().await, 0);
    let direct = golden::open(&primary.url()).await;
    drop(direct);
}
