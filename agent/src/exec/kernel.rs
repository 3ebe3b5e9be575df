//! What this kernel offers to a sandbox, and what this process may use of it.

use super::cgroup::Place;
use super::sandbox::{landlock, mounts, seccomp};
use super::sys;
use crate::fault;
use dunlin_wire::job::layer;
use std::path::Path;

/// Found by asking, not by version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kernel {
    /// Paths can be opened beneath a directory in one call (Linux 5.6).
    pub openat2: bool,
    /// Landlock's ABI, when it is enabled.
    pub landlock: Option<i64>,
    /// `v2`, `hybrid`, `v1` or `none`: where cgroups can be made.
    pub cgroup: &'static str,
    /// Bits of [`layer`] that a job can get here.
    pub layers: u32,
    /// Free space for the data directory, in MiB.
    pub free_mib: Option<u64>,
    pub(super) place: Place,
}

impl Kernel {
    /// Asks; changes nothing.
    pub fn probe(data: &Path) -> Self {
        Self::with(data, Place::find())
    }

    /// Asks, after our own cgroup was made ready for those of jobs.
    pub(super) fn prepare(data: &Path) -> Self {
        Self::with(data, Place::prepare())
    }

    fn with(data: &Path, place: Place) -> Self {
        let root = sys::open_path("/", libc::O_PATH);
        let openat2 = root.and_then(|root| {
            use std::os::fd::AsRawFd;
            sys::openat2(root.as_raw_fd(), "proc", libc::O_PATH, libc::RESOLVE_BENEATH)
        });
        let landlock = landlock::abi();
        let mut layers = layer::NO_NEW_PRIVS | layer::RLIMITS | layer::CAPABILITIES | place.layers();
        layers |= if landlock > 0 { layer::LANDLOCK } else { 0 };
        layers |= if seccomp::is_there() { layer::SECCOMP } else { 0 };
        for (bit, attempt) in ATTEMPTS {
            layers |= if matches!(sys::in_child(|| u8::from(attempt())), Ok(1)) { *bit } else { 0 };
        }
        for (bit, word) in layer::ALL.iter().filter(|(_, word)| fault::masked(&format!("layer:{word}"))) {
            tracing::warn!(layer = word, "masked by a test");
            layers &= !bit;
        }
        Self {
            openat2: openat2.is_ok(),
            landlock: (landlock > 0).then_some(landlock),
            cgroup: place.name(),
            layers,
            free_mib: sys::free_bytes(data).ok().map(|bytes| bytes >> 20),
            place,
        }
    }
}

/// Whether a layer can be had, found out in a process of its own.
type Attempt = fn() -> bool;

/// What is only known by doing it, in a child that ends.
const ATTEMPTS: &[(u32, Attempt)] = &[
    (layer::MOUNTS, || mounts::try_out().is_ok()),
    (layer::IPC, || unshare(libc::CLONE_NEWIPC)),
    (layer::NETWORK, || unshare(libc::CLONE_NEWNET)),
    (layer::USER, || {
        // SAFETY: these calls take numbers only.
        unsafe { libc::setgroups(0, std::ptr::null()) == 0 && libc::setresuid(65_534, 65_534, 65_534) == 0 }
    }),
];

fn unshare(flags: libc::c_int) -> bool {
    // SAFETY: takes a number only.
    unsafe { libc::unshare(flags) == 0 }
}
