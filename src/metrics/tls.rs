//! Metrics of what comes before requests: TLS handshakes, certificates, PROXY headers.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use strum::{IntoStaticStr, VariantArray};

use super::by_variant::ByVariant;

/// How a TLS handshake with a client ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum Handshake {
    Done,
    /// It did not speak TLS, or no version, suite or certificate of ours; or showed none that is
    /// right.
    Failed,
    /// It did not end in `limits.head_timeout`.
    Late,
    /// `limits.handshakes` were under way.
    TooMany,
}

#[derive(Debug, Default)]
pub struct GreetingMetrics {
    handshakes: ByVariant<Handshake>,
    /// The earliest end of a certificate in force; 0 without one.
    pub(super) expires: Gauge,
    pub proxy_headers_refused: Counter,
}

impl GreetingMetrics {
    pub(super) fn register(&mut self, registry: &mut Registry) {
        self.handshakes = ByVariant::register(
            registry,
            "tls_handshakes",
            "TLS handshakes with clients, by how they ended",
            "outcome",
        );
        registry.register(
            "tls_certificate_expiry_timestamp_seconds",
            "When the first of the certificates shown to clients expires; 0 without TLS",
            self.expires.clone(),
        );
        registry.register(
            "proxy_headers_refused",
            "Connections of trusted proxies that did not say whom they speak for (PROXY protocol)",
            self.proxy_headers_refused.clone(),
        );
    }

    pub fn ended(&self, how: Handshake) {
        self.handshakes.inc(how);
    }
}
