//! The binary itself: arguments, exit statuses, signals, and the README's own commands.

use std::io::Read;
use std::process::{Output, Stdio};

use iris_sidecar::config::Config;
use iris_sidecar::policy::Share;

use crate::support::certificate::Authority;
use crate::support::postgres::PostgresServer;
use crate::support::process::{FREE_PORTS, Running, binary, file};
use crate::support::redis::free_port;
use crate::support::{Client, Origin, ok};

fn run(arguments: &[&str]) -> (Option<i32>, String, String) {
    let Output {
        status,
        stdout,
        stderr,
    } = binary().args(arguments).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (status.code(), text(stdout), text(stderr))
}

#[test]
fn help_reads_well_and_bad_arguments_are_status_2() {
    let (status, out, _) = run(&["--help"]);
    assert_eq!(status, Some(0));
    for word in ["serve", "check", "--config", "--log-format", "Exit status"] {
        assert!(out.contains(word), "{word} is not in\n{out}");
    }
    let (status, _, error) = run(&["--no-such"]);
    assert_eq!(status, Some(2));
    assert!(error.contains("--no-such"), "{error}");
}

#[test]
fn check_prints_the_effective_routes_or_all_mistakes() {
    let folder = tempfile::tempdir().unwrap();
    let good = file(
        folder.path(),
        "[upstream]\nurl = \"http://127.0.0.1:3000\"\n[[route]]\npath = \"/api/{*rest}\"\nttl \
            = \"30s\"\nshare = \"per-key\"\n",
    );
    let (status, out, error) = run(&["check", &good]);
    assert_eq!((status, error.as_str()), (Some(0), ""));
    for word in [
        "/api/{*rest}",
        "GET HEAD",
        "origin's, else 30s",
        "per-key",
        "http://127.0.0.1:3000",
    ] {
        assert!(out.contains(word), "{word} is not in\n{out}");
    }
    let bad = file(
        folder.path(),
        "[cache]\nmemory = \"much\"\n[[route]]\nttl = \"1s\"\n",
    );
    for arguments in [&["check", &bad][..], &["serve", "--config", &bad][..]] {
        let (status, out, error) = run(arguments);
        assert_eq!((status, out.as_str()), (Some(2), ""));
        assert!(
            error.contains("iris.toml:2:10: cache.memory = \"much\": expected a size"),
            "{error}"
        );
        assert!(
            error.contains("iris.toml:3:1: [[route]] has no path"),
            "{error}"
        );
        assert!(error.contains("2 mistakes"), "{error}");
    }
    let (status, _, error) = run(&["check", "/no/such/file.toml"]);
    assert_eq!(status, Some(2));
    assert!(
        error.contains("/no/such/file.toml cannot be read"),
        "{error}"
    );
}

