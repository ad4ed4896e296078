//! Where Redis is, and how its connections are made.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use fred::types::Builder;
use fred::types::config::{
    Config, ConnectionConfig, PerformanceConfig, ReconnectPolicy, TlsConfig, TlsConnector,
    UnresponsiveConfig,
};
use rustls::ClientConfig;

use crate::config::REDIS_SCHEMES;

use super::super::TierError;
use super::listen::RECONNECT_MILLIS;
use super::password::PasswordFile;
use super::values::failed;

/// Where it is, and how many connections it gets.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `redis://`, `rediss://`, `redis-cluster://`, `redis-sentinel://`, with user, password and
    /// database where there are some.
    pub url: String,
    /// What every key begins with.
    pub prefix: String,
    pub connections: usize,
    /// Whose first line is the password, in the place of the URL's.
    pub password_file: Option<PathBuf>,
    /// Bytes of the largest response that is read.
    pub largest: u64,
    /// For `rediss…://`.
    pub tls: Option<Arc<ClientConfig>>,
}

/// How long a connection may take to be made, and a command to be answered at the very most: what
/// is asked has shorter deadlines of its own.
const PATIENCE: Duration = Duration::from_secs(1);

/// Commands that may wait for a connection.
const MOST_WAITING: usize = 10_000;

/// Messages that may come in one burst before somebody hears them. Each connection has nine queues
/// of so many places, from its beginning: only the one that listens needs more than a few.
const MOST_UNHEARD: usize = 4096;

/// Makes connections of these settings. The URL can be an error.
pub(super) fn builder(settings: &Settings) -> Result<Builder, TierError> {
    let scheme = settings.url.split("://").next().unwrap_or_default();
    if !REDIS_SCHEMES.contains(&scheme) {
        let message = format!("the URL of Redis begins with one of {REDIS_SCHEMES:?} and \"://\"");
        return Err(TierError::Failed(message));
    }
    // The library would make TLS settings of its own from the scheme.
    let plain = match settings.url.strip_prefix("rediss") {
        Some(rest) => format!("redis{rest}"),
        None => settings.url.clone(),
    };
    let mut config = Config::from_url(&plain).map_err(|error| failed(&error))?;
    if scheme.starts_with("rediss") {
        let tls = settings.tls.clone().ok_or_else(|| {
            TierError::Failed("a rediss:// URL, and no certificates to check it by".to_owned())
        })?;
        let connector = tokio_rustls::TlsConnector::from(tls);
        config.tls = Some(TlsConfig::from(TlsConnector::Rustls(connector)));
    }
    config.fail_fast = false;
    if let Some(path) = settings.password_file.clone() {
        let user = config.username.clone();
        config.credential_provider = Some(Arc::new(PasswordFile { user, path }));
    }
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
        .set_policy(ReconnectPolicy::new_constant(0, RECONNECT_MILLIS));
    Ok(builder)
}

/// What the connection that listens has more than the others.
pub(super) fn for_listening(builder: &mut Builder) {
    builder.with_performance_config(|performance: &mut PerformanceConfig| {
        performance.broadcast_channel_capacity = MOST_UNHEARD;
    });
}
