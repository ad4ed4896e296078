//! The series of routes: named by the pattern of a route, whatever its place in the configuration,
//! and whatever plan is in force.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http::{Method, StatusCode};
use parking_lot::{Mutex, MutexGuard};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use strum::{EnumCount, IntoEnumIterator, VariantArray};

use crate::error::FailureKind;
use crate::policy::Reason;

use super::labels::{DemotionLabels, ErrorLabels, PathLabels, RequestLabels, touch};
use super::latency::{Counts, Latency};
use super::result::CacheResult;

/// The label of what matches no route.
pub const NO_ROUTE: &str = "(no route)";

/// Routes that no plan has any more, and whose series are still shown: the ones that went first
/// make room.
const MOST_GONE: usize = 64;

/// Methods that are told apart.
const METHODS: [&str; 9] = [
    "GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "OTHER",
];

fn method_label(method: &Method) -> &'static str {
    let known = METHODS.iter().find(|known| **known == method.as_str());
    known.copied().unwrap_or("OTHER")
}

/// What is counted by route.
#[derive(Clone, Debug, Default)]
pub(super) struct Families {
    pub requests: Family<RequestLabels, Counter>,
    pub duration: Family<PathLabels, Latency>,
    pub errors: Family<ErrorLabels, Counter>,
    pub demotions: Family<DemotionLabels, Counter>,
}

/// The series of one route; the frequent ones by handles, so that a hit looks nothing up.
#[derive(Debug)]
pub struct RouteSeries {
    path: String,
    families: Families,
    get_ok: Counter,
    get_not_modified: Counter,
    get_duration: Latency,
    /// Bumped with the family of errors, so that the summary need not walk it.
    errors: AtomicU64,
    /// Answers that were no plain hits, by result; and why, of those that were not looked up or
    /// found nothing.
    others: [AtomicU64; CacheResult::VARIANTS.len()],
    lost: [AtomicU64; Reason::COUNT],
}

/// What a route has come to.
#[derive(Clone, Debug)]
pub struct RouteTotals {
    pub path: String,
    pub requests: u64,
    pub errors: u64,
    /// How often its answers were found to differ by key.
    pub demotions: u64,
    pub p95_ms: f64,
    /// Answers by result, hits included.
    pub results: Vec<(CacheResult, u64)>,
    /// Why answers were no hits, most first.
    pub lost: Vec<(Reason, u64)>,
}

impl RouteSeries {
    fn new(path: &str, families: &Families) -> Self {
        let labels = |status| RequestLabels {
            method: "GET",
            path: path.to_owned(),
            status,
        };
        let path_labels = PathLabels {
            method: "GET",
            path: path.to_owned(),
        };
        let failed = ErrorLabels {
            method: "GET",
            path: path.to_owned(),
            error_type: FailureKind::ConnectFailed.as_str(),
        };
        touch(&families.errors, &failed);
        let path_alone = DemotionLabels {
            path: path.to_owned(),
        };
        touch(&families.demotions, &path_alone);
        Self {
            path: path.to_owned(),
            get_ok: families.requests.get_or_create_owned(&labels(200)),
            get_not_modified: families.requests.get_or_create_owned(&labels(304)),
            get_duration: families.duration.get_or_create_owned(&path_labels),
            errors: AtomicU64::new(0),
            others: Default::default(),
            lost: [const { AtomicU64::new(0) }; Reason::COUNT],
            families: families.clone(),
        }
    }

    /// The pattern of the route.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Counts one answered request.
    pub fn answered(&self, method: &Method, status: StatusCode, elapsed: Duration) {
        let is_get = *method == Method::GET;
        match status {
            StatusCode::OK if is_get => drop(self.get_ok.inc()),
            StatusCode::NOT_MODIFIED if is_get => drop(self.get_not_modified.inc()),
            _ => {
                let labels = RequestLabels {
                    method: method_label(method),
                    path: self.path.clone(),
                    status: status.as_u16(),
                };
                self.families.requests.get_or_create(&labels).inc();
            }
        }
        if is_get {
            self.get_duration.observe(elapsed);
        } else {
            let labels = PathLabels {
                method: method_label(method),
                path: self.path.clone(),
            };
            let duration = self.families.duration.get_or_create(&labels);
            duration.observe(elapsed);
        }
    }

    /// Counts an answer that was no plain hit, and why.
    pub fn came_to(&self, result: CacheResult, reason: Reason) {
        self.others[result as usize].fetch_add(1, Ordering::Relaxed);
        if matches!(result, CacheResult::Miss | CacheResult::Bypass) {
            self.lost[reason as usize].fetch_add(1, Ordering::Relaxed);
        }
    }

    fn totals(&self) -> RouteTotals {
        let durations = self.durations();
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let others: u64 = self.others.iter().map(count).sum();
        let plain = |result| {
            let counted = count(&self.others[result as usize]);
            match result {
                CacheResult::Hit => counted + durations.total().saturating_sub(others),
                _ => counted,
            }
        };
        let results = CacheResult::VARIANTS.iter();
        let lost = Reason::iter().map(|reason| (reason, count(&self.lost[reason as usize])));
        let mut lost: Vec<_> = lost.filter(|(_, count)| *count > 0).collect();
        lost.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        RouteTotals {
            path: self.path.clone(),
            requests: durations.total(),
            errors: count(&self.errors),
            demotions: self.demotions(),
            p95_ms: durations.quantile_ms(0.95),
            results: results.map(|result| (*result, plain(*result))).collect(),
            lost,
        }
    }

