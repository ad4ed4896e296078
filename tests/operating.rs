//! The commands that an operator types, against a running sidecar; and what its monitoring reads.

use std::io::Write;
use std::process::{Output, Stdio};

use serde_json::Value;
use tokio::task::block_in_place;

use crate::support::process::{Running, binary, file};
use crate::support::{Client, Origin, Step, numbered, route};

struct Operated {
    running: Running,
    _origin: Origin,
    config: String,
    _folder: tempfile::TempDir,
}

impl Operated {
    async fn start(admin: &str, extra: &str) -> Self {
        let origin = Origin::start(|seen| match seen.target.as_str() {
            "/down" => vec![Step::Close],
            _ => numbered(seen, &[]),
        })
        .await;
        let folder = tempfile::tempdir().unwrap();
        let text = format!(
            "[listen]\naddress = \"127.0.0.1:0\"\ndrain_delay = \"0s\"\n[admin]\naddress \
                = \"127.0.0.1:0\"\n{admin}\n[upstream]\nurl = \"{}\"\n{extra}",
            origin.url()
        );
        let config = file(folder.path(), &text);
        Self {
            running: Running::start(&config),
            _origin: origin,
            config,
            _folder: folder,
        }
    }

    fn admin(&self) -> String {
        format!("http://{}", self.running.admin)
    }

    fn run(&self, arguments: &[&str], input: &str) -> Output {
        let mut command = binary();
        command.args(arguments).env("IRIS_ADMIN_URL", self.admin());
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        block_in_place(|| {
            let mut child = command.spawn().unwrap();
            let mut stdin = child.stdin.take().unwrap();
            stdin.write_all(input.as_bytes()).unwrap();
            drop(stdin);
            child.wait_with_output().unwrap()
        })
    }

