//! Connections: who they are, and what a node says on its control stream.

use super::load::all_tags;
use super::{Conn, Hub, Session, Turn};
use crate::core::node::Node;
use crate::core::step::Input;
use crate::core::task::{End, Lost, Task};
use crate::core::timer::Timer;
use crate::event::ConnId;
use crate::store::StoreError;
use dunlin_wire::message::{
    AbortCause, AckVerdict, Hello, HostSample, Join, Joined, Numbered, ToAgent, ToHub, Unfinished, Verdict,
    Welcome,
};
use dunlin_wire::version::{GENERATION, GENERATION_MIN};
use dunlin_wire::{CloseCode, Fence, Key, NodeName, limits};
use ring::digest::{SHA256, digest};
use std::collections::BTreeSet;
use subtle::ConstantTimeEq;

impl Hub {
    /// The registry is asked on every connection: a resumed one must not outlive a revocation.
    pub(super) fn handle_opened(&mut self, conn: ConnId, key: Key, turn: &mut Turn<'_>) {
        let known = self.members.values().find(|m| m.node.key == key);
        if known.is_some_and(|m| m.node.revoked_ms.is_some()) {
            return self.close(conn, CloseCode::Revoked, turn);
        }
        self.conns.insert(conn, Conn { key, node: None });
    }

    pub(super) fn handle_closed(&mut self, conn: ConnId) {
        let Some(Conn { node: Some(name), .. }) = self.conns.remove(&conn) else { return };
        if let Some(member) = self.members.get_mut(&name)
            && member.session.as_ref().is_some_and(|s| s.conn == conn)
        {
            member.session = None;
            self.seat(&name);
        }
    }

    pub(super) fn handle_control(
        &mut self,
        conn: ConnId,
        frame: Numbered,
        turn: &mut Turn<'_>,
    ) -> Result<(), StoreError> {
        let Some(state) = self.conns.get(&conn) else { return Ok(()) };
        let (key, node) = (state.key, state.node.clone());
        match (node, frame.message) {
            (None, ToHub::Hello(hello)) => self.handle_hello(conn, key, frame.seq, *hello, turn),
            (None, ToHub::Join(join)) => self.handle_join(conn, key, &join, turn),
            (None, _) | (Some(_), ToHub::Hello(_) | ToHub::Join(_)) => {
                self.close(conn, CloseCode::Garbage, turn);
                Ok(())
            }
            (Some(name), message) => {
                self.heard(&name, frame.seq, turn)?;
                self.handle_message(conn, &name, message, turn)
            }
        }
    }

    fn handle_message(
        &mut self,
        conn: ConnId,
        name: &NodeName,
        message: ToHub,
        turn: &mut Turn<'_>,
    ) -> Result<(), StoreError> {
        match message {
            ToHub::Claim { ids } if ids.len() <= limits::LIST_MAX => self.handle_claims(name, &ids, turn),
            ToHub::Accepted { fence } => self.handle_accepted(conn, name, fence, turn),
            ToHub::Started { fence } => self.handle_started(conn, name, fence, turn),
            ToHub::Heartbeat { fences, sample } if fences.len() <= limits::LIST_MAX => {
                self.handle_heartbeat(conn, name, &fences, sample, turn)
            }
            ToHub::Upload(upload) => self.handle_node_upload(conn, name, upload, turn),
            ToHub::Leaving => self.handle_leaving(name, turn),
            ToHub::Hello(_) | ToHub::Join(_) | ToHub::Claim { .. } | ToHub::Heartbeat { .. } => {
                self.close(conn, CloseCode::Garbage, turn);
                Ok(())
            }
        }
    }

    /// Anything authenticated shows that the node is alive.
    pub(super) fn heard(&mut self, name: &NodeName, seq: u64, turn: &mut Turn<'_>) -> Result<(), StoreError> {
        let Some(member) = self.members.get_mut(name) else { return Ok(()) };
        if let Some(session) = member.session.as_mut() {
            session.heard = session.heard.max(seq);
            if session.leaving {
                return Ok(());
            }
        }
        match member.pulse.handle_heard(turn.now.mono) {
            Some(left) => {
                let profile = member.node.spec.profile;
                if let Some(at) = member.pulse.poll_timeout(profile, &self.setup.timing) {
                    self.timers.set(Timer::Health(name.clone()), at);
                }
                self.handle_health_changed(name, left, turn)
            }
            None => Ok(()),
        }
    }

