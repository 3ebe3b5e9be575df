//! What this kernel offers to a sandbox.

use super::sys;
use std::path::Path;

/// Found by asking, not by version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kernel {
    /// Paths can be opened beneath a directory in one call (Linux 5.6).
    pub openat2: bool,
    /// Landlock's ABI, when it is enabled.
    pub landlock: Option<i64>,
    /// `v2`, `hybrid`, `v1` or `none`.
    pub cgroup: &'static str,
    /// Free space for the data directory, in MiB.
    pub free_mib: Option<u64>,
}

impl Kernel {
    /// Asks.
    pub fn probe(data: &Path) -> Self {
        let root = sys::open_path("/", libc::O_PATH);
        let openat2 = root.and_then(|root| {
            use std::os::fd::AsRawFd;
            sys::openat2(root.as_raw_fd(), "proc", libc::O_PATH, libc::RESOLVE_BENEATH)
        });
        // SAFETY: asks for the version only (flag 1): no attribute is read. See landlock_create_ruleset(2).
        let landlock = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, 0usize, 0usize, 1u32) };
        let cgroup = if Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
            "v2"
        } else if Path::new("/sys/fs/cgroup/unified/cgroup.procs").exists() {
            "hybrid"
        } else if Path::new("/sys/fs/cgroup").read_dir().is_ok_and(|mut d| d.next().is_some()) {
            "v1"
        } else {
            "none"
        };
        Self {
            openat2: openat2.is_ok(),
            landlock: (landlock > 0).then_some(landlock),
            cgroup,
            free_mib: sys::free_bytes(data).ok().map(|bytes| bytes >> 20),
        }
    }
}
