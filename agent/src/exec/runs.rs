//! Attempts of several parts, one after the other, under one lease; and how any attempt ends.
//!
//! The executor itself goes through the parts: an uplink can ask for a run, extend its lease and end it, and nothing else.

use super::asked::Prepared;
use super::guard;
use super::message::{EndCause, FromExec, Work};
use super::output::Output;
use super::run::{Finished, Job};
use super::{Machine, audit, ready};
use crate::clock::{self, BootMs};
use crate::core::orchestrate::Sequence;
use crate::core::trust::Verified;
use dunlin_wire::Fence;
use dunlin_wire::job::{HookEnd, Interruption, Outcome, Report, TimeoutPhase};
use std::rc::Rc;

/// A run whose end was not reported yet.
pub(super) struct Run {
    sequence: Sequence,
    /// Who signed it, when somebody did.
    by: Option<Rc<Verified>>,
    work: Work,
    slot: usize,
    lease_until: BootMs,
    /// When all of it must be over, if the task says.
    until: Option<BootMs>,
    end: Option<EndCause>,
    /// What all parts so far come to.
    report: Option<Report>,
    /// Between two parts: the guard of the last one, which must be gone first, and the output so far.
    between: Option<(guard::Process, [Output; 2])>,
}

impl Run {
    /// Its first part is about to start.
    pub(super) fn new(
        (sequence, by): (Sequence, Option<Rc<Verified>>),
        first: &Prepared,
        lease_until: BootMs,
    ) -> Self {
        Self {
            sequence,
            by,
            work: first.work.clone(),
            slot: first.slot,
            lease_until,
            until: first.work.timeout_ms.map(|ms| clock::boot_ms() + ms),
            end: None,
            report: None,
            between: None,
        }
    }

    pub(super) fn is_between(&self) -> bool {
        self.between.is_some()
    }

    pub(super) fn extend(&mut self, until: BootMs) {
        self.lease_until = self.lease_until.max(until);
    }

    pub(super) fn end(&mut self, cause: EndCause) {
        self.end.get_or_insert(cause);
    }

    /// Why nothing more of it may start, although more is left.
    fn cut_short(&self, now: BootMs) -> Option<Outcome> {
        let lost = Outcome::Interrupted { by: Interruption::LeaseLost };
        match self.end {
            Some(EndCause::Cancelled(by)) => Some(Outcome::Cancelled { by }),
            Some(EndCause::Interrupted(by)) => Some(Outcome::Interrupted { by }),
            None if now >= self.lease_until => Some(lost),
            None if self.until.is_some_and(|at| at <= now) => {
                Some(Outcome::TimedOut { phase: TimeoutPhase::Term })
            }
            None => None,
        }
    }

    /// Takes a part's report into the whole's.
    fn add(&mut self, mut part: Report) {
        if let Some(so_far) = self.report.take() {
            part.usage.duration_ms += so_far.usage.duration_ms;
            part.usage.user_ms += so_far.usage.user_ms;
            part.usage.system_ms += so_far.usage.system_ms;
            part.usage.leftovers += so_far.usage.leftovers;
            part.usage.max_rss_kib = part.usage.max_rss_kib.max(so_far.usage.max_rss_kib);
            part.usage.peak_memory_kib = part.usage.peak_memory_kib.max(so_far.usage.peak_memory_kib);
            part.sandbox &= so_far.sandbox;
            part.told.add(&so_far.told);
        }
        self.report = Some(part);
    }
}

impl Machine {
    /// A job is over: its attempt, or a part of it.
    pub(super) fn over(&mut self, finished: Finished) {
        let Finished { fence, slot, guard, control, mut report, outputs, hook } = finished;
        if let Some(hook) = hook {
            report.outcome = answered(report.outcome);
            self.count_tokens(hook, &report.outcome);
        }
        let stuck = report.outcome == Outcome::Stuck;
        let Some(mut run) = self.runs.remove(&fence).filter(|_| !stuck) else {
            self.tell_ended(fence, report, outputs);
            if stuck {
                return self.slots.quarantine(slot, fence, guard, control);
            }
            ready::clear(&self.config.data, fence);
            return self.slots.free(slot, Some(guard));
        };
        ready::clear(&self.config.data, fence);
        let outcome = report.outcome.clone();
        run.add(report);
        let stopped = matches!(outcome, Outcome::Cancelled { .. } | Outcome::Interrupted { .. });
        run.sequence.ended(&outcome);
        let is_cleared = outcome == Outcome::Ok && run.sequence.next().is_none();
        let short = match stopped {
            true => Some(outcome),
            // What has passed everything is not undone by a deadline that passes behind it.
            false if is_cleared => None,
            false => run.cut_short(clock::boot_ms()),
        };
        if short.is_none() && run.sequence.next().is_some() {
            run.between = Some((guard, outputs));
            self.runs.insert(fence, run);
        } else {
            self.slots.free(slot, Some(guard));
            self.decided(run, short, outputs);
        }
    }