    fn handle_heartbeat(
        &mut self,
        conn: ConnId,
        name: &NodeName,
        fences: &[Fence],
        sample: Option<HostSample>,
        turn: &mut Turn<'_>,
    ) -> Result<(), StoreError> {
        let waiting = |held: &Fence| self.attempts.get(held).is_some_and(|h| !h.accepted);
        if let Some(member) = self.members.get_mut(name) {
            member.sample = sample.or(member.sample.take());
            member.unresponsive &= member.held.iter().any(waiting);
        }
        self.seat(name);
        self.renew(conn, name, fences, turn)
    }

    /// The node goes. It accepts nothing after saying so, so what it has not accepted can be given away at once.
    fn handle_leaving(&mut self, name: &NodeName, turn: &mut Turn<'_>) -> Result<(), StoreError> {
        let Some(member) = self.members.get_mut(name) else { return Ok(()) };
        if let Some(session) = member.session.as_mut() {
            session.leaving = true;
            session.claims.clear();
        }
        turn.node_event("node.leaving", name, None)?;
        let left = member.pulse.handle_leaving();
        let held: Vec<Fence> = member.held.iter().copied().collect();
        if let Some(left) = left {
            self.handle_health_changed(name, left, turn)?;
        }
        for fence in held {
            let Some(held) = self.attempts.get(&fence).filter(|held| !held.accepted) else { continue };
            if let Some(mut task) = turn.write.view().task(&held.task)? {
                let _lost = self.apply(&mut task, Input::Lost { fence, why: Lost::NotHeld }, turn)?;
            }
        }
        Ok(())
    }

    fn handle_hello(
        &mut self,
        conn: ConnId,
        key: Key,
        seq: u64,
        hello: Hello,
        turn: &mut Turn<'_>,
    ) -> Result<(), StoreError> {
        if let Err(code) = self.check_hello(key, &hello) {
            tracing::warn!(node = %hello.node, %key, code = code.as_str(), "Hello refused");
            self.close(conn, code, turn);
            return Ok(());
        }
        let name = hello.node.clone();
        let Some(member) = self.members.get_mut(&name) else { return Ok(()) };
        let old = member.session.take().map(|s| s.conn);
        self.update_node(&name, &hello, turn)?;
        if let Some(old) = old {
            self.close(old, CloseCode::Replaced, turn);
        }
        if let Some(state) = self.conns.get_mut(&conn) {
            state.node = Some(name.clone());
        }
        if let Some(member) = self.members.get_mut(&name) {
            member.session = Some(Session { conn, heard: seq, claims: BTreeSet::new(), leaving: false });
            member.unresponsive = false;
        }
        self.heard(&name, seq, turn)?;
        let mut verdicts = Vec::new();
        for unfinished in &hello.unfinished {
            let verdict = self.judge(&name, unfinished, turn)?;
            verdicts.push((unfinished.fence, verdict));
        }
        let welcome = Welcome {
            generation: hello.generation.min(GENERATION),
            heard: seq,
            slots: self.members.get(&name).map_or(0, |m| m.node.capacity()),
            heartbeat_ms: self
                .members
                .get(&name)
                .map_or(0, |m| self.setup.timing.heartbeat_ms(m.node.spec.profile)),
            verdicts,
        };
        turn.send(conn, ToAgent::Welcome(Box::new(welcome)));
        self.lose_what_is_not_held(&name, &hello, turn)?;
        self.handle_claims(&name, &hello.claims, turn)
    }

    fn check_hello(&self, key: Key, hello: &Hello) -> Result<(), CloseCode> {
        if hello.generation < GENERATION_MIN {
            return Err(CloseCode::UnsupportedGeneration);
        }
        if hello.fleet != self.fleet {
            return Err(CloseCode::WrongFleet);
        }
        let member = self.members.values().find(|m| m.node.key == key).ok_or(CloseCode::UnknownKey)?;
        if member.node.revoked_ms.is_some() {
            return Err(CloseCode::Revoked);
        }
        if member.node.spec.name != hello.node {
            return Err(CloseCode::KeyMismatch);
        }
        // The counter is durable at the agent: a second copy of its disk repeats or undercuts it.
        if hello.connection <= member.node.connection {
            return Err(CloseCode::Cloned);
        }
        let lists = [hello.unfinished.len(), hello.claims.len(), hello.capabilities.len() * 4];
        if lists.iter().any(|len| *len > limits::LIST_MAX) || hello.version.len() > 64 {
            return Err(CloseCode::Garbage);
        }
        Ok(())
    }

