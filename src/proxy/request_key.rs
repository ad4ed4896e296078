//! Keyed: under which key a request is looked up, as the origin sees it, and kept apart by who asks
//! where the route says so.

use std::ops::Range;

use http::{HeaderMap, HeaderName};
use sha2::{Digest, Sha256};
use smallvec::SmallVec;

use crate::config::Scope;
use crate::guard::credential::Credential;
use crate::guard::group::Group;
use crate::http::fields::{self, CLIENT_CERT};
use crate::policy::key::{KeyBytes, KeyParts, select_query};
use crate::policy::{Cookies, Options, Share};

use super::client_request::ClientRequest;
use super::plan::{Plan, PlannedRoute, Sharing};
use super::wire::claims::believed;
use super::wire::composed;

/// The key under which a request is looked up.
#[derive(Clone, Debug, Default)]
pub struct RequestKey {
    /// The primary key, and what selects a variant where there are known ones.
    pub bytes: KeyBytes,
    primary_length: usize,
    /// Where the rule digest stands.
    rule: Range<usize>,
    /// Up to where all whose key is good have it in common, on a route where keys are verified.
    common: usize,
    /// There, a digest of the fields by which the route lets the origin choose its answer.
    selecting: Option<[u8; 32]>,
}

/// What begins the part of a key that says whose it is: one credential's, where nothing may be
/// shared yet, or a group's.
const OWN: u8 = 1;
const GROUPS: u8 = 2;

impl RequestKey {
    /// Writes the primary key of a request on a route, unless that was done: scheme, host, path,
    /// query, rule, partition.
    pub fn write(&mut self, plan: &Plan, request: &ClientRequest, route: &PlannedRoute) {
        if self.primary_length > 0 {
            return;
        }
        let rule = &route.rule;
        let query = select_query(request.parts.uri.query(), &rule.query, rule.sort_query);
        let partition = partition(plan, request, &rule.options);
        let parts = KeyParts {
            path: request.path(),
            query: query.as_deref(),
            rule: route.digest,
            partition: partition.as_ref().map_or(&[], |digest| &digest[..]),
            ..request.origin_parts(plan)
        };
        self.rule = parts.write(&mut self.bytes);
        self.primary_length = self.bytes.len();
        self.common = self.primary_length;
        if rule.options.share == Share::Verified {
            let selecting = composed::selecting(&request.parts.headers, rule);
            self.selecting = selecting.map(|fields| {
                let mut digest = Parts::default();
                for (name, value) in &fields {
                    digest.add(name.as_str(), value.as_bytes());
                }
                digest.finish()
            });
        }
    }

    /// From here on it is of this credential alone.
    pub fn keep_apart(&mut self, credential: &Credential) {
        if self.primary_length == self.common {
            self.bytes.push(OWN);
            self.bytes.extend_from_slice(&credential.key.0);
            self.bytes.extend_from_slice(&credential.place);
            self.primary_length = self.bytes.len();
        }
    }

    /// From here on it is of a group of keys.
    pub fn share_in(&mut self, group: Group) {
        if self.primary_length == self.common && group != Group::ALL {
            self.bytes.push(GROUPS);
            self.bytes.extend_from_slice(&group.to_bytes());
            self.primary_length = self.bytes.len();
        }
    }

    /// Whether it is of one credential alone on a route whose answers are shared once that is
    /// proved.
    pub fn is_apart(&self) -> bool {
        self.bytes.get(self.common) == Some(&OWN) && self.common < self.primary_length
    }

    /// The same key for a group of keys.
    pub fn of_group(&self, group: Group) -> Self {
        let mut key = Self {
            bytes: KeyBytes::from_slice(self.common()),
            primary_length: self.common,
            ..self.clone()
        };
        key.share_in(group);
        key
    }

    /// The part of it that leads to all variants.
    pub fn primary(&self) -> &[u8] {
        &self.bytes[..self.primary_length]
    }

    fn common(&self) -> &[u8] {
        &self.bytes[..self.common]
    }

    /// What is asked for, whatever the rule: what is learned of that outlives a change of the
    /// rules.
    pub fn subject(&self) -> [&[u8]; 3] {
        let common = self.common();
        let selecting = self.selecting.as_ref().map_or(&[][..], |digest| digest);
        [
            &common[..self.rule.start],
            &common[self.rule.end..],
            selecting,
        ]
    }

    /// The group whose it is; `None` where it is one credential's.
    pub fn group(&self) -> Option<Group> {
        if self.is_apart() {
            return None;
        }
        let written = self.bytes[..self.primary_length].get(self.common + 1..);
        let number = written.and_then(|bytes| bytes.try_into().ok());
        let number = number.map_or(0, u64::from_be_bytes);
        Some(Group::from_number(number))
    }

