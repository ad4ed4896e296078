//! Seats: how many client connections there are, over all workers.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Notify;

use crate::proxy::Proxy;

/// One open connection, counted until it is dropped.
pub struct Seat {
    connections: Arc<Connections>,
    proxy: Arc<Proxy>,
}

/// The open connections of all workers.
///
/// A worker may only end when all of them have: a response that a client of one worker reads may
/// be coming in on another's thread.
#[derive(Debug, Default)]
pub struct Connections {
    open: AtomicUsize,
    handshakes: AtomicUsize,
    none_left: Notify,
}

impl Connections {
    /// A place for one more connection, unless `limits.connections` are taken.
    pub fn seat(all: &Arc<Self>, proxy: &Arc<Proxy>) -> Option<Seat> {
        let limit = proxy.plan().config.limits.connections;
        if all.open.fetch_add(1, Ordering::AcqRel) >= limit {
            all.open.fetch_sub(1, Ordering::AcqRel);
            return None;
        }
        proxy.metrics().connections.inc();
        Some(Seat {
            connections: Arc::clone(all),
            proxy: Arc::clone(proxy),
        })
    }

    pub fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// Returns when no worker has a connection any more.
    pub async fn all_gone(&self) {
        loop {
            let gone = self.none_left.notified();
            if self.open.load(Ordering::Acquire) == 0 {
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
        if self.connections.open.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.connections.none_left.notify_waiters();
        }
    }
}
