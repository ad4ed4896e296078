//! `[upstream]`, key by key.

use std::sync::Arc;
use std::time::Duration;

use http::uri::Scheme;
use http::{HeaderValue, Uri};
use url::Url;

use crate::http::fields::without_brackets;
use crate::tls::{ClientTls, Identity};

use super::read_value::{breaker, certificate_files, count, file, header_bytes, set, word};
use super::section::{At, Section};
use super::upstream::{DEFAULT, Health, HostRule, Protocol, Upstream, Via};

/// `[upstream]`, and those in it that have names.
pub fn upstreams(mut section: Section<'_, '_>) -> (Option<Upstream>, Vec<(Arc<str>, Upstream)>) {
    let present = section.is_present();
    let mut upstream = one(&mut section, present);
    let host_rule = section.parsed("host", "\"keep\" or \"rewrite\"", word::<HostRule>);
    set(&mut upstream.host_rule, host_rule.map(|at| at.value));
    for (key, slot) in [
        ("forwarded_host", &mut upstream.forwarded_host),
        ("forwarded_proto", &mut upstream.forwarded_proto),
    ] {
        let value = section.parsed(key, "a header field value", |text| {
            HeaderValue::from_str(text).ok()
        });
        let Some(At { value, span }) = value else {
            continue;
        };
        if upstream.host_rule == HostRule::Keep {
            section.source().mistake(
                span,
                format!(
                    "upstream.{key} has no effect with host \
                = \"keep\": remove it, or set host = \"rewrite\""
                ),
            );
        }
        *slot = Some(value);
    }
    let via = |text: &str| match text {
        "full" => Some(Via::Full),
        "off" => Some(Via::Off),
        _ => None,
    };
    let given = section.parsed("via", "\"full\" or \"off\"", via);
    set(&mut upstream.via, given.map(|at| at.value));
    let mut named: Vec<(Arc<str>, Upstream)> = Vec::new();
    for (name, mut section) in section.named_tables() {
        let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
        // That is what the one without a name is called in metrics.
        let is_taken = name.value == DEFAULT;
        if !name.value.bytes().all(is_name) || name.value.is_empty() || is_taken {
            let message = format!(
                "[upstream.{}]: expected a name of letters, digits, \"-\" and \"_\", other than \
                    {DEFAULT:?}",
                name.value
            );
            section.source().mistake(name.span, message);
        }
        // How hosts are treated, and how we are named, is the same for all.
        let other = Upstream {
            host_rule: upstream.host_rule,
            forwarded_host: upstream.forwarded_host.clone(),
            forwarded_proto: upstream.forwarded_proto.clone(),
            via: upstream.via,
            ..one(&mut section, true)
        };
        section.finish();
        named.push((name.value.into(), other));
    }
    section.finish();
    (present.then_some(upstream), named)
}

/// Where one is, and how it is connected to.
fn one(section: &mut Section<'_, '_>, is_wanted: bool) -> Upstream {
    let expected = "a URL without path such \
        as \"http://127.0.0.1:3000\", \"https://api.example.org\" or \"unix:/run/app.sock\"";
    let place = section.parsed("url", expected, upstream_url);
    if is_wanted && place.is_none() && section.is_missing("url") {
        let message = format!("[{}] has no url: expected url = {expected}", section.name());
        section.source().mistake(section.span(), message);
    }
    let mut upstream = place.map_or_else(
        || Upstream::at(Scheme::HTTP, String::new(), 80),
        |at| at.value,
    );
    let protocol = |text: &str| match text {
        "http/1.1" => Some(Protocol::Http1),
        "h2" => Some(Protocol::Http2),
        _ => None,
    };
    let protocol = section.parsed("protocol", "\"http/1.1\" or \"h2\"", protocol);
    set(&mut upstream.protocol, protocol.map(|at| at.value));
    tls(section, &mut upstream);
    let resolve_every = section.parsed("resolve_every", OFTEN, often);
    set(
        &mut upstream.resolve_every,
        resolve_every.map(|at| at.value),
    );
    set(&mut upstream.max_age, section.duration("max_age"));
    upstream.health = health(section.table("health"));
    set(
        &mut upstream.connect_timeout,
        section.duration("connect_timeout"),
    );
    set(
        &mut upstream.response_timeout,
        section.duration("response_timeout"),
    );
    set(&mut upstream.read_timeout, section.duration("read_timeout"));
    set(&mut upstream.idle_timeout, section.duration("idle_timeout"));
    count(section, "max_connections", &mut upstream.max_connections);
    set(
        &mut upstream.queue,
        section
            .integer("queue", 0..10_000_001)
            .map(|number| number as usize),
    );
    set(
        &mut upstream.queue_timeout,
        section.duration("queue_timeout"),
    );
    let Upstream {
        breaker_failures,
        breaker_open,
        ..
    } = &mut upstream;
    breaker(section, breaker_failures, breaker_open);
    set(&mut upstream.header_bytes, header_bytes(section));
    upstream
}

