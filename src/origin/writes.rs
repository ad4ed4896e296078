//! `POST`: what is wrong with a body is told at once and with its place, and then nothing of it is
//! written; what is answered with 201 is durable.

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, Response};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde_json::{Map, Value, json};
use uuid::Uuid;

use crate::clock::Timestamp;
use crate::database::keys::Principal;
use crate::database::{Database, DatabaseError, Insert, stored_time};
use crate::error::{Failure, FailureKind};
use crate::upstream::OriginBody;

use super::answer::{Refusal, created};

/// Largest body: a batch of the most events, with room for what they say.
const BODY_LIMIT: usize = 4 << 20;

/// Events of one batch.
const MOST_EVENTS: usize = 1000;

/// Characters of a name.
const LONGEST: usize = 200;

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
        "created_at",
    ],
    documents: &["metadata"],
};

pub(super) const REFLEXION: Insert = Insert {
    table: "reflexion_bank",
    columns: &[
        "id",
        "project",
        "expert_id",
        "reflexion_type",
        "success",
        "confidence",
        "impact_score",
        "reuse_count",
        "created_at",
    ],
    documents: &["context", "outcome"],
};

pub(super) const MODEL_RUN: Insert = Insert {
    table: "model_run_log",
    columns: &[
        "id",
        "project",
        "expert_id",
        "confidence",
        "latency_ms",
        "tokens_in",
        "tokens_out",
        "cost_usd",
        "outcome",
        "timestamp",
    ],
    documents: &[],
};

pub(super) const CONSENSUS: Insert = Insert {
    table: "consensus_lineage",
    columns: &[
        "id",
        "project",
        "confidence",
        "disagreement_score",
        "created_at",
    ],
    documents: &["contributing_experts", "final_decision"],
};

/// How a write ended: its answer, or why nothing was written.
pub type Written = Result<Result<Response<OriginBody>, Refusal>, DatabaseError>;

/// Reads a JSON body to its end; a failure where the client breaks off.
pub async fn read(
    headers: &HeaderMap,
    body: OriginBody,
) -> Result<Result<Value, Refusal>, Failure> {
    let media_type = headers.get(CONTENT_TYPE).map(|value| {
        let text = String::from_utf8_lossy(value.as_bytes()).to_ascii_lowercase();
        text.split(';').next().unwrap_or_default().trim().to_owned()
    });
    let is_json = |text: &str| text == "application/json" || text.ends_with("+json");
    if media_type.is_some_and(|text| !is_json(&text)) {
        return Ok(Err(Refusal::MediaType));
    }
    let collected = Limited::new(body, BODY_LIMIT).collect().await;
    let bytes: Bytes = match collected {
        Ok(collected) => collected.to_bytes(),
        Err(error) if error.is::<LengthLimitError>() => {
            return Ok(Err(Refusal::TooLarge(BODY_LIMIT)));
        }
        Err(error) => {
            return Err(match error.downcast::<Failure>() {
                Ok(failure) => *failure,
                Err(other) => Failure::new(FailureKind::BadRequest, other),
            });
        }
    };
    Ok(serde_json::from_slice(&bytes).map_err(|error| {
        Refusal::Invalid(vec![(
            String::new(),
            format!("the body is not JSON: {error}"),
        )])
    }))
}

/// The fields of one object, and what is wrong with them.
struct Fields<'a> {
    object: &'a Map<String, Value>,
    /// What the path of a field begins with.
    path: String,
    issues: &'a mut Vec<(String, String)>,
}

impl<'a> Fields<'a> {
    /// `None` where it is no object.
    fn of(value: &'a Value, path: String, issues: &'a mut Vec<(String, String)>) -> Option<Self> {
        match value {
            Value::Object(object) => Some(Self {
                object,
                path: if path.is_empty() {
                    path
                } else {
                    format!("{path}.")
                },
                issues,
            }),
            _ => {
                issues.push((path, "expected an object".to_owned()));
                None
            }
        }
    }

    fn issue(&mut self, name: &str, message: impl Into<String>) {
        self.issues
            .push((format!("{}{name}", self.path), message.into()));
    }

