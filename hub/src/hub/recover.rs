//! What a node holds from before its connection, against what the hub believes that it holds.

use super::{Hub, Turn};
use crate::core::step::Input;
use crate::core::task::{End, Lost, Task};
use crate::event::ConnId;
use crate::store::StoreError;
use dunlin_wire::message::{AbortCause, AckVerdict, ToAgent, Unfinished, Verdict};
use dunlin_wire::{ClaimId, Fence, NodeName};

impl Hub {
    pub(super) fn handle_holding(
        &mut self,
        conn: ConnId,
        name: &NodeName,
        unfinished: &[Unfinished],
        claims: &[ClaimId],
        turn: &mut Turn<'_>,
    ) -> Result<(), StoreError> {
        let session = self.session_at(conn, name);
        let Some(session) = session.filter(|session| !session.settled) else { return Ok(()) };
        session.settled = true;
        let heard = session.heard;
        let mut verdicts = Vec::new();
        for one in unfinished {
            verdicts.push((one.fence, self.judge(name, one, turn)?));
        }
        if !verdicts.is_empty() {
            turn.send(conn, ToAgent::Verdicts { heard, verdicts });
        }
        self.watch_again(name, turn);
        self.lose_what_is_not_held(name, unfinished, claims, turn)
    }

    /// What to do with an attempt that the agent still has on disk.
    fn judge(
        &mut self,
        name: &NodeName,
        unfinished: &Unfinished,
        turn: &mut Turn<'_>,
    ) -> Result<Verdict, StoreError> {
        let fence = unfinished.fence;
        let Some(mut task) = turn.write.view().task(&unfinished.task)? else {
            return Ok(Verdict::Ack { verdict: AckVerdict::UnknownTask });
        };
        if let Some(attempt) = task.attempts.iter().find(|a| a.fence == fence)
            && attempt.node != *name
        {
            self.refuse_foreign(name, fence, turn)?;
            return Ok(Verdict::Ack { verdict: AckVerdict::NotYourLease });
        }
        if task.live().is_some_and(|a| a.fence == fence) {
            return self.judge_live(name, &mut task, unfinished, turn);
        }
        // Not live here: its lease was over, or its outcome is settled.
        if !unfinished.ended {
            return Ok(Verdict::Abort { cause: AbortCause::LeaseLost });
        }
        let ack = |verdict| Ok(Verdict::Ack { verdict });
        match task.last().filter(|a| a.fence == fence).map(|a| &a.end) {
            None => ack(AckVerdict::StaleFence),
            Some(Some(End::Reported(_))) => ack(AckVerdict::Duplicate),
            Some(_) if task.state.is_terminal() => ack(AckVerdict::TaskEnded),
            Some(_) => Ok(Verdict::Continue { lease_ms: 0, have: have(fence, turn)? }),
        }
    }

    fn judge_live(
        &mut self,
        name: &NodeName,
        task: &mut Task,
        unfinished: &Unfinished,
        turn: &mut Turn<'_>,
    ) -> Result<Verdict, StoreError> {
        let fence = unfinished.fence;
        if let Some(ending) = task.live().and_then(|a| a.ending)
            && !unfinished.ended
        {
            return Ok(Verdict::Abort { cause: super::tasks::cause(ending) });
        }
        if task.live().is_some_and(|a| a.accepted_ms.is_none()) && !unfinished.ended {
            // Its Accepted was lost on the way.
            let lease_ms = self.lease_ms(name);
            let _noted = self.apply(task, Input::Accepted { fence, lease_ms }, turn)?;
            if let Some(held) = self.attempts.get_mut(&fence) {
                held.accepted = true;
            }
        }
        if let Some(attempt) = task.live() {
            self.hold(task, attempt, turn.now.mono);
            self.watch_progress(fence, turn);
        }
        let lease_ms = task.live().map_or(0, |a| a.lease_ms);
        Ok(Verdict::Continue { lease_ms, have: have(fence, turn)? })
    }

    /// Attempts that the hub believes this node has, and the node durably says that it has not.
    fn lose_what_is_not_held(
        &mut self,
        name: &NodeName,
        unfinished: &[Unfinished],
        claims: &[ClaimId],
        turn: &mut Turn<'_>,
    ) -> Result<(), StoreError> {
        let held: Vec<Fence> =
            self.members.get(name).map(|m| m.held.iter().copied().collect()).unwrap_or_default();
        for fence in held {
            if unfinished.iter().any(|u| u.fence == fence) {
                continue;
            }
            let Some(id) = self.attempts.get(&fence).map(|h| h.task.clone()) else { continue };
            let Some(mut task) = turn.write.view().task(&id)? else { continue };
            let repeated = task
                .live()
                .is_some_and(|a| a.accepted_ms.is_none() && a.ending.is_none() && claims.contains(&a.claim));
            if !repeated {
                let _lost = self.apply(&mut task, Input::Lost { fence, why: Lost::NotHeld }, turn)?;
            }
        }
        Ok(())
    }
}

/// Bytes held of both streams.
pub(super) fn have(fence: Fence, turn: &Turn<'_>) -> Result<[u64; 2], StoreError> {
    let [out, err] = dunlin_wire::job::Stream::BOTH;
    let view = turn.write.view();
    Ok([view.output_len(fence, out)?, view.output_len(fence, err)?])
}
