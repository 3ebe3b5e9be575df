//! Grants, and what the node that holds one says until its outcome.

use super::{Hub, Session, Turn};
use crate::core::health::Health;
use crate::core::step::{Change, Input, Refusal};
use crate::core::task::{Attempt, End, Task};
use crate::core::timer::Timer;
use crate::event::{AuditRecord, ConnId};
use crate::store::{Filled, StoreError};
use dunlin_wire::message::{AbortCause, AckVerdict, Grant, ToAgent};
use dunlin_wire::report::Told;
use dunlin_wire::{ClaimId, Fence, NodeName, TaskId};

impl Hub {
    /// Makes every grant that can be made.
    pub(super) fn grant_all(&mut self, turn: &mut Turn<'_>) -> Result<(), StoreError> {
        if self.halted {
            return Ok(());
        }
        while let Some((id, node)) = self.schedule.next_grant(turn.now.mono) {
            self.grant(&id, &node, turn)?;
        }
        Ok(())
    }

    fn grant(&mut self, id: &TaskId, name: &NodeName, turn: &mut Turn<'_>) -> Result<(), StoreError> {
        let task = turn.write.view().task(id)?;
        let mut task = task.ok_or(StoreError::Corrupt { table: "tasks" })?;
        let Some((claim, conn, early)) = self.take_claim(name) else {
            self.seat(name);
            return Ok(());
        };
        let waited = turn.now.wall.saturating_sub(task.queued_ms.max(task.retry_at_ms.unwrap_or(0)));
        let fence = self.next_fence;
        let mut lease_ms = self.lease_ms(name);
        if early {
            lease_ms = lease_ms.min(self.setup.timing.early_lease_ms);
        }
        let input = Input::Grant { node: name.clone(), claim, fence, lease_ms, early };
        let granted = self.apply(&mut task, input, turn)?;
        assert_eq!(granted, Ok(Change::Granted), "the scheduler granted {id}, which is {:?}", task.state);
        self.next_fence = fence.next();
        turn.write.put_meta("next_fence", &self.next_fence)?;
        turn.write.put_filled(name, claim, &Filled { fence, task: id.clone(), settled_ms: None })?;
        turn.granted_after_ms.push(waited);
        if let Some(attempt) = task.live() {
            self.hold(&task, attempt, turn.now.mono);
            self.send_grant(conn, &task, attempt, turn);
        }
        self.seat(name);
        Ok(())
    }

    /// A standing claim, the connection that it stands on, and whether that one is early. The newest connection goes
    /// first: an older one is likely dead when there is a newer.
    fn take_claim(&mut self, name: &NodeName) -> Option<(ClaimId, ConnId, bool)> {
        let member = self.members.get_mut(name)?;
        let early = member.early.as_ref().is_some_and(|s| !s.claims.is_empty());
        let session = if early { member.early.as_mut() } else { member.session.as_mut() };
        let (claim, conn) = session.and_then(|s| Some((s.claims.pop_first()?, s.conn)))?;
        for session in [&mut member.early, &mut member.session].into_iter().flatten() {
            session.claims.remove(&claim);
        }
        Some((claim, conn, early))
    }

    /// Length of a lease of this node, in milliseconds.
    pub(super) fn lease_ms(&self, name: &NodeName) -> u64 {
        let profile = self.members.get(name).map(|m| m.node.spec.profile).unwrap_or_default();
        self.setup.timing.lease_ms(profile)
    }

    /// Pushes an attempt that is claimed and not accepted to its node, for the first time or again.
    fn send_grant(&self, conn: ConnId, task: &Task, attempt: &Attempt, turn: &mut Turn<'_>) {
        let Some(member) = self.members.get(&attempt.node) else { return };
        let sessions = [&member.early, &member.session].into_iter().flatten();
        let Some(session) = sessions.into_iter().find(|s| s.conn == conn) else { return };
        let grant = Grant {
            claim: attempt.claim,
            fence: attempt.fence,
            heard: session.heard,
            lease_ms: attempt.lease_ms,
            task: task.id.clone(),
            attempt: attempt.number,
            job: task.spec.job.clone(),
            timeout_ms: task.spec.timeout_ms,
            on_disconnect: task.spec.on_disconnect,
            delivery: task.spec.delivery,
            requires: task.spec.requires.clone(),
        };
        turn.send(session.conn, ToAgent::Grant(Box::new(grant)));
    }

