//! The built-in origin: the Iris endpoints, computed by the database.
//!
//! It stands behind the cache exactly where an upstream would, and knows nothing of the cache.

mod analytics;
mod overview;
mod seed;

use std::sync::Arc;

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE};
use http::{HeaderValue, Method, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Full};
use serde_json::{Value, json};
use tracing::error;

use crate::clock::Clock;
use crate::database::{Database, DatabaseError};
use crate::error::{Failure, FailureKind, rfc3339};
use crate::upstream::{Answer, Origin, OriginBody};

/// Answers the Iris endpoints from a database.
pub struct BuiltIn {
    database: Database,
    clock: Clock,
}

impl BuiltIn {
    /// Fills an empty database with demo data first.
    pub async fn new(database: Database, clock: Clock) -> Result<Arc<Self>, DatabaseError> {
        seed::if_empty(&database).await?;
        Ok(Arc::new(Self { database, clock }))
    }

    async fn respond(&self, method: &Method, uri: &Uri) -> Result<Response<OriginBody>, Failure> {
        let path = uri.path();
        if !matches!(path, "/api/iris/overview" | "/api/iris/analytics") {
            let body = json!({"error": {
                "message": format!("there is no {path} here: try /api/iris/overview or /api/iris/analytics"),
                "code": "NOT_FOUND",
                "statusCode": 404,
                "timestamp": rfc3339(self.clock.now()),
                "path": path,
            }});
            return Ok(response(StatusCode::NOT_FOUND, &body));
        }
        if *method != Method::GET && *method != Method::HEAD {
            let mut response = response(
                StatusCode::METHOD_NOT_ALLOWED,
                &json!({"error": "Method not allowed"}),
            );
            response
                .headers_mut()
                .insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            return Ok(response);
        }
        let now = self.clock.now();
        let body = match path {
            "/api/iris/overview" => overview::compute(&self.database, now).await,
            _ => {
                analytics::compute(
                    &self.database,
                    query_value(uri, "projectId").as_deref(),
                    now,
                )
                .await
            }
        };
        match body {
            Ok(Some(body)) => Ok(response(StatusCode::OK, &body)),
            Ok(None) => {
                let body = json!({"error": {
                    "message": "there is no such project",
                    "code": "NOT_FOUND",
                    "statusCode": 404,
                    "timestamp": rfc3339(now),
                    "path": path,
                }});
                Ok(response(StatusCode::NOT_FOUND, &body))
            }
            Err(cause) => {
                let source = std::error::Error::source(&cause).map(ToString::to_string);
                error!(error = %cause, source, path, "the built-in origin could not answer");
                Err(Failure::new(FailureKind::OriginFailed, cause))
            }
        }
    }
}

impl Origin for BuiltIn {
    fn answer(&self, request: Request<OriginBody>) -> Answer<'_> {
        Box::pin(async move { self.respond(request.method(), request.uri()).await })
    }
}

fn response(status: StatusCode, body: &Value) -> Response<OriginBody> {
    let body = Full::new(Bytes::from(body.to_string()));
    let mut response = Response::new(body.map_err(|never| match never {}).boxed_unsync());
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if let Some(length) = http_body::Body::size_hint(response.body()).exact() {
        response
            .headers_mut()
            .insert(http::header::CONTENT_LENGTH, HeaderValue::from(length));
    }
    response
}

fn query_value(uri: &Uri, name: &str) -> Option<String> {
    let pairs = url::form_urlencoded::parse(uri.query()?.as_bytes());
    pairs
        .into_iter()
        .find(|(key, _)| key == name)
        .map(|(_, value)| value.into_owned())
}

/// Rounds a computed average as the API shows it.
fn rounded(value: f64) -> f64 {
    (value * 10_000.0).round() / 10_000.0
}

/// JSON that the database built.
fn parsed(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or(Value::Null)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Timestamp;
    use crate::metrics::Metrics;
    use crate::upstream::empty;

    async fn ask(target: &str) -> (StatusCode, Value) {
        let metrics = Arc::new(Metrics::new(std::iter::empty()));
        let database = Database::open("sqlite::memory:", metrics).await.unwrap();
        let clock = Clock::manual(Timestamp::from(std::time::SystemTime::now()));
        let origin = BuiltIn::new(database, clock).await.unwrap();
        let request = Request::builder().uri(target).body(empty()).unwrap();
        let response = origin.answer(request).await.unwrap();
        let status = response.status();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, serde_json::from_slice(&body).unwrap())
    }

    #[tokio::test]
    async fn the_overview_counts_all_projects() {
        let (status, body) = ask("/api/iris/overview").await;
        assert_eq!(status, 200);
        let metrics = &body["metrics"];
        assert_eq!(metrics["total_projects"], 8);
        assert_eq!(metrics["active_experts"], 60);
        let parts = ["healthy_projects", "warning_projects", "critical_projects"];
        let sum: u64 = parts
            .iter()
            .map(|part| metrics[part].as_u64().unwrap())
            .sum();
        assert_eq!(sum, 8);
        let projects = body["projects"].as_array().unwrap();
        assert_eq!(projects.len(), 8);
        let keys: Vec<_> = projects[0]
            .as_object()
            .unwrap()
            .keys()
            .map(String::as_str)
            .collect();
        for key in [
            "project",
            "overallHealth",
            "latestHealthScore",
            "lastReportDate",
            "totalRuns",
            "avgSuccessRate",
            "activeExperts",
            "totalReflexions",
        ] {
            assert!(keys.contains(&key), "{key}");
        }
        assert_eq!(body["events"].as_array().unwrap().len(), 50);
        assert_eq!(body["anomalies"], json!([]));
        let experts: u64 = projects
            .iter()
            .map(|project| project["activeExperts"].as_u64().unwrap())
            .sum();
        assert_eq!(experts, 60);
    }

    #[tokio::test]
    async fn analytics_counts_past_a_hundred_rows() {
        let (status, body) = ask("/api/iris/analytics?projectId=nfl-predictor").await;
        assert_eq!(status, 200);
        let data = &body["data"];
        assert_eq!(data["projectId"], "nfl-predictor");
        assert_eq!(data["overview"]["totalModelRuns"], 2500);
        assert_eq!(data["recent"]["modelRuns"].as_array().unwrap().len(), 10);
        assert!(data["tokens"]["totalTokensIn"].as_u64().unwrap() > 100_000);
        let by_type = data["reflexion"]["byType"].as_object().unwrap();
        let total: u64 = by_type.values().map(|count| count.as_u64().unwrap()).sum();
        assert_eq!(Some(total), data["reflexion"]["totalReflexions"].as_u64());
    }

    #[tokio::test]
    async fn what_is_not_there_is_404() {
        assert_eq!(ask("/api/iris/analytics?projectId=nobody").await.0, 404);
        assert_eq!(ask("/nowhere").await.0, 404);
    }
}
