//! The pools: one writer and several readers of SQLite, or Postgres with its replicas.

use std::borrow::Cow;
use std::io::ErrorKind::{ConnectionRefused, NotFound, TimedOut};
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::query::Query;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{
    AssertSqlSafe, ConnectOptions, Connection, Error, PgConnection, PgPool, Postgres, Row, Sqlite,
    SqliteConnection, SqlitePool,
};
use tokio::net::{TcpStream, UnixStream};
use uuid::Uuid;

use crate::error::without_passwords;

use super::place::{self, Kind};
use super::{DatabaseError, Param, Settings, Statement};

/// How long a connection is waited for: a database that is down must not hold requests up.
const ACQUIRE: Duration = Duration::from_secs(2);

/// How long a connection may take before it is looked whether the server takes any, and between two
/// looks.
const LOOK_AFTER: Duration = Duration::from_millis(30);
const LOOK_EVERY: Duration = Duration::from_millis(300);

/// Steps of SQLite's machine between two looks at the clock.
const STEPS: i32 = 10_000;

/// One statement of a transaction, in the dialect of its database.
pub struct Step {
    pub sql: Cow<'static, str>,
    pub parameters: Vec<Param>,
}

#[derive(Debug)]
pub enum Pools {
    Sqlite {
        writer: SqlitePool,
        readers: SqlitePool,
        /// The last write failed.
        has_failed: AtomicBool,
    },
    Postgres {
        primary: PgPool,
        replicas: Vec<PgPool>,
        next: AtomicUsize,
    },
}

impl Pools {
    /// Connections that are made from now on have this password; SQLite has none.
    pub fn set_password(&self, password: &str) {
        let Self::Postgres {
            primary, replicas, ..
        } = self
        else {
            return;
        };
        for pool in std::iter::once(primary).chain(replicas) {
            let options = PgConnectOptions::clone(&pool.connect_options());
            pool.set_connect_options(options.password(password));
        }
    }

    pub async fn open(settings: &Settings) -> Result<Self, DatabaseError> {
        let url = &settings.url;
        let failed = |url: &str| {
            let url = without_passwords(url);
            move |source| DatabaseError::Open { url, source }
        };
        if place::kind(url)? == Kind::Postgres {
            let pool = |url: &String| {
                let timeout = settings.query_timeout.as_millis().to_string();
                let options = PgConnectOptions::from_str(url).map_err(failed(url))?;
                let options = options
                    .disable_statement_logging()
                    .application_name("iris-sidecar")
                    .options([("statement_timeout", timeout)]);
                Ok(PgPoolOptions::new()
                    .max_connections(settings.connections)
                    .acquire_timeout(ACQUIRE)
                    .connect_lazy_with(options))
            };
            return Ok(Self::Postgres {
                primary: pool(url)?,
                replicas: settings
                    .replicas
                    .iter()
                    .map(pool)
                    .collect::<Result<_, _>>()?,
                next: AtomicUsize::new(0),
            });
        }
        let in_memory = url == "sqlite::memory:";
        // A memory database that several connections share needs a name.
        let name = format!(
            "sqlite:file:iris-{}?mode=memory&cache=shared",
            Uuid::new_v4().simple()
        );
        let options = SqliteConnectOptions::from_str(if in_memory { &name } else { url })
            .map_err(failed(url))?
            .create_if_missing(true)
            .disable_statement_logging()
            .busy_timeout(Duration::from_secs(5));
        let is_file = ![":memory:", "mode=memory"]
            .iter()
            .any(|word| url.contains(word));
        if is_file {
            let judged = place::judge_file(
                options.get_filename(),
                settings.may_create && !is_read_only(url),
            );
            judged.map_err(|why| place::not_opened(url, why))?;
        }
        let options = if in_memory {
            options
        } else {
            options
                .journal_mode(SqliteJournalMode::Wal)
                // What was acknowledged outlives the machine.
                .synchronous(SqliteSynchronous::Full)
        };
        let pool = |most: u32| {
            SqlitePoolOptions::new()
                .max_connections(most)
                // A memory database lives as long as one connection does.
                .min_connections(1)
                .idle_timeout(None)
                .max_lifetime(None)
                .acquire_timeout(ACQUIRE)
        };
        let writer = pool(1).connect_with(options.clone()).await;
        let writer = writer.map_err(failed(url))?;
        let readers = pool(settings.connections).connect_with(options).await;
        let readers = readers.map_err(failed(url))?;
        Ok(Self::Sqlite {
            writer,
            readers,
            has_failed: AtomicBool::new(false),
        })
    }

