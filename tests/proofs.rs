//! What proves a key, what teaches nothing of it, and where a revoked one is refused.

use serde_json::json;

use crate::support::fleet::Fleet;
use crate::support::keys::{Keys, UNPROVED, guarded, verified};
use crate::support::redis::RedisServer;
use crate::support::{Fixture, Origin, numbered, ok, reply};

const A: &str = "sk_live_aaaaaaaaaaaaaaaaaaaaaaaa";
const B: &str = "sk_live_bbbbbbbbbbbbbbbbbbbbbbbb";
const C: &str = "sk_live_cccccccccccccccccccccccc";
const BAD: &str = "sk_live_xxxxxxxxxxxxxxxxxxxxxxxx";

#[tokio::test]
async fn an_origins_own_error_goes_to_its_asker_as_it_came() {
    let keys = Keys::of(&[A, B]);
    let known = keys.clone();
    let origin = Origin::start(move |seen| {
        known.check(seen, || match seen.target.as_str() {
            "/a?fromDate=nonsense" => reply(500, "no date", &[("x-own", "1")]),
            "/a?slow" => reply(503, "later", &[("retry-after", "7")]),
            _ => numbered(seen, &[]),
        })
    })
    .await;
    let fixture = Fixture::in_front_of(origin, &verified(""));
    for key in [A, B] {
        // Whether it is known as good elsewhere or not, and when it comes twenty times at once.
        let received = fixture.get_as(key, "/a?fromDate=nonsense").await;
        let own = received.header("x-own").map(str::to_owned);
        assert_eq!((received.status, own.as_deref()), (500, Some("1")));
        assert_eq!(received.text(), "no date");
        let head = fixture.send_as(key, "HEAD", "/a?fromDate=nonsense", &[]);
        assert_eq!(head.await.status, 500);
        let many = (0..20).map(|_| fixture.get_as(key, "/a?slow"));
        for received in futures_util::future::join_all(many).await {
            assert_eq!(received.status, 503);
            assert_eq!(received.header("retry-after"), Some("7"));
            assert_eq!(received.text(), "later");
        }
        // Nothing was learned of the key: neither good nor bad.
        assert_eq!(fixture.get_as(key, "/a").await.status, 200);
    }
    assert_eq!(
        fixture.get_as(BAD, "/a?fromDate=nonsense").await.status,
        401
    );
    // A source that cannot be asked is another thing.
    let mut fixture = fixture;
    fixture.origin.stop().await;
    let received = fixture.get_as(A, "/other").await;
    assert_eq!(received.status, 503);
    assert_eq!(received.json()["error"]["code"], "KEY_NOT_VERIFIED");
}

