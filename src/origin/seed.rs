//! Demo data: 8 projects, 60 experts, 20,000 runs, the same on every machine but for their dates.
//!
//! `n * prime % m` gives cheap numbers that look unrelated.

use std::time::Duration;

use serde_json::{Value, json};

use crate::clock::Timestamp;
use crate::database::{Database, DatabaseError, Insert, Statement, stored_time};

use super::writes::{CONSENSUS, MODEL_RUN, REFLEXION};

const COUNT: Statement = Statement {
    table: "expert_signatures",
    operation: "select",
    sqlite: "SELECT json_array(COUNT(*)) FROM (SELECT 1 FROM expert_signatures LIMIT 1)",
    postgres: "SELECT json_build_array(COUNT(*))::text FROM (SELECT 1 FROM expert_signatures \
        LIMIT 1) one",
};

/// The project of the demo key.
const PROJECT: (&str, &str) = ("nfl-predictor", "NFL Predictor");

/// Each project's name, what its experts are measured by, and how good it is.
const PROJECTS: [(&str, &str, f64); 8] = [
    (PROJECT.0, "win_rate", 0.86),
    ("clinical-notes", "clinical_accuracy", 0.91),
    ("support-triage", "accuracy", 0.83),
    ("fraud-watch", "accuracy", 0.78),
    ("supply-forecast", "accuracy", 0.71),
    ("ad-bidding", "roi", 0.64),
    ("contract-review", "accuracy", 0.82),
    ("energy-load", "accuracy", 0.55),
];

const EXPERTS: Insert = Insert {
    table: "expert_signatures",
    columns: &[
        "id",
        "project",
        "expert_id",
        "version",
        "prompt",
        "active",
        "created_at",
        "updated_at",
    ],
    documents: &["performance_metrics"],
};

const REPORTS: Insert = Insert {
    table: "iris_reports",
    columns: &[
        "id",
        "project",
        "report_type",
        "health_score",
        "overall_health",
        "created_at",
    ],
    documents: &["report_data"],
};

const TELEMETRY: Insert = Insert {
    table: "iris_telemetry",
    columns: &[
        "id",
        "project_id",
        "expert_id",
        "confidence",
        "latency_ms",
        "outcome",
        "event_type",
        "severity",
        "message",
        "created_at",
    ],
    documents: &["metadata"],
};

const PATTERNS: Insert = Insert {
    table: "discovered_patterns",
    columns: &[
        "id",
        "project_id",
        "name",
        "category",
        "frequency",
        "confidence",
        "discovered_at",
    ],
    documents: &["metadata"],
};

/// What the rows are told by.
struct Row {
    number: u64,
    table: u8,
    project: &'static str,
    measure: &'static str,
    quality: f64,
    now: Timestamp,
}

impl Row {
    fn id(&self) -> String {
        let Self { number, table, .. } = self;
        format!("{number:08x}-{table:04x}-4000-8000-{:012x}", number * 7919)
    }

