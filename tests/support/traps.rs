//! An API with the traps that real ones have: names under a parameter route that answer by key, a
//! login page, answers that are anybody's, virtual hosts, bad dates, lists that shift, a timestamp
//! in every body.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use serde_json::{Value, json};

use super::{Origin, Reply, Seen, reply};

/// Keys of two projects.
pub const ALPHA: [&str; 2] = ["sk_live_alpha0000000000001", "sk_live_alpha0000000000002"];
pub const BETA: [&str; 2] = ["sk_live_beta00000000000001", "sk_live_beta00000000000002"];

/// A key that the API does not know.
pub const STRANGER: &str = "sk_live_stranger0000000001";

/// What the test knows of the API, and changes while it runs.
#[derive(Debug, Default)]
pub struct Traps {
    /// Requests with a key that is not known, or none.
    pub strange: AtomicUsize,
    /// `/v/{name}` answers by project from now on.
    pub turns: AtomicBool,
    /// Everybody is refused by 500 where a key is looked at.
    pub is_failing: AtomicBool,
}

/// Which project a request's key belongs to.
fn project(seen: &Seen) -> Option<&'static str> {
    let given = seen.header("authorization").unwrap_or_default();
    let key = given.strip_prefix("Bearer ").unwrap_or(given);
    match key {
        key if ALPHA.contains(&key) => Some("alpha"),
        key if BETA.contains(&key) => Some("beta"),
        // As many more of one project as are wanted.
        key if key.starts_with("sk_live_many") => Some("alpha"),
        _ => None,
    }
}

impl Traps {
    pub async fn start(self: &Arc<Self>) -> Origin {
        let traps = Arc::clone(self);
        Origin::start(move |seen| traps.answer(seen)).await
    }

    pub fn answer(&self, seen: &Seen) -> Reply {
        let (path, query) = seen.target.split_once('?').unwrap_or((&seen.target, ""));
        let project = project(seen);
        if project.is_none() {
            self.strange.fetch_add(1, Ordering::SeqCst);
        }
        let wants_page = seen
            .header("accept")
            .is_some_and(|it| it.contains("text/html"));
        let is_other_host = seen.header("host") == Some("other.example");
        if wants_page || is_other_host || path.starts_with("/v/open") {
            return reply(200, "log in", &[("content-type", "text/html")]);
        }
        if self.is_failing.load(Ordering::SeqCst) {
            return reply(500, "no table", &[]);
        }
        let Some(project) = project else {
            return reply(401, "{\"error\":\"Invalid or inactive API key\"}", &[]);
        };
        let body = match path {
            "/v/evaluate" | "/v/decisions" => json!({"project": project}),
            "/v/project" if query.contains("projectId=") && !query.ends_with(project) => {
                return reply(403, "{}", &[]);
            }
            "/v/dated" if query.contains("nonsense") => return reply(500, "no date", &[]),
            // Lists that shift, counts that grow, identifiers that are made anew.
            "/v/moving" => {
                let recent: Vec<Value> = (0..5)
                    .map(|at| json!({"id": seen.number + at, "of": "all"}))
                    .collect();
                let id = format!("{:08x}", seen.number * 7919);
                json!({"count": seen.number, "recent": recent, "requestId": id})
            }
            "/v/noise" => json!({"word": format!("word {}", seen.number)}),
            _ if self.turns.load(Ordering::SeqCst) => json!({"project": project}),
            _ => json!({"path": path, "query": query}),
        };
        let mut body = body;
        body["timestamp"] = json!(seen.number);
        let fields = [("content-type", "application/json")];
        reply(200, body.to_string(), &fields)
    }
}

/// What `explain` tells of the agreement of keys.
pub fn agreement(told: &Value) -> &str {
    told["proof"]["agreement"].as_str().unwrap_or_default()
}
