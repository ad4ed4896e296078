//! `[auth]` and `[[rate_limit]]`: from TOML to checked types.

use std::time::Duration;

use url::Url;

use super::auth::{Auth, LimitBy, OnDifference, RateLimit, VerdictSource, WithoutRedis};
use super::read_value::{field_name, set, word};
use super::routes::Routes;
use super::section::Section;
use super::units;

pub fn auth(mut section: Section<'_, '_>) -> Auth {
    let mut auth = Auth::default();
    set(&mut auth.source, source(&mut section));
    let expected = "a field name such as \"x-project\"";
    let project_field = section.parsed("project_field", expected, field_name);
    if let Some(at) = project_field {
        if !matches!(auth.source, VerdictSource::Url(_)) {
            let message = "auth.project_field: only a service names the project of a key by a \
                field: expected a URL as auth.source (the \"table\" knows projects by itself)";
            section.source().mistake(at.span, message);
        }
        auth.project_field = Some(at.value);
    }
    set(&mut auth.good_ttl, section.duration("good_ttl"));
    set(&mut auth.bad_ttl, section.duration("bad_ttl"));
    let grace = section.parsed("grace", "a duration of at most \"60s\"", |text| {
        units::duration(text).filter(|grace| *grace <= Duration::from_secs(60))
    });
    set(&mut auth.grace, grace.map(|at| at.value));
    let is_key = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic());
    let expected = "an API key such as \"${PROBE_KEY}\"";
    let key = section.secret("probe_key", "probe_key_file", expected, is_key);
    auth.probe_key = key.map(|key| key.text);
    let lone = section.parsed("lone_key", "\"revoke\" or \"grace\"", |text| match text {
        "revoke" => Some(false),
        "grace" => Some(true),
        _ => None,
    });
    set(&mut auth.lone_key_has_grace, lone.map(|at| at.value));
    let expected = "a text such as \"${KEY_SECRET}\"";
    let secret = section.secret("secret", "secret_file", expected, |text| !text.is_empty());
    auth.secret = secret.map(|secret| secret.text);
    let per_second = section.integer("unknown_per_second", 1..1_000_001);
    set(&mut auth.unknown_per_second, per_second);
    let verdicts = section.integer("verdicts", 100..10_000_001);
    set(&mut auth.verdicts, verdicts.map(|number| number as usize));
    let expected =
        "\"off\", or a duration of at least \"1h\": an origin may count keys that it refuses";
    let control = section.parsed("control", expected, |text| match text {
        "off" => Some(None),
        text => units::duration(text)
            .filter(|every| *every >= Duration::from_secs(3600))
            .map(Some),
    });
    set(&mut auth.control, control.map(|at| at.value));
    let every = section.integer("compare_every", 1..1_000_000_001);
    set(&mut auth.compare_every, every);
    let per_second = section.integer("compare_per_second", 1..1_000_001);
    set(&mut auth.compare_per_second, per_second);
    let expected = "\"off\", \"warn\" or \"demote\"";
    let found = section.parsed("on_difference", expected, word::<OnDifference>);
    set(&mut auth.on_difference, found.map(|at| at.value));
    let member = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    let expected = "the name of a member, such as \"timestamp\"";
    set(
        &mut auth.volatile,
        section.list("volatile", expected, member),
    );
    section.finish();
    auth
}

fn source(section: &mut Section<'_, '_>) -> Option<VerdictSource> {
    let expected = "\"origin\", \"table\" or the URL of a service that verifies keys, such \
        as \"http://127.0.0.1:9000/verify\"";
    let parse = |text: &str| match text {
        "origin" => Some(VerdictSource::Origin),
        "table" => Some(VerdictSource::Table),
        url => {
            let url = Url::parse(url).ok()?;
            let is_http = matches!(url.scheme(), "http" | "https") && url.has_host();
            let is_anonymous = url.username().is_empty() && url.password().is_none();
            let is_whole = is_http && is_anonymous && url.fragment().is_none();
            is_whole.then_some(VerdictSource::Url(url))
        }
    };
    section.parsed("source", expected, parse).map(|at| at.value)
}

/// Limits, in their order; `routes` are what a path can name.
pub fn rate_limits(sections: Vec<Section<'_, '_>>, routes: &Routes) -> Vec<RateLimit> {
    let read = |section| rate_limit(section, routes);
    sections.into_iter().filter_map(read).collect()
}

fn rate_limit(mut section: Section<'_, '_>, routes: &Routes) -> Option<RateLimit> {
    let span = section.span();
    let source = section.source();
    let by = section.parsed("by", "\"address\" or \"key\"", word::<LimitBy>);
    let requests = section.integer("requests", 1..1_000_000_001);
    let window = section.parsed("window", "a duration from \"1s\" to \"31d\"", |text| {
        let window = units::duration(text)?;
        let most = Duration::from_secs(31 * 24 * 3600);
        (window >= Duration::from_secs(1) && window <= most).then_some(window)
    });
    for (key, expected) in [
        ("by", "by = \"address\" or \"key\""),
        ("requests", "requests = 100"),
        ("window", "window = \"1m\""),
    ] {
        if section.is_missing(key) {
            let message = format!("[[rate_limit]] has no {key}: expected {expected}");
            source.mistake(span.clone(), message);
        }
    }
    let path = section.parsed("path", "the path of a [[route]]", |text| {
        let is_known = routes.list().iter().any(|route| route.path == text);
        is_known.then(|| text.to_owned())
    });
    let expected = "\"local\", \"open\" or \"closed\"";
    let without = section.parsed("when_redis_fails", expected, word::<WithoutRedis>);
    section.finish();
    Some(RateLimit {
        by: by?.value,
        requests: requests?,
        window: window?.value,
        path: path.map(|at| at.value),
        when_redis_fails: without.map_or(WithoutRedis::Local, |at| at.value),
    })
}
