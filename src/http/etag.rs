//! Entity tags and their comparison (RFC 9110 §8.8.3).

/// An entity tag as it stands in a field: `W/"…"` or `"…"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntityTag<'a> {
    weak: bool,
    /// The opaque tag with its quotes.
    opaque: &'a [u8],
}

impl<'a> EntityTag<'a> {
    /// `None` where the text is not one entity tag.
    pub fn parse(text: &'a [u8]) -> Option<Self> {
        let text = text.trim_ascii();
        let (weak, opaque) = match text.strip_prefix(b"W/") {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        let inner = opaque.strip_prefix(b"\"")?.strip_suffix(b"\"")?;
        let valid = |byte: &u8| *byte == 0x21 || (0x23..=0x7e).contains(byte) || *byte >= 0x80;
        inner.iter().all(valid).then_some(Self { weak, opaque })
    }

    pub fn is_weak(self) -> bool {
        self.weak
    }

    /// Weak comparison: the opaque tags are equal (RFC 9110 §8.8.3.2).
    pub fn weak_eq(self, other: Self) -> bool {
        self.opaque == other.opaque
    }

    /// Strong comparison: equal, and neither is weak.
    pub fn strong_eq(self, other: Self) -> bool {
        !self.weak && !other.weak && self.opaque == other.opaque
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comparison_follows_the_table_of_rfc_9110() {
        let tag = |text: &'static str| EntityTag::parse(text.as_bytes()).unwrap();
        let table = [
            ("W/\"1\"", "W/\"1\"", false, true),
            ("W/\"1\"", "W/\"2\"", false, false),
            ("W/\"1\"", "\"1\"", false, true),
            ("\"1\"", "\"1\"", true, true),
        ];
        for (one, other, strong, weak) in table {
            assert_eq!(tag(one).strong_eq(tag(other)), strong, "{one} {other}");
            assert_eq!(tag(one).weak_eq(tag(other)), weak, "{one} {other}");
        }
    }

    #[test]
    fn what_is_not_a_tag_is_refused() {
        for text in ["abc", "\"a", "w/\"a\"", "\"a\"b\"", ""] {
            assert_eq!(EntityTag::parse(text.as_bytes()), None, "{text}");
        }
    }
}
