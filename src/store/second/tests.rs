//! The deadline, the breaker, the queue and the leases, with a fake that can be ill and a clock
//! that waits for nobody.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use strum::VariantArray;
use tokio::runtime::Handle;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio::time::{Instant, sleep};

use super::lease::End;
use super::seal::Seal;
use super::tier::Extent;
use super::*;
use crate::clock::{Clock, Timestamp};
use crate::metrics::Metrics;
use crate::policy::{Lifetimes, Record};
use crate::store::{Entry, Fields, Head, Ledger, PurgeLog};

/// Answers, fails, answers late, or never says a word.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Health {
    Well,
    Failing,
    Slow,
    Silent,
}

/// As slow as the slow Redis.
const SLOW: Duration = Duration::from_millis(200);

struct Fake {
    health: Mutex<Health>,
    asked: AtomicU32,
    values: Mutex<HashMap<String, Bytes>>,
    leases: Mutex<HashMap<String, u64>>,
    events: UnboundedSender<Event>,
}

impl Fake {
    fn becomes(&self, health: Health) {
        *self.health.lock().unwrap() = health;
    }

    fn asked(&self) -> u32 {
        self.asked.load(Ordering::SeqCst)
    }

    fn leases(&self) -> usize {
        self.leases.lock().unwrap().len()
    }

    fn answer<T: Send + 'static>(&self, value: T) -> Asking<'_, T> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        let health = *self.health.lock().unwrap();
        Box::pin(async move {
            match health {
                Health::Well => Ok(value),
                Health::Failing => Err(TierError::Failed("broken".to_owned())),
                Health::Slow => {
                    sleep(SLOW).await;
                    Ok(value)
                }
                Health::Silent => std::future::pending().await,
            }
        })
    }
}

impl SecondTier for Fake {
    fn look_up(&self, question: Question) -> Asking<'_, Answer> {
        let value = self
            .values
            .lock()
            .unwrap()
            .get(&question.place.value)
            .cloned();
        let is_known =
            |value: &Bytes| !question.known.is_empty() && value.starts_with(&question.known);
        if let Some(value) = value.filter(|value| !is_known(value)) {
            return self.answer(Answer::Value(value));
        }
        let mut leases = self.leases.lock().unwrap();
        let lease = question.place.lease;
        let answer = match leases.get(&lease) {
            Some(token) => Answer::Wait {
                token: *token,
                position: 0,
                left: question.lease_ttl,
            },
            None => {
                leases.insert(lease, question.token);
                Answer::Lead
            }
        };
        self.answer(answer)
    }

    fn settle(&self, settlement: Settlement) -> Asking<'_, ()> {
        if let Some(store) = settlement.store {
            self.values.lock().unwrap().insert(store.value, store.bytes);
        }
        if let Some((lease, _)) = settlement.lease {
            self.leases.lock().unwrap().remove(&lease);
            let outcome = settlement.outcome;
            let _ = self.events.send(Event::Settled { lease, outcome });
        }
        self.answer(())
    }

    fn renew<'a>(&'a self, _: &'a str, _: u64, _: Duration) -> Asking<'a, ()> {
        self.answer(())
    }

    fn delete<'a>(&'a self, value: &'a str) -> Asking<'a, ()> {
        self.values.lock().unwrap().remove(value);
        self.answer(())
    }

    fn noted(&self, name: String) -> Asking<'_, Option<Bytes>> {
        let found = self.values.lock().unwrap().get(&name).cloned();
        self.answer(found)
    }

    fn note(&self, name: String, value: Bytes, _: Duration) -> Asking<'_, ()> {
        self.values.lock().unwrap().insert(name, value);
        self.answer(())
    }

    fn note_first(&self, name: String, value: Bytes, _: Duration) -> Asking<'_, bool> {
        let mut values = self.values.lock().unwrap();
        let is_free = !values.contains_key(&name);
        values.entry(name).or_insert(value);
        self.answer(is_free)
    }

    fn take(&self, taking: Taking) -> Asking<'_, Taken> {
        self.answer(Taken {
            granted: taking.wanted,
            left: taking.limit,
            retry: Duration::ZERO,
            reset: taking.window,
            began: 0,
        })
    }

    fn listen_anew(&self) {}

    fn ping(&self) -> Asking<'_, ()> {
        self.answer(())
    }

    fn append(&self, _: u64, _: Vec<Outgoing>) -> Asking<'_, Appended> {
        self.answer(Appended::In)
    }

    fn sync(&self, _: Reader) -> Asking<'_, Synced> {
        let epoch = 1;
        self.answer(Synced {
            epoch,
            ..Synced::default()
        })
    }

    fn instances(&self, _: Duration) -> Asking<'_, Vec<Instance>> {
        self.answer(Vec::new())
    }

    fn name(&self) -> &str {
        "host-1-abcd"
    }

    fn advice(&self) -> Asking<'_, Vec<String>> {
        self.answer(Vec::new())
    }

    fn note_used(&self, _: u64, _: Vec<(Bytes, u64)>) -> Asking<'_, ()> {
        self.answer(())
    }

    fn most_used(&self, _: u64, _: usize) -> Asking<'_, Vec<(Bytes, u64)>> {
        self.answer(Vec::new())
    }
}

