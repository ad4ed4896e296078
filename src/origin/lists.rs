//! `GET` of patterns, events, reflexions, and of one project: the newest first.

use serde_json::{Value, json};

use crate::database::keys::Principal;
use crate::database::{Database, DatabaseError, Param, Statement};

use super::answer::{Computed, Refusal, rounded};
use super::parameters::Parameters;

const PATTERNS: Statement = Statement {
    table: "discovered_patterns",
    operation: "select",
    sqlite:
        "SELECT json_object('id', id, 'name', name, 'category', category, 'frequency', frequency,
            'lastSeen', discovered_at, 'confidence', confidence, 'metadata', json(metadata))
        FROM discovered_patterns
        WHERE project_id = $1 AND ($2 IS NULL OR category = $2) AND ($3 IS NULL OR confidence >= $3)
            AND ($4 IS NULL OR discovered_at >= $4) AND ($5 IS NULL OR discovered_at <= $5)
        ORDER BY discovered_at DESC, id LIMIT $6",
    postgres: r#"SELECT json_build_object('id', id, 'name', name, 'category', category, 'frequency', frequency,
            'lastSeen', to_char(discovered_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"'),
            'confidence', confidence, 'metadata', COALESCE(metadata, '{}'))::text
        FROM discovered_patterns
        WHERE project_id = $1 AND ($2::text IS NULL OR category = $2) AND ($3::float8 IS NULL OR confidence >= $3)
            AND ($4::text IS NULL OR discovered_at >= $4::timestamptz)
            AND ($5::text IS NULL OR discovered_at <= $5::timestamptz)
        ORDER BY discovered_at DESC, id LIMIT $6"#,
};

const EVENTS: Statement = Statement {
    table: "iris_telemetry",
    operation: "select",
    sqlite: "SELECT json_array((SELECT COUNT(*) FROM iris_telemetry WHERE project_id = $1),
        (SELECT json_group_array(json_object('id', id, 'projectId', project_id, 'expertId', expert_id,
            'eventType', event_type, 'severity', severity, 'message', message, 'confidence', confidence,
            'latencyMs', latency_ms, 'outcome', outcome, 'metadata', json(metadata), 'createdAt', created_at))
         FROM (SELECT * FROM iris_telemetry WHERE project_id = $1
            ORDER BY created_at DESC, id LIMIT $2 OFFSET $3)))",
    postgres: r#"SELECT json_build_array((SELECT COUNT(*) FROM iris_telemetry WHERE project_id = $1),
        (SELECT COALESCE(json_agg(json_build_object('id', id, 'projectId', project_id, 'expertId', expert_id,
            'eventType', event_type, 'severity', severity, 'message', message, 'confidence', confidence,
            'latencyMs', latency_ms, 'outcome', outcome, 'metadata', COALESCE(metadata, '{}'),
            'createdAt', to_char(created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"'))
            ORDER BY created_at DESC, id), '[]')
         FROM (SELECT * FROM iris_telemetry WHERE project_id = $1
            ORDER BY created_at DESC, id LIMIT $2 OFFSET $3) page))::text"#,
};

const REFLEXIONS: Statement = Statement {
    table: "reflexion_bank",
    operation: "select",
    sqlite: "SELECT json_array((SELECT COUNT(*) FROM reflexion_bank WHERE project = $1),
        (SELECT json_group_array(json_object('id', id, 'projectId', project, 'expertId', expert_id,
            'reflexionType', reflexion_type, 'context', json(context), 'outcome', json(outcome),
            'success', json(iif(success, 'true', 'false')), 'confidence', confidence, 'impactScore', impact_score,
            'reuseCount', reuse_count, 'createdAt', created_at))
         FROM (SELECT * FROM reflexion_bank WHERE project = $1
            ORDER BY created_at DESC, id LIMIT $2 OFFSET $3)))",
    postgres: r#"SELECT json_build_array((SELECT COUNT(*) FROM reflexion_bank WHERE project = $1),
        (SELECT COALESCE(json_agg(json_build_object('id', id, 'projectId', project, 'expertId', expert_id,
            'reflexionType', reflexion_type, 'context', context, 'outcome', outcome, 'success', success,
            'confidence', confidence, 'impactScore', impact_score, 'reuseCount', reuse_count,
            'createdAt', to_char(created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"'))
            ORDER BY created_at DESC, id), '[]')
         FROM (SELECT * FROM reflexion_bank WHERE project = $1
            ORDER BY created_at DESC, id LIMIT $2 OFFSET $3) page))::text"#,
};

const HISTORY: Statement = Statement {
    table: "iris_telemetry",
    operation: "select",
    sqlite: "SELECT json_array(COUNT(*), AVG(confidence), COALESCE(AVG(latency_ms), 0.0),
            COALESCE(AVG(COALESCE(outcome = 'success', 0)), 0.0), COALESCE(SUM(severity = 'critical'), 0))
        FROM iris_telemetry
        WHERE project_id = $1 AND ($2 IS NULL OR created_at >= $2) AND ($3 IS NULL OR created_at <= $3)",
    postgres: "SELECT json_build_array(COUNT(*), AVG(confidence), COALESCE(AVG(latency_ms), 0),
            COALESCE(AVG(COALESCE(outcome = 'success', false)::int), 0), COUNT(*) FILTER (WHERE severity = 'critical'))::text
        FROM iris_telemetry
        WHERE project_id = $1 AND ($2::text IS NULL OR created_at >= $2::timestamptz)
            AND ($3::text IS NULL OR created_at <= $3::timestamptz)",
};

