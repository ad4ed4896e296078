use std::time::Duration;

use http::uri::Scheme;

use super::*;
use crate::policy::Share;
use http::Method;

const NO_ENVIRONMENT: Environment<'static> = &|_| None;

fn parse(text: &str) -> Result<Config, Vec<String>> {
    let environment = |name: &str| (name == "PORT").then(|| "7000".to_owned());
    Config::parse("iris.toml", text, &environment)
        .map_err(|mistakes| mistakes.iter().map(ToString::to_string).collect())
}

fn mistakes(text: &str) -> Vec<String> {
    parse(text).expect_err("the text should have been refused")
}

#[test]
fn ten_lines_in_front_of_an_api_are_enough() {
    let config = parse(
        r#"
[upstream]
url = "https://api.example.org"
host = "rewrite"

[[route]]
path = "/api/{*rest}"
ttl = "30s"
share = "per-key"
"#,
    )
    .unwrap();
    let upstream = config.upstream.unwrap();
    assert_eq!(upstream.authority(), "api.example.org");
    assert_eq!((upstream.scheme, upstream.port), (Scheme::HTTPS, 443));
    let (_, route) = config.routes.find(&Method::GET, "any", "/api/a/b").unwrap();
    assert_eq!(route.options.share, Share::PerKey);
    assert_eq!(route.options.ttl, Some(Duration::from_secs(30)));
}

#[test]
fn all_mistakes_are_reported_at_once_with_their_places() {
    let found = mistakes(
        r#"[listen]
address = "localhost"
wrokers = 2

[upstream]
url = "ftp://a"

[cache]
memory = 5
wait_timeout = "soon"

[[route]]
path = "api"
methods = ["get"]
share = "everyone"
[[route]]
ttl = "1s"
"#,
    );
    let expected = [
        (
            "iris.toml:2:11: ",
            "listen.address = \"localhost\": expected an address and port",
        ),
        (
            "iris.toml:3:1: ",
            "unknown key \"wrokers\" in [listen]: did you mean \"workers\"?",
        ),
        (
            "iris.toml:6:7: ",
            "upstream.url = \"ftp://a\": expected a URL",
        ),
        ("iris.toml:9:10: ", "cache.memory = 5: expected a size"),
        (
            "iris.toml:10:16: ",
            "cache.wait_timeout = \"soon\": expected a duration",
        ),
        (
            "iris.toml:13:8: ",
            "route.path = \"api\": expected a path that begins with \"/\"",
        ),
        (
            "iris.toml:14:12: ",
            "route.methods = \"get\": expected a method",
        ),
        (
            "iris.toml:15:9: ",
            "route.share = \"everyone\": expected \"standard\", \"per-key\" or \"verified\"",
        ),
        ("iris.toml:16:1: ", "[[route]] has no path"),
    ];
    assert_eq!(found.len(), expected.len(), "{found:#?}");
    for (found, (place, text)) in found.iter().zip(expected) {
        assert!(
            found.starts_with(place) && found.contains(text),
            "{found}\nwanted {place}{text}"
        );
    }
}

#[test]
fn a_syntax_error_does_not_bring_its_followers() {
    let told = |text: &str| {
        let mistakes = Config::parse("t", text, &|_| None).unwrap_err();
        mistakes.iter().map(|one| one.line).collect::<Vec<_>>()
    };
    // A table that is not closed: its keys stand in no table, and are unknown there.
    assert_eq!(
        told("[listen]\naddress = \"127.0.0.1:0\"\n[[route]\npath = \"/a\"\nttl = 5\n"),
        [3]
    );
    assert_eq!(
        told("[[route]]\npath = \"/a\"\nttl = \"5s\nfoo = 1\n[cahce]\n"),
        [3, 5]
    );
}