    pub fn is_embedded(&self) -> bool {
        matches!(self, Self::Sqlite { .. })
    }

    pub async fn migrate(&self) -> Result<(), DatabaseError> {
        // What another version has done beside it is no reason to stop.
        let done = match self {
            Self::Sqlite { writer, .. } => {
                let mut steps = sqlx::migrate!("src/database/migrations/sqlite");
                steps.set_ignore_missing(true).run(writer).await
            }
            Self::Postgres { primary, .. } => {
                let mut steps = sqlx::migrate!("src/database/migrations/postgres");
                // Why there is none is said here; the steps take it from the pool.
                let connection = acquire(primary).await;
                connection.map_err(|source| DatabaseError::unreachable(&source))?;
                steps.set_ignore_missing(true).run(primary).await
            }
        };
        done.map_err(|source| DatabaseError::Migrate { source })
    }

    pub fn connections(&self) -> (u64, u64) {
        let sum = |sizes: &[(u32, usize)]| {
            let all: u64 = sizes.iter().map(|(size, _)| u64::from(*size)).sum();
            (all, sizes.iter().map(|(_, idle)| *idle as u64).sum())
        };
        match self {
            Self::Sqlite {
                writer, readers, ..
            } => sum(&[
                (writer.size(), writer.num_idle()),
                (readers.size(), readers.num_idle()),
            ]),
            Self::Postgres {
                primary, replicas, ..
            } => {
                let pools = std::iter::once(primary).chain(replicas);
                let sizes: Vec<_> = pools.map(|pool| (pool.size(), pool.num_idle())).collect();
                sum(&sizes)
            }
        }
    }

    /// The rows of a query, each one text.
    pub async fn rows(
        &self,
        statement: &Statement,
        parameters: Vec<Param>,
        limit: Duration,
    ) -> Result<Vec<String>, Error> {
        match self {
            Self::Sqlite { readers, .. } => {
                let mut connection = readers.acquire().await?;
                let until = Instant::now() + limit;
                let mut handle = connection.lock_handle().await?;
                handle.set_progress_handler(STEPS, move || Instant::now() < until);
                drop(handle);
                let query = bind_sqlite(sqlx::query(AssertSqlSafe(statement.sqlite)), parameters);
                let rows = query.fetch_all(&mut *connection).await;
                if rows.is_err() {
                    // One that was interrupted goes on reading what was there then.
                    connection.close_on_drop();
                } else {
                    connection.lock_handle().await?.remove_progress_handler();
                }
                rows?.iter().map(|row| row.try_get(0)).collect()
            }
            Self::Postgres {
                primary,
                replicas,
                next,
            } => {
                // The replica whose turn it is, or the primary where there is none.
                let turn = next.fetch_add(1, Ordering::Relaxed);
                let reader = replicas
                    .get(turn % replicas.len().max(1))
                    .unwrap_or(primary);
                let query =
                    bind_postgres(sqlx::query(AssertSqlSafe(statement.postgres)), parameters);
                let mut connection = acquire(reader).await?;
                let rows = query.fetch_all(&mut *connection).await?;
                rows.iter().map(|row| row.try_get(0)).collect()
            }
        }
    }

