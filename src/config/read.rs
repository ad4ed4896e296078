//! From TOML sections to checked types, key by key.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use http::header::{AUTHORIZATION, COOKIE, SET_COOKIE};
use http::{HeaderMap, HeaderName, HeaderValue};
use sha2::{Digest, Sha256};
use url::Url;

use super::access_log::access_log;
use super::effective::settings;
use super::environment::tables_of;
use super::read_auth::{auth, rate_limits};
use super::read_listen::listen;
use super::read_redis::redis;
use super::read_routes::routes;
use super::read_upstream::upstreams;
use super::read_value::{breaker, count, field_name, header_bytes, set};
use super::routes::Routes;
use super::section::{At, Section};
use super::sections::{Admin, Cache, Config, Limits, Origin, Public, Reload};
use super::source::{Environment, Mistake, Source};
use super::units;
use super::variables::{TTL, UPSTREAM_URL};

/// The configuration that runs when no file is given.
pub const DEFAULT: &str = include_str!("../../config/default.toml");

/// The paths of an API that nothing else is known of: all.
const FRONTED: [&str; 2] = ["/", "/{*rest}"];

impl Config {
    /// Reads and checks `text`; `file` is its name in the report.
    pub fn parse(
        file: &str,
        text: &str,
        environment: Environment<'_>,
    ) -> Result<Self, Vec<Mistake>> {
        config(file, text, environment)
    }

    /// What runs where no file is named: the built-in origin, or where the environment says where
    /// the API is, that.
    pub fn built_in(environment: Environment<'_>) -> Result<Self, Vec<Mistake>> {
        let said = |name: &str| environment(name).filter(|said| !said.is_empty());
        if said(UPSTREAM_URL).is_none() {
            return Self::parse("config/default.toml (built in)", DEFAULT, environment);
        }
        if let Some(text) = said(TTL).filter(|text| units::duration(text).is_none()) {
            let message = format!("{text:?}: expected {}", units::DURATION);
            return Err(vec![Mistake::of_variable(TTL, message)]);
        }
        let ttl = said(TTL).map_or_else(String::new, |_| format!("ttl = \"${{{TTL}}}\"\n"));
        let routes = FRONTED.map(|path| format!("[[route]]\npath = \"{path}\"\n{ttl}"));
        Self::parse("the built-in configuration", &routes.concat(), environment)
    }
}

pub fn config(
    file: &str,
    text: &str,
    environment: Environment<'_>,
) -> Result<Config, Vec<Mistake>> {
    config_and_files(file, text, environment).0
}

/// What is read of `[admin]`, whatever is wrong with the rest.
pub fn admin_alone(file: &str, text: &str, environment: Environment<'_>) -> Admin {
    let source = Source::new(file, text, environment);
    let table = tables_of(&source);
    admin(Section::root(&source, &table).table("admin"))
}

/// The same, and the other files that it names, whether they could be read or not.
pub fn config_and_files(
    file: &str,
    text: &str,
    environment: Environment<'_>,
) -> (Result<Config, Vec<Mistake>>, Vec<PathBuf>) {
    let source = Source::new(file, text, environment);
    let table = tables_of(&source);
    let mut config = root(Section::root(&source, &table));
    config.settings = settings(&source, table.get_ref(), &config).into();
    let files = source.files();
    config.named_files.clone_from(&files);
    config.digest = hex::encode(&Sha256::digest(text)[..6]);
    drop(table);
    let mistakes = source.into_mistakes();
    let read = if mistakes.is_empty() {
        Ok(config)
    } else {
        Err(mistakes)
    };
    (read, files)
}

/// The dotted names of all keys that a configuration may hold.
#[cfg(test)]
pub fn known_keys(text: &str) -> std::collections::BTreeSet<String> {
    let source = Source::new("known", text, &|_| None);
    let table = tables_of(&source);
    root(Section::root(&source, &table));
    source.asked()
}

