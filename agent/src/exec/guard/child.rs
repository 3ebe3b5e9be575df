//! From fork to exec. Any step that fails is reported with its errno, and nothing is run.

use super::{CWD, PROGRAM, STDERR, STDOUT, Spec};
use crate::exec::cgroup::Cgroup;
use crate::exec::sys;
use dunlin_wire::job::SpawnStep;
use std::ffi::CString;
use std::os::fd::{AsRawFd, RawFd};

/// Starts the job; its pid, or the step that failed and the errno.
pub(super) fn spawn(spec: &Spec) -> Result<i32, (SpawnStep, i32)> {
    let failed = |step| move |e: std::io::Error| (step, e.raw_os_error().unwrap_or(libc::EIO));
    let argv = c_strings(&spec.argv).map_err(failed(SpawnStep::Exec))?;
    let env = c_strings(&spec.env).map_err(failed(SpawnStep::Exec))?;
    let (errors, errors_write) = sys::pipe().map_err(failed(SpawnStep::Pipe))?;
    let guard = std::process::id() as i32;
    let cgroup = spec.cgroup.as_deref().map(Cgroup::at);
    // SAFETY: this process has one thread, so the child may use everything it inherits.
    let (pid, joined) = unsafe { fork_into(cgroup.as_ref()) };
    match pid {
        -1 => Err((SpawnStep::Fork, std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EAGAIN))),
        0 => {
            let (step, errno) = become_job(
                spec,
                cgroup.filter(|_| !joined).as_ref(),
                &argv,
                &env,
                errors_write.as_raw_fd(),
                guard,
            );
            let _ = std::io::Write::write_all(
                &mut std::fs::File::from(errors_write),
                &[&[step as u8], errno.to_ne_bytes().as_slice()].concat(),
            );
            // SAFETY: ends the child at once, without running anything of the guard's.
            unsafe { libc::_exit(127) }
        }
        pid => {
            drop(errors_write);
            let mut report = Vec::new();
            let _ = std::io::Read::read_to_end(&mut std::fs::File::from(errors), &mut report);
            match report.as_slice() {
                [step, errno @ ..] if errno.len() == 4 => {
                    let step = SpawnStep::ALL.get(usize::from(*step)).copied().unwrap_or(SpawnStep::Fork);
                    let errno = i32::from_ne_bytes([errno[0], errno[1], errno[2], errno[3]]);
                    Err((step, errno))
                }
                _ => Ok(pid),
            }
        }
    }
}

/// fork(2), the child being born in a cgroup where the kernel can do that (clone3(2), Linux 5.7): moving a process there
/// takes the kernel some ten milliseconds. Whether it is there, beside the pid.
///
/// # Safety
/// As fork(2): one thread, or the child does nothing but system calls.
unsafe fn fork_into(cgroup: Option<&Cgroup>) -> (i32, bool) {
    const INTO_CGROUP: u64 = 0x2_0000_0000;
    if let Some(dir) = cgroup.and_then(|cgroup| std::fs::File::open(cgroup.dir()).ok()) {
        // `struct clone_args`: flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls, set_tid,
        // set_tid_size, cgroup.
        let mut args = [0u64; 11];
        args[0] = INTO_CGROUP;
        args[4] = libc::SIGCHLD as u64;
        args[10] = dir.as_raw_fd() as u64;
        // SAFETY: `args` lives through the call; without a stack of its own the child goes on like a forked one.
        let pid = unsafe { libc::syscall(libc::SYS_clone3, args.as_ptr(), size_of_val(&args)) };
        if pid != -1 {
            return (pid as i32, true);
        }
    }
    // SAFETY: the caller's.
    (unsafe { libc::fork() }, false)
}

fn c_strings(texts: &[String]) -> std::io::Result<Vec<CString>> {
    texts.iter().map(|t| sys::c_string(t)).collect()
}

