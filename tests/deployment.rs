//! What is deployed beside the image: compose files, Kubernetes manifests and what they mount, each
//! held by its own checker; and a rollout, as they make it.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use iris_sidecar::config::Config;

use crate::support::process::{Killed, Running, file};
use crate::support::{Client, Origin, PATIENCE, numbered, route};

fn place(name: &str) -> String {
    format!("{}/docker/{name}", env!("CARGO_MANIFEST_DIR"))
}

fn text(name: &str) -> String {
    std::fs::read_to_string(place(name)).unwrap()
}

/// Runs a checker; what it says.
fn holds(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    let output = output.unwrap_or_else(|error| panic!("tests/run installs {program}: {error}"));
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    assert!(output.status.success(), "{program} {arguments:?}: {said}");
    said
}

#[test]
fn the_compose_files_are_valid_and_so_is_what_they_mount() {
    for name in ["compose.yaml", "compose.fleet.yaml"] {
        let shown = holds("docker-compose", &["-f", &place(name), "config"]);
        for line in shown
            .lines()
            .filter(|line| line.contains("/docker/") || line.contains("/config"))
        {
            // `/from/here:/to/there:ro`, as it is resolved.
            let from = line
                .trim()
                .trim_start_matches("- ")
                .split(':')
                .next()
                .unwrap();
            if from.starts_with('/') {
                assert!(
                    Path::new(from).exists(),
                    "{name} mounts {from}, which is not there"
                );
            }
        }
    }
    holds("haproxy", &["-c", "-f", &place("compose/haproxy.cfg")]);
    let folder = tempfile::tempdir().unwrap();
    let rules = concat!(env!("CARGO_MANIFEST_DIR"), "/config/prometheus/rules.yaml");
    let prometheus = folder.path().join("prometheus.yml");
    std::fs::copy(place("compose/prometheus.yaml"), &prometheus).unwrap();
    std::fs::copy(rules, folder.path().join("rules.yaml")).unwrap();
    holds(
        "promtool",
        &["check", "config", prometheus.to_str().unwrap()],
    );
}

/// The environment that a service of a compose file gets, and what its image sets.
fn environment(service: &[(&'static str, &'static str)]) -> impl Fn(&str) -> Option<String> {
    let image = ("IRIS_DEFAULT_ADDRESS", "[::]:8080");
    let known: Vec<_> = service.iter().copied().chain([image]).collect();
    move |name| {
        let mut found = known.iter().filter(|(known, _)| *known == name);
        found.next().map(|(_, value)| (*value).to_owned())
    }
}

#[test]
fn the_configurations_of_all_deployments_are_valid() {
    let sidecar = [
        ("IRIS_UPSTREAM_URL", "http://api:8080"),
        ("IRIS_REDIS_URL", "redis://redis:6379"),
        ("IRIS_ADMIN_ADDRESS", "0.0.0.0:9180"),
        ("IRIS_ADMIN_TOKEN", "change-me"),
        (
            "IRIS_TRUSTED_PROXIES",
            "172.16.0.0/12,192.168.0.0/16,10.0.0.0/8",
        ),
    ];
    let compose = [text("compose.yaml"), text("compose.fleet.yaml")].concat();
    for (name, value) in sidecar {
        assert!(compose.contains(&format!("{name}: {value}")), "{name}");
    }
    let api = [("IRIS_DATABASE_URL", "postgres://iris:iris@postgres/iris")];
    for (name, variables) in [("sidecar/iris.toml", &sidecar[..]), ("api.toml", &api)] {
        let name = format!("compose/{name}");
        let read = Config::parse(&name, &text(&name), &environment(variables));
        let config = read.unwrap_or_else(|mistakes| panic!("{mistakes:?}"));
        let address = config.listen.places[0].address.to_string();
        assert_eq!(address, "[::]:8080", "{name}");
    }
    // That of the pods, whose token is a file.
    let manifest = text("kubernetes/iris-sidecar.yaml");
    let (_, rest) = manifest.split_once("  iris.toml: |\n").unwrap();
    let inner: String = rest
        .lines()
        .take_while(|line| line.is_empty() || line.starts_with("    "))
        .map(|line| format!("{}\n", line.trim_start_matches("    ")))
        .collect();
    let folder = tempfile::tempdir().unwrap();
    let token = folder.path().join("token");
    std::fs::write(&token, "secret\n").unwrap();
    let inner = inner.replace("/etc/iris-sidecar-token/token", token.to_str().unwrap());
    let config = Config::parse("iris.toml", &inner, &environment(&[])).unwrap();
    // The container's limit: the budget, what else is resident, and room for connections.
    let limit = 256 << 20;
    assert!(manifest.contains("limits: {memory: 256Mi}"));
    assert!(
        config.cache.memory + (80 << 20) <= limit,
        "{}",
        config.cache.memory
    );
    assert_eq!(config.listen.places[0].address.to_string(), "[::]:8080");
}

