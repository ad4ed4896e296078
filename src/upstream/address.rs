//! One address of an upstream: how it is connected to, and how well it is.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};
use smallvec::SmallVec;

use crate::metrics::AddressReading;

use super::socket::Socket;

/// URLs that are told apart of one address.
const REMEMBERED: usize = 256;

/// One address of an upstream.
#[derive(Debug)]
pub struct Address {
    to: To,
    /// Connections that exist.
    open: AtomicUsize,
    health: Mutex<Health>,
    /// Failures of it, all that were counted.
    failures: AtomicU64,
    /// It is passed over while another one is well.
    is_ejected: AtomicBool,
    /// The name does not stand for it any more.
    is_gone: AtomicBool,
}

/// What is known of how well an address is.
#[derive(Debug, Default)]
struct Health {
    /// Failures with no answer between them; of requests, by their URLs: one URL counts once,
    /// however often it fails, for it may be the request's own fault.
    connections: u32,
    urls: SmallVec<[u64; 8]>,
    /// How often it was passed over since it answered last, and since when.
    ejections: u32,
    ejected: Option<Instant>,
}

/// How long an address is left alone that was passed over: twice as long each time, up to a minute.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// What is connected to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum To {
    Tcp(SocketAddr),
    Unix(String),
}

/// A connection to an address, counted until it is dropped.
#[derive(Debug)]
pub struct Open(Arc<Address>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Open {
    pub fn of(address: Arc<Address>) -> Self {
        address.open.fetch_add(1, Ordering::Relaxed);
        Self(address)
    }

    pub fn address(&self) -> &Arc<Address> {
        &self.0
    }
}

impl Address {
    pub fn new(to: To) -> Arc<Self> {
        Arc::new(Self {
            to,
            open: AtomicUsize::new(0),
            health: Mutex::default(),
            failures: AtomicU64::new(0),
            is_ejected: AtomicBool::new(false),
            is_gone: AtomicBool::new(false),
        })
    }

    pub fn shown(&self) -> String {
        match &self.to {
            To::Tcp(address) => address.to_string(),
            To::Unix(path) => format!("unix:{path}"),
        }
    }

    pub fn to(&self) -> &To {
        &self.to
    }

    /// Connections to it that exist.
    pub fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    pub fn reading(&self) -> AddressReading {
        AddressReading {
            address: self.shown(),
            connections: self.open() as u64,
            failures: self.failures.load(Ordering::Relaxed),
            is_passed_over: self.is_ejected(),
        }
    }

    /// The name does not stand for it any more.
    pub fn set_gone(&self) {
        self.is_gone.store(true, Ordering::Relaxed);
    }

    /// Notes a failure, of a request by a hash of its URL, or of a connection; how many there were
    /// with no answer between them.
    pub fn note_failure(&self, url: Option<u64>) -> u32 {
        self.failures.fetch_add(1, Ordering::Relaxed);
        let mut health = self.health();
        match url {
            None => health.connections = health.connections.saturating_add(1),
            // The last address is not passed over, however many fail.
            Some(url) if health.urls.len() < REMEMBERED && !health.urls.contains(&url) => {
                health.urls.push(url);
            }
            Some(_) => {}
        }
        health
            .connections
            .saturating_add(u32::try_from(health.urls.len()).unwrap_or(u32::MAX))
    }

    /// Passes it over from now on; whether that is news.
    pub fn eject(&self) -> bool {
        let is_news = !self.is_ejected.swap(true, Ordering::Relaxed);
        if is_news {
            let mut health = self.health();
            health.ejections = health.ejections.saturating_add(1);
            health.ejected = Some(Instant::now());
            (health.connections, health.urls) = (0, SmallVec::new());
        }
        is_news
    }

    /// Uses it again; whether that is news.
    pub fn take_back(&self) -> bool {
        self.is_ejected.swap(false, Ordering::Relaxed)
    }

    /// Whether connections to it are not to be used again.
    pub fn is_gone(&self) -> bool {
        self.is_gone.load(Ordering::Relaxed)
    }

    pub fn is_ejected(&self) -> bool {
        self.is_ejected.load(Ordering::Relaxed)
    }

    fn health(&self) -> MutexGuard<'_, Health> {
        self.health.lock()
    }

    /// It has begun to answer a request: it is connected to well.
    pub fn began_to_answer(&self) {
        self.health().connections = 0;
    }

    /// It has answered a request to the end.
    pub fn succeeded(&self) {
        *self.health() = Health::default();
    }

    /// Whether it is passed over, and was left alone for long enough to be tried.
    pub fn is_to_be_tried(&self) -> bool {
        let health = self.health();
        let doublings = health.ejections.saturating_sub(1).min(16);
        let pause = FIRST_PAUSE
            .saturating_mul(1 << doublings)
            .min(LONGEST_PAUSE);
        self.is_ejected() && health.ejected.is_none_or(|since| since.elapsed() >= pause)
    }

    pub async fn connect(&self) -> io::Result<Socket> {
        match &self.to {
            To::Tcp(address) => Socket::tcp(*address).await,
            To::Unix(path) => Socket::unix(path).await,
        }
    }

    pub fn is_v6(&self) -> bool {
        matches!(&self.to, To::Tcp(address) if address.is_ipv6())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_counted_by_urls_and_remembered_in_bounds() {
        let address = Address::new(To::Unix("/a".to_owned()));
        assert_eq!((0..9).map(|_| address.note_failure(Some(7))).max(), Some(1));
        assert_eq!(address.note_failure(None), 2);
        assert_eq!(address.note_failure(None), 3);
        let most = (0..10_000).map(|url| address.note_failure(Some(url))).max();
        assert_eq!(most, Some(REMEMBERED as u32 + 2));
        address.succeeded();
        assert_eq!(address.note_failure(Some(7)), 1);
    }

    #[test]
    fn one_that_was_passed_over_is_left_alone_before_it_is_tried() {
        let address = Address::new(To::Unix("/a".to_owned()));
        assert!(!address.is_to_be_tried());
        assert!(address.eject() && !address.eject());
        assert!(!address.is_to_be_tried(), "not at once");
        assert!(address.take_back() && !address.take_back());
    }
}
