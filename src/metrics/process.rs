//! What the system tells of this process (proc(5)).

use std::sync::atomic::AtomicU64;
use std::time::SystemTime;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

use super::readings::Readings;

const PAGE: u64 = 4096;

/// Of `/proc/self/stat`: what the kernel shows to all programs, whatever it counts in itself.
const TICKS_A_SECOND: f64 = 100.0;

#[derive(Debug)]
pub struct ProcessMetrics {
    begun: f64,
    cpu: Counter<f64, AtomicU64>,
    open: Gauge,
    most_open: Gauge,
    resident: Gauge,
    virtual_size: Gauge,
    limit: Gauge,
    budget: Gauge,
}

impl Default for ProcessMetrics {
    fn default() -> Self {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        Self {
            begun: now.unwrap_or_default().as_secs_f64(),
            cpu: Counter::default(),
            open: Gauge::default(),
            most_open: Gauge::default(),
            resident: Gauge::default(),
            virtual_size: Gauge::default(),
            limit: Gauge::default(),
            budget: Gauge::default(),
        }
    }
}

impl ProcessMetrics {
    pub(super) fn register(&self, registry: &mut Registry) {
        let (version, commit) = (env!("CARGO_PKG_VERSION"), env!("IRIS_COMMIT"));
        let labels = vec![("version", version), ("commit", commit)];
        registry.register("build", "What runs here", Info::new(labels));
        let begun = Gauge::<f64, AtomicU64>::default();
        begun.set(self.begun);
        registry.register(
            "process_start_time_seconds",
            "When this process started",
            begun,
        );
        registry.register(
            "process_cpu_seconds",
            "Time that this process has used of all cores",
            self.cpu.clone(),
        );
        registry.register(
            "process_open_fds",
            "Descriptors that are open",
            self.open.clone(),
        );
        registry.register(
            "process_max_fds",
            "Descriptors that may be open",
            self.most_open.clone(),
        );
        for (name, help, gauge) in [
            (
                "process_resident_memory_bytes",
                "Resident memory of this process",
                &self.resident,
            ),
            (
                "process_virtual_memory_bytes",
                "Virtual memory of this process",
                &self.virtual_size,
            ),
            // The names that the Iris operators chart.
            (
                "memory_rss_bytes",
                "Resident memory of this process",
                &self.resident,
            ),
            (
                "memory_virtual_bytes",
                "Virtual memory of this process",
                &self.virtual_size,
            ),
            (
                "memory_limit_bytes",
                "Memory that the container may have; 0 without a limit",
                &self.limit,
            ),
            (
                "memory_budget_bytes",
                "Memory that stored responses and what is in flight may take (cache.memory)",
                &self.budget,
            ),
        ] {
            registry.register(name, help, gauge.clone());
        }
    }

    /// Reads everything anew.
    pub(super) fn show(&self, readings: &Readings) {
        let set = |gauge: &Gauge, value: u64| {
            gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        };
        let text = read("/proc/self/statm");
        let mut pages = text.split_ascii_whitespace();
        let mut bytes = || {
            pages
                .next()
                .and_then(|word| word.parse::<u64>().ok())
                .unwrap_or(0)
                * PAGE
        };
        set(&self.virtual_size, bytes());
        set(&self.resident, bytes());
        let order = std::sync::atomic::Ordering::Relaxed;
        self.cpu.inner().store(cpu_seconds().to_bits(), order);
        let open = std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
        set(&self.open, open as u64);
        let limit = rlimit::Resource::NOFILE.get().map_or(0, |(soft, _)| soft);
        set(&self.most_open, limit);
        set(&self.limit, readings.memory_limit);
        set(&self.budget, readings.memory_budget);
    }
}

/// User and system time together: fields 14 and 15, counted behind the name, which may have spaces.
fn cpu_seconds() -> f64 {
    let text = read("/proc/self/stat");
    let behind = text.rsplit_once(')').map_or("", |(_, behind)| behind);
    let fields = behind.split_ascii_whitespace().skip(11).take(2);
    let ticks: f64 = fields.filter_map(|field| field.parse::<f64>().ok()).sum();
    ticks / TICKS_A_SECOND
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}