    /// One of `choices`, picked by a prime of the column's own.
    fn pick(&self, prime: u64, choices: &[&'static str]) -> &'static str {
        choices[(self.number / 8 * prime % choices.len() as u64) as usize]
    }

    /// From `least` on, `count` hundredths.
    fn part(&self, prime: u64, least: u64, count: u64) -> f64 {
        (least + self.number * prime % count) as f64 / 100.0
    }

    /// As often as the project is good.
    fn is_success(&self) -> bool {
        ((self.number * 29 % 100) as f64) < self.quality * 100.0
    }

    fn outcome(&self) -> &'static str {
        if self.is_success() {
            "success"
        } else {
            "failure"
        }
    }

    fn ago(&self, seconds: u64) -> String {
        stored_time(self.now.minus(Duration::from_secs(seconds)))
    }

    /// One of the project's experts.
    fn expert(&self, further: u64) -> String {
        format!("expert-{:02}", (self.number + further * 8) % 60)
    }
}

fn rows(table: u8, count: u64, now: Timestamp, row: fn(&Row) -> Value) -> Vec<Value> {
    let told = |number: u64| {
        let (project, measure, quality) = PROJECTS[(number % 8) as usize];
        row(&Row {
            number,
            table,
            project,
            measure,
            quality,
            now,
        })
    };
    (0..count).map(told).collect()
}

fn expert(row: &Row) -> Value {
    let n = row.number;
    let score = row.quality + ((n * 31 % 13) as f64 - 6.0) / 200.0;
    json!({
        "id": row.id(), "project": row.project, "expert_id": row.expert(0), "version": format!("1.{}.0", n % 5),
        "prompt": format!("You are expert {n} of {}.", row.project), "active": true,
        "performance_metrics": {row.measure: (score * 1000.0).round() / 1000.0},
        "created_at": row.ago((30 + n) * 86_400), "updated_at": row.ago(n * 3600),
    })
}

fn report(row: &Row) -> Value {
    let health = match row.quality {
        quality if quality >= 0.8 => "healthy",
        quality if quality >= 0.6 => "warning",
        _ => "critical",
    };
    json!({
        "id": row.id(), "project": row.project, "report_type": row.pick(1, &["daily", "evaluation", "evaluation"]),
        "health_score": (row.quality * 100.0) as u64 + row.number * 17 % 9 - 4, "overall_health": health,
        "report_data": {}, "created_at": row.ago(row.number * 45 * 60),
    })
}

fn reflexion(row: &Row) -> Value {
    let kinds = [
        "failure_analysis",
        "success_pattern",
        "prompt_revision",
        "calibration",
    ];
    json!({
        "id": row.id(), "project": row.project, "expert_id": row.expert(0), "reflexion_type": row.pick(13, &kinds),
        "context": {"run": row.number}, "outcome": {"changed": row.number % 2 == 1}, "success": row.is_success(),
        "confidence": row.part(37, 50, 50), "impact_score": row.part(41, 0, 100), "reuse_count": row.number * 7 % 12,
        "created_at": row.ago(row.number * 20 * 60),
    })
}

fn event(row: &Row) -> Value {
    let kinds = ["drift", "evaluation", "telemetry", "telemetry", "telemetry"];
    let mut severities = ["info"; 10];
    severities[..3].copy_from_slice(&["critical", "warning", "warning"]);
    json!({
        "id": row.id(), "project_id": row.project, "expert_id": row.expert(0), "confidence": row.part(23, 60, 40),
        "latency_ms": 80 + row.number * 53 % 900, "outcome": row.outcome(), "event_type": row.pick(11, &kinds),
        "severity": row.pick(19, &severities), "message": format!("Run of {} in {}", row.expert(0), row.project),
        "metadata": {"batch": row.number / 50}, "created_at": row.ago(row.number * 190),
    })
}

fn run(row: &Row) -> Value {
    let (tokens_in, tokens_out) = (200 + row.number * 67 % 3000, 50 + row.number * 71 % 900);
    json!({
        "id": row.id(), "project": row.project, "expert_id": row.expert(0), "confidence": row.part(23, 55, 45),
        "latency_ms": 120 + row.number * 53 % 1400, "tokens_in": tokens_in, "tokens_out": tokens_out,
        "cost_usd": (tokens_in * 3 + tokens_out * 15) as f64 / 1e6, "outcome": row.outcome(),
        "timestamp": row.ago(row.number * 97),
    })
}

fn decision(row: &Row) -> Value {
    let count = if row.number.is_multiple_of(3) { 2 } else { 3 };
    let experts: Vec<String> = (0..count).map(|further| row.expert(further)).collect();
    json!({
        "id": row.id(), "project": row.project, "contributing_experts": experts, "confidence": row.part(43, 60, 40),
        "final_decision": {"choice": row.number % 4}, "disagreement_score": row.part(47, 0, 60),
        "created_at": row.ago(row.number * 35 * 60),
    })
}

fn pattern(row: &Row) -> Value {
    json!({
        "id": row.id(), "project_id": row.project, "name": format!("pattern-{:03}", row.number),
        "category": row.pick(13, &["drift", "seasonal", "regression"]), "frequency": 1 + row.number * 31 % 40,
        "confidence": row.part(37, 50, 50), "metadata": {"window": row.number % 7},
        "discovered_at": row.ago(row.number * 90 * 60),
    })
}

/// Fills a database that holds no expert, and makes a key for it; one that does is left as it is.
pub async fn if_empty(
    database: &Database,
    now: Timestamp,
) -> Result<Option<String>, DatabaseError> {
    let (experts,) = database.one::<(i64,)>(&COUNT, vec![]).await?;
    if experts > 0 {
        return Ok(None);
    }
    let parts = vec![
        (&EXPERTS, rows(0, 60, now, expert)),
        (&REPORTS, rows(1, 960, now, report)),
        (&REFLEXION, rows(2, 2400, now, reflexion)),
        (&TELEMETRY, rows(3, 4000, now, event)),
        (&MODEL_RUN, rows(4, 20_000, now, run)),
        (&CONSENSUS, rows(5, 1200, now, decision)),
        (&PATTERNS, rows(6, 480, now, pattern)),
    ];
    database.insert(parts).await?;
    let (project, name) = PROJECT;
    let key = database
        .create_key(project, name, Some("demo"), now)
        .await?;
    Ok(Some(key))
}
