//! The pool: how many connections there are, which are idle, and who waits for one.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use http::Request;
use hyper::client::conn::http1::{self, SendRequest};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::AbortHandle;
use tokio::time::timeout;
use tracing::debug;

use crate::config;
use crate::error::{Failure, FailureKind};
use crate::metrics::Metrics;

use super::breaker::Breaker;
use super::connect::Connector;
use super::stream::WriteFailed;
use super::{Answer, Origin, OriginBody};

/// The upstream of this process. All workers share it; a connection's own work is done by the
/// runtime of the worker that opened it.
pub struct Upstream {
    pub(super) config: config::Upstream,
    pub(super) breaker: Breaker,
    pub(super) metrics: Arc<Metrics>,
    connector: Connector,
    /// One permit for each connection in use.
    permits: Arc<Semaphore>,
    waiting: AtomicUsize,
    /// Connections that exist, in use or idle.
    open: Arc<AtomicUsize>,
    idle: Mutex<Vec<Idle>>,
    pub(super) this: Weak<Self>,
}

struct Idle {
    sender: SendRequest<OriginBody>,
    task: Task,
    since: Instant,
    opened_by: std::thread::ThreadId,
}

/// The task that does the work of a connection.
struct Task {
    handle: AbortHandle,
    write_failed: WriteFailed,
}

/// In the extensions of a response that switches protocols: the tunnel takes one of the connections
/// to the upstream until this is dropped.
#[derive(Clone)]
pub struct TunnelSeat(
    #[expect(dead_code, reason = "held, and never looked at")] Arc<(OwnedSemaphorePermit, Counted)>,
);

/// A connection in use.
pub(super) struct Lease {
    pub sender: SendRequest<OriginBody>,
    task: Task,
    /// The upstream wants nothing more over it.
    pub is_over: bool,
    /// It has carried a request before, so it may be dead without anybody having noticed.
    pub is_reused: bool,
    /// Its user was authenticated by it, or may be: nobody else gets it.
    pub is_bound: bool,
    permit: OwnedSemaphorePermit,
    opened_by: std::thread::ThreadId,
    pool: Weak<Upstream>,
}

impl Upstream {
    pub fn new(config: &config::Upstream, metrics: Arc<Metrics>) -> Result<Arc<Self>, String> {
        let connector = Connector::new(config)?;
        Ok(Arc::new_cyclic(|this| Self {
            config: config.clone(),
            breaker: Breaker::new(config.breaker_failures, config.breaker_open),
            metrics,
            connector,
            permits: Arc::new(Semaphore::new(config.max_connections)),
            waiting: AtomicUsize::new(0),
            open: Arc::default(),
            idle: Mutex::default(),
            this: this.clone(),
        }))
    }

    /// A kept connection, or a new one; `fresh` asks for a new one.
    pub(super) async fn lease(&self, fresh: bool) -> Result<Lease, Failure> {
        let permit = self.permit().await?;
        if !fresh {
            while let Some(idle) = self.take_idle() {
                if idle.sender.is_ready() {
                    return Ok(Lease {
                        sender: idle.sender,
                        task: idle.task,
                        is_over: false,
                        is_reused: true,
                        is_bound: false,
                        permit,
                        opened_by: idle.opened_by,
                        pool: self.this.clone(),
                    });
                }
            }
        }
        self.make_room();
        let (sender, task) = self.open().await?;
        Ok(Lease {
            sender,
            task,
            is_over: false,
            is_reused: false,
            is_bound: false,
            permit,
            opened_by: std::thread::current().id(),
            pool: self.this.clone(),
        })
    }

    /// Leave to use one connection more, after a bounded wait in a bounded queue.
    async fn permit(&self) -> Result<OwnedSemaphorePermit, Failure> {
        if let Ok(permit) = Arc::clone(&self.permits).try_acquire_owned() {
            return Ok(permit);
        }
        let _place = Place::take(&self.waiting, self.config.queue).ok_or_else(|| {
            let message = format!(
                "{} requests wait for the upstream already",
                self.config.queue
            );
            Failure::new(FailureKind::QueueFull, message).retry_after(Duration::from_secs(1))
        })?;
        match timeout(
            self.config.queue_timeout,
            Arc::clone(&self.permits).acquire_owned(),
        )
        .await
        {
            Ok(Ok(permit)) => Ok(permit),
            _ => {
                let message = format!(
                    "no free connection to the upstream within {:?}",
                    self.config.queue_timeout
                );
                Err(Failure::new(FailureKind::QueueFull, message)
                    .retry_after(Duration::from_secs(1)))
            }
        }
    }

