//! The executor: checks work against the policy and runs it, in a process of its own. Talks to the loop by messages
//! only, see [`message`]. Deliberately absent: the network and the journal.

mod audit;
mod cgroup;
mod client;
mod guard;
mod kernel;
mod ladder;
pub mod message;
mod outbox;
mod output;
mod prepare;
mod replay;
mod run;
mod sandbox;
mod secret;
mod server;
mod slots;
mod socket;
mod sweep;
mod sys;
mod verify;

pub use audit::{Chain, read_audit};
pub use client::{ExecError, Executor};
pub use kernel::Kernel;
pub use server::{serve, serve_parent};
pub use sweep::{marker, prefix};
pub use tracing::Level;
pub use verify::{Signing, load_trust};

use crate::clock;
use crate::core::policy::{self, Policy, Request, Signed};
use crate::core::trust::Verified;
use crate::exec::message::{Decision, FromExec, PolicyState, ToExec, Work};
use audit::Audit;
use dunlin_wire::Fence;
use dunlin_wire::envelope;
use dunlin_wire::job::{Denial, Interruption, Job as Asked, Outcome, Report, Shell};
use outbox::Outbox;
use prepare::Opened;
use run::Job;
use sandbox::Plan;
use serde_json::json;
use slots::Slots;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use sweep::sweep;
use verify::Verifier;

/// Free space below which nothing new is taken on, in bytes.
const FREE_BYTES_MIN: u64 = 64 << 20;
/// Bytes of one policy file.
const POLICY_BYTES_MAX: u64 = 1 << 20;
/// What lies in its data directory and is nobody else's.
const OWN: &str = "exec";

/// What the executor is told once.
pub struct ExecConfig {
    /// The policy file; `policy.d/*.toml` beside it is read too.
    pub policy: PathBuf,
    /// The executor's data directory: `run/`, `scratch/`, `spool/` and `exec/` lie in it.
    pub data: PathBuf,
    /// Log level.
    pub log: Level,
    /// What it takes to verify signed jobs.
    pub signing: Signing,
}

/// What was prepared and not started.
struct Prepared {
    work: Work,
    shell: Shell,
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

struct Machine {
    kernel: Kernel,
    slots: Slots,
    config: ExecConfig,
    verifier: Verifier,
    audit: Audit,
    spool: PathBuf,
    outbox: Rc<Outbox>,
    policy: Option<Policy>,
    digest: [u8; 8],
    prepared: BTreeMap<Fence, Prepared>,
    jobs: BTreeMap<Fence, Job>,
    stopping: bool,
}

impl Machine {
    fn new(config: ExecConfig, outbox: Rc<Outbox>) -> std::io::Result<Self> {
        let spool = config.data.join("spool");
        std::fs::create_dir_all(&spool)?;
        Ok(Self {
            verifier: Verifier::open(config.signing.clone(), &config.data.join(OWN)),
            audit: Audit::open(&config.data.join(OWN)),
            kernel: Kernel::prepare(&config.data),
            slots: Slots::default(),
            config,
            spool,
            outbox,
            policy: None,
            digest: [0; 8],
            prepared: BTreeMap::new(),
            jobs: BTreeMap::new(),
            stopping: false,
        })
    }

    /// An uplink is there; nothing of an earlier one is left.
    fn begin(&mut self) {
        self.stopping = false;
        self.reload();
    }

    /// Reads policy and trust file again.
    fn reload(&mut self) {
        self.load_policy();
        self.verifier.load();
        self.tell_keys();
    }

    /// Adds what must be polled; whether something is waited for that no descriptor tells of.
    fn watch(&mut self, fds: &mut Vec<libc::pollfd>) -> bool {
        self.jobs.values().for_each(|job| job.watch(fds));
        !self.slots.have_seen_off() || self.jobs.values().any(Job::is_waiting)
    }

    fn is_idle(&self) -> bool {
        self.jobs.is_empty()
    }

    /// Takes what jobs wrote and what their guards say, and reports those that are over.
    fn look(&mut self) {
        self.jobs.values_mut().for_each(|job| job.pump(&self.outbox));
        self.kill_orphans();
        let over: Vec<Fence> =
            self.jobs.iter().filter(|(_, job)| job.is_over()).map(|(fence, _)| *fence).collect();
        for job in over.iter().filter_map(|fence| self.jobs.remove(fence)).collect::<Vec<_>>() {
            let slot = job.slot();
            match job.finish(self.digest, &self.outbox) {
                (guard, true) => self.slots.quarantine(slot, guard),
                (guard, false) => self.slots.free(slot, Some(guard)),
            }
        }
    }

