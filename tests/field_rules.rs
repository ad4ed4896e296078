//! Fields by the operator's rules, on their way to the origin and to clients; and preflights of
//! CORS.

use iris_sidecar::config::Config;

use crate::support::fleet::Fleet;
use crate::support::keys::verified_by;
use crate::support::redis::RedisServer;
use crate::support::{Client, Fixture, Origin, Seen, Step, numbered, ok, reply, route};

fn echo(seen: &Seen) -> Vec<Step> {
    let said = |name: &str| seen.header(name).unwrap_or("-").to_owned();
    let text = format!(
        "{} {} {} {}",
        said("x-tier"),
        said("x-from"),
        said("x-debug"),
        said("x-id")
    );
    ok(text, &[("server", "origin"), ("x-a", "1")])
}

#[tokio::test]
async fn the_origin_gets_what_the_rules_say_and_another_rule_is_another_key() {
    let rules = |tier: &str| {
        route(&format!(
            "ttl = \"1h\"\nrequest_headers = {{ set = {{ x-tier = \"{tier}\" }}, add = {{ x-from \
                = \"{{client}} by {{route}}\", x-id = \"{{request_id}}\" }}, remove = \
                [\"x-debug\"] }}"
        ))
    };
    let origin = Origin::start(echo).await;
    let fixture = Fixture::with_file(origin, &rules("gold"));
    let fields = [
        ("x-tier", "forged"),
        ("x-debug", "1"),
        ("x-request-id", "id-7"),
    ];
    let said = "gold 127.0.0.1 by /{*rest} - id-7";
    assert_eq!(fixture.get_with("/a", &fields).await.text(), said);
    let again = fixture.get("/a").await;
    assert_eq!((again.text().as_str(), again.cache()), (said, "HIT"));
    fixture.write_file(&rules("silver"));
    let admin = fixture.sidecar().admin_address;
    assert_eq!(Client::order(admin, "/reload", "{}").await.status, 200);
    let other = fixture.get("/a").await;
    assert!(
        other.text().starts_with("silver ") && other.cache() == "MISS",
        "{}",
        other.text()
    );
}

#[tokio::test]
async fn clients_get_what_the_rules_say_and_what_is_stored_stays_as_it_came() {
    let rules = |more: &str| route(&format!("ttl = \"1h\"\n{more}"));
    let ours = rules(
        "response_headers = { set = { x-a = \"2\", x-via = \"{client}\" }, add = { link \
            = \"</a>\" }, remove = [\"server\"] }",
    );
    let origin = Origin::start(|seen| match seen.target.as_str() {
        "/down" => vec![Step::Close],
        _ => echo(seen),
    })
    .await;
    let fixture = Fixture::with_file(origin, &ours);
    let mut client = fixture.connect().await;
    for (method, target, result) in [
        ("GET", "/a", "MISS"),
        ("GET", "/a", "HIT"),
        ("HEAD", "/a", "HIT"),
        ("GET", "/down", "MISS"),
    ] {
        let answer = client.ask(method, target, &[]).await;
        assert_eq!(answer.cache(), result, "{method} {target}");
        assert_eq!(answer.header("x-a"), Some("2"), "{method} {target}");
        assert_eq!(answer.header("x-via"), Some("127.0.0.1"));
        assert_eq!(
            (answer.header("link"), answer.header("server")),
            (Some("</a>"), None)
        );
    }
    let etag = client
        .ask("GET", "/a", &[])
        .await
        .header("etag")
        .map(str::to_owned);
    if let Some(etag) = etag {
        let same = client.ask("GET", "/a", &[("if-none-match", &etag)]).await;
        assert_eq!((same.status, same.header("x-a")), (304, Some("2")));
    }
    // No route, no rules.
    assert_eq!(client.ask("POST", "/a", &[]).await.header("x-a"), Some("1"));
    fixture.get("/b").await;
    fixture.write_file(&rules(""));
    let admin = fixture.sidecar().admin_address;
    assert_eq!(Client::order(admin, "/reload", "{}").await.status, 200);
    let answer = fixture.get("/b").await;
    assert_eq!(
        (
            answer.cache(),
            answer.header("x-a"),
            answer.header("server")
        ),
        ("HIT", Some("1"), Some("origin"))
    );
}

