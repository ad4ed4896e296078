//! What a purge names, and whose of it.

use std::borrow::Cow;

use sha2::{Digest, Sha256};

use crate::http::fields::without_port;
use crate::policy::Groups;
use crate::policy::key::Place;

/// What a purge names.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Target {
    All,
    /// Path and query as [`write_target`](crate::policy::key::write_target) writes them, [`short`].
    Url(Box<[u8]>),
    /// The same under whatever rule it is stored: where a rule changes queries, whatever the query
    /// of the path is, for this log does not know the rule. Only its path is [`short`]ened.
    UrlOfAnyRule(Box<[u8]>),
    /// The beginning of a path, or a path and the beginning of its query after a `?`.
    Prefix(Box<str>),
    Group(Box<str>),
    /// No response, but what is known of an API key, by its digest: hard, it is refused from now
    /// on; soft, its source is asked anew.
    Key([u8; 32]),
}

impl Target {
    /// The word for it on the admin port and in metrics.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::All => "all",
            Self::Url(_) | Self::UrlOfAnyRule(_) => "url",
            Self::Prefix(_) => "prefix",
            Self::Group(_) => "group",
            Self::Key(_) => "key",
        }
    }
}

/// Whose responses a purge reaches.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Reach {
    Any,
    /// Of a host, whatever the scheme; of any port where none is named.
    Host(Box<str>),
    /// Of one origin, as [`Place::origin`] writes it, [`short`].
    Origin(Box<[u8]>),
}

impl Reach {
    fn covers(&self, place: &Place<'_>) -> bool {
        match self {
            Self::Any => true,
            Self::Origin(origin) => **origin == *short(place.origin),
            Self::Host(host) => {
                // Where the origin never sees a host, no key holds one.
                place.host.is_empty()
                    || [place.host, place.forwarded_host]
                        .iter()
                        .any(|known| is_same_host(known, host.as_bytes()))
            }
        }
    }
}

fn is_same_host(known: &[u8], wanted: &[u8]) -> bool {
    known.eq_ignore_ascii_case(wanted) || without_port(known).eq_ignore_ascii_case(wanted)
}

/// One purge.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Purge {
    pub target: Target,
    pub reach: Reach,
}

impl Purge {
    /// What makes a key refused.
    pub fn of_key(key: [u8; 32]) -> Self {
        Self {
            target: Target::Key(key),
            reach: Reach::Any,
        }
    }

    /// It as words: kind and value of its target, kind and value of its reach.
    pub fn words(&self) -> (&'static str, &[u8], &'static str, &[u8]) {
        let (kind, value) = match &self.target {
            Target::All => ("all", &b""[..]),
            Target::Url(target) => ("url", &**target),
            Target::UrlOfAnyRule(target) => ("url-of-any-rule", &**target),
            Target::Prefix(text) => ("prefix", text.as_bytes()),
            Target::Group(text) => ("group", text.as_bytes()),
            Target::Key(digest) => ("key", &digest[..]),
        };
        let (reach, of) = match &self.reach {
            Reach::Any => ("any", &b""[..]),
            Reach::Host(host) => ("host", host.as_bytes()),
            Reach::Origin(origin) => ("origin", &**origin),
        };
        (kind, value, reach, of)
    }

    /// What these words say; `None` where that is nothing that this version knows.
    pub fn of_words(kind: &str, value: &[u8], reach: &str, of: &[u8]) -> Option<Self> {
        let text = |bytes| Some(Box::from(std::str::from_utf8(bytes).ok()?));
        let target = match kind {
            "all" => Target::All,
            "url" => Target::Url(value.into()),
            "url-of-any-rule" => Target::UrlOfAnyRule(value.into()),
            "prefix" => Target::Prefix(text(value)?),
            "group" => Target::Group(text(value)?),
            "key" => Target::Key(value.try_into().ok()?),
            _ => return None,
        };
        let reach = match reach {
            "any" => Reach::Any,
            "host" => Reach::Host(text(of)?),
            "origin" => Reach::Origin(of.into()),
            _ => return None,
        };
        Some(Self { target, reach })
    }

    pub fn covers(&self, place: &Place<'_>, groups: Option<&Groups>) -> bool {
        let names = match &self.target {
            Target::All => true,
            Target::Url(target) => **target == *short(place.target),
            Target::UrlOfAnyRule(target) if place.changes_query => {
                *path_of(target) == *short(place.path)
            }
            Target::UrlOfAnyRule(target) => **target == *place.target,
            Target::Prefix(prefix) => has_prefix(place, prefix),
            Target::Group(name) => groups.is_some_and(|groups| groups.contains(name)),
            Target::Key(_) => false,
        };
        names && self.reach.covers(place)
    }
}

/// Longer names stand in a purge as their digest: clients choose them, by writes, and a log of many
/// must stay small.
pub const LONGEST: usize = 512;

/// A part of a key as purges name it. No such part begins as a digest does.
pub fn short(part: &[u8]) -> Cow<'_, [u8]> {
    if part.len() <= LONGEST {
        return Cow::Borrowed(part);
    }
    let mut digest = b"\xffsha256".to_vec();
    digest.extend_from_slice(&Sha256::digest(part));
    Cow::Owned(digest)
}

/// The path of a target as [`write_target`](crate::policy::key::write_target) writes it.
pub fn path_of(target: &[u8]) -> &[u8] {
    let end = target.iter().position(|byte| *byte == 0);
    &target[..end.unwrap_or(target.len())]
}

fn has_prefix(place: &Place<'_>, prefix: &str) -> bool {
    match prefix.split_once('?') {
        None => place.path.starts_with(prefix.as_bytes()),
        Some((path, query)) => {
            place.path == path.as_bytes() && place.query().starts_with(query.as_bytes())
        }
    }
}
