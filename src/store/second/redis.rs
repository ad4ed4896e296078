//! Redis or Valkey: alone, behind Sentinels, or as a cluster, by the scheme of its URL.

use std::time::Duration;

use bytes::Bytes;
use fred::clients::Pool;
use fred::interfaces::{ClientLike, KeysInterface};
use fred::types::config::{
    Config, ConnectionConfig, PerformanceConfig, ReconnectPolicy, UnresponsiveConfig,
};
use fred::types::{Builder, Expiration};

use super::{Asking, SecondTier, TierError};

/// Where it is, and how many connections it gets.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `redis://`, `rediss://`, `redis-cluster://`, `redis-sentinel://`, with user, password and
    /// database where there are some.
    pub url: String,
    /// What every key begins with.
    pub prefix: String,
    pub connections: usize,
}

/// What a URL can begin with; the client library takes any other for the first.
const SCHEMES: [&str; 6] = [
    "redis",
    "rediss",
    "redis-cluster",
    "rediss-cluster",
    "redis-sentinel",
    "rediss-sentinel",
];

/// How long a connection may take to be made, and a command to be answered at the very most: what
/// is asked has shorter deadlines of its own.
const PATIENCE: Duration = Duration::from_secs(1);

/// Between two attempts to connect again.
const RECONNECT_MILLIS: u32 = 200;

/// Commands that may wait for a connection.
const MOST_WAITING: usize = 10_000;

/// A pool of pipelined connections.
pub struct Redis {
    pool: Pool,
    prefix: String,
}

impl Redis {
    /// Begins to connect, on the runtime that this is called from, and goes on trying: a server
    /// that is not there yet is no error. The URL can be one.
    pub fn connect(settings: &Settings) -> Result<Self, TierError> {
        let scheme = settings.url.split("://").next().unwrap_or_default();
        if !SCHEMES.contains(&scheme) {
            let message = format!("the URL of Redis begins with one of {SCHEMES:?} and \"://\"");
            return Err(TierError::Failed(message));
        }
        let config = Config::from_url(&settings.url).map_err(|error| failed(&error))?;
        let mut builder = Builder::from_config(config);
        builder
            .with_connection_config(|connection: &mut ConnectionConfig| {
                connection.connection_timeout = PATIENCE;
                connection.internal_command_timeout = PATIENCE;
                // A command that was sent may have been done: it is not sent again.
                connection.max_command_attempts = 1;
                connection.max_command_buffer_len = MOST_WAITING;
                connection.reconnect_on_auth_error = true;
                connection.tcp.nodelay = Some(true);
                // A server that is frozen keeps its connections open.
                connection.unresponsive = UnresponsiveConfig {
                    max_timeout: Some(PATIENCE),
                    interval: PATIENCE / 4,
                };
            })
            .with_performance_config(|performance: &mut PerformanceConfig| {
                performance.default_command_timeout = PATIENCE;
            })
            .with_config(|config: &mut Config| config.fail_fast = false)
            .set_policy(ReconnectPolicy::new_constant(0, RECONNECT_MILLIS));
        let pool = builder.build_pool(settings.connections);
        let pool = pool.map_err(|error| failed(&error))?;
        drop(pool.connect());
        Ok(Self {
            pool,
            prefix: settings.prefix.clone(),
        })
    }

    fn key(&self, key: &[u8]) -> Vec<u8> {
        [self.prefix.as_bytes(), key].concat()
    }
}

fn failed(error: &fred::error::Error) -> TierError {
    match error.kind() {
        fred::error::ErrorKind::Timeout => TierError::Late,
        _ => TierError::Failed(error.to_string()),
    }
}

impl SecondTier for Redis {
    fn get(&self, key: &[u8]) -> Asking<'_, Option<Bytes>> {
        let key = self.key(key);
        Box::pin(async move {
            let value: Result<Option<Bytes>, _> = self.pool.get(key.as_slice()).await;
            value.map_err(|error| failed(&error))
        })
    }

    fn set(&self, key: &[u8], value: Bytes, ttl: Duration) -> Asking<'_, ()> {
        let key = self.key(key);
        // Redis refuses an end that is now.
        let millis = i64::try_from(ttl.as_millis()).unwrap_or(i64::MAX).max(1);
        Box::pin(async move {
            let end = Some(Expiration::PX(millis));
            let done: Result<(), _> = self.pool.set(key.as_slice(), value, end, None, false).await;
            done.map_err(|error| failed(&error))
        })
    }

    fn delete(&self, key: &[u8]) -> Asking<'_, ()> {
        let key = self.key(key);
        Box::pin(async move {
            let done: Result<(), _> = self.pool.del(key.as_slice()).await;
            done.map_err(|error| failed(&error))
        })
    }

    fn ping(&self) -> Asking<'_, ()> {
        Box::pin(async move {
            let done: Result<(), _> = self.pool.ping(None).await;
            done.map_err(|error| failed(&error))
        })
    }
}
