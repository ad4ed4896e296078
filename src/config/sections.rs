//! What the sections of a configuration say, checked: addresses parse, limits are in range.
//! Defaults stand here, beside the meaning of each key.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderName};

use super::access_log::AccessLog;
use super::auth::{Auth, RateLimit};
use super::listen::Listen;
use super::routes::Routes;
use super::secret::Secret;
use super::settings::Setting;
use super::upstream::Upstream;

/// Everything the process needs to know, checked.
#[derive(Clone, Debug)]
pub struct Config {
    /// The file that it was read from; `None` for the built-in one.
    pub file: Option<PathBuf>,
    /// Files that were read for it: those of secrets, certificates and keys.
    pub named_files: Vec<PathBuf>,
    /// Of what stood in these files when they were read.
    pub fingerprint: [u8; 32],
    /// A digest of its text, in hexadecimal digits: the same for all instances that have the same.
    pub digest: String,
    /// Each key as it takes effect.
    pub settings: Arc<[Setting]>,
    /// Nothing is looked up or stored.
    pub bypass: bool,
    pub reload: Reload,
    pub access_log: AccessLog,
    /// Whether a trace is begun for requests that come without one.
    pub starts_traces: bool,
    pub listen: Listen,
    pub admin: Admin,
    /// `None`: the built-in origin answers.
    pub upstream: Option<Upstream>,
    /// Others, which routes name.
    pub upstreams: Vec<(Arc<str>, Upstream)>,
    pub origin: Origin,
    pub cache: Cache,
    pub limits: Limits,
    pub auth: Auth,
    pub rate_limits: Vec<RateLimit>,
    /// Fields added to every answer that the sidecar itself makes.
    pub error_headers: HeaderMap,
    pub routes: Routes,
}

/// `[reload]`: how a changed configuration comes into force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reload {
    /// Between two looks at the files; zero: they are not looked at.
    pub every: Duration,
}

impl Default for Reload {
    fn default() -> Self {
        Self {
            every: Duration::from_secs(2),
        }
    }
}

/// `[admin]`: metrics and health.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admin {
    pub address: SocketAddr,
    /// When set, admin requests need it as a bearer token, but for what is `public`.
    pub token: Option<Secret>,
    /// What anybody may read without it.
    pub public: Vec<Public>,
    /// Names by which the port is asked, beside addresses and `localhost`.
    pub hosts: Vec<String>,
    /// Connections at one time; the one that is there for the longest time makes room for the next.
    pub connections: usize,
}

/// What of the admin port may be read without its token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Public {
    Metrics,
    Health,
}

impl Default for Admin {
    fn default() -> Self {
        Self {
            address: SocketAddr::from((Ipv4Addr::LOCALHOST, 9180)),
            token: None,
            public: vec![Public::Health],
            hosts: Vec::new(),
            connections: 64,
        }
    }
}

/// `[origin]`: the built-in origin, which answers when there is no `[upstream]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// `sqlite:FILE`, `sqlite::memory:` or `postgres://…`.
    pub database: String,
    /// Postgres that may answer GETs.
    pub replicas: Vec<String>,
    /// Whose first line is the password in these URLs.
    pub password_file: Option<PathBuf>,
    /// Connections of each pool.
    pub connections: u32,
    /// For one statement; a longer one is cancelled, and answered 504.
    pub query_timeout: Duration,
    /// Failures that open the breaker, and for how long after the last of them it stays open.
    pub breaker_failures: u32,
    pub breaker_open: Duration,
}

impl Default for Origin {
    fn default() -> Self {
        Self {
            database: "sqlite::memory:".to_owned(),
            replicas: Vec::new(),
            password_file: None,
            connections: 10,
            query_timeout: Duration::from_secs(5),
            breaker_failures: 5,
            breaker_open: Duration::from_secs(10),
        }
    }
}

/// `[cache]`: what is kept in memory, and how fetches are shared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cache {
    /// Budget in bytes for stored responses and what is in flight.
    pub memory: u64,
    /// Bodies over this are passed through, not stored.
    pub max_object: u64,
    /// Fetches with waiters at one time; over it requests fetch for themselves.
    pub max_flights: usize,
    /// How long a request waits for another's fetch before it fetches for itself.
    pub wait_timeout: Duration,
    /// How long a key is remembered as not storable, so that nobody waits for it.
    pub hit_for_miss: Duration,
    /// Bodies up to this get an ETag of ours where the origin gives no validator; 0 turns it off.
    pub etag_up_to: u64,
    /// A response in whose place a stored one may stand is awaited whole up to this size.
    pub await_up_to: u64,
    /// Fields that carry a principal's credential.
    pub credential_fields: Vec<HeaderName>,
    /// Cookies that carry one.
    pub credential_cookies: Vec<Box<str>>,
    /// Fields that speak to this cache in the place of `Cache-Control` (RFC 9213).
    pub targeted_fields: Vec<HeaderName>,
    /// Whether clients do not get to see them.
    pub hide_targeted_fields: bool,
    /// The tier that the fleet shares; `None` for an instance alone.
    pub redis: Option<Redis>,
}

