//! A real Redis on a free loopback port, in a folder of its own, stopped by its pid.

use std::net::TcpListener;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::PATIENCE;
use super::process::Killed;

pub struct RedisServer {
    pub port: u16,
    arguments: Vec<String>,
    folder: TempDir,
    process: Option<Killed>,
}

/// A port that is free, and stays so while its server is down: below those that the kernel gives to
/// connections, of which tests make many. Redis itself cannot be asked to choose.
pub fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    loop {
        let number = std::process::id().wrapping_mul(101) + NEXT.fetch_add(1, Ordering::Relaxed);
        let port = 20_000 + (number % 12_000) as u16;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// A port whose cluster bus, ten thousand above it, is free as well.
fn free_port_with_bus() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    loop {
        let number = std::process::id().wrapping_mul(61) + NEXT.fetch_add(1, Ordering::Relaxed);
        let port = 10_000 + (number % 10_000) as u16;
        let is_free = |port| TcpListener::bind(("127.0.0.1", port)).is_ok();
        if is_free(port) && is_free(port + 10_000) {
            return port;
        }
    }
}

impl RedisServer {
    /// Starts one with these arguments beside its own, and returns when it answers.
    pub async fn start(arguments: &[&str]) -> Self {
        Self::start_on(free_port(), arguments).await
    }

    /// One that can be a node of a cluster.
    pub async fn start_with_bus(arguments: &[&str]) -> Self {
        Self::start_on(free_port_with_bus(), arguments).await
    }

    async fn start_on(port: u16, arguments: &[&str]) -> Self {
        let mut server = Self {
            port,
            arguments: arguments.iter().map(ToString::to_string).collect(),
            folder: tempfile::tempdir().expect("a folder"),
            process: None,
        };
        server.launch().await;
        server
    }

    /// Where it is.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Starts it on its port, for the first time or again.
    pub async fn launch(&mut self) {
        let port = self.port.to_string();
        let folder = self.folder.path().to_str().expect("UTF-8");
        let child = Command::new("redis-server")
            .args(["--port", &port, "--bind", "127.0.0.1", "--dir", folder])
            .args(["--save", "", "--appendonly", "no", "--loglevel", "warning"])
            .args(&self.arguments)
            .stdout(Stdio::null())
            .spawn()
            .expect("redis-server is installed: tests/run does that");
        self.process = Some(Killed(child));
        let answers = async {
            while self.ask("PING").await.is_none() {
                tokio::task::yield_now().await;
            }
        };
        timeout(PATIENCE, answers).await.expect("Redis starts");
    }

    /// One inline command; the first bytes of its answer.
    pub async fn ask(&self, command: &str) -> Option<String> {
        Self::ask_at(self.port, command).await
    }

    /// How many keys it has.
    pub async fn size(&self) -> String {
        self.ask("DBSIZE").await.unwrap_or_default()
    }

    pub async fn ask_at(port: u16, command: &str) -> Option<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await.ok()?;
        stream
            .write_all(format!("{command}\r\n").as_bytes())
            .await
            .ok()?;
        let mut answer = vec![0; 4096];
        let read = timeout(PATIENCE, stream.read(&mut answer))
            .await
            .ok()?
            .ok()?;
        answer.truncate(read);
        (read > 0).then(|| String::from_utf8_lossy(&answer).into_owned())
    }

    pub fn runs(&self) -> bool {
        self.process.is_some()
    }

    #[allow(dead_code, reason = "of tests/chaos")]
    /// What it has saved is gone: it will be empty at its next start.
    pub fn forget_snapshots(&self) {
        let _ = std::fs::remove_file(self.folder.path().join("dump.rdb"));
    }

    /// Kills it, without a word to its clients.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// Freezes it, or lets it go on: `STOP` and `CONT`.
    pub fn signal(&self, name: &str) {
        let process = self.process.as_ref().expect("it runs").0.id().to_string();
        let status = Command::new("kill")
            .args([&format!("-{name}"), &process])
            .status()
            .expect("kill runs");
        assert!(status.success());
    }
}
