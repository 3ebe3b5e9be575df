//! Landlock: no writing but below the given directories, whoever the job's user is, and no signal to a process outside
//! (Linux 6.12). See landlock(7). Three system calls by hand: the crate is larger than what is used of it.

use crate::exec::sys::{self, check};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

const WRITE_FILE: u64 = 1 << 1;
/// remove_dir, remove_file, and make_* of seven kinds.
const DIRECTORIES: u64 = 0x1ff0;
/// Since ABI 2, 3.
const REFER: u64 = 1 << 13;
const TRUNCATE: u64 = 1 << 14;
/// No signal leaves the job, since ABI 6.
const SCOPE_SIGNAL: u64 = 1 << 1;
const CREATE_RULESET_VERSION: u32 = 1;
const RULE_PATH_BENEATH: u32 = 1;

/// `struct landlock_ruleset_attr` as of ABI 6; older kernels take its beginning.
#[repr(C)]
struct Ruleset {
    handled_fs: u64,
    handled_net: u64,
    scoped: u64,
}

/// `struct landlock_path_beneath_attr`.
#[repr(C, packed)]
struct PathBeneath {
    allowed: u64,
    parent: i32,
}

/// The kernel's ABI, 0 where there is none.
pub(in crate::exec) fn abi() -> i64 {
    // SAFETY: asks for the version only: no attribute is read. See landlock_create_ruleset(2).
    unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, 0usize, 0usize, CREATE_RULESET_VERSION) }.max(0)
}

/// A ruleset that allows writing below `dirs`, and to devices that are there. Made before the user is changed, who may not
/// be able to open them.
pub(in crate::exec) fn prepare<'a>(dirs: impl Iterator<Item = &'a str>) -> io::Result<OwnedFd> {
    let abi = abi();
    let since = |n: i64, rights: u64| if abi >= n { rights } else { 0 };
    let rights = WRITE_FILE | DIRECTORIES | since(2, REFER) | since(3, TRUNCATE);
    let attr = Ruleset { handled_fs: rights, handled_net: 0, scoped: since(6, SCOPE_SIGNAL) };
    let size = if abi >= 6 { size_of::<Ruleset>() } else { size_of::<u64>() };
    // SAFETY: `attr` lives through the call and is at least `size` long; the result is a new descriptor.
    let ruleset = unsafe {
        let fd = check(libc::syscall(libc::SYS_landlock_create_ruleset, &attr, size, 0u32) as libc::c_int)?;
        OwnedFd::from_raw_fd(fd)
    };
    let devices = WRITE_FILE | since(3, TRUNCATE);
    for (dir, allowed) in dirs.map(|dir| (dir, rights)).chain([("/dev", devices)]) {
        let fd = sys::open_path(dir, libc::O_PATH | libc::O_DIRECTORY)?;
        let rule = PathBeneath { allowed, parent: fd.as_raw_fd() };
        // SAFETY: `rule` lives through the call.
        let added = unsafe {
            libc::syscall(libc::SYS_landlock_add_rule, ruleset.as_raw_fd(), RULE_PATH_BENEATH, &rule, 0u32)
        };
        check(added as libc::c_int)?;
    }
    Ok(ruleset)
}

/// Puts the calling thread under it; needs no_new_privs.
pub(in crate::exec) fn apply(ruleset: &OwnedFd) -> io::Result<()> {
    // SAFETY: takes numbers only.
    check(unsafe { libc::syscall(libc::SYS_landlock_restrict_self, ruleset.as_raw_fd(), 0u32) } as libc::c_int)
        .map(drop)
}
