//! What a newcomer stumbles over: what is wrong is said with its cause, its place and what to do.

use std::process::Command;

use serde_json::Value;

use crate::support::keys::{Keys, UNPROVED, guarded, verified};
use crate::support::process::{FREE_PORTS, Running, binary, file};
use crate::support::redis::free_port;
use crate::support::{Client, Fixture, numbered, reply, route};

const A: &str = "sk_live_aaaaaaaaaaaaaaaaaaaaaaaa";

fn said(arguments: &[&str]) -> (Option<i32>, String) {
    let output = binary().args(arguments).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(text).unwrap())
}

#[test]
fn a_database_that_cannot_be_opened_is_told_with_its_cause() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| format!("sqlite:{}", folder.path().join(name).display());
    std::fs::write(folder.path().join("notes.txt"), "no database").unwrap();
    let nobody = free_port();
    for (database, says) in [
        (at("no/folder/x.db"), "there is no folder"),
        (at("notes.txt"), "a file of another kind"),
        (at("typo.db"), "origin migrate makes it"),
        (
            "sqlite:/sys/kernel/iris.db".to_owned(),
            "/sys/kernel/iris.db",
        ),
        (
            "mysql://root:secret@h/x".to_owned(),
            "expected \"sqlite::memory:\"",
        ),
        (
            format!("postgres://u:secret@127.0.0.1:{nobody}/x"),
            "Connection refused",
        ),
        (
            "postgres://u:secret@no.invalid/x".to_owned(),
            "no.invalid:5432",
        ),
    ] {
        let (status, text) = said(&["origin", "list-keys", "--database", &database]);
        assert_eq!(status, Some(1), "{database}: {text}");
        assert!(text.contains(says), "{database}: {text}");
        assert!(
            !text.contains("secret") && text.lines().count() == 1,
            "{database}: {text}"
        );
        // Nothing is told twice.
        assert_eq!(text.matches(says).count(), 1, "{text}");
    }
    let left = std::fs::read_dir(folder.path()).unwrap().count();
    assert_eq!(left, 1, "a typo makes no database");
}

#[test]
fn a_redis_that_is_not_there_is_told_in_the_words_of_the_system() {
    let folder = tempfile::tempdir().unwrap();
    let nobody = free_port();
    let text = format!(
        "{FREE_PORTS}[upstream]\nurl = \"http://127.0.0.1:1\"\n[cache.redis]\nurl \
            = \"redis://:secret@127.0.0.1:{nobody}\"\n{}",
        route("ttl = \"1s\"")
    );
    let mut command = binary();
    command.args(["serve", "--config", &file(folder.path(), &text)]);
    let running = Running::launched_told(command);
    let told = running.1.join("\n");
    assert!(
        told.contains(&format!("127.0.0.1:{nobody}: Connection refused")),
        "{told}"
    );
    assert!(!told.contains("secret") && !told.contains("Os {"), "{told}");
}

#[test]
fn the_first_lines_fit_a_terminal_and_say_where_everything_is() {
    let mut command = binary();
    command
        .env("IRIS_LISTEN_ADDRESS", "127.0.0.1:0")
        .env("IRIS_ADMIN_ADDRESS", "127.0.0.1:0");
    command.stderr(std::process::Stdio::piped());
    let mut child = command.spawn().unwrap();
    let stderr = child.stderr.take().unwrap();
    let lines = std::io::BufRead::lines(std::io::BufReader::new(stderr)).map_while(Result::ok);
    let mut told = Vec::new();
    for line in lines {
        let is_last = line.contains("/api/iris/overview");
        told.push(line);
        if is_last {
            break;
        }
    }
    let killed = Command::new("kill").arg(child.id().to_string()).status();
    assert!(killed.unwrap().success());
    child.kill().unwrap();
    child.wait().unwrap();
    let text = told.join("\n");
    // A key takes most of its own line.
    for line in told.iter().filter(|line| !line.contains("Bearer")) {
        assert!(line.chars().count() <= 90, "{line}");
    }
    for word in [
        "file=",
        "routes=",
        "the built-in origin",
        "see what it does:  http://127.0.0.1:",
    ] {
        assert!(text.contains(word), "{word}: {text}");
    }
}

