//! Metric families and their handles, registered on one registry that the admin port encodes.
//!
//! The names and labels that the Iris operators already chart are kept as they are; what a cache
//! needs beyond them begins with `cache_`, `upstream_` or `server_`. Labels are bounded: a path is
//! the pattern of its route. Handles are resolved when the process starts, so that the hit path
//! never looks a metric up by label.

#![doc = include_str!("families.md")]

mod by_variant;
mod families;
pub mod guard;
mod labels;
pub mod latency;
mod process;
mod readings;
pub mod recent;
mod reload;
mod result;
mod routes;
mod saved;
pub mod second;
mod summary;
pub mod text;
pub mod tls;
mod upstreams;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use strum::EnumCount;

use crate::error::FailureKind;
use crate::policy::{Mode, Reason};

use by_variant::ByVariant;
use guard::GuardMetrics;
use labels::{PurgeLabels, QueryErrorLabels, QueryLabels, ReasonLabels, TypeLabels};
use latency::Latency;
use process::ProcessMetrics;
use recent::Recent;
use reload::ReloadMetrics;
use routes::RouteFamilies;
use saved::Saved;
use second::SecondMetrics;
use text::Format;
use tls::GreetingMetrics;
use upstreams::UpstreamsMetrics;

pub use readings::{AddressReading, Readings, UpstreamReading};
pub use result::{CacheResult, Refresh};
pub use routes::{NO_ROUTE, RouteSeries, RouteTotals};

/// All families. One per process; shared by reference.
#[derive(Debug, Default)]
pub struct Metrics {
    registry: Registry,
    routes: RouteFamilies,
    cache_hit: Counter,
    cache_miss: Counter,
    results: Vec<Counter>,
    not_stored: Family<ReasonLabels, Counter>,
    pub coalesced_waiters: Counter,
    pub second: SecondMetrics,
    refreshes: ByVariant<Refresh>,
    purges: Family<PurgeLabels, Counter>,
    upstream_duration: Latency,
    upstream_errors: Family<TypeLabels, Counter>,
    pub upstream_retries: Counter,
    pub upstreams: UpstreamsMetrics,
    pub connections: Gauge,
    pub connections_accepted: Counter,
    pub connections_refused: Counter,
    pub greetings: GreetingMetrics,
    pub access_log_lines: Counter,
    pub access_log_dropped: Counter,
    pub guard: GuardMetrics,
    pub reloads: ReloadMetrics,
    pub recent: Recent,
    pub saved: Saved,
    db_queries: Family<QueryLabels, Counter>,
    db_duration: Family<QueryLabels, Latency>,
    db_errors: Family<QueryErrorLabels, Counter>,
    gauges: Gauges,
    process: ProcessMetrics,
    stale_ages: StaleAges,
}

#[derive(Debug, Default)]
struct Gauges {
    stored_bytes: Gauge,
    stored_entries: Gauge,
    in_flight_bytes: Gauge,
    flights: Gauge,
    evictions: Counter,
    young_evictions: Counter,
    variants_dropped: Counter,
    upstream_connections: Gauge,
    breaker_open: Gauge,
    bypassed: Gauge,
    database_connections: Gauge,
    database_idle: Gauge,
}

/// Tables of the built-in origin, for the zero samples of the first scrape.
const TABLES: [&str; 8] = [
    "consensus_lineage",
    "discovered_patterns",
    "expert_signatures",
    "iris_api_keys",
    "iris_reports",
    "iris_telemetry",
    "model_run_log",
    "reflexion_bank",
];

impl Metrics {
    /// Registers everything but the series of routes, which a plan names.
    pub fn new() -> Self {
        let mut registry = Registry::default();
        let mut metrics = Self::default();
        metrics.register_http(&mut registry);
        metrics.greetings.register(&mut registry);
        metrics.register_cache(&mut registry);
        metrics.second.register(&mut registry);
        metrics.register_upstream(&mut registry);
        metrics.upstreams.register(&mut registry);
        metrics.register_origin(&mut registry);
        metrics.reloads.register(&mut registry);
        metrics.process.register(&mut registry);
        metrics.registry = registry;
        metrics
    }

