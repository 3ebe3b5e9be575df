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
mod tests {
    use super::*;
    use crate::core::task::TaskSpec;
    use dunlin_wire::job::{Interruption, Job, Shell};

    fn task(attempts_max: u32, delivery: Delivery) -> Task {
        let shell = Shell { argv: vec!["/x".into()], cwd: None, env: vec![] };
        let spec = TaskSpec {
            job: Job::Shell(shell),
            target: None,
            tags: vec![],
            priority: 0,
            attempts_max,
            timeout_ms: None,
            on_disconnect: OnDisconnect::Fence,
            delivery,
            ttl_ms: None,
            complete_by: None,
            offline_ms: None,
        };
        Task::new("t".parse().unwrap(), spec, 1, 0, 0)
    }

    /// Reads a step: `grant 1`, `accept 1`, `ok 1`, `exit 1`, `lost 1`, `nothold 1`, `denied 1`, `cancel`, ...
    fn input(word: &str) -> Input {
        let (verb, fence) = word.split_once(' ').unwrap_or((word, "0"));
        let fence = Fence(fence.parse().unwrap());
        let reported = |outcome, elsewhere| Input::Reported {
            fence,
            report: Box::new(Report::without_process(outcome)),
            elsewhere,
        };
        match verb {
            "grant" => Input::Grant {
                node: "n".parse().unwrap(),
                claim: ClaimId(fence.0),
                fence,
                lease_ms: 30_000,
                early: false,
            },
            "early" => Input::Grant {
                node: "n".parse().unwrap(),
                claim: ClaimId(fence.0),
                fence,
                lease_ms: 8_000,
                early: true,
            },
            "accept" => Input::Accepted { fence, lease_ms: 30_000 },
            "confirm" => Input::Confirmed { fence },
            "start" => Input::Started { fence },
            "ok" => reported(Outcome::Ok, true),
            "exit" => reported(Outcome::Exit { code: 1 }, true),
            "cut" => reported(Outcome::Interrupted { by: Interruption::PowerLoss }, true),
            "denied" => reported(Outcome::Denied { reason: dunlin_wire::job::Denial::Cwd }, true),
            "refused" => reported(Outcome::Denied { reason: dunlin_wire::job::Denial::Cwd }, false),
            "stuck" => reported(Outcome::Stuck, true),
            "lost" => Input::Lost { fence, why: Lost::LeaseOver },
            "nothold" => Input::Lost { fence, why: Lost::NotHeld },
            "cancel" => Input::Cancel { by: CancelledBy::Operator },
            "retry" => Input::Retry,
            "ttl" => Input::TtlOver,
            "reclaim" => Input::Reclaim { ending: Ending::Overdue },
            other => panic!("no step `{other}`"),
        }
    }

    /// Takes `steps`, separated by commas; all but the last must be legal. What the last did, or its refusal.
    fn run(attempts_max: u32, delivery: Delivery, steps: &str) -> (Task, Result<Change, Refusal>) {
        let timing = Timing::default();
        let mut task = task(attempts_max, delivery);
        let mut last = Ok(Change::Noted);
        for (at, word) in steps.split(", ").enumerate() {
            assert!(last.is_ok(), "{steps}: step {at} was refused: {last:?}");
            let before = task.clone();
            last = task.step(input(word), Context { wall: at as u64, timing: &timing, random: 0.5 });
            assert!(last.is_ok() || task == before, "{steps}: a refused step changed the task");
        }
        (task, last)
    }

    fn check(steps: &str, state: State, want: Result<Change, Refusal>) {
        let (task, got) = run(3, Delivery::AtLeastOnce, steps);
        assert_eq!((task.state, got), (state, want), "{steps}");
    }

    #[test]
    fn the_way_of_a_task() {
        let again = |delay_ms| Ok(Change::Requeued { delay_ms });
        check("grant 1", State::Claimed, Ok(Change::Granted));
        check("grant 1, accept 1", State::Running, Ok(Change::Accepted));
        check("grant 1, accept 1, accept 1", State::Running, Ok(Change::Noted));
        check("grant 1, accept 1, ok 1", State::Done, Ok(Change::Ended));
        check("grant 1, accept 1, exit 1", State::Queued, again(250));
        check("grant 1, exit 1, grant 2, exit 2", State::Queued, again(500));
        check("grant 1, exit 1, grant 2, lost 2, grant 3, nothold 3", State::Failed, Ok(Change::Ended));
        check("grant 1, accept 1, stuck 1", State::Failed, Ok(Change::Ended));
        check("grant 1, denied 1", State::Queued, again(250));
        check("grant 1, refused 1", State::Failed, Ok(Change::Ended));
        check("ttl", State::Failed, Ok(Change::Ended));
        check("ttl, retry", State::Queued, Ok(Change::Requeued { delay_ms: 0 }));
        check("grant 1, accept 1, reclaim", State::Running, Ok(Change::Ending(Ending::Overdue)));
        check("grant 1, accept 1, reclaim, cut 1", State::Queued, again(250));
        check("grant 1, accept 1, reclaim, ok 1", State::Done, Ok(Change::Ended));
    }