/// A fake, and a second tier that has heard its purge log a moment ago and goes on to.
async fn start(patience: Patience) -> (Arc<Fake>, Arc<Second>) {
    let (events, heard) = unbounded_channel();
    let fake = Arc::new(Fake {
        health: Mutex::new(Health::Well),
        asked: AtomicU32::new(0),
        values: Mutex::default(),
        leases: Mutex::default(),
        events: events.clone(),
    });
    events.send(Event::Listening).unwrap();
    let extent = Extent {
        prefix: String::new(),
        max_object: 1 << 20,
        seal: Seal::default(),
    };
    let tier: Arc<dyn SecondTier> = fake.clone();
    let metrics = Arc::new(Metrics::new());
    // The log has a server of its own here: what is shown is not its doing.
    let patience = Patience {
        unheard: Duration::from_secs(1_000_000),
        heartbeat: Duration::from_secs(1_000_000),
        ..patience
    };
    let second = Second::start(tier, heard, extent, patience, metrics, &Handle::current());
    let purges = Arc::new(PurgeLog::of_fleet(Duration::MAX, Timestamp::EPOCH));
    tokio::spawn(Arc::clone(&second).follow(purges, Clock::System));
    assert!(second.becomes_usable(Duration::from_secs(10)).await);
    (fake, second)
}

fn entry() -> Arc<Entry> {
    let head = Head {
        status: StatusCode::OK,
        fields: Fields::default(),
        record: Record {
            lifetimes: Lifetimes {
                fresh: Duration::from_secs(60),
                ..Lifetimes::default()
            },
            born: Timestamp::EPOCH,
            received: Timestamp::EPOCH,
            has_validator: false,
        },
        selecting: None,
        stamp: 0,
        vouched: Timestamp::EPOCH,
        groups: None,
        generation: 0,
        withholds: false,
    };
    let charge = Ledger::new(1 << 20).open();
    let body = [Bytes::from_static(b"body")];
    Arc::new(Entry::assemble(&head, &body, None, charge).unwrap())
}

const STAMP: Stamp = Stamp {
    epoch: 1,
    position: 0,
};

async fn look_up(second: &Second, key: &[u8]) -> Result<Found, TierError> {
    let request = HeaderMap::new();
    let wanted = Wanted {
        primary: key,
        request: &request,
        is_apart: false,
        position: 0,
        usual: Some(Duration::from_secs(60)),
        deadline: Instant::now() + second.read_deadline(),
    };
    second.look_up(wanted).await
}

fn put(second: &Second, key: &[u8], lease: Option<Lease>) {
    second.put(key, entry(), Some(STAMP), lease, Timestamp::EPOCH);
}

