//! Orders to this instance itself: to read its configuration again, to let the cache be, and to go.

use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};
use tracing::info;

use crate::config::units;
use crate::error::rfc3339;

use super::readings::Admin;
use super::response::Refused;

/// A body without anything in it says nothing.
fn read<T: for<'a> Deserialize<'a> + Default>(body: &[u8]) -> Result<T, Refused> {
    if body.trim_ascii().is_empty() {
        return Ok(T::default());
    }
    serde_json::from_slice(body).map_err(|error| Refused::from(format!("the body: {error}")))
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Nothing {}

/// `POST /reload`: what has changed.
pub async fn reload(admin: &Admin, body: &[u8]) -> Result<Value, Refused> {
    let Nothing {} = read(body)?;
    match admin.reloader.reload("POST /reload") {
        Ok(changes) => Ok(json!({
            "reloaded": true,
            "hash": admin.reloader.status().digest,
            "changed": changes.effective,
            "needs_restart": changes.needs_restart,
        })),
        Err(refused) => Err(Refused(json!({
            "error": "the configuration has mistakes: the one before stays in force",
            "reloaded": false,
            "mistakes": refused.0,
        }))),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Drain {
    /// Whether the process ends then.
    end: bool,
    /// Takes an earlier one back.
    back: bool,
}

impl Default for Drain {
    fn default() -> Self {
        Self {
            end: true,
            back: false,
        }
    }
}

/// `POST /drain`: this instance is unready from now on.
pub async fn drain(admin: &Admin, body: &[u8]) -> Result<Value, Refused> {
    let order: Drain = read(body)?;
    let phases = &admin.phases;
    if order.back {
        if !phases.stay() {
            let error = "its end was ordered already: it cannot be taken back";
            return Err(Refused::from(error.to_owned()));
        }
    } else if order.end {
        phases.order_end();
    } else {
        phases.leave();
    }
    let listen = admin.proxy.plan().config.listen.clone();
    let mut told = json!({"draining": !order.back});
    if !order.back && order.end {
        told["closes_in_ms"] = json!(phases.left_of(listen.drain_delay).as_millis() as u64);
        told["cut_after_ms"] = json!(listen.drain_timeout.as_millis() as u64);
    }
    Ok(told)
}

/// How long a whole fleet bypasses where the order does not say it: one that nobody takes back
/// ends.
const FLEETS: Duration = Duration::from_secs(30 * 60);

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Bypass {
    /// For so long; without it until it is taken back.
    #[serde(rename = "for")]
    lasts: Option<String>,
    /// All instances.
    fleet: bool,
    /// The path of the only route.
    route: Option<String>,
    /// Ends it.
    off: bool,
}

/// `POST /bypass`: nothing is looked up or stored.
pub async fn bypass(admin: &Admin, body: &[u8]) -> Result<Value, Refused> {
    let order: Bypass = read(body)?;
    let (proxy, route) = (&admin.proxy, order.route.as_deref());
    let wrong = |message: String| Err(Refused::from(message));
    if let Some(path) = route {
        let plan = proxy.plan();
        let paths = plan.config.routes.list().iter().map(|route| &route.path);
        if !paths.clone().any(|known| known == path) {
            let known: Vec<&str> = paths.map(String::as_str).collect();
            return wrong(format!(
                "\"route\": no [[route]] has the path {path:?}; there are {}",
                known.join(", ")
            ));
        }
    }
    let lasts = match order.lasts.as_deref().map(units::duration) {
        Some(None) => return wrong(format!("\"for\": expected {}", units::DURATION)),
        Some(Some(lasts)) if order.off => {
            let lasts = units::show_duration(lasts);
            return wrong(format!("\"off\" ends it now: without \"for\" ({lasts})"));
        }
        given => given.flatten().or(order.fleet.then_some(FLEETS)),
    };
    let position = if order.off {
        proxy.switch_on(route, order.fleet)
    } else {
        let until = lasts.map(|lasts| proxy.now().plus(lasts));
        proxy.switch_off(route, until, order.fleet)
    };
    let known = if order.fleet {
        proxy.known_to_all(position).await
    } else {
        proxy.known_here()
    };
    let what = String::from_utf8_lossy(body);
    info!(order = %what.trim(), %known, "bypass: caching was switched");
    let mut told = known.told();
    told["bypass"] = admin.bypass();
    Ok(told)
}

impl Admin {
    /// What is not looked up and stored now, and until when.
    pub(super) fn bypass(&self) -> Value {
        let (proxy, plan) = (&self.proxy, self.proxy.plan());
        let mut told = Vec::new();
        if plan.config.bypass {
            told.push(json!({"route": null, "by": "configuration"}));
        }
        for route in plan.config.routes.list() {
            if route.options.bypass {
                told.push(json!({"route": route.path, "by": "configuration"}));
            }
        }
        for switch in proxy.switched_off() {
            let by = if switch.is_fleets {
                "fleet"
            } else {
                "instance"
            };
            let until = switch.until.map(rfc3339);
            let entry = |route: Value| json!({"route": route, "by": by, "until": until});
            if switch.is_of_all() {
                told.push(entry(Value::Null));
                continue;
            }
            let paths = plan.config.routes.list().iter().map(|route| &route.path);
            let named = paths.filter(|path| switch.is_of(Some(path)));
            told.extend(named.map(|path| entry(path.as_str().into())));
        }
        told.into()
    }
}
