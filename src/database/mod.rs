//! The database of the built-in origin: SQLite, embedded, in a file or in memory.
//!
//! All queries run on one runtime, the background's: a worker only waits for their answers.

use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{FromRow, Sqlite, SqlitePool};
use tokio::runtime::Handle;
use uuid::Uuid;

use crate::metrics::Metrics;

/// The tables of the contract, as far as they are used so far. Idempotent.
const SCHEMA: &str = include_str!("schema.sql");

/// What kept the database from answering.
#[derive(Debug, thiserror::Error)]
pub enum DatabaseError {
    #[error("the database {url:?} could not be opened")]
    Open { url: String, source: sqlx::Error },
    #[error("a query on {table} failed")]
    Query {
        table: &'static str,
        source: sqlx::Error,
    },
    #[error("the database's runtime has ended")]
    Stopped,
}

/// A pool of connections to one SQLite database.
#[derive(Clone, Debug)]
pub struct Database {
    pool: SqlitePool,
    runtime: Handle,
    metrics: Arc<Metrics>,
}

impl Database {
    /// Opens `url` (`sqlite::memory:` or `sqlite:FILE`) and makes what tables it lacks. Must run
    /// on the runtime that is to run the queries.
    pub async fn open(url: &str, metrics: Arc<Metrics>) -> Result<Self, DatabaseError> {
        let failed = |source| DatabaseError::Open {
            url: url.to_owned(),
            source,
        };
        let in_memory = url == "sqlite::memory:";
        // A memory database that several connections share needs a name.
        let name = format!(
            "sqlite:file:iris-{}?mode=memory&cache=shared",
            Uuid::new_v4().simple()
        );
        let options =
            SqliteConnectOptions::from_str(if in_memory { &name } else { url }).map_err(failed)?;
        let options = options
            .create_if_missing(true)
            .busy_timeout(Duration::from_secs(5));
        let options = if in_memory {
            options
        } else {
            options
                .journal_mode(SqliteJournalMode::Wal)
                .synchronous(SqliteSynchronous::Normal)
        };
        let pool = SqlitePoolOptions::new()
            .max_connections(4)
            // A memory database lives as long as one connection does.
            .min_connections(1)
            .idle_timeout(None)
            .max_lifetime(None)
            .acquire_timeout(Duration::from_secs(5))
            .connect_with(options)
            .await
            .map_err(failed)?;
        sqlx::raw_sql(SCHEMA).execute(&pool).await.map_err(failed)?;
        Ok(Self {
            pool,
            runtime: Handle::current(),
            metrics,
        })
    }

    /// Runs statements one after another in one transaction: all of them count, or none.
    pub async fn run(&self, statements: &[&'static str]) -> Result<(), DatabaseError> {
        let failed = |source| DatabaseError::Query {
            table: "schema",
            source,
        };
        let mut transaction = self.pool.begin().await.map_err(failed)?;
        for statement in statements {
            sqlx::query(*statement)
                .execute(&mut *transaction)
                .await
                .map_err(failed)?;
        }
        transaction.commit().await.map_err(failed)
    }

    /// All rows of a query on `table`, which takes `parameters` in their order. Callable from any
    /// runtime.
    pub async fn rows<T>(
        &self,
        table: &'static str,
        sql: &'static str,
        parameters: &[&str],
    ) -> Result<Vec<T>, DatabaseError>
    where
        T: for<'row> FromRow<'row, sqlx::sqlite::SqliteRow> + Send + Unpin + 'static,
    {
        let pool = self.pool.clone();
        let parameters: Vec<String> = parameters.iter().map(ToString::to_string).collect();
        let started = Instant::now();
        let task = self.runtime.spawn(async move {
            let query = parameters
                .into_iter()
                .fold(sqlx::query_as::<Sqlite, T>(sql), |query, parameter| {
                    query.bind(parameter)
                });
            query.fetch_all(&pool).await
        });
        let result = task.await.map_err(|_| DatabaseError::Stopped)?;
        let error_type = result.is_err().then_some("query");
        self.metrics.queried(table, started.elapsed(), error_type);
        result.map_err(|source| DatabaseError::Query { table, source })
    }
}
