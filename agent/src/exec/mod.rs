//! The executor: checks work against the policy and runs it. Talks to the loop by messages only, see [`message`].
//!
//! One thread polls everything: messages, and of each job its two pipes and its guard. Deliberately absent: the
//! network and the journal.

mod cgroup;
mod guard;
mod kernel;
mod ladder;
pub mod message;
mod output;
mod prepare;
mod run;
mod sandbox;
mod secret;
mod slots;
mod sweep;
mod sys;

pub use kernel::Kernel;
pub use sweep::{SweepError, sweep};

use crate::core::policy::{self, Policy, Request};
use crate::exec::message::{Decision, FromExec, PolicyState, ToExec, Work};
use dunlin_wire::Fence;
use dunlin_wire::job::{Denial, Outcome, Report};
use prepare::Opened;
use run::Job;
use sandbox::Plan;
use slots::Slots;
use std::collections::BTreeMap;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::mpsc;

/// Free space below which nothing new is taken on, in bytes.
const FREE_BYTES_MIN: u64 = 64 << 20;
/// Bytes of one policy file.
const POLICY_BYTES_MAX: u64 = 1 << 20;
/// How often poll looks again while something is waited for that no descriptor tells of, in milliseconds.
const TICK_MS: i32 = 20;

/// What the executor is told once.
pub struct ExecConfig {
    /// The policy file; `policy.d/*.toml` beside it is read too.
    pub policy: PathBuf,
    /// The agent's data directory: `run/` and `scratch/` lie in it.
    pub data: PathBuf,
}

/// What was prepared and not started.
struct Prepared {
    work: Work,
    opened: Opened,
    rule: String,
    timeout_ms: u64,
    grace_ms: u64,
    output: u64,
    kill_on_overflow: bool,
    file_size: Option<u64>,
    nofile: Option<u64>,
    slot: usize,
    plan: Plan,
    secrets: Vec<(String, String)>,
}

/// The way to the executor's thread.
pub struct Executor {
    messages: mpsc::Sender<ToExec>,
    wake: OwnedFd,
}

impl Executor {
    /// Starts the thread. `tell` is called there, in order, with everything that the executor says.
    ///
    /// # Errors
    /// When the system has no thread or descriptor left.
    pub fn spawn(config: ExecConfig, tell: Box<dyn Fn(FromExec) + Send>) -> std::io::Result<Self> {
        // What loses its guard falls to us, so that it can be killed and proven gone.
        sys::become_subreaper()?;
        let (messages, inbox) = mpsc::channel();
        let (woken, wake) = sys::pipe()?;
        sys::set_nonblocking(woken.as_raw_fd())?;
        sys::set_nonblocking(wake.as_raw_fd())?;
        std::thread::Builder::new().name("executor".into()).spawn(move || {
            let mut machine = Machine {
                kernel: Kernel::prepare(&config.data),
                slots: Slots::default(),
                config,
                tell,
                policy: None,
                digest: [0; 8],
                prepared: BTreeMap::new(),
                jobs: BTreeMap::new(),
                stopping: false,
            };
            machine.load_policy();
            machine.run(&inbox, &woken);
        })?;
        Ok(Self { messages, wake })
    }

    /// Says something to the executor. One that has stopped hears nothing.
    pub fn send(&self, message: ToExec) {
        let _ = self.messages.send(message);
        // A full pipe wakes as well as one more byte would.
        // SAFETY: the buffer is one live byte.
        unsafe { libc::write(self.wake.as_raw_fd(), [1u8].as_ptr().cast(), 1) };
    }
}

struct Machine {
    kernel: Kernel,
    slots: Slots,
    config: ExecConfig,
    tell: Box<dyn Fn(FromExec) + Send>,
    policy: Option<Policy>,
    digest: [u8; 8],
    prepared: BTreeMap<Fence, Prepared>,
    jobs: BTreeMap<Fence, Job>,
    stopping: bool,
}

impl Machine {
    fn run(&mut self, inbox: &mpsc::Receiver<ToExec>, woken: &OwnedFd) {
        loop {
            let mut fds = vec![sys::input(woken.as_raw_fd())];
            self.jobs.values().for_each(|job| job.watch(&mut fds));
            let waits = !self.slots.have_seen_off() || self.jobs.values().any(Job::is_waiting);
            if let Err(error) = sys::poll(&mut fds, if waits { TICK_MS } else { -1 }) {
                return tracing::error!(%error, "the executor cannot poll");
            }
            let mut scratch = [0; 64];
            while matches!(sys::read(woken.as_raw_fd(), &mut scratch), Ok(Some(_))) {}
            loop {
                match inbox.try_recv() {
                    Ok(message) => self.handle(message),
                    Err(mpsc::TryRecvError::Empty) => break,
                    // The agent is going down; the guards see their sockets end.
                    Err(mpsc::TryRecvError::Disconnected) => return,
                }
            }
            self.jobs.values_mut().for_each(|job| job.pump(&self.tell));
            self.kill_orphans();
            let mut ended = Vec::new();
            for (fence, job) in &self.jobs {
                if job.is_over() {
                    ended.push(*fence);
                }
            }
            for fence in ended {
                if let Some(job) = self.jobs.remove(&fence) {
                    let slot = job.slot();
                    let (ended, guard, is_stuck) = job.finish(self.digest);
                    if is_stuck {
                        self.slots.quarantine(slot, guard);
                    } else {
                        self.slots.free(slot);
                        self.slots.see_off(guard);
                    }
                    (self.tell)(ended);
                }
            }
            if self.stopping && self.jobs.is_empty() {
                return;
            }
        }
    }

