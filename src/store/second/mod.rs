//! The second tier: what the fleet shares. [`SecondTier`] is the seam, Redis behind it or a test's
//! fake; [`Second`] is what keeps an ill one from making anything slower: a deadline on every read,
//! a breaker that opens after failures in a row, and writes that nobody waits for.

pub mod redis;
#[cfg(test)]
mod tests;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::runtime::Handle;
use tokio::sync::{Notify, Semaphore, mpsc};
use tokio::time::{sleep, timeout};
use tracing::{debug, info, warn};

pub use redis::Redis;

/// What is asked of a second tier.
pub type Asking<'a, T> = Pin<Box<dyn Future<Output = Result<T, TierError>> + Send + 'a>>;

/// A store of bytes that several instances share. Every value has an end.
pub trait SecondTier: Send + Sync + 'static {
    fn get(&self, key: &[u8]) -> Asking<'_, Option<Bytes>>;
    fn set(&self, key: &[u8], value: Bytes, ttl: Duration) -> Asking<'_, ()>;
    fn delete(&self, key: &[u8]) -> Asking<'_, ()>;
    /// Whether it answers at all.
    fn ping(&self) -> Asking<'_, ()>;
}

/// Why a second tier gave no answer.
#[derive(Clone, Debug, thiserror::Error)]
pub enum TierError {
    #[error("no answer in time")]
    Late,
    /// After failures in a row it is not asked for a while.
    #[error("not asked: it failed too often")]
    Open,
    #[error("{0}")]
    Failed(String),
}

/// How long a second tier is waited for, and when it is given a pause.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// For one read.
    pub read: Duration,
    /// For one write, and for a probe.
    pub write: Duration,
    /// Failures in a row that open the breaker.
    pub failures: u32,
    /// How long it then is not asked.
    pub open: Duration,
    /// Probes in a row that close it again.
    pub successes: u32,
    /// Writes that may wait; the next one is dropped.
    pub queue: usize,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            read: Duration::from_millis(20),
            write: Duration::from_secs(1),
            failures: 5,
            open: Duration::from_secs(10),
            successes: 2,
            queue: 1024,
        }
    }
}

/// Writes that are under way at one time.
const WRITES_AT_ONCE: usize = 32;

struct Write {
    key: Box<[u8]>,
    value: Bytes,
    ttl: Duration,
}

/// A second tier that can be ill.
pub struct Second {
    tier: Arc<dyn SecondTier>,
    patience: Patience,
    failures: AtomicU32,
    is_open: AtomicBool,
    opened: Notify,
    writes: mpsc::Sender<Write>,
    dropped: AtomicU64,
}

impl Second {
    /// Starts what goes on behind it on `background`: writes, and probes while it is ill.
    pub fn start(tier: Arc<dyn SecondTier>, patience: Patience, background: &Handle) -> Arc<Self> {
        let (writes, waiting) = mpsc::channel(patience.queue);
        let second = Arc::new(Self {
            tier,
            patience,
            failures: AtomicU32::new(0),
            is_open: AtomicBool::new(false),
            opened: Notify::new(),
            writes,
            dropped: AtomicU64::new(0),
        });
        background.spawn(Arc::clone(&second).probe());
        background.spawn(Arc::clone(&second).write(waiting));
        second
    }

    /// Reads within the deadline, or not at all.
    pub async fn get(&self, key: &[u8]) -> Result<Option<Bytes>, TierError> {
        if self.is_open() {
            return Err(TierError::Open);
        }
        let asked = timeout(self.patience.read, self.tier.get(key)).await;
        self.judge(asked.unwrap_or(Err(TierError::Late)))
    }

    /// Writes behind the caller's back; drops the value where too many wait already.
    pub fn put(&self, key: &[u8], value: Bytes, ttl: Duration) {
        let key = key.into();
        let is_dropped = self.is_open() || self.writes.try_send(Write { key, value, ttl }).is_err();
        if is_dropped {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Removes a value that cannot be read, behind the caller's back.
    pub fn discard(self: &Arc<Self>, key: &[u8], background: &Handle) {
        if self.is_open() {
            return;
        }
        let (second, key) = (Arc::clone(self), key.to_vec());
        background.spawn(async move {
            let asked = timeout(second.patience.write, second.tier.delete(&key)).await;
            let _ = second.judge(asked.unwrap_or(Err(TierError::Late)));
        });
    }

    /// Whether it is given a pause.
    pub fn is_open(&self) -> bool {
        self.is_open.load(Ordering::Relaxed)
    }

    /// Values that were not written.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    fn judge<T>(&self, result: Result<T, TierError>) -> Result<T, TierError> {
        match &result {
            Ok(_) => self.failures.store(0, Ordering::Relaxed),
            Err(error) => {
                debug!(%error, "the second tier failed");
                let failures = self.failures.fetch_add(1, Ordering::Relaxed) + 1;
                let opens = failures >= self.patience.failures;
                if opens && !self.is_open.swap(true, Ordering::Relaxed) {
                    warn!(%error, pause = ?self.patience.open, "the second tier failed too often: it is not asked for a while");
                    self.opened.notify_one();
                }
            }
        }
        result
    }

    /// Asks an ill tier whether it is well again: no client's request does.
    async fn probe(self: Arc<Self>) {
        loop {
            self.opened.notified().await;
            while self.is_open() {
                sleep(self.patience.open).await;
                if self.is_well().await {
                    self.failures.store(0, Ordering::Relaxed);
                    self.is_open.store(false, Ordering::Relaxed);
                    info!("the second tier answers again");
                }
            }
        }
    }

    async fn is_well(&self) -> bool {
        for _ in 0..self.patience.successes {
            let asked = timeout(self.patience.write, self.tier.ping()).await;
            if !matches!(asked, Ok(Ok(()))) {
                return false;
            }
        }
        true
    }

    async fn write(self: Arc<Self>, mut waiting: mpsc::Receiver<Write>) {
        let under_way = Arc::new(Semaphore::new(WRITES_AT_ONCE));
        while let Some(Write { key, value, ttl }) = waiting.recv().await {
            if self.is_open() {
                self.dropped.fetch_add(1, Ordering::Relaxed);
                continue;
            }
            let Ok(permit) = Arc::clone(&under_way).acquire_owned().await else {
                return;
            };
            let second = Arc::clone(&self);
            tokio::spawn(async move {
                let writing = second.tier.set(&key, value, ttl);
                let asked = timeout(second.patience.write, writing).await;
                if second.judge(asked.unwrap_or(Err(TierError::Late))).is_err() {
                    second.dropped.fetch_add(1, Ordering::Relaxed);
                }
                drop(permit);
            });
        }
    }
}
