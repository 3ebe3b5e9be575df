//! What operators ask for.

use super::{Hub, Turn, audit};
use crate::core::node::{Invite, NodeSpec};
use crate::core::step::{Input, Refusal};
use crate::core::task::{State, Task, TaskSpec};
use crate::core::timer::Timer;
use crate::event::{Answer, ApiRefusal, Effect, Recent, Request};
use crate::store::StoreError;
use dunlin_wire::actuation::is_actuator;
use dunlin_wire::envelope::Envelope;
use dunlin_wire::job::{CancelledBy, Denial, Job};
use dunlin_wire::ticket::Ticket;
use dunlin_wire::{CloseCode, Key, NodeName, TaskId};
use ring::digest::{SHA256, digest};
use ring::rand::{SecureRandom, SystemRandom};
use ring::signature::KeyPair;

type Answered = Result<Result<Answer, ApiRefusal>, StoreError>;

impl Hub {
    pub(super) fn handle_request(&mut self, actor: &str, request: Request, turn: &mut Turn<'_>) -> Answered {
        let audit = audit::row(&request);
        let answer = match request {
            Request::Submit { id, spec } => self.submit(id, *spec, turn),
            Request::Cancel(id) => {
                self.move_task(&id, Input::Cancel { by: CancelledBy::Operator }, "cancelled", turn)
            }
            Request::Retry(id) => self.move_task(&id, Input::Retry, "retried", turn),
            Request::Task(id) => Ok(match turn.write.view().task(&id)? {
                Some(task) => Ok(Answer::Task(Box::new(task))),
                None => Err(ApiRefusal::UnknownTask(id)),
            }),
            Request::Why(id) => Ok(match turn.write.view().task(&id)? {
                Some(task) => Ok(Answer::Why(self.why(&task, turn))),
                None => Err(ApiRefusal::UnknownTask(id)),
            }),
            Request::Nodes => {
                Ok(Ok(Answer::Nodes(self.members.values().map(|m| self.view_of(m, turn)).collect())))
            }
            Request::Node(name) => Ok(self.node_answer(&name, turn)),
            Request::Recent(name) => Ok(match self.members.get(&name) {
                Some(member) => Ok(Answer::Recent(Recent {
                    names: member.board.history.names().into_iter().map(str::to_owned).collect(),
                    rows: member.board.history.raw(),
                })),
                None => Err(ApiRefusal::UnknownNode(name)),
            }),
            Request::Drain(name, on) => self.drain(&name, on, turn),
            Request::Revoke(name) => self.revoke(&name, turn),
            Request::Probe(name) => Ok(self.probe(&name, turn)),
            Request::ReportDown(name, since) => self.report_down(&name, since, turn),
            Request::Invite { node, ttl_ms } => self.invite(node, ttl_ms, turn),
            Request::PushKeys(bytes) => self.push_keys(bytes, turn),
            Request::PushOverlay { node, overlay } => self.push_overlay(node, *overlay, turn),
            Request::Halt => self.halt(turn),
            Request::Resume => self.resume(turn),
            Request::Metrics => Ok(Ok(Answer::Metrics(Box::new(self.figures_now(turn))))),
        }?;
        if let Some(row) = audit {
            turn.write.append_audit(&row.filled(actor, turn.now.wall, &answer))?;
        }
        Ok(answer)
    }

    fn submit(&mut self, id: Option<TaskId>, spec: TaskSpec, turn: &mut Turn<'_>) -> Answered {
        let (id, known) = match id {
            Some(id) => {
                let known = turn.write.view().task(&id)?;
                (id, known)
            }
            // Of a number that is nobody else's.
            None => (made_id(self.next_seq, self.rng.u64(..)), None),
        };
        if let Some(task) = known {
            let same = task.spec == spec;
            return Ok(if same {
                Ok(Answer::Submitted { task: Box::new(task), duplicate: true })
            } else {
                Err(ApiRefusal::TaskExists(id))
            });
        }
        if let Some(denial) = actuation_refusal(&spec) {
            *self.figures.denials.entry(denial.as_str()).or_default() += 1;
            return Ok(Err(ApiRefusal::Actuation(denial)));
        }
        let queued = self.figures.tasks.get(&State::Queued).copied().unwrap_or(0);
        if queued >= self.setup.queue_max {
            return Ok(Err(ApiRefusal::QueueFull(self.setup.queue_max)));
        }
        if !self.has_room(turn)? {
            return Ok(Err(ApiRefusal::StorageFull));
        }
        self.last_order_ms = self.last_order_ms.max(turn.now.wall);
        let task = Task::new(id, spec, self.next_seq, turn.now.wall, self.last_order_ms);
        self.next_seq += 1;
        turn.write.put_meta("next_seq", &self.next_seq)?;
        turn.write.put_meta("last_order_ms", &self.last_order_ms)?;
        turn.write.put_task(&task, None)?;
        self.count(State::Queued, &task, 1);
        self.queue(&task, turn.now);
        if let Some(at) = task.spec.complete_by {
            self.timers
                .set(Timer::Overdue(task.id.clone()), turn.now.mono + at.saturating_sub(turn.now.wall));
        }
        turn.event("task.enqueued", |e| e.task = Some(task.id.clone()))?;
        Ok(Ok(Answer::Submitted { task: Box::new(task), duplicate: false }))
    }

