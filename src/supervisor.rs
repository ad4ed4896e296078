//! Who has started this process, where that is systemd: it is told how it goes (sd_notify(3)), and
//! wants to hear now and then that it does. Without it nothing is said to anybody.

use std::time::Duration;

use sd_notify::NotifyState::{self, Ready, Reloading, Status, Stopping, Watchdog};
use tracing::warn;

/// It serves; `status` is a line for `systemctl status`.
pub fn ready(status: &str) {
    tell(&[Ready, Status(status)]);
}

/// It reads its configuration again until this is dropped: then it serves on, by what it has read
/// or by what was in force before.
pub struct Reload(());

impl Drop for Reload {
    fn drop(&mut self) {
        tell(&[Ready]);
    }
}

pub fn reloading() -> Reload {
    // Without a clock it is told all the same.
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[Reloading, now]),
        Err(_) => tell(&[Reloading]),
    }
    Reload(())
}

/// It goes.
pub fn stopping(status: &str) {
    tell(&[Stopping, Status(status)]);
}

/// Says that it lives for as long as it does, where that is wanted (`WatchdogSec=`).
pub async fn say_that_it_lives(lives: impl Fn() -> bool) {
    let Some(limit) = sd_notify::watchdog_enabled() else {
        return;
    };
    loop {
        if lives() {
            tell(&[Watchdog]);
        }
        tokio::time::sleep((limit / 3).max(Duration::from_millis(10))).await;
    }
}

fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        warn!(%error, "systemd could not be told (NOTIFY_SOCKET)");
    }
}
