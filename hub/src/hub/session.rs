//! Connections: who they are, and what a node says on its control stream.

use super::load::all_tags;
use super::{Conn, Hub, Member, Session, Turn};
use crate::core::health::Health;
use crate::core::node::Node;
use crate::core::step::Input;
use crate::core::task::Lost;
use crate::core::timer::Timer;
use crate::event::ConnId;
use crate::store::StoreError;
use dunlin_wire::message::{Hello, Join, Joined, Numbered, ToAgent, ToHub, Welcome};
use dunlin_wire::telemetry::Sample;
use dunlin_wire::version::{GENERATION, GENERATION_MIN};
use dunlin_wire::{CloseCode, Fence, Key, NodeName, limits};
use ring::digest::{SHA256, digest};
use subtle::ConstantTimeEq;

impl Hub {
    /// The registry is asked on every connection: a resumed one must not outlive a revocation.
    pub(super) fn handle_opened(&mut self, conn: ConnId, key: Key, early: bool, turn: &mut Turn<'_>) {
        if self.member_of(key).is_some_and(|m| m.node.revoked_ms.is_some()) {
            return self.close(conn, CloseCode::Revoked, turn);
        }
        self.conns.insert(conn, Conn { key, node: None, early, said: Vec::new() });
    }

    pub(super) fn handle_closed(&mut self, conn: ConnId) {
        let Some(Conn { node: Some(name), .. }) = self.conns.remove(&conn) else { return };
        if let Some(member) = self.members.get_mut(&name) {
            for session in [&mut member.session, &mut member.early] {
                session.take_if(|s| s.conn == conn);
            }
            self.seat(&name);
        }
    }

    /// A node's session, if it is the one of this connection and not of a later.
    pub(super) fn session_at(&mut self, conn: ConnId, name: &NodeName) -> Option<&mut Session> {
        let session = self.members.get_mut(name)?.session.as_mut();
        session.filter(|session| session.conn == conn)
    }