    /// Whether new work may come in. Results are taken beyond this, so that accepted work can always end.
    fn has_room(&self, turn: &mut Turn<'_>) -> Result<bool, StoreError> {
        if let Some(room) = turn.room {
            return Ok(room);
        }
        let room = turn.write.view().has_room()?;
        turn.room = Some(room);
        Ok(room)
    }

    fn move_task(&mut self, id: &TaskId, input: Input, verb: &'static str, turn: &mut Turn<'_>) -> Answered {
        let Some(mut task) = turn.write.view().task(id)? else {
            return Ok(Err(ApiRefusal::UnknownTask(id.clone())));
        };
        Ok(match self.apply(&mut task, input, turn)? {
            Ok(_) => Ok(Answer::Task(Box::new(task))),
            Err(Refusal::State(_) | Refusal::StaleFence | Refusal::Duplicate) => {
                Err(ApiRefusal::IllegalMove { id: id.clone(), state: task.state, verb })
            }
        })
    }

    fn node_answer(&self, name: &NodeName, turn: &Turn<'_>) -> Result<Answer, ApiRefusal> {
        match self.members.get(name) {
            Some(member) => Ok(Answer::Node(Box::new(self.view_of(member, turn)))),
            None => Err(ApiRefusal::UnknownNode(name.clone())),
        }
    }

    fn drain(&mut self, name: &NodeName, on: bool, turn: &mut Turn<'_>) -> Answered {
        let Some(member) = self.members.get_mut(name) else {
            return Ok(Err(ApiRefusal::UnknownNode(name.clone())));
        };
        if member.node.draining != on {
            member.node.draining = on;
            turn.write.put_node(&member.node)?;
            turn.node_event(if on { "node.draining" } else { "node.undrained" }, name, None)?;
            self.seat(name);
        }
        Ok(self.node_answer(name, turn))
    }

    fn revoke(&mut self, name: &NodeName, turn: &mut Turn<'_>) -> Answered {
        let Some(member) = self.members.get_mut(name) else {
            return Ok(Err(ApiRefusal::UnknownNode(name.clone())));
        };
        if member.node.revoked_ms.is_none() {
            member.node.revoked_ms = Some(turn.now.wall);
            turn.write.put_node(&member.node)?;
            turn.node_event("node.revoked", name, None)?;
            let key = member.node.key;
            let conns = self.conns.iter().filter(|(_, c)| c.key == key).map(|(id, _)| *id);
            for conn in conns.collect::<Vec<_>>() {
                self.close(conn, CloseCode::Revoked, turn);
            }
            self.seat(name);
        }
        Ok(self.node_answer(name, turn))
    }

    fn probe(&self, name: &NodeName, turn: &mut Turn<'_>) -> Result<Answer, ApiRefusal> {
        if let Some(session) = self.members.get(name).and_then(|m| m.session.as_ref()) {
            turn.effects.push(Effect::Ask(session.conn));
        }
        self.node_answer(name, turn)
    }

    /// A node that was heard meanwhile is up, whoever says otherwise. Only its health changes: what it holds is held
    /// until the lease is over.
    fn report_down(&mut self, name: &NodeName, since: u64, turn: &mut Turn<'_>) -> Answered {
        if let Some(member) = self.members.get_mut(name)
            && member.pulse.heard() < since
            && let Some(left) = member.pulse.handle_reported_down()
        {
            self.handle_health_changed(name, left, turn)?;
        }
        Ok(self.node_answer(name, turn))
    }

