//! `GET /api/iris/analytics`: one project in depth, one statement a table.

use serde_json::{Value, json};

use crate::database::keys::Principal;
use crate::database::{Database, DatabaseError, Param, Statement};

use super::answer::{Computed, rounded};

const RUNS: Statement = Statement {
    table: "model_run_log",
    operation: "select",
    sqlite: "SELECT json_array(COUNT(*), COALESCE(SUM(tokens_in), 0), COALESCE(SUM(tokens_out), 0),
            COALESCE(SUM(cost_usd), 0.0), COALESCE(AVG(tokens_in + tokens_out), 0.0), COALESCE(AVG(confidence), 0.0),
            COALESCE(AVG(latency_ms), 0.0), COALESCE(AVG(COALESCE(outcome = 'success', 0)), 0.0),
            (SELECT json_group_array(json_object('expertId', expert_id, 'outcome', outcome, 'confidence', confidence,
                'tokensUsed', COALESCE(tokens_in, 0) + COALESCE(tokens_out, 0), 'costUsd', cost_usd,
                'timestamp', timestamp))
             FROM (SELECT * FROM model_run_log WHERE project = $1 ORDER BY timestamp DESC, id LIMIT 10)))
        FROM model_run_log WHERE project = $1",
    postgres: r#"SELECT json_build_array(COUNT(*), COALESCE(SUM(tokens_in), 0), COALESCE(SUM(tokens_out), 0),
            COALESCE(SUM(cost_usd), 0), COALESCE(AVG(tokens_in + tokens_out), 0), COALESCE(AVG(confidence), 0),
            COALESCE(AVG(latency_ms), 0), COALESCE(AVG(COALESCE(outcome = 'success', false)::int), 0),
            (SELECT COALESCE(json_agg(json_build_object('expertId', expert_id, 'outcome', outcome, 'confidence', confidence,
                'tokensUsed', COALESCE(tokens_in, 0) + COALESCE(tokens_out, 0), 'costUsd', cost_usd,
                'timestamp', to_char(timestamp AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"')) ORDER BY timestamp DESC, id), '[]')
             FROM (SELECT * FROM model_run_log WHERE project = $1 ORDER BY timestamp DESC, id LIMIT 10) latest))::text
        FROM model_run_log WHERE project = $1"#,
};

const REFLEXIONS: Statement = Statement {
    table: "reflexion_bank",
    operation: "select",
    sqlite: "SELECT json_array(COUNT(*), COALESCE(AVG(success), 0.0), COALESCE(AVG(impact_score), 0.0),
            COALESCE(SUM(reuse_count), 0),
            (SELECT json_group_object(reflexion_type, count) FROM (
                SELECT reflexion_type, COUNT(*) AS count FROM reflexion_bank WHERE project = $1
                GROUP BY reflexion_type ORDER BY reflexion_type)),
            (SELECT json_group_array(json_object('type', reflexion_type,
                'success', json(iif(success, 'true', 'false')), 'impactScore', impact_score, 'timestamp', created_at))
             FROM (SELECT * FROM reflexion_bank WHERE project = $1 ORDER BY created_at DESC, id LIMIT 10)))
        FROM reflexion_bank WHERE project = $1",
    postgres: r#"SELECT json_build_array(COUNT(*), COALESCE(AVG(success::int), 0), COALESCE(AVG(impact_score), 0),
            COALESCE(SUM(reuse_count), 0),
            (SELECT COALESCE(json_object_agg(reflexion_type, count ORDER BY reflexion_type COLLATE "C"), '{}') FROM (
                SELECT reflexion_type, COUNT(*) AS count FROM reflexion_bank WHERE project = $1
                GROUP BY reflexion_type) types),
            (SELECT COALESCE(json_agg(json_build_object('type', reflexion_type,
                'success', success, 'impactScore', impact_score, 'timestamp', to_char(created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"')) ORDER BY created_at DESC, id), '[]')
             FROM (SELECT * FROM reflexion_bank WHERE project = $1 ORDER BY created_at DESC, id LIMIT 10) latest))::text
        FROM reflexion_bank WHERE project = $1"#,
};

const CONSENSUS: Statement = Statement {
    table: "consensus_lineage",
    operation: "select",
    sqlite: "SELECT json_array(COUNT(*), COALESCE(AVG(confidence), 0.0), COALESCE(AVG(disagreement_score), 0.0),
            COALESCE(AVG(json_array_length(contributing_experts)), 0.0),
            (SELECT json_group_array(json_object('expertsCount', json_array_length(contributing_experts),
                'confidence', confidence, 'disagreement', disagreement_score, 'timestamp', created_at))
             FROM (SELECT * FROM consensus_lineage WHERE project = $1 ORDER BY created_at DESC, id LIMIT 10)))
        FROM consensus_lineage WHERE project = $1",
    postgres: r#"SELECT json_build_array(COUNT(*), COALESCE(AVG(confidence), 0), COALESCE(AVG(disagreement_score), 0),
            COALESCE(AVG(CASE jsonb_typeof(contributing_experts) WHEN 'array' THEN jsonb_array_length(contributing_experts) ELSE 0 END), 0),
            (SELECT COALESCE(json_agg(json_build_object('expertsCount',
                CASE jsonb_typeof(contributing_experts) WHEN 'array' THEN jsonb_array_length(contributing_experts) ELSE 0 END,
                'confidence', confidence, 'disagreement', disagreement_score, 'timestamp', to_char(created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"')) ORDER BY created_at DESC, id), '[]')
             FROM (SELECT * FROM consensus_lineage WHERE project = $1 ORDER BY created_at DESC, id LIMIT 10) latest))::text
        FROM consensus_lineage WHERE project = $1"#,
};

const TELEMETRY: Statement = Statement {
    table: "iris_telemetry",
    operation: "select",
    sqlite: "SELECT json_array(COUNT(*)) FROM iris_telemetry WHERE project_id = $1",
    postgres: "SELECT json_build_array(COUNT(*))::text FROM iris_telemetry WHERE project_id = $1",
};

type Runs = (i64, i64, i64, f64, f64, f64, f64, f64, Value);
type Reflexions = (i64, f64, f64, i64, Value, Value);
type Consensus = (i64, f64, f64, f64, Value);

pub async fn compute(
    database: &Database,
    principal: &Principal,
) -> Result<Computed, DatabaseError> {
    let project = || vec![Param::Text(principal.project_id.clone())];
    let (runs, reflexions, consensus, telemetry) = tokio::try_join!(
        database.one::<Runs>(&RUNS, project()),
        database.one::<Reflexions>(&REFLEXIONS, project()),
        database.one::<Consensus>(&CONSENSUS, project()),
        database.one::<(i64,)>(&TELEMETRY, project()),
    )?;
    let (
        run_count,
        tokens_in,
        tokens_out,
        cost,
        tokens_per_run,
        confidence,
        latency,
        success,
        recent_runs,
    ) = runs;
    let (reflexion_count, reflexion_success, impact, reuses, by_type, recent_reflexions) =
        reflexions;
    let (decisions, decision_confidence, disagreement, experts, recent_decisions) = consensus;
    let (events,) = telemetry;
    let body = json!({
        "success": true,
        "data": {
            "projectId": principal.project_id,
            "projectName": principal.project_name,
            "timestamp": null,
            "overview": {
                "totalModelRuns": run_count,
                "totalReflexions": reflexion_count,
                "totalConsensusDecisions": decisions,
                "totalTelemetryEvents": events,
            },
            "tokens": {
                "totalTokensIn": tokens_in,
                "totalTokensOut": tokens_out,
                "totalCostUsd": rounded(cost),
                "avgTokensPerRun": rounded(tokens_per_run),
            },
            "performance": {
                "avgConfidence": rounded(confidence),
                "avgLatencyMs": rounded(latency),
                "successRate": rounded(success),
            },
            "reflexion": {
                "totalReflexions": reflexion_count,
                "successRate": rounded(reflexion_success),
                "avgImpactScore": rounded(impact),
                "totalReuses": reuses,
                "byType": by_type,
            },
            "consensus": {
                "totalDecisions": decisions,
                "avgConfidence": rounded(decision_confidence),
                "avgDisagreement": rounded(disagreement),
                "avgExpertsPerDecision": rounded(experts),
            },
            "recent": {
                "modelRuns": recent_runs,
                "reflexions": recent_reflexions,
                "consensusDecisions": recent_decisions,
            },
        },
    });
    Ok(Computed::of(body, &["/data/timestamp"], "analytics"))
}
