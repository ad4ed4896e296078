//! What kept the database from answering.

/// Told apart where callers act differently: out of reach, too slow, or broken.
#[derive(Debug, thiserror::Error)]
pub enum DatabaseError {
    #[error("the database {url} could not be opened")]
    Open { url: String, source: sqlx::Error },
    #[error("the database {url} could not be opened: {why}")]
    NotOpened { url: String, why: String },
    #[error("the tables could not be made")]
    Migrate { source: sqlx::migrate::MigrateError },
    #[error("the database is out of reach: {why}")]
    Unreachable { why: String },
    #[error("a query on {table} took too long and was cancelled (origin.query_timeout)")]
    TimedOut { table: &'static str },
    #[error("a query on {table} failed")]
    Query {
        table: &'static str,
        source: sqlx::Error,
    },
    #[error("a row of {table} is not what the contract says")]
    Row {
        table: &'static str,
        source: serde_json::Error,
    },
    #[error("the database's runtime has ended")]
    Stopped,
}

/// Postgres: a statement was cancelled (`statement_timeout`).
const QUERY_CANCELED: &str = "57014";

/// SQLite: a progress handler ended it.
const SQLITE_INTERRUPT: &str = "9";

impl DatabaseError {
    /// What a failed statement on `table` means.
    pub fn of(table: &'static str, source: sqlx::Error) -> Self {
        use sqlx::Error::{Database, Io, PoolClosed, PoolTimedOut, Tls, WorkerCrashed};
        match source {
            Database(ref told)
                if told
                    .code()
                    .is_some_and(|code| code == QUERY_CANCELED || code == SQLITE_INTERRUPT) =>
            {
                Self::TimedOut { table }
            }
            // Class 08: connections; 28: it does not let us in; 57P: it is being stopped or
            // started; 53: it has no room.
            Database(ref told)
                if told.code().is_some_and(|code| {
                    ["08", "28", "57P", "53"]
                        .iter()
                        .any(|class| code.starts_with(class))
                }) =>
            {
                Self::unreachable(&source)
            }
            Io(_) | Tls(_) | PoolTimedOut | PoolClosed | WorkerCrashed => {
                Self::unreachable(&source)
            }
            source => Self::Query { table, source },
        }
    }

    /// In the words of the system, or of the server.
    pub fn unreachable(source: &sqlx::Error) -> Self {
        let why = match source {
            sqlx::Error::Io(error) => error.to_string(),
            other => other.to_string(),
        };
        Self::Unreachable { why }
    }

    /// The word for it in metrics.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Open { .. }
            | Self::NotOpened { .. }
            | Self::Unreachable { .. }
            | Self::Stopped => "unreachable",
            Self::TimedOut { .. } => "timeout",
            Self::Migrate { .. } | Self::Query { .. } | Self::Row { .. } => "query",
        }
    }
}
