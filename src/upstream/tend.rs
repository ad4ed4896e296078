//! What is done about an upstream beside the requests: its name is looked up again, addresses that
//! were passed over are tried, and all are asked whether they are well where that is configured.

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use http::header::{HOST, USER_AGENT};
use http::{HeaderValue, Request};
use tokio::time::timeout;
use tracing::debug;

use crate::config::{self, Health};

use super::address::Address;
use super::exchange::as_http_2;
use super::pool::Upstream;
use super::sending::empty;

/// Between two looks at what is to be done, and two tries of an address that is passed over.
const EVERY: Duration = Duration::from_secs(1);

impl Upstream {
    /// Tends its addresses until the pool is gone.
    pub async fn tend(pool: Weak<Self>) {
        // A name server that is silent keeps nobody from being asked.
        tokio::join!(Self::follow_name(pool.clone()), Self::look_after_all(pool));
    }

    async fn follow_name(pool: Weak<Self>) {
        loop {
            let Some(every) = pool.upgrade().map(|pool| pool.config().resolve_every) else {
                return;
            };
            tokio::time::sleep(every).await;
            let Some(addresses) = pool
                .upgrade()
                .map(|pool| Arc::clone(&pool.connector.addresses))
            else {
                return;
            };
            if let Err(error) = addresses.look_up(every / 2).await {
                debug!(%error, "the upstream's name does not resolve");
            }
        }
    }

    async fn look_after_all(pool: Weak<Self>) {
        let mut checked: Option<Instant> = None;
        loop {
            let Some(this) = pool.upgrade() else { return };
            let config = this.config();
            let is_due =
                |health: &&Health| checked.is_none_or(|at| at.elapsed() >= health.interval);
            let health = config.health.as_ref().filter(is_due);
            if health.is_some() {
                checked = Some(Instant::now());
            }
            let asked = this
                .connector
                .addresses
                .all()
                .into_iter()
                .filter(|address| {
                    health.is_some() || (config.health.is_none() && address.is_to_be_tried())
                });
            let asking: Vec<_> = asked
                .map(|address| this.look_after(&config, address))
                .collect();
            futures_util::future::join_all(asking).await;
            let pause = health_pause(&config);
            drop(this);
            tokio::time::sleep(pause).await;
        }
    }

    /// Asks one address whether it is well, and uses it or passes it over.
    async fn look_after(&self, config: &config::Upstream, address: Arc<Address>) {
        let addresses = &self.connector.addresses;
        let Some(health) = &config.health else {
            let connected = timeout(config.connect_timeout, address.connect()).await;
            if matches!(connected, Ok(Ok(_))) {
                addresses.take_back(&address);
            }
            return;
        };
        match self.is_well(config, health, &address).await {
            Ok(()) => addresses.take_back(&address),
            Err(why) => {
                debug!(
                    address = address.shown(),
                    why, "an address of the upstream is ill"
                );
                addresses.eject(&address, &why);
            }
        }
    }

    async fn is_well(
        &self,
        config: &config::Upstream,
        health: &Health,
        address: &Arc<Address>,
    ) -> Result<(), String> {
        let asking = async {
            let connected = self.connector.connect_to(address).await;
            let mut connected = connected.map_err(|failure| failure.message)?;
            let mut request = Request::new(empty());
            *request.uri_mut() = health.path.clone();
            let headers = request.headers_mut();
            headers.insert(USER_AGENT, HeaderValue::from_static("iris-sidecar"));
            if let Ok(host) = HeaderValue::try_from(config.authority()) {
                headers.insert(HOST, host);
            }
            let request = match config.protocol {
                config::Protocol::Http1 => request,
                config::Protocol::Http2 => as_http_2(request, config),
            };
            let answered = connected.sender.send(request).await;
            let answered = answered.map_err(|error| error.into_error().to_string())?;
            match answered.status() {
                status if status.is_success() => Ok(()),
                status => Err(format!("{} answers {status}", health.path)),
            }
        };
        // One that is silent keeps the others from being asked for no longer than this.
        let limit = config.response_timeout.min(health.interval.max(EVERY));
        timeout(limit, asking)
            .await
            .unwrap_or_else(|_| Err("it does not answer its health check in time".to_owned()))
    }
}

/// How long it takes at most until something is due.
fn health_pause(config: &config::Upstream) -> Duration {
    let interval = config
        .health
        .as_ref()
        .map_or(EVERY, |health| health.interval);
    interval.clamp(Duration::from_millis(50), EVERY / 4)
}
