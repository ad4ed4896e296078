//! The pool: how many connections there are, which are idle, and who waits for one.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::thread::ThreadId;
use std::time::{Duration, Instant};

use http::Request;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::AbortHandle;
use tokio::time::timeout;

use crate::config::{self, Config, DEFAULT_UPSTREAM, Protocol};
use crate::error::{Failure, FailureKind};
use crate::metrics::{Metrics, UpstreamReading};

use super::address::{Address, Open};
use super::breaker::Breaker;
use super::budget::Budget;
use super::connect::Connector;
use super::sender::{Sender, Task};
use super::socket::Socket;
use super::{Answer, Origin, OriginBody};

/// The upstream of this process. All workers share it; a connection's own work is done by the
/// runtime of the worker that opened it.
pub struct Upstream {
    /// Where there are several.
    pub(super) name: Option<Arc<str>>,
    pub(super) breaker: Breaker,
    pub(super) metrics: Arc<Metrics>,
    pub(super) connector: Connector,
    /// One permit for each connection in use; with HTTP/2, for each exchange.
    permits: Arc<Semaphore>,
    waiting: AtomicUsize,
    /// Connections that exist, in use or idle.
    open: Arc<AtomicUsize>,
    /// Those that carry a request at a time, and wait for one.
    idle: Mutex<Vec<Kept>>,
    /// Those that carry many at a time.
    shared: Mutex<Vec<Kept>>,
    /// Held by who opens such a one.
    opening: tokio::sync::Mutex<()>,
    pub(super) retries: Budget,
    pub(super) this: Weak<Self>,
}

/// Requests that one connection of HTTP/2 carries before another is opened.
const STREAMS: usize = 100;

/// A connection that is kept.
struct Kept {
    sender: Sender,
    line: Line,
    /// Since when nobody uses it.
    since: Instant,
}

/// What stays with a connection for all of its life.
#[derive(Clone)]
struct Line {
    task: Task,
    socket: Socket,
    open: Arc<(Open, Counted)>,
    opened: Instant,
    opened_by: ThreadId,
    /// Requests that it carries now.
    streams: Arc<AtomicUsize>,
}

impl Line {
    fn address(&self) -> &Arc<Address> {
        self.open.0.address()
    }

    /// Whether it may carry another request: it is not too old, and its address is still one.
    fn is_good(&self, config: &config::Upstream) -> bool {
        let address = self.address();
        self.opened.elapsed() < config.max_age && !address.is_gone() && !address.is_ejected()
    }
}

/// In the extensions of a response that switches protocols: the tunnel takes one of the connections
/// to the upstream until this is dropped.
#[derive(Clone)]
pub struct TunnelSeat(
    #[expect(dead_code, reason = "held, and never looked at")] Arc<(OwnedSemaphorePermit, Line)>,
);

/// A connection in use.
pub(super) struct Lease {
    pub sender: Sender,
    line: Line,
    /// The upstream wants nothing more over it.
    pub is_over: bool,
    /// It has carried a request before, so it may be dead without anybody having noticed.
    pub is_reused: bool,
    /// Its user was authenticated by it, or may be: nobody else gets it.
    pub is_bound: bool,
    /// Of a connection that carries many.
    _stream: Option<Stream>,
    permit: OwnedSemaphorePermit,
    pool: Weak<Upstream>,
}

/// A request of many on one connection.
struct Stream(Arc<AtomicUsize>);

impl Drop for Stream {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Upstream {
    pub fn new(config: &config::Upstream, metrics: Arc<Metrics>) -> Result<Arc<Self>, String> {
        Self::named(config, metrics, None)
    }

    /// One of several, which metrics tell apart by this name.
    pub fn named(
        config: &config::Upstream,
        metrics: Arc<Metrics>,
        name: Option<Arc<str>>,
    ) -> Result<Arc<Self>, String> {
        let connector = Connector::new(config)?;
        Ok(Arc::new_cyclic(|this| Self {
            name,
            breaker: Breaker::new(config.breaker_failures, config.breaker_open),
            metrics,
            connector,
            permits: Arc::new(Semaphore::new(config.max_connections)),
            waiting: AtomicUsize::new(0),
            open: Arc::default(),
            idle: Mutex::default(),
            shared: Mutex::default(),
            opening: tokio::sync::Mutex::default(),
            retries: Budget::default(),
            this: this.clone(),
        }))
    }

    /// As it is configured now.
    pub(super) fn config(&self) -> Arc<config::Upstream> {
        self.connector.config()
    }

