//! Where a database is, judged before it is opened: what is wrong is said in the words of whoever
//! knows.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::Path;

use crate::config::DATABASES;
use crate::error::without_passwords;

use super::DatabaseError;

/// How every SQLite database begins (its file format, "The Database Header").
const SQLITE: &[u8; 16] = b"SQLite format 3\0";

/// Which database a URL names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Sqlite,
    Postgres,
}

/// An error for what is no URL of a database that is spoken here.
pub fn kind(url: &str) -> Result<Kind, DatabaseError> {
    if url
        .strip_prefix("sqlite:")
        .is_some_and(|rest| !rest.is_empty())
    {
        return Ok(Kind::Sqlite);
    }
    let is_postgres = url.starts_with("postgres://") || url.starts_with("postgresql://");
    is_postgres.then_some(Kind::Postgres).ok_or_else(|| {
        let why = format!("expected {DATABASES}");
        not_opened(url, why)
    })
}

pub fn not_opened(url: &str, why: String) -> DatabaseError {
    let url = without_passwords(url);
    DatabaseError::NotOpened { url, why }
}

/// Whether SQLite can use a file; the error says why not. One that is not there is made, or is an
/// error.
pub fn judge_file(path: &Path, may_create: bool) -> Result<(), String> {
    if path.is_dir() {
        return Err("it is a folder: name a file in it".to_owned());
    }
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    if let Some(folder) = folder.filter(|folder| !folder.is_dir()) {
        let folder = folder.display();
        return Err(format!(
            "there is no folder {folder}: make it, or name another one"
        ));
    }
    let mut options = File::options();
    options
        .read(true)
        .write(may_create)
        .create(may_create)
        .truncate(false);
    let mut file = options.open(path).map_err(|error| match error.kind() {
        ErrorKind::NotFound => {
            "there is no such file: iris-sidecar origin migrate makes it".to_owned()
        }
        _ => error.to_string(),
    })?;
    let mut begins = Vec::new();
    let read = file
        .by_ref()
        .take(SQLITE.len() as u64)
        .read_to_end(&mut begins);
    read.map_err(|error| error.to_string())?;
    if begins.is_empty() || begins == SQLITE {
        return Ok(());
    }
    Err("it is a file of another kind, not a database of SQLite: name another one".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_cannot_be_a_database_is_named_with_its_reason() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        std::fs::write(at("text"), "no database, but a text").unwrap();
        std::fs::write(at("empty"), "").unwrap();
        let told = |name: &str, may_create| judge_file(&at(name), may_create).unwrap_err();
        assert!(told("no/such", true).contains("there is no folder"));
        assert!(told("text", true).contains("another kind"));
        assert!(told("", true).contains("folder"));
        assert!(told("typo.db", false).contains("origin migrate"));
        assert!(!at("typo.db").exists());
        let refused = judge_file(Path::new("/sys/kernel/iris.db"), true).unwrap_err();
        assert!(
            refused.contains("denied") || refused.contains("not permitted"),
            "{refused}"
        );
        assert_eq!(judge_file(&at("empty"), false), Ok(()));
        assert_eq!(judge_file(&at("new.db"), true), Ok(()));
    }

    #[test]
    fn a_database_that_is_not_spoken_here_is_no_file() {
        assert_eq!(kind("sqlite:iris.db").unwrap(), Kind::Sqlite);
        assert_eq!(kind("postgres://u@h/d").unwrap(), Kind::Postgres);
        for other in ["mysql://u:secret@h/d", "iris.db", "sqlite:", "postgres", ""] {
            let told = kind(other).unwrap_err().to_string();
            assert!(
                told.contains("sqlite:FILE") && !told.contains("secret"),
                "{told}"
            );
        }
    }
}
