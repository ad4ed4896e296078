//! What an ill Redis costs: hits and misses of an instance with Redis beside those of one without,
//! asked in turn in the same run, while Redis is well, killed, frozen and slow.
//!
//! `cargo bench --bench ill_redis`; exit status 1 if a request failed, or if the 99th percentile is
//! more than 5 ms beyond that of the instance without Redis.

#![allow(clippy::expect_used, clippy::unwrap_used)]

#[path = "../tests/support/mod.rs"]
#[allow(dead_code, unused_imports)]
mod support;

use std::time::{Duration, Instant};

use support::fleet::Fleet;
use support::redis::RedisServer;
use support::wire::Wire;
use support::{Client, Fixture, all, numbered, route};

const CLIENTS: usize = 8;
const ASKED: usize = 4000;
const ALLOWED: Duration = Duration::from_millis(5);

/// Latencies of one instance: hits, and misses.
#[derive(Default)]
struct Measured {
    hits: Vec<Duration>,
    misses: Vec<Duration>,
    failed: usize,
}

impl Measured {
    async fn ask(&mut self, client: &mut Client, target: &str, is_hit: bool) {
        let begun = Instant::now();
        let found = client.ask("GET", target, &[]).await;
        let took = begun.elapsed();
        self.failed += usize::from(found.status != 200);
        if is_hit {
            self.hits.push(took);
        } else {
            self.misses.push(took);
        }
    }
}

fn percentile(sorted: &[Duration], of: f64) -> Duration {
    sorted[((sorted.len() - 1) as f64 * of) as usize]
}

/// Both in turn, from several connections; the order changes with every request.
async fn measure(name: &str, with: std::net::SocketAddr, without: std::net::SocketAddr) -> bool {
    let clients = (0..CLIENTS).map(|number| {
        let name = name.to_owned();
        async move {
            let (mut one, mut other) =
                (Client::connect(with).await, Client::connect(without).await);
            let (mut with, mut without) = (Measured::default(), Measured::default());
            for round in 0..ASKED / CLIENTS {
                let miss = format!("/{name}/{number}/{round}");
                for (target, is_hit) in [("/known", true), (miss.as_str(), false)] {
                    if round % 2 == 0 {
                        with.ask(&mut one, target, is_hit).await;
                        without.ask(&mut other, target, is_hit).await;
                    } else {
                        without.ask(&mut other, target, is_hit).await;
                        with.ask(&mut one, target, is_hit).await;
                    }
                }
            }
            (with, without)
        }
    });
    let (mut with, mut without) = (Measured::default(), Measured::default());
    for (one, other) in all(clients).await {
        for (sum, part) in [(&mut with, one), (&mut without, other)] {
            sum.hits.extend(part.hits);
            sum.misses.extend(part.misses);
            sum.failed += part.failed;
        }
    }
    let mut is_good = with.failed == 0;
    let kinds = [
        ("hit", &mut with.hits, &mut without.hits),
        ("miss", &mut with.misses, &mut without.misses),
    ];
    for (kind, with, without) in kinds {
        with.sort_unstable();
        without.sort_unstable();
        let millis = |latencies: &[Duration], of| percentile(latencies, of).as_secs_f64() * 1000.0;
        println!(
            "{name:8} {kind:5} with Redis p50 {:6.2} p99 {:6.2} max {:6.2} · without p50 {:6.2} \
                p99 {:6.2} max {:6.2} ms",
            millis(with, 0.5),
            millis(with, 0.99),
            millis(with, 1.0),
            millis(without, 0.5),
            millis(without, 0.99),
            millis(without, 1.0),
        );
        is_good &= percentile(with, 0.99) <= percentile(without, 0.99) + ALLOWED;
    }
    if with.failed > 0 {
        println!("{name:8} {} requests failed", with.failed);
    }
    is_good
}

#[tokio::main(flavor = "multi_thread")]
async fn main() -> std::process::ExitCode {
    eprintln!("What does an ill Redis cost the requests that meet it?");
    let mut redis = RedisServer::start(&[]).await;
    let wire = Wire::to(redis.port).await;
    let keys = route("ttl = \"60s\"");
    // The deadline and the breaker as they are by default.
    let extra = format!("[cache.redis]\ntimeout = \"20ms\"\n{keys}");
    let fleet = Fleet::start(&[&wire.url()], &extra, |seen| numbered(seen, &[])).await;
    let alone = Fixture::start(&keys, |seen| numbered(seen, &[])).await;
    let (with, without) = (fleet.instance(0).address, alone.sidecar().address);
    let heals = async || {
        fleet
            .metric_is(0, "cache_l2_breaker_open", |open| open == 0.0)
            .await;
        fleet
            .metric_is(0, "cache_l2_heard", |heard| heard == 1.0)
            .await;
    };
    let mut is_good = measure("well", with, without).await;
    redis.kill();
    is_good &= measure("killed", with, without).await;
    redis.launch().await;
    heals().await;
    redis.signal("STOP");
    is_good &= measure("frozen", with, without).await;
    redis.signal("CONT");
    heals().await;
    wire.slow(Duration::from_millis(200));
    is_good &= measure("slow", with, without).await;
    wire.slow(Duration::ZERO);
    heals().await;
    is_good &= measure("again", with, without).await;
    drop(alone);
    if is_good {
        std::process::ExitCode::SUCCESS
    } else {
        println!("a request failed, or the 99th percentile is more than {ALLOWED:?} beyond");
        std::process::ExitCode::FAILURE
    }
}
