//! Whose answers are whose: keys whose own answers agreed, those that come later, and those that
//! come when all of it has ended.

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
        let Some(is_alpha) = is_of_alpha(seen) else {
            return reply(401, "{}", &[]);
        };
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

/// Whether a request has a key of alpha, or one of beta; `None` where its key is neither's.
fn is_of_alpha(seen: &crate::support::Seen) -> Option<bool> {
    let key = seen.header("authorization").unwrap_or_default();
    let is_of = |keys: &[&str]| keys.iter().any(|known| key.ends_with(known));
    (is_of(&ALPHA) || is_of(&BETA)).then(|| is_of(&ALPHA))
}

/// An API that lets every key see what it may, and nothing else: alpha sees its own.
async fn filtering(
    see: impl Fn(&crate::support::Seen, bool) -> String + Send + Sync + 'static,
) -> Origin {
    Origin::start(move |seen| {
        let Some(is_alpha) = is_of_alpha(seen) else {
            return reply(401, "{}", &[]);
        };
        let fields = [
            ("content-type", "application/json"),
            ("vary", "accept-encoding"),
        ];
        ok(see(seen, is_alpha), &fields)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_joins_by_another_url_another_variant_or_an_empty_answer() {
    let origin = filtering(|seen, is_alpha| match seen.target.as_str() {
        "/runs?project=public" => "[\"for all\"]".to_owned(),
        "/runs?project=alpha" if is_alpha => "[\"alpha-secret\"]".to_owned(),
        _ => "[]".to_owned(),
    })
    .await;
    let fixture = Fixture::in_front_of(origin, &route(ROUTE));
    for key in [ALPHA[0], ALPHA[1], BETA[0], BETA[1]] {
        fixture.get_as(key, "/runs?project=public").await;
    }
    for key in ALPHA {
        fixture.get_as(key, "/runs?project=alpha").await;
    }
    fixture.shared("/runs?project=alpha").await;
    for round in 0..4 {
        for target in ["/runs?project=none", "/runs?project=alpha"] {
            for encoding in ["gzip", "identity", "br"] {
                for key in [BETA[0], BETA[1]] {
                    let field = [("accept-encoding", encoding)];
                    let found = fixture.send_as(key, "GET", target, &field).await;
                    assert_eq!(found.text(), "[]", "{round} {target} {encoding}");
                }
                let found = fixture.get_as(ALPHA[0], "/runs?project=alpha").await;
                assert_eq!(found.text(), "[\"alpha-secret\"]", "{round} {target}");
            }
        }
        match round {
            0 => drop(fixture.order("/purge", &json!({"all": true})).await),
            _ => fixture.advance(61),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_member_has_fetched_again_and_again_is_compared_too() {
    let full = Arc::new(AtomicBool::new(false));
    let fills = Arc::clone(&full);
    let origin = filtering(move |_, is_alpha| match fills.load(Ordering::SeqCst) {
        true if is_alpha => "{\"status\":\"ok\",\"data\":[\"secret\"]}".to_owned(),
        _ => "{\"status\":\"ok\",\"data\":[]}".to_owned(),
    })
    .await;
    let fixture = Fixture::in_front_of(origin, &route(ROUTE));
    for key in [ALPHA[0], BETA[0]] {
        fixture.get_as(key, "/a").await;
    }
    fixture.shared("/a").await;
    // The same key leads each time.
    full.store(true, Ordering::SeqCst);
    for _ in 0..3 {
        fixture.advance(61);
        fixture.get_as(ALPHA[0], "/a").await;
    }
    fixture
        .until("/a", |told| told["share"]["demoted"].is_string())
        .await;
    assert_eq!(
        fixture.get_as(BETA[0], "/a").await.json()["data"],
        json!([])
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_new_is_compared_with_all_that_are_known_and_not_with_ones_own_kind() {
    let full = Arc::new(AtomicBool::new(false));
    let fills = Arc::clone(&full);
    let origin = filtering(move |_, is_alpha| match fills.load(Ordering::SeqCst) {
        true if is_alpha => "{\"limit\":10,\"data\":[\"secret\"]}".to_owned(),
        _ => "{\"limit\":10,\"data\":[]}".to_owned(),
    })
    .await;
    let fixture = Fixture::in_front_of(origin, &route(ROUTE));
    for key in [BETA[0], ALPHA[0], ALPHA[1]] {
        fixture.get_as(key, "/a").await;
        fixture.get_as(key, "/a").await;
    }
    for key in [BETA[0], ALPHA[0], ALPHA[1]] {
        let own = format!("/a&header=authorization:Bearer+{key}");
        fixture.shared(&own).await;
    }
    full.store(true, Ordering::SeqCst);
    fixture.advance(61);
    for _ in 0..5 {
        for key in ALPHA {
            fixture.get_as(key, "/a").await;
        }
        let found = fixture.get_as(BETA[0], "/a").await;
        assert_eq!(found.json()["data"], json!([]));
        fixture.advance(61);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_of_different_times_are_no_evidence() {
    let turned = Arc::new(AtomicBool::new(false));
    let has_turned = Arc::clone(&turned);
    let origin = filtering(move |_, is_alpha| match has_turned.load(Ordering::SeqCst) {
        true if is_alpha => "{\"plan\":\"pro\"}".to_owned(),
        _ => "{\"plan\":\"trial\"}".to_owned(),
    })
    .await;
    let fixture = Fixture::in_front_of(origin, &route(ROUTE));
    fixture.get_as(ALPHA[0], "/a").await;
    fixture.advance(3);
    turned.store(true, Ordering::SeqCst);
    for _ in 0..4 {
        fixture.get_as(BETA[0], "/a").await;
        fixture.advance(61);
        for (key, plan) in [(ALPHA[0], "pro"), (BETA[0], "trial"), (ALPHA[1], "pro")] {
            let found = fixture.get_as(key, "/a").await;
            assert_eq!(found.json()["plan"], plan, "{key}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_difference_that_one_instance_finds_ends_sharing_on_all() {
    let redis = RedisServer::start(&[]).await;
    let url = redis.url();
    let differs = Arc::new(AtomicBool::new(false));
    let turned = Arc::clone(&differs);
    let script = move |seen: &crate::support::Seen| {
        let Some(is_alpha) = is_of_alpha(seen) else {
            return reply(401, "{}", &[]);
        };
        let name = match turned.load(Ordering::SeqCst) {
            true if is_alpha => "alpha",
            true => "beta",
            false => "all",
        };
        ok(
            format!("{{\"name\":\"{name}\"}}"),
            &[("content-type", "application/json")],
        )
    };
    let fleet = Fleet::start(&[&url, &url], &route(ROUTE), script).await;
    let shared = async |at: usize, key: &str| {
        let told = format!("/explain?url=http://api.example/a&header=authorization:Bearer+{key}");
        fleet.admin(at, &told).await.json()["share"]["in_effect"] == "verified"
    };
    let members = async {
        loop {
            for (at, key) in [(0, ALPHA[0]), (0, BETA[0]), (1, BETA[0]), (1, ALPHA[0])] {
                fleet.get_as(at, key, "/a").await;
            }
            if shared(0, ALPHA[0]).await && shared(1, ALPHA[0]).await && shared(1, BETA[0]).await {
                return;
            }
            // A key that was there before it could be compared has an answer of its own for a
            // while.
            fleet.advance(61);
        }
    };
    timeout(PATIENCE, members).await.expect("they share");
    differs.store(true, Ordering::SeqCst);
    fleet.advance(61);
    // A newcomer of the other kind on the first instance.
    let found = async {
        loop {
            fleet.get_as(0, ALPHA[0], "/a").await;
            fleet.get_as(0, BETA[1], "/a").await;
            fleet.advance(61);
            let told = fleet
                .admin(0, "/explain?url=http://api.example/a")
                .await
                .json();
            if told["share"]["demoted"].is_string() {
                return;
            }
        }
    };
    timeout(PATIENCE, found).await.expect("it is found");
    let ended = async { while shared(1, BETA[0]).await {} };
    timeout(PATIENCE, ended)
        .await
        .expect("the other one has heard");
    for key in [ALPHA[0], BETA[0], ALPHA[0], BETA[0]] {
        let expected = if BETA.contains(&key) { "beta" } else { "alpha" };
        assert_eq!(fleet.get_as(1, key, "/a").await.json()["name"], expected);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_comes_back_from_a_group_that_has_ended_opens_no_other() {
    let gate = crate::support::Gate::new();
    let (held, hangs) = (gate.clone(), Arc::new(AtomicBool::new(false)));
    let hanging = Arc::clone(&hangs);
    let traps = Arc::new(Traps::default());
    let origin = Origin::start(move |seen| {
        let answer = traps.answer(seen);
        let key = seen.header("authorization").unwrap_or_default();
        match hanging.load(Ordering::SeqCst) && key.ends_with(ALPHA[0]) {
            true => crate::support::after(&held, answer),
            false => answer,
        }
    })
    .await;
    let rules = format!(
        "[auth]\ngood_ttl = \"2s\"\ngrace = \"1s\"\n{}",
        route(ROUTE)
    );
    let fixture = Arc::new(Fixture::in_front_of(origin, &rules));
    let check = async |key: &str| {
        let expected = if BETA.contains(&key) { "beta" } else { "alpha" };
        let found = fixture.get_as(key, "/v/evaluate").await;
        assert_eq!(found.json()["project"], expected, "{key}");
    };
    for key in ALPHA {
        check(key).await;
    }
    fixture.shared("/v/evaluate").await;
    // Its fetch hangs while its group ends and another one begins.
    hangs.store(true, Ordering::SeqCst);
    fixture.advance(61);
    let before = fixture.origin.count();
    let hanging = {
        let fixture = Arc::clone(&fixture);
        tokio::spawn(async move { fixture.get_as(ALPHA[0], "/v/evaluate").await.json() })
    };
    fixture.origin.asked(before + 1).await;
    for _ in 0..3 {
        for key in BETA {
            check(key).await;
        }
        fixture.advance(61);
    }
    gate.open();
    assert_eq!(hanging.await.unwrap()["project"], "alpha");
    hangs.store(false, Ordering::SeqCst);
    for _ in 0..3 {
        for key in [
            "sk_live_many000000000009",
            BETA[0],
            ALPHA[1],
            BETA[1],
            ALPHA[0],
        ] {
            check(key).await;
        }
        fixture.advance(61);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_in_which_nothing_is_prove_nothing_and_new_members_of_them_are_compared() {
    let full = Arc::new(AtomicBool::new(false));
    let fills = Arc::clone(&full);
    let origin = filtering(move |seen, is_alpha| {
        let list = match fills.load(Ordering::SeqCst) && is_alpha {
            true => "[\"secret\"]",
            false => "[]",
        };
        match seen.target.as_str() {
            "/named" => format!("{{\"name\":\"list\",\"items\":{list}}}"),
            _ => format!("{{\"success\":true,\"items\":{list},\"count\":0}}"),
        }
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
async fn keys_that_a_service_verifies_share_what_moves_too() {
    let keys = Keys::of(&[ALPHA[0], ALPHA[1], BETA[0]]);
    let verifier = Origin::start(move |seen| keys.check(seen, || reply(204, "", &[]))).await;
    for scope in ["url", "route"] {
        let rules = format!(
            "[auth]\nsource = \"{}/me\"\n{}verdict_scope = \"{scope}\"\n",
            verifier.url(),
            route(ROUTE)
        );
        let fixture = Fixture::in_front_of(origin_of_counts().await, &rules);
        for key in ALPHA {
            fixture.get_as(key, "/a").await;
        }
        fixture.shared("/a").await;
        fixture.get_as(BETA[0], "/a").await;
        let target = format!("/a&header=authorization:Bearer+{}", BETA[0]);
        fixture.shared(&target).await;
        let found = fixture.get_as(BETA[0], "/a").await;
        assert_eq!(found.cache(), "HIT", "{scope}");
        assert_eq!(fixture.get_as(ALPHA[0], "/a").await.text(), found.text());
    }
}

/// Counts its own answers.
async fn origin_of_counts() -> Origin {
    Origin::start(|seen| {
        let body = format!("{{\"count\":{},\"name\":\"x\"}}", seen.number);
        ok(body, &[("content-type", "application/json")])
    })
    .await
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
