//! The admin port: metrics, the summary, health, purges. Its own listener, away from the clients'
//! traffic.

mod control;
mod endpoints;
mod explain;
mod page;
mod port;
mod purge;
mod readings;
mod request;
mod response;
mod revoke;
mod status;

pub use readings::Admin;
