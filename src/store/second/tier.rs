//! The second tier as the rest of the house asks it: look-ups within one deadline, writes and
//! releases behind the asker's back, and nothing at all while it is ill.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use http::{HeaderMap, HeaderName};
use tokio::runtime::Handle;
use tokio::sync::{Notify, Semaphore, mpsc, oneshot, watch};
use tokio::time::{Instant, interval, timeout, timeout_at};
use tracing::debug;

use crate::clock::Timestamp;
use crate::metrics::Metrics;
use crate::metrics::second::{Command, Reading, Writing};
use crate::policy::vary::append_selecting;
use crate::store::codec::{self, Decoded, Encoded};
use crate::store::entry::Entry;
use crate::store::purge::fleet::Stamp;

use super::breaker::Breaker;
use super::lease::Leases;
use super::names::Names;
use super::used::UsedKey;
use super::{
    Answer, Event, FINGERPRINT, Lease, Outcome, Patience, Place, Question, RECORD, SecondTier,
    Settlement, Store, TierError, Waiting, Wants,
};

/// Look-ups that are under way at one time.
const READS_AT_ONCE: usize = 256;

/// KiB of bodies that are written at one time, each at least one.
const WRITTEN_AT_ONCE: u32 = 32 << 10;

/// Writes that are under way at one time.
const WRITES_AT_ONCE: u32 = 32;

/// Bodies from this size are packed on a thread of their own.
const PACKED_APART: usize = 32 << 10;

/// What is kept where, and up to which size.
#[derive(Clone, Debug)]
pub struct Extent {
    /// What every name begins with.
    pub prefix: String,
    /// Larger bodies stay out.
    pub max_object: u64,
}

/// What a look-up is about.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    pub primary: &'a [u8],
    /// The request's fields, which select among variants.
    pub request: &'a HeaderMap,
    /// The fetch is shared only among those with a credential.
    pub is_apart: bool,
    /// How far the fleet's purge log was read here.
    pub position: u64,
    pub deadline: Instant,
}

/// What a look-up found.
#[derive(Debug)]
pub enum Found {
    Value(Box<Fresh>),
    /// Nothing, and the fetch is this instance's.
    Lead(Lease),
    /// Nothing yet: another instance fetches.
    Wait(Elsewhere),
}

/// A value as it came, not judged yet, and where it stands.
#[derive(Debug)]
pub struct Fresh {
    pub value: Decoded,
    pub spot: Spot,
}

/// Where a look-up ended.
#[derive(Clone, Debug)]
pub struct Spot {
    pub place: Place,
    /// Of a variant; empty for what is none.
    generation: Bytes,
    /// How the value there began; empty where there was none.
    known: Bytes,
}

impl Spot {
    fn new(place: Place, generation: Bytes) -> Self {
        Self {
            place,
            generation,
            known: Bytes::new(),
        }
    }

    fn holding(self, value: &Bytes) -> Self {
        Self {
            known: value.slice(..value.len().min(FINGERPRINT)),
            ..self
        }
    }
}

/// Another instance's fetch.
#[derive(Debug)]
pub struct Elsewhere {
    pub waiting: Waiting,
    pub spot: Spot,
    /// Of its lease.
    pub token: u64,
    /// Of the fleet's purge log, when it began.
    pub position: u64,
    pub left: Duration,
    /// It is this instance's own: of a fetch that a purge has outdated.
    pub is_own: bool,
}

/// One look at the purge log.
#[derive(Clone, Copy, Debug)]
pub(super) struct Look {
    begun: Instant,
    listening: u64,
}

struct Write {
    names: Names,
    entry: Arc<Entry>,
    stamp: Stamp,
    ttl: Duration,
    lease: Option<Lease>,
}

