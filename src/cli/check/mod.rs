//! `iris-sidecar check`: a configuration as it takes effect, and what is probably not meant so.

mod doubts;
mod shown;

use std::io::Write;
use std::path::Path;

use http::Method;
use serde_json::Value;

use crate::config::{Config, VerdictSource, units};
use crate::policy::Share;

use super::ending::{Ending, load};
use super::{control, running};

/// Checks a configuration; prints it as it takes effect, and what is probably wrong without being a
/// mistake.
pub(super) fn check(file: &Path, against: Option<&str>) -> Ending {
    let config = match load(file) {
        Ok(config) => config,
        Err(ending) => return ending,
    };
    if let Some(admin) = against {
        return compare(&config, admin);
    }
    let text = format!(
        "{} is valid.\n\n{}{}",
        file.display(),
        shown::shown(&config),
        control_cost(&config).unwrap_or_default(),
    );
    // A pager that was closed early has seen enough.
    let _ = std::io::stdout().write_all(text.as_bytes());
    for doubt in doubts::doubts(&config)
        .into_iter()
        .chain(demotions(&config))
    {
        eprintln!("warning: {doubt}");
    }
    let idle = doubts::idle_groups(config.routes.list());
    if !idle.is_empty() {
        eprintln!(
            "note: no write changes {}: purged by the API's own word (Cache-Group-Invalidation), \
                or by hand (iris-sidecar purge --group)",
            idle.join(", ")
        );
    }
    Ending::Done
}

/// What would change if the sidecar with this admin port read the file.
fn compare(config: &Config, admin: &str) -> Ending {
    match control::against(config, admin) {
        Ok(changes) if changes.is_empty() => {
            println!("nothing differs from what runs (secrets were not compared)");
            Ending::Done
        }
        Ok(changes) => {
            print!("{changes}");
            Ending::Done
        }
        Err(error) => {
            eprintln!("{error:#}");
            Ending::Missed
        }
    }
}

/// What controls cost an origin, which may count the keys that it refuses.
fn control_cost(config: &Config) -> Option<String> {
    let every = config.auth.control?;
    let routes = config.routes.list();
    let any_verified = routes
        .iter()
        .any(|route| route.options.share == Share::Verified);
    let (whom, each) = match &config.auth.source {
        VerdictSource::Origin => (
            "the API",
            "for each host, path and set of query names on routes with share = \"verified\"",
        ),
        VerdictSource::Url(_) => ("auth.source", "in all"),
        VerdictSource::Table => return None,
    };
    any_verified.then(|| {
        format!(
            "Controls: {whom} is asked with a random key and with none, at most once in {} \
                {each}, by the whole fleet; both are meant to be refused (auth.control).\n",
            units::show_duration(every)
        )
    })
}

/// Routes that a running instance, where there is one on the configured admin port, has found to
/// answer by key.
fn demotions(config: &Config) -> Vec<String> {
    let asking = running::ask(config, Method::GET, "/status", String::new());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let answer = runtime.ok().and_then(|runtime| runtime.block_on(asking));
    let told: Value = answer
        .and_then(|(_, text)| serde_json::from_str(&text).ok())
        .unwrap_or_default();
    let is_shared = |path: &str| {
        let mut routes = config.routes.list().iter();
        routes.any(|route| route.path == path && route.options.share == Share::Verified)
    };
    let routes = told["routes"].as_array().into_iter().flatten();
    let demoted = routes.filter(|route| route["demotions"].as_u64().is_some_and(|count| count > 0));
    demoted
        .filter_map(|route| route["path"].as_str())
        .filter(|path| is_shared(path))
        .map(|path| {
            format!(
                "route {path:?}: the instance that runs has found that its answers \
            differ by key, and demoted it, or the URLs that do (GET /explain names one): set \
            share = \"per-key\" for them"
            )
        })
        .collect()
}
