//! The access log: a line for each request, off the workers, without what is secret; and the trace
//! that a request is part of.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::support::{
    Client, Fixture, Gate, Origin, PATIENCE, Step, after, numbered, ok, reply, route,
};

struct Log {
    folder: tempfile::TempDir,
}

impl Log {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self { folder }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("access.log")
    }

    fn section(&self, keys: &str) -> String {
        let path = self.path();
        format!("[access_log]\nto = \"{}\"\n{keys}\n", path.display())
    }

    /// Waits until so many lines are there.
    async fn lines(&self, count: usize) -> Vec<String> {
        lines_of(&self.path(), count).await
    }
}

async fn lines_of(path: &Path, count: usize) -> Vec<String> {
    let read = async {
        loop {
            let text = std::fs::read_to_string(path).unwrap_or_default();
            let lines: Vec<String> = text.lines().map(str::to_owned).collect();
            if lines.len() >= count {
                return lines;
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    };
    let lines = tokio::time::timeout(PATIENCE, read).await;
    lines.unwrap_or_else(|_| panic!("{count} lines in {:?}", std::fs::read_to_string(path)))
}

fn json(line: &str) -> Value {
    serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))
}

#[tokio::test]
async fn each_request_has_a_line_that_says_how_it_was_answered() {
    let log = Log::new();
    let text = format!(
        "{}{}",
        log.section("format = \"json\""),
        route("ttl = \"1h\"")
    );
    let fixture = Fixture::start(&text, |seen| match seen.target.as_str() {
        "/down" => vec![Step::Close],
        _ => numbered(seen, &[]),
    })
    .await;
    let mut client = fixture.connect().await;
    let fields = [
        ("user-agent", "a \"test\""),
        ("x-request-id", "id-1"),
        ("referer", "http://me:s3cret@r/?a=1&token=s3cret"),
    ];
    client
        .ask("GET", "/a?page=1&token=s3cret&%74oken=s3cret", &fields)
        .await;
    client
        .ask("GET", "/a?page=1&token=s3cret&%74oken=s3cret", &fields)
        .await;
    client.ask("GET", "/down", &[]).await;
    client.ask("POST", "/a", &[]).await;
    let lines = log.lines(4).await;
    let told: Vec<Value> = lines.iter().map(|line| json(line)).collect();
    let miss = &told[0];
    for (name, value) in [
        ("client", "127.0.0.1"),
        ("method", "GET"),
        ("host", "api.example"),
        ("path", "/a"),
        ("query", "page=1&token=…&%74oken=…"),
        ("protocol", "HTTP/1.1"),
        ("route", "/{*rest}"),
        ("result", "MISS"),
        ("reason", "cold"),
        ("user-agent", "a \"test\""),
        ("request_id", "id-1"),
        ("referer", "http://me:…@r/?a=1&token=…"),
    ] {
        assert_eq!(miss[name], value, "{name}: {miss}");
    }
    assert_eq!((&miss["status"], &miss["bytes"]), (&200.into(), &1.into()));
    let took = |name: &str| {
        miss[name]
            .as_f64()
            .unwrap_or_else(|| panic!("{name}: {miss}"))
    };
    assert!(took("upstream_ms") <= took("head_ms") && took("head_ms") <= took("total_ms"));
    assert!(
        miss["traceparent"].as_str().unwrap().starts_with("00-"),
        "it was started"
    );
    assert_eq!(
        (&told[1]["result"], &told[1]["reason"]),
        (&"HIT".into(), &"fresh".into())
    );
    assert!(told[1].get("upstream_ms").is_none(), "{}", told[1]);
    assert_eq!(told[2]["status"], 502);
    assert_eq!(
        (&told[3]["result"], &told[3]["reason"]),
        (&"BYPASS".into(), &"no-route".into())
    );
    assert!(told[3]["route"].is_null());
    assert!(!lines.join("").contains("s3cret"), "{lines:?}");
    assert_eq!(fixture.metric("access_log_lines_total").await, 4.0);
}