    /// Starts the next part of each run whose last one has left nothing behind.
    pub(super) fn go_on(&mut self) {
        let gone = |run: &Run| run.between.as_ref().is_some_and(|(guard, _)| guard.has_ended().is_some());
        let ready: Vec<Fence> =
            self.runs.iter().filter(|(_, run)| gone(run)).map(|(fence, _)| *fence).collect();
        for fence in ready {
            let Some(mut run) = self.runs.remove(&fence) else { continue };
            let Some((_, outputs)) = run.between.take() else { continue };
            let (now, slot) = (clock::boot_ms(), run.slot);
            let Some(part) = run.sequence.next().cloned() else { continue };
            let left = run.until.map(|at| at.saturating_sub(now));
            let short = run.cut_short(now);
            let ready = match short {
                Some(outcome) => Err((outcome, true)),
                None => {
                    let by = run.by.as_deref();
                    let part = self.part(run.work.clone(), part.role, part.shell, (left, by), slot);
                    part.map_err(|(reason, rule)| {
                        self.audit.decided(audit::asked(&run.work), Some(reason), rule.as_deref());
                        (Outcome::Denied { reason }, false)
                    })
                }
            };
            let (data, spool, kernel) = (&self.config.data, &self.spool, &self.kernel);
            // What was written so far is handed on only to a part that starts.
            let started = ready.and_then(|prepared| {
                Job::start(prepared, run.lease_until, data, spool, kernel).map_err(|outcome| (outcome, false))
            });
            match started {
                Ok(mut job) => {
                    job.go_on(outputs);
                    self.jobs.insert(fence, job);
                    self.runs.insert(fence, run);
                }
                Err((outcome, stopped)) => {
                    self.slots.free(slot, None);
                    let short = stopped.then(|| outcome.clone());
                    run.sequence.ended(&outcome);
                    self.decided(run, short, outputs);
                }
            }
        }
    }

    /// Nothing more of a run is started: reports it.
    fn decided(&self, run: Run, short: Option<Outcome>, outputs: [Output; 2]) {
        let (outcome, result) = run.sequence.verdict();
        let mut report = run.report.unwrap_or_else(|| Report::without_process(Outcome::AgentInternal));
        report.policy = self.digest;
        report.timeout_ms = run.work.timeout_ms;
        report.told.progress = None;
        report.told.result = short.is_none().then_some(result);
        report.outcome = short.unwrap_or(outcome);
        self.tell_ended(run.work.fence, report, outputs);
    }

    fn tell_ended(&self, fence: Fence, mut report: Report, outputs: [Output; 2]) {
        let [(out, out_kept), (err, err_kept)] = outputs.map(Output::finish);
        report.streams = [out, err];
        let ended = FromExec::Ended { fence, report: Box::new(report), kept: Default::default() };
        self.outbox.tell_ended(ended, [out_kept, err_kept]);
    }

    /// A receiver that refuses its token again and again is not asked any more.
    fn count_tokens(&mut self, hook: String, outcome: &Outcome) {
        match outcome {
            Outcome::Hook { how: HookEnd::Unauthorized } => {
                tracing::error!(%hook, "its receiver does not take the token");
                *self.denied_tokens.entry(hook).or_default() += 1;
            }
            Outcome::Ok | Outcome::Hook { .. } => drop(self.denied_tokens.remove(&hook)),
            _ => {}
        }
    }
}

/// What the process that called a hook says by its exit code.
fn answered(outcome: Outcome) -> Outcome {
    match outcome {
        Outcome::Exit { code } => match HookEnd::ALL.get(usize::from(code.saturating_sub(HOOK_EXIT))) {
            Some(how) if code >= HOOK_EXIT => Outcome::Hook { how: *how },
            _ => Outcome::AgentInternal,
        },
        Outcome::TimedOut { .. } => Outcome::Hook { how: HookEnd::TimeoutUnknown },
        other => other,
    }
}

/// Exit code of the process that called a hook for the first of [`HookEnd::ALL`]; the others follow.
pub const HOOK_EXIT: u8 = 10;
