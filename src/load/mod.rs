//! `bench` and `load-test`: measurements that an operator can trust.
//!
//! | file | holds |
//! |---|---|
//! | `plan`, `written`, `template` | who asks for what, how often, and what differs from request to request |
//! | `client` | connections to the target, and one request over one of them |
//! | `run` | the engine: virtual users or arrivals, on one thread |
//! | `bench` | the benchmark's phases |
//! | `compare`, `noise` | two sides in one run, and a report against an earlier one; what is no difference |
//! | `record` | what was measured |
//! | `verdict` | whether that is what was wanted |
//! | `report`, `html`, `prometheus`, `figure` | how it is shown |

pub mod bench;
pub mod client;
pub mod compare;
pub mod figure;
pub mod html;
pub mod noise;
pub mod plan;
mod prometheus;
pub mod record;
pub mod report;
pub mod run;
pub mod template;
pub mod verdict;
pub mod written;