    /// The series of a route, by the pattern that is its label: made when a plan first names it,
    /// and the same ones for every later plan.
    pub fn route_series(&self, path: &str) -> Arc<RouteSeries> {
        self.routes.series(path)
    }

    /// What each route has come to, in no order.
    pub fn route_totals(&self) -> Vec<RouteTotals> {
        self.routes.each()
    }

    /// Durations of exchanges with the origin: how many, and the mean of them.
    pub fn upstream_mean(&self) -> (u64, Duration) {
        let counts = self.upstream_duration.counts();
        let micros = counts.sum_micros.checked_div(counts.total()).unwrap_or(0);
        (counts.total(), Duration::from_micros(micros))
    }

    /// Requests that limits have let through, and those they have not.
    pub fn limited(&self) -> (u64, u64) {
        self.guard.totals()
    }

    /// Lets go of the series of routes that are gone, but for the latest.
    pub fn retire_routes(&self) {
        self.routes.retire();
    }

    /// Counts how a request was answered, and why.
    pub fn cache_result(&self, result: CacheResult, reason: Reason) {
        match result {
            CacheResult::Hit | CacheResult::Stale | CacheResult::Revalidated => {
                self.cache_hit.inc()
            }
            CacheResult::Miss => self.cache_miss.inc(),
            CacheResult::Bypass => 0,
        };
        let index = result as usize * Reason::COUNT + reason as usize;
        if let Some(counter) = self.results.get(index) {
            counter.inc();
        }
    }

    pub fn not_stored(&self, reason: Reason) {
        self.not_stored
            .get_or_create(&ReasonLabels {
                reason: reason.as_str(),
            })
            .inc();
    }

    pub fn refreshed(&self, how: Refresh) {
        self.refreshes.inc(how);
    }

    pub fn purged(&self, target: &'static str, mode: Mode) {
        let mode = mode.as_str();
        let labels = PurgeLabels { target, mode };
        self.purges.get_or_create(&labels).inc();
    }

    pub fn upstream_answered(&self, elapsed: Duration) {
        self.upstream_duration.observe(elapsed);
    }

    pub fn upstream_failed(&self, kind: FailureKind) {
        self.upstream_errors
            .get_or_create(&TypeLabels {
                error_type: kind.as_str(),
            })
            .inc();
    }

    /// Counts a query of the built-in origin; `error_type` where it failed.
    pub fn queried(
        &self,
        table: &'static str,
        operation: &'static str,
        elapsed: Duration,
        error_type: Option<&'static str>,
    ) {
        let labels = QueryLabels { table, operation };
        self.db_queries.get_or_create(&labels).inc();
        self.db_duration.get_or_create(&labels).observe(elapsed);
        if let Some(error_type) = error_type {
            let labels = QueryErrorLabels {
                table,
                operation,
                error_type,
            };
            self.db_errors.get_or_create(&labels).inc();
        }
    }

    /// All families in the text format that is asked for.
    pub fn encode(&self, readings: Readings, format: Format) -> Result<String, fmt::Error> {
        let gauges = &self.gauges;
        let set = |gauge: &Gauge, value: u64| {
            gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        };
        set(&gauges.stored_bytes, readings.stored_bytes);
        set(&gauges.stored_entries, readings.stored_entries);
        set(&gauges.in_flight_bytes, readings.in_flight_bytes);
        set(&gauges.flights, readings.flights);
        set(
            &gauges.upstream_connections,
            readings.upstream_connections(),
        );
        set(&gauges.breaker_open, u64::from(readings.breaker_is_open()));
        self.upstreams.show(&readings.upstreams);
        set(&self.greetings.expires, readings.certificate_expires);
        set(&gauges.bypassed, u64::from(readings.is_bypassed));
        self.guard.show(readings.verdicts);
        self.second.show(readings.second.unwrap_or_default());
        set(
            &gauges.database_connections,
            readings.database_connections.0,
        );
        set(&gauges.database_idle, readings.database_connections.1);
        let counters = [
            (&gauges.evictions, readings.evictions),
            (&gauges.young_evictions, readings.young_evictions),
            (&gauges.variants_dropped, readings.variants_dropped),
        ];
        for (counter, count) in counters {
            let order = std::sync::atomic::Ordering::Relaxed;
            counter.inner().store(count, order);
        }
        self.process.show(&readings);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry)?;
        Ok(text::in_format(&text, format))
    }

    /// Counts an answer from what has been stale for so long.
    pub fn answered_stale(&self, over: Duration) {
        self.stale_ages.0.observe(over.as_secs_f64());
    }
}