async fn explained(fixture: &Fixture, target: &str) -> Value {
    let admin = fixture.sidecar().admin_address;
    Client::admin(admin, &format!("/explain?url={target}"))
        .await
        .json()
}

#[tokio::test(flavor = "multi_thread")]
async fn explain_without_a_key_says_what_a_key_would_get() {
    let keys = Keys::of(&[A]);
    let fixture = guarded(&verified(""), &keys).await;
    let with_key = async || {
        let told = explained(&fixture, "http://api.example/a").await;
        assert_eq!(told["result"], "BYPASS", "{told}");
        told["with_key"].as_str().unwrap_or_default().to_owned()
    };
    assert!(
        with_key().await.starts_with("a MISS"),
        "{}",
        with_key().await
    );
    fixture.get_as(A, "/a").await;
    assert!(
        with_key().await.starts_with("a HIT (fresh)"),
        "{}",
        with_key().await
    );
    // As long as nothing is proved, and where it never is, each has its own.
    let proved = verified("").replace(UNPROVED, "");
    let fixture = guarded(&proved, &keys).await;
    let told = explained(&fixture, "http://api.example/a").await["with_key"].clone();
    assert!(told.as_str().unwrap().contains("of its own"), "{told}");
    let fixture = Fixture::start(&route("ttl = \"1m\"\nshare = \"per-key\""), |seen| {
        numbered(seen, &[])
    })
    .await;
    let told = explained(&fixture, "http://api.example/a").await["with_key"].clone();
    assert!(told.as_str().unwrap().contains("of its own"), "{told}");
    // And nothing of the kind where there are no keys.
    let fixture = Fixture::start(&route("ttl = \"1m\""), |seen| numbered(seen, &[])).await;
    assert_eq!(
        explained(&fixture, "http://api.example/a").await["with_key"],
        Value::Null
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_asked_for_most_is_known_and_no_secret_of_it() {
    let fixture = Fixture::start(&route("ttl = \"1m\""), |_| reply(200, "a", &[])).await;
    for target in [
        "/often",
        "/often",
        "/often",
        "/once?token=secret",
        "/twice?a=1",
        "/twice?a=1",
    ] {
        fixture.get(target).await;
    }
    let admin = fixture.sidecar().admin_address;
    let told = Client::admin(admin, "/seen?most=5").await.json();
    let seen = told["seen"].as_array().unwrap();
    let names: Vec<&str> = seen
        .iter()
        .filter_map(|one| one["target"].as_str())
        .collect();
    assert_eq!(names, ["/often", "/twice?a=1"], "{told}");
    assert_eq!(seen[0]["requests"], 3);
    assert_eq!(Client::admin(admin, "/seen?most=x").await.status, 400);
}

#[tokio::test(flavor = "multi_thread")]
async fn explain_names_the_cause_long_after_and_the_methods_that_are_taken() {
    let fixture = Fixture::start(&route("ttl = \"1m\""), |_| {
        reply(200, "a", &[("cache-control", "private")])
    })
    .await;
    fixture.get("/a").await;
    for seconds in [0, 60, 3600] {
        fixture.advance(seconds);
        let told = explained(&fixture, "http://api.example/a").await;
        assert_eq!(told["not_stored"], "private", "{told}");
        assert!(
            told["change"].as_str().unwrap().contains("private"),
            "{told}"
        );
    }
    let told = explained(&fixture, "http://api.example/a&method=DELETE").await;
    let change = told["change"].as_str().unwrap();
    assert!(
        change.contains("takes GET, HEAD") && !change.contains("capitals"),
        "{told}"
    );
    let told = explained(&fixture, "http://api.example/a&method=get").await;
    assert!(
        told["change"].as_str().unwrap().contains("capitals"),
        "{told}"
    );
}
