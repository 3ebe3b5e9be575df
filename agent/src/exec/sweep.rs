//! After a restart: nothing that an earlier agent started may still run when its end is reported.

use super::cgroup::{Cgroup, Place};
use super::ladder::Ladder;
use super::sys;
use crate::clock;
use ring::digest::{SHA256, digest};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

/// How long guards get to kill their jobs, in milliseconds. They do it at once when their agent dies.
const WAIT_MS: u64 = 10_000;

/// What could not be proven gone.
#[derive(Debug, thiserror::Error)]
#[error("{0}: a job of an earlier start is still running and cannot be killed; reboot the board")]
pub struct SweepError(PathBuf);

/// What the names of our jobs' cgroups begin with.
pub fn prefix(data: &Path) -> String {
    format!("{}-", marker(data).replace("DUNLIN_AGENT=", "dunlin-"))
}

/// The variable by which a job of the agent on `data` is known.
pub fn marker(data: &Path) -> String {
    let hash = digest(&SHA256, data.as_os_str().as_encoded_bytes());
    format!("DUNLIN_AGENT={}", data_encoding::HEXLOWER.encode(&hash.as_ref()[..8]))
}

/// Waits for the guards of an earlier start to be gone, kills what has lost its guard, and clears scratch directories.
/// Returns how many attempts had been left.
///
/// # Errors
/// When something does not go away.
pub fn sweep(data: &Path) -> Result<usize, SweepError> {
    let deadline = clock::boot_ms() + WAIT_MS;
    let mut left = 0;
    for entry in std::fs::read_dir(data.join("run")).into_iter().flatten().flatten() {
        let path = entry.path();
        let Ok(file) = std::fs::File::open(&path) else { continue };
        while !sys::try_lock(file.as_raw_fd()) {
            if clock::boot_ms() >= deadline {
                return Err(SweepError(path));
            }
            pause();
        }
        left += 1;
        let _ = std::fs::remove_file(&path);
    }
    let mark = marker(data);
    let cgroups = Cgroup::all(&Place::find(), &prefix(data));
    let began = clock::boot_ms();
    let mut kill = |cgroup: &Cgroup| {
        let ladder = Ladder { cgroup: Some(cgroup.clone()), user: None };
        let left = !cgroup.processes().is_empty();
        if left {
            ladder.kill(clock::boot_ms() - began, || cgroup.processes());
        }
        left
    };
    while kill_marked(&mark) > 0 || cgroups.iter().any(&mut kill) {
        if clock::boot_ms() >= deadline {
            return Err(SweepError(data.join("run")));
        }
        pause();
    }
    cgroups.iter().for_each(Cgroup::remove);
    let _ = std::fs::remove_dir_all(data.join("scratch"));
    Ok(left)
}

/// Kills every process whose environment has exactly this entry; returns how many there were.
fn kill_marked(mark: &str) -> usize {
    let mut found = 0;
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<i32>().ok()) else { continue };
        let Ok(environ) = std::fs::read(entry.path().join("environ")) else { continue };
        if environ.split(|b| *b == 0).any(|e| e == mark.as_bytes()) {
            found += 1;
            sys::kill(pid, libc::SIGKILL);
        }
    }
    found
}

fn pause() {
    let _ = sys::poll(&mut [], 20);
}
