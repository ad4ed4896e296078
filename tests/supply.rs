//! What the binary is made of: where it comes from, under which licences, and for which compiler.

use std::process::Command;

use serde_json::Value;

/// The packages of the graph, ours left out.
fn packages() -> Vec<Value> {
    // What another system would need was not fetched.
    let target = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--locked", "--offline"])
        .args(["--filter-platform", &target])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let told: Value = serde_json::from_slice(&output.stdout).unwrap();
    let all = told["packages"].as_array().unwrap();
    let others = all
        .iter()
        .filter(|package| package["name"] != "iris-sidecar");
    others.cloned().collect()
}

/// `1.95` and `1.95.0`, to be compared.
fn release(text: &str) -> Vec<u32> {
    let mut parts: Vec<u32> = text.split('.').map(|part| part.parse().unwrap()).collect();
    parts.resize(3, 0);
    parts
}

#[test]
fn everything_comes_from_the_registry_and_builds_with_the_compiler_that_is_promised() {
    let ours = release(env!("CARGO_PKG_RUST_VERSION"));
    for package in packages() {
        let name = package["name"].as_str().unwrap();
        let source = package["source"].as_str().unwrap_or_default();
        assert!(
            source.starts_with("registry+https://github.com/rust-lang/crates.io-index"),
            "{name}: {source}"
        );
        if let Some(wanted) = package["rust_version"].as_str() {
            assert!(release(wanted) <= ours, "{name} wants Rust {wanted}");
        }
    }
}

/// Those of `.cargo/deny.toml`; for every package one of its choices is among them.
#[test]
fn every_licence_is_one_that_is_allowed() {
    let text = include_str!("../.cargo/deny.toml");
    let allowed: toml::Table = text.parse().unwrap();
    let allowed = allowed["licenses"]["allow"].as_array().unwrap();
    let allowed: Vec<&str> = allowed.iter().filter_map(toml::Value::as_str).collect();
    for package in packages() {
        let name = package["name"].as_str().unwrap();
        let licence = package["license"]
            .as_str()
            .unwrap_or_else(|| panic!("{name} names none"));
        // "MIT OR Apache-2.0", "(MIT OR Apache-2.0) AND Unicode-3.0", and the older
        // "MIT/Apache-2.0".
        let licence = licence.replace('/', " OR ").replace(['(', ')'], " ");
        let is_allowed = licence.split(" AND ").all(|each| {
            let mut choices = each.split(" OR ").map(str::trim);
            choices.any(|choice| allowed.contains(&choice))
        });
        assert!(is_allowed, "{name}: {licence}");
    }
}
