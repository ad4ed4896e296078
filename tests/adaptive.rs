//! `invalidation = "adaptive"`: who reads after an isolated write finds what was written; while a
//! group is written faster than it can be fetched again, its responses are stale, and refreshed
//! behind.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use iris_sidecar::clock::Clock;

use crate::support::fleet::Fleet;
use crate::support::keys::UNPROVED;
use crate::support::redis::RedisServer;
use crate::support::{Fixture, Gate, after, ok, reply};

const A: &str = "sk_live_aaaaaaaaaaaaaaaaaaaaaaaa";
const B: &str = "sk_live_bbbbbbbbbbbbbbbbbbbbbbbb";

fn rules() -> String {
    let read = |path: &str, share: &str| {
        format!(
            "[[route]]\npath = \"{path}\"\nshare = \"{share}\"\nforce_ttl \
                = \"1h\"\nstale_while_revalidate = \"1h\"\ngroups = [\"all\"]\n"
        )
    };
    format!(
        "[auth]\n{UNPROVED}{}{}[[route]]\npath = \"/write\"\nmethods = [\"POST\"]\ninvalidates = \
            [\"all\"]\ninvalidation = \"adaptive\"\n",
        read("/shared", "verified"),
        read("/own", "per-key"),
    )
}

/// Before an origin that tells how often it was written to, and to which a tenth of a second goes
/// by with each other question.
async fn slow() -> Fixture {
    let writes = Arc::new(AtomicUsize::new(0));
    let clock = Arc::new(OnceLock::<Clock>::new());
    let passes = Arc::clone(&clock);
    let fixture = Fixture::start(&rules(), move |seen| match seen.method.as_str() {
        "POST" => {
            writes.fetch_add(1, Ordering::SeqCst);
            reply(201, "", &[])
        }
        _ => {
            let written = writes.load(Ordering::SeqCst);
            if let Some(clock) = passes.get() {
                clock.advance(Duration::from_millis(100));
            }
            ok(written.to_string(), &[])
        }
    })
    .await;
    let _ = clock.set(fixture.clock.clone());
    fixture
}

async fn write(fixture: &Fixture, key: &str) {
    let fields = [("content-length", "0")];
    assert_eq!(
        fixture.send_as(key, "POST", "/write", &fields).await.status,
        201
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_reads_after_an_isolated_write_sees_it_and_a_burst_leaves_something_to_serve() {
    let fixture = slow().await;
    for (key, path) in [(A, "/shared"), (B, "/shared"), (A, "/own"), (B, "/own")] {
        assert_eq!(fixture.get_as(key, path).await.text(), "0");
    }
    for written in 1..4 {
        fixture.clock.advance(Duration::from_secs(2));
        write(&fixture, A).await;
        for (key, path) in [(B, "/shared"), (A, "/shared"), (B, "/own"), (A, "/own")] {
            let found = fixture.get_as(key, path).await;
            assert_eq!(found.text(), written.to_string(), "{key} {path}");
        }
    }
    // Ten in a row, each sooner after the last one than four fetches take.
    for _ in 0..10 {
        fixture.clock.advance(Duration::from_millis(30));
        write(&fixture, B).await;
        for (key, path) in [(A, "/shared"), (B, "/own")] {
            let found = fixture.get_as(key, path).await.cache().to_owned();
            assert!(found == "HIT-STALE" || found == "HIT", "{path}: {found}");
        }
    }
    let hard = fixture
        .metric("cache_purges_total{target=\"group\",mode=\"hard\"}")
        .await;
    let soft = fixture
        .metric("cache_purges_total{target=\"group\",mode=\"soft\"}")
        .await;
    assert_eq!((hard, soft), (3.0, 10.0));
    // When it is over, what the last of them has written is there for whoever reads.
    fixture.clock.advance(Duration::from_secs(2));
    fixture
        .metric_reaches("cache_purges_total{target=\"group\",mode=\"hard\"}", 4.0)
        .await;
    for (key, path) in [(A, "/shared"), (B, "/own"), (A, "/own")] {
        assert_eq!(fixture.get_as(key, path).await.text(), "13", "{key} {path}");
    }
    // A pause, and the next one is isolated again.
    fixture.clock.advance(Duration::from_secs(2));
    write(&fixture, A).await;
    assert_eq!(fixture.get_as(B, "/shared").await.text(), "14");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_burst_is_one_wherever_in_the_fleet_it_is_written() {
    let redis = RedisServer::start(&[]).await;
    let url = redis.url();
    let gate = Gate::new();
    let held = gate.clone();
    let script = move |seen: &crate::support::Seen| match seen.method.as_str() {
        "POST" => reply(201, "", &[]),
        _ => after(&held, ok("x", &[])),
    };
    let fleet = Arc::new(Fleet::start(&[&url, &url], &rules(), script).await);
    // Both know how long a fetch takes.
    let reading: Vec<_> = [0, 1]
        .map(|at| {
            let fleet = Arc::clone(&fleet);
            let key = if at == 0 { A } else { B };
            tokio::spawn(async move { fleet.get_as(at, key, "/own").await.status })
        })
        .into();
    fleet.origin.asked(2).await;
    fleet.clock.advance(Duration::from_millis(100));
    gate.open();
    for answer in reading {
        assert_eq!(answer.await.unwrap(), 200);
    }
    let write = async |at: usize| {
        let fields = [("content-length", "0")];
        let mut client = fleet.connect(at).await;
        assert_eq!(client.ask("POST", "/write", &fields).await.status, 201);
    };
    let hard = "cache_purges_total{target=\"group\",mode=\"hard\"}";
    let soft = "cache_purges_total{target=\"group\",mode=\"soft\"}";
    write(0).await;
    assert_eq!(fleet.metric(0, hard).await, 1.0);
    // A purge that all have applied: the other one has heard of what was before it.
    let purged = fleet.purge(0, "{\"group\":\"other\"}").await;
    assert_eq!(purged["state"], "done", "{purged}");
    write(1).await;
    assert_eq!(
        (fleet.metric(1, hard).await, fleet.metric(1, soft).await),
        (0.0, 1.0)
    );
}
