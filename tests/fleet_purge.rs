//! Purges of a fleet: what one instance purges, no instance serves, whatever happens to Redis.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::support::fleet::Fleet;
use crate::support::redis::RedisServer;
use crate::support::wire::Wire;
use crate::support::{Client, Gate, PATIENCE, after, numbered, ok, route};
use tokio::time::timeout;

const KEPT: &str =
    "ttl = \"60s\"\nstale_while_revalidate = \"60s\"\nstale_if_error = \"1h\"\ngroups = [\"g\"]";

#[tokio::test]
async fn a_hard_purge_of_any_kind_is_gone_on_every_instance_when_it_is_answered() {
    let redis = RedisServer::start(&[]).await;
    let url = redis.url();
    let fleet = Fleet::start(&[&url, &url, &url], &route(KEPT), |seen| {
        numbered(seen, &[])
    })
    .await;
    let orders = [
        r#"{"url": "/a/b?c=d"}"#,
        r#"{"url": "http://origin/a/b?c=d"}"#,
        r#"{"prefix": "/a/"}"#,
        r#"{"prefix": "http://origin/a"}"#,
        r#"{"group": "g"}"#,
        r#"{"all": true}"#,
    ];
    for (number, order) in orders.into_iter().enumerate() {
        for at in 0..3 {
            let fields = [("host", "origin")];
            let found = fleet.get_with(at, "/a/b?c=d", &fields).await;
            assert_eq!(found.text(), format!("{}", number + 1), "{order}");
            fleet.written(0, (number / 3 + 1) as f64).await;
            fleet.written(number % 3, (number / 3 + 1) as f64).await;
        }
        let done = fleet.purge((number + 1) % 3, order).await;
        assert_eq!(done["state"], "done", "{done}");
        assert_eq!(
            (&done["instances"], &done["alive"]),
            (&3.into(), &3.into()),
            "{done}"
        );
        assert_eq!(done["position"], number as u64 + 1);
        assert_eq!(done["matches"], 1);
        // The next round's first look is by another instance.
        let fields = [("host", "origin")];
        let found = fleet.get_with((number + 1) % 3, "/a/b?c=d", &fields).await;
        assert_eq!(found.text(), format!("{}", number + 2), "{order}");
    }
}

