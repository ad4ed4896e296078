//! The host that a request is for: its grammar, its spelling, its port.

use std::net::Ipv6Addr;

use arrayvec::ArrayString;

use crate::http::fields;

/// The host that a client means, in lower case, with the port that it wrote. One of usual length
/// stands on the stack.
#[derive(Clone, Debug)]
pub enum Host {
    Short(ArrayString<60>),
    Long(Box<str>),
}

impl Host {
    pub fn new(text: &str, letters: Letters) -> Self {
        match ArrayString::from(text) {
            Ok(mut short) => {
                if letters == Letters::Upper {
                    short.make_ascii_lowercase();
                }
                Self::Short(short)
            }
            Err(_) => Self::Long(text.to_ascii_lowercase().into()),
        }
    }

    /// The same without the port that goes without saying (RFC 9110 §4.2.3).
    pub fn without_default_port(mut self, scheme: &str) -> Self {
        let length = without_default_port(self.as_str(), scheme).len();
        match &mut self {
            Self::Short(text) => text.truncate(length),
            Self::Long(text) if length < text.len() => *text = text[..length].into(),
            Self::Long(_) => {}
        }
        self
    }

    pub fn as_str(&self) -> &str {
        match self {
            Self::Short(text) => text,
            Self::Long(text) => text,
        }
    }
}

/// Whether a host has letters in upper case, which do not tell it from another (RFC 9110 §4.2.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Letters {
    Lower,
    Upper,
}

/// The letters of a text that is `uri-host [ ":" port ]` (RFC 9110 §7.2, RFC 3986 §3.2.2), looked
/// at in place: parsing it would cost every request an allocation; `None` of another.
pub fn letters_of(text: &str) -> Option<Letters> {
    // An empty Host is right where the target has no authority (RFC 9112 §3.2).
    if let Some(letters) = plain_letters(text) {
        return Some(letters);
    }
    let name = without_port(text);
    let port = &text[name.len()..];
    let port_is_valid = port.is_empty() || is_port(&port[1..]);
    let name_is_valid = match name.strip_prefix('[') {
        Some(rest) => rest.strip_suffix(']').is_some_and(is_ip_literal),
        None => is_registered_name(name) && (!name.is_empty() || port.is_empty()),
    };
    let has_upper = name.bytes().any(|byte| byte.is_ascii_uppercase());
    (port_is_valid && name_is_valid).then_some(match has_upper {
        true => Letters::Upper,
        false => Letters::Lower,
    })
}

/// Those of a name as most hosts have it, without a port; `None` of another.
fn plain_letters(text: &str) -> Option<Letters> {
    let mut letters = Letters::Lower;
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' => {}
            b'A'..=b'Z' => letters = Letters::Upper,
            _ => return None,
        }
    }
    Some(letters)
}

/// Whether a text is `uri-host [ ":" port ]`, perhaps an empty one.
pub fn is_host(text: &str) -> bool {
    letters_of(text).is_some()
}

fn is_port(digits: &str) -> bool {
    let is_digits = digits.bytes().all(|byte| byte.is_ascii_digit());
    is_digits && (digits.is_empty() || digits.parse::<u16>().is_ok())
}

fn is_registered_name(name: &str) -> bool {
    // No percent-encoding: no name of the DNS needs it, and it would spell one host in many ways.
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=".contains(&byte);
    name.bytes().all(allowed)
}

/// An IPv6 address, or one of a version to come (RFC 3986 §3.2.2).
fn is_ip_literal(text: &str) -> bool {
    let Some(future) = text.strip_prefix(['v', 'V']) else {
        return text.parse::<Ipv6Addr>().is_ok();
    };
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:".contains(&byte);
    future.split_once('.').is_some_and(|(version, rest)| {
        let is_hex = version.bytes().all(|byte| byte.is_ascii_hexdigit());
        is_hex && !version.is_empty() && !rest.is_empty() && rest.bytes().all(allowed)
    })
}

/// A host without its port.
pub fn without_port(host: &str) -> &str {
    &host[..fields::without_port(host.as_bytes()).len()]
}

/// A host without the port that goes without saying (RFC 9110 §4.2.3).
pub fn without_default_port<'a>(host: &'a str, scheme: &str) -> &'a str {
    if !host.as_bytes().contains(&b':') {
        return host;
    }
    let name = without_port(host);
    let digits = host[name.len()..].strip_prefix(':');
    let default = if scheme == "https" { 443 } else { 80 };
    // An empty port is the default one too (RFC 3986 §6.2.3).
    let goes_without =
        |digits: &str| digits.is_empty() || (digits.len() > 1 && digits.parse() == Ok(default));
    if digits.is_some_and(goes_without) {
        name
    } else {
        host
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_told_from_addresses() {
        assert_eq!(without_port("a:80"), "a");
        assert_eq!(without_port("[::1]"), "[::1]");
        assert_eq!(without_port("[::1]:80"), "[::1]");
    }
}
