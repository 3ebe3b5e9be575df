//! A filter of system calls: what no job needs and kernels were broken with is refused (EPERM); a program of another
//! architecture is killed, as its numbers mean other calls. See seccomp(2).
//!
//! By hand: the filter has two kinds of refusal beside the kill, for which the crate would compile several filters, and it
//! is not longer than its use would be. A list of what is denied and not of what is allowed: programs of a board are
//! others' and change with its C library.

use crate::exec::sys::check;
use std::io;

#[cfg(target_arch = "x86_64")]
const ARCH: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const ARCH: u32 = 0xc000_00b7;

/// By number, as the crate has no name for it on aarch64 with musl.
#[cfg(target_arch = "x86_64")]
const KEXEC_FILE_LOAD: libc::c_long = 320;
#[cfg(target_arch = "aarch64")]
const KEXEC_FILE_LOAD: libc::c_long = 294;

/// The bit of x32's numbers on x86_64.
#[cfg(target_arch = "x86_64")]
const X32: u32 = 0x4000_0000;

/// CLONE_NEW* of namespaces: mount, cgroup, uts, ipc, user, pid, net.
const NAMESPACES: u32 =
    0x2_0000 | 0x200_0000 | 0x400_0000 | 0x800_0000 | 0x1000_0000 | 0x2000_0000 | 0x4000_0000;

/// Refused with EPERM: systemd's @mount, @module, @reboot, @swap, @raw-io, @clock, @debug and keyring, and the doors of
/// recent years.
const DENIED: &[libc::c_long] = &[
    // Mounts and namespaces.
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    libc::SYS_unshare,
    libc::SYS_setns,
    // Modules, reboot, swap, raw devices, clocks, names.
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_reboot,
    libc::SYS_kexec_load,
    KEXEC_FILE_LOAD,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_ioperm,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_iopl,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_clock_adjtime,
    libc::SYS_adjtimex,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    // Other processes.
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_pidfd_getfd,
    libc::SYS_kcmp,
    libc::SYS_perf_event_open,
    // Keys, programs in the kernel, faults handled outside it.
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    libc::SYS_bpf,
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    // What only administrators do.
    libc::SYS_acct,
    libc::SYS_quotactl,
    libc::SYS_syslog,
    libc::SYS_vhangup,
    libc::SYS_open_by_handle_at,
    libc::SYS_fanotify_init,
    libc::SYS_nfsservctl,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_modify_ldt,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_uselib,
];

// Classic BPF: load a word of `struct seccomp_data`; jump, when equal, greater or equal, or a bit is set; return.
const LOAD: u16 = 0x20;
const EQUAL: u16 = 0x15;
const AT_LEAST: u16 = 0x35;
const ANY_BIT: u16 = 0x45;
const RETURN: u16 = 0x06;
const NUMBER_AT: u32 = 0;
const ARCH_AT: u32 = 4;
/// The low half of the first argument, on little-endian machines.
const FIRST_ARGUMENT_AT: u32 = 16;

const ALLOW: u32 = 0x7fff_0000;
/// The whole process, since Linux 4.14; before, an unknown action kills the thread.
const KILL: u32 = 0x8000_0000;
const ERRNO: u32 = 0x0005_0000;

fn op(code: u16, k: u32, jt: u8, jf: u8) -> libc::sock_filter {
    libc::sock_filter { code, jt, jf, k }
}

/// The filter.
fn filter() -> Vec<libc::sock_filter> {
    let refuse = |errno: libc::c_int| op(RETURN, ERRNO | errno as u32, 0, 0);
    let mut program = vec![
        op(LOAD, ARCH_AT, 0, 0),
        op(EQUAL, ARCH, 1, 0),
        op(RETURN, KILL, 0, 0),
        op(LOAD, NUMBER_AT, 0, 0),
    ];
    #[cfg(target_arch = "x86_64")]
    program.extend([op(AT_LEAST, X32, 0, 1), op(RETURN, KILL, 0, 0)]);
    // What clone3 is asked for lies in memory, where no filter can look: it is said not to exist, and libraries use clone.
    program.extend([op(EQUAL, libc::SYS_clone3 as u32, 0, 1), refuse(libc::ENOSYS)]);
    program.extend([
        op(EQUAL, libc::SYS_clone as u32, 0, 4),
        op(LOAD, FIRST_ARGUMENT_AT, 0, 0),
        op(ANY_BIT, NAMESPACES, 0, 1),
        refuse(libc::EPERM),
        op(RETURN, ALLOW, 0, 0),
    ]);
    let mut denied: Vec<u32> = DENIED.iter().map(|number| *number as u32).collect();
    denied.sort_unstable();
    program.extend(search(&denied, refuse(libc::EPERM)));
    program
}