    fn invite(&mut self, node: NodeSpec, ttl_ms: u64, turn: &mut Turn<'_>) -> Answered {
        if self.members.get(&node.name).is_some_and(|m| m.node.revoked_ms.is_none()) {
            return Ok(Err(ApiRefusal::NodeExists(node.name)));
        }
        let (mut invite, mut secret) = ([0; 16], [0; 16]);
        let random = SystemRandom::new();
        if random.fill(&mut invite).and_then(|()| random.fill(&mut secret)).is_err() {
            return Ok(Err(ApiRefusal::StoreFailed));
        }
        let Ok(hub) = self.setup.key.public_key().as_ref().try_into().map(Key) else {
            return Ok(Err(ApiRefusal::StoreFailed));
        };
        let mut secret_hash = [0; 32];
        secret_hash.copy_from_slice(digest(&SHA256, &secret).as_ref());
        let expires_ms = turn.now.wall + ttl_ms;
        turn.write.put_invite(&invite, &Invite { node, secret_hash, expires_ms, used_by: None })?;
        let ticket = Ticket { addrs: self.setup.addrs.clone(), hub, fleet: self.fleet, invite, secret };
        Ok(Ok(Answer::Ticket { ticket: ticket.sign(&self.setup.key), expires_ms }))
    }

    fn halt(&mut self, turn: &mut Turn<'_>) -> Answered {
        self.set_halted(true, turn)?;
        let mut live: Vec<TaskId> = self.attempts.values().map(|h| h.task.clone()).collect();
        live.sort();
        let mut cancelled = 0;
        for id in live {
            let Some(mut task) = turn.write.view().task(&id)? else { continue };
            let input = Input::Cancel { by: CancelledBy::Halt };
            cancelled += u64::from(self.apply(&mut task, input, turn)?.is_ok());
        }
        Ok(Ok(Answer::Fleet { halted: true, cancelled }))
    }

    fn resume(&mut self, turn: &mut Turn<'_>) -> Answered {
        self.set_halted(false, turn)?;
        let names: Vec<NodeName> = self.members.keys().cloned().collect();
        for name in names {
            self.seat(&name);
        }
        Ok(Ok(Answer::Fleet { halted: false, cancelled: 0 }))
    }

    fn set_halted(&mut self, halted: bool, turn: &mut Turn<'_>) -> Result<(), StoreError> {
        if self.halted != halted {
            self.halted = halted;
            turn.write.put_meta("halted", &halted)?;
            turn.event(if halted { "fleet.halted" } else { "fleet.resumed" }, |_| {})?;
        }
        Ok(())
    }
}

/// Why no board would take a task that moves something, as far as the hub can tell; the board decides all of it again.
fn actuation_refusal(spec: &TaskSpec) -> Option<Denial> {
    let signed = match &spec.job {
        Job::Signed(bytes) => Envelope::decode(bytes).and_then(|envelope| envelope.peek()),
        _ => None,
    };
    match signed.map_or_else(|| spec.job.clone(), |payload| payload.work.into()) {
        Job::Actuation(actuation) => actuation.declared.refusal(),
        _ => spec.tags.iter().any(is_actuator).then_some(Denial::ActuationUndeclared),
    }
}

/// An id of 40 bits of the number of its submission, so that tasks of one time are neighbours in the store and change few
/// pages, and 40 at random: a store that came back from a backup gives numbers again.
fn made_id(number: u64, random: u64) -> TaskId {
    const ALPHABET: &[u8] = b"0123456789abcdefghjkmnpqrstvwxyz";
    let digits = |of: u64| (0..8).rev().map(move |at| char::from(ALPHABET[(of >> (5 * at)) as usize % 32]));
    let text: String = digits(number).chain(digits(random)).collect();
    format!("t-{text}").parse().unwrap_or_else(|_| unreachable!("made of allowed characters"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_in_the_order_of_submission_and_differ_when_numbers_come_again() {
        let ids = [(0, u64::MAX), (1, 0), (31, 7), (32, 0), (1 << 39, 5)].map(|(n, r)| made_id(n, r));
        assert!(ids.is_sorted());
        assert_eq!(ids[3].as_str(), "t-0000001000000000");
        assert_ne!(made_id(9, 1), made_id(9, 2));
    }
}
