//! `{{…}}` in paths and bodies: what differs from request to request.

use std::borrow::Cow;

use fastrand::Rng;
use uuid::Uuid;

const EXPECTED: &str = "expected {{n}}, {{uuid}}, {{now}} or {{random LEAST MOST}}";

/// Whether a text is a template; the error names all that is not understood.
pub fn check(text: &str) -> Result<(), String> {
    let mut wrong = Vec::new();
    each(text, |name| {
        if value(name, 0, &mut Rng::with_seed(0)).is_none() {
            wrong.push(format!("{{{{{name}}}}}"));
        }
        Ok(())
    })?;
    if wrong.is_empty() {
        return Ok(());
    }
    Err(format!(
        "{}: {EXPECTED}, LEAST not above MOST",
        wrong.join(", ")
    ))
}

fn each(text: &str, mut look: impl FnMut(&str) -> Result<(), String>) -> Result<(), String> {
    let mut rest = text;
    while let Some((_, after)) = rest.split_once("{{") {
        let (name, after) = after
            .split_once("}}")
            .ok_or_else(|| format!("\"{{{{\" without its end: {EXPECTED}"))?;
        look(name.trim())?;
        rest = after;
    }
    Ok(())
}

/// The text for the request of this number.
pub fn fill<'a>(text: &'a str, number: u64, random: &mut Rng) -> Cow<'a, str> {
    if !text.contains("{{") {
        return Cow::Borrowed(text);
    }
    let (mut filled, mut rest) = (String::with_capacity(text.len() + 32), text);
    while let Some((before, after)) = rest.split_once("{{") {
        filled.push_str(before);
        let Some((name, after)) = after.split_once("}}") else {
            rest = after;
            break;
        };
        filled.push_str(&value(name.trim(), number, random).unwrap_or_default());
        rest = after;
    }
    filled.push_str(rest);
    Cow::Owned(filled)
}

fn value(name: &str, number: u64, random: &mut Rng) -> Option<String> {
    let words: Vec<&str> = name.split_whitespace().collect();
    match words[..] {
        ["n"] => Some(number.to_string()),
        ["uuid"] => Some(Uuid::new_v4().to_string()),
        ["now"] => {
            let now = crate::clock::Timestamp::from(std::time::SystemTime::now());
            Some(crate::error::rfc3339(now))
        }
        ["random", least, most] => {
            let (least, most): (u64, u64) = (least.parse().ok()?, most.parse().ok()?);
            (least <= most).then(|| random.u64(least..=most).to_string())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_are_filled_anew_for_each_request() {
        let mut random = Rng::with_seed(1);
        let filled = fill("/a/{{n}}?x={{ random 5 7 }}&u={{uuid}}", 42, &mut random).into_owned();
        assert!(filled.starts_with("/a/42?x="), "{filled}");
        let x: u64 = filled["/a/42?x=".len()..]
            .split('&')
            .next()
            .unwrap()
            .parse()
            .unwrap();
        assert!((5..=7).contains(&x));
        assert_eq!(filled.len(), "/a/42?x=5&u=".len() + 36);
        assert!(matches!(
            fill("/plain", 1, &mut random),
            Cow::Borrowed("/plain")
        ));
        for broken in ["{{m}}", "{{random 7 5}}", "{{n", "{{random a b}}"] {
            assert!(check(broken).is_err(), "{broken}");
        }
    }
}
