//! A TOML text with its places: every mistake is collected, none ends the reading.

use std::cell::RefCell;
#[cfg(test)]
use std::collections::BTreeSet;
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http::{HeaderName, header};
use serde::de::IntoDeserializer as _;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::error::without_passwords;
use crate::http::fields::is_hop_by_hop;

use super::units;

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
    asked: RefCell<BTreeSet<String>>,
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
    fn shown_of(&self, key: &str, span: &Range<usize>) -> String {
        if SECRETS.contains(&key) {
            "…".to_owned()
        } else {
            self.shown(span)
        }
    }

    /// Puts environment variables in the place of `${NAME}` in the value of `key`.
    fn expand(&self, key: &str, text: &str, span: &Range<usize>) -> Option<String> {
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

/// One table of the text, from which keys are taken by name and type.
pub struct Section<'s, 'a> {
    source: &'s Source<'a>,
    /// Dotted, and without index for arrays of tables: `route`.
    name: String,
    table: Option<&'s DeTable<'a>>,
    span: Range<usize>,
    known: Vec<&'static str>,
    /// Tables whose names are the operator's.
    named: Vec<String>,
    /// It is one of `[[name]]`.
    is_of_several: bool,
}

/// A value with the place where it stands, for checks that come after reading.
#[derive(Clone, Debug)]
pub struct At<T> {
    pub value: T,
    pub span: Range<usize>,
}

type Value<'s, 'a> = &'s Spanned<DeValue<'a>>;

impl<'s, 'a> Section<'s, 'a> {
    pub fn root(source: &'s Source<'a>, table: &'s Spanned<DeTable<'a>>) -> Self {
        Self {
            source,
            name: String::new(),
            table: Some(table.get_ref()),
            span: 0..0,
            known: Vec::new(),
            named: Vec::new(),
            is_of_several: false,
        }
    }

    pub fn is_present(&self) -> bool {
        self.table.is_some()
    }

    /// Whether the table itself lacks `key`, whatever its type.
    pub fn is_missing(&self, key: &str) -> bool {
        self.table.is_none_or(|table| !table.contains_key(key))
    }

    pub fn is_of_several(&self) -> bool {
        self.is_of_several
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn span(&self) -> Range<usize> {
        self.span.clone()
    }

    pub fn source(&self) -> &'s Source<'a> {
        self.source
    }

    pub(super) fn path(&self, key: &str) -> String {
        if self.name.is_empty() {
            key.to_owned()
        } else {
            format!("{}.{key}", self.name)
        }
    }

    fn value(&mut self, key: &'static str) -> Option<Value<'s, 'a>> {
        self.known.push(key);
        #[cfg(test)]
        self.source.asked.borrow_mut().insert(self.path(key));
        self.table?.get(key)
    }

    fn wrong(&self, key: &str, value: Value<'_, 'a>, expected: &str) {
        let span = value.span();
        if span.is_empty() {
            return; // What the parser put where it found no value, and said so.
        }
        let shown = self.source.shown_of(key, &span);
        let message = format!("{} = {shown}: expected {expected}", self.path(key));
        self.source.mistake(span, message);
    }

    /// A sub-table; where it is missing, one whose keys are all missing.
    pub fn table(&mut self, key: &'static str) -> Section<'s, 'a> {
        let value = self.value(key);
        let table = value.and_then(|value| {
            let table = value.get_ref().as_table();
            if table.is_none() {
                self.wrong(key, value, &format!("a table: [{}]", self.path(key)));
            }
            table
        });
        Section {
            source: self.source,
            name: self.path(key),
            table,
            span: value.map_or(0..0, Spanned::span),
            known: Vec::new(),
            named: Vec::new(),
            is_of_several: false,
        }
    }

    /// The tables of `[[key]]`, in the order of the file.
    pub fn tables(&mut self, key: &'static str) -> Vec<Section<'s, 'a>> {
        let Some(value) = self.value(key) else {
            return Vec::new();
        };
        let Some(array) = value.get_ref().as_array() else {
            self.wrong(key, value, &format!("tables: [[{key}]]"));
            return Vec::new();
        };
        let mut found = Vec::new();
        for item in array.iter() {
            match item.get_ref().as_table() {
                Some(table) => found.push(Section {
                    source: self.source,
                    name: self.path(key),
                    table: Some(table),
                    span: item.span(),
                    known: Vec::new(),
                    named: Vec::new(),
                    is_of_several: true,
                }),
                None => self.wrong(key, item, &format!("a table: [[{key}]]")),
            }
        }
        found
    }

    /// All tables in this one that have no name which was asked for: those names are the operator's.
    pub fn named_tables(&mut self) -> Vec<(At<String>, Section<'s, 'a>)> {
        let mut found = Vec::new();
        for (key, value) in self.table.into_iter().flatten() {
            let Some(table) = value.get_ref().as_table() else {
                continue;
            };
            if self.known.contains(&key.get_ref().as_ref()) {
                continue;
            }
            let name = key.get_ref().to_string();
            let section = Section {
                source: self.source,
                name: self.path(&name),
                table: Some(table),
                span: value.span(),
                known: Vec::new(),
                named: Vec::new(),
                is_of_several: false,
            };
            self.named.push(name.clone());
            let span = key.span();
            found.push((At { value: name, span }, section));
        }
        found
    }

    /// One table `[key]`, missing or not, or those of `[[key]]`.
    pub fn one_or_more(&mut self, key: &'static str) -> Vec<Section<'s, 'a>> {
        let given = self.table.and_then(|table| table.get(key));
        let is_array = given.is_some_and(|value| value.get_ref().is_array());
        let tables = if is_array {
            self.tables(key)
        } else {
            Vec::new()
        };
        if tables.is_empty() {
            return vec![self.table(key)];
        }
        tables
    }

    /// All pairs of a table of strings whose names are the operator's own.
    pub fn pairs(&mut self, key: &'static str) -> Vec<(At<String>, At<String>)> {
        let inner = self.table(key);
        let Some(table) = inner.table else {
            return Vec::new();
        };
        let pairs = table.iter().filter_map(|(name, value)| {
            let text = inner.text(name.get_ref(), value)?;
            let name = At {
                value: name.get_ref().to_string(),
                span: name.span(),
            };
            Some((name, text))
        });
        pairs.collect()
    }

    fn text(&self, key: &str, value: Value<'_, 'a>) -> Option<At<String>> {
        let span = value.span();
        let Some(text) = value.get_ref().as_str() else {
            self.wrong(key, value, "a string");
            return None;
        };
        let value = self.source.expand(key, text, &span)?;
        Some(At { value, span })
    }

    /// A string that `parse` turns into a value, or that is a mistake: `expected` says what it
    /// should have been.
    pub fn parsed<T>(
        &mut self,
        key: &'static str,
        expected: &str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Option<At<T>> {
        let value = self.value(key)?;
        let Some(text) = value.get_ref().as_str() else {
            self.wrong(key, value, expected);
            return None;
        };
        let text = self.source.expand(key, text, &value.span())?;
        match parse(&text) {
            Some(parsed) => Some(At {
                value: parsed,
                span: value.span(),
            }),
            None => {
                self.wrong(key, value, expected);
                None
            }
        }
    }

    pub fn duration(&mut self, key: &'static str) -> Option<Duration> {
        self.parsed(key, units::DURATION, units::duration)
            .map(|at| at.value)
    }

    pub fn size(&mut self, key: &'static str) -> Option<u64> {
        self.parsed(key, units::SIZE, units::size)
            .map(|at| at.value)
    }

    pub fn integer(&mut self, key: &'static str, range: Range<u64>) -> Option<u64> {
        let value = self.value(key)?;
        let found = whole_number(value).filter(|number| range.contains(number));
        if found.is_none() {
            let expected = format!("a whole number from {} to {}", range.start, range.end - 1);
            self.wrong(key, value, &expected);
        }
        found
    }

    pub fn boolean(&mut self, key: &'static str) -> Option<bool> {
        let value = self.value(key)?;
        let found = value.get_ref().as_bool();
        if found.is_none() {
            self.wrong(key, value, "true or false");
        }
        found
    }

    /// A string, number or boolean, as JSON has them.
    pub fn scalar(&mut self, key: &'static str) -> Option<serde_json::Value> {
        let value = self.value(key)?;
        let found = match value.get_ref() {
            DeValue::String(_) => self.text(key, value).map(|at| at.value.into()),
            DeValue::Boolean(flag) => Some((*flag).into()),
            DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix())
                .ok()
                .map(Into::into),
            DeValue::Float(number) => number.as_str().parse::<f64>().ok().map(Into::into),
            _ => None,
        };
        if found.is_none() {
            self.wrong(key, value, "a string, a number, true or false");
        }
        found
    }

    /// An array of strings, each turned into a value by `parse`; what is wrong is noted and left
    /// out.
    pub fn list<T>(
        &mut self,
        key: &'static str,
        expected: &str,
        parse: impl Fn(&str) -> Option<T>,
    ) -> Option<Vec<T>> {
        let value = self.value(key)?;
        let Some(array) = value.get_ref().as_array() else {
            self.wrong(key, value, &format!("an array of strings, each {expected}"));
            return None;
        };
        let items = array.iter().filter_map(|item| {
            let text = self.text(key, item)?;
            let parsed = parse(&text.value);
            if parsed.is_none() {
                self.wrong(key, item, expected);
            }
            parsed
        });
        Some(items.collect())
    }

    /// An array of whole numbers in `range`.
    pub fn integers(&mut self, key: &'static str, range: Range<u64>) -> Option<Vec<u64>> {
        let expected = format!("a whole number from {} to {}", range.start, range.end - 1);
        let value = self.value(key)?;
        let Some(array) = value.get_ref().as_array() else {
            self.wrong(key, value, &format!("an array of numbers, each {expected}"));
            return None;
        };
        let numbers = array.iter().filter_map(|item| {
            let number = whole_number(item).filter(|number| range.contains(number));
            if number.is_none() {
                self.wrong(key, item, &expected);
            }
            number
        });
        Some(numbers.collect())
    }

    /// As [`Section::list`], but an empty array is a mistake.
    pub fn some<T>(
        &mut self,
        key: &'static str,
        expected: &str,
        parse: impl Fn(&str) -> Option<T>,
    ) -> Option<Vec<T>> {
        let found = self.list(key, expected, parse);
        let value = self.table?.get(key)?;
        if value
            .get_ref()
            .as_array()
            .is_some_and(|array| array.is_empty())
        {
            self.wrong(key, value, &format!("at least one: {expected}"));
        }
        found
    }

    /// A key that is either a word or an array of strings.
    pub fn word_or_list<T>(
        &mut self,
        key: &'static str,
        expected: &str,
        word: impl FnOnce(&str) -> Option<T>,
        list: impl FnOnce(Vec<String>) -> T,
    ) -> Option<T> {
        let is_array = self
            .table?
            .get(key)
            .is_some_and(|value| value.get_ref().is_array());
        if is_array {
            self.list(key, "a string", |text| Some(text.to_owned()))
                .map(list)
        } else {
            self.parsed(key, expected, word).map(|at| at.value)
        }
    }

    /// Notes every key of the table that nobody asked for.
    pub fn finish(self) {
        let Some(table) = self.table else { return };
        for (key, _) in table
            .iter()
            .filter(|(key, _)| !self.known.contains(&key.get_ref().as_ref()))
            .filter(|(key, _)| self.named.iter().all(|name| name != key.get_ref()))
        {
            let place = if self.name.is_empty() {
                "the file".to_owned()
            } else {
                format!("[{}]", self.name)
            };
            let nearest = nearest(key.get_ref(), &self.known);
            let hint = nearest
                .map(|near| format!("did you mean {near:?}? "))
                .unwrap_or_default();
            let message = format!(
                "unknown key {:?} in {place}: {hint}expected one of {}",
                key.get_ref(),
                self.known.join(", ")
            );
            self.source.mistake(key.span(), message);
        }
    }
}

fn whole_number(value: Value<'_, '_>) -> Option<u64> {
    match value.get_ref() {
        DeValue::Integer(integer) => u64::from_str_radix(integer.as_str(), integer.radix()).ok(),
        _ => None,
    }
}

/// The known key that a misspelt one most likely meant.
fn nearest(key: &str, known: &[&'static str]) -> Option<&'static str> {
    // clap's suggestions use the same measure.
    let score = |candidate: &&'static str| (strsim::jaro_winkler(key, candidate) * 1000.0) as u32;
    let best = known.iter().copied().max_by_key(score)?;
    (score(&best) > 800).then_some(best)
}

/// Reads a word as one of an enum's spellings through serde.
pub fn word<T: serde::de::DeserializeOwned>(text: &str) -> Option<T> {
    let deserializer: serde::de::value::StrDeserializer<'_, serde::de::value::Error> =
        text.into_deserializer();
    T::deserialize(deserializer).ok()
}

/// Keys whose values are never shown.
pub(super) const SECRETS: [&str; 3] = ["token", "secret", "probe_key"];

/// Reads a header field name, but not of one that frames a message or is of one hop: those are not the
/// operator's to set or to read.
pub fn field_name(text: &str) -> Option<HeaderName> {
    let name = HeaderName::from_bytes(text.as_bytes()).ok()?;
    let frames = [header::CONTENT_LENGTH, header::TRAILER].contains(&name);
    (!frames && !is_hop_by_hop(&name)).then_some(name)
}
