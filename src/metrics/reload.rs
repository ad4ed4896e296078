//! Metrics of the configuration: which one is in force, since when, and what became of changing it.

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::clock::Timestamp;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct HashLabel {
    hash: String,
}

/// How the configuration is exchanged.
#[derive(Debug, Default)]
pub struct ReloadMetrics {
    pub succeeded: Counter,
    failed: Counter,
    is_last_good: Gauge,
    last_success: Gauge<f64, AtomicU64>,
    info: Family<HashLabel, Gauge>,
}

impl ReloadMetrics {
    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register(
            "config_reloads",
            "Configurations that were read again and put in force",
            self.succeeded.clone(),
        );
        registry.register(
            "config_reload_failures",
            "Configurations that were read again and had mistakes: the one before stayed in force",
            self.failed.clone(),
        );
        registry.register(
            "config_last_reload_successful",
            "Whether the configuration file, as it was read last, is in force",
            self.is_last_good.clone(),
        );
        registry.register(
            "config_last_reload_success_timestamp_seconds",
            "When the configuration in force was read",
            self.last_success.clone(),
        );
        registry.register(
            "config_info",
            "The configuration in force, by a digest of its text",
            self.info.clone(),
        );
    }

    /// The configuration with this digest is in force since `at`.
    pub fn in_force(&self, digest: &str, at: Timestamp) {
        self.info.clear();
        let hash = digest.to_owned();
        self.info.get_or_create(&HashLabel { hash }).set(1);
        self.is_last_good.set(1);
        self.last_success.set(at.as_millis() as f64 / 1000.0);
    }

    /// One had mistakes.
    pub fn refused(&self) {
        self.failed.inc();
        self.is_last_good.set(0);
    }
}
