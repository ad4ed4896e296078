//! The real binary as a process of its own.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use super::cgroup::Cgroup;

/// Listens on free ports, for `serve --config`.
pub const FREE_PORTS: &str =
    "[listen]\naddress = \"127.0.0.1:0\"\n[admin]\naddress = \"127.0.0.1:0\"\n";

/// A process that is killed at the end of its test if it still runs.
pub struct Killed(pub Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A sidecar process.
pub struct Running {
    pub child: Killed,
    pub lines: Box<dyn Iterator<Item = String> + Send>,
    pub address: SocketAddr,
    pub admin: SocketAddr,
}

pub fn binary() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_iris-sidecar"));
    command.env_remove("RUST_LOG");
    command
}

/// Writes a configuration into `folder`; its path.
pub fn file(folder: &Path, text: &str) -> String {
    let path = folder.join("iris.toml");
    std::fs::write(&path, text).expect("the folder is writable");
    path.to_str().expect("UTF-8").to_owned()
}

impl Running {
    /// Serves by the configuration at `path`, and returns when it says so.
    pub fn start(path: &str) -> Self {
        Self::launch(binary(), path)
    }

    /// The same with so many descriptors and no more.
    pub fn start_with_descriptors(count: u32, path: &str) -> Self {
        Self::after(&format!("ulimit -n {count}"), path)
    }

    /// The same in which a write over the limit of a file's size fails, and does not end the
    /// process.
    pub fn start_deaf_to_file_limits(path: &str) -> Self {
        Self::after("trap '' XFSZ", path)
    }

    /// The same in a control group.
    pub fn start_in(group: &Cgroup, path: &str) -> Self {
        Self::after(&format!("echo $$ > {}", group.processes().display()), path)
    }

    /// The same with this file in the place of `/etc/resolv.conf`.
    pub fn start_with_resolver(resolver: &Path, path: &str) -> Self {
        let mut command = Command::new("unshare");
        command.env_remove("RUST_LOG");
        let mount = format!(
            "mount --bind {} /etc/resolv.conf && exec \"$0\" \"$@\"",
            resolver.display()
        );
        let program = env!("CARGO_BIN_EXE_iris-sidecar");
        command.args(["--mount", "sh", "-c", &mount, program]);
        Self::launch(command, path)
    }

    /// The same after a command of the shell.
    fn after(first: &str, path: &str) -> Self {
        let mut command = Command::new("sh");
        command.env_remove("RUST_LOG");
        let program = env!("CARGO_BIN_EXE_iris-sidecar");
        let script = format!("{first} && exec \"$0\" \"$@\"");
        command.args(["-c", &script, program]);
        Self::launch(command, path)
    }

    /// Serves by these variables of the environment, and no file.
    pub fn start_by(variables: &[(&str, &str)]) -> Self {
        let mut command = binary();
        command.envs(variables.iter().copied());
        Self::launched(command)
    }

    fn launch(mut command: Command, path: &str) -> Self {
        command.args(["serve", "--config", path]);
        Self::launched(command)
    }

    /// Starts a command that serves, and returns when it says so.
    pub fn launched(command: Command) -> Self {
        Self::launched_told(command).0
    }

    /// The same, with all lines that it said until then.
    pub fn launched_told(mut command: Command) -> (Self, Vec<String>) {
        command
            .env("IRIS_LOG_FORMAT", "json")
            .stderr(Stdio::piped());
        let mut child = command.spawn().expect("the binary is built");
        let stderr = BufReader::new(child.stderr.take().expect("it is piped"));
        let mut lines = Box::new(stderr.lines().map_while(Result::ok));
        let mut before = Vec::new();
        let first = lines.find(|line| {
            before.push(line.clone());
            line.contains("serving")
        });
        let first = first.unwrap_or_else(|| panic!("it does not serve: {before:?}"));
        let fields: serde_json::Value =
            serde_json::from_str(&first).expect("each log line is JSON");
        let address = |name: &str| {
            fields["fields"][name]
                .as_str()
                .and_then(|text| text.parse().ok())
                .expect("an address")
        };
        let running = Self {
            address: address("address"),
            admin: address("admin"),
            child: Killed(child),
            lines,
        };
        (running, before)
    }

    pub fn signal(&self, name: &str) {
        let process = self.child.0.id().to_string();
        let status = Command::new("kill")
            .args([&format!("-{name}"), &process])
            .status()
            .expect("kill runs");
        assert!(status.success());
    }
}
