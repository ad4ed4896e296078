//! How a run ends, and the configuration that most runs begin with.

use std::path::Path;

use anyhow::Context;

use crate::config::{Config, Mistake};

/// How a run ended, and so the exit status.
pub enum Ending {
    Done,
    /// Failed while running.
    Failed(anyhow::Error),
    /// The configuration has mistakes.
    Refused(Vec<Mistake>),
    /// The file could not be read, or nothing could be done at all.
    Unreadable(anyhow::Error),
    /// It was measured, and is not what was wanted.
    Missed,
}

pub fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

pub fn load(file: &Path) -> Result<Config, Ending> {
    let shown = file.display().to_string();
    let text = std::fs::read_to_string(file)
        .with_context(|| format!("{shown} cannot be read"))
        .map_err(Ending::Unreadable)?;
    let config = Config::parse(&shown, &text, &environment).map_err(Ending::Refused)?;
    Ok(Config {
        file: Some(file.to_owned()),
        ..config
    })
}
