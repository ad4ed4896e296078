//! The built-in origin on Postgres with a million telemetry rows and 200,000 runs: what each GET
//! takes straight at it, whether a large table was read from end to end for that, and what it takes
//! to fetch rows and reduce them against letting the database aggregate.
//!
//! `cargo bench --bench origin`; exit status 1 where a 95th percentile is 25 ms or more (the
//! requirement's figure), or a large table was scanned.

#![allow(clippy::expect_used, clippy::unwrap_used)]

#[path = "../tests/support/mod.rs"]
#[allow(dead_code, unused_imports)]
mod support;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use iris_sidecar::clock::Clock;
use iris_sidecar::config::Config;
use iris_sidecar::process::Sidecar;
use sqlx::Row;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use support::postgres::PostgresServer;
use support::process::FREE_PORTS;
use support::{Client, golden};

const PROJECTS: u32 = 40;
const ASKED: usize = 400;
/// As many as there are cores, usually, and then too many.
const CLIENTS: [usize; 3] = [1, 2, 4];
const TARGET: Duration = Duration::from_millis(25);

const FILL: [&str; 8] = [
    "INSERT INTO iris_telemetry (project_id, expert_id, confidence, latency_ms, outcome, event_type, severity, message, metadata, created_at)
     SELECT 'p' || n % 40, 'e' || n % 60, (n * 37 % 100) / 100.0, n * 53 % 900, CASE WHEN n * 29 % 100 < 80 THEN 'success' ELSE 'failure' END,
        'telemetry', 'info', 'run ' || n, '{}', now() - n * interval '7 seconds' FROM generate_series(1, 1000000) n",
    "INSERT INTO model_run_log (project, expert_id, confidence, latency_ms, tokens_in, tokens_out, cost_usd, outcome, timestamp)
     SELECT 'p' || n % 40, 'e' || n % 60, (n * 37 % 100) / 100.0, n * 53 % 900, n * 67 % 3000, n * 71 % 900, (n * 13 % 1000) / 1000.0,
        CASE WHEN n * 29 % 100 < 80 THEN 'success' ELSE 'failure' END, now() - n * interval '30 seconds' FROM generate_series(1, 200000) n",
    "INSERT INTO reflexion_bank (project, expert_id, reflexion_type, context, outcome, success, confidence, impact_score, reuse_count, created_at)
     SELECT 'p' || n % 40, 'e1', 't' || n % 4, '{}', '{}', n % 3 > 0, 0.5, 0.5, n % 9, now() - n * interval '1 minute' FROM generate_series(1, 20000) n",
    "INSERT INTO consensus_lineage (project, contributing_experts, confidence, final_decision, disagreement_score, created_at)
     SELECT 'p' || n % 40, '[\"a\",\"b\"]', 0.5, '{}', 0.1, now() - n * interval '1 minute' FROM generate_series(1, 20000) n",
    "INSERT INTO discovered_patterns (project_id, name, category, frequency, confidence, metadata, discovered_at)
     SELECT 'p' || n % 40, 'n', 'drift', 1, 0.5, '{}', now() - n * interval '1 minute' FROM generate_series(1, 20000) n",
    "INSERT INTO expert_signatures (project, expert_id, performance_metrics) SELECT 'p' || n % \
        40, 'e' || n, '{\"accuracy\": 0.9}' FROM generate_series(1, 400) n",
    "INSERT INTO iris_reports (project, report_type, health_score, overall_health, created_at)
     SELECT 'p' || n % 40, 'daily', n % 100, 'healthy', now() - n * interval '1 hour' FROM generate_series(1, 5000) n",
    "VACUUM ANALYZE",
];

const SCANS: &str = "SELECT relname, seq_scan FROM pg_stat_user_tables WHERE relname IN \
    ('iris_telemetry', 'model_run_log') ORDER BY relname";

async fn scans(pool: &sqlx::PgPool) -> Vec<(String, i64)> {
    // Statistics of other connections come within a second.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    sqlx::query_as(SCANS)
        .fetch_all(pool)
        .await
        .expect("statistics")
}

