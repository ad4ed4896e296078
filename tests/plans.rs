//! Plans: another configuration is put in force while requests run. What was stored under one rule
//! is never served under another, and nothing of what must outlive a plan is lost.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use iris_sidecar::guard::Source;
use iris_sidecar::process::Sidecar;
use serde_json::json;
use tokio::time::timeout;

use crate::support::fleet::Fleet;
use crate::support::keys::{Keys, UNPROVED};
use crate::support::redis::RedisServer;
use crate::support::{Fixture, PATIENCE, Received, all, config, numbered, ok, reply, route};

/// Each key gets an answer of its own.
const PER_KEY: &str = "
[[route]]
path = \"/data\"
share = \"per-key\"
ttl = \"1h\"
client_cache_control = \"private, max-age=1\"
[[route]]
path = \"/{*rest}\"
ttl = \"1h\"
";

/// One answer for all good keys: another share, another order, another method of the same path.
const VERIFIED: &str = "
[auth]
on_difference = \"off\"
control = \"off\"
[[route]]
path = \"/{*rest}\"
ttl = \"1h\"
[[route]]
path = \"/data\"
methods = [\"GET\", \"HEAD\", \"POST\"]
share = \"verified\"
ttl = \"1h\"
client_cache_control = \"public, max-age=2\"
";

/// Whatever a shared cache may share (RFC 9111 §3.5).
const STANDARD: &str = "
[[route]]
path = \"/data\"
ttl = \"1h\"
client_cache_control = \"public, max-age=3\"
";

fn exchange(sidecar: &Sidecar, upstream: &str, text: &str) {
    let plan = Arc::new(config(upstream, text));
    sidecar.proxy.exchange(plan, Source::default());
}

/// Answers with the key, for keys that are good, and a page of its own to those without one.
fn by_key(keys: &Keys) -> impl Fn(&crate::support::Seen) -> crate::support::Reply + use<> {
    let keys = keys.clone();
    move |seen| match seen.header("authorization") {
        None => ok(
            "please log in",
            &[("cache-control", "public, max-age=3600")],
        ),
        Some(key) => {
            let key = key.to_owned();
            keys.check(seen, || ok(key, &[("cache-control", "max-age=3600")]))
        }
    }
}

/// What an answer must be, by the rule that its `Cache-Control` names. An empty `key` is none.
fn check_rule(received: &Received, key: &str) {
    let own = match key {
        "" => "please log in".to_owned(),
        key => format!("Bearer {key}"),
    };
    let says = received.header("cache-control").unwrap_or_default();
    let text = received.text();
    match (received.status, says) {
        (200, "private, max-age=1") => assert_eq!(text, own),
        (200, "public, max-age=2") => assert!(
            key.starts_with("good") && text.starts_with("Bearer good"),
            "{key}: {text}"
        ),
        // What everybody may have, or its own.
        (200, "public, max-age=3") => {
            assert!(text == own || text == "please log in", "{key}: {text}");
        }
        // Passed through.
        (200, _) => assert_eq!(text, own),
        (401, _) => assert_eq!(key, "bad"),
        other => panic!("{key}: {other:?}: {text}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_stored_under_one_rule_is_served_under_another_while_plans_alternate() {
    let redis = RedisServer::start(&[]).await;
    let url = redis.url();
    let keys = Keys::of(&["good1", "good2"]);
    let fleet = Arc::new(Fleet::start(&[&url, &url], PER_KEY, by_key(&keys)).await);
    let reading = Arc::new(AtomicBool::new(true));
    let alternating = {
        let (fleet, reading) = (Arc::clone(&fleet), Arc::clone(&reading));
        tokio::spawn(async move {
            let redis = format!("[cache.redis]\nurl = \"{url}\"\ntimeout = \"1s\"\n");
            let mut exchanges = 0;
            while reading.load(Ordering::Relaxed) {
                let plans = [VERIFIED, STANDARD, VERIFIED, PER_KEY];
                for (number, text) in plans.into_iter().enumerate() {
                    let at = number % 2;
                    let text = format!("{redis}{text}");
                    exchange(fleet.instance(at), &fleet.origin.url(), &text);
                    exchange(fleet.instance(1 - at), &fleet.origin.url(), &text);
                    fleet.get(at, "/data").await;
                    fleet.get_as(at, "good1", "/data").await;
                    exchanges += 2;
                }
            }
            exchanges
        })
    };
    let readers = (0..8).map(|number| {
        let fleet = Arc::clone(&fleet);
        async move {
            let key = ["good1", "good2", "", "bad"][number % 4];
            let authorization = format!("Bearer {key}");
            let mut client = fleet.connect(number % 2).await;
            let mut shared = 0;
            for _ in 0..400 {
                let fields = [("authorization", authorization.as_str())];
                let fields = if key.is_empty() { &[][..] } else { &fields };
                let received = client.ask("GET", "/data", fields).await;
                check_rule(&received, key);
                shared += usize::from(received.text() != format!("Bearer {key}"));
            }
            (key, shared)
        }
    });
    let shared = all(readers).await;
    reading.store(false, Ordering::Relaxed);
    assert!(alternating.await.expect("no panic") > 10);
    // Both rules took effect: under the second one, some good keys got another's answer.
    let good = shared.iter().filter(|(key, _)| key.starts_with("good"));
    assert!(good.map(|(_, shared)| shared).sum::<usize>() > 0);
}

#[tokio::test]
async fn instances_with_different_rules_share_no_value_in_redis() {
    let redis = RedisServer::start(&[]).await;
    let url = redis.url();
    let keys = Keys::of(&["good1", "good2"]);
    let mut fleet = Fleet::start(&[&url], PER_KEY, by_key(&keys)).await;
    let other = fleet.join_with(&url, VERIFIED).await;
    let same = fleet.join_with(&url, PER_KEY).await;
    assert_eq!(fleet.get_as(0, "good1", "/data").await.cache(), "MISS");
    fleet.written(0, 1.0).await;
    let asked = fleet.origin.count();
    // The same rule: it is there. Another rule: it is not.
    assert_eq!(fleet.get_as(same, "good1", "/data").await.cache(), "HIT");
    assert_eq!(fleet.origin.count(), asked);
    assert_eq!(fleet.get_as(other, "good1", "/data").await.cache(), "MISS");
    assert_eq!(fleet.origin.count(), asked + 1);
    // A purge of the URL, of a prefix or of everything reaches all of them.
    for order in [
        r#"{"url": "/data"}"#,
        r#"{"prefix": "/da"}"#,
        r#"{"all": true}"#,
    ] {
        for at in [0, other, same] {
            fleet.get_as(at, "good1", "/data").await;
        }
        let asked = fleet.origin.count();
        assert_eq!(fleet.purge(0, order).await["state"], "done", "{order}");
        for at in [0, other] {
            assert_eq!(fleet.get_as(at, "good1", "/data").await.cache(), "MISS");
        }
        assert_eq!(fleet.origin.count(), asked + 2, "{order}");
    }
}

#[tokio::test]
async fn a_purge_by_url_reaches_what_any_rule_has_made_of_its_query() {
    let with = |query: &str| route(&format!("ttl = \"1h\"\n{query}"));
    let rules = [
        with(""),
        with("query = \"none\"\nunknown_query = \"drop\""),
        with("query = [\"a\"]\nunknown_query = \"drop\""),
        with("query = [\"b\", \"a\"]\nsort_query = true"),
        with("sort_query = true"),
    ];
    for stored_by in &rules {
        for purged_by in &rules {
            let fixture = Fixture::start(stored_by, |seen| numbered(seen, &[])).await;
            let url = fixture.origin.url();
            let first = fixture.get("/x?b=1&a=2").await.text();
            assert_eq!(fixture.get("/x?b=1&a=2").await.text(), first);
            // Whatever rule is in force when it is purged, it is not there when the first is again.
            exchange(fixture.sidecar(), &url, purged_by);
            fixture.order("/purge", &json!({"url": "/x?b=1&a=2"})).await;
            exchange(fixture.sidecar(), &url, stored_by);
            let after = fixture.get("/x?b=1&a=2").await.text();
            assert_ne!(after, first, "{stored_by} {purged_by}");
        }
    }
}

#[tokio::test]
async fn revocations_and_demotions_survive_other_plans_and_other_orders() {
    let keys = Keys::of(&["good1", "good2"]);
    let shared = |order: &str, methods: &str| {
        let data = format!(
            "[[route]]\npath = \"/data\"\nmethods = {methods}\nshare = \"verified\"\nttl = \"1h\"\n"
        );
        let rest = "[[route]]\npath = \"/{*rest}\"\nttl = \"1h\"\n";
        let auth = "[auth]\ncontrol = \"off\"\ncompare_every = 1\n";
        match order {
            "first" => format!("{auth}{data}{rest}"),
            _ => format!("{auth}{rest}{data}"),
        }
    };
    let plans = [
        shared("first", "[\"GET\", \"HEAD\"]"),
        shared("last", "[\"GET\", \"HEAD\", \"POST\"]"),
        PER_KEY.to_owned(),
    ];
    let has_turned = Arc::new(AtomicBool::new(false));
    let (turned, script) = (Arc::clone(&has_turned), by_key(&keys));
    let fixture = Fixture::start(&plans[0], move |seen| match turned.load(Ordering::SeqCst) {
        true => script(seen),
        false => ok("all", &[("cache-control", "max-age=3600")]),
    })
    .await;
    let url = fixture.origin.url();
    for key in ["good1", "good2"] {
        fixture.get_as(key, "/data").await;
    }
    fixture.shared("/data").await;
    // From now on answers differ by key, and that is found.
    has_turned.store(true, Ordering::SeqCst);
    let demoted = async {
        loop {
            for key in ["good1", "good2"] {
                fixture.get_as(key, "/data").await;
            }
            fixture.order("/purge", &json!({"all": true})).await;
            let told = fixture.admin("/explain?url=/data").await.json();
            if told["share"]["demoted"].is_string() {
                return;
            }
        }
    };
    timeout(PATIENCE, demoted).await.expect("it is demoted");
    fixture.order("/revoke", &json!({"key": "good2"})).await;
    for plan in plans.iter().cycle().take(7) {
        exchange(fixture.sidecar(), &url, plan);
        let is_shared = plan.contains("verified");
        let told = fixture.admin("/explain?url=/data").await.json();
        assert_eq!(told["share"]["in_effect"], "per-key", "{told}");
        assert_eq!(told["share"]["demoted"].is_string(), is_shared, "{told}");
        assert_eq!(fixture.get_as("good1", "/data").await.status, 200);
    }
    // Verified again, on another path: what was revoked before still is.
    let other = "[[route]]\npath = \"/other\"\nshare = \"verified\"\nttl = \"1h\"\n";
    exchange(fixture.sidecar(), &url, other);
    assert_eq!(fixture.get_as("good2", "/other").await.status, 401);
    assert_eq!(fixture.get_as("good1", "/other").await.status, 200);
}

#[tokio::test]
async fn verdicts_limits_series_and_stored_responses_survive_an_exchange() {
    let keys = Keys::of(&["good1"]);
    let data = format!(
        "[auth]\n{UNPROVED}[[route]]\npath = \"/data\"\nshare = \"verified\"\nttl = \"1h\"\n"
    );
    let rest = "[[route]]\npath = \"/{*rest}\"\nttl = \"1h\"\n";
    let limit = "[[rate_limit]]\nby = \"address\"\nrequests = 6\nwindow = \"1h\"\n";
    let fixture = Fixture::start(&format!("{data}{limit}{rest}"), by_key(&keys)).await;
    let url = fixture.origin.url();
    assert_eq!(fixture.get_as("good1", "/data").await.cache(), "MISS");
    assert_eq!(fixture.get_as("good1", "/data").await.cache(), "HIT");
    let asked = fixture.origin.count();
    for text in [
        format!("{data}{limit}{rest}"),
        format!("{data}{rest}{limit}"),
    ] {
        exchange(fixture.sidecar(), &url, &text);
        // The verdict and the response are known, and the window goes on.
        assert_eq!(fixture.get_as("good1", "/data").await.cache(), "HIT");
    }
    assert_eq!(fixture.origin.count(), asked);
    let series = "http_requests_total{method=\"GET\",path=\"/data\",status=\"200\"}";
    assert_eq!(fixture.metric(series).await, 4.0);
    let left = fixture.get_as("good1", "/data").await;
    assert!(left.header("ratelimit").unwrap_or_default().contains("r=1"));
    assert_eq!(fixture.get_as("good1", "/data").await.status, 200);
    assert_eq!(fixture.get_as("good1", "/data").await.status, 429);
}

#[tokio::test]
async fn what_one_source_said_of_a_key_says_nothing_to_another() {
    let keys = Keys::of(&["good1"]);
    let data = "[[route]]\npath = \"/data\"\nshare = \"verified\"\nttl = \"1h\"\n";
    let fixture = Fixture::start(data, by_key(&keys)).await;
    let url = fixture.origin.url();
    fixture.get_as("good1", "/data").await;
    assert_eq!(fixture.get_as("good1", "/data").await.cache(), "HIT");
    let service = Fixture::start(data, |_| reply(401, "", &[])).await;
    let verify = format!("{}/verify", service.origin.url());
    let text = format!("[auth]\nsource = {verify:?}\n{data}");
    let verify = verify.parse().expect("a URL");
    let metrics = Arc::clone(fixture.sidecar().proxy.metrics());
    let source = Source::service(&verify, None, metrics).expect("a service");
    let plan = Arc::new(config(&url, &text));
    fixture.sidecar().proxy.exchange(plan, source);
    assert_eq!(fixture.get_as("good1", "/data").await.status, 401);
    // And back: its good answer is remembered.
    exchange(fixture.sidecar(), &url, data);
    assert_eq!(fixture.get_as("good1", "/data").await.cache(), "HIT");
}

#[tokio::test]
async fn an_open_connection_is_believed_as_the_plan_in_force_says() {
    let trusting = |text: &str| format!("{text}{}", route("ttl = \"1h\""));
    let fixture = Fixture::start(&trusting(""), |seen| {
        ok(seen.header("x-forwarded-for").unwrap_or_default(), &[])
    })
    .await;
    let url = fixture.origin.url();
    let mut client = fixture.connect().await;
    for (path, plan, seen) in [
        ("/1", "", "127.0.0.1"),
        (
            "/2",
            "[listen]\ntrusted_proxies = [\"127.0.0.1\"]\n",
            "192.0.2.1, 127.0.0.1",
        ),
        ("/3", "", "127.0.0.1"),
    ] {
        exchange(fixture.sidecar(), &url, &trusting(plan));
        let fields = [("x-forwarded-for", "192.0.2.1")];
        assert_eq!(client.ask("GET", path, &fields).await.text(), seen);
    }
}
