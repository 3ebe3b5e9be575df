//! How full the configured mounts are, by statvfs(3). A dead network mount can hold the call for ever, so it is made
//! on a thread of its own with a deadline; while it hangs, that mount is not asked again.

use super::named::Named;
use super::scan::Scan;
use super::sysroot::Absent;
use serde::Serialize;
use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::Duration;

/// How long a mount may take to answer.
const DEADLINE: Duration = Duration::from_millis(500);
/// Enough for one system call.
const STACK_BYTES: usize = 64 * 1024;

/// A filesystem, in KiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Usage {
    /// All there is.
    pub total_kib: u64,
    /// What a user who is not root may still use.
    pub available_kib: u64,
}

type Answer = Result<Usage, Absent>;

/// The mounts that are looked at.
#[derive(Debug, Default)]
pub struct Mounts {
    paths: Vec<PathBuf>,
    hanging: Named<Receiver<Answer>>,
}

impl Mounts {
    /// These.
    pub fn new(paths: Vec<PathBuf>) -> Self {
        Self { paths, hanging: Named::default() }
    }

    /// Asks each. Under a sysroot there is nobody to ask: the answer would be that of another machine.
    pub fn read(&mut self, scan: &Scan) -> Named<Option<Usage>> {
        let mut found = Named::default();
        for path in self.paths.clone() {
            let name = path.display().to_string();
            let answer = match scan.root().is_live() {
                true => self.ask(&name, &path),
                false => Err(Absent::Says("not asked under a sysroot")),
            };
            scan.note(format_args!("filesystems.{name}"), "statvfs", answer.as_ref().err());
            found.insert(name, answer.ok());
        }
        found
    }

    fn ask(&mut self, name: &str, path: &Path) -> Answer {
        let waiting = match self.hanging.remove(name) {
            Some(waiting) => waiting,
            None => {
                let (answer, waiting) = sync_channel(1);
                let path = path.to_owned();
                let thread = std::thread::Builder::new().name("statvfs".into()).stack_size(STACK_BYTES);
                // Nobody may be waiting any more: the answer is then old, and goes nowhere.
                let spawned = thread.spawn(move || drop(answer.send(statvfs(&path))));
                spawned.map_err(|e| Absent::Failed(e.raw_os_error().unwrap_or(libc::EAGAIN)))?;
                waiting
            }
        };
        match waiting.recv_timeout(DEADLINE) {
            Ok(answer) => answer,
            Err(RecvTimeoutError::Disconnected) => Err(Absent::Failed(libc::EIO)),
            Err(RecvTimeoutError::Timeout) => {
                self.hanging.insert(name.to_owned(), waiting);
                Err(Absent::Says("no answer within 500 ms"))
            }
        }
    }
}

fn statvfs(path: &Path) -> Answer {
    let path = CString::new(path.as_os_str().as_bytes()).map_err(|_| Absent::Malformed)?;
    // SAFETY: an all-zero statvfs is a valid value of that plain C structure.
    let mut found: libc::statvfs = unsafe { std::mem::zeroed() };
    // SAFETY: `path` ends with NUL, `found` is valid for writes; both outlive the call.
    if unsafe { libc::statvfs(path.as_ptr(), &mut found) } != 0 {
        return Err(Absent::Failed(std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO)));
    }
    usage(found.f_frsize, found.f_blocks, found.f_bavail)
}

/// From blocks to KiB.
///
/// # Errors
/// A filesystem without blocks (proc, sysfs), or more than can be.
fn usage(block_bytes: u64, blocks: u64, available: u64) -> Answer {
    if blocks == 0 {
        return Err(Absent::Says("it has no blocks"));
    }
    let kib = |blocks: u64| blocks.checked_mul(block_bytes).map(|n| n / 1024).ok_or(Absent::OutOfRange);
    Ok(Usage { total_kib: kib(blocks)?, available_kib: kib(available)? })
}

#[cfg(test)]
mod tests {
    use super::super::sysroot::Sysroot;
    use super::*;

    #[test]
    fn the_live_root_has_a_size_and_other_trees_are_not_asked() {
        let paths: Vec<PathBuf> = vec!["/".into(), "/proc".into(), "/no such mount".into()];
        let found = Mounts::new(paths.clone()).read(&Scan::new(&Sysroot::default(), false));
        assert!(
            found
                .get("/")
                .unwrap()
                .is_some_and(|usage| usage.total_kib > 0 && usage.available_kib <= usage.total_kib)
        );
        assert_eq!(found.get("/proc").unwrap().as_ref(), None);
        assert_eq!(found.get("/no such mount").unwrap().as_ref(), None);
        let found = Mounts::new(paths).read(&Scan::new(&Sysroot::new("/tmp"), false));
        assert_eq!(found.get("/").unwrap().as_ref(), None);
    }

    #[test]
    fn a_mount_that_hangs_is_asked_once() {
        let mut mounts = Mounts::default();
        let (answer, waiting) = sync_channel(1);
        mounts.hanging.insert("/".into(), waiting);
        assert_eq!(mounts.ask("/", Path::new("/")), Err(Absent::Says("no answer within 500 ms")));
        let usage = usage(4096, 10, 5).unwrap();
        answer.send(Ok(usage)).unwrap();
        assert_eq!(mounts.ask("/", Path::new("/")), Ok(Usage { total_kib: 40, available_kib: 20 }));
        assert!(mounts.hanging.is_empty());
    }
}