    /// Offers a node to the scheduler, or takes it away: whatever about it changed.
    pub(super) fn seat(&mut self, name: &NodeName) {
        let Some(member) = self.members.get(name) else { return self.schedule.unseat(name) };
        let load = member.held.len() as u32;
        let free = |session: &Option<Session>| session.as_ref().is_some_and(|s| !s.claims.is_empty());
        let early = free(&member.early);
        let there = if early {
            member.pulse.health() != Health::Offline
        } else {
            free(&member.session) && member.pulse.health() == Health::Healthy
        };
        let ready = there
            && load < member.node.capacity()
            && member.node.is_worker()
            && !member.node.draining
            && !member.unresponsive;
        if ready {
            self.schedule.seat(name, load, member.tags.clone(), !early);
            if let Some(board) = member.board.current() {
                self.schedule.tell(name, board.clone(), board.until(self.report_ms(member)));
            }
        } else {
            self.schedule.unseat(name);
        }
    }

    /// Standing claims of a node. One that was filled before gets the same grant again, or is void.
    pub(super) fn handle_claims(
        &mut self,
        conn: ConnId,
        name: &NodeName,
        ids: &[ClaimId],
        turn: &mut Turn<'_>,
    ) -> Result<(), StoreError> {
        for &claim in ids {
            match turn.write.view().filled(name, claim)? {
                None => {
                    let Some(member) = self.members.get_mut(name) else { continue };
                    let sessions = [&mut member.early, &mut member.session];
                    if let Some(session) = sessions.into_iter().flatten().find(|s| s.conn == conn) {
                        session.claims.insert(claim);
                    }
                }
                Some(filled) => self.repeat_claim(conn, claim, &filled, turn)?,
            }
        }
        self.seat(name);
        Ok(())
    }

    fn repeat_claim(
        &mut self,
        conn: ConnId,
        claim: ClaimId,
        filled: &Filled,
        turn: &mut Turn<'_>,
    ) -> Result<(), StoreError> {
        let task = turn.write.view().task(&filled.task)?;
        let attempt = task.as_ref().and_then(|t| t.live()).filter(|a| a.fence == filled.fence);
        match (task.as_ref(), attempt) {
            (Some(task), Some(attempt)) if attempt.accepted_ms.is_none() && attempt.ending.is_none() => {
                // The agent will count this lease from a message that it sent before now.
                self.hold(task, attempt, turn.now.mono);
                self.send_grant(conn, task, attempt, turn);
                if self.conns.get(&conn).is_some_and(|c| !c.early) {
                    self.confirm_grant(filled.fence, turn)?;
                }
            }
            (_, Some(_)) => {}
            _ => turn.send(conn, ToAgent::Void { claim }),
        }
        Ok(())
    }

    pub(super) fn settle_claim(
        &mut self,
        attempt: &Attempt,
        task: &Task,
        turn: &mut Turn<'_>,
    ) -> Result<(), StoreError> {
        let filled = Filled { fence: attempt.fence, task: task.id.clone(), settled_ms: Some(turn.now.wall) };
        turn.write.put_filled(&attempt.node, attempt.claim, &filled)
    }

    pub(super) fn handle_accepted(
        &mut self,
        conn: ConnId,
        name: &NodeName,
        fence: Fence,
        turn: &mut Turn<'_>,
    ) -> Result<(), StoreError> {
        let Some(mut task) = self.held_task(conn, name, fence, turn)? else { return Ok(()) };
        let lease_ms = self.lease_ms(name);
        if let Err(refusal) = self.apply(&mut task, Input::Accepted { fence, lease_ms }, turn)? {
            return self.refuse(conn, name, fence, refusal, turn);
        }
        if let Some(held) = self.attempts.get_mut(&fence) {
            held.accepted = true;
        }
        self.timers.clear(&Timer::Accept(fence));
        self.watch_progress(fence, turn);
        if let Some(member) = self.members.get_mut(name) {
            member.unresponsive = false;
        }
        self.renew(conn, name, &[fence], turn)
    }

    pub(super) fn handle_started(
        &mut self,
        conn: ConnId,
        name: &NodeName,
        fence: Fence,
        turn: &mut Turn<'_>,
    ) -> Result<(), StoreError> {
        let Some(mut task) = self.held_task(conn, name, fence, turn)? else { return Ok(()) };
        match self.apply(&mut task, Input::Started { fence }, turn)? {
            Ok(_) => Ok(()),
            Err(refusal) => self.refuse(conn, name, fence, refusal, turn),
        }
    }

