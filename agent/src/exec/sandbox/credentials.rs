//! Becoming somebody without privileges, for good: user and groups, capabilities; each read back. See credentials(7),
//! capabilities(7).
//!
//! Runs in a forked child of a process with one thread.

use super::users::Identity;
use crate::exec::sys::check;
use std::io;

/// The structures of capget(2), version 3: two sets of 32 bits.
#[repr(C)]
struct Header {
    version: u32,
    pid: i32,
}
#[repr(C)]
#[derive(Clone, Copy, Default, PartialEq, Eq)]
struct Data {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}
const VERSION_3: u32 = 0x2008_0522;

/// Changes user and groups.
pub(in crate::exec) fn become_user(identity: &Identity) -> io::Result<()> {
    let Identity { uid, gid, groups } = identity;
    // SAFETY: the pointers and lengths are of live locals.
    unsafe {
        check(libc::setgroups(groups.len() as _, groups.as_ptr()))?;
        check(libc::setresgid(*gid, *gid, *gid))?;
        check(libc::setresuid(*uid, *uid, *uid))?;
        let (mut u, mut g) = ([0; 3], [0; 3]);
        check(libc::getresuid(&mut u[0], &mut u[1], &mut u[2]))?;
        check(libc::getresgid(&mut g[0], &mut g[1], &mut g[2]))?;
        let count = check(libc::getgroups(0, std::ptr::null_mut()))?;
        if u != [*uid; 3] || g != [*gid; 3] || count as usize != groups.len() {
            return Err(io::Error::from_raw_os_error(libc::EPERM));
        }
    }
    Ok(())
}

/// Empties the bounding set: nothing that is executed later can have a capability, set-id and root included. Only who has
/// CAP_SETPCAP can; nobody else who is not root has any to lose. Before [`become_user`], which ends that.
pub(in crate::exec) fn drop_bounding() -> io::Result<()> {
    // SAFETY: these calls take numbers only.
    unsafe {
        for capability in 0..64 {
            // To drop one makes new credentials each time; to look does not.
            if libc::prctl(libc::PR_CAPBSET_READ, capability, 0, 0, 0) == 0 {
                continue;
            }
            match check(libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0)) {
                Err(e) if e.raw_os_error() == Some(libc::EPERM) && libc::geteuid() != 0 => return Ok(()),
                // The kernel knows no more.
                Err(e) if e.raw_os_error() == Some(libc::EINVAL) && capability > 0 => break,
                done => drop(done?),
            }
        }
    }
    Ok(())
}

/// Gives up every capability, the ambient ones too.
pub(in crate::exec) fn drop_capabilities() -> io::Result<()> {
    let mut header = Header { version: VERSION_3, pid: 0 };
    let mut data = [Data::default(); 2];
    // SAFETY: header and data have the layout of version 3 and live through the calls. Before Linux 4.3 there is no
    // ambient set, and nothing to clear.
    unsafe {
        libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
        check(libc::syscall(libc::SYS_capset, &header, data.as_ptr()) as libc::c_int)?;
        data = [Data { effective: 1, permitted: 1, inheritable: 1 }; 2];
        check(libc::syscall(libc::SYS_capget, &mut header, data.as_mut_ptr()) as libc::c_int)?;
    }
    match data == [Data::default(); 2] {
        true => Ok(()),
        false => Err(io::Error::from_raw_os_error(libc::EPERM)),
    }
}
