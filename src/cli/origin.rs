//! `iris-sidecar origin`: the database of the built-in origin, by hand.

use std::sync::Arc;

use anyhow::{Context, bail};
use clap::Subcommand;
use comfy_table::{ContentArrangement, Table, TableStyle};

use crate::clock::Clock;
use crate::database::{Database, Settings};
use crate::metrics::Metrics;
use crate::origin::seed_demo;

/// What is to be done.
#[derive(Debug, Subcommand)]
pub enum Task {
    /// Make what is missing: tables, indexes, functions; nothing that is there is touched
    Migrate,
    /// Fill an empty database with demo data, and print the demo key
    Seed,
    /// Make an API key and print it: this is the only time that it is seen
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
    /// Revoke a key, by its id, by itself, or by the characters that are shown of it
    RevokeKey { key: String },
    /// List the keys, by what may be shown of them
    ListKeys,
    /// Read the database and print, as SQL, what would make it faster
    Analyze,
}

/// Does it, and prints what came of it.
pub fn run(settings: Settings, task: Task) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let metrics = Arc::new(Metrics::new());
        let database = Database::open(settings, metrics).await?;
        carry_out(&database, task).await
    })
}

async fn carry_out(database: &Database, task: Task) -> anyhow::Result<()> {
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
            if !database.revoke_key(&key, now).await? {
                bail!(
                    "no active key is this one, or more than one begins so: name it by its id (iris-sidecar origin list-keys)"
                );
            }
            println!("revoked");
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