#[tokio::test]
async fn a_revoked_key_is_refused_wherever_keys_are_told_apart() {
    let rule = |path: &str, share: &str| {
        format!(
            "[[route]]\npath = \"{path}\"\nmethods = [\"GET\", \"HEAD\", \"POST\"]\nshare \
                = \"{share}\"\nttl = \"1h\"\n"
        )
    };
    let text = [
        format!("[auth]\n{UNPROVED}"),
        rule("/own", "per-key"),
        rule("/all", "verified"),
        rule("/open", "standard"),
    ]
    .concat();
    let keys = Keys::of(&[A, B]);
    let fixture = guarded(&text, &keys).await;
    for path in ["/own", "/all", "/open"] {
        for method in ["GET", "HEAD", "POST"] {
            for key in [A, B] {
                let received = fixture.send_as(key, method, path, &[]).await;
                assert_eq!(received.status, 200, "{method} {path}");
            }
        }
    }
    fixture.order("/revoke", &json!({"key": A})).await;
    let asked = fixture.origin.count();
    for path in ["/own", "/all"] {
        for method in ["GET", "HEAD"] {
            let received = fixture.send_as(A, method, path, &[]).await;
            assert_eq!(received.status, 401, "{method} {path}");
        }
        for scheme in [
            "",
            "bearer ",
            "BEARER ",
            "Bearer  ",
            "Token ",
            "Basic x, Bearer ",
        ] {
            for name in ["x-api-key", "authorization"] {
                let value = format!("{scheme}{A}");
                for fields in [
                    &[(name, value.as_str())][..],
                    &[(name, value.as_str()), ("proxy-authorization", "NTLM x")],
                ] {
                    let received = fixture.get_with(path, fields).await;
                    assert_eq!(received.status, 401, "{fields:?} {path}");
                }
            }
        }
        let told = format!("/explain?url={path}&header=authorization:Bearer%20{A}");
        assert_eq!(fixture.admin(&told).await.json()["status"], 401);
    }
    assert_eq!(fixture.origin.count(), asked);
    // Beside another one too, where two are no mistake.
    let both = [("x-api-key", A)];
    assert_eq!(fixture.send_as(B, "GET", "/own", &both).await.status, 401);
    for (key, path) in [(B, "/own"), (B, "/all"), (A, "/open")] {
        assert_eq!(fixture.get_as(key, path).await.status, 200, "{path}");
    }
    // A write is the origin's to refuse.
    assert_eq!(fixture.send_as(A, "POST", "/own", &[]).await.status, 200);
}

#[tokio::test]
async fn a_connection_that_authenticates_its_user_is_nobody_elses() {
    let rules = "[listen]\nworkers = 1\n[[route]]\npath = \"/own\"\nshare = \"per-key\"\nttl \
        = \"1h\"\n[[route]]\npath = \"/all\"\nshare = \"verified\"\nttl = \"1h\"\n[[route]]\npath \
        = \"/{*rest}\"\nttl = \"1h\"\n";
    let fixture = Fixture::start(rules, |seen| {
        let text = format!("{} of {}", seen.on_connection, seen.number);
        let challenge = match seen.header("x-wants").unwrap_or_default() {
            "" => return reply(200, text, &[("cache-control", "public")]),
            "persistent" => return reply(200, text, &[("persistent-auth", "true")]),
            challenge => challenge.to_owned(),
        };
        reply(401, text, &[("www-authenticate", &challenge)])
    })
    .await;
    let mut number = 0;
    for fields in [
        [("authorization", "NTLM TlRMTVNTUAAB")],
        [("authorization", "negotiate YII")],
        [("x-wants", "NTLM")],
        [("x-wants", "Basic realm=\"a, b\", Negotiate")],
        [("x-wants", "Basic realm=\"a, NTLM")],
        [("x-wants", "Basic realm=a NTLM")],
        [("authorization", "NTLM,x")],
        [("x-wants", "persistent")],
    ] {
        for path in ["/own", "/all", "/open"] {
            for method in ["GET", "POST"] {
                let mut answers = Vec::new();
                for _ in 0..2 {
                    let received = fixture.connect().await.ask(method, path, &fields).await;
                    answers.push(received.text());
                }
                assert_ne!(answers[0], answers[1], "{method} {path} {fields:?}");
                // The next one, whoever that is, gets a connection of its own.
                number += 1;
                let next = fixture.get(&format!("/{number}")).await.text();
                assert!(
                    next.starts_with("1 of "),
                    "{method} {path} {fields:?}: {next}"
                );
            }
        }
    }
    // Others are kept.
    fixture.get("/x").await;
    assert!(!fixture.get("/y").await.text().starts_with("1 of "));
}

