//! Keys that a variable of the environment can say: what a container needs no file for.

/// A variable, and the key that it stands for.
#[derive(Debug)]
pub struct Variable {
    pub name: &'static str,
    /// The tables in which the key stands, the outermost first.
    pub tables: &'static [&'static str],
    pub key: &'static str,
    pub kind: Kind,
}

/// What a variable holds.
#[derive(Debug, PartialEq, Eq)]
pub enum Kind {
    Text,
    /// Texts, with commas between them.
    List,
    /// A text that anything else goes before: what an image says in the place of our own default.
    Default,
}

const fn variable(
    name: &'static str,
    tables: &'static [&'static str],
    key: &'static str,
    kind: Kind,
) -> Variable {
    Variable {
        name,
        tables,
        key,
        kind,
    }
}

/// All of them; a default comes after what it is the default of.
pub const VARIABLES: [Variable; 10] = [
    variable("IRIS_UPSTREAM_URL", &["upstream"], "url", Kind::Text),
    variable("IRIS_LISTEN_ADDRESS", &["listen"], "address", Kind::Text),
    variable(
        "IRIS_TRUSTED_PROXIES",
        &["listen"],
        "trusted_proxies",
        Kind::List,
    ),
    variable("IRIS_ADMIN_ADDRESS", &["admin"], "address", Kind::Text),
    variable("IRIS_ADMIN_TOKEN", &["admin"], "token", Kind::Text),
    variable("IRIS_CACHE_MEMORY", &["cache"], "memory", Kind::Text),
    variable("IRIS_REDIS_URL", &["cache", "redis"], "url", Kind::Text),
    variable(
        "IRIS_REDIS_PASSWORD_FILE",
        &["cache", "redis"],
        "password_file",
        Kind::Text,
    ),
    variable("IRIS_DATABASE_URL", &["origin"], "database", Kind::Text),
    variable(
        "IRIS_DEFAULT_ADDRESS",
        &["listen"],
        "address",
        Kind::Default,
    ),
];

/// Where an upstream is, without a file.
pub const UPSTREAM_URL: &str = VARIABLES[0].name;

/// The lifetime that the only route has, without a file, where the API gives none.
pub const TTL: &str = "IRIS_TTL";

impl Variable {
    /// The key with its tables: `cache.redis.url`.
    pub fn path(&self) -> String {
        [self.tables, &[self.key]].concat().join(".")
    }
}

/// Variables that are no keys.
const OTHERS: [&str; 4] = [TTL, "IRIS_CONFIG", "IRIS_ADMIN_URL", "IRIS_LOG_FORMAT"];

/// What somebody who set a variable of this name will have meant.
pub fn meant_by(name: &str) -> Option<&'static str> {
    let known = VARIABLES.iter().map(|variable| variable.name);
    let close = known
        .chain(OTHERS)
        .map(|known| (strsim::damerau_levenshtein(name, known), known));
    let (distance, known) = close.min()?;
    // Of a short name each letter is a large part.
    let most = if known.len() < 12 { 1 } else { 2 };
    (1..=most).contains(&distance).then_some(known)
}
