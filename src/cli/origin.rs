//! `iris-sidecar origin`: the database of the built-in origin, by hand.

use std::sync::Arc;

use anyhow::{Context, bail};
use clap::Subcommand;
use comfy_table::{ContentArrangement, Table, TableStyle};
use http::{Method, StatusCode};
use serde_json::{Value, json};

use crate::clock::{Clock, Timestamp};
use crate::config::Config;
use crate::database::keys::is_well_formed;
use crate::database::{Database, Settings};
use crate::error::rfc3339;
use crate::metrics::Metrics;
use crate::origin::seed_demo;

use super::ending::key_from_input;
use super::running;

/// What is to be done.
#[derive(Debug, Subcommand)]
pub enum Task {
    /// Make what is missing: tables, indexes, functions; nothing that is there is touched
    #[command(
        after_help = "Example: iris-sidecar origin migrate --database sqlite:iris.db\n\nExit \
            status: 0 done, 1 the database failed, 2 a mistake in arguments or configuration."
    )]
    Migrate,
    /// Fill an empty database with demo data, and print the demo key
    #[command(
        after_help = "Example: iris-sidecar origin seed --database sqlite:iris.db\n\nExit status: \
            0 done, 1 the database failed, 2 a mistake in arguments or configuration."
    )]
    Seed,
    /// Make an API key and print it: this is the only time that it is seen
    #[command(
        after_help = "Example: iris-sidecar origin create-key --project my-project > \
            key.txt\n\nExit status: 0 done, 1 the database failed, 2 a mistake in arguments or \
            configuration."
    )]
    CreateKey {
        /// The project whose key it is
        #[arg(long)]
        project: String,
        /// The project's name, as answers show it; the project by default
        #[arg(long)]
        name: Option<String>,
        /// What the key is for
        #[arg(long)]
        label: Option<String>,
    },
    /// Revoke a key: the one on standard input, or the one with this id or these characters that
    /// are shown of it; also at the sidecar that runs with the configuration, where its admin port
    /// answers
    #[command(
        after_help = "Example: iris-sidecar origin revoke-key < key.txt\n\nExit status: 0 \
            revoked, 1 the database failed or has no such key, 2 a mistake in arguments or \
            configuration."
    )]
    RevokeKey {
        /// Its id, or the characters that list-keys shows of it
        key: Option<String>,
    },
    /// List the keys, by what may be shown of them
    #[command(
        after_help = "Example: iris-sidecar origin list-keys --config iris.toml\n\nExit status: 0 \
            done, 1 the database failed, 2 a mistake in arguments or configuration."
    )]
    ListKeys,
    /// Read the database and print, as SQL, what would make it faster
    #[command(
        after_help = "Example: iris-sidecar origin analyze --config iris.toml > \
            indexes.sql\n\nExit status: 0 done, 1 the database failed, 2 a mistake in arguments \
            or configuration."
    )]
    Analyze,
}

impl Task {
    /// Whether a database that is not there is made for it.
    pub fn may_create(&self) -> bool {
        matches!(self, Self::Migrate | Self::Seed)
    }
}

/// Revokes a key at the sidecar that runs, and says what came of that.
async fn revoked_where_it_runs(config: &Config, key: &str, digest: &str, now: Timestamp) -> String {
    let admin = config.admin.address;
    // By a keyed digest it is found by itself alone.
    let order = match is_well_formed(key) {
        true => Some(json!({"key": key})),
        false if config.auth.secret.is_none() => Some(json!({"digest": digest})),
        false => None,
    };
    let lasts = config.auth.good_ttl + config.auth.grace;
    let until = rfc3339(now.plus(lasts));
    let bound = format!(
        "an instance that has verified the key accepts it on routes with share = \"verified\" \
            until {until} at the latest (auth.good_ttl, and auth.grace while its source fails), \
            and on routes with share = \"per-key\" answers it from what is stored for it"
    );
    let by_hand =
        format!("revoke it there:  curl --json '{{\"key\": \"sk_live_…\"}}' http://{admin}/revoke");
    let Some(order) = order else {
        return format!(
            "auth.secret keys the digests, so that a sidecar must be told the key itself: \
                {bound}; {by_hand}"
        );
    };
    match running::ask(config, Method::POST, "/revoke", order.to_string()).await {
        Some((StatusCode::OK, text)) => {
            let told: Value = serde_json::from_str(&text).unwrap_or_default();
            let state = told["state"].as_str().unwrap_or("done").to_owned();
            match told["alive"].as_u64() {
                _ if state != "done" => format!(
                    "the sidecar at {admin} refuses it from now on; the rest of its fleet was not \
                        heard of ({state}): {bound}"
                ),
                Some(alive) if alive > 1 => {
                    format!("the sidecar at {admin} and its fleet of {alive} refuse it from now on")
                }
                _ => format!("the sidecar at {admin} refuses it from now on"),
            }
        }
        Some((status, text)) => format!(
            "the sidecar at {admin} answered {status} ({}): {bound}; {by_hand}",
            text.trim()
        ),
        None => format!("no sidecar answers at {admin}: {bound}; {by_hand}"),
    }
}

/// Does it, and prints what came of it.
pub fn run(config: &Config, settings: Settings, task: Task) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let metrics = Arc::new(Metrics::new());
        let database = Database::open(settings, metrics).await?;
        carry_out(config, &database, task).await
    })
}

async fn carry_out(config: &Config, database: &Database, task: Task) -> anyhow::Result<()> {
    let now = Clock::System.now();
    match task {
        Task::Migrate => {
            database.migrate().await?;
            println!("the tables, indexes and functions of the contract are there");
        }
        Task::Seed => {
            database.migrate().await?;
            match seed_demo(database, now).await? {
                Some(key) => println!("{key}"),
                None => println!("nothing was done: there are experts in it already"),
            }
        }
        Task::CreateKey {
            project,
            name,
            label,
        } => {
            let name = name.unwrap_or_else(|| project.clone());
            let key = database
                .create_key(&project, &name, label.as_deref(), now)
                .await
                .context("is the database migrated? (iris-sidecar origin migrate)")?;
            println!("{key}");
        }
        Task::RevokeKey { key } => {
            let key = key.map_or_else(key_from_input, Ok)?;
            let digest = database.digest_of_key(&key).await?;
            let is_revoked = database.revoke_key(&key, now).await?;
            let Some(digest) = digest.filter(|_| is_revoked) else {
                bail!(
                    "no active key is this one, or more than one begins so: name it by its id \
                        (iris-sidecar origin list-keys)"
                );
            };
            println!("revoked in the database");
            println!(
                "{}",
                revoked_where_it_runs(config, &key, &digest, now).await
            );
        }
        Task::Analyze => {
            let advice = database.advice().await?;
            if advice.is_empty() {
                println!("-- nothing to do: every index of the contract is there");
            }
            for line in advice {
                println!("{line}");
            }
        }
        Task::ListKeys => {
            let mut table = Table::new();
            table
                .load_style(TableStyle::new())
                .set_content_arrangement(ContentArrangement::Dynamic);
            table.set_header([
                "id",
                "project",
                "key",
                "label",
                "uses",
                "last used",
                "active",
            ]);
            for key in database.list_keys().await? {
                table.add_row([
                    key.id,
                    key.project_id,
                    format!("{}…", key.prefix),
                    key.label.unwrap_or_default(),
                    key.usage_count.to_string(),
                    key.last_used_at.unwrap_or_else(|| "never".to_owned()),
                    if key.is_active { "yes" } else { "no" }.to_owned(),
                ]);
            }
            println!("{table}");
        }
    }
    Ok(())
}