/// Lets everything run that can.
async fn settled() {
    sleep(Duration::from_millis(1)).await;
}

#[tokio::test(start_paused = true)]
async fn what_is_put_is_found_and_its_lease_is_over() {
    let (fake, second) = start(Patience::default()).await;
    let Ok(Found::Lead(lease)) = look_up(&second, b"k").await else {
        panic!("nobody else leads");
    };
    assert_eq!(fake.leases(), 1);
    put(&second, b"k", Some(lease));
    settled().await;
    assert_eq!(fake.leases(), 0);
    let Ok(Found::Value(fresh)) = look_up(&second, b"k").await else {
        panic!("it is there");
    };
    assert_eq!(
        (&fresh.value.body[..], fresh.value.stamp),
        (&b"body"[..], STAMP)
    );
}

#[tokio::test(start_paused = true)]
async fn who_waits_hears_how_it_ended() {
    let (_, second) = start(Patience::default()).await;
    for outcome in LeaseOutcome::VARIANTS.iter().copied() {
        let Ok(Found::Lead(lease)) = look_up(&second, b"k").await else {
            panic!("nobody else leads");
        };
        let Ok(Found::Wait(mut elsewhere)) = look_up(&second, b"k").await else {
            panic!("somebody leads");
        };
        lease.end(outcome);
        let heard = elsewhere.waiting.end(elsewhere.left).await;
        assert_eq!(heard, End::Outcome(outcome));
    }
    assert_eq!(second.waiting(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_is_dropped_without_a_word_has_failed() {
    let (fake, second) = start(Patience::default()).await;
    let Ok(Found::Lead(lease)) = look_up(&second, b"k").await else {
        panic!("nobody else leads");
    };
    let Ok(Found::Wait(mut elsewhere)) = look_up(&second, b"k").await else {
        panic!("somebody leads");
    };
    drop(lease);
    let heard = elsewhere.waiting.end(elsewhere.left).await;
    assert_eq!(heard, End::Outcome(LeaseOutcome::Failed));
    assert_eq!(fake.leases(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_comes_too_late_is_given_back() {
    let (fake, second) = start(Patience::default()).await;
    fake.becomes(Health::Slow);
    assert!(matches!(look_up(&second, b"k").await, Err(TierError::Late)));
    assert_eq!(fake.leases(), 1);
    fake.becomes(Health::Well);
    sleep(SLOW).await;
    assert_eq!(fake.leases(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_value_that_cannot_be_read_is_deleted_and_fetched_anew() {
    let (fake, second) = start(Patience::default()).await;
    let name = names::Names::of("", b"k").primary().to_owned();
    fake.values
        .lock()
        .unwrap()
        .insert(name.clone(), Bytes::from_static(b"?"));
    let found = look_up(&second, b"k").await;
    assert!(matches!(found, Ok(Found::Lead(_))), "{found:?}");
    settled().await;
    assert!(!fake.values.lock().unwrap().contains_key(&name));
}

#[tokio::test(start_paused = true)]
async fn a_silent_tier_costs_each_look_up_its_deadline_and_then_nothing() {
    let (fake, second) = start(Patience::default()).await;
    fake.becomes(Health::Silent);
    for _ in 0..5 {
        let begun = Instant::now();
        assert!(matches!(look_up(&second, b"k").await, Err(TierError::Late)));
        assert_eq!(begun.elapsed(), Duration::from_millis(20));
    }
    let (begun, asked) = (Instant::now(), fake.asked());
    assert!(matches!(look_up(&second, b"k").await, Err(TierError::Open)));
    assert_eq!((begun.elapsed(), fake.asked()), (Duration::ZERO, asked));
}

#[tokio::test(start_paused = true)]
async fn who_waits_is_let_go_when_the_breaker_opens() {
    let (fake, second) = start(Patience::default()).await;
    let lead = look_up(&second, b"k").await;
    let Ok(Found::Wait(mut elsewhere)) = look_up(&second, b"k").await else {
        panic!("somebody leads");
    };
    fake.becomes(Health::Failing);
    for _ in 0..5 {
        assert!(look_up(&second, b"other").await.is_err());
    }
    let begun = Instant::now();
    assert_eq!(elsewhere.waiting.end(elsewhere.left).await, End::Lost);
    assert_eq!(begun.elapsed(), Duration::ZERO);
    drop(lead);
}

#[tokio::test(start_paused = true)]
async fn failures_must_come_in_a_row_to_open_it() {
    let (fake, second) = start(Patience::default()).await;
    for _ in 0..3 {
        fake.becomes(Health::Failing);
        for _ in 0..4 {
            assert!(look_up(&second, b"k").await.is_err());
        }
        fake.becomes(Health::Well);
        assert!(look_up(&second, b"k").await.is_ok());
        settled().await;
    }
    assert!(!second.breaker_is_open());
}

#[tokio::test(start_paused = true)]
async fn it_is_closed_by_two_probes_and_never_by_a_clients_request() {
    let (fake, second) = start(Patience::default()).await;
    fake.becomes(Health::Failing);
    for _ in 0..5 {
        assert!(look_up(&second, b"k").await.is_err());
    }
    settled().await;
    let asked = fake.asked();
    sleep(Duration::from_millis(9_980)).await;
    assert_eq!(fake.asked(), asked);
    // Ten seconds on it is asked, is too slow, and is left alone for ten more.
    fake.becomes(Health::Slow);
    sleep(Duration::from_millis(200)).await;
    assert_eq!((fake.asked(), second.breaker_is_open()), (asked + 1, true));
    fake.becomes(Health::Well);
    sleep(Duration::from_secs(9)).await;
    assert!(second.breaker_is_open());
    sleep(Duration::from_secs(2)).await;
    assert_eq!((fake.asked(), second.breaker_is_open()), (asked + 3, false));
    assert!(look_up(&second, b"k").await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn slow_writes_do_not_make_up_for_late_look_ups() {
    let (fake, second) = start(Patience::default()).await;
    fake.becomes(Health::Slow);
    for number in 0..5_u8 {
        assert!(look_up(&second, &[number]).await.is_err());
        put(&second, &[number, 1], None);
        sleep(SLOW * 2).await;
    }
    assert!(second.breaker_is_open());
}

#[tokio::test(start_paused = true)]
async fn writes_never_wait_and_too_many_are_dropped() {
    let patience = Patience {
        queue: 10,
        ..Patience::default()
    };
    let (fake, second) = start(patience).await;
    let Ok(Found::Lead(lease)) = look_up(&second, b"k").await else {
        panic!("nobody else leads");
    };
    let Ok(Found::Wait(mut elsewhere)) = look_up(&second, b"k").await else {
        panic!("somebody leads");
    };
    fake.becomes(Health::Silent);
    let begun = Instant::now();
    for number in 0..100_u8 {
        put(&second, &[number], None);
    }
    assert_eq!(second.queued(), 10);
    // The lease of one that is dropped ends with that word, once it can.
    fake.becomes(Health::Well);
    put(&second, b"k", Some(lease));
    assert_eq!(begun.elapsed(), Duration::ZERO);
    let heard = elsewhere.waiting.end(elsewhere.left).await;
    assert_eq!(heard, End::Outcome(LeaseOutcome::Dropped));
}

#[tokio::test(start_paused = true)]
async fn a_fetch_that_takes_long_keeps_its_lease() {
    let (fake, second) = start(Patience::default()).await;
    let lead = look_up(&second, b"k").await;
    let asked = fake.asked();
    sleep(Duration::from_secs(10)).await;
    assert!(fake.asked() >= asked + 8, "{}", fake.asked() - asked);
    drop(lead);
    settled().await;
    let asked = fake.asked();
    sleep(Duration::from_secs(10)).await;
    assert_eq!(fake.asked(), asked);
}
