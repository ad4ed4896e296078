//! Warm-up: an instance that starts takes what the fleet uses most from the second tier, and tells
//! what it uses itself.

use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt, stream};
use tokio::time::{Instant, interval, timeout};
use tracing::{debug, info};

use crate::proxy::state::State;
use crate::store::codec::Decoded;
use crate::store::second::Second;
use crate::store::second::used::UsedKey;

use super::consult::made_ours;

/// Between two reports of what was used.
const REPORTED_EVERY: Duration = Duration::from_secs(10);

/// Look-ups at one time.
const AT_ONCE: usize = 16;

/// After this the rest comes when it is asked for.
const LONGEST: Duration = Duration::from_secs(10);

/// Responses that are taken at most.
const MOST: usize = 4096;

/// Takes up to `budget` bytes of the most used responses, then reports what is used, for ever.
pub async fn keep_warm(state: Arc<State>, budget: u64) {
    let Some(second) = state.second.clone() else {
        return;
    };
    let begun = Instant::now();
    let (taken, bytes) = warm_up(&state, &second, budget).await;
    info!(responses = taken, bytes, elapsed = ?begun.elapsed(), "warmed up from Redis");
    let mut due = interval(REPORTED_EVERY);
    loop {
        due.tick().await;
        report_used(&state, &second).await;
    }
}

async fn warm_up(state: &State, second: &Second, budget: u64) -> (u64, u64) {
    let hour = state.clock.now().as_secs() / 3600;
    let used = match second.most_used(hour, MOST).await {
        Ok(used) => used,
        Err(error) => {
            debug!(%error, "what is used most is not known");
            return (0, 0);
        }
    };
    let (mut taken, mut bytes) = (0, 0);
    let looking = stream::iter(used).map(|key| async move {
        let value = second.value(&key).await;
        (key, value)
    });
    let mut looking = std::pin::pin!(looking.buffered(AT_ONCE));
    let warming = async {
        while let Some((key, value)) = looking.next().await {
            let Ok(Some(value)) = value else { continue };
            let size = value.body.len() as u64;
            if bytes + size > budget {
                return;
            }
            if take(state, &key, value) {
                taken += 1;
                bytes += size;
            }
        }
    };
    let _ = timeout(LONGEST, warming).await;
    (taken, bytes)
}

/// Takes one response into memory, if it can be used.
fn take(state: &State, key: &UsedKey, value: Decoded) -> bool {
    let Some(entry) = made_ours(state, key.primary(), value) else {
        return false;
    };
    let is_wanted = entry.view().is_reusable(state.clock.now());
    let selecting = entry.head.selecting.as_ref();
    let is_it = selecting.map_or(&b""[..], |selecting| &selecting.values) == key.selecting();
    // What is here by now is newer.
    let is_new = !state.memory.holds(key.in_memory());
    let is_taken = is_wanted && is_it && is_new && state.memory.insert(key.primary(), entry);
    if is_taken {
        state.metrics.second.warmed();
    }
    is_taken
}

async fn report_used(state: &State, second: &Second) {
    let Some(used) = &state.used else { return };
    let counts = used.take();
    if !counts.is_empty() {
        let hour = state.clock.now().as_secs() / 3600;
        if let Err(error) = second.note_used(hour, counts).await {
            debug!(%error, "what is used most was not told");
        }
    }
}

/// Reports what was used now: for the end of a process, and for tests.
pub async fn report_used_now(state: &State) {
    if let Some(second) = &state.second {
        report_used(state, second).await;
    }
}