/// A second tier that can be ill.
pub struct Second {
    pub(super) tier: Arc<dyn SecondTier>,
    pub(super) patience: Patience,
    pub(super) metrics: Arc<Metrics>,
    extent: Extent,
    breaker: Arc<Breaker>,
    leases: Arc<Leases>,
    writes: mpsc::Sender<Write>,
    /// Values are in memory beside the budget until they are judged.
    reads: Semaphore,
    settling: AtomicUsize,
    started: Instant,
    /// Microseconds after `started` at which a beat was heard last.
    beat: AtomicU64,
    /// Counts beginnings and ends of listening; odd while everything is told.
    listening: AtomicU64,
    /// Microseconds after `started` until which values can be judged; 0 for not at all.
    judged_until: AtomicU64,
    /// The purge log has grown, or may have.
    pub(super) grown: Notify,
    /// Counts looks at the purge log.
    pub(super) looks: watch::Sender<u64>,
    background: Handle,
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
            beat: AtomicU64::new(0),
            listening: AtomicU64::new(0),
            judged_until: AtomicU64::new(0),
            grown: Notify::new(),
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

    fn why_not(&self) -> Option<TierError> {
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

    /// Looks up what answers a request, or who fetches it: one round trip, two for a variant.
    pub async fn look_up(&self, wanted: Wanted<'_>) -> Result<Found, TierError> {
        let found = self.steps(wanted).await;
        self.metrics.second.read(match &found {
            Ok(Found::Value(_)) => Reading::Found,
            Ok(Found::Lead(_)) => Reading::Miss,
            Ok(Found::Wait(_)) => Reading::Wait,
            Err(error) => error.into(),
        });
        found
    }

    async fn steps(&self, wanted: Wanted<'_>) -> Result<Found, TierError> {
        let names = Names::of(&self.extent.prefix, wanted.primary);
        let spot = Spot::new(names.place(wanted.is_apart), Bytes::new());
        match self.ask(&spot, Wants::Value, &wanted).await? {
            Answered::Value(value) => self.found(spot, value, wanted).await,
            other => other.lease(),
        }
    }

    /// Asks for the lease of a value that is of no use. Where another one has taken its place
    /// meanwhile, that is what is found.
    pub async fn claim(
        &self,
        spot: Spot,
        wants: Wants,
        wanted: Wanted<'_>,
    ) -> Result<Found, TierError> {
        match self.ask(&spot, wants, &wanted).await? {
            Answered::Value(value) => self.found(spot, value, wanted).await,
            other => other.lease(),
        }
    }

    /// What stands at a spot: a response, or the record of what its variants are selected by.
    async fn found(
        &self,
        spot: Spot,
        value: Bytes,
        wanted: Wanted<'_>,
    ) -> Result<Found, TierError> {
        let record = record(&value).filter(|_| spot.generation.is_empty());
        let Some((generation, names)) = record else {
            return self.decoded(spot, value, wanted).await;
        };
        let mut selected = Vec::new();
        append_selecting(&names, wanted.request, &mut selected);
        let names = Names::of(&self.extent.prefix, wanted.primary);
        let spot = Spot::new(names.variant(&selected, wanted.is_apart), generation);
        match self.ask(&spot, Wants::Value, &wanted).await? {
            Answered::Value(value) => self.decoded(spot, value, wanted).await,
            other => other.lease(),
        }
    }

    async fn decoded(
        &self,
        spot: Spot,
        value: Bytes,
        wanted: Wanted<'_>,
    ) -> Result<Found, TierError> {
        let body = value.get(spot.generation.len()..).unwrap_or_default();
        let spot = spot.clone().holding(&value);
        match codec::decode(body, self.extent.max_object) {
            Ok(value) => Ok(Found::Value(Box::new(Fresh { value, spot }))),
            Err(error) => {
                let name = &spot.place.value;
                debug!(%error, name, "a value from Redis cannot be read");
                self.metrics.second.read(Reading::Invalid);
                self.discard(name.clone());
                // Nobody can read it: whoever asks next finds nothing there.
                self.ask(&spot, Wants::Lease, &wanted).await?.lease()
            }
        }
    }

    /// One question, in a task of its own: a lease that comes after the deadline is given back.
    async fn ask(
        &self,
        spot: &Spot,
        wants: Wants,
        wanted: &Wanted<'_>,
    ) -> Result<Answered, TierError> {
        if let Some(reason) = self.why_not() {
            return Err(reason);
        }
        // That it took too long to be asked says nothing of Redis.
        let Ok(Ok(_permit)) = timeout_at(wanted.deadline, self.reads.acquire()).await else {
            return Err(TierError::Busy);
        };
        let token = uuid::Uuid::new_v4().as_u64_pair().1.max(1);
        let question = Question {
            place: spot.place.clone(),
            wants,
            generation: spot.generation.clone(),
            known: spot.known.clone(),
            token,
            lease_ttl: self.patience.lease,
            position: wanted.position,
        };
        let (answer, answered) = oneshot::channel();
        let (tier, leases) = (Arc::clone(&self.tier), Arc::clone(&self.leases));
        let (limit, spot) = (self.patience.write, spot.clone());
        self.metrics.second.asked(Command::LookUp);
        self.background.spawn(async move {
            let waiting = leases.listen(&spot.place.lease);
            let asked = timeout(limit, tier.look_up(question)).await;
            let asked = asked.unwrap_or(Err(TierError::Late));
            let _ = answer.send(asked.map(|answer| match answer {
                Answer::Value(value) => Answered::Value(value),
                Answer::Nothing => Answered::Nothing,
                Answer::Lead => Answered::Lease(Found::Lead(leases.hold(spot.place, token))),
                Answer::Wait {
                    token,
                    position,
                    left,
                } => Answered::Lease(Found::Wait(Elsewhere {
                    is_own: leases.holds(&spot.place.lease, token),
                    waiting,
                    spot,
                    token,
                    position,
                    left,
                })),
            }));
        });
        let begun = Instant::now();
        let result = match timeout_at(wanted.deadline, answered).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(TierError::Failed("the process ends".to_owned())),
            Err(_) => Err(TierError::Late),
        };
        self.metrics.second.answered(begun.elapsed());
        self.judge(&result);
        result
    }

