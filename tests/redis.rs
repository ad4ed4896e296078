//! The second tier on a real Redis: what is written is read, and an ill server is left alone and
//! found again. The client library's known traps are here by name.

mod support;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use iris_sidecar::store::second::redis::Settings;
use iris_sidecar::store::second::{Patience, Redis, Second, SecondTier};
use support::PATIENCE;
use support::redis::RedisServer;
use tokio::runtime::Handle;
use tokio::time::timeout;

fn connect(url: &str, prefix: &str) -> Redis {
    let settings = Settings {
        url: url.to_owned(),
        prefix: prefix.to_owned(),
        connections: 2,
    };
    Redis::connect(&settings).expect("a valid URL")
}

/// Waits until the server answers a command.
async fn answers(redis: &Redis) {
    let answers = async {
        while redis.ping().await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, answers).await.expect("Redis answers");
}

const LONG: Duration = Duration::from_secs(60);

fn value(text: &'static str) -> Bytes {
    Bytes::from_static(text.as_bytes())
}

#[tokio::test(flavor = "multi_thread")]
async fn values_are_written_with_an_end_and_under_their_prefix() {
    let server = RedisServer::start(&[]).await;
    let url = format!("redis://127.0.0.1:{}/3", server.port);
    let redis = connect(&url, "iris:");
    answers(&redis).await;
    assert_eq!(redis.get(b"\x00k").await.unwrap(), None);
    redis.set(b"\x00k", value("v"), LONG).await.unwrap();
    assert_eq!(redis.get(b"\x00k").await.unwrap(), Some(value("v")));
    assert_eq!(connect(&url, "other:").get(b"\x00k").await.unwrap(), None);
    let keyspace = server.ask("INFO keyspace").await.unwrap();
    // In the database of the URL, and none without an end.
    assert!(keyspace.contains("db3:keys=1,expires=1"), "{keyspace}");
    redis.delete(b"\x00k").await.unwrap();
    assert_eq!(redis.get(b"\x00k").await.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn user_and_password_come_from_the_url() {
    let server = RedisServer::start(&["--requirepass", "secret"]).await;
    let redis = connect(&format!("redis://:secret@127.0.0.1:{}", server.port), "");
    answers(&redis).await;
    redis.set(b"k", value("v"), LONG).await.unwrap();
    let wrong = connect(&format!("redis://:wrong@127.0.0.1:{}", server.port), "");
    assert!(wrong.get(b"k").await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_comes_late_or_again_is_found() {
    let mut server = RedisServer::start(&[]).await;
    server.kill();
    // Not there yet.
    let redis = connect(&format!("redis://127.0.0.1:{}", server.port), "");
    assert!(redis.ping().await.is_err());
    for _ in 0..3 {
        server.launch().await;
        answers(&redis).await;
        redis.set(b"k", value("v"), LONG).await.unwrap();
        server.kill();
        assert!(redis.get(b"k").await.is_err());
    }
}

/// fred.rs issue 315: no attempt to connect again after a connection was dropped.
#[tokio::test(flavor = "multi_thread")]
async fn dropped_connections_are_made_again() {
    let server = RedisServer::start(&[]).await;
    let redis = connect(&format!("redis://127.0.0.1:{}", server.port), "");
    answers(&redis).await;
    redis.set(b"k", value("v"), LONG).await.unwrap();
    for _ in 0..5 {
        server.ask("CLIENT KILL TYPE normal").await;
        answers(&redis).await;
        // On each of the pool's connections.
        for _ in 0..4 {
            let found = async {
                loop {
                    if let Ok(found) = redis.get(b"k").await {
                        return found;
                    }
                }
            };
            let found = timeout(PATIENCE, found)
                .await
                .expect("it is connected again");
            assert_eq!(found, Some(value("v")));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_server_is_given_a_pause_and_found_well_again() {
    let server = RedisServer::start(&[]).await;
    let redis = connect(&format!("redis://127.0.0.1:{}", server.port), "");
    answers(&redis).await;
    let patience = Patience {
        open: Duration::from_millis(100),
        ..Patience::default()
    };
    let second = Second::start(Arc::new(redis), patience, &Handle::current());
    second.put(b"k", value("v"), LONG);
    let read = async {
        while !matches!(second.get(b"k").await, Ok(Some(_))) {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, read).await.expect("it is written");

    server.signal("STOP");
    let mut failed = 0;
    while !second.is_open() {
        // Each of these takes 20 ms at most, and there are five.
        let asked = timeout(Duration::from_secs(5), second.get(b"k"));
        assert!(
            asked
                .await
                .expect("the deadline is the tier's own")
                .is_err()
        );
        failed += 1;
    }
    assert_eq!(failed, 5);
    server.signal("CONT");
    let well = async {
        while second.is_open() {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, well)
        .await
        .expect("the probes find it well");
    let found = async {
        loop {
            if let Ok(found) = second.get(b"k").await {
                return found;
            }
        }
    };
    let found = timeout(PATIENCE, found).await.expect("it answers");
    assert_eq!(found, Some(value("v")));
}

#[test]
fn a_url_that_is_none_says_so() {
    for url in ["http://127.0.0.1", "127.0.0.1:6379", ""] {
        let settings = Settings {
            url: url.to_owned(),
            prefix: String::new(),
            connections: 1,
        };
        let error = Redis::connect(&settings).err().expect("not a URL of Redis");
        assert!(error.to_string().contains("redis-cluster"), "{error}");
    }
}
