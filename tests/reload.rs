//! Another configuration comes into force while everything runs: nothing is lost, nothing is served
//! by a rule that is gone, and a wrong file changes nothing.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use serde_json::Value;

use crate::support::fleet::Fleet;
use crate::support::process::{Running, binary, file};
use crate::support::redis::RedisServer;
use crate::support::{Client, Fixture, Origin, Received, all, config, numbered, ok, route};

async fn reload(fixture: &Fixture, extra: &str) -> Received {
    fixture.write_file(extra);
    Client::order(fixture.sidecar().admin_address, "/reload", "{}").await
}

/// Each text in a list of JSON.
fn lines(told: &Value) -> Vec<&str> {
    let lines = told.as_array().unwrap().iter();
    lines.map(|line| line.as_str().unwrap()).collect()
}

#[tokio::test]
async fn what_is_stored_is_judged_by_the_lifetimes_in_force() {
    let stated = [("cache-control", "max-age=1000")];
    for (origins, old, new, after, expected) in [
        // A shorter lifetime shortens what is stored, and a longer one lengthens it.
        (&[][..], "ttl = \"1h\"", "ttl = \"50s\"", 100, "MISS"),
        (&[], "ttl = \"50s\"", "ttl = \"1h\"", 100, "HIT"),
        (&[], "ttl = \"1h\"", "ttl = \"101s\"", 100, "HIT"),
        (&[], "ttl = \"1h\"", "", 1, "MISS"),
        (&stated, "", "max_ttl = \"50s\"", 100, "MISS"),
        (&stated, "max_ttl = \"50s\"", "", 100, "HIT"),
        (&stated, "", "force_ttl = \"50s\"", 100, "MISS"),
        (&stated, "force_ttl = \"1h\"", "", 1001, "MISS"),
        (
            &[],
            "ttl = \"10s\"",
            "ttl = \"10s\"\nstale_while_revalidate = \"1h\"",
            100,
            "HIT-STALE",
        ),
        (
            &[],
            "ttl = \"10s\"\nstale_while_revalidate = \"1h\"",
            "ttl = \"10s\"",
            100,
            "MISS",
        ),
    ] {
        let fields: Vec<(&'static str, &'static str)> = origins.to_vec();
        let origin = Origin::start(move |seen| numbered(seen, &fields)).await;
        let fixture = Fixture::with_file(origin, &route(old));
        assert_eq!(fixture.get("/a").await.cache(), "MISS", "{old}");
        fixture.advance(after);
        assert_eq!(reload(&fixture, &route(new)).await.status, 200);
        assert_eq!(fixture.get("/a").await.cache(), expected, "{old} → {new}");
    }
}

#[tokio::test]
async fn a_response_of_another_instance_is_judged_by_the_own_lifetimes() {
    let redis = RedisServer::start(&[]).await;
    let url = redis.url();
    let text = route("ttl = \"1h\"");
    let fleet = Fleet::start(&[&url, &url], &text, |seen| numbered(seen, &[])).await;
    let shorter = format!(
        "[cache.redis]\nurl = \"{url}\"\ntimeout = \"1s\"\n{}",
        route("ttl = \"50s\"")
    );
    let plan = Arc::new(config(&fleet.origin.url(), &shorter));
    fleet
        .instance(1)
        .proxy
        .exchange(plan, iris_sidecar::guard::Source::default());
    assert_eq!(fleet.get(0, "/a").await.text(), "1");
    fleet.written(0, 1.0).await;
    assert_eq!(fleet.get(1, "/a").await.text(), "1");
    fleet.advance(100);
    assert_eq!(fleet.get(0, "/a").await.text(), "1");
    assert_eq!(fleet.get(1, "/a").await.text(), "2");
}

#[tokio::test]
async fn what_an_operator_grants_is_shared_however_old_the_origin_says_it_is() {
    let redis = RedisServer::start(&[]).await;
    let url = redis.url();
    let text = route("ttl = \"60s\"");
    let fleet = Fleet::start(&[&url, &url], &text, |seen| {
        numbered(seen, &[("age", "120")])
    })
    .await;
    assert_eq!(fleet.get(0, "/a").await.text(), "1");
    fleet.written(0, 1.0).await;
    assert_eq!(fleet.get(1, "/a").await.text(), "1", "it is in Redis");
}

