//! The families: their names, help texts and zero samples.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use strum::{IntoEnumIterator, VariantArray};

use crate::error::FailureKind;
use crate::policy::{Mode, Reason};

use super::by_variant::ByVariant;
use super::labels::{
    CacheLabels, PurgeLabels, QueryErrorLabels, QueryLabels, ReasonLabels, ResultLabels,
    TypeLabels, touch,
};
use super::{CacheResult, Metrics, TABLES};

impl Metrics {
    pub(super) fn register_http(&mut self, registry: &mut Registry) {
        let by_route = &self.routes.families;
        registry.register(
            "http_requests",
            "Requests answered, by route pattern",
            by_route.requests.clone(),
        );
        registry.register(
            "http_request_duration_ms",
            "Milliseconds from request head to response head, by route pattern",
            by_route.duration.clone(),
        );
        registry.register(
            "http_errors",
            "Requests that ended in an error of ours or of the upstream",
            by_route.errors.clone(),
        );
        registry.register(
            "auth_demotions",
            "Routes whose answers were found to differ by key, and that are not shared any more",
            by_route.demotions.clone(),
        );
        registry.register(
            "server_connections",
            "Client connections open now",
            self.connections.clone(),
        );
        registry.register(
            "server_connections_accepted",
            "Client connections accepted",
            self.connections_accepted.clone(),
        );
        registry.register(
            "server_connections_refused",
            "Client connections answered 503 because limits.connections was reached",
            self.connections_refused.clone(),
        );
        registry.register(
            "access_log_lines",
            "Lines of the access log that were written",
            self.access_log_lines.clone(),
        );
        registry.register(
            "access_log_dropped",
            "Lines of the access log that were lost: its thread could not keep up, or its place \
                take them",
            self.access_log_dropped.clone(),
        );
    }

    pub(super) fn register_cache(&mut self, registry: &mut Registry) {
        let requests = Family::<CacheLabels, Counter>::default();
        registry.register(
            "cache_requests",
            "Look-ups by cache: query is the response cache",
            requests.clone(),
        );
        for cache in ["auth", "rateLimit", "query"] {
            for result in ["hit", "miss"] {
                touch(&requests, &CacheLabels { cache, result });
            }
        }
        self.guard.register(registry, &requests);
        self.cache_hit = requests.get_or_create_owned(&CacheLabels {
            cache: "query",
            result: "hit",
        });
        self.cache_miss = requests.get_or_create_owned(&CacheLabels {
            cache: "query",
            result: "miss",
        });

        let results = Family::<ResultLabels, Counter>::default();
        registry.register(
            "cache_results",
            "Requests by how they were answered (X-Cache) and why (the detail of Cache-Status)",
            results.clone(),
        );
        for result in CacheResult::VARIANTS.iter().copied() {
            for reason in Reason::iter() {
                let labels = ResultLabels {
                    result: result.as_str(),
                    reason: reason.as_str(),
                };
                // Most pairs never occur: those show up when they do, the likely ones at once.
                self.results.push(if likely(result, reason) {
                    results.get_or_create_owned(&labels)
                } else {
                    Counter::default()
                });
            }
        }
        registry.register(
            "cache_not_stored",
            "Responses that were not stored, by reason",
            self.not_stored.clone(),
        );
        for reason in Reason::iter().filter(|reason| reason.is_of_the_response()) {
            touch(
                &self.not_stored,
                &ReasonLabels {
                    reason: reason.as_str(),
                },
            );
        }
        registry.register(
            "cache_coalesced_waiters",
            "Requests answered by another request's fetch",
            self.coalesced_waiters.clone(),
        );
        registry.register(
            "cache_purges",
            "Purges by the admin port and by writes: what they name, and whether it is gone or \
                stale",
            self.purges.clone(),
        );
        for target in ["all", "url", "prefix", "group", "key"] {
            for mode in Mode::VARIANTS.iter().copied().map(Mode::as_str) {
                touch(&self.purges, &PurgeLabels { target, mode });
            }
        }
        self.refreshes = ByVariant::register(
            registry,
            "cache_background_refreshes",
            "Refreshes behind a stale answer, by how they ended",
            "result",
        );
        registry.register(
            "cache_flights",
            "Fetches that other requests can wait for, now",
            self.gauges.flights.clone(),
        );
        registry.register(
            "cache_stored_bytes",
            "Bytes of the stored responses, by their weight",
            self.gauges.stored_bytes.clone(),
        );
        registry.register(
            "cache_stored_entries",
            "Stored responses and markers",
            self.gauges.stored_entries.clone(),
        );
        registry.register(
            "cache_in_flight_bytes",
            "Bytes held beside the store: bodies in \
            flight, and evicted ones that are still being sent",
            self.gauges.in_flight_bytes.clone(),
        );
        registry.register(
            "cache_evictions",
            "Stored responses dropped to stay within the budget",
            self.gauges.evictions.clone(),
        );
        registry.register(
            "cache_evictions_young",
            "Stored responses dropped to stay within the budget less than a minute after they had \
                come",
            self.gauges.young_evictions.clone(),
        );
        registry.register(
            "cache_variants_dropped",
            "Variants by Vary dropped to make room for others of their URL",
            self.gauges.variants_dropped.clone(),
        );
    }

