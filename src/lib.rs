pub mod clock;
pub mod config;
pub mod error;
pub mod http;
pub mod metrics;
pub mod policy;
pub mod store;
