//! All keys of a configuration as they take effect: those of the file, and the defaults of the
//! others.

use serde_json::Value;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::sections::Config;
use super::settings::{From, Setting};
use super::source::Source;
use super::units;

/// Every key with its default, as operators read it.
const REFERENCE: &str = include_str!("../../config/reference.toml");

/// Tables of the file. What has another name is a value of its own.
const SECTIONS: [&str; 13] = [
    "listen",
    "listen.tls",
    "admin",
    "upstream",
    "origin",
    "cache",
    "cache.redis",
    "auth",
    "limits",
    "errors",
    "reload",
    "access_log",
    "trace",
];

/// Those that mean something by being there.
const OPTIONAL: [&str; 3] = ["listen.tls", "upstream", "cache.redis"];

/// All keys of a file that was read into `config`, with the defaults of those that it does not
/// have.
pub fn settings(source: &Source<'_>, table: &DeTable<'_>, config: &Config) -> Vec<Setting> {
    let mut all = Collected {
        source,
        list: Vec::new(),
    };
    if let Ok(reference) = DeTable::parse(REFERENCE) {
        all.section("", table, Some(reference.get_ref()));
    }
    // A default that follows from another key.
    let sizes = [
        ("cache", Some(config.cache.max_object)),
        (
            "cache.redis",
            config.cache.redis.as_ref().map(|redis| redis.max_object),
        ),
    ];
    for (place, size) in sizes {
        let is_it = |setting: &&mut Setting| {
            setting.place == place && setting.key == "max_object" && setting.from == From::Default
        };
        if let (Some(setting), Some(size)) = (all.list.iter_mut().find(is_it), size) {
            setting.value = units::show_size(size).into();
        }
    }
    all.list
}

struct Collected<'s, 'a> {
    source: &'s Source<'a>,
    list: Vec<Setting>,
}

impl Collected<'_, '_> {
    /// The keys of one table, and of those in it.
    fn section(&mut self, place: &str, table: &DeTable<'_>, reference: Option<&DeTable<'_>>) {
        let path = |key: &str| {
            if place.is_empty() {
                key.to_owned()
            } else {
                format!("{place}.{key}")
            }
        };
        let known = |key: &str| reference.and_then(|reference| reference.get(key));
        for (key, value) in table {
            let (key, name) = (key.get_ref().as_ref(), path(key.get_ref()));
            let reference = known(key).map(Spanned::get_ref);
            match value.get_ref() {
                DeValue::Table(inner) if SECTIONS.contains(&name.as_str()) => {
                    self.section(&name, inner, reference.and_then(DeValue::as_table));
                }
                DeValue::Array(items) if items.iter().any(|item| item.get_ref().is_table()) => {
                    let first = reference.and_then(DeValue::as_array);
                    let first = first.and_then(|items| items.first()?.get_ref().as_table());
                    let tables = items.iter().filter_map(|item| item.get_ref().as_table());
                    for (number, inner) in tables.enumerate() {
                        let name = self.name_of(&name, number, inner);
                        self.section(&name, inner, first);
                    }
                }
                _ => self.given(place, key, value),
            }
        }
        let missing = reference.into_iter().flatten();
        for (key, value) in missing.filter(|(key, _)| !table.contains_key(key.get_ref().as_ref())) {
            let (key, name) = (key.get_ref().as_ref(), path(key.get_ref()));
            match value.get_ref() {
                DeValue::Table(inner) if SECTIONS.contains(&name.as_str()) => {
                    if !OPTIONAL.contains(&name.as_str()) {
                        self.section(&name, &DeTable::new(), Some(inner));
                    }
                }
                DeValue::Array(items) if items.iter().any(|item| item.get_ref().is_table()) => {}
                value => self.list.push(Setting {
                    place: place.to_owned(),
                    key: key.to_owned(),
                    value: as_json(value, &mut |text| text.to_owned()),
                    from: From::Default,
                }),
            }
        }
    }

    fn given(&mut self, place: &str, key: &str, value: &Spanned<DeValue<'_>>) {
        let mut names = Vec::new();
        let start = value.span().start;
        let (line, _) = self.source.position(start);
        let variable = self.source.variable_at(start);
        let value = as_json(value.get_ref(), &mut |text| {
            if variable.is_some() {
                return text.to_owned();
            }
            let (text, found) = self.source.with_variables(text);
            names.extend(found);
            text.unwrap_or_default()
        });
        self.list.push(Setting {
            place: place.to_owned(),
            key: key.to_owned(),
            value,
            from: match variable {
                Some(variable) => From::Environment(variable.name),
                None => From::File { line, names },
            },
        });
    }

    /// What tells one of several tables from the others.
    fn name_of(&self, kind: &str, number: usize, table: &DeTable<'_>) -> String {
        let text = |key: &str| {
            let text = table.get(key)?.get_ref().as_str()?;
            self.source.with_variables(text).0.ok()
        };
        let Some(path) = text("path").filter(|_| kind == "route") else {
            return format!("{kind} {}", number + 1);
        };
        let methods = table
            .get("methods")
            .and_then(|list| list.get_ref().as_array());
        let methods: Vec<&str> = methods
            .into_iter()
            .flat_map(|list| list.iter().filter_map(|item| item.get_ref().as_str()))
            .collect();
        let is_usual = methods.is_empty() || methods == ["GET"] || methods == ["GET", "HEAD"];
        let methods = if is_usual {
            String::new()
        } else {
            format!("{} ", methods.join("+"))
        };
        format!("{kind} {methods}{}{path}", text("host").unwrap_or_default())
    }
}

fn as_json(value: &DeValue<'_>, text: &mut impl FnMut(&str) -> String) -> Value {
    match value {
        DeValue::String(found) => text(found).into(),
        DeValue::Boolean(flag) => (*flag).into(),
        DeValue::Integer(number) => {
            let number = i64::from_str_radix(number.as_str(), number.radix());
            number.map_or(Value::Null, Into::into)
        }
        DeValue::Float(number) => {
            let number: Result<f64, _> = number.as_str().parse();
            number.map_or(Value::Null, Into::into)
        }
        DeValue::Datetime(time) => time.to_string().into(),
        DeValue::Array(items) => {
            let items = items.iter();
            items.map(|item| as_json(item.get_ref(), text)).collect()
        }
        DeValue::Table(items) => {
            let items = items.iter();
            let item = |(name, value): (&Spanned<_>, &Spanned<DeValue<'_>>)| {
                let name: &std::borrow::Cow<'_, str> = name.get_ref();
                (name.to_string(), as_json(value.get_ref(), text))
            };
            Value::Object(items.map(item).collect())
        }
    }
}
