//! `[upstream]`: the API that is fronted.

use std::time::Duration;

use http::uri::Scheme;
use http::{HeaderValue, Uri};

use crate::tls::ClientTls;

/// What the upstream that has no name is called in metrics, where there are others.
pub const DEFAULT: &str = "default";

/// What happens to the client's `Host` on its way to the upstream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HostRule {
    /// Passed on, and part of the key.
    #[default]
    Keep,
    /// Replaced by the upstream's own.
    Rewrite,
}

/// `[upstream]`: the API that is fronted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upstream {
    pub scheme: Scheme,
    /// Host name or address, without port.
    pub host: String,
    /// A socket of this machine, by its path, in the place of host and port; `@name` is an abstract
    /// one.
    pub socket: Option<String>,
    pub protocol: Protocol,
    pub port: u16,
    pub host_rule: HostRule,
    /// With `host = "rewrite"`: what `X-Forwarded-Host` and `-Proto` say; not sent when unset.
    pub forwarded_host: Option<HeaderValue>,
    pub forwarded_proto: Option<HeaderValue>,
    /// Roots, and who we are; `None` with `https`: the platform's roots, and nobody.
    pub tls: Option<ClientTls>,
    /// The name that is asked for and verified (SNI) where it is not the host.
    pub server_name: Option<String>,
    /// Between two looks at what the name stands for.
    pub resolve_every: Duration,
    /// How long a connection is used at most.
    pub max_age: Duration,
    /// How addresses are asked whether they are well; `None`: requests tell.
    pub health: Option<Health>,
    pub connect_timeout: Duration,
    /// From the request sent to the response head.
    pub response_timeout: Duration,
    /// Between two pieces of a response body.
    pub read_timeout: Duration,
    /// How long an unused connection is kept.
    pub idle_timeout: Duration,
    /// Connections over all workers, those kept idle included.
    pub max_connections: usize,
    /// Requests that may wait for a connection.
    pub queue: usize,
    pub queue_timeout: Duration,
    /// Failures that open the breaker, and for how long after the last of them it stays open.
    pub breaker_failures: u32,
    pub breaker_open: Duration,
    pub header_bytes: usize,
    pub via: Via,
}

/// What is spoken with the upstream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Protocol {
    #[default]
    Http1,
    /// HTTP/2: by ALPN with `https`, else by prior knowledge (RFC 9113 §3).
    Http2,
}

/// Active checks of an upstream's addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    pub path: Uri,
    pub interval: Duration,
}

/// How the origin and clients are told of us.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Via {
    /// By `Via` (RFC 9110 §7.6.3).
    #[default]
    Full,
    /// Not by `Via`; the origin is told by `CDN-Loop` (RFC 8586).
    Off,
}

impl Upstream {
    /// The defaults of an upstream at this place.
    pub fn at(scheme: Scheme, host: String, port: u16) -> Self {
        Self {
            scheme,
            host,
            port,
            socket: None,
            protocol: Protocol::Http1,
            host_rule: HostRule::Keep,
            forwarded_host: None,
            forwarded_proto: None,
            tls: None,
            server_name: None,
            resolve_every: Duration::from_secs(5),
            max_age: Duration::from_secs(600),
            health: None,
            connect_timeout: Duration::from_secs(3),
            response_timeout: Duration::from_secs(30),
            read_timeout: Duration::from_secs(60),
            idle_timeout: Duration::from_secs(60),
            max_connections: 512,
            queue: 1024,
            queue_timeout: Duration::from_secs(5),
            breaker_failures: 5,
            breaker_open: Duration::from_secs(10),
            header_bytes: 32 << 10,
            via: Via::Full,
        }
    }

    /// `host` or `host:port` as it stands in `Host`; IPv6 addresses in brackets.
    pub fn authority(&self) -> String {
        let host = if self.host.contains(':') {
            format!("[{}]", self.host)
        } else {
            self.host.clone()
        };
        let default = if self.scheme == Scheme::HTTPS {
            443
        } else {
            80
        };
        if self.port == default {
            host
        } else {
            format!("{host}:{}", self.port)
        }
    }

    /// Where it is, for people: `http://host:port`, or `unix:/path`.
    pub fn shown(&self) -> String {
        match &self.socket {
            Some(path) => format!("unix:{path}"),
            None => format!("{}://{}", self.scheme, self.authority()),
        }
    }

    /// This one, as far as it can take the place of `running` without a restart.
    #[must_use]
    pub fn in_place_of(self, running: &Self) -> Self {
        let is_there = self.is_where(running);
        Self {
            connect_timeout: self.connect_timeout,
            response_timeout: self.response_timeout,
            read_timeout: self.read_timeout,
            idle_timeout: self.idle_timeout,
            max_age: self.max_age,
            resolve_every: self.resolve_every,
            health: self.health,
            // Roots of another place would only refuse the one that it is connected to.
            tls: match is_there {
                true => self.tls,
                false => running.tls.clone(),
            },
            queue: self.queue,
            queue_timeout: self.queue_timeout,
            header_bytes: self.header_bytes,
            ..running.clone()
        }
    }

    /// Whether it is at the place of another one, under the same name.
    pub fn is_where(&self, other: &Self) -> bool {
        let place = |one: &Self| {
            let name = one.server_name.clone();
            (
                one.scheme.clone(),
                one.host.clone(),
                one.port,
                one.socket.clone(),
                name,
            )
        };
        place(self) == place(other)
    }

    /// Whether it is the same as another one, whatever stands in the files that both name.
    pub fn is_but_for_its_files(&self, other: &Self) -> bool {
        let other = Self {
            tls: self.tls.clone(),
            ..other.clone()
        };
        *self == other
    }
}
