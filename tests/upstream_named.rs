//! Several upstreams: a route names the one that its requests go to; each has its own pool, breaker
//! and keys.

use iris_sidecar::config::Config;

use crate::support::{Client, Fixture, Origin, Step, numbered, ok, route};

fn files(url: &str, more: &str) -> String {
    format!("[upstream.files]\nurl = \"{url}\"\n{more}\n")
}

fn to_files(keys: &str) -> String {
    format!("[[route]]\npath = \"/files/{{*rest}}\"\nupstream = \"files\"\n{keys}\n")
}

#[tokio::test]
async fn a_route_goes_to_its_upstream_and_all_else_to_the_other() {
    let second = Origin::start(|seen| ok(format!("files {}", seen.target), &[])).await;
    let text = format!(
        "{}{}{}",
        files(&second.url(), ""),
        route("ttl = \"1h\""),
        to_files("ttl = \"1h\"\nmethods = [\"GET\", \"POST\"]")
    );
    let fixture = Fixture::start(&text, |seen| ok(format!("api {}", seen.target), &[])).await;
    for result in ["MISS", "HIT"] {
        for (target, said) in [("/files/a", "files /files/a"), ("/other", "api /other")] {
            let answer = fixture.get(target).await;
            assert_eq!((answer.text().as_str(), answer.cache()), (said, result));
        }
    }
    // Writes and conditional requests too, and a method that its route does not take goes by none.
    let mut client = fixture.connect().await;
    assert_eq!(
        client.ask("POST", "/files/a", &[]).await.text(),
        "files /files/a"
    );
    assert_eq!(
        fixture.get("/files/a").await.cache(),
        "MISS",
        "a write has changed it"
    );
    assert_eq!(
        client.ask("PUT", "/files/a", &[]).await.text(),
        "api /files/a"
    );
    let count = |name: &str, outcome: &str| {
        format!("upstream_by_name_requests_total{{upstream=\"{name}\",outcome=\"{outcome}\"}}")
    };
    assert_eq!(fixture.metric(&count("files", "answered")).await, 3.0);
    assert_eq!(fixture.metric(&count("default", "answered")).await, 2.0);
    let open = fixture
        .metric("upstream_by_name_connections{upstream=\"files\"}")
        .await;
    assert!((1.0..=3.0).contains(&open), "{open}");
}

#[tokio::test]
async fn one_that_is_down_takes_nothing_from_the_other() {
    let down = Origin::start(|_| vec![Step::Close]).await;
    let text = format!(
        "{}{}{}",
        files(&down.url(), "breaker_failures = 2\nmax_connections = 1\n"),
        route(""),
        to_files("")
    );
    let fixture = Fixture::start(&text, |seen| numbered(seen, &[])).await;
    for number in 0..5 {
        let failed = fixture.get(&format!("/files/{number}")).await.status;
        assert!(matches!(failed, 502 | 503), "{failed}");
        assert_eq!(fixture.get(&format!("/{number}")).await.status, 200);
    }
    let open = |name: &str| format!("upstream_by_name_breaker_open{{upstream=\"{name}\"}}");
    assert_eq!(fixture.metric(&open("files")).await, 1.0);
    assert_eq!(fixture.metric(&open("default")).await, 0.0);
    assert_eq!(fixture.metric("upstream_breaker_open").await, 1.0);
}

