//! An attempt, from its grant to its acknowledgement.

use super::budget::Thrift;
use super::peaks::Watch;
use super::{Attempt, Core, Phase};
use crate::clock::BootMs;
use crate::event::{Effect, Record, Write};
use crate::exec::message::{Decision, EndCause, ToExec, Work};
use dunlin_wire::Fence;
use dunlin_wire::job::{Denial, Interruption, Outcome, Report, Stream};
use dunlin_wire::message::{AbortCause, Grant, Profile, ToHub, Upload, Verdict};
use dunlin_wire::report::Told;

/// Least time between two words on one running job, in milliseconds.
const TOLD_MS: u64 = 2_000;
/// Time between two signs that a job goes on whose output nobody sees, in milliseconds.
const GOES_ON_MS: u64 = 60_000;

impl Core {
    pub(super) fn handle_grant(&mut self, grant: Grant, now: BootMs, out: &mut Vec<Effect>) {
        let fence = grant.fence;
        // Counted from the message that the hub had heard when it granted. One that is not known is long past.
        let lease_until = self.sent_at(grant.heard).map_or(0, |at| at + grant.lease_ms);
        if self.attempts.contains_key(&fence) {
            return self.repeat_grant(fence, lease_until, now, out);
        }
        // A claim is filled once. One that does not stand was filled before: what comes late, or twice, starts nothing.
        if !self.claims.remove(&grant.claim) {
            return;
        }
        let newer = self.attempts.values().any(|a| a.record.task == grant.task && a.record.fence > fence);
        if newer || self.stop_at.is_some() {
            return;
        }
        let blocked = self.attempts.values().any(|a| a.record.task == grant.task && a.phase != Phase::Ended);
        let work = Box::new(Work {
            task: grant.task.clone(),
            fence,
            attempt: grant.attempt,
            job: grant.job,
            timeout_ms: grant.timeout_ms,
        });
        let phase = if blocked {
            Phase::Blocked(work)
        } else {
            out.push(Effect::Exec(ToExec::Prepare(work)));
            Phase::Preparing
        };
        let record = Record {
            fence,
            task: grant.task,
            claim: grant.claim,
            attempt: grant.attempt,
            boot: self.setup.kernel_boot,
            delivery: grant.delivery,
            report: None,
        };
        let (lease_ms, requires) = (grant.lease_ms, grant.requires);
        let attempt = Attempt {
            record,
            phase,
            lease_until,
            lease_ms,
            abort: None,
            requires,
            watch: None,
            told_at: None,
            told: Told::default(),
            followed: [false; 2],
        };
        self.attempts.insert(fence, attempt);
    }

    /// The same grant again: the answer to it was lost, or crossed it.
    fn repeat_grant(&mut self, fence: Fence, lease_until: BootMs, now: BootMs, out: &mut Vec<Effect>) {
        let Some(attempt) = self.attempts.get_mut(&fence) else { return };
        match attempt.phase {
            Phase::Blocked(_) | Phase::Preparing => attempt.lease_until = lease_until,
            Phase::Waiting | Phase::Running => self.say(ToHub::Accepted { fence }, now, out),
            Phase::Ended => out.push(Effect::Upload { fence, have: Some([0, 0]) }),
        }
    }

    pub(super) fn handle_prepared(
        &mut self,
        fence: Fence,
        decision: Decision,
        now: BootMs,
        out: &mut Vec<Effect>,
    ) {
        let Some(attempt) = self.attempts.get_mut(&fence).filter(|a| a.phase == Phase::Preparing) else {
            return;
        };
        match decision {
            Decision::Deny(report) => self.end(fence, report, Default::default(), now, out),
            // The hub decided on figures that were on the way; these are the board's own.
            Decision::Allow { rule, .. } if !self.reports.meets(&attempt.requires, now) => {
                out.push(Effect::Exec(ToExec::Forget { fence }));
                let denied = Outcome::Denied { reason: Denial::CapabilityMissing };
                let report = Report { rule: Some(rule), ..Report::without_process(denied) };
                self.end(fence, Box::new(report), Default::default(), now, out);
            }
            Decision::Allow { .. } => {
                out.push(Effect::Store(Write::Accepted(attempt.record.clone())));
                if attempt.lease_until > now {
                    attempt.phase = Phase::Running;
                    let lease_until = attempt.lease_until;
                    self.say(ToHub::Accepted { fence }, now, out);
                    out.push(Effect::Exec(ToExec::Start { fence, lease_until }));
                } else {
                    attempt.phase = Phase::Waiting;
                    self.say(ToHub::Accepted { fence }, now, out);
                }
            }
        }
    }

