//! One fetch per fleet: who leads a fetch, who waits for it, and how they hear of its end.
//!
//! A lease in the second tier belongs to one instance, which keeps it while its fetch runs and ends
//! it with an [`LeaseOutcome`]. Who waits is told on a channel of its own instance; nobody polls. A
//! lease that is dropped without a word ends as failed; one whose instance died expires.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use strum::{EnumString, IntoStaticStr, VariantArray};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::{Instant, sleep_until, timeout};

use super::{Settlement, ValuePlace};

/// How a fetch that led for the fleet ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumString, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum LeaseOutcome {
    /// The response is in the second tier.
    Stored,
    /// The response may not be shared: everybody fetches.
    NotStorable,
    /// It is larger than what the second tier takes.
    TooLarge,
    /// It could be stored, but there was no room, or a purge came.
    Dropped,
    Failed,
}

impl LeaseOutcome {
    /// The word for it in Redis.
    pub fn as_str(self) -> &'static str {
        self.into()
    }

    /// A word that nobody knows is as good as a failure.
    pub fn of(word: &str) -> Self {
        word.parse().unwrap_or(Self::Failed)
    }
}

/// What who waits for another instance's fetch hears.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Outcome(LeaseOutcome),
    /// The lease's time is over: its instance is gone.
    Expired,
    /// The second tier is out of reach: nobody will hear of it.
    Lost,
}

/// A lease that this instance holds, and keeps.
#[derive(Clone, Copy, Debug)]
struct Held {
    token: u64,
    /// How long it lasts from each time on that it is renewed.
    ttl: Duration,
    /// When it is renewed next.
    due: Instant,
}

/// The leases that this instance holds, and those that it waits for.
#[derive(Debug)]
pub struct Leases {
    held: Mutex<HashMap<String, Held>>,
    /// Another one is held.
    took: Notify,
    waiting: Mutex<HashMap<String, Vec<Told>>>,
    next: AtomicU64,
    releases: mpsc::UnboundedSender<Settlement>,
}

/// What a fetch takes at most where nobody knows what it usually takes.
const UNKNOWN: Duration = Duration::from_millis(500);

/// Shorter leases would be lost to a machine that is busy for a moment.
const SHORTEST: Duration = Duration::from_millis(200);

/// How long a lease lasts that is not renewed, where fetches usually take so long: an instance that
/// dies keeps the others waiting for that, and no longer than `most`.
pub fn time_to_live(usual: Option<Duration>, most: Duration) -> Duration {
    let twice = usual.map_or(UNKNOWN, |usual| usual.saturating_mul(2));
    twice.max(SHORTEST).min(most)
}

/// Somebody who is told when a lease ends, and by which number they take themselves off the list.
type Told = (u64, oneshot::Sender<End>);

impl Leases {
    /// What is to be released goes to `releases`.
    pub fn new(releases: mpsc::UnboundedSender<Settlement>) -> Arc<Self> {
        Arc::new(Self {
            held: Mutex::default(),
            took: Notify::new(),
            waiting: Mutex::default(),
            next: AtomicU64::new(0),
            releases,
        })
    }

    /// A lease that this instance has got.
    pub fn hold(self: &Arc<Self>, place: ValuePlace, token: u64, ttl: Duration) -> Lease {
        let begun = Instant::now();
        let due = begun + ttl / 3;
        let held = Held { token, ttl, due };
        self.held.lock().insert(place.lease.clone(), held);
        self.took.notify_one();
        Lease {
            place,
            token,
            begun,
            leases: Arc::clone(self),
            is_settled: false,
        }
    }

    /// Listens for the end of a lease, from before anybody is asked about it: it may come before
    /// the answer does.
    pub fn listen(self: &Arc<Self>, lease: &str) -> Waiting {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (sender, heard) = oneshot::channel();
        let mut waiting = self.waiting.lock();
        waiting
            .entry(lease.to_owned())
            .or_default()
            .push((id, sender));
        Waiting {
            lease: lease.to_owned(),
            id,
            heard,
            leases: Arc::clone(self),
        }
    }

    /// A lease has ended.
    pub fn ended(&self, lease: &str, outcome: LeaseOutcome) {
        let told = self.waiting.lock().remove(lease).unwrap_or_default();
        for (_, waiting) in told {
            let _ = waiting.send(End::Outcome(outcome));
        }
    }

    /// Nobody will hear of any.
    pub fn lose(&self) {
        let told = std::mem::take(&mut *self.waiting.lock());
        for (_, waiting) in told.into_values().flatten() {
            let _ = waiting.send(End::Lost);
        }
    }

    /// Whether this instance holds a lease by this token.
    pub fn holds(&self, lease: &str, token: u64) -> bool {
        self.held
            .lock()
            .get(lease)
            .is_some_and(|held| held.token == token)
    }

    /// Waits until leases have to be renewed: each with its token, and for how long.
    pub async fn due(&self) -> Vec<(String, u64, Duration)> {
        loop {
            let next = self.held.lock().values().map(|held| held.due).min();
            let until = async {
                match next {
                    Some(due) => sleep_until(due).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = self.took.notified() => continue,
                () = until => {}
            }
            let now = Instant::now();
            let mut held = self.held.lock();
            let due = held.iter_mut().filter(|(_, held)| held.due <= now);
            let due = due.map(|(lease, held)| {
                held.due = now + held.ttl / 3;
                (lease.clone(), held.token, held.ttl)
            });
            return due.collect();
        }
    }

    /// Leases that this instance waits for.
    pub fn waiting(&self) -> usize {
        self.waiting.lock().len()
    }
}

/// The right, and the duty, to fetch for the fleet.
#[derive(Debug)]
pub struct Lease {
    pub place: ValuePlace,
    token: u64,
    begun: Instant,
    leases: Arc<Leases>,
    is_settled: bool,
}

impl Lease {
    /// How long it has been held: how long the fetch has taken.
    pub fn age(&self) -> Duration {
        self.begun.elapsed()
    }

    /// Ends it without anything to store.
    pub fn end(mut self, outcome: LeaseOutcome) {
        self.release(outcome);
    }

    /// Its name and token, for whoever ends it together with a write.
    pub fn into_parts(mut self) -> (String, u64) {
        self.is_settled = true;
        (self.place.lease.clone(), self.token)
    }

    fn release(&mut self, outcome: LeaseOutcome) {
        if !std::mem::replace(&mut self.is_settled, true) {
            let _ = self.leases.releases.send(Settlement {
                lease: Some((self.place.lease.clone(), self.token)),
                outcome,
                store: None,
            });
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut held = self.leases.held.lock();
        let known = held.get(&self.place.lease);
        if known.is_some_and(|held| held.token == self.token) {
            held.remove(&self.place.lease);
        }
        drop(held);
        self.release(LeaseOutcome::Failed);
    }
}

/// Somebody of this instance who waits for a lease to end.
#[derive(Debug)]
pub struct Waiting {
    lease: String,
    id: u64,
    heard: oneshot::Receiver<End>,
    leases: Arc<Leases>,
}

impl Waiting {
    /// Waits for its end, or for as long as the lease lasts.
    pub async fn end(&mut self, left: Duration) -> End {
        match timeout(left, &mut self.heard).await {
            Ok(heard) => heard.unwrap_or(End::Lost),
            Err(_) => End::Expired,
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut waiting = self.leases.waiting.lock();
        if let Some(of_lease) = waiting.get_mut(&self.lease) {
            of_lease.retain(|(id, _)| *id != self.id);
            if of_lease.is_empty() {
                waiting.remove(&self.lease);
            }
        }
    }
}
