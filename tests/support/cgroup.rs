//! A control group with a memory limit, as a container is.

use std::path::{Path, PathBuf};

/// Removed at the end of its test, when nothing is in it any more.
pub struct Cgroup {
    folder: PathBuf,
    limit: &'static str,
}

impl Cgroup {
    /// One of this machine; `None` where none with a memory limit can be made, as in most
    /// containers.
    pub fn create() -> Option<Self> {
        let name = format!("iris-sidecar-test-{}", std::process::id());
        let versions = [
            ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
            ("/sys/fs/cgroup", "memory.max"),
        ];
        versions.into_iter().find_map(|(root, limit)| {
            let folder = Path::new(root).join(&name);
            std::fs::create_dir(&folder).ok()?;
            let group = Self { folder, limit };
            group.folder.join(limit).exists().then_some(group)
        })
    }

    /// Where a process writes its number to be in it.
    pub fn processes(&self) -> PathBuf {
        self.folder.join("cgroup.procs")
    }

    pub fn set_limit(&self, bytes: u64) {
        std::fs::write(self.folder.join(self.limit), bytes.to_string()).expect("it is ours");
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir(&self.folder);
    }
}