#[tokio::test]
async fn nothing_of_what_outlives_a_plan_is_lost() {
    let limited = |ttl: &str| {
        format!(
            "[[rate_limit]]\nby = \"address\"\nrequests = 6\nwindow = \"1m\"\n{}",
            route(&format!("ttl = \"{ttl}\""))
        )
    };
    let origin = Origin::start(|seen| numbered(seen, &[])).await;
    let fixture = Fixture::with_file(origin, &limited("30s"));
    let mut client = fixture.connect().await;
    for expected in ["MISS", "HIT", "HIT"] {
        assert_eq!(client.ask("GET", "/a", &[]).await.cache(), expected);
    }
    let told = reload(&fixture, &limited("1h")).await.json();
    assert_eq!(lines(&told["changed"]), ["route /{*rest}: ttl 30s → 1h"]);
    for expected in ["HIT", "HIT", "HIT"] {
        assert_eq!(client.ask("GET", "/a", &[]).await.cache(), expected);
    }
    assert_eq!(client.ask("GET", "/a", &[]).await.status, 429, "one window");
    assert_eq!(fixture.origin.count(), 1);
    let hits = "http_requests_total{method=\"GET\",path=\"/{*rest}\",status=\"200\"}";
    assert_eq!(fixture.metric(hits).await, 6.0);
}

#[tokio::test]
async fn a_wrong_file_keeps_what_is_in_force_and_says_every_mistake() {
    let origin = Origin::start(|seen| numbered(seen, &[])).await;
    let fixture = Fixture::with_file(origin, &route("ttl = \"1h\""));
    let digest = fixture.admin("/readyz").await.json()["config"]["hash"].clone();
    fixture.get("/a").await;
    let refused = reload(&fixture, &route("ttl = \"soon\"\nshare = \"all\"")).await;
    assert_eq!(refused.status, 400);
    let told = refused.json();
    assert_eq!(lines(&told["mistakes"]).len(), 2, "{told}");
    assert_eq!(fixture.get("/a").await.cache(), "HIT");
    let ready = fixture.admin("/readyz").await;
    assert_eq!(ready.status, 200);
    let failed = &ready.json()["config"];
    assert_eq!(failed["hash"], digest);
    assert!(
        lines(&failed["failed"]["mistakes"])[0].contains("ttl = \"soon\""),
        "{failed}"
    );
    assert_eq!(fixture.metric("config_last_reload_successful").await, 0.0);
    assert_eq!(fixture.metric("config_reload_failures_total").await, 1.0);
    // Neither does one that is gone.
    fixture.remove_file();
    let gone = Client::order(fixture.sidecar().admin_address, "/reload", "{}").await;
    assert!(gone.text().contains("cannot be read"), "{}", gone.text());
    let good = reload(&fixture, &route("ttl = \"2h\"")).await;
    assert_eq!(good.status, 200);
    let config = fixture.admin("/readyz").await.json()["config"].clone();
    assert!(
        config["failed"].is_null() && config["hash"] != digest,
        "{config}"
    );
    assert_eq!(fixture.metric("config_last_reload_successful").await, 1.0);
    let sample = format!(
        "config_info{{hash=\"{}\"}}",
        config["hash"].as_str().unwrap()
    );
    assert_eq!(fixture.metric(&sample).await, 1.0);
}

#[tokio::test]
async fn what_cannot_change_without_a_restart_is_said_and_stays() {
    let origin = Origin::start(|seen| numbered(seen, &[])).await;
    let fixture = Fixture::with_file(origin, &route("ttl = \"1h\""));
    fixture.get("/a").await;
    let extra = format!(
        "[upstream]\nurl = \"http://127.0.0.1:1\"\n[cache]\nmemory = \"16MiB\"\n{}",
        route("ttl = \"2h\"")
    );
    for _ in 0..2 {
        let told = reload(&fixture, &extra).await.json();
        let restart = lines(&told["needs_restart"]);
        assert!(
            restart
                .iter()
                .any(|line| line.starts_with("cache: memory 256MiB → 16MiB")),
            "{told}"
        );
        assert!(
            restart
                .iter()
                .any(|line| line.starts_with("upstream: url ")),
            "{told}"
        );
    }
    assert_eq!(
        fixture.get("/b").await.text(),
        "2",
        "the upstream is the same"
    );
    let told = fixture.admin("/config").await.json();
    let find = |table: &str, key: &str| {
        let mut settings = told["settings"].as_array().unwrap().iter();
        let found = settings.find(|one| one["table"] == table && one["key"] == key);
        found
            .unwrap_or_else(|| panic!("{table}.{key} in {told}"))
            .clone()
    };
    assert_eq!(find("cache", "memory")["value"], "256MiB");
    let ttl = find("route /{*rest}", "ttl");
    assert_eq!(
        (&ttl["value"], ttl["from"]["line"].is_u64()),
        (&"2h".into(), true)
    );
    assert_eq!(find("limits", "header_count")["from"], "default");
}