/// Looks a number up among the sorted `denied`, by halves: when it takes a filter, the kernel follows it once for each
/// call that there is, which took longer than all else of a job's start when they stood in a row.
fn search(denied: &[u32], refuse: libc::sock_filter) -> Vec<libc::sock_filter> {
    if denied.len() <= LEAF {
        let each = denied.iter().flat_map(|number| [op(EQUAL, *number, 0, 1), refuse]);
        return each.chain([op(RETURN, ALLOW, 0, 0)]).collect();
    }
    // A jump reaches over 255: over the half of what this many come to.
    const { assert!(DENIED.len() <= 160) };
    let (low, high) = denied.split_at(denied.len() / 2);
    let low = search(low, refuse);
    let over = low.len() as u8;
    [vec![op(AT_LEAST, high[0], over, 0)], low, search(high, refuse)].concat()
}

/// Numbers that are compared one by one.
const LEAF: usize = 4;

/// Whether the kernel takes filters: it looks for one at address 0 and says EFAULT, see seccomp(2).
pub(in crate::exec) fn is_there() -> bool {
    // SAFETY: the kernel does not take what it cannot read; nothing changes.
    let result = unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, 0, 0, 0) };
    result == -1 && io::Error::last_os_error().raw_os_error() == Some(libc::EFAULT)
}

/// Puts the calling thread, and all it starts, under the filter; needs no_new_privs.
pub(in crate::exec) fn apply() -> io::Result<()> {
    let mut program = filter();
    let program = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    // SAFETY: the program lives through the call, its length is its own.
    unsafe {
        check(libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &program, 0, 0))?;
        match libc::prctl(libc::PR_GET_SECCOMP, 0, 0, 0, 0) {
            2 => Ok(()),
            _ => Err(io::Error::from_raw_os_error(libc::EPERM)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs the filter as the kernel would.
    fn run(arch: u32, number: u32, argument: u32) -> u32 {
        let program = filter();
        let (mut at, mut word) = (0, 0);
        loop {
            let op = program[at];
            let jump = |hit| 1 + usize::from(if hit { op.jt } else { op.jf });
            at += match op.code {
                LOAD => {
                    word = match op.k {
                        NUMBER_AT => number,
                        ARCH_AT => arch,
                        _ => argument,
                    };
                    1
                }
                EQUAL => jump(word == op.k),
                ANY_BIT => jump(word & op.k != 0),
                RETURN => return op.k,
                _ => jump(word >= op.k),
            };
        }
    }

    #[test]
    fn each_call_gets_its_answer() {
        let eperm = ERRNO | libc::EPERM as u32;
        for number in 0..1024 {
            let want = match number {
                libc::SYS_clone3 => ERRNO | libc::ENOSYS as u32,
                number if DENIED.contains(&number) => eperm,
                _ => ALLOW,
            };
            assert_eq!(run(ARCH, number as u32, 0), want, "{number}");
        }
        let call = |number: libc::c_long, argument| run(ARCH, number as u32, argument);
        assert_eq!(call(libc::SYS_read, 0), ALLOW);
        assert_eq!(call(libc::SYS_execveat, 0), ALLOW);
        assert_eq!(call(libc::SYS_clone, libc::CLONE_VM as u32 | libc::SIGCHLD as u32), ALLOW);
        assert_eq!(call(libc::SYS_clone, libc::CLONE_NEWUSER as u32), eperm);
        assert_eq!(call(libc::SYS_clone3, 0), ERRNO | libc::ENOSYS as u32);
        assert_eq!(run(0x4000_0003, libc::SYS_read as u32, 0), KILL, "32 bit");
        #[cfg(target_arch = "x86_64")]
        assert_eq!(run(ARCH, libc::SYS_read as u32 | X32, 0), KILL, "x32");
    }
}
