//! What must be proved before one key gets what another one has fetched: a control, and a second
//! key's own answer that agrees; unit by unit.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use iris_sidecar::config::Config;
use serde_json::json;
use tokio::time::timeout;

use crate::support::fleet::Fleet;
use crate::support::keys::{Keys, guarded, is_shared, verified_by};
use crate::support::redis::RedisServer;
use crate::support::traps::{ALPHA, BETA, STRANGER, Traps, agreement};
use crate::support::{Fixture, Origin, PATIENCE, numbered, ok, reply, route};

const ROUTE: &str = "share = \"verified\"\nforce_ttl = \"60s\"\n";
const CONTROLS: &str = "auth_controls_total{source=\"origin\",outcome=";

#[tokio::test(flavor = "multi_thread")]
async fn what_one_key_has_fetched_is_its_own_until_a_second_keys_own_answer_agreed() {
    let traps = Arc::new(Traps::default());
    let fixture = Fixture::in_front_of(traps.start().await, &route(ROUTE));
    let [first, second] = ALPHA;
    // Its own answers are stored for it from the beginning.
    for expected in ["MISS", "HIT"] {
        assert_eq!(fixture.get_as(first, "/v/same").await.cache(), expected);
    }
    assert!(!is_shared(&fixture.explained("/v/same").await));
    let own = fixture.get_as(second, "/v/same").await;
    assert_eq!(own.cache(), "MISS");
    let told = fixture.shared("/v/same").await;
    assert!(
        told["proof"]["control"]
            .as_str()
            .unwrap()
            .starts_with("held"),
        "{told}"
    );
    // Both proved their keys by what they asked themselves, and what came last is shared.
    for key in ALPHA {
        let found = fixture.get_as(key, "/v/same").await;
        assert_eq!((found.cache(), found.text()), ("HIT", own.text()));
    }
    // A third one's own request proves it, and a stranger gets nothing.
    assert_eq!(fixture.get_as(BETA[0], "/v/same").await.cache(), "MISS");
    assert_eq!(fixture.get_as(BETA[0], "/v/same").await.cache(), "HIT");
    assert_eq!(fixture.get_as(STRANGER, "/v/same").await.status, 401);
    // What a key may see can hang on a value: each URL is proved for itself; of all with the same
    // names in the query one control is taken.
    let before = traps.strange.load(Ordering::SeqCst);
    for target in ["/v/same?a=1&b=1", "/v/same?b=2&a=3", "/v/same?a=4&a=5&b=6"] {
        assert!(!is_shared(&fixture.explained(target).await), "{target}");
        for key in [first, second] {
            assert_eq!(fixture.get_as(key, target).await.cache(), "MISS");
        }
        fixture.shared(target).await;
    }
    assert_eq!(traps.strange.load(Ordering::SeqCst) - before, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn names_under_a_parameter_route_that_answer_by_key_are_kept_apart_and_said_to_be() {
    let traps = Arc::new(Traps::default());
    let rules = format!("[[route]]\npath = \"/v/{{name}}\"\n{ROUTE}");
    let fixture = Fixture::in_front_of(traps.start().await, &rules);
    let keys = [ALPHA[0], BETA[0], ALPHA[1], BETA[1]];
    for round in 0..4 {
        for path in ["/v/evaluate", "/v/decisions", "/v/same"] {
            for key in keys {
                let found = fixture.get_as(key, path).await;
                let expected = if ALPHA.contains(&key) {
                    "alpha"
                } else {
                    "beta"
                };
                let project = &found.json()["project"];
                let is_right = path == "/v/same" || *project == json!(expected);
                assert!(is_right, "round {round}, {path}: {}", found.text());
            }
        }
        match round {
            0 => {
                for path in ["/v/evaluate", "/v/decisions"] {
                    let told = fixture
                        .until(path, |told| agreement(told).contains("differ"))
                        .await;
                    assert!(told["share"]["demoted"].is_string(), "{told}");
                }
                fixture.shared("/v/same").await;
            }
            // Whatever is fetched anew.
            1 => fixture.advance(61),
            2 => drop(fixture.order("/purge", &json!({"all": true})).await),
            _ => {}
        }
    }
    let differs = "auth_comparisons_total{source=\"origin\",outcome=\"differs\"}";
    assert_eq!(fixture.metric(differs).await, 2.0);
    assert_eq!(
        fixture
            .metric("auth_demotions_total{path=\"/v/{name}\"}")
            .await,
        2.0
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_anybody_is_answered_proves_nothing() {
    let traps = Arc::new(Traps::default());
    let rules = format!(
        "[[route]]\npath = \"/{{*rest}}\"\n{ROUTE}forward_headers = [\"accept\"]\nlanguages = \
            [\"de\"]\n"
    );
    let fixture = Fixture::in_front_of(traps.start().await, &rules);
    let page = [("accept", "text/html")];
    for key in [STRANGER, ALPHA[0], ALPHA[1]] {
        // A path that is open, a login page for browsers, a default virtual host.
        for _ in 0..2 {
            assert_eq!(fixture.get_as(key, "/v/open").await.text(), "log in");
            assert_eq!(
                fixture.send_as(key, "GET", "/v/data", &page).await.text(),
                "log in"
            );
            let host = [("host", "other.example")];
            assert_eq!(
                fixture.send_as(key, "GET", "/v/data", &host).await.text(),
                "log in"
            );
        }
    }
    fixture
        .until("/v/open", |told| {
            told["proof"]["control"]
                .as_str()
                .unwrap()
                .starts_with("failed")
        })
        .await;
    for key in ALPHA {
        fixture.get_as(key, "/v/data").await;
    }
    fixture.shared("/v/data").await;
    for _ in 0..3 {
        let asked = fixture.send_as(STRANGER, "GET", "/v/data", &page).await;
        assert_eq!(asked.text(), "log in");
        fixture.get_as(STRANGER, "/v/open").await;
        let refused = fixture.get_as(STRANGER, "/v/data").await;
        assert_eq!(refused.status, 401, "{}", refused.text());
        for key in ALPHA {
            let found = fixture.get_as(key, "/v/data").await;
            assert_eq!(found.json()["path"], "/v/data", "{}", found.text());
        }
        fixture.advance(11);
    }
    let told = fixture.explained("/v/open").await;
    assert!(!is_shared(&told), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_fetch_answers_a_thousand_clients_with_good_keys_where_it_is_proved() {
    let traps = Arc::new(Traps::default());
    let fixture = Arc::new(Fixture::in_front_of(traps.start().await, &route(ROUTE)));
    let keys: Vec<String> = (0..50).map(|at| format!("sk_live_many{at:012}")).collect();
    for key in &keys[..2] {
        fixture.get_as(key, "/v/same").await;
    }
    fixture.shared("/v/same").await;
    for key in &keys {
        assert_eq!(fixture.get_as(key, "/v/same").await.status, 200);
        // Its own answer has made it one of those who share.
        let own = format!("/v/same&header=authorization:Bearer+{key}");
        fixture.shared(&own).await;
    }
    fixture.order("/purge", &json!({"all": true})).await;
    let before = fixture.origin.count();
    let asking: Vec<_> = (0..1000)
        .map(|at| {
            let (fixture, key) = (Arc::clone(&fixture), keys[at % 50].clone());
            tokio::spawn(async move { fixture.get_as(&key, "/v/same").await })
        })
        .collect();
    for answer in asking {
        assert_eq!(answer.await.unwrap().json()["path"], "/v/same");
    }
    assert_eq!(fixture.origin.count() - before, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_moves_by_itself_is_shared_and_what_is_never_clear_is_not() {
    let traps = Arc::new(Traps::default());
    let fixture = Fixture::in_front_of(traps.start().await, &route(ROUTE));
    for path in ["/v/moving", "/v/noise"] {
        for key in [ALPHA[0], BETA[0]] {
            assert_eq!(fixture.get_as(key, path).await.status, 200);
        }
    }
    fixture.shared("/v/moving").await;
    let told = fixture
        .until("/v/noise", |told| agreement(told).contains("could not"))
        .await;
    assert!(!is_shared(&told), "{told}");
    // A key's own answers are stored for it.
    assert_eq!(fixture.get_as(ALPHA[0], "/v/noise").await.cache(), "HIT");
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_that_come_to_differ_after_they_were_shared_end_that_for_the_route() {
    let traps = Arc::new(Traps::default());
    let rules = format!("[auth]\ncompare_every = 1\n{}", route(ROUTE));
    let fixture = Fixture::in_front_of(traps.start().await, &rules);
    let keys = [ALPHA[0], BETA[0]];
    for key in keys {
        fixture.get_as(key, "/v/same").await;
    }
    fixture.shared("/v/same").await;
    traps.turns.store(true, Ordering::SeqCst);
    let told = timeout(PATIENCE, async {
        loop {
            for key in keys {
                fixture.get_as(key, "/v/same").await;
                fixture.order("/purge", &json!({"all": true})).await;
            }
            let told = fixture.explained("/v/any").await;
            if told["share"]["demoted"].is_string() {
                return told;
            }
        }
    })
    .await
    .expect("it is demoted");
    assert_eq!(told["share"]["in_effect"], "per-key", "{told}");
    for key in keys {
        let expected = if key == keys[0] { "alpha" } else { "beta" };
        for _ in 0..2 {
            assert_eq!(
                fixture.get_as(key, "/v/same").await.json()["project"],
                expected
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_control_is_taken_once_in_its_time_and_says_when_the_origin_lets_everybody_in() {
    let traps = Arc::new(Traps::default());
    let fixture = Fixture::in_front_of(
        traps.start().await,
        &format!("[auth]\non_difference = \"off\"\n{}", route(ROUTE)),
    );
    let strange = || traps.strange.load(Ordering::SeqCst);
    for key in ALPHA {
        fixture.get_as(key, "/v/same").await;
    }
    fixture.shared("/v/same").await;
    assert_eq!(strange(), 2);
    for _ in 0..5 {
        fixture.order("/purge", &json!({"all": true})).await;
        for key in [ALPHA[0], BETA[0], BETA[1]] {
            fixture.get_as(key, "/v/same").await;
        }
        fixture.advance(600);
    }
    assert_eq!(strange(), 2);
    // An hour later it is taken again, behind an answer.
    fixture.advance(601);
    for key in ALPHA {
        fixture.get_as(key, "/v/same").await;
    }
    fixture
        .metric_reaches(&format!("{CONTROLS}\"held\"}}"), 2.0)
        .await;
    assert_eq!(strange(), 4);
    assert!(is_shared(&fixture.explained("/v/same").await));
    // No answer about it is none: what was proved holds to its end, and no longer.
    traps.is_failing.store(true, Ordering::SeqCst);
    fixture.advance(3601);
    fixture.get_as(ALPHA[0], "/v/same").await;
    traps.is_failing.store(false, Ordering::SeqCst);
    assert!(is_shared(&fixture.explained("/v/same").await));
    fixture.advance(3601);
    assert!(!is_shared(&fixture.explained("/v/same").await));
    for key in ALPHA {
        assert_eq!(fixture.get_as(key, "/v/same").await.cache(), "MISS");
    }
    fixture.shared("/v/same").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_control_and_comparison_the_operators_word_is_enough() {
    let keys = Keys::of(&[ALPHA[0], ALPHA[1]]);
    for (auth, is_enough) in [
        ("control = \"off\"\non_difference = \"off\"", true),
        ("control = \"off\"\non_difference = \"warn\"", true),
        ("control = \"off\"", false),
        ("on_difference = \"off\"", false),
        ("", false),
    ] {
        let rules = format!("[auth]\n{auth}\n{}", route(ROUTE));
        let fixture = guarded(&rules, &keys).await;
        assert_eq!(
            is_shared(&fixture.explained("/a").await),
            is_enough,
            "{auth}"
        );
        if auth.starts_with("on_difference") {
            // A control alone: one key's answer is enough.
            fixture.get_as(ALPHA[0], "/a").await;
            fixture.shared("/a").await;
            assert_eq!(fixture.get_as(ALPHA[0], "/a").await.cache(), "HIT");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_fleet_shares_what_is_proved_and_takes_one_control_for_all() {
    let redis = RedisServer::start(&[]).await;
    let url = redis.url();
    let keys = Keys::of(&[ALPHA[0], ALPHA[1], BETA[0]]);
    let known = keys.clone();
    let script = move |seen: &crate::support::Seen| {
        known.check(seen, || {
            ok("{\"a\":1}", &[("content-type", "application/json")])
        })
    };
    let mut fleet = Fleet::start(&[&url, &url], &route(ROUTE), script).await;
    let in_effect = async |fleet: &Fleet, at: usize| {
        let told = fleet
            .admin(at, "/explain?url=http://api.example/a")
            .await
            .json();
        told["share"]["in_effect"].as_str().unwrap().to_owned()
    };
    for key in [ALPHA[0], ALPHA[1]] {
        fleet.get_as(0, key, "/a").await;
    }
    let proved = async { while in_effect(&fleet, 0).await != "verified" {} };
    timeout(PATIENCE, proved).await.expect("it is proved");
    // The others hear of it with the first request that asks about its key; and what instance 0 has
    // stored, and its verdicts, are theirs too.
    let hears = async |fleet: &Fleet, at: usize, key: &str| {
        let heard = async {
            while in_effect(fleet, at).await != "verified" {
                fleet.get_as(at, key, "/a").await;
            }
        };
        // Beside all other tests a busy machine takes its time.
        timeout(3 * PATIENCE, heard).await.expect("it hears of it");
    };
    hears(&fleet, 1, ALPHA[0]).await;
    assert_eq!(fleet.get_as(1, ALPHA[0], "/a").await.cache(), "HIT");
    let later = fleet.join(&url).await;
    hears(&fleet, later, BETA[0]).await;
    let seen = fleet.origin.seen();
    let strange = seen.iter().filter(|seen| {
        let key = seen.header("authorization").unwrap_or_default();
        ![ALPHA[0], ALPHA[1], BETA[0]]
            .iter()
            .any(|good| key.ends_with(good))
    });
    assert_eq!(strange.count(), 2);
    let dump = redis.ask("KEYS *").await.unwrap();
    assert!(!dump.contains("sk_live"), "{dump}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_accepts_anybody_verifies_nothing() {
    for (accepts_all, expected) in [(true, 503), (false, 200)] {
        let keys = Keys::of(&[ALPHA[0]]);
        let verifier = Origin::start(move |seen| match accepts_all {
            true => reply(200, "", &[]),
            false => keys.check(seen, || reply(204, "", &[])),
        })
        .await;
        let origin = Origin::start(|seen| numbered(seen, &[])).await;
        let auth = format!("source = \"{}/me\"\ncontrol = \"1h\"", verifier.url());
        let rules = verified_by("", "verdict_scope = \"all\"").replace("control = \"off\"", &auth);
        let fixture = Fixture::in_front_of(origin, &rules);
        for _ in 0..3 {
            let found = fixture.get_as(ALPHA[0], "/a").await;
            assert_eq!(found.status, expected, "{}", found.text());
        }
        assert_eq!(
            fixture.get_as(STRANGER, "/a").await.status,
            if accepts_all { 503 } else { 401 }
        );
        // Of strangers the service was asked twice.
        let own = format!("Bearer {}", ALPHA[0]);
        let seen = verifier.seen();
        let strange = seen.iter().filter(|seen| {
            let key = seen.header("authorization").unwrap_or_default();
            key != own && key != format!("Bearer {STRANGER}")
        });
        assert!(strange.count() <= 2);
    }
}

#[test]
fn a_verdict_that_reaches_further_than_its_url_needs_somebody_else_to_ask() {
    for scope in ["route", "all"] {
        let rule = format!(
            "[[route]]\npath = \"/a\"\nshare = \"verified\"\nverdict_scope = \"{scope}\"\n"
        );
        let mistakes = Config::parse("t.toml", &rule, &|_| None).unwrap_err();
        let told = mistakes[0].to_string();
        assert!(
            told.contains("t.toml:4:") && told.contains("auth.source"),
            "{told}"
        );
        let auth = "[auth]\nsource = \"http://127.0.0.1:1/me\"\n";
        assert!(Config::parse("t.toml", &(auth.to_owned() + &rule), &|_| None).is_ok());
    }
    for (auth, is_right) in [
        ("\"off\"", true),
        ("\"1h\"", true),
        ("\"59m\"", false),
        ("\"on\"", false),
    ] {
        let text = format!("[auth]\ncontrol = {auth}\n");
        assert_eq!(
            Config::parse("t.toml", &text, &|_| None).is_ok(),
            is_right,
            "{auth}"
        );
    }
}
