//! Keys on shared routes: who gets what is stored, and every way in that was thought of.

use crate::support::keys::{Keys, UNPROVED, guarded, verified, verified_by};
use crate::support::{Fixture, Gate, Origin, Seen, after, all, numbered, ok, reply, route};
use serde_json::json;

const A: &str = "sk_live_aaaaaaaaaaaaaaaaaaaaaaaa";
const B: &str = "sk_live_bbbbbbbbbbbbbbbbbbbbbbbb";
const C: &str = "sk_live_cccccccccccccccccccccccc";
const BAD: &str = "sk_live_xxxxxxxxxxxxxxxxxxxxxxxx";

fn status(received: &crate::support::Received) -> (u16, &str) {
    (received.status, received.cache())
}

#[tokio::test(flavor = "multi_thread")]
async fn one_response_answers_all_good_keys_and_no_other() {
    let keys = Keys::of(&[A, B]);
    let fixture = guarded(&verified(""), &keys).await;
    assert_eq!(status(&fixture.get_as(A, "/a").await), (200, "MISS"));
    assert_eq!(status(&fixture.get_as(A, "/a").await), (200, "HIT"));
    // Unknown, then known: its own request asks.
    let proven = fixture.get_as(B, "/a").await;
    assert_eq!(status(&proven), (200, "MISS"));
    assert!(
        proven.cache_status().contains("key-unverified"),
        "{}",
        proven.cache_status()
    );
    let hit = fixture.get_as(B, "/a").await;
    assert_eq!((status(&hit), hit.text()), ((200, "HIT"), proven.text()));
    // What the origin said goes through, then the sidecar says it, in the origin's envelope.
    for (from, asked) in [("origin", 3), ("sidecar", 3)] {
        let refused = fixture.get_as(BAD, "/a").await;
        assert_eq!(refused.status, 401, "{from}");
        assert_eq!(refused.json()["error"], "Invalid or inactive API key");
        assert_eq!(fixture.origin.count(), asked, "{from}");
    }
    let refused = fixture.get_as(BAD, "/a").await;
    assert_eq!(refused.json()["statusCode"], 401);
    assert!(refused.json()["timestamp"].is_string());
    assert_eq!(refused.header("www-authenticate"), Some("Bearer"));
    // For ten seconds.
    fixture.advance(11);
    fixture.get_as(BAD, "/a").await;
    assert_eq!(fixture.origin.count(), 4);
    // Without one: to the origin, and never stored.
    let anonymous = fixture.get("/a").await;
    assert_eq!(status(&anonymous), (401, "BYPASS"));
    assert!(anonymous.cache_status().contains("credential"));
    assert_eq!(fixture.origin.count(), 5);
}

/// What a request asks for, as the table below has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Path {
    Hit,
    Miss,
    Head,
    Range,
    Conditional,
    Stale,
    Options,
    Post,
}

/// What is known of the credential that it brings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Brings {
    Nothing,
    Good,
    /// Good at the origin, and not known here.
    Stranger,
    /// Bad at the origin, and not known here.
    Unknown,
    /// Bad, and known as that.
    Bad,
    /// Good until it was revoked on the admin port.
    Revoked,
    Malformed,
    Doubled,
}

