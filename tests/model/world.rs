//! What the cache and the reference both live in: requests, and an origin that answers them.

/// Fields by lower-case name; one line each.
pub type Fields = Vec<(&'static str, String)>;

pub fn field<'a>(fields: &'a Fields, name: &str) -> Option<&'a str> {
    let found = fields.iter().find(|(known, _)| *known == name);
    found.map(|(_, value)| value.as_str())
}

#[derive(Clone, Debug)]
pub struct Ask {
    pub method: &'static str,
    pub path: &'static str,
    pub fields: Fields,
}

/// What the origin will answer if it is asked now.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Seconds before each answer.
    pub delay: u64,
    /// No answer at all.
    pub fails: bool,
    pub status: u16,
    pub fields: Fields,
    pub body: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    pub fields: Fields,
    pub body: String,
}

/// A request as the origin saw it: method, `If-None-Match`, `If-Modified-Since`, `Range`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heard {
    pub method: String,
    pub if_none_match: Option<String>,
    pub if_modified_since: Option<String>,
    pub range: Option<String>,
}

impl Plan {
    /// The origin: it knows conditions, and ignores ranges.
    pub fn answer(&self, heard: &Heard) -> Option<Answer> {
        if self.fails {
            return None;
        }
        let (tag, modified) = (
            field(&self.fields, "etag"),
            field(&self.fields, "last-modified"),
        );
        let is_known = match (&heard.if_none_match, &heard.if_modified_since) {
            (Some(theirs), _) => {
                tag.is_some_and(|tag| theirs == "*" || opaque(theirs) == opaque(tag))
            }
            (None, Some(since)) => modified.is_some_and(|modified| date(modified) <= date(since)),
            (None, None) => false,
        };
        let is_read = heard.method == "GET" || heard.method == "HEAD";
        let not_modified = is_known && self.status == 200 && is_read;
        Some(Answer {
            status: if not_modified { 304 } else { self.status },
            fields: self.fields.clone(),
            body: if not_modified || heard.method == "HEAD" {
                String::new()
            } else {
                self.body.to_owned()
            },
        })
    }
}

pub fn opaque(tag: &str) -> &str {
    tag.strip_prefix("W/").unwrap_or(tag)
}

/// Seconds since the epoch; `None` for what is no date.
pub fn date(text: &str) -> Option<u64> {
    let time = httpdate::parse_http_date(text).ok()?;
    Some(time.duration_since(std::time::UNIX_EPOCH).ok()?.as_secs())
}

pub fn written(seconds: u64) -> String {
    httpdate::fmt_http_date(std::time::UNIX_EPOCH + std::time::Duration::from_secs(seconds))
}
