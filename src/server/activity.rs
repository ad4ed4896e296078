//! What happens on one connection, and what its timer makes of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::task::{Context, Waker};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::config::Limits;
use crate::proxy::{InterimQueue, Offered};

/// What happened on a connection, for its timer to judge. Times are milliseconds since accept.
#[derive(Debug)]
pub struct Activity {
    pub accepted: Instant,
    heads: AtomicU64,
    in_flight: AtomicU32,
    last: AtomicU64,
    /// Since when a write waits for the client to read; `u64::MAX` when none does.
    blocked: AtomicU64,
    /// In this span of counting: how long writes have waited for the client, in milliseconds, and
    /// how many bytes it has taken.
    waited: AtomicU64,
    taken: AtomicU64,
    /// When each response body under way last gave a piece that nobody has come back from.
    handed: Mutex<Vec<Arc<Handed>>>,
    /// All of the request that is being answered has come (HTTP/1.1).
    has_said_all: AtomicBool,
    /// The connection's task, where it has to look again when the answer is given.
    looks_again: AtomicBool,
    task: Mutex<Option<Waker>>,
    /// The process ends: the next response is the last.
    is_draining: Arc<AtomicBool>,
    /// Its end is ours, and not to be lingered over.
    is_cut: AtomicBool,
    /// What the origin said before its final response.
    pub interim: Arc<InterimQueue>,
    /// Whom the stream is handed over to where its protocol is switched.
    offered: Mutex<Option<Offered>>,
}

/// So much longer than `body_timeout` one stream of HTTP/2 may stand still while another does not.
const MORE_TIME: u64 = 9;

/// When a body gave its last piece; `u64::MAX` while it is being asked for the next.
#[derive(Debug)]
pub struct Handed(AtomicU64);

impl Handed {
    pub fn asked(&self) {
        self.0.store(u64::MAX, Ordering::Relaxed);
    }

    pub fn gave(&self, activity: &Activity) {
        self.0.store(activity.now(), Ordering::Relaxed);
    }
}

/// What a connection's timer finds.
pub enum Verdict {
    WaitUntil(Instant),
    /// Nothing is asked and nothing under way: close in good order.
    Idle,
    /// The client holds the connection without using it: cut.
    Cut(&'static str),
}

impl Activity {
    /// A connection accepted just now, by a process that ends where `is_draining` says so.
    pub fn new(is_draining: Arc<AtomicBool>) -> Self {
        Self {
            accepted: Instant::now(),
            heads: AtomicU64::new(0),
            in_flight: AtomicU32::new(0),
            last: AtomicU64::new(0),
            blocked: AtomicU64::new(u64::MAX),
            waited: AtomicU64::new(0),
            taken: AtomicU64::new(0),
            handed: Mutex::default(),
            has_said_all: AtomicBool::new(false),
            looks_again: AtomicBool::new(false),
            task: Mutex::default(),
            is_draining,
            is_cut: AtomicBool::new(false),
            interim: Arc::default(),
            offered: Mutex::default(),
        }
    }

    /// Notes whether the client takes what is written to it, and how many bytes it took.
    pub fn wrote(&self, is_ready: bool, bytes: usize) {
        // Only the connection's own task writes.
        let add = |counter: &AtomicU64, more: u64| {
            let sum = counter.load(Ordering::Relaxed).saturating_add(more);
            counter.store(sum, Ordering::Relaxed);
        };
        add(&self.taken, bytes as u64);
        let blocked = self.blocked.load(Ordering::Relaxed);
        if is_ready && blocked != u64::MAX {
            add(&self.waited, self.now().saturating_sub(blocked));
            self.blocked.store(u64::MAX, Ordering::Relaxed);
        } else if !is_ready && blocked == u64::MAX {
            self.blocked.store(self.now(), Ordering::Relaxed);
        }
    }

    /// Whether the client takes less than it has to, of what waits for it. Counting begins anew
    /// where it takes enough.
    fn is_too_slow(&self, limits: &Limits) -> bool {
        let blocked = self.blocked.load(Ordering::Relaxed);
        let so_far = self.now().saturating_sub(blocked);
        let waited = self.waited.load(Ordering::Relaxed).saturating_add(so_far);
        if u128::from(waited) < limits.body_timeout.as_millis() {
            return false;
        }
        let least = limits.body_rate.saturating_mul(waited) / 1000;
        let is_too_slow = self.taken.load(Ordering::Relaxed) < least;
        if !is_too_slow {
            self.taken.store(0, Ordering::Relaxed);
            self.waited.store(0, Ordering::Relaxed);
            if blocked != u64::MAX {
                // What was waited so far counts no more than once.
                self.blocked.store(self.now(), Ordering::Relaxed);
            }
        }
        is_too_slow
    }

