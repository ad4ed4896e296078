//! The memory that this process may use, as its container says (cgroup v2, v1), held against what
//! it was told to use.

use std::path::{Path, PathBuf};

use tracing::warn;

use crate::config::{Config, units};

/// Beside the budget: measured by `tests/memory.rs` (with Redis by `benches/soak`), and stated in
/// the README.
const BASE: u64 = 40 << 20;
const BASE_WITH_REDIS: u64 = 80 << 20;

/// The limit of the cgroup that this process is in, in bytes; `None` without one.
pub fn memory_limit() -> Option<u64> {
    let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    limit_under(Path::new("/sys/fs/cgroup"), &groups)
}

/// Of all groups above a process the least limit counts.
fn limit_under(root: &Path, groups: &str) -> Option<u64> {
    let mut found: Option<u64> = None;
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else {
            continue;
        };
        let (root, file) = match controllers {
            "" => (root.to_owned(), "memory.max"),
            "memory" => (root.join("memory"), "memory.limit_in_bytes"),
            _ => continue,
        };
        // In a container its own group is the root of what it sees.
        let mut folder = PathBuf::from(path.trim_start_matches('/'));
        loop {
            let text = std::fs::read_to_string(root.join(&folder).join(file));
            let limit = text.ok().and_then(|text| text.trim().parse().ok());
            // Without a limit, v1 says a number that no machine has.
            let limit = limit.filter(|limit| *limit < 1 << 60);
            found = found.min(limit).or(found).or(limit);
            if !folder.pop() {
                break;
            }
        }
    }
    found
}

/// Warns where the budget and what stands beside it are more than the container may have: the
/// kernel would kill the process.
pub fn look_over(config: &Config, limit: Option<u64>) {
    if let Some(warning) = doubt(config, limit) {
        warn!("{warning}");
    }
}

fn doubt(config: &Config, limit: Option<u64>) -> Option<String> {
    let limit = limit?;
    let base = match &config.cache.redis {
        Some(_) => BASE_WITH_REDIS,
        None => BASE,
    };
    let needed = config.cache.memory.saturating_add(base);
    (needed > limit).then(|| {
        let show = units::show_size;
        let fits = limit.saturating_sub(base);
        let remedy = if fits >= 4 << 20 {
            format!("set cache.memory to at most {}", show((fits >> 20) << 20))
        } else {
            "raise the limit of the container".to_owned()
        };
        format!(
            "cache.memory = {} with {} beside it is more than the container's limit of {}: the \
                kernel may kill this process; {remedy}",
            show(config.cache.memory),
            show(base),
            show(limit),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_limit_of_all_groups_above_counts() {
        let folder = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = folder.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        let limit = |groups: &str| limit_under(folder.path(), groups);
        assert_eq!(limit("0::/pods/a\n"), None);
        write("pods/a/memory.max", "max\n");
        assert_eq!(limit("0::/pods/a\n"), None);
        write("pods/memory.max", "134217728\n");
        assert_eq!(limit("0::/pods/a\n"), Some(128 << 20));
        write("pods/a/memory.max", "67108864\n");
        assert_eq!(limit("0::/pods/a\n"), Some(64 << 20));
        write("memory/b/memory.limit_in_bytes", "33554432\n");
        write("memory/memory.limit_in_bytes", "9223372036854771712\n");
        assert_eq!(limit("4:cpu:/b\n3:memory:/b\n"), Some(32 << 20));
    }

    #[test]
    fn a_budget_that_does_not_fit_is_told_with_one_that_does() {
        let text = "[cache]\nmemory = \"256MiB\"\n";
        let config = Config::parse("t", text, &|_| None).unwrap();
        assert_eq!(doubt(&config, None), None);
        assert_eq!(doubt(&config, Some(296 << 20)), None);
        let told = doubt(&config, Some(128 << 20)).unwrap();
        assert!(
            told.contains("128MiB") && told.contains("at most 88MiB"),
            "{told}"
        );
        assert!(
            doubt(&config, Some(32 << 20))
                .unwrap()
                .contains("raise the limit")
        );
    }
}
