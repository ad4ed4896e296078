//! Whose answers are whose: keys whose own answers agreed, those that come later, and those that come
//! when all of it has ended.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};
use tokio::time::timeout;

use crate::support::fleet::Fleet;
use crate::support::keys::{Keys, is_shared};
use crate::support::redis::RedisServer;
use crate::support::traps::{ALPHA, BETA, Traps, agreement};
use crate::support::{Fixture, Origin, PATIENCE, ok, reply, route};

const ROUTE: &str = "share = \"verified\"\nforce_ttl = \"60s\"\n";
const CONTROLS: &str = "auth_controls_total{source=\"origin\",outcome=";

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_comes_later_shares_nothing_before_its_own_answer_agreed() {
    for others in [
        &ALPHA[..],
        &["sk_live_many000000000001", "sk_live_many000000000002"],
    ] {
        let traps = Arc::new(Traps::default());
        let fixture = Fixture::in_front_of(traps.start().await, &route(ROUTE));
        // Two keys of one project agree.
        for key in others {
            fixture.get_as(key, "/v/evaluate").await;
        }
        fixture.shared("/v/evaluate").await;
        for round in 0..4 {
            for key in [BETA[0], others[0], BETA[1], others[1], BETA[0]] {
                let expected = if BETA.contains(&key) { "beta" } else { "alpha" };
                let found = fixture.get_as(key, "/v/evaluate").await;
                assert_eq!(found.json()["project"], expected, "round {round}");
            }
            if round == 0 {
                fixture
                    .until("/v/evaluate", |told| agreement(told).contains("differ"))
                    .await;
            }
            fixture.advance(61);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_groups_that_agree_among_themselves_never_share_with_each_other() {
    let redis = RedisServer::start(&[]).await;
    let url = redis.url();
    let traps = Arc::new(Traps::default());
    // Answers by project, on two instances: one of each first, then a second of each.
    let script = {
        let traps = Arc::clone(&traps);
        move |seen: &crate::support::Seen| traps.answer(seen)
    };
    let fleet = Fleet::start(&[&url, &url], &route(ROUTE), script).await;
    let of = |key: &str| if BETA.contains(&key) { "beta" } else { "alpha" };
    let check = async |at: usize, key: &str| {
        let found = fleet.get_as(at, key, "/v/evaluate").await;
        assert_eq!(found.json()["project"], of(key), "{at} {key}");
    };
    check(1, BETA[0]).await;
    for key in ALPHA {
        check(0, key).await;
    }
    let in_effect = async |at: usize| {
        let told = fleet
            .admin(at, "/explain?url=http://api.example/v/evaluate")
            .await;
        told.json()["share"]["in_effect"].clone()
    };
    let proved = async { while in_effect(0).await != "verified" {} };
    timeout(PATIENCE, proved).await.expect("it is proved");
    for round in 0..6 {
        for (at, key) in [
            (1, BETA[1]),
            (1, ALPHA[0]),
            (0, ALPHA[1]),
            (0, BETA[0]),
            (1, BETA[0]),
        ] {
            check(at, key).await;
        }
        fleet.advance(if round == 3 { 3700 } else { 61 });
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_that_has_ended_leaves_nothing_to_the_next_one() {
    let traps = Arc::new(Traps::default());
    let rules = format!(
        "[auth]\ngood_ttl = \"2h\"\n{}",
        route(&ROUTE.replace("60s", "3h"))
    );
    let fixture = Fixture::in_front_of(traps.start().await, &rules);
    let check = async |key: &str| {
        let expected = if BETA.contains(&key) { "beta" } else { "alpha" };
        let found = fixture.get_as(key, "/v/evaluate").await;
        assert_eq!(found.json()["project"], expected, "{key}");
    };
    for key in ALPHA {
        check(key).await;
    }
    fixture.shared("/v/evaluate").await;
    // An hour later nothing is agreed; then two others agree, and share what is theirs.
    fixture.advance(3601);
    for _ in 0..3 {
        for key in [BETA[0], BETA[1], ALPHA[0], ALPHA[1]] {
            check(key).await;
        }
        fixture.advance(700);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_member_asks_for_the_first_time_is_compared_and_its_errors_are_its_own() {
    let errs = Arc::new(AtomicBool::new(false));
    let fails = Arc::clone(&errs);
    let origin = Origin::start(move |seen| {
        let key = seen.header("authorization").unwrap_or_default();
        let is_alpha = ALPHA.iter().any(|known| key.ends_with(known));
        if !is_alpha && !BETA.iter().any(|known| key.ends_with(known)) {
            return reply(401, "{}", &[]);
        }
        let json = [
            ("content-type", "application/json"),
            ("cache-control", "max-age=60"),
        ];
        if fails.load(Ordering::SeqCst) && !is_alpha {
            return reply(404, "{\"gone\":1}", &json);
        }
        // The same names in the query, and values that one may see and the other not.
        match (seen.target.as_str(), is_alpha) {
            ("/runs?project=alpha", true) => ok("[\"alpha-secret\"]", &json),
            ("/runs?project=alpha", false) => ok("[]", &json),
            _ => ok("[\"for all\"]", &json),
        }
    })
    .await;
    let fixture = Fixture::in_front_of(origin, &route("share = \"verified\"\nerror_ttl = \"60s\""));
    for key in [ALPHA[0], BETA[0]] {
        fixture.get_as(key, "/runs?project=public").await;
    }
    fixture.shared("/runs?project=public").await;
    // What fails for one member is its own.
    fixture.advance(61);
    errs.store(true, Ordering::SeqCst);
    assert_eq!(
        fixture.get_as(BETA[0], "/runs?project=public").await.status,
        404
    );
    assert_eq!(
        fixture
            .get_as(ALPHA[0], "/runs?project=public")
            .await
            .status,
        200
    );
    errs.store(false, Ordering::SeqCst);
    for _ in 0..3 {
        for (key, expected) in [
            (BETA[0], "[]"),
            (ALPHA[0], "[\"alpha-secret\"]"),
            (BETA[0], "[]"),
            (ALPHA[0], "[\"alpha-secret\"]"),
        ] {
            let found = fixture.get_as(key, "/runs?project=alpha").await;
            assert_eq!(found.text(), expected);
        }
        fixture.advance(61);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_in_which_nothing_is_prove_nothing_and_new_members_of_them_are_compared() {
    let full = Arc::new(AtomicBool::new(false));
    let fills = Arc::clone(&full);
    let origin = Origin::start(move |seen| {
        let key = seen.header("authorization").unwrap_or_default();
        let is_alpha = ALPHA.iter().any(|known| key.ends_with(known));
        if !is_alpha && !BETA.iter().any(|known| key.ends_with(known)) {
            return reply(401, "{}", &[]);
        }
        let secret = if is_alpha { "[\"secret\"]" } else { "[]" };
        let list = if fills.load(Ordering::SeqCst) {
            secret
        } else {
            "[]"
        };
        let body = match seen.target.as_str() {
            "/named" => format!("{{\"name\":\"list\",\"items\":{list}}}"),
            _ => format!("{{\"success\":true,\"items\":{list},\"count\":0}}"),
        };
        ok(body, &[("content-type", "application/json")])
    })
    .await;
    let fixture = Fixture::in_front_of(origin, &route(ROUTE));
    for path in ["/empty", "/named"] {
        for key in [ALPHA[0], BETA[0], ALPHA[1], BETA[1]] {
            fixture.get_as(key, path).await;
        }
    }
    fixture.shared("/named").await;
    assert!(!is_shared(&fixture.explained("/empty").await));
    // What was empty when it agreed is not any more: that is compared at once.
    full.store(true, Ordering::SeqCst);
    fixture.advance(61);
    for key in [ALPHA[0], BETA[0]] {
        fixture.get_as(key, "/named").await;
        fixture.advance(61);
    }
    fixture
        .until("/named", |told| told["share"]["demoted"].is_string())
        .await;
    for _ in 0..2 {
        assert_eq!(
            fixture.get_as(BETA[0], "/named").await.json()["items"],
            json!([])
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_known_by_answers_that_are_not_stored() {
    let keys = Keys::of(&[ALPHA[0]]);
    let known = keys.clone();
    let origin =
        Origin::start(move |seen| known.check(seen, || ok("x", &[("cache-control", "no-store")])))
            .await;
    let rules = format!(
        "[auth]\nunknown_per_second = 5\n{}",
        route("share = \"verified\"\nttl = \"60s\"")
    );
    let fixture = Fixture::in_front_of(origin, &rules);
    assert_eq!(fixture.get_as(ALPHA[0], "/first").await.status, 200);
    fixture
        .metric_reaches(&format!("{CONTROLS}\"held\"}}"), 1.0)
        .await;
    let known = |told: &Value| told["key"] == "was good: asked about again";
    fixture
        .until(
            &format!("/x&header=authorization:Bearer+{}", ALPHA[0]),
            known,
        )
        .await;
    for at in 0..50 {
        assert_eq!(
            fixture.get_as(ALPHA[0], &format!("/{at}")).await.status,
            200
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_that_take_the_place_of_others_share_again() {
    let keys = Keys::of(&ALPHA);
    let fixture = {
        let known = keys.clone();
        let origin = Origin::start(move |seen| {
            known.check(seen, || {
                let body = format!("{{\"count\":{},\"name\":\"x\"}}", seen.number);
                ok(body, &[("content-type", "application/json")])
            })
        });
        Fixture::in_front_of(origin.await, &route(ROUTE))
    };
    for key in ALPHA {
        fixture.get_as(key, "/a").await;
    }
    fixture.shared("/a").await;
    // Rotated: the old ones are gone, and what they fetched has changed since.
    for (old, new) in ALPHA.iter().zip(BETA) {
        keys.add(new);
        keys.revoke(old);
        fixture.order("/revoke", &json!({"key": old})).await;
    }
    let shared = async {
        loop {
            for key in BETA {
                fixture.get_as(key, "/a").await;
                fixture.advance(61);
            }
            let target = format!("/a&header=authorization:Bearer+{}", BETA[0]);
            if is_shared(&fixture.explained(&target).await) {
                return;
            }
        }
    };
    timeout(PATIENCE, shared).await.expect("they share");
}
