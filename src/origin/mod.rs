//! The built-in origin: the Iris endpoints, computed by the database.
//!
//! It stands behind the cache exactly where an upstream would, and knows nothing of the cache but
//! what its responses say: lifetimes, entity tags, groups.

mod analytics;
mod answer;
mod endpoint;
mod lists;
mod overview;
mod parameters;
mod seed;
pub use seed::if_empty as seed_demo;
mod usage;
mod writes;

use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::header::AUTHORIZATION;
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Request, Response};
use tracing::{error, info, warn};

use crate::clock::{Clock, Timestamp};
use crate::database::keys::{Principal, is_well_formed};
use crate::database::{Database, DatabaseError};
use crate::error::{Failure, FailureKind};
use crate::metrics::{Metrics, UpstreamReading};
use crate::trace::{Observed, Span};
use crate::upstream::{Answer, Breaker, Fault, Origin, OriginBody, Started, empty, url_hash};

use answer::{Computed, Refusal};
use endpoint::Endpoint;
use parameters::Parameters;
use usage::Usage;

/// Between two writes of usage counts.
const USAGE_EVERY: Duration = Duration::from_secs(5);

/// Answers the Iris endpoints from a database.
pub struct BuiltIn {
    database: Database,
    /// While the database is out of reach, or too slow, it is left alone.
    breaker: Breaker,
    metrics: Arc<Metrics>,
    clock: Clock,
    usage: Usage,
}

impl BuiltIn {
    /// Fills an empty embedded database with demo data first; the demo key, where that was done: it
    /// is not seen again.
    pub async fn new(
        database: Database,
        breaker: Breaker,
        metrics: Arc<Metrics>,
        clock: Clock,
    ) -> Result<(Arc<Self>, Option<String>), DatabaseError> {
        let key = if database.is_embedded() {
            seed::if_empty(&database, clock.now()).await?
        } else {
            None
        };
        let origin = Arc::new(Self {
            database,
            breaker,
            metrics,
            clock,
            usage: Usage::default(),
        });
        Ok((origin, key))
    }

    /// Writes usage counts by and by, for ever.
    pub async fn count_uses(self: Arc<Self>) {
        loop {
            tokio::time::sleep(USAGE_EVERY).await;
            self.flush_uses().await;
        }
    }

    /// Writes the uses so far.
    pub async fn flush_uses(&self) {
        let taken = self.usage.take();
        if taken.is_empty() {
            return;
        }
        let written = self
            .database
            .add_uses(taken.clone(), self.clock.now())
            .await;
        if let Err(error) = written {
            warn!(%error, keys = taken.len(), "usage counts were not written: they are kept for \
                the next time");
            self.usage.put_back(taken);
        }
    }

    async fn respond(&self, request: Request<OriginBody>) -> Result<Response<OriginBody>, Failure> {
        let (parts, body) = request.into_parts();
        let (path, now) = (parts.uri.path(), self.clock.now());
        let Some(endpoint) = Endpoint::of(path) else {
            return Ok(answer::refused(&Refusal::NotFound, path, now));
        };
        if parts.method == Method::OPTIONS {
            return Ok(answer::options());
        }
        if !endpoint.methods().contains(&parts.method) {
            let refusal = Refusal::Method(endpoint.methods());
            return Ok(answer::refused(&refusal, path, now));
        }
        if endpoint == Endpoint::Metrics {
            return Ok(answer::counters(&self.metrics.summary()));
        }
        if let Err(wait) = self.breaker.admit(Instant::now()) {
            let message =
                "most of what the database was asked has failed: it is asked once a second";
            return Err(Failure::new(FailureKind::BreakerOpen, message).retry_after(wait));
        }
        let url = url_hash(&parts.uri);
        let answered = self.ask(endpoint, &parts, body, now).await;
        self.count(&answered, url);
        answered
    }

    /// What an answer of the database, or none, teaches the breaker.
    fn count(&self, answered: &Result<Response<OriginBody>, Failure>, url: u64) {
        let fault = match answered.as_ref().map_err(|failure| failure.kind) {
            Ok(_) => {
                if self.breaker.succeeded(Instant::now()) {
                    info!("the database answers again: the breaker is closed");
                }
                return;
            }
            Err(FailureKind::OriginFailed) => Fault::Connection,
            Err(FailureKind::DatabaseTimeout) => Fault::Answer(url),
            // The client's, or one that the database has answered.
            Err(_) => return,
        };
        if self.breaker.failed(fault, Instant::now()) {
            warn!("most of what the database was asked has failed: the breaker is open");
        }
    }

