//! Where Redis can be: behind TLS, behind Sentinels, behind a user of its own, under a prefix.

use crate::support::PATIENCE;
use crate::support::certificate::Certificate;
use crate::support::fleet::Fleet;
use crate::support::redis::{RedisServer, free_port};
use crate::support::sentinel::Sentinel;
use crate::support::{numbered, route};
use tokio::time::timeout;

const KEPT: &str = "ttl = \"60s\"";

async fn is_shared(fleet: &Fleet, target: &str) {
    for at in [0, 1] {
        fleet
            .metric_is(at, "cache_l2_heard", |heard| heard == 1.0)
            .await;
    }
    let written = fleet
        .metric(0, "cache_l2_writes_total{result=\"stored\"}")
        .await;
    let text = fleet.get(0, target).await.text();
    fleet.written(0, written + 1.0).await;
    let found = fleet.get(1, target).await;
    assert_eq!((found.text(), found.cache()), (text, "HIT"));
}

#[tokio::test]
async fn tls_with_a_root_of_its_own_and_no_other() {
    let certificate = Certificate::of("127.0.0.1");
    let port = free_port();
    let (cert, key) = (certificate.path(), certificate.key());
    let tls = [
        "--tls-port",
        &port.to_string(),
        "--tls-cert-file",
        &cert,
        "--tls-key-file",
        &key,
        "--tls-ca-cert-file",
        &cert,
        "--tls-auth-clients",
        "no",
    ];
    let server = RedisServer::start(&tls).await;
    let extra = format!("[cache.redis]\nca_file = \"{cert}\"\n{}", route(KEPT));
    let url = format!("rediss://127.0.0.1:{port}/2");
    let fleet = Fleet::start(&[&url, &url], &extra, |seen| numbered(seen, &[])).await;
    is_shared(&fleet, "/a").await;
    let keyspace = server.ask("INFO keyspace").await.unwrap();
    assert!(
        keyspace.contains("db2:") && !keyspace.contains("db0:"),
        "{keyspace}"
    );
    // The platform does not know it: nothing is read from it, and everything goes on.
    let mut fleet = fleet;
    let stranger = fleet.join_with(&url, &route(KEPT)).await;
    assert_eq!(fleet.get(stranger, "/a").await.cache(), "MISS");
    assert_eq!(fleet.metric(stranger, "cache_l2_heard").await, 0.0);
}

#[tokio::test]
async fn a_user_that_may_do_what_the_readme_says_and_nothing_else() {
    let rights = "user iris on >secret ~iris:* &iris:* +@read +@write +@scripting +@pubsub \
        +@connection +info +time";
    let server = RedisServer::start(&[]).await;
    let folder = format!("ACL SETUSER {}", rights.trim_start_matches("user "));
    assert_eq!(server.ask(&folder).await.unwrap().trim(), "+OK");
    server.ask("CONFIG SET requirepass other").await.unwrap();
    let url = format!("redis://iris:secret@127.0.0.1:{}", server.port);
    let fleet = Fleet::start(&[&url, &url], &route(KEPT), |seen| numbered(seen, &[])).await;
    is_shared(&fleet, "/a").await;
    let done = fleet.purge(0, r#"{"all": true}"#).await;
    assert_eq!(done["instances"], 2, "{done}");
    assert_eq!(fleet.get(1, "/a").await.text(), "2");
}

#[tokio::test]
async fn two_fleets_with_prefixes_of_their_own_share_nothing() {
    let server = RedisServer::start(&[]).await;
    let url = server.url();
    let one = format!("[cache.redis]\nprefix = \"one:\"\n{}", route(KEPT));
    let fleet = Fleet::start(&[&url, &url], &one, |seen| numbered(seen, &[])).await;
    let other = one.replace("one:", "other:");
    let mut fleet = fleet;
    let stranger = fleet.join_with(&url, &other).await;
    is_shared(&fleet, "/a").await;
    assert_eq!(fleet.get(stranger, "/a").await.text(), "2");
    fleet.purge(stranger, r#"{"all": true}"#).await;
    assert_eq!(fleet.get(0, "/a").await.cache(), "HIT");
}

#[tokio::test]
async fn a_master_that_sentinels_replace_is_followed() {
    let mut master = RedisServer::start(&[]).await;
    let port = master.port.to_string();
    let replica = [
        "--replicaof",
        "127.0.0.1",
        &port,
        "--repl-diskless-sync-delay",
        "0",
    ];
    let replica = RedisServer::start(&replica).await;
    let sentinel = Sentinel::start(master.port);
    sentinel.knows("num-slaves\r\n$1\r\n1").await;
    let extra = format!("[cache.redis]\nbreaker_open = \"300ms\"\n{}", route(KEPT));
    let url = sentinel.url();
    let fleet = Fleet::start(&[&url, &url], &extra, |seen| numbered(seen, &[])).await;
    is_shared(&fleet, "/a").await;
    let replicated = async {
        while !replica
            .ask("DBSIZE")
            .await
            .unwrap_or_default()
            .contains(&master.size().await)
        {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, replicated)
        .await
        .expect("it is replicated");
    master.kill();
    for number in 0..20 {
        assert_eq!(fleet.get(0, &format!("/b{number}")).await.status, 200);
    }
    sentinel.knows(&replica.port.to_string()).await;
    for at in [0, 1] {
        fleet
            .metric_is(at, "cache_l2_breaker_open", |open| open == 0.0)
            .await;
    }
    is_shared(&fleet, "/c").await;
}