fn root(mut root: Section<'_, '_>) -> Config {
    let cache = cache(root.table("cache"));
    let auth = auth(root.table("auth"));
    let (upstream, upstreams) = upstreams(root.table("upstream"));
    let names: Vec<Arc<str>> = upstreams.iter().map(|(name, _)| Arc::clone(name)).collect();
    let routes = routes(root.tables("route"), &cache, &auth, names);
    let mut every = Reload::default();
    let mut reload = root.table("reload");
    set(&mut every.every, reload.duration("every"));
    reload.finish();
    let mut trace = root.table("trace");
    let starts_traces = trace.boolean("start").unwrap_or(true);
    trace.finish();
    let config = Config {
        file: None,
        access_log: access_log(root.table("access_log"), &secret_fields(&cache, &routes)),
        starts_traces,
        named_files: Vec::new(),
        fingerprint: [0; 32],
        digest: String::new(),
        settings: Arc::new([]),
        bypass: root.boolean("bypass").unwrap_or(false),
        reload: every,
        listen: listen(root.one_or_more("listen")),
        admin: admin(root.table("admin")),
        upstream,
        upstreams,
        origin: origin(root.table("origin")),
        limits: limits(root.table("limits")),
        error_headers: errors(root.table("errors")),
        auth,
        rate_limits: rate_limits(root.tables("rate_limit"), &routes),
        routes,
        cache,
    };
    for place in &config.listen.places {
        let public = &place.address;
        if public.tcp().is_some_and(|address| address.port() == 0) {
            continue;
        }
        if public.tcp() == Some(config.admin.address) {
            let message =
                format!("[listen] and [admin] have the same address {public}: expected two");
            root.source().mistake(0..0, message);
        }
        let named = config.upstreams.iter().map(|(_, upstream)| upstream);
        if config
            .upstream
            .iter()
            .chain(named)
            .any(|upstream| upstream.authority() == public.to_string())
        {
            let message = format!(
                "[upstream] url is {public}, where [listen] listens: every request would come \
                    back to us; expected the address of the API"
            );
            root.source().mistake(0..0, message);
        }
    }
    root.finish();
    config
}

/// Fields that carry a credential somewhere.
fn secret_fields(cache: &Cache, routes: &Routes) -> Vec<HeaderName> {
    let of_routes = routes
        .list()
        .iter()
        .flat_map(|route| route.options.credential_fields.iter());
    let known = cache.credential_fields.iter().chain(of_routes).cloned();
    known.chain([COOKIE, SET_COOKIE, AUTHORIZATION]).collect()
}

fn address(section: &mut Section<'_, '_>, slot: &mut SocketAddr) {
    let expected = "an address and port such as \"127.0.0.1:8080\" or \"[::]:8080\"";
    set(
        slot,
        section
            .parsed("address", expected, |text| text.parse().ok())
            .map(|at| at.value),
    );
}

fn admin(mut section: Section<'_, '_>) -> Admin {
    let mut admin = Admin::default();
    address(&mut section, &mut admin.address);
    let is_token = |text: &str| !text.is_empty() && text.is_ascii();
    let expected = "a non-empty ASCII string";
    admin.token = section.secret("token", "token_file", expected, is_token);
    let public = |text: &str| match text {
        "metrics" => Some(Public::Metrics),
        "health" => Some(Public::Health),
        _ => None,
    };
    set(
        &mut admin.public,
        section.list("public", "\"metrics\" or \"health\"", public),
    );
    let host = |text: &str| {
        let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
        let is_host = !text.is_empty() && text.bytes().all(is_name);
        is_host.then(|| text.to_ascii_lowercase())
    };
    let expected = "a host name without port, such as \"iris.default.svc\"";
    set(&mut admin.hosts, section.list("hosts", expected, host));
    count(&mut section, "connections", &mut admin.connections);
    let is_meant = section.boolean("insecure").unwrap_or(false);
    let is_open = !admin.address.ip().is_loopback() && admin.token.is_none();
    let is_missing = section.is_missing("token") && section.is_missing("token_file");
    if is_open && !is_meant && is_missing {
        section.source().mistake(
            section.span(),
            format!(
                "[admin] listens on {}, where others can purge and revoke, without a token: \
                expected token = \"...\", an address of this machine alone such \
                as \"127.0.0.1:9180\", or insecure = true",
                admin.address
            ),
        );
    }
    section.finish();
    admin
}

/// The databases that are spoken.
pub const DATABASES: &str =
    "\"sqlite::memory:\", \"sqlite:FILE\" or \"postgres://user:password@host/database\"";

fn origin(mut section: Section<'_, '_>) -> Origin {
    let mut origin = Origin::default();
    let is_postgres = |text: &str| {
        let url = Url::parse(text).ok();
        url.is_some_and(|url| matches!(url.scheme(), "postgres" | "postgresql") && url.has_host())
    };
    let expected = DATABASES;
    let parse = |text: &str| {
        let is_file = text
            .strip_prefix("sqlite:")
            .is_some_and(|file| !file.is_empty());
        (is_file || is_postgres(text)).then(|| text.to_owned())
    };
    set(
        &mut origin.database,
        section
            .parsed("database", expected, parse)
            .map(|at| at.value),
    );
    let expected = "an array of \"postgres://…\"";
    let replica = |text: &str| is_postgres(text).then(|| text.to_owned());
    set(
        &mut origin.replicas,
        section.list("replicas", expected, replica),
    );
    let urls = std::iter::once(&mut origin.database).chain(&mut origin.replicas);
    origin.password_file = section.put_password(urls);
    set(
        &mut origin.connections,
        section
            .integer("connections", 1..1001)
            .map(|number| number as u32),
    );
    set(&mut origin.query_timeout, section.duration("query_timeout"));
    let Origin {
        breaker_failures,
        breaker_open,
        ..
    } = &mut origin;
    breaker(&mut section, breaker_failures, breaker_open);
    if !origin.replicas.is_empty() && !is_postgres(&origin.database) {
        let message = "origin.replicas are of Postgres: expected origin.database \
            = \"postgres://…\" with them";
        section.source().mistake(section.span(), message);
    }
    section.finish();
    origin
}

