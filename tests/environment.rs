//! Run by the environment alone, as an image is.

use crate::support::process::{Running, binary};
use crate::support::{Client, Origin, numbered};

/// The documented variables: each stands in the README's table.
#[test]
fn the_readmes_table_has_every_variable() {
    let readme = include_str!("../README.md");
    let variables = iris_sidecar::config::variables::VARIABLES.iter();
    for (name, path) in variables.map(|variable| (variable.name, variable.path())) {
        let row = readme
            .lines()
            .find(|line| line.starts_with(&format!("| `{name}` | ")))
            .unwrap_or_else(|| panic!("{name} has no row"));
        assert!(row.contains(&format!("`{path}`")), "{row} names no {path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_variable_puts_it_in_front_of_an_api_and_health_finds_it() {
    let origin = Origin::start(|seen| numbered(seen, &[("cache-control", "max-age=60")])).await;
    let url = origin.url();
    let variables = [
        ("IRIS_UPSTREAM_URL", url.as_str()),
        ("IRIS_LISTEN_ADDRESS", "127.0.0.1:0"),
        ("IRIS_ADMIN_ADDRESS", "127.0.0.1:0"),
    ];
    let running = Running::start_by(&variables);
    let mut client = Client::connect(running.address).await;
    for target in ["/", "/a"] {
        for expected in ["MISS", "HIT"] {
            let answer = client.ask("GET", target, &[]).await;
            assert_eq!((answer.status, answer.cache()), (200, expected), "{target}");
        }
    }
    let told = Client::admin(running.admin, "/config").await.text();
    assert!(told.contains("IRIS_UPSTREAM_URL"), "{told}");
    let health = |address: String| {
        let mut command = binary();
        command.arg("health").env("IRIS_ADMIN_ADDRESS", address);
        command.status().unwrap().code()
    };
    assert_eq!(health(running.admin.to_string()), Some(0));
    assert_eq!(health(format!("0.0.0.0:{}", running.admin.port())), Some(0));
    // Of "all addresses" one family may be missing.
    assert_eq!(health(format!("[::]:{}", running.admin.port())), Some(0));
    let dead = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let nowhere = dead.local_addr().unwrap().to_string();
    drop(dead);
    assert_eq!(health(nowhere), Some(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ttl_is_for_what_brings_none() {
    let origin = Origin::start(|seen| numbered(seen, &[])).await;
    let url = origin.url();
    let variables = [
        ("IRIS_UPSTREAM_URL", url.as_str()),
        ("IRIS_LISTEN_ADDRESS", "127.0.0.1:0"),
        ("IRIS_ADMIN_ADDRESS", "127.0.0.1:0"),
        ("IRIS_TTL", "30s"),
    ];
    let running = Running::start_by(&variables);
    let mut client = Client::connect(running.address).await;
    client.ask("GET", "/a", &[]).await;
    let again = client.ask("GET", "/a", &[]).await;
    assert!(
        again.cache_status().contains("ttl=30"),
        "{}",
        again.cache_status()
    );
}

#[test]
fn what_is_misspelt_is_said_and_nothing_is_started() {
    for (name, meant) in [
        ("IRIS_UPSTREAM_ULR", "IRIS_UPSTREAM_URL"),
        ("IRIS_CONFG", "IRIS_CONFIG"),
        ("IRIS_TTLS", "IRIS_TTL"),
    ] {
        let output = binary().env(name, "x").output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains(&format!("did you mean {meant}?")), "{said}");
    }
    let mut command = binary();
    let output = command.env("IRIS_UPSTREAM_URL", "api:3000").output();
    let output = output.unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{said}");
    let expected =
        "the environment variable IRIS_UPSTREAM_URL: upstream.url = \"api:3000\": expected";
    assert!(said.contains(expected), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_variable_says_nothing_and_anothers_is_none_of_ours() {
    let variables = [
        ("IRIS_LISTEN_ADDRESS", "127.0.0.1:0"),
        ("IRIS_ADMIN_ADDRESS", "127.0.0.1:0"),
        ("IRIS_CONFIG", ""),
        ("IRIS_ADMIN_TOKEN", ""),
        ("IRIS_UPSTREAM_URL", ""),
        ("IRIS_REDIS_URL", ""),
        ("IRIS_TTL", ""),
        // Of a service that is called iris, say.
        ("IRIS_URL", "http://elsewhere"),
        ("IRIS_PORT", "tcp://10.0.0.1:80"),
    ];
    let running = Running::start_by(&variables);
    let mut command = binary();
    command
        .arg("health")
        .env("IRIS_CONFIG", "")
        .env("IRIS_ADMIN_URL", "");
    command.env("IRIS_ADMIN_ADDRESS", running.admin.to_string());
    assert!(command.status().unwrap().success());
    let plain = binary().env("IRIS_LOG_FORMAT", "").arg("-V").output();
    assert!(plain.unwrap().status.success());
}

#[test]
fn the_version_names_the_commit_and_completions_the_commands() {
    let told = |argument: &[&str]| {
        let output = binary().args(argument).output().unwrap();
        assert!(output.status.success());
        String::from_utf8(output.stdout).unwrap()
    };
    let long = told(&["--version"]);
    for word in ["iris-sidecar 0.1.0 (", "target:", "aws-lc-rs", "Postgres"] {
        assert!(long.contains(word), "{word} is not in {long}");
    }
    assert_eq!(told(&["-V"]).lines().count(), 1);
    for shell in ["bash", "zsh", "fish"] {
        let script = told(&["completions", shell]);
        assert!(
            script.contains("load-test") && script.contains("explain"),
            "{shell}"
        );
    }
}
