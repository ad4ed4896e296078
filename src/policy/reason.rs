//! Why: one closed list of reasons, whose codes appear in `Cache-Status`, logs and metrics alike.

use strum::{EnumCount, EnumIter, IntoStaticStr};

/// Why a response was or was not looked up, reused or stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EnumCount, EnumIter, IntoStaticStr)]
#[strum(serialize_all = "kebab-case")]
pub enum Reason {
    /// A stored response within its freshness lifetime.
    Fresh,
    /// The same, taken from the tier that the fleet shares.
    SecondTier,
    StaleWhileRevalidate,
    StaleIfError,
    /// Stale, and the client said that it takes it (`max-stale`).
    MaxStale,
    /// The origin confirmed the stored response with 304.
    Revalidated,
    /// Nothing is stored under the key.
    Cold,
    /// Something is stored under the key, but not for these request fields.
    VaryMiss,
    /// Stored, and past every window.
    Expired,
    /// Stored, but not reusable without asking the origin.
    MustValidate,
    /// A purge or a write made the stored response stale, or came while it was fetched.
    Purged,
    /// The client asked for a newer response, or for none to be kept.
    ClientDirective,
    /// The last response for this key could not be shared; it is fetched without waiting.
    HitForMiss,
    /// The operator has switched caching off (`bypass`).
    SwitchedOff,
    NoRoute,
    /// The target has no canonical spelling, or its route wants it sent as it came.
    RawTarget,
    /// A parameter that the route does not name, and does not drop either.
    UnknownQuery,
    Method,
    RequestBody,
    Range,
    Precondition,
    Upgrade,
    Cookie,
    Credential,
    NoStore,
    Private,
    SetCookie,
    VaryAny,
    Status,
    Partial,
    NoLifetime,
    EventStream,
    TooLarge,
    /// The memory budget is spent on what is in flight.
    Budget,
    FlightsFull,
    WaitTimeout,
    OriginFailed,
    /// The request was refused before look-up.
    Refused,
    /// One request more than a limit allows.
    RateLimited,
    /// Its key is bad, or there is more than one.
    KeyRefused,
    /// Nobody can say whether its key is good, or its own request is what asks.
    KeyUnverified,
    /// What a browser asks before a request of another origin's page, answered here.
    Preflight,
}

