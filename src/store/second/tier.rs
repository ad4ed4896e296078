//! The second tier as the rest of the house asks it: whether it can be asked, what it tells by
//! itself, and what goes on behind it.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures_util::future::join_all;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::{Notify, Semaphore, broadcast, mpsc, watch};
use tokio::time::{Instant, timeout};

use crate::metrics::Metrics;
use crate::metrics::second::Command;

use super::breaker::Breaker;
use super::lease::Leases;
use super::seal::Seal;
use super::write::Write;
use super::{Event, Instance, Patience, SecondTier, TierError};

/// Look-ups that are under way at one time.
const READS_AT_ONCE: usize = 256;

/// Recalls that may wait to be heard.
const RECALLS: usize = 1024;

/// What is kept where, and up to which size.
#[derive(Clone, Debug)]
pub struct Extent {
    /// What every name begins with.
    pub prefix: String,
    /// Larger bodies stay out.
    pub max_object: u64,
    /// With what values are sealed.
    pub seal: Seal,
}

/// One look at the purge log.
#[derive(Clone, Copy, Debug)]
pub(super) struct Look {
    begun: Instant,
    listening: u64,
}

/// A second tier that can be ill.
pub struct Second {
    pub(super) tier: Arc<dyn SecondTier>,
    pub(super) patience: Patience,
    pub(super) metrics: Arc<Metrics>,
    pub(super) extent: Extent,
    pub(super) breaker: Arc<Breaker>,
    pub(super) leases: Arc<Leases>,
    pub(super) writes: mpsc::Sender<Write>,
    /// Values are in memory beside the budget until they are judged.
    pub(super) reads: Semaphore,
    pub(super) settling: AtomicUsize,
    started: Instant,
    /// Microseconds after `started` at which this instance last could not know who else lives; 0
    /// for never.
    blind: AtomicU64,
    /// How many instances were heard, and microseconds after `started` at which they were.
    instances: AtomicU64,
    instances_at: AtomicU64,
    /// Where the others reach this instance's admin port.
    admin: OnceLock<SocketAddr>,
    /// The others, and where theirs are, as they were heard last.
    others: Mutex<Vec<(String, SocketAddr)>>,
    /// The last purges that were appended are in one server alone.
    in_one_server: AtomicBool,
    /// Why it cannot be reached.
    trouble: Mutex<Option<String>>,
    /// Purges are appended, as far as was seen.
    takes_purges: AtomicBool,
    /// This instance serves nothing any more.
    pub(super) has_left: AtomicBool,
    /// Microseconds after `started` at which a beat was heard last.
    beat: AtomicU64,
    /// Counts beginnings and ends of listening; odd while everything is told.
    listening: AtomicU64,
    /// Microseconds after `started` until which values can be judged; 0 for not at all.
    judged_until: AtomicU64,
    /// The purge log has grown, or may have.
    pub(super) grown: Notify,
    /// Small values that are being written.
    pub(super) notes: Arc<Semaphore>,
    /// Names of limits of which nothing may be held any more.
    pub(super) recalls: broadcast::Sender<String>,
    /// Counts looks at the purge log.
    pub(super) looks: watch::Sender<u64>,
    pub(super) background: Handle,
}

impl Second {
    /// Starts what goes on behind it on `background`: writes, releases, events, and probes while it
    /// is ill. Values are read once the purge log is followed too.
    pub fn start(
        tier: Arc<dyn SecondTier>,
        events: mpsc::UnboundedReceiver<Event>,
        extent: Extent,
        patience: Patience,
        metrics: Arc<Metrics>,
        background: &Handle,
    ) -> Arc<Self> {
        let (writes, to_write) = mpsc::channel(patience.queue);
        let (releases, to_release) = mpsc::unbounded_channel();
        let second = Arc::new(Self {
            breaker: Arc::new(Breaker::new(patience)),
            leases: Leases::new(releases),
            tier,
            patience,
            metrics,
            extent,
            writes,
            reads: Semaphore::new(READS_AT_ONCE),
            settling: AtomicUsize::new(0),
            started: Instant::now(),
            blind: AtomicU64::new(0),
            instances: AtomicU64::new(1),
            instances_at: AtomicU64::new(0),
            admin: OnceLock::new(),
            others: Mutex::default(),
            in_one_server: AtomicBool::new(false),
            trouble: Mutex::default(),
            takes_purges: AtomicBool::new(true),
            has_left: AtomicBool::new(false),
            beat: AtomicU64::new(0),
            listening: AtomicU64::new(0),
            judged_until: AtomicU64::new(0),
            grown: Notify::new(),
            notes: Self::notes_at_once(),
            recalls: broadcast::Sender::new(RECALLS),
            looks: watch::Sender::new(0),
            background: background.clone(),
        });
        let breaker = Arc::clone(&second.breaker);
        background.spawn(breaker.probe(Arc::clone(&second.tier)));
        background.spawn(Arc::clone(&second).write(to_write));
        background.spawn(Arc::clone(&second).release(to_release));
        background.spawn(Arc::clone(&second).hear(events));
        background.spawn(Arc::clone(&second).renew());
        second
    }

