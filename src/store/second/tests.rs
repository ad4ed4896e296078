//! The breaker, the deadline and the queue, with a fake that can be ill and a clock that waits for
//! nobody.

use std::collections::HashMap;
use std::sync::Mutex;

use tokio::time::Instant;

use super::*;

/// Answers, fails, or never says a word.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Health {
    Well,
    Failing,
    Silent,
}

struct Fake {
    health: Mutex<Health>,
    asked: AtomicU32,
    values: Mutex<HashMap<Vec<u8>, Bytes>>,
}

impl Fake {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            health: Mutex::new(Health::Well),
            asked: AtomicU32::new(0),
            values: Mutex::default(),
        })
    }

    fn becomes(&self, health: Health) {
        *self.health.lock().unwrap() = health;
    }

    fn asked(&self) -> u32 {
        self.asked.load(Ordering::SeqCst)
    }

    fn answer<T: Send + 'static>(&self, value: T) -> Asking<'_, T> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        let health = *self.health.lock().unwrap();
        Box::pin(async move {
            match health {
                Health::Well => Ok(value),
                Health::Failing => Err(TierError::Failed("broken".to_owned())),
                Health::Silent => std::future::pending().await,
            }
        })
    }
}

impl SecondTier for Fake {
    fn get(&self, key: &[u8]) -> Asking<'_, Option<Bytes>> {
        let value = self.values.lock().unwrap().get(key).cloned();
        self.answer(value)
    }

    fn set(&self, key: &[u8], value: Bytes, _: Duration) -> Asking<'_, ()> {
        self.values.lock().unwrap().insert(key.to_vec(), value);
        self.answer(())
    }

    fn delete(&self, key: &[u8]) -> Asking<'_, ()> {
        self.values.lock().unwrap().remove(key);
        self.answer(())
    }

    fn ping(&self) -> Asking<'_, ()> {
        self.answer(())
    }
}

fn start(fake: &Arc<Fake>, patience: Patience) -> Arc<Second> {
    let tier: Arc<dyn SecondTier> = fake.clone();
    Second::start(tier, patience, &Handle::current())
}

#[tokio::test(start_paused = true)]
async fn what_is_put_is_read_and_what_is_discarded_is_gone() {
    let fake = Fake::new();
    let second = start(&fake, Patience::default());
    second.put(b"k", Bytes::from_static(b"v"), Duration::from_secs(1));
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert_eq!(
        second.get(b"k").await.unwrap(),
        Some(Bytes::from_static(b"v"))
    );
    second.discard(b"k", &Handle::current());
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert_eq!(second.get(b"k").await.unwrap(), None);
    assert_eq!(second.dropped(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_silent_tier_costs_each_read_its_deadline_and_then_nothing() {
    let fake = Fake::new();
    let second = start(&fake, Patience::default());
    fake.becomes(Health::Silent);
    for _ in 0..5 {
        let begun = Instant::now();
        assert!(matches!(second.get(b"k").await, Err(TierError::Late)));
        assert_eq!(begun.elapsed(), Duration::from_millis(20));
    }
    let (begun, asked) = (Instant::now(), fake.asked());
    assert!(matches!(second.get(b"k").await, Err(TierError::Open)));
    assert_eq!((begun.elapsed(), fake.asked()), (Duration::ZERO, asked));
}

#[tokio::test(start_paused = true)]
async fn failures_must_come_in_a_row_to_open_it() {
    let fake = Fake::new();
    let second = start(&fake, Patience::default());
    for _ in 0..3 {
        fake.becomes(Health::Failing);
        for _ in 0..4 {
            assert!(second.get(b"k").await.is_err());
        }
        fake.becomes(Health::Well);
        assert!(second.get(b"k").await.is_ok());
    }
    assert!(!second.is_open());
}

#[tokio::test(start_paused = true)]
async fn it_is_closed_by_two_probes_and_never_by_a_clients_request() {
    let fake = Fake::new();
    let second = start(&fake, Patience::default());
    fake.becomes(Health::Failing);
    for _ in 0..5 {
        assert!(second.get(b"k").await.is_err());
    }
    let asked = fake.asked();
    tokio::time::sleep(Duration::from_millis(9_990)).await;
    assert_eq!(fake.asked(), asked);
    // Ten seconds on it is asked, fails again, and is left alone for ten more.
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!((fake.asked(), second.is_open()), (asked + 1, true));
    fake.becomes(Health::Well);
    tokio::time::sleep(Duration::from_secs(9)).await;
    assert!(second.is_open());
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!((fake.asked(), second.is_open()), (asked + 3, false));
    assert!(second.get(b"k").await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn writes_never_wait_and_too_many_are_dropped_and_counted() {
    let fake = Fake::new();
    let patience = Patience {
        queue: 10,
        ..Patience::default()
    };
    let second = start(&fake, patience);
    fake.becomes(Health::Silent);
    let begun = Instant::now();
    for number in 0..100_u32 {
        second.put(&number.to_be_bytes(), Bytes::new(), Duration::from_secs(1));
    }
    assert_eq!(begun.elapsed(), Duration::ZERO);
    assert_eq!(second.dropped(), 90);
    // Those that were taken are given up after their deadline, and that opens the breaker.
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!((second.dropped(), second.is_open()), (100, true));
}
