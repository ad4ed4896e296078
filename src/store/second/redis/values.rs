//! What is said to the scripts, and what they answer.

use std::time::Duration;

use bytes::Bytes;
use fred::error::{Error, ErrorKind};
use fred::types::Value;

use crate::clock::Timestamp;
use crate::policy::Mode;
use crate::store::purge::fleet::{Logged, Outgoing, Synced};
use crate::store::purge::{Purge, Reach, Target};

use super::super::{Answer, TierError};

/// What an error of the library is to the rest of the house.
pub(super) fn failed(error: &Error) -> TierError {
    match error.kind() {
        ErrorKind::Timeout => TierError::Late,
        _ => TierError::Failed(error.to_string()),
    }
}

/// An answer to a script that no script gives.
pub(super) fn unexpected(script: &str) -> TierError {
    TierError::Failed(format!("an answer to {script} that is none"))
}

pub(super) fn millis(duration: Duration) -> i64 {
    // Redis refuses an end that is now.
    i64::try_from(duration.as_millis())
        .unwrap_or(i64::MAX)
        .clamp(1, 1 << 52)
}

pub(super) fn number(value: u64) -> Value {
    // A token is any 64 bits, and Redis' integers have a sign.
    value.to_string().into()
}

pub(super) fn to_number(value: &Value) -> Option<u64> {
    match value {
        Value::Integer(number) => u64::try_from(*number).ok(),
        other => other.as_str()?.parse().ok(),
    }
}

pub(super) fn to_bytes(value: &Value) -> Option<&[u8]> {
    match value {
        Value::Bytes(bytes) => Some(bytes),
        Value::String(text) => Some(text.as_bytes()),
        _ => None,
    }
}

pub(super) fn to_text(value: &Value) -> Option<&str> {
    std::str::from_utf8(to_bytes(value)?).ok()
}

pub(super) fn read_answer(answer: Value) -> Option<Answer> {
    let mut parts = answer.into_array().into_iter();
    let kind = parts.next()?;
    Some(match to_text(&kind)? {
        "value" => Answer::Value(match parts.next()? {
            Value::Bytes(bytes) => bytes,
            other => Bytes::copy_from_slice(to_bytes(&other)?),
        }),
        "nothing" => Answer::Nothing,
        "lead" => Answer::Lead,
        "wait" => Answer::Wait {
            token: to_number(&parts.next()?)?,
            position: to_number(&parts.next()?)?,
            left: Duration::from_millis(to_number(&parts.next()?).unwrap_or(0)),
        },
        _ => return None,
    })
}

pub(super) fn read_synced(synced: Value) -> Option<Synced> {
    let parts = synced.into_array();
    let [
        epoch,
        latest,
        floor,
        restarts,
        entries,
        revoked,
        before,
        instances,
    ] = &parts[..]
    else {
        return None;
    };
    let entries = entries.clone().into_array();
    Some(Synced {
        epoch: to_number(epoch)?,
        latest: to_number(latest)?,
        floor: to_number(floor)?,
        restarts: to_number(restarts)? != 0,
        entries: entries.into_iter().filter_map(read_logged).collect(),
        revoked: revoked
            .clone()
            .into_array()
            .iter()
            .filter_map(|digest| to_bytes(digest)?.try_into().ok())
            .collect(),
        before: to_text(before)
            .unwrap_or_default()
            .split(' ')
            .filter_map(|epoch| epoch.parse().ok())
            .collect(),
        begins: false,
        instances: to_number(instances)?,
    })
}

/// One purge as the arguments of `append.lua`.
pub(super) fn write_purge(purge: Outgoing, arguments: &mut Vec<Value>) {
    let Outgoing {
        token,
        purge,
        mode,
        at,
    } = purge;
    let bytes = |bytes: &[u8]| Value::Bytes(Bytes::copy_from_slice(bytes));
    arguments.extend([number(token), mode.as_str().into(), number(at.as_millis())]);
    let (kind, value, reach, of) = purge.words();
    arguments.extend([kind.into(), bytes(value), reach.into(), bytes(of)]);
}

/// An entry of the stream: its id, then its fields. One that says what this version does not know
/// purges everything: too much is safe. One without a token was written by no instance.
fn read_logged(entry: Value) -> Option<Logged> {
    let entry = entry.into_array();
    let [id, fields] = &entry[..] else {
        return None;
    };
    let position = to_text(id)?.split('-').next()?.parse().ok()?;
    let fields = fields.clone().into_array();
    let field = |name: &str| {
        let at = fields
            .chunks(2)
            .find(|pair| to_text(&pair[0]) == Some(name));
        at.and_then(|pair| to_bytes(pair.get(1)?))
    };
    let text = |name| std::str::from_utf8(field(name)?).ok();
    let Some(token) = text("token").and_then(|token| token.parse().ok()) else {
        let entry = None;
        return Some(Logged { position, entry });
    };
    let known = || {
        let of = field("of").unwrap_or_default();
        let purge = Purge::of_words(text("kind")?, field("value")?, text("reach")?, of)?;
        let mode: Mode = text("mode")?.parse().ok()?;
        let at = Timestamp::from_millis(text("at")?.parse().ok()?);
        Some((purge, mode, at))
    };
    let everything = Purge {
        target: Target::All,
        reach: Reach::Any,
    };
    let (purge, mode, at) = known().unwrap_or((everything, Mode::Hard, Timestamp::EPOCH));
    Some(Logged {
        position,
        entry: Some(Outgoing {
            token,
            purge,
            mode,
            at,
        }),
    })
}
