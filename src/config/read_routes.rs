//! `[[route]]` tables, each checked by itself and against the others.

use std::sync::Arc;

use http::header::{AUTHORIZATION, COOKIE, HOST};
use http::{HeaderName, HeaderValue, Method, StatusCode};
use serde::Deserialize;

use crate::http::fields::is_hop_by_hop;
use crate::policy::invalidate::is_safe;
use crate::policy::key::QueryRule;
use crate::policy::{self, Cookies, ErrorWhen, Ignore, Invalidation, Normalise, Obey, Share};

use super::auth::{Auth, Scope, VerdictSource};
use super::read_fields::{cors, of_requests, of_responses};
use super::read_value::{field_name, word};
use super::routes::{Route, RouteError, Routes};
use super::section::{At, Section};
use super::sections::Cache;

/// What of `[cache]` every route holds.
struct Shared {
    credential_fields: Arc<[HeaderName]>,
    credential_cookies: Arc<[Box<str>]>,
    targeted_fields: Arc<[HeaderName]>,
    hides_targeted: bool,
    /// Verdicts come from the answers to requests, each for its own URL.
    learns_from_origin: bool,
    /// The source of verdicts says which project a key is of.
    names_projects: bool,
    /// Names of upstreams.
    upstreams: Vec<Arc<str>>,
}

