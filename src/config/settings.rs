//! One key of a configuration, as it takes effect: what it says, and where that came from.

use serde_json::{Value, json};

use crate::error::without_passwords;

use super::source::SECRETS;
use super::units;

/// One key, as it takes effect.
#[derive(Clone, Debug, PartialEq)]
pub struct Setting {
    /// The table that it stands in: `cache.redis`, or `route POST /api/telemetry`.
    pub place: String,
    pub key: String,
    /// As it is, secrets included: not to be shown.
    pub(super) value: Value,
    pub from: From,
}

/// Where the value of a key came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum From {
    Default,
    /// This line of the file, from 1; and the environment variables that it names.
    File {
        line: usize,
        names: Vec<String>,
    },
    /// This variable of the environment.
    Environment(&'static str),
}

impl Setting {
    /// The value as it may be shown: without what is secret.
    pub fn shown(&self) -> Value {
        if SECRETS.contains(&self.key.as_str()) {
            return "…".into();
        }
        shown(&self.value)
    }

    /// Whether two say the same, however that is written.
    pub(super) fn says_the_same(&self, other: &Self) -> bool {
        usual(&self.value) == usual(&other.value)
    }

    /// As JSON: `table`, `key`, `value` and `from`.
    pub fn to_json(&self) -> Value {
        let from = match &self.from {
            From::Default => json!("default"),
            From::File { line, names } if names.is_empty() => json!({"line": line}),
            From::File { line, names } => json!({"line": line, "environment": names}),
            From::Environment(name) => json!({"environment": [name]}),
        };
        json!({"table": self.place, "key": self.key, "value": self.shown(), "from": from})
    }

    /// What [`Setting::to_json`] wrote; `None` where it is no such thing.
    pub fn from_json(told: &Value) -> Option<Self> {
        let text = |name: &str| Some(told.get(name)?.as_str()?.to_owned());
        Some(Self {
            place: text("table")?,
            key: text("key")?,
            value: told.get("value")?.clone(),
            from: From::Default,
        })
    }
}

fn shown(value: &Value) -> Value {
    match value {
        Value::String(text) => without_passwords(text).into(),
        Value::Array(items) => items.iter().map(shown).collect(),
        Value::Object(items) => {
            let items = items.iter();
            items
                .map(|(name, value)| (name.clone(), shown(value)))
                .collect()
        }
        other => other.clone(),
    }
}

/// Durations and sizes in one spelling.
fn usual(value: &Value) -> Value {
    let Value::String(text) = value else {
        return value.clone();
    };
    let duration = units::duration(text).map(units::show_duration);
    let size = || units::size(text).map(|size| format!("{size} bytes"));
    duration
        .or_else(size)
        .map_or_else(|| value.clone(), Value::String)
}
