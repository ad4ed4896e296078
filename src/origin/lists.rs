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
    sqlite: "SELECT json_array(COUNT(*), COALESCE(AVG(confidence), 0.0), COALESCE(AVG(latency_ms), 0.0),
            COALESCE(AVG(COALESCE(outcome = 'success', 0)), 0.0), COALESCE(SUM(severity = 'critical'), 0))
        FROM iris_telemetry
        WHERE project_id = $1 AND ($2 IS NULL OR created_at >= $2) AND ($3 IS NULL OR created_at <= $3)",
    postgres: "SELECT json_build_array(COUNT(*), COALESCE(AVG(confidence), 0), COALESCE(AVG(latency_ms), 0),
            COALESCE(AVG(COALESCE(outcome = 'success', false)::int), 0), COUNT(*) FILTER (WHERE severity = 'critical'))::text
        FROM iris_telemetry
        WHERE project_id = $1 AND ($2::text IS NULL OR created_at >= $2::timestamptz)
            AND ($3::text IS NULL OR created_at <= $3::timestamptz)",
};

/// What a list is computed from, or why it is not.
pub type Listed = Result<Result<Computed, Refusal>, DatabaseError>;

pub async fn patterns(
    database: &Database,
    principal: &Principal,
    mut parameters: Parameters,
) -> Listed {
    let project = parameters.text("projectId");
    let project = project.unwrap_or_else(|| principal.project_id.clone());
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
    Ok(Ok(Computed {
        body,
        timestamps: &["/timestamp"],
        group: "patterns",
    }))
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
    Ok(Ok(Computed {
        body,
        timestamps: &[],
        group,
    }))
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

/// `GET /api/iris/{projectId}`: what its telemetry says of a time, and its patterns.
pub async fn project(
    database: &Database,
    principal: &Principal,
    project: &str,
    mut parameters: Parameters,
) -> Listed {
    let ((from, to), limit) = (parameters.dates(), parameters.limit(100));
    if let Err(issues) = parameters.finish() {
        return Ok(Err(Refusal::Invalid(issues)));
    }
    if project != principal.project_id {
        return Ok(Err(Refusal::Forbidden));
    }
    let name = || Param::Text(project.to_owned());
    let (history, patterns) = tokio::try_join!(
        database.one::<(i64, f64, f64, f64, i64)>(
            &HISTORY,
            vec![name(), Param::Maybe(from.clone()), Param::Maybe(to.clone())],
        ),
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
    let status = match (count, success) {
        (0, _) => "unknown",
        (_, rate) if rate >= 0.8 => "healthy",
        (_, rate) if rate >= 0.6 => "warning",
        _ => "critical",
    };
    let body = json!({
        "success": true,
        "data": {
            "projectId": project,
            "timestamp": null,
            "metrics": {
                "totalEvents": count,
                "avgConfidence": rounded(confidence),
                "avgLatencyMs": rounded(latency),
                "successRate": rounded(success),
                "criticalEvents": critical,
            },
            "anomalies": [],
            "patterns": patterns,
            "recommendations": [],
            "status": status,
        },
        "historical": true,
        "count": count,
        "timestamp": null,
    });
    Ok(Ok(Computed {
        body,
        timestamps: &["/data/timestamp", "/timestamp"],
        group: "project",
    }))
}