    async fn ask(
        &self,
        endpoint: Endpoint<'_>,
        parts: &Parts,
        body: OriginBody,
        now: Timestamp,
    ) -> Result<Response<OriginBody>, Failure> {
        let path = parts.uri.path();
        let principal = match self.authenticate(&parts.headers).await {
            Ok(Ok(principal)) => principal,
            Ok(Err(refusal)) => return Ok(answer::refused(&refusal, path, now)),
            Err(error) => return Err(failure(&error, path)),
        };
        self.usage.note(&principal.key_id);
        let answered = if parts.method == Method::POST {
            let body = match writes::read(&parts.headers, body).await? {
                Ok(body) => body,
                Err(refusal) => return Ok(answer::refused(&refusal, path, now)),
            };
            let (database, principal) = (&self.database, &principal);
            match endpoint {
                Endpoint::Telemetry => writes::telemetry(database, principal, &body, now).await,
                Endpoint::Events => writes::event(database, principal, &body, now).await,
                Endpoint::ModelRun => writes::model_run(database, principal, &body, now).await,
                Endpoint::Consensus => writes::consensus(database, principal, &body, now).await,
                _ => writes::reflexion(database, principal, &body, now).await,
            }
        } else {
            let parameters = Parameters::of(&parts.uri);
            let computed = self.compute(endpoint, &principal, parameters, now).await;
            computed.map(|computed| {
                computed.map(|computed| answer::computed(&parts.headers, computed, now))
            })
        };
        match answered {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(refusal)) => Ok(answer::refused(&refusal, path, now)),
            Err(error) => match failure(&error, path) {
                // The database is there, and says no: the contract has an answer for that.
                failure if failure.kind == FailureKind::Internal => {
                    Ok(answer::failed(&parts.method, path, &error))
                }
                failure => Err(failure),
            },
        }
    }

    async fn compute(
        &self,
        endpoint: Endpoint<'_>,
        principal: &Principal,
        parameters: Parameters,
        now: Timestamp,
    ) -> Result<Result<Computed, Refusal>, DatabaseError> {
        let database = &self.database;
        match endpoint {
            Endpoint::Overview => overview::compute(database, now).await.map(Ok),
            Endpoint::OverviewOptimized => {
                let computed = overview::compute(database, now).await?;
                Ok(Ok(Computed {
                    is_exact: true,
                    ..computed
                }))
            }
            Endpoint::Analytics => analytics::compute(database, principal).await.map(Ok),
            Endpoint::Patterns => lists::patterns(database, principal, parameters).await,
            Endpoint::Events => lists::events(database, principal, parameters).await,
            Endpoint::Reflexion => lists::reflexions(database, principal, parameters).await,
            Endpoint::Project(project) => {
                lists::project(database, principal, project, parameters).await
            }
            Endpoint::Evaluate => lists::evaluate(database, principal, parameters).await,
            Endpoint::Anomalies => lists::anomalies(database, principal, parameters).await,
            Endpoint::Telemetry | Endpoint::ModelRun | Endpoint::Consensus | Endpoint::Metrics => {
                Ok(Err(Refusal::NotFound))
            }
        }
    }

    /// Whose key a request carries: `Bearer` with that capital, or the bare key.
    async fn authenticate(
        &self,
        headers: &HeaderMap,
    ) -> Result<Result<Principal, Refusal>, DatabaseError> {
        let mut given = headers
            .get_all(AUTHORIZATION)
            .iter()
            .map(HeaderValue::to_str);
        let key = match (given.next(), given.next()) {
            (None, _) => return Ok(Err(Refusal::Key("Missing API key"))),
            (Some(Ok(value)), None) => value.strip_prefix("Bearer ").unwrap_or(value).trim(),
            _ => return Ok(Err(Refusal::Key("Invalid API key format"))),
        };
        if !is_well_formed(key) {
            return Ok(Err(Refusal::Key("Invalid API key format")));
        }
        let found = self.database.find_key(key).await?;
        Ok(found.ok_or(Refusal::Key("Invalid or inactive API key")))
    }
}

/// The database's fault, as the proxy tells it.
fn failure(cause: &DatabaseError, path: &str) -> Failure {
    let source = std::error::Error::source(cause).map(ToString::to_string);
    error!(error = %cause, source, path, "the built-in origin could not answer");
    let kind = match cause {
        DatabaseError::TimedOut { .. } => FailureKind::DatabaseTimeout,
        DatabaseError::Query { .. } | DatabaseError::Row { .. } => FailureKind::Internal,
        _ => FailureKind::OriginFailed,
    };
    Failure::new(kind, cause)
}

impl Origin for BuiltIn {
    fn answer(&self, request: Request<OriginBody>) -> Answer<'_> {
        let is_head = request.method() == Method::HEAD;
        Box::pin(async move {
            if let Some(started) = request.extensions().get::<Started>() {
                started.tell();
            }
            let observed = request.extensions().get::<Arc<Observed>>().cloned();
            let began = Instant::now();
            let response = self.respond(request).await;
            if let Some(observed) = observed {
                observed.took(Span::Upstream, began);
            }
            let response = response?;
            Ok(if is_head {
                response.map(|_| empty())
            } else {
                response
            })
        })
    }

    fn readings(&self) -> Vec<UpstreamReading> {
        vec![UpstreamReading {
            breaker_is_open: self.breaker.is_open(),
            ..UpstreamReading::default()
        }]
    }

    fn finish(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(self.flush_uses())
    }

    fn database_connections(&self) -> (u64, u64) {
        self.database.connections()
    }
}
