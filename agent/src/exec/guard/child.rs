//! From fork to exec. Any step that fails is reported with its errno, and nothing is run.

use super::{CWD, PROGRAM, SCRIPT, STDERR, STDOUT, Spec};
use crate::exec::cgroup::Cgroup;
use crate::exec::sandbox::{Plan, credentials, landlock, mounts, seccomp};
use crate::exec::sys::{self, check};
use dunlin_wire::job::{SpawnStep, layer};
use std::convert::Infallible;
use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

/// A step that failed, and how.
type Failure = (SpawnStep, io::Error);

/// What the job will be in, beside the namespaces that it is born in.
pub(super) struct Surroundings {
    /// Its mount namespace.
    view: Option<OwnedFd>,
    /// What Landlock lets it write to.
    ruleset: Option<OwnedFd>,
}

/// Makes what the job will be in: its namespaces, which the calling process enters as its child is to be born there, and of
/// them the mounts only as what is returned, as whoever is in there cannot write to a cgroup.
pub(super) fn surround(plan: &Plan) -> Result<Surroundings, (SpawnStep, i32)> {
    let failed = |step| move |e: io::Error| (step, code(&e));
    // SAFETY: these calls take numbers only. What is made on the way to the working directory must be passable.
    let enter = |flags| unsafe {
        libc::umask(0o022);
        check(libc::unshare(flags))
    };
    if !plan.has(layer::MOUNTS) {
        enter(namespaces(plan)).map_err(failed(SpawnStep::Namespaces))?;
        return Ok(Surroundings { view: None, ruleset: ruleset(plan).map_err(failed(SpawnStep::Landlock))? });
    }
    let home = mounts::here().map_err(failed(SpawnStep::Namespaces))?;
    enter(namespaces(plan)).map_err(failed(SpawnStep::Namespaces))?;
    mounts::enter(&plan.view, CWD).map_err(failed(SpawnStep::Mounts))?;
    let view = mounts::here().map_err(failed(SpawnStep::Mounts))?;
    let ruleset = ruleset(plan).map_err(failed(SpawnStep::Landlock))?;
    mounts::go_to(&home).map_err(failed(SpawnStep::Mounts))?;
    Ok(Surroundings { view: Some(view), ruleset })
}

/// What Landlock will let the job write to, as it is called where the calling process is now.
fn ruleset(plan: &Plan) -> io::Result<Option<OwnedFd>> {
    if !plan.has(layer::LANDLOCK) {
        return Ok(None);
    }
    let own_tmp = plan.has(layer::MOUNTS).then(|| "/tmp".to_owned());
    let dirs: Vec<String> = plan.view.writable().chain(own_tmp).collect();
    landlock::prepare(dirs.iter().map(String::as_str)).map(Some)
}

/// Starts the job in there; its pid, or the step that failed and the errno.
pub(super) fn spawn(spec: &Spec, around: &Surroundings) -> Result<i32, (SpawnStep, i32)> {
    let failed = |step| move |e: io::Error| (step, code(&e));
    let argv = c_strings(&spec.argv).map_err(failed(SpawnStep::Exec))?;
    let env = c_strings(&spec.env).map_err(failed(SpawnStep::Exec))?;
    let (errors, errors_write) = sys::pipe().map_err(failed(SpawnStep::Pipe))?;
    let guard = std::process::id() as i32;
    // SAFETY: this process has one thread, so the child may use everything it inherits.
    let (pid, born) = unsafe { fork_into(spec.cgroup.as_ref()) };
    match pid {
        -1 => Err((SpawnStep::Fork, code(&io::Error::last_os_error()))),
        0 => {
            let Err((step, error)) =
                become_job(spec, around, born, &argv, &env, errors_write.as_raw_fd(), guard);
            let _ = io::Write::write_all(
                &mut std::fs::File::from(errors_write),
                &[&[step as u8], code(&error).to_ne_bytes().as_slice()].concat(),
            );
            // SAFETY: ends the child at once, without running anything of the guard's.
            unsafe { libc::_exit(127) }
        }
        pid => {
            drop(errors_write);
            let mut report = Vec::new();
            let _ = io::Read::read_to_end(&mut std::fs::File::from(errors), &mut report);
            match report.as_slice() {
                [step, errno @ ..] if errno.len() == 4 => {
                    sys::reap_now(pid);
                    let step = SpawnStep::ALL.get(usize::from(*step)).copied().unwrap_or(SpawnStep::Fork);
                    let errno = i32::from_ne_bytes([errno[0], errno[1], errno[2], errno[3]]);
                    Err((step, errno))
                }
                _ => Ok(pid),
            }
        }
    }
}