/// For how long what was answered from had been stale.
#[derive(Debug)]
struct StaleAges(Histogram);

impl Default for StaleAges {
    fn default() -> Self {
        let bounds = [
            1.0, 5.0, 15.0, 30.0, 60.0, 120.0, 300.0, 900.0, 1800.0, 3600.0, 14_400.0, 86_400.0,
        ];
        Self(Histogram::new(bounds))
    }
}

#[cfg(test)]
mod tests {
    use http::{Method, StatusCode};

    use super::*;

    #[test]
    fn every_family_shows_a_sample_and_a_help_text_before_any_request() {
        let metrics = Metrics::new();
        metrics.route_series("/api/iris/overview");
        metrics
            .reloads
            .in_force("abc", crate::clock::Timestamp::EPOCH);
        let text = metrics
            .encode(Readings::default(), Format::OpenMetrics)
            .unwrap();
        let mut families = 0;
        for line in text.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
            let (name, _) = line.split_once(' ').unwrap();
            families += 1;
            assert!(
                text.contains(&format!("# HELP {name} ")),
                "{name} has no help"
            );
            let sampled = text.lines().any(|line| line.starts_with(name));
            assert!(sampled, "{name} has no sample:\n{text}");
        }
        assert!(families > 25, "{families}");
        for expected in [
            "http_requests_total{method=\"GET\",path=\"/api/iris/overview\",status=\"200\"} 0",
            "cache_requests_total{cache=\"query\",result=\"hit\"} 0",
            "rate_limit_requests_total{key=\"apikey\",result=\"blocked\"} 0",
            "db_queries_total{table=\"iris_reports\",operation=\"select\"} 0",
        ] {
            assert!(text.contains(expected), "{expected} is not in\n{text}");
        }
        assert!(text.ends_with("# EOF\n"));
    }

    #[test]
    fn the_page_of_metrics_lists_every_one() {
        let metrics = Metrics::new();
        metrics.route_series("/a");
        metrics
            .reloads
            .in_force("abc", crate::clock::Timestamp::EPOCH);
        metrics.upstreams.ended("files", true, Duration::ZERO);
        let readings = Readings {
            upstreams: vec![UpstreamReading {
                name: Some("files".into()),
                addresses: vec![AddressReading::default()],
                ..UpstreamReading::default()
            }],
            ..Readings::default()
        };
        let text = metrics.encode(readings, Format::Classic).unwrap();
        let mut rows = Vec::new();
        let mut help = "";
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# HELP ") {
                help = rest.split_once(' ').unwrap().1.trim_end_matches('.');
            } else if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').unwrap();
                rows.push(format!("| `{name}` | {kind} | {help} |"));
            }
        }
        let table = rows.join("\n");
        let page = include_str!("families.md");
        assert!(page.contains(&table), "families.md wants:\n{table}");
    }

    #[test]
    fn the_summary_is_the_one_of_the_requirements() {
        let metrics = Metrics::new();
        let (route, no_route) = (metrics.route_series("/a"), metrics.route_series(NO_ROUTE));
        for _ in 0..9 {
            route.answered(&Method::GET, StatusCode::OK, Duration::from_millis(20));
            metrics.cache_result(CacheResult::Hit, Reason::Fresh);
        }
        let elapsed = Duration::from_millis(20);
        no_route.answered(&Method::POST, StatusCode::BAD_GATEWAY, elapsed);
        no_route.failed(&Method::POST, FailureKind::ConnectFailed);
        metrics.cache_result(CacheResult::Miss, Reason::Cold);
        let summary = metrics.summary();
        assert_eq!(summary["requests"]["total"], 10);
        assert_eq!(summary["requests"]["errorRate"], 0.1);
        assert_eq!(summary["cache"]["hitRate"], 0.9);
        let p95 = summary["requests"]["p95Latency"].as_f64().unwrap();
        assert!((10.0..=25.0).contains(&p95), "{p95}");
        assert_eq!(summary["database"]["totalQueries"], 0);
    }
}