fn cache(mut section: Section<'_, '_>) -> Cache {
    let mut cache = Cache::default();
    let expected = "a size of at least \"4MiB\", such as \"256MiB\"";
    let at_least = |text: &str| super::units::size(text).filter(|size| *size >= 4 << 20);
    set(
        &mut cache.memory,
        section
            .parsed("memory", expected, at_least)
            .map(|at| at.value),
    );
    let given = section.parsed("max_object", super::units::SIZE, super::units::size);
    match given {
        Some(At { value, span }) if value > cache.memory / 8 => section.source().mistake(
            span,
            format!(
                "cache.max_object is more than an eighth of cache.memory ({}): expected at most {}",
                super::units::show_size(cache.memory),
                super::units::show_size(cache.memory / 8)
            ),
        ),
        Some(At { value, .. }) => cache.max_object = value,
        None => cache.max_object = cache.max_object.min(cache.memory / 8),
    }
    count(&mut section, "max_flights", &mut cache.max_flights);
    set(&mut cache.wait_timeout, section.duration("wait_timeout"));
    set(&mut cache.hit_for_miss, section.duration("hit_for_miss"));
    set(&mut cache.etag_up_to, section.size("etag_up_to"));
    set(&mut cache.await_up_to, section.size("await_up_to"));
    set(
        &mut cache.credential_fields,
        section.list("credential_fields", FIELD, field_name),
    );
    let cookie = |text: &str| {
        let is_token = !text.is_empty() && text.bytes().all(is_token_byte);
        is_token.then(|| text.into())
    };
    let expected = "the name of a cookie, such as \"session\"";
    set(
        &mut cache.credential_cookies,
        section.list("credential_cookies", expected, cookie),
    );
    set(
        &mut cache.targeted_fields,
        section.list("targeted_fields", FIELD, field_name),
    );
    set(
        &mut cache.hide_targeted_fields,
        section.boolean("hide_targeted_fields"),
    );
    cache.redis = redis(section.table("redis"), cache.max_object);
    // Whatever else carries a credential, this one does (RFC 9111 §3.5).
    if !cache.credential_fields.contains(&AUTHORIZATION) {
        cache.credential_fields.push(AUTHORIZATION);
    }
    section.finish();
    cache
}

/// Of a token (RFC 9110 §5.6.2).
fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

fn limits(mut section: Section<'_, '_>) -> Limits {
    let mut limits = Limits::default();
    count(&mut section, "connections", &mut limits.connections);
    set(&mut limits.header_bytes, header_bytes(&mut section));
    set(
        &mut limits.header_count,
        section
            .integer("header_count", 8..1001)
            .map(|number| number as usize),
    );
    set(&mut limits.request_body, section.size("request_body"));
    count(&mut section, "handshakes", &mut limits.handshakes);
    set(&mut limits.head_timeout, section.duration("head_timeout"));
    set(&mut limits.idle_timeout, section.duration("idle_timeout"));
    set(
        &mut limits.request_timeout,
        section.duration("request_timeout"),
    );
    set(&mut limits.body_timeout, section.duration("body_timeout"));
    set(&mut limits.mib_timeout, section.duration("mib_timeout"));
    set(
        &mut limits.tunnel_timeout,
        section.duration("tunnel_timeout"),
    );
    set(&mut limits.body_rate, section.size("body_rate"));
    let expected = "a size from \"16KiB\" to \"64MiB\", such as \"256KiB\"";
    let in_range =
        |text: &str| super::units::size(text).filter(|size| (16 << 10..=64 << 20).contains(size));
    let send_buffer = section.parsed("send_buffer", expected, in_range);
    set(&mut limits.send_buffer, send_buffer.map(|at| at.value));
    section.finish();
    limits
}

fn errors(mut section: Section<'_, '_>) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in section.pairs("headers") {
        match (field_name(&name.value), HeaderValue::from_str(&value.value)) {
            (Some(name), Ok(value)) => drop(headers.append(name, value)),
            (None, _) => section.source().mistake(
                name.span,
                format!("errors.headers: {:?}: expected {FIELD}", name.value),
            ),
            (_, Err(_)) => section.source().mistake(
                value.span,
                "errors.headers: expected a header field value without control characters",
            ),
        }
    }
    section.finish();
    headers
}

const FIELD: &str = "a header field name such as \"X-API-Key\"";
