//! `[listen]`, or several `[[listen]]`: where clients come in.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use ipnet::IpNet;

use crate::tls::server::ServerTls;

/// Where clients come in, and what is of the whole process in that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listen {
    /// In the order of the file; one at least.
    pub places: Vec<Place>,
    /// Worker threads; `None`: one per core that this process may use.
    pub workers: Option<usize>,
    /// Peers whose `X-Forwarded-*` fields, and PROXY headers, are believed.
    pub trusted_proxies: Vec<IpNet>,
    /// How long a drain goes on accepting, unready, before it closes.
    pub drain_delay: Duration,
    /// How long a drain waits for requests in flight after that.
    pub drain_timeout: Duration,
}

/// One place where clients come in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    pub address: Address,
    /// `None`: what comes is not encrypted.
    pub tls: Option<ServerTls>,
    /// A trusted proxy says first whom it speaks for (HAProxy's PROXY protocol).
    pub proxy_protocol: bool,
}

/// An address that can be listened on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    Tcp(SocketAddr),
    /// A socket of this machine, by its path.
    Unix(PathBuf),
}

impl fmt::Display for Address {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(out),
            Self::Unix(path) => write!(out, "unix:{}", path.display()),
        }
    }
}

impl Address {
    /// `127.0.0.1:8080`, `[::]:8080` or `unix:/path`.
    pub fn parse(text: &str) -> Option<Self> {
        match text.strip_prefix("unix:") {
            // No longer than the system takes (unix(7)).
            Some(path) if path.starts_with('/') && path.len() > 1 && path.len() < 108 => {
                Some(Self::Unix(path.into()))
            }
            Some(_) => None,
            None => text.parse().ok().map(Self::Tcp),
        }
    }

    pub fn tcp(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(address) => Some(*address),
            Self::Unix(_) => None,
        }
    }
}

impl Default for Place {
    fn default() -> Self {
        Self {
            address: Address::Tcp(SocketAddr::from((Ipv4Addr::LOCALHOST, 8080))),
            tls: None,
            proxy_protocol: false,
        }
    }
}

impl Default for Listen {
    fn default() -> Self {
        Self {
            places: vec![Place::default()],
            workers: None,
            trusted_proxies: Vec::new(),
            drain_delay: Duration::from_secs(5),
            drain_timeout: Duration::from_secs(30),
        }
    }
}

impl Listen {
    /// The first TCP address.
    pub fn first_tcp(&self) -> Option<SocketAddr> {
        self.places.iter().find_map(|place| place.address.tcp())
    }

    /// Whether everybody who comes in is on this machine.
    pub fn is_local(&self) -> bool {
        let mut tcp = self.places.iter().filter_map(|place| place.address.tcp());
        tcp.all(|address| address.ip().is_loopback())
    }

    /// When the first certificate expires that clients are shown; `None` without TLS.
    pub fn expires(&self) -> Option<SystemTime> {
        let tls = self.places.iter().filter_map(|place| place.tls.as_ref());
        tls.map(|tls| tls.expires).min()
    }

    /// The addresses in a few words.
    pub fn shown(&self) -> String {
        let places = self.places.iter().map(|place| match &place.tls {
            Some(tls) => {
                let names: Vec<&str> = tls.names.iter().collect();
                let expires = humantime::format_rfc3339_seconds(tls.expires);
                let names = names.join(", ");
                format!("{} (TLS for {names}, until {expires})", place.address)
            }
            None => place.address.to_string(),
        });
        places.collect::<Vec<_>>().join(", ")
    }

    /// Whether these are the addresses of `other`, in its order.
    pub fn is_at_the_places_of(&self, other: &Self) -> bool {
        let addresses = |listen: &Self| -> Vec<Address> {
            let places = listen.places.iter();
            places.map(|place| place.address.clone()).collect()
        };
        addresses(self) == addresses(other)
    }
}
