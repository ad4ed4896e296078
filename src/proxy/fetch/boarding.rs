//! Boarding: a request joins the fetch of what it asks for, leads it, or fetches alone.

use crate::flight::{Boarding, Ticket};
use crate::policy::Share;
use crate::policy::key::KeyBytes;
use crate::proxy::keyed_request::KeyedRequest;
use crate::proxy::state::State;

/// Under which key a request's fetch is found by others. Requests with a credential do not wait for
/// ones without, nor the other way round, where the answer may only be shared among those without
/// (RFC 9111 §3.5).
pub fn flight_key(keyed: &KeyedRequest) -> KeyBytes {
    let mut key = keyed.key.bytes.clone();
    let options = keyed.options();
    if options.share == Share::Standard && options.has_credential(keyed.headers()) {
        key.extend_from_slice(b"\x02credential");
    }
    // Who must prove a key waits for nobody but those with the same one.
    if let Some(let_in) = keyed.let_in.filter(|let_in| let_in.verifies) {
        key.extend_from_slice(b"\x03key");
        key.extend_from_slice(&let_in.caller.id.0);
    }
    key
}

/// Joins the flight of what is asked for, or leads one. A flight that began before position
/// `least` of the purge log, or that a hard purge has outdated, is not joined. `stored_meanwhile`
/// says, under the flights' lock, whether an answer has been stored since the look-up.
pub fn board<T>(
    state: &State,
    keyed: &KeyedRequest,
    least: u64,
    stored_meanwhile: impl FnOnce() -> Option<T>,
) -> Result<Boarding, T> {
    let key = flight_key(keyed);
    let purges = state.memory.purges();
    let groups = keyed.options().groups.as_ref();
    let is_outdated =
        |stamp| stamp < least || purges.has_purged(&key, groups, stamp, keyed.arrived);
    state
        .flights
        .board(&key, purges.position(), is_outdated, stored_meanwhile)
}

/// A fetch for this request alone.
pub fn alone(state: &State, keyed: &KeyedRequest) -> Ticket {
    let stamp = state.purge_position();
    state.flights.solo(&flight_key(keyed), stamp)
}