    /// A guard was killed (a job can do that to its own): what it guarded is our child now. All our children but guards
    /// are such orphans.
    fn kill_orphans(&mut self) {
        if !self.jobs.values().any(Job::has_orphans) {
            return;
        }
        let guards: Vec<i32> = self.jobs.values().map(Job::guard_pid).chain(self.slots.guards()).collect();
        let orphans = sys::descendants_but(std::process::id() as i32, &guards);
        for pid in &orphans {
            sys::kill(*pid, libc::SIGKILL);
            sys::reap(*pid);
        }
        let mut empty = orphans.is_empty();
        self.jobs.values().for_each(|job| empty &= job.kill_rest());
        if empty {
            self.jobs.values_mut().for_each(Job::orphans_are_gone);
        }
    }

    fn handle(&mut self, message: ToExec) {
        match message {
            ToExec::Prepare(work) => {
                let fence = work.fence;
                let decision = match self.prepare(*work) {
                    Ok(prepared) => {
                        let allow =
                            Decision::Allow { rule: prepared.rule.clone(), timeout_ms: prepared.timeout_ms };
                        self.prepared.insert(fence, prepared);
                        allow
                    }
                    Err((reason, rule)) => {
                        let mut report = Report::without_process(Outcome::Denied { reason });
                        report.rule = rule;
                        report.policy = self.digest;
                        Decision::Deny(Box::new(report))
                    }
                };
                (self.tell)(FromExec::Prepared { fence, decision });
            }
            ToExec::Start { fence, lease_until } => {
                if let Some(prepared) = self.prepared.remove(&fence) {
                    let slot = prepared.slot;
                    match Job::start(prepared, lease_until, &self.config.data, &self.kernel) {
                        Ok(job) => drop(self.jobs.insert(fence, job)),
                        Err(outcome) => {
                            self.slots.free(slot);
                            let mut report = Report::without_process(outcome);
                            report.policy = self.digest;
                            (self.tell)(FromExec::Ended {
                                fence,
                                report: Box::new(report),
                                kept: Default::default(),
                            });
                        }
                    }
                }
            }
            ToExec::Forget { fence } => {
                if let Some(prepared) = self.prepared.remove(&fence) {
                    self.slots.free(prepared.slot);
                }
            }
            ToExec::Extend { fence, lease_until } => {
                if let Some(job) = self.jobs.get(&fence) {
                    job.extend(lease_until);
                }
            }
            ToExec::End { fence, cause } => {
                if let Some(job) = self.jobs.get(&fence) {
                    job.end(guard::Cause::Asked(cause));
                }
            }
            ToExec::ReloadPolicy => self.load_policy(),
            ToExec::Shutdown => {
                self.stopping = true;
                for prepared in std::mem::take(&mut self.prepared).into_values() {
                    self.slots.free(prepared.slot);
                }
                let by = dunlin_wire::job::Interruption::ExecutorRestart;
                self.jobs
                    .values()
                    .for_each(|j| j.end(guard::Cause::Asked(message::EndCause::Interrupted(by))));
            }
        }
    }

    fn prepare(&mut self, work: Work) -> Result<Prepared, (Denial, Option<String>)> {
        let policy = self.policy.as_ref().ok_or((Denial::PolicyInvalid, None))?;
        if self.stopping {
            return Err((Denial::Draining, None));
        }
        let request = Request {
            argv: &work.shell.argv,
            cwd: work.shell.cwd.as_deref(),
            env: &work.shell.env,
            timeout_ms: work.timeout_ms,
        };
        let allowed = policy::decide(policy, request).map_err(|denial| (denial, None))?;
        let rule = allowed.rule;
        let denied = |denial| (denial, Some(rule.id.clone()));
        let opened = prepare::open(&allowed).map_err(denied)?;
        let slot = self.slots.find(capacity(policy)).ok_or_else(|| denied(Denial::Busy))?;
        let user = policy.slots.get(slot).map(String::as_str);
        let plan = sandbox::plan(&rule.confinement, self.kernel.layers, user).map_err(denied)?;
        let secrets = secret::all(&rule.secret_env).map_err(denied)?;
        if sys::free_bytes(&self.config.data).is_ok_and(|free| free < FREE_BYTES_MIN) {
            return Err(denied(Denial::DiskFull));
        }
        self.slots.take(slot);
        Ok(Prepared {
            slot,
            plan,
            secrets,
            opened,
            rule: rule.id.clone(),
            timeout_ms: allowed.timeout_ms,
            grace_ms: policy.ceilings.grace_ms,
            output: rule.output,
            kill_on_overflow: rule.on_output_limit == policy::OnOutputLimit::Kill,
            file_size: rule.file_size,
            nofile: rule.nofile,
            work,
        })
    }

