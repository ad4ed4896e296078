//! The instances, as processes, with what is around them.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tempfile::TempDir;
use tokio::time::timeout;

use super::promises::{Places, Process, Promises};
use super::support::process::{FREE_PORTS, Running, file};
use super::support::redis::RedisServer;
use super::support::sentinel::Sentinel;
use super::support::wire::Wire;
use super::support::{Client, Origin, reply};
use super::traffic::{KEYS, body_of};

pub const INSTANCES: usize = 3;

/// Budget of each instance's memory, and what it may take beside it.
const MEMORY: &str = "16MiB";
const MEMORY_PROMISED: u64 = (16 + 40 + 4) << 20;

/// After a fault everything is well again within this.
const HEALED_WITHIN: Duration = Duration::from_secs(25);

/// What readers and writers share with those who bring faults about.
pub struct Board {
    pub places: Places,
    pub promises: Promises,
    /// Of each key, as the origin has it.
    pub versions: Arc<[std::sync::atomic::AtomicU64; KEYS]>,
    /// Writers rest meanwhile.
    pub quiet: tokio::sync::RwLock<()>,
}

pub struct ChaosFleet {
    pub board: Arc<Board>,
    pub redis: RedisServer,
    /// With its replica, where there is one.
    pub other: Option<(RedisServer, Sentinel)>,
    pub wires: Vec<Wire>,
    running: Vec<Option<Running>>,
    folders: Vec<TempDir>,
    runs: u32,
    _origin: Origin,
}

impl ChaosFleet {
    pub async fn start(has_sentinel: bool) -> Self {
        let versions: Arc<[std::sync::atomic::AtomicU64; KEYS]> =
            Arc::new(std::array::from_fn(|_| 1.into()));
        let seen_by_origin = Arc::clone(&versions);
        let origin = Origin::unrecorded(move |seen| {
            let path = seen.target.rsplit('/').next().unwrap_or_default();
            let key: usize = path.trim_start_matches('k').parse().unwrap_or(0);
            let version = &seen_by_origin[key % KEYS];
            if seen.method == "POST" {
                let version = version.fetch_add(1, std::sync::atomic::Ordering::SeqCst) + 1;
                return reply(201, version.to_string(), &[]);
            }
            let version = version.load(std::sync::atomic::Ordering::SeqCst);
            reply(200, body_of(key, version), &[])
        })
        .await;
        // With a Sentinel it has to be longer than two masters can be there: until then an instance
        // that listens to the old one is missed.
        let max_silence = Duration::from_secs(if has_sentinel { 20 } else { 3 });
        let redis = RedisServer::start(&[]).await;
        let other = if has_sentinel {
            let port = redis.port.to_string();
            let arguments = [
                "--replicaof",
                "127.0.0.1",
                &port,
                "--repl-diskless-sync-delay",
                "0",
            ];
            let replica = RedisServer::start(&arguments).await;
            let sentinel = Sentinel::start(redis.port);
            sentinel.knows("num-slaves\r\n$1\r\n1").await;
            Some((replica, sentinel))
        } else {
            None
        };
        let (mut wires, mut folders) = (Vec::new(), Vec::new());
        for _ in 0..INSTANCES {
            let wire = Wire::to(redis.port).await;
            let url = other
                .as_ref()
                .map_or_else(|| wire.url(), |(_, sentinel)| sentinel.url());
            let groups = (0..KEYS).map(|key| {
                format!(
                    "[[route]]\npath = \"/k{key}\"\nttl = \"1h\"\nstale_if_error = \"1h\"\ngroups \
                        = [\"k{key}\"]\n[[route]]\npath = \"/write/k{key}\"\nmethods = \
                        [\"POST\"]\ninvalidates = [\"k{key}\"]\ninvalidation = \"hard\"\n"
                )
            });
            let text = format!(
                "{FREE_PORTS}[upstream]\nurl = \"{}\"\n[cache]\nmemory = \"{MEMORY}\"\nmax_object \
                    = \"1MiB\"\n[cache.redis]\nurl = \"{url}\"\ntimeout = \"200ms\"\nbreaker_open \
                    = \"500ms\"\nmax_silence = \"{}s\"\n{}",
                origin.url(),
                max_silence.as_secs(),
                groups.collect::<String>(),
            );
            let folder = tempfile::tempdir().unwrap();
            file(folder.path(), &text);
            folders.push(folder);
            wires.push(wire);
        }
        let mut fleet = Self {
            board: Arc::new(Board {
                places: Arc::new(Mutex::new([None; INSTANCES])),
                promises: Promises::new(max_silence, has_sentinel),
                versions,
                quiet: tokio::sync::RwLock::new(()),
            }),
            redis,
            other,
            wires,
            running: (0..INSTANCES).map(|_| None).collect(),
            folders,
            runs: 0,
            _origin: origin,
        };
        for place in 0..INSTANCES {
            fleet.launch(place).await;
        }
        fleet.heals().await;
        fleet
    }

