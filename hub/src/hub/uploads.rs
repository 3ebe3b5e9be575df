//! Output and outcomes. An outcome is settled only together with all output that it names.

use super::recover::have;
use super::{Hub, Turn};
use crate::core::schedule::Need;
use crate::core::step::{Input, Refusal};
use crate::core::task::{End, Task};
use crate::event::{AuditRecord, ConnId};
use crate::store::{SPENT, StoreError};
use dunlin_wire::job::{Outcome, Report, Stream};
use dunlin_wire::message::{AckVerdict, ToAgent, Upload};
use dunlin_wire::{CloseCode, Fence, NodeName, TaskId, limits};

impl Hub {
    /// A frame of an upload stream.
    pub(super) fn handle_upload(
        &mut self,
        conn: ConnId,
        upload: Upload,
        turn: &mut Turn<'_>,
    ) -> Result<(), StoreError> {
        match self.conns.get(&conn).map(|c| c.node.clone()) {
            Some(Some(name)) => {
                self.heard(&name, 0, turn)?;
                self.handle_node_upload(conn, &name, upload, turn)
            }
            Some(None) => {
                self.close(conn, CloseCode::Garbage, turn);
                Ok(())
            }
            None => Ok(()),
        }
    }

    pub(super) fn handle_node_upload(
        &mut self,
        conn: ConnId,
        name: &NodeName,
        upload: Upload,
        turn: &mut Turn<'_>,
    ) -> Result<(), StoreError> {
        match upload {
            Upload::Chunk { fence, stream, offset, bytes } => {
                self.handle_chunk(name, fence, stream, offset, &bytes, turn)
            }
            Upload::Outcome { task, fence, report } => {
                self.handle_outcome(conn, name, &task, fence, report, turn)
            }
            Upload::Tail { fence, stream, offset, bytes } => {
                self.handle_tail(name, (fence, stream), offset, bytes, turn);
                Ok(())
            }
        }
    }

    fn handle_chunk(
        &mut self,
        name: &NodeName,
        fence: Fence,
        stream: Stream,
        offset: u64,
        bytes: &[u8],
        turn: &mut Turn<'_>,
    ) -> Result<(), StoreError> {
        if bytes.len() > limits::CHUNK_MAX || offset.saturating_add(bytes.len() as u64) > limits::OUTPUT_MAX {
            return Ok(());
        }
        if self.attempts.get(&fence).is_none_or(|held| held.node != *name) && !takes_late(name, fence, turn)?
        {
            *self.figures.refused.entry(AckVerdict::StaleFence.as_str()).or_default() += 1;
            return Ok(());
        }
        turn.write.append_output(fence, stream, offset, bytes)?;
        self.watch_progress(fence, turn);
        self.nudge(fence, stream);
        Ok(())
    }

    fn handle_outcome(
        &mut self,
        conn: ConnId,
        name: &NodeName,
        id: &TaskId,
        fence: Fence,
        mut report: Box<Report>,
        turn: &mut Turn<'_>,
    ) -> Result<(), StoreError> {
        report.told = std::mem::take(&mut report.told).bounded();
        let Some(mut task) = turn.write.view().task(id)? else {
            return self.ack(conn, fence, AckVerdict::UnknownTask, turn);
        };
        if task.attempts.iter().any(|a| a.fence == fence && a.node != *name) {
            self.refuse_foreign(name, fence, turn)?;
            return self.ack(conn, fence, AckVerdict::NotYourLease, turn);
        }
        let open = task.last().is_some_and(|a| a.fence == fence && !matches!(a.end, Some(End::Reported(_))));
        if open && let Some(have) = self.missing(fence, &report, turn)? {
            turn.send(conn, ToAgent::Missing { fence, have });
            return Ok(());
        }
        if !matches!(report.outcome, Outcome::Denied { .. } | Outcome::SpawnFailed { .. }) {
            self.imply_start(name, &mut task, fence, turn)?;
        }
        let ended = task.state.is_terminal();
        let state = task.state;
        let elsewhere = self.fits_elsewhere(&task, name);
        let settled =
            self.apply(&mut task, Input::Reported { fence, report: report.clone(), elsewhere }, turn)?;
        if settled.is_ok() {
            self.settled(name, &task, &report, turn)?;
        }
        let verdict = match settled {
            Ok(_) if ended => Refusal::State(state).verdict(),
            Ok(_) => AckVerdict::Applied,
            Err(refusal) => refusal.verdict(),
        };
        self.ack(conn, fence, verdict, turn)
    }

