//! Standing: what a stored response is good for at one moment (RFC 9111 §4.2, §4.2.4).

use std::time::Duration;

use crate::clock::Timestamp;

/// The three windows of a stored response.
///
/// `fresh` is compared with the current age (§4.2.3), or, where an operator granted it, with the
/// time since the response came; each grace window begins where it ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lifetimes {
    pub fresh: Duration,
    pub stale_while_revalidate: Duration,
    pub stale_if_error: Duration,
    /// The origin said nothing, or was overruled: `fresh` is the operator's word.
    pub granted_by_operator: bool,
    /// The origin will not change it while it is fresh (RFC 8246).
    pub immutable: bool,
    /// No stale response may be made of this one, whatever the client says (§4.2.4).
    pub forbids_stale: bool,
}

/// What a stored response is good for at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    Fresh {
        left: Duration,
    },
    /// Usable at once, while one refresh runs behind it (RFC 5861 §3).
    StaleWhileRevalidate,
    /// Usable only if the origin fails (RFC 5861 §4).
    StaleIfError,
    Expired,
}

impl Lifetimes {
    /// Ranks what was used of `fresh` against the windows. A window of zero is never entered.
    pub fn standing(&self, used: Duration) -> Standing {
        match used.checked_sub(self.fresh) {
            Some(over) => self.grace(over),
            None => Standing::Fresh {
                left: self.fresh - used,
            },
        }
    }

    /// What a response is good for that has been stale for so long.
    fn grace(&self, over: Duration) -> Standing {
        if over < self.stale_while_revalidate {
            Standing::StaleWhileRevalidate
        } else if over < self.stale_if_error {
            Standing::StaleIfError
        } else {
            Standing::Expired
        }
    }
}

/// What policy remembers of a stored response.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Record {
    pub lifetimes: Lifetimes,
    /// When its age was zero: before it came, by its corrected age at that moment (§4.2.3).
    pub born: Timestamp,
    /// When it came, or was confirmed.
    pub received: Timestamp,
    /// The origin gave an ETag or Last-Modified, so it can confirm the response by 304.
    pub has_validator: bool,
}

impl Record {
    /// current_age (§4.2.3).
    pub fn age(&self, now: Timestamp) -> Duration {
        now.since(self.born)
    }

    /// How much of its freshness lifetime is used: an origin whose clock is behind, or a cache
    /// before ours, uses up nothing of what an operator grants.
    fn used(&self, now: Timestamp) -> Duration {
        now.since(self.counts_from())
    }

    /// From when on its freshness lifetime counts.
    pub fn counts_from(&self) -> Timestamp {
        if self.lifetimes.granted_by_operator {
            self.received
        } else {
            self.born
        }
    }
}

/// A stored response as policy sees it: what it brought with it, and what a soft purge made of it.
#[derive(Clone, Copy, Debug)]
pub struct StoredView<'a> {
    pub record: &'a Record,
    /// When a purge made it stale, whatever its lifetime.
    pub stale_since: Option<Timestamp>,
}

impl<'a> StoredView<'a> {
    /// As it came, untouched by any purge.
    pub fn of(record: &'a Record) -> Self {
        Self {
            record,
            stale_since: None,
        }
    }

    pub fn age(&self, now: Timestamp) -> Duration {
        self.record.age(now)
    }

    /// How long it has been stale; `None` while it is fresh.
    pub fn over(&self, now: Timestamp) -> Option<Duration> {
        let by_age = self
            .record
            .used(now)
            .checked_sub(self.record.lifetimes.fresh);
        by_age.max(self.stale_since.map(|at| now.since(at)))
    }

    pub fn standing(&self, now: Timestamp) -> Standing {
        let lifetimes = &self.record.lifetimes;
        match self.over(now) {
            Some(over) => lifetimes.grace(over),
            None => lifetimes.standing(self.record.used(now)),
        }
    }

    /// Whether the response may be used now without asking the origin first.
    pub fn is_reusable(&self, now: Timestamp) -> bool {
        matches!(
            self.standing(now),
            Standing::Fresh { .. } | Standing::StaleWhileRevalidate
        )
    }

    /// Seconds of freshness left, negative when stale.
    pub fn ttl(&self, now: Timestamp) -> i64 {
        let seconds = |duration: Duration| duration.as_secs() as i64;
        match self.over(now) {
            Some(over) if self.stale_since.is_some() => -seconds(over),
            _ => seconds(self.record.lifetimes.fresh) - seconds(self.record.used(now)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    #[test]
    fn the_windows_follow_one_another_and_zero_is_never_entered() {
        let windows = Lifetimes {
            fresh: seconds(10),
            stale_while_revalidate: seconds(5),
            stale_if_error: seconds(20),
            ..Lifetimes::default()
        };
        assert_eq!(
            windows.standing(seconds(4)),
            Standing::Fresh { left: seconds(6) }
        );
        assert_eq!(
            windows.standing(seconds(10)),
            Standing::StaleWhileRevalidate
        );
        assert_eq!(windows.standing(seconds(15)), Standing::StaleIfError);
        assert_eq!(windows.standing(seconds(30)), Standing::Expired);
        assert_eq!(
            Lifetimes::default().standing(Duration::ZERO),
            Standing::Expired
        );
    }
}
