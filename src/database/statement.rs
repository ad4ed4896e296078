//! Statements in both dialects, and the values of their parameters.

/// One statement in both dialects. Parameters are `$1`, `$2` and so on in both.
#[derive(Clone, Copy, Debug)]
pub struct Statement {
    /// For metrics.
    pub table: &'static str,
    pub operation: &'static str,
    pub sqlite: &'static str,
    pub postgres: &'static str,
}

impl Statement {
    pub(super) fn sql(&self, is_embedded: bool) -> &'static str {
        if is_embedded {
            self.sqlite
        } else {
            self.postgres
        }
    }
}

/// A value for a parameter.
#[derive(Clone, Debug, PartialEq)]
pub enum Param {
    Text(String),
    /// Text, or nothing.
    Maybe(Option<String>),
    Int(i64),
    MaybeFloat(Option<f64>),
    MaybeInt(Option<i64>),
    Bool(bool),
}

impl From<&str> for Param {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}