#[tokio::test]
async fn the_admin_port_goes_by_the_configuration_in_force() {
    let origin = Origin::start(|_| ok("x", &[])).await;
    let fixture = Fixture::with_file(origin, "");
    let told = reload(
        &fixture,
        "[admin]\ntoken = \"s3cret\"\npublic = [\"metrics\", \"health\"]\n",
    )
    .await;
    assert_eq!(told.status, 200);
    assert!(!told.text().contains("s3cret"));
    let address = fixture.sidecar().admin_address;
    assert_eq!(Client::order(address, "/reload", "{}").await.status, 401);
    assert_eq!(fixture.admin("/config").await.status, 401);
    let mut client = Client::connect(address).await;
    let fields = [("host", "127.0.0.1"), ("authorization", "Bearer s3cret")];
    let told = client.ask("GET", "/config", &fields).await;
    assert_eq!(told.status, 200);
    assert!(!told.text().contains("s3cret"), "{}", told.text());
}

/// A folder as a ConfigMap is mounted: a link to a link to a folder that is exchanged whole.
struct ConfigMap<'f> {
    folder: &'f Path,
    number: u64,
}

impl ConfigMap<'_> {
    fn put(&mut self, text: &str) {
        self.number += 1;
        let version = format!("..version-{}", self.number);
        std::fs::create_dir(self.folder.join(&version)).unwrap();
        std::fs::write(self.folder.join(&version).join("iris.toml"), text).unwrap();
        let link = |to: &str, name: &str| {
            let new = self.folder.join(format!("{name}_tmp"));
            std::os::unix::fs::symlink(to, &new).unwrap();
            std::fs::rename(new, self.folder.join(name)).unwrap();
        };
        link(&version, "..data");
        if self.number == 1 {
            link("..data/iris.toml", "iris.toml");
        } else {
            let old = format!("..version-{}", self.number - 1);
            std::fs::remove_dir_all(self.folder.join(old)).unwrap();
        }
    }
}

