//! What is read elsewhere when somebody looks.

use std::sync::Arc;

use super::second::SecondReadings;

/// What is read of one upstream.
#[derive(Clone, Debug, Default)]
pub struct UpstreamReading {
    /// `None` where there is no other.
    pub name: Option<Arc<str>>,
    /// Open now, idle ones included.
    pub connections: u64,
    /// The breaker answers instead.
    pub breaker_is_open: bool,
    /// Its addresses.
    pub addresses: Vec<AddressReading>,
}

/// What is read of one address of an upstream.
#[derive(Clone, Debug, Default)]
pub struct AddressReading {
    /// With its port, or `unix:` and a path.
    pub address: String,
    /// Open now, idle ones included.
    pub connections: u64,
    /// Connections that did not come to stand and requests that were not answered whole.
    pub failures: u64,
    /// Others are asked in its place.
    pub is_passed_over: bool,
}

/// Sizes that live elsewhere and are read when somebody looks.
#[derive(Clone, Debug, Default)]
pub struct Readings {
    pub stored_bytes: u64,
    pub stored_entries: u64,
    pub in_flight_bytes: u64,
    pub flights: u64,
    pub evictions: u64,
    /// Those of what had come less than a minute before.
    pub young_evictions: u64,
    pub variants_dropped: u64,
    /// One at least.
    pub upstreams: Vec<UpstreamReading>,
    /// Nothing is looked up or stored.
    pub is_bypassed: bool,
    /// When the first certificate that clients are shown expires, in Unix seconds; 0 without TLS.
    pub certificate_expires: u64,
    /// Bytes that the container may have (0: no limit), and that the cache may take of them.
    pub memory_limit: u64,
    pub memory_budget: u64,
    /// Of the built-in origin's database: all, and those that nobody uses.
    pub database_connections: (u64, u64),
    /// Verdicts that are remembered: good and bad ones.
    pub verdicts: (u64, u64),
    /// `None` without Redis.
    pub second: Option<SecondReadings>,
}

impl Readings {
    /// Connections to all upstreams.
    pub fn upstream_connections(&self) -> u64 {
        self.upstreams.iter().map(|one| one.connections).sum()
    }

    /// Whether the breaker of any upstream answers instead of it.
    pub fn breaker_is_open(&self) -> bool {
        self.upstreams.iter().any(|one| one.breaker_is_open)
    }
}
