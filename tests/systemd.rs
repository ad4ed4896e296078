//! Under systemd: what it is told, the socket that it passes and keeps, and the unit.

use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use crate::support::process::{FREE_PORTS, Killed, Running, binary, file};
use crate::support::{Client, Gate, Origin, PATIENCE, after, numbered, ok, route};

/// A process that gets this socket as systemd passes some: from descriptor 3 on, by its process id.
fn with_sockets(count: u32, socket: &TcpListener, config: &str) -> Command {
    let mut command = Command::new("sh");
    let descriptors: String = (3..3 + count)
        .map(|number| format!(" {number}<&0"))
        .collect();
    let script = format!(
        "exec{descriptors} </dev/null && LISTEN_PID=$$ LISTEN_FDS={count} exec \"$0\" \"$@\""
    );
    let program = env!("CARGO_BIN_EXE_iris-sidecar");
    command.args(["-c", &script, program, "serve", "--config", config]);
    command.stdin(OwnedFd::from(socket.try_clone().unwrap()));
    command
}

struct Manager {
    socket: UnixDatagram,
    path: String,
    _folder: tempfile::TempDir,
}

impl Manager {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Self {
            socket,
            path: path.to_str().unwrap().to_owned(),
            _folder: folder,
        }
    }

    /// The next that is told, but for signs of life.
    fn told(&self) -> String {
        loop {
            let mut bytes = [0; 512];
            let length = self.socket.recv(&mut bytes).expect("it is told");
            let text = std::str::from_utf8(&bytes[..length]).unwrap();
            if !text.starts_with("WATCHDOG") {
                return text.to_owned();
            }
        }
    }

    /// The next sign of life.
    fn lives(&self) {
        let mut bytes = [0; 512];
        while let Ok(length) = self.socket.recv(&mut bytes) {
            if bytes[..length].starts_with(b"WATCHDOG=1") {
                return;
            }
        }
        panic!("no sign of life");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn systemd_is_told_how_it_goes() {
    let folder = tempfile::tempdir().unwrap();
    let text = FREE_PORTS.replace("[admin]", "drain_delay = \"0s\"\n[admin]");
    let path = file(folder.path(), &text);
    let manager = Manager::new();
    let mut command = binary();
    command.args(["serve", "--config", &path]);
    command.env("NOTIFY_SOCKET", &manager.path);
    command.env("WATCHDOG_USEC", "60000");
    let running = Running::launched(command);
    let ready = manager.told();
    let address = running.address.to_string();
    assert!(
        ready.starts_with("READY=1\nSTATUS=serving on ") && ready.contains(&address),
        "{ready}"
    );
    manager.lives();
    manager.lives();
    for wrong in [false, true] {
        let text = if wrong {
            "[cache]\nmemory = 1\n"
        } else {
            &text
        };
        file(folder.path(), text);
        running.signal("HUP");
        let reloading = manager.told();
        assert!(
            reloading.starts_with("RELOADING=1\nMONOTONIC_USEC="),
            "{reloading}"
        );
        assert_eq!(manager.told().trim_end(), "READY=1");
    }
    running.signal("TERM");
    assert!(manager.told().starts_with("STOPPING=1\n"));
}

/// Connects again and again, each time with one request, and counts what failed.
async fn clients(address: SocketAddr, ends: Arc<AtomicBool>, answered: Arc<AtomicU32>) -> u32 {
    let mut failed = 0;
    while !ends.load(Ordering::Relaxed) {
        let asking = async {
            let stream = tokio::net::TcpStream::connect(address).await.ok()?;
            let mut client = Client::over(stream);
            client
                .try_ask("GET", "/a", &[("host", "a"), ("connection", "close")], "")
                .await
        };
        match tokio::time::timeout(PATIENCE, asking).await {
            Ok(Some(answer)) if answer.status == 200 => answered.fetch_add(1, Ordering::Relaxed),
            _ => {
                failed += 1;
                0
            }
        };
    }
    failed
}

#[tokio::test(flavor = "multi_thread")]
async fn a_passed_socket_outlives_a_restart_and_no_connection_is_refused() {
    let origin = Origin::start(|seen| numbered(seen, &[])).await;
    let folder = tempfile::tempdir().unwrap();
    // Its own address is another's: it is not bound, nor tried.
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let text = format!(
        "[listen]\naddress = \"{}\"\nworkers = 2\ndrain_delay = \"0s\"\n[admin]\naddress \
            = \"127.0.0.1:0\"\n[upstream]\nurl = \"{}\"\n{}",
        taken.local_addr().unwrap(),
        origin.url(),
        route("ttl = \"1h\"")
    );
    let path = file(folder.path(), &text);
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    // Nobody is there yet: who comes waits.
    let (ends, answered) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicU32::new(0)),
    );
    let asking: Vec<_> = (0..4)
        .map(|_| tokio::spawn(clients(address, ends.clone(), answered.clone())))
        .collect();
    let more = async |count: u32| {
        let wanted = answered.load(Ordering::Relaxed) + count;
        while answered.load(Ordering::Relaxed) < wanted {
            tokio::task::yield_now().await;
        }
    };
    let mut running = Running::launched(with_sockets(1, &socket, &path));
    assert_eq!(running.address, address);
    for _ in 0..3 {
        tokio::time::timeout(PATIENCE, more(200))
            .await
            .expect("they are answered");
        running.signal("TERM");
        let Killed(child) = &mut running.child;
        assert!(child.wait().unwrap().success());
        running = Running::launched(with_sockets(1, &socket, &path));
    }
    tokio::time::timeout(PATIENCE, more(200))
        .await
        .expect("they are answered");
    ends.store(true, Ordering::Relaxed);
    for one in asking {
        assert_eq!(one.await.unwrap(), 0, "a client failed");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_comes_while_a_passed_socket_changes_hands_waits_for_no_slow_request() {
    let gate = Gate::new();
    let held = gate.clone();
    let origin = Origin::start(move |seen| match seen.target.as_str() {
        "/slow" => after(&held, ok("slow", &[])),
        _ => numbered(seen, &[]),
    })
    .await;
    let folder = tempfile::tempdir().unwrap();
    let text = format!(
        "[listen]\nworkers = 2\ndrain_delay = \"0s\"\n[admin]\naddress \
            = \"127.0.0.1:0\"\n[upstream]\nurl = \"{}\"\n",
        origin.url()
    );
    let path = file(folder.path(), &text);
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut running = Running::launched(with_sockets(1, &socket, &path));
    let mut slow = Client::connect(running.address).await;
    slow.request("GET", "/slow", &[]).await;
    origin.asked(1).await;
    running.signal("TERM");
    let closing = running.lines.find(|line| line.contains("closing: "));
    closing.expect("it says that it closes");
    for _ in 0..20 {
        let mut client = Client::connect(running.address).await;
        let answer = client.ask("GET", "/a", &[]).await;
        assert_eq!(
            (answer.status, answer.header("connection")),
            (200, Some("close"))
        );
    }
    gate.open();
    assert_eq!(slow.response().await.text(), "slow");
    let Killed(child) = &mut running.child;
    assert!(child.wait().unwrap().success());
}

#[test]
fn sockets_that_have_no_place_are_a_mistake() {
    let folder = tempfile::tempdir().unwrap();
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let place = folder.path().join("s");
    let text = format!(
        "[listen]\naddress = \"unix:{}\"\n[admin]\naddress = \"127.0.0.1:0\"\n",
        place.display()
    );
    let mut command = with_sockets(1, &socket, &file(folder.path(), &text));
    let output = command.stderr(Stdio::piped()).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.contains("the socket that systemd passes for unix:"),
        "{said}"
    );
    // More than there are places for.
    let mut command = with_sockets(2, &socket, &file(folder.path(), FREE_PORTS));
    let output = command.stderr(Stdio::piped()).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.contains("systemd passes 2 sockets, and [listen] has 1 places"),
        "{said}"
    );
}

