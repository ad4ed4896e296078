//! Where verdicts come from: a service, the key table, the fleet; and routes whose answers turn out
//! to differ by key.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::support::fleet::Fleet;
use crate::support::golden;
use crate::support::keys::{Keys, guarded, verified, verified_by};
use crate::support::process::{binary, file};
use crate::support::redis::RedisServer;
use crate::support::{Fixture, Gate, Origin, after, numbered, reply, route};
use serde_json::json;

const A: &str = "sk_live_aaaaaaaaaaaaaaaaaaaaaaaa";
const B: &str = "sk_live_bbbbbbbbbbbbbbbbbbbbbbbb";
const BAD: &str = "sk_live_xxxxxxxxxxxxxxxxxxxxxxxx";

/// A service that verifies keys by their field, and nothing of the API.
async fn service(keys: &Keys, gate: Option<Gate>) -> Origin {
    let known = keys.clone();
    Origin::start(move |seen| {
        assert!(
            seen.target == "/verify?for=iris" && seen.method == "GET",
            "{seen:?}"
        );
        let answer = known.check(seen, || reply(204, "", &[]));
        match &gate {
            Some(gate) => after(gate, answer),
            None => answer,
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_is_asked_once_for_each_key_and_the_origin_only_for_what_is_not_stored() {
    let keys = Keys::of(&[A, B]);
    let mut verifier = service(&keys, None).await;
    let auth = format!("source = \"{}/verify?for=iris\"", verifier.url());
    let origin = Origin::start(|seen| numbered(seen, &[])).await;
    let fixture = Fixture::in_front_of(origin, &verified_by(&auth, "stale_if_error = \"1h\""));
    for (key, cache) in [(A, "MISS"), (A, "HIT"), (B, "HIT"), (B, "HIT")] {
        assert_eq!(fixture.get_as(key, "/a").await.cache(), cache, "{key}");
    }
    for _ in 0..3 {
        assert_eq!(fixture.get_as(BAD, "/a").await.status, 401);
    }
    assert_eq!((fixture.origin.count(), verifier.count()), (1, 3));
    // Neither good nor bad: unknown keys get 503, known ones go on until their verdicts end.
    keys.fail(true);
    let unknown = fixture.get_as("sk_live_unknown", "/a").await;
    assert_eq!(unknown.status, 503, "{}", unknown.text());
    assert_eq!(fixture.get_as(A, "/a").await.status, 200);
    fixture.advance(301);
    assert_eq!(fixture.get_as(A, "/a").await.status, 503);
    verifier.stop().await;
    assert_eq!(fixture.get_as(B, "/a").await.status, 503);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_question_is_asked_once_however_many_wait_for_it() {
    let (keys, gate) = (Keys::of(&[A]), Gate::new());
    let verifier = service(&keys, Some(gate.clone())).await;
    let auth = format!("source = \"{}/verify?for=iris\"", verifier.url());
    let origin = Origin::start(|seen| numbered(seen, &[])).await;
    let fixture = Arc::new(Fixture::in_front_of(origin, &verified_by(&auth, "")));
    let asking: Vec<_> = (0..30)
        .map(|number| {
            let fixture = fixture.clone();
            let key = if number % 2 == 0 { A } else { BAD };
            tokio::spawn(async move { (key, fixture.get_as(key, "/a").await.status) })
        })
        .collect();
    verifier.asked(2).await;
    fixture
        .metric_reaches("cache_requests_total{cache=\"auth\",result=\"miss\"}", 30.0)
        .await;
    gate.open();
    for asked in asking {
        let (key, status) = asked.await.unwrap();
        assert_eq!(status, if key == A { 200 } else { 401 });
    }
    assert_eq!((verifier.count(), fixture.origin.count()), (2, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_key_table_says_who_is_good() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite:{}/keys.db", folder.path().display());
    let database = golden::open(&url).await;
    let now = golden::clock().now();
    let good = database.create_key("p", "P", None, now).await.unwrap();
    let revoked = database.create_key("q", "Q", None, now).await.unwrap();
    database.revoke_key(&revoked, now).await.unwrap();
    let origin = Origin::start(|seen| numbered(seen, &[])).await;
    let config = format!(
        "[origin]\ndatabase = \"{url}\"\n{}",
        verified_by("source = \"table\"\nsecret = \"pepper\"", "")
    );
    let fixture = Fixture::in_front_of(origin, &config);
    for (key, expected) in [(&*good, 200), (&revoked, 401), (BAD, 401)] {
        assert_eq!(fixture.get_as(key, "/a").await.status, expected);
    }
    assert_eq!(fixture.origin.count(), 1);
    // The table has changed; what is known of the key holds until it ends.
    database.revoke_key(&good, now).await.unwrap();
    assert_eq!(fixture.get_as(&good, "/a").await.cache(), "HIT");
    fixture.advance(301);
    assert_eq!(fixture.get_as(&good, "/a").await.status, 401);
}

#[tokio::test]
async fn what_one_instance_learns_of_a_key_the_others_know_and_so_a_revocation() {
    let redis = RedisServer::start(&[]).await;
    let url = redis.url();
    let keys = Keys::of(&[A, B]);
    let known = keys.clone();
    let fleet = Fleet::start(&[&url, &url], &verified(""), move |seen| {
        known.check(seen, || numbered(seen, &[]))
    })
    .await;
    assert_eq!(fleet.get_as(0, A, "/a").await.status, 200);
    assert_eq!(fleet.get_as(0, BAD, "/a").await.status, 401);
    fleet.written(0, 1.0).await;
    let asked = fleet.origin.count();
    // The other instance: by the fleet's verdict, and the fleet's response.
    let heard = async |name: &str| {
        while redis
            .ask(&format!("KEYS iris:{name}*"))
            .await
            .unwrap()
            .matches("iris:")
            .count()
            < 2
        {
            tokio::task::yield_now().await;
        }
    };
    heard("verdict:").await;
    let found = fleet.get_as(1, A, "/a").await;
    assert_eq!(
        (found.status, found.cache()),
        (200, "HIT"),
        "{}",
        found.cache_status()
    );
    assert_eq!(fleet.get_as(1, BAD, "/a").await.status, 401);
    assert_eq!(fleet.origin.count(), asked);
    // Nothing of a key is there but its digest.
    let dump = redis.ask("KEYS *").await.unwrap();
    assert!(!dump.contains("sk_live"), "{dump}");
    let answer = fleet
        .order(1, "/revoke", &json!({"key": A}).to_string())
        .await;
    assert_eq!(answer.json()["state"], "done", "{}", answer.text());
    assert_eq!(answer.json()["instances"], 2);
    for at in [0, 1] {
        assert_eq!(fleet.get_as(at, A, "/a").await.status, 401, "{at}");
    }
    // An instance that starts later knows it too.
    let mut fleet = fleet;
    let later = fleet.join(&url).await;
    assert_eq!(fleet.get_as(later, A, "/a").await.status, 401);
    fleet
        .order(
            0,
            "/revoke",
            &json!({"key": A, "restore": true}).to_string(),
        )
        .await;
    for at in [0, 1, later] {
        // The old verdict in Redis does not count: the origin is asked, once for all.
        assert_eq!(fleet.get_as(at, A, "/a").await.status, 200, "{at}");
    }
}

fn by_key(seen: &crate::support::Seen) -> crate::support::Reply {
    let project = seen.header("authorization").unwrap_or_default();
    // What nobody has named differs by time too.
    let body = json!({"project": project, "timestamp": seen.number, "lastSeen": seen.number});
    reply(
        200,
        body.to_string(),
        &[("content-type", "application/json")],
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_route_whose_answers_differ_by_key_is_shared_no_more() {
    for (on_difference, demoted) in [("demote", true), ("warn", false), ("off", false)] {
        let config = format!(
            "[auth]\ncontrol = \"off\"\ncompare_every = 1\non_difference = \"{on_difference}\"\n{}",
            route("share = \"verified\"\nforce_ttl = \"60s\"")
        );
        let fixture = Fixture::start(&config, by_key).await;
        fixture.get_as(A, "/a").await;
        fixture.get_as(B, "/a").await;
        if on_difference != "off" {
            let differs = "auth_comparisons_total{source=\"origin\",outcome=\"differs\"}";
            fixture.metric_reaches(differs, 1.0).await;
        }
        let told = fixture.admin("/explain?url=/a").await.json();
        let in_effect = if demoted { "per-key" } else { "verified" };
        assert_eq!(told["share"]["in_effect"], in_effect, "{told}");
        assert_eq!(told["share"]["configured"], "verified");
        assert_eq!(told["share"]["demoted"].is_string(), demoted, "{told}");
        if demoted {
            // Whoever checks the configuration while it runs is told.
            let folder = tempfile::tempdir().unwrap();
            let admin = fixture.sidecar().admin_address;
            let text = format!(
                "[admin]\naddress = \"{admin}\"\n{}",
                route("share = \"verified\"")
            );
            let mut checking = binary();
            checking.args(["check", &file(folder.path(), &text)]);
            let checked = tokio::task::spawn_blocking(move || checking.output().unwrap());
            let checked = checked.await.unwrap();
            let error = String::from_utf8(checked.stderr).unwrap();
            assert!(checked.status.success());
            assert!(error.contains("differ by key, and demoted it"), "{error}");
            let demotions = "auth_demotions_total{path=\"/{*rest}\"}";
            assert_eq!(fixture.metric(demotions).await, 1.0);
            // Nobody gets another one's.
            for key in [A, B] {
                let found = fixture.get_as(key, "/a").await;
                assert_eq!(found.cache(), "HIT");
                assert_eq!(found.json()["project"], format!("Bearer {key}"));
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_that_differ_by_time_or_changed_meanwhile_are_shared() {
    // Times and counts, data that changes once, and answers that are never the same.
    for kind in 0..3 {
        let config = format!(
            "[auth]\ncontrol = \"off\"\n{}",
            route("share = \"verified\"\nforce_ttl = \"60s\"")
        );
        let fixture = Fixture::start(&config, move |seen| {
            let value = match kind {
                0 => json!(1),
                1 => json!(seen.number / 4),
                _ => json!(format!("word {}", seen.number)),
            };
            let body =
                json!({"value": value, "deep": [{"timestamp": seen.number, "seen": seen.number}]});
            reply(
                200,
                body.to_string(),
                &[("content-type", "application/json")],
            )
        })
        .await;
        fixture.get_as(A, "/a").await;
        fixture.get_as(B, "/a").await;
        let outcome = if kind == 2 { "unclear" } else { "same" };
        let sample = format!("auth_comparisons_total{{source=\"origin\",outcome=\"{outcome}\"}}");
        fixture.metric_reaches(&sample, 1.0).await;
        let told = fixture
            .admin("/explain?url=http://api.example/a")
            .await
            .json();
        let expected = if kind == 2 { "per-key" } else { "verified" };
        assert_eq!(told["share"]["in_effect"], expected, "{kind}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn explain_says_what_would_come_of_a_request_and_changes_nothing() {
    let keys = Keys::of(&[A]);
    let fixture = guarded(&verified(""), &keys).await;
    fixture.get_as(A, "/a").await;
    let asked = fixture.origin.count();
    // As clients name it: by default the host is part of the key.
    let host = "api.example";
    for (query, result, reason) in [
        (
            format!("url=/a&header=authorization:Bearer+{A}"),
            json!("HIT"),
            "fresh",
        ),
        (
            format!("url=/b&header=authorization:Bearer+{A}"),
            json!("MISS"),
            "key-unverified",
        ),
        (
            format!("url=/a&header=authorization:Bearer+{BAD}"),
            json!("MISS"),
            "key-unverified",
        ),
        ("url=/a".to_owned(), json!("BYPASS"), "credential"),
        (
            "url=/a&header=authorization:Basic+a".to_owned(),
            json!("BYPASS"),
            "key-refused",
        ),
        ("url=/a&method=POST".to_owned(), json!("BYPASS"), "no-route"),
    ] {
        let query = query.replace("url=/", &format!("url=http://{host}/"));
        let told = fixture.admin(&format!("/explain?{query}")).await.json();
        assert_eq!(
            (&told["result"], &told["reason"]),
            (&result, &json!(reason)),
            "{query}: {told}"
        );
    }
    let told = fixture
        .admin(&format!(
            "/explain?url=http://{host}/a&header=authorization:Bearer+{A}"
        ))
        .await
        .json();
    assert_eq!(told["key"], "good");
    assert_eq!(told["stored"]["status"], 200);
    assert_eq!(fixture.origin.count(), asked);
    for (query, says) in [
        ("", "no url"),
        ("url=/a&x=1", "expected"),
        ("url=/a&header=x", "expected"),
    ] {
        let told = fixture.admin(&format!("/explain?{query}")).await;
        assert_eq!(told.status, 400);
        assert!(told.text().contains(says), "{}", told.text());
    }
}

#[tokio::test]
async fn what_one_instance_finds_of_a_route_holds_for_the_fleet() {
    let redis = RedisServer::start(&[]).await;
    let url = redis.url();
    let config = format!(
        "[auth]\ncontrol = \"off\"\ncompare_every = 1\n{}",
        route("share = \"verified\"\nforce_ttl = \"60s\"")
    );
    // Answers are the same for all keys at first.
    let turns = Arc::new(AtomicBool::new(false));
    let has_turned = Arc::clone(&turns);
    let script = move |seen: &crate::support::Seen| match has_turned.load(Ordering::SeqCst) {
        true => by_key(seen),
        false => reply(200, "{\"a\":1}", &[("content-type", "application/json")]),
    };
    let mut fleet = Fleet::start(&[&url, &url], &config, script).await;
    let explain = "/explain?url=http://api.example/a";
    let proved = async {
        while fleet.admin(0, explain).await.json()["share"]["in_effect"] != "verified" {
            for key in [A, B] {
                fleet.get_as(0, key, "/a").await;
            }
        }
    };
    tokio::time::timeout(crate::support::PATIENCE, proved)
        .await
        .expect("it is proved");
    turns.store(true, Ordering::SeqCst);
    for at in [0, 1] {
        let demoted = async {
            loop {
                for key in [A, B].iter().filter(|_| at == 0) {
                    fleet.get_as(0, key, "/a").await;
                    fleet.purge(0, "{\"all\":true}").await;
                }
                let told = fleet.admin(at, explain).await.json();
                if told["share"]["demoted"].is_string() {
                    return told;
                }
            }
        };
        let told = tokio::time::timeout(crate::support::PATIENCE, demoted)
            .await
            .unwrap();
        assert_eq!(told["share"]["in_effect"], "per-key", "{told}");
    }
    let later = fleet.join(&url).await;
    let told = fleet.admin(later, explain).await.json();
    assert_eq!(told["share"]["in_effect"], "per-key", "{told}");
    assert!(told["share"]["demoted"].is_string(), "{told}");
}
