//! Bypass: while the operator has switched caching off, nothing is looked up or stored. For this
//! instance, or for the fleet, which hears of it by the purge log; for all routes, or for one.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::RwLock;
use sha2::{Digest, Sha256};

use crate::clock::{Clock, Timestamp};
use crate::policy::Mode;
use crate::store::purge::SWITCH;
use crate::store::{Purge, PurgeLog, Reach, Target};

/// What is switched off, and until when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Switch {
    /// Of a route's path; `None` for all routes.
    route: Option<[u8; 8]>,
    /// `None`: until it is switched on again.
    pub until: Option<Timestamp>,
    pub is_fleets: bool,
}

/// Of a digest in the purge log: what it is, which route, and until when.
const ROUTE: usize = 16;
const UNTIL: usize = 24;

impl Switch {
    pub fn new(route: Option<&str>, until: Option<Timestamp>, is_fleets: bool) -> Self {
        Self {
            route: route.map(of_path),
            until,
            is_fleets,
        }
    }

    /// As the purge log has it: by the name of a key that nobody has.
    fn digest(&self) -> [u8; 32] {
        let mut digest = [0; 32];
        digest[..ROUTE].copy_from_slice(&SWITCH);
        digest[ROUTE..UNTIL].copy_from_slice(&self.route.unwrap_or_default());
        let until = self.until.map_or(0, Timestamp::as_millis);
        digest[UNTIL..].copy_from_slice(&until.to_be_bytes());
        digest
    }

    fn of_digest(digest: &[u8; 32]) -> Self {
        let number = |from: usize| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(&digest[from..from + 8]);
            bytes
        };
        let (route, until) = (number(ROUTE), u64::from_be_bytes(number(UNTIL)));
        Self {
            route: (route != [0; 8]).then_some(route),
            until: (until > 0).then(|| Timestamp::from_millis(until)),
            is_fleets: true,
        }
    }

    /// What tells the fleet of it, or takes it back.
    pub fn purge(&self) -> Purge {
        Purge {
            target: Target::Key(self.digest()),
            reach: Reach::Any,
        }
    }

    fn lasts(&self, now: Timestamp) -> bool {
        self.until.is_none_or(|until| now < until)
    }

    /// Whether it concerns all routes, or this one.
    pub fn is_of(&self, path: Option<&str>) -> bool {
        self.route
            .is_none_or(|route| path.is_some_and(|path| of_path(path) == route))
    }

    pub fn is_of_all(&self) -> bool {
        self.route.is_none()
    }
}

fn of_path(path: &str) -> [u8; 8] {
    let digest = Sha256::digest(path);
    let mut route = [0; 8];
    route.copy_from_slice(&digest[..8]);
    route
}

/// What is switched off now.
#[derive(Debug, Default)]
pub struct Bypass {
    /// Whether anything is, as far as the log was read: a request looks at nothing else then.
    is_any: AtomicBool,
    /// How often the log had had a word on it.
    seen: AtomicU64,
    switches: RwLock<Vec<Switch>>,
}

impl Bypass {
    /// Whether a request on a route with this path is not looked up, and not stored. The clock is
    /// asked where anything is switched off at all.
    pub fn is_on(&self, purges: &PurgeLog, clock: &Clock, path: Option<&str>) -> bool {
        if self.seen.load(Ordering::Acquire) != purges.switched() {
            self.read_log(purges);
        }
        self.is_any.load(Ordering::Acquire)
            && self
                .list(purges, clock.now())
                .iter()
                .any(|one| one.is_of(path))
    }

    /// All that is switched off now.
    pub fn list(&self, purges: &PurgeLog, now: Timestamp) -> Vec<Switch> {
        if self.seen.load(Ordering::Acquire) != purges.switched() {
            self.read_log(purges);
        }
        let switches = self.switches.read();
        let lasting = switches.iter().filter(|one| one.lasts(now));
        let lasting: Vec<Switch> = lasting.copied().collect();
        let is_any_over = lasting.len() < switches.len();
        drop(switches);
        if is_any_over {
            // The next request need not look at it.
            self.change(|switches| switches.retain(|one| one.lasts(now)));
        }
        lasting
    }

    /// Switches off here.
    pub fn add(&self, switch: Switch) {
        self.change(|switches| {
            switches.retain(|known| known.is_fleets || known.route != switch.route);
            switches.push(switch);
        });
    }

    /// Switches on here what was switched off here alone: a route, or everything.
    pub fn remove_own(&self, path: Option<&str>) {
        let route = path.map(of_path);
        self.change(|switches| {
            switches.retain(|known| known.is_fleets || path.is_some() && known.route != route);
        });
    }

    fn read_log(&self, purges: &PurgeLog) {
        // Before it is read: what comes meanwhile is read once more.
        let seen = purges.switched();
        let of_fleet = purges.switches();
        self.change(|switches| {
            switches.retain(|known| !known.is_fleets);
            switches.extend(of_fleet.iter().map(Switch::of_digest));
        });
        self.seen.store(seen, Ordering::Release);
    }

    fn change(&self, change: impl FnOnce(&mut Vec<Switch>)) {
        let mut switches = self.switches.write();
        change(&mut switches);
        self.is_any.store(!switches.is_empty(), Ordering::Release);
    }
}

/// Takes back of the log what was switched off for the fleet: what is meant by `path`
/// (`Some(None)`: of all routes together; `None`: whatever it is), and what is over anyway.
pub fn words_to_take_back(
    purges: &PurgeLog,
    now: Timestamp,
    path: Option<Option<&str>>,
) -> Vec<(Purge, Mode)> {
    let route = path.map(|path| path.map(of_path));
    let known = purges.switches().into_iter();
    let known = known.map(|digest| Switch::of_digest(&digest));
    known
        .filter(|one| route.is_none_or(|route| one.route == route) || !one.lasts(now))
        .map(|one| (one.purge(), Mode::Soft))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::purge::causes::Cause;

    #[test]
    fn what_is_switched_off_is_off_for_its_time_and_its_route() {
        let (purges, bypass) = (PurgeLog::default(), Bypass::default());
        let at = Timestamp::from_millis;
        let is_on = |now, path| bypass.is_on(&purges, &Clock::manual(at(now)), path);
        assert!(!is_on(0, Some("/a")));
        bypass.add(Switch::new(Some("/a"), Some(at(100)), false));
        assert!(is_on(99, Some("/a")) && !is_on(99, Some("/b")) && !is_on(99, None));
        assert!(!is_on(100, Some("/a")));
        let fleets = Switch::new(None, Some(at(200)), true);
        purges.append(fleets.purge(), Mode::Hard, at(100), Cause::Order);
        assert!(is_on(150, Some("/b")) && is_on(150, None));
        bypass.remove_own(None);
        assert!(
            is_on(160, Some("/a")),
            "the fleet's is not this instance's to end"
        );
        for (purge, mode) in words_to_take_back(&purges, at(160), None) {
            purges.append(purge, mode, at(160), Cause::Order);
        }
        assert!(!is_on(160, Some("/a")));
        purges.append(fleets.purge(), Mode::Hard, at(170), Cause::Order);
        assert!(is_on(199, None) && !is_on(200, None));
        assert!(bypass.list(&purges, at(200)).is_empty());
    }
}
