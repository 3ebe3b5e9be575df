//! A board: the real agent core, a disk that keeps only what was committed, and an executor whose guards are exact.

use crate::model::Model;
use dunlin_agent::core::Core;
use dunlin_agent::event::{Effect, Event, Loaded, Setup, Write};
use dunlin_agent::exec::message::{Decision, EndCause, FromExec, PolicyState, ToExec, Work};
use dunlin_wire::job::{Denial, Interruption, Job, Outcome, Report, Stream, StreamEnd, TimeoutPhase};
use dunlin_wire::message::{Profile, Role};
use dunlin_wire::{Fence, FleetId, Key, NodeName, TaskId};
use std::collections::BTreeMap;

/// A process under its guard.
pub struct Process {
    pub task: TaskId,
    pub ends_at: u64,
    pub lease_until: u64,
    outcome: Outcome,
}

pub struct Board {
    pub at: usize,
    pub key: Key,
    pub name: NodeName,
    pub core: Option<Core>,
    pub disk: Loaded,
    pub kept: BTreeMap<Fence, [Vec<u8>; 2]>,
    pub processes: BTreeMap<Fence, Process>,
    prepared: BTreeMap<Fence, Work>,
    /// Events that reach the core at a time; not before it thaws.
    pub inbox: Vec<(u64, Event)>,
    pub frozen_until: u64,
    pub connect_at: u64,
    pub partitioned_until: u64,
    boot: u8,
    starts: u8,
    fleet: FleetId,
}

impl Board {
    pub fn new(at: usize, key: Key, name: NodeName, fleet: FleetId) -> Self {
        Self {
            at,
            key,
            name,
            core: None,
            disk: Loaded::default(),
            kept: BTreeMap::new(),
            processes: BTreeMap::new(),
            prepared: BTreeMap::new(),
            inbox: Vec::new(),
            frozen_until: 0,
            connect_at: 0,
            partitioned_until: 0,
            boot: 0,
            starts: 0,
            fleet,
        }
    }

    /// The agent starts; what it wants done first.
    pub fn start(&mut self, now: u64) -> Vec<Effect> {
        self.starts = self.starts.wrapping_add(1);
        let setup = Setup {
            fleet: self.fleet,
            node: self.name.clone(),
            role: Role::Worker,
            slots: 3,
            profile: Profile::Lan,
            capabilities: vec![],
            boot_id: [self.starts; 16],
            kernel_boot: [self.boot; 16],
            version: "sim".into(),
        };
        let mut out = Vec::new();
        self.core = Some(Core::new(setup, self.disk.clone(), &mut out));
        let policy =
            PolicyState { digest: [1; 8], jobs: 3, layers: 0, error: None, kinds: vec![], overlay: 0 };
        self.inbox.push((now, Event::FromExec(FromExec::Policy(policy))));
        out
    }

    /// The agent's process dies, its guards see that and kill; with `power` the board goes too.
    pub fn crash(&mut self, power: bool, model: &mut Model) {
        self.core = None;
        self.frozen_until = 0;
        self.inbox.clear();
        self.prepared.clear();
        for (fence, process) in std::mem::take(&mut self.processes) {
            let by = Interruption::ExecutorRestart;
            model.ended(&process.task, self.at, fence, Outcome::Interrupted { by });
        }
        if power {
            self.boot = self.boot.wrapping_add(1);
        }
    }

    /// Makes writes durable.
    pub fn commit(&mut self, write: &Write) {
        self.disk.apply(write);
        match write {
            Write::Ended { record, kept } => drop(self.kept.insert(record.fence, kept.clone())),
            Write::Forget(fence) => drop(self.kept.remove(fence)),
            _ => {}
        }
    }