/// Answers a login page to whoever looks like a browser, whatever its key; else as the key says.
async fn before_a_login_page(rules: &str, keys: &Keys) -> Fixture {
    let known = keys.clone();
    let origin = Origin::start(move |seen| {
        let is_asked = |name: &str| seen.header(name).is_some();
        let fooled = ["cookie", "purpose", "x-debug", "user-agent", "origin"];
        let wants_page = seen.header("accept").is_some_and(|accept| accept != "*/*");
        if wants_page || fooled.into_iter().any(is_asked) {
            return reply(200, "log in", &[("cache-control", "max-age=60")]);
        }
        known.check(seen, || {
            let traced = seen.header("traceparent").unwrap_or("untraced");
            ok(format!("data {traced}"), &[("cache-control", "max-age=60")])
        })
    })
    .await;
    Fixture::in_front_of(origin, rules)
}

#[tokio::test]
async fn a_key_is_proved_by_what_is_composed_and_by_nothing_else_that_a_client_sends() {
    let keys = Keys::of(&[A, B]);
    for rules in [
        verified(""),
        verified("").replace("force_ttl", "ttl"),
        verified("cookies = \"ignore\""),
    ] {
        // What traces a request is inert, and here it would only be told apart.
        let rules = format!("[trace]\nstart = false\n{rules}");
        let fixture = before_a_login_page(&rules, &keys).await;
        for (number, field) in [
            ("accept", "text/html"),
            ("cookie", "session=LOW"),
            ("purpose", "prefetch"),
            ("x-debug", "1"),
            ("user-agent", "browser"),
            ("origin", "https://app.example"),
        ]
        .into_iter()
        .enumerate()
        {
            let path = format!("/{number}");
            for key in [BAD, A, BAD, B, BAD] {
                fixture.send_as(key, "GET", &path, &[field]).await;
                let received = fixture.get_as(key, &path).await;
                let expected = if key == BAD { 401 } else { 200 };
                assert_eq!(received.status, expected, "{field:?} {key}");
                assert_ne!(received.text(), "log in", "{field:?} {key}");
            }
            let with = fixture.send_as(A, "GET", &path, &[field]).await;
            if field.0 != "cookie" {
                assert_eq!(
                    (with.cache(), with.text().as_str()),
                    ("HIT", "data untraced")
                );
            }
        }
        // What is inert is told.
        let traced = [("traceparent", "00-1-2-01")];
        let received = fixture.send_as(A, "GET", "/traced", &traced).await;
        assert_eq!(received.text(), "data 00-1-2-01");
    }
    // What the route lists selects, and is the operator's word.
    let rules = verified("forward_headers = [\"accept\"]");
    let fixture = before_a_login_page(&rules, &keys).await;
    let page = [("accept", "text/html")];
    let received = fixture.send_as(A, "GET", "/a", &page).await;
    assert_eq!(received.text(), "log in");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_revocation_is_forgotten_however_many_there_are() {
    let redis = RedisServer::start(&[]).await;
    let url = redis.url();
    let keys = Keys::of(&[A, B, C]);
    let known = keys.clone();
    let mut fleet = Fleet::start(&[&url], &verified(""), move |seen| {
        known.check(seen, || numbered(seen, &[]))
    })
    .await;
    fleet
        .order(0, "/revoke", &json!({"key": A}).to_string())
        .await;
    // As many as other instances may have revoked before.
    let many = "for i = 1, 40000 do redis.call('HSET', KEYS[1], string.format('%032d', i), 1) end";
    redis
        .ask(&format!("EVAL \"{many}\" 1 iris:{{purges}}revoked"))
        .await;
    let size = redis.ask("HLEN iris:{purges}revoked").await;
    assert_eq!(size.as_deref(), Some(":40001\r\n"));
    let fresh = fleet.join(&url).await;
    fleet
        .order(fresh, "/revoke", &json!({"key": B}).to_string())
        .await;
    for key in [A, B] {
        assert_eq!(fleet.get_as(fresh, key, "/a").await.status, 401, "{key}");
    }
    assert_eq!(fleet.get_as(fresh, C, "/a").await.status, 200);
    // Redis forgets everything: it is told again, and nobody who asks meanwhile waits for that.
    redis.ask("FLUSHALL").await;
    let told = async {
        let size = async || redis.ask("HLEN iris:{purges}revoked").await;
        while size().await.as_deref() != Some(":40002\r\n") {
            assert_eq!(fleet.get_as(0, C, "/a").await.status, 200);
            assert_eq!(fleet.get_as(fresh, A, "/a").await.status, 401);
        }
    };
    tokio::time::timeout(crate::support::PATIENCE, told)
        .await
        .expect("it is told again");
    let later = fleet.join(&url).await;
    for key in [A, B] {
        assert_eq!(fleet.get_as(later, key, "/a").await.status, 401, "{key}");
    }
    assert_eq!(fleet.get_as(later, C, "/a").await.status, 200);
}

#[tokio::test]
async fn which_field_carries_the_key_is_the_routes_word() {
    // Under /x the origin goes by X-API-Key, and elsewhere by Authorization alone.
    let origin = Origin::start(|seen| {
        let name = if seen.target.starts_with("/x") {
            "x-api-key"
        } else {
            "authorization"
        };
        let given = seen.header(name).unwrap_or_default();
        match given.strip_prefix("Bearer ").unwrap_or(given) {
            A | B => numbered(seen, &[]),
            _ => reply(401, "{}", &[]),
        }
    })
    .await;
    let rule = |path: &str, share: &str, more: &str| {
        format!("[[route]]\npath = \"{path}\"\nshare = \"{share}\"\nforce_ttl = \"1h\"\n{more}")
    };
    let word = "credential_fields = [\"x-api-key\"]\n";
    let text = [
        format!("[cache]\ncredential_fields = [\"authorization\"]\n[auth]\n{UNPROVED}"),
        rule("/x/all", "verified", word),
        rule("/x/own", "per-key", word),
        rule("/all", "verified", ""),
        rule("/own", "per-key", ""),
    ]
    .concat();
    let fixture = Fixture::in_front_of(origin, &text);
    let value_of = |field: &str, key: &str| match field {
        "authorization" => format!("Bearer {key}"),
        _ => key.to_owned(),
    };
    let with = async |field: &str, key: &str, path: &str| {
        let value = value_of(field, key);
        let found = fixture.get_with(path, &[(field, &value)]).await;
        (found.status, found.cache().to_owned(), found.text())
    };
    for (field, other, prefix) in [
        ("x-api-key", "authorization", "/x"),
        ("authorization", "x-api-key", ""),
    ] {
        let [all, own] = ["all", "own"].map(|name| format!("{prefix}/{name}"));
        // Shared by good keys in the field that counts.
        assert_eq!(with(field, A, &all).await.0, 200);
        let proved = with(field, B, &all).await;
        assert_eq!((proved.0, proved.1.as_str()), (200, "MISS"));
        let hit = with(field, A, &all).await;
        assert_eq!((hit.1.as_str(), hit.2), ("HIT", proved.2));
        // Each its own.
        let [one, two] = [with(field, A, &own).await.2, with(field, B, &own).await.2];
        assert_ne!(one, two);
        assert_eq!(with(field, A, &own).await.2, one);
        // One that the route does not name is not told, so that it chooses no answer; but
        // Authorization says who asks everywhere, so who sends it too is somebody else.
        let target = format!("{own}?both");
        let both = [(field, value_of(field, A)), (other, value_of(other, B))];
        let both = both.each_ref().map(|(name, value)| (*name, value.as_str()));
        assert_eq!(fixture.get_with(&target, &both).await.status, 200);
        let (told, is_other) = (fixture.origin.last(), other == "authorization");
        assert_eq!(told.header(other).is_some(), is_other, "{other}");
        let expected = if is_other { "MISS" } else { "HIT" };
        assert_eq!(with(field, A, &target).await.1, expected, "{other}");
        // A good key where the origin does not look opens nothing.
        for path in [&all, &own] {
            assert_eq!(with(other, A, path).await.0, 401, "{other} {path}");
        }
    }
}
