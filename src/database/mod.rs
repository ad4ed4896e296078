//! The database of the built-in origin: SQLite, embedded, in a file or in memory, or Postgres.
//!
//! All queries run on one runtime, the background's: a worker only waits for their answers. A
//! statement stands in both dialects, and each row of a query is one JSON array, so that whoever
//! asks need not know which database answers.

mod advice;
mod error;
mod indexes;
mod insert;
pub mod keys;
mod place;
mod pools;
mod settings;
mod statement;

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;
use time::OffsetDateTime;
use tokio::runtime::Handle;
use tokio::time::timeout;

use crate::clock::Timestamp;
use crate::metrics::Metrics;

pub use error::DatabaseError;
pub use insert::Insert;
pub use settings::Settings;
pub use statement::{Param, Statement};

use pools::{Pools, Step};

/// A time as it stands in tables and answers: in UTC, to the millisecond, so that texts compare as
/// times do.
pub fn stored_time(time: Timestamp) -> String {
    let nanos = i128::from(time.as_millis()) * 1_000_000;
    let time = OffsetDateTime::from_unix_timestamp_nanos(nanos);
    let time = time.unwrap_or(OffsetDateTime::UNIX_EPOCH);
    let (date, clock) = (time.date(), time.time());
    format!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:03}Z",
        date.year(),
        u8::from(date.month()),
        date.day(),
        clock.hour(),
        clock.minute(),
        clock.second(),
        clock.millisecond(),
    )
}

/// Connections to one database.
#[derive(Clone, Debug)]
pub struct Database {
    pools: Arc<Pools>,
    settings: Arc<Settings>,
    runtime: Handle,
    metrics: Arc<Metrics>,
}

impl Database {
    /// Connections that are made from now on have this password; an embedded database has none.
    pub fn set_password(&self, password: &str) {
        self.pools.set_password(password);
    }

    /// Opens it. An embedded one is made where there is none, and migrated, where it may be; a
    /// Postgres that is not there yet is no error, and is left as it is. Must run on the runtime
    /// that is to run the queries.
    pub async fn open(settings: Settings, metrics: Arc<Metrics>) -> Result<Self, DatabaseError> {
        let (pools, may_create) = (Pools::open(&settings).await?, settings.may_create);
        let database = Self {
            pools: Arc::new(pools),
            settings: Arc::new(settings),
            runtime: Handle::current(),
            metrics,
        };
        if database.pools.is_embedded() && may_create {
            database.migrate().await?;
        }
        Ok(database)
    }

    /// Whether it is SQLite.
    pub fn is_embedded(&self) -> bool {
        self.pools.is_embedded()
    }

    /// Makes what is missing of the contract: tables, indexes, functions. Does nothing the second
    /// time, and leaves what is there.
    pub async fn migrate(&self) -> Result<(), DatabaseError> {
        self.pools.migrate().await?;
        for missing in self.missing_indexes().await? {
            self.pools.define(missing.statements).await?;
        }
        Ok(())
    }

    /// Connections open now, and those of them that nobody uses.
    pub fn connections(&self) -> (u64, u64) {
        self.pools.connections()
    }

    /// All rows of a query. Callable from any runtime.
    pub async fn rows<T: DeserializeOwned>(
        &self,
        statement: &'static Statement,
        parameters: Vec<Param>,
    ) -> Result<Vec<T>, DatabaseError> {
        let pools = Arc::clone(&self.pools);
        let limit = self.settings.query_timeout;
        let rows = self
            .run(
                statement.table,
                statement.operation,
                Some(self.patience()),
                async move { pools.rows(statement, parameters, limit).await },
            )
            .await?;
        let read = |row: &String| {
            serde_json::from_str(row).map_err(|source| DatabaseError::Row {
                table: statement.table,
                source,
            })
        };
        rows.iter().map(read).collect()
    }

    /// The one row of an aggregate.
    pub async fn one<T: DeserializeOwned>(
        &self,
        statement: &'static Statement,
        parameters: Vec<Param>,
    ) -> Result<T, DatabaseError> {
        let rows = self.rows(statement, parameters).await?;
        rows.into_iter()
            .next()
            .ok_or(DatabaseError::of(statement.table, sqlx::Error::RowNotFound))
    }

    /// Runs a statement once for each list of parameters, in one transaction: all of them count, or
    /// none; how many rows it changed. Durable when it returns.
    pub async fn write(
        &self,
        statement: &'static Statement,
        lists: Vec<Vec<Param>>,
    ) -> Result<u64, DatabaseError> {
        let step = |parameters| Step {
            sql: statement.sql(self.is_embedded()).into(),
            parameters,
        };
        let steps = lists.into_iter().map(step).collect();
        self.carry_out(statement.table, statement.operation, steps)
            .await
    }

    async fn carry_out(
        &self,
        table: &'static str,
        operation: &'static str,
        steps: Vec<Step>,
    ) -> Result<u64, DatabaseError> {
        let pools = Arc::clone(&self.pools);
        // An embedded one is waited for: what is given up half-way may be written all the same.
        let limit = (!self.is_embedded()).then(|| self.patience());
        let writing = async move { pools.write(steps).await };
        self.run(table, operation, limit, writing).await
    }

    /// The database cancels first; this is for one that does not answer at all.
    fn patience(&self) -> Duration {
        self.settings.query_timeout + Duration::from_millis(500)
    }

    async fn run<T: Send + 'static>(
        &self,
        table: &'static str,
        operation: &'static str,
        limit: Option<Duration>,
        work: impl Future<Output = Result<T, sqlx::Error>> + Send + 'static,
    ) -> Result<T, DatabaseError> {
        let started = Instant::now();
        let task = self.runtime.spawn(async move {
            match limit {
                Some(limit) => timeout(limit, work).await,
                None => Ok(work.await),
            }
        });
        let result = match task.await {
            Ok(Ok(result)) => result.map_err(|source| DatabaseError::of(table, source)),
            Ok(Err(_)) => Err(DatabaseError::TimedOut { table }),
            Err(_) => Err(DatabaseError::Stopped),
        };
        let error_type = result.as_ref().err().map(DatabaseError::kind);
        self.metrics
            .queried(table, operation, started.elapsed(), error_type);
        result
    }
}
