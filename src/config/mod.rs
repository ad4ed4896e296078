//! Configuration: TOML text → checked [`Config`], with every mistake in one report.
//!
//! What comes out can be acted on as it stands: addresses parse, routes do not collide, limits are
//! in range. Defaults live in `sections`, beside the meaning of each key.

mod access_log;
mod auth;
pub mod changes;
mod effective;
mod environment;
mod field_rules;
mod listen;
mod load;
mod read;
mod read_auth;
mod read_fields;
mod read_listen;
mod read_redis;
mod read_routes;
mod read_upstream;
mod read_value;
mod routes;
mod secret;
pub mod section;
mod sections;
pub mod settings;
pub mod source;
pub mod units;
mod upstream;
pub mod variables;

pub use access_log::{AccessLog, LogFormat, LogPlace};
pub use auth::{Auth, LimitBy, OnDifference, RateLimit, Scope, VerdictSource, WithoutRedis};
pub use field_rules::{Cors, FieldRules, Said};
pub use listen::{Address, Listen, Place};
pub use load::{NotLoaded, admin_of, admin_of_environment, fingerprint};
pub use read::{DATABASES, DEFAULT};
pub use read_redis::SCHEMES as REDIS_SCHEMES;
pub use routes::{Route, Routes};
pub use secret::Secret;
pub use sections::{Admin, Cache, Config, JournalPlace, Limits, Origin, Public, Redis, Reload};
pub use source::{Environment, Mistake};
pub use upstream::{DEFAULT as DEFAULT_UPSTREAM, Health, HostRule, Protocol, Upstream, Via};

#[cfg(test)]
mod tests;