#[tokio::test(flavor = "multi_thread")]
async fn every_path_with_every_credential_under_every_way_to_share() {
    use Brings::{Bad, Doubled, Good, Malformed, Nothing, Revoked, Stranger, Unknown};
    use Path::{Conditional, Head, Hit, Miss, Options, Post, Range, Stale};
    const PATHS: [Path; 8] = [Hit, Miss, Head, Range, Conditional, Stale, Options, Post];
    const CREDENTIALS: [Brings; 8] = [
        Nothing, Good, Stranger, Unknown, Bad, Revoked, Malformed, Doubled,
    ];
    let mut cells = 0;
    // Shared by the operator's word; where a second key's answer is missing; where all is proved.
    for state in ["standard", "per-key", "verified", "unproved", "proved"] {
        let (share, proofs) = match state {
            "unproved" => ("verified", "control = \"off\"\n"),
            "proved" => ("verified", ""),
            share => (share, UNPROVED),
        };
        for path in PATHS {
            for brings in CREDENTIALS {
                let keys = Keys::of(&[A, B, C]);
                // Answers that are compared behind the back would be counted here.
                let routes = format!("[auth]\n{proofs}")
                    + &route(&format!(
                        "share = \"{share}\"\nforce_ttl = \"60s\"\nstale_while_revalidate = \"60s\""
                    ));
                let known = keys.clone();
                let origin = Origin::start(move |seen| {
                    known.check(seen, || {
                        let fields = [("cache-control", "s-maxage=60"), ("etag", "\"e\"")];
                        match seen.header("range") {
                            Some(_) => reply(206, "12", &[("content-range", "bytes 0-1/6")]),
                            None => reply(200, "123456", &fields),
                        }
                    })
                });
                let fixture = Fixture::in_front_of(origin.await, &routes);
                // Stored by one good key, known of another, bad for a third, revoked by hand.
                assert_eq!(fixture.get_as(A, "/a").await.status, 200);
                if state != "unproved" {
                    fixture.get_as(C, "/a").await;
                }
                if state == "proved" {
                    fixture.shared("/a").await;
                }
                fixture.get_as(BAD, "/a").await;
                revoke(&fixture, json!({"key": C})).await;
                if path == Stale {
                    fixture.advance(61);
                    if brings == Bad && share == "verified" {
                        assert_eq!(fixture.get_as(BAD, "/a").await.status, 401);
                    }
                }
                let before = fixture.origin.count();
                let key = match brings {
                    Nothing => None,
                    Good => Some(format!("Bearer {A}")),
                    Stranger => Some(format!("Bearer {B}")),
                    Unknown => Some("Bearer sk_live_unknownunknownunknown".to_owned()),
                    Bad => Some(format!("Bearer {BAD}")),
                    Revoked => Some(format!("Bearer {C}")),
                    Malformed => Some("Basic dTpw".to_owned()),
                    Doubled => Some(format!("Bearer {A}")),
                };
                let mut fields: Vec<(&str, &str)> = Vec::new();
                if let Some(key) = &key {
                    fields.push(("authorization", key));
                }
                if brings == Doubled {
                    fields.push(("x-api-key", B));
                }
                let (method, target) = match path {
                    Head => ("HEAD", "/a"),
                    Options => ("OPTIONS", "/a"),
                    Post => ("POST", "/a"),
                    Miss => ("GET", "/new"),
                    _ => ("GET", "/a"),
                };
                match path {
                    Range => fields.push(("range", "bytes=0-1")),
                    Conditional => fields.push(("if-none-match", "\"e\"")),
                    Post => fields.push(("content-length", "0")),
                    _ => {}
                }
                let mut client = fixture.connect().await;
                client.request(method, target, &fields).await;
                let found = match method {
                    "HEAD" => client.head().await,
                    _ => client.response().await,
                };
                // But for controls, which may follow.
                let own = key.as_deref().filter(|_| brings != Nothing);
                let is_own = |seen: &&Seen| seen.header("authorization") == own;
                let seen = fixture.origin.seen();
                let asked = seen[before..].iter().filter(is_own).count();
                let cell = format!("{state} {path:?} {brings:?}: {found:?}, {asked} asked");
                cells += 1;
                let is_read = !matches!(path, Options | Post);
                let lets_in = matches!(brings, Good | Stranger | Revoked | Doubled);
                // Never is anything given to whom the origin would refuse.
                if is_read && !lets_in && share != "standard" {
                    assert_eq!(found.status, 401, "{cell}");
                }
                if path == Options {
                    assert_eq!((found.status, asked), (204, 1), "{cell}");
                    continue;
                }
                if path == Post {
                    // A write goes to the origin, whoever sends it.
                    let expected = if lets_in { 200 } else { 401 };
                    assert_eq!((found.status, asked), (expected, 1), "{cell}");
                    continue;
                }
                let body = match path {
                    Conditional => 304,
                    Range => 206,
                    _ => 200,
                };
                match (share, brings) {
                    ("verified", Good) => {
                        assert_eq!(found.status, body, "{cell}");
                        let expected = match path {
                            Miss => "MISS",
                            Stale => "HIT-STALE",
                            _ => "HIT",
                        };
                        assert_eq!(found.cache(), expected, "{cell}");
                    }
                    ("verified", Stranger) => {
                        assert_eq!(found.status, body, "{cell}");
                        // Whatever is stored: its own request is what proves it.
                        assert_eq!((found.cache(), asked), ("MISS", 1), "{cell}");
                    }
                    ("verified", Unknown) => {
                        assert_eq!((found.status, asked), (401, 1), "{cell}");
                    }
                    // Known for what was asked, and only there.
                    ("verified", Bad) if path == Miss => {
                        assert_eq!((found.status, asked), (401, 1), "{cell}");
                    }
                    ("verified", Bad | Revoked | Malformed | Doubled) => {
                        assert_eq!((found.status, asked), (401, 0), "{cell}");
                    }
                    ("verified", Nothing) => {
                        assert_eq!((found.status, asked), (401, 1), "{cell}");
                        assert_eq!(found.cache(), "BYPASS", "{cell}");
                    }
                    // Refused wherever keys are looked at.
                    ("per-key", Revoked) => {
                        assert_eq!((found.status, asked), (401, 0), "{cell}");
                    }
                    ("per-key", Good) => {
                        // Its own answers.
                        assert_eq!(found.status, body, "{cell}");
                        let expected = match path {
                            Miss => "MISS",
                            Stale => "HIT-STALE",
                            _ => "HIT",
                        };
                        assert_eq!(found.cache(), expected, "{cell}");
                    }
                    ("per-key", Stranger | Doubled) => {
                        assert_eq!((found.status, asked), (body, 1), "{cell}");
                        assert_eq!(found.cache(), "MISS", "{cell}");
                    }
                    ("per-key", _) => assert_eq!((found.status, asked), (401, 1), "{cell}"),
                    // By the letter of RFC 9111 §3.5 the origin's s-maxage lets all share it.
                    ("standard", _) if path == Miss => {
                        let expected = if lets_in { 200 } else { 401 };
                        assert_eq!((found.status, asked), (expected, 1), "{cell}");
                    }
                    _ => assert_eq!(found.status, body, "{cell}"),
                }
            }
        }
    }
    assert_eq!(cells, 5 * 8 * 8);
}