    #[test]
    fn illegal_moves_are_refused() {
        let state = |s| Err(Refusal::State(s));
        check("grant 1, accept 1, ok 1, ok 1", State::Done, Err(Refusal::Duplicate));
        check("grant 1, accept 1, ok 1, accept 1", State::Done, state(State::Done));
        check("grant 1, accept 1, ok 1, cancel", State::Done, state(State::Done));
        check("grant 1, accept 1, ok 1, retry", State::Done, state(State::Done));
        check("cancel, cancel", State::Cancelled, state(State::Cancelled));
        check("grant 1, accept 1, ttl", State::Running, state(State::Running));
        check("reclaim", State::Queued, state(State::Queued));
        check("grant 1, lost 1, grant 2, ok 1", State::Claimed, Err(Refusal::StaleFence));
        check("grant 1, lost 1, grant 2, accept 1", State::Claimed, Err(Refusal::StaleFence));
        check("grant 1, lost 1, accept 1", State::Queued, state(State::Queued));
        check("grant 1, grant 2", State::Claimed, state(State::Claimed));
    }

    #[test]
    fn what_comes_late_counts_only_while_nobody_else_has_it() {
        check("grant 1, accept 1, lost 1, ok 1", State::Done, Ok(Change::Ended));
        check("grant 1, accept 1, lost 1, exit 1", State::Queued, Ok(Change::Noted));
        check("grant 1, lost 1, denied 1", State::Queued, Ok(Change::Noted));
        check("grant 1, lost 1, refused 1", State::Failed, Ok(Change::Ended));
        check("grant 1, accept 1, cancel, ok 1", State::Cancelled, Ok(Change::Noted));
        let (task, _) = run(1, Delivery::AtLeastOnce, "grant 1, accept 1, lost 1, ok 1");
        assert_eq!(task.state, State::Failed, "it was given up when it was lost");
    }

    #[test]
    fn a_grant_that_nobody_confirmed_does_not_count() {
        check("early 1, lost 1", State::Queued, Ok(Change::Requeued { delay_ms: 0 }));
        let (task, _) = run(1, Delivery::AtLeastOnce, "early 1, lost 1, grant 2");
        assert_eq!((task.attempt, task.state), (1, State::Claimed));
        let (task, _) = run(1, Delivery::AtLeastOnce, "early 1, accept 1");
        assert_eq!(task.live().map(|a| (a.lease_ms, a.early)), Some((30_000, false)));
        let (task, _) = run(1, Delivery::AtLeastOnce, "early 1, confirm 1, lost 1");
        assert_eq!(task.state, State::Failed, "somebody had it");
        let (task, _) = run(1, Delivery::AtLeastOnce, "early 1, accept 1, lost 1");
        assert_eq!(task.state, State::Failed, "an accepted one counts");
    }

    #[test]
    fn at_most_once_is_never_started_again() {
        for (steps, state) in [
            ("grant 1, accept 1, cut 1", State::Failed),
            ("grant 1, accept 1, lost 1", State::Failed),
            // Its Accepted may have been lost on the way.
            ("grant 1, lost 1", State::Failed),
            ("grant 1, accept 1, nothold 1", State::Failed),
            // The node's durable word that it never took it.
            ("grant 1, nothold 1", State::Queued),
            ("grant 1, accept 1, exit 1", State::Queued),
        ] {
            assert_eq!(run(3, Delivery::AtMostOnce, steps).0.state, state, "{steps}");
        }
    }

    #[test]
    fn carry_on_is_held_for_long_once_it_is_accepted() {
        let timing = Timing::default();
        let mut task = task(3, Delivery::AtLeastOnce);
        task.spec.on_disconnect = OnDisconnect::CarryOn;
        let cx = Context { wall: 0, timing: &timing, random: 0.5 };
        task.step(input("grant 1"), cx).unwrap();
        assert_eq!(task.live().unwrap().lease_ms, 30_000);
        task.step(input("accept 1"), cx).unwrap();
        assert_eq!(task.live().unwrap().lease_ms, timing.offline_ms);
    }
}
