//! The house: a room imports only from rooms on floors below its own, a hall of `proxy` only from
//! halls below, and no files import each other in a circle.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// The floors, as the crate's front page has them.
const FLOORS: [(&str, u8); 29] = [
    ("cli", 8),
    ("process", 8),
    ("server", 7),
    ("admin", 7),
    ("load", 7),
    ("reload", 6),
    ("proxy", 6),
    ("origin", 5),
    ("guard", 5),
    ("store", 4),
    ("flight", 4),
    ("upstream", 4),
    ("database", 4),
    ("descriptors", 4),
    ("container", 4),
    ("access_log", 4),
    ("give_back", 0),
    ("config", 3),
    ("metrics", 3),
    ("policy", 2),
    ("http", 1),
    ("tls", 1),
    ("trace", 1),
    ("clock", 0),
    ("error", 0),
    ("supervisor", 0),
    ("fuzz", 0),
    ("main", 9),
    ("build", 9),
];

/// Imports between rooms of one floor, each with its reason.
const BESIDE: [(&str, &str, &str); 5] = [
    ("cli", "process", "the process is what its arguments start"),
    (
        "admin",
        "server",
        "the operator asks for the end of the server",
    ),
    (
        "reload",
        "proxy",
        "the plan that it exchanges is the proxy's",
    ),
    (
        "flight",
        "store",
        "a flight hands on heads and entries, and charges what it holds",
    ),
    ("error", "clock", "a failure's response carries its time"),
];

/// The halls of `proxy`, from the ground: no file imports from a hall above its own.
const HALLS: [&str; 14] = [
    "wire",
    "state",
    "plan",
    "client_request",
    "request_key",
    "keyed_request",
    "exchange",
    "parts",
    "fleet",
    "fetch",
    "purging",
    "admission",
    "client",
    "",
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

/// A file of `src/` without its tests, as a module.
struct Module {
    /// What it names of this crate: paths as they stand there.
    uses: Vec<String>,
    /// What it hands on under its own name: the last name, and the path.
    hands_on: Vec<(String, String)>,
}

/// All modules by their path, `store::purge::book` say.
fn modules() -> BTreeMap<String, Module> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    assert!(files.len() > 100, "{}", files.len());
    let mut found = BTreeMap::new();
    for file in files {
        let path = file.strip_prefix(&root).unwrap().with_extension("");
        let path = path.to_str().unwrap().replace('/', "::");
        let path = path.strip_suffix("::mod").unwrap_or(&path).to_owned();
        if path == "lib" || path.ends_with("::tests") {
            continue;
        }
        let text = std::fs::read_to_string(&file).unwrap();
        found.insert(path, module(&text));
    }
    found
}

fn module(text: &str) -> Module {
    let text = text.split("#[cfg(test)]\nmod tests").next().unwrap();
    let lines = text.lines().map(|line| line.split("//").next().unwrap());
    let text = lines.collect::<Vec<_>>().join("\n");
    let mut module = Module {
        uses: Vec::new(),
        hands_on: Vec::new(),
    };
    let mut rest = String::new();
    let mut left = text.as_str();
    while let Some(at) = left.find("use ") {
        let (before, after) = left.split_at(at);
        let is_word = before.ends_with(['\n', ' ', ')']) || before.is_empty();
        let (statement, behind) = after[4..].split_once(';').unwrap_or((&after[4..], ""));
        if !is_word || statement.contains("=>") || statement.contains('<') {
            rest.push_str(&left[..at + 4]);
            left = &left[at + 4..];
            continue;
        }
        let is_public = before.trim_end().ends_with("pub") || before.ends_with(") ");
        for path in expanded(statement) {
            if is_public {
                let name = path.rsplit("::").next().unwrap().to_owned();
                module.hands_on.push((name, path));
            } else {
                module.uses.push(path);
            }
        }
        rest.push_str(before);
        left = behind;
    }
    rest.push_str(left);
    // Paths in the code itself.
    let is_of_path = |letter: char| letter.is_alphanumeric() || "_:".contains(letter);
    let words = rest.split(|letter: char| !is_of_path(letter));
    let paths = words.map(|word| word.trim_matches(':'));
    let paths = paths.filter(|word| word.contains("::"));
    module.uses.extend(paths.map(str::to_owned));
    module
}

