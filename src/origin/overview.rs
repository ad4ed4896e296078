//! `GET /api/iris/overview`: all projects at a glance, one statement a table.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::clock::Timestamp;
use crate::database::{Database, DatabaseError};
use crate::error::rfc3339;

use super::{parsed, rounded};

/// Health is the mean, over a project's active experts, of the first of these that each has.
const EXPERTS: &str = "
    SELECT project, COUNT(*), AVG(COALESCE(
        json_extract(performance_metrics, '$.accuracy'),
        json_extract(performance_metrics, '$.clinical_accuracy'),
        json_extract(performance_metrics, '$.win_rate'),
        json_extract(performance_metrics, '$.roi')))
    FROM expert_signatures WHERE active GROUP BY project";

/// The bare `health_score` comes from the row of the maximum: SQLite's own rule.
const REPORTS: &str = "
    SELECT project, COUNT(*), SUM(created_at >= ?1), health_score, MAX(created_at)
    FROM iris_reports GROUP BY project";

const REFLEXIONS: &str = "SELECT project, COUNT(*) FROM reflexion_bank GROUP BY project";

const EVENTS: &str = "
    SELECT json_object('id', id, 'timestamp', created_at, 'project', project_id, 'event_type', event_type,
        'severity', COALESCE(severity, 'info'), 'message', COALESCE(message, ''), 'details', json(metadata))
    FROM iris_telemetry ORDER BY created_at DESC, id LIMIT 50";

#[derive(Default)]
struct Project {
    experts: i64,
    score: Option<f64>,
    runs: i64,
    runs_today: i64,
    latest: Option<(i64, String)>,
    reflexions: i64,
}

pub async fn compute(database: &Database, now: Timestamp) -> Result<Option<Value>, DatabaseError> {
    let today = rfc3339(now)
        .get(..10)
        .map(|day| format!("{day}T00:00:00Z"))
        .unwrap_or_default();
    let today = [today.as_str()];
    let (experts, reports, reflexions, events) = tokio::try_join!(
        database.rows::<(String, i64, Option<f64>)>("expert_signatures", EXPERTS, &[]),
        database.rows::<(String, i64, i64, i64, String)>("iris_reports", REPORTS, &today),
        database.rows::<(String, i64)>("reflexion_bank", REFLEXIONS, &[]),
        database.rows::<(String,)>("iris_telemetry", EVENTS, &[]),
    )?;
    let mut projects: BTreeMap<String, Project> = BTreeMap::new();
    for (name, count, score) in experts {
        let project = projects.entry(name).or_default();
        (project.experts, project.score) = (count, score);
    }
    for (name, count, today, score, date) in reports {
        let project = projects.entry(name).or_default();
        (project.runs, project.runs_today, project.latest) = (count, today, Some((score, date)));
    }
    for (name, count) in reflexions {
        projects.entry(name).or_default().reflexions = count;
    }
    let events: Vec<Value> = events.iter().map(|(event,)| parsed(event)).collect();
    Ok(Some(json!({
        "metrics": metrics(&projects),
        "projects": projects.iter().map(|(name, project)| shown(name, project)).collect::<Vec<_>>(),
        "events": events,
        "anomalies": [],
    })))
}

fn metrics(projects: &BTreeMap<String, Project>) -> Value {
    let with = |wanted| {
        projects
            .values()
            .filter(|project| health(project) == wanted)
            .count()
    };
    let sum = |part: fn(&Project) -> i64| projects.values().map(part).sum::<i64>();
    let experts = sum(|project| project.experts);
    let scored: f64 = projects
        .values()
        .map(|project| project.score.unwrap_or(0.0) * project.experts as f64)
        .sum();
    json!({
        "total_projects": projects.len(),
        "healthy_projects": with("healthy"),
        "warning_projects": with("warning"),
        "critical_projects": with("critical"),
        "total_runs_today": sum(|project| project.runs_today),
        "avg_success_rate": rounded(if experts == 0 { 0.0 } else { scored / experts as f64 }),
        "active_experts": experts,
        "total_reflexions": sum(|project| project.reflexions),
    })
}

fn shown(name: &str, project: &Project) -> Value {
    json!({
        "project": name,
        "overallHealth": health(project),
        "latestHealthScore": project.latest.as_ref().map_or(0, |(score, _)| *score),
        "lastReportDate": project.latest.as_ref().map(|(_, date)| date),
        "totalRuns": project.runs,
        "avgSuccessRate": rounded(project.score.unwrap_or(0.0)),
        "activeExperts": project.experts,
        "totalReflexions": project.reflexions,
    })
}

fn health(project: &Project) -> &'static str {
    match project.score.unwrap_or(0.0) {
        score if score >= 0.8 => "healthy",
        score if score >= 0.6 => "warning",
        _ => "critical",
    }
}
