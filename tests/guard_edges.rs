//! Ways by which a key that is refused might stay good, or a good one be refused, that reviews
//! found.

use std::sync::Arc;

use crate::support::fleet::Fleet;
use crate::support::keys::{Keys, guarded, verified, verified_by};
use crate::support::redis::RedisServer;
use crate::support::{Fixture, Gate, Origin, after, numbered, reply, route};
use serde_json::json;

const A: &str = "sk_live_aaaaaaaaaaaaaaaaaaaaaaaa";
const B: &str = "sk_live_bbbbbbbbbbbbbbbbbbbbbbbb";
const C: &str = "sk_live_cccccccccccccccccccccccc";
const BAD: &str = "sk_live_xxxxxxxxxxxxxxxxxxxxxxxx";
const STALE: &str = "stale_if_error = \"1h\"\nmax_ttl = \"20s\"";

#[tokio::test]
async fn a_verdict_in_redis_from_before_a_refusal_does_not_bring_the_key_back() {
    let redis = RedisServer::start(&[]).await;
    let url = redis.url();
    let keys = Keys::of(&[A, B]);
    let known = keys.clone();
    let fleet = Fleet::start(&[&url], &verified("max_ttl = \"20s\""), move |seen| {
        known.check(seen, || numbered(seen, &[]))
    })
    .await;
    for target in ["/a", "/b"] {
        assert_eq!(fleet.get_as(0, A, target).await.status, 200);
        assert_eq!(fleet.get_as(0, B, target).await.status, 200);
    }
    let notes = async {
        while redis
            .ask("KEYS iris:verdict:*")
            .await
            .unwrap()
            .matches("verdict:")
            .count()
            < 4
        {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(crate::support::PATIENCE, notes)
        .await
        .unwrap();
    keys.revoke(A);
    fleet.advance(21);
    // Refused at one URL: the other's good verdict, here and in Redis, counts no more.
    assert_eq!(fleet.get_as(0, A, "/a").await.status, 401);
    assert_eq!(fleet.get_as(0, A, "/b").await.status, 401);
    fleet.advance(11);
    for target in ["/a", "/b"] {
        assert_eq!(fleet.get_as(0, A, target).await.status, 401, "{target}");
        assert_eq!(fleet.get_as(0, B, target).await.status, 200, "{target}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn revoked_keys_that_go_on_asking_are_no_outage() {
    let keys = Keys::of(&[A, B, C]);
    let fixture = guarded(&verified(STALE), &keys).await;
    for key in [A, B, C] {
        fixture.get_as(key, "/a").await;
    }
    keys.revoke(A);
    fixture.advance(21);
    assert_eq!(fixture.get_as(A, "/a").await.status, 401);
    keys.revoke(B);
    fixture.advance(21);
    assert_eq!(fixture.get_as(B, "/a").await.status, 401);
    for _ in 0..5 {
        fixture.advance(11);
        for key in [A, B, BAD] {
            let found = fixture.get_as(key, "/a").await;
            assert_eq!(found.status, 401, "{key}: {}", found.text());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_was_refused_last_has_no_grace_when_its_source_fails() {
    let keys = Keys::of(&[A, B]);
    let mut fixture = guarded(&verified(STALE), &keys).await;
    fixture.get_as(A, "/a").await;
    fixture.get_as(B, "/a").await;
    keys.revoke(A);
    fixture.advance(21);
    assert_eq!(fixture.get_as(A, "/a").await.status, 401);
    fixture.advance(11);
    fixture.origin.stop().await;
    assert_eq!(fixture.get_as(A, "/a").await.status, 503);
    assert_eq!(fixture.get_as(B, "/a").await.cache(), "HIT-STALE");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_revoked_key_sends_does_not_make_the_probe_say_outage() {
    let probe = "sk_live_pppppppppppppppppppppppp";
    let keys = Keys::of(&[A, B, probe]);
    let known = keys.clone();
    let origin = Origin::start(move |seen| {
        known.check(seen, || match seen.header("if-match") {
            Some(_) => reply(412, "", &[]),
            None if seen.method == "HEAD" => reply(405, "", &[]),
            None => numbered(seen, &[]),
        })
    });
    let config = verified_by(&format!("probe_key = \"{probe}\""), STALE);
    let fixture = Fixture::in_front_of(origin.await, &config);
    fixture.get_as(A, "/a").await;
    keys.revoke(A);
    fixture.advance(21);
    let fields = [("if-match", "\"x\"")];
    assert_eq!(fixture.send_as(A, "GET", "/a", &fields).await.status, 401);
    assert_eq!(fixture.get_as(A, "/a").await.status, 401);
    assert_eq!(fixture.get_as(BAD, "/b").await.status, 401);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_revoked_by_hand_while_it_is_asked_about_is_refused() {
    let (keys, gate) = (Keys::of(&[A, B]), Gate::new());
    let (known, held) = (keys.clone(), gate.clone());
    let verifier = Origin::start(move |seen| {
        let answer = known.check(seen, || reply(204, "", &[]));
        match seen.number {
            1 => answer,
            _ => after(&held, answer),
        }
    })
    .await;
    let auth = format!("source = \"{}/verify\"", verifier.url());
    let origin = Origin::start(|seen| numbered(seen, &[])).await;
    let fixture = Arc::new(Fixture::in_front_of(origin, &verified_by(&auth, "")));
    fixture.get_as(B, "/a").await;
    let asking = {
        let fixture = fixture.clone();
        tokio::spawn(async move { fixture.get_as(A, "/a").await.status })
    };
    verifier.asked(2).await;
    fixture.order("/revoke", &json!({"key": A})).await;
    gate.open();
    assert_eq!(asking.await.unwrap(), 401);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_is_refused_in_an_outage_fails_nobody_who_waits() {
    let (keys, gate) = (Keys::of(&[A, B, C]), Gate::new());
    let (known, held) = (keys.clone(), gate.clone());
    let origin = Origin::start(move |seen| {
        let answer = known.check(seen, || numbered(seen, &[]));
        if seen.number > 2 && seen.header("authorization") == Some(&format!("Bearer {A}")) {
            return after(&held, reply(401, "{}", &[]));
        }
        answer
    });
    let config = verified_by("lone_key = \"grace\"", "");
    let fixture = Arc::new(Fixture::in_front_of(origin.await, &config));
    for key in [A, B] {
        fixture.get_as(key, "/b").await;
    }
    fixture.order("/purge", &json!({"all": true})).await;
    // The acceptances above are out of the window.
    fixture.advance(11);
    let ask = |key: &'static str| {
        let fixture = fixture.clone();
        tokio::spawn(async move { fixture.get_as(key, "/b").await.status })
    };
    let leader = ask(A);
    fixture.origin.asked(3).await;
    let waiter = ask(B);
    fixture.metric_reaches("server_connections", 2.0).await;
    gate.open();
    assert_eq!(leader.await.unwrap(), 503);
    let status = waiter.await.unwrap();
    assert!(matches!(status, 200 | 503), "{status}");
    assert_eq!(fixture.get_as(B, "/b").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_is_never_stored_and_a_failure_proves_nothing() {
    // A table says who is good, and the origin's own 403 would be fresh for a while.
    let origin = Origin::start(|seen| match &*seen.target {
        "/forbidden" => reply(403, "no", &[("cache-control", "max-age=60")]),
        _ => numbered(seen, &[]),
    });
    let keys = Keys::of(&[A, B]);
    let known = keys.clone();
    let verifier = Origin::start(move |seen| known.check(seen, || reply(204, "", &[]))).await;
    let auth = format!("source = \"{}/\"", verifier.url());
    let fixture = Fixture::in_front_of(origin.await, &verified_by(&auth, ""));
    for key in [A, B] {
        let found = fixture.get_as(key, "/forbidden").await;
        assert_eq!((found.status, found.cache()), (403, "MISS"));
    }
    // A 200 that means failure.
    let origin = Origin::start(|seen| {
        let is_bad = seen.header("authorization") == Some(&format!("Bearer {BAD}"));
        let count = u8::from(!is_bad);
        let json = [("content-type", "application/json")];
        reply(200, format!("{{\"count\": {count}}}"), &json)
    });
    let keys = "error_when = { pointer = \"/count\", equals = 0 }";
    let fixture = Fixture::in_front_of(origin.await, &verified(keys));
    fixture.get_as(A, "/a").await;
    for _ in 0..2 {
        assert_eq!(fixture.get_as(BAD, "/a").await.cache(), "MISS");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_are_not_slipped_by_a_second_key_another_route_or_another_spelling() {
    let limit = |by: &str, path: &str| {
        format!("[[rate_limit]]\nby = \"{by}\"\nrequests = 2\nwindow = \"60s\"\n{path}\n")
    };
    let config = limit("key", "") + &route("ttl = \"1h\"\nshare = \"per-key\"");
    let fixture = Fixture::start(&config, |seen| numbered(seen, &[])).await;
    let doubled = fixture
        .send_as(A, "GET", "/a", &[("x-api-key", "other")])
        .await;
    assert_eq!(doubled.status, 401);
    for expected in [200, 200, 429] {
        let fields = [("authorization", "Basic dTpw")];
        assert_eq!(fixture.get_with("/a", &fields).await.status, expected);
    }
    // One path, two routes; and a host in capitals.
    let config = limit("address", "path = \"/e\"")
        + "[[route]]\npath = \"/e\"\nhost = \"api.example\"\nttl = \"1h\"\n"
        + "[[route]]\npath = \"/e\"\nhost = \"api.example\"\nmethods = [\"POST\"]\n";
    let fixture = Fixture::start(&config, |seen| numbered(seen, &[])).await;
    assert_eq!(fixture.get("/e").await.status, 200);
    let empty = [("content-length", "0")];
    let posted = fixture.connect().await.ask("POST", "/e", &empty).await;
    assert_eq!(posted.status, 200);
    let host = [("host", "API.example")];
    assert_eq!(fixture.get_with("/e", &host).await.status, 429);
    let other = fixture.get("/other").await;
    assert_eq!(other.header("ratelimit"), None);
}

#[tokio::test]
async fn the_last_word_on_a_key_counts_however_the_log_comes_by_it() {
    let mut redis = RedisServer::start(&[]).await;
    let url = redis.url();
    let keys = Keys::of(&[A]);
    let known = keys.clone();
    let config = format!("[cache.redis]\nbreaker_open = \"100ms\"\n{}", verified(""));
    let mut fleet = Fleet::start(&[&url, &url], &config, move |seen| {
        known.check(seen, || numbered(seen, &[]))
    })
    .await;
    assert_eq!(fleet.get_as(0, A, "/a").await.status, 200);
    redis.kill();
    for restore in [false, true, false] {
        let order = json!({"key": A, "restore": restore}).to_string();
        assert_eq!(fleet.order(0, "/revoke", &order).await.status, 200);
    }
    redis.launch().await;
    for at in [0, 1] {
        fleet
            .metric_is(at, "cache_l2_heard", |heard| heard == 1.0)
            .await;
    }
    fleet
        .metric_is(0, "cache_purges_pending", |pending| pending == 0.0)
        .await;
    let later = fleet.join(&url).await;
    let refused = async {
        for at in [0, 1, later] {
            while fleet.get_as(at, A, "/a").await.status != 401 {
                tokio::task::yield_now().await;
            }
        }
    };
    tokio::time::timeout(crate::support::PATIENCE, refused)
        .await
        .unwrap();
}

#[tokio::test]
async fn a_revocation_outlives_what_else_the_log_forgets_and_the_log_itself() {
    let redis = RedisServer::start(&[]).await;
    let url = redis.url();
    let keys = Keys::of(&[A]);
    let known = keys.clone();
    let mut fleet = Fleet::start(&[&url], &verified(""), move |seen| {
        known.check(seen, || numbered(seen, &[]))
    })
    .await;
    fleet
        .order(0, "/revoke", &json!({"key": A}).to_string())
        .await;
    // As if it had been trimmed: the stream has no word of it any more.
    redis.ask("XDEL iris:{purges}log 1-0").await;
    fleet.purge(0, r#"{"group": "later"}"#).await;
    let later = fleet.join(&url).await;
    assert_eq!(fleet.get_as(later, A, "/a").await.status, 401);
    // Everything is lost: those who know tell the new log.
    redis.ask("FLUSHALL").await;
    let told = async {
        while redis.ask("HLEN iris:{purges}revoked").await.unwrap().trim() != ":1" {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(crate::support::PATIENCE, told)
        .await
        .unwrap();
    let latest = fleet.join(&url).await;
    assert_eq!(fleet.get_as(latest, A, "/a").await.status, 401);
}