/// The paths of `a::{b, c::{d, e as f}}`.
fn expanded(statement: &str) -> Vec<String> {
    let statement = statement.trim();
    let Some((before, inside)) = statement.split_once('{') else {
        let path = statement.split(" as ").next().unwrap();
        return vec![path.trim().to_owned()];
    };
    let inside = inside.trim().strip_suffix('}').unwrap_or(inside);
    let (mut parts, mut depth) = (vec![String::new()], 0);
    for letter in inside.chars() {
        match letter {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(String::new());
                continue;
            }
            _ => {}
        }
        parts.last_mut().unwrap().push(letter);
    }
    let parts = parts.iter().filter(|part| !part.trim().is_empty());
    parts
        .flat_map(|part| expanded(&format!("{before}{}", part.trim())))
        .collect()
}

/// The module that a path leads to from `own`; `None` where it leads out of this crate.
fn leads_to(modules: &BTreeMap<String, Module>, own: &str, path: &str) -> Option<String> {
    let mut segments: Vec<&str> = path.split("::").collect();
    let join = |before: &str, name: &str| match before {
        "" => name.to_owned(),
        before => format!("{before}::{name}"),
    };
    let mut at = own.to_owned();
    match segments[0] {
        "crate" => {
            at = String::new();
            segments.remove(0);
        }
        "super" => {
            while segments.first() == Some(&"super") {
                at = at
                    .rsplit_once("::")
                    .map_or(String::new(), |(parent, _)| parent.to_owned());
                segments.remove(0);
            }
        }
        "self" => drop(segments.remove(0)),
        name if modules.contains_key(&join(own, name)) => {}
        _ => return None,
    }
    while let Some(name) = segments.first() {
        let next = join(&at, name);
        if modules.contains_key(&next) {
            at = next;
            segments.remove(0);
            continue;
        }
        let handed_on = modules.get(&at).and_then(|module| {
            let mut known = module.hands_on.iter();
            known.find(|(known, _)| known == name)
        });
        if let Some((_, path)) = handed_on {
            return leads_to(modules, &at, path).or(Some(at));
        }
        break;
    }
    (!at.is_empty()).then_some(at)
}

/// What each module imports from, itself left out.
fn imports() -> BTreeMap<String, BTreeSet<String>> {
    let modules = modules();
    let of = |own: &String, module: &Module| {
        let targets = module.uses.iter();
        let targets = targets.filter_map(|path| leads_to(&modules, own, path));
        targets.filter(|target| target != own).collect()
    };
    modules
        .iter()
        .map(|(own, module)| (own.clone(), of(own, module)))
        .collect()
}

fn room(module: &str) -> &str {
    module.split("::").next().unwrap()
}

