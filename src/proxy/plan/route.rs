//! One route of a plan, with all that its requests need: its rules, its series, its digest, and
//! what is known of how it is shared.

use std::sync::Arc;

use sha2::{Digest, Sha256};

use crate::config::Route;
use crate::error::rfc3339;
use crate::guard::credential::Credentials;
use crate::metrics::RouteSeries;
use crate::policy::key::RuleDigest;
use crate::policy::{Options, Share};
use crate::proxy::state::{FetchTime, SharedRoute, State};
use crate::proxy::wire::Forwarding;
use crate::store::{Purge, PurgeLog, Reach, Target};

use super::rule_digest::rule_digest;

/// One route of a plan.
pub struct PlannedRoute {
    pub rule: Route,
    /// Its pattern, as logs have it.
    pub label: Arc<str>,
    pub series: Arc<RouteSeries>,
    /// Where keys stand in its requests.
    pub credentials: Arc<Credentials>,
    /// Part of the key of everything that is stored under the route.
    pub digest: RuleDigest,
    /// How long fetches for the fleet usually take.
    pub fetch_time: Arc<FetchTime>,
    /// Where one answer is shared among all whose key is good.
    pub sharing: Option<Sharing>,
}

/// How a route with `share = "verified"` is known, whatever its place in whatever plan: by host
/// pattern and path pattern.
pub struct Sharing {
    /// Under this digest the purge log, and so the fleet, knows that the route was demoted: as of a
    /// key that is revoked. With other volatile members it is another route.
    demotion: [u8; 32],
    /// What begins the names of its units: with other volatile members, or keys in other fields,
    /// they are others.
    pub unit_tag: [u8; 8],
    /// The same route, not shared.
    per_key: Arc<PlannedRoute>,
    pub observed: Arc<SharedRoute>,
}

impl PlannedRoute {
    /// A route of the configuration, which has these volatile members in its answers.
    pub fn of(
        rule: &Route,
        volatile: &[String],
        forwarding: &Forwarding,
        credentials: &Arc<Credentials>,
        state: &State,
    ) -> Arc<Self> {
        let sharing = (rule.options.share == Share::Verified).then(|| {
            let demotion = demotion_digest(rule, volatile);
            let observed = observed_digest(demotion, rule);
            let mut unit_tag = [0; 8];
            unit_tag.copy_from_slice(&observed[..8]);
            Sharing {
                demotion,
                unit_tag,
                per_key: Self::of(&per_key(rule), volatile, forwarding, credentials, state),
                observed: state.shared_routes.of(observed),
            }
        });
        let digest = rule_digest(rule, forwarding);
        Arc::new(Self {
            series: state.metrics.route_series(&rule.path),
            digest,
            fetch_time: state.fetch_times.of(digest),
            credentials: Arc::clone(credentials),
            label: rule.path.as_str().into(),
            rule: rule.clone(),
            sharing,
        })
    }

    pub fn options(&self) -> &Options {
        &self.rule.options
    }

    /// How much it keeps callers apart: where it is not clear which of two routes a request takes,
    /// the one that keeps more apart rules.
    pub fn strictness(&self) -> u8 {
        match self.options().share {
            _ if self.rule.raw_target => 3,
            Share::PerKey => 2,
            Share::Verified => 1,
            Share::Standard => 0,
        }
    }

    /// What takes effect of a route: itself, or the same not shared, where this instance or another
    /// has demoted it.
    pub fn in_effect<'a>(self: &'a Arc<Self>, purges: &PurgeLog) -> &'a Arc<Self> {
        match &self.sharing {
            Some(sharing) if purges.is_revoked(&sharing.demotion) => &sharing.per_key,
            _ => self,
        }
    }
}

impl Sharing {
    /// What is to be purged so that from now on each key has its own answers there; `None` where
    /// that was done before.
    pub fn demotion(&self, purges: &PurgeLog) -> Option<Purge> {
        (!purges.is_revoked(&self.demotion)).then_some(Purge {
            target: Target::Key(self.demotion),
            reach: Reach::Any,
        })
    }

    /// Why a route, or a part of it, is not shared any more; `None` where nothing is known of that.
    pub fn why_demoted(&self, purges: &PurgeLog) -> Option<String> {
        let is_whole = purges.is_revoked(&self.demotion);
        let what = if is_whole {
            "it is demoted to per-key"
        } else {
            "there each key has its own"
        };
        match self.observed.why_demoted() {
            Some((at, path)) => Some(format!(
                "answers for {path} were found to differ by key at {}, and {what}: set share \
                    = \"per-key\", or name what differs by itself in auth.volatile",
                rfc3339(at)
            )),
            None if is_whole => Some(
                "another instance has found that answers differ by key: its log says by which path"
                    .to_owned(),
            ),
            None => None,
        }
    }
}

/// What stands in for a route that was found to differ by key.
fn per_key(route: &Route) -> Route {
    let mut per_key = route.clone();
    per_key.options.share = Share::PerKey;
    per_key
}

/// Keys are remembered with the fields that carried them: with other fields, none is.
fn observed_digest(demotion: [u8; 32], route: &Route) -> [u8; 32] {
    let mut digest = Sha256::new();
    digest.update(demotion);
    for name in route.options.credential_fields.iter() {
        digest.update(name.as_str());
        digest.update([0]);
    }
    for name in route.options.credential_cookies.iter() {
        digest.update([1]);
        digest.update(name.as_bytes());
    }
    digest.finalize().into()
}

fn demotion_digest(route: &Route, volatile: &[String]) -> [u8; 32] {
    let mut digest = Sha256::new();
    let parts = ["a route whose answers differ by key", &route.path];
    let host = route.host.as_deref().unwrap_or_default();
    let parts = parts.into_iter().chain([host]);
    for part in parts.chain(volatile.iter().map(String::as_str)) {
        digest.update((part.len() as u64).to_be_bytes());
        digest.update(part);
    }
    digest.finalize().into()
}
