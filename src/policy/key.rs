//! Cache keys: what separates one stored response from another (RFC 9111 §2, §4).

use std::borrow::Cow;
use std::ops::Range;

use smallvec::SmallVec;
use url::form_urlencoded;

/// A primary or variant key under construction; short ones stay on the stack.
pub type KeyBytes = SmallVec<[u8; 256]>;

/// Which parameters of the query select a response, and so reach the origin.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum QueryRule {
    #[default]
    All,
    None,
    /// Only these names. A request that says more is not looked up, or loses the rest
    /// (`unknown_query`).
    Names(Vec<String>),
}

/// A digest of the rules under which a response is stored: what was stored under one rule is never
/// served under another, whether the rules of this process have changed or another instance of the
/// fleet has others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct RuleDigest([u8; 8]);

/// The bit of a rule digest that says whether a key holds another query than was asked for.
const CHANGES_QUERY: u8 = 1;

impl RuleDigest {
    /// Of rules with this digest, which drop parameters of a query, or sort them, or neither.
    pub fn new(digest: &[u8; 32], changes_query: bool) -> Self {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&digest[..8]);
        bytes[0] = bytes[0] & !CHANGES_QUERY | u8::from(changes_query);
        Self(bytes)
    }
}

/// The parts of a primary key, each as the origin sees it.
#[derive(Clone, Copy, Debug)]
pub struct KeyParts<'a> {
    pub scheme: &'a str,
    /// Empty where the origin never sees the client's host.
    pub host: &'a str,
    /// What a trusted proxy says the host was, where it says so.
    pub forwarded_host: Option<&'a str>,
    /// The normalised path.
    pub path: &'a str,
    pub query: Option<&'a str>,
    /// The rules of the route, which also say whether there is a partition.
    pub rule: RuleDigest,
    /// Separates principals: a digest of their credential; empty where all share.
    pub partition: &'a [u8],
}

impl KeyParts<'_> {
    /// Writes the key; where the rule stands in it. Parts end in a zero byte, which no URI
    /// contains, so that no two different lists of parts give the same bytes.
    pub fn write(&self, key: &mut KeyBytes) -> Range<usize> {
        self.write_origin(key);
        write_target(self.path, self.query, key);
        let begin = key.len();
        key.extend_from_slice(&self.rule.0);
        let rule = begin..key.len();
        key.extend_from_slice(self.partition);
        rule
    }

    /// Writes the beginning of the key, which says which origin: [`Place::origin`].
    pub fn write_origin(&self, key: &mut KeyBytes) {
        for part in [
            self.scheme,
            self.host,
            self.forwarded_host.unwrap_or_default(),
        ] {
            key.extend_from_slice(part.as_bytes());
            key.push(0);
        }
    }
}

/// Where a key points, as purges name it: of whatever rule, partition and variant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place<'a> {
    /// Scheme and hosts, as written: one origin.
    pub origin: &'a [u8],
    pub host: &'a [u8],
    /// Empty where no trusted proxy named one.
    pub forwarded_host: &'a [u8],
    pub path: &'a [u8],
    /// Path and query, as written: see [`write_target`].
    pub target: &'a [u8],
    /// The query is not the one that was asked for: parameters were dropped or sorted.
    pub changes_query: bool,
}

impl<'a> Place<'a> {
    /// The place of a key that [`KeyParts::write`] began; `None` if it did not.
    pub fn of(key: &'a [u8]) -> Option<Self> {
        let mut ends = key.iter().enumerate().filter(|(_, byte)| **byte == 0);
        let mut next = || ends.next().map(|(at, _)| at);
        let (scheme, host, forwarded) = (next()?, next()?, next()?);
        let (path, query) = (next()?, next()?);
        Some(Self {
            origin: &key[..=forwarded],
            host: &key[scheme + 1..host],
            forwarded_host: &key[host + 1..forwarded],
            path: &key[forwarded + 1..path],
            target: &key[forwarded + 1..=query],
            changes_query: key
                .get(query + 1)
                .is_some_and(|rule| rule & CHANGES_QUERY != 0),
        })
    }

    /// Without its `?`.
    pub fn query(&self) -> &'a [u8] {
        let after_path = &self.target[self.path.len() + 1..self.target.len() - 1];
        after_path.strip_prefix(b"?").unwrap_or(after_path)
    }
}

/// Writes path and query as they stand in a key.
pub fn write_target(path: &str, query: Option<&str>, key: &mut KeyBytes) {
    key.extend_from_slice(path.as_bytes());
    key.push(0);
    if let Some(query) = query {
        key.push(b'?');
        key.extend_from_slice(query.as_bytes());
    }
    key.push(0);
}

