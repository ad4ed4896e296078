//! `{{…}}` in paths and bodies: what differs from request to request.

use std::borrow::Cow;

use uuid::Uuid;

const EXPECTED: &str = "expected {{n}}, {{uuid}}, {{now}} or {{random LEAST MOST}}";

/// A number that looks random and costs next to nothing (SplitMix64).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// From `least` to `most`, both included.
    pub fn within(&mut self, least: u64, most: u64) -> u64 {
        match most.saturating_sub(least) {
            0 => least,
            span => least + self.number() % (span + 1),
        }
    }

    /// From 0 up to 1.
    pub fn part(&mut self) -> f64 {
        (self.number() >> 11) as f64 / (1_u64 << 53) as f64
    }
}

/// Whether a text is a template; the error names what is not understood.
pub fn check(text: &str) -> Result<(), String> {
    each(text, |name| {
        value(name, 0, &mut Random::new(0))
            .map(drop)
            .ok_or_else(|| format!("{{{{{name}}}}}: {EXPECTED}"))
    })
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
pub fn fill<'a>(text: &'a str, number: u64, random: &mut Random) -> Cow<'a, str> {
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

fn value(name: &str, number: u64, random: &mut Random) -> Option<String> {
    let words: Vec<&str> = name.split_whitespace().collect();
    match words[..] {
        ["n"] => Some(number.to_string()),
        ["uuid"] => Some(Uuid::new_v4().to_string()),
        ["now"] => {
            let now = crate::clock::Timestamp::from(std::time::SystemTime::now());
            Some(crate::error::rfc3339(now))
        }
        ["random", least, most] => {
            let (least, most) = (least.parse().ok()?, most.parse().ok()?);
            (least <= most).then(|| random.within(least, most).to_string())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_are_filled_anew_for_each_request() {
        let mut random = Random::new(1);
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

    #[test]
    fn random_numbers_stay_within_and_reach_their_bounds() {
        let mut random = Random::new(7);
        let mut seen = [false; 3];
        for _ in 0..200 {
            seen[random.within(1, 3) as usize - 1] = true;
            assert!((0.0..1.0).contains(&random.part()));
        }
        assert_eq!(seen, [true; 3]);
        assert_eq!(random.within(9, 9), 9);
    }
}