    fn update_node(&mut self, name: &NodeName, hello: &Hello, turn: &mut Turn<'_>) -> Result<(), StoreError> {
        let Some(member) = self.members.get_mut(name) else { return Ok(()) };
        let node = &mut member.node;
        node.connection = hello.connection;
        node.version.clone_from(&hello.version);
        node.capabilities.clone_from(&hello.capabilities);
        node.role = hello.role;
        node.slots = hello.slots;
        node.policy = hello.policy;
        node.heard_ms = Some(turn.now.wall);
        member.tags = all_tags(&member.node);
        turn.write.put_node(&member.node)
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
            return self.judge_live(&mut task, unfinished, turn);
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
            let _noted = self.apply(task, Input::Accepted { fence }, turn)?;
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
        hello: &Hello,
        turn: &mut Turn<'_>,
    ) -> Result<(), StoreError> {
        let held: Vec<Fence> =
            self.members.get(name).map(|m| m.held.iter().copied().collect()).unwrap_or_default();
        for fence in held {
            if hello.unfinished.iter().any(|u| u.fence == fence) {
                continue;
            }
            let Some(id) = self.attempts.get(&fence).map(|h| h.task.clone()) else { continue };
            let Some(mut task) = turn.write.view().task(&id)? else { continue };
            let repeated = task.live().is_some_and(|a| {
                a.accepted_ms.is_none() && a.ending.is_none() && hello.claims.contains(&a.claim)
            });
            if !repeated {
                let _lost = self.apply(&mut task, Input::Lost { fence, why: Lost::NotHeld }, turn)?;
            }
        }
        Ok(())
    }

    fn handle_join(
        &mut self,
        conn: ConnId,
        key: Key,
        join: &Join,
        turn: &mut Turn<'_>,
    ) -> Result<(), StoreError> {
        match self.enroll_by(key, join, turn)? {
            Ok(node) => {
                let joined = Joined {
                    fleet: self.fleet,
                    node: node.spec.name.clone(),
                    slots: node.spec.slots,
                    profile: node.spec.profile,
                    role: node.spec.role,
                };
                turn.send(conn, ToAgent::Joined(Box::new(joined)));
            }
            Err(code) => {
                tracing::warn!(%key, code = code.as_str(), "Join refused");
                turn.event("node.refused", |e| e.detail = Some(code.as_str().to_owned()))?;
                self.close(conn, code, turn);
            }
        }
        Ok(())
    }

    fn enroll_by(
        &mut self,
        key: Key,
        join: &Join,
        turn: &mut Turn<'_>,
    ) -> Result<Result<Node, CloseCode>, StoreError> {
        if join.generation < GENERATION_MIN {
            return Ok(Err(CloseCode::UnsupportedGeneration));
        }
        let Some(mut invite) = turn.write.view().invite(&join.invite)? else {
            return Ok(Err(CloseCode::TicketUnknown));
        };
        let hash = digest(&SHA256, &join.secret);
        if !bool::from(hash.as_ref().ct_eq(&invite.secret_hash)) {
            return Ok(Err(CloseCode::TicketUnknown));
        }
        let name = invite.node.name.clone();
        let enrolled = self.members.get(&name).map(|m| &m.node);
        if let Some(used_by) = invite.used_by {
            // The same device asks again because the answer was lost: it is enrolled already.
            return Ok(match enrolled {
                Some(node) if used_by == key && node.key == key && node.revoked_ms.is_none() => {
                    Ok(node.clone())
                }
                _ => Err(CloseCode::TicketUsed),
            });
        }
        if invite.expires_ms <= turn.now.wall {
            return Ok(Err(CloseCode::TicketExpired));
        }
        if turn.write.view().node_of_key(&key)?.is_some() {
            return Ok(Err(CloseCode::KeyMismatch));
        }
        if enrolled.is_some_and(|node| node.revoked_ms.is_none()) {
            return Ok(Err(CloseCode::KeyMismatch));
        }
        let node = Node::new(invite.node.clone(), key, turn.now.wall);
        invite.used_by = Some(key);
        turn.write.put_invite(&join.invite, &invite)?;
        turn.write.put_node(&node)?;
        turn.node_event("node.registered", &name, None)?;
        let held = self.members.get(&name).map(|m| m.held.clone()).unwrap_or_default();
        self.enroll(node.clone(), turn.now);
        if let Some(member) = self.members.get_mut(&name) {
            member.held = held;
        }
        Ok(Ok(node))
    }
}

/// Bytes held of both streams.
pub(super) fn have(fence: Fence, turn: &Turn<'_>) -> Result<[u64; 2], StoreError> {
    let [out, err] = dunlin_wire::job::Stream::BOTH;
    let view = turn.write.view();
    Ok([view.output_len(fence, out)?, view.output_len(fence, err)?])
}
