//! The README's commands, word for word and in order, in a network of their own, as somebody would
//! type them who has nothing else on the machine.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

fn blocks(language: &str) -> Vec<String> {
    let readme = std::fs::read_to_string(format!("{ROOT}/README.md")).unwrap();
    let opening = format!("```{language}\n");
    let blocks = readme.split(opening.as_str()).skip(1);
    blocks
        .map(|block| block.split("```").next().unwrap().to_owned())
        .collect()
}

/// What stands in the place of programs that are not to do here what they do: nothing is compiled,
/// and what serves does so behind the next command.
const SIDECAR: &str = r#"#!/usr/bin/env bash
set -eu
if [ $# = 0 ] || [ "$1" = serve ]; then
    [ ! -f server.pid ] || kill -KILL "$(cat server.pid)" 2>/dev/null || true
    "$REAL" "$@" >/dev/null 2>server.log &
    echo $! >server.pid
    until grep -q serving server.log; do kill -0 $! || { cat server.log >&2; exit 1; }; sleep 0.05; done
    exit
fi
exec "$REAL" "$@"
"#;

const CARGO: &str = r#"#!/usr/bin/env bash
case "$*" in
    "run --release") exec target/release/iris-sidecar ;;
    "build --release") ;;
    *) echo "cargo $*: of no use to this test" >&2; exit 1 ;;
esac
"#;

const DOCKER: &str = r#"#!/usr/bin/env bash
set -eu
[ "$1" != build ] || { [ -f docker/Dockerfile ]; exit; }
[ "$1" = run ]
shift
export IRIS_DEFAULT_ADDRESS=[::]:8080
while [ "$1" != iris-sidecar ]; do
    case "$1" in
        --read-only) shift ;;
        -p | --add-host) shift 2 ;;
        -e) export "${2//host.docker.internal/127.0.0.1}"; shift 2 ;;
        *) echo "docker run $1: of no use to this test" >&2; exit 1 ;;
    esac
done
shift
exec target/release/iris-sidecar "$@"
"#;

/// Runs the blocks in one shell. The API of "in front of your API" is a server of files.
const SCRIPT: &str = r#"
set -euo pipefail
ip link set lo up
trap 'kill -KILL $(cat server.pid) $api 2>/dev/null || true' EXIT
mkdir -p api/api/iris && echo '{}' >api/api/iris/overview
python3 -m http.server 3000 --bind 127.0.0.1 --directory api >/dev/null 2>&1 &
api=$!
curl() { command curl -sS --noproxy '*' --fail-with-body "$@"; }
key() { grep -o 'sk_live_[A-Za-z0-9_-]*' server.log | head -n 1; }
for block in $(seq 0 $((BLOCKS - 1))); do
    # Who asks with a key asks the demo.
    if grep -q 'echo $KEY' "block-$block.sh"; then target/release/iris-sidecar && KEY=$(key); fi
    if grep -q sk_live_… "block-$block.sh"; then sed -i "s/sk_live_…/$(key)/" "block-$block.sh"; fi
    echo "== $block"
    cat "block-$block.sh"
    . "./block-$block.sh"
done
echo "all $BLOCKS were run"
"#;

/// What stands where something is still to be put.
#[test]
fn the_readme_is_finished() {
    let readme = std::fs::read_to_string(format!("{ROOT}/README.md")).unwrap();
    let is_shouted = |line: &&str| {
        let is_capital = |letter: char| letter.is_ascii_uppercase() || letter == '_';
        line.len() > 3 && line.chars().all(is_capital)
    };
    assert_eq!(readme.lines().find(is_shouted), None);
    for title in ["The Iris case", "Measure it yourself", "Beside others"] {
        let (_, section) = readme.split_once(&format!("\n## {title}\n")).unwrap();
        let section = section.split("\n## ").next().unwrap();
        let rows = section
            .lines()
            .filter(|line| line.starts_with("| "))
            .count();
        assert!(rows >= 4, "{title} has {rows} rows");
    }
}

fn write(path: &Path, text: &str) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
    let mode = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(path, mode).unwrap();
}

#[test]
fn every_command_of_the_readme_does_what_it_says() {
    let folder = tempfile::tempdir().unwrap();
    let place = |name: &str| folder.path().join(name);
    for (name, text) in [
        ("target/release/iris-sidecar", SIDECAR),
        ("bin/cargo", CARGO),
        ("bin/docker", DOCKER),
        // What runs this one.
        ("tests/run", "#!/bin/sh\n"),
    ] {
        write(&place(name), text);
    }
    for name in ["config", "docker"] {
        std::os::unix::fs::symlink(format!("{ROOT}/{name}"), place(name)).unwrap();
    }
    std::fs::write(place("iris.toml"), &blocks("toml")[0]).unwrap();
    let blocks = blocks("sh");
    assert!(blocks.len() >= 10, "{}", blocks.len());
    for (number, block) in blocks.iter().enumerate() {
        write(&place(&format!("block-{number}.sh")), block);
    }
    let path = format!(
        "{}:{}",
        place("bin").display(),
        std::env::var("PATH").unwrap()
    );
    let output = Command::new("unshare")
        .args(["--map-root-user", "--net", "bash", "-c", SCRIPT])
        .current_dir(folder.path())
        .env("PATH", path)
        .env("REAL", env!("CARGO_BIN_EXE_iris-sidecar"))
        .env("BLOCKS", blocks.len().to_string())
        .env("GIT_DIR", format!("{ROOT}/.git"))
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    let end = said.len() - said.len().min(3000);
    let end = (end..).find(|at| said.is_char_boundary(*at)).unwrap();
    assert!(output.status.success(), "{}", &said[end..]);
    assert!(
        said.contains("X-Cache: HIT") || said.contains("x-cache: HIT"),
        "no hit was seen"
    );
}