    fn demotions(&self) -> u64 {
        let path = self.path.clone();
        let demotions = &self.families.demotions;
        demotions.get_or_create(&DemotionLabels { path }).get()
    }

    /// Counts a request that ended in an error.
    pub fn failed(&self, method: &Method, kind: FailureKind) {
        let labels = ErrorLabels {
            method: method_label(method),
            path: self.path.clone(),
            error_type: kind.as_str(),
        };
        self.families.errors.get_or_create(&labels).inc();
        self.errors.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts that the route is not shared any more.
    pub fn demoted(&self) {
        let path = self.path.clone();
        let demotions = &self.families.demotions;
        demotions.get_or_create(&DemotionLabels { path }).inc();
    }

    fn durations(&self) -> Counts {
        let mut counts = Counts::default();
        for method in METHODS {
            let path = self.path.clone();
            let labels = PathLabels { method, path };
            if let Some(duration) = self.families.duration.get(&labels) {
                counts.add(&duration.counts());
            }
        }
        counts
    }

    /// Takes every series of this route out of its family.
    fn remove(&self) {
        let path = || self.path.clone();
        self.families
            .demotions
            .remove(&DemotionLabels { path: path() });
        for method in METHODS {
            let labels = PathLabels {
                method,
                path: path(),
            };
            self.families.duration.remove(&labels);
            for status in 100..1000 {
                self.families.requests.remove(&RequestLabels {
                    method,
                    path: path(),
                    status,
                });
            }
            for kind in FailureKind::iter() {
                self.families.errors.remove(&ErrorLabels {
                    method,
                    path: path(),
                    error_type: kind.as_str(),
                });
            }
        }
    }
}

/// The series of all routes that there are, or were a moment ago.
#[derive(Debug, Default)]
pub(super) struct RouteFamilies {
    pub families: Families,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    routes: HashMap<String, Arc<RouteSeries>>,
    /// Those that no plan has, in the order in which they went.
    gone: Vec<String>,
    /// What those have counted that are shown no more: the summary never goes back.
    retired: Counts,
    retired_errors: u64,
}

impl RouteFamilies {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock()
    }

    pub fn series(&self, path: &str) -> Arc<RouteSeries> {
        let mut known = self.known();
        known.gone.retain(|gone| gone != path);
        if let Some(series) = known.routes.get(path) {
            return Arc::clone(series);
        }
        let series = Arc::new(RouteSeries::new(path, &self.families));
        known.routes.insert(path.to_owned(), Arc::clone(&series));
        series
    }

    /// Looks which routes no plan holds any more, and lets go of those that went first.
    pub fn retire(&self) {
        let mut guard = self.known();
        let known = &mut *guard;
        let is_gone = |series: &Arc<RouteSeries>| Arc::strong_count(series) == 1;
        let gone = known.routes.iter().filter(|(_, series)| is_gone(series));
        let mut new: Vec<String> = gone
            .map(|(path, _)| path.clone())
            .filter(|path| !known.gone.contains(path))
            .collect();
        known.gone.append(&mut new);
        let most = known.gone.len().saturating_sub(MOST_GONE);
        for path in known.gone.drain(..most) {
            if let Some(series) = known.routes.remove(&path) {
                known.retired.add(&series.durations());
                known.retired_errors += series.errors.load(Ordering::Relaxed);
                series.remove();
            }
        }
    }

    pub fn each(&self) -> Vec<RouteTotals> {
        let series: Vec<_> = self.known().routes.values().cloned().collect();
        series.iter().map(|series| series.totals()).collect()
    }

    /// Durations and errors over all routes that there ever were.
    pub fn totals(&self) -> (Counts, u64) {
        let known = self.known();
        let mut durations = Counts::default();
        durations.add(&known.retired);
        let mut errors = known.retired_errors;
        for series in known.routes.values() {
            durations.add(&series.durations());
            errors += series.errors.load(Ordering::Relaxed);
        }
        (durations, errors)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_route_keeps_its_series_from_plan_to_plan() {
        let routes = RouteFamilies::default();
        let before = routes.series("/a");
        before.answered(&Method::GET, StatusCode::OK, Duration::ZERO);
        drop(before);
        routes.retire();
        assert_eq!(routes.series("/a").get_ok.get(), 1);
    }

    #[test]
    fn the_series_of_routes_that_are_gone_are_bounded_and_the_totals_never_go_back() {
        let routes = RouteFamilies::default();
        let stays = routes.series("/stays");
        for number in 0..1000 {
            let series = routes.series(&format!("/{number}"));
            series.answered(&Method::POST, StatusCode::CREATED, Duration::ZERO);
            series.failed(&Method::GET, FailureKind::Loop);
            drop(series);
            routes.retire();
        }
        assert_eq!(routes.known().routes.len(), MOST_GONE + 1);
        let (durations, errors) = routes.totals();
        assert_eq!((durations.total(), errors), (1000, 1000));
        let labels = |path: &str| RequestLabels {
            method: "POST",
            path: path.to_owned(),
            status: 201,
        };
        assert!(routes.families.requests.get(&labels("/0")).is_none());
        assert!(routes.families.requests.get(&labels("/999")).is_some());
        assert_eq!(stays.path(), "/stays");
    }
}
