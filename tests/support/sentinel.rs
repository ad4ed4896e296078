//! A real Sentinel, on a free loopback port.

use std::process::{Command, Stdio};

use tokio::time::timeout;

use super::PATIENCE;
use super::process::Killed;
use super::redis::{RedisServer, free_port};

/// A Sentinel that watches one master.
pub struct Sentinel {
    pub port: u16,
    _process: Killed,
    _folder: tempfile::TempDir,
}

impl Sentinel {
    pub fn start(master: u16) -> Self {
        let (port, folder) = (free_port(), tempfile::tempdir().unwrap());
        let file = folder.path().join("sentinel.conf");
        let text = format!(
            "port {port}\nbind 127.0.0.1\nsentinel monitor main 127.0.0.1 {master} 1\nsentinel \
                down-after-milliseconds main 500\nsentinel failover-timeout main 2000\n"
        );
        std::fs::write(&file, text).unwrap();
        let process = Command::new("redis-server")
            .arg(&file)
            .arg("--sentinel")
            .stdout(Stdio::null())
            .spawn()
            .expect("redis-server is installed: tests/run does that");
        Self {
            port,
            _process: Killed(process),
            _folder: folder,
        }
    }

    /// Waits until it says so of its master.
    pub async fn knows(&self, wanted: &str) {
        let knows = async {
            loop {
                let told = RedisServer::ask_at(self.port, "SENTINEL master main").await;
                if told.is_some_and(|told| told.contains(wanted)) {
                    return;
                }
                tokio::task::yield_now().await;
            }
        };
        timeout(PATIENCE, knows).await.expect("the Sentinel knows");
    }
}

impl Sentinel {
    /// What an instance is told of it.
    pub fn url(&self) -> String {
        format!(
            "redis-sentinel://127.0.0.1:{}?sentinelServiceName=main",
            self.port
        )
    }
}