#[test]
fn broken_toml_is_reported_with_what_is_wrong_elsewhere() {
    // What the parser could not read is reported by it alone.
    let found = mistakes("[limits]\nconnections = = 5\n");
    assert!(
        found
            .iter()
            .all(|text| text.starts_with("iris.toml:2:") && !text.contains("limits.connections")),
        "{found:?}"
    );
    let found = mistakes("[cache]\nmemory = \n[limits]\nidle_timeout = \"x\"\n");
    assert!(
        found.iter().any(|text| text.starts_with("iris.toml:2:")),
        "{found:?}"
    );
    assert!(
        found.iter().any(|text| text.starts_with("iris.toml:4:16")),
        "{found:?}"
    );
}

#[test]
fn environment_variables_are_taken_and_a_missing_one_is_a_mistake() {
    let config = parse("[upstream]\nurl = \"http://127.0.0.1:${PORT}\"\n").unwrap();
    assert_eq!(config.upstream.unwrap().port, 7000);
    let found = mistakes("[admin]\ntoken = \"${NO_SUCH}\"\n");
    assert_eq!(found.len(), 1);
    assert!(
        found[0].contains("the environment variable \"NO_SUCH\" is not set"),
        "{found:?}"
    );
}

#[test]
fn the_most_specific_route_wins_whatever_the_order() {
    let config = parse(
        r#"
[[route]]
path = "/{*rest}"
[[route]]
path = "/api/iris/{project}"
[[route]]
path = "/api/iris/overview"
methods = ["POST"]
[[route]]
path = "/api/iris/{project}"
host = "*.example.org"
[[route]]
path = "/api/iris/patterns"
[[route]]
path = "/other"
host = "a.example.org"
"#,
    )
    .unwrap();
    let find = |method: &Method, host, path| {
        let route = config.routes.find(method, host, path);
        route.map(|(_, route)| (route.path.as_str(), route.host.as_deref()))
    };
    let (get, post) = (&Method::GET, &Method::POST);
    assert_eq!(
        find(get, "x", "/api/iris/patterns"),
        Some(("/api/iris/patterns", None))
    );
    assert_eq!(
        find(post, "x", "/api/iris/overview"),
        Some(("/api/iris/overview", None))
    );
    // The most specific path that takes the method.
    assert_eq!(
        find(get, "x", "/api/iris/overview"),
        Some(("/api/iris/{project}", None))
    );
    assert_eq!(find(get, "x", "/deep/er"), Some(("/{*rest}", None)));
    let wildcard = Some(("/api/iris/{project}", Some("*.example.org")));
    assert_eq!(find(get, "b.example.org", "/api/iris/patterns"), wildcard);
    assert_eq!(find(get, "a.example.org", "/api/iris/x"), wildcard);
    assert_eq!(find(post, "x", "/nowhere"), None);
}

#[test]
fn routes_that_match_the_same_requests_are_a_mistake() {
    let found = mistakes(
        "[[route]]\npath = \"/a/{x}\"\n[[route]]\npath = \"/a/{y}\"\nmethods = \
            [\"HEAD\", \"POST\"]\n",
    );
    assert_eq!(found.len(), 1);
    let expected = "matches the same HEAD requests as the route at line 1";
    assert!(
        found[0].starts_with("iris.toml:4:8") && found[0].contains(expected),
        "{found:?}"
    );
    let found = mistakes("[[route]]\npath = \"/a/{*x}/b\"\n");
    assert!(found[0].contains("Catch-all"), "{found:?}");
}

