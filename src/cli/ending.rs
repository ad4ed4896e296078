//! How a run ends, and the configuration that most runs begin with.

use std::io::{IsTerminal, Read};
use std::path::Path;

use anyhow::{anyhow, bail};

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

/// Mistakes as one error.
pub fn in_lines(mistakes: Vec<Mistake>) -> anyhow::Error {
    let lines: Vec<String> = mistakes.iter().map(ToString::to_string).collect();
    anyhow!(lines.join("\n"))
}

/// The key on standard input: as an argument it would stand in ps, and in the history of a shell.
pub fn key_from_input() -> anyhow::Result<String> {
    if std::io::stdin().is_terminal() {
        eprintln!("the key, and then Return:");
        let mut key = String::new();
        std::io::stdin().read_line(&mut key)?;
        return Ok(key.trim().to_owned());
    }
    let mut key = String::new();
    std::io::stdin().read_to_string(&mut key)?;
    let key = key.trim();
    if key.is_empty() {
        bail!("no key came by standard input: echo it there, or name its --digest");
    }
    Ok(key.to_owned())
}
