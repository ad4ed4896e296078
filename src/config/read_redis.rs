//! `[cache.redis]`: from TOML to a checked [`Redis`].

use url::Url;

use super::read_value::{count, readable, set};
use super::section::{At, Section};
use super::sections::{JournalPlace, Redis};

/// What a URL of Redis begins with.
pub const SCHEMES: [&str; 6] = [
    "redis",
    "rediss",
    "redis-cluster",
    "rediss-cluster",
    "redis-sentinel",
    "rediss-sentinel",
];

const EXPECTED: &str = "a URL such \
    as \"redis://127.0.0.1:6379\", \"rediss://user:password@host:6379/1\", \"redis-cluster://a:7001?node=b:7002\" or \"redis-sentinel://s:26379?sentinelServiceName=main\"";

pub fn redis(mut section: Section<'_, '_>, max_object: u64) -> Option<Redis> {
    let present = section.is_present();
    let url = section.parsed("url", EXPECTED, redis_url);
    if present && url.is_none() && section.is_missing("url") {
        section.source().mistake(
            section.span(),
            format!("[cache.redis] has no url: expected url = {EXPECTED}"),
        );
    }
    let mut redis = Redis::at(url.map_or_else(String::new, |at| at.value));
    redis.password_file = section.put_password(std::iter::once(&mut redis.url));
    // A brace would be taken for the beginning of a cluster's hash tag.
    let prefix = |text: &str| {
        let is_plain = text.bytes().all(|byte| byte.is_ascii_graphic());
        (is_plain && !text.contains(['{', '}'])).then(|| text.to_owned())
    };
    let expected = "printable characters without spaces and braces, such as \"iris:\"";
    set(
        &mut redis.prefix,
        section
            .parsed("prefix", expected, prefix)
            .map(|at| at.value),
    );
    set(
        &mut redis.connections,
        section
            .integer("connections", 1..257)
            .map(|number| number as usize),
    );
    let ca_file = section.parsed("ca_file", "the path of a readable PEM file", readable);
    redis.ca_file = ca_file.map(|at| at.value);
    let within = |least: u64, most: u64| {
        move |text: &str| {
            let found = super::units::duration(text)?;
            (found.as_millis() >= least.into() && found.as_millis() <= most.into()).then_some(found)
        }
    };
    let mut between = |key, least, most, expected| {
        let found = section.parsed(key, expected, within(least, most));
        found.map(|at| at.value)
    };
    const YEAR: u64 = 366 * 24 * 3600 * 1000;
    set(
        &mut redis.timeout,
        between("timeout", 1, 1000, "a duration from \"1ms\" to \"1s\""),
    );
    let expected = "a duration from \"100ms\" to \"1h\"";
    set(
        &mut redis.breaker_open,
        between("breaker_open", 100, 3_600_000, expected),
    );
    let expected = "a duration of at least \"1s\", such as \"60s\"";
    set(
        &mut redis.max_silence,
        between("max_silence", 1000, YEAR, expected),
    );
    set(
        &mut redis.breaker_failures,
        section
            .integer("breaker_failures", 1..1_000_001)
            .map(|number| number as u32),
    );
    count(&mut section, "queue", &mut redis.queue);
    let given = section.parsed("max_object", super::units::SIZE, super::units::size);
    match given {
        Some(At { value, span }) if value > max_object => section.source().mistake(
            span,
            format!(
                "cache.redis.max_object is more than cache.max_object: expected at most {}",
                super::units::show_size(max_object)
            ),
        ),
        Some(At { value, .. }) => redis.max_object = value,
        None => redis.max_object = redis.max_object.min(max_object),
    }
    set(&mut redis.warm_up, section.size("warm_up"));
    let expected = "the path of a file that can be written, or \"off\"";
    let journal = section.parsed("journal", expected, |text| match text {
        "off" => Some(JournalPlace::Nowhere),
        "" => None,
        path => Some(JournalPlace::At(path.into())),
    });
    set(&mut redis.journal, journal.map(|at| at.value));
    section.finish();
    present.then_some(redis)
}

fn redis_url(text: &str) -> Option<String> {
    let url = Url::parse(text).ok()?;
    let named = |name: &str| url.query_pairs().any(|(key, _)| key == name);
    let is_sentinel = url.scheme().ends_with("-sentinel");
    let is_whole = url.host_str().is_some_and(|host| !host.is_empty())
        && (!is_sentinel || named("sentinelServiceName"));
    let database = url.path().trim_start_matches('/');
    let is_numbered = database.is_empty() || database.parse::<u8>().is_ok();
    (SCHEMES.contains(&url.scheme()) && is_whole && is_numbered).then(|| text.to_owned())
}