#[test]
fn the_reference_shows_every_key_with_its_default() {
    let text = include_str!("../../config/reference.toml");
    let reference = Config::parse("reference.toml", text, NO_ENVIRONMENT).unwrap();
    let bare =
        "[upstream]\nurl = \"http://127.0.0.1:3000\"\n[[route]]\npath = \"/api/iris/{project}\"\n";
    let bare = Config::parse("bare.toml", bare, NO_ENVIRONMENT).unwrap();
    assert_eq!(reference.listen, bare.listen);
    assert_eq!(reference.admin, bare.admin);
    assert_eq!(reference.upstream, bare.upstream);
    assert_eq!(reference.origin, bare.origin);
    let redis = reference.cache.redis.clone().unwrap();
    assert_eq!(redis, Redis::at("redis://127.0.0.1:6379".to_owned()));
    let alone = Cache {
        redis: None,
        ..reference.cache.clone()
    };
    assert_eq!(alone, bare.cache);
    assert_eq!(reference.limits, bare.limits);
    assert_eq!(format!("{:?}", reference.auth), format!("{:?}", bare.auth));
    let limit = &reference.rate_limits[0];
    assert_eq!(limit.when_redis_fails, WithoutRedis::default());
    assert_eq!(reference.error_headers, bare.error_headers);
    let route = |config: &Config| {
        format!(
            "{:?}",
            Route {
                line: 0,
                ..(*config.routes.list()[0]).clone()
            }
        )
    };
    assert_eq!(route(&reference), route(&bare));

    // A table that is left out is shown too.
    let text = &text.replace("\n# [", "\n[");
    for key in read::known_keys(text) {
        // An upstream that has a name has the keys of the other.
        let key = key.replace("upstream.files.", "upstream.");
        let (section, name) = key.rsplit_once('.').unwrap_or(("", &key));
        let is_table = |name: &str| text.contains(&format!("\n[{name}]"));
        if section.is_empty() || is_table(&key) {
            continue; // the tables themselves
        }
        // An inline table of a section shows its keys on its own line.
        let (section, inline) = match section.rsplit_once('.') {
            Some((section, table)) if !is_table(&format!("{section}.{table}")) => {
                (section, Some(table))
            }
            _ => (section, None),
        };
        let in_section = text.split("\n[").any(|part| {
            let head = part.trim_start_matches('[');
            let here = head.starts_with(&format!("{section}]"));
            let shows = |line: &str| {
                let line = line.trim_start_matches("# ");
                match inline {
                    None => line.starts_with(&format!("{name} = ")),
                    Some(table) => {
                        line.starts_with(&format!("{table} = "))
                            && line.contains(&format!("{name} = "))
                    }
                }
            };
            here && part.lines().any(shows)
        });
        assert!(in_section, "config/reference.toml does not show {key}");
    }
}

#[test]
fn the_built_in_configuration_is_valid() {
    Config::built_in(NO_ENVIRONMENT).unwrap();
}

#[test]
fn what_could_never_work_is_a_mistake_and_one_mistake_is_told_once() {
    for (text, expected) in [
        ("[[route]]\npath = \"/a\"\nmethods = []\n", "at least one"),
        ("[[route]]\npath = \"/a?b\"\n", "expected a path"),
        (
            "[[route]]\npath = \"/a/{x\"\n",
            "expected one {name} a segment",
        ),
        (
            "[[route]]\npath = \"/a\"\nforward_headers = [\"connection\"]\n",
            "end-to-end",
        ),
        (
            "[listen]\naddress = \"127.0.0.1:9180\"\n",
            "the same address",
        ),
        (
            "[upstream]\nurl = \"http://127.0.0.1:0\"\n",
            "expected a URL",
        ),
        (
            "[[route]]\npath = \"/a\"\n[[route]]\npath = \"/a\"\nhost = \"a:80\"\n",
            "without port",
        ),
    ] {
        let found = mistakes(text);
        assert!(
            found.len() == 1 && found[0].contains(expected),
            "{text}{found:#?}"
        );
    }
}

proptest::proptest! {
    #[test]
    fn no_text_makes_the_reader_panic(text in "(\\[{0,2}[a-z]{1,8}\\]{0,2}|[a-z]{1,8} = (\"[ \
        -~]{0,12}\"|[0-9]{1,4}|\\[|\\{)|[ -~]{0,10}|\n){0,12}") {
        let _ = Config::parse("any.toml", &text, NO_ENVIRONMENT);
    }
}

#[test]
fn an_upstream_that_is_ourselves_is_a_mistake() {
    let found = mistakes(
        "[listen]\naddress = \"127.0.0.1:8080\"\n[upstream]\nurl = \"http://127.0.0.1:8080\"\n",
    );
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(
        found[0]
            .to_string()
            .contains("every request would come back to us"),
        "{found:?}"
    );
}

