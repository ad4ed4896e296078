//! A client's request becomes the origin's: fields of one hop go, fields that say who forwarded
//! come (RFC 9110 §7.6).

use std::net::IpAddr;
use std::sync::Arc;

use http::header::{
    self, CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, COOKIE, EXPECT, FORWARDED, HOST, HeaderName,
    TE, UPGRADE,
};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Request, Uri, Version, request};
use http_body::Body as _;
use http_body_util::BodyExt;

use crate::config::{Config, HostRule, Route, Via};
use crate::error::{Failure, FailureKind};
use crate::http::fields;
use crate::http::fields::set;
use crate::policy::Cookies;
use crate::policy::key::{QueryRule, select_query};
use crate::upstream::{OriginBody, UpstreamName};

use super::claims::{
    self, Client, X_FORWARDED_FOR, X_FORWARDED_HOST, X_FORWARDED_PROTO, client_scheme,
    forwarded_host,
};
use super::composed::composed;
use super::conditions::Conditions;
use super::hops;
use super::host::without_default_port;
use super::trailers;

/// What of a client's request is forwarded.
#[derive(Clone, Copy)]
pub struct Forwarded<'a> {
    pub parts: &'a request::Parts,
    pub host: Option<&'a str>,
    pub client: Client,
    pub route: Option<&'a Route>,
    /// Which parameters, and whether sorted; `None`: the target as it came.
    pub query: Option<(&'a QueryRule, bool)>,
    pub form: Form,
}

/// How much of a request is the client's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// It goes by.
    Own,
    /// What is sent is what is keyed.
    Keyed,
    /// Its answer proves a key and is shared by all whose key is good: of the client's fields it
    /// has those alone of which that may be.
    Composed,
}

/// What of the configuration every forwarded request needs.
#[derive(Debug)]
pub struct Forwarding {
    /// The upstream's own host, where it replaces the client's.
    own_host: Option<HeaderValue>,
    /// The same of those that have names.
    own_hosts: Vec<(Arc<str>, HeaderValue)>,
    forwarded_host: Option<HeaderValue>,
    forwarded_proto: Option<HeaderValue>,
    /// How we are named to the origin and to clients.
    pub via: Via,
    /// Bytes that the head of a response may have.
    pub header_bytes: usize,
    /// The upstream's host, for an HTTP/1.0 client that named none.
    fallback_host: Option<HeaderValue>,
    /// All fields that carry a key on any route.
    credential_fields: Arc<[HeaderName]>,
}

impl Forwarding {
    pub fn new(config: &Config) -> Self {
        let rewrite = config
            .upstream
            .as_ref()
            .filter(|upstream| upstream.host_rule == HostRule::Rewrite);
        let mut credential_fields = config.cache.credential_fields.clone();
        for route in config.routes.list() {
            for name in route.options.credential_fields.iter() {
                if !credential_fields.contains(name) {
                    credential_fields.push(name.clone());
                }
            }
        }
        let authority = config
            .upstream
            .as_ref()
            .map(|upstream| upstream.authority());
        Self {
            credential_fields: credential_fields.into(),
            via: config
                .upstream
                .as_ref()
                .map_or(Via::Full, |upstream| upstream.via),
            header_bytes: config
                .upstream
                .iter()
                .chain(config.upstreams.iter().map(|(_, upstream)| upstream))
                .map(|upstream| upstream.header_bytes)
                .max()
                .unwrap_or(usize::MAX),
            fallback_host: authority.and_then(|host| HeaderValue::try_from(host).ok()),
            own_host: rewrite.and_then(|upstream| HeaderValue::try_from(upstream.authority()).ok()),
            own_hosts: config
                .upstreams
                .iter()
                .filter(|_| rewrite.is_some())
                .filter_map(|(name, upstream)| {
                    let host = HeaderValue::try_from(upstream.authority()).ok()?;
                    Some((Arc::clone(name), host))
                })
                .collect(),
            forwarded_host: rewrite.and_then(|upstream| upstream.forwarded_host.clone()),
            forwarded_proto: rewrite.and_then(|upstream| upstream.forwarded_proto.clone()),
        }
    }