fn resident_bytes(process: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{process}/statm")).unwrap();
    let pages: u64 = text.split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4096
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_swaps_of_a_config_map_under_load_fail_no_request_and_cost_no_memory() {
    let origin = Origin::unrecorded(|_| ok("x".repeat(1000), &[])).await;
    let folder = tempfile::tempdir().unwrap();
    let mut map = ConfigMap {
        folder: folder.path(),
        number: 0,
    };
    let text = |number: u64| {
        format!(
            "[listen]\naddress = \"127.0.0.1:0\"\nworkers = 2\n[admin]\naddress \
                = \"127.0.0.1:0\"\n[reload]\nevery = \"20ms\"\n[upstream]\nurl = \"{}\"\n{}",
            origin.url(),
            route(&format!(
                "ttl = \"{}s\"\nstale_while_revalidate = \"1s\"",
                number % 7 + 1
            ))
        )
    };
    map.put(&text(0));
    let path = folder.path().join("iris.toml");
    let running = Running::start(path.to_str().unwrap());
    let (address, admin, process) = (running.address, running.admin, running.child.0.id());
    let (reading, failed, read) = (
        Arc::new(AtomicBool::new(true)),
        Arc::new(AtomicU64::new(0)),
        Arc::new(AtomicU64::new(0)),
    );
    let shared = (Arc::clone(&reading), Arc::clone(&failed), Arc::clone(&read));
    let readers = (0..8).map(move |reader| {
        let (reading, failed, read) = shared.clone();
        async move {
            let mut client = Client::connect(address).await;
            let mut number = 0;
            while reading.load(Ordering::Relaxed) {
                number += 1;
                let target = format!("/{reader}/{}", number % 50);
                let is_right = client.ask("GET", &target, &[]).await.status == 200;
                failed.fetch_add(u64::from(!is_right), Ordering::Relaxed);
                read.fetch_add(1, Ordering::Relaxed);
                if number % 100 == 0 {
                    client = Client::connect(address).await;
                }
            }
        }
    });
    let readers = tokio::spawn(all(readers));
    let mut before = 0;
    for number in 1..=50 {
        map.put(&text(number));
        let wanted = number as f64;
        let in_force = async {
            loop {
                let metrics = Client::admin(admin, "/metrics").await.text();
                let line = metrics
                    .lines()
                    .find_map(|line| line.strip_prefix("config_reloads_total "));
                if line.is_some_and(|count| count.parse::<f64>().unwrap() >= wanted) {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(crate::support::PATIENCE, in_force)
            .await
            .expect("it comes into force");
        if number == 10 {
            before = resident_bytes(process);
        }
    }
    let after = resident_bytes(process);
    reading.store(false, Ordering::Relaxed);
    readers.await.unwrap();
    assert_eq!(failed.load(Ordering::Relaxed), 0);
    assert!(read.load(Ordering::Relaxed) > 1000, "{read:?}");
    assert!(after < before + (8 << 20), "{before} → {after} bytes");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_that_comes_later_mends_a_file_and_one_change_is_read_once() {
    let origin = Origin::start(|seen| numbered(seen, &[])).await;
    let folder = tempfile::tempdir().unwrap();
    let token = folder.path().join("token");
    let text = |admin: &str| {
        format!(
            "[listen]\naddress = \"127.0.0.1:0\"\n[admin]\naddress \
                = \"127.0.0.1:0\"\n{admin}\npublic = [\"metrics\", \"health\"]\n[reload]\nevery \
                = \"50ms\"\n[upstream]\nurl = \"{}\"\n",
            origin.url()
        )
    };
    let path = file(folder.path(), &text(""));
    let running = Running::start(&path);
    let counts = async |sample: &str| {
        let metrics = Client::admin(running.admin, "/metrics").await.text();
        let line = metrics
            .lines()
            .find_map(|line| line.strip_prefix(sample)?.strip_prefix(' '));
        line.unwrap().parse::<f64>().unwrap()
    };
    let reaches = async |sample: &str, count: f64| {
        let reached = async {
            while counts(sample).await < count {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(crate::support::PATIENCE, reached)
            .await
            .unwrap();
    };
    let named = format!("token_file = \"{}\"", token.display());
    file(folder.path(), &text(&named));
    reaches("config_reload_failures_total", 1.0).await;
    std::fs::write(&token, "s3cret\n").unwrap();
    reaches("config_reloads_total", 1.0).await;
    assert_eq!(Client::admin(running.admin, "/config").await.status, 401);
    // Who has no token sees how many mistakes there are, and not what stands in the file.
    file(folder.path(), &text("hosts = [\"a b\"]"));
    reaches("config_reload_failures_total", 2.0).await;
    let ready = Client::admin(running.admin, "/readyz").await.json();
    assert_eq!(ready["config"]["failed"]["mistakes"], 1);
    // By whoever it is read: each change counts once.
    file(folder.path(), &text(&named));
    running.signal("HUP");
    reaches("config_reloads_total", 2.0).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(counts("config_reloads_total").await, 2.0);
    assert_eq!(counts("config_reload_failures_total").await, 2.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_reads_the_file_again_and_check_tells_what_would_change() {
    let origin = Origin::start(|seen| numbered(seen, &[])).await;
    let folder = tempfile::tempdir().unwrap();
    let text = |ttl: &str| {
        format!(
            "[listen]\naddress = \"127.0.0.1:0\"\n[admin]\naddress \
                = \"127.0.0.1:0\"\n[reload]\nevery = \"0s\"\n[upstream]\nurl = \"{}\"\n{}",
            origin.url(),
            route(&format!("ttl = \"{ttl}\""))
        )
    };
    let path = file(folder.path(), &text("30s"));
    let running = Running::start(&path);
    file(folder.path(), &text("60s"));
    let admin = format!("http://{}", running.admin);
    let check = || {
        let output = binary()
            .args(["check", &path, "--against", &admin])
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let told = tokio::task::block_in_place(check);
    assert_eq!(told, "route /{*rest}: ttl 30s → 60s\n");
    running.signal("HUP");
    let in_force = async {
        while !Client::admin(running.admin, "/metrics")
            .await
            .text()
            .contains("config_reloads_total 1")
        {}
    };
    tokio::time::timeout(crate::support::PATIENCE, in_force)
        .await
        .unwrap();
    assert!(tokio::task::block_in_place(check).starts_with("nothing differs"));
    drop(running);
    let nobody = tokio::task::block_in_place(|| {
        binary()
            .args(["check", &path, "--against", &admin])
            .output()
            .unwrap()
    });
    assert_eq!(nobody.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&nobody.stderr).contains("no sidecar answers"));
}
