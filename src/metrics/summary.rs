//! The summary JSON that the Iris operators read, from the same counters as the families.

use serde_json::{Value, json};

use super::labels::QueryLabels;
use super::latency::Counts;
use super::{Metrics, TABLES};

impl Metrics {
    /// The summary of the requirements, "Example Response".
    pub fn summary(&self) -> Value {
        let (requests, errors) = self.routes.totals();
        let mut queries = Counts::default();
        for table in TABLES {
            let labels = QueryLabels {
                table,
                operation: "select",
            };
            queries.add(&self.db_duration.get_or_create(&labels).counts());
        }
        let (allowed, blocked) = self.guard.totals();
        json!({
            "requests": {
                "total": requests.total(),
                "errorRate": ratio(errors, requests.total()),
                "p50Latency": rounded(requests.quantile_ms(0.50)),
                "p95Latency": rounded(requests.quantile_ms(0.95)),
                "p99Latency": rounded(requests.quantile_ms(0.99)),
            },
            "cache": { "hitRate": ratio(self.cache_hit.get(), self.cache_hit.get() + self.cache_miss.get()) },
            "rateLimit": { "blockRate": ratio(blocked, blocked + allowed) },
            "database": { "totalQueries": queries.total(), "p95Latency": rounded(queries.quantile_ms(0.95)) },
        })
    }
}

fn ratio(part: u64, whole: u64) -> f64 {
    if whole == 0 {
        0.0
    } else {
        (part as f64 / whole as f64 * 1e4).round() / 1e4
    }
}

fn rounded(millis: f64) -> f64 {
    (millis * 1000.0).round() / 1000.0
}