impl QueryRule {
    /// Whether a parameter, with or without a value, is one that selects the response.
    fn names(&self, pair: &str) -> bool {
        match self {
            Self::All => true,
            Self::None => false,
            Self::Names(names) => {
                let name = pair.split('=').next().unwrap_or_default();
                names.iter().any(|wanted| wanted == name)
            }
        }
    }

    /// Whether a query says anything beside what selects the response.
    pub fn leaves_out(&self, query: &str) -> bool {
        let mut pairs = query.split('&').filter(|pair| !pair.is_empty());
        *self != Self::All && pairs.any(|pair| !self.names(pair))
    }
}

/// The variable that a parameter is one value of, to whatever framework: `a[]`, `a%5B0%5D` and `A`
/// may all be `a`, and `a.b` be `a_b`.
fn variable(pair: &str) -> String {
    let name = form_urlencoded::parse(pair.as_bytes()).next();
    let name = name.map_or_else(String::new, |(name, _)| name.to_lowercase());
    let name = name.split('[').next().unwrap_or_default().trim();
    name.replace([' ', '.', '-'], "_")
}

/// The part of the query that selects the response; `None` where none is left.
pub fn select_query<'a>(
    query: Option<&'a str>,
    rule: &QueryRule,
    sort: bool,
) -> Option<Cow<'a, str>> {
    let query = query?;
    if *rule == QueryRule::All && !sort {
        return Some(Cow::Borrowed(query));
    }
    let mut pairs: Vec<&str> = query.split('&').filter(|pair| rule.names(pair)).collect();
    if pairs.is_empty() {
        return None;
    }
    if sort {
        // By name alone and stable: the order of one name's values can matter.
        pairs.sort_by_cached_key(|pair| variable(pair));
    }
    Some(Cow::Owned(pairs.join("&")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_query_rule_leaves_out_what_it_does_not_name() {
        let names = QueryRule::Names(vec!["page".into(), "limit".into()]);
        let select = |query, rule, sort| select_query(Some(query), rule, sort);
        let all = QueryRule::All;
        assert_eq!(select("b=1&a=2", &all, false).as_deref(), Some("b=1&a=2"));
        assert_eq!(
            select("b=2&a=2&b=1", &all, true).as_deref(),
            Some("a=2&b=2&b=1")
        );
        assert_eq!(
            select("page=2&utm=x&limit=5", &names, false).as_deref(),
            Some("page=2&limit=5")
        );
        assert_eq!(select("utm=x", &names, false), None);
        assert_eq!(select("a=1", &QueryRule::None, false), None);
    }

    #[test]
    fn different_parts_never_give_the_same_key() {
        let write = |host, path, query, partition: &[u8]| {
            let mut key = KeyBytes::new();
            let scheme = "http";
            KeyParts {
                scheme,
                host,
                forwarded_host: None,
                path,
                query,
                rule: RuleDigest::default(),
                partition,
            }
            .write(&mut key);
            key
        };
        assert_ne!(write("a", "/b", None, b""), write("a/b", "", None, b""));
        assert_ne!(
            write("a", "/b", Some("x"), b""),
            write("a", "/b", None, b"?x")
        );
        assert_ne!(write("a", "/b", Some(""), b""), write("a", "/b", None, b""));
    }

    #[test]
    fn a_key_knows_its_place_whatever_partition_and_variant_follow() {
        let mut key = KeyBytes::new();
        let rule = KeyParts {
            scheme: "https",
            host: "a:81",
            forwarded_host: None,
            path: "/b",
            query: Some("x=1"),
            rule: RuleDigest::default(),
            partition: &[0; 32],
        }
        .write(&mut key);
        let place = Place::of(&key).unwrap();
        assert_eq!(place.origin, b"https\0a:81\0\0");
        assert_eq!((place.host, place.forwarded_host), (&b"a:81"[..], &b""[..]));
        assert_eq!((place.path, place.query()), (&b"/b"[..], &b"x=1"[..]));
        let mut target = KeyBytes::new();
        write_target("/b", Some("x=1"), &mut target);
        assert_eq!(place.target, &target[..]);
        assert!(!place.changes_query);
        assert_eq!(key[..rule.start], [place.origin, place.target].concat());
        assert_eq!(key[rule.end..], [0; 32]);
        assert_eq!(Place::of(b"no key"), None);
    }
}
