//! Secrets: in the file itself, or in files of their own, and never shown.

use std::fmt;
use std::path::{Path, PathBuf};

use super::section::{At, Section};

/// A secret of the operator's.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret {
    pub text: String,
    /// Where it was read from, where it has a file of its own.
    pub file: Option<PathBuf>,
}

impl fmt::Debug for Secret {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Secret(…, from {:?})", self.file)
    }
}

impl Section<'_, '_> {
    /// Puts the first line of the file that `password_file` names, where it is given, into these
    /// URLs of servers; the path of that file.
    pub fn put_password<'u>(
        &mut self,
        urls: impl Iterator<Item = &'u mut String>,
    ) -> Option<PathBuf> {
        let readable = "the path of a readable file";
        let source = self.source();
        let first_line = |path: &str| {
            source.note_file(Path::new(path));
            let text = std::fs::read_to_string(path).ok()?;
            Some((
                text.lines().next().unwrap_or_default().to_owned(),
                path.into(),
            ))
        };
        let At {
            value: (password, path),
            span,
        } = self.parsed("password_file", readable, first_line)?;
        for text in urls {
            let url = url::Url::parse(text).ok();
            let url = url.filter(|url| url.has_host() && url.password().is_none());
            let with_it = url.and_then(|mut url| {
                url.set_password(Some(&password)).ok()?;
                Some(url.to_string())
            });
            match with_it {
                Some(url) => *text = url,
                None => {
                    let key = self.path("password_file");
                    let message = format!(
                        "{key}: expected the URL of a server beside it, without a password of its \
                            own"
                    );
                    self.source().mistake(span.clone(), message);
                }
            }
        }
        Some(path)
    }

    /// A secret, given in the file itself or as the first line of a file of its own, and where that
    /// is.
    pub fn secret(
        &mut self,
        key: &'static str,
        file_key: &'static str,
        expected: &str,
        is_one: impl Fn(&str) -> bool,
    ) -> Option<Secret> {
        let here = self.parsed(key, expected, |text| is_one(text).then(|| text.to_owned()));
        let readable = "the path of a readable file";
        let source = self.source();
        let file = self.parsed(file_key, readable, |path| {
            source.note_file(Path::new(path));
            let text = std::fs::read_to_string(path).ok()?;
            Some((
                path.to_owned(),
                text.lines().next().unwrap_or_default().to_owned(),
            ))
        });
        match (here, file) {
            (Some(_), Some(file)) => {
                let (one, other) = (self.path(key), self.path(file_key));
                let message = format!("{other}: {one} is given too: expected one of them");
                self.source().mistake(file.span, message);
                None
            }
            (Some(here), None) => Some(Secret {
                text: here.value,
                file: None,
            }),
            (
                None,
                Some(At {
                    value: (path, text),
                    span,
                }),
            ) => {
                if !is_one(&text) {
                    let message = format!(
                        "{}: the first line of {path:?} is not {expected}",
                        self.path(file_key)
                    );
                    self.source().mistake(span, message);
                    return None;
                }
                Some(Secret {
                    text,
                    file: Some(path.into()),
                })
            }
            (None, None) => None,
        }
    }
}