    /// Runs the steps in one transaction; how many rows they changed.
    ///
    /// A connection that saw any error is closed: what state it is left in, and whether a
    /// transaction of it is still open in which the next one would be a savepoint, is nobody's to
    /// guess.
    pub async fn write(&self, steps: Vec<Step>) -> Result<u64, Error> {
        match self {
            Self::Sqlite {
                writer, has_failed, ..
            } => {
                let mut connection = writer.acquire().await?;
                let mut written = write_sqlite(&mut connection, steps).await;
                if written.is_ok() && has_failed.load(Ordering::Relaxed) {
                    // A commit is only believed where nothing is open behind it.
                    written = has_committed(&mut connection).await.and(written);
                }
                has_failed.store(written.is_err(), Ordering::Relaxed);
                if written.is_err() {
                    connection.close_on_drop();
                }
                written
            }
            Self::Postgres { primary, .. } => {
                let mut connection = acquire(primary).await?;
                let written = write_postgres(&mut connection, steps).await;
                if let Ok(Written::Committed(changed)) = written {
                    return Ok(changed);
                }
                connection.close_on_drop();
                drop(connection);
                match written? {
                    Written::Committed(changed) => Ok(changed),
                    // The connection was lost with the answer to the commit.
                    Written::Untold {
                        changed,
                        transaction,
                        error,
                    } => match was_committed(primary, transaction).await {
                        Ok(true) => Ok(changed),
                        Ok(false) | Err(_) => Err(error),
                    },
                }
            }
        }
    }

    /// Runs statements that define something, one after another, however long each takes.
    pub async fn define(&self, statements: Vec<String>) -> Result<(), DatabaseError> {
        let failed = |source| DatabaseError::of("schema", source);
        for statement in statements {
            let sql = AssertSqlSafe(statement);
            match self {
                Self::Sqlite { writer, .. } => {
                    sqlx::query(sql).execute(writer).await.map_err(failed)?;
                }
                Self::Postgres { primary, .. } => {
                    let mut connection = primary.acquire().await.map_err(failed)?;
                    let unlimited = sqlx::query("SET statement_timeout = 0");
                    unlimited.execute(&mut *connection).await.map_err(failed)?;
                    // Not given back: the next user wants its limit.
                    let mut connection = connection.detach();
                    let done = sqlx::query(sql).execute(&mut connection).await;
                    done.map_err(failed)?;
                }
            }
        }
        Ok(())
    }
}

/// A connection of a pool. The pool itself would try for as long as it waits where the server
/// refuses all: whoever asks is told at once.
async fn acquire(pool: &PgPool) -> Result<PoolConnection<Postgres>, Error> {
    let options = pool.connect_options();
    let found = tokio::select! {
        biased;
        connection = pool.acquire() => connection,
        error = refusal(&options) => Err(Error::Io(error)),
    };
    let (kind, why) = match found {
        Err(Error::PoolTimedOut) => (TimedOut, "no connection within 2 s".to_owned()),
        Err(Error::Io(error)) => (error.kind(), error.to_string()),
        other => return other,
    };
    let place = match options.get_socket() {
        Some(folder) => folder.display().to_string(),
        None => format!("{}:{}", options.get_host(), options.get_port()),
    };
    Err(Error::Io(std::io::Error::new(
        kind,
        format!("{place}: {why}"),
    )))
}

/// Waits until the server is found to refuse connections.
async fn refusal(options: &PgConnectOptions) -> std::io::Error {
    tokio::time::sleep(LOOK_AFTER).await;
    loop {
        let looked = match options.get_socket() {
            Some(folder) => {
                let socket = folder.join(format!(".s.PGSQL.{}", options.get_port()));
                UnixStream::connect(socket).await.map(drop)
            }
            None => {
                let place = (options.get_host(), options.get_port());
                TcpStream::connect(place).await.map(drop)
            }
        };
        match looked {
            Err(error) if is_final(&error) => return error,
            _ => tokio::time::sleep(LOOK_EVERY).await,
        }
    }
}

/// Whether a URL of SQLite says that nothing is written.
fn is_read_only(url: &str) -> bool {
    ["mode=ro", "immutable=1", "immutable=true"]
        .iter()
        .any(|word| url.contains(word))
}

