//! The databases of the built-in origin: down, slow, broken, behind TLS, empty, another's,
//! incomplete.

use crate::support::api::{Api, default_routes, over_both};
use crate::support::certificate::Certificate;
use crate::support::golden::{self, Golden, execute};
use crate::support::postgres::PostgresServer;
use crate::support::process::{FREE_PORTS, Running, binary, file};
use crate::support::{Client, PATIENCE};
use iris_sidecar::origin::seed_demo;
use serde_json::{Value, json};

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_down_is_503_and_stale_from_the_cache() {
    let golden = Golden::new(golden::clock().now());
    let mut server = PostgresServer::start().await;
    let api = Api::start(&server.url(), &default_routes(), &golden).await;
    assert_eq!(api.get("/api/iris/analytics").await.status, 200);
    server.stop();
    api.clock.advance(std::time::Duration::from_secs(300));
    let stale = api.get("/api/iris/analytics").await;
    assert_eq!((stale.status, stale.cache()), (200, "HIT-STALE"));
    let down = api.get("/api/iris/patterns").await;
    assert_eq!(down.status, 503, "{}", down.text());
    server.launch().await;
    assert_eq!(api.get("/api/iris/patterns").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_refuses_is_told_at_once_and_then_left_alone() {
    let golden = Golden::new(golden::clock().now());
    let mut server = PostgresServer::start().await;
    let api = Api::start(&server.url(), &default_routes(), &golden).await;
    assert_eq!(api.get("/api/iris/analytics").await.status, 200);
    server.stop();
    api.clock.advance(std::time::Duration::from_secs(300));
    let begun = std::time::Instant::now();
    for _ in 0..6 {
        let stale = api.get("/api/iris/analytics").await;
        assert_eq!((stale.status, stale.cache()), (200, "HIT-STALE"));
        let down = api.get("/api/iris/patterns").await;
        assert_eq!(down.status, 503, "{}", down.text());
        // Past what a failed origin is left alone for.
        api.clock.advance(std::time::Duration::from_secs(2));
    }
    // Each of them took two seconds.
    assert!(begun.elapsed().as_secs() < 6, "{:?}", begun.elapsed());
    let down = api.get("/api/iris/patterns").await;
    assert_eq!(down.status, 503);
    assert!(down.header("retry-after").is_some(), "{}", down.text());
    assert!(down.text().contains("once a second"), "{}", down.text());
    let ready = api.admin("/readyz").await.json();
    assert_eq!(ready["upstream"]["breaker"], "open", "{ready}");
    // It is found well again by what is asked.
    server.launch().await;
    let well = async { while api.get("/api/iris/patterns").await.status != 200 {} };
    tokio::time::timeout(PATIENCE, well)
        .await
        .expect("it is well");
    let ready = api.admin("/readyz").await.json();
    assert_eq!(ready["upstream"]["breaker"], "closed", "{ready}");
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
        "CREATE TABLE iris_telemetry (id uuid PRIMARY KEY, project_id text, expert_id text, \
            confidence numeric, latency_ms int, outcome text, event_type text DEFAULT \
            'telemetry', severity text, message text, metadata jsonb, created_at timestamptz, \
            of_theirs text)",
        "INSERT INTO iris_telemetry (id, project_id, of_theirs) VALUES \
            ('00000000-0000-4000-8000-000000000001', 'p', 'kept')",
        // Of other names, and one that was broken off.
        "CREATE TABLE model_run_log (id uuid PRIMARY KEY, project text, expert_id text, \
            confidence float8, latency_ms int, tokens_in int, tokens_out int, cost_usd numeric, \
            outcome text, timestamp timestamptz)",
        "CREATE INDEX theirs ON model_run_log (expert_id)",
        "CREATE INDEX model_run_log_timestamp_idx ON model_run_log (timestamp DESC)",
        "UPDATE pg_index SET indisvalid = false WHERE indexrelid = \
            'model_run_log_timestamp_idx'::regclass",
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
    let (functions,): (i64,) = sqlx::query_as(
        "SELECT COUNT(*) FROM pg_proc WHERE proname IN \
        ('get_token_stats', 'get_performance_stats', 'increment_usage_count')",
    )
    .fetch_one(&mut connection)
    .await
    .unwrap();
    assert_eq!(functions, 3);
    let (indexes,): (i64,) =
        sqlx::query_as("SELECT COUNT(*) FROM pg_indexes WHERE tablename = 'iris_telemetry'")
            .fetch_one(&mut connection)
            .await
            .unwrap();
    assert_eq!(indexes, 4);
    let names: Vec<(String, bool)> = sqlx::query_as(
        "SELECT indexrelid::regclass::text, \
        indisvalid FROM pg_index WHERE indrelid = 'model_run_log'::regclass ORDER BY 1",
    )
    .fetch_all(&mut connection)
    .await
    .unwrap();
    let whole = [
        "model_run_log_covering_idx",
        "model_run_log_pkey",
        "model_run_log_timestamp_idx",
        "theirs",
    ];
    assert_eq!(names, whole.map(|name| (name.to_owned(), true)));
    execute(
        &database,
        "INSERT INTO model_run_log (id, project, expert_id, confidence, \
        latency_ms, tokens_in, tokens_out, cost_usd, outcome) VALUES \
        ('00000000-0000-4000-8000-000000000002', 'p', 'e', 0.5, 10, 3, 4, 0.25, 'success')",
    )
    .await;
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
    let copied = "INSERT INTO iris_api_keys (id, project_id, project_name, api_key_hash, \
        api_key_prefix) VALUES ('00000000-0000-4000-8000-000000000001', 'alpha', 'A Replica', \
        '@', 'x')";
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
}

#[tokio::test(flavor = "multi_thread")]
async fn sqlite_cancels_a_query_over_its_deadline_and_keeps_its_connection() {
    let golden = Golden::new(golden::clock().now());
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite:{}/iris.db", folder.path().display());
    let api = Api::start(&url, "", &golden).await;
    // A table that never ends.
    execute(
        &api.database,
        "ALTER TABLE discovered_patterns RENAME TO kept",
    )
    .await;
    execute(
        &api.database,
        "CREATE VIEW discovered_patterns AS WITH RECURSIVE r(n) AS (SELECT 0 UNION ALL SELECT n + \
            1 FROM r) \
         SELECT n AS id, 'alpha' AS project_id, '' AS name, '' AS category, n AS frequency, 0.5 \
            AS confidence, '{}' AS metadata, n AS discovered_at FROM r",
    )
    .await;
    let late = api.get("/api/iris/patterns").await;
    assert_eq!(late.status, 504, "{}", late.text());
    assert!(late.text().contains("query_timeout"), "{}", late.text());
    execute(&api.database, "DROP VIEW discovered_patterns").await;
    execute(
        &api.database,
        "ALTER TABLE kept RENAME TO discovered_patterns",
    )
    .await;
    assert_eq!(api.get("/api/iris/patterns").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_that_fails_is_an_error_that_names_the_table_and_is_counted() {
    over_both("", async |api: Api, _| {
        execute(&api.database, "DROP TABLE discovered_patterns").await;
        let failed = api.get("/api/iris/patterns").await;
        assert_eq!(failed.status, 500, "{}", failed.text());
        let told = json!({"error": "Failed to fetch patterns", "message": "a query on \
            discovered_patterns failed"});
        assert_eq!(failed.json(), told);
        let metrics = api.metrics().await;
        let counted = "db_errors_total{table=\"discovered_patterns\",operation=\"select\"";
        assert!(metrics.contains(counted), "{metrics}");
        assert_eq!(api.get("/api/iris/events").await.status, 200);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_is_spoken_to_over_tls_and_only_with_a_certificate_that_is_trusted() {
    let certificate = Certificate::of("127.0.0.1");
    let server = PostgresServer::start_with(Some(&certificate)).await;
    let golden = Golden::new(golden::clock().now());
    let url = format!(
        "{}?sslmode=verify-full&sslrootcert={}",
        server.url(),
        certificate.path()
    );
    let api = Api::start(&url, "", &golden).await;
    assert_eq!(api.get("/api/iris/patterns").await.status, 200);
    let options: sqlx::postgres::PgConnectOptions = server.url().parse().unwrap();
    let mut connection = sqlx::ConnectOptions::connect(&options).await.unwrap();
    let (encrypted,): (i64,) = sqlx::query_as(
        "SELECT COUNT(*) FROM pg_stat_ssl JOIN \
        pg_stat_activity USING (pid) WHERE ssl AND application_name = 'iris-sidecar'",
    )
    .fetch_one(&mut connection)
    .await
    .unwrap();
    assert!(encrypted > 0);
    // The platform does not know it.
    let url = format!("{}?sslmode=verify-full", server.url());
    let stranger = iris_sidecar::database::Database::open(
        iris_sidecar::database::Settings::at(&url),
        std::sync::Arc::new(iris_sidecar::metrics::Metrics::new()),
    )
    .await
    .unwrap();
    assert!(stranger.list_keys().await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn both_databases_get_the_same_demo_data_and_only_when_they_are_empty() {
    let folder = tempfile::tempdir().unwrap();
    let server = PostgresServer::start().await;
    let mut answers = Vec::new();
    for url in [
        format!("sqlite:{}/iris.db", folder.path().display()),
        server.url(),
    ] {
        let database = golden::open(&url).await;
        let now = golden::clock().now();
        let key = seed_demo(&database, now)
            .await
            .unwrap()
            .expect("it was empty");
        assert_eq!(seed_demo(&database, now).await.unwrap(), None);
        let api = Api::over(&url, "").await;
        let mut bodies = Vec::new();
        for target in [
            "overview",
            "analytics",
            "patterns",
            "events",
            "reflexion",
            "nfl-predictor",
        ] {
            let authorization = [("authorization", &*format!("Bearer {key}"))];
            let found = api
                .send("GET", &format!("/api/iris/{target}"), &authorization, "")
                .await;
            assert_eq!(found.status, 200, "{}", found.text());
            bodies.push(with_floats(found.json()));
        }
        assert_eq!(bodies[0]["metrics"]["total_projects"], 8.0);
        assert_eq!(bodies[1]["data"]["overview"]["totalModelRuns"], 2500.0);
        answers.push(bodies);
    }
    for (sqlite, postgres) in answers[0].iter().zip(&answers[1]) {
        assert_eq!(sqlite, postgres);
    }
}

/// Postgres writes 0.0 as 0: the same number.
fn with_floats(value: Value) -> Value {
    match value {
        Value::Number(number) => json!(number.as_f64()),
        Value::Array(items) => items.into_iter().map(with_floats).collect(),
        Value::Object(object) => {
            let members = object.into_iter();
            let members = members.map(|(name, value)| (name, with_floats(value)));
            Value::Object(members.collect())
        }
        other => other,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_in_a_file_can_be_exchanged_while_it_runs() {
    let server = PostgresServer::start().await;
    let options: sqlx::postgres::PgConnectOptions = server.url().parse().unwrap();
    let mut connection = sqlx::ConnectOptions::connect(&options).await.unwrap();
    let mut say = async |statement: &'static str| {
        sqlx::query(statement)
            .execute(&mut connection)
            .await
            .unwrap();
    };
    say("CREATE ROLE app LOGIN SUPERUSER PASSWORD 'one'").await;
    server.asks_for_password("app");
    say("SELECT pg_reload_conf()").await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("password");
    std::fs::write(&path, "one\n").unwrap();
    let database = server.url().replace("iris@", "app@");
    let text = format!(
        "{FREE_PORTS}[origin]\ndatabase = \"{database}\"\npassword_file = \"{}\"\n",
        path.display()
    );
    let with_password = database.replace("app@", "app:one@");
    let migrated = binary()
        .args(["origin", "migrate", "--database", &with_password])
        .output()
        .unwrap();
    assert!(migrated.status.success(), "{migrated:?}");
    let running = Running::start(&file(folder.path(), &text));
    // Each time another unknown key: the database is asked about it.
    let reaches = async |status: u16| {
        let reached = async {
            for number in 0.. {
                let mut client = Client::connect(running.address).await;
                let key = format!("Bearer sk_live_{status}{number:024}");
                let fields = [("authorization", &*key)];
                let answer = client.ask("GET", "/api/iris/overview", &fields).await;
                if answer.status == status {
                    return;
                }
            }
        };
        let reached = tokio::time::timeout(PATIENCE, reached).await;
        reached.unwrap_or_else(|_| panic!("never {status}"));
    };
    reaches(401).await;
    say("ALTER ROLE app PASSWORD 'two'").await;
    say("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'app'").await;
    reaches(503).await;
    std::fs::write(&path, "two\n").unwrap();
    reaches(401).await;
}
