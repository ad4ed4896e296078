//! Keyed: under which key a request is looked up, as the origin sees it, and kept apart by who asks
//! where the route says so.

use std::ops::Range;

use sha2::{Digest, Sha256};

use crate::http::fields;
use crate::policy::key::{KeyBytes, KeyParts, select_query};
use crate::policy::{Cookies, Options, Share};

use super::client_request::ClientRequest;
use super::plan::{Plan, PlannedRoute};
use super::wire::claims::believed;

/// The key under which a request is looked up.
#[derive(Clone, Debug, Default)]
pub struct RequestKey {
    /// The primary key, and what selects a variant where there are known ones.
    pub bytes: KeyBytes,
    primary_length: usize,
    /// Where the rule digest stands.
    rule: Range<usize>,
}

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
    }

    /// The part of it that leads to all variants.
    pub fn primary(&self) -> &[u8] {
        &self.bytes[..self.primary_length]
    }

    /// What is asked for, and by whom, whatever the rule: what is learned of that outlives a change
    /// of the rules.
    pub fn subject(&self) -> [&[u8]; 2] {
        let primary = self.primary();
        [&primary[..self.rule.start], &primary[self.rule.end..]]
    }

    pub fn primary_length(&self) -> usize {
        self.primary_length
    }
}

/// A digest of who asks, where responses are kept apart by that (`share`, `cookies = "key"`), and of
/// what a trusted proxy says beside scheme and host.
fn partition(plan: &Plan, request: &ClientRequest, options: &Options) -> Option<[u8; 32]> {
    let headers = &request.parts.headers;
    let by_cookie = options.cookies == Cookies::Key;
    // The fields of others say nothing.
    let is_believed = request.client.is_trusted && !plan.forwarding.rewrites_host();
    let says_more = || is_believed && believed(headers, request.client).next().is_some();
    if options.share != Share::PerKey && !by_cookie && !says_more() {
        return None;
    }
    let mut digest = Sha256::new();
    let mut add = |name: &str, value: &[u8]| {
        // Length first: no two lists of fields give the same bytes.
        for part in [name.as_bytes(), value] {
            digest.update((part.len() as u64).to_be_bytes());
            digest.update(part);
        }
    };
    let credentials = options
        .credential_fields
        .iter()
        .filter(|_| options.share == Share::PerKey);
    for name in credentials.chain(by_cookie.then_some(&http::header::COOKIE)) {
        for value in headers.get_all(name) {
            add(name.as_str(), value.as_bytes());
        }
    }
    // No field is named so.
    for name in options.credential_cookies.iter() {
        for value in fields::cookies(headers, name) {
            add(&format!("cookie {name}"), value);
        }
    }
    for (name, value) in believed(headers, request.client).filter(|_| is_believed) {
        add(&format!("believed {name}"), value);
    }
    Some(digest.finalize().into())
}