async fn revoke(fixture: &Fixture, order: serde_json::Value) -> crate::support::Received {
    fixture.order("/revoke", &order).await
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_but_a_plain_get_proves_a_key_good_and_only_for_its_url() {
    // The origin lets BAD pass where it proves nothing, and nowhere else.
    let known = Keys::of(&[A]);
    let origin = Origin::start(move |seen| {
        let is_bad = seen.header("authorization") == Some(&format!("Bearer {BAD}"));
        match &*seen.target {
            _ if seen.method == "OPTIONS" || seen.method == "HEAD" && is_bad => ok("", &[]),
            "/login" if is_bad => {
                let fields = [("location", "/in"), ("cache-control", "max-age=60")];
                reply(302, "", &fields)
            }
            "/open" => numbered(seen, &[]),
            _ if is_bad && seen.header("if-none-match").is_some() => reply(304, "", &[]),
            _ if is_bad && seen.header("range").is_some() => {
                reply(206, "ab", &[("content-range", "bytes 0-1/6")])
            }
            _ => known.check(seen, || numbered(seen, &[])),
        }
    });
    let fixture = Fixture::in_front_of(origin.await, &verified(""));
    for target in ["/a", "/login", "/open"] {
        assert_eq!(fixture.get_as(A, target).await.status, 200);
    }
    for (method, target) in [
        ("OPTIONS", "/a"),
        ("HEAD", "/a"),
        ("GET", "/login"),
        ("GET", "/open"),
        ("POST", "/a"),
        ("GET", "/a?x=1"),
    ] {
        let fields = [("content-length", "0")];
        let authorization = format!("Bearer {BAD}");
        let own = [("authorization", authorization.as_str())];
        let mut client = fixture.connect().await;
        client
            .request(method, target, &[own, fields].concat())
            .await;
        match method {
            "HEAD" => client.head().await,
            _ => client.response().await,
        };
        let found = fixture.get_as(BAD, "/a").await;
        assert_eq!(found.status, 401, "{method} {target}");
        fixture.advance(11);
    }
    // The redirect was for BAD alone.
    assert_eq!(fixture.get_as(A, "/login").await.status, 200);
    // A condition and a range are ours to answer, so the origin is asked for the whole.
    for fields in [("if-none-match", "\"x\""), ("range", "bytes=0-1")] {
        let found = fixture.send_as(BAD, "GET", "/a", &[fields]).await;
        assert_eq!(found.status, 401, "{fields:?}");
        fixture.advance(11);
        // And a request that goes by proves nothing either.
        let by = [fields, ("if-match", "\"y\"")];
        fixture.send_as(BAD, "GET", "/a", &by).await;
        assert_eq!(fixture.get_as(BAD, "/a").await.status, 401, "{fields:?}");
        fixture.advance(11);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_verdict_reaches_as_far_as_the_route_says() {
    for (scope, questions) in [("url", 3), ("route", 2), ("all", 1)] {
        let keys = Keys::of(&[A]);
        let known = keys.clone();
        let verifier = Origin::start(move |seen| known.check(seen, || ok("", &[]))).await;
        let auth = format!("[auth]\n{UNPROVED}source = \"{}/me\"\n", verifier.url());
        let routes = ["/a/{x}", "/b/{x}"].map(|path| {
            format!(
                "[[route]]\npath = \"{path}\"\nshare = \"verified\"\nforce_ttl \
                = \"60s\"\nverdict_scope = \"{scope}\"\n"
            )
        });
        let fixture = guarded(&(auth + &routes.concat()), &keys).await;
        for target in ["/a/1", "/a/2", "/b/1"] {
            assert_eq!(fixture.get_as(A, target).await.status, 200);
        }
        assert_eq!(verifier.count(), questions, "{scope}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_the_origin_refuses_in_one_field_is_not_locked_out_of_the_other() {
    let keys = Keys::of(&[A]);
    let fixture = guarded(&verified(""), &keys).await;
    fixture.get_as(A, "/a").await;
    // The deployed origin ignores X-API-Key: a good key there is refused.
    let refused = fixture.get_with("/a", &[("x-api-key", A)]).await;
    assert_eq!(refused.status, 401);
    assert_eq!(status(&fixture.get_as(A, "/a").await), (200, "HIT"));
    let bare = fixture.get_with("/a", &[("authorization", A)]).await;
    assert_eq!(status(&bare), (200, "MISS"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_key_is_refused_at_once_whatever_its_verdict() {
    let keys = Keys::of(&[A, B]);
    let fixture = guarded(&verified(""), &keys).await;
    for key in [A, B] {
        fixture.get_as(key, "/a").await;
        assert_eq!(fixture.get_as(key, "/a").await.cache(), "HIT");
    }
    let answer = revoke(&fixture, json!({"key": A})).await;
    assert_eq!(
        (answer.status, &answer.json()["state"]),
        (200, &json!("done"))
    );
    assert!(!answer.text().contains(A));
    for target in ["/a", "/other"] {
        assert_eq!(fixture.get_as(A, target).await.status, 401);
    }
    assert_eq!(fixture.get_as(B, "/a").await.cache(), "HIT");
    fixture.advance(3600);
    assert_eq!(fixture.get_as(A, "/a").await.status, 401);
    // Taken back: its source is asked.
    revoke(&fixture, json!({"key": A, "restore": true})).await;
    assert_eq!(status(&fixture.get_as(A, "/a").await), (200, "MISS"));
    for (order, says) in [
        (json!({}), "expected"),
        (json!({"key": A, "digest": "00"}), "expected"),
        (json!({"digest": "zz"}), "64 hexadecimal"),
        (json!({"keys": A}), "unknown field"),
    ] {
        let answer = revoke(&fixture, order).await;
        assert_eq!(answer.status, 400);
        assert!(answer.text().contains(says), "{}", answer.text());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_on_its_way_does_not_make_a_revoked_key_good_again() {
    let keys = Keys::of(&[A, B]);
    let (known, gate) = (keys.clone(), Gate::new());
    let held = gate.clone();
    let origin = Origin::start(move |seen| {
        let reply = known.check(seen, || numbered(seen, &[]));
        match seen.number {
            2 => after(&held, reply),
            _ => reply,
        }
    });
    let fixture = std::sync::Arc::new(Fixture::in_front_of(origin.await, &verified("")));
    fixture.get_as(B, "/a").await;
    let asking = {
        let fixture = fixture.clone();
        tokio::spawn(async move { fixture.get_as(A, "/a").await.status })
    };
    fixture.origin.asked(2).await;
    revoke(&fixture, json!({"key": A})).await;
    revoke(&fixture, json!({"key": A, "restore": true})).await;
    keys.revoke(A);
    gate.open();
    assert_eq!(asking.await.unwrap(), 200);
    assert_eq!(fixture.get_as(A, "/a").await.status, 401);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_the_origin_revokes_is_refused_from_its_next_refresh_on() {
    let keys = Keys::of(&[A, B]);
    let fixture = guarded(&verified("stale_while_revalidate = \"1h\""), &keys).await;
    fixture.get_as(A, "/a").await;
    fixture.get_as(B, "/a").await;
    keys.revoke(A);
    fixture.advance(61);
    // Answered from stale; the refresh behind it meets the refusal.
    assert_eq!(status(&fixture.get_as(A, "/a").await), (200, "HIT-STALE"));
    fixture
        .metric_reaches(
            "auth_verdicts_total{source=\"origin\",outcome=\"bad\"}",
            1.0,
        )
        .await;
    assert_eq!(fixture.get_as(A, "/a").await.status, 401);
    // Others are not kept from refreshing it.
    assert_eq!(status(&fixture.get_as(B, "/a").await), (200, "HIT-STALE"));
    fixture
        .metric_reaches("cache_background_refreshes_total{result=\"replaced\"}", 1.0)
        .await;
    assert_eq!(status(&fixture.get_as(B, "/a").await), (200, "HIT"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_of_the_key_table_locks_nobody_out_who_was_good_a_moment_ago() {
    let keys = Keys::of(&[A, B, C]);
    let fixture = guarded(
        &verified("stale_if_error = \"1h\"\nmax_ttl = \"20s\""),
        &keys,
    )
    .await;
    for key in [A, B, C] {
        fixture.get_as(key, "/a").await;
    }
    keys.go_down(true);
    fixture.advance(21);
    // Alone it looks like a revocation.
    assert_eq!(fixture.get_as(A, "/a").await.status, 401);
    // A second one refused: an outage, and stale stands in, for the first again too.
    for key in [B, A, C, B] {
        let found = fixture.get_as(key, "/a").await;
        assert_eq!(
            status(&found),
            (200, "HIT-STALE"),
            "{key}: {}",
            found.text()
        );
    }
    // Strangers cannot be told from good ones: 503, and not held against them.
    let stranger = fixture.get_as(BAD, "/a").await;
    assert_eq!(stranger.status, 503, "{}", stranger.text());
    assert_eq!(stranger.json()["error"]["code"], "KEY_NOT_VERIFIED");
    assert!(stranger.header("retry-after").is_some());
    // What is not stored cannot be given.
    assert_eq!(fixture.get_as(B, "/b").await.status, 503);
    // Sixty seconds after its last good answer, and not longer.
    fixture.advance(38);
    fixture.get_as(B, "/a").await;
    fixture.get_as(C, "/a").await;
    assert_eq!(status(&fixture.get_as(B, "/a").await), (200, "HIT-STALE"));
    fixture.advance(3);
    for key in [B, C] {
        assert_ne!(fixture.get_as(key, "/a").await.status, 200, "{key}");
    }
    keys.go_down(false);
    fixture.advance(11);
    for key in [A, B, C] {
        assert_eq!(fixture.get_as(key, "/a").await.status, 200);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lone_keys_refusal_is_a_revocation_unless_it_is_given_grace() {
    for (lone, expected) in [("revoke", 401), ("grace", 200)] {
        let keys = Keys::of(&[A]);
        let config = verified_by(
            &format!("lone_key = \"{lone}\""),
            "stale_if_error = \"1h\"\nmax_ttl = \"20s\"",
        );
        let fixture = guarded(&config, &keys).await;
        fixture.get_as(A, "/a").await;
        keys.go_down(true);
        fixture.advance(21);
        assert_eq!(fixture.get_as(A, "/a").await.status, expected, "{lone}");
        // A revocation by hand wins in any case.
        revoke(&fixture, json!({"key": A})).await;
        assert_eq!(fixture.get_as(A, "/a").await.status, 401, "{lone}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_probe_key_tells_an_outage_from_a_revocation() {
    let probe = "sk_live_pppppppppppppppppppppppp";
    for is_outage in [true, false] {
        let keys = Keys::of(&[A, B, probe]);
        let config = verified_by(
            &format!("probe_key = \"{probe}\""),
            "stale_if_error = \"1h\"\nmax_ttl = \"20s\"",
        );
        let fixture = guarded(&config, &keys).await;
        for key in [A, B] {
            fixture.get_as(key, "/a").await;
        }
        if is_outage {
            keys.go_down(true);
        } else {
            keys.revoke(A);
            keys.revoke(B);
        }
        fixture.advance(21);
        for key in [A, B] {
            let found = fixture.get_as(key, "/a").await;
            let expected = if is_outage { 200 } else { 401 };
            assert_eq!(
                found.status,
                expected,
                "{is_outage} {key}: {}",
                found.text()
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_origin_that_fails_is_neither_good_nor_bad() {
    let keys = Keys::of(&[A, B]);
    let fixture = guarded(&verified("stale_if_error = \"1h\""), &keys).await;
    fixture.get_as(A, "/a").await;
    let origin_error = {
        keys.fail(true);
        fixture.get_as(B, "/a").await
    };
    // It says nothing of that key, and goes to its asker as it came.
    assert_eq!(origin_error.status, 500);
    assert_eq!(origin_error.text(), "{\"error\":\"Failed\"}");
    fixture.advance(61);
    assert_eq!(status(&fixture.get_as(A, "/a").await), (200, "HIT-STALE"));
    keys.fail(false);
    assert_eq!(fixture.get_as(B, "/a").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_origin_that_is_gone_is_503_for_unknown_keys_and_stale_for_good_ones() {
    let keys = Keys::of(&[A, B]);
    let mut fixture = guarded(&verified("stale_if_error = \"1h\""), &keys).await;
    fixture.get_as(A, "/a").await;
    fixture.origin.stop().await;
    fixture.advance(61);
    assert_eq!(status(&fixture.get_as(A, "/a").await), (200, "HIT-STALE"));
    let unknown = fixture.get_as(B, "/a").await;
    assert_eq!(unknown.status, 503, "{}", unknown.text());
    assert_eq!(unknown.json()["error"]["code"], "KEY_NOT_VERIFIED");
    // Its verdict has ended, and so has its grace.
    fixture.advance(300);
    assert_eq!(fixture.get_as(A, "/a").await.status, 503);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_unknown_keys_reaches_the_origin_so_often_a_second_and_harms_nobody() {
    let keys = Keys::of(&[A]);
    let config = verified_by("unknown_per_second = 20\nverdicts = 200", "");
    let fixture = std::sync::Arc::new(guarded(&config, &keys).await);
    fixture.get_as(A, "/a").await;
    let before = fixture.origin.count();
    let mut turned_away = 0;
    for second in 0..5 {
        let flood = all((0..200).map(|number| {
            let fixture = fixture.clone();
            async move {
                let key = format!("sk_live_flood{second:08}{number:08}");
                fixture.get_as(&key, "/a").await.status
            }
        }))
        .await;
        assert!(
            flood.iter().all(|status| matches!(status, 401 | 503)),
            "{flood:?}"
        );
        turned_away += flood.iter().filter(|status| **status == 503).count();
        assert_eq!(status(&fixture.get_as(A, "/a").await).0, 200);
        fixture.advance(1);
    }
    let asked = fixture.origin.count() - before;
    // One of the first second was for A.
    assert_eq!(asked, 99);
    assert_eq!(turned_away, 1000 - asked);
    assert_eq!(status(&fixture.get_as(A, "/a").await), (200, "HIT"));
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_with_one_unknown_key_are_one_question() {
    for (key, expected) in [(B, 200), (BAD, 401)] {
        let keys = Keys::of(&[A, B]);
        let (known, gate) = (keys.clone(), Gate::new());
        let held = gate.clone();
        let origin = Origin::start(move |seen| {
            let reply = known.check(seen, || numbered(seen, &[]));
            match seen.number {
                1 => reply,
                _ => after(&held, reply),
            }
        });
        let fixture = std::sync::Arc::new(Fixture::in_front_of(origin.await, &verified("")));
        fixture.get_as(A, "/a").await;
        let before = fixture.origin.count();
        let asking: Vec<_> = (0..20)
            .map(|_| {
                let fixture = fixture.clone();
                tokio::spawn(async move { fixture.get_as(key, "/a").await.status })
            })
            .collect();
        fixture.origin.asked(before + 1).await;
        fixture.metric_reaches("server_connections", 20.0).await;
        gate.open();
        for status in asking {
            assert_eq!(status.await.unwrap(), expected);
        }
        assert_eq!(fixture.origin.count(), before + 1, "{key}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_leader_does_not_turn_its_waiters_loose() {
    let keys = Keys::of(&[A, B]);
    let (known, gate) = (keys.clone(), Gate::new());
    let held = gate.clone();
    let origin = Origin::start(move |seen| {
        if seen.number == 3 {
            return after(&held, reply(401, "{}", &[]));
        }
        known.check(seen, || numbered(seen, &[]))
    });
    let fixture = std::sync::Arc::new(Fixture::in_front_of(origin.await, &verified("")));
    fixture.get_as(A, "/b").await;
    fixture.get_as(B, "/b").await;
    fixture.order("/purge", &json!({"all": true})).await;
    let ask = |key: &'static str| {
        let fixture = fixture.clone();
        tokio::spawn(async move { fixture.get_as(key, "/b").await.status })
    };
    let leader = ask(A);
    fixture.origin.asked(3).await;
    let waiters: Vec<_> = (0..20).map(|_| ask(B)).collect();
    fixture.metric_reaches("server_connections", 21.0).await;
    gate.open();
    assert_eq!(leader.await.unwrap(), 401);
    for waiter in waiters {
        assert_eq!(waiter.await.unwrap(), 200);
    }
    assert!(fixture.origin.count() <= 5, "{}", fixture.origin.count());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_connection_names_is_not_smuggled_away() {
    let keys = Keys::of(&[A]);
    let config = format!(
        "[cache]\ncredential_fields = [\"authorization\", \"x-key\"]\n{}",
        verified("")
    );
    let fixture = guarded(&config, &keys).await;
    fixture.get_as(A, "/a").await;
    for named in ["authorization", "x-key", "authorization, x-key"] {
        let fields = [("x-key", BAD), ("connection", named)];
        let found = fixture.get_with("/a", &fields).await;
        assert_eq!(found.status, 401, "{named}");
        let authorization = format!("Bearer {BAD}");
        let fields = [
            ("authorization", authorization.as_str()),
            ("connection", named),
        ];
        let found = fixture.get_with("/a", &fields).await;
        assert_eq!(found.status, 401, "{named}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn cookies_can_be_credentials() {
    let origin = Origin::start(|seen| match seen.header("cookie") {
        Some("session=good" | "session=other") => numbered(seen, &[]),
        _ => reply(401, "{}", &[]),
    });
    let config = format!(
        "[cache]\ncredential_cookies = [\"session\"]\n{}",
        verified("cookies = \"store\"")
    );
    let fixture = Fixture::in_front_of(origin.await, &config);
    let with = |value: &'static str| {
        let fixture = &fixture;
        async move { fixture.get_with("/a", &[("cookie", value)]).await }
    };
    assert_eq!(status(&with("session=good").await), (200, "MISS"));
    assert_eq!(status(&with("session=good").await), (200, "HIT"));
    assert_eq!(with("session=bad").await.status, 401);
    assert_eq!(with("session=good; session=good").await.status, 401);
    assert_eq!(with("other=1").await.status, 401);
    assert_eq!(status(&with("session=other").await), (200, "MISS"));
}

#[tokio::test(flavor = "multi_thread")]
async fn good_verdicts_end_and_are_renewed_by_the_request_that_finds_them_ended() {
    let keys = Keys::of(&[A]);
    let fixture = guarded(
        &verified("force_ttl = \"1h\"").replacen("force_ttl = \"60s\"\n", "", 1),
        &keys,
    )
    .await;
    fixture.get_as(A, "/a").await;
    fixture.advance(269);
    assert_eq!(status(&fixture.get_as(A, "/a").await), (200, "HIT"));
    fixture.advance(32);
    assert_eq!(status(&fixture.get_as(A, "/a").await), (200, "MISS"));
    assert_eq!(fixture.origin.count(), 2);
}
