//! `GET /api/iris/overview`: all projects at a glance, one statement a table.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::clock::Timestamp;
use crate::database::{Database, DatabaseError, Param, Statement, stored_time};

use super::answer::{Computed, rounded};

const EXPERTS: Statement = Statement {
    table: "expert_signatures",
    operation: "select",
    // Health is the mean, over a project's active experts, of the first of these that each has.
    sqlite: "SELECT json_array(project, COUNT(*), AVG(COALESCE(
            json_extract(performance_metrics, '$.accuracy'),
            json_extract(performance_metrics, '$.clinical_accuracy'),
            json_extract(performance_metrics, '$.win_rate'),
            json_extract(performance_metrics, '$.roi'))))
        FROM expert_signatures WHERE active GROUP BY project",
    postgres: "SELECT json_build_array(project, COUNT(*), AVG(COALESCE(
            (performance_metrics->>'accuracy')::float8,
            (performance_metrics->>'clinical_accuracy')::float8,
            (performance_metrics->>'win_rate')::float8,
            (performance_metrics->>'roi')::float8)))::text
        FROM expert_signatures WHERE active GROUP BY project",
};

const REPORTS: Statement = Statement {
    table: "iris_reports",
    operation: "select",
    // Of rows of one moment the last id counts, so that the same data gives the same answer.
    sqlite: "SELECT json_array(project, COUNT(*), SUM(created_at >= $1),
            (SELECT latest.health_score FROM iris_reports latest WHERE latest.project = reports.project
                ORDER BY created_at DESC, id DESC LIMIT 1), MAX(created_at))
        FROM iris_reports reports GROUP BY project",
    postgres: r#"SELECT json_build_array(project, COUNT(*), COUNT(*) FILTER (WHERE created_at >= $1::timestamptz),
            (SELECT latest.health_score FROM iris_reports latest WHERE latest.project = reports.project
                ORDER BY created_at DESC, id DESC LIMIT 1),
            to_char(MAX(created_at) AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"'))::text
        FROM iris_reports reports GROUP BY project"#,
};

const REFLEXIONS: Statement = Statement {
    table: "reflexion_bank",
    operation: "select",
    sqlite: "SELECT json_array(project, COUNT(*)) FROM reflexion_bank GROUP BY project",
    postgres: "SELECT json_build_array(project, COUNT(*))::text FROM reflexion_bank GROUP BY \
        project",
};

const EVENTS: Statement = Statement {
    table: "iris_telemetry",
    operation: "select",
    sqlite: "SELECT json_object('id', id, 'timestamp', created_at, 'project', project_id, 'event_type', event_type,
            'severity', COALESCE(severity, 'info'), 'message', COALESCE(message, ''), 'details', json(metadata))
        FROM iris_telemetry ORDER BY created_at DESC, id LIMIT 50",
    postgres: r#"SELECT json_build_object('id', id,
            'timestamp', to_char(created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"'),
            'project', project_id, 'event_type', event_type, 'severity', COALESCE(severity, 'info'),
            'message', COALESCE(message, ''), 'details', COALESCE(metadata, '{}'))::text
        FROM iris_telemetry ORDER BY created_at DESC, id LIMIT 50"#,
};

#[derive(Default)]
struct Project {
    experts: i64,
    score: Option<f64>,
    runs: i64,
    runs_today: i64,
    latest: Option<(i64, String)>,
    reflexions: i64,
}

pub async fn compute(database: &Database, now: Timestamp) -> Result<Computed, DatabaseError> {
    let today = format!("{}T00:00:00.000Z", &stored_time(now)[..10]);
    let (experts, reports, reflexions, events) = tokio::try_join!(
        database.rows::<(String, i64, Option<f64>)>(&EXPERTS, vec![]),
        database.rows::<(String, i64, i64, i64, String)>(&REPORTS, vec![Param::Text(today)]),
        database.rows::<(String, i64)>(&REFLEXIONS, vec![]),
        database.rows::<Value>(&EVENTS, vec![]),
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
    let body = json!({
        "metrics": metrics(&projects),
        "projects": projects.iter().map(|(name, project)| shown(name, project)).collect::<Vec<_>>(),
        "events": events,
        "anomalies": [],
    });
    Ok(Computed::of(body, &[], "overview"))
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