    /// The value of a response that is used much, if there is one that can be read.
    pub async fn value(&self, key: &UsedKey) -> Result<Option<Decoded>, TierError> {
        let wanted = Wanted {
            primary: key.primary(),
            request: &HeaderMap::new(),
            is_apart: false,
            position: 0,
            deadline: Instant::now() + self.patience.write,
        };
        let names = Names::of(&self.extent.prefix, key.primary());
        let mut spot = Spot::new(names.place(false), Bytes::new());
        loop {
            let asked = self.ask(&spot, Wants::ValueAlone, &wanted).await?;
            let Answered::Value(value) = asked else {
                return Ok(None);
            };
            match record(&value).filter(|_| spot.generation.is_empty()) {
                Some((generation, _)) => {
                    spot = Spot::new(names.variant(key.selecting(), false), generation);
                }
                None => {
                    let body = value.get(spot.generation.len()..).unwrap_or_default();
                    return Ok(codec::decode(body, self.extent.max_object).ok());
                }
            }
        }
    }

    /// The keys that the fleet used most, the most used first.
    pub async fn most_used(&self, hour: u64, most: usize) -> Result<Vec<UsedKey>, TierError> {
        self.metrics.second.asked(Command::Used);
        let asked = timeout(self.patience.write, self.tier.most_used(hour, most)).await;
        let mut sums: HashMap<Bytes, u64> = HashMap::new();
        for (key, uses) in asked.unwrap_or(Err(TierError::Late))? {
            *sums.entry(key).or_default() += uses;
        }
        let mut sums: Vec<_> = sums.into_iter().collect();
        sums.sort_by_key(|(_, uses)| std::cmp::Reverse(*uses));
        let keys = sums.into_iter().filter_map(|(key, _)| UsedKey::read(key));
        Ok(keys.take(most).collect())
    }

    /// Tells the fleet what was used here.
    pub async fn note_used(&self, hour: u64, counts: Vec<(Bytes, u64)>) -> Result<(), TierError> {
        self.metrics.second.asked(Command::Used);
        let asked = timeout(self.patience.write, self.tier.note_used(hour, counts)).await;
        asked.unwrap_or(Err(TierError::Late))
    }

    fn judge<T>(&self, result: &Result<T, TierError>) {
        if self.breaker.judge(result) {
            self.leases.lose();
        }
    }