    /// An idle connection: the youngest of this thread, or another's when no more may be opened.
    fn take_idle(&self) -> Option<Idle> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let keep_since = Instant::now().checked_sub(self.config.idle_timeout);
        idle.retain(|idle| {
            !idle.sender.is_closed() && keep_since.is_none_or(|limit| idle.since > limit)
        });
        let here = std::thread::current().id();
        let own = idle.iter().rposition(|idle| idle.opened_by == here);
        let full = self.open.load(Ordering::Relaxed) >= self.config.max_connections;
        let at = own.or_else(|| idle.len().checked_sub(1).filter(|_| full))?;
        Some(idle.swap_remove(at))
    }

    /// Closes an idle connection where the limit would otherwise be passed.
    fn make_room(&self) {
        if self.open.load(Ordering::Relaxed) >= self.config.max_connections {
            let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
            if !idle.is_empty() {
                idle.remove(0);
            }
        }
    }

    async fn open(&self) -> Result<(SendRequest<OriginBody>, Task), Failure> {
        let counted = Counted::new(&self.open);
        let write_failed = WriteFailed::default();
        let stream = self.connector.connect(&write_failed).await?;
        let handshake = http1::Builder::new()
            .max_buf_size(self.config.header_bytes)
            .max_headers(512)
            .handshake(stream)
            .await;
        let (sender, connection) = handshake.map_err(|error| {
            Failure::new(
                FailureKind::ConnectionClosed,
                format!("the upstream hung up: {error}"),
            )
        })?;
        let task = tokio::spawn(async move {
            let _counted = counted;
            if let Err(error) = connection.with_upgrades().await {
                debug!(%error, "a connection to the upstream ended");
            }
        });
        let handle = task.abort_handle();
        let task = Task {
            handle,
            write_failed,
        };
        Ok((sender, task))
    }

    /// Closes connections that nobody used for `idle_timeout`. Runs until the pool is gone.
    pub async fn reap_idle(pool: Weak<Self>) {
        loop {
            let Some(every) = pool.upgrade().map(|pool| pool.config.idle_timeout / 2) else {
                return;
            };
            tokio::time::sleep(every.max(Duration::from_millis(100))).await;
            let Some(pool) = pool.upgrade() else { return };
            let limit = Instant::now().checked_sub(pool.config.idle_timeout);
            let mut idle = pool.idle.lock().unwrap_or_else(PoisonError::into_inner);
            idle.retain(|idle| {
                !idle.sender.is_closed() && limit.is_none_or(|limit| idle.since > limit)
            });
        }
    }
}

/// Ends a connection, unless its request is answered first: it could carry no other, and one to an
/// upstream that does not read would last for as long as that.
pub(super) struct Unanswered(Option<AbortHandle>);

impl Unanswered {
    pub fn was_answered(mut self) {
        self.0 = None;
    }
}

impl Drop for Unanswered {
    fn drop(&mut self) {
        if let Some(task) = self.0.take() {
            task.abort();
        }
    }
}

impl Lease {
    /// A request is sent over it.
    pub fn sends(&self) -> Unanswered {
        Unanswered(Some(self.task.handle.clone()))
    }

    /// Gives the connection back for the next request, as soon as it can take one: an upstream may
    /// answer before it has read the whole of a request that is still being sent.
    pub fn give_back(mut self) {
        if self.is_bound {
            return;
        }
        if self.is_over || self.task.write_failed.is_set() {
            // The rest of a request may still wait to be written, in vain.
            return self.task.handle.abort();
        }
        if self.sender.is_ready() {
            self.shelve();
        } else if !self.sender.is_closed() {
            let Some(limit) = self.pool.upgrade().map(|pool| pool.config.read_timeout) else {
                return;
            };
            tokio::spawn(async move {
                // The rest of a request that is already answered.
                match timeout(limit, self.sender.ready()).await {
                    Ok(Ok(())) => self.shelve(),
                    Ok(Err(_)) => {}
                    Err(_) => self.task.handle.abort(),
                }
            });
        }
    }

    /// Its connection is no longer the pool's, and counts for it as long as the seat lives.
    pub fn into_seat(self) -> Option<TunnelSeat> {
        let pool = self.pool.upgrade()?;
        let seat = (self.permit, Counted::new(&pool.open));
        Some(TunnelSeat(Arc::new(seat)))
    }

    fn shelve(self) {
        let Some(pool) = self.pool.upgrade() else {
            return;
        };
        let idle = Idle {
            sender: self.sender,
            task: self.task,
            since: Instant::now(),
            opened_by: self.opened_by,
        };
        pool.idle
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(idle);
        // After the connection is in its place: whoever gets the permit must find it.
        drop(self.permit);
    }
}

impl Origin for Upstream {
    fn answer(&self, request: Request<OriginBody>) -> Answer<'_> {
        Box::pin(self.exchange(request))
    }

    fn readings(&self) -> (u64, bool) {
        (
            self.open.load(Ordering::Relaxed) as u64,
            self.breaker.is_open(),
        )
    }
}

/// A place in a bounded queue.
struct Place<'a>(&'a AtomicUsize);

impl<'a> Place<'a> {
    fn take(waiting: &'a AtomicUsize, limit: usize) -> Option<Self> {
        let place = Self(waiting);
        (waiting.fetch_add(1, Ordering::Relaxed) < limit).then_some(place)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// One more, until it is dropped.
struct Counted(Arc<AtomicUsize>);

impl Counted {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(count))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
