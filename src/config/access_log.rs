//! `[access_log]` and `[trace]`: what is told of each request, and where.

use std::path::PathBuf;

use http::HeaderName;

use super::read_value::{field_name, set};
use super::section::Section;

/// `[access_log]`: a line for each request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccessLog {
    pub format: LogFormat,
    pub place: LogPlace,
    /// Of requests that went well one in so many is written; of the others each.
    pub sample: u64,
    /// Request fields that stand in each line, beside what always does.
    pub fields: Vec<HeaderName>,
    /// Parameters of queries, and fields, whose values are never written.
    pub secret: Vec<String>,
}

/// How a line looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// There is no log.
    #[default]
    Off,
    Json,
    Common,
}

/// Where lines go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum LogPlace {
    #[default]
    Stdout,
    File(PathBuf),
}

/// Names that secrets usually have.
const USUAL_SECRETS: [&str; 12] = [
    "access_token",
    "api_key",
    "apikey",
    "authorization",
    "code",
    "cookie",
    "key",
    "password",
    "secret",
    "signature",
    "token",
    "x-api-key",
];

impl Default for AccessLog {
    fn default() -> Self {
        Self {
            format: LogFormat::Off,
            place: LogPlace::Stdout,
            sample: 1,
            fields: vec![http::header::REFERER, http::header::USER_AGENT],
            secret: USUAL_SECRETS.map(str::to_owned).to_vec(),
        }
    }
}

impl AccessLog {
    /// Whether the values of what has this name are never written; in whatever case.
    pub fn is_secret(&self, name: &str) -> bool {
        self.secret
            .iter()
            .any(|secret| secret.eq_ignore_ascii_case(name))
    }
}

impl AccessLog {
    /// Whether a query has a parameter whose value is never written, as an origin reads its name.
    pub fn names_secret(&self, query: &str) -> bool {
        let mut pairs = url::form_urlencoded::parse(query.as_bytes());
        pairs.any(|(name, _)| self.is_secret(&name))
    }
}

pub fn access_log(mut section: Section<'_, '_>, credentials: &[HeaderName]) -> AccessLog {
    let mut log = AccessLog::default();
    let format = |text: &str| match text {
        "off" => Some(LogFormat::Off),
        "json" => Some(LogFormat::Json),
        "common" => Some(LogFormat::Common),
        _ => None,
    };
    let given = section.parsed("format", "\"off\", \"json\" or \"common\"", format);
    set(&mut log.format, given.map(|at| at.value));
    let place = |text: &str| match text {
        "stdout" => Some(LogPlace::Stdout),
        "" => None,
        path => Some(LogPlace::File(path.into())),
    };
    let given = section.parsed("to", "\"stdout\" or the path of a file", place);
    set(&mut log.place, given.map(|at| at.value));
    set(&mut log.sample, section.integer("sample", 1..1_000_001));
    let expected = "a header field name such as \"user-agent\"";
    set(
        &mut log.fields,
        section.list("fields", expected, field_name),
    );
    let name = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    let expected = "the name of a parameter or a field, such as \"token\"";
    set(&mut log.secret, section.list("secret", expected, name));
    // Whatever the list says: a key in a log is a key that is lost.
    for name in credentials {
        if !log.is_secret(name.as_str()) {
            log.secret.push(name.as_str().to_owned());
        }
    }
    section.finish();
    log
}
