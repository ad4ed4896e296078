//! One exchange with the origin, as far as what is stored of it must remember it.

use http::{HeaderMap, StatusCode};

use crate::clock::Timestamp;
use crate::http::cache_control::Scope;
use crate::policy::vary::{append_selecting, nominated};
use crate::policy::{Lifetimes, Options, Record, groups};
use crate::store::{Fields, Head, Selecting};

use super::plan::Plan;

/// One exchange with the origin: when it began and its head came, and what had been purged before.
#[derive(Clone, Copy, Debug)]
pub struct Exchange {
    /// Of the plan that it goes by.
    generation: u32,
    pub stamp: u64,
    pub requested: Timestamp,
    pub received: Timestamp,
}

impl Exchange {
    /// Of a fetch that begins now.
    pub fn begin(plan: &Plan) -> Self {
        let state = &plan.state;
        let now = state.clock.now();
        Self {
            generation: plan.generation,
            stamp: state.purge_position(),
            requested: now,
            received: now,
        }
    }

    /// The same with the purge log at this position: of a flight that others may have joined.
    pub fn at(self, stamp: u64) -> Self {
        Self { stamp, ..self }
    }

    /// The head of a response to a request with these fields, as it is stored.
    pub fn head(
        &self,
        status: StatusCode,
        headers: &HeaderMap,
        lifetimes: Lifetimes,
        client_headers: &HeaderMap,
        options: &Options,
    ) -> Head {
        let names = nominated(headers);
        let selecting = (!names.is_empty()).then(|| {
            let mut values = Vec::new();
            append_selecting(&names, client_headers, &mut values);
            Box::new(Selecting { names, values })
        });
        Head {
            status,
            fields: Fields::pack(headers),
            record: Record::new(lifetimes, headers, self.requested, self.received),
            selecting,
            stamp: self.stamp,
            vouched: self.received,
            groups: groups::of(headers, options.groups.as_ref()),
            generation: self.generation,
            withholds: matches!(options.control(headers).0.no_cache, Scope::Fields(_)),
        }
    }
}
