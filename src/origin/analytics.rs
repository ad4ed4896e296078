//! `GET /api/iris/analytics`: one project in depth, one statement a table.

use serde_json::{Map, Value, json};

use crate::clock::Timestamp;
use crate::database::{Database, DatabaseError};
use crate::error::rfc3339;

use super::{parsed, rounded};

const PROJECT: &str = "
    SELECT project FROM expert_signatures WHERE ?1 = '' OR project = ?1 ORDER BY project LIMIT 1";

const RUNS: &str = "
    SELECT COUNT(*), COALESCE(SUM(tokens_in), 0), COALESCE(SUM(tokens_out), 0), COALESCE(SUM(cost_usd), 0.0),
        COALESCE(AVG(tokens_in + tokens_out), 0.0), COALESCE(AVG(confidence), 0.0),
        COALESCE(AVG(latency_ms), 0.0), COALESCE(AVG(outcome = 'success'), 0.0),
        (SELECT json_group_array(json_object('id', id, 'expertId', expert_id, 'confidence', confidence,
            'latencyMs', latency_ms, 'tokensIn', tokens_in, 'tokensOut', tokens_out, 'costUsd', cost_usd,
            'outcome', outcome, 'timestamp', timestamp))
         FROM (SELECT * FROM model_run_log WHERE project = ?1 ORDER BY timestamp DESC, id LIMIT 10))
    FROM model_run_log WHERE project = ?1";

const REFLEXIONS: &str = "
    SELECT COUNT(*), COALESCE(AVG(success), 0.0), COALESCE(AVG(impact_score), 0.0), COALESCE(SUM(reuse_count), 0),
        (SELECT json_group_object(reflexion_type, count) FROM (
            SELECT reflexion_type, COUNT(*) AS count FROM reflexion_bank WHERE project = ?1
            GROUP BY reflexion_type ORDER BY reflexion_type)),
        (SELECT json_group_array(json_object('id', id, 'expertId', expert_id, 'reflexionType', reflexion_type,
            'success', json(iif(success, 'true', 'false')), 'confidence', confidence, 'impactScore', impact_score,
            'reuseCount', reuse_count, 'createdAt', created_at))
         FROM (SELECT * FROM reflexion_bank WHERE project = ?1 ORDER BY created_at DESC, id LIMIT 10))
    FROM reflexion_bank WHERE project = ?1";

const CONSENSUS: &str = "
    SELECT COUNT(*), COALESCE(AVG(confidence), 0.0), COALESCE(AVG(disagreement_score), 0.0),
        COALESCE(AVG(json_array_length(contributing_experts)), 0.0),
        (SELECT json_group_array(json_object('id', id, 'contributingExperts', json(contributing_experts),
            'confidence', confidence, 'finalDecision', json(final_decision),
            'disagreementScore', disagreement_score, 'createdAt', created_at))
         FROM (SELECT * FROM consensus_lineage WHERE project = ?1 ORDER BY created_at DESC, id LIMIT 10))
    FROM consensus_lineage WHERE project = ?1";

const TELEMETRY: &str = "SELECT COUNT(*) FROM iris_telemetry WHERE project_id = ?1";

type Runs = (i64, i64, i64, f64, f64, f64, f64, f64, String);
type Reflexions = (i64, f64, f64, i64, String, String);
type Consensus = (i64, f64, f64, f64, String);

/// The body for one project, the first one where none is named; `None` where there is no such one.
pub async fn compute(
    database: &Database,
    wanted: Option<&str>,
    now: Timestamp,
) -> Result<Option<Value>, DatabaseError> {
    let found = database
        .rows::<(String,)>("expert_signatures", PROJECT, &[wanted.unwrap_or("")])
        .await?;
    let Some((project,)) = found.into_iter().next() else {
        return Ok(None);
    };
    let parameters = [project.as_str()];
    let (runs, reflexions, consensus, telemetry) = tokio::try_join!(
        database.rows::<Runs>("model_run_log", RUNS, &parameters),
        database.rows::<Reflexions>("reflexion_bank", REFLEXIONS, &parameters),
        database.rows::<Consensus>("consensus_lineage", CONSENSUS, &parameters),
        database.rows::<(i64,)>("iris_telemetry", TELEMETRY, &parameters),
    )?;
    // An aggregate without GROUP BY always has one row.
    let (Some(runs), Some(reflexions), Some(consensus), Some((events,))) = (
        runs.first(),
        reflexions.first(),
        consensus.first(),
        telemetry.first(),
    ) else {
        return Ok(None);
    };
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
    let by_type = match parsed(by_type) {
        Value::Object(counts) => counts,
        _ => Map::new(),
    };
    Ok(Some(json!({
        "success": true,
        "data": {
            "projectId": project,
            "projectName": project_name(&project),
            "timestamp": rfc3339(now),
            "overview": {
                "totalModelRuns": run_count,
                "totalReflexions": reflexion_count,
                "totalConsensusDecisions": decisions,
                "totalTelemetryEvents": events,
            },
            "tokens": {
                "totalTokensIn": tokens_in,
                "totalTokensOut": tokens_out,
                "totalCostUsd": rounded(*cost),
                "avgTokensPerRun": rounded(*tokens_per_run),
            },
            "performance": {
                "avgConfidence": rounded(*confidence),
                "avgLatencyMs": rounded(*latency),
                "successRate": rounded(*success),
            },
            "reflexion": {
                "totalReflexions": reflexion_count,
                "successRate": rounded(*reflexion_success),
                "avgImpactScore": rounded(*impact),
                "totalReuses": reuses,
                "byType": by_type,
            },
            "consensus": {
                "totalDecisions": decisions,
                "avgConfidence": rounded(*decision_confidence),
                "avgDisagreement": rounded(*disagreement),
                "avgExpertsPerDecision": rounded(*experts),
            },
            "recent": {
                "modelRuns": parsed(recent_runs),
                "reflexions": parsed(recent_reflexions),
                "consensusDecisions": parsed(recent_decisions),
            },
        },
    })))
}

/// `nfl-predictor` → `Nfl Predictor`: names belong to keys, which this origin does not have yet.
fn project_name(project: &str) -> String {
    let words = project.split('-').map(|word| {
        let mut letters = word.chars();
        let first = letters
            .next()
            .map(|letter| letter.to_uppercase().to_string());
        first.unwrap_or_default() + letters.as_str()
    });
    words.collect::<Vec<_>>().join(" ")
}