    /// Where the origin never sees the client's host, clients do not see the origin's either: a
    /// `Location` or `Content-Location` that names it becomes the path that it means here.
    pub fn name_no_upstream(&self, headers: &mut HeaderMap) {
        let named = self.own_hosts.iter().map(|(_, host)| host);
        let own: Vec<&str> = self
            .own_host
            .iter()
            .chain(named)
            .filter_map(|own| own.to_str().ok())
            .collect();
        if own.is_empty() {
            return;
        }
        for name in [header::LOCATION, header::CONTENT_LOCATION] {
            let Some(value) = headers.get(&name) else {
                continue;
            };
            let text = String::from_utf8_lossy(value.as_bytes()).into_owned();
            let is_own = |scheme: &str, rest: &str| {
                let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
                let authority = without_default_port(authority, scheme);
                let mut own = own.iter().map(|own| without_default_port(own, scheme));
                own.any(|own| authority.eq_ignore_ascii_case(own))
            };
            let rest = match text.split_once("://") {
                Some((scheme, rest)) if is_own(&scheme.to_ascii_lowercase(), rest) => rest,
                None => match text.strip_prefix("//") {
                    Some(rest) if is_own("http", rest) || is_own("https", rest) => rest,
                    _ => continue,
                },
                Some(_) => continue,
            };
            let at = rest.find(['/', '?', '#']).unwrap_or(rest.len());
            let target = match &rest[at..] {
                target if target.starts_with('/') => target.to_owned(),
                target => format!("/{target}"),
            };
            if let Ok(value) = HeaderValue::from_str(&target) {
                headers.insert(name, value);
            }
        }
    }

    /// What the operator has put in the place of the client's words.
    pub fn configured_values(&self) -> [Option<&HeaderValue>; 3] {
        let values = [&self.own_host, &self.forwarded_host, &self.forwarded_proto];
        values.map(Option::as_ref)
    }

    /// Whether the origin never sees the client's host.
    pub fn rewrites_host(&self) -> bool {
        self.own_host.is_some()
    }

    /// The request to send, with the body to come.
    pub fn request(
        &self,
        sent: Forwarded<'_>,
        conditions: Conditions<'_>,
        body: OriginBody,
    ) -> Result<Request<OriginBody>, Failure> {
        let Forwarded {
            parts,
            host,
            client,
            route,
            query,
            form,
        } = sent;
        if hops::is_circling(&parts.headers) {
            let message = "the request has come through here many times already: the upstream, or \
                what stands before it, sends it back to us";
            return Err(Failure::new(FailureKind::Loop, message));
        }
        let body = if body.is_end_stream() {
            body
        } else {
            let credentials = Arc::clone(&self.credential_fields);
            body.map_frame(move |frame| trailers::cleaned(frame, &credentials))
                .boxed_unsync()
        };
        let mut request = Request::new(body);
        *request.method_mut() = parts.method.clone();
        *request.uri_mut() = target(&parts.uri, query)?;
        *request.headers_mut() = self.headers(parts, host, client, route, form, conditions);
        // hyper's client would send a GET or HEAD of unknown length without its body.
        if let Some(name) = route.and_then(|route| route.upstream.clone()) {
            request.extensions_mut().insert(UpstreamName(name));
        }
        let is_chunked =
            !request.body().is_end_stream() && !request.headers().contains_key(CONTENT_LENGTH);
        if is_chunked {
            let chunked = HeaderValue::from_static("chunked");
            request
                .headers_mut()
                .insert(header::TRANSFER_ENCODING, chunked);
        }
        Ok(request)
    }

    fn headers(
        &self,
        parts: &request::Parts,
        host: Option<&str>,
        client: Client,
        route: Option<&Route>,
        form: Form,
        conditions: Conditions<'_>,
    ) -> HeaderMap {
        let wants_trailers = fields::has_member(&parts.headers, TE, "trailers");
        let upgrade = upgrade_of(parts).cloned();
        let listed = route.and_then(|route| route.forward_headers.as_deref());
        let mut headers = match (listed, route) {
            (listed, Some(route)) if form == Form::Composed => {
                let listed = listed.unwrap_or_default();
                composed(&parts.headers, listed, route, conditions)
            }
            (None, _) => parts.headers.clone(),
            (Some(allowed), _) => only(&parts.headers, allowed),
        };
        fields::strip_hop_by_hop(&mut headers);
        headers.remove(EXPECT);
        let is_told = !self.rewrites_host();
        claims::strip(
            &mut headers,
            client,
            &parts.method,
            &self.credential_fields,
            is_told,
        );
        if let Some(route) = route.filter(|_| form != Form::Own) {
            // A key in a field that the route does not name would choose an answer that no key of
            // ours tells from another.
            let named = &route.options.credential_fields;
            for name in self
                .credential_fields
                .iter()
                .filter(|name| !named.contains(name))
            {
                headers.remove(name);
            }
        }
        if route.is_some_and(|route| route.options.cookies == Cookies::Ignore) {
            headers.remove(COOKIE);
        }
        join_cookies(&mut headers);
        let own = self.own_host(route);
        self.say_who_forwards(&mut headers, parts, host, client, own);
        hops::keep_way(&mut headers, &parts.headers);
        hops::name_us(&mut headers, parts.version, self.via);
        if wants_trailers {
            headers.insert(TE, HeaderValue::from_static("trailers"));
            headers.append(CONNECTION, HeaderValue::from_static("te"));
        }
        if let Some(protocol) = upgrade {
            headers.insert(UPGRADE, protocol);
            headers.append(CONNECTION, HeaderValue::from_static("upgrade"));
        }
        conditions.apply(&mut headers);
        headers
    }