#[tokio::test]
async fn a_soft_purge_makes_stale_everywhere_and_grace_counts_from_it() {
    let redis = RedisServer::start(&[]).await;
    let url = redis.url();
    let gate = Gate::new();
    let held = gate.clone();
    let fleet = Fleet::start(&[&url, &url, &url], &route(KEPT), move |seen| {
        match seen.number {
            1 => numbered(seen, &[]),
            _ => after(&held, numbered(seen, &[])),
        }
    })
    .await;
    fleet.get(0, "/a").await;
    fleet.written(0, 1.0).await;
    assert_eq!(fleet.get(1, "/a").await.cache(), "HIT");
    fleet.advance(10);
    fleet.purge(2, r#"{"group": "g", "soft": true}"#).await;
    fleet.advance(30);
    // From memory, and from Redis: stale for thirty seconds, not fresh for twenty more.
    for at in 0..3 {
        let found = fleet.get(at, "/a").await;
        assert_eq!(
            (found.text().as_str(), found.cache()),
            ("1", "HIT-STALE"),
            "{at}"
        );
        assert!(
            found.cache_status().contains("ttl=-30"),
            "{}",
            found.cache_status()
        );
    }
    gate.open();
    for at in 0..3 {
        let replaced = "cache_background_refreshes_total{result=\"replaced\"}";
        fleet.metric_reaches(at, replaced, 1.0).await;
        assert_eq!(fleet.get(at, "/a").await.text(), "2");
    }
    assert_eq!(fleet.origin.count(), 2);
}

#[tokio::test]
async fn a_write_through_one_instance_changes_what_the_others_serve() {
    let redis = RedisServer::start(&[]).await;
    let url = redis.url();
    let extra = format!(
        "{}\n[[route]]\npath = \"/write\"\nmethods = [\"POST\"]\ninvalidates = \
            [\"g\"]\ninvalidation = \"hard\"\n",
        route(KEPT)
    );
    let fleet = Fleet::start(&[&url, &url], &extra, |seen| numbered(seen, &[])).await;
    assert_eq!(fleet.get(1, "/a").await.text(), "1");
    let written = fleet.connect(0).await.ask("POST", "/write", &[]).await;
    assert_eq!(written.text(), "2");
    // Here at once, there when the log has brought it.
    assert_eq!(fleet.get(0, "/a").await.text(), "3");
    fleet
        .metric_reaches(1, "cache_purges_elsewhere_total", 1.0)
        .await;
    // What was fetched before the log had the purge is not vouched for elsewhere: then it is
    // fetched once more there.
    let found = fleet.get(1, "/a").await;
    let expected = if found.cache() == "HIT" { "3" } else { "4" };
    assert_eq!(found.text(), expected);
    assert_eq!(fleet.get(1, "/a").await.cache(), "HIT");
}

#[tokio::test]
async fn an_older_fill_neither_lands_nor_is_joined_on_any_instance() {
    let redis = RedisServer::start(&[]).await;
    let url = redis.url();
    let gate = Gate::new();
    let held = gate.clone();
    let fleet = Fleet::start(&[&url, &url], &route(KEPT), move |seen| match seen.number {
        1 => after(&held, numbered(seen, &[])),
        _ => numbered(seen, &[]),
    })
    .await;
    let fleet = Arc::new(fleet);
    let one = Arc::clone(&fleet);
    let before = tokio::spawn(async move { one.get(0, "/a").await });
    fleet.origin.asked(1).await;
    fleet.purge(1, r#"{"url": "/a"}"#).await;
    // On neither instance does who comes now wait for what was begun before.
    for at in [1, 0] {
        assert_eq!(fleet.get(at, "/a").await.text(), "2", "{at}");
    }
    gate.open();
    assert_eq!(before.await.unwrap().text(), "1");
    fleet
        .metric_reaches(0, "cache_not_stored_total{reason=\"purged\"}", 1.0)
        .await;
    for at in [0, 1] {
        let found = fleet.get(at, "/a").await;
        assert_eq!((found.text().as_str(), found.cache()), ("2", "HIT"));
    }
}

#[tokio::test]
async fn writes_faster_than_the_origin_never_starve_a_soft_group() {
    let redis = RedisServer::start(&[]).await;
    let url = redis.url();
    let fleet = Fleet::start(&[&url, &url], &route(KEPT), |seen| numbered(seen, &[])).await;
    fleet.get(0, "/a").await;
    fleet.written(0, 1.0).await;
    for _ in 0..20 {
        fleet.purge(1, r#"{"group": "g", "soft": true}"#).await;
        for at in [0, 1] {
            let found = fleet.get(at, "/a").await;
            assert!(
                matches!(found.cache(), "HIT-STALE" | "HIT"),
                "{}",
                found.cache_status()
            );
        }
    }
}

/// The origin counts up, and says how far; whoever reads less than what was counted when a purge
/// was answered has read what was purged.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_purged_is_read_after_the_answer_while_all_fill_and_read() {
    let redis = RedisServer::start(&[]).await;
    let url = redis.url();
    let counted = Arc::new(AtomicU64::new(1));
    let counting = Arc::clone(&counted);
    let keys = "ttl = \"60s\"\nstale_if_error = \"1h\"\ngroups = [\"g\"]";
    let fleet = Fleet::start(&[&url, &url, &url], &route(keys), move |_| {
        ok(format!("{}", counting.load(Ordering::SeqCst)), &[])
    })
    .await;
    let fleet = Arc::new(fleet);
    // Below this nobody may read.
    let floor = Arc::new(AtomicU64::new(0));
    let ends = Arc::new(AtomicBool::new(false));
    let mut readers = Vec::new();
    for number in 0..12 {
        let address = fleet.instance(number % 3).address;
        let (floor, ends) = (Arc::clone(&floor), Arc::clone(&ends));
        readers.push(tokio::spawn(async move {
            let (mut reads, mut kinds) = (0, BTreeSet::new());
            let mut client = Client::connect(address).await;
            while !ends.load(Ordering::SeqCst) {
                let least = floor.load(Ordering::SeqCst);
                let target = format!("/k{}", number % 4);
                let found = client.ask("GET", &target, &[]).await;
                let read: u64 = found.text().parse().unwrap();
                assert!(
                    read >= least,
                    "{read} after {least}: {}",
                    found.cache_status()
                );
                kinds.insert(found.cache_status().replace(char::is_numeric, ""));
                reads += 1;
            }
            (reads, kinds)
        }));
    }
    let orders = [
        r#"{"group": "g"}"#,
        r#"{"prefix": "/k"}"#,
        r#"{"all": true}"#,
    ];
    for number in 0..60 {
        let now = counted.fetch_add(1, Ordering::SeqCst) + 1;
        let done = fleet.purge(number % 3, orders[number % orders.len()]).await;
        assert_eq!(done["instances"], 3, "{done}");
        floor.store(now, Ordering::SeqCst);
    }
    ends.store(true, Ordering::SeqCst);
    let (mut reads, mut kinds) = (0, BTreeSet::new());
    for reader in readers {
        let (read, seen) = reader.await.unwrap();
        reads += read;
        kinds.extend(seen);
    }
    assert!(reads > 500, "{reads}");
    // From memory, from Redis, and from the origin.
    assert!(
        kinds.iter().any(|kind| kind.ends_with("hit; ttl=")),
        "{kinds:?}"
    );
    assert!(
        kinds.iter().any(|kind| kind.contains("second-tier")),
        "{kinds:?}"
    );
}

#[tokio::test]
async fn an_instance_that_was_cut_off_serves_memory_for_a_while_and_nothing_purged_after() {
    let redis = RedisServer::start(&[]).await;
    let wire = Wire::to(redis.port).await;
    let extra = format!("[cache.redis]\nmax_silence = \"30s\"\n{}", route(KEPT));
    let urls = [redis.url(), wire.url()];
    let urls = [urls[0].as_str(), urls[1].as_str()];
    let fleet = Fleet::start(&urls, &extra, |seen| numbered(seen, &[])).await;
    fleet.get(0, "/a").await;
    fleet.written(0, 1.0).await;
    assert_eq!(fleet.get(1, "/a").await.text(), "1");
    wire.cut();
    fleet
        .metric_is(1, "cache_l2_heard", |heard| heard == 0.0)
        .await;
    let done = fleet.purge(0, r#"{"url": "/a"}"#).await;
    assert_eq!(done["instances"], 1, "{done}");
    // Cut off, it cannot know, and serves what it has for as long as it was told to.
    let found = fleet.get(1, "/a").await;
    assert_eq!((found.text().as_str(), found.cache()), ("1", "HIT"));
    let ready = fleet.admin(1, "/readyz").await.json();
    assert_eq!(
        (&ready["ready"], &ready["redis"]["purge_log"]["heard"]),
        (&true.into(), &false.into())
    );
    fleet.advance(31);
    let found = fleet.get(1, "/a").await;
    assert_eq!((found.text().as_str(), found.cache()), ("2", "MISS"));
    // What it fetched since is as new as that.
    assert_eq!(fleet.get(1, "/a").await.cache(), "HIT");
    // Its own purge cannot be told to anybody yet.
    let done = fleet.purge(1, r#"{"url": "/b"}"#).await;
    assert_eq!(
        (&done["state"], &done["instances"]),
        (&"pending".into(), &1.into()),
        "{done}"
    );
    assert_eq!(fleet.metric(1, "cache_purges_pending").await, 1.0);

    assert_eq!(fleet.get(0, "/b").await.text(), "3");
    wire.mend();
    fleet
        .metric_is(1, "cache_l2_heard", |heard| heard == 1.0)
        .await;
    fleet
        .metric_is(1, "cache_purges_pending", |pending| pending == 0.0)
        .await;
    fleet
        .metric_reaches(0, "cache_purges_elsewhere_total", 1.0)
        .await;
    // Both purges have arrived on both sides.
    assert_eq!(fleet.get(0, "/b").await.text(), "4");
    assert_eq!(fleet.get(1, "/a").await.text(), "5");
}

#[tokio::test]
async fn a_purge_during_the_cut_is_never_served_after_it() {
    let redis = RedisServer::start(&[]).await;
    let wire = Wire::to(redis.port).await;
    let urls = [redis.url(), wire.url()];
    let urls = [urls[0].as_str(), urls[1].as_str()];
    let fleet = Fleet::start(&urls, &route(KEPT), |seen| numbered(seen, &[])).await;
    for round in 0..5 {
        let text = fleet.get(0, "/a").await.text();
        fleet.written(0, f64::from(round + 1)).await;
        assert_eq!(fleet.get(1, "/a").await.text(), text);
        wire.cut();
        fleet.purge(0, r#"{"url": "/a"}"#).await;
        let position = fleet.metric(0, "cache_purge_log_position").await;
        wire.mend();
        // From the moment at which it has caught up.
        fleet
            .metric_reaches(1, "cache_purge_log_position", position)
            .await;
        let found = fleet.get(1, "/a").await;
        assert_ne!(found.text(), text, "{}", found.cache_status());
        fleet
            .metric_is(1, "cache_l2_heard", |heard| heard == 1.0)
            .await;
        let found = fleet.get(1, "/a").await;
        assert_ne!(found.text(), text, "{}", found.cache_status());
        fleet.purge(0, r#"{"all": true}"#).await;
    }
}

#[tokio::test]
async fn a_log_that_was_lost_is_begun_anew_and_nothing_older_is_trusted() {
    let redis = RedisServer::start(&[]).await;
    let url = redis.url();
    let fleet = Fleet::start(&[&url, &url], &route(KEPT), |seen| numbered(seen, &[])).await;
    fleet.get(0, "/a").await;
    fleet.written(0, 1.0).await;
    fleet.get(1, "/a").await;
    fleet.purge(0, r#"{"url": "/other"}"#).await;
    // The log goes, the values stay.
    redis
        .ask("DEL iris:{purges}meta iris:{purges}log")
        .await
        .unwrap();
    for at in [0, 1] {
        fleet
            .metric_is(at, "cache_purge_log_position", |position| position == 0.0)
            .await;
    }
    let text = fleet.get(1, "/a").await.text();
    assert_eq!(text, "2");
    assert_eq!(fleet.get(0, "/a").await.text(), text);
    let done = fleet.purge(0, r#"{"url": "/a"}"#).await;
    // Some may not have shown up in it yet, for all that it can know.
    assert_eq!(done["state"], "unconfirmed", "{done}");
    assert_eq!(
        (&done["position"], &done["instances"]),
        (&1.into(), &2.into())
    );
    assert_eq!(fleet.get(1, "/a").await.text(), "3");
}

#[tokio::test]
async fn a_failover_that_lost_purges_is_noticed() {
    let first = RedisServer::start(&[]).await;
    let replication = Wire::to(first.port).await;
    let port = replication.port.to_string();
    let second = RedisServer::start(&["--replicaof", "127.0.0.1", &port]).await;
    let wires = [Wire::to(first.port).await, Wire::to(first.port).await];
    let urls = [wires[0].url(), wires[1].url()];
    let urls = [urls[0].as_str(), urls[1].as_str()];
    let fleet = Fleet::start(&urls, &route(KEPT), |seen| numbered(seen, &[])).await;
    for target in ["/a", "/b"] {
        fleet.get(0, target).await;
        let found = fleet.get(1, target).await;
        assert_eq!(found.cache(), "HIT", "{}", found.cache_status());
    }
    fleet.written(0, 2.0).await;
    fleet.purge(0, r#"{"url": "/x"}"#).await;
    // The replica has all that; then it hears no more.
    let replicated = async {
        while !second
            .ask("HGET iris:{purges}meta position")
            .await
            .unwrap()
            .contains("$1\r\n1")
        {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, replicated)
        .await
        .expect("it is replicated");
    replication.cut();
    let done = fleet.purge(0, r#"{"url": "/a"}"#).await;
    assert_eq!(
        (&done["position"], &done["instances"]),
        (&2.into(), &2.into())
    );
    second.ask("REPLICAOF NO ONE").await;
    for wire in &wires {
        wire.lead_to(second.port);
    }
    // One of them tells that the log has forgotten what it knows; another one begins, and what was
    // stored before is not trusted: /a is not there, and /b not any more.
    for at in [0, 1] {
        fleet
            .metric_is(at, "cache_purge_log_position", |position| position == 0.0)
            .await;
        fleet
            .metric_is(at, "cache_l2_heard", |heard| heard == 1.0)
            .await;
    }
    for target in ["/a", "/b"] {
        let found = fleet.get(1, target).await;
        assert_eq!(found.cache(), "MISS", "{target}");
    }
}

#[tokio::test]
async fn a_purge_that_only_its_own_instance_has_seen_goes_there_again() {
    let first = RedisServer::start(&[]).await;
    let second = RedisServer::start(&[]).await;
    let wire = Wire::to(first.port).await;
    let url = wire.url();
    let fleet = Fleet::start(&[&url], &route(KEPT), |seen| numbered(seen, &[])).await;
    fleet.get(0, "/a").await;
    wire.cut();
    fleet
        .metric_is(0, "cache_l2_heard", |heard| heard == 0.0)
        .await;
    let done = fleet.purge(0, r#"{"url": "/a"}"#).await;
    assert_eq!(done["state"], "pending");
    wire.lead_to(second.port);
    fleet
        .metric_is(0, "cache_purges_pending", |pending| pending == 0.0)
        .await;
    let length = second.ask("XLEN iris:{purges}log").await.unwrap();
    assert_eq!(length.trim(), ":1");
    assert_eq!(fleet.get(0, "/a").await.text(), "2");
}

#[tokio::test]
async fn purges_that_outrun_the_origin_do_not_keep_a_soft_group_from_being_refreshed() {
    let redis = RedisServer::start(&[]).await;
    let url = redis.url();
    let gates: Vec<Gate> = (0..4).map(|_| Gate::new()).collect();
    let held = gates.clone();
    let fleet = Fleet::start(&[&url, &url], &route(KEPT), move |seen| {
        match held.get(seen.number.wrapping_sub(2)) {
            Some(gate) => after(gate, numbered(seen, &[])),
            None => numbered(seen, &[]),
        }
    })
    .await;
    fleet.get(0, "/a").await;
    fleet.written(0, 1.0).await;
    let order = r#"{"group": "g", "soft": true}"#;
    fleet.purge(1, order).await;
    for (number, gate) in gates.iter().enumerate() {
        // While each refresh is under way, another purge comes.
        fleet.advance(1);
        for at in [0, 1] {
            assert_eq!(fleet.get(at, "/a").await.cache(), "HIT-STALE");
        }
        fleet.origin.asked(number + 2).await;
        fleet.purge(number % 2, order).await;
        gate.open();
        // It lands all the same, stale already, and newer than what was there.
        let newer = async { while fleet.get(0, "/a").await.text() != format!("{}", number + 2) {} };
        timeout(PATIENCE, newer).await.expect("it lands");
    }
}

#[tokio::test]
async fn an_instance_that_has_not_read_a_new_log_does_not_count_as_knowing() {
    let redis = RedisServer::start(&[]).await;
    let wire = Wire::to(redis.port).await;
    let urls = [redis.url(), wire.url()];
    let urls = [urls[0].as_str(), urls[1].as_str()];
    let fleet = Fleet::start(&urls, &route(KEPT), |seen| numbered(seen, &[])).await;
    for _ in 0..5 {
        fleet.purge(0, r#"{"url": "/x"}"#).await;
    }
    wire.cut();
    redis
        .ask("DEL iris:{purges}meta iris:{purges}log")
        .await
        .unwrap();
    let done = fleet.purge(0, r#"{"url": "/a"}"#).await;
    assert_eq!(done["position"], 1, "{done}");
    assert_eq!(
        (&done["instances"], &done["state"]),
        (&1.into(), &"unconfirmed".into()),
        "{done}"
    );
}

#[tokio::test]
async fn what_a_stopping_instance_purged_is_told_before_it_goes() {
    let redis = RedisServer::start(&[]).await;
    let url = redis.url();
    let extra = format!(
        "{}\n[[route]]\npath = \"/write\"\nmethods = [\"POST\"]\ninvalidates = \
            [\"g\"]\ninvalidation = \"hard\"\n",
        route(KEPT)
    );
    let mut fleet = Fleet::start(&[&url, &url], &extra, |seen| numbered(seen, &[])).await;
    assert_eq!(fleet.get(1, "/a").await.text(), "1");
    fleet.connect(0).await.ask("POST", "/write", &[]).await;
    fleet.stop(0);
    fleet
        .metric_reaches(1, "cache_purges_elsewhere_total", 1.0)
        .await;
    assert_eq!(fleet.get(1, "/a").await.text(), "3");
}

/// An entry larger than any purge.
const LARGE: &str = "token 7 kind LARGE";

#[tokio::test]
async fn an_entry_that_no_instance_has_written_makes_nobody_deaf() {
    let redis = RedisServer::start(&[]).await;
    let url = redis.url();
    let fleet = Fleet::start(&[&url, &url], &route(KEPT), |seen| numbered(seen, &[])).await;
    fleet.get(0, "/a").await;
    fleet.purge(0, r#"{"url": "/x"}"#).await;
    let epoch = redis.ask("HGET iris:{purges}meta epoch").await;
    let strange = [
        "token none kind all",
        "nothing x",
        "token -1",
        "token 1.5",
        // Larger than any token, or not as one is written.
        "token 18446744073709551616",
        "token 99999999999999999999",
        "token 007",
        "token +5",
        "x 5 token abc",
        "x abc token 7",
        LARGE,
    ];
    for fields in strange {
        let said = redis.ask("HGET iris:{purges}meta position").await.unwrap();
        let position: u64 = said.lines().nth(1).unwrap().parse().unwrap();
        let next = position + 1;
        let fields = format!("'{}'", fields.replace(' ', "','"));
        let fields = fields.replace("'LARGE'", "string.rep('x',140000)");
        // Both at once: a look between the two would find a log that is not whole.
        let script = format!(
            "redis.call('XADD',KEYS[1],'{next}-0',{fields}) \
                redis.call('HSET',KEYS[2],'position',{next})"
        );
        redis
            .ask(&format!(
                "EVAL \"{script}\" 2 iris:{{purges}}log iris:{{purges}}meta"
            ))
            .await;
        // It is passed over where it is the last, and where something follows.
        let purged = fleet.purge(1, r#"{"url": "/a"}"#).await;
        assert_eq!(purged["state"], "done", "{fields}: {purged}");
    }
    // Nobody has begun another log for it.
    assert_eq!(redis.ask("HGET iris:{purges}meta epoch").await, epoch);
    for at in [0, 1] {
        fleet
            .metric_reaches(
                at,
                "cache_purge_log_passed_over_total",
                strange.len() as f64,
            )
            .await;
        assert_eq!(fleet.metric(at, "cache_l2_heard").await, 1.0);
    }
    assert_eq!(fleet.get(0, "/a").await.text(), "2");
}