    /// An outcome counts, once: what the board decided goes into the audit, what the job used into the sums.
    fn settled(
        &mut self,
        name: &NodeName,
        task: &Task,
        report: &Report,
        turn: &mut Turn<'_>,
    ) -> Result<(), StoreError> {
        let code = match &report.outcome {
            Outcome::Denied { reason } => reason.as_str(),
            Outcome::NoGo { why } => why.as_str(),
            _ => "allowed",
        };
        if code != "allowed" {
            *self.figures.denials.entry(code).or_default() += 1;
        }
        turn.write.append_decision(&AuditRecord {
            at_ms: turn.now.wall,
            actor: format!("node:{name}"),
            action: "attempt.decide".into(),
            target: task.id.to_string(),
            result: report.outcome.to_string(),
            code: code.into(),
            detail: report.rule.as_ref().map(|rule| format!("rule {rule}")),
        })?;
        let told = &report.told;
        if told.tokens.is_some() || told.cost.is_some() {
            let (tokens, cost) = turn.write.view().meta::<(u64, u64)>(SPENT)?.unwrap_or_default();
            let sums = (
                tokens.saturating_add(told.tokens.unwrap_or(0)),
                cost.saturating_add(told.cost.unwrap_or(0)),
            );
            turn.write.put_meta(SPENT, &sums)?;
        }
        Ok(())
    }

    /// An outcome can overtake what was said before it, on another stream: then it says that too.
    fn imply_start(
        &mut self,
        name: &NodeName,
        task: &mut Task,
        fence: Fence,
        turn: &mut Turn<'_>,
    ) -> Result<(), StoreError> {
        if task.live().is_some_and(|a| a.fence == fence && a.accepted_ms.is_none()) {
            let lease_ms = self.lease_ms(name);
            let _noted = self.apply(task, Input::Accepted { fence, lease_ms }, turn)?;
            let _noted = self.apply(task, Input::Started { fence }, turn)?;
        }
        Ok(())
    }

    fn ack(
        &mut self,
        conn: ConnId,
        fence: Fence,
        verdict: AckVerdict,
        turn: &mut Turn<'_>,
    ) -> Result<(), StoreError> {
        if !matches!(verdict, AckVerdict::Applied | AckVerdict::Duplicate) {
            *self.figures.refused.entry(verdict.as_str()).or_default() += 1;
            tracing::info!(%fence, verdict = verdict.as_str(), "outcome refused");
        }
        turn.send(conn, ToAgent::Ack { fence, verdict });
        Ok(())
    }

    /// Where the agent must upload from, when what is held is not what the report names.
    fn missing(
        &self,
        fence: Fence,
        report: &Report,
        turn: &mut Turn<'_>,
    ) -> Result<Option<[u64; 2]>, StoreError> {
        let held = have(fence, turn)?;
        let kept = |i: usize| report.streams[i].kept().min(limits::OUTPUT_MAX);
        if (0..2).any(|i| held[i] < kept(i)) {
            return Ok(Some(held));
        }
        for (i, stream) in Stream::BOTH.into_iter().enumerate() {
            let whole = report.streams[i].kept() <= limits::OUTPUT_MAX;
            let empty = kept(i) == 0 && held[i] == 0;
            if whole && !empty && turn.write.view().output_digest(fence, stream)? != report.streams[i].digest
            {
                turn.write.remove_output(fence)?;
                return Ok(Some([0, 0]));
            }
        }
        Ok(None)
    }

    /// Whether another enrolled node could take the task that `name` just refused.
    fn fits_elsewhere(&self, task: &Task, name: &NodeName) -> bool {
        let need = Need::of(task);
        self.members.iter().any(|(other, m)| other != name && m.node.is_worker() && need.fits(other, &m.tags))
    }
}

/// Whether output of an attempt that the hub gave up may still count: it was not granted again.
fn takes_late(name: &NodeName, fence: Fence, turn: &Turn<'_>) -> Result<bool, StoreError> {
    let view = turn.write.view();
    let Some(id) = view.task_of(fence)? else { return Ok(false) };
    let task = view.task(&id)?;
    Ok(task.is_some_and(|t| {
        t.last().is_some_and(|a| a.fence == fence && a.node == *name && matches!(a.end, Some(End::Lost(_))))
    }))
}