impl Reason {
    /// The code of this reason: an RFC 9211 token and a metric label.
    pub fn as_str(self) -> &'static str {
        self.into()
    }

    /// What it means, as the guide's table has it.
    pub fn meaning(self) -> &'static str {
        const GUIDE: &str = include_str!("../guide.md");
        let code = self.as_str();
        let row = |line: &'static str| {
            let rest = line
                .strip_prefix("| `")?
                .strip_prefix(code)?
                .strip_prefix("` |")?;
            rest.trim_end_matches('|').split('|').next_back()
        };
        GUIDE.lines().find_map(row).unwrap_or_default().trim()
    }

    /// Why a request went forward, in the words of RFC 9211 §2.2.
    pub fn forwarded_as(self) -> &'static str {
        match self {
            Self::Cold | Self::HitForMiss | Self::FlightsFull | Self::WaitTimeout => "uri-miss",
            Self::VaryMiss => "vary-miss",
            Self::Expired
            | Self::MustValidate
            | Self::Purged
            | Self::StaleIfError
            | Self::Revalidated => "stale",
            Self::Method => "method",
            Self::Partial => "partial",
            // Looked up, and set aside for what the request says.
            Self::Cookie | Self::ClientDirective | Self::KeyUnverified => "request",
            Self::Fresh
            | Self::SecondTier
            | Self::StaleWhileRevalidate
            | Self::MaxStale
            | Self::SwitchedOff
            | Self::NoRoute
            | Self::RawTarget
            | Self::UnknownQuery
            | Self::RequestBody
            | Self::Range
            | Self::Precondition
            | Self::Upgrade
            | Self::Credential
            | Self::NoStore
            | Self::Private
            | Self::SetCookie
            | Self::VaryAny
            | Self::Status
            | Self::NoLifetime
            | Self::EventStream
            | Self::TooLarge
            | Self::Budget
            | Self::OriginFailed
            | Self::Refused
            | Self::RateLimited
            | Self::KeyRefused
            | Self::Preflight => "bypass",
        }
    }

    /// Whether a refusal to store lies in the response itself, so that the next request for the
    /// key will very likely meet it too. Reasons of one request (its cookie, its credential) and
    /// of the moment (the budget) are not remembered for everybody.
    pub fn is_of_the_response(self) -> bool {
        match self {
            Self::NoStore
            | Self::Private
            | Self::SetCookie
            | Self::VaryAny
            | Self::Status
            | Self::Partial
            | Self::NoLifetime
            | Self::EventStream
            | Self::TooLarge
            | Self::MustValidate => true,
            Self::Fresh
            | Self::SecondTier
            | Self::StaleWhileRevalidate
            | Self::StaleIfError
            | Self::MaxStale
            | Self::Revalidated
            | Self::Cold
            | Self::VaryMiss
            | Self::Expired
            | Self::Purged
            | Self::ClientDirective
            | Self::HitForMiss
            | Self::SwitchedOff
            | Self::NoRoute
            | Self::RawTarget
            | Self::UnknownQuery
            | Self::Method
            | Self::RequestBody
            | Self::Range
            | Self::Precondition
            | Self::Upgrade
            | Self::Cookie
            | Self::Credential
            | Self::Budget
            | Self::FlightsFull
            | Self::WaitTimeout
            | Self::OriginFailed
            | Self::Refused
            | Self::RateLimited
            | Self::KeyRefused
            | Self::KeyUnverified
            | Self::Preflight => false,
        }
    }

    /// Whether a request can meet it before anything is sent for it, so that `explain` foresees it.
    pub fn is_of_look_up(self) -> bool {
        match self {
            Self::Fresh
            | Self::StaleWhileRevalidate
            | Self::StaleIfError
            | Self::MaxStale
            | Self::Cold
            | Self::VaryMiss
            | Self::Expired
            | Self::MustValidate
            | Self::Purged
            | Self::ClientDirective
            | Self::HitForMiss
            | Self::SwitchedOff
            | Self::NoRoute
            | Self::RawTarget
            | Self::UnknownQuery
            | Self::Method
            | Self::RequestBody
            | Self::Range
            | Self::Precondition
            | Self::Upgrade
            | Self::Cookie
            | Self::Credential
            // What is missing of a stored part is known before it is fetched.
            | Self::Partial
            | Self::Refused
            | Self::RateLimited
            | Self::KeyRefused
            | Self::KeyUnverified => true,
            // Said by the fleet, by the origin, or by what else is under way.
            Self::SecondTier
            // It is nothing that is looked up.
            | Self::Preflight
            | Self::Revalidated
            | Self::NoStore
            | Self::Private
            | Self::SetCookie
            | Self::VaryAny
            | Self::Status
            | Self::NoLifetime
            | Self::EventStream
            | Self::TooLarge
            | Self::Budget
            | Self::FlightsFull
            | Self::WaitTimeout
            | Self::OriginFailed => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;
    use strum::IntoEnumIterator;

    #[test]
    fn every_reason_has_a_code_of_its_own() {
        let codes: HashSet<_> = Reason::iter().map(Reason::as_str).collect();
        assert_eq!(codes.len(), Reason::COUNT);
        let guide = include_str!("../guide.md");
        for reason in Reason::iter() {
            let row = format!("| `{}` | ", reason.as_str());
            assert!(guide.contains(&row), "src/guide.md has no row {row}");
        }
        assert_eq!(guide.matches("\n| `").count(), Reason::COUNT);
        assert_eq!(Reason::KeyUnverified.as_str(), "key-unverified");
        assert_eq!(Reason::HitForMiss.as_str(), "hit-for-miss");
    }
}