    pub fn exec(&mut self, message: ToExec, now: u64, rng: &mut fastrand::Rng, model: &mut Model) {
        match message {
            ToExec::Prepare(work) => {
                let fence = work.fence;
                let decision = if rng.u8(..) < 6 {
                    let reason = Denial::Busy;
                    Decision::Deny(Box::new(Report::without_process(Outcome::Denied { reason })))
                } else {
                    self.prepared.insert(fence, *work);
                    Decision::Allow { rule: "sim".into(), timeout_ms: 60_000 }
                };
                self.inbox
                    .push((now + rng.u64(0..40), Event::FromExec(FromExec::Prepared { fence, decision })));
            }
            ToExec::Start { fence, lease_until } => {
                let Some(work) = self.prepared.remove(&fence) else { return };
                model.started(&work.task, self.at, fence);
                self.inbox.push((now, Event::FromExec(FromExec::Started { fence })));
                let (ends_at, outcome) = fate(&work.job, now, rng);
                self.processes.insert(fence, Process { task: work.task, ends_at, lease_until, outcome });
            }
            ToExec::Forget { fence } => drop(self.prepared.remove(&fence)),
            ToExec::Extend { fence, lease_until } => {
                if let Some(process) = self.processes.get_mut(&fence) {
                    process.lease_until = process.lease_until.max(lease_until);
                }
            }
            ToExec::End { fence, cause } => {
                if let Some(process) = self.processes.get_mut(&fence) {
                    process.ends_at = process.ends_at.min(now + rng.u64(0..3_000));
                    process.outcome = match cause {
                        EndCause::Cancelled(by) => Outcome::Cancelled { by },
                        EndCause::Interrupted(by) => Outcome::Interrupted { by },
                    };
                }
            }
            ToExec::ReloadPolicy | ToExec::Keys(_) | ToExec::Overlay(_) | ToExec::Shutdown => {}
        }
    }

    /// When the next process ends: by itself, or by its guard.
    pub fn next_end(&self) -> Option<u64> {
        self.processes.values().map(|p| p.ends_at.min(p.lease_until)).min()
    }

    pub fn end_processes(&mut self, now: u64, rng: &mut fastrand::Rng, model: &mut Model) {
        let due: Vec<Fence> = self
            .processes
            .iter()
            .filter(|(_, p)| p.ends_at.min(p.lease_until) <= now)
            .map(|(f, _)| *f)
            .collect();
        for fence in due {
            let Some(process) = self.processes.remove(&fence) else { continue };
            let outcome = if process.lease_until <= process.ends_at {
                Outcome::Interrupted { by: Interruption::LeaseLost }
            } else {
                process.outcome
            };
            model.ended(&process.task, self.at, fence, outcome.clone());
            let mut report = Report::without_process(outcome);
            let kept = [vec![b'o'; rng.usize(0..40)], vec![b'e'; rng.usize(0..4)]];
            for stream in Stream::BOTH {
                let bytes = &kept[stream as usize];
                let digest = ring::digest::digest(&ring::digest::SHA256, bytes);
                report.streams[stream as usize] = StreamEnd {
                    end: bytes.len() as u64,
                    truncated: 0,
                    head: bytes.len() as u64,
                    digest: digest.as_ref()[..8].try_into().unwrap(),
                };
            }
            let ended = FromExec::Ended { fence, report: Box::new(report), kept };
            self.inbox.push((now + rng.u64(0..30), Event::FromExec(ended)));
        }
    }
}

/// How long a job runs and how it ends, by itself.
fn fate(job: &Job, now: u64, rng: &mut fastrand::Rng) -> (u64, Outcome) {
    let long = matches!(job, Job::Shell(shell) if shell.argv.len() > 1);
    let ends_at = now + if long { rng.u64(5_000..90_000) } else { rng.u64(1..4_000) };
    let outcome = match rng.u8(..) {
        0..=40 => Outcome::Exit { code: 1 },
        41..=50 => Outcome::TimedOut { phase: TimeoutPhase::Term },
        _ => Outcome::Ok,
    };
    (ends_at, outcome)
}