#[tokio::test]
async fn hosts_are_rewritten_to_the_one_that_is_asked_and_another_upstream_is_another_key() {
    let host = |seen: &crate::support::Seen| {
        let host = seen.header("host").unwrap_or_default().to_owned();
        let location = format!("http://{host}/moved");
        ok(host, &[("location", &location)])
    };
    let second = Origin::start(host).await;
    let own = second.url().trim_start_matches("http://").to_owned();
    let origin = Origin::start(host).await;
    let main = origin.url().trim_start_matches("http://").to_owned();
    let text = |route: &str| {
        format!(
            "[upstream]\nhost = \"rewrite\"\n{}{route}",
            files(&second.url(), "")
        )
    };
    let both = format!("{}{}", route("ttl = \"1h\""), to_files("ttl = \"1h\""));
    let fixture = Fixture::with_file(origin, &text(&both));
    let answer = fixture.get("/files/a").await;
    assert_eq!(
        (answer.text(), answer.header("location")),
        (own, Some("/moved"))
    );
    assert_eq!(fixture.get("/a").await.text(), main);
    // The route goes to the other one from now on: what was stored is not its answer.
    let moved = both.replace("upstream = \"files\"\n", "");
    fixture.write_file(&text(&moved));
    let admin = fixture.sidecar().admin_address;
    assert_eq!(Client::order(admin, "/reload", "{}").await.status, 200);
    let answer = fixture.get("/files/a").await;
    assert_eq!((answer.text(), answer.cache()), (main, "MISS"));
    // One that does not run yet cannot be gone to.
    let new = format!(
        "[upstream.new]\nurl = \"http://127.0.0.1:1\"\n{}",
        both.replace("\"files\"", "\"new\"")
    );
    fixture.write_file(&text(&new));
    let refused = Client::order(admin, "/reload", "{}").await;
    assert_eq!(refused.status, 400);
    assert!(
        refused.text().contains("needs a restart"),
        "{}",
        refused.text()
    );
}

#[test]
fn names_that_nobody_has_are_mistakes() {
    for (text, expected) in [
        (
            "[[route]]\npath = \"/a\"\nupstream = \"b\"\n",
            "expected the name of an upstream: add [upstream.NAME]",
        ),
        (
            "[upstream.c]\nurl = \"http://c\"\n[[route]]\npath = \"/a\"\nupstream = \"b\"\n",
            "expected the name of an upstream: c",
        ),
        ("[upstream.c]\n", "[upstream.c] has no url"),
        (
            "[upstream.default]\nurl = \"http://c\"\n",
            "other than \"default\"",
        ),
        (
            "[upstream.\"a b\"]\nurl = \"http://c\"\n",
            "expected a name of letters",
        ),
        (
            "[upstream.c]\nurl = \"http://c\"\nvia = \"off\"\n",
            "unknown key \"via\" in [upstream.c]",
        ),
    ] {
        let text = format!("[upstream]\nurl = \"http://a\"\n{text}");
        let mistakes = Config::parse("test.toml", &text, &|_| None).unwrap_err();
        let told: Vec<String> = mistakes.iter().map(ToString::to_string).collect();
        assert!(
            told.len() == 1 && told[0].contains(expected),
            "{text}: {told:?}"
        );
    }
}

#[tokio::test]
async fn what_needs_a_restart_is_said_to_need_one() {
    let (first, second) = (
        Origin::start(|_| ok("first", &[])).await,
        Origin::start(|_| ok("second", &[])).await,
    );
    let main = Origin::start(|_| ok("main", &[])).await;
    let text = |url: &str, more: &str| format!("{}{more}{}", files(url, ""), to_files(""));
    let fixture = Fixture::with_file(main, &text(&first.url(), ""));
    let admin = fixture.sidecar().admin_address;
    for (text, line) in [
        (text(&second.url(), ""), "upstream: files"),
        (
            text(
                &first.url(),
                "[upstream.more]\nurl = \"http://127.0.0.1:1\"\n",
            ),
            "upstream: more",
        ),
        (
            text(&first.url(), "[upstream]\nmax_connections = 7\n"),
            "upstream: max_connections 512 → 7",
        ),
    ] {
        fixture.write_file(&text);
        let told = Client::order(admin, "/reload", "{}").await.json();
        let says = |list: &str| -> String { told[list].to_string() };
        assert!(says("needs_restart").contains(line), "{line}: {told}");
        assert!(!says("changed").contains("upstream"), "{line}: {told}");
        assert_eq!(fixture.get("/files/a").await.text(), "first");
    }
    fixture.write_file(&text(
        &first.url(),
        "[upstream]\nresponse_timeout = \"7s\"\n",
    ));
    let told = Client::order(admin, "/reload", "{}").await.json();
    assert!(
        told["changed"]
            .to_string()
            .contains("response_timeout 30s → 7s"),
        "{told}"
    );
}
