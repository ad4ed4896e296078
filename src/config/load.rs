//! A configuration from its file, and whether that has changed since.

use std::fmt;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::read::{admin_alone, config_and_files};
use super::sections::{Admin, Config};
use super::source::{Environment, Mistake};

/// Why there is no configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NotLoaded {
    /// The file cannot be read; in the system's words.
    Unreadable(String),
    Wrong {
        mistakes: Vec<Mistake>,
        /// Other files that it names: a mistake may be mended there.
        files: Vec<PathBuf>,
        /// Of what stood in all of them.
        fingerprint: [u8; 32],
    },
}

impl NotLoaded {
    /// Each mistake with its place.
    pub fn lines(&self) -> Vec<String> {
        match self {
            Self::Unreadable(why) => vec![why.clone()],
            Self::Wrong { mistakes, .. } => mistakes.iter().map(ToString::to_string).collect(),
        }
    }
}

impl fmt::Display for NotLoaded {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}", self.lines().join("; "))
    }
}

impl Config {
    /// Reads and checks a file.
    pub fn load(file: &Path, environment: Environment<'_>) -> Result<Self, NotLoaded> {
        let shown = file.display().to_string();
        let text = std::fs::read_to_string(file)
            .map_err(|error| NotLoaded::Unreadable(format!("{shown} cannot be read: {error}")))?;
        let (read, files) = config_and_files(&shown, &text, environment);
        let mut digest = Sha256::new();
        add(&mut digest, Some(text.as_bytes()));
        files.iter().for_each(|file| add_file(&mut digest, file));
        let fingerprint = digest.finalize().into();
        let config = read.map_err(|mistakes| NotLoaded::Wrong {
            mistakes,
            files,
            fingerprint,
        })?;
        Ok(Self {
            fingerprint,
            file: Some(file.to_owned()),
            ..config
        })
    }
}

/// What is read of `[admin]` in a file, as far as that can be read at all.
pub fn admin_of(file: &Path, environment: Environment<'_>) -> Admin {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    admin_alone(&file.display().to_string(), &text, environment)
}

/// The same without a file.
pub fn admin_of_environment(environment: Environment<'_>) -> Admin {
    admin_alone("", "", environment)
}

/// Of what stands in files now; one that cannot be read is told from one that can. Content counts,
/// and not when or how it came there: a renamed file, or another target of a link.
pub fn fingerprint<'a>(files: impl IntoIterator<Item = &'a Path>) -> [u8; 32] {
    let mut digest = Sha256::new();
    files
        .into_iter()
        .for_each(|file| add_file(&mut digest, file));
    digest.finalize().into()
}

fn add_file(digest: &mut Sha256, file: &Path) {
    add(digest, std::fs::read(file).ok().as_deref());
}

fn add(digest: &mut Sha256, content: Option<&[u8]>) {
    let length = content.map_or(u64::MAX, |bytes| bytes.len() as u64);
    digest.update(length.to_be_bytes());
    digest.update(content.unwrap_or_default());
}