    /// What a configuration says of this one.
    fn own<'c>(&self, config: &'c Config) -> Option<&'c config::Upstream> {
        let name = self
            .name
            .as_deref()
            .filter(|name| *name != DEFAULT_UPSTREAM);
        match name {
            None => config.upstream.as_ref(),
            Some(name) => {
                let mut named = config.upstreams.iter();
                let found = named.find(|(known, _)| **known == *name);
                found.map(|(_, upstream)| upstream)
            }
        }
    }

    /// A kept connection, or a new one; `fresh` asks for a new one.
    pub(super) async fn lease(&self, fresh: bool) -> Result<Lease, Failure> {
        let permit = self.permit().await?;
        if !fresh {
            if let Some((sender, line)) = self.take_shared() {
                return Ok(self.leased(sender, line, true, permit));
            }
            while let Some(kept) = self.take_idle() {
                if kept.sender.is_ready() && kept.line.socket.is_silent() {
                    return Ok(self.leased(kept.sender, kept.line, true, permit));
                }
            }
        }
        let config = self.config();
        if config.protocol == Protocol::Http2 && !fresh {
            // Who comes while one is being opened takes that one.
            let opening = timeout(config.connect_timeout, self.opening.lock()).await;
            let _opening = opening.map_err(|_| {
                let message = "no connection to the upstream stands in time";
                Failure::new(FailureKind::ConnectTimeout, message)
            })?;
            if let Some((sender, line)) = self.take_shared() {
                return Ok(self.leased(sender, line, true, permit));
            }
            let (sender, line) = self.open().await?;
            return Ok(self.leased(sender, line, false, permit));
        }
        self.make_room();
        let (sender, line) = self.open().await?;
        Ok(self.leased(sender, line, false, permit))
    }

    fn leased(
        &self,
        sender: Sender,
        line: Line,
        is_reused: bool,
        permit: OwnedSemaphorePermit,
    ) -> Lease {
        let is_shared = matches!(sender, Sender::Http2(_));
        let stream = is_shared.then(|| {
            line.streams.fetch_add(1, Ordering::Relaxed);
            Stream(Arc::clone(&line.streams))
        });
        Lease {
            sender,
            line,
            is_over: false,
            is_reused,
            is_bound: false,
            _stream: stream,
            permit,
            pool: self.this.clone(),
        }
    }

    /// A connection that carries many requests, and has room for one more: of this thread, which
    /// does its work.
    fn take_shared(&self) -> Option<(Sender, Line)> {
        let config = self.config();
        let mut shared = self.shared.lock();
        if shared.is_empty() {
            return None;
        }
        shared.retain(|kept| !kept.sender.is_closed() && kept.line.is_good(&config));
        let here = std::thread::current().id();
        let has_room = |kept: &&mut Kept| {
            let most = kept
                .line
                .task
                .most_streams
                .load(Ordering::Relaxed)
                .min(STREAMS);
            kept.line.opened_by == here && kept.line.streams.load(Ordering::Relaxed) < most
        };
        let kept = shared.iter_mut().find(has_room)?;
        kept.since = Instant::now();
        Some((kept.sender.share()?, kept.line.clone()))
    }

    /// Leave to use one connection more, after a bounded wait in a bounded queue.
    async fn permit(&self) -> Result<OwnedSemaphorePermit, Failure> {
        if let Ok(permit) = Arc::clone(&self.permits).try_acquire_owned() {
            return Ok(permit);
        }
        let config = self.config();
        let _place = Place::take(&self.waiting, config.queue).ok_or_else(|| {
            let message = format!("{} requests wait for the upstream already", config.queue);
            Failure::new(FailureKind::QueueFull, message).retry_after(Duration::from_secs(1))
        })?;
        match timeout(
            config.queue_timeout,
            Arc::clone(&self.permits).acquire_owned(),
        )
        .await
        {
            Ok(Ok(permit)) => Ok(permit),
            _ => {
                let message = format!(
                    "no free connection to the upstream within {:?}",
                    config.queue_timeout
                );
                Err(Failure::new(FailureKind::QueueFull, message)
                    .retry_after(Duration::from_secs(1)))
            }
        }
    }

    /// An idle connection: the youngest of this thread, or another's when no more may be opened.
    fn take_idle(&self) -> Option<Kept> {
        let config = self.config();
        let mut idle = self.idle.lock();
        idle.retain(|kept| is_kept(kept, &config));
        let here = std::thread::current().id();
        let own = idle.iter().rposition(|kept| kept.line.opened_by == here);
        let full = self.open.load(Ordering::Relaxed) >= config.max_connections;
        let at = own.or_else(|| idle.len().checked_sub(1).filter(|_| full))?;
        Some(idle.swap_remove(at))
    }

    /// Closes an idle connection where the limit would otherwise be passed.
    fn make_room(&self) {
        if self.open.load(Ordering::Relaxed) >= self.config().max_connections {
            let mut idle = self.idle.lock();
            if !idle.is_empty() {
                idle.remove(0);
            }
        }
    }

    async fn open(&self) -> Result<(Sender, Line), Failure> {
        let counted = Counted::new(&self.open);
        let connected = self.connector.connect().await?;
        let line = Line {
            task: connected.task,
            socket: connected.socket,
            open: Arc::new((connected.open, counted)),
            opened: Instant::now(),
            opened_by: std::thread::current().id(),
            streams: Arc::default(),
        };
        if let Some(sender) = connected.sender.share() {
            self.shared.lock().push(Kept {
                sender,
                line: line.clone(),
                since: Instant::now(),
            });
        }
        Ok((connected.sender, line))
    }

    /// Closes connections that nobody used for `idle_timeout`, or that are not to be used any more.
    /// Runs until the pool is gone.
    pub async fn reap_idle(pool: Weak<Self>) {
        loop {
            let Some(every) = pool.upgrade().map(|pool| pool.config().idle_timeout / 2) else {
                return;
            };
            let every = every.clamp(Duration::from_millis(100), Duration::from_secs(1));
            tokio::time::sleep(every).await;
            let Some(pool) = pool.upgrade() else { return };
            let config = pool.config();
            pool.idle.lock().retain(|kept| is_kept(kept, &config));
            pool.shared.lock().retain(|kept| {
                let is_busy = kept.line.streams.load(Ordering::Relaxed) > 0;
                let is_wanted = is_busy || kept.since.elapsed() < config.idle_timeout;
                is_wanted && !kept.sender.is_closed() && kept.line.is_good(&config)
            });
        }
    }
}

