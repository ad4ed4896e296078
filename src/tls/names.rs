//! Names that certificates are for.

/// Names of certificates, in lower case: DNS names, a wildcard for their first label (RFC 6125
/// §6.4.3), and addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names(Vec<Box<str>>);

impl Names {
    pub fn new(names: impl IntoIterator<Item = String>) -> Self {
        let lower = names.into_iter().map(|mut name| {
            name.make_ascii_lowercase();
            name.into()
        });
        Self(lower.collect())
    }

    pub fn add(&mut self, others: &Self) {
        self.0.extend(others.0.iter().cloned());
    }

    /// Whether one of them is this host, or covers it.
    pub fn cover(&self, host: &str) -> bool {
        let host = host.trim_end_matches('.');
        self.0.iter().any(|name| is_covered(name, host))
    }

    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|name| &**name)
    }
}

fn is_covered(name: &str, host: &str) -> bool {
    match name.strip_prefix("*.") {
        Some(domain) => host
            .split_once('.')
            .is_some_and(|(label, rest)| !label.is_empty() && rest.eq_ignore_ascii_case(domain)),
        None => name.eq_ignore_ascii_case(host),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wildcard_covers_one_label() {
        let names = Names::new(["A.example".to_owned(), "*.b.example".to_owned()]);
        for covered in ["a.example", "A.EXAMPLE.", "x.b.example", "X.B.example"] {
            assert!(names.cover(covered), "{covered}");
        }
        for other in ["b.example", "x.y.b.example", ".b.example", "xa.example", ""] {
            assert!(!names.cover(other), "{other}");
        }
    }
}
