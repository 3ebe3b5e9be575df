//! A cgroup per job where this process may make one (cgroup v2, root or delegated): what leaves its session, its parent
//! and its environment is still in it, and `cgroup.kill` (Linux 5.14) kills it all at once. See cgroups(7).
//!
//! Deliberately absent: limits. Rules that ask for them are denied.

use std::fs;
use std::path::{Path, PathBuf};

/// One job's cgroup.
#[derive(Debug, Clone)]
pub(super) struct Cgroup {
    dir: PathBuf,
}

impl Cgroup {
    /// Makes one beneath our own; `None` where that cannot be.
    pub(super) fn make(name: &str) -> Option<Self> {
        let dir = own()?.join(name);
        // One of an earlier start was emptied by the sweep.
        let _ = fs::remove_dir(&dir);
        fs::create_dir(&dir).ok().map(|()| Self { dir })
    }

    /// The one at `dir`.
    pub(super) fn at(dir: &Path) -> Self {
        Self { dir: dir.to_owned() }
    }

    /// Every one of ours whose name begins so.
    pub(super) fn all(prefix: &str) -> Vec<Self> {
        let entries = own().and_then(|dir| fs::read_dir(dir).ok()).into_iter().flatten().flatten();
        let ours = entries.filter(|e| e.file_name().to_string_lossy().starts_with(prefix));
        ours.map(|e| Self { dir: e.path() }).collect()
    }

    /// Where it is.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Puts the calling process into it.
    pub(super) fn join(&self) -> std::io::Result<()> {
        fs::write(self.dir.join("cgroup.procs"), "0")
    }

    /// Kills everything in it; `true` when nothing is left.
    pub(super) fn kill(&self) -> bool {
        let procs = fs::read_to_string(self.dir.join("cgroup.procs")).unwrap_or_default();
        if procs.trim().is_empty() {
            return true;
        }
        if fs::write(self.dir.join("cgroup.kill"), "1").is_err() {
            procs
                .lines()
                .filter_map(|pid| pid.parse().ok())
                .for_each(|pid| super::sys::kill(pid, libc::SIGKILL));
        }
        false
    }

    /// Removes it; one that is not empty stays.
    pub(super) fn remove(&self) {
        let _ = fs::remove_dir(&self.dir);
    }
}

/// Our own cgroup in the v2 hierarchy, wherever that is mounted.
fn own() -> Option<PathBuf> {
    let text = fs::read_to_string("/proc/self/cgroup").ok()?;
    let path = text.lines().find_map(|line| line.strip_prefix("0::"))?;
    let mounts = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"].map(Path::new);
    let mount = mounts.into_iter().find(|m| m.join("cgroup.procs").exists() && !m.join("tasks").exists())?;
    Some(mount.join(path.trim_start_matches('/')))
}
