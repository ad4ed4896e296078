//! Metrics of each of several upstreams, by its name. The families without a name sum them up.

use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::latency::Latency;
use super::readings::UpstreamReading;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Name {
    upstream: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    upstream: String,
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Place {
    upstream: String,
    address: String,
}

#[derive(Debug, Default)]
pub struct UpstreamsMetrics {
    requests: Family<Outcome, Counter>,
    duration: Family<Name, Latency>,
    connections: Family<Name, Gauge>,
    breakers: Family<Name, Gauge>,
    address_connections: Family<Place, Gauge>,
    address_failures: Family<Place, Counter>,
    address_passed_over: Family<Place, Gauge>,
}

impl UpstreamsMetrics {
    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register(
            "upstream_by_name_requests",
            "Exchanges with each of several upstreams, by how they ended",
            self.requests.clone(),
        );
        registry.register(
            "upstream_by_name_request_duration_ms",
            "Milliseconds from request to response head, of each of several upstreams",
            self.duration.clone(),
        );
        registry.register(
            "upstream_by_name_connections",
            "Connections to each of several upstreams, idle ones included",
            self.connections.clone(),
        );
        registry.register(
            "upstream_by_name_breaker_open",
            "1 while the breaker answers instead of one of several upstreams",
            self.breakers.clone(),
        );
        registry.register(
            "upstream_address_connections",
            "Connections to each address of an upstream, idle ones included",
            self.address_connections.clone(),
        );
        registry.register(
            "upstream_address_failures",
            "Connections to an address that did not come to stand, and requests that it did not \
                answer to the end",
            self.address_failures.clone(),
        );
        registry.register(
            "upstream_address_passed_over",
            "1 while other addresses of an upstream are asked in the place of this one",
            self.address_passed_over.clone(),
        );
    }

    /// One has answered, or failed, after so long.
    pub fn ended(&self, name: &str, has_answered: bool, elapsed: Duration) {
        let outcome = if has_answered { "answered" } else { "failed" };
        let upstream = name.to_owned();
        let labels = Outcome { upstream, outcome };
        self.requests.get_or_create(&labels).inc();
        if has_answered {
            self.duration.get_or_create(&of(name)).observe(elapsed);
        }
    }

    pub(super) fn show(&self, readings: &[UpstreamReading]) {
        // Addresses come and go.
        self.address_connections.clear();
        self.address_failures.clear();
        self.address_passed_over.clear();
        for reading in readings {
            self.show_addresses(reading);
            let Some(name) = &reading.name else { continue };
            let connections = i64::try_from(reading.connections).unwrap_or(i64::MAX);
            self.connections.get_or_create(&of(name)).set(connections);
            let is_open = i64::from(reading.breaker_is_open);
            self.breakers.get_or_create(&of(name)).set(is_open);
        }
    }
}

impl UpstreamsMetrics {
    fn show_addresses(&self, reading: &UpstreamReading) {
        let name = reading.name.as_deref().unwrap_or(ONLY);
        for one in &reading.addresses {
            let labels = Place {
                upstream: name.to_owned(),
                address: one.address.clone(),
            };
            let connections = i64::try_from(one.connections).unwrap_or(i64::MAX);
            let open = self.address_connections.get_or_create(&labels);
            open.set(connections);
            let failures = self.address_failures.get_or_create(&labels);
            failures.inc_by(one.failures);
            let passed_over = self.address_passed_over.get_or_create(&labels);
            passed_over.set(i64::from(one.is_passed_over));
        }
    }
}

/// The upstream's name where there is no other.
const ONLY: &str = "default";

fn of(name: &str) -> Name {
    Name {
        upstream: name.to_owned(),
    }
}
