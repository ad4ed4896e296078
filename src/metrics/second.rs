//! What the second tier costs and brings: look-ups, writes, commands, leases.

use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use strum::{IntoStaticStr, VariantArray};

use super::by_variant::ByVariant;
use super::latency::Latency;

/// How a look-up in the second tier ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum Reading {
    /// There is a value; what it is worth is judged after.
    Found,
    /// None: this instance fetches.
    Miss,
    /// None: another instance fetches.
    Wait,
    /// A value that cannot be read: deleted.
    Invalid,
    Late,
    /// Not asked: too many look-ups were under way.
    Busy,
    /// Not asked: the breaker is open.
    Open,
    /// Not asked: the purge log is out of reach.
    Unheard,
    Failed,
}

/// What became of a response that was to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum Writing {
    Stored,
    /// Not written: the queue was full, or the tier ill.
    Dropped,
    TooLarge,
    Failed,
}

/// What is sent to the second tier: each is one round trip.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum Command {
    LookUp,
    Settle,
    Renew,
    Delete,
    Append,
    Sync,
    Instances,
    Used,
    Noted,
    Note,
    Take,
}

/// What a value that was found turned out to be worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum Worth {
    /// Answered from, fresh or within a grace window.
    Used,
    /// Kept: the origin is asked whether it still holds, and it stands in where the origin fails.
    Validated,
    /// Unusable by a purge, or by the request's own words.
    Unusable,
}

/// How another instance's fetch ended for those who waited here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum Awaited {
    Stored,
    NotStorable,
    TooLarge,
    Dropped,
    Failed,
    Expired,
    Lost,
    /// Not waited for any longer.
    TimedOut,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PartLabels {
    part: &'static str,
}

/// Sizes and states that live in the second tier's room.
#[derive(Clone, Copy, Debug, Default)]
pub struct SecondReadings {
    pub breaker_is_open: bool,
    /// Values can be judged: the purge log was heard a moment ago.
    pub is_heard: bool,
    /// Of the fleet's purge log, as far as it was read.
    pub position: u64,
    /// Milliseconds since the log was last read to its end.
    pub silence_ms: u64,
    /// Purges that the fleet does not know of yet.
    pub pending: u64,
    pub queued: u64,
    pub waiting: u64,
}

/// Handles of the second tier's families.
#[derive(Debug, Default)]
pub struct SecondMetrics {
    reads: ByVariant<Reading>,
    worths: ByVariant<Worth>,
    writes: ByVariant<Writing>,
    commands: ByVariant<Command>,
    awaited: ByVariant<Awaited>,
    led: Counter,
    body_bytes: Counter,
    overhead_bytes: Counter,
    purged_elsewhere: Counter,
    warmed: Counter,
    strange: Counter,
    duration: Latency,
    breaker_open: Gauge,
    heard: Gauge,
    position: Gauge,
    silence: Gauge,
    pending: Gauge,
    queued: Gauge,
    waiting: Gauge,
}

impl SecondMetrics {
    pub(super) fn register(&mut self, registry: &mut Registry) {
        self.reads = ByVariant::register(
            registry,
            "cache_l2_reads",
            "Look-ups in Redis, by how they ended",
            "result",
        );
        self.worths = ByVariant::register(
            registry,
            "cache_l2_values",
            "Values found in Redis, by what they were worth",
            "result",
        );
        self.writes = ByVariant::register(
            registry,
            "cache_l2_writes",
            "Responses to be written to Redis, by what became of them",
            "result",
        );
        self.awaited = ByVariant::register(
            registry,
            "cache_leases_awaited",
            "Fetches of other instances that were waited for, by how they ended",
            "result",
        );
        self.commands = ByVariant::register(
            registry,
            "cache_l2_commands",
            "Round trips to Redis, by kind",
            "command",
        );
        let bytes = Family::<PartLabels, Counter>::default();
        registry.register(
            "cache_l2_written_bytes",
            "Bytes of responses written to Redis: of bodies, packed where they are, and of keys, \
                fields and numbers beside them",
            bytes.clone(),
        );
        self.body_bytes = bytes.get_or_create_owned(&PartLabels { part: "body" });
        self.overhead_bytes = bytes.get_or_create_owned(&PartLabels { part: "beside" });
        let counters = [
            (
                "cache_leases_led",
                "Fetches that this instance made for the fleet",
                &self.led,
            ),
            (
                "cache_purges_elsewhere",
                "Purges of other instances that were applied here",
                &self.purged_elsewhere,
            ),
            (
                "cache_l2_warmed",
                "Responses taken from Redis before anybody asked",
                &self.warmed,
            ),
            (
                "cache_purge_log_passed_over",
                "Entries of the fleet's purge log that no instance has written",
                &self.strange,
            ),
        ];
        for (name, help, counter) in counters {
            registry.register(name, help, counter.clone());
        }
        registry.register(
            "cache_l2_read_duration_ms",
            "Milliseconds that a look-up in Redis took",
            self.duration.clone(),
        );
        let gauges = [
            (
                "cache_l2_breaker_open",
                "1 while Redis failed too often and is not asked",
                &self.breaker_open,
            ),
            (
                "cache_l2_heard",
                "1 while the purge log is followed, without which nothing is read from Redis",
                &self.heard,
            ),
            ("cache_l2_queue", "Writes to Redis that wait", &self.queued),
            (
                "cache_leases_waiting",
                "Fetches of other instances that are waited for, now",
                &self.waiting,
            ),
            (
                "cache_purge_log_position",
                "How far the fleet's purge log was read",
                &self.position,
            ),
            (
                "cache_purge_log_silence_ms",
                "Milliseconds since the fleet's purge log was last read to its end",
                &self.silence,
            ),
            (
                "cache_purges_pending",
                "Purges of this instance that the fleet does not know of yet",
                &self.pending,
            ),
        ];
        for (name, help, gauge) in gauges {
            registry.register(name, help, gauge.clone());
        }
    }

    /// Entries of the purge log that nobody of the fleet has written were passed over.
    pub fn passed_over(&self, count: usize) {
        self.strange.inc_by(count as u64);
    }

    pub fn read(&self, how: Reading) {
        self.reads.inc(how);
    }

    pub fn worth(&self, what: Worth) {
        self.worths.inc(what);
    }

    pub fn wrote(&self, how: Writing) {
        self.writes.inc(how);
    }

    pub fn asked(&self, command: Command) {
        self.commands.inc(command);
    }

    pub fn awaited(&self, how: Awaited) {
        self.awaited.inc(how);
    }

    pub fn led(&self) {
        self.led.inc();
    }

    pub fn warmed(&self) {
        self.warmed.inc();
    }

    pub fn answered(&self, elapsed: Duration) {
        self.duration.observe(elapsed);
    }

    /// A response was written: its body as it stands there, and what stands beside that.
    pub fn stored(&self, body: usize, beside: usize) {
        self.body_bytes.inc_by(body as u64);
        self.overhead_bytes.inc_by(beside as u64);
    }

    pub fn purged_elsewhere(&self, count: u64) {
        self.purged_elsewhere.inc_by(count);
    }

    pub(super) fn show(&self, readings: SecondReadings) {
        let set = |gauge: &Gauge, value: u64| {
            gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        };
        set(&self.breaker_open, u64::from(readings.breaker_is_open));
        set(&self.heard, u64::from(readings.is_heard));
        set(&self.position, readings.position);
        set(&self.silence, readings.silence_ms);
        set(&self.pending, readings.pending);
        set(&self.queued, readings.queued);
        set(&self.waiting, readings.waiting);
    }
}