/// Only comes back when a step failed.
fn become_job(
    spec: &Spec,
    cgroup: Option<&Cgroup>,
    argv: &[CString],
    env: &[CString],
    errors: RawFd,
    guard: i32,
) -> (SpawnStep, i32) {
    let errno = || std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO);
    // SAFETY: a forked child of a process with one thread; every pointer is to a live local.
    unsafe {
        if libc::setsid() == -1 {
            return (SpawnStep::Session, errno());
        }
        // Rust ignores SIGPIPE, and the guard blocks everything; a job gets what a shell would give it.
        // By the system call itself: libc keeps 32 and 33 from us. All zero is SIG_DFL without flags or mask, and the
        // kernel's structure is not larger than this anywhere.
        let default = [0u64; 8];
        for signal in 1..=64 {
            libc::syscall(libc::SYS_rt_sigaction, signal, default.as_ptr(), std::ptr::null::<u8>(), 8usize);
        }
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut none);
        if libc::sigprocmask(libc::SIG_SETMASK, &none, std::ptr::null_mut()) == -1 {
            return (SpawnStep::Signals, errno());
        }
        libc::umask(0o077);
        if let Some(Err(error)) = cgroup.map(Cgroup::join) {
            return (SpawnStep::Cgroup, error.raw_os_error().unwrap_or(libc::EIO));
        }
        if libc::fchdir(CWD) == -1 {
            return (SpawnStep::Cwd, errno());
        }
        let null = libc::open(c"/dev/null".as_ptr(), libc::O_RDONLY);
        if null == -1
            || [(null, 0), (STDOUT, 1), (STDERR, 2)].iter().any(|(from, to)| libc::dup2(*from, *to) == -1)
        {
            return (SpawnStep::Stdio, errno());
        }
        let limits = [
            (libc::RLIMIT_CORE, Some(0)),
            (libc::RLIMIT_FSIZE, spec.file_size),
            (libc::RLIMIT_NOFILE, spec.nofile),
        ];
        for (resource, limit) in limits.into_iter().filter_map(|(r, l)| l.map(|l| (r, l))) {
            let limit = libc::rlimit { rlim_cur: limit as _, rlim_max: limit as _ };
            if libc::setrlimit(resource, &limit) == -1 {
                return (SpawnStep::Rlimit, errno());
            }
        }
        if libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == -1 {
            return (SpawnStep::NoNewPrivs, errno());
        }
        // Should the guard itself be killed. One that is gone already sends no signal, so that is looked at after.
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0);
        if libc::getppid() != guard {
            return (SpawnStep::Guard, libc::ESRCH);
        }
        // The program becomes 3, the error pipe 4, and nothing else is left. A script's interpreter must be able to
        // open what it is given, so a script stays open.
        let errors_high = libc::fcntl(errors, libc::F_DUPFD_CLOEXEC, 16);
        let program_high = libc::fcntl(PROGRAM, libc::F_DUPFD_CLOEXEC, 16);
        let flags = if spec.script { 0 } else { libc::O_CLOEXEC };
        if libc::dup3(program_high, 3, flags) == -1 || libc::dup3(errors_high, 4, libc::O_CLOEXEC) == -1 {
            return (SpawnStep::CloseFds, errno());
        }
        close_from(5);
        let argv: Vec<_> = argv.iter().map(|c| c.as_ptr()).chain([std::ptr::null()]).collect();
        let env: Vec<_> = env.iter().map(|c| c.as_ptr()).chain([std::ptr::null()]).collect();
        libc::syscall(libc::SYS_execveat, 3, c"".as_ptr(), argv.as_ptr(), env.as_ptr(), libc::AT_EMPTY_PATH);
        let error = errno();
        // The pipe's own descriptor was closed above; its copy speaks for it.
        libc::dup2(4, errors);
        (SpawnStep::Exec, error)
    }
}

/// close_range(2), or one by one before Linux 5.9.
///
/// # Safety
/// Nothing may use the descriptors from `first` on.
unsafe fn close_from(first: RawFd) {
    // SAFETY: the caller says so.
    unsafe {
        if libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, 0) == 0 {
            return;
        }
        let max = libc::sysconf(libc::_SC_OPEN_MAX).clamp(1024, 1 << 20);
        for fd in first..max as RawFd {
            libc::close(fd);
        }
    }
}