impl Default for Cache {
    fn default() -> Self {
        Self {
            memory: 256 << 20,
            max_object: 8 << 20,
            max_flights: 10_000,
            wait_timeout: Duration::from_secs(10),
            hit_for_miss: Duration::from_secs(10),
            etag_up_to: 64 << 10,
            await_up_to: 1 << 20,
            credential_fields: vec![
                http::header::AUTHORIZATION,
                HeaderName::from_static("x-api-key"),
            ],
            credential_cookies: Vec::new(),
            targeted_fields: vec![HeaderName::from_static("cdn-cache-control")],
            hide_targeted_fields: false,
            redis: None,
        }
    }
}

/// `[cache.redis]`: what the fleet shares, and how long it is waited for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redis {
    /// Server, Sentinels or cluster, with user, password and database.
    pub url: String,
    /// Whose first line is the password in the URL.
    pub password_file: Option<PathBuf>,
    /// What every key begins with.
    pub prefix: String,
    pub connections: usize,
    /// PEM file of the roots to trust instead of the platform's, for `rediss…://`.
    pub ca_file: Option<PathBuf>,
    /// For one look-up, with the question who fetches.
    pub timeout: Duration,
    /// Consecutive failures after which it is not asked, and for how long.
    pub breaker_failures: u32,
    pub breaker_open: Duration,
    /// Writes that may wait; the next one is dropped.
    pub queue: usize,
    /// Bodies over this stay in memory alone.
    pub max_object: u64,
    /// How long what is in memory is trusted without hearing the fleet's purge log.
    pub max_silence: Duration,
    /// Bytes of the most used responses that are taken at start; 0 for none.
    pub warm_up: u64,
    /// Where purges are kept that Redis does not take.
    pub journal: JournalPlace,
}

/// Where purges are kept that Redis does not take, until it does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum JournalPlace {
    /// In the state folder that systemd gives, or beside the configuration, where that can be
    /// written.
    #[default]
    Usual,
    At(PathBuf),
    Nowhere,
}

impl Redis {
    /// The defaults of one at this place.
    pub fn at(url: String) -> Self {
        Self {
            url,
            password_file: None,
            prefix: "iris:".to_owned(),
            connections: 4,
            ca_file: None,
            timeout: Duration::from_millis(20),
            breaker_failures: 5,
            breaker_open: Duration::from_secs(10),
            queue: 1024,
            max_object: 1 << 20,
            max_silence: Duration::from_secs(60),
            warm_up: 0,
            journal: JournalPlace::Usual,
        }
    }
}

/// `[limits]`: what one client may cost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    pub connections: usize,
    /// TLS handshakes under way at one time.
    pub handshakes: usize,
    pub header_bytes: usize,
    pub header_count: usize,
    pub request_body: u64,
    /// From accept to the first complete request head.
    pub head_timeout: Duration,
    /// A connection on which nothing is asked.
    pub idle_timeout: Duration,
    /// From a request's head to the head of its response.
    pub request_timeout: Duration,
    /// Between two pieces of a body, from the client or towards it.
    pub body_timeout: Duration,
    /// While others wait for the slowest reader of a shared body that is too large to keep: for
    /// each MiB of its reading.
    pub mib_timeout: Duration,
    /// A tunnel through which nothing goes.
    pub tunnel_timeout: Duration,
    /// Bytes that the kernel may hold of what is sent on one connection (`SO_SNDBUF`).
    pub send_buffer: u64,
    /// Bytes a second that a client has to read, and to send, of a body.
    pub body_rate: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 10_000,
            handshakes: 1000,
            header_bytes: 32 << 10,
            header_count: 100,
            request_body: 16 << 20,
            head_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(75),
            request_timeout: Duration::from_secs(60),
            body_timeout: Duration::from_secs(60),
            mib_timeout: Duration::from_secs(10),
            tunnel_timeout: Duration::from_secs(3600),
            send_buffer: 256 << 10,
            body_rate: 512,
        }
    }
}
