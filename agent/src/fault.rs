//! Crash points for the crash tests: `DUNLIN_FAULT=<point>:<n>` kills this process with SIGKILL the n-th time that the
//! point is passed. Without the feature `fault` it is nothing.

/// Dies here when told to.
#[cfg(not(feature = "fault"))]
pub fn point(_name: &str) {}

/// Dies here when told to.
#[cfg(feature = "fault")]
pub fn point(name: &str) {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};
    static WANTED: OnceLock<Option<(String, u64)>> = OnceLock::new();
    static PASSED: AtomicU64 = AtomicU64::new(0);
    let wanted = WANTED.get_or_init(|| {
        let text = std::env::var("DUNLIN_FAULT").ok()?;
        let (point, n) = text.split_once(':')?;
        Some((point.to_owned(), n.parse().ok()?))
    });
    if let Some((point, n)) = wanted
        && point == name
        && PASSED.fetch_add(1, Ordering::Relaxed) + 1 == *n
    {
        // SAFETY: kill has no memory effects; the process is meant to die here.
        unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
        std::thread::park();
    }
}

/// After how long a standing connection is made anew, when a test says so (`DUNLIN_STALE_MS`).
pub fn stale_after() -> Option<std::time::Duration> {
    let text = cfg!(feature = "fault").then(|| std::env::var("DUNLIN_STALE_MS").ok())??;
    text.parse().ok().map(std::time::Duration::from_millis)
}

/// A copy of another board that is read instead of this machine, when a test says so (`DUNLIN_SYSROOT`).
pub fn sysroot() -> Option<std::path::PathBuf> {
    cfg!(feature = "fault").then(|| std::env::var_os("DUNLIN_SYSROOT"))?.map(Into::into)
}

/// The variable by which a test masks rungs of the ladder that kills a job (some of `cgroup.kill`, `cgroup.freeze`,
/// `freezer`, `kill-user`, `walk`, with commas between), system calls that older kernels lack (`mount_setattr`), and
/// layers of the sandbox (`layer:landlock` and so on).
pub const MASK: &str = "DUNLIN_MASK";

/// Whether a test masks this.
pub fn masked(what: &str) -> bool {
    if !cfg!(feature = "fault") {
        return false;
    }
    std::env::var(MASK).is_ok_and(|mask| mask.split(',').any(|m| m == what))
}
