//! How requests and refreshes end.

use strum::{IntoStaticStr, VariantArray};

/// How a request was answered: the value of `X-Cache`, and a metric label.
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