    /// Writes behind the caller's back, and ends the lease with it; drops the value where too many
    /// wait already. `stamp` is the place in the fleet's purge log where its fetch began; `None`
    /// where nobody knows.
    pub fn put(
        &self,
        primary: &[u8],
        entry: Arc<Entry>,
        stamp: Option<Stamp>,
        lease: Option<Lease>,
        now: Timestamp,
    ) {
        let ttl = time_to_live(&entry, now);
        let lease = match lease {
            // Who waits could not use it: each must ask the origin.
            Some(lease) if !entry.view().is_reusable(now) => {
                lease.end(Outcome::NotStorable);
                None
            }
            lease => lease,
        };
        let outcome = match (stamp, ttl) {
            _ if entry.body().len() as u64 > self.extent.max_object => {
                self.metrics.second.wrote(Writing::TooLarge);
                Outcome::TooLarge
            }
            (Some(stamp), Some(ttl)) if self.is_usable() => {
                let names = Names::of(&self.extent.prefix, primary);
                let write = Write {
                    names,
                    entry,
                    stamp,
                    ttl,
                    lease,
                };
                let Err(refused) = self.writes.try_send(write) else {
                    return;
                };
                self.metrics.second.wrote(Writing::Dropped);
                if let Some(lease) = refused.into_inner().lease {
                    lease.end(Outcome::Dropped);
                }
                return;
            }
            // Nothing of it would outlast the way there.
            (_, None) => Outcome::NotStorable,
            _ => {
                self.metrics.second.wrote(Writing::Dropped);
                Outcome::Dropped
            }
        };
        if let Some(lease) = lease {
            lease.end(outcome);
        }
    }

    /// Removes what is stored for a primary key, behind the caller's back: the origin says that it
    /// may not be, or not any more.
    pub fn forget(&self, primary: &[u8]) {
        if self.is_usable() {
            self.discard(Names::of(&self.extent.prefix, primary).primary().to_owned());
        }
    }

    /// Removes a value that cannot be read, behind the caller's back.
    fn discard(&self, value: String) {
        let (tier, limit) = (Arc::clone(&self.tier), self.patience.write);
        self.metrics.second.asked(Command::Delete);
        self.background.spawn(async move {
            // If it fails, it is found again.
            let _ = timeout(limit, tier.delete(&value)).await;
        });
    }

    async fn write(self: Arc<Self>, mut waiting: mpsc::Receiver<Write>) {
        let under_way = Arc::new(Semaphore::new(WRITTEN_AT_ONCE as usize));
        while let Some(write) = waiting.recv().await {
            let size = u32::try_from(write.entry.body().len() >> 10).unwrap_or(u32::MAX);
            let size = size.clamp(WRITTEN_AT_ONCE / WRITES_AT_ONCE, WRITTEN_AT_ONCE);
            let Ok(permit) = Arc::clone(&under_way).acquire_many_owned(size).await else {
                return;
            };
            let second = Arc::clone(&self);
            second.settling.fetch_add(1, Ordering::Relaxed);
            tokio::spawn(async move {
                second.write_one(write).await;
                second.settling.fetch_sub(1, Ordering::Relaxed);
                drop(permit);
            });
        }
    }

    async fn write_one(&self, write: Write) {
        let Write {
            names,
            entry,
            stamp,
            ttl,
            lease,
        } = write;
        let body = entry.body().len();
        let packing = Arc::clone(&entry);
        let Encoded { bytes, packed } = if body < PACKED_APART {
            codec::encode(&packing, stamp)
        } else {
            let packed = tokio::task::spawn_blocking(move || codec::encode(&packing, stamp)).await;
            match packed {
                Ok(encoded) => encoded,
                Err(_) => return,
            }
        };
        let (value, record) = match &entry.head.selecting {
            None => (names.primary().to_owned(), None),
            Some(selecting) => (
                names.variant(&selecting.values, false).value,
                Some((names.primary().to_owned(), field_names(&selecting.names))),
            ),
        };
        let beside = bytes.len() - packed + value.len();
        let settlement = Settlement {
            lease: lease.map(Lease::into_parts),
            outcome: Outcome::Stored,
            store: Some(Store {
                value,
                record,
                bytes: bytes.into(),
                ttl,
            }),
        };
        let is_written = self.settle(settlement).await;
        self.metrics.second.wrote(if is_written {
            self.metrics.second.stored(packed, beside);
            Writing::Stored
        } else {
            Writing::Failed
        });
    }