#[tokio::test]
async fn the_common_format_is_that_of_other_servers() {
    let log = Log::new();
    let text = log.section("format = \"common\"");
    let fixture = Fixture::start(&text, |_| ok("body", &[])).await;
    let fields = [("user-agent", "x\" y"), ("referer", "http://r/")];
    fixture.get_with("/a?key=s3cret", &fields).await;
    let lines = log.lines(1).await;
    let (begin, rest) = lines[0].split_once(" [").unwrap();
    let (time, rest) = rest.split_once("] ").unwrap();
    assert_eq!(begin, "127.0.0.1 - -");
    assert_eq!(rest, r#""GET /a?key=… HTTP/1.1" 200 4 "http://r/" "x\" y""#);
    // 26/Nov/2026:09:52:43 +0000
    assert_eq!((time.len(), &time[20..]), (26, " +0000"), "{time}");
}

#[tokio::test]
async fn errors_and_what_broke_off_are_never_left_out() {
    let log = Log::new();
    let section = log.section("format = \"json\"\nsample = 1000000");
    let gate = Gate::new();
    let held = gate.clone();
    let fixture = Fixture::start(&section, move |seen| match seen.target.as_str() {
        "/error" => reply(500, "x", &[]),
        "/cut" => {
            let head = "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf";
            vec![Step::Send(head.into()), Step::Close]
        }
        "/left" => after(&held, ok("x", &[])),
        _ => ok("x", &[]),
    })
    .await;
    for _ in 0..50 {
        fixture.get("/fine").await;
    }
    fixture.get("/error").await;
    fixture.get("/cut").await;
    let lines = log.lines(2).await;
    let told: Vec<Value> = lines.iter().map(|line| json(line)).collect();
    assert_eq!(
        (&told[0]["path"], &told[0]["status"]),
        (&"/error".into(), &500.into())
    );
    assert_eq!(
        (&told[1]["path"], &told[1]["cut"]),
        (&"/cut".into(), &true.into())
    );
    assert_eq!(told[1]["bytes"], 4);
}

#[tokio::test]
async fn who_is_turned_away_unread_has_a_line_too() {
    let log = Log::new();
    for format in ["json", "common"] {
        let section = log.section(&format!("format = \"{format}\""));
        let limits = "[limits]\nconnections = 3\nheader_bytes = \"8KiB\"\n";
        let fixture = Fixture::start(&format!("{section}{limits}"), |_| ok("x", &[])).await;
        let garbage = b"no HTTP at all\r\n\r\n".to_vec();
        let large = format!("GET / HTTP/1.1\r\nx: {}\r\n\r\n", "y".repeat(9000));
        for (sent, status) in [(garbage, 400), (large.into_bytes(), 431)] {
            let mut client = fixture.connect().await;
            client.send(sent).await;
            assert_eq!(client.response().await.status, status);
        }
        let mut held = Vec::new();
        let refused = loop {
            let mut client = fixture.connect().await;
            client.request("GET", "/a", &[]).await;
            let answer = client.response().await;
            if answer.status == 503 {
                break answer;
            }
            held.push(client);
        };
        let told = log.lines(3 + held.len()).await;
        let of = |status: &str| told.iter().find(|line| line.contains(status)).unwrap();
        if format == "common" {
            assert!(of(" 400 ").contains("] \"-\" 400 "), "{told:?}");
        } else {
            let bytes = refused.body.len();
            for (status, bytes) in [(400, None), (431, None), (503, Some(bytes))] {
                let line = json(of(&format!("\"status\":{status}")));
                assert_eq!(line["client"], "127.0.0.1");
                assert!(line["path"].is_null() && line["method"].is_null(), "{line}");
                assert_eq!(
                    (&line["result"], &line["reason"]),
                    (&"BYPASS".into(), &"refused".into())
                );
                assert!(bytes.is_none_or(|bytes| line["bytes"] == bytes), "{line}");
            }
        }
        std::fs::remove_file(log.path()).unwrap();
    }
}

#[tokio::test]
async fn it_is_turned_on_by_a_reload_and_its_file_may_be_moved_away() {
    let log = Log::new();
    let origin = Origin::start(|_| ok("x", &[])).await;
    let fixture = Fixture::with_file(origin, "");
    fixture.get("/before").await;
    fixture.write_file(&log.section("format = \"json\""));
    fixture.sidecar().reload("test");
    fixture.get("/a").await;
    assert_eq!(json(&log.lines(1).await[0])["path"], "/a");
    let moved = log.folder.path().join("old.log");
    std::fs::rename(log.path(), &moved).unwrap();
    fixture.sidecar().reload("SIGHUP");
    fixture.get("/b").await;
    assert_eq!(json(&log.lines(1).await[0])["path"], "/b");
    assert_eq!(lines_of(&moved, 1).await.len(), 1);
    // A place that cannot be written is a mistake, and changes nothing.
    fixture.write_file("[access_log]\nformat = \"json\"\nto = \"/no/such/folder/log\"\n");
    let refused = Client::order(fixture.sidecar().admin_address, "/reload", "{}").await;
    assert!(
        refused
            .text()
            .contains("/no/such/folder/log cannot be written"),
        "{}",
        refused.text()
    );
    fixture.get("/c").await;
    assert_eq!(log.lines(2).await.len(), 2);
}

#[tokio::test]
async fn a_place_that_takes_nothing_blocks_nobody_and_what_is_lost_is_counted() {
    let text = format!(
        "[access_log]\nformat = \"json\"\nto = \"/dev/full\"\n{}",
        route("ttl = \"1h\"")
    );
    let fixture = Fixture::start(&text, |_| ok("x", &[])).await;
    for _ in 0..20 {
        assert_eq!(fixture.get("/a").await.status, 200);
    }
    fixture
        .metric_reaches("access_log_dropped_total", 20.0)
        .await;
}

#[tokio::test]
async fn a_request_keeps_its_id_and_its_trace_on_its_way() {
    const TRACE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let fixture = Fixture::start("", |_| ok("x", &[])).await;
    let fields = [
        ("traceparent", TRACE),
        ("tracestate", "a=1"),
        ("x-request-id", "id-1"),
    ];
    fixture.get_with("/a", &fields).await;
    let seen = fixture.origin.last();
    for (name, value) in fields {
        assert_eq!(seen.header(name), Some(value));
    }
    fixture.get("/b").await;
    let seen = fixture.origin.last();
    assert!(seen.header("traceparent").unwrap().starts_with("00-"));
    assert_eq!(seen.header("x-request-id").unwrap().len(), 36);
    let fixture = Fixture::start("[trace]\nstart = false\n", |_| ok("x", &[])).await;
    fixture.get("/c").await;
    assert_eq!(fixture.origin.last().header("traceparent"), None);
}

#[tokio::test]
async fn whoever_verifies_a_key_is_told_the_trace_too() {
    let verifier = Origin::start(|seen| {
        let is_good = seen.header("authorization") == Some("Bearer good");
        if is_good {
            ok("", &[])
        } else {
            reply(401, "", &[])
        }
    })
    .await;
    let text = format!(
        "[auth]\nsource = \"{}/me\"\ncontrol = \"off\"\non_difference = \"off\"\n{}",
        verifier.url(),
        route("ttl = \"1h\"\nshare = \"verified\"")
    );
    let fixture = Fixture::start(&text, |_| ok("x", &[])).await;
    let answer = fixture
        .get_with("/a", &[("authorization", "Bearer good")])
        .await;
    assert_eq!(answer.status, 200);
    let (asked, sent) = (verifier.last(), fixture.origin.last());
    for name in ["traceparent", "x-request-id"] {
        assert!(asked.header(name).is_some(), "{name}");
        assert_eq!(asked.header(name), sent.header(name), "{name}");
    }
}