pub fn routes(
    sections: Vec<Section<'_, '_>>,
    cache: &Cache,
    auth: &Auth,
    upstreams: Vec<Arc<str>>,
) -> Routes {
    let shared = Shared {
        credential_fields: cache.credential_fields.clone().into(),
        credential_cookies: cache.credential_cookies.clone().into(),
        targeted_fields: cache.targeted_fields.clone().into(),
        hides_targeted: cache.hide_targeted_fields,
        learns_from_origin: auth.source == VerdictSource::Origin,
        names_projects: auth.names_projects(),
        upstreams,
    };
    let mut routes = Routes::default();
    for mut section in sections {
        let source = section.source();
        let (line, _) = source.position(section.span().start);
        let path = section.parsed(
            "path",
            "a path that begins with \"/\", such as \"/api/iris/{project}\" or \"/assets/{*rest}\"",
            |text| {
                // A query, a fragment or a space never stands in the path of a request.
                let valid = text.starts_with('/') && !text.contains(['?', '#', ' ']);
                valid.then(|| text.to_owned())
            },
        );
        let missing = path.is_none() && section.is_missing("path");
        if missing {
            source.mistake(
                section.span(),
                "[[route]] has no path: expected path = \"/…\"",
            );
        }
        let span = path
            .as_ref()
            .map_or_else(|| section.span(), |at| at.span.clone());
        let route = route(
            section,
            path.as_ref().map_or("", |at| &at.value),
            line,
            &shared,
        );
        let (Some(route), Some(_)) = (route, path) else {
            continue;
        };
        let shown = route.path.clone();
        match routes.add(route) {
            Ok(()) => {}
            Err(RouteError::Pattern(why)) => {
                source.mistake(
                    span,
                    format!(
                        "route.path = {shown:?}: {why}; expected one \
                    {{name}} a segment, and {{*rest}} only at the end"
                    ),
                );
            }
            Err(RouteError::SameAs { earlier, method }) => {
                let line = routes.list().get(earlier).map_or(0, |route| route.line);
                source.mistake(
                    span,
                    format!(
                        "route.path = {shown:?}: matches the same {method} \
                    requests as the route at line {line}; expected routes that differ in path, \
                    host or methods"
                    ),
                );
            }
        }
    }
    routes
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
enum ShareWord {
    Standard,
    PerKey,
    Verified,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum CookieWord {
    Bypass,
    Ignore,
    Key,
    Store,
}

fn route(mut section: Section<'_, '_>, path: &str, line: usize, shared: &Shared) -> Option<Route> {
    let has_host = !section.is_missing("host");
    let host = section.parsed(
        "host",
        "a host name without port, such as \"api.example.org\" or \"*.example.org\"",
        |text| {
            let name = text.strip_prefix("*.").unwrap_or(text);
            let valid = !name.is_empty()
                && name
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte));
            valid.then(|| text.to_ascii_lowercase())
        },
    );
    let method = |text: &str| {
        let upper = text
            .bytes()
            .all(|byte| byte.is_ascii_uppercase() || byte == b'-');
        Method::from_bytes(text.as_bytes())
            .ok()
            .filter(|method| upper && *method != Method::CONNECT)
    };
    let mut methods = section.some("methods", "a method such as \"GET\", in capitals", method);
    if let Some(methods) = &mut methods {
        methods.sort_by(|one, other| one.as_str().cmp(other.as_str()));
        methods.dedup();
    }
    let options = policy::Options {
        bypass: section.boolean("bypass").unwrap_or(false),
        ttl: section.duration("ttl"),
        force_ttl: section.duration("force_ttl"),
        max_ttl: section.duration("max_ttl"),
        error_ttl: section.duration("error_ttl"),
        stale_while_revalidate: section.duration("stale_while_revalidate"),
        stale_if_error: section.duration("stale_if_error"),
        share: share(&mut section),
        cookies: match section.parsed(
            "cookies",
            "\"bypass\", \"ignore\", \"key\" or \"store\"",
            word::<CookieWord>,
        ) {
            Some(At {
                value: CookieWord::Ignore,
                ..
            }) => Cookies::Ignore,
            Some(At {
                value: CookieWord::Key,
                ..
            }) => Cookies::Key,
            Some(At {
                value: CookieWord::Store,
                ..
            }) => Cookies::Store,
            Some(At {
                value: CookieWord::Bypass,
                ..
            })
            | None => Cookies::Bypass,
        },
        ignore: ignore(&mut section),
        obey: obey(&mut section),
        heuristic_max_ttl: section.duration("heuristic_max_ttl"),
        ttl_statuses: statuses(&mut section, "ttl_statuses", &policy::TTL_STATUSES),
        error_statuses: statuses(&mut section, "error_statuses", &policy::ERROR_STATUSES),
        weak_revalidation: section.boolean("weak_revalidation").unwrap_or(false),
        head_as_get: head_as_get(&mut section),
        error_when: error_when(&mut section),
        targeted_fields: Arc::clone(&shared.targeted_fields),
        hides_targeted: shared.hides_targeted,
        client_cache_control: section
            .parsed("client_cache_control", "a Cache-Control value", |text| {
                HeaderValue::from_str(text)
                    .ok()
                    .filter(|value| !value.is_empty())
            })
            .map(|at| at.value),
        groups: group_names(&mut section, "groups").map(Arc::new),
        credential_fields: credential_fields(&mut section)
            .unwrap_or_else(|| Arc::clone(&shared.credential_fields)),
        credential_cookies: Arc::clone(&shared.credential_cookies),
    };
    let query = section.word_or_list(
        "query",
        "\"all\", \"none\" or an array of parameter names",
        |text| match text {
            "all" => Some(QueryRule::All),
            "none" => Some(QueryRule::None),
            _ => None,
        },
        QueryRule::Names,
    );
    let share_of_route = options.share;
    let methods = methods.unwrap_or_else(|| vec![Method::GET, Method::HEAD]);
    let invalidates = invalidates(&mut section, &methods);
    let credentials = Arc::clone(&options.credential_fields);
    let methods_of_cors = methods.clone();
    let route = Route {
        path: path.to_owned(),
        host: host.map(|at| at.value),
        methods,
        normalise: Normalise {
            languages: section
                .some(
                    "languages",
                    "a language tag such as \"en\" or \"de-AT\"",
                    language,
                )
                .unwrap_or_default(),
            origins: section.list(
                "origins",
                "an origin such as \"https://app.example.org\"",
                origin,
            ),
        },
        invalidates,
        verdict_scope: verdict_scope(&mut section, shared),
        options,
        query: query.unwrap_or_default(),
        sort_query: section.boolean("sort_query").unwrap_or(false),
        drops_unknown_query: drops_unknown_query(&mut section),
        raw_target: raw_target(&mut section, share_of_route),
        upstream: upstream(&mut section, &shared.upstreams),
        request_fields: of_requests(&mut section, share_of_route, &credentials),
        response_fields: of_responses(&mut section, share_of_route, shared.names_projects),
        cors: cors(&mut section, &methods_of_cors, origin),
        forward_headers: section.list(
            "forward_headers",
            "an end-to-end header field name",
            |text| field_name(text).filter(|name| *name != HOST && !is_hop_by_hop(name)),
        ),
        line,
    };
    section.finish();
    // A host that could not be read is not "any": what comes of it would only mislead.
    (!has_host || route.host.is_some()).then_some(route)
}

