//! How requests and refreshes end.

use strum::{IntoStaticStr, VariantArray};

/// How a request was answered, as a metric label says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "UPPERCASE")]
pub enum CacheResult {
    Hit,
    Stale,
    Revalidated,
    Miss,
    Bypass,
}

impl CacheResult {
    pub fn as_str(self) -> &'static str {
        self.into()
    }

    /// The value of `X-Cache`. What was answered from the cache contains `HIT`: scripts that count
    /// hits look for that (so do Fastly's, CloudFront's and Squid's own values: `HIT`,
    /// `RefreshHit`, `TCP_REFRESH_HIT`).
    pub fn as_field(self) -> &'static str {
        match self {
            Self::Stale => "HIT-STALE",
            Self::Revalidated => "HIT-REVALIDATED",
            other => other.as_str(),
        }
    }
}

/// How a refresh behind a stale answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum Refresh {
    /// The origin confirmed what is stored.
    Confirmed,
    /// A new response took its place.
    Replaced,
    /// The new response may not be stored.
    NotStored,
    Failed,
}
