//! What the environment says beside the file.

use std::ops::Range;

use toml::Spanned;
use toml::de::{DeArray, DeString, DeTable, DeValue};

use super::source::Source;
use super::variables::{Kind, TTL, VARIABLES, Variable};

/// Of [`TTL`].
const IS_FOR: &str = "it is for the API of IRIS_UPSTREAM_URL without a file, whose routes have a \
    ttl each: expected it unset, or ttl = \"${IRIS_TTL}\" in the file";

/// What a file says, with what the environment says beside it; syntax errors are noted.
pub fn tables_of<'a>(source: &Source<'a>) -> Spanned<DeTable<'a>> {
    let mut table = source.parse();
    put_into(table.get_mut(), source);
    source.expect_to_name(TTL, IS_FOR);
    table
}

/// What both say is a mistake.
fn put_into<'a>(table: &mut DeTable<'a>, source: &Source<'a>) {
    for (at, variable) in VARIABLES.iter().enumerate() {
        let said = source.variable(variable.name);
        let Some(said) = said.filter(|said| !said.is_empty()) else {
            continue;
        };
        let span = source.span_of_variable(at);
        let outer = variable.tables.first().and_then(|name| table.get(*name));
        if outer.is_some_and(|outer| outer.get_ref().is_array()) {
            if variable.kind != Kind::Default {
                let (path, name) = (variable.path(), variable.name);
                let message = format!(
                    "{path} is said by the environment variable {name}, and the file has several \
                        tables of that name: expected it in the file alone"
                );
                source.mistake(span, message);
            }
            continue;
        }
        // What is no table says so itself.
        let Some(inner) = table_at(table, variable.tables, &span) else {
            continue;
        };
        match inner.get(variable.key) {
            Some(_) if variable.kind == Kind::Default => {}
            Some(given) => source.judge_clash(variable, given, &said),
            None if says_by_file(source, inner, variable, &said) => {}
            None => {
                let key = Spanned::new(span.clone(), DeString::Borrowed(variable.key));
                inner.insert(key, value(&variable.kind, &said, &span));
            }
        }
    }
}

/// Whether a file of its own says the same: the first line of what `token_file` names, say.
fn says_by_file(source: &Source<'_>, inner: &DeTable<'_>, variable: &Variable, said: &str) -> bool {
    let file = inner.get(format!("{}_file", variable.key).as_str());
    let file = file.and_then(|file| file.get_ref().as_str());
    let file = file.and_then(|file| source.with_variables(file).0.ok());
    let text = file.and_then(|file| std::fs::read_to_string(file).ok());
    text.is_some_and(|text| text.lines().next().unwrap_or_default() == said.trim())
}