#[tokio::test]
async fn pages_of_listed_origins_may_read_answers_and_ask_before() {
    let app = "https://app.example";
    let text = route(&format!(
        "ttl = \"1h\"\nmethods = [\"GET\", \"HEAD\", \"PUT\"]\ncors = {{ origins = [\"{app}\"], \
            expose = [\"etag\"], credentials = true }}"
    ));
    let fixture = Fixture::start(&text, |seen| {
        numbered(
            seen,
            &[("access-control-allow-origin", "*"), ("vary", "accept")],
        )
    })
    .await;
    let mut client = fixture.connect().await;
    let asked = |origin: &'static str, method: &'static str| {
        [
            ("origin", origin),
            ("access-control-request-method", method),
            ("access-control-request-headers", "x-key, content-type"),
        ]
    };
    let answer = client.ask("OPTIONS", "/a", &asked(app, "PUT")).await;
    assert_eq!((answer.status, answer.body.len()), (204, 0));
    for (name, value) in [
        ("access-control-allow-origin", app),
        ("access-control-allow-methods", "GET, HEAD, PUT"),
        ("access-control-allow-headers", "x-key, content-type"),
        ("access-control-allow-credentials", "true"),
        ("access-control-max-age", "600"),
    ] {
        assert_eq!(answer.header(name), Some(value), "{name}");
    }
    assert!(
        answer.cache_status().contains("preflight"),
        "{}",
        answer.cache_status()
    );
    let asks = "url=http://api.example/a&method=OPTIONS&header=origin:x&header=access-control-request-method:PUT";
    let told = fixture.admin(&format!("/explain?{asks}")).await.json();
    assert_eq!(
        (&told["reason"], &told["route"]["path"]),
        (&"preflight".into(), &"/{*rest}".into()),
        "{told}"
    );
    // Another one is answered too, and allowed nothing.
    let stranger = client
        .ask("OPTIONS", "/a", &asked("https://evil.example", "PUT"))
        .await;
    assert_eq!(
        (
            stranger.status,
            stranger.header("access-control-allow-origin")
        ),
        (204, None)
    );
    assert_eq!(fixture.origin.count(), 0);
    // What no route takes is the origin's to answer; so is what is no preflight.
    client.ask("OPTIONS", "/a", &asked(app, "DELETE")).await;
    client.ask("OPTIONS", "/a", &[("origin", app)]).await;
    assert_eq!(fixture.origin.count(), 2);
    for (origin, allowed, result) in [
        (Some(app), Some(app), "MISS"),
        (Some("https://evil.example"), None, "HIT"),
        (None, None, "HIT"),
        (Some(app), Some(app), "HIT"),
    ] {
        let fields: Vec<(&str, &str)> = origin.iter().map(|origin| ("origin", *origin)).collect();
        let answer = client.ask("GET", "/a", &fields).await;
        assert_eq!(answer.cache(), result, "{origin:?}");
        assert_eq!(answer.header("access-control-allow-origin"), allowed);
        assert!(answer.text().parse::<u64>().is_ok());
    }
}

#[test]
fn fields_that_are_not_the_operators_are_mistakes() {
    for (keys, expected) in [
        (
            "request_headers = { set = { host = \"a\" } }",
            "that is not decided elsewhere",
        ),
        (
            "request_headers = { set = { If-None-Match = \"a\" } }",
            "that is not decided elsewhere",
        ),
        (
            "request_headers = { remove = [\"range\"] }",
            "that is not decided elsewhere",
        ),
        (
            "request_headers = { set = { connection = \"close\" } }",
            "that is not decided elsewhere",
        ),
        (
            "request_headers = { set = { x-a = \"{nobody}\" } }",
            "no places but {client}, {route}, {request_id}",
        ),
        (
            "request_headers = { set = { x-a = \"a\\nb\" } }",
            "expected a field value",
        ),
        (
            "share = \"per-key\"\nrequest_headers = { set = { authorization = \"k\" } }",
            "that is not decided elsewhere",
        ),
        (
            "response_headers = { set = { age = \"1\" } }",
            "that is not decided elsewhere",
        ),
        (
            "response_headers = { put = { x-a = \"1\" } }",
            "unknown key \"put\"",
        ),
        ("cors = { }", "has no origins"),
        (
            "cors = { origins = [\"app.example\"] }",
            "an origin such as",
        ),
    ] {
        let text = format!("[upstream]\nurl = \"http://a\"\n{}", route(keys));
        let mistakes = Config::parse("test.toml", &text, &|_| None).unwrap_err();
        let told: Vec<String> = mistakes.iter().map(ToString::to_string).collect();
        assert!(
            told.len() == 1 && told[0].contains(expected),
            "{keys}: {told:?}"
        );
    }
    // A key of the operator's own, where keys of clients do not count.
    let text = format!(
        "[upstream]\nurl = \"http://a\"\n{}",
        route("request_headers = { set = { authorization = \"Bearer k\" } }")
    );
    Config::parse("test.toml", &text, &|_| None).unwrap();
}

