//! What a job needs, made before it may start: its scratch directory, pipes and cgroups, and its guard, which makes
//! namespaces and mounts and then waits. The uplink writes its journal meanwhile. Nothing of the job runs yet: not its
//! program, and nobody as its user or in its cgroups.

use super::asked::Prepared;
use super::cgroup::Cgroup;
use super::guard::{self, Spec, ToGuard};
use super::kernel::Kernel;
use super::ladder::{self, Ladder};
use super::message::Work;
use super::report::ReportFile;
use super::{secret, sys};
use crate::clock::{self, BootMs};
use dunlin_wire::Fence;
use dunlin_wire::job::{Outcome, Shell, SpawnStep, layer};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

/// How long it is kept for a start, in milliseconds: longer than a disk takes to commit. A start that comes later makes
/// it anew.
const KEPT_MS: u64 = 10_000;
/// What a job finds its programs by. Nothing of the agent's own environment reaches it.
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A guard that waits, and what was made for its job. It ends with our end of its socket.
pub(super) struct Ready {
    pub(super) guard: guard::Process,
    /// Our end of its socket.
    pub(super) control: OwnedFd,
    /// Our ends of the job's stdout and stderr.
    pub(super) pipes: [OwnedFd; 2],
    pub(super) own: ReportFile,
    pub(super) ladder: Ladder,
    made: BootMs,
}

impl Ready {
    /// Makes it. What fails leaves nothing behind.
    ///
    /// # Errors
    /// `SpawnFailed`, with the step. What fails in the guard is said when it is told to start.
    pub(super) fn make(prepared: &Prepared, data: &Path, kernel: &Kernel) -> Result<Self, Outcome> {
        let fence = prepared.work.fence;
        let lock = std::fs::create_dir_all(data.join("run"))
            .and_then(|()| std::fs::File::create(lock_of(data, fence)));
        let lock = OwnedFd::from(lock.map_err(failed(SpawnStep::Guard))?);
        if !sys::try_lock(lock.as_raw_fd()) {
            return Err(Outcome::SpawnFailed { step: SpawnStep::Guard, errno: libc::EBUSY });
        }
        Self::make_locked(prepared, &lock, data, kernel).inspect_err(|_| clear(data, fence))
    }

    fn make_locked(
        prepared: &Prepared,
        lock: &OwnedFd,
        data: &Path,
        kernel: &Kernel,
    ) -> Result<Self, Outcome> {
        let (fence, opened, plan) = (prepared.work.fence, &prepared.opened, &prepared.plan);
        let scratch = scratch_of(data, fence);
        let owner = plan.identity.as_ref().map(|i| (i.uid, i.gid));
        let private = make_private(&scratch, owner).map_err(failed(SpawnStep::Scratch))?;
        let scratch = scratch.canonicalize().map_err(failed(SpawnStep::Scratch))?;
        let own = ReportFile::make(&scratch, owner, clock::boot_ms()).map_err(failed(SpawnStep::Scratch))?;
        let (control, control_guard) = sys::seqpacket_pair().map_err(failed(SpawnStep::Pipe))?;
        let (out, out_job) = sys::pipe().map_err(failed(SpawnStep::Pipe))?;
        let (err, err_job) = sys::pipe().map_err(failed(SpawnStep::Pipe))?;
        for fd in [&out, &err, &control] {
            sys::set_nonblocking(fd.as_raw_fd()).map_err(failed(SpawnStep::Pipe))?;
        }
        let mut fds = vec![
            (&control_guard, guard::CONTROL),
            (&opened.program, guard::PROGRAM),
            (opened.cwd.as_ref().unwrap_or(&private), guard::CWD),
            (&out_job, guard::STDOUT),
            (&err_job, guard::STDERR),
            (lock, guard::LOCK),
        ];
        fds.extend(opened.interpreted.as_ref().map(|script| (script, guard::SCRIPT)));
        let mut wired = Vec::new();
        for (fd, number) in fds {
            wired.push((sys::dup_high(fd.as_fd()).map_err(failed(SpawnStep::Guard))?, number));
        }
        let mut cgroup = None;
        if plan.has(layer::CGROUP | layer::MEMORY | layer::PIDS | layer::CPU) {
            let name = format!("{}{fence}", super::sweep::prefix(data));
            let freezer = ladder::needs_freezer(kernel.place.has_v2());
            cgroup = Cgroup::at(&kernel.place, &name, &plan.limits, freezer);
        }
        let user = plan.identity.clone().filter(|_| plan.own_user);
        let ladder = Ladder { cgroup: cgroup.clone(), user };
        let spec = spec(prepared, cgroup, &scratch, data);
        let guard = guard::Process::start(wired, spec).map_err(failed(SpawnStep::Guard))?;
        // Meanwhile it gets ready. One that is not told to start sees the end of its socket, and goes.
        let made = ladder.cgroup.as_ref().map_or(Ok(()), |cgroup| cgroup.make(&kernel.place, &plan.limits));
        if let Err(error) = made {
            drop(control);
            sys::reap_now(guard.pid());
            return Err(failed(SpawnStep::Cgroup)(error));
        }
        Ok(Self { guard, control, pipes: [out, err], own, ladder, made: clock::boot_ms() })
    }