    /// What is asked for, to the letter, and the fields by which the origin may choose, as a unit
    /// is written; `tag` says by which rules answers are compared.
    pub fn url(&self, tag: &[u8]) -> KeyBytes {
        let mut unit = KeyBytes::from_slice(tag);
        unit.push(b'=');
        for part in self.subject() {
            unit.extend_from_slice(part);
            unit.push(0);
        }
        unit
    }

    /// The unit that is proved at once, as it is written: host, literal path, the names in the
    /// query, and the fields by which the origin may choose; `tag` says by which rules answers are
    /// compared.
    pub fn unit(&self, tag: &[u8]) -> KeyBytes {
        let [asked, rest, selecting] = self.subject();
        let mut unit = KeyBytes::from_slice(tag);
        unit.push(b'?');
        let query = asked[..asked.len().saturating_sub(1)]
            .iter()
            .rposition(|byte| *byte == 0)
            .map_or(asked.len(), |at| at + 1);
        let (place, query) = asked.split_at(query);
        unit.extend_from_slice(place);
        let query = query.strip_prefix(b"?").unwrap_or_default();
        let query = query.strip_suffix(&[0]).unwrap_or(query);
        let pairs = query.split(|byte| *byte == b'&');
        let mut names: SmallVec<[&[u8]; 8]> = pairs
            .filter_map(|pair| pair.split(|byte| *byte == b'=').next())
            .filter(|name| !name.is_empty())
            .collect();
        names.sort_unstable();
        names.dedup();
        for name in names {
            unit.extend_from_slice(name);
            unit.push(b'&');
        }
        unit.push(0);
        unit.extend_from_slice(rest);
        unit.push(0);
        unit.extend_from_slice(selecting);
        unit
    }

    pub fn primary_length(&self) -> usize {
        self.primary_length
    }
}

/// The unit of which a control is taken, and that in which keys agree: where a verdict holds for
/// its URL, so does agreement, for what a key may see can hang on a value of the query.
pub fn units(sharing: &Sharing, route: &PlannedRoute, key: &RequestKey) -> [KeyBytes; 2] {
    let unit = key.unit(&sharing.unit_tag);
    let agreeing = match route.rule.verdict_scope {
        Scope::Url => key.url(&sharing.unit_tag),
        Scope::Route | Scope::All => unit.clone(),
    };
    [unit, agreeing]
}

/// A digest of who asks, where responses are kept apart by that (`share`, `cookies = "key"`), and
/// of what a trusted proxy says beside scheme and host.
fn partition(plan: &Plan, request: &ClientRequest, options: &Options) -> Option<[u8; 32]> {
    let headers = &request.parts.headers;
    let by_cookie = options.cookies == Cookies::Key;
    // The fields of others say nothing.
    let is_believed = request.client.is_trusted && !plan.forwarding.rewrites_host();
    let says_more = || is_believed && believed(headers, request.client).next().is_some();
    if options.share != Share::PerKey && !by_cookie && !says_more() {
        return None;
    }
    let mut digest = Parts::default();
    match options.share {
        Share::PerKey => digest.add_credential(headers, options),
        Share::Standard => digest.add_cookies(headers, options),
        Share::Verified => {}
    }
    if by_cookie {
        digest.add_all(headers, &http::header::COOKIE);
    }
    for (name, value) in believed(headers, request.client).filter(|_| is_believed) {
        digest.add(&format!("believed {name}"), value);
    }
    Some(digest.finish())
}

/// A digest of fields by their names; no two lists of fields give the same bytes.
#[derive(Default)]
struct Parts(Sha256);

impl Parts {
    fn add(&mut self, name: &str, value: &[u8]) {
        for part in [name.as_bytes(), value] {
            self.0.update((part.len() as u64).to_be_bytes());
            self.0.update(part);
        }
    }

    fn add_all(&mut self, headers: &HeaderMap, name: &HeaderName) {
        for value in headers.get_all(name) {
            self.add(name.as_str(), value.as_bytes());
        }
    }

    /// Who asks.
    fn add_credential(&mut self, headers: &HeaderMap, options: &Options) {
        for name in options.credential_fields.iter() {
            self.add_all(headers, name);
        }
        self.add_all(headers, &CLIENT_CERT);
        self.add_cookies(headers, options);
    }

    fn add_cookies(&mut self, headers: &HeaderMap, options: &Options) {
        // No field is named so.
        for name in options.credential_cookies.iter() {
            for value in fields::cookies(headers, name) {
                self.add(&format!("cookie {name}"), value);
            }
        }
    }

    fn finish(self) -> [u8; 32] {
        self.0.finalize().into()
    }
}