    /// Whether asking it now makes sense.
    pub fn is_usable(&self) -> bool {
        self.why_not().is_none()
    }

    pub(super) fn why_not(&self) -> Option<TierError> {
        if self.breaker.is_open() {
            return Some(TierError::Open);
        }
        let now = self.started.elapsed().as_micros() as u64;
        (now >= self.judged_until.load(Ordering::Relaxed)).then_some(TierError::Unheard)
    }

    /// Whether values can be judged: the purge log was heard a moment ago.
    pub fn is_heard(&self) -> bool {
        !matches!(self.why_not(), Some(TierError::Unheard))
    }

    /// How long a look-up may take, with the question who fetches.
    pub fn read_deadline(&self) -> Duration {
        self.patience.read
    }

    pub fn breaker_is_open(&self) -> bool {
        self.breaker.is_open()
    }

    /// Fetches of other instances that are waited for.
    pub fn waiting(&self) -> usize {
        self.leases.waiting()
    }

    /// Writes and ends of leases that are under way.
    pub(super) fn settling(&self) -> usize {
        self.settling.load(Ordering::Relaxed)
    }

    /// Writes that wait.
    pub fn queued(&self) -> usize {
        self.writes.max_capacity() - self.writes.capacity()
    }

    /// A look at the purge log begins.
    pub(super) fn look(&self) -> Look {
        Look {
            begun: Instant::now(),
            listening: self.listening.load(Ordering::Relaxed),
        }
    }

    /// Looks go well, and nothing is heard: listens anew. Whether that was so.
    pub(super) fn revive(&self) -> bool {
        let heard = Duration::from_micros(self.beat.load(Ordering::Relaxed));
        let is_dead = self.started.elapsed().saturating_sub(heard) > self.patience.unheard;
        if is_dead {
            let now = self.started.elapsed().as_micros() as u64;
            self.beat.store(now, Ordering::Relaxed);
            self.tier.listen_anew();
        }
        is_dead
    }

    /// Whether this instance may still be connecting for the first time.
    pub(super) fn starts(&self) -> bool {
        self.started.elapsed() < self.patience.unheard
    }

    /// Nothing is heard, or another log was found in the place of the known one: who is alive is
    /// not known, for a while.
    pub(super) fn is_blind(&self) {
        let now = self.started.elapsed().as_micros() as u64;
        self.blind.store(now, Ordering::Relaxed);
    }

    /// Whether some that are alive may not have shown up yet: each that still serves what is older
    /// does within `max_silence`.
    pub fn may_miss_instances(&self) -> bool {
        let at = Duration::from_micros(self.blind.load(Ordering::Relaxed));
        let since = self.started.elapsed().saturating_sub(at);
        !at.is_zero() && since < self.patience.max_silence
    }

    /// So many instances have looked at the purge log; fewer count once the others may be gone.
    pub(super) fn note_instances(&self, count: u64) {
        let now = self.started.elapsed().as_micros() as u64;
        let since = now.saturating_sub(self.instances_at.load(Ordering::Relaxed));
        let is_over = Duration::from_micros(since) > self.patience.max_silence;
        if count >= self.instances.load(Ordering::Relaxed) || is_over {
            self.instances.store(count.max(1), Ordering::Relaxed);
            self.instances_at.store(now, Ordering::Relaxed);
        }
    }

    /// How many instances there are, as far as was heard: at least this one.
    pub fn instances(&self) -> u64 {
        self.instances.load(Ordering::Relaxed)
    }

    /// Tells the others where the admin port of this instance is.
    pub fn set_admin(&self, address: SocketAddr) {
        let _ = self.admin.set(address);
    }

    pub(super) fn admin(&self) -> Option<SocketAddr> {
        self.admin.get().copied()
    }