    /// The host that replaces the client's, of a route's upstream.
    fn own_host(&self, route: Option<&Route>) -> Option<&HeaderValue> {
        let name = route.and_then(|route| route.upstream.as_ref());
        let named = name.and_then(|name| self.own_hosts.iter().find(|(known, _)| known == name));
        named.map(|(_, host)| host).or(self.own_host.as_ref())
    }

    fn say_who_forwards(
        &self,
        headers: &mut HeaderMap,
        parts: &request::Parts,
        host: Option<&str>,
        client: Client,
        own_host: Option<&HeaderValue>,
    ) {
        let host = host.and_then(|host| HeaderValue::from_str(host).ok());
        let own = (own_host, &self.forwarded_host, &self.forwarded_proto);
        match own {
            (Some(own), forwarded_host, forwarded_proto) => {
                headers.insert(HOST, own.clone());
                set(headers, X_FORWARDED_HOST, forwarded_host.clone());
                set(headers, X_FORWARDED_PROTO, forwarded_proto.clone());
            }
            (None, ..) => {
                let is_https = client_scheme(parts, client) == "https";
                let proto = HeaderValue::from_static(if is_https { "https" } else { "http" });
                set(
                    headers,
                    HOST,
                    host.clone().or_else(|| self.fallback_host.clone()),
                );
                set(headers, X_FORWARDED_PROTO, Some(proto));
                let said = forwarded_host(parts, client);
                let said = said.and_then(|said| HeaderValue::from_str(said).ok());
                set(headers, X_FORWARDED_HOST, said.or(host));
            }
        }
        let so_far = headers
            .get_all(X_FORWARDED_FOR)
            .iter()
            .filter(|_| client.is_trusted);
        let so_far: Vec<&[u8]> = so_far.map(HeaderValue::as_bytes).collect();
        let value = forwarded_for(&so_far, client.address);
        set(headers, X_FORWARDED_FOR, value);
        if headers.contains_key(FORWARDED) {
            headers.append(FORWARDED, forwarded_element(client.address));
        }
    }
}

/// HTTP/2 lets a client split its cookies over several lines; HTTP/1.1 does not
/// (RFC 9113 §8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    let lines: Vec<&[u8]> = headers
        .get_all(COOKIE)
        .iter()
        .map(HeaderValue::as_bytes)
        .collect();
    if lines.len() > 1 {
        let joined = HeaderValue::from_maybe_shared(bytes::Bytes::from(lines.join(&b"; "[..])));
        set(headers, COOKIE, joined.ok());
    }
}

fn forwarded_for(so_far: &[&[u8]], address: IpAddr) -> Option<HeaderValue> {
    let mut list = so_far.join(&b", "[..]);
    if !list.is_empty() {
        list.extend_from_slice(b", ");
    }
    list.extend_from_slice(address.to_string().as_bytes());
    HeaderValue::from_maybe_shared(bytes::Bytes::from(list)).ok()
}

/// What we add to a trusted proxy's `Forwarded` (RFC 7239 §4, §6).
fn forwarded_element(address: IpAddr) -> HeaderValue {
    let text = match address {
        IpAddr::V4(address) => format!("for={address}"),
        IpAddr::V6(address) => format!("for=\"[{address}]\""),
    };
    HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static("for=unknown"))
}

/// The protocol that a request asks to switch to (RFC 9110 §7.8); HTTP/1.1 only.
pub fn upgrade_of(parts: &request::Parts) -> Option<&HeaderValue> {
    fields::asks_for_tunnel(&parts.headers).filter(|_| parts.version == Version::HTTP_11)
}

/// The fields that a route lets through, and those without which the message has no meaning.
fn only(headers: &HeaderMap, allowed: &[HeaderName]) -> HeaderMap {
    const FRAMING: [HeaderName; 5] = [
        CONTENT_LENGTH,
        CONTENT_TYPE,
        header::CONTENT_ENCODING,
        CONNECTION,
        X_FORWARDED_FOR,
    ];
    let kept = headers
        .iter()
        .filter(|(name, _)| allowed.contains(name) || FRAMING.contains(name));
    kept.map(|(name, value)| (name.clone(), value.clone()))
        .collect()
}