/// Whether an idle connection stays.
fn is_kept(kept: &Kept, config: &config::Upstream) -> bool {
    !kept.sender.is_closed()
        && kept.since.elapsed() < config.idle_timeout
        && kept.line.is_good(config)
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
    /// A request is sent over it. One that carries many does not end with one of them.
    pub fn sends(&self) -> Unanswered {
        let handle = self.line.task.handle.clone();
        Unanswered(self._stream.is_none().then_some(handle))
    }

    /// What it is a connection to.
    pub fn address(&self) -> &Arc<Address> {
        self.line.address()
    }

    /// Gives the connection back for the next request, as soon as it can take one: an upstream may
    /// answer before it has read the whole of a request that is still being sent.
    pub fn give_back(mut self) {
        if self._stream.is_some() || self.is_bound {
            return;
        }
        if self.is_over || self.line.task.write_failed.is_set() {
            // The rest of a request may still wait to be written, in vain.
            return self.line.task.handle.abort();
        }
        if self.sender.is_ready() {
            self.shelve();
        } else if !self.sender.is_closed() {
            let Some(limit) = self.pool.upgrade().map(|pool| pool.config().read_timeout) else {
                return;
            };
            tokio::spawn(async move {
                // The rest of a request that is already answered.
                match timeout(limit, self.sender.ready()).await {
                    Ok(Ok(())) => self.shelve(),
                    Ok(Err(_)) => {}
                    Err(_) => self.line.task.handle.abort(),
                }
            });
        }
    }

    /// Its connection is no longer the pool's, and counts for it as long as the seat lives.
    pub fn into_seat(self) -> TunnelSeat {
        TunnelSeat(Arc::new((self.permit, self.line)))
    }

    fn shelve(self) {
        let Some(pool) = self.pool.upgrade() else {
            return;
        };
        if !self.line.is_good(&pool.config()) {
            return;
        }
        pool.idle.lock().push(Kept {
            sender: self.sender,
            line: self.line,
            since: Instant::now(),
        });
        // After the connection is in its place: whoever gets the permit must find it.
        drop(self.permit);
    }
}

impl Origin for Upstream {
    fn answer(&self, request: Request<OriginBody>) -> Answer<'_> {
        Box::pin(self.exchange(request))
    }

    fn can_renew(&self, config: &Config) -> Result<(), String> {
        let tls = self.own(config).map(|own| self.connector.tls_of(own));
        tls.map_or(Ok(()), |tls| tls.map(drop))
    }

    fn renew(&self, config: &Config) -> Result<(), String> {
        let own = self.own(config);
        own.map_or(Ok(()), |upstream| self.connector.renew(upstream))
    }

    fn readings(&self) -> Vec<UpstreamReading> {
        vec![UpstreamReading {
            name: self.name.clone(),
            connections: self.open.load(Ordering::Relaxed) as u64,
            breaker_is_open: self.breaker.is_open(),
            addresses: self.connector.addresses.readings(),
        }]
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
