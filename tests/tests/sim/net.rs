//! The network of the simulation: order holds within a stream; everything else is delay, stall, repetition and loss.

use super::world::{Flight, Link, Packet, World};
use dunlin_agent::event::Event as AgentEvent;
use dunlin_hub::event::{ConnId, Event};
use dunlin_wire::Fence;
use dunlin_wire::job::Stream;
use dunlin_wire::message::{Numbered, ToAgent, ToHub, Upload};
use std::collections::BTreeMap;

impl World<'_> {
    pub(super) fn delay(&mut self) -> u64 {
        if self.calm {
            return 1 + self.rng.u64(0..50);
        }
        match self.rng.u8(..) {
            // A stall: QUIC repeats, and delivers late.
            0..=7 => self.rng.u64(1_000..25_000),
            8..=40 => self.rng.u64(100..1_000),
            _ => self.rng.u64(1..60),
        }
    }

    pub(super) fn push(&mut self, at: u64, conn: ConnId, packet: Packet) {
        self.next += 1;
        self.packets.insert((at, self.next), (conn, packet));
    }

    pub(super) fn say_to_board(&mut self, conn: ConnId, message: ToAgent) {
        if let ToAgent::Grant(grant) = &message {
            let early = self.links.get(&conn).is_none_or(|l| l.early);
            self.model.granted(&grant.task, grant.fence, early);
        }
        let delay = self.delay();
        let twice = !self.calm && self.rng.u8(..) < 5 && !matches!(message, ToAgent::Welcome(_));
        let Some(link) = self.links.get_mut(&conn) else { return };
        let stalled = self.boards[link.board].partitioned_until;
        let at = (self.now + delay).max(link.answers_at).max(stalled);
        link.answers_at = at;
        if twice {
            let later = at + self.rng.u64(1..20_000);
            self.push(later, conn, Packet::ToBoard(message.clone()));
        }
        if let ToAgent::Renewed { leases, .. } = &message {
            assert!(!leases.is_empty(), "a renewal of nothing is a packet for nothing");
        }
        self.push(at, conn, Packet::ToBoard(message));
    }

    pub(super) fn deliver(&mut self, conn: ConnId, packet: Packet) {
        let Some(link) = self.links.get(&conn) else { return };
        let (board, at_hub, at_board) = (link.board, link.at_hub, link.at_board);
        match packet {
            Packet::Control(frame) if at_hub => self.hub_step(vec![Event::Control { conn, frame }]),
            Packet::Upload(frame) if at_hub => self.hub_step(vec![Event::Upload { conn, frame }]),
            Packet::Beat(every_ms) if at_hub => {
                let at = (self.now + self.delay()).max(self.boards[board].partitioned_until);
                self.push(at, conn, Packet::Acknowledged);
                self.hub_step(vec![Event::Beat { conn, every_ms, sample: None }]);
            }
            Packet::Ask if at_board => self.boards[board].inbox.push((self.now, AgentEvent::Asked)),
            Packet::Acknowledged if at_board => {
                self.boards[board].inbox.push((self.now, AgentEvent::Heard));
            }
            Packet::ToBoard(message) if at_board => {
                self.boards[board].inbox.push((self.now, AgentEvent::FromHub(message)));
            }
            Packet::HubSeesEnd => {
                if let Some(link) = self.links.get_mut(&conn).filter(|l| l.at_hub) {
                    link.at_hub = false;
                    self.hub_step(vec![Event::Closed {
                        conn,
                        key: self.boards[board].key,
                        by: None,
                        traffic: Default::default(),
                    }]);
                }
            }
            Packet::BoardSeesEnd => self.end_at_board(conn),
            Packet::BoardConfirms if at_board => {
                let event = match link.refused {
                    true => AgentEvent::Connected { early: false },
                    false => AgentEvent::Confirmed,
                };
                self.boards[board].inbox.push((self.now, event));
                let at = self.now + self.delay();
                if let Some(link) = self.links.get_mut(&conn) {
                    link.control_at = link.control_at.max(at);
                    link.first = false;
                }
                self.push(at, conn, Packet::HubConfirms);
            }
            Packet::HubConfirms if at_hub => {
                if let Some(link) = self.links.get_mut(&conn) {
                    link.early = false;
                }
                self.hub_step(vec![Event::Confirmed { conn }]);
            }
            _ => {}
        }
        self.links.retain(|_, link| link.at_hub || link.at_board);
    }

    pub(super) fn end_at_board(&mut self, conn: ConnId) {
        let Some(link) = self.links.get_mut(&conn).filter(|l| l.at_board) else { return };
        link.at_board = false;
        let board = &mut self.boards[link.board];
        if board.core.is_some() {
            board.inbox.push((self.now, AgentEvent::Disconnected));
        }
        board.connect_at = self.now + self.rng.u64(100..5_000);
        let at = self.now + self.delay();
        self.push(at, conn, Packet::HubSeesEnd);
    }

    /// The path is gone: both ends find out, the hub perhaps late. What was under way is lost, or comes before that.
    pub(super) fn cut(&mut self, conn: ConnId) {
        if self.rng.bool() {
            self.packets
                .retain(|_, (c, p)| *c != conn || matches!(p, Packet::HubSeesEnd | Packet::BoardSeesEnd));
        }
        self.end_at_board(conn);
    }

    pub(super) fn link_of(&self, board: usize) -> Option<ConnId> {
        self.links.iter().rev().find(|(_, l)| l.board == board && l.at_board).map(|(conn, _)| *conn)
    }

    pub(super) fn connect(&mut self, at: usize) {
        let early = self.rng.bool();
        let refused = early && self.rng.u8(..) < 40;
        let conn = self.open(at, early, refused);
        if self.link_of(at) != Some(conn) {
            return;
        }
        self.boards[at].inbox.retain(|(_, e)| !matches!(e, AgentEvent::FromHub(_) | AgentEvent::Confirmed));
        self.boards[at].inbox.push((self.now, AgentEvent::Connected { early }));
        if early {
            let back = (self.now + self.delay() + self.delay()).max(self.boards[at].partitioned_until);
            if let Some(link) = self.links.get_mut(&conn) {
                link.answers_at = back;
            }
            self.push(back, conn, Packet::BoardConfirms);
            self.flights.push(Flight { board: at, frames: Vec::new() });
        }
    }

    fn open(&mut self, board: usize, early: bool, refused: bool) -> ConnId {
        self.next += 1;
        let conn = ConnId(self.next);
        let link = Link {
            board,
            at_hub: true,
            at_board: true,
            control_at: 0,
            answers_at: 0,
            uploads_at: BTreeMap::new(),
            early,
            first: early,
            refused,
        };
        self.links.insert(conn, link);
        let key = self.boards[board].key;
        self.hub_step(vec![Event::Opened { conn, key, early }]);
        conn
    }

    /// Somebody who recorded a board's first flight sends it: before it arrives itself, after it, or in its place. TLS
    /// lets a session be used once; here it does not, so that the layers above must hold by themselves.
    pub(super) fn replay(&mut self) {
        let from = self.flights.len().saturating_sub(8);
        self.flights.drain(..from);
        let known: Vec<&Flight> = self.flights.iter().filter(|f| !f.frames.is_empty()).collect();
        let Some(flight) = self.rng.choice(known) else { return };
        let (board, frames) = (flight.board, flight.frames.clone());
        let conn = self.open(board, true, false);
        let Some(link) = self.links.get_mut(&conn) else { return };
        link.at_board = false;
        self.catch_up();
        let newest = self.store.read(|view| view.newest_event()).unwrap();
        for frame in frames {
            self.hub_step(vec![Event::Control { conn, frame }]);
        }
        self.catch_up();
        let name = &self.boards[board].name;
        let events = self.store.read(|view| view.events_after(newest, 100)).unwrap();
        let revived = events.iter().any(|(_, e)| e.kind == "node.up" && e.node.as_ref() == Some(name));
        assert!(!revived, "{name} is believed to live by what somebody repeats");
        if self.rng.u8(..) < 80 {
            // Instead of the real one.
            if let Some(real) = self.link_of(board) {
                self.cut(real);
            }
        }
        let end = self.now + 10_000;
        self.push(end, conn, Packet::HubSeesEnd);
    }

    pub(super) fn say_to_hub(&mut self, at: usize, frame: Numbered) {
        let Some(conn) = self.link_of(at) else { return };
        let delay = self.delay();
        let twice = !self.calm && self.rng.u8(..) < 5 && !matches!(frame.message, ToHub::Hello(_));
        let stalled = self.boards[at].partitioned_until;
        let Some(link) = self.links.get_mut(&conn) else { return };
        let arrives = (self.now + delay).max(link.control_at).max(stalled);
        link.control_at = arrives;
        if link.first {
            let flight = self.flights.iter_mut().rev().find(|f| f.board == at && f.frames.len() < 2);
            flight.into_iter().for_each(|f| f.frames.push(frame.clone()));
            if link.refused {
                return;
            }
        }
        if twice {
            let later = arrives + self.rng.u64(1..20_000);
            self.push(later, conn, Packet::Control(frame.clone()));
        }
        self.push(arrives, conn, Packet::Control(frame));
    }

    pub(super) fn ask_board(&mut self, conn: ConnId) {
        let at = self.now + self.delay();
        let stalled = self.links.get(&conn).map_or(0, |l| self.boards[l.board].partitioned_until);
        if at >= stalled {
            self.push(at, conn, Packet::Ask);
        }
    }

    /// A datagram: it may be lost, and comes in no order.
    pub(super) fn beat(&mut self, at: usize, every_ms: u64) {
        let Some(conn) = self.link_of(at) else { return };
        let arrives = self.now + self.delay();
        let lost = !self.calm && self.rng.u8(..) < 20;
        if !lost && arrives >= self.boards[at].partitioned_until {
            self.push(arrives, conn, Packet::Beat(every_ms as u32));
        }
    }

    pub(super) fn upload(&mut self, at: usize, fence: Fence, from: [u64; 2]) {
        let Some(conn) = self.link_of(at) else { return };
        let Some(record) = self.boards[at].disk.attempts.get(&fence).cloned() else { return };
        let kept = self.boards[at].kept.get(&fence).cloned().unwrap_or_default();
        let mut frames = Vec::new();
        for stream in Stream::BOTH {
            let rest = kept[stream as usize].get(from[stream as usize] as usize..).unwrap_or_default();
            for (n, bytes) in rest.chunks(16).enumerate() {
                let offset = from[stream as usize] + n as u64 * 16;
                frames.push(Upload::Chunk { fence, stream, offset, bytes: bytes.to_vec() });
            }
        }
        // A piece that never comes: the hub must notice, and ask for it.
        if !self.calm && frames.len() > 1 && self.rng.u8(..) < 20 {
            frames.remove(0);
        }
        if let Some(report) = record.report {
            frames.push(Upload::Outcome { task: record.task, fence, report });
        }
        for frame in frames {
            let delay = self.delay();
            let twice = !self.calm && self.rng.u8(..) < 8;
            let stalled = self.boards[at].partitioned_until;
            let Some(link) = self.links.get_mut(&conn) else { return };
            let last = link.uploads_at.entry(fence).or_default();
            let arrives = (self.now + delay).max(*last).max(stalled);
            *last = arrives;
            if twice {
                let later = arrives + self.rng.u64(1..20_000);
                self.push(later, conn, Packet::Upload(frame.clone()));
            }
            self.push(arrives, conn, Packet::Upload(frame));
        }
    }
}
