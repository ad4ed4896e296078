//! What the behaviour tests share: the real sidecar on free loopback ports, a scripted origin that
//! can misbehave, and a client that sees every byte.

pub mod api;
pub mod browser;
pub mod certificate;
pub mod cgroup;
pub mod client;
pub mod cluster;
pub mod dns;
pub mod fleet;
pub mod golden;
pub mod keys;
pub mod origin;
pub mod postgres;
pub mod process;
pub mod ranged;
pub mod redis;
pub mod sentinel;
pub mod tls_origin;
pub mod traps;
pub mod wire;

use std::time::{Duration, SystemTime};

use iris_sidecar::clock::{Clock, Timestamp};
use iris_sidecar::config::Config;
use iris_sidecar::process::Sidecar;

pub use client::{Client, Received};
pub use origin::{Gate, Origin, Reply, Seen, Step, after, numbered, ok, reply};

/// Nothing a test waits for takes as long as this.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A sidecar in front of an origin, and the clock that both live by.
pub struct Fixture {
    pub origin: Origin,
    pub clock: Clock,
    sidecar: Option<Sidecar>,
    /// Where its configuration is, where that has a file.
    folder: Option<tempfile::TempDir>,
}

/// The configuration of a sidecar in front of `upstream`, on free ports. `extra` may add keys to
/// the sections that stand here already.
pub fn config(upstream: &str, extra: &str) -> Config {
    let text = config_text(upstream, extra);
    Config::parse("test.toml", &text, &|_| None).unwrap_or_else(|mistakes| {
        let lines: Vec<String> = mistakes.iter().map(ToString::to_string).collect();
        panic!("{}\nin\n{text}", lines.join("\n"))
    })
}

fn config_text(upstream: &str, extra: &str) -> String {
    let url = format!("url = \"{upstream}\"");
    let sections = [
        (
            "listen",
            vec!["address = \"127.0.0.1:0\"", "drain_timeout = \"200ms\""],
        ),
        ("admin", vec!["address = \"127.0.0.1:0\""]),
        ("upstream", vec![&url]),
    ];
    let (mut text, mut rest) = (String::new(), extra.to_owned());
    for (section, keys) in sections {
        if extra.contains(&format!("[[{section}]]")) {
            continue;
        }
        let (own, left) = split(&rest, section);
        rest = left;
        let name = |line: &str| line.split('=').next().unwrap_or_default().trim().to_owned();
        let replaced: Vec<String> = own.lines().map(name).collect();
        let kept = keys
            .into_iter()
            .filter(|key| !replaced.contains(&name(key)));
        let kept: Vec<&str> = kept.collect();
        text.push_str(&format!("[{section}]\n{}\n{own}\n", kept.join("\n")));
    }
    // Keys before the first table are the file's own.
    let tables = rest.find('[').unwrap_or(rest.len());
    format!("{}{text}{}", &rest[..tables], &rest[tables..])
}

/// The lines of one section, and the text without it.
fn split(text: &str, section: &str) -> (String, String) {
    let (mut inside, mut own, mut rest) = (false, String::new(), String::new());
    for line in text.lines() {
        if line.trim_start().starts_with('[') {
            inside = line.trim() == format!("[{section}]");
            if inside {
                continue;
            }
        }
        let part = if inside { &mut own } else { &mut rest };
        part.push_str(line);
        part.push('\n');
    }
    (own, rest)
}

/// One route for everything, with these keys.
pub fn route(keys: &str) -> String {
    format!("[[route]]\npath = \"/{{*rest}}\"\n{keys}\n")
}

impl Fixture {
    /// A sidecar with `extra` configuration before an origin that answers by `script`.
    pub async fn start(
        extra: &str,
        script: impl Fn(&Seen) -> Reply + Send + Sync + 'static,
    ) -> Self {
        Self::in_front_of(Origin::start(script).await, extra)
    }

    pub fn in_front_of(origin: Origin, extra: &str) -> Self {
        let clock = Clock::manual(Timestamp::from(SystemTime::now()));
        let config = config(&origin.url(), extra);
        let sidecar = Sidecar::start_with(config, clock.clone(), None).expect("the sidecar starts");
        Self {
            origin,
            clock,
            sidecar: Some(sidecar),
            folder: None,
        }
    }

    /// One whose configuration is a file, read again by order alone.
    pub fn with_file(origin: Origin, extra: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let clock = Clock::manual(Timestamp::from(SystemTime::now()));
        let mut this = Self {
            origin,
            clock: clock.clone(),
            sidecar: None,
            folder: Some(folder),
        };
        this.write_file(extra);
        let config = Config::load(&this.file(), &|_| None).expect("it is right");
        let sidecar = Sidecar::start_with(config, clock, None).expect("the sidecar starts");
        this.sidecar = Some(sidecar);
        this
    }

    fn file(&self) -> std::path::PathBuf {
        let folder = self.folder.as_ref().expect("it has a file");
        folder.path().join("iris.toml")
    }

    /// Puts another text into its file.
    pub fn write_file(&self, extra: &str) {
        let watch = "[reload]\nevery = \"0s\"\n";
        let text = config_text(&self.origin.url(), &format!("{extra}\n{watch}"));
        std::fs::write(self.file(), text).expect("it can be written");
    }

    pub fn remove_file(&self) {
        std::fs::remove_file(self.file()).expect("it is there");
    }

    pub fn sidecar(&self) -> &Sidecar {
        self.sidecar
            .as_ref()
            .expect("it runs until the end of the test")
    }

    pub async fn connect(&self) -> Client {
        Client::connect(self.sidecar().address).await
    }

    /// One GET on a connection of its own.
    pub async fn get(&self, target: &str) -> Received {
        self.get_with(target, &[]).await
    }

    pub async fn get_with(&self, target: &str, fields: &[(&str, &str)]) -> Received {
        self.connect().await.ask("GET", target, fields).await
    }

    pub fn advance(&self, seconds: u64) {
        self.clock.advance(Duration::from_secs(seconds));
    }

    pub async fn admin(&self, target: &str) -> Received {
        Client::admin(self.sidecar().admin_address, target).await
    }

    /// The value of one sample on the admin port.
    pub async fn metric(&self, sample: &str) -> f64 {
        let text = self.admin("/metrics").await.text();
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(sample)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no sample {sample} in\n{text}"))
            .parse()
            .expect("a number")
    }

    /// Waits until a sample has reached a value: for what happens behind an answer.
    pub async fn metric_reaches(&self, sample: &str, value: f64) {
        self.metric_is(sample, |now| now >= value).await;
    }

    pub async fn metric_is(&self, sample: &str, is_right: impl Fn(f64) -> bool) {
        let reached = async {
            while !is_right(self.metric(sample).await) {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, reached)
            .await
            .unwrap_or_else(|_| panic!("{sample} never came to its value"));
    }

    /// Takes the sidecar out, to be drained by the test itself.
    pub fn take(&mut self) -> Sidecar {
        self.sidecar
            .take()
            .expect("it runs until the end of the test")
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        if let Some(sidecar) = self.sidecar.take() {
            sidecar.drain();
            sidecar.join();
        }
    }
}

/// Runs `count` futures at once and collects what they give.
pub async fn all<T: Send + 'static>(
    futures: impl IntoIterator<Item = impl Future<Output = T> + Send + 'static>,
) -> Vec<T> {
    let tasks: Vec<_> = futures.into_iter().map(tokio::spawn).collect();
    let mut results = Vec::new();
    for task in tasks {
        results.push(task.await.expect("no task panics"));
    }
    results
}
