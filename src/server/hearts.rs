//! Heartbeats of the workers: one that does not come back from what it does answers nobody.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

/// Between two beats.
const EVERY: Duration = Duration::from_secs(1);

/// A worker that was not seen for so long is stuck.
pub const STUCK_AFTER: Duration = Duration::from_secs(10);

/// When each worker was last seen at work.
#[derive(Debug)]
pub struct Hearts {
    begin: Instant,
    /// Milliseconds after `begin`.
    beats: Vec<AtomicU64>,
}

impl Hearts {
    /// Of so many workers.
    pub fn new(workers: usize) -> Self {
        Self {
            begin: Instant::now(),
            beats: (0..workers).map(|_| AtomicU64::new(0)).collect(),
        }
    }

    fn now(&self) -> u64 {
        self.begin.elapsed().as_millis() as u64
    }

    /// Beats, on the worker's own thread, for as long as that runs.
    pub async fn beat(&self, worker: usize) {
        loop {
            if let Some(beat) = self.beats.get(worker) {
                beat.store(self.now(), Ordering::Relaxed);
            }
            tokio::time::sleep(EVERY).await;
        }
    }

    /// The workers that have not been seen for `limit`, and for how long.
    pub fn stuck(&self, limit: Duration) -> Vec<(usize, Duration)> {
        let now = self.now();
        let silent = |beat: &AtomicU64| {
            Duration::from_millis(now.saturating_sub(beat.load(Ordering::Relaxed)))
        };
        let silent = self.beats.iter().map(silent).enumerate();
        silent.filter(|(_, silent)| *silent > limit).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_worker_that_does_not_come_back_is_stuck() {
        let hearts = Hearts::new(2);
        let limit = Duration::from_secs(10);
        tokio::select! {
            () = hearts.beat(0) => {}
            () = tokio::time::sleep(Duration::from_secs(15)) => {}
        }
        let stuck: Vec<usize> = hearts
            .stuck(limit)
            .into_iter()
            .map(|(worker, _)| worker)
            .collect();
        assert_eq!(stuck, [1]);
    }
}