    pub(super) fn handle_control(
        &mut self,
        conn: ConnId,
        frame: Numbered,
        turn: &mut Turn<'_>,
    ) -> Result<(), StoreError> {
        let Some(state) = self.conns.get(&conn) else { return Ok(()) };
        let (key, node) = (state.key, state.node.clone());
        if state.early {
            return self.handle_early(conn, frame, turn);
        }
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
            ToHub::Claim { ids } if ids.len() <= limits::LIST_MAX => {
                self.handle_claims(conn, name, &ids, turn)
            }
            ToHub::Accepted { fence } => self.handle_accepted(conn, name, fence, turn),
            ToHub::Started { fence } => self.handle_started(conn, name, fence, turn),
            ToHub::Heartbeat { fences, sample } if fences.len() <= limits::LIST_MAX => {
                self.handle_heartbeat(conn, name, &fences, sample, turn)
            }
            ToHub::Upload(upload) => self.handle_node_upload(conn, name, upload, turn),
            ToHub::Leaving => self.handle_leaving(name, turn),
            ToHub::Holding { unfinished, claims }
                if unfinished.len() <= limits::LIST_MAX && claims.len() <= limits::LIST_MAX =>
            {
                self.handle_holding(conn, name, &unfinished, &claims, turn)
            }
            ToHub::Inventory(inventory) if inventory.is_in_bounds() => {
                self.handle_inventory(name, *inventory);
                Ok(())
            }
            ToHub::Sample(sample) => {
                self.handle_sample(name, &sample, turn);
                self.seat(name);
                Ok(())
            }
            ToHub::Alarm { alarm, name: place, age_ms } if place.len() <= limits::NAME_MAX => {
                self.handle_alarm(name, alarm, &place, age_ms, turn)
            }
            ToHub::Overlay { version } => self.handle_overlay(conn, name, version, turn),
            ToHub::Told { fence, told } => self.handle_told(conn, name, fence, told, turn),
            ToHub::Keys { version } => self.handle_keys(conn, name, version, turn),
            ToHub::Hello(_)
            | ToHub::Join(_)
            | ToHub::Alarm { .. }
            | ToHub::Inventory(_)
            | ToHub::Claim { .. }
            | ToHub::Heartbeat { .. }
            | ToHub::Holding { .. } => {
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
                if let Some(at) = member.silence_over(&self.setup.timing) {
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
        sample: Option<Box<Sample>>,
        turn: &mut Turn<'_>,
    ) -> Result<(), StoreError> {
        self.handle_sign_of_life(name, sample, turn);
        self.renew(conn, name, fences, turn)
    }

    fn handle_sign_of_life(&mut self, name: &NodeName, sample: Option<Box<Sample>>, turn: &Turn<'_>) {
        let waiting = |held: &Fence| self.attempts.get(held).is_some_and(|h| !h.accepted);
        if let Some(member) = self.members.get_mut(name) {
            member.unresponsive &= member.held.iter().any(waiting);
        }
        if let Some(sample) = sample {
            self.handle_sample(name, &sample, turn);
        }
        self.seat(name);
    }

    /// The node lives, and says when it will say so again.
    pub(super) fn handle_beat(
        &mut self,
        conn: ConnId,
        every_ms: u32,
        sample: Option<Box<Sample>>,
        turn: &mut Turn<'_>,
    ) -> Result<(), StoreError> {
        let Some(Conn { node: Some(name), early: false, .. }) = self.conns.get(&conn) else { return Ok(()) };
        let name = name.clone();
        if let Some(member) = self.members.get_mut(&name) {
            let (_, longest) = member.node.spec.profile.keepalive_ms();
            member.every_ms = u64::from(every_ms).min(longest);
        }
        self.heard(&name, 0, turn)?;
        self.handle_sign_of_life(&name, sample, turn);
        Ok(())
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
            return self.refuse_hello(conn, &hello.node, code, turn);
        }
        let name = hello.node.clone();
        if self.is_copied(conn, &name, &hello, turn)? {
            return Ok(());
        }
        self.welcome(conn, seq, &hello, turn);
        self.attach(Session::new(conn, seq), &hello, turn)
    }

    pub(super) fn welcome(&self, conn: ConnId, seq: u64, hello: &Hello, turn: &mut Turn<'_>) {
        let Some(member) = self.members.get(&hello.node) else { return };
        let welcome = Welcome {
            generation: hello.generation.min(GENERATION),
            heard: seq,
            slots: member.node.capacity(),
            heartbeat_ms: self.setup.timing.heartbeat_ms(member.node.spec.profile),
        };
        turn.send(conn, ToAgent::Welcome(Box::new(welcome)));
    }

    /// The node is there, by this connection and no other.
    pub(super) fn attach(
        &mut self,
        session: Session,
        hello: &Hello,
        turn: &mut Turn<'_>,
    ) -> Result<(), StoreError> {
        let (name, conn, seq) = (hello.node.clone(), session.conn, session.heard);
        self.update_node(&name, hello, turn)?;
        let Some(member) = self.members.get_mut(&name) else { return Ok(()) };
        let old = [member.session.take(), member.early.take()];
        member.session = Some(session);
        member.unresponsive = false;
        if let Some(state) = self.conns.get_mut(&conn) {
            state.node = Some(name.clone());
        }
        for old in old.into_iter().flatten() {
            self.close(old.conn, CloseCode::Replaced, turn);
        }
        self.heard(&name, seq, turn)?;
        self.seat(&name);
        Ok(())
    }

    pub(super) fn refuse_hello(
        &mut self,
        conn: ConnId,
        name: &NodeName,
        code: CloseCode,
        turn: &mut Turn<'_>,
    ) -> Result<(), StoreError> {
        tracing::warn!(node = %name, code = code.as_str(), "Hello refused");
        let there = |m: &Member| m.session.is_some() && m.pulse.health() == Health::Healthy;
        if code == CloseCode::Cloned && self.members.get(name).is_some_and(|m| there(m)) {
            return self.hold_copies(conn, name, turn);
        }
        self.close(conn, code, turn);
        Ok(())
    }

    /// Whether two live copies of one identity take turns.
    pub(super) fn is_copied(
        &mut self,
        conn: ConnId,
        name: &NodeName,
        hello: &Hello,
        turn: &mut Turn<'_>,
    ) -> Result<bool, StoreError> {
        let Some(member) = self.members.get_mut(name) else { return Ok(false) };
        if !member.boots.handle_hello(hello.boot_id) {
            return Ok(false);
        }
        self.hold_copies(conn, name, turn)?;
        Ok(true)
    }

    /// Two live copies of one identity are both held: neither can be told from the other.
    fn hold_copies(&mut self, conn: ConnId, name: &NodeName, turn: &mut Turn<'_>) -> Result<(), StoreError> {
        let Some(member) = self.members.get_mut(name) else { return Ok(()) };
        member.node.cloned = true;
        turn.write.put_node(&member.node)?;
        let old = [member.session.take(), member.early.take()];
        tracing::error!(node = %name, "cloned identity: there are two live copies, both are held");
        turn.node_event("node.cloned", name, Some("two live copies; revoke it and invite each anew"))?;
        for conn in old.into_iter().flatten().map(|s| s.conn).chain([conn]) {
            self.close(conn, CloseCode::Cloned, turn);
        }
        self.seat(name);
        Ok(())
    }

    pub(super) fn check_hello(&self, key: Key, hello: &Hello) -> Result<(), CloseCode> {
        if hello.generation < GENERATION_MIN {
            return Err(CloseCode::UnsupportedGeneration);
        }
        if hello.fleet != self.fleet {
            return Err(CloseCode::WrongFleet);
        }
        let member = self.member_of(key).ok_or(CloseCode::UnknownKey)?;
        if member.node.revoked_ms.is_some() {
            return Err(CloseCode::Revoked);
        }
        if member.node.spec.name != hello.node {
            return Err(CloseCode::KeyMismatch);
        }
        if member.node.cloned {
            return Err(CloseCode::Cloned);
        }
        // The counter is durable at the agent: a second copy of its disk repeats or undercuts it. So does a connection
        // that the agent gave up for a newer one, when its last packet comes late.
        if hello.connection <= member.node.connection {
            let late = member.boots.knows(hello.boot_id);
            return Err(if late { CloseCode::Replaced } else { CloseCode::Cloned });
        }
        if hello.capabilities.len() > limits::CAPABILITIES_MAX || hello.version.len() > 64 {
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
