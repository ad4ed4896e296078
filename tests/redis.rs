//! The client of Redis on real servers: where it connects, and that an ill server is left alone and
//! found again. The client library's known traps are here by name.

use std::time::Duration;

use crate::support::PATIENCE;
use crate::support::redis::RedisServer;
use bytes::Bytes;
use iris_sidecar::store::second::redis::Settings;
use iris_sidecar::store::second::{
    Answer, Event, LeaseOutcome, Question, Redis, SecondTier, Settlement, Store, ValuePlace, Wants,
};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::time::timeout;

fn settings(url: &str, prefix: &str) -> Settings {
    Settings {
        url: url.to_owned(),
        prefix: prefix.to_owned(),
        connections: 2,
        password_file: None,
        largest: 1 << 20,
        tls: None,
    }
}

fn connect(url: &str) -> (Redis, UnboundedReceiver<Event>) {
    let (events, heard) = unbounded_channel();
    let redis = Redis::connect(&settings(url, ""), events).expect("a valid URL");
    (redis, heard)
}

fn place() -> ValuePlace {
    ValuePlace {
        value: "{k}".to_owned(),
        lease: "{k}L".to_owned(),
    }
}

fn question(token: u64) -> Question {
    Question {
        place: place(),
        wants: Wants::Value,
        generation: Bytes::new(),
        known: Bytes::new(),
        token,
        lease_ttl: Duration::from_secs(60),
        position: 7,
    }
}

fn settlement(lease: Option<(String, u64)>, bytes: &'static str) -> Settlement {
    Settlement {
        lease,
        outcome: LeaseOutcome::Stored,
        store: Some(Store {
            value: place().value,
            record: None,
            bytes: Bytes::from_static(bytes.as_bytes()),
            ttl: Duration::from_secs(60),
        }),
    }
}

async fn store(redis: &Redis, bytes: &'static str) {
    redis.settle(settlement(None, bytes)).await.unwrap();
}