/// The units, as they would be installed, with the binary where it is.
fn installed(folder: &std::path::Path) -> String {
    let units = concat!(env!("CARGO_MANIFEST_DIR"), "/docker/systemd");
    for name in ["iris-sidecar.service", "iris-sidecar.socket"] {
        let text = std::fs::read_to_string(format!("{units}/{name}")).unwrap();
        let text = text.replace("/usr/bin/iris-sidecar", env!("CARGO_BIN_EXE_iris-sidecar"));
        std::fs::write(folder.join(name), text).unwrap();
    }
    folder
        .join("iris-sidecar.service")
        .to_str()
        .unwrap()
        .to_owned()
}

#[test]
fn the_unit_is_valid_and_little_is_left_to_it() {
    let folder = tempfile::tempdir().unwrap();
    let unit = installed(folder.path());
    let socket = unit.replace(".service", ".socket");
    let analyze = |arguments: &[&str]| {
        let output = Command::new("systemd-analyze").args(arguments).output();
        let output = output.expect("tests/run has installed systemd");
        let said = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8(said).unwrap())
    };
    let (is_valid, said) = analyze(&[
        "verify",
        "--man=no",
        "--recursive-errors=no",
        &unit,
        &socket,
    ]);
    assert!(is_valid && said.is_empty(), "{said}");
    // Exposure from 0 to 10, in tenths.
    let (is_safe, said) = analyze(&[
        "security",
        "--offline=true",
        "--no-pager",
        "--threshold=20",
        &unit,
    ]);
    assert!(is_safe, "{said}");
}
