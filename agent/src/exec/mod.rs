//! The executor: checks work against the policy and runs it, in a process of its own. Talks to the loop by messages
//! only, see [`message`]. Deliberately absent: the network and the journal.

mod asked;
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
mod ready;
mod replay;
mod report;
mod rules;
mod run;
mod runs;
mod sandbox;
mod secret;
mod server;
mod slots;
mod socket;
mod sweep;
mod sys;
mod verify;

pub(crate) use asked::HOOK_TOKEN;
pub use audit::{Chain, read_audit};
pub use client::{ExecError, Executor};
pub use kernel::Kernel;
pub use rules::{decide, lint, load};
pub use runs::HOOK_EXIT;
pub use server::{serve, serve_parent};
pub use sweep::{marker, prefix};
pub use tracing::Level;
pub use verify::{Signing, load_trust};

use crate::clock::{self, BootMs};
use crate::core::policy::Policy;
use crate::exec::message::{Decision, FromExec, PolicyState, ToExec, Work};
use asked::Prepared;
use audit::Audit;
use dunlin_wire::Fence;
use dunlin_wire::job::{Interruption, Outcome, Report};
use dunlin_wire::overlay::Overlay;
use outbox::Outbox;
use ready::Ready;
use rules::read_trusted;
use run::Job;
use runs::Run;
use serde_json::json;
use slots::Slots;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::rc::Rc;
use sweep::sweep;
use verify::Verifier;

/// How often poll looks again while something is waited for that no descriptor tells of, in milliseconds.
const TICK_MS: i32 = 20;

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

struct Machine {
    kernel: Kernel,
    slots: Slots,
    config: ExecConfig,
    verifier: Verifier,
    audit: Audit,
    spool: PathBuf,
    outbox: Rc<Outbox>,
    // As the file has it, and what the overlay leaves of that.
    base: Option<Policy>,
    policy: Option<Policy>,
    overlay: Overlay,
    digest: [u8; 8],
    prepared: BTreeMap<Fence, Prepared>,
    jobs: BTreeMap<Fence, Job>,
    // Attempts of several parts: at most one of them is a job at a time.
    runs: BTreeMap<Fence, Run>,
    // How often in a row a hook's receiver did not take the token.
    denied_tokens: BTreeMap<String, u32>,
    stopping: bool,
}