    /// Remembers where the others are, for when Redis cannot be asked. An address that is a
    /// machine's own leads to another instance only on that machine.
    pub(super) fn note_others(&self, instances: &[Instance]) {
        let is_here = |name: &str| host_of(name) == host_of(self.tier.name());
        let other = |instance: &Instance| {
            let admin = instance
                .admin
                .filter(|_| instance.name != self.tier.name())?;
            let is_reached = !admin.ip().is_loopback() || is_here(&instance.name);
            is_reached.then(|| (instance.name.clone(), admin))
        };
        let mut others = self.others.lock();
        *others = instances.iter().filter_map(other).collect();
    }

    pub fn others(&self) -> Vec<(String, SocketAddr)> {
        let others = self.others.lock();
        others.clone()
    }

    fn set_trouble(&self, why: Option<String>) {
        *self.trouble.lock() = why;
    }

    /// Why it cannot be reached, as far as somebody said.
    pub(super) fn trouble(&self) -> Option<String> {
        let trouble = self.trouble.lock();
        trouble.clone()
    }

    /// Whether Redis has taken the last purges, as far as it was asked.
    pub(super) fn note_taken(&self, has_taken: bool) {
        self.takes_purges.store(has_taken, Ordering::Relaxed);
    }

    /// Whether waiting for it to take purges makes sense.
    pub(super) fn takes_purges(&self) -> bool {
        self.takes_purges.load(Ordering::Relaxed)
    }

    /// How the last purges were appended.
    pub(super) fn note_appended(&self, in_one_server: bool) {
        self.in_one_server.store(in_one_server, Ordering::Relaxed);
    }

    /// Whether a failover of Redis could lose the last purges.
    pub fn is_in_one_server(&self) -> bool {
        self.in_one_server.load(Ordering::Relaxed)
    }

    /// How long an instance that is not heard may serve what it has stored.
    pub fn max_silence(&self) -> Duration {
        self.patience.max_silence
    }

    /// It read the log to its end.
    pub(super) fn heard(&self, look: Look) {
        // One that began before everything is told may have missed what came between.
        let listening = self.listening.load(Ordering::Relaxed);
        if listening % 2 == 1 && look.listening == listening {
            let until = look.begun + self.patience.unheard;
            let until = until.duration_since(self.started).as_micros() as u64;
            self.judged_until.fetch_max(until, Ordering::Relaxed);
        }
    }

    /// The purge log is out of reach, and so is what ends leases.
    pub(super) fn unheard(&self) {
        self.judged_until.store(0, Ordering::Relaxed);
        self.leases.lose();
    }

    pub(super) fn judge<T>(&self, result: &Result<T, TierError>) {
        if self.breaker.judge(result) {
            self.leases.lose();
        }
    }

    async fn hear(self: Arc<Self>, mut events: mpsc::UnboundedReceiver<Event>) {
        while let Some(event) = events.recv().await {
            match event {
                Event::Settled { lease, outcome } => self.leases.ended(&lease, outcome),
                Event::LogGrew => self.grown.notify_one(),
                Event::Recalled { name } => drop(self.recalls.send(name)),
                Event::Beat => {
                    let now = self.started.elapsed().as_micros() as u64;
                    self.beat.store(now, Ordering::Relaxed);
                }
                Event::Listening => {
                    self.set_trouble(None);
                    self.interrupt(1);
                    self.grown.notify_one();
                }
                Event::Interrupted => self.interrupt(0),
                Event::Trouble { why } => self.set_trouble(Some(why)),
            }
        }
    }

    /// Something may have been missed until now, or from now on.
    fn interrupt(&self, becomes: u64) {
        let listening = self.listening.load(Ordering::Relaxed);
        let next = (listening + 2) & !1 | becomes;
        self.listening.store(next, Ordering::Relaxed);
        self.unheard();
    }

    /// Keeps what is held for longer than a third of its time.
    async fn renew(self: Arc<Self>) {
        loop {
            let due = self.leases.due().await;
            let renewing = due.iter().map(|(lease, token, ttl)| {
                self.metrics.second.asked(Command::Renew);
                timeout(self.patience.write, self.tier.renew(lease, *token, *ttl))
            });
            if !self.breaker.is_open() {
                // At once: one that is not answered keeps no other from it.
                join_all(renewing).await;
            }
        }
    }
}

/// The host in the name of an instance: what stands before process and random digits.
fn host_of(name: &str) -> &str {
    name.rsplitn(3, '-').nth(2).unwrap_or_default()
}