    /// Whether no start came for so long that it is to be given back.
    pub(super) fn is_stale(&self, now: BootMs) -> bool {
        now >= self.made + KEPT_MS
    }

    /// Whether its guard is still there; one that was killed is of no use.
    pub(super) fn is_there(&self) -> bool {
        self.guard.has_ended().is_none()
    }

    pub(super) fn guard_pid(&self) -> i32 {
        self.guard.pid()
    }

    /// Gives back all of it but the guard, which ends by itself.
    pub(super) fn give_back(self, data: &Path, fence: Fence) -> guard::Process {
        if let Some(cgroup) = &self.ladder.cgroup {
            cgroup.remove();
        }
        clear(data, fence);
        // After that, so that the guard does it if we are killed before.
        guard::tell(&self.control, &ToGuard::Forget);
        self.guard
    }
}

/// What the guard is to run.
fn spec(prepared: &Prepared, cgroup: Option<Cgroup>, scratch: &Path, data: &Path) -> Spec {
    let mut plan = prepared.plan.clone();
    plan.view.scratch = Some(scratch.display().to_string());
    plan.view.hidden = hidden(data);
    let mut env = environment(&prepared.work, &prepared.shell, scratch, data);
    env.extend(prepared.secrets.iter().map(|(name, value)| format!("{name}={value}")));
    let mut argv = prepared.shell.argv.clone();
    let script = prepared.opened.interpreted.as_ref().filter(|_| prepared.hook.is_none());
    if let (Some(_), Some(script)) = (script, argv.get_mut(1)) {
        // What was opened and checked, not what its name may lead to by now.
        *script = "/proc/self/fd/5".to_owned();
    }
    Spec {
        cgroup,
        plan,
        env,
        argv,
        script: prepared.opened.script,
        interprets: prepared.opened.interpreted.is_some(),
        timeout_ms: prepared.timeout_ms,
        grace_ms: prepared.grace_ms,
        file_size: prepared.file_size,
        nofile: prepared.nofile,
    }
}

fn failed(step: SpawnStep) -> impl Fn(std::io::Error) -> Outcome {
    move |e| Outcome::SpawnFailed { step, errno: e.raw_os_error().unwrap_or(libc::EIO) }
}

/// Held by the guard of an attempt for as long as anything of it may run.
fn lock_of(data: &Path, fence: Fence) -> PathBuf {
    data.join("run").join(fence.to_string())
}

fn scratch_of(data: &Path, fence: Fence) -> PathBuf {
    data.join("scratch").join(fence.to_string())
}

/// Takes away the files of an attempt of which nothing runs.
pub(super) fn clear(data: &Path, fence: Fence) {
    let _ = std::fs::remove_file(lock_of(data, fence));
    let _ = std::fs::remove_dir_all(scratch_of(data, fence));
}

/// A fresh directory that only its owner can enter.
fn make_private(dir: &Path, owner: Option<(u32, u32)>) -> std::io::Result<OwnedFd> {
    use std::os::unix::fs::DirBuilderExt;
    if let Some(parent) = dir.parent() {
        std::fs::create_dir_all(parent)?;
    }
    let _ = std::fs::remove_dir_all(dir);
    std::fs::DirBuilder::new().mode(0o700).create(dir)?;
    if let Some((uid, gid)) = owner {
        std::os::unix::fs::chown(dir, Some(uid), Some(gid))?;
    }
    sys::open_path(&dir.to_string_lossy(), libc::O_PATH | libc::O_DIRECTORY)
}

/// Directories of the agent's own, which no job sees.
fn hidden(data: &Path) -> Vec<String> {
    let mut dirs = vec![data.canonicalize().unwrap_or_else(|_| data.to_owned())];
    // The uplink's too, and the way to the executor: where they are unless somebody moved them.
    dirs.extend(["/etc/dunlin", "/run/dunlin", "/var/lib/dunlin-agent"].map(PathBuf::from));
    dirs.extend(secret::directories());
    dirs.iter().map(|dir| dir.display().to_string()).collect()
}

fn environment(work: &Work, shell: &Shell, scratch: &Path, data: &Path) -> Vec<String> {
    let mut env = vec![
        PATH.to_owned(),
        "LANG=C.UTF-8".to_owned(),
        format!("HOME={}", scratch.display()),
        format!("DUNLIN_REPORT={}", scratch.join(super::report::NAME).display()),
        format!("DUNLIN_TASK_ID={}", work.task),
        format!("DUNLIN_FENCE={}", work.fence),
        format!("DUNLIN_ATTEMPT={}", work.attempt),
        super::sweep::marker(data),
    ];
    env.extend(shell.env.iter().map(|(name, value)| format!("{name}={value}")));
    env
}