/// A list of statuses.
fn statuses(
    section: &mut Section<'_, '_>,
    key: &'static str,
    default: &[u16],
) -> Option<Arc<[StatusCode]>> {
    let default = || default.iter().map(|status| u64::from(*status)).collect();
    let numbers = section.integers(key, 200..600).unwrap_or_else(default);
    let statuses = numbers.into_iter().filter_map(|number| {
        let number = u16::try_from(number).ok()?;
        StatusCode::from_u16(number).ok()
    });
    Some(statuses.collect())
}

fn head_as_get(section: &mut Section<'_, '_>) -> bool {
    let words = |text: &str| match text {
        "pass" => Some(false),
        "get" => Some(true),
        _ => None,
    };
    let given = section.parsed("head", "\"pass\" or \"get\"", words);
    given.is_some_and(|at| at.value)
}

fn share(section: &mut Section<'_, '_>) -> Share {
    let expected = "\"standard\", \"per-key\" or \"verified\"";
    match section.parsed("share", expected, word::<ShareWord>) {
        Some(At {
            value: ShareWord::PerKey,
            ..
        }) => Share::PerKey,
        Some(At {
            value: ShareWord::Verified,
            ..
        }) => Share::Verified,
        Some(At {
            value: ShareWord::Standard,
            ..
        })
        | None => Share::Standard,
    }
}

/// Where the key stands on this route alone; `Authorization` carries a credential anywhere
/// (RFC 9111 §3.5).
fn credential_fields(section: &mut Section<'_, '_>) -> Option<Arc<[HeaderName]>> {
    let expected = "the name of an end-to-end header field, such as \"x-api-key\"; cookies are \
        named by cache.credential_cookies";
    let mut fields = section.list("credential_fields", expected, |text| {
        let is_other = |name: &HeaderName| *name == HOST || *name == COOKIE;
        field_name(text).filter(|name| !is_other(name) && !is_hop_by_hop(name))
    })?;
    if !fields.contains(&AUTHORIZATION) {
        fields.push(AUTHORIZATION);
    }
    Some(fields.into())
}

fn drops_unknown_query(section: &mut Section<'_, '_>) -> bool {
    let expected = "\"bypass\" or \"drop\"";
    let found = section.parsed("unknown_query", expected, |text| match text {
        "bypass" => Some(false),
        "drop" => Some(true),
        _ => None,
    });
    found.is_some_and(|at| at.value)
}

fn raw_target(section: &mut Section<'_, '_>, share: Share) -> bool {
    let is_raw = section.boolean("raw_target").unwrap_or(false);
    if is_raw && share == Share::Verified {
        section.source().mistake(
            section.span(),
            "raw_target = true: a target that is sent as it came proves no key; leave it out, or \
                set another share than \"verified\"",
        );
    }
    is_raw
}

fn verdict_scope(section: &mut Section<'_, '_>, shared: &Shared) -> Scope {
    let expected = "\"url\", \"route\" or \"all\"";
    let Some(At { value, span }) = section.parsed("verdict_scope", expected, word::<Scope>) else {
        return Scope::Url;
    };
    if value != Scope::Url && shared.learns_from_origin {
        section.source().mistake(
            span,
            "verdict_scope: the origin's answer to one URL says nothing of a key on others; leave \
                it out, or set auth.source to the URL of something that only good keys get, or \
                to \"table\"",
        );
    }
    value
}

fn language(text: &str) -> Option<HeaderValue> {
    let is_tag = |part: &str| {
        (1..=8).contains(&part.len()) && part.bytes().all(|byte| byte.is_ascii_alphanumeric())
    };
    let value = HeaderValue::from_str(text).ok();
    value.filter(|_| text.split('-').all(is_tag))
}