#[test]
fn the_manifests_are_valid_by_the_schemas_of_kubernetes() {
    let checker = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/target/tools/bin/kubernetes-validate"
    );
    for (name, versions) in [
        ("iris-sidecar.yaml", ["1.30.0", "1.37.0"]),
        ("iris-sidecar-older.yaml", ["1.27.0", "1.29.0"]),
    ] {
        for version in versions {
            let path = place(&format!("kubernetes/{name}"));
            let said = holds(
                checker,
                &["--strict", "--kubernetes-version", version, &path],
            );
            assert!(said.contains("deployment/app"), "{said}");
        }
        let manifest = text(&format!("kubernetes/{name}"));
        for wanted in [
            "readOnlyRootFilesystem: true",
            "drop: [ALL]",
            "runAsNonRoot: true",
        ] {
            assert!(manifest.contains(wanted), "{name}: {wanted}");
        }
    }
}

/// A pod: an app, the sidecar before it, and whether clients are sent to it.
struct Pod {
    app: Origin,
    sidecar: Running,
    _folder: tempfile::TempDir,
}

impl Pod {
    async fn start() -> Self {
        // The sidecar first: it needs no app to start.
        let port = crate::support::redis::free_port();
        let folder = tempfile::tempdir().unwrap();
        let text = format!(
            "[listen]\naddress = \"127.0.0.1:0\"\ndrain_delay = \"0s\"\n[admin]\naddress \
                = \"127.0.0.1:0\"\n[upstream]\nurl = \"http://127.0.0.1:{port}\"\n{}",
            route("bypass = true")
        );
        let sidecar = Running::start(&file(folder.path(), &text));
        let startup = Client::admin(sidecar.admin, "/startup").await;
        assert_eq!(startup.status, 200);
        let app = Origin::start_at(port, |seen| numbered(seen, &[])).await;
        let ready = Client::admin(sidecar.admin, "/readyz").await;
        assert_eq!(ready.status, 200);
        Self {
            app,
            sidecar,
            _folder: folder,
        }
    }
}

/// Clients are sent to these.
type Targets = Arc<Mutex<Vec<SocketAddr>>>;

/// Asks whoever is in the list, by connections that are kept while they may be, and counts.
async fn ask(targets: Targets, ends: Arc<AtomicBool>, count: Arc<AtomicUsize>) {
    let mut kept: Option<(SocketAddr, Client)> = None;
    while !ends.load(Ordering::Relaxed) {
        let known = targets.lock().unwrap().clone();
        let answered = count.fetch_add(1, Ordering::Relaxed);
        let address = known[answered % known.len()];
        let mut client = match kept.take() {
            Some((known, client)) if known == address => client,
            _ => Client::connect(address).await,
        };
        let fields = [("host", "app")];
        let answer = client.try_ask("GET", "/a", &fields, "").await;
        let answer = answer.expect("no connection is refused or reset");
        assert_eq!(answer.status, 200, "{}", answer.text());
        if answer.header("connection") != Some("close") {
            kept = Some((address, client));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollout_as_the_manifest_makes_it_fails_no_request() {
    let mut old = Pod::start().await;
    let targets = Arc::new(Mutex::new(vec![old.sidecar.address]));
    let ends = Arc::new(AtomicBool::new(false));
    let counts: Vec<Arc<AtomicUsize>> = (0..4).map(|_| Arc::default()).collect();
    let asking = counts.iter().map(Arc::clone);
    let asking = asking.map(|count| tokio::spawn(ask(targets.clone(), ends.clone(), count)));
    let asking: Vec<_> = asking.collect();
    // Until each client has asked so often.
    let more = async |times: usize| {
        for count in &counts {
            let wanted = count.load(Ordering::Relaxed) + times;
            while count.load(Ordering::Relaxed) < wanted {
                tokio::task::yield_now().await;
            }
        }
    };
    let more = async |times| {
        tokio::time::timeout(PATIENCE, more(times))
            .await
            .expect("they ask on")
    };
    for _ in 0..2 {
        // One more pod, ready before one goes (maxSurge 1, maxUnavailable 0).
        let new = Pod::start().await;
        targets.lock().unwrap().push(new.sidecar.address);
        // The old one is to go: its app waits (preStop: sleep), and the Service goes on sending for
        // a moment.
        more(50).await;
        targets
            .lock()
            .unwrap()
            .retain(|known| *known != old.sidecar.address);
        // Whoever took it from the list before that has asked by then.
        more(2).await;
        old.app.stop().await;
        // Its containers have gone: the sidecar gets SIGTERM, and ends.
        old.sidecar.signal("TERM");
        let Killed(child) = &mut old.sidecar.child;
        assert!(child.wait().unwrap().success());
        old = new;
    }
    ends.store(true, Ordering::Relaxed);
    for one in asking {
        one.await.unwrap();
    }
}
