//! Fuzzing of the parsers: each has a target among the tests of its room, which says what must hold
//! of whatever it is given, and seeds in `tests/fuzz`. Inputs are seeds that were cut, joined,
//! repeated and changed.
//!
//! `cargo test` tries some thousands of each; `FUZZ_INPUTS=10000000 cargo test --release --lib
//! fuzz_` tries so many. The order is drawn by `FUZZ_SEED`, 1 where it is not given; a failure says
//! which input it was.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use fastrand::Rng;
use http::{HeaderMap, HeaderName, HeaderValue};

/// Inputs of each target where nobody asks for more.
const INPUTS: u64 = 20_000;

/// No input is longer.
const LONGEST: usize = 8 << 10;

/// What parsers trip over.
const STRANGE: [&[u8]; 24] = [
    b"",
    b"\0",
    b"\r\n",
    b"\n",
    b"\t",
    b" ",
    b",",
    b";",
    b"=",
    b"\"",
    b"\\",
    b"%",
    b"%2F",
    b"%00",
    b"..",
    b"//",
    b"*",
    b"-1",
    b"9223372036854775808",
    b"18446744073709551616",
    b"99999999999999999999999999",
    b"\xff",
    b"\xc3\xa4",
    b"\xf0\x9f\x98\x80",
];

/// Gives `check` inputs made of `seeds`, one a line, in which `\r`, `\n`, `\\` and `\xNN` stand for
/// bytes.
pub fn run(seeds: &str, check: impl Fn(&[u8])) {
    let number = |name: &str, default| {
        let given = std::env::var(name).ok();
        given.map_or(default, |text| text.parse().expect("a whole number"))
    };
    let mut rng = Rng::with_seed(number("FUZZ_SEED", 1));
    let seeds: Vec<Vec<u8>> = seeds.lines().map(unescaped).collect();
    let tried = |input: &[u8]| {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| check(input))) {
            eprintln!("the input was {:?}", input.escape_ascii().to_string());
            resume_unwind(panic);
        }
    };
    seeds.iter().for_each(|seed| tried(seed));
    for _ in 0..number("FUZZ_INPUTS", INPUTS) {
        let mut input = rng.choice(&seeds).cloned().unwrap_or_default();
        for _ in 0..rng.usize(1..=6) {
            change(&mut input, &seeds, &mut rng);
            input.truncate(LONGEST);
        }
        tried(&input);
    }
}

/// The fields that an input means: a line each, `name: value`. What no field is is left out.
pub fn fields(input: &[u8]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for line in input.split(|byte| *byte == b'\n') {
        let mut parts = line.splitn(2, |byte| *byte == b':');
        let (name, value) = (
            parts.next().unwrap_or_default(),
            parts.next().unwrap_or_default(),
        );
        let name = HeaderName::from_bytes(name.trim_ascii());
        let value = HeaderValue::from_bytes(value.trim_ascii());
        if let (Ok(name), Ok(value)) = (name, value) {
            let _ = headers.try_append(name, value);
        }
    }
    headers
}

fn change(input: &mut Vec<u8>, seeds: &[Vec<u8>], rng: &mut Rng) {
    let place = |rng: &mut Rng, length: usize| rng.usize(0..=length);
    let span = |rng: &mut Rng, length: usize| {
        let (one, other) = (place(rng, length), place(rng, length));
        one.min(other)..one.max(other)
    };
    let at = place(rng, input.len());
    match rng.u8(0..8) {
        0 if !input.is_empty() => input[at.min(at.max(1) - 1)] ^= 1 << rng.u8(0..8),
        1 if !input.is_empty() => input[at.max(1) - 1] = rng.u8(..),
        2 => drop(input.drain(span(rng, input.len()))),
        3 => {
            let piece = input[span(rng, input.len())].to_vec();
            drop(input.splice(at..at, piece));
        }
        4 => {
            let strange = rng.choice(STRANGE).unwrap_or_default();
            drop(input.splice(at..at, strange.iter().copied()));
        }
        5 => {
            let other = rng.choice(seeds).map_or(&[][..], Vec::as_slice);
            let piece = other[span(rng, other.len())].to_vec();
            let gone = span(rng, input.len());
            drop(input.splice(gone, piece));
        }
        6 => {
            let byte = rng.choice(input.iter().copied()).unwrap_or(b'a');
            let count = 1 << rng.u8(0..11);
            drop(input.splice(at..at, std::iter::repeat_n(byte, count)));
        }
        _ => input.truncate(at),
    }
}

fn unescaped(line: &str) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = line.as_bytes();
    while let [first, after @ ..] = rest {
        rest = after;
        let escape = if *first == b'\\' { after.first() } else { None };
        let (byte, taken) = match escape {
            Some(b'r') => (b'\r', 1),
            Some(b'n') => (b'\n', 1),
            Some(b'\\') => (b'\\', 1),
            Some(b'x') => {
                let digits = std::str::from_utf8(&after[1..3]).expect("two digits");
                (u8::from_str_radix(digits, 16).expect("two digits"), 3)
            }
            _ => (*first, 0),
        };
        out.push(byte);
        rest = &rest[taken..];
    }
    out
}
