//! Applies a step to a task and keeps everything that follows from it right: record, queue, timers, slots, events.

use super::{Held, Hub, Turn};
use crate::clock::Now;
use crate::core::schedule::Place;
use crate::core::step::{Change, Context, Input, Refusal};
use crate::core::task::{Attempt, End, Ending, State, Task};
use crate::core::timer::Timer;
use crate::store::StoreError;
use dunlin_wire::Fence;
use dunlin_wire::message::{AbortCause, ToAgent};

impl Hub {
    /// Steps a task that was loaded in this turn's transaction.
    pub(super) fn apply(
        &mut self,
        task: &mut Task,
        input: Input,
        turn: &mut Turn<'_>,
    ) -> Result<Result<Change, Refusal>, StoreError> {
        let before = task.state;
        let place = self.place(task);
        let was_live = task.live().map(|a| a.fence);
        let cx = Context { wall: turn.now.wall, timing: &self.setup.timing, random: self.rng.f64() };
        let change = match task.step(input, cx) {
            Ok(change) => change,
            Err(refusal) => return Ok(Err(refusal)),
        };
        turn.write.put_task(task, Some(before))?;
        if before == State::Queued {
            self.schedule.remove(&place);
            self.timers.clear(&Timer::Retry(task.id.clone()));
        }
        self.count(before, task, -1);
        self.count(task.state, task, 1);
        if let Some(fence) = was_live.filter(|_| task.live().is_none()) {
            self.release(fence, task, turn)?;
        }
        if task.state == State::Queued {
            self.queue(task, turn.now);
        }
        if task.state.is_terminal() {
            self.timers.clear(&Timer::Ttl(task.id.clone()));
            self.timers.clear(&Timer::Overdue(task.id.clone()));
        }
        if let Some(attempt) = task.live().filter(|a| a.ending.is_some()) {
            self.send_abort(attempt, turn);
        }
        self.tell(task, before, change, turn)?;
        Ok(Ok(change))
    }

    fn place(&self, task: &Task) -> Place {
        Place::of(task, self.setup.timing.ageing_ms)
    }

    /// Puts a queued task where the scheduler sees it, now or when its back-off is over.
    pub(super) fn queue(&mut self, task: &Task, now: Now) {
        // The wall clock may have been set since: the longest back-off there is bounds the wait.
        let longest = self.setup.timing.retry_ms_max * 11 / 10;
        let wait = task.retry_at_ms.map_or(0, |at| at.saturating_sub(now.wall).min(longest));
        if wait > 0 {
            self.timers.set(Timer::Retry(task.id.clone()), now.mono + wait);
        } else {
            self.schedule.insert(self.place(task), task.id.clone());
        }
        if let Some(ttl) = task.spec.ttl_ms {
            let left = (task.queued_ms + ttl).saturating_sub(now.wall);
            self.timers.set(Timer::Ttl(task.id.clone()), now.mono + left);
        }
    }

    pub(super) fn count(&mut self, state: State, task: &Task, by: i64) {
        let add = |n: &mut u64| *n = n.saturating_add_signed(by);
        add(self.figures.tasks.entry(state).or_default());
        if state == State::Queued {
            add(self.figures.queued.entry(task.spec.priority).or_default());
        }
    }

    /// Takes note of a live attempt, so that its lease and its slot are watched.
    pub(super) fn hold(&mut self, task: &Task, attempt: &Attempt, now_mono: u64) {
        let timing = &self.setup.timing;
        let until = now_mono + timing.hold_ms(attempt.lease_ms);
        self.timers.set(Timer::Lease(attempt.fence), until);
        if attempt.accepted_ms.is_none() {
            self.timers.set(Timer::Accept(attempt.fence), now_mono + timing.accept_ms);
        }
        let held = Held {
            task: task.id.clone(),
            node: attempt.node.clone(),
            accepted: attempt.accepted_ms.is_some(),
        };
        if let Some(member) = self.members.get_mut(&attempt.node) {
            member.held.insert(attempt.fence);
        }
        self.attempts.insert(attempt.fence, held);
    }

    /// The attempt is over: its slot and its claim are free.
    fn release(&mut self, fence: Fence, task: &Task, turn: &mut Turn<'_>) -> Result<(), StoreError> {
        self.timers.clear(&Timer::Lease(fence));
        self.timers.clear(&Timer::Accept(fence));
        self.timers.clear(&Timer::Stuck(fence));
        self.unfollow(fence);
        let Some(held) = self.attempts.remove(&fence) else { return Ok(()) };
        let attempt = task.attempts.iter().rev().find(|a| a.fence == fence);
        if let Some(attempt) = attempt {
            self.settle_claim(attempt, task, turn)?;
            let word = match &attempt.end {
                Some(End::Reported(report)) => report.outcome.code(),
                Some(End::Lost(_)) | None => "lost",
            };
            *self.figures.outcomes.entry(word).or_default() += 1;
            if let Some(member) = self.members.get_mut(&held.node) {
                member.last_outcome = Some(word.to_owned());
            }
        }
        if let Some(member) = self.members.get_mut(&held.node) {
            member.held.remove(&fence);
        }
        self.seat(&held.node);
        Ok(())
    }

    /// Tells the node, if it is there, to end an attempt that must end.
    pub(super) fn send_abort(&self, attempt: &Attempt, turn: &mut Turn<'_>) {
        let Some(ending) = attempt.ending else { return };
        let session = self.members.get(&attempt.node).and_then(|m| m.session.as_ref());
        if let Some(session) = session {
            turn.send(session.conn, ToAgent::Abort { fence: attempt.fence, cause: cause(ending) });
        }
    }

    fn tell(
        &mut self,
        task: &Task,
        before: State,
        change: Change,
        turn: &mut Turn<'_>,
    ) -> Result<(), StoreError> {
        let (kind, detail) = match change {
            Change::Noted => return Ok(()),
            Change::Granted => ("task.claimed", None),
            Change::Accepted => ("task.running", None),
            Change::Requeued { .. } if before == State::Failed => ("task.enqueued", Some("retry".to_owned())),
            Change::Requeued { delay_ms } => {
                ("task.requeued", Some(format!("{}, in {delay_ms} ms", ended(task))))
            }
            Change::Ending(ending) => ("task.ending", Some(format!("{ending:?}").to_lowercase())),
            Change::Ended => match task.state {
                State::Done => ("task.done", None),
                State::Failed => ("task.failed", task.dead.map(|d| d.as_str().to_owned())),
                _ => ("task.cancelled", None),
            },
        };
        turn.event(kind, |e| {
            e.task = Some(task.id.clone());
            e.node = task.last().filter(|_| kind != "task.enqueued").map(|a| a.node.clone());
            e.attempt = (task.attempt > 0).then_some(task.attempt);
            e.detail = detail;
        })
    }
}

/// The word for how the latest attempt ended.
fn ended(task: &Task) -> String {
    match task.last().and_then(|a| a.end.as_ref()) {
        Some(End::Reported(report)) => report.outcome.to_string(),
        Some(End::Lost(why)) => format!("lost({})", why.as_str()),
        None => String::new(),
    }
}

/// What the agent is told about an attempt that must end.
pub(super) fn cause(ending: Ending) -> AbortCause {
    match ending {
        Ending::Cancelled(by) => AbortCause::Cancelled { by },
        Ending::Overdue | Ending::Stuck => AbortCause::LeaseLost,
    }
}
