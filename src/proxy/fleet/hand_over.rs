//! What an instance could not tell Redis before its end, told to another one that lives: it tells
//! the rest, sooner or later.

use std::net::SocketAddr;
use std::time::Duration;

use http::{Method, StatusCode};
use tracing::{info, warn};

use crate::proxy::state::State;
use crate::store::purge::causes::Cause;
use crate::store::purge::journal::{in_parts, read_part};
use crate::upstream::ask_admin;

/// How long one of the others is waited for.
const PATIENCE: Duration = Duration::from_secs(3);

/// Where the others take over.
pub const PATH: &str = "/told";

/// Tells the first of the others that takes it all; the journal has nothing to keep then.
pub async fn hand_over(state: &State, token: Option<&str>) {
    let Some(second) = &state.second else { return };
    let purges = state.memory.purges();
    let untold = purges.untold();
    if untold.is_empty() {
        return;
    }
    for (name, address) in second.others() {
        if takes_all(address, token, in_parts(&untold)).await {
            info!(instance = %name, purges = untold.len(), "another instance tells the fleet what \
                Redis did not take");
            purges.handed_over(&untold).await;
            return;
        }
    }
    warn!(
        purges = untold.len(),
        "no other instance takes over what Redis did not take"
    );
}

async fn takes_all(address: SocketAddr, token: Option<&str>, parts: Vec<String>) -> bool {
    for part in parts {
        let asked = ask_admin(address, token, (Method::POST, PATH), part, PATIENCE).await;
        if asked.is_none_or(|(status, _)| status != StatusCode::OK) {
            return false;
        }
    }
    true
}

/// Takes over what another instance could not tell: how many purges those were. An error says what
/// is wrong with it.
pub fn take_over(state: &std::sync::Arc<State>, part: &[u8]) -> Result<usize, String> {
    let told = read_part(part)
        .ok_or_else(|| "expected an array of purges as another instance writes them".to_owned())?;
    let count = told.len();
    for purge in told {
        state.purge_again(purge.purge, purge.mode, Cause::OtherInstance);
    }
    Ok(count)
}
