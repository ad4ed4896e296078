//! A TOML text with its places: every mistake is collected, none ends the reading.

use std::cell::RefCell;
#[cfg(test)]
use std::collections::BTreeSet;
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::DeTable;

use crate::error::without_passwords;

/// One mistake in a configuration file: where it stands, and what was expected there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    pub file: String,
    pub line: usize,
    pub column: usize,
    pub message: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            file,
            line,
            column,
            message,
        } = self;
        write!(out, "{file}:{line}:{column}: {message}")
    }
}

/// Looks up an environment variable.
pub type Environment<'a> = &'a dyn Fn(&str) -> Option<String>;

/// The text being read, and what was found wrong with it so far.
pub struct Source<'a> {
    file: &'a str,
    text: &'a str,
    environment: Environment<'a>,
    mistakes: RefCell<Vec<Mistake>>,
    /// Files that were read for it.
    files: RefCell<Vec<PathBuf>>,
    #[cfg(test)]
    pub(super) asked: RefCell<BTreeSet<String>>,
}

impl<'a> Source<'a> {
    pub fn new(file: &'a str, text: &'a str, environment: Environment<'a>) -> Self {
        Self {
            file,
            text,
            environment,
            mistakes: RefCell::default(),
            files: RefCell::default(),
            #[cfg(test)]
            asked: RefCell::default(),
        }
    }

    /// Parses the text as far as it can be parsed, noting each syntax error.
    pub fn parse(&self) -> Spanned<DeTable<'a>> {
        let (table, errors) = DeTable::parse_recoverable(self.text);
        for error in errors {
            let span = error.span().unwrap_or(0..0);
            self.mistake(span, error.message().trim().replace('\n', ", "));
        }
        table
    }

    pub fn mistake(&self, span: Range<usize>, message: impl fmt::Display) {
        let (line, column) = self.position(span.start);
        self.mistakes.borrow_mut().push(Mistake {
            file: self.file.to_owned(),
            line,
            column,
            message: message.to_string(),
        });
    }

    /// Line and column of a byte offset, both from 1, the column in characters.
    pub fn position(&self, offset: usize) -> (usize, usize) {
        let before = self.text.get(..offset).unwrap_or(self.text);
        let line_start = before.rfind('\n').map_or(0, |at| at + 1);
        let line = before.matches('\n').count() + 1;
        (line, before[line_start..].chars().count() + 1)
    }

    /// Notes that another file was read for this one.
    pub fn note_file(&self, path: &Path) {
        self.files.borrow_mut().push(path.to_owned());
    }

    pub fn files(&self) -> Vec<PathBuf> {
        self.files.borrow().clone()
    }

    /// All mistakes in the order of the text.
    pub fn into_mistakes(self) -> Vec<Mistake> {
        let mut mistakes = self.mistakes.into_inner();
        mistakes.sort_by_key(|mistake| (mistake.line, mistake.column));
        mistakes.dedup();
        mistakes
    }

    /// The dotted names of all keys that the reader knows of.
    #[cfg(test)]
    pub fn asked(&self) -> BTreeSet<String> {
        self.asked.borrow().clone()
    }

    fn shown(&self, span: &Range<usize>) -> String {
        let text = self.text.get(span.clone()).unwrap_or_default();
        let line = text.lines().next().unwrap_or_default();
        let line = without_passwords(line);
        let mut shown: String = line.chars().take(60).collect();
        if shown.len() < line.len() || text.lines().count() > 1 {
            shown.push('…');
        }
        shown
    }

    /// The text of a key's value, where that may be shown.
    pub(super) fn shown_of(&self, key: &str, span: &Range<usize>) -> String {
        if SECRETS.contains(&key) {
            "…".to_owned()
        } else {
            self.shown(span)
        }
    }

    /// Puts environment variables in the place of `${NAME}` in the value of `key`.
    pub(super) fn expand(&self, key: &str, text: &str, span: &Range<usize>) -> Option<String> {
        let mut out = String::new();
        let mut rest = text;
        while let Some(start) = rest.find("${") {
            out.push_str(&rest[..start]);
            let Some(length) = rest[start..].find('}') else {
                self.mistake(
                    span.clone(),
                    format!(
                        "{}: \"${{\" is not closed; expected ${{NAME}}",
                        self.shown_of(key, span)
                    ),
                );
                return None;
            };
            let name = &rest[start + 2..start + length];
            let Some(value) = (self.environment)(name) else {
                self.mistake(
                    span.clone(),
                    format!("{}: the environment variable {name:?} is not set; set it, or write the value here", self.shown_of(key, span)),
                );
                return None;
            };
            out.push_str(&value);
            rest = &rest[start + length + 1..];
        }
        out.push_str(rest);
        Some(out)
    }

    /// As [`Source::expand`] of what was found to be right, and the names of the variables in it.
    pub fn with_variables(&self, text: &str) -> (String, Vec<String>) {
        let (mut out, mut names, mut rest) = (String::new(), Vec::new(), text);
        while let Some((before, after)) = rest.split_once("${") {
            let Some((name, after)) = after.split_once('}') else {
                break;
            };
            out.push_str(before);
            out.push_str(&(self.environment)(name).unwrap_or_default());
            names.push(name.to_owned());
            rest = after;
        }
        out.push_str(rest);
        (out, names)
    }
}

/// Keys whose values are never shown.
pub(super) const SECRETS: [&str; 3] = ["token", "secret", "probe_key"];