    pub fn now(&self) -> u64 {
        self.accepted.elapsed().as_millis() as u64
    }

    /// Watches one more response body: over HTTP/2 a client can hold one back without blocking the
    /// connection.
    pub fn watch_body(&self) -> Arc<Handed> {
        let handed = Arc::new(Handed(AtomicU64::new(self.now())));
        let mut all = self.handed.lock();
        all.retain(|handed| Arc::strong_count(handed) > 1);
        all.push(Arc::clone(&handed));
        handed
    }

    /// Since when a body is held back, or will have been: for one of several, while another is
    /// read, a client has more time, for the connection ends with it.
    fn longest_handed(&self, limit: Duration) -> u64 {
        let mut all = self.handed.lock();
        all.retain(|handed| Arc::strong_count(handed) > 1);
        let times = || all.iter().map(|handed| handed.0.load(Ordering::Relaxed));
        let (Some(oldest), Some(newest)) = (times().min(), times().max()) else {
            return u64::MAX;
        };
        let is_read = newest.saturating_add(limit.as_millis() as u64) > self.now();
        if is_read && oldest != newest {
            oldest.saturating_add(limit.as_millis() as u64 * MORE_TIME)
        } else {
            oldest
        }
    }

    /// The request that begins may switch protocols: then the stream is `to`'s.
    pub fn offer(&self, to: Offered) {
        *self.offered.lock() = Some(to);
    }

    /// Whoever waits for the stream, of those that it was offered to last.
    pub fn take_offered(&self) -> Option<Offered> {
        let mut offered = self.offered.lock();
        offered.take().filter(Offered::is_wanted)
    }

    /// For how long nothing has been under way, neither to be read nor to be written.
    pub fn rests_for(&self) -> Duration {
        let is_busy = self.in_flight.load(Ordering::Relaxed) > 0
            || self.blocked.load(Ordering::Relaxed) != u64::MAX
            || !self.has_asked();
        let since = self.now() - self.last.load(Ordering::Relaxed).min(self.now());
        Duration::from_millis(if is_busy { 0 } else { since })
    }

    /// Whether the next response is to be the connection's last.
    pub fn is_draining(&self) -> bool {
        self.is_draining.load(Ordering::Relaxed)
    }

    /// Whether any request head has come.
    pub fn has_asked(&self) -> bool {
        self.heads.load(Ordering::Relaxed) > 0
    }

    pub fn cut(&self) {
        self.is_cut.store(true, Ordering::Relaxed);
    }

    pub fn is_cut(&self) -> bool {
        self.is_cut.load(Ordering::Relaxed)
    }

    pub fn begin(&self) {
        self.heads.fetch_add(1, Ordering::Relaxed);
        self.in_flight.fetch_add(1, Ordering::Relaxed);
    }

    /// All of a request has come.
    pub fn said_all(&self) {
        self.has_said_all.store(true, Ordering::Relaxed);
    }

    /// Whether a whole request is being answered: its client may send no more, and still reads
    /// (RFC 9112 §9.6). The task is woken when that is over.
    pub fn is_answering(&self, context: &Context<'_>) -> bool {
        let is_answering =
            self.has_said_all.load(Ordering::Relaxed) && self.in_flight.load(Ordering::Relaxed) > 0;
        if is_answering {
            let mut task = self.task.lock();
            *task = Some(context.waker().clone());
            self.looks_again.store(true, Ordering::Relaxed);
        }
        is_answering
    }

    pub fn end(&self) {
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
        self.has_said_all.store(false, Ordering::Relaxed);
        // Only the connection's own task comes here.
        if self.looks_again.load(Ordering::Relaxed) {
            self.looks_again.store(false, Ordering::Relaxed);
            let mut task = self.task.lock();
            if let Some(task) = task.take() {
                task.wake();
            }
        }
        self.last.store(self.now(), Ordering::Relaxed);
    }

