//! `POST /revoke`: a key that is refused from now on, by every instance, whatever was known of it.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Map, Value, json};
use tracing::info;

use crate::policy::Mode;
use crate::proxy::Proxy;
use crate::store::{Purge, Reach, Target};

const EXPECTED: &str = r#"expected {"key": "sk_live_…"} or {"digest": "64 hexadecimal digits"}, and beside it "restore": true to take a revocation back"#;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Order {
    key: Option<String>,
    digest: Option<String>,
    #[serde(default)]
    restore: bool,
}

/// Carries out an order: the digest of the key, and as [`purge`](super::purge::purge) who knows of
/// it. An error says what is wrong with the order; nothing of it holds the key.
pub async fn revoke(proxy: &Arc<Proxy>, body: &[u8]) -> Result<Value, String> {
    let order: Order = serde_json::from_slice::<Map<String, Value>>(body)
        .and_then(|object| serde_json::from_value(object.into()))
        .map_err(|error| format!("{error}; {EXPECTED}"))?;
    let key = match (&order.key, &order.digest) {
        (Some(key), None) if !key.is_empty() => proxy.digest_of(key),
        (None, Some(digest)) => {
            read(digest).ok_or_else(|| "\"digest\": expected 64 hexadecimal digits".to_owned())?
        }
        _ => return Err(EXPECTED.to_owned()),
    };
    let mode = if order.restore {
        Mode::Soft
    } else {
        Mode::Hard
    };
    let purge = Purge {
        target: Target::Key(key),
        reach: Reach::Any,
    };
    let position = proxy.purge(purge, mode);
    let known = proxy.known_to_all(position).await;
    let digest = hex::encode(key);
    info!(
        key = &digest[..6],
        restore = order.restore,
        %known,
        "a key was revoked or restored by hand"
    );
    let mut told = known.told();
    told["digest"] = json!(digest);
    told["revoked"] = json!(!order.restore);
    Ok(told)
}

fn read(digest: &str) -> Option<[u8; 32]> {
    let is_hex = digest.len() == 64 && digest.bytes().all(|byte| byte.is_ascii_hexdigit());
    let octet = |at: usize| u8::from_str_radix(digest.get(at..at + 2)?, 16).ok();
    let bytes: Option<Vec<u8>> = (0..64).step_by(2).filter(|_| is_hex).map(octet).collect();
    bytes?.try_into().ok()
}