    /// Starts nothing more, and ends every job with its grace.
    fn stop(&mut self) {
        if std::mem::replace(&mut self.stopping, true) {
            return;
        }
        for prepared in std::mem::take(&mut self.prepared).into_values() {
            self.slots.free(prepared.slot, None);
        }
        let by = Interruption::ExecutorRestart;
        self.jobs.values().for_each(|job| job.end(guard::Cause::Asked(message::EndCause::Interrupted(by))));
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
                let asked = audit::asked(&work);
                let decision = match self.prepare(*work) {
                    Ok(prepared) => {
                        self.audit.decided(asked, None, Some(&prepared.rule));
                        let allow =
                            Decision::Allow { rule: prepared.rule.clone(), timeout_ms: prepared.timeout_ms };
                        self.prepared.insert(fence, prepared);
                        allow
                    }
                    Err((reason, rule)) => {
                        self.audit.decided(asked, Some(reason), rule.as_deref());
                        let mut report = Report::without_process(Outcome::Denied { reason });
                        report.rule = rule;
                        report.policy = self.digest;
                        Decision::Deny(Box::new(report))
                    }
                };
                self.outbox.tell(FromExec::Prepared { fence, decision });
            }
            ToExec::Start { fence, lease_until } => {
                if let Some(prepared) = self.prepared.remove(&fence) {
                    let slot = prepared.slot;
                    let may = self.verifier.start(&prepared.work);
                    if let Err(reason) = may {
                        let asked = audit::asked(&prepared.work);
                        self.audit.decided(asked, Some(reason), Some(&prepared.rule));
                    }
                    let may = may.map_err(|reason| Outcome::Denied { reason });
                    let (data, spool) = (&self.config.data, &self.spool);
                    let start = || Job::start(prepared, lease_until, data, spool, &self.kernel);
                    match may.and_then(|()| start()) {
                        Ok(job) => drop(self.jobs.insert(fence, job)),
                        Err(outcome) => {
                            self.slots.free(slot, None);
                            let mut report = Report::without_process(outcome);
                            report.policy = self.digest;
                            self.outbox.tell(FromExec::Ended {
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
                    self.slots.free(prepared.slot, None);
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
            ToExec::ReloadPolicy => self.reload(),
            ToExec::Keys(bytes) => {
                let taken = self.verifier.renew(&bytes);
                let what = match &taken {
                    Ok(version) => json!({"decision": "keys", "version": version}),
                    Err(error) => json!({"decision": "keys_refused", "reason": error}),
                };
                tracing::info!(%what, "a key set came");
                self.audit.write(clock::wall_ms(), what);
                self.tell_keys();
            }
            ToExec::Shutdown => self.stop(),
        }
    }

    /// Which key set is in force, where signatures are trusted at all.
    fn tell_keys(&self) {
        if let Some(version) = self.verifier.version() {
            self.outbox.tell(FromExec::Keys { version });
        }
    }

    fn prepare(&mut self, work: Work) -> Result<Prepared, (Denial, Option<String>)> {
        let policy = self.policy.as_ref().ok_or((Denial::PolicyInvalid, None))?;
        if self.stopping {
            return Err((Denial::Draining, None));
        }
        if self.prepared.contains_key(&work.fence) || self.jobs.contains_key(&work.fence) {
            return Err((Denial::Malformed, None));
        }
        let verified = self.verifier.verify(&work).map_err(|(denial, _)| (denial, None))?;
        let (shell, timeout_ms) = asked(&work, verified.as_ref()).ok_or((Denial::Malformed, None))?;
        let request = Request {
            argv: &shell.argv,
            cwd: shell.cwd.as_deref(),
            env: &shell.env,
            timeout_ms,
            signed: verified.as_ref().map(|job| Signed {
                scope: &job.cert.scope,
                rules: &job.payload.rules,
                user: job.payload.user.as_deref(),
            }),
        };
        let allowed = policy::decide(policy, request).map_err(|denial| (denial, None))?;
        let rule = allowed.rule;
        let denied = |denial| (denial, Some(rule.id.clone()));
        let opened = prepare::open(&allowed).map_err(denied)?;
        let slot = self.slots.find(capacity(policy)).ok_or_else(|| denied(Denial::Busy))?;
        let user = policy.slots.get(slot).map(String::as_str);
        let plan = sandbox::plan(&rule.confinement, self.kernel.layers, user).map_err(denied)?;
        let secrets = secret::all(&rule.secret_env).map_err(denied)?;
        let reserved: u64 = self.jobs.values().map(Job::output_max).sum();
        let prepared: u64 = self.prepared.values().map(|prepared| prepared.output * 2).sum();
        let needed = FREE_BYTES_MIN + reserved + prepared + rule.output * 2;
        if sys::free_bytes(&self.config.data).is_ok_and(|free| free < needed) {
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
            shell,
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
        self.outbox.tell(FromExec::Policy(PolicyState { digest: self.digest, jobs, layers, error }));
    }
}

/// What is to run, and for how long at most: of a signed job what was signed, whatever else the hub said.
fn asked(work: &Work, signed: Option<&Verified>) -> Option<(Shell, Option<u64>)> {
    match (&work.job, signed) {
        (Asked::Shell(shell), None) => Some((shell.clone(), work.timeout_ms)),
        (Asked::Signed(_), Some(job)) => {
            let envelope::Work::Shell(shell) = &job.payload.work;
            Some((shell.clone(), job.payload.timeout_ms))
        }
        _ => None,
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