/// What was measured of a project's active experts; null where none was.
const EXPERTS: Statement = Statement {
    table: "expert_signatures",
    operation: "select",
    sqlite: "SELECT json_array(AVG(json_extract(performance_metrics, '$.accuracy')),
            AVG(json_extract(performance_metrics, '$.precision')),
            AVG(json_extract(performance_metrics, '$.recall')),
            AVG(COALESCE(json_extract(performance_metrics, '$.f1Score'), json_extract(performance_metrics, '$.f1_score'))))
        FROM expert_signatures WHERE active AND project = $1",
    postgres: "SELECT json_build_array(AVG((performance_metrics->>'accuracy')::float8),
            AVG((performance_metrics->>'precision')::float8),
            AVG((performance_metrics->>'recall')::float8),
            AVG(COALESCE(performance_metrics->>'f1Score', performance_metrics->>'f1_score')::float8))::text
        FROM expert_signatures WHERE active AND project = $1",
};

/// Reports that say that something is not as it should be.
const ANOMALIES: Statement = Statement {
    table: "iris_reports",
    operation: "select",
    sqlite: "SELECT json_object('id', id, 'projectId', project, 'type', report_type, 'severity', severity,
            'healthScore', health_score, 'overallHealth', overall_health, 'details', json(report_data),
            'timestamp', created_at)
        FROM (SELECT *, COALESCE(json_extract(report_data, '$.severity'), overall_health) AS severity FROM iris_reports)
        WHERE project = $1 AND (report_type = 'anomaly' OR overall_health <> 'healthy')
            AND ($2 IS NULL OR severity = $2)
            AND ($3 IS NULL OR created_at >= $3) AND ($4 IS NULL OR created_at <= $4)
        ORDER BY created_at DESC, id LIMIT $5",
    postgres: r#"SELECT json_build_object('id', id, 'projectId', project, 'type', report_type, 'severity', severity,
            'healthScore', health_score, 'overallHealth', overall_health, 'details', report_data,
            'timestamp', to_char(created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"'))::text
        FROM (SELECT *, COALESCE(report_data->>'severity', overall_health) AS severity FROM iris_reports) reports
        WHERE project = $1 AND (report_type = 'anomaly' OR overall_health <> 'healthy')
            AND ($2::text IS NULL OR severity = $2)
            AND ($3::text IS NULL OR created_at >= $3::timestamptz)
            AND ($4::text IS NULL OR created_at <= $4::timestamptz)
        ORDER BY created_at DESC, id LIMIT $5"#,
};

/// What a list is computed from, or why it is not.
pub type Listed = Result<Result<Computed, Refusal>, DatabaseError>;

pub async fn patterns(
    database: &Database,
    principal: &Principal,
    mut parameters: Parameters,
) -> Listed {
    let project = named_project(principal, &parameters);
    let (category, confidence) = (parameters.text("category"), parameters.confidence());
    let ((from, to), limit) = (parameters.dates(), parameters.limit(50));
    if let Err(issues) = parameters.finish() {
        return Ok(Err(Refusal::Invalid(issues)));
    }
    if project != principal.project_id {
        return Ok(Err(Refusal::Forbidden));
    }
    let patterns = database
        .rows::<Value>(
            &PATTERNS,
            vec![
                Param::Text(project.clone()),
                Param::Maybe(category),
                Param::MaybeFloat(confidence),
                Param::Maybe(from),
                Param::Maybe(to),
                Param::Int(limit),
            ],
        )
        .await?;
    let body = json!({
        "success": true,
        "count": patterns.len(),
        "data": patterns,
        "projectId": project,
        "timestamp": null,
    });
    Ok(Ok(Computed::of(body, &["/timestamp"], "patterns")))
}

/// Events and reflexions have the same envelope.
async fn paged(
    database: &Database,
    principal: &Principal,
    mut parameters: Parameters,
    statement: &'static Statement,
    group: &'static str,
) -> Listed {
    let (page, limit) = (parameters.page(), parameters.limit(50));
    if let Err(issues) = parameters.finish() {
        return Ok(Err(Refusal::Invalid(issues)));
    }
    let offset = (page - 1) * limit;
    let (total, data) = database
        .one::<(i64, Value)>(
            statement,
            vec![
                Param::Text(principal.project_id.clone()),
                Param::Int(limit),
                Param::Int(offset),
            ],
        )
        .await?;
    let body = json!({
        "success": true,
        "data": data,
        "total": total,
        "page": page,
        "limit": limit,
        "hasMore": offset + limit < total,
    });
    Ok(Ok(Computed::of(body, &[], group)))
}

pub async fn events(database: &Database, principal: &Principal, parameters: Parameters) -> Listed {
    paged(database, principal, parameters, &EVENTS, "events").await
}

