//! The behaviour of the sidecar, one file a behaviour: each test drives the real server over loopback,
//! or the real binary. One crate, so that it is linked once and what no test uses is found.
//!
//! What measures this process itself stands apart: `allocations.rs` and `memory.rs`.

#![allow(clippy::expect_used, clippy::unwrap_used)]

mod access_log;
mod adaptive;
mod admin;
mod alerts;
mod alive;
mod bodies;
mod bypass;
mod caching;
mod canonical;
mod claims;
mod cluster;
mod coalesce;
mod command;
mod descriptors;
mod drain;
mod explain;
mod failure;
mod fleet;
mod fleet_age;
mod fleet_ill;
mod fleet_journal;
mod fleet_lease;
mod fleet_purge;
mod framing;
mod full_disk;
mod groups;
mod grpc;
mod guard;
mod guard_edges;
mod house;
mod interim;
mod keys;
mod limits;
mod listen_places;
mod listen_tls;
mod load;
mod model;
mod nginx;
mod operating;
mod origin;
mod origin_database;
mod others;
mod page;
mod parts;
mod plans;
mod proofs;
mod proxying;
mod purge;
mod ranges;
mod rate_limits;
mod readers;
mod redis;
mod redis_log;
mod reload;
mod restart;
mod resting;
mod rules;
mod stale;
mod topologies;
mod tunnels;
mod units;
mod upstream_addresses;
mod upstream_h2;
mod upstream_named;
mod validation;
mod verdicts;
mod wishes;
mod write_faults;
mod writes;

mod support;