/// Whom we trust there, and who we are to it.
fn tls(section: &mut Section<'_, '_>, upstream: &mut Upstream) {
    let ca = file(section, "ca_file");
    let own = certificate_files(section);
    let name = |text: &str| {
        let is_name = rustls::pki_types::ServerName::try_from(text).is_ok();
        is_name.then(|| text.to_owned())
    };
    let server_name = section.parsed("server_name", "a host name or an address", name);
    let spans = [
        ca.as_ref().map(|at| ("ca_file", at.span.clone())),
        own.as_ref().map(|(at, _)| ("cert_file", at.span.clone())),
        server_name
            .as_ref()
            .map(|at| ("server_name", at.span.clone())),
    ];
    upstream.server_name = server_name.map(|at| at.value);
    let source = section.source();
    for (key, span) in spans.into_iter().flatten() {
        if upstream.scheme != Scheme::HTTPS {
            let key = section.path(key);
            let message =
                format!("{key} has no effect without https: expected url = \"https://...\"");
            source.mistake(span, message);
            return;
        }
    }
    let identity = own.and_then(|(certificate, key)| {
        let read = Identity::read(&certificate.value, &key.value);
        read.map_err(|why| {
            let key = section.path("cert_file");
            source.mistake(certificate.span, format!("{key}: {why}"));
        })
        .ok()
    });
    if ca.is_none() && identity.is_none() {
        return;
    }
    let (file, span) = match &ca {
        Some(At { value, span }) => (Some(value.as_path()), span.clone()),
        None => (None, section.span()),
    };
    match ClientTls::new(file, identity.as_ref(), &section.path("ca_file")) {
        Ok(tls) => upstream.tls = Some(tls),
        Err(why) => source.mistake(span, format!("{}: {why}", section.path("ca_file"))),
    }
}

const OFTEN: &str = "a duration of at least \"100ms\", such as \"5s\"";

fn often(text: &str) -> Option<Duration> {
    super::units::duration(text).filter(|often| *often >= Duration::from_millis(100))
}

fn health(mut section: Section<'_, '_>) -> Option<Health> {
    let present = section.is_present();
    let path = |text: &str| text.parse::<Uri>().ok().filter(|_| text.starts_with('/'));
    let path = section.parsed("path", "a path such as \"/healthz\"", path);
    let interval = section.parsed("interval", OFTEN, often);
    if present && section.is_missing("path") {
        let message = format!(
            "{} is missing: expected a path that answers 200 where the upstream is well",
            section.path("path")
        );
        section.source().mistake(section.span(), message);
    }
    section.finish();
    Some(Health {
        path: path?.value,
        interval: interval.map_or(Duration::from_secs(5), |at| at.value),
    })
}

fn upstream_url(text: &str) -> Option<Upstream> {
    if let Some(path) = text.strip_prefix("unix:") {
        let is_one = path.len() > 1 && path.len() < 108 && path.starts_with(['/', '@']);
        return is_one.then(|| Upstream {
            socket: Some(path.to_owned()),
            ..Upstream::at(Scheme::HTTP, "localhost".to_owned(), 80)
        });
    }
    let url = Url::parse(text).ok()?;
    let scheme = match url.scheme() {
        "http" => Scheme::HTTP,
        "https" => Scheme::HTTPS,
        _ => return None,
    };
    let bare = matches!(url.path(), "" | "/") && url.query().is_none() && url.fragment().is_none();
    let anonymous = url.username().is_empty() && url.password().is_none();
    let host = url
        .host_str()
        .filter(|_| bare && anonymous && url.port() != Some(0))?;
    let host = without_brackets(host).to_owned();
    Some(Upstream::at(scheme, host, url.port_or_known_default()?))
}
