//! The guard's process: forked, not executed. Starting the program anew took as long as all of the sandbox.

use super::{CONTROL, Guard, Spec};
use crate::exec::sys;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::panic::AssertUnwindSafe;

/// A guard that was started.
#[derive(Debug)]
pub(in crate::exec) struct Process {
    pid: i32,
}

impl Process {
    /// Forks it, to run `spec` with exactly these descriptors under these numbers, `CONTROL` the lowest. The sources lie
    /// above all numbers, and are closed here.
    pub(in crate::exec) fn start(wired: Vec<(OwnedFd, RawFd)>, spec: Spec) -> io::Result<Self> {
        let null = sys::open_path("/dev/null", libc::O_RDWR)?;
        // SAFETY: the child goes its own way to the end. What it shares with other threads is the allocator, which the C
        // library puts in order (glibc, and musl since 1.2.2), and nothing else of ours: no lock, no log.
        match sys::check(unsafe { libc::fork() })? {
            0 => {
                let code =
                    std::panic::catch_unwind(AssertUnwindSafe(|| live(&wired, &null, spec))).unwrap_or(70);
                // SAFETY: ends the child at once, without running anything of its parent's.
                unsafe { libc::_exit(i32::from(code)) }
            }
            pid => Ok(Self { pid }),
        }
    }

    pub(in crate::exec) fn pid(&self) -> i32 {
        self.pid
    }

    /// Whether it has ended by itself and is collected. One that was killed, or is none of ours, counts as ended, too, but
    /// proves nothing: `Some(false)`.
    pub(in crate::exec) fn has_ended(&self) -> Option<bool> {
        let mut status = 0;
        // SAFETY: `status` is valid for writes.
        match unsafe { libc::waitpid(self.pid, &mut status, libc::WNOHANG) } {
            0 => None,
            pid => Some(pid == self.pid && libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0),
        }
    }
}

/// The whole life of a guard; its exit code.
fn live(wired: &[(OwnedFd, RawFd)], null: &OwnedFd, spec: Spec) -> u8 {
    let standard = [(null.as_raw_fd(), 0), (null.as_raw_fd(), 1)];
    let numbered = wired.iter().map(|(fd, number)| (fd.as_raw_fd(), *number));
    let mut last = CONTROL;
    for (fd, number) in standard.into_iter().chain(numbered) {
        // SAFETY: both are numbers; whatever was open under the second one, nobody here uses.
        if sys::check(unsafe { libc::dup2(fd, number) }).is_err() {
            return 70;
        }
        last = last.max(number);
    }
    // SAFETY: what the agent has open is its own: journal, connections, the pipes of other jobs.
    unsafe { sys::close_from(last + 1) };
    match Guard::begin(spec) {
        Ok(Some(mut guard)) => guard.run(),
        Ok(None) => 0,
        Err(_) => 70,
    }
}