/// The origin-form target, with the part of the query that the route lets through.
fn target(uri: &Uri, query: Option<(&QueryRule, bool)>) -> Result<Uri, Failure> {
    let whole = uri.path_and_query().map_or("/", PathAndQuery::as_str);
    let target = match query {
        Some((rule, sort)) => match select_query(uri.query(), rule, sort) {
            Some(query) if Some(&*query) == uri.query() => whole.parse(),
            Some(query) => format!("{}?{query}", uri.path()).parse(),
            None => uri.path().parse(),
        },
        None => whole.parse(),
    };
    target.map_err(|_| Failure::new(FailureKind::BadRequest, "the request target is not a path"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::empty;

    fn forwarded(config: &str, client: Client, lines: &[(&str, &str)]) -> HeaderMap {
        let config = Config::parse("test", config, &|_| None).unwrap();
        let mut request = Request::builder().uri("/p?a=1&b=2");
        for (name, value) in lines {
            request = request.header(*name, *value);
        }
        let (parts, ()) = request.body(()).unwrap().into_parts();
        let route = config.routes.list().first().map(|route| &**route);
        let host = parts.headers.get(HOST).map(|value| value.to_str().unwrap());
        let forwarding = Forwarding::new(&config);
        let sent = Forwarded {
            parts: &parts,
            host,
            client,
            route,
            query: route.map(|route| (&route.query, false)),
            form: Form::Own,
        };
        let request = forwarding.request(sent, Conditions::Pass, empty());
        request.unwrap().headers().clone()
    }

    const STRANGER: Client = Client {
        address: IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 7)),
        is_trusted: false,
        is_secure: false,
    };

    const KEEP: &str = "[upstream]\nurl = \"http://up.example:81\"\n";

    #[test]
    fn a_strangers_forwarding_fields_are_replaced_by_ours() {
        let theirs = [
            ("host", "a.example"),
            ("x-forwarded-for", "10.0.0.1"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-host", "evil.example"),
            ("x-original-url", "/admin"),
            ("forwarded", "for=1"),
        ];
        let headers = forwarded(KEEP, STRANGER, &theirs);
        assert_eq!(headers[X_FORWARDED_FOR], "192.0.2.7");
        assert_eq!(headers[X_FORWARDED_PROTO], "http");
        assert_eq!(headers[X_FORWARDED_HOST], "a.example");
        assert_eq!(headers[HOST], "a.example");
        assert_eq!(headers[header::VIA], "1.1 iris-sidecar");
        assert!(!headers.contains_key("x-original-url") && !headers.contains_key(FORWARDED));
    }

    #[test]
    fn a_trusted_proxys_word_is_kept_and_extended() {
        let trusted = Client {
            is_trusted: true,
            ..STRANGER
        };
        let theirs = [
            ("host", "a"),
            ("x-forwarded-for", "10.0.0.1"),
            ("x-forwarded-proto", "https"),
        ];
        let headers = forwarded(KEEP, trusted, &theirs);
        assert_eq!(headers[X_FORWARDED_FOR], "10.0.0.1, 192.0.2.7");
        assert_eq!(headers[X_FORWARDED_PROTO], "https");
    }

    #[test]
    fn cookies_on_several_lines_become_one() {
        let headers = forwarded(
            KEEP,
            STRANGER,
            &[("host", "a"), ("cookie", "a=1"), ("cookie", "b=2")],
        );
        let lines: Vec<_> = headers.get_all(COOKIE).iter().collect();
        assert_eq!(lines, ["a=1; b=2"]);
    }

    #[test]
    fn a_rewritten_host_carries_only_what_was_configured() {
        let config = format!("{KEEP}host = \"rewrite\"\nforwarded_host = \"api.example\"\n");
        let headers = forwarded(&config, STRANGER, &[("host", "a.example")]);
        assert_eq!(headers[HOST], "up.example:81");
        assert_eq!(headers[X_FORWARDED_HOST], "api.example");
        assert!(!headers.contains_key(X_FORWARDED_PROTO));
    }

    #[test]
    fn a_route_can_name_the_only_fields_that_pass() {
        let config = format!("{KEEP}[[route]]\npath = \"/p\"\nforward_headers = [\"accept\"]\n");
        let theirs = [
            ("host", "a"),
            ("accept", "x/y"),
            ("user-agent", "z"),
            ("cookie", "c"),
        ];
        let headers = forwarded(&config, STRANGER, &theirs);
        let mut names: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(
            names,
            [
                "accept",
                "host",
                "via",
                "x-forwarded-for",
                "x-forwarded-host",
                "x-forwarded-proto"
            ]
        );
    }

    #[test]
    fn what_the_query_rule_leaves_out_is_not_forwarded() {
        let config = format!("{KEEP}[[route]]\npath = \"/p\"\nquery = [\"b\"]\n");
        let config = Config::parse("test", &config, &|_| None).unwrap();
        let uri = Uri::from_static("/p?a=1&b=2");
        let query = config
            .routes
            .list()
            .first()
            .map(|route| (&route.query, false));
        assert_eq!(target(&uri, query).unwrap(), "/p?b=2");
        assert_eq!(target(&uri, None).unwrap(), "/p?a=1&b=2");
    }
}