    /// A field that is there; null is as good as absent.
    fn get(&self, name: &str) -> Option<&'a Value> {
        self.object.get(name).filter(|value| !value.is_null())
    }

    fn require(&mut self, name: &str) -> Option<&'a Value> {
        let found = self.get(name);
        if found.is_none() {
            self.issue(name, "required");
        }
        found
    }

    /// Text that is not empty.
    fn text(&mut self, name: &str, is_required: bool) -> Option<String> {
        let value = if is_required {
            self.require(name)?
        } else {
            self.get(name)?
        };
        match value.as_str() {
            Some(text) if !text.trim().is_empty() && text.chars().count() <= LONGEST => {
                Some(text.to_owned())
            }
            _ => {
                self.issue(name, format!("expected text of 1 to {LONGEST} characters"));
                None
            }
        }
    }

    fn part(&mut self, name: &str) -> Option<f64> {
        let value = self.get(name)?;
        let found = value.as_f64().filter(|part| (0.0..=1.0).contains(part));
        if found.is_none() {
            self.issue(name, "expected a number from 0 to 1");
        }
        found
    }

    /// An amount of money, or the like.
    fn amount(&mut self, name: &str) -> Option<f64> {
        let value = self.get(name)?;
        let found = value.as_f64().filter(|amount| (0.0..1e12).contains(amount));
        if found.is_none() {
            self.issue(name, "expected a number that is not negative");
        }
        found
    }

    fn whole(&mut self, name: &str) -> Option<i64> {
        let value = self.get(name)?;
        let found = value
            .as_i64()
            .filter(|number| (0..=i64::from(i32::MAX)).contains(number));
        if found.is_none() {
            self.issue(name, "expected a whole number from 0 to 2147483647");
        }
        found
    }

    fn object(&mut self, name: &str) -> Value {
        match self.get(name) {
            None => json!({}),
            Some(value) if value.is_object() => value.clone(),
            Some(_) => {
                self.issue(name, "expected an object");
                json!({})
            }
        }
    }

    /// No database takes a zero in a text.
    fn finish(mut self) {
        for (name, value) in self.object {
            if has_zero(value) {
                self.issue(name, "expected text without U+0000");
            }
        }
    }
}

fn has_zero(value: &Value) -> bool {
    match value {
        Value::String(text) => text.contains('\0'),
        Value::Array(items) => items.iter().any(has_zero),
        Value::Object(object) => object
            .iter()
            .any(|(name, value)| name.contains('\0') || has_zero(value)),
        _ => false,
    }
}

fn telemetry_row(
    value: &Value,
    path: String,
    principal: &Principal,
    now: &str,
    issues: &mut Vec<(String, String)>,
) -> Option<Value> {
    let mut fields = Fields::of(value, path, issues)?;
    let row = json!({
        "id": new_id(),
        "project_id": principal.project_id,
        "expert_id": fields.text("expertId", true),
        "event_type": fields.text("eventType", false).unwrap_or_else(|| "telemetry".to_owned()),
        "confidence": fields.part("confidence"),
        "latency_ms": fields.whole("latencyMs"),
        "outcome": fields.text("outcome", false),
        "metadata": fields.object("metadata"),
        "created_at": now,
    });
    fields.finish();
    Some(row)
}

/// One event, or an array of them.
pub async fn telemetry(
    database: &Database,
    principal: &Principal,
    body: &Value,
    now: Timestamp,
) -> Written {
    let time = stored_time(now);
    let mut issues = Vec::new();
    let rows: Vec<Value> = match body {
        Value::Array(events) if events.is_empty() || events.len() > MOST_EVENTS => {
            let message = format!("expected 1 to {MOST_EVENTS} events, got {}", events.len());
            issues.push((String::new(), message));
            Vec::new()
        }
        Value::Array(events) => {
            let row = |(at, event): (usize, &Value)| {
                telemetry_row(event, at.to_string(), principal, &time, &mut issues)
            };
            events.iter().enumerate().filter_map(row).collect()
        }
        event => {
            let row = telemetry_row(event, String::new(), principal, &time, &mut issues);
            row.into_iter().collect()
        }
    };
    if !issues.is_empty() {
        return Ok(Err(Refusal::Invalid(issues)));
    }
    let (expert, count) = (rows[0]["expert_id"].clone(), rows.len());
    database.insert(vec![(&TELEMETRY, rows)]).await?;
    let mut answer = json!({
        "success": true,
        "projectId": principal.project_id,
        "projectName": principal.project_name,
        "expertId": expert,
    });
    if body.is_array() {
        answer["count"] = json!(count);
    }
    Ok(Ok(created(&answer, &["analytics", "events", "project"])))
}