    /// What a running job says of itself: it goes on.
    pub(super) fn handle_told(
        &mut self,
        conn: ConnId,
        name: &NodeName,
        fence: Fence,
        told: Told,
        turn: &mut Turn<'_>,
    ) -> Result<(), StoreError> {
        let Some(mut task) = self.held_task(conn, name, fence, turn)? else { return Ok(()) };
        let told = Told { result: None, ..told.bounded() };
        match self.apply(&mut task, Input::Told { fence, told }, turn)? {
            Ok(_) => self.watch_progress(fence, turn),
            Err(refusal) => return self.refuse(conn, name, fence, refusal, turn),
        }
        Ok(())
    }

    /// Renews the leases of `fences` that go on, and says so in one answer. Not those that must end: their time runs out.
    pub(super) fn renew(
        &mut self,
        conn: ConnId,
        name: &NodeName,
        fences: &[Fence],
        turn: &mut Turn<'_>,
    ) -> Result<(), StoreError> {
        let mut leases = Vec::new();
        for &fence in fences {
            let Some(task) = self.held_task(conn, name, fence, turn)? else { continue };
            if let Some(attempt) = task.live().filter(|a| a.ending.is_none()) {
                let until = turn.now.mono + self.setup.timing.hold_ms(attempt.lease_ms);
                self.timers.set(Timer::Lease(fence), until);
                leases.push((fence, attempt.lease_ms));
            } else if let Some(attempt) = task.live() {
                self.send_abort(attempt, turn);
            }
        }
        // Nothing goes on when the outcome overtook its Accepted: it has its own answer.
        if !leases.is_empty() {
            let heard = self.members.get(name).and_then(|m| m.session.as_ref()).map_or(0, |s| s.heard);
            turn.send(conn, ToAgent::Renewed { heard, leases });
        }
        Ok(())
    }

    /// Something came of a running attempt.
    pub(super) fn watch_progress(&mut self, fence: Fence, turn: &Turn<'_>) {
        if self.setup.timing.stuck_ms > 0 && self.attempts.contains_key(&fence) {
            self.timers.set(Timer::Stuck(fence), turn.now.mono + self.setup.timing.stuck_ms);
        }
    }

    /// The task whose live attempt `fence` is, when `name` holds it. Otherwise the node is told to end it.
    fn held_task(
        &mut self,
        conn: ConnId,
        name: &NodeName,
        fence: Fence,
        turn: &mut Turn<'_>,
    ) -> Result<Option<Task>, StoreError> {
        let Some(held) = self.attempts.get(&fence) else {
            if !was_reported(name, fence, turn)? {
                self.refuse(conn, name, fence, Refusal::StaleFence, turn)?;
            }
            return Ok(None);
        };
        if held.node != *name {
            self.refuse_foreign(name, fence, turn)?;
            turn.send(conn, ToAgent::Abort { fence, cause: AbortCause::LeaseLost });
            return Ok(None);
        }
        turn.write.view().task(&held.task)
    }

    fn refuse(
        &mut self,
        conn: ConnId,
        name: &NodeName,
        fence: Fence,
        refusal: Refusal,
        turn: &mut Turn<'_>,
    ) -> Result<(), StoreError> {
        let word = refusal.verdict().as_str();
        *self.figures.refused.entry(word).or_default() += 1;
        tracing::info!(node = %name, %fence, verdict = word, "refused");
        turn.send(conn, ToAgent::Abort { fence, cause: AbortCause::LeaseLost });
        Ok(())
    }

    /// A node spoke of another node's attempt: that is never an accident, so it is audited.
    pub(super) fn refuse_foreign(
        &mut self,
        name: &NodeName,
        fence: Fence,
        turn: &mut Turn<'_>,
    ) -> Result<(), StoreError> {
        let word = AckVerdict::NotYourLease.as_str();
        *self.figures.refused.entry(word).or_default() += 1;
        tracing::warn!(node = %name, %fence, verdict = word, "refused");
        let row = AuditRecord {
            at_ms: turn.now.wall,
            actor: format!("node:{name}"),
            action: "attempt.report".into(),
            target: fence.to_string(),
            result: word.into(),
            code: word.into(),
            detail: None,
        };
        turn.write.append_decision(&row)?;
        Ok(())
    }
}

/// Whether this node's own outcome ended the attempt: then what it said before that only comes late.
fn was_reported(name: &NodeName, fence: Fence, turn: &Turn<'_>) -> Result<bool, StoreError> {
    let view = turn.write.view();
    let Some(id) = view.task_of(fence)? else { return Ok(false) };
    let task = view.task(&id)?;
    let attempt = task.as_ref().and_then(|t| t.attempts.iter().find(|a| a.fence == fence && a.node == *name));
    Ok(attempt.is_some_and(|a| matches!(a.end, Some(End::Reported(_)))))
}