#[test]
fn a_room_imports_only_from_floors_below() {
    let floors: BTreeMap<&str, u8> = FLOORS.into_iter().collect();
    let mut wrong = Vec::new();
    for (own, targets) in imports() {
        let own_room = room(&own);
        let floor = floors
            .get(own_room)
            .unwrap_or_else(|| panic!("{own} has no floor"));
        for target in &targets {
            let target_room = room(target);
            let beside = BESIDE
                .iter()
                .any(|(from, to, _)| *from == own_room && *to == target_room);
            let below = floors.get(target_room).is_some_and(|of| of < floor);
            if own_room != target_room && !below && !beside {
                wrong.push(format!("{own} (floor {floor}) imports {target}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn no_hall_of_the_proxy_imports_from_one_above_it() {
    let hall = |module: &str| {
        let name = module.strip_prefix("proxy")?;
        let name = name.trim_start_matches("::").split("::").next().unwrap();
        let at = HALLS.iter().position(|known| *known == name);
        Some(at.unwrap_or_else(|| panic!("{module} is in no hall")))
    };
    let (mut wrong, mut seen) = (Vec::new(), 0);
    for (own, targets) in imports() {
        let Some(own_hall) = hall(&own) else { continue };
        for target in &targets {
            let Some(target_hall) = hall(target) else {
                continue;
            };
            seen += 1;
            if target_hall > own_hall {
                wrong.push(format!("{own} imports {target}"));
            }
        }
    }
    assert!(seen > 150, "{seen}");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn no_files_import_each_other_in_a_circle() {
    // A file whose imports all lead out is taken away; in the end only circles are left.
    let mut left = imports();
    loop {
        let free: BTreeSet<String> = left
            .iter()
            .filter(|(_, targets)| targets.is_empty())
            .map(|(own, _)| own.clone())
            .collect();
        if free.is_empty() {
            break;
        }
        left.retain(|own, _| !free.contains(own));
        for targets in left.values_mut() {
            targets.retain(|target| !free.contains(target));
        }
    }
    let rows = left.iter();
    let rows: Vec<String> = rows
        .map(|(own, targets)| format!("{own} imports {targets:?}"))
        .collect();
    assert!(rows.is_empty(), "circles among:\n{}", rows.join("\n"));
}

#[test]
fn circles_and_paths_are_seen_however_they_are_written() {
    let paths = expanded("crate::a::{self, b::{C, D as E}, f}");
    assert_eq!(
        paths,
        [
            "crate::a::self",
            "crate::a::b::C",
            "crate::a::b::D",
            "crate::a::f"
        ]
    );
    let text = "use super::x::Y;\npub use inner::Z;\nfn f() { super::super::g(inner::h()) }";
    let read = module(text);
    assert!(read.uses.contains(&"super::x::Y".to_owned()));
    assert!(read.uses.contains(&"super::super::g".to_owned()));
    assert!(read.uses.contains(&"inner::h".to_owned()));
    assert_eq!(read.hands_on, [("Z".to_owned(), "inner::Z".to_owned())]);
    let modules: BTreeMap<String, Module> = ["a", "a::inner", "a::b::c", "x"]
        .map(|path| (path.to_owned(), module(text)))
        .into();
    let leads = |own, path| leads_to(&modules, own, path);
    assert_eq!(leads("a", "inner::Z").as_deref(), Some("a::inner"));
    assert_eq!(leads("x", "crate::a::Z").as_deref(), Some("a::inner"));
    assert_eq!(leads("a::b::c", "super::super::T").as_deref(), Some("a"));
    assert_eq!(leads("a", "std::sync::Arc"), None);
}

#[test]
fn the_front_page_and_this_test_show_the_same_house() {
    let page =
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/lib.rs")).unwrap();
    // Neither is in the documentation.
    let shown = |room: &str| !["main", "build", "fuzz"].contains(&room);
    for (room, floor) in FLOORS.into_iter().filter(|(room, _)| shown(room)) {
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

#[test]
fn every_bench_stands_in_the_guide_and_says_what_it_answers() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |path: &Path| std::fs::read_to_string(path).unwrap();
    let guide = read(&root.join("src/guide.md"));
    let mut seen = 0;
    for entry in std::fs::read_dir(root.join("benches")).unwrap() {
        let path = entry.unwrap().path();
        let runs = path.join("run");
        let (said, name) = match runs.exists() {
            true => (read(&runs), path.strip_prefix(root).unwrap().join("run")),
            false => (read(&path), Path::new(path.file_stem().unwrap()).to_owned()),
        };
        // The folder of the same name runs it.
        let name = match name.to_str().unwrap() {
            "before_after" => "benches/before-after/run".to_owned(),
            name if runs.exists() => name.to_owned(),
            name => format!("--bench {name}`"),
        };
        let row = guide
            .lines()
            .find(|line| line.starts_with('|') && line.contains(&name));
        let row = row.unwrap_or_else(|| panic!("{name} stands not in src/guide.md"));
        let question = row.split('|').nth(1).unwrap().trim();
        let is_run_by_cargo = said.contains("exec cargo bench");
        // A text may go on in the next line.
        let said = said.replace("\\\n", "");
        let said = said.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(
            said.contains(question) || is_run_by_cargo,
            "{name}: {question}"
        );
        seen += 1;
    }
    assert_eq!(seen, 7);
}
