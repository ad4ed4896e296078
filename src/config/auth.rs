//! `[auth]` and `[[rate_limit]]`: who is let in, and how often.

use std::time::Duration;

use http::HeaderName;
use serde::Deserialize;
use url::Url;

/// `[auth]`: how keys are verified on routes with `share = "verified"`.
#[derive(Clone, Debug)]
pub struct Auth {
    pub source: VerdictSource,
    /// The field by which a service names the project of a key that it accepts.
    pub project_field: Option<HeaderName>,
    /// How long a good verdict holds, and a bad one; a tenth of it is left to chance.
    pub good_ttl: Duration,
    pub bad_ttl: Duration,
    /// How long after its last good answer a key is still served what is stored, while its source
    /// fails.
    pub grace: Duration,
    /// A key that is always good: refused too, the source is ill.
    pub probe_key: Option<String>,
    /// The refusal of the only known key is an outage.
    pub lone_key_has_grace: bool,
    /// What digests of keys are keyed with.
    pub secret: Option<String>,
    /// Unknown keys that are asked about, each second and instance.
    pub unknown_per_second: u64,
    /// Verdicts of each kind that are remembered.
    pub verdicts: usize,
    /// How often a control is taken: whether a random key and none are refused where good keys are
    /// accepted; `None`: never.
    pub control: Option<Duration>,
    /// One miss of so many is fetched with another key too.
    pub compare_every: u64,
    /// Controls and comparisons that begin, each second and instance.
    pub compare_per_second: u64,
    pub on_difference: OnDifference,
    /// Members of JSON bodies that differ from answer to answer.
    pub volatile: Vec<String>,
}

impl Default for Auth {
    fn default() -> Self {
        Self {
            source: VerdictSource::Origin,
            project_field: None,
            good_ttl: Duration::from_secs(300),
            bad_ttl: Duration::from_secs(10),
            grace: Duration::from_secs(60),
            probe_key: None,
            lone_key_has_grace: false,
            secret: None,
            unknown_per_second: 100,
            verdicts: 65_536,
            control: Some(Duration::from_secs(3600)),
            compare_every: 100,
            compare_per_second: 10,
            on_difference: OnDifference::Demote,
            volatile: vec!["timestamp".to_owned()],
        }
    }
}

impl Auth {
    /// Whether the source says which project a key is of.
    pub fn names_projects(&self) -> bool {
        match self.source {
            VerdictSource::Origin => false,
            VerdictSource::Url(_) => self.project_field.is_some(),
            VerdictSource::Table => true,
        }
    }
}

/// Who says whether a key is good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VerdictSource {
    /// The origin's own answer to it.
    Origin,
    /// A GET with the request's credential: 2xx is good, 401 and 403 are bad.
    Url(Url),
    /// The key table of `[origin] database`.
    Table,
}

impl VerdictSource {
    /// As it is configured.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Origin => "origin",
            Self::Url(url) => url.as_str(),
            Self::Table => "table",
        }
    }
}

/// What answers that differ by key do to a route that shares them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnDifference {
    Off,
    Warn,
    Demote,
}

/// How far a verdict reaches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// The URL that it was learned on.
    #[default]
    Url,
    Route,
    /// Every route with this scope.
    All,
}

/// One `[[rate_limit]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RateLimit {
    pub by: LimitBy,
    /// Requests within a window.
    pub requests: u64,
    pub window: Duration,
    /// The pattern of the only route that counts; `None`: all requests do.
    pub path: Option<String>,
    pub when_redis_fails: WithoutRedis,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LimitBy {
    /// The client's address; of IPv6 its /64.
    Address,
    Key,
}

impl LimitBy {
    /// The label in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Address => "ip",
            Self::Key => "apikey",
        }
    }
}

/// What judges a limit that the fleet shares while Redis is out of reach.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WithoutRedis {
    /// Each instance by itself.
    #[default]
    Local,
    /// Everything is let through.
    Open,
    /// Nothing is.
    Closed,
}