    pub(super) fn register_upstream(&mut self, registry: &mut Registry) {
        registry.register(
            "upstream_request_duration_ms",
            "Milliseconds from a request sent to the origin to its response head",
            self.upstream_duration.clone(),
        );
        registry.register(
            "upstream_errors",
            "Failed exchanges with the origin, by type",
            self.upstream_errors.clone(),
        );
        for kind in FailureKind::iter().filter(|kind| kind.is_origins()) {
            touch(
                &self.upstream_errors,
                &TypeLabels {
                    error_type: kind.as_str(),
                },
            );
        }
        registry.register(
            "upstream_retries",
            "Requests sent again because a kept connection turned out dead",
            self.upstream_retries.clone(),
        );
        registry.register(
            "upstream_connections",
            "Connections to the upstream, idle ones included",
            self.gauges.upstream_connections.clone(),
        );
        registry.register(
            "upstream_breaker_open",
            "1 while the breaker answers instead of the upstream",
            self.gauges.breaker_open.clone(),
        );
        registry.register(
            "cache_stale_age_seconds",
            "For how long what was answered from had been stale",
            self.stale_ages.0.clone(),
        );
        registry.register(
            "cache_bypassed",
            "1 while the operator has switched all caching off (bypass)",
            self.gauges.bypassed.clone(),
        );
    }

    pub(super) fn register_origin(&mut self, registry: &mut Registry) {
        registry.register(
            "db_queries",
            "Queries of the built-in origin",
            self.db_queries.clone(),
        );
        registry.register(
            "db_query_duration_ms",
            "Milliseconds a query of the built-in origin took",
            self.db_duration.clone(),
        );
        registry.register(
            "db_errors",
            "Failed queries of the built-in origin",
            self.db_errors.clone(),
        );
        registry.register(
            "db_pool_connections",
            "Connections to the built-in origin's database, idle ones included",
            self.gauges.database_connections.clone(),
        );
        registry.register(
            "db_pool_idle",
            "Connections to the built-in origin's database that nobody uses now",
            self.gauges.database_idle.clone(),
        );
        for table in TABLES {
            let labels = QueryLabels {
                table,
                operation: "select",
            };
            touch(&self.db_queries, &labels);
            touch(&self.db_duration, &labels);
            touch(
                &self.db_errors,
                &QueryErrorLabels {
                    table,
                    operation: "select",
                    error_type: "query",
                },
            );
        }
    }
}

/// Pairs of result and reason that every deployment meets.
fn likely(result: CacheResult, reason: Reason) -> bool {
    use Reason::*;
    match result {
        CacheResult::Hit => matches!(reason, Fresh | Cold | VaryMiss | Expired),
        CacheResult::Stale => matches!(reason, StaleWhileRevalidate | StaleIfError | MaxStale),
        CacheResult::Revalidated => reason == Revalidated,
        CacheResult::Miss => !matches!(
            reason,
            Fresh | StaleWhileRevalidate | StaleIfError | MaxStale | Revalidated
        ),
        CacheResult::Bypass => true,
    }
}