/// Asks until there is an answer.
async fn value(redis: &Redis) -> Option<Bytes> {
    let answered = async {
        loop {
            match redis.look_up(question(1)).await {
                Ok(Answer::Value(value)) => return Some(value),
                Ok(_) => return None,
                Err(_) => tokio::task::yield_now().await,
            }
        }
    };
    timeout(PATIENCE, answered).await.expect("Redis answers")
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

async fn hears(heard: &mut UnboundedReceiver<Event>, wanted: Event) {
    let hearing = async { while heard.recv().await.expect("it goes on") != wanted {} };
    let told = format!("{wanted:?} is told");
    timeout(PATIENCE, hearing).await.expect(&told);
}

const VALUE: Option<Bytes> = Some(Bytes::from_static(b"v"));

#[tokio::test(flavor = "multi_thread")]
async fn values_have_an_end_and_stand_in_the_database_of_the_url() {
    let server = RedisServer::start(&[]).await;
    let (redis, _heard) = connect(&format!("{}/3", server.url()));
    store(&redis, "v").await;
    assert_eq!(value(&redis).await, VALUE);
    let keyspace = server.ask("INFO keyspace").await.unwrap();
    assert!(keyspace.contains("db3:keys=1,expires=1"), "{keyspace}");
    redis.delete("{k}").await.unwrap();
    assert_eq!(value(&redis).await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_leads_the_others_wait_and_hear_how_it_ended() {
    let server = RedisServer::start(&[]).await;
    let (one, _heard) = connect(&server.url());
    let (other, mut heard) = connect(&server.url());
    hears(&mut heard, Event::Listening).await;
    answers(&one).await;
    assert!(matches!(one.look_up(question(1)).await, Ok(Answer::Lead)));
    let waits = other.look_up(question(2)).await.unwrap();
    let Answer::Wait {
        token,
        position,
        left,
    } = waits
    else {
        panic!("{waits:?}");
    };
    assert_eq!((token, position), (1, 7));
    assert!(left > Duration::from_secs(50) && left <= Duration::from_secs(60));
    // Not by who does not hold it.
    let lease = place().lease;
    let wrong = Settlement {
        store: None,
        ..settlement(Some((lease.clone(), 2)), "")
    };
    other.settle(wrong).await.unwrap();
    assert!(matches!(
        other.look_up(question(2)).await,
        Ok(Answer::Wait { .. })
    ));
    one.settle(settlement(Some((lease.clone(), 1)), "v"))
        .await
        .unwrap();
    let outcome = LeaseOutcome::Stored;
    hears(&mut heard, Event::Settled { lease, outcome }).await;
    assert_eq!(value(&other).await, VALUE);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_can_be_taken_over_and_kept_and_it_ends() {
    let server = RedisServer::start(&[]).await;
    let (redis, _heard) = connect(&server.url());
    answers(&redis).await;
    assert!(matches!(redis.look_up(question(1)).await, Ok(Answer::Lead)));
    let over = |token, of| Question {
        wants: Wants::LeaseOf(of),
        ..question(token)
    };
    assert!(matches!(
        redis.look_up(over(2, 9)).await,
        Ok(Answer::Wait { .. })
    ));
    assert!(matches!(redis.look_up(over(2, 1)).await, Ok(Answer::Lead)));
    // Its time is over but for who keeps it.
    let (lease, short) = (place().lease, Duration::from_millis(1));
    redis.renew(&lease, 1, short).await.unwrap();
    assert!(matches!(
        redis.look_up(question(3)).await,
        Ok(Answer::Wait { .. })
    ));
    redis.renew(&lease, 2, short).await.unwrap();
    let leads = async { while !matches!(redis.look_up(question(3)).await, Ok(Answer::Lead)) {} };
    timeout(PATIENCE, leads).await.expect("the lease ends");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_value_that_has_changed_is_found_by_who_knows_the_old_one() {
    let server = RedisServer::start(&[]).await;
    let (redis, _heard) = connect(&server.url());
    answers(&redis).await;
    store(&redis, "old").await;
    let claim = |known| Question {
        wants: Wants::Lease,
        known: Bytes::from_static(known),
        ..question(1)
    };
    assert!(matches!(
        redis.look_up(claim(b"old")).await,
        Ok(Answer::Lead)
    ));
    store(&redis, "new").await;
    let found = redis.look_up(claim(b"old")).await;
    assert!(matches!(found, Ok(Answer::Value(value)) if value == "new"));
}

#[tokio::test(flavor = "multi_thread")]
async fn user_and_password_come_from_the_url() {
    let server = RedisServer::start(&["--requirepass", "other"]).await;
    let (redis, _heard) = connect(&format!("redis://:other@127.0.0.1:{}", server.port));
    answers(&redis).await;
    store(&redis, "v").await;
    let (wrong, _heard) = connect(&format!("redis://:wrong@127.0.0.1:{}", server.port));
    assert!(wrong.look_up(question(1)).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_comes_late_or_again_is_found() {
    let mut server = RedisServer::start(&[]).await;
    server.kill();
    // Not there yet.
    let (redis, mut heard) = connect(&server.url());
    assert!(redis.ping().await.is_err());
    for _ in 0..3 {
        server.launch().await;
        answers(&redis).await;
        hears(&mut heard, Event::Listening).await;
        // Its scripts are gone with it.
        store(&redis, "v").await;
        server.kill();
        hears(&mut heard, Event::Interrupted).await;
        assert!(redis.ping().await.is_err());
    }
}

/// fred.rs issue 315: no attempt to connect again after a connection was dropped.
#[tokio::test(flavor = "multi_thread")]
async fn dropped_connections_are_made_again() {
    let server = RedisServer::start(&[]).await;
    let (redis, mut heard) = connect(&server.url());
    hears(&mut heard, Event::Listening).await;
    answers(&redis).await;
    store(&redis, "v").await;
    for _ in 0..5 {
        server.ask("CLIENT KILL TYPE normal").await;
        server.ask("CLIENT KILL TYPE pubsub").await;
        // On each of the pool's connections, and on the one that listens.
        for _ in 0..4 {
            assert_eq!(value(&redis).await, VALUE);
        }
        hears(&mut heard, Event::Listening).await;
    }
}

#[test]
fn a_url_that_is_none_says_so() {
    for url in ["http://127.0.0.1", "127.0.0.1:6379", ""] {
        let (events, _) = unbounded_channel();
        let error = Redis::connect(&settings(url, ""), events).err();
        let error = error.expect("not a URL of Redis").to_string();
        assert!(error.contains("redis-cluster"), "{error}");
    }
}
