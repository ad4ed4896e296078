//! Look-ups in the second tier: a value, or the lease of its fetch, within one deadline.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName};
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout, timeout_at};
use tracing::debug;

use crate::metrics::second::{Command, Reading};
use crate::policy::vary::append_selecting;
use crate::store::codec::{self, Decoded, Invalid};

use super::lease;
use super::names::Names;
use super::tier::Extent;
use super::used::UsedKey;
use super::{
    Answer, FINGERPRINT, Lease, Question, RECORD, Second, TierError, ValuePlace, Waiting, Wants,
};

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
    /// How long a fetch for it usually takes.
    pub usual: Option<Duration>,
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
    pub place: ValuePlace,
    /// Of a variant; empty for what is none.
    generation: Bytes,
    /// How the value there began; empty where there was none.
    known: Bytes,
}

impl Spot {
    fn new(place: ValuePlace, generation: Bytes) -> Self {
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

impl Second {
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
        match self.opened(&spot, body) {
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

    /// The response in a value that stands at a spot.
    fn opened(&self, spot: &Spot, sealed: &[u8]) -> Result<Decoded, Invalid> {
        let Extent {
            max_object, seal, ..
        } = &self.extent;
        let value = seal.open(&spot.place.value, sealed).ok_or(Invalid::Seal)?;
        codec::decode(value, *max_object)
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
        let lease_ttl = lease::time_to_live(wanted.usual, self.patience.lease);
        let question = Question {
            place: spot.place.clone(),
            wants,
            generation: spot.generation.clone(),
            known: spot.known.clone(),
            token,
            lease_ttl,
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
                Answer::Lead => {
                    Answered::Lease(Found::Lead(leases.hold(spot.place, token, lease_ttl)))
                }
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
        let select = |_: &[HeaderName]| key.selecting().to_vec();
        self.peek(key.primary(), false, select).await
    }

    /// The response that stands there for a request, if there is one that can be read; nobody is
    /// told that it is looked at.
    pub async fn stored_for(
        &self,
        primary: &[u8],
        request: &HeaderMap,
        is_apart: bool,
    ) -> Result<Option<Decoded>, TierError> {
        let select = |names: &[HeaderName]| {
            let mut selecting = Vec::new();
            append_selecting(names, request, &mut selecting);
            selecting
        };
        self.peek(primary, is_apart, select).await
    }

    async fn peek(
        &self,
        primary: &[u8],
        is_apart: bool,
        select: impl Fn(&[HeaderName]) -> Vec<u8>,
    ) -> Result<Option<Decoded>, TierError> {
        let wanted = Wanted {
            primary,
            request: &HeaderMap::new(),
            is_apart,
            position: 0,
            usual: None,
            deadline: Instant::now() + self.patience.write,
        };
        let names = Names::of(&self.extent.prefix, primary);
        let mut spot = Spot::new(names.place(is_apart), Bytes::new());
        loop {
            let asked = self.ask(&spot, Wants::ValueAlone, &wanted).await?;
            let Answered::Value(value) = asked else {
                return Ok(None);
            };
            match record(&value).filter(|_| spot.generation.is_empty()) {
                Some((generation, by)) => {
                    spot = Spot::new(names.variant(&select(&by), is_apart), generation);
                }
                None => {
                    let body = value.get(spot.generation.len()..).unwrap_or_default();
                    return Ok(self.opened(&spot, body).ok());
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
