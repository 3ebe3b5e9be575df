//! Connections whose handshake is not over (RFC 8446 section 8, RFC 9001 section 9.2). Whatever they say may be said by
//! somebody who recorded it: it may take grants, which only the device can read, and changes nothing else.

use super::{Hub, Session, Turn};
use crate::core::health::Health;
use crate::core::step::Input;
use crate::event::ConnId;
use crate::store::StoreError;
use dunlin_wire::message::{Hello, Numbered, ToHub};
use dunlin_wire::{CloseCode, Fence, limits};

impl Hub {
    pub(super) fn handle_early(
        &mut self,
        conn: ConnId,
        frame: Numbered,
        turn: &mut Turn<'_>,
    ) -> Result<(), StoreError> {
        let Some(state) = self.conns.get_mut(&conn) else { return Ok(()) };
        if !frame.message.may_be_early() || state.said.len() == limits::EARLY_MAX {
            self.close(conn, CloseCode::Garbage, turn);
            return Ok(());
        }
        state.said.push(frame.clone());
        let (key, node) = (state.key, state.node.clone());
        match (node, frame.message) {
            (None, ToHub::Hello(hello)) => {
                // What is wrong with it is said when it is known who says it.
                if self.check_hello(key, &hello).is_ok() && self.may_take_early(&hello) {
                    self.begin_early(conn, frame.seq, &hello, turn)?;
                }
                Ok(())
            }
            (Some(name), ToHub::Claim { ids }) if ids.len() <= limits::LIST_MAX => {
                let early = self.members.get_mut(&name).and_then(|m| m.early.as_mut());
                if let Some(session) = early.filter(|s| s.conn == conn) {
                    session.heard = session.heard.max(frame.seq);
                    self.handle_claims(conn, &name, &ids, turn)?;
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// A number that was said before is somebody's copy; a node that is down stays so until it is surely back.
    fn may_take_early(&self, hello: &Hello) -> bool {
        self.members.get(&hello.node).is_some_and(|member| {
            hello.connection > member.node.early_connection && member.pulse.health() != Health::Offline
        })
    }

    fn begin_early(
        &mut self,
        conn: ConnId,
        seq: u64,
        hello: &Hello,
        turn: &mut Turn<'_>,
    ) -> Result<(), StoreError> {
        let name = hello.node.clone();
        let Some(member) = self.members.get_mut(&name) else { return Ok(()) };
        member.node.early_connection = hello.connection;
        turn.write.put_node(&member.node)?;
        member.early = Some(Session::new(conn, seq));
        if let Some(state) = self.conns.get_mut(&conn) {
            state.node = Some(name);
        }
        self.welcome(conn, seq, hello, turn);
        Ok(())
    }

    /// It is the device itself: what it said early counts now.
    pub(super) fn handle_confirmed(&mut self, conn: ConnId, turn: &mut Turn<'_>) -> Result<(), StoreError> {
        let Some(state) = self.conns.get_mut(&conn).filter(|state| state.early) else { return Ok(()) };
        state.early = false;
        let said = std::mem::take(&mut state.said);
        let (key, node) = (state.key, state.node.take());
        let early = node.and_then(|name| self.members.get_mut(&name)?.early.take_if(|s| s.conn == conn));
        let Some(session) = early else {
            for frame in said {
                self.handle_control(conn, frame, turn)?;
            }
            return Ok(());
        };
        let hello = said.into_iter().find_map(|frame| match frame.message {
            ToHub::Hello(hello) => Some(*hello),
            _ => None,
        });
        let Some(hello) = hello else { return Ok(()) };
        if let Err(code) = self.check_hello(key, &hello) {
            return self.refuse_hello(conn, &hello.node, code, turn);
        }
        if self.is_copied(conn, &hello.node, &hello, turn)? {
            return Ok(());
        }
        self.attach(session, &hello, turn)?;
        let held = self.members.get(&hello.node).map(|m| m.held.clone()).unwrap_or_default();
        for fence in held {
            self.confirm_grant(fence, turn)?;
        }
        Ok(())
    }

    /// The node surely has, or can have, this grant: from here on it counts like any other.
    pub(super) fn confirm_grant(&mut self, fence: Fence, turn: &mut Turn<'_>) -> Result<(), StoreError> {
        let Some(held) = self.attempts.get(&fence).filter(|held| !held.accepted) else { return Ok(()) };
        let task = turn.write.view().task(&held.task)?;
        if let Some(mut task) = task.filter(|t| t.live().is_some_and(|a| a.early)) {
            let _noted = self.apply(&mut task, Input::Confirmed { fence }, turn)?;
        }
        Ok(())
    }
}
