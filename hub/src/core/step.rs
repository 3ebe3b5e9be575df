//! A task's life: one `step`. Illegal moves are refusals, never absorbed.
//!
//! ```text
//!              grant                accepted                 outcome ok
//!   queued ───────────> claimed ───────────────> running ───────────────────> done
//!     ^                    │                        │ outcome not ok, or lost
//!     └───── after back-off, attempts left ─────────┴──── no attempts left ──> failed (+ dead-letter reason)
//!   queued, claimed, running ── cancel ──> cancelled          queued ── ttl over ──> failed
//! ```
//! An attempt that was asked to end (`ending`) is still live until its outcome comes or its lease is over: only then
//! may the task be granted again.

use super::task::{Attempt, DeadReason, End, Ending, HISTORY_MAX, Lost, State, Task};
use super::timing::Timing;
use dunlin_wire::backoff;
use dunlin_wire::job::{CancelledBy, Delivery, OnDisconnect, Outcome, Report};
use dunlin_wire::message::AckVerdict;
use dunlin_wire::report::Told;
use dunlin_wire::{ClaimId, Fence, NodeName};

/// What happens to a task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// It goes to a node.
    Grant {
        /// The node.
        node: NodeName,
        /// The claim.
        claim: ClaimId,
        /// The fence.
        fence: Fence,
        /// The lease, in milliseconds.
        lease_ms: u64,
        /// Whether the node's handshake is not over yet.
        early: bool,
    },
    /// The node that it was granted to is surely there.
    Confirmed {
        /// The attempt.
        fence: Fence,
    },
    /// The node has it on disk.
    Accepted {
        /// The attempt.
        fence: Fence,
        /// The lease from here on, in milliseconds; never a shorter one.
        lease_ms: u64,
    },
    /// Its process was started.
    Started {
        /// The attempt.
        fence: Fence,
    },
    /// Its job said something of itself.
    Told {
        /// The attempt.
        fence: Fence,
        /// What.
        told: Told,
    },
    /// The node reported an outcome, and all output is stored.
    Reported {
        /// The attempt.
        fence: Fence,
        /// The report.
        report: Box<Report>,
        /// Whether another enrolled node could take the task; a denial is final when none could.
        elsewhere: bool,
    },
    /// The attempt is over without an outcome.
    Lost {
        /// The attempt.
        fence: Fence,
        /// Why.
        why: Lost,
    },
    /// An operator wants it ended.
    Cancel {
        /// Who.
        by: CancelledBy,
    },
    /// An operator wants a failed task tried again.
    Retry,
    /// Its ttl is over.
    TtlOver,
    /// Its live attempt must end, and the task be tried again.
    Reclaim {
        /// Why.
        ending: Ending,
    },
}

/// What a legal step did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// It was granted.
    Granted,
    /// It was accepted.
    Accepted,
    /// Nothing but times and history changed.
    Noted,
    /// It waits in the queue again, from now plus this many milliseconds.
    Requeued {
        /// The back-off, in milliseconds.
        delay_ms: u64,
    },
    /// The live attempt must be told to end.
    Ending(Ending),
    /// It reached a terminal state; a live attempt, if it still has one, must be told to end.
    Ended,
}

/// Why a step is not legal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// The task's state does not allow it.
    State(State),
    /// The fence is not the current one.
    StaleFence,
    /// The outcome was applied before.
    Duplicate,
}

impl Refusal {
    /// The verdict an agent gets for an outcome that is refused so.
    pub fn verdict(self) -> AckVerdict {
        match self {
            Refusal::State(_) => AckVerdict::TaskEnded,
            Refusal::StaleFence => AckVerdict::StaleFence,
            Refusal::Duplicate => AckVerdict::Duplicate,
        }
    }
}

/// What a step may look at besides the task.
#[derive(Debug, Clone, Copy)]
pub struct Context<'a> {
    /// Milliseconds since the epoch.
    pub wall: u64,
    /// The numbers.
    pub timing: &'a Timing,
    /// In `0.0..1.0`, for the jitter of the back-off.
    pub random: f64,
}

