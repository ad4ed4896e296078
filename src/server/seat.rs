//! Seats: how many client connections there are, over all workers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tokio::sync::Notify;

use crate::proxy::Proxy;

/// One open connection, counted until it is dropped.
pub struct Seat {
    connections: Arc<Connections>,
    proxy: Arc<Proxy>,
    /// It came when the end had begun.
    is_late: bool,
}

/// The open connections of all workers.
///
/// A worker may only end when all of them have: a response that a client of one worker reads may
/// be coming in on another's thread.
#[derive(Debug, Default)]
pub struct Connections {
    open: AtomicUsize,
    /// Of them, those that came before the end had begun.
    early: AtomicUsize,
    is_closing: AtomicBool,
    handshakes: AtomicUsize,
    /// The last of the early ones has gone, or the last of all.
    gone: Notify,
}

impl Connections {
    /// A place for one more connection, unless `limits.connections` are taken.
    pub fn seat(all: &Arc<Self>, proxy: &Arc<Proxy>) -> Option<Seat> {
        let limit = proxy.plan().config.limits.connections;
        if all.open.fetch_add(1, Ordering::AcqRel) >= limit {
            all.open.fetch_sub(1, Ordering::AcqRel);
            return None;
        }
        let is_late = all.is_closing.load(Ordering::Acquire);
        if !is_late {
            all.early.fetch_add(1, Ordering::AcqRel);
        }
        proxy.metrics().connections.inc();
        Some(Seat {
            is_late,
            connections: Arc::clone(all),
            proxy: Arc::clone(proxy),
        })
    }

    pub fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// The end begins: who comes from now on is late.
    pub fn close(&self) {
        self.is_closing.store(true, Ordering::Release);
    }

    /// Returns when no worker has a connection any more that came before the end.
    pub async fn early_gone(&self) {
        self.until_none(&self.early).await;
    }

    /// Returns when no worker has a connection any more.
    pub async fn all_gone(&self) {
        self.until_none(&self.open).await;
    }

    async fn until_none(&self, count: &AtomicUsize) {
        loop {
            let gone = self.gone.notified();
            if count.load(Ordering::Acquire) == 0 {
                return;
            }
            gone.await;
        }
    }
}

/// A handshake under way, counted until it is dropped.
pub struct UnderWay<'a>(&'a AtomicUsize);

impl Seat {
    /// Leave to begin a handshake, unless `limits.handshakes` are under way.
    pub fn handshake(&self) -> Option<UnderWay<'_>> {
        let limit = self.proxy.plan().config.limits.handshakes;
        let begun = UnderWay(&self.connections.handshakes);
        (begun.0.fetch_add(1, Ordering::AcqRel) < limit).then_some(begun)
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.proxy.metrics().connections.dec();
        let all = &self.connections;
        let last_early = !self.is_late && all.early.fetch_sub(1, Ordering::AcqRel) == 1;
        let last = all.open.fetch_sub(1, Ordering::AcqRel) == 1;
        if last_early || last {
            all.gone.notify_waiters();
        }
    }
}