    pub fn verdict(&self, limits: &Limits) -> Verdict {
        let now = self.now();
        let at = |since: u64, limit: Duration| since.saturating_add(limit.as_millis() as u64);
        let wait = |until: u64| Verdict::WaitUntil(self.accepted + Duration::from_millis(until));
        let blocked = self
            .blocked
            .load(Ordering::Relaxed)
            .min(self.longest_handed(limits.body_timeout));
        if blocked != u64::MAX {
            let until = at(blocked, limits.body_timeout);
            if until > now && self.is_too_slow(limits) {
                return Verdict::Cut("the client reads too slowly (limits.body_rate)");
            }
            return if until <= now {
                Verdict::Cut("the client does not read")
            } else {
                wait(until.min(at(now, limits.body_timeout)))
            };
        }
        if self.heads.load(Ordering::Relaxed) == 0 {
            let until = at(0, limits.head_timeout);
            return if until <= now {
                Verdict::Cut("no request head in time")
            } else {
                wait(until)
            };
        }
        // While a request is under way its own deadlines count: look again later.
        let idle_since = match self.in_flight.load(Ordering::Relaxed) {
            0 => self.last.load(Ordering::Relaxed),
            _ => now,
        };
        let until = at(idle_since, limits.idle_timeout);
        if until <= now {
            return Verdict::Idle;
        }
        // A write that begins to block now must be noticed in its own time.
        wait(until.min(at(now, limits.body_timeout)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits() -> Limits {
        Limits {
            head_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(75),
            body_timeout: Duration::from_secs(60),
            body_rate: 512,
            ..Limits::default()
        }
    }

    /// Seconds after accept at which the timer looks again, or what it does at once.
    async fn after(activity: &Activity, seconds: u64) -> Result<u64, &'static str> {
        tokio::time::advance(Duration::from_secs(seconds)).await;
        match activity.verdict(&limits()) {
            Verdict::WaitUntil(until) => Ok((until - activity.accepted).as_secs()),
            Verdict::Idle => Err("idle"),
            Verdict::Cut(why) => Err(why),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_never_asks_is_told_from_one_that_is_idle() {
        let silent = Activity::new(Arc::default());
        assert_eq!(after(&silent, 9).await, Ok(10));
        assert_eq!(after(&silent, 1).await, Err("no request head in time"));
        let idle = Activity::new(Arc::default());
        idle.begin();
        idle.end();
        assert_eq!(after(&idle, 30).await, Ok(75));
        assert_eq!(after(&idle, 45).await, Err("idle"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_nobody_comes_back_for_is_cut() {
        let activity = Activity::new(Arc::default());
        activity.begin();
        let held_back = activity.watch_body();
        held_back.gave(&activity);
        assert_eq!(after(&activity, 59).await, Ok(60));
        assert_eq!(after(&activity, 1).await, Err("the client does not read"));
        drop(held_back);
        assert!(
            after(&activity, 600).await.is_ok(),
            "an event stream may be silent for long"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn one_stream_that_stands_still_has_more_time_while_another_is_read() {
        let activity = Activity::new(Arc::default());
        activity.begin();
        let (read, held_back) = (activity.watch_body(), activity.watch_body());
        held_back.gave(&activity);
        for _ in 0..9 {
            read.gave(&activity);
            assert!(after(&activity, 59).await.is_ok());
            read.asked();
        }
        assert!(after(&activity, 60).await.is_ok());
        assert_eq!(after(&activity, 60).await, Err("the client does not read"));
        // Nothing is read any more: as with one alone.
        let activity = Activity::new(Arc::default());
        activity.begin();
        let (one, other) = (activity.watch_body(), activity.watch_body());
        one.gave(&activity);
        other.gave(&activity);
        assert_eq!(after(&activity, 60).await, Err("the client does not read"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_under_way_is_never_idle_but_a_client_that_does_not_read_is_cut() {
        let activity = Activity::new(Arc::default());
        activity.begin();
        assert_eq!(after(&activity, 1000).await, Ok(1060));
        activity.wrote(false, 0);
        assert_eq!(after(&activity, 30).await, Ok(1060));
        activity.wrote(true, 1);
        activity.wrote(false, 0);
        assert_eq!(after(&activity, 60).await, Err("the client does not read"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_reads_by_drops_is_cut_and_a_slow_one_is_not() {
        for (bytes, expected) in [(100, Err(())), (600, Ok(()))] {
            let activity = Activity::new(Arc::default());
            activity.begin();
            let mut outcome = Ok(());
            for _ in 0..600 {
                activity.wrote(false, 0);
                if after(&activity, 1).await.is_err() {
                    outcome = Err(());
                }
                activity.wrote(true, bytes);
            }
            assert_eq!(outcome, expected, "{bytes} bytes a second");
        }
        // Who is not waited for reads as slowly as it likes.
        let activity = Activity::new(Arc::default());
        activity.begin();
        for _ in 0..600 {
            activity.wrote(true, 1);
            assert!(after(&activity, 1).await.is_ok());
        }
    }
}
