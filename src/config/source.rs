//! A TOML text with its places: every mistake is collected, none ends the reading.

use std::cell::{Cell, RefCell};
#[cfg(test)]
use std::collections::BTreeSet;
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::error::without_passwords;

use super::variables::{VARIABLES, Variable};

/// One mistake in a configuration: where it stands, and what was expected there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// Or the name of a variable of the environment.
    pub file: String,
    /// 0 where it is not of a file.
    pub line: usize,
    pub column: usize,
    pub message: String,
}

impl Mistake {
    /// Of what a variable of the environment says.
    pub fn of_variable(name: &str, message: String) -> Self {
        Self {
            file: name.to_owned(),
            line: 0,
            column: 0,
            message,
        }
    }
}

impl fmt::Display for Mistake {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            file,
            line,
            column,
            message,
        } = self;
        match line {
            0 => write!(out, "the environment variable {file}: {message}"),
            _ => write!(out, "{file}:{line}:{column}: {message}"),
        }
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
    /// So many of them are of the syntax; they come first.
    of_syntax: Cell<usize>,
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
            of_syntax: Cell::new(0),
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
        self.of_syntax.set(self.mistakes.borrow().len());
        table
    }

    pub fn mistake(&self, span: Range<usize>, message: impl fmt::Display) {
        let (file, (line, column)) = match self.variable_at(span.start) {
            Some(variable) => (variable.name, (0, 0)),
            None => (self.file, self.position(span.start)),
        };
        self.mistakes.borrow_mut().push(Mistake {
            file: file.to_owned(),
            line,
            column,
            message: message.to_string(),
        });
    }

    /// A variable that is set, and that nothing here names, would be missed without a word.
    pub fn expect_to_name(&self, variable: &str, why: &str) {
        let is_said = self.variable(variable).is_some_and(|said| !said.is_empty());
        if is_said && !self.text.contains(variable) {
            let mistake = Mistake::of_variable(variable, why.to_owned());
            self.mistakes.borrow_mut().push(mistake);
        }
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

    /// All mistakes in the order of the text. Where the syntax is broken that alone is told up to
    /// the next table: what stands between may be in another one than was meant, or is none.
    pub fn into_mistakes(self) -> Vec<Mistake> {
        let mut mistakes = self.mistakes.into_inner();
        let others = mistakes.split_off(self.of_syntax.get());
        let broken: Vec<usize> = mistakes.iter().map(|mistake| mistake.line).collect();
        let lines = self.text.lines().zip(1..);
        let is_whole =
            |line: usize, text: &str| text.trim_start().starts_with('[') && !broken.contains(&line);
        let tables: Vec<usize> = lines
            .filter(|(text, line)| is_whole(*line, text))
            .map(|(_, line)| line)
            .collect();
        let follows = |mistake: &Mistake| {
            let before = broken.iter().filter(|line| **line <= mistake.line).max();
            before.is_some_and(|broken| {
                !tables
                    .iter()
                    .any(|table| broken < table && *table <= mistake.line)
            })
        };
        mistakes.extend(others.into_iter().filter(|mistake| !follows(mistake)));
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
        let said = self.variable_at(span.start);
        let said = said.and_then(|variable| Some(format!("{:?}", self.variable(variable.name)?)));
        let text = match &said {
            Some(said) => said,
            None => self.text.get(span.clone()).unwrap_or_default(),
        };
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

    /// Puts environment variables in the place of `${NAME}`, and of `${NAME:-text}` where that is
    /// set and not empty, in the value of `key`.
    pub(super) fn expand(&self, key: &str, text: &str, span: &Range<usize>) -> Option<String> {
        if self.variable_at(span.start).is_some() {
            // What a variable says is meant to the letter.
            return Some(text.to_owned());
        }
        let (expanded, _) = self.with_variables(text);
        expanded
            .map_err(|wrong| {
                let shown = self.shown_of(key, span);
                self.mistake(span.clone(), format!("{shown}: {wrong}"));
            })
            .ok()
    }

    /// A text with environment variables in it, or what is wrong with them; and their names.
    pub fn with_variables(&self, text: &str) -> (Result<String, String>, Vec<String>) {
        let (mut out, mut names, mut rest) = (String::new(), Vec::new(), text);
        while let Some((before, after)) = rest.split_once("${") {
            out.push_str(before);
            let Some((name, after)) = after.split_once('}') else {
                let wrong = "\"${\" is not closed; expected ${NAME}";
                return (Err(wrong.to_owned()), names);
            };
            let (name, otherwise) = match name.split_once(":-") {
                Some((name, otherwise)) => (name, Some(otherwise)),
                None => (name, None),
            };
            let is_of_use = |value: &String| otherwise.is_none() || !value.is_empty();
            match (self.environment)(name).filter(is_of_use) {
                Some(value) => out.push_str(&value),
                None if otherwise.is_some() => out.push_str(otherwise.unwrap_or_default()),
                None => {
                    let wrong = format!(
                        "the environment variable {name:?} is not set; set it, or write the value \
                            here"
                    );
                    return (Err(wrong), names);
                }
            }
            names.push(name.to_owned());
            rest = after;
        }
        out.push_str(rest);
        (Ok(out), names)
    }

    /// What a variable of the environment says.
    pub fn variable(&self, name: &str) -> Option<String> {
        (self.environment)(name)
    }

    /// Where a value stands that [`VARIABLES`] has at this index: behind the text.
    pub fn span_of_variable(&self, at: usize) -> Range<usize> {
        let start = self.text.len() + 1 + at;
        start..start + 1
    }

    /// The variable that says what stands at this place, where that is not the text.
    pub fn variable_at(&self, offset: usize) -> Option<&'static Variable> {
        VARIABLES.get(offset.checked_sub(self.text.len() + 1)?)
    }

    /// The file and the environment both say something: that is right where it is the same.
    pub fn judge_clash(&self, variable: &Variable, given: &Spanned<DeValue<'_>>, said: &str) {
        let text = |value: &DeValue<'_>| self.with_variables(value.as_str()?).0.ok();
        let is_same = match given.get_ref() {
            DeValue::Array(items) => {
                let given = items.iter().map(|item| text(item.get_ref()));
                given.eq(said.split(',').map(|item| Some(item.trim().to_owned())))
            }
            given => text(given).is_some_and(|text| text == said.trim()),
        };
        if !is_same {
            let (path, name) = (variable.path(), variable.name);
            let message = format!(
                "{path}: the environment variable {name} says it too, and something else: \
                    expected one of them"
            );
            self.mistake(given.span(), message);
        }
    }
}

/// Keys whose values are never shown.
pub(super) const SECRETS: [&str; 3] = ["token", "secret", "probe_key"];
