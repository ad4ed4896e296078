//! Run by cargo before the crate is compiled: which commit this is, and for which machine.

use std::path::Path;
use std::process::Command;

fn main() {
    // Said from outside where there is no repository: in an image, or a package.
    println!("cargo::rerun-if-env-changed=IRIS_COMMIT");
    for seen in [".git/HEAD", ".git/logs/HEAD", ".cargo_vcs_info.json"] {
        if Path::new(seen).exists() {
            println!("cargo::rerun-if-changed={seen}");
        }
    }
    let said = std::env::var("IRIS_COMMIT").ok();
    let said = said.filter(|said| !said.is_empty());
    let commit = said.or_else(of_repository).or_else(of_package);
    let commit: String = commit.map_or_else(
        || "of no known commit".to_owned(),
        |commit| commit.chars().take(12).collect(),
    );
    println!("cargo::rustc-env=IRIS_COMMIT={commit}");
    let target = std::env::var("TARGET").unwrap_or_default();
    println!("cargo::rustc-env=IRIS_TARGET={target}");
}

fn of_repository() -> Option<String> {
    // Of a repository around a copy of the sources nothing is said.
    Path::new(".git").exists().then_some(())?;
    let mut git = Command::new("git");
    let told = git.args(["rev-parse", "HEAD"]).output().ok()?;
    let text = String::from_utf8(told.stdout).ok()?;
    told.status.success().then(|| text.trim().to_owned())
}

/// What `cargo package` has noted.
fn of_package() -> Option<String> {
    let noted = std::fs::read_to_string(".cargo_vcs_info.json").ok()?;
    let (_, rest) = noted.split_once("\"sha1\": \"")?;
    Some(rest.split('"').next()?.to_owned())
}
