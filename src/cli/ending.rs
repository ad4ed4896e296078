//! How a run ends, and the configuration that most runs begin with.

use std::path::Path;

use anyhow::anyhow;

use crate::config::{Config, Mistake, NotLoaded};

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
    Config::load(file, &environment).map_err(|why| match why {
        NotLoaded::Unreadable(why) => Ending::Unreadable(anyhow!(why)),
        NotLoaded::Wrong { mistakes, .. } => Ending::Refused(mistakes),
    })
}