    /// A file that is wrong at start denies everything; at a reload the policy in force stays.
    fn load_policy(&mut self) {
        let error = match load(&self.config.policy) {
            Ok((policy, digest)) => {
                self.policy = Some(policy);
                self.digest = digest;
                None
            }
            Err(error) => {
                tracing::error!(%error, "the policy is not in force");
                Some(error)
            }
        };
        let jobs = self.policy.as_ref().map_or(1, |policy| capacity(policy) as u32);
        let layers = self.kernel.layers;
        (self.tell)(FromExec::Policy(PolicyState { digest: self.digest, jobs, layers, error }));
    }
}

/// Jobs at once: each has a user of its own where the policy names any.
fn capacity(policy: &Policy) -> usize {
    let jobs = policy.ceilings.jobs as usize;
    if policy.slots.is_empty() { jobs } else { jobs.min(policy.slots.len()) }
}

/// Reads a policy and the files in `policy.d` beside it: theirs alone may they be, root's or ours.
///
/// # Errors
/// One line that names the file, the rule and the fix.
pub fn load(path: &Path) -> Result<(Policy, [u8; 8]), String> {
    let mut paths = vec![path.to_owned()];
    if let Some(dir) = path.parent().map(|d| d.join("policy.d")) {
        let entries = std::fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path());
        let mut more: Vec<_> = entries.filter(|p| p.extension().is_some_and(|e| e == "toml")).collect();
        more.sort();
        paths.extend(more);
    }
    let mut files = Vec::new();
    let mut hash = ring::digest::Context::new(&ring::digest::SHA256);
    for path in paths {
        let text = read_trusted(&path)?;
        hash.update(&(text.len() as u64).to_be_bytes());
        hash.update(text.as_bytes());
        files.push((path.display().to_string(), text));
    }
    let policy = Policy::parse(&files).map_err(|e| e.to_string())?;
    let mut digest = [0; 8];
    digest.copy_from_slice(&hash.finish().as_ref()[..8]);
    Ok((policy, digest))
}

fn read_trusted(path: &Path) -> Result<String, String> {
    use std::os::unix::fs::MetadataExt;
    let name = path.display();
    let file = std::fs::File::open(path).map_err(|e| format!("{name}: {e}"))?;
    let meta = file.metadata().map_err(|e| format!("{name}: {e}"))?;
    // SAFETY: geteuid cannot fail and touches no memory.
    let me = unsafe { libc::geteuid() };
    if meta.uid() != 0 && meta.uid() != me {
        return Err(format!("{name}: belongs to user {}; it must be root's (chown root)", meta.uid()));
    }
    if meta.mode() & 0o022 != 0 {
        return Err(format!("{name}: others may write to it (chmod go-w)"));
    }
    if meta.len() > POLICY_BYTES_MAX {
        return Err(format!("{name}: over {POLICY_BYTES_MAX} bytes"));
    }
    std::fs::read_to_string(path).map_err(|e| format!("{name}: {e}"))
}

/// Which rule allows `request` on a board with this kernel, the files looked at too; nothing is run.
///
/// # Errors
/// The closed reason.
pub fn decide(policy: &Policy, kernel: &Kernel, request: Request<'_>) -> Result<String, Denial> {
    let allowed = policy::decide(policy, request)?;
    prepare::open(&allowed)?;
    let user = policy.slots.first().map(String::as_str);
    sandbox::plan(&allowed.rule.confinement, kernel.layers, user)?;
    secret::all(&allowed.rule.secret_env)?;
    Ok(allowed.rule.id.clone())
}

/// What stands in the way of the policy's rules on this board: programs that are missing or not to be trusted, and
/// protections that cannot be had.
pub fn lint(policy: &Policy, kernel: &Kernel) -> Vec<String> {
    let mut found = Vec::new();
    let user = policy.slots.first().map(String::as_str);
    for rule in &policy.rules {
        let mut add = |what: &str, denial| found.push(format!("rule `{}`: {what}: {denial}", rule.id));
        if let Err(denial) = prepare::program(rule) {
            add(&rule.program, denial);
        }
        if let (Some(script), Err(denial)) = (&rule.script, prepare::script_of(rule)) {
            add(script, denial);
        }
        if let Err(denial) = sandbox::plan(&rule.confinement, kernel.layers, user) {
            add("not on this board (dunlin-agent doctor says what it offers)", denial);
        }
    }
    found
}