#[test]
fn what_a_route_says_of_groups_and_variants_is_checked() {
    let route = |keys: &str| mistakes(&format!("[[route]]\npath = \"/a\"\n{keys}\n"));
    for (keys, says) in [
        ("invalidates = [\"g\"]", "no method of this route is one"),
        ("purges = [\"g\"]", "route.purges is for writes"),
        ("groups = []", "groups"),
        ("groups = [\" \"]", "expected"),
        (
            "methods = [\"POST\"]\ninvalidation = \"gone\"",
            "\"soft\", \"hard\" or \"adaptive\"",
        ),
        ("languages = [\"e n\"]", "a language tag"),
        ("origins = [\"https://a.example/\"]", "an origin such as"),
        ("origins = [\"https://a.example:443\"]", "an origin such as"),
    ] {
        let found = route(keys);
        assert_eq!(found.len(), 1, "{keys}: {found:?}");
        assert!(found[0].to_string().contains(says), "{keys}: {}", found[0]);
    }
    for keys in [
        "methods = [\"POST\", \"GET\"]\ninvalidates = [\"g\"]\ninvalidation = \"hard\"",
        "languages = [\"en\", \"de-AT\"]\norigins = [\"https://a.example:81\"]\ngroups = [\"g h\"]",
    ] {
        assert!(
            Config::parse(
                "test",
                &format!("[[route]]\npath = \"/a\"\n{keys}\n"),
                &|_| None
            )
            .is_ok()
        );
    }
}

/// Each key of the reference given each of these values: what is wrong is a mistake with its place,
/// nothing panics, and no secret is shown.
#[test]
fn every_key_takes_or_refuses_whatever_is_written_there_and_shows_no_secret() {
    const SECRET: &str = "s3cret-pa55";
    let urls = ["redis", "rediss", "postgres", "http", "sqlite", "x"]
        .map(|scheme| format!("\"{scheme}://user:{SECRET}@host:1/1?password={SECRET}\""));
    let mut values = vec![
        "\"\"".to_owned(),
        "\"content-length\"".to_owned(),
        "\"transfer-encoding\"".to_owned(),
        "\"connection\"".to_owned(),
        "\"\\u0000\\n\"".to_owned(),
        format!("\"{}\"", "9".repeat(400)),
        format!("\"{}s\"", "9".repeat(30)),
        format!("\"{}GiB\"", "9".repeat(30)),
        format!("\"/{}\"", "{a}/".repeat(2000)),
        "99999999999999999999".to_owned(),
        "18446744073709551615".to_owned(),
        "-1".to_owned(),
        "1e400".to_owned(),
        "true".to_owned(),
        "{}".to_owned(),
        "{ \"content-length\" = \"1\" }".to_owned(),
        format!("\"{SECRET} \\u00e4\""),
    ];
    values.extend(urls);
    let arrays: Vec<String> = values.iter().map(|value| format!("[{value}]")).collect();
    values.extend(arrays);
    let reference = include_str!("../../config/reference.toml");
    let lines: Vec<&str> = reference.lines().collect();
    let mut keys = 0;
    for (at, line) in lines.iter().enumerate() {
        let given = line.strip_prefix("# ").unwrap_or(line);
        let Some((key, _)) = given.split_once(" = ") else {
            continue;
        };
        if !key
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || b"_0123456789".contains(&byte))
        {
            continue;
        }
        keys += 1;
        for value in &values {
            let written = format!("{key} = {value}");
            let mut text = lines.clone();
            text[at] = &written;
            let parsed = Config::parse("it.toml", &text.join("\n"), NO_ENVIRONMENT);
            let is_secret =
                value.contains("://") || ["token", "secret", "probe_key"].contains(&key);
            for mistake in parsed.err().into_iter().flatten().filter(|_| is_secret) {
                assert!(
                    !mistake.to_string().contains(SECRET),
                    "{written}: {mistake}"
                );
            }
        }
    }
    assert!(keys > 100, "{keys}");
}

