//! Small values that the fleet shares: verdicts on keys, what was proved of units, and windows of
//! rate limits. Each is asked
//! for within the deadline of a look-up, behind the same breaker.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Semaphore, broadcast, oneshot};
use tokio::time::{Instant, timeout};

use crate::metrics::second::{Command, Reading};

use super::{Asking, Second, SecondTier, Taken, Taking, TierError};

/// Notes that are being written at one time; more are dropped.
const MOST_NOTES: usize = 256;

impl Second {
    /// What another instance noted under a name.
    pub async fn noted(&self, name: &str) -> Result<Option<Bytes>, TierError> {
        let name = self.named(name);
        let asked = name.clone();
        let found = self
            .asked(Command::Noted, move |tier| tier.noted(asked))
            .await?;
        let seal = &self.extent.seal;
        let opened =
            found.map(|found| seal.open(&name, &found).map(|value| found.slice_ref(value)));
        if matches!(opened, Some(None)) {
            self.metrics.second.read(Reading::Invalid);
        }
        Ok(opened.flatten())
    }

    /// A value with its seal.
    fn sealed(&self, name: &str, value: &[u8]) -> Bytes {
        let mut value = value.to_vec();
        self.extent.seal.put(name, &mut value);
        value.into()
    }

    /// Notes a value behind the caller's back; drops it where Redis is ill or too many are under
    /// way.
    pub fn note(&self, name: &str, value: Bytes, ttl: Duration) {
        let name = self.named(name);
        let value = self.sealed(&name, &value);
        let Ok(permit) = Arc::clone(&self.notes).try_acquire_owned() else {
            return;
        };
        if self.breaker.is_open() {
            return;
        }
        self.metrics.second.asked(Command::Note);
        let (tier, breaker) = (Arc::clone(&self.tier), Arc::clone(&self.breaker));
        let limit = self.patience.write;
        self.background.spawn(async move {
            let done = timeout(limit, tier.note(name, value, ttl)).await;
            breaker.judge(&done.unwrap_or(Err(TierError::Late)));
            drop(permit);
        });
    }

    /// Notes a value under a name under which nothing is noted; whether it was this instance that
    /// did.
    pub async fn note_first(
        &self,
        name: &str,
        value: Bytes,
        ttl: Duration,
    ) -> Result<bool, TierError> {
        let name = self.named(name);
        let value = self.sealed(&name, &value);
        self.asked(Command::Note, move |tier| tier.note_first(name, value, ttl))
            .await
    }

    /// Takes requests out of a window that the fleet shares.
    pub async fn take(&self, taking: Taking) -> Result<Taken, TierError> {
        let taking = Taking {
            name: self.named(&taking.name),
            ..taking
        };
        self.asked(Command::Take, move |tier| tier.take(taking))
            .await
    }

    /// Gives back what was taken, and forgets it where that fails.
    pub async fn take_back(self: Arc<Self>, taking: Taking) {
        let _ = self.take(taking).await;
    }

    /// Hears of limits of which nothing may be held any more, by the names they were taken under.
    pub fn recalls(&self) -> broadcast::Receiver<String> {
        self.recalls.subscribe()
    }

    /// The name without what all names of this fleet begin with.
    pub fn bare<'a>(&self, name: &'a str) -> &'a str {
        name.strip_prefix(&self.extent.prefix).unwrap_or(name)
    }

    fn named(&self, name: &str) -> String {
        format!("{}{name}", self.extent.prefix)
    }

    /// Asks on the background's runtime, which the connections are on, and waits for so long as a
    /// look-up may take.
    async fn asked<T: Send + 'static>(
        &self,
        command: Command,
        ask: impl for<'a> FnOnce(&'a dyn SecondTier) -> Asking<'a, T> + Send + 'static,
    ) -> Result<T, TierError> {
        if self.breaker.is_open() {
            return Err(TierError::Open);
        }
        self.metrics.second.asked(command);
        let (answer, answered) = oneshot::channel();
        let tier = Arc::clone(&self.tier);
        let limit = self.patience.write;
        self.background.spawn(async move {
            let asked = timeout(limit, ask(&*tier)).await;
            let _ = answer.send(asked.unwrap_or(Err(TierError::Late)));
        });
        let begun = Instant::now();
        let result = match timeout(self.patience.read, answered).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(TierError::Failed("the process ends".to_owned())),
            Err(_) => Err(TierError::Late),
        };
        self.metrics.second.answered(begun.elapsed());
        self.judge(&result);
        result
    }

    pub(super) fn notes_at_once() -> Arc<Semaphore> {
        Arc::new(Semaphore::new(MOST_NOTES))
    }
}