/// Whether whoever tries again soon would hear the same.
fn is_final(error: &std::io::Error) -> bool {
    // The system says of a name that has no address that the error is of another kind.
    let text = error.to_string();
    let is_name = text.contains("lookup") && !text.contains("Temporary");
    let is_name = is_name && error.raw_os_error().is_none();
    is_name || matches!(error.kind(), ConnectionRefused | NotFound)
}

async fn write_sqlite(connection: &mut SqliteConnection, steps: Vec<Step>) -> Result<u64, Error> {
    let mut transaction = connection.begin().await?;
    let mut changed = 0;
    for Step { sql, parameters } in steps {
        let query = bind_sqlite(sqlx::query(AssertSqlSafe(sql)), parameters);
        changed += query.execute(&mut *transaction).await?.rows_affected();
    }
    transaction.commit().await?;
    Ok(changed)
}

/// Whether a connection is in no transaction: another one can begin in none.
async fn has_committed(connection: &mut SqliteConnection) -> Result<(), Error> {
    for statement in ["BEGIN", "ROLLBACK"] {
        sqlx::query(statement).execute(&mut *connection).await?;
    }
    Ok(())
}

/// How a transaction ended on its own connection.
enum Written {
    Committed(u64),
    /// Nobody has heard whether it was committed.
    Untold {
        changed: u64,
        transaction: i64,
        error: Error,
    },
}

async fn write_postgres(connection: &mut PgConnection, steps: Vec<Step>) -> Result<Written, Error> {
    let mut transaction = connection.begin().await?;
    let id = sqlx::query_scalar("SELECT txid_current()");
    let id: i64 = id.fetch_one(&mut *transaction).await?;
    let mut changed = 0;
    for Step { sql, parameters } in steps {
        let query = bind_postgres(sqlx::query(AssertSqlSafe(sql)), parameters);
        changed += query.execute(&mut *transaction).await?.rows_affected();
    }
    match transaction.commit().await {
        Ok(()) => Ok(Written::Committed(changed)),
        // It was refused.
        Err(error @ Error::Database(_)) => Err(error),
        Err(error) => Ok(Written::Untold {
            changed,
            transaction: id,
            error,
        }),
    }
}

/// Whether a transaction was committed, read back over another connection.
async fn was_committed(pool: &PgPool, transaction: i64) -> Result<bool, Error> {
    let mut connection = acquire(pool).await?;
    loop {
        let status = sqlx::query_scalar("SELECT txid_status($1)").bind(transaction);
        let status: Option<String> = status.fetch_one(&mut *connection).await?;
        match status.as_deref() {
            Some("in progress") => tokio::time::sleep(LOOK_AFTER).await,
            status => return Ok(status == Some("committed")),
        }
    }
}

fn bind_sqlite<'q>(
    query: Query<'q, Sqlite, sqlx::sqlite::SqliteArguments>,
    parameters: Vec<Param>,
) -> Query<'q, Sqlite, sqlx::sqlite::SqliteArguments> {
    parameters
        .into_iter()
        .fold(query, |query, param| match param {
            Param::Text(text) => query.bind(text),
            Param::Maybe(text) => query.bind(text),
            Param::Int(number) => query.bind(number),
            Param::MaybeFloat(number) => query.bind(number),
            Param::MaybeInt(number) => query.bind(number),
            Param::Bool(flag) => query.bind(flag),
        })
}

fn bind_postgres<'q>(
    query: Query<'q, Postgres, sqlx::postgres::PgArguments>,
    parameters: Vec<Param>,
) -> Query<'q, Postgres, sqlx::postgres::PgArguments> {
    parameters
        .into_iter()
        .fold(query, |query, param| match param {
            Param::Text(text) => query.bind(text),
            Param::Maybe(text) => query.bind(text),
            Param::Int(number) => query.bind(number),
            Param::MaybeFloat(number) => query.bind(number),
            Param::MaybeInt(number) => query.bind(number),
            Param::Bool(flag) => query.bind(flag),
        })
}
