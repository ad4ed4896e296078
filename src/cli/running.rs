//! The sidecar that runs with a configuration, asked on its admin port.

use std::time::Duration;

use http::{Method, StatusCode};

use crate::config::Config;
use crate::upstream::ask_admin;

/// How long it is waited for.
const PATIENCE: Duration = Duration::from_secs(1);

/// What it answers; `None` where none runs there.
pub async fn ask(
    config: &Config,
    method: Method,
    path: &str,
    body: String,
) -> Option<(StatusCode, String)> {
    let admin = &config.admin;
    let token = admin.token.as_ref().map(|token| token.text.as_str());
    ask_admin(admin.address, token, (method, path), body, PATIENCE).await
}