/// The table of these names, which is made where it is missing; `None` where something else stands
/// there.
fn table_at<'t, 'a>(
    mut table: &'t mut DeTable<'a>,
    names: &[&'static str],
    span: &Range<usize>,
) -> Option<&'t mut DeTable<'a>> {
    for name in names {
        let name = Spanned::new(span.clone(), DeString::Borrowed(*name));
        let empty = || Spanned::new(span.clone(), DeValue::Table(DeTable::new()));
        table = match table.entry(name).or_insert_with(empty).get_mut() {
            DeValue::Table(inner) => inner,
            _ => return None,
        };
    }
    Some(table)
}

fn value<'a>(kind: &Kind, said: &str, span: &Range<usize>) -> Spanned<DeValue<'a>> {
    let text = |text: &str| {
        let text = DeString::Owned(text.trim().to_owned());
        Spanned::new(span.clone(), DeValue::String(text))
    };
    match kind {
        Kind::Text | Kind::Default => text(said),
        Kind::List => {
            let mut items = DeArray::new();
            said.split(',').map(text).for_each(|item| items.push(item));
            Spanned::new(span.clone(), DeValue::Array(items))
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::config::{Address, Config};

    fn read(text: &str, variables: &[(&str, &str)]) -> Result<Config, Vec<String>> {
        let environment = |name: &str| {
            let mut found = variables.iter().filter(|(known, _)| *known == name);
            found.next().map(|(_, value)| (*value).to_owned())
        };
        Config::parse("iris.toml", text, &environment)
            .map_err(|mistakes| mistakes.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn what_the_file_does_not_say_the_environment_can() {
        let all = [
            ("IRIS_UPSTREAM_URL", "http://api:3000"),
            ("IRIS_LISTEN_ADDRESS", "0.0.0.0:8081"),
            ("IRIS_TRUSTED_PROXIES", "10.0.0.0/8, 127.0.0.1"),
            ("IRIS_ADMIN_ADDRESS", "0.0.0.0:9181"),
            ("IRIS_ADMIN_TOKEN", "a ${token}"),
            ("IRIS_CACHE_MEMORY", "64MiB"),
            ("IRIS_REDIS_URL", "redis://redis:6379"),
            ("IRIS_DEFAULT_ADDRESS", "[::]:8080"),
        ];
        let config = read("[upstream]\nresponse_timeout = \"7s\"\n", &all).unwrap();
        let upstream = config.upstream.as_ref().unwrap();
        assert_eq!(upstream.authority(), "api:3000");
        assert_eq!(upstream.response_timeout.as_secs(), 7);
        assert_eq!(config.listen.places[0].address.to_string(), "0.0.0.0:8081");
        assert_eq!(config.listen.trusted_proxies.len(), 2);
        assert_eq!(config.admin.address.to_string(), "0.0.0.0:9181");
        assert_eq!(config.admin.token.as_ref().unwrap().text, "a ${token}");
        assert_eq!(config.cache.memory, 64 << 20);
        assert!(config.cache.redis.is_some());
        let of_memory = config
            .settings
            .iter()
            .find(|one| one.key == "memory")
            .unwrap();
        let told = of_memory.to_json();
        assert_eq!(
            told["from"]["environment"][0], "IRIS_CACHE_MEMORY",
            "{told}"
        );
        let database = read("", &[("IRIS_DATABASE_URL", "postgres://db/iris")]).unwrap();
        assert_eq!(database.origin.database, "postgres://db/iris");
    }

    #[test]
    fn an_images_default_gives_way_to_whatever_else_is_said() {
        let image = ("IRIS_DEFAULT_ADDRESS", "[::]:8080");
        let address = |text: &str, more: &[(&str, &str)]| {
            let config = read(text, &[&[image], more].concat()).unwrap();
            let places = config.listen.places.iter();
            let shown = places.map(|place| place.address.to_string());
            shown.collect::<Vec<_>>().join(" ")
        };
        assert_eq!(address("", &[]), "[::]:8080");
        assert_eq!(address("[listen]\nworkers = 1\n", &[]), "[::]:8080");
        let said = "[listen]\naddress = \"127.0.0.1:1\"\n";
        assert_eq!(address(said, &[]), "127.0.0.1:1");
        let several = "[[listen]]\naddress = \"unix:/a\"\n[[listen]]\naddress = \"127.0.0.1:1\"\n";
        assert_eq!(address(several, &[]), "unix:/a 127.0.0.1:1");
        assert_eq!(
            address("", &[("IRIS_LISTEN_ADDRESS", "127.0.0.1:2")]),
            "127.0.0.1:2"
        );
        assert!(matches!(Address::parse("[::]:8080"), Some(Address::Tcp(_))));
    }

    #[test]
    fn a_clash_and_a_wrong_value_are_mistakes_that_name_the_variable() {
        for (text, name, value, expected) in [
            (
                "[cache]\nmemory = \"1GiB\"\n",
                "IRIS_CACHE_MEMORY",
                "2GiB",
                "iris.toml:2:10: cache.memory: the environment variable IRIS_CACHE_MEMORY says it \
                    too",
            ),
            (
                "",
                "IRIS_CACHE_MEMORY",
                "much",
                "the environment variable IRIS_CACHE_MEMORY: cache.memory = \"much\": expected",
            ),
            (
                "",
                "IRIS_TRUSTED_PROXIES",
                "10.0.0.0/8,nobody",
                "the environment variable IRIS_TRUSTED_PROXIES: listen.trusted_proxies = ",
            ),
            (
                "[[listen]]\naddress = \"unix:/a\"\n",
                "IRIS_LISTEN_ADDRESS",
                "127.0.0.1:1",
                "the environment variable IRIS_LISTEN_ADDRESS: listen.address is said",
            ),
        ] {
            let found = read(text, &[(name, value)]).unwrap_err();
            assert!(
                found.len() == 1 && found[0].starts_with(expected),
                "{found:?}"
            );
        }
        for (name, value) in [
            ("IRIS_REDIS_URL", "http://user:hidden@redis"),
            ("IRIS_REDIS_URL", ":hidden@redis:6379"),
            ("IRIS_REDIS_URL", "redis:/user:hidden@redis"),
            ("IRIS_UPSTREAM_URL", "user:hidden@api:3000"),
        ] {
            let wrong = read("", &[(name, value)]).unwrap_err();
            assert!(!wrong[0].contains("hidden"), "{wrong:?}");
            assert!(wrong[0].contains("…@"), "{wrong:?}");
        }
        // The same, and nothing, are no clash.
        let text = "[cache]\nmemory = \"1GiB\"\n";
        for same in ["1GiB", ""] {
            read(text, &[("IRIS_CACHE_MEMORY", same)]).unwrap();
        }
        let text = "[admin]\ntoken = \"${IRIS_ADMIN_TOKEN}\"\n";
        read(text, &[("IRIS_ADMIN_TOKEN", "t")]).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("token");
        std::fs::write(&file, "secret\n").unwrap();
        let text = format!("[admin]\ntoken_file = \"{}\"\n", file.display());
        let same = read(&text, &[("IRIS_ADMIN_TOKEN", "secret")]).unwrap();
        assert!(same.admin.token.unwrap().file.is_some(), "it is followed");
        let other = read(&text, &[("IRIS_ADMIN_TOKEN", "another")]).unwrap_err();
        assert!(other[0].contains("admin.token is given too"), "{other:?}");
        let text = "[listen]\ntrusted_proxies = [\"10.0.0.0/8\", \"127.0.0.1\"]\n";
        read(text, &[("IRIS_TRUSTED_PROXIES", "10.0.0.0/8,127.0.0.1")]).unwrap();
        let other = read(text, &[("IRIS_TRUSTED_PROXIES", "10.0.0.0/8")]).unwrap_err();
        assert!(
            other[0].contains("IRIS_TRUSTED_PROXIES says it too"),
            "{other:?}"
        );
    }

    #[test]
    fn a_variable_in_a_text_can_have_a_default() {
        let text = "[cache]\nmemory = \"${SIZE:-32MiB}\"\n";
        for (variables, size) in [
            (&[][..], 32),
            (&[("SIZE", "")], 32),
            (&[("SIZE", "64MiB")], 64),
        ] {
            assert_eq!(read(text, variables).unwrap().cache.memory, size << 20);
        }
        let unclosed = read("[cache]\nmemory = \"${SIZE:-32MiB\"\n", &[]).unwrap_err();
        assert!(unclosed[0].contains("is not closed"), "{unclosed:?}");
    }

    #[test]
    fn without_a_file_an_upstream_is_all_that_has_to_be_said() {
        let api = ("IRIS_UPSTREAM_URL", "http://api:3000");
        for (more, ttl) in [(None, None), (Some(("IRIS_TTL", "30s")), Some(30))] {
            let variables: Vec<_> = [api].into_iter().chain(more).collect();
            let environment = |name: &str| {
                let mut found = variables.iter().filter(|(known, _)| *known == name);
                found.next().map(|(_, value)| (*value).to_owned())
            };
            let config = Config::built_in(&environment).unwrap();
            assert!(config.upstream.is_some());
            for route in config.routes.list() {
                assert_eq!(
                    route.options.ttl.map(|ttl| ttl.as_secs()),
                    ttl,
                    "{}",
                    route.path
                );
            }
            assert_eq!(config.routes.list().len(), 2);
        }
        let wrong = |variables: &[(&str, &str)], file: Option<&str>| {
            let environment = |name: &str| {
                let mut found = variables.iter().filter(|(known, _)| *known == name);
                found.next().map(|(_, value)| (*value).to_owned())
            };
            let read = match file {
                Some(text) => Config::parse("iris.toml", text, &environment),
                None => Config::built_in(&environment),
            };
            let mistakes = read.unwrap_err();
            assert_eq!(mistakes.len(), 1, "{mistakes:?}");
            mistakes[0].to_string()
        };
        let said = wrong(&[api, ("IRIS_TTL", "soon")], None);
        assert!(
            said.starts_with("the environment variable IRIS_TTL: \"soon\": expected"),
            "{said}"
        );
        // What would be missed without a word.
        let ttl = ("IRIS_TTL", "30s");
        for said in [
            wrong(&[ttl], None),
            wrong(&[ttl], Some("[cache]\nmemory = \"1GiB\"\n")),
        ] {
            assert!(
                said.contains("IRIS_TTL: it is for the API of IRIS_UPSTREAM_URL"),
                "{said}"
            );
        }
        let named = "[[route]]\npath = \"/a\"\nttl = \"${IRIS_TTL}\"\n";
        let environment = |name: &str| (name == "IRIS_TTL").then(|| "30s".to_owned());
        Config::parse("iris.toml", named, &environment).unwrap();
        assert!(Config::built_in(&|_| None).unwrap().upstream.is_none());
    }
}
