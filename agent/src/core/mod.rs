//! Pure decisions of the agent: no IO, no clock. Time and randomness come in as values.
//!
//! [`Core`] holds every attempt from its grant until its outcome is acknowledged, and the state of the uplink. It is
//! driven by the loop on a board, and by the simulation over a lossy network.

mod attempt;
pub mod budget;
pub mod keepalive;
pub mod orchestrate;
pub mod peaks;
pub mod policy;
pub mod reports;
pub mod told;
pub mod trust;
mod uplink;
pub mod uplinks;

use crate::clock::BootMs;
use crate::event::{Effect, Event, Loaded, Reading, Record, Setup, Write};
use crate::exec::message::{EndCause, FromExec, PolicyState, ToExec, Work};
use budget::Thrift;
use dunlin_wire::job::{Interruption, Outcome, Report};
use dunlin_wire::message::{AbortCause, ToHub};
use dunlin_wire::report::Told;
use dunlin_wire::require::Require;
use dunlin_wire::{ClaimId, Fence};
use keepalive::Keepalive;
use peaks::Watch;
use reports::Reports;
use std::collections::{BTreeMap, BTreeSet};
use uplink::Link;

/// Claim ids and connection numbers are reserved on disk in blocks of this many, so that one costs no commit.
const BLOCK: u64 = 1024;
/// How long a stopping agent waits for its jobs and their delivery, in milliseconds.
const SHUTDOWN_MS: u64 = 8_000;

/// How far an attempt is.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Phase {
    /// Granted; another attempt of the task is still ending here.
    Blocked(Box<Work>),
    /// The policy is being asked. Not on disk: a lost connection takes it back.
    Preparing,
    /// On disk and acknowledged by nobody yet; its first lease has passed, so it waits for a renewal to start.
    Waiting,
    /// Its process was asked for.
    Running,
    /// Its outcome is on disk.
    Ended,
}

#[derive(Debug, Clone)]
struct Attempt {
    record: Record,
    phase: Phase,
    lease_until: BootMs,
    lease_ms: u64,
    abort: Option<AbortCause>,
    requires: Vec<Require>,
    // From its start.
    watch: Option<Watch>,
    // When the hub was last told what the job says of itself.
    told_at: Option<BootMs>,
    told: Told,
    // Which of its streams somebody follows on this connection.
    followed: [bool; 2],
}

/// The agent's state.
#[derive(Debug)]
pub struct Core {
    setup: Setup,
    attempts: BTreeMap<Fence, Attempt>,
    claims: BTreeSet<ClaimId>,
    next_claim: u64,
    claims_reserved: u64,
    next_connection: u64,
    connections_reserved: u64,
    policy: Option<PolicyState>,
    // Version of the key set in force; nothing where no signature is trusted.
    keys: Option<u64>,
    // Attempts that are stuck: each has a slot, which is out of use.
    stuck: BTreeSet<Fence>,
    reports: Reports,
    link: Option<Link>,
    // As the hub wants it, and what is made of it.
    heartbeat_ms: u64,
    keepalive: Keepalive,
    thrift: Thrift,
    stop_at: Option<BootMs>,
}

impl Core {
    /// A core over what was on disk. Attempts that were accepted and have no report were interrupted: nothing of them
    /// runs any more (the executor's sweep proved it), and the first effects say so on disk.
    pub fn new(setup: Setup, loaded: Loaded, out: &mut Vec<Effect>) -> Self {
        let mut core = Self {
            attempts: BTreeMap::new(),
            claims: BTreeSet::new(),
            next_claim: loaded.next_claim,
            claims_reserved: loaded.next_claim,
            next_connection: loaded.next_connection.max(1),
            connections_reserved: loaded.next_connection.max(1),
            policy: None,
            keys: None,
            stuck: BTreeSet::new(),
            reports: Reports::new(setup.profile),
            link: None,
            heartbeat_ms: setup.profile.heartbeat_ms(),
            keepalive: Keepalive::new(setup.profile, setup.profile.heartbeat_ms()),
            thrift: Thrift::None,
            stop_at: None,
            setup,
        };
        for (fence, mut record) in loaded.attempts {
            if record.report.is_none() {
                let same = record.boot == core.setup.kernel_boot;
                let by = if same { Interruption::ExecutorRestart } else { Interruption::PowerLoss };
                record.report = Some(Box::new(Report::without_process(Outcome::Interrupted { by })));
                out.push(Effect::Store(Write::Ended { record: record.clone(), kept: Default::default() }));
            }
            let attempt = Attempt {
                record,
                phase: Phase::Ended,
                lease_until: 0,
                lease_ms: 0,
                abort: None,
                requires: Vec::new(),
                watch: None,
                told_at: None,
                told: Told::default(),
                followed: [false; 2],
            };
            core.attempts.insert(fence, attempt);
        }
        core
    }