    pub async fn launch(&mut self, place: usize) {
        let config = self.folders[place].path().join("iris.toml");
        let config = config.to_str().unwrap().to_owned();
        let running = tokio::task::spawn_blocking(move || Running::start(&config));
        let mut running = running.await.unwrap();
        // What it says is read, so that it can go on saying it.
        let lines = std::mem::replace(&mut running.lines, Box::new(std::iter::empty()));
        std::thread::spawn(move || lines.for_each(drop));
        self.runs += 1;
        let process = Process {
            place,
            run: self.runs,
        };
        self.board.places.lock().unwrap()[place] = Some((process, running.address, running.admin));
        self.running[place] = Some(running);
    }

    /// It is killed, or stopped in good order.
    pub async fn ends(&mut self, place: usize, signal: &str) {
        self.board.places.lock().unwrap()[place] = None;
        let Some(mut running) = self.running[place].take() else {
            return;
        };
        running.signal(signal);
        let ended = tokio::task::spawn_blocking(move || running.child.0.wait());
        let status = ended.await.unwrap().unwrap();
        assert!(signal == "KILL" || status.code() == Some(0), "{status}");
    }

    /// Waits until all instances run, hear the purge log, and have told what they purged.
    pub async fn heals(&mut self) {
        for wire in &self.wires {
            wire.slow(Duration::ZERO);
            wire.mend();
        }
        for place in 0..INSTANCES {
            if self.running[place].is_none() {
                self.launch(place).await;
            }
        }
        self.board.all_is_told().await;
    }

    /// The server of Redis that is master now.
    pub async fn master(&self) -> &RedisServer {
        if let Some((other, _)) = &self.other {
            for server in [&self.redis, other] {
                let role = server.ask("ROLE").await.unwrap_or_default();
                if role.contains("master") {
                    return server;
                }
            }
        }
        &self.redis
    }

    pub async fn holds_no_key_without_an_end(&self) {
        let script = "local n=0 for _,k in ipairs(redis.call('KEYS','*')) do if \
            redis.call('PTTL',k)==-1 then n=n+1 end end return n";
        let master = self.master().await;
        let found = master.ask(&format!("EVAL \"{script}\" 0")).await;
        assert_eq!(
            found.unwrap_or_default().trim(),
            ":0",
            "keys without an end"
        );
        assert_ne!(master.size().await.trim(), ":0");
    }

    pub fn resident(&self) -> Vec<u64> {
        let running = self.running.iter().flatten();
        let resident = running.map(|running| {
            let process = running.child.0.id();
            let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
            let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
            let now = line.unwrap().trim().trim_end_matches(" kB");
            now.parse::<u64>().unwrap() >> 10
        });
        resident.collect()
    }

    pub fn is_within_its_memory(&self) {
        for running in self.running.iter().flatten() {
            let process = running.child.0.id();
            let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
            let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
            let most = line.unwrap().trim().trim_end_matches(" kB");
            let most = most.parse::<u64>().unwrap() << 10;
            println!("an instance held {} MiB at most", most >> 20);
            assert!(most <= MEMORY_PROMISED, "{most}");
        }
    }
}

impl Board {
    /// Waits until all instances that run hear the purge log, and have told what they purged.
    async fn all_is_told(&self) {
        let places = *self.places.lock().unwrap();
        for (process, _, admin) in places.iter().flatten() {
            let told = async {
                loop {
                    let ready = Client::admin(*admin, "/readyz").await.json();
                    let log = &ready["redis"]["purge_log"];
                    if log["heard"] == true && log["pending"] == 0 {
                        return;
                    }
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            };
            let told = timeout(HEALED_WITHIN, told).await;
            assert!(told.is_ok(), "{process:?} does not become well");
        }
    }

    /// Nothing is written for a moment, and everything that was promised is asked for everywhere.
    pub async fn settle(&self) {
        let _nobody_writes = self.quiet.write().await;
        self.all_is_told().await;
        let places = *self.places.lock().unwrap();
        // Heard by all: each has looked once more since the last was told.
        for (_, _, admin) in places.iter().flatten() {
            let looks = async || {
                let text = Client::admin(*admin, "/metrics").await.text();
                let name = "cache_l2_commands_total{command=\"sync\"} ";
                let line = text.lines().find_map(|line| line.strip_prefix(name));
                line.and_then(|count| count.parse::<f64>().ok())
                    .unwrap_or(0.0)
            };
            let before = looks().await;
            let again = async {
                while looks().await < before + 2.0 {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            };
            timeout(HEALED_WITHIN, again).await.expect("it looks again");
        }
        self.promises.all_hold();
        for (process, address, _) in places.iter().flatten() {
            let mut client = Client::connect(*address).await;
            for key in 0..KEYS {
                let least = self.promises.least(key, *process);
                super::traffic::read(&mut client, key, least, *process).await;
            }
        }
    }
}
