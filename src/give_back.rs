//! Memory that was freed, given back to the system, by the allocator that the binary has chosen.

use std::sync::OnceLock;
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};

/// Between two times on one thread. What is used again within that costs no fault.
const EVERY: Duration = Duration::from_millis(200);

static GIVE_BACK: OnceLock<fn()> = OnceLock::new();

/// From now on `give_back` does it, for the thread that calls it.
pub fn by(give_back: fn()) {
    let _ = GIVE_BACK.set(give_back);
}

/// Gives back what the thread of this runtime has freed, for ever.
pub async fn by_and_by() {
    let Some(give_back) = GIVE_BACK.get() else {
        return;
    };
    let mut due = interval(EVERY);
    due.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        due.tick().await;
        give_back();
    }
}