/// Stores one object as one row. `fill` makes the row of its fields, `answer` what is told of it;
/// `changed` are the groups that are gone by it.
async fn stored(
    database: &Database,
    insert: &'static Insert,
    body: &Value,
    changed: &[&str],
    fill: impl FnOnce(&mut Fields<'_>) -> Value,
    answer: impl FnOnce(&Value) -> Value,
) -> Written {
    let mut issues = Vec::new();
    let row = Fields::of(body, String::new(), &mut issues).map(|mut fields| {
        let row = fill(&mut fields);
        fields.finish();
        row
    });
    let Some(row) = row.filter(|_| issues.is_empty()) else {
        return Ok(Err(Refusal::Invalid(issues)));
    };
    let answer = answer(&row);
    database.insert(vec![(insert, vec![row])]).await?;
    Ok(Ok(created(&answer, changed)))
}

fn new_id() -> String {
    Uuid::new_v4().to_string()
}

pub async fn event(
    database: &Database,
    principal: &Principal,
    body: &Value,
    now: Timestamp,
) -> Written {
    let (time, project) = (stored_time(now), &principal.project_id);
    let changed = ["analytics", "events", "project"];
    let fill = |fields: &mut Fields<'_>| {
        json!({
            "id": new_id(),
            "project_id": project,
            "event_type": fields.text("eventType", true),
            "metadata": fields.object("metadata"),
            "created_at": time,
        })
    };
    let answer = |row: &Value| {
        json!({
            "success": true,
            "message": "the event is stored",
            "eventType": row["event_type"],
            "projectId": project,
            "timestamp": time,
        })
    };
    stored(database, &TELEMETRY, body, &changed, fill, answer).await
}

pub async fn reflexion(
    database: &Database,
    principal: &Principal,
    body: &Value,
    now: Timestamp,
) -> Written {
    let (time, project) = (stored_time(now), &principal.project_id);
    let changed = ["analytics", "reflexion"];
    let fill = |fields: &mut Fields<'_>| {
        let (context, outcome) = (fields.require("context"), fields.require("outcome"));
        let success = fields.require("success");
        if success.is_some_and(|value| !value.is_boolean()) {
            fields.issue("success", "expected true or false");
        }
        json!({
            "id": new_id(),
            "project": project,
            "expert_id": fields.text("expertId", false),
            "reflexion_type": fields.text("reflexionType", true),
            "context": context,
            "outcome": outcome,
            "success": success,
            "confidence": fields.part("confidence"),
            "impact_score": fields.part("impactScore").unwrap_or(0.5),
            "reuse_count": 0,
            "created_at": time,
        })
    };
    let answer = |row: &Value| {
        json!({
            "success": true,
            "projectId": project,
            "reflexionType": row["reflexion_type"],
            "message": "the reflexion is stored",
        })
    };
    stored(database, &REFLEXION, body, &changed, fill, answer).await
}

/// One run of a model.
pub async fn model_run(
    database: &Database,
    principal: &Principal,
    body: &Value,
    now: Timestamp,
) -> Written {
    let (time, project) = (stored_time(now), &principal.project_id);
    let fill = |fields: &mut Fields<'_>| {
        json!({
            "id": new_id(),
            "project": project,
            "expert_id": fields.text("expertId", true),
            "confidence": fields.part("confidence"),
            "latency_ms": fields.whole("latencyMs"),
            "tokens_in": fields.whole("tokensIn").unwrap_or(0),
            "tokens_out": fields.whole("tokensOut").unwrap_or(0),
            "cost_usd": fields.amount("costUsd").unwrap_or(0.0),
            "outcome": fields.text("outcome", false),
            "timestamp": time,
        })
    };
    let answer = |row: &Value| {
        json!({
            "success": true,
            "projectId": project,
            "expertId": row["expert_id"],
            "message": "the run is stored",
        })
    };
    stored(database, &MODEL_RUN, body, &["analytics"], fill, answer).await
}

/// One decision of several experts.
pub async fn consensus(
    database: &Database,
    principal: &Principal,
    body: &Value,
    now: Timestamp,
) -> Written {
    let (time, project) = (stored_time(now), &principal.project_id);
    let fill = |fields: &mut Fields<'_>| {
        let experts = fields.require("contributingExperts");
        let is_list = |experts: &Value| experts.as_array().is_some_and(|list| !list.is_empty());
        if experts.is_some_and(|experts| !is_list(experts)) {
            fields.issue("contributingExperts", "expected a list that is not empty");
        }
        json!({
            "id": new_id(),
            "project": project,
            "contributing_experts": experts,
            "final_decision": fields.require("finalDecision"),
            "confidence": fields.part("confidence"),
            "disagreement_score": fields.part("disagreementScore"),
            "created_at": time,
        })
    };
    let answer = |row: &Value| {
        let experts = row["contributing_experts"].as_array();
        json!({
            "success": true,
            "projectId": project,
            "expertsCount": experts.map_or(0, Vec::len),
            "message": "the decision is stored",
        })
    };
    stored(database, &CONSENSUS, body, &["analytics"], fill, answer).await
}
