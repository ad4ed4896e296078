//! `GET /status`: what the live page shows, in one answer.

use bytes::Bytes;
use http::{Response, StatusCode};
use serde_json::{Value, json};

use crate::config::{Config, units};
use crate::error::rfc3339;
use crate::metrics::RouteTotals;
use crate::server::phase::Phase;

use super::readings::Admin;
use super::response::json_response;

impl Admin {
    pub(super) fn status(&self) -> Response<Bytes> {
        let (metrics, plan) = (self.proxy.metrics(), self.proxy.plan());
        let readings = self.proxy.readings();
        let mut routes = metrics.route_totals();
        routes.sort_by_key(|route| std::cmp::Reverse(route.requests));
        let (requests, bytes) = metrics.saved.totals();
        let (_, mean) = metrics.upstream_mean();
        let (allowed, blocked) = metrics.limited();
        let recent = metrics.recent.list().into_iter();
        let recent: Vec<Value> = recent
            .map(|(at, what)| json!({"at": rfc3339(at), "what": what}))
            .collect();
        let second = readings.second.map(|second| {
            json!({
                "breaker_open": second.breaker_is_open,
                "heard": second.is_heard,
                "silence_ms": second.silence_ms,
                "position": second.position,
                "pending": second.pending,
                "queued": second.queued,
            })
        });
        let told = json!({
            "now": rfc3339(self.proxy.now()),
            "version": env!("CARGO_PKG_VERSION"),
            "commit": env!("IRIS_COMMIT"),
            "upstream": upstream(&plan.config),
            "draining": self.phases.now() > Phase::Serving,
            "bypass": self.bypass(),
            "config": self.configuration(),
            "summary": metrics.summary(),
            // What the origin would have taken for what it was not asked, at its mean.
            "saved": {
                "requests": requests,
                "bytes": bytes,
                "seconds": mean.as_secs_f64() * requests as f64,
            },
            "routes": routes.iter().map(|route| told_route(&plan.config, route)).collect::<Vec<_>>(),
            "memory": {
                "budget": readings.memory_budget,
                "stored": readings.stored_bytes,
                "entries": readings.stored_entries,
                "in_flight": readings.in_flight_bytes,
                "evictions": readings.evictions,
                "flights": readings.flights,
            },
            "redis": second,
            "breaker_open": readings.breaker_is_open(),
            "connections": {
                "clients": metrics.connections.get(),
                "upstream": readings.upstream_connections(),
            },
            "keys": {"good": readings.verdicts.0, "bad": readings.verdicts.1},
            "limits": {"allowed": allowed, "blocked": blocked},
            "recent": recent,
        });
        json_response(StatusCode::OK, &told)
    }
}

fn upstream(config: &Config) -> String {
    config.upstream.as_ref().map_or_else(
        || "the built-in origin".to_owned(),
        |upstream| upstream.shown(),
    )
}

fn told_route(config: &Config, route: &RouteTotals) -> Value {
    let results: serde_json::Map<String, Value> = route
        .results
        .iter()
        .map(|(result, count)| (result.as_str().to_owned(), json!(count)))
        .collect();
    let lost: Vec<Value> = route
        .lost
        .iter()
        .map(|(reason, count)| {
            json!({"reason": reason.as_str(), "count": count, "meaning": reason.meaning()})
        })
        .collect();
    let configured = config
        .routes
        .list()
        .iter()
        .find(|known| known.path == route.path);
    let lifetime = configured.map(|known| {
        let options = &known.options;
        let given = options.force_ttl.or(options.ttl);
        given.map_or_else(|| "the origin's".to_owned(), units::show_duration)
    });
    json!({
        "path": route.path,
        "requests": route.requests,
        "errors": route.errors,
        "demotions": route.demotions,
        "p95_ms": route.p95_ms,
        "lifetime": lifetime,
        "results": results,
        "lost": lost,
    })
}