fn code(error: &io::Error) -> i32 {
    error.raw_os_error().unwrap_or(libc::EIO)
}

/// The namespaces of a plan, as flags of unshare(2).
fn namespaces(plan: &Plan) -> libc::c_int {
    let flags = [
        (layer::MOUNTS, libc::CLONE_NEWNS),
        (layer::IPC, libc::CLONE_NEWIPC),
        (layer::NETWORK, libc::CLONE_NEWNET),
    ];
    flags.iter().fold(0, |all, (bit, flag)| if plan.has(*bit) { all | flag } else { all })
}

/// fork(2), the child being born in its v2 cgroup where the kernel can do that (clone3(2), Linux 5.7):
/// moving a process to a cgroup takes the kernel some ten milliseconds. Whether it is there, beside the pid.
///
/// # Safety
/// As fork(2): one thread, or the child does nothing but system calls.
unsafe fn fork_into(cgroup: Option<&Cgroup>) -> (i32, bool) {
    const INTO_CGROUP: u64 = 0x2_0000_0000;
    let dir = cgroup.and_then(Cgroup::v2).and_then(|dir| std::fs::File::open(dir).ok());
    if let Some(dir) = dir {
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

fn c_strings(texts: &[String]) -> io::Result<Vec<CString>> {
    texts.iter().map(|t| sys::c_string(t)).collect()
}

/// A step's failure.
fn at(step: SpawnStep) -> impl Fn(io::Error) -> Failure {
    move |error| (step, error)
}

/// Only comes back when a step failed.
fn become_job(
    spec: &Spec,
    around: &Surroundings,
    born: bool,
    argv: &[CString],
    env: &[CString],
    errors: RawFd,
    guard: i32,
) -> Result<Infallible, Failure> {
    let plan = &spec.plan;
    begin_afresh()?;
    if let Some(cgroup) = &spec.cgroup {
        cgroup.join(born).map_err(at(SpawnStep::Cgroup))?;
    }
    if let Some(view) = &around.view {
        mounts::go_to(view).map_err(at(SpawnStep::Mounts))?;
    }
    // SAFETY: these calls take numbers only.
    unsafe {
        check(libc::fchdir(CWD)).map_err(at(SpawnStep::Cwd))?;
        libc::umask(0o077);
    }
    wire_up(spec)?;
    give_up_privileges(plan, around, guard)?;
    pass_descriptors(spec, errors).map_err(at(SpawnStep::CloseFds))?;
    if plan.has(layer::SECCOMP) {
        seccomp::apply().map_err(at(SpawnStep::Seccomp))?;
    }
    let argv: Vec<_> = argv.iter().map(|c| c.as_ptr()).chain([std::ptr::null()]).collect();
    let env: Vec<_> = env.iter().map(|c| c.as_ptr()).chain([std::ptr::null()]).collect();
    // SAFETY: path, argv and env are live C strings, the latter two end with a null pointer.
    let error = unsafe {
        libc::syscall(libc::SYS_execveat, 3, c"".as_ptr(), argv.as_ptr(), env.as_ptr(), libc::AT_EMPTY_PATH);
        let error = io::Error::last_os_error();
        // The pipe's own descriptor was closed above; its copy speaks for it.
        libc::dup2(4, errors);
        error
    };
    Err((SpawnStep::Exec, error))
}

/// Session, signals, mask: as a program expects them, whatever the guard has.
fn begin_afresh() -> Result<(), Failure> {
    // SAFETY: every pointer is null or to a live local.
    unsafe {
        check(libc::setsid()).map_err(at(SpawnStep::Session))?;
        // The executor ignores nothing else, and the guard blocks everything; a job gets what a shell would give it.
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut none);
        check(libc::sigprocmask(libc::SIG_SETMASK, &none, std::ptr::null_mut()))
            .map_err(at(SpawnStep::Signals))?;
        // The guard hides itself; its child would not be able to write to its own files in /proc.
        libc::prctl(libc::PR_SET_DUMPABLE, 1, 0, 0, 0);
    }
    // For want of memory the job goes before the agent. No protection of anybody: where it cannot be said, it is not.
    let _ = std::fs::write("/proc/self/oom_score_adj", OOM_SCORE_ADJ);
    Ok(())
}

/// Of 1000, see proc_pid_oom_score_adj(5).
const OOM_SCORE_ADJ: &str = "500";

fn wire_up(spec: &Spec) -> Result<(), Failure> {
    // SAFETY: the descriptors are ours, the path is a live C string, and `limit` lives through its call.
    unsafe {
        let null = check(libc::open(c"/dev/null".as_ptr(), libc::O_RDONLY)).map_err(at(SpawnStep::Stdio))?;
        for (from, to) in [(null, 0), (STDOUT, 1), (STDERR, 2)] {
            check(libc::dup2(from, to)).map_err(at(SpawnStep::Stdio))?;
        }
        let limits = [
            (libc::RLIMIT_CORE, Some(0)),
            (libc::RLIMIT_FSIZE, spec.file_size),
            (libc::RLIMIT_NOFILE, spec.nofile),
        ];
        for (resource, limit) in limits.into_iter().filter_map(|(r, l)| l.map(|l| (r, l))) {
            let limit = libc::rlimit { rlim_cur: limit as _, rlim_max: limit as _ };
            check(libc::setrlimit(resource, &limit)).map_err(at(SpawnStep::Rlimit))?;
        }
    }
    Ok(())
}

/// User, capabilities, no_new_privs, Landlock: from here on it is only less.
fn give_up_privileges(plan: &Plan, around: &Surroundings, guard: i32) -> Result<(), Failure> {
    credentials::drop_bounding().map_err(at(SpawnStep::Capabilities))?;
    if let Some(identity) = &plan.identity {
        credentials::become_user(identity).map_err(at(SpawnStep::User))?;
    }
    credentials::drop_capabilities().map_err(at(SpawnStep::Capabilities))?;
    // SAFETY: these calls take numbers only.
    unsafe {
        check(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)).map_err(at(SpawnStep::NoNewPrivs))?;
        if libc::prctl(libc::PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) != 1 {
            return Err((SpawnStep::NoNewPrivs, io::Error::from_raw_os_error(libc::EPERM)));
        }
        // Should the guard itself be killed: after the change of user, which ends it. One that is gone already sends no
        // signal, so that is looked at after.
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0);
        if libc::getppid() != guard {
            return Err((SpawnStep::Guard, io::Error::from_raw_os_error(libc::ESRCH)));
        }
    }
    match &around.ruleset {
        Some(ruleset) => landlock::apply(ruleset).map_err(at(SpawnStep::Landlock)),
        None => Ok(()),
    }
}

/// The program becomes 3, the error pipe 4, a script for the program 5, and nothing else is left. What an interpreter must
/// be able to open stays open.
fn pass_descriptors(spec: &Spec, errors: RawFd) -> io::Result<()> {
    let high = |fd| {
        // SAFETY: fcntl on a descriptor has no memory effects.
        check(unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 16) })
    };
    let (errors, program) = (high(errors)?, high(PROGRAM)?);
    let script = if spec.interprets { Some(high(SCRIPT)?) } else { None };
    let flags = if spec.script { 0 } else { libc::O_CLOEXEC };
    // SAFETY: the descriptors are ours; nothing uses those that are closed.
    unsafe {
        check(libc::dup3(program, 3, flags))?;
        check(libc::dup3(errors, 4, libc::O_CLOEXEC))?;
        match script {
            Some(script) => {
                check(libc::dup3(script, 5, 0))?;
                sys::close_from(6);
            }
            None => sys::close_from(5),
        }
    }
    Ok(())
}