impl Machine {
    fn new(config: ExecConfig, outbox: Rc<Outbox>) -> std::io::Result<Self> {
        let spool = config.data.join("spool");
        std::fs::create_dir_all(&spool)?;
        let overlay = rules::kept_overlay(&config.data.join(OWN));
        Ok(Self {
            verifier: Verifier::open(config.signing.clone(), &config.data.join(OWN)),
            audit: Audit::open(&config.data.join(OWN)),
            kernel: Kernel::prepare(&config.data),
            slots: Slots::default(),
            config,
            spool,
            outbox,
            overlay,
            base: None,
            policy: None,
            digest: [0; 8],
            prepared: BTreeMap::new(),
            jobs: BTreeMap::new(),
            runs: BTreeMap::new(),
            denied_tokens: BTreeMap::new(),
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

    /// Adds what must be polled; in how many milliseconds to look again although no descriptor tells, -1 never.
    fn watch(&mut self, fds: &mut Vec<libc::pollfd>) -> i32 {
        self.jobs.values().for_each(|job| job.watch(fds));
        self.slots.watch(fds);
        let between = self.runs.values().any(Run::is_between);
        if !self.slots.have_seen_off() || between || self.jobs.values().any(Job::is_waiting) {
            TICK_MS
        } else if self.jobs.is_empty() && self.prepared.values().all(|prepared| prepared.ready.is_none()) {
            -1
        } else {
            report::NEWS_MS as i32
        }
    }

    fn is_idle(&self) -> bool {
        self.jobs.is_empty() && self.runs.is_empty()
    }

    /// Takes what jobs wrote and what their guards say, and reports those that are over.
    fn look(&mut self) {
        self.jobs.values_mut().for_each(|job| job.pump(&self.outbox));
        for fence in self.slots.freed() {
            ready::clear(&self.config.data, fence);
            self.outbox.tell(FromExec::Freed { fence });
        }
        self.kill_orphans();
        let over: Vec<Fence> =
            self.jobs.iter().filter(|(_, job)| job.is_over()).map(|(fence, _)| *fence).collect();
        for job in over.iter().filter_map(|fence| self.jobs.remove(fence)).collect::<Vec<_>>() {
            self.over(job.finish(self.digest));
        }
        self.go_on();
        self.give_back_stale();
    }

    /// What waited in vain for a start gives back what was made for it. It may be started all the same.
    fn give_back_stale(&mut self) {
        let now = clock::boot_ms();
        for (fence, prepared) in &mut self.prepared {
            if let Some(ready) = prepared.ready.take_if(|ready| ready.is_stale(now)) {
                self.slots.see_off(ready.give_back(&self.config.data, *fence));
            }
        }
    }

    /// It will not be started.
    fn forget(&mut self, prepared: Prepared) {
        let guard = prepared.ready.map(|ready| ready.give_back(&self.config.data, prepared.work.fence));
        self.slots.free(prepared.slot, guard);
    }

    /// Starts nothing more, and ends every job with its grace.
    fn stop(&mut self) {
        if std::mem::replace(&mut self.stopping, true) {
            return;
        }
        for prepared in std::mem::take(&mut self.prepared).into_values() {
            self.forget(prepared);
        }
        let by = Interruption::ExecutorRestart;
        self.runs.values_mut().for_each(|run| run.end(message::EndCause::Interrupted(by)));
        self.jobs.values().for_each(|job| job.end(guard::Cause::Asked(message::EndCause::Interrupted(by))));
    }

    /// A guard was killed (a job can do that to its own): what it guarded is our child now. All our children but guards
    /// are such orphans.
    fn kill_orphans(&mut self) {
        if !self.jobs.values().any(Job::has_orphans) {
            return;
        }
        let waiting = self.prepared.values().filter_map(|prepared| prepared.ready.as_ref());
        let guards = self.jobs.values().map(Job::guard_pid).chain(self.slots.guards());
        let guards: Vec<i32> = guards.chain(waiting.map(Ready::guard_pid)).collect();
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
            ToExec::Prepare(work) => self.decide(*work),
            ToExec::Start { fence, lease_until } => self.start(fence, lease_until),
            ToExec::Forget { fence } => {
                if let Some(prepared) = self.prepared.remove(&fence) {
                    self.forget(prepared);
                }
            }
            ToExec::Extend { fence, lease_until } => {
                if let Some(run) = self.runs.get_mut(&fence) {
                    run.extend(lease_until);
                }
                if let Some(job) = self.jobs.get(&fence) {
                    job.extend(lease_until);
                }
            }
            ToExec::End { fence, cause } => {
                if let Some(run) = self.runs.get_mut(&fence) {
                    run.end(cause);
                }
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
            ToExec::Overlay(overlay) => self.take_overlay(*overlay),
            ToExec::Shutdown => self.stop(),
        }
    }

    /// Whether it may run is said first: what is made for it then is ready when the uplink's journal is written.
    fn decide(&mut self, work: Work) {
        let (fence, asked) = (work.fence, audit::asked(&work));
        match self.prepare(work) {
            Ok(mut prepared) => {
                self.audit.decided(asked, None, Some(&prepared.rule));
                let (rule, timeout_ms) = (prepared.rule.clone(), prepared.timeout_ms);
                self.outbox
                    .tell(FromExec::Prepared { fence, decision: Decision::Allow { rule, timeout_ms } });
                // What cannot be made now is tried again at the start, and why not is said then.
                prepared.ready = Ready::make(&prepared, &self.config.data, &self.kernel).ok();
                self.prepared.insert(fence, prepared);
            }
            Err((reason, rule)) => {
                self.audit.decided(asked, Some(reason), rule.as_deref());
                let mut report = Report::without_process(Outcome::Denied { reason });
                report.rule = rule;
                report.policy = self.digest;
                let decision = Decision::Deny(Box::new(report));
                self.outbox.tell(FromExec::Prepared { fence, decision });
            }
        }
    }

    fn start(&mut self, fence: Fence, lease_until: BootMs) {
        let Some(mut prepared) = self.prepared.remove(&fence) else { return };
        let slot = prepared.slot;
        if let Err(reason) = self.verifier.start(&prepared.work) {
            let asked = audit::asked(&prepared.work);
            self.audit.decided(asked, Some(reason), Some(&prepared.rule));
            self.forget(prepared);
            return self.tell_unstarted(fence, Outcome::Denied { reason });
        }
        let run = prepared.sequence.take().map(|sequence| Run::new(sequence, &prepared, lease_until));
        match Job::start(prepared, lease_until, &self.config.data, &self.spool, &self.kernel) {
            Ok(job) => {
                self.jobs.insert(fence, job);
                self.runs.extend(run.map(|run| (fence, run)));
            }
            Err(outcome) => {
                self.slots.free(slot, None);
                self.tell_unstarted(fence, outcome);
            }
        }
    }

    fn tell_unstarted(&self, fence: Fence, outcome: Outcome) {
        let mut report = Report::without_process(outcome);
        report.policy = self.digest;
        self.outbox.tell(FromExec::Ended { fence, report: Box::new(report), kept: Default::default() });
    }

    /// It is on the disk before it is in force, so that a restart without a hub does not undo it.
    fn take_overlay(&mut self, overlay: Overlay) {
        if !overlay.is_in_bounds() {
            return;
        }
        if let Err(error) = rules::keep_overlay(&self.config.data.join(OWN), &overlay) {
            return tracing::error!(%error, "an overlay of the policy was not taken");
        }
        self.audit.write(clock::wall_ms(), json!({"decision": "overlay", "version": overlay.version}));
        self.overlay = overlay;
        self.tell_policy(None);
    }

    /// Which key set is in force, where signatures are trusted at all.
    fn tell_keys(&self) {
        if let Some(version) = self.verifier.version() {
            self.outbox.tell(FromExec::Keys { version });
        }
    }

    /// A file that is wrong at start denies everything; at a reload the policy in force stays.
    fn load_policy(&mut self) {
        let error = match load(&self.config.policy) {
            Ok((policy, digest)) => {
                self.base = Some(policy);
                self.digest = digest;
                None
            }
            Err(error) => {
                tracing::error!(%error, "the policy is not in force");
                Some(error)
            }
        };
        self.denied_tokens.clear();
        self.tell_policy(error);
    }

    fn tell_policy(&mut self, error: Option<String>) {
        self.policy = self.base.as_ref().map(|base| base.narrowed(&self.overlay));
        let overlay = self.overlay.version;
        let jobs = self.policy.as_ref().map_or(1, |policy| asked::capacity(policy) as u32);
        let kinds = self.policy.as_ref().map(asked::kinds).unwrap_or_default();
        let layers = self.kernel.layers;
        self.outbox.tell(FromExec::Policy(PolicyState {
            digest: self.digest,
            jobs,
            layers,
            error,
            kinds,
            overlay,
        }));
    }
}