    pub(super) fn handle_started(&mut self, fence: Fence, now: BootMs, out: &mut Vec<Effect>) {
        let power = self.reports.power();
        if let Some(attempt) = self.attempts.get_mut(&fence) {
            attempt.watch = Some(Watch::new(now, power));
        }
        self.say(ToHub::Started { fence }, now, out);
    }

    /// What a job says of itself, now and then: its report has all of it.
    pub(super) fn handle_told(&mut self, fence: Fence, mut told: Told, now: BootMs, out: &mut Vec<Effect>) {
        let welcome = self.is_welcome() && self.thrift < Thrift::Spent;
        let Some(attempt) = self.attempts.get_mut(&fence).filter(|a| welcome && a.phase == Phase::Running)
        else {
            return;
        };
        if attempt.told_at.is_none_or(|at| now >= at + TOLD_MS) {
            attempt.told_at = Some(now);
            told.result = None;
            attempt.told = told.clone();
            self.say(ToHub::Told { fence, told }, now, out);
        }
    }

    /// What a job just wrote. Where bytes are paid for it waits for the outcome, unless somebody follows it; that the job goes
    /// on is said now and then.
    pub(super) fn handle_output(
        &mut self,
        fence: Fence,
        stream: Stream,
        offset: u64,
        bytes: Vec<u8>,
        now: BootMs,
        out: &mut Vec<Effect>,
    ) {
        if !self.is_welcome() || self.thrift >= Thrift::Spent {
            return;
        }
        if self.setup.profile != Profile::Metered {
            return out.push(Effect::Live { fence, stream, offset, bytes });
        }
        let Some(attempt) = self.attempts.get_mut(&fence).filter(|a| a.phase == Phase::Running) else {
            return;
        };
        if attempt.followed[stream as usize] {
            out.push(Effect::Tail { fence, stream, offset, bytes });
        } else if attempt.told_at.is_none_or(|at| now >= at + GOES_ON_MS) {
            attempt.told_at = Some(now);
            // What it said before, as it is not taken back.
            let told = attempt.told.clone();
            self.say(ToHub::Told { fence, told }, now, out);
        }
    }

    /// Somebody follows a stream, or nobody does any more.
    pub(super) fn handle_watch(&mut self, fence: Fence, stream: Stream, credit: u64, out: &mut Vec<Effect>) {
        let running = self.attempts.get_mut(&fence).filter(|a| a.phase != Phase::Ended);
        if let Some(attempt) = running.filter(|_| self.setup.profile == Profile::Metered) {
            attempt.followed[stream as usize] = credit > 0;
            out.push(Effect::Credit { fence, stream, credit });
        }
    }

    pub(super) fn handle_ended(
        &mut self,
        fence: Fence,
        mut report: Box<Report>,
        kept: [Vec<u8>; 2],
        now: BootMs,
        out: &mut Vec<Effect>,
    ) {
        if let Some(attempt) = self.attempts.get_mut(&fence).filter(|a| a.phase == Phase::Running) {
            if let Some(watch) = attempt.watch.take() {
                report.peaks = watch.finish(now);
            }
            if report.outcome == Outcome::Stuck {
                self.stuck.insert(fence);
            }
            self.end(fence, report, kept, now, out);
        }
    }

    fn end(
        &mut self,
        fence: Fence,
        report: Box<Report>,
        kept: [Vec<u8>; 2],
        now: BootMs,
        out: &mut Vec<Effect>,
    ) {
        let Some(attempt) = self.attempts.get_mut(&fence) else { return };
        attempt.phase = Phase::Ended;
        attempt.record.report = Some(report.clone());
        let task = attempt.record.task.clone();
        let silent = kept.iter().all(Vec::is_empty);
        out.push(Effect::Store(Write::Ended { record: attempt.record.clone(), kept }));
        if self.is_welcome() && silent {
            // It needs no stream of its own.
            let outcome = Upload::Outcome { task: task.clone(), fence, report };
            self.say(ToHub::Upload(outcome), now, out);
        } else if self.is_welcome() {
            out.push(Effect::Upload { fence, have: None });
        }
        self.unblock(&task, out);
    }