pub async fn reflexions(
    database: &Database,
    principal: &Principal,
    parameters: Parameters,
) -> Listed {
    paged(database, principal, parameters, &REFLEXIONS, "reflexion").await
}

/// The project that `projectId` names, else the key's.
fn named_project(principal: &Principal, parameters: &Parameters) -> String {
    let named = parameters.text("projectId");
    named.unwrap_or_else(|| principal.project_id.clone())
}

/// `GET /api/iris/anomalies`: the reports of a project that say that something is wrong.
pub async fn anomalies(
    database: &Database,
    principal: &Principal,
    mut parameters: Parameters,
) -> Listed {
    let project = named_project(principal, &parameters);
    let severity = parameters.text("severity");
    let ((from, to), limit) = (parameters.dates(), parameters.limit(50));
    if let Err(issues) = parameters.finish() {
        return Ok(Err(Refusal::Invalid(issues)));
    }
    if project != principal.project_id {
        return Ok(Err(Refusal::Forbidden));
    }
    let anomalies = database
        .rows::<Value>(
            &ANOMALIES,
            vec![
                Param::Text(project.clone()),
                Param::Maybe(severity),
                Param::Maybe(from),
                Param::Maybe(to),
                Param::Int(limit),
            ],
        )
        .await?;
    let body = json!({
        "success": true,
        "count": anomalies.len(),
        "data": anomalies,
        "projectId": project,
        "timestamp": null,
    });
    Ok(Ok(Computed::of(body, &["/timestamp"], "project")))
}

/// `GET /api/iris/{projectId}`: what its telemetry says of a time, and its patterns. A name that is
/// not the key's project is none that there is.
pub async fn project(
    database: &Database,
    principal: &Principal,
    project: &str,
    parameters: Parameters,
) -> Listed {
    if project != principal.project_id {
        return Ok(Err(Refusal::NotFound));
    }
    let (data, count) = match evaluated(database, project, parameters).await? {
        Ok(found) => found,
        Err(refusal) => return Ok(Err(refusal)),
    };
    let body = json!({
        "success": true,
        "data": data,
        "historical": true,
        "count": count,
        "timestamp": null,
    });
    Ok(Ok(Computed::of(body, EVALUATED_AT, "project")))
}

/// `GET /api/iris/evaluate`: the same of the key's project.
pub async fn evaluate(
    database: &Database,
    principal: &Principal,
    parameters: Parameters,
) -> Listed {
    let project = named_project(principal, &parameters);
    if project != principal.project_id {
        return Ok(Err(Refusal::Forbidden));
    }
    let data = match evaluated(database, &project, parameters).await? {
        Ok((data, _)) => data,
        Err(refusal) => return Ok(Err(refusal)),
    };
    let body = json!({"success": true, "data": data, "timestamp": null});
    Ok(Ok(Computed::of(body, EVALUATED_AT, "project")))
}

/// Where the time of the answer stands.
const EVALUATED_AT: &[&str] = &["/data/timestamp", "/data/metrics/timestamp", "/timestamp"];

/// What is known of a project, and of how many events.
async fn evaluated(
    database: &Database,
    project: &str,
    mut parameters: Parameters,
) -> Result<Result<(Value, i64), Refusal>, DatabaseError> {
    let ((from, to), limit) = (parameters.dates(), parameters.limit(100));
    if let Err(issues) = parameters.finish() {
        return Ok(Err(Refusal::Invalid(issues)));
    }
    let name = || Param::Text(project.to_owned());
    let (history, experts, patterns) = tokio::try_join!(
        database.one::<(i64, Option<f64>, f64, f64, i64)>(
            &HISTORY,
            vec![name(), Param::Maybe(from.clone()), Param::Maybe(to.clone())],
        ),
        database.one::<[Option<f64>; 4]>(&EXPERTS, vec![name()]),
        database.rows::<Value>(
            &PATTERNS,
            vec![
                name(),
                Param::Maybe(None),
                Param::MaybeFloat(None),
                Param::Maybe(from.clone()),
                Param::Maybe(to.clone()),
                Param::Int(limit),
            ],
        ),
    )?;
    let (count, confidence, latency, success, critical) = history;
    let [accuracy, precision, recall, f1_score] = experts.map(|measured| measured.map(rounded));
    let status = match (count, success) {
        (0, _) => "unknown",
        (_, rate) if rate >= 0.8 => "healthy",
        (_, rate) if rate >= 0.6 => "warning",
        _ => "critical",
    };
    let data = json!({
        "projectId": project,
        "timestamp": null,
        "metrics": {
            "accuracy": accuracy,
            "precision": precision,
            "recall": recall,
            "f1Score": f1_score,
            "confidence": confidence.map(rounded),
            "timestamp": null,
            "totalEvents": count,
            "avgConfidence": rounded(confidence.unwrap_or(0.0)),
            "avgLatencyMs": rounded(latency),
            "successRate": rounded(success),
            "criticalEvents": critical,
        },
        "anomalies": [],
        "patterns": patterns,
        "recommendations": [],
        "status": status,
    });
    Ok(Ok((data, count)))
}
