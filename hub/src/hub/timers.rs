//! What happens when a deadline passes.

use super::load::PRUNE_MS;
use super::{Hub, Turn};
use crate::clock::Now;
use crate::core::health::Health;
use crate::core::step::Input;
use crate::core::task::{Ending, Lost, State, Task};
use crate::core::timer::Timer;
use crate::event::Effect;
use crate::store::StoreError;
use dunlin_wire::{Fence, NodeName, TaskId};

/// Rows that one pruning forgets at most, so that it never holds up a claim.
const PRUNE_ROWS: usize = 500;

impl Hub {
    pub(super) fn handle_timer(&mut self, timer: Timer, turn: &mut Turn<'_>) -> Result<(), StoreError> {
        match timer {
            Timer::Lease(fence) => self.handle_lease_over(fence, turn),
            Timer::Accept(fence) => self.handle_not_accepted(fence, turn),
            Timer::Stuck(fence) => self.handle_stuck(fence, turn),
            Timer::Retry(id) => self.handle_retry_due(&id, turn),
            Timer::Ttl(id) => self.step_by_id(&id, Input::TtlOver, turn),
            Timer::Overdue(id) => self.step_by_id(&id, Input::Reclaim { ending: Ending::Overdue }, turn),
            Timer::Health(name) => self.handle_silence(&name, turn),
            Timer::History => self.keep_history(turn),
            Timer::Prune => self.prune(turn),
        }
    }

    fn handle_lease_over(&mut self, fence: Fence, turn: &mut Turn<'_>) -> Result<(), StoreError> {
        let Some(mut task) = self.task_of(fence, turn)? else { return Ok(()) };
        let accepted = self.attempts.get(&fence).is_some_and(|held| held.accepted);
        let why = if accepted { Lost::LeaseOver } else { Lost::NotAccepted };
        if let Err(refusal) = self.apply(&mut task, Input::Lost { fence, why }, turn)? {
            tracing::error!(task = %task.id, %fence, ?refusal, "a lease without its attempt");
        }
        Ok(())
    }

    fn handle_not_accepted(&mut self, fence: Fence, turn: &mut Turn<'_>) -> Result<(), StoreError> {
        let Some(held) = self.attempts.get(&fence) else { return Ok(()) };
        let name = held.node.clone();
        if let Some(member) = self.members.get_mut(&name)
            && !member.unresponsive
        {
            member.unresponsive = true;
            turn.node_event("node.unresponsive", &name, Some("a grant was not accepted in time"))?;
        }
        self.seat(&name);
        Ok(())
    }

    fn handle_stuck(&mut self, fence: Fence, turn: &mut Turn<'_>) -> Result<(), StoreError> {
        let Some(held) = self.attempts.get(&fence) else { return Ok(()) };
        if self.members.get(&held.node).is_none_or(|m| m.session.is_none()) {
            // The link is down: nothing could have been heard.
            self.watch_progress(fence, turn);
            return Ok(());
        }
        let id = held.task.clone();
        self.step_by_id(&id, Input::Reclaim { ending: Ending::Stuck }, turn)
    }

    fn handle_retry_due(&mut self, id: &TaskId, turn: &mut Turn<'_>) -> Result<(), StoreError> {
        if let Some(task) = turn.write.view().task(id)?.filter(|t| t.state == State::Queued) {
            let due = Task { retry_at_ms: None, ..task };
            self.queue(&due, turn.now);
        }
        Ok(())
    }

    /// A timer may come after what it was set for: then the step is refused, and that is right.
    fn step_by_id(&mut self, id: &TaskId, input: Input, turn: &mut Turn<'_>) -> Result<(), StoreError> {
        if let Some(mut task) = turn.write.view().task(id)? {
            let _refused = self.apply(&mut task, input, turn)?;
        }
        Ok(())
    }

    fn handle_silence(&mut self, name: &NodeName, turn: &mut Turn<'_>) -> Result<(), StoreError> {
        let timing = &self.setup.timing;
        let Some(member) = self.members.get_mut(name) else { return Ok(()) };
        let heartbeat_ms = member.heartbeat_ms(timing);
        let left = member.pulse.handle_timeout(turn.now.mono, heartbeat_ms, timing);
        if let Some(at) = member.silence_over(timing) {
            self.timers.set(Timer::Health(name.clone()), at);
        }
        match left {
            Some(left) => self.handle_health_changed(name, left, turn),
            None => Ok(()),
        }
    }

    /// The health of a node is another now. Announced once.
    pub(super) fn handle_health_changed(
        &mut self,
        name: &NodeName,
        left: Health,
        turn: &mut Turn<'_>,
    ) -> Result<(), StoreError> {
        let Some(member) = self.members.get_mut(name) else { return Ok(()) };
        let health = member.pulse.health();
        if health == Health::Offline {
            let silent = turn.now.mono.saturating_sub(member.pulse.heard());
            member.node.heard_ms = Some(turn.now.wall.saturating_sub(silent));
            turn.write.put_node(&member.node)?;
        }
        let kind = match health {
            Health::Healthy => "node.up",
            Health::Degraded => "node.degraded",
            Health::Offline => "node.down",
            Health::Unheard => return Ok(()),
        };
        if let (Health::Degraded, Some(session)) = (health, &member.session) {
            // Before it is said to be down it is asked.
            turn.effects.push(Effect::Ask(session.conn));
        }
        turn.node_event(kind, name, Some(left.as_str()))?;
        self.seat(name);
        Ok(())
    }

    /// There may be more to forget. While nothing is written there is not, and the store is left alone.
    pub(super) fn prune_later(&mut self, now: Now) {
        if self.timers.at(&Timer::Prune).is_none() {
            self.timers.set(Timer::Prune, now.mono + PRUNE_MS);
        }
    }

    fn prune(&mut self, turn: &mut Turn<'_>) -> Result<(), StoreError> {
        let forget = turn.now.wall.saturating_sub(self.setup.timing.claim_memory_ms);
        turn.write.forget_claims(forget, PRUNE_ROWS)?;
        for task in turn.write.view().surplus(self.setup.keep_tasks, PRUNE_ROWS)? {
            self.count(task.state, &task, -1);
            turn.write.remove_task(&task)?;
        }
        Ok(())
    }

    fn task_of(&self, fence: Fence, turn: &Turn<'_>) -> Result<Option<Task>, StoreError> {
        match self.attempts.get(&fence) {
            Some(held) => turn.write.view().task(&held.task),
            None => Ok(None),
        }
    }
}
