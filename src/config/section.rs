//! One table of a configuration: its keys are taken by name and type, and what is left over is
//! unknown.

use std::ops::Range;
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::source::Source;
use super::units;

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

    /// All tables in this one that have no name which was asked for: those names are the
    /// operator's.
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
            let hint = match nearest {
                Some(near) => format!("did you mean {near:?}?"),
                None => format!("expected one of {}", self.known.join(", ")),
            };
            let message = format!("unknown key {:?} in {place}: {hint}", key.get_ref());
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
    (score(&best) >= 750).then_some(best)
}
