//! The end of a server, step by step: it is told by those who send it clients, and then it closes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

/// How far a server is from its end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    #[default]
    Serving,
    /// Unready, and otherwise as before: each answer says that it is its connection's last.
    Leaving,
    /// Nothing new is accepted but what waits already; what is under way ends.
    Closing,
}

/// The phase of a process, and who has asked for its end.
#[derive(Debug)]
pub struct Phases {
    phase: watch::Sender<Phase>,
    state: watch::Sender<Ending>,
    has_started: AtomicBool,
    /// Whether an answer says that it is its connection's last: read for each of them.
    leaves: Arc<AtomicBool>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Ending {
    /// Since when it is unready.
    since: Option<Instant>,
    is_ordered: bool,
}

impl Default for Phases {
    fn default() -> Self {
        Self {
            phase: watch::Sender::new(Phase::Serving),
            state: watch::Sender::default(),
            has_started: AtomicBool::new(false),
            leaves: Arc::default(),
        }
    }
}

impl Phases {
    /// Clients can come from now on.
    pub fn start(&self) {
        self.has_started.store(true, Ordering::Release);
    }

    pub fn has_started(&self) -> bool {
        self.has_started.load(Ordering::Acquire)
    }

    pub fn now(&self) -> Phase {
        *self.phase.borrow()
    }

    pub fn watched(&self) -> Watched {
        Watched {
            phase: self.phase.subscribe(),
            leaves: Arc::clone(&self.leaves),
        }
    }

    /// Clients are to go elsewhere from now on.
    pub fn leave(&self) {
        self.leaves.store(true, Ordering::Release);
        self.phase.send_if_modified(|phase| {
            let is_news = *phase == Phase::Serving;
            if is_news {
                *phase = Phase::Leaving;
            }
            is_news
        });
        self.state.send_modify(|state| {
            state.since.get_or_insert_with(Instant::now);
        });
    }

    /// Takes [`Phases::leave`] back; whether that is still possible.
    pub fn stay(&self) -> bool {
        let mut can_stay = false;
        self.state.send_modify(|state| {
            can_stay = !state.is_ordered && self.now() < Phase::Closing;
            if can_stay {
                state.since = None;
            }
        });
        if can_stay {
            self.leaves.store(false, Ordering::Release);
            self.phase.send_if_modified(|phase| {
                let is_news = *phase == Phase::Leaving;
                if is_news {
                    *phase = Phase::Serving;
                }
                is_news
            });
        }
        can_stay
    }

    /// The whole process is to end, as by SIGTERM.
    pub fn order_end(&self) {
        self.leave();
        self.state.send_modify(|state| state.is_ordered = true);
    }

    /// Waits until somebody has ordered the end.
    pub async fn ordered(&self) {
        let mut state = self.state.subscribe();
        // Only where its sender is gone it fails, and that is here.
        let _ = state.wait_for(|state| state.is_ordered).await;
    }

    /// What is left of `delay`, counted from when it became unready.
    pub fn left_of(&self, delay: Duration) -> Duration {
        let since = self.state.borrow().since;
        since.map_or(delay, |since| delay.saturating_sub(since.elapsed()))
    }

    pub fn close(&self) {
        self.leave();
        self.phase.send_replace(Phase::Closing);
    }
}

/// A phase as connections see it.
#[derive(Clone, Debug)]
pub struct Watched {
    phase: watch::Receiver<Phase>,
    pub leaves: Arc<AtomicBool>,
}

impl Watched {
    /// Waits for another phase than `told`.
    pub async fn other_than(&mut self, told: Phase) -> Phase {
        match self.phase.wait_for(|phase| *phase != told).await {
            Ok(phase) => *phase,
            // Nobody is left who could tell.
            Err(_) => Phase::Closing,
        }
    }

    pub async fn closing(&mut self) {
        // Only where its sender is gone it fails.
        let _ = self.phase.wait_for(|phase| *phase == Phase::Closing).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_leaves_may_stay_until_the_end_is_ordered_and_its_time_counts() {
        let phases = Phases::default();
        let delay = Duration::from_secs(5);
        phases.leave();
        tokio::time::advance(Duration::from_secs(2)).await;
        phases.leave();
        assert_eq!(phases.left_of(delay), Duration::from_secs(3));
        assert!(phases.stay());
        assert_eq!(phases.now(), Phase::Serving);
        assert_eq!(phases.left_of(delay), delay);
        phases.order_end();
        phases.ordered().await;
        assert!(!phases.stay());
        assert_eq!(phases.now(), Phase::Leaving);
        phases.close();
        assert_eq!(phases.now(), Phase::Closing);
    }
}
