//! A data set whose answers are computed here, without any database.

use std::collections::BTreeMap;
use std::sync::Arc;

use iris_sidecar::clock::{Clock, Timestamp};
use iris_sidecar::database::{Database, Settings, Statement, stored_time};
use iris_sidecar::metrics::Metrics;
use serde_json::{Value, json};

pub struct Run {
    pub project: &'static str,
    pub confidence: f64,
    pub latency: i64,
    pub tokens_in: i64,
    pub tokens_out: i64,
    pub cost: f64,
    pub success: bool,
}

pub struct Reflexion {
    pub project: &'static str,
    pub kind: &'static str,
    pub success: bool,
    pub impact: f64,
    pub reuses: i64,
}

pub struct Event {
    pub project: &'static str,
    pub confidence: f64,
    pub latency: i64,
    pub success: bool,
    pub seconds_ago: u64,
}

pub struct Golden {
    pub now: Timestamp,
    pub runs: Vec<Run>,
    pub reflexions: Vec<Reflexion>,
    pub events: Vec<Event>,
    /// Project, accuracy, whether it is active.
    pub experts: Vec<(&'static str, f64, bool)>,
    /// Project, score, minutes ago.
    pub reports: Vec<(&'static str, i64, u64)>,
    /// Experts and confidence of each decision of the first project.
    pub decisions: Vec<(usize, f64, f64)>,
    /// Category and confidence of each pattern of the first project, the newest first.
    pub patterns: Vec<(&'static str, f64)>,
}

pub const PROJECTS: [&str; 3] = ["alpha", "beta", "gamma"];

pub fn rounded(value: f64) -> f64 {
    (value * 10_000.0).round() / 10_000.0
}

pub fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let values: Vec<f64> = values.collect();
    if values.is_empty() {
        0.0
    } else {
        values.iter().sum::<f64>() / values.len() as f64
    }
}

impl Golden {
    pub fn new(now: Timestamp) -> Self {
        let mut state = 7_u64;
        let mut random = move |below: u64| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % below
        };
        let hundredths = |number: u64| number as f64 / 100.0;
        let project = |number: usize| PROJECTS[number % 3];
        Self {
            now,
            runs: (0..390)
                .map(|number| Run {
                    project: project(number),
                    confidence: hundredths(random(101)),
                    latency: random(2000) as i64,
                    tokens_in: random(5000) as i64,
                    tokens_out: random(900) as i64,
                    cost: random(10_000) as f64 / 1000.0,
                    success: random(10) < 7,
                })
                .collect(),
            reflexions: (0..360)
                .map(|number| Reflexion {
                    project: project(number),
                    kind: ["failure", "success", "drift", "Über"][random(4) as usize],
                    success: random(10) < 6,
                    impact: hundredths(random(101)),
                    reuses: random(9) as i64,
                })
                .collect(),
            events: (0..450)
                .map(|number| Event {
                    project: project(number),
                    confidence: hundredths(random(101)),
                    latency: random(900) as i64,
                    success: random(10) < 8,
                    seconds_ago: number as u64 * 600,
                })
                .collect(),
            experts: (0..12)
                .map(|number| (project(number), hundredths(30 + random(71)), random(5) > 0))
                .collect(),
            reports: (0..30)
                .map(|number| (project(number), random(101) as i64, number as u64 * 97))
                .collect(),
            decisions: (0..120)
                .map(|_| {
                    (
                        random(5) as usize,
                        hundredths(random(101)),
                        hundredths(random(101)),
                    )
                })
                .collect(),
            patterns: (0..60)
                .map(|_| {
                    (
                        ["drift", "seasonal"][random(2) as usize],
                        hundredths(random(101)),
                    )
                })
                .collect(),
        }
    }

    fn ago(&self, seconds: u64) -> String {
        stored_time(Timestamp::from_millis(
            self.now.as_millis() - seconds * 1000,
        ))
    }

    /// Writes it; the same text for every database.
    pub async fn write(&self, database: &Database) {
        let id = |table: usize, number: usize| {
            // Ids that do not rise with time.
            let mixed = (number as u64).wrapping_mul(2_654_435_761) % (1 << 32);
            format!("{mixed:08x}-{table:04x}-4000-8000-{number:012x}")
        };
        let rows = |rows: Vec<String>| rows.join(",\n");
        let runs = self.runs.iter().enumerate().map(|(at, run)| {
            format!(
                "('{}', '{}', 'e{}', {}, {}, {}, {}, {}, '{}', '{}')",
                id(1, at),
                run.project,
                at % 7,
                run.confidence,
                run.latency,
                run.tokens_in,
                run.tokens_out,
                run.cost,
                if run.success { "success" } else { "failure" },
                self.ago(at as u64 * 60),
            )
        });
        let reflexions = self.reflexions.iter().enumerate().map(|(at, reflexion)| {
            format!(
                "('{}', '{}', 'e1', '{}', '{{\"at\": {at}}}', '{{}}', {}, 0.5, {}, {}, '{}')",
                id(2, at),
                reflexion.project,
                reflexion.kind,
                reflexion.success,
                reflexion.impact,
                reflexion.reuses,
                self.ago(at as u64 * 30),
            )
        });
        let events = self.events.iter().enumerate().map(|(at, event)| {
            format!(
                "('{}', '{}', 'e1', {}, {}, '{}', 'telemetry', 'info', 'event {at}', '{{}}', '{}')",
                id(3, at),
                event.project,
                event.confidence,
                event.latency,
                if event.success { "success" } else { "failure" },
                self.ago(event.seconds_ago),
            )
        });
        let experts = self
            .experts
            .iter()
            .enumerate()
            .map(|(at, (project, score, active))| {
                let name = ["accuracy", "clinical_accuracy", "win_rate", "roi"][at % 4];
                format!(
                    "('{}', '{project}', 'e{at}', '{{\"{name}\": {score}}}', {active}, '{now}', \
                '{now}')",
                    id(4, at),
                    now = self.ago(0)
                )
            });
        let reports = self
            .reports
            .iter()
            .enumerate()
            .map(|(at, (project, score, minutes))| {
                format!(
                    "('{}', '{project}', 'daily', {score}, 'x', '{{}}', '{}')",
                    id(5, at),
                    self.ago(minutes * 60)
                )
            });
        let decisions =
            self.decisions
                .iter()
                .enumerate()
                .map(|(at, (experts, confidence, disagreement))| {
                    let experts: Vec<String> = (0..*experts)
                        .map(|expert| format!("\"e{expert}\""))
                        .collect();
                    format!(
                        "('{}', 'alpha', '[{}]', {confidence}, '{{}}', {disagreement}, '{}')",
                        id(6, at),
                        experts.join(","),
                        self.ago(at as u64)
                    )
                });
        let patterns = self
            .patterns
            .iter()
            .enumerate()
            .map(|(at, (category, confidence))| {
                format!(
                    "('{}', 'alpha', 'p{at}', '{category}', {at}, {confidence}, '{{}}', '{}')",
                    id(7, at),
                    self.ago(at as u64 * 3600)
                )
            });
        let statements = [
            format!(
                "INSERT INTO model_run_log (id, project, expert_id, confidence, latency_ms, \
                    tokens_in, tokens_out, cost_usd, outcome, timestamp) VALUES {}",
                rows(runs.collect())
            ),
            format!(
                "INSERT INTO reflexion_bank (id, project, expert_id, reflexion_type, context, \
                    outcome, success, confidence, impact_score, reuse_count, created_at) VALUES {}",
                rows(reflexions.collect())
            ),
            format!(
                "INSERT INTO iris_telemetry (id, project_id, expert_id, confidence, latency_ms, \
                    outcome, event_type, severity, message, metadata, created_at) VALUES {}",
                rows(events.collect())
            ),
            format!(
                "INSERT INTO expert_signatures (id, project, expert_id, performance_metrics, \
                    active, created_at, updated_at) VALUES {}",
                rows(experts.collect())
            ),
            format!(
                "INSERT INTO iris_reports (id, project, report_type, health_score, \
                    overall_health, report_data, created_at) VALUES {}",
                rows(reports.collect())
            ),
            format!(
                "INSERT INTO consensus_lineage (id, project, contributing_experts, confidence, \
                    final_decision, disagreement_score, created_at) VALUES {}",
                rows(decisions.collect())
            ),
            format!(
                "INSERT INTO discovered_patterns (id, project_id, name, category, frequency, \
                    confidence, metadata, discovered_at) VALUES {}",
                rows(patterns.collect())
            ),
        ];
        for statement in statements {
            execute(database, &statement).await;
        }
    }

    /// The health of a project, and how many experts are active in it.
    fn health(&self, project: &str) -> (f64, usize) {
        let active: Vec<f64> = self
            .experts
            .iter()
            .filter(|(name, _, active)| *name == project && *active)
            .map(|(_, score, _)| *score)
            .collect();
        (mean(active.iter().copied()), active.len())
    }

    /// What the overview says, but for its events.
    pub fn overview(&self) -> (Value, Value) {
        let word = |score: f64| match score {
            score if score >= 0.8 => "healthy",
            score if score >= 0.6 => "warning",
            _ => "critical",
        };
        let today = stored_time(self.now)[..10].to_owned();
        let mut counts = BTreeMap::new();
        let (mut runs_today, mut scored, mut active_all) = (0, 0.0, 0);
        let projects: Vec<Value> = PROJECTS
            .iter()
            .map(|project| {
                let (score, active) = self.health(project);
                *counts.entry(word(score)).or_insert(0) += 1;
                scored += score * active as f64;
                active_all += active;
                let reports: Vec<_> = self.reports.iter().filter(|(name, _, _)| name == project).collect();
                let on_day = |minutes: u64| self.ago(minutes * 60)[..10] == today;
                runs_today += reports.iter().filter(|(_, _, minutes)| on_day(*minutes)).count();
                let (_, latest, minutes) = reports.iter().min_by_key(|(_, _, minutes)| *minutes).unwrap();
                json!({
                    "project": project,
                    "overallHealth": word(score),
                    "latestHealthScore": latest,
                    "lastReportDate": self.ago(minutes * 60),
                    "totalRuns": reports.len(),
                    "avgSuccessRate": rounded(score),
                    "activeExperts": active,
                    "totalReflexions": self.reflexions.iter().filter(|reflexion| reflexion.project == *project).count(),
                })
            })
            .collect();
        let count = |word| counts.get(word).copied().unwrap_or(0);
        let metrics = json!({
            "total_projects": 3,
            "healthy_projects": count("healthy"),
            "warning_projects": count("warning"),
            "critical_projects": count("critical"),
            "total_runs_today": runs_today,
            "avg_success_rate": rounded(scored / active_all as f64),
            "active_experts": active_all,
            "total_reflexions": self.reflexions.len(),
        });
        (metrics, Value::Array(projects))
    }

    /// The parts of the analytics of the first project that are computed.
    pub fn analytics(&self) -> Value {
        let runs: Vec<&Run> = self
            .runs
            .iter()
            .filter(|run| run.project == "alpha")
            .collect();
        let reflexions: Vec<&Reflexion> = self
            .reflexions
            .iter()
            .filter(|reflexion| reflexion.project == "alpha")
            .collect();
        let part = |flag: bool| f64::from(u8::from(flag));
        let mut kinds = BTreeMap::new();
        for reflexion in &reflexions {
            *kinds.entry(reflexion.kind).or_insert(0) += 1;
        }
        let of = |value: fn(&Run) -> f64| rounded(mean(runs.iter().map(|run| value(run))));
        json!({
            "overview": {
                "totalModelRuns": runs.len(),
                "totalReflexions": reflexions.len(),
                "totalConsensusDecisions": self.decisions.len(),
                "totalTelemetryEvents": self.events.iter().filter(|event| event.project == "alpha").count(),
            },
            "tokens": {
                "totalTokensIn": runs.iter().map(|run| run.tokens_in).sum::<i64>(),
                "totalTokensOut": runs.iter().map(|run| run.tokens_out).sum::<i64>(),
                "totalCostUsd": rounded(runs.iter().map(|run| run.cost).sum()),
                "avgTokensPerRun": of(|run| (run.tokens_in + run.tokens_out) as f64),
            },
            "performance": {
                "avgConfidence": of(|run| run.confidence),
                "avgLatencyMs": of(|run| run.latency as f64),
                "successRate": of(|run| f64::from(u8::from(run.success))),
            },
            "reflexion": {
                "totalReflexions": reflexions.len(),
                "successRate": rounded(mean(reflexions.iter().map(|reflexion| part(reflexion.success)))),
                "avgImpactScore": rounded(mean(reflexions.iter().map(|reflexion| reflexion.impact))),
                "totalReuses": reflexions.iter().map(|reflexion| reflexion.reuses).sum::<i64>(),
                "byType": kinds,
            },
            "consensus": {
                "totalDecisions": self.decisions.len(),
                "avgConfidence": rounded(mean(self.decisions.iter().map(|(_, confidence, _)| *confidence))),
                "avgDisagreement": rounded(mean(self.decisions.iter().map(|(_, _, disagreement)| *disagreement))),
                "avgExpertsPerDecision": rounded(mean(self.decisions.iter().map(|(experts, _, _)| *experts as f64))),
            },
        })
    }
}

/// Opens a database with the tables of the contract.
pub async fn open(url: &str) -> Database {
    let metrics = Arc::new(Metrics::new());
    let database = Database::open(Settings::at(url), metrics)
        .await
        .expect("it opens");
    database.migrate().await.expect("it is migrated");
    database
}

/// Runs a statement that both databases understand.
pub async fn execute(database: &Database, sql: &str) {
    let text: &'static str = Box::leak(sql.to_owned().into_boxed_str());
    let statement: &'static Statement = Box::leak(Box::new(Statement {
        table: "golden",
        operation: "insert",
        sqlite: text,
        postgres: text,
    }));
    let done = database.write(statement, vec![vec![]]).await;
    done.unwrap_or_else(|error| {
        panic!(
            "{error}: {:?}\n{sql:.300}",
            std::error::Error::source(&error)
        )
    });
}

pub fn clock() -> Clock {
    // In the middle of a day, so that all of a test is on one.
    Clock::manual(Timestamp::from_millis(1_795_521_600_000))
}