    /// What a command that succeeds prints.
    fn says(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments, "");
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    async fn get(&self, target: &str) -> String {
        let mut client = Client::connect(self.running.address).await;
        client.ask("GET", target, &[]).await.cache().to_owned()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_operator_types_is_done() {
    let mut operated = Operated::start("", &route("ttl = \"1h\"\ngroups = [\"g\"]")).await;
    assert_eq!(operated.get("/a").await, "MISS");
    let status = operated.says(&["status"]);
    assert!(
        status.contains("ready: true") && status.contains("breaker: closed"),
        "{status}"
    );
    // Figures have their units, and where it asks is said.
    for words in ["version: ", "at: http", "hits: ", " %", " ms", " stored, "] {
        assert!(status.contains(words), "{words}: {status}");
    }

    let told = operated.says(&["explain", "GET", "http://api.example/a"]);
    assert!(
        told.contains("GET /a would be a HIT (fresh): A stored response within"),
        "{told}"
    );
    let told = operated.says(&["explain", "POST", "http://api.example/a", "--json"]);
    let told: Value = serde_json::from_str(&told).unwrap();
    assert_eq!(told["reason"], "no-route");
    assert!(
        told["change"].as_str().unwrap().contains("add a [[route]]"),
        "{told}"
    );

    let told = operated.says(&["purge", "--group", "g", "--dry-run"]);
    assert!(told.contains("matches: 1"), "{told}");
    assert_eq!(operated.get("/a").await, "HIT");
    operated.says(&["purge", "--url", "/a"]);
    assert_eq!(operated.get("/a").await, "MISS");

    let told = operated.says(&["bypass", "--for", "30m", "--route", "/{*rest}"]);
    assert!(told.contains("route /{*rest}"), "{told}");
    assert_eq!(operated.get("/a").await, "BYPASS");
    operated.says(&["bypass", "--off"]);
    assert_eq!(operated.get("/a").await, "HIT");

    let text = std::fs::read_to_string(&operated.config).unwrap();
    std::fs::write(&operated.config, text.replace("1h", "2h")).unwrap();
    let told = operated.says(&["reload"]);
    assert!(told.contains("route /{*rest}: ttl 1h → 2h"), "{told}");
    std::fs::write(&operated.config, "[[route]]\npath = 1\n").unwrap();
    let refused = operated.run(&["reload"], "");
    assert_eq!(refused.status.code(), Some(1));
    let why = String::from_utf8(refused.stderr).unwrap();
    assert!(
        why.contains("stays in force") && why.contains("iris.toml:2:8"),
        "{why}"
    );

    for probe in [&["health"][..], &["health", "--ready"]] {
        assert_eq!(operated.run(probe, "").status.code(), Some(0), "{probe:?}");
    }
    operated.says(&["drain", "--stay"]);
    assert_eq!(
        operated.run(&["health", "--ready"], "").status.code(),
        Some(1)
    );
    assert_eq!(operated.run(&["health"], "").status.code(), Some(0));
    operated.says(&["drain", "--back"]);
    operated.says(&["drain"]);
    let ended = block_in_place(|| operated.running.child.0.wait()).unwrap();
    assert!(ended.success());
    let nobody = operated.run(&["status"], "");
    assert_eq!(nobody.status.code(), Some(1));
    let why = String::from_utf8(nobody.stderr).unwrap();
    assert!(
        why.contains("no sidecar answers") && why.contains("--admin URL"),
        "{why}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_revoked_by_standard_input_and_a_token_stands_in_no_argument() {
    let operated = Operated::start(
        "token = \"s3cret\"",
        &route("ttl = \"1h\"\nshare = \"per-key\""),
    )
    .await;
    let refused = operated.run(&["status"], "");
    assert_eq!(refused.status.code(), Some(1));
    let why = String::from_utf8(refused.stderr).unwrap();
    assert!(why.contains("IRIS_ADMIN_TOKEN"), "{why}");
    // The file has it, beside the address that is not the file's.
    let config = operated.config.clone();
    let output = operated.run(&["revoke", "--config", &config], "sk_live_1\n");
    assert!(output.status.success(), "{output:?}");
    let mut client = Client::connect(operated.running.address).await;
    let fields = [("authorization", "Bearer sk_live_1")];
    assert_eq!(client.ask("GET", "/a", &fields).await.status, 401);
}

#[tokio::test(flavor = "multi_thread")]
async fn promtool_finds_nothing_but_the_inherited_names() {
    let operated = Operated::start("", &route("ttl = \"1h\"")).await;
    for target in ["/a", "/a", "/down"] {
        operated.get(target).await;
    }
    let text = Client::admin(operated.running.admin, "/metrics").await;
    assert!(
        text.header("content-type")
            .unwrap()
            .starts_with("text/plain; version=0.0.4")
    );
    let mut promtool = std::process::Command::new("promtool");
    promtool.args(["check", "metrics"]);
    promtool
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let output = block_in_place(|| {
        let mut child = promtool.spawn().unwrap();
        child
            .stdin
            .take()
            .unwrap()
            .write_all(text.text().as_bytes())
            .unwrap();
        child.wait_with_output().unwrap()
    });
    let said = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
    let complaints: Vec<&str> = said.iter().flat_map(|text| text.lines()).collect();
    // What operators chart already has twins in seconds.
    let inherited = [
        "cache_l2_read_duration_ms",
        "cache_purge_log_silence_ms",
        "db_query_duration_ms",
        "http_request_duration_ms",
        "upstream_request_duration_ms",
    ];
    let expected =
        inherited.map(|name| format!("{name} metric names should not contain abbreviated units"));
    assert_eq!(complaints, expected);
    for name in inherited {
        let twin = name.replace("_ms", "_seconds");
        assert!(text.text().contains(&format!("# TYPE {twin} ")), "{twin}");
    }
    let accept = [
        ("host", "127.0.0.1"),
        ("accept", "application/openmetrics-text"),
    ];
    let mut client = Client::connect(operated.running.admin).await;
    let open = client.ask("GET", "/metrics", &accept).await;
    assert!(
        open.header("content-type")
            .unwrap()
            .starts_with("application/openmetrics-text")
    );
    assert!(open.text().ends_with("# EOF\n"));
}
