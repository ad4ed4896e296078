//! The house: a room imports only from rooms on floors below its own.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// The floors, as the crate's front page has them.
const FLOORS: [(&str, u8); 20] = [
    ("cli", 8),
    ("process", 8),
    ("server", 7),
    ("admin", 7),
    ("load", 7),
    ("proxy", 6),
    ("origin", 5),
    ("guard", 5),
    ("store", 4),
    ("flight", 4),
    ("upstream", 4),
    ("database", 4),
    ("config", 3),
    ("metrics", 3),
    ("policy", 2),
    ("http", 1),
    ("tls", 1),
    ("clock", 0),
    ("error", 0),
    ("main", 9),
];

/// Imports between rooms of one floor, each with its reason.
const BESIDE: [(&str, &str, &str); 3] = [
    ("cli", "process", "the process is what its arguments start"),
    (
        "flight",
        "store",
        "a flight hands on heads and entries, and charges what it holds",
    ),
    ("error", "clock", "a failure's response carries its time"),
];

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// The names after `crate::` on a line, also those of `use crate::{a::B, c::D}`.
fn imported(line: &str) -> Vec<String> {
    let name = |text: &str| {
        text.chars()
            .take_while(|letter| letter.is_alphanumeric() || *letter == '_')
            .collect::<String>()
    };
    let mut found = Vec::new();
    for part in line.split("crate::").skip(1) {
        match part.strip_prefix('{') {
            Some(list) => found.extend(list.split(',').map(|item| name(item.trim()))),
            None => found.push(name(part)),
        }
    }
    found
}

#[test]
fn a_room_imports_only_from_floors_below() {
    let floors: BTreeMap<&str, u8> = FLOORS.into_iter().collect();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    assert!(files.len() > 30, "{}", files.len());
    let mut wrong = Vec::new();
    for file in files {
        let relative = file.strip_prefix(&root).unwrap();
        let room = relative
            .iter()
            .next()
            .unwrap()
            .to_str()
            .unwrap()
            .trim_end_matches(".rs");
        if room == "lib" {
            continue;
        }
        let own = floors
            .get(room)
            .unwrap_or_else(|| panic!("{room} has no floor"));
        let text = std::fs::read_to_string(&file).unwrap();
        for (number, line) in text
            .lines()
            .enumerate()
            .filter(|(_, line)| !line.trim_start().starts_with("//"))
        {
            for target in imported(line) {
                let beside = BESIDE
                    .iter()
                    .any(|(from, to, _)| *from == room && *to == target);
                let below = floors.get(target.as_str()).is_some_and(|floor| floor < own);
                if target != room && !below && !beside {
                    wrong.push(format!(
                        "{}:{}: {room} (floor {own}) imports {target}",
                        relative.display(),
                        number + 1
                    ));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_front_page_and_this_test_show_the_same_house() {
    let page =
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/lib.rs")).unwrap();
    for (room, floor) in FLOORS.into_iter().filter(|(room, _)| *room != "main") {
        let row = page
            .lines()
            .find(|line| line.starts_with(&format!("//! | {floor} |")))
            .unwrap();
        assert!(
            row.contains(&format!("[`{room}`]")) || row.contains(&format!("mod@{room}`]")),
            "{room} is not on floor {floor}: {row}"
        );
    }
}

/// The names of all functions under a folder of Rust sources.
fn functions(folder: &Path) -> BTreeSet<String> {
    let mut files = Vec::new();
    sources(folder, &mut files);
    let mut found = BTreeSet::new();
    for file in files {
        let text = std::fs::read_to_string(file).unwrap();
        for rest in text.split("fn ").skip(1) {
            let letters = rest.chars();
            found.insert(
                letters
                    .take_while(|letter| letter.is_alphanumeric() || *letter == '_')
                    .collect(),
            );
        }
    }
    found
}

#[test]
fn every_test_that_the_requirements_name_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut known = functions(&root.join("tests"));
    known.extend(functions(&root.join("src")));
    let table = std::fs::read_to_string(root.join("src/policy/requirements.md")).unwrap();
    let rows: Vec<&str> = table
        .lines()
        .filter(|line| line.starts_with("| "))
        .skip(1)
        .collect();
    assert!(rows.len() > 90, "{}", rows.len());
    let (mut named, mut missing) = (0, Vec::new());
    for row in rows {
        let held = row.rsplit(" | ").next().unwrap();
        let words = held.split(|letter: char| !letter.is_alphanumeric() && letter != '_');
        let names: Vec<&str> = words.filter(|word| word.matches('_').count() > 2).collect();
        named += names.len();
        missing.extend(names.into_iter().filter(|name| !known.contains(*name)));
    }
    assert!(missing.is_empty(), "{missing:#?}");
    assert!(named > 150, "{named}");
}
