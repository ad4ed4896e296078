//! When an ill second tier is left alone, and how it is found well again: by probes, never by a
//! client's request.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use tokio::sync::Notify;
use tokio::time::{sleep, timeout};
use tracing::{debug, info, warn};

use crate::config::units::show_duration;

use super::{Patience, SecondTier, TierError};

#[derive(Debug)]
pub struct Breaker {
    patience: Patience,
    failures: AtomicU32,
    is_open: AtomicBool,
    opened: Notify,
}

impl Breaker {
    pub fn new(patience: Patience) -> Self {
        Self {
            patience,
            failures: AtomicU32::new(0),
            is_open: AtomicBool::new(false),
            opened: Notify::new(),
        }
    }

    pub fn is_open(&self) -> bool {
        self.is_open.load(Ordering::Relaxed)
    }

    /// Counts how a call ended; whether this one opened the breaker.
    pub fn judge<T>(&self, result: &Result<T, TierError>) -> bool {
        let error = match result {
            Ok(_) => {
                self.failures.store(0, Ordering::Relaxed);
                return false;
            }
            Err(error) => error,
        };
        debug!(%error, "Redis failed");
        let failures = self.failures.fetch_add(1, Ordering::Relaxed) + 1;
        let opens =
            failures >= self.patience.failures && !self.is_open.swap(true, Ordering::Relaxed);
        if opens {
            warn!(%error, pause = %show_duration(self.patience.open), "Redis failed too often: it \
                is not asked for a while, memory alone answers");
            self.opened.notify_one();
        }
        opens
    }

    /// Asks an ill tier whether it is well again, for ever.
    pub async fn probe(self: Arc<Self>, tier: Arc<dyn SecondTier>) {
        loop {
            self.opened.notified().await;
            while self.is_open() {
                sleep(self.patience.open).await;
                if self.is_well(&*tier).await {
                    self.failures.store(0, Ordering::Relaxed);
                    self.is_open.store(false, Ordering::Relaxed);
                    info!("Redis answers again");
                }
            }
        }
    }

    /// As fast as a look-up must be answered: a slow tier is as ill as a silent one.
    async fn is_well(&self, tier: &dyn SecondTier) -> bool {
        for _ in 0..self.patience.successes {
            let asked = timeout(self.patience.read, tier.ping()).await;
            if !matches!(asked, Ok(Ok(()))) {
                return false;
            }
        }
        true
    }
}
