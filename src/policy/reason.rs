//! Why: one closed list of reasons, whose codes appear in `Cache-Status`, logs and metrics alike.

/// Why a response was or was not looked up, reused or stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
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
    NoRoute,
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
}

impl Reason {
    /// All reasons, for metrics that show each from the first scrape.
    pub const ALL: [Self; 38] = [
        Self::Fresh,
        Self::SecondTier,
        Self::StaleWhileRevalidate,
        Self::StaleIfError,
        Self::MaxStale,
        Self::Revalidated,
        Self::Cold,
        Self::VaryMiss,
        Self::Expired,
        Self::MustValidate,
        Self::Purged,
        Self::ClientDirective,
        Self::HitForMiss,
        Self::NoRoute,
        Self::Method,
        Self::RequestBody,
        Self::Range,
        Self::Precondition,
        Self::Upgrade,
        Self::Cookie,
        Self::Credential,
        Self::NoStore,
        Self::Private,
        Self::SetCookie,
        Self::VaryAny,
        Self::Status,
        Self::Partial,
        Self::NoLifetime,
        Self::EventStream,
        Self::TooLarge,
        Self::Budget,
        Self::FlightsFull,
        Self::WaitTimeout,
        Self::OriginFailed,
        Self::Refused,
        Self::RateLimited,
        Self::KeyRefused,
        Self::KeyUnverified,
    ];

    /// The code of this reason: an RFC 9211 token and a metric label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Fresh => "fresh",
            Self::SecondTier => "second-tier",
            Self::StaleWhileRevalidate => "stale-while-revalidate",
            Self::StaleIfError => "stale-if-error",
            Self::MaxStale => "max-stale",
            Self::Revalidated => "revalidated",
            Self::Cold => "cold",
            Self::VaryMiss => "vary-miss",
            Self::Expired => "expired",
            Self::MustValidate => "must-validate",
            Self::Purged => "purged",
            Self::ClientDirective => "client-directive",
            Self::HitForMiss => "hit-for-miss",
            Self::NoRoute => "no-route",
            Self::Method => "method",
            Self::RequestBody => "request-body",
            Self::Range => "range",
            Self::Precondition => "precondition",
            Self::Upgrade => "upgrade",
            Self::Cookie => "cookie",
            Self::Credential => "credential",
            Self::NoStore => "no-store",
            Self::Private => "private",
            Self::SetCookie => "set-cookie",
            Self::VaryAny => "vary-any",
            Self::Status => "status",
            Self::Partial => "partial",
            Self::NoLifetime => "no-lifetime",
            Self::EventStream => "event-stream",
            Self::TooLarge => "too-large",
            Self::Budget => "budget",
            Self::FlightsFull => "flights-full",
            Self::WaitTimeout => "wait-timeout",
            Self::OriginFailed => "origin-failed",
            Self::Refused => "refused",
            Self::RateLimited => "rate-limited",
            Self::KeyRefused => "key-refused",
            Self::KeyUnverified => "key-unverified",
        }
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
            _ => "bypass",
        }
    }

    /// Whether a refusal to store lies in the response itself, so that the next request for the
    /// key will very likely meet it too. Reasons of one request (its cookie, its credential) and
    /// of the moment (the budget) are not remembered for everybody.
    pub fn is_of_the_response(self) -> bool {
        matches!(
            self,
            Self::NoStore
                | Self::Private
                | Self::SetCookie
                | Self::VaryAny
                | Self::Status
                | Self::Partial
                | Self::NoLifetime
                | Self::EventStream
                | Self::TooLarge
                | Self::MustValidate
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn every_reason_has_a_code_of_its_own() {
        let codes: HashSet<_> = Reason::ALL.iter().map(|reason| reason.as_str()).collect();
        assert_eq!(codes.len(), Reason::ALL.len());
    }
}