/// Says whose key it is, by its letters.
async fn projects() -> Origin {
    Origin::start(|seen| {
        match seen
            .header("authorization")
            .and_then(|text| text.strip_prefix("Bearer "))
        {
            Some("sk_live_aaaaaaaaaaaaaaaaaaaaaaaa") => reply(204, "", &[("x-project", "alpha")]),
            Some("sk_live_bbbbbbbbbbbbbbbbbbbbbbbb") => reply(204, "", &[("x-project", "beta")]),
            Some("sk_live_cccccccccccccccccccccccc") => reply(204, "", &[]),
            _ => reply(401, "", &[("x-project", "nobody's")]),
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_project_of_a_key_is_said_to_its_holder_alone() {
    let redis = RedisServer::start(&[]).await;
    let (url, verifier) = (redis.url(), projects().await);
    let auth = format!(
        "source = \"{}/verify\"\nproject_field = \"x-project\"",
        verifier.url()
    );
    let rules = "response_headers = { set = { x-project = \"{project}\" }, add = { x-whose = \"of \
        {project}\" } }";
    let fleet = Fleet::start(&[&url, &url], &verified_by(&auth, rules), |seen| {
        numbered(seen, &[("x-project", "forged")])
    })
    .await;
    let key = |letter: &str| format!("sk_live_{}", letter.repeat(24));
    // Both, and each by what the fleet says where it was not asked itself.
    for (instance, letter, cache, project) in [
        (0, "a", "MISS", Some("alpha")),
        (0, "a", "HIT", Some("alpha")),
        (0, "b", "HIT", Some("beta")),
        (0, "c", "HIT", None),
    ] {
        let answer = fleet.get_as(instance, &key(letter), "/a").await;
        assert_eq!((answer.status, answer.cache()), (200, cache), "{letter}");
        assert_eq!(answer.header("x-project"), project, "{letter}");
        let whose = project.map(|project| format!("of {project}"));
        assert_eq!(answer.header("x-whose"), whose.as_deref(), "{letter}");
    }
    let refused = fleet.get_as(0, &key("x"), "/a").await;
    assert_eq!((refused.status, refused.header("x-project")), (401, None));
    while redis
        .ask("KEYS iris:verdict:*")
        .await
        .unwrap()
        .matches("iris:")
        .count()
        < 4
    {
        tokio::task::yield_now().await;
    }
    let asked = verifier.count();
    for (letter, project) in [("a", Some("alpha")), ("b", Some("beta")), ("c", None)] {
        let answer = fleet.get_as(1, &key(letter), "/a").await;
        assert_eq!((answer.status, answer.header("x-project")), (200, project));
    }
    assert_eq!(verifier.count(), asked);
}

#[test]
fn a_project_is_spoken_of_where_somebody_names_it() {
    let mistake = |auth: &str, rules: &str| {
        let text = verified_by(auth, rules);
        let read = Config::parse("test.toml", &text, &|_| None);
        read.map_or_else(|mistakes| mistakes[0].to_string(), |_| String::new())
    };
    let response = "response_headers = { set = { x-project = \"{project}\" } }";
    let request = "request_headers = { add = { x-project = \"{project}\" } }";
    let by_url = "source = \"http://127.0.0.1:1/v\"";
    for (auth, rules, expected) in [
        (
            &*format!("{by_url}\nproject_field = \"x-project\""),
            response,
            "",
        ),
        ("source = \"table\"", response, ""),
        (by_url, response, "nobody says which project"),
        ("", response, "nobody says which project"),
        ("source = \"table\"", request, "in response_headers alone"),
        (
            "project_field = \"x-project\"",
            "",
            "expected a URL as auth.source",
        ),
    ] {
        let said = mistake(auth, rules);
        assert!(
            said.contains(expected) && said.is_empty() == expected.is_empty(),
            "{said}"
        );
    }
    let text = route(&format!("ttl = \"1h\"\n{response}"));
    let said = Config::parse("test.toml", &text, &|_| None).unwrap_err()[0].to_string();
    assert!(said.contains("share = \"verified\""), "{said}");
}
