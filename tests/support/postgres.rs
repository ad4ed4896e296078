//! A real Postgres on a free loopback port, in a folder of its own, stopped by its pid.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::PATIENCE;
use super::certificate::Certificate;
use super::process::Killed;
use super::redis::free_port;

pub struct PostgresServer {
    pub port: u16,
    folder: TempDir,
    process: Option<Killed>,
    /// Further settings.
    settings: Vec<String>,
}

/// Where Debian puts the programs of the newest version.
fn programs() -> PathBuf {
    let versions = std::fs::read_dir("/usr/lib/postgresql")
        .expect("postgresql is installed: tests/run does that");
    let newest = versions.flatten().map(|entry| entry.path()).max();
    newest.expect("a version").join("bin")
}

/// Postgres does not run as root: there, it runs as its own user.
fn command(program: &str) -> Command {
    let path = programs().join(program);
    let is_root = std::fs::metadata("/proc/self")
        .is_ok_and(|own| std::os::unix::fs::MetadataExt::uid(&own) == 0);
    if !is_root {
        return Command::new(path);
    }
    let mut command = Command::new("setpriv");
    command
        .args(["--reuid=postgres", "--regid=postgres", "--clear-groups"])
        .arg(path);
    command
}

fn give_to_postgres(folder: &Path) {
    let _ = Command::new("chown")
        .arg("-R")
        .arg("postgres")
        .arg(folder)
        .status();
}

impl PostgresServer {
    pub async fn start() -> Self {
        Self::start_with(None).await
    }

    /// With a certificate it takes TLS too.
    pub async fn start_with(certificate: Option<&Certificate>) -> Self {
        let mut server = Self {
            port: free_port(),
            folder: tempfile::tempdir().expect("a folder"),
            process: None,
            settings: Vec::new(),
        };
        if let Some(certificate) = certificate {
            let place = |name: &str, from: String| {
                // Nobody else may read the key.
                let path = server.folder.path().join(name);
                std::fs::copy(from, &path).expect("it is copied");
                std::fs::set_permissions(&path, Permissions::from_mode(0o600)).expect("it is ours");
                path.display().to_string()
            };
            server.settings = vec![
                "ssl=on".to_owned(),
                format!("ssl_cert_file={}", place("cert.pem", certificate.path())),
                format!("ssl_key_file={}", place("key.pem", certificate.key())),
            ];
        }
        give_to_postgres(server.folder.path());
        let data = server.folder.path().join("data");
        let made = command("initdb")
            .arg("-D")
            .arg(&data)
            .args([
                "-U",
                "iris",
                "--auth=trust",
                "--no-sync",
                "-E",
                "UTF8",
                "--locale=C.UTF-8",
            ])
            .current_dir("/")
            .stdout(Stdio::null())
            .status()
            .expect("initdb runs");
        assert!(made.success());
        server.launch().await;
        server
    }

    /// Starts it on its port, for the first time or again.
    pub async fn launch(&mut self) {
        let folder = self.folder.path().to_str().expect("UTF-8");
        let child = command("postgres")
            .args([
                "-D",
                &format!("{folder}/data"),
                "-p",
                &self.port.to_string(),
            ])
            .args([
                "-c",
                "listen_addresses=127.0.0.1",
                "-c",
                &format!("unix_socket_directories={folder}"),
            ])
            .args([
                "-c",
                "fsync=off",
                "-c",
                "max_connections=200",
                "-c",
                "logging_collector=off",
            ])
            .args(self.settings.iter().flat_map(|setting| ["-c", setting]))
            .current_dir("/")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("postgres runs");
        self.process = Some(Killed(child));
        let options: sqlx::postgres::PgConnectOptions = self.url().parse().expect("a URL");
        let answers = async {
            loop {
                if TcpStream::connect(("127.0.0.1", self.port)).await.is_ok() {
                    let connected = sqlx::ConnectOptions::connect(&options).await;
                    if connected.is_ok() {
                        return;
                    }
                }
                tokio::task::yield_now().await;
            }
        };
        timeout(PATIENCE, answers).await.expect("Postgres starts");
    }

    /// From the next reload on this user needs a password.
    pub fn asks_for_password(&self, user: &str) {
        let rules = format!(
            "host all {user} 127.0.0.1/32 scram-sha-256\nhost all all 127.0.0.1/32 trust\n"
        );
        let path = self.folder.path().join("data/pg_hba.conf");
        std::fs::write(path, rules).expect("it is ours");
    }

    pub fn url(&self) -> String {
        format!("postgres://iris@127.0.0.1:{}/postgres", self.port)
    }

    /// Stops it at once, in good order as far as its data is concerned.
    pub fn stop(&mut self) {
        if let Some(process) = &self.process {
            let id = process.0.id().to_string();
            let _ = Command::new("kill").args(["-INT", &id]).status();
        }
        if let Some(mut process) = self.process.take() {
            let _ = process.0.wait();
        }
    }
}

impl Drop for PostgresServer {
    fn drop(&mut self) {
        self.stop();
        // Its files are another user's where this runs as root, which may remove them all the same.
    }
}
