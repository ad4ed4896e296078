//! A stored response of the reference: how long it is fresh, how old it is, and what it may be used
//! for when it is stale.

use super::world::{Fields, date, field};

/// What the operator says.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// Clients' directives count.
    pub obeys: bool,
    /// In seconds.
    pub stale_if_error: u64,
    /// Of guessed lifetimes, in seconds; `None`: no guessing.
    pub heuristic_cap: Option<u64>,
    pub stores_cookies: bool,
}

/// A stored response (§3), and when it was asked for and came.
#[derive(Clone, Debug)]
pub struct Kept {
    pub path: &'static str,
    /// The request fields that `Vary` names, and what its request said in them (§4.1).
    pub selecting: Vec<(String, Option<String>)>,
    pub status: u16,
    pub fields: Fields,
    pub body: String,
    pub requested: u64,
    pub received: u64,
    pub stale_since: Option<u64>,
    pub left_alone_until: u64,
}

const CAP: u64 = 1 << 31;

/// The directives of a `Cache-Control` (§5.2): names in lower case, arguments without quotes.
pub fn directives(fields: &Fields) -> Vec<(String, Option<String>)> {
    let value = field(fields, "cache-control").unwrap_or("");
    let words = value
        .split(',')
        .map(str::trim)
        .filter(|word| !word.is_empty());
    words
        .map(|word| match word.split_once('=') {
            Some((name, value)) => {
                let value = value.trim().trim_matches('"').to_owned();
                (name.trim().to_lowercase(), Some(value))
            }
            None => (word.to_lowercase(), None),
        })
        .collect()
}

pub fn says(fields: &Fields, name: &str) -> bool {
    directives(fields).iter().any(|(known, _)| known == name)
}

/// A number of seconds (§1.2.2). Where one repeats, the smallest counts; what is no number is 0.
pub fn seconds(fields: &Fields, name: &str) -> Option<u64> {
    let all = directives(fields);
    let given = all.iter().filter(|(known, _)| known == name);
    given
        .map(|(_, value)| {
            let digits = value.as_deref().unwrap_or("");
            let is_number = !digits.is_empty() && digits.chars().all(|c| c.is_ascii_digit());
            match is_number {
                true => digits.parse::<u64>().unwrap_or(CAP).min(CAP),
                false => 0,
            }
        })
        .min()
}

/// Status codes that are heuristically cacheable (RFC 9110 §15.1) and that this origin sends.
pub const HEURISTIC: [u16; 6] = [200, 203, 204, 301, 404, 410];

impl Kept {
    /// In milliseconds (§4.2.1); `None` where nobody says. What is `no-cache` is never fresh
    /// (§5.2.2.4).
    pub fn lifetime(&self, of: &Rules) -> Option<u64> {
        let stated = self.stated_lifetime(of)?;
        Some(if says(&self.fields, "no-cache") {
            0
        } else {
            stated
        })
    }

    pub fn stated_lifetime(&self, of: &Rules) -> Option<u64> {
        let fields = &self.fields;
        if let Some(lifetime) = seconds(fields, "s-maxage").or(seconds(fields, "max-age")) {
            return Some(lifetime * 1000);
        }
        let now = date(field(fields, "date").unwrap_or("")).unwrap_or(self.received);
        if let Some(expires) = field(fields, "expires") {
            return Some(date(expires).map_or(0, |expires| expires.saturating_sub(now) * 1000));
        }
        let cap = of.heuristic_cap?;
        let modified = date(field(fields, "last-modified")?)?;
        let may_guess = HEURISTIC.contains(&self.status) || says(fields, "public");
        may_guess.then(|| (now.saturating_sub(modified) * 100).min(cap * 1000))
    }

    /// §4.2.3.
    pub fn age(&self, now: u64) -> u64 {
        let date_value = date(field(&self.fields, "date").unwrap_or(""));
        let apparent_age = date_value.map_or(0, |date| self.received.saturating_sub(date));
        let age_value = field(&self.fields, "age").and_then(|age| age.parse().ok());
        let response_delay = self.received - self.requested;
        let corrected_age_value = age_value.unwrap_or(0) + response_delay;
        let corrected_initial_age = apparent_age.max(corrected_age_value);
        corrected_initial_age + (now - self.received)
    }

    /// Milliseconds since it went stale; `None` while it is fresh (§4.2).
    pub fn staleness(&self, of: &Rules, now: u64) -> Option<u64> {
        let lifetime = self.lifetime(of).unwrap_or(0);
        let by_age = (self.age(now) * 1000).checked_sub(lifetime);
        by_age.max(self.stale_since.map(|since| (now - since) * 1000))
    }

    /// §4.2.4: whether no stale response may be made of it.
    pub fn forbids_stale(&self) -> bool {
        let names = [
            "no-cache",
            "must-revalidate",
            "proxy-revalidate",
            "s-maxage",
        ];
        names.iter().any(|name| says(&self.fields, name))
    }

    /// How many milliseconds it may be used while it is revalidated (RFC 5861 §3), and in the place
    /// of an error (§4).
    pub fn windows(&self, of: &Rules) -> (u64, u64) {
        let fields = &self.fields;
        let stated = (
            seconds(fields, "stale-while-revalidate"),
            seconds(fields, "stale-if-error"),
        );
        let forbidden = ["no-cache", "must-revalidate", "proxy-revalidate"];
        if self.lifetime(of).is_none() || forbidden.iter().any(|name| says(fields, name)) {
            return (0, 0);
        }
        let own = if says(fields, "s-maxage") {
            0
        } else {
            of.stale_if_error
        };
        (stated.0.unwrap_or(0) * 1000, stated.1.unwrap_or(own) * 1000)
    }

    pub fn may_revalidate_behind(&self, of: &Rules, now: u64) -> bool {
        let over = self.staleness(of, now);
        over.is_some_and(|over| over < self.windows(of).0)
    }

    pub fn may_replace_error(&self, of: &Rules, now: u64) -> bool {
        match self.staleness(of, now) {
            None => true,
            Some(over) => {
                let (behind, on_error) = self.windows(of);
                over < behind || over < on_error
            }
        }
    }

    pub fn has_validator(&self) -> bool {
        ["etag", "last-modified"]
            .iter()
            .any(|name| field(&self.fields, name).is_some())
    }
}