impl Task {
    /// Applies `input`, or refuses it and changes nothing.
    ///
    /// # Errors
    /// The rule that the move breaks.
    pub fn step(&mut self, input: Input, cx: Context<'_>) -> Result<Change, Refusal> {
        match input {
            Input::Grant { node, claim, fence, lease_ms, early } => {
                let attempt = Attempt { lease_ms, early, ..Attempt::new(node, claim, fence, cx.wall) };
                self.grant(attempt)
            }
            Input::Accepted { fence, lease_ms } => self.accepted(fence, lease_ms, cx),
            Input::Confirmed { fence } => {
                self.live_mut(fence)?.early = false;
                Ok(Change::Noted)
            }
            Input::Started { fence } => {
                let attempt = self.live_mut(fence)?;
                attempt.started_ms.get_or_insert(cx.wall);
                Ok(Change::Noted)
            }
            Input::Told { fence, told } => {
                self.live_mut(fence)?.told = told;
                Ok(Change::Noted)
            }
            Input::Reported { fence, report, elsewhere } => self.reported(fence, report, elsewhere, cx),
            Input::Lost { fence, why } => self.lost(fence, why, cx),
            Input::Cancel { by } => self.cancel(by, cx),
            Input::Retry => self.retry(cx),
            Input::TtlOver => {
                self.expect(State::Queued)?;
                Ok(self.give_up(DeadReason::TtlExpired, cx))
            }
            Input::Reclaim { ending } => {
                if !matches!(self.state, State::Claimed | State::Running) {
                    return Err(Refusal::State(self.state));
                }
                let attempt = self.attempts.last_mut().ok_or(Refusal::StaleFence)?;
                Ok(Change::Ending(*attempt.ending.get_or_insert(ending)))
            }
        }
    }

    fn grant(&mut self, mut attempt: Attempt) -> Result<Change, Refusal> {
        self.expect(State::Queued)?;
        assert!(self.live().is_none(), "task {} has a live attempt and cannot be granted", self.id);
        self.attempt += 1;
        self.retry_at_ms = None;
        self.state = State::Claimed;
        if self.attempts.len() == HISTORY_MAX {
            self.attempts.remove(0);
        }
        attempt.number = self.attempt;
        self.attempts.push(attempt);
        Ok(Change::Granted)
    }

    fn accepted(&mut self, fence: Fence, lease_ms: u64, cx: Context<'_>) -> Result<Change, Refusal> {
        let (carry_on, offline_ms) = (self.spec.on_disconnect == OnDisconnect::CarryOn, self.spec.offline_ms);
        let was = self.state;
        let attempt = self.live_mut(fence)?;
        if attempt.accepted_ms.is_some() {
            return Ok(Change::Noted);
        }
        attempt.accepted_ms = Some(cx.wall);
        attempt.early = false;
        attempt.lease_ms = attempt.lease_ms.max(lease_ms);
        if carry_on {
            attempt.lease_ms = attempt.lease_ms.max(offline_ms.unwrap_or(cx.timing.offline_ms));
        }
        if was != State::Claimed {
            return Ok(Change::Noted);
        }
        self.state = State::Running;
        Ok(Change::Accepted)
    }

    fn reported(
        &mut self,
        fence: Fence,
        report: Box<Report>,
        elsewhere: bool,
        cx: Context<'_>,
    ) -> Result<Change, Refusal> {
        let state = self.state;
        let last = self.attempts.last_mut().ok_or(Refusal::StaleFence)?;
        if last.fence != fence {
            return Err(Refusal::StaleFence);
        }
        let ok = report.outcome == Outcome::Ok;
        match &last.end {
            Some(End::Reported(_)) => return Err(Refusal::Duplicate),
            // Counted as lost already; an outcome that was reached inside the lease is still the result, as long as
            // the task was not granted again.
            Some(End::Lost(_)) if state != State::Queued => return Err(Refusal::State(state)),
            Some(End::Lost(_)) => {
                let denied = matches!(report.outcome, Outcome::Denied { .. });
                last.end = Some(End::Reported(report));
                return Ok(match ok {
                    true => self.done(cx),
                    false if denied && !elsewhere => self.give_up(DeadReason::Denied, cx),
                    false => Change::Noted,
                });
            }
            None => {}
        }
        last.ended_ms = Some(cx.wall);
        let outcome = report.outcome.clone();
        last.end = Some(End::Reported(report));
        if state.is_terminal() {
            // Cancelled meanwhile: kept in the history, but the task stays what it is.
            return Ok(Change::Noted);
        }
        Ok(match outcome {
            // Also when it crossed a request to end: the work is done, and doing it again helps nobody.
            Outcome::Ok => self.done(cx),
            Outcome::Stuck => self.give_up(DeadReason::Stuck, cx),
            outcome if outcome.is_refusal() => self.give_up(DeadReason::Refused, cx),
            Outcome::TimedOut { .. } => self.again_or(DeadReason::Timeout, cx),
            Outcome::Denied { .. } if !elsewhere => self.give_up(DeadReason::Denied, cx),
            Outcome::Denied { .. } => self.again_or(DeadReason::Denied, cx),
            Outcome::Interrupted { .. } if self.spec.delivery == Delivery::AtMostOnce => {
                self.give_up(DeadReason::Interrupted, cx)
            }
            _ => self.again_or(DeadReason::MaxAttemptsExhausted, cx),
        })
    }

