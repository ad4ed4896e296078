//! The alerts, each fired by its cause in a real Prometheus; and the dashboard, whose expressions
//! all give data.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::api::Api;
use crate::support::certificate::Authority;
use crate::support::cgroup::Cgroup;
use crate::support::fleet::Fleet;
use crate::support::golden::{self, Golden};
use crate::support::keys::Keys;
use crate::support::process::{FREE_PORTS, Running, file};
use crate::support::redis::RedisServer;
use crate::support::wire::Wire;
use crate::support::{Client, Fixture, Origin, Step, numbered, ok, route};

fn repository(path: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    std::fs::read_to_string(root.join(path)).unwrap()
}

/// The rules with their spans of time in seconds: what is proved here is that causes fire them.
/// promtool holds the rules as they are.
fn in_seconds(rules: &str) -> String {
    let lines = rules
        .lines()
        .filter(|line| !line.trim_start().starts_with("for: "));
    let text = lines.collect::<Vec<_>>().join("\n");
    text.replace("[5m]", "[6s]")
        .replace("[10m]", "[6s]")
        .replace("[1h]", "[30s]")
}

struct Prometheus {
    child: Child,
    address: SocketAddr,
    _folder: tempfile::TempDir,
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Prometheus {
    async fn start(targets: &[SocketAddr]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let rules = in_seconds(&repository("config/prometheus/rules.yaml"));
        std::fs::write(folder.path().join("rules.yaml"), rules).unwrap();
        let targets: Vec<String> = targets.iter().map(SocketAddr::to_string).collect();
        let config = format!(
            "global: {{ scrape_interval: 1s, evaluation_interval: 1s }}\nrule_files: \
                [\"rules.yaml\"]\nscrape_configs: [{{ job_name: iris-sidecar, static_configs: [{{ \
                targets: {} }}] }}]\n",
            json!(targets)
        );
        let file = folder.path().join("prometheus.yaml");
        std::fs::write(&file, config).unwrap();
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = free.local_addr().unwrap();
        drop(free);
        let child = Command::new("prometheus")
            .arg(format!("--config.file={}", file.display()))
            .arg(format!(
                "--storage.tsdb.path={}",
                folder.path().join("data").display()
            ))
            .arg(format!("--web.listen-address={address}"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("tests/run installs it");
        let mut prometheus = Self {
            child,
            address,
            _folder: folder,
        };
        let up = async {
            while tokio::net::TcpStream::connect(address).await.is_err() {
                assert!(prometheus.child.try_wait().unwrap().is_none(), "it ended");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), up)
            .await
            .expect("it starts");
        prometheus
    }

    async fn ask(&self, path: &str) -> Value {
        let mut client = Client::connect(self.address).await;
        let fields = [("host", "127.0.0.1"), ("connection", "close")];
        let answer = client.ask("GET", path, &fields).await;
        serde_json::from_slice(&answer.body).unwrap_or_default()
    }

    async fn firing(&self) -> BTreeSet<String> {
        let told = self.ask("/api/v1/alerts").await;
        let alerts = told["data"]["alerts"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        let firing = alerts.iter().filter(|alert| alert["state"] == "firing");
        firing
            .filter_map(|alert| Some(alert["labels"]["alertname"].as_str()?.to_owned()))
            .collect()
    }

    async fn has_data(&self, expression: &str) -> bool {
        let query: String = url::form_urlencoded::byte_serialize(expression.as_bytes()).collect();
        let told = self.ask(&format!("/api/v1/query?query={query}")).await;
        assert_eq!(told["status"], "success", "{expression}: {told}");
        told["data"]["result"]
            .as_array()
            .is_some_and(|list| !list.is_empty())
    }
}

/// Asks for new paths of a sidecar again and again, until it is told to stop.
fn load(address: SocketAddr, prefix: &'static str, goes_on: &Arc<AtomicBool>) {
    let goes_on = Arc::clone(goes_on);
    tokio::spawn(async move {
        let mut number = 0;
        while goes_on.load(Ordering::Relaxed) {
            number += 1;
            let mut client = Client::connect(address).await;
            let target = format!("{prefix}{number}");
            let _ = client
                .try_ask("GET", &target, &[("host", "api.example")], "")
                .await;
            tokio::time::sleep(Duration::from_millis(40)).await;
        }
    });
}

async fn demoted() -> Fixture {
    let keys = Keys::of(&["good1", "good2"]);
    let known = keys.clone();
    let rules = format!(
        "[auth]\ncontrol = \"off\"\ncompare_every = 1\n{}",
        route("ttl = \"1h\"\nshare = \"verified\"")
    );
    let fixture = Fixture::start(&rules, move |seen| {
        let key = seen.header("authorization").unwrap_or_default().to_owned();
        known.check(seen, || {
            ok(
                format!("{{\"key\":\"{key}\"}}"),
                &[("content-type", "application/json")],
            )
        })
    })
    .await;
    let differs = "auth_demotions_total{path=\"/{*rest}\"}";
    for _ in 0..200 {
        for key in ["good1", "good2"] {
            fixture.get_as(key, "/a").await;
        }
        if fixture.metric(differs).await > 0.0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    fixture
}

/// The memory that a sidecar takes, in bytes.
async fn taken(running: &Running) -> u64 {
    let metrics = Client::admin(running.admin, "/metrics").await.text();
    let mut samples = metrics.lines();
    let sample = samples.find_map(|line| line.strip_prefix("memory_rss_bytes "));
    sample.expect("it says what it takes").parse().unwrap()
}

/// A database of which one query takes longer than it should.
async fn slow_database(folder: &Path) -> Api {
    let golden = Golden::new(golden::clock().now());
    let url = format!("sqlite:{}/iris.db", folder.display());
    let api = Api::start(&url, "", &golden).await;
    for statement in [
        "ALTER TABLE discovered_patterns RENAME TO kept",
        "CREATE VIEW discovered_patterns AS WITH RECURSIVE r(n) AS (SELECT 0 UNION ALL SELECT n + \
            1 FROM r WHERE n < 400000) SELECT n AS id, 'alpha' AS project_id, '' AS name, '' AS \
            category, n AS frequency, 0.5 AS confidence, '{}' AS metadata, n AS discovered_at \
            FROM r",
    ] {
        golden::execute(&api.database, statement).await;
    }
    api
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn each_alert_fires_by_its_cause_and_every_panel_has_data() {
    let goes_on = Arc::new(AtomicBool::new(true));
    let slow_origin = Origin::connections_of(|mut stream| async move {
        let mut head = [0; 8192];
        while stream.read(&mut head).await.is_ok_and(|read| read > 0) {
            tokio::time::sleep(Duration::from_millis(400)).await;
            let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nslow";
            let _ = stream.write_all(answer).await;
        }
    })
    .await;
    let slow = Fixture::in_front_of(slow_origin, &route("ttl = \"1h\""));
    let failing = Fixture::start("[upstream]\nbreaker_failures = 2\n", |_| vec![Step::Close]).await;
    let file_origin = Origin::start(|seen| numbered(seen, &[])).await;
    let log = "[access_log]\nformat = \"json\"\nto = \"/dev/full\"\n";
    let wrong = Fixture::with_file(file_origin, log);
    let admin = wrong.sidecar().admin_address;
    Client::order(admin, "/bypass", "{}").await;
    wrong.write_file(&format!("{log}[[route]]\npath = 1\n"));
    Client::order(admin, "/reload", "{}").await;
    let body = "x".repeat(100_000);
    let crowded_text = format!("[cache]\nmemory = \"4MiB\"\n{}", route("ttl = \"1h\""));
    let crowded = Fixture::start(&crowded_text, move |_| ok(body.clone(), &[])).await;
    let demoted = demoted().await;
    let (from, lasts) = (Duration::ZERO, Duration::from_secs(3 * 86400));
    let certificate = Authority::new().issue_for(&["api.example"], from, lasts);
    let text = format!("[listen.tls]\n{}", certificate.keys());
    let expiring = Fixture::start(&text, |_| ok("x", &[])).await;
    let mut redis = RedisServer::start(&[]).await;
    let url = redis.url();
    let fleet = Fleet::start(&[&url], &route("ttl = \"1h\""), |seen| numbered(seen, &[])).await;
    fleet.get(0, "/a").await;
    redis.kill();
    let purging = tokio::spawn({
        let admin = fleet.instance(0).admin_address;
        async move {
            Client::order(admin, "/purge", "{\"url\": \"/a\"}")
                .await
                .status
        }
    });
    // It is heard, and answers too late.
    let late_redis = RedisServer::start(&[]).await;
    let wire = Wire::to(late_redis.port).await;
    let impatient = format!(
        "[cache.redis]\ntimeout = \"50ms\"\n{}",
        route("ttl = \"1h\"")
    );
    let late = Fleet::start(&[&wire.url()], &impatient, |seen| numbered(seen, &[])).await;
    late.get(0, "/a").await;
    wire.slow(Duration::from_millis(200));
    let folder = tempfile::tempdir().unwrap();
    let database = slow_database(folder.path()).await;
    let database_admin = database.sidecar.as_ref().unwrap().admin_address;
    let gone = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    for (address, prefix) in [
        (slow.sidecar().address, "/a"),
        (failing.sidecar().address, "/a"),
        (wrong.sidecar().address, "/a"),
        (crowded.sidecar().address, "/a"),
        (fleet.instance(0).address, "/b"),
        (late.instance(0).address, "/b"),
    ] {
        load(address, prefix, &goes_on);
    }
    let asking = {
        let goes_on = Arc::clone(&goes_on);
        tokio::spawn(async move {
            while goes_on.load(Ordering::Relaxed) {
                database.get("/api/iris/patterns").await;
                // Other tests want the machine too.
                tokio::time::sleep(Duration::from_millis(400)).await;
            }
            database
        })
    };
    let folder = tempfile::tempdir().unwrap();
    let group = Cgroup::create();
    if group.is_none() {
        eprintln!(
            "IrisMemoryNearLimit is held by promtool alone here: no control group can be made"
        );
    }
    let contained = group.map(|group| {
        let text = format!("{FREE_PORTS}[upstream]\nurl = \"http://{gone}\"\n");
        let path = file(folder.path(), &text);
        (Running::start_in(&group, &path), group)
    });
    let mut targets = vec![
        slow.sidecar().admin_address,
        failing.sidecar().admin_address,
        admin,
        crowded.sidecar().admin_address,
        demoted.sidecar().admin_address,
        expiring.sidecar().admin_address,
        fleet.instance(0).admin_address,
        late.instance(0).admin_address,
        database_admin,
        gone,
    ];
    targets.extend(contained.iter().map(|(running, _)| running.admin));
    let prometheus = Prometheus::start(&targets).await;
    let names = repository("config/prometheus/rules.yaml");
    let names = names
        .lines()
        .filter_map(|line| line.trim_start().strip_prefix("- alert: "));
    let expected: BTreeSet<String> = names
        .filter(|name| contained.is_some() || *name != "IrisMemoryNearLimit")
        .map(str::to_owned)
        .collect();
    let mut seen = BTreeSet::new();
    let end = tokio::time::Instant::now() + Duration::from_secs(90);
    let mut round = 0;
    while !expected.is_subset(&seen) && tokio::time::Instant::now() < end {
        round += 1;
        // Its silence goes by the manual clock; a demotion counts when a scrape has seen it come.
        fleet.advance(5);
        if let Some((running, group)) = &contained {
            group.set_limit(taken(running).await / 100 * 105);
        }
        if round % 4 == 0 {
            demoted.advance(3600);
            for key in ["good1", "good2"] {
                demoted.get_as(key, &format!("/{round}")).await;
            }
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
        seen.extend(prometheus.firing().await);
    }
    let missing: Vec<&String> = expected.difference(&seen).collect();
    assert!(
        missing.is_empty(),
        "not fired: {missing:?}; fired: {seen:?}"
    );

    let dashboard: Value =
        serde_json::from_str(&repository("config/grafana/iris-sidecar.json")).unwrap();
    let mut expressions = 0;
    for panel in dashboard["panels"].as_array().unwrap() {
        for target in panel["targets"].as_array().into_iter().flatten() {
            let expression = target["expr"]
                .as_str()
                .unwrap()
                .replace("$__rate_interval", "6s");
            let expression = expression.replace("instance=~\"$instance\"", "instance=~\".+\"");
            assert!(
                prometheus.has_data(&expression).await,
                "{}: {expression}",
                panel["title"]
            );
            expressions += 1;
        }
    }
    assert!(expressions > 15, "{expressions}");
    goes_on.store(false, Ordering::Relaxed);
    assert_eq!(purging.await.unwrap(), 200);
    drop(asking.await.unwrap());
}

#[test]
fn promtool_holds_the_rules_as_they_are() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for (arguments, file) in [
        (["check", "rules"], "config/prometheus/rules.yaml"),
        (["check", "config"], "config/prometheus/prometheus.yaml"),
        (["test", "rules"], "tests/samples/rules_test.yaml"),
    ] {
        let output = Command::new("promtool")
            .args(arguments)
            .arg(root.join(file))
            .output()
            .unwrap();
        assert!(output.status.success(), "{file}: {output:?}");
    }
    let (rules, tests) = (
        repository("config/prometheus/rules.yaml"),
        repository("tests/samples/rules_test.yaml"),
    );
    for name in rules
        .lines()
        .filter_map(|line| line.trim_start().strip_prefix("- alert: "))
    {
        assert!(
            tests.contains(&format!("alertname=\"{name}\"")),
            "{name} has no test"
        );
    }
}