#[test]
fn what_frames_a_message_is_nobodys_to_set() {
    for name in [
        "Content-Length",
        "transfer-encoding",
        "Connection",
        "Upgrade",
        "TE",
        "Trailer",
        "Keep-Alive",
    ] {
        let found = mistakes(&format!("[errors]\nheaders = {{ \"{name}\" = \"1\" }}\n"));
        assert_eq!(found.len(), 1, "{name}: {found:?}");
        assert!(found[0].starts_with("iris.toml:2:"), "{found:?}");
        let found = mistakes(&format!("[cache]\ncredential_fields = [\"{name}\"]\n"));
        assert_eq!(found.len(), 1, "{name}: {found:?}");
    }
}

#[test]
fn an_open_admin_port_without_a_token_is_a_mistake_unless_it_is_meant() {
    let open = "[admin]\naddress = \"0.0.0.0:9180\"\n";
    assert!(mistakes(open)[0].contains("insecure = true"));
    for rest in ["insecure = true\n", "token = \"x\"\n"] {
        parse(&format!("{open}{rest}")).unwrap();
    }
    parse("[admin]\naddress = \"[::1]:9180\"\n").unwrap();
}

#[test]
fn a_secret_may_stand_in_a_file_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let (token, empty) = (write("token", "s3cret\nmore\n"), write("empty", ""));
    let config = parse(&format!("[admin]\ntoken_file = \"{token}\"\n")).unwrap();
    assert_eq!(config.admin.token.unwrap().text, "s3cret");
    let config = parse(&format!(
        "[auth]\nsecret_file = \"{token}\"\n[origin]\ndatabase \
            = \"postgres://me@host/db\"\npassword_file = \"{token}\"\n[cache.redis]\nurl \
            = \"redis://host\"\npassword_file = \"{token}\"\n"
    ))
    .unwrap();
    assert_eq!(config.auth.secret.as_deref(), Some("s3cret"));
    assert_eq!(config.origin.database, "postgres://me:s3cret@host/db");
    assert_eq!(config.cache.redis.unwrap().url, "redis://:s3cret@host");
    for wrong in [
        format!("[admin]\ntoken_file = \"{empty}\"\n"),
        "[admin]\ntoken_file = \"/no/such/file\"\n".to_owned(),
        format!("[admin]\ntoken = \"x\"\ntoken_file = \"{token}\"\n"),
        format!("[cache.redis]\nurl = \"redis://:pw@host\"\npassword_file = \"{token}\"\n"),
        format!("[origin]\npassword_file = \"{token}\"\n"),
    ] {
        let found = mistakes(&wrong);
        assert_eq!(found.len(), 1, "{wrong}: {found:?}");
        assert!(
            !found[0].contains("s3cret") && !found[0].contains("pw@"),
            "{found:?}"
        );
    }
}

#[test]
fn a_secret_with_a_variable_in_it_is_not_shown() {
    for section in ["[admin]\ntoken", "[auth]\nsecret", "[auth]\nprobe_key"] {
        for value in ["s3cret${NO_SUCH_NAME}", "s3cret${ss"] {
            let found = mistakes(&format!("{section} = \"{value}\"\n"));
            assert_eq!(found.len(), 1, "{found:?}");
            assert!(!found[0].contains("s3cret"), "{found:?}");
        }
    }
    let two =
        "[origin]\ndatabase = \"mysql://h/d?password=s3cret&sslpassword=s3cret&password=s3cret\"\n";
    assert!(!mistakes(two)[0].contains("s3cret"), "{:?}", mistakes(two));
}

#[test]
fn fuzz_config() {
    crate::fuzz::run(include_str!("../../tests/fuzz/config.txt"), |input| {
        let text = String::from_utf8_lossy(input);
        if let Err(mistakes) = Config::parse("it.toml", &text, NO_ENVIRONMENT) {
            assert!(!mistakes.is_empty());
            assert!(
                mistakes
                    .iter()
                    .all(|mistake| mistake.line > 0 && mistake.column > 0)
            );
        }
    });
}