    /// Handles one event.
    pub fn handle(&mut self, event: Event, now: BootMs, out: &mut Vec<Effect>) {
        match event {
            Event::Connected { early } => self.handle_connected(early, now, out),
            Event::Confirmed => self.handle_confirmed(now, out),
            Event::Disconnected => self.handle_disconnected(out),
            Event::Heard => self.handle_heard(now),
            Event::Asked => self.handle_asked(now, out),
            Event::Thrift(thrift) => self.thrift = thrift,
            Event::Rebound => self.keepalive.handle_rebound(),
            Event::FromHub(message) => self.handle_hub(message, now, out),
            Event::FromExec(message) => self.handle_exec(message, now, out),
            Event::ReloadPolicy => out.push(Effect::Exec(ToExec::ReloadPolicy)),
            // The loop ends by it.
            Event::ExecutorGone => {}
            Event::Reading(reading) => self.handle_reading(&reading, now),
            Event::Shutdown => self.handle_shutdown(now, out),
        }
        self.claim(now, out);
        self.report(now, out);
        self.exit_when_done(out);
    }

    fn handle_exec(&mut self, message: FromExec, now: BootMs, out: &mut Vec<Effect>) {
        match message {
            FromExec::Policy(policy) => {
                let version = policy.overlay;
                let before = self.policy.replace(policy).map(|policy| policy.overlay);
                if before != Some(version) && self.is_welcome() {
                    self.say(ToHub::Overlay { version }, now, out);
                }
            }
            FromExec::Prepared { fence, decision } => self.handle_prepared(fence, decision, now, out),
            FromExec::Started { fence } => self.handle_started(fence, now, out),
            FromExec::Output { fence, stream, offset, bytes } => {
                self.handle_output(fence, stream, offset, bytes, now, out);
            }
            FromExec::Freed { fence } => drop(self.stuck.remove(&fence)),
            FromExec::Told { fence, told } => self.handle_told(fence, *told, now, out),
            FromExec::Keys { version } => {
                let news = self.keys.replace(version) != Some(version);
                if news && self.is_welcome() {
                    self.say(ToHub::Keys { version }, now, out);
                }
            }
            FromExec::Ended { fence, report, kept } => self.handle_ended(fence, report, kept, now, out),
        }
    }

    fn handle_reading(&mut self, reading: &Reading, now: BootMs) {
        self.reports.handle_reading(reading, now);
        for (fence, attempt) in &mut self.attempts {
            if let Some(watch) = &mut attempt.watch {
                watch.handle_reading(reading, *fence, now);
            }
        }
    }

    /// Deadlines. Spurious calls are harmless.
    pub fn handle_timeout(&mut self, now: BootMs, out: &mut Vec<Effect>) {
        for (fence, attempt) in &mut self.attempts {
            if attempt.phase == Phase::Running && attempt.lease_until <= now && attempt.abort.is_none() {
                // The guard does this by itself at the same time; this only makes sure.
                attempt.abort = Some(AbortCause::LeaseLost);
                let cause = EndCause::Interrupted(Interruption::LeaseLost);
                out.push(Effect::Exec(ToExec::End { fence: *fence, cause }));
            }
        }
        self.beat_when_due(now, out);
        self.exit_when_done(out);
        if self.stop_at.is_some_and(|at| at <= now) {
            out.push(Effect::Exit);
        }
    }

    /// When [`Core::handle_timeout`] must be called.
    pub fn poll_timeout(&self) -> Option<BootMs> {
        let leases = self.attempts.values().filter(|a| a.phase == Phase::Running && a.abort.is_none());
        let lease = leases.map(|a| a.lease_until).min();
        [lease, self.next_beat(), self.stop_at].into_iter().flatten().min()
    }

    /// Attempts that may have a process, for tests and `status`.
    pub fn live(&self) -> impl Iterator<Item = Fence> {
        self.attempts.iter().filter(|(_, a)| a.phase != Phase::Ended).map(|(fence, _)| *fence)
    }

    /// Whether the hub welcomed this connection.
    pub fn is_welcome(&self) -> bool {
        self.link.as_ref().is_some_and(|link| link.welcome)
    }

    /// Time between two signs of life, in milliseconds: as rare as the way to the hub was found to allow.
    pub fn heartbeat_ms(&self) -> u64 {
        self.keepalive.every_ms()
    }

    /// The policy in force, once the executor said it.
    pub fn policy(&self) -> Option<&PolicyState> {
        self.policy.as_ref()
    }

    fn handle_shutdown(&mut self, now: BootMs, out: &mut Vec<Effect>) {
        if self.stop_at.is_some() {
            return;
        }
        self.stop_at = Some(now + SHUTDOWN_MS);
        // Said first: from here on nothing is accepted, so the hub can give away at once what was not.
        self.say(ToHub::Leaving, now, out);
        self.claims.clear();
        self.forget_prepared(out);
        out.push(Effect::Exec(ToExec::Shutdown));
    }

    fn exit_when_done(&mut self, out: &mut Vec<Effect>) {
        if self.stop_at.is_some()
            && (self.attempts.is_empty() || !self.is_welcome() && self.live().count() == 0)
        {
            out.push(Effect::Exit);
        }
    }
}