fn origin(text: &str) -> Option<HeaderValue> {
    let url = url::Url::parse(text).ok()?;
    // As a browser writes it (RFC 6454 §6.2): no path, no default port.
    (url.origin().ascii_serialization() == text).then(|| HeaderValue::from_str(text).ok())?
}

fn group_names(section: &mut Section<'_, '_>, key: &'static str) -> Option<Vec<Box<str>>> {
    section.some(key, "a name such as \"overview\"", |text| {
        (!text.trim().is_empty()).then(|| text.into())
    })
}

/// What `invalidates` names, as `invalidation` says, and what `purges` names, always hard.
fn invalidates(section: &mut Section<'_, '_>, methods: &[Method]) -> Vec<(Box<str>, Invalidation)> {
    let expected = "\"soft\", \"hard\" or \"adaptive\"";
    let how = section.parsed("invalidation", expected, |text| {
        text.parse::<Invalidation>().ok()
    });
    let how = how.map_or(Invalidation::Soft, |at| at.value);
    let mut changes = Vec::new();
    for (key, how) in [("invalidates", how), ("purges", Invalidation::Hard)] {
        let Some(names) = group_names(section, key) else {
            continue;
        };
        if methods.iter().all(is_safe) {
            let message = format!(
                "route.{key} is for writes, and no method of this route is one: expected methods \
                    = [\"POST\", …]"
            );
            section.source().mistake(section.span(), message);
        }
        changes.extend(names.into_iter().map(|name| (name, how)));
    }
    changes
}

fn ignore(section: &mut Section<'_, '_>) -> Ignore {
    let mut ignore = Ignore::default();
    let words = section.list(
        "ignore",
        "one of \"no-store\", \"no-cache\", \"private\", \"set-cookie\"",
        |text| {
            ["no-store", "no-cache", "private", "set-cookie"]
                .into_iter()
                .find(|word| *word == text)
        },
    );
    for word in words.unwrap_or_default() {
        match word {
            "no-store" => ignore.no_store = true,
            "no-cache" => ignore.no_cache = true,
            "private" => ignore.private = true,
            _ => ignore.set_cookie = true,
        }
    }
    ignore
}

const OBEYED: [&str; 6] = [
    "max-age",
    "min-fresh",
    "max-stale",
    "no-cache",
    "no-store",
    "only-if-cached",
];

fn obey(section: &mut Section<'_, '_>) -> Obey {
    let expected = "one \
        of \"max-age\", \"min-fresh\", \"max-stale\", \"no-cache\", \"no-store\", \"only-if-cached\"";
    let words = section.list("obey", expected, |text| {
        OBEYED.into_iter().find(|word| *word == text)
    });
    let Some(words) = words else {
        return Obey::default();
    };
    let has = |word| words.contains(&word);
    Obey {
        max_age: has("max-age"),
        min_fresh: has("min-fresh"),
        max_stale: has("max-stale"),
        no_cache: has("no-cache"),
        no_store: has("no-store"),
        only_if_cached: has("only-if-cached"),
    }
}

fn error_when(section: &mut Section<'_, '_>) -> Option<ErrorWhen> {
    let mut table = section.table("error_when");
    let expected = "a JSON pointer such as \"/metrics/total_projects\"";
    let pointer = table.parsed("pointer", expected, |text| {
        text.starts_with('/').then(|| text.to_owned())
    });
    let equals = table.scalar("equals");
    let lacks = |key| table.is_present() && table.is_missing(key);
    if lacks("pointer") || lacks("equals") {
        let message = "route.error_when needs both: expected { pointer = \"/…\", equals = … }";
        table.source().mistake(table.span(), message);
    }
    table.finish();
    Some(ErrorWhen {
        pointer: pointer?.value,
        equals: equals?,
    })
}

/// The name of the upstream that a route's requests go to.
fn upstream(section: &mut Section<'_, '_>, known: &[Arc<str>]) -> Option<Arc<str>> {
    let expected = match known {
        [] => "the name of an upstream: add [upstream.NAME] with its url".to_owned(),
        known => format!("the name of an upstream: {}", known.join(", ")),
    };
    let is_it = |text: &str| known.iter().find(|name| ***name == *text).cloned();
    section
        .parsed("upstream", &expected, is_it)
        .map(|at| at.value)
}
