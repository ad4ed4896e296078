//! Where the database is, and how it is used.

use std::time::Duration;

/// Where it is, and how it is used.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `sqlite::memory:`, `sqlite:FILE` or `postgres://…`.
    pub url: String,
    /// Postgres that may answer queries, and is not written to.
    pub replicas: Vec<String>,
    /// Of each pool.
    pub connections: u32,
    /// For one statement; longer ones are cancelled.
    pub query_timeout: Duration,
    /// An embedded one is made where there is none, and what is missing in it.
    pub may_create: bool,
}

impl Settings {
    /// The defaults for a database at this place.
    pub fn at(url: &str) -> Self {
        Self {
            url: url.to_owned(),
            replicas: Vec::new(),
            connections: 10,
            query_timeout: Duration::from_secs(5),
            may_create: true,
        }
    }
}