    fn unblock(&mut self, task: &dunlin_wire::TaskId, out: &mut Vec<Effect>) {
        let waiting = self.attempts.values_mut().filter(|a| a.record.task == *task);
        for attempt in waiting {
            if let Phase::Blocked(work) = &attempt.phase {
                out.push(Effect::Exec(ToExec::Prepare(work.clone())));
                attempt.phase = Phase::Preparing;
            }
        }
    }

    /// A lease goes on. Deadlines only ever move forward.
    pub(super) fn extend(
        &mut self,
        fence: Fence,
        until: BootMs,
        lease_ms: u64,
        now: BootMs,
        out: &mut Vec<Effect>,
    ) {
        let Some(attempt) = self.attempts.get_mut(&fence) else { return };
        if until <= attempt.lease_until || until <= now || attempt.abort.is_some() {
            return;
        }
        attempt.lease_until = until;
        attempt.lease_ms = lease_ms;
        match attempt.phase {
            Phase::Running => out.push(Effect::Exec(ToExec::Extend { fence, lease_until: until })),
            Phase::Waiting => {
                attempt.phase = Phase::Running;
                out.push(Effect::Exec(ToExec::Start { fence, lease_until: until }));
            }
            Phase::Blocked(_) | Phase::Preparing | Phase::Ended => {}
        }
    }

    pub(super) fn handle_abort(
        &mut self,
        fence: Fence,
        cause: AbortCause,
        now: BootMs,
        out: &mut Vec<Effect>,
    ) {
        let Some(attempt) = self.attempts.get_mut(&fence) else { return };
        let (end, outcome) = match cause {
            AbortCause::Cancelled { by } => (EndCause::Cancelled(by), Outcome::Cancelled { by }),
            AbortCause::LeaseLost => {
                let by = Interruption::LeaseLost;
                (EndCause::Interrupted(by), Outcome::Interrupted { by })
            }
        };
        match attempt.phase {
            Phase::Running => {
                attempt.abort = Some(cause);
                out.push(Effect::Exec(ToExec::End { fence, cause: end }));
            }
            Phase::Blocked(_) | Phase::Preparing | Phase::Waiting => {
                out.push(Effect::Exec(ToExec::Forget { fence }));
                let report = Box::new(Report::without_process(outcome));
                self.end(fence, report, Default::default(), now, out);
            }
            Phase::Ended => {}
        }
    }

    /// The hub has the outcome, or will never want it.
    pub(super) fn handle_ack(&mut self, fence: Fence, now: BootMs, out: &mut Vec<Effect>) {
        match self.attempts.get(&fence).map(|a| &a.phase) {
            Some(Phase::Ended) => {
                self.attempts.remove(&fence);
                out.push(Effect::Store(Write::Forget(fence)));
            }
            // It was settled without us while the job runs: end it; its report is acknowledged when it comes.
            Some(_) => self.handle_abort(fence, AbortCause::LeaseLost, now, out),
            None => {}
        }
    }

    pub(super) fn handle_verdict(
        &mut self,
        fence: Fence,
        verdict: Verdict,
        heard: u64,
        now: BootMs,
        out: &mut Vec<Effect>,
    ) {
        match verdict {
            Verdict::Continue { lease_ms, have } => {
                let ended = self.attempts.get(&fence).is_some_and(|a| a.phase == Phase::Ended);
                if ended {
                    out.push(Effect::Upload { fence, have: Some(have) });
                } else if let Some(at) = self.sent_at(heard) {
                    self.extend(fence, at + lease_ms, lease_ms, now, out);
                }
            }
            Verdict::Abort { cause } => {
                self.handle_abort(fence, cause, now, out);
                if self.attempts.get(&fence).is_some_and(|a| a.phase == Phase::Ended) {
                    out.push(Effect::Upload { fence, have: Some([0, 0]) });
                }
            }
            Verdict::Ack { .. } => self.handle_ack(fence, now, out),
        }
    }

    /// What is not on disk yet is given back: its claim stands again, so the hub repeats the grant.
    pub(super) fn forget_prepared(&mut self, out: &mut Vec<Effect>) {
        let claims = &mut self.claims;
        self.attempts.retain(|fence, attempt| match attempt.phase {
            Phase::Blocked(_) | Phase::Preparing => {
                out.push(Effect::Exec(ToExec::Forget { fence: *fence }));
                claims.insert(attempt.record.claim);
                false
            }
            Phase::Waiting | Phase::Running | Phase::Ended => true,
        });
    }
}