    fn lost(&mut self, fence: Fence, why: Lost, cx: Context<'_>) -> Result<Change, Refusal> {
        let terminal = self.state.is_terminal();
        let attempt = self.live_mut(fence)?;
        attempt.end = Some(End::Lost(why));
        attempt.ended_ms = Some(cx.wall);
        let never_started = why == Lost::NotHeld && attempt.accepted_ms.is_none();
        let unconfirmed = attempt.early;
        if terminal {
            return Ok(Change::Noted);
        }
        if unconfirmed && self.spec.delivery == Delivery::AtLeastOnce {
            // Nobody is known to have had it, so it does not count: the only way to lose an attempt that does not.
            self.attempt -= 1;
            self.state = State::Queued;
            return Ok(Change::Requeued { delay_ms: 0 });
        }
        Ok(if self.spec.delivery == Delivery::AtMostOnce && !never_started {
            self.give_up(DeadReason::Interrupted, cx)
        } else {
            self.again_or(DeadReason::MaxAttemptsExhausted, cx)
        })
    }

    fn cancel(&mut self, by: CancelledBy, cx: Context<'_>) -> Result<Change, Refusal> {
        if self.state.is_terminal() {
            return Err(Refusal::State(self.state));
        }
        if let Some(attempt) = self.attempts.last_mut().filter(|a| a.end.is_none()) {
            attempt.ending = Some(Ending::Cancelled(by));
        }
        self.end(State::Cancelled, cx);
        Ok(Change::Ended)
    }

    fn retry(&mut self, cx: Context<'_>) -> Result<Change, Refusal> {
        self.expect(State::Failed)?;
        self.state = State::Queued;
        self.attempt = 0;
        self.retry_at_ms = None;
        self.ended_ms = None;
        self.dead = None;
        self.queued_ms = cx.wall;
        Ok(Change::Requeued { delay_ms: 0 })
    }

    fn again_or(&mut self, reason: DeadReason, cx: Context<'_>) -> Change {
        if self.attempt >= self.spec.attempts_max {
            return self.give_up(reason, cx);
        }
        let timing = cx.timing;
        let delay_ms = backoff::retry_ms(self.attempt, timing.retry_ms, timing.retry_ms_max, cx.random);
        self.state = State::Queued;
        self.retry_at_ms = Some(cx.wall + delay_ms);
        Change::Requeued { delay_ms }
    }

    fn done(&mut self, cx: Context<'_>) -> Change {
        self.end(State::Done, cx);
        Change::Ended
    }

    fn give_up(&mut self, reason: DeadReason, cx: Context<'_>) -> Change {
        self.dead = Some(reason);
        self.end(State::Failed, cx);
        Change::Ended
    }

    fn end(&mut self, state: State, cx: Context<'_>) {
        self.state = state;
        self.retry_at_ms = None;
        self.ended_ms = Some(cx.wall);
    }

    fn expect(&self, state: State) -> Result<(), Refusal> {
        if self.state == state { Ok(()) } else { Err(Refusal::State(self.state)) }
    }

    fn live_mut(&mut self, fence: Fence) -> Result<&mut Attempt, Refusal> {
        let state = self.state;
        let last = self.attempts.last_mut().ok_or(Refusal::State(state))?;
        if last.fence != fence {
            return Err(Refusal::StaleFence);
        }
        if last.end.is_some() { Err(Refusal::State(state)) } else { Ok(last) }
    }
}

#[cfg(test)]
mod tests;