    async fn settle(&self, settlement: Settlement) -> bool {
        if self.breaker.is_open() {
            return false;
        }
        self.metrics.second.asked(Command::Settle);
        let begun = Instant::now();
        let asked = timeout(self.patience.write, self.tier.settle(settlement)).await;
        let result = asked.unwrap_or(Err(TierError::Late));
        // A slow success does not make up for look-ups that come too late.
        if result.is_err() || begun.elapsed() <= self.patience.read {
            self.judge(&result);
        }
        result.is_ok()
    }

    async fn release(self: Arc<Self>, mut releases: mpsc::UnboundedReceiver<Settlement>) {
        while let Some(settlement) = releases.recv().await {
            let second = Arc::clone(&self);
            second.settling.fetch_add(1, Ordering::Relaxed);
            tokio::spawn(async move {
                second.settle(settlement).await;
                second.settling.fetch_sub(1, Ordering::Relaxed);
            });
        }
    }

    async fn hear(self: Arc<Self>, mut events: mpsc::UnboundedReceiver<Event>) {
        while let Some(event) = events.recv().await {
            match event {
                Event::Settled { lease, outcome } => self.leases.ended(&lease, outcome),
                Event::LogGrew => self.grown.notify_one(),
                Event::Beat => {
                    let now = self.started.elapsed().as_micros() as u64;
                    self.beat.store(now, Ordering::Relaxed);
                }
                Event::Listening => {
                    self.interrupt(1);
                    self.grown.notify_one();
                }
                Event::Interrupted => self.interrupt(0),
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
        let mut due = interval(self.patience.lease / 3);
        let mut known: Vec<(String, u64)> = Vec::new();
        loop {
            due.tick().await;
            let held = self.leases.held();
            let old = held.iter().filter(|held| known.contains(held));
            let renewing = old.map(|(lease, token)| {
                self.metrics.second.asked(Command::Renew);
                let ttl = self.patience.lease;
                timeout(self.patience.write, self.tier.renew(lease, *token, ttl))
            });
            if !self.breaker.is_open() {
                // At once: one that is not answered keeps no other from it.
                join_all(renewing).await;
            }
            known = held;
        }
    }
}

impl From<&TierError> for Reading {
    fn from(error: &TierError) -> Self {
        match error {
            TierError::Late => Self::Late,
            TierError::Busy => Self::Busy,
            TierError::Open => Self::Open,
            TierError::Unheard => Self::Unheard,
            TierError::Failed(_) => Self::Failed,
        }
    }
}

enum Answered {
    Value(Bytes),
    Nothing,
    /// Who fetches.
    Lease(Found),
}

impl Answered {
    /// Of a question that a lease answers where no value does.
    fn lease(self) -> Result<Found, TierError> {
        match self {
            Self::Lease(found) => Ok(found),
            Self::Value(_) | Self::Nothing => {
                let message = "no answer to the question who fetches";
                Err(TierError::Failed(message.to_owned()))
            }
        }
    }
}

/// Generation and selecting fields of a record of variants; `None` for what is none.
fn record(value: &[u8]) -> Option<(Bytes, Vec<HeaderName>)> {
    let rest = value.strip_prefix(&[RECORD])?;
    let (generation, names) = rest.split_at_checked(8)?;
    let names = names
        .split(|byte| *byte == b',')
        .map(HeaderName::from_bytes)
        .collect::<Result<_, _>>();
    Some((Bytes::copy_from_slice(generation), names.ok()?))
}

fn field_names(names: &[HeaderName]) -> Bytes {
    let names: Vec<&str> = names.iter().map(HeaderName::as_str).collect();
    Bytes::from(names.join(","))
}

/// How long it may be of use from now on; `None` where it is of none.
fn time_to_live(entry: &Entry, now: Timestamp) -> Option<Duration> {
    let record = &entry.head.record;
    let lifetimes = &record.lifetimes;
    let grace = lifetimes
        .stale_while_revalidate
        .max(lifetimes.stale_if_error);
    let until = record.born.plus(lifetimes.fresh).plus(grace);
    let left = until.since(now);
    (!left.is_zero()).then_some(left)
}