fn percentile(latencies: &mut [Duration], of: f64) -> Duration {
    latencies.sort_unstable();
    latencies[((latencies.len() - 1) as f64 * of) as usize]
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

/// How long each answer took, when so many ask at a time.
async fn asked_by(count: usize, address: SocketAddr, target: &str, key: &str) -> Vec<Duration> {
    let authorization = format!("Bearer {key}");
    let asked = |_| async {
        let mut client = Client::connect(address).await;
        let fields = [("authorization", authorization.as_str())];
        let mut latencies = Vec::new();
        for asked in 0..ASKED / count + 5 {
            let begun = Instant::now();
            let found = client.ask("GET", target, &fields).await;
            assert_eq!(found.status, 200, "{}", found.text());
            // The first ones make connections and plans.
            if asked >= 5 {
                latencies.push(begun.elapsed());
            }
        }
        latencies
    };
    futures_util::future::join_all((0..count).map(asked))
        .await
        .concat()
}

#[tokio::main(flavor = "multi_thread")]
async fn main() -> std::process::ExitCode {
    eprintln!(
        "How long does the built-in origin take on a large Postgres, and does it ever scan a table?"
    );
    let server = PostgresServer::start().await;
    let database = golden::open(&server.url()).await;
    let options: PgConnectOptions = server.url().parse().expect("a URL");
    let pool = PgPoolOptions::new()
        .max_connections(2)
        .connect_with(options)
        .await
        .expect("it answers");
    let begun = Instant::now();
    for statement in FILL {
        sqlx::query(statement)
            .execute(&pool)
            .await
            .expect("it is filled");
    }
    println!(
        "1,000,000 events and 200,000 runs of {PROJECTS} projects in {:.0} s",
        begun.elapsed().as_secs_f64()
    );
    let key = database
        .create_key("p1", "P1", None, Clock::System.now())
        .await
        .expect("a key");
    let text = format!("{FREE_PORTS}[origin]\ndatabase = \"{}\"\n", server.url());
    let config = Config::parse("bench", &text, &|_| None).expect("it is valid");
    let sidecar = tokio::task::spawn_blocking(|| Sidecar::start(config).expect("it starts"))
        .await
        .expect("no panic");
    let address = sidecar.address;
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let before = scans(&pool).await;
    let mut is_good = true;
    for target in [
        "overview",
        "analytics",
        "patterns",
        "events",
        "events?page=20&limit=50",
        "reflexion",
        "p1",
    ] {
        let target = format!("/api/iris/{target}");
        for count in CLIENTS {
            let mut latencies = asked_by(count, address, &target, &key).await;
            let (p50, p95, p99) = (
                percentile(&mut latencies, 0.5),
                percentile(&mut latencies, 0.95),
                percentile(&mut latencies, 0.99),
            );
            println!(
                "{target:34} p50 {:6.2} p95 {:6.2} p99 {:6.2} ms, clients: {count}",
                millis(p50),
                millis(p95),
                millis(p99)
            );
            // What comes on top with more of them than cores is waiting for a core.
            is_good &= p95 < TARGET || count > cores;
        }
    }
    let after = scans(&pool).await;
    for ((table, before), (_, after)) in before.iter().zip(&after) {
        println!("{table}: read from end to end {} times", after - before);
        is_good &= before == after;
    }

    // Rows fetched and reduced, as the deployed handlers do, but over all of them; and aggregated.
    let (mut fetched, mut aggregated) = (Vec::new(), Vec::new());
    for _ in 0..50 {
        let begun = Instant::now();
        let rows = sqlx::query(
            "SELECT id::text, expert_id, confidence, latency_ms, tokens_in, \
            tokens_out, cost_usd::float8, outcome FROM model_run_log WHERE project = 'p1'",
        )
        .fetch_all(&pool)
        .await
        .expect("rows");
        let tokens: i64 = rows
            .iter()
            .map(|row| i64::from(row.get::<i32, _>("tokens_in")))
            .sum();
        fetched.push(begun.elapsed());
        let begun = Instant::now();
        let (sum, _, _): (i64, i64, f64) = sqlx::query_as(
            "SELECT total_tokens_in, \
            total_tokens_out, total_cost_usd::float8 FROM get_token_stats('p1')",
        )
        .fetch_one(&pool)
        .await
        .expect("a row");
        aggregated.push(begun.elapsed());
        assert_eq!(tokens, sum);
    }
    let (before, after) = (
        percentile(&mut fetched, 0.5),
        percentile(&mut aggregated, 0.5),
    );
    println!(
        "runs of one project: fetched and reduced {:.2} ms, aggregated {:.2} ms (p50): {:.1} times",
        millis(before),
        millis(after),
        millis(before) / millis(after)
    );
    let stopping = move || {
        sidecar.drain();
        sidecar.join();
    };
    tokio::task::spawn_blocking(stopping)
        .await
        .expect("no panic");
    if is_good {
        std::process::ExitCode::SUCCESS
    } else {
        println!(
            "a 95th percentile is {TARGET:?} or more, or a large table was read from end to end"
        );
        std::process::ExitCode::FAILURE
    }
}
