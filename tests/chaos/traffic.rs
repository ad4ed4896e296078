//! Readers, who hold every answer to what was promised; and those who write and purge.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use fastrand::Rng;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use super::fleet::{Board, INSTANCES};
use super::promises::Process;
use super::support::{Client, PATIENCE};

pub const KEYS: usize = 6;

/// Key and version, and a body that belongs to no other.
pub fn body_of(key: usize, version: u64) -> String {
    let sum = (key as u64 + 1)
        .wrapping_mul(version)
        .wrapping_mul(0x9e37_79b9_7f4a_7c15);
    format!(
        "{key} {version} {sum:016x} {}",
        "x".repeat((version as usize * 131) % 4000)
    )
}

const HOST: [(&str, &str); 1] = [("host", "api.example")];

/// What went on.
#[derive(Debug, Default)]
pub struct Told {
    reads: AtomicU64,
    states: [AtomicU64; 4],
}

const STATES: [&str; 4] = ["done", "unconfirmed", "pending", "write"];

impl fmt::Display for Told {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} reads", self.reads.load(Ordering::Relaxed))?;
        for (state, count) in STATES.iter().zip(&self.states) {
            write!(formatter, ", {} {state}", count.load(Ordering::Relaxed))?;
        }
        Ok(())
    }
}

pub struct Traffic {
    ends: Arc<AtomicBool>,
    told: Arc<Told>,
    tasks: Vec<JoinHandle<()>>,
}

pub fn begin(board: &Arc<Board>, seed: u64) -> Traffic {
    let (ends, told) = (Arc::new(AtomicBool::new(false)), Arc::new(Told::default()));
    let mut tasks = Vec::new();
    for number in 0..2 * INSTANCES {
        let (board, ends, told) = (Arc::clone(board), Arc::clone(&ends), Arc::clone(&told));
        let rng = Rng::with_seed(seed * 100 + number as u64);
        tasks.push(tokio::spawn(async move {
            read_on(&board, number % INSTANCES, rng, &ends, &told).await;
        }));
    }
    for number in 0..3 {
        let (board, ends, told) = (Arc::clone(board), Arc::clone(&ends), Arc::clone(&told));
        let rng = Rng::with_seed(seed * 100 + 50 + number);
        tasks.push(tokio::spawn(async move {
            write_on(&board, number as usize, rng, &ends, &told).await;
        }));
    }
    Traffic { ends, told, tasks }
}

impl Traffic {
    pub async fn end(self) -> Arc<Told> {
        self.ends.store(true, Ordering::SeqCst);
        for task in self.tasks {
            task.await.expect("everything that was promised held");
        }
        assert!(self.told.reads.load(Ordering::SeqCst) > 0);
        self.told
    }
}

/// One read, which must bring at least that version.
pub async fn read(client: &mut Client, key: usize, least: u64, process: Process) {
    let found = client.ask("GET", &format!("/k{key}"), &[]).await;
    let told = || format!("/k{key} of {process:?}: {}", found.cache_status());
    assert_eq!(found.status, 200, "{}", told());
    let text = found.text();
    let version: u64 = text
        .split(' ')
        .nth(1)
        .and_then(|part| part.parse().ok())
        .unwrap_or(0);
    assert_eq!(text, body_of(key, version), "{}", told());
    assert!(version >= least, "{version} after {least}: {}", told());
}

async fn read_on(board: &Board, place: usize, mut rng: Rng, ends: &AtomicBool, told: &Told) {
    while !ends.load(Ordering::SeqCst) {
        let there = board.places.lock().unwrap()[place];
        let Some((process, address, _)) = there else {
            sleep(Duration::from_millis(5)).await;
            continue;
        };
        // A process that ends takes its connections with it: what it answers until then counts.
        let reading = async {
            let stream = tokio::net::TcpStream::connect(address).await;
            let Ok(stream) = stream else { return };
            let mut client = Client::over(stream);
            for _ in 0..50 {
                let key = rng.usize(0..KEYS);
                let least = board.promises.least(key, process);
                let target = format!("/k{key}");
                let Some(found) = client.try_ask("GET", &target, &HOST, "").await else {
                    return;
                };
                let about = || format!("/k{key} of {process:?}: {}", found.cache_status());
                assert_eq!(found.status, 200, "{}", about());
                let text = found.text();
                let version = text.split(' ').nth(1).and_then(|part| part.parse().ok());
                let version: u64 = version.unwrap_or(0);
                assert_eq!(text, body_of(key, version), "{}", about());
                assert!(version >= least, "{version} after {least}: {}", about());
                told.reads.fetch_add(1, Ordering::Relaxed);
                sleep(Duration::from_millis(2)).await;
            }
        };
        timeout(PATIENCE, reading).await.expect("no read hangs");
    }
}

async fn write_on(board: &Board, number: usize, mut rng: Rng, ends: &AtomicBool, told: &Told) {
    while !ends.load(Ordering::SeqCst) {
        sleep(Duration::from_millis(rng.u64(5..120))).await;
        let _somebody_writes = board.quiet.read().await;
        let there = board.places.lock().unwrap()[rng.usize(0..INSTANCES)];
        let Some((process, address, admin)) = there else {
            continue;
        };
        // Each has keys of its own, so that their versions only grow.
        let key = number * 2 + rng.usize(0..2);
        let writing = async {
            if rng.u8(0..3) == 0 {
                let Ok(stream) = tokio::net::TcpStream::connect(address).await else {
                    return;
                };
                let mut client = Client::over(stream);
                let target = format!("/write/k{key}");
                let Some(found) = client.try_ask("POST", &target, &HOST, "").await else {
                    return;
                };
                assert_eq!(found.status, 201);
                let version = found.text().parse().expect("a version");
                board.promises.note(key, version, "write", process);
                told.states[3].fetch_add(1, Ordering::Relaxed);
                return;
            }
            let version = board.versions[key].fetch_add(1, Ordering::SeqCst) + 1;
            let order = match rng.u8(0..3) {
                0 => format!("{{\"group\": \"k{key}\"}}"),
                1 => format!("{{\"prefix\": \"/k{key}\"}}"),
                _ => format!("{{\"url\": \"/k{key}\"}}"),
            };
            let Ok(stream) = tokio::net::TcpStream::connect(admin).await else {
                return;
            };
            let mut client = Client::over(stream);
            let fields = [("host", "127.0.0.1"), ("content-type", "application/json")];
            let Some(done) = client.try_ask("POST", "/purge", &fields, &order).await else {
                return;
            };
            assert_eq!(done.status, 200, "{}", done.text());
            let state = done.json()["state"].as_str().unwrap_or_default().to_owned();
            board.promises.note(key, version, &state, process);
            let at = STATES.iter().position(|known| *known == state);
            told.states[at.expect("a state")].fetch_add(1, Ordering::Relaxed);
        };
        timeout(PATIENCE, writing).await.expect("no purge hangs");
    }
}