fn readme() -> String {
    std::fs::read_to_string(format!("{}/README.md", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

/// The configurations that the README shows.
fn readme_configurations() -> Vec<String> {
    let blocks = readme();
    let blocks = blocks.split("```toml\n").skip(1);
    let text = |block: &str| block.split("```").next().unwrap().to_owned();
    blocks.map(text).collect()
}

#[test]
fn the_readmes_configurations_are_short_and_valid() {
    let all = readme_configurations();
    assert_eq!(all.len(), 5);
    assert!(all[0].lines().count() <= 10, "{}", all[0]);
    let authority = Authority::new();
    let certificate = authority.issue(&["api.example"]);
    for text in all {
        let folder = tempfile::tempdir().unwrap();
        // The files that it names.
        for (name, from) in [
            ("tls.crt", certificate.path()),
            ("tls.key", certificate.key()),
            ("clients.pem", authority.path()),
        ] {
            std::fs::copy(from, folder.path().join(name)).unwrap();
        }
        let text = text.replace("/etc/tls", folder.path().to_str().unwrap());
        let (status, out, error) = run(&["check", &file(folder.path(), &text)]);
        assert_eq!(status, Some(0), "{error}");
        assert!(out.contains("/api/") || out.contains("/files/"), "{out}");
    }
}

#[test]
fn the_readmes_orders_to_the_admin_port_are_taken() {
    let folder = tempfile::tempdir().unwrap();
    let blocks = readme_configurations();
    let running = |text: &str| {
        let text = format!("{FREE_PORTS}{text}");
        Running::start(&file(folder.path(), &text))
    };
    let (writes, shared) = (running(&blocks[2]), running(&blocks[3]));
    let pages = [readme(), include_str!("../src/operators.md").to_owned()].concat();
    let mut told = 0;
    for (path, running, key, expected) in [
        ("/purge", &writes, "instances", 1.into()),
        ("/revoke", &shared, "state", serde_json::json!("done")),
        ("/explain", &shared, "result", "BYPASS".into()),
    ] {
        let commands = pages
            .lines()
            .filter(|line| line.contains(path) && line.trim_start().starts_with("curl"));
        for command in commands {
            let command = command.replace("127.0.0.1:9180", &running.admin.to_string());
            let curl = std::process::Command::new("sh")
                .args(["-c", &format!("{} -s --noproxy '*'", command.trim())])
                .output()
                .unwrap();
            let answer: serde_json::Value = serde_json::from_slice(&curl.stdout).unwrap();
            assert_eq!(answer[key], expected, "{command}: {answer}");
            told += 1;
        }
    }
    assert_eq!(told, 7);
}

#[test]
fn the_shipped_configurations_are_valid() {
    let path = |name: &str| format!("{}/config/{name}", env!("CARGO_MANIFEST_DIR"));
    for name in ["default.toml", "reference.toml", "iris.toml"] {
        let (status, _, error) = run(&["check", &path(name)]);
        assert_eq!(status, Some(0), "{error}");
    }
    let mut strict = binary();
    strict.args(["check", &path("conformance.toml")]);
    let missing = strict.env_remove("UPSTREAM_URL").output().unwrap();
    assert_eq!(missing.status.code(), Some(2));
    let given = strict
        .env("UPSTREAM_URL", "http://127.0.0.1:8000")
        .output()
        .unwrap();
    assert_eq!(
        given.status.code(),
        Some(0),
        "{}",
        String::from_utf8_lossy(&given.stderr)
    );
}

/// The contract's endpoints: by method, how they are shared, and which parameters they have.
const CONTRACT: [(&str, &str, Share, &str); 26] = [
    ("GET", "overview", Share::Verified, ""),
    ("GET", "overview-optimized", Share::Verified, ""),
    ("GET", "analytics", Share::PerKey, ""),
    (
        "GET",
        "patterns",
        Share::PerKey,
        "projectId category minConfidence fromDate toDate limit",
    ),
    ("GET", "events", Share::PerKey, "page limit"),
    ("POST", "events", Share::Standard, ""),
    ("GET", "reflexion", Share::PerKey, "page limit"),
    ("POST", "reflexion", Share::Standard, ""),
    ("GET", "beacon", Share::Verified, "fromDate toDate limit"),
    ("POST", "telemetry", Share::Standard, ""),
    ("GET", "evaluate", Share::PerKey, "projectId"),
    (
        "GET",
        "anomalies",
        Share::PerKey,
        "projectId severity fromDate toDate limit",
    ),
    ("GET", "decisions", Share::Verified, "status"),
    ("POST", "decisions", Share::Standard, ""),
    ("POST", "model-run", Share::Standard, ""),
    ("POST", "consensus", Share::Standard, ""),
    ("POST", "retrain", Share::Standard, ""),
    ("GET", "retrain", Share::Standard, ""),
    ("POST", "execute", Share::Standard, ""),
    ("GET", "execute", Share::Standard, ""),
    ("GET", "sandbox", Share::Standard, "sandboxId"),
    ("POST", "sandbox", Share::Standard, ""),
    ("DELETE", "sandbox", Share::Standard, "sandboxId"),
    ("GET", "telemetry", Share::Standard, ""),
    ("GET", "model-run", Share::Standard, ""),
    ("GET", "consensus", Share::Standard, ""),
];

#[test]
fn every_endpoint_of_the_contract_has_a_route_of_its_own_by_method() {
    for file in ["iris.toml", "default.toml"] {
        let path = format!("{}/config/{file}", env!("CARGO_MANIFEST_DIR"));
        let text = std::fs::read_to_string(path).unwrap();
        let config = Config::parse(file, &text, &|_| None).unwrap();
        let is_deployed = file == "iris.toml";
        // What the built-in origin has not is 404 there, and each key's own.
        let is_elsewhere = ["decisions", "retrain", "execute", "sandbox"];
        for (method, name, share, parameters) in CONTRACT {
            let is_write = method != "GET";
            let at = format!("{file}: {method} {name}");
            let method = method.parse().unwrap();
            let found = config
                .routes
                .find(&method, "", &format!("/api/iris/{name}"));
            if !is_deployed
                && (is_elsewhere.contains(&name)
                    || name != "beacon" && share == Share::Standard && !is_write)
            {
                let is_apart = found.is_none_or(|(_, route)| route.options.share == Share::PerKey);
                assert!(is_apart, "{at}");
                continue;
            }
            let (_, route) = found.unwrap_or_else(|| panic!("{at}: no route"));
            let pattern = match name {
                "beacon" => "/api/iris/{project}".to_owned(),
                name => format!("/api/iris/{name}"),
            };
            assert_eq!(route.path, pattern, "{at}");
            let expected = match name {
                "beacon" if !is_deployed => Share::PerKey,
                _ => share,
            };
            assert_eq!(route.options.share, expected, "{at}");
            let is_stored = share != Share::Standard;
            assert!(
                is_stored || is_write || route.raw_target,
                "{at}: may be stored"
            );
            if is_stored {
                for parameter in parameters.split_whitespace() {
                    let query = format!("{parameter}=1");
                    assert!(!route.query.leaves_out(&query), "{at}: {parameter}");
                }
                assert!(route.query.leaves_out("unheard=1"), "{at}");
                assert!(!route.drops_unknown_query, "{at}");
            }
            if is_write
                && ["telemetry", "events", "reflexion", "model-run", "consensus"].contains(&name)
            {
                assert!(!route.invalidates.is_empty(), "{at}");
            }
        }
        let (_, counters) = config
            .routes
            .find(&http::Method::GET, "", "/api/metrics")
            .unwrap();
        assert!(counters.raw_target, "{file}");
    }
}

#[tokio::test]
async fn it_serves_says_so_and_ends_well_on_sigterm_and_sigint() {
    let origin = Origin::start(|_| ok("through", &[])).await;
    let folder = tempfile::tempdir().unwrap();
    let config = file(
        folder.path(),
        &format!(
            "[listen]\naddress = \"127.0.0.1:0\"\ndrain_delay = \"0s\"\n[admin]\naddress \
                = \"127.0.0.1:0\"\n[upstream]\nurl = \"{}\"\n",
            origin.url()
        ),
    );
    for signal in ["TERM", "INT"] {
        let mut running = Running::start(&config);
        let received = Client::connect(running.address)
            .await
            .ask("GET", "/a", &[])
            .await;
        assert_eq!(
            (received.status, received.text().as_str()),
            (200, "through")
        );
        assert_eq!(Client::admin(running.admin, "/readyz").await.status, 200);
        running.signal(signal);
        assert_eq!(running.child.0.wait().unwrap().code(), Some(0));
        let rest: Vec<String> = running.lines.by_ref().collect();
        assert!(
            rest.iter()
                .any(|line| line.contains("unready") && line.contains(signal)),
            "{rest:?}"
        );
    }
}

#[tokio::test]
async fn a_second_process_on_the_same_address_fails_with_status_1() {
    let folder = tempfile::tempdir().unwrap();
    let first = Running::start(&file(folder.path(), FREE_PORTS));
    let config = file(
        folder.path(),
        &format!(
            "[listen]\naddress = \"{}\"\n[admin]\naddress = \"127.0.0.1:0\"\n",
            first.address
        ),
    );
    let (status, _, error) = run(&["serve", "--config", &config]);
    assert_eq!(status, Some(1));
    assert!(error.contains("cannot be listened on"), "{error}");
}

#[tokio::test]
async fn without_an_upstream_the_built_in_origin_is_answered_through_the_cache() {
    let folder = tempfile::tempdir().unwrap();
    let database = folder.path().join("iris.db");
    let routes = std::fs::read_to_string(format!(
        "{}/config/default.toml",
        env!("CARGO_MANIFEST_DIR")
    ))
    .unwrap();
    let text = format!(
        "{FREE_PORTS}[origin]\ndatabase = \"sqlite:{}\"\n{routes}",
        database.display()
    );
    let config = file(folder.path(), &text);
    let (mut etag, mut key) = (String::new(), String::new());
    // The second process finds the data that the first one left.
    for start in 0..2 {
        let mut running = Running::start(&config);
        let lines = running.lines.by_ref();
        let hint = lines.find(|line| line.contains("curl"));
        let hint = hint.expect("it says what to try");
        if start == 0 {
            // The demo key is said once.
            let at = hint.find("sk_live_").expect("a key");
            key = hint[at..].split('\'').next().unwrap().to_owned();
        }
        assert_eq!(hint.contains("Bearer sk_live_…"), start == 1, "{hint}");
        let authorization = format!("Bearer {key}");
        let with_key = [("authorization", authorization.as_str())];
        let mut client = Client::connect(running.address).await;
        for expected in ["MISS", "HIT"] {
            let received = client.ask("GET", "/api/iris/overview", &with_key).await;
            assert_eq!((received.status, received.cache()), (200, expected));
            assert_eq!(received.json()["metrics"]["total_projects"], 8);
            if start == 0 {
                etag = received.header("etag").unwrap().to_owned();
            }
        }
        let again = client
            .ask(
                "GET",
                "/api/iris/overview",
                &[with_key[0], ("if-none-match", &etag)],
            )
            .await;
        assert_eq!(again.status, 304);
        for expected in ["MISS", "HIT"] {
            let received = client.ask("GET", "/api/iris/analytics", &with_key).await;
            assert_eq!((received.status, received.cache()), (200, expected));
        }
        let stranger = client.ask("GET", "/api/iris/analytics", &[]).await;
        assert_eq!(stranger.status, 401);
        let metrics = Client::admin(running.admin, "/metrics").await.text();
        assert!(
            metrics.contains("db_queries_total{table=\"model_run_log\",operation=\"select\"} 1"),
            "{metrics}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_made_listed_and_revoked_by_hand_in_both_databases() {
    let folder = tempfile::tempdir().unwrap();
    let server = PostgresServer::start().await;
    by_hand(&format!("sqlite:{}/keys.db", folder.path().display()));
    by_hand(&server.url());
    // In memory there is nothing to work on.
    let (status, _, error) = run(&["origin", "list-keys"]);
    assert_eq!(status, Some(2));
    assert!(error.contains("--database"), "{error}");
}

fn by_hand(database: &str) {
    let origin = |arguments: &[&str]| {
        let all = [&["origin"][..], arguments, &["--database", database]].concat();
        run(&all)
    };
    assert_eq!(origin(&["migrate"]).0, Some(0));
    assert_eq!(origin(&["migrate"]).0, Some(0));
    let (status, key, error) = origin(&["create-key", "--project", "p", "--label", "ci"]);
    assert_eq!(status, Some(0), "{error}");
    let key = key.trim();
    assert!(key.starts_with("sk_live_") && key.len() == 51, "{key}");
    let (_, listed, _) = origin(&["list-keys"]);
    assert!(
        listed.contains("ci") && listed.contains("never") && !listed.contains(key),
        "{listed}"
    );
    let (status, told, _) = origin(&["revoke-key", key]);
    assert_eq!(status, Some(0));
    // Until when, and what to do there.
    assert!(told.contains("revoked in the database"), "{told}");
    let (status, _, error) = origin(&["revoke-key", key]);
    assert_eq!(status, Some(1));
    assert!(error.contains("list-keys"), "{error}");
    let (_, seeded, _) = origin(&["seed"]);
    assert!(seeded.starts_with("sk_live_"), "{seeded}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_is_revoked_by_hand_is_refused_where_the_sidecar_runs() {
    let folder = tempfile::tempdir().unwrap();
    let database = format!("sqlite:{}/keys.db", folder.path().display());
    let admin = format!("127.0.0.1:{}", free_port());
    let text = |auth: &str| {
        let default = include_str!("../config/default.toml");
        let default = default.replace("[auth]\n", &format!("[auth]\n{auth}"));
        format!(
            "[listen]\naddress = \"127.0.0.1:0\"\n[admin]\naddress \
                = \"{admin}\"\n[origin]\ndatabase = \"{database}\"\n{default}"
        )
    };
    let config = file(folder.path(), &text(""));
    let origin = |arguments: &[&str]| {
        let all = [&["origin"][..], arguments, &["--config", &config]].concat();
        run(&all)
    };
    assert_eq!(origin(&["migrate"]).0, Some(0));
    let make = || {
        origin(&["create-key", "--project", "p"])
            .1
            .trim()
            .to_owned()
    };
    let keys = [make(), make(), make()];
    let running = Running::start(&config);
    let address = running.address;
    let status = async |key: &str, path: &str| {
        let authorization = format!("Bearer {key}");
        let fields = [("authorization", authorization.as_str())];
        let mut client = Client::connect(address).await;
        client.ask("GET", path, &fields).await.status
    };
    for key in &keys {
        for path in ["/api/iris/overview", "/api/iris/analytics"] {
            assert_eq!(status(key, path).await, 200, "{path}");
        }
    }
    // By itself, and by its id.
    let listed = origin(&["list-keys"]).1;
    let id = |line: &str| {
        line.split_whitespace()
            .next()
            .unwrap_or_default()
            .to_owned()
    };
    let prefix = keys[1][..12].to_owned();
    let by_id = listed
        .lines()
        .find(|line| line.contains(&prefix))
        .map(id)
        .unwrap();
    for (key, named) in [(&keys[0], keys[0].clone()), (&keys[1], by_id)] {
        let (code, told, error) = origin(&["revoke-key", &named]);
        assert_eq!(code, Some(0), "{error}");
        assert!(told.contains("refuses it from now on"), "{told}");
        for path in ["/api/iris/overview", "/api/iris/analytics"] {
            assert_eq!(status(key, path).await, 401, "{path}");
        }
    }
    assert_eq!(status(&keys[2], "/api/iris/overview").await, 200);
    drop(running);
    // Where none answers: until when, and what to type.
    let (code, told, _) = origin(&["revoke-key", &keys[2]]);
    assert_eq!(code, Some(0));
    for says in ["no sidecar answers", "at the latest", "/revoke", "per-key"] {
        assert!(told.contains(says), "{told}");
    }
}

#[test]
fn a_database_that_cannot_be_opened_is_status_1_with_its_name() {
    let folder = tempfile::tempdir().unwrap();
    let config = file(
        folder.path(),
        &format!("{FREE_PORTS}[origin]\ndatabase = \"sqlite:/no/such/folder/iris.db\"\n"),
    );
    let mut child = binary()
        .args(["serve", "--config", &config])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut error = String::new();
    child
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut error)
        .unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(1));
    assert!(error.contains("/no/such/folder/iris.db"), "{error}");
}
