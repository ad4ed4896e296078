//! A fleet of three under readers, writers, purges and faults, for a minute or `CHAOS_SECONDS`, by
//! the seed `CHAOS_SEED`. What an answer to a purge promises is what its readers hold it to
//! ([`promises`]).

#![allow(clippy::expect_used, clippy::unwrap_used)]

#[path = "../support/mod.rs"]
#[allow(dead_code, unused_imports)]
mod support;

mod faults;
mod fleet;
mod promises;
mod traffic;

use std::time::{Duration, Instant};

use fastrand::Rng;

use faults::Fault;
use fleet::ChaosFleet;

fn number(name: &str, default: u64) -> u64 {
    let given = std::env::var(name).ok();
    given.map_or(default, |text| text.parse().expect("a whole number"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_holds_whatever_happens() {
    let (seconds, seed) = (number("CHAOS_SECONDS", 60), number("CHAOS_SEED", 1));
    println!("chaos for {seconds} s by the seed {seed}");
    let mut rng = Rng::with_seed(seed);
    let each = Duration::from_secs(seconds) / 2;
    for has_sentinel in [false, true] {
        let mut fleet = ChaosFleet::start(has_sentinel).await;
        let traffic = traffic::begin(&fleet.board, seed);
        let until = Instant::now() + each;
        let mut left: Vec<Fault> = Vec::new();
        while Instant::now() < until {
            if left.is_empty() {
                // All of them, in an order of their own.
                left = Fault::all(has_sentinel);
                rng.shuffle(&mut left);
            }
            let fault = left.pop().expect("one is left");
            let left_over = until.saturating_duration_since(Instant::now());
            println!(
                "{:6.1} s left, {:?} MiB: {fault:?}",
                left_over.as_secs_f32(),
                fleet.resident()
            );
            fault.happens(&mut fleet, &mut rng).await;
            fleet.heals().await;
            fleet.board.settle().await;
        }
        let told = traffic.end().await;
        println!("{told}");
        fleet.holds_no_key_without_an_end().await;
        fleet.is_within_its_memory();
    }
}
