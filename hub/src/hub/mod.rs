//! The engine of the hub: events in, one store transaction for all that waits, effects out after its commit.
//!
//! It is synchronous and reads no clock that decides anything, so the simulation drives exactly this code. What it
//! keeps in memory is rebuilt from the store at start, and again after a commit that failed.

mod attempts;
mod audit;
mod early;
mod keys;
mod load;
mod overlays;
mod recover;
mod requests;
mod session;
mod tails;
mod tasks;
mod telemetry;
mod timers;
mod uploads;
mod views;

use crate::clock::{self, Now};
use crate::core::health::Pulse;
use crate::core::node::{Boots, Node};
use crate::core::schedule::Schedule;
use crate::core::telemetry::Board;
use crate::core::timer::Timers;
use crate::core::timing::Timing;
use crate::event::{ApiRefusal, ConnId, Effect, Event, EventRecord, Figures, Traffic};
use crate::store::{StoreError, Write, Writer};
use dunlin_wire::message::{Numbered, ToAgent};
use dunlin_wire::{ClaimId, CloseCode, Fence, FleetId, Key, NodeName, Tag, TaskId};
use ring::signature::Ed25519KeyPair;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use tails::Tails;

/// What the engine is told once.
pub struct Setup {
    /// The numbers.
    pub timing: Timing,
    /// Queued tasks above which new ones are refused.
    pub queue_max: u64,
    /// Tasks kept in each terminal state; the oldest beyond are forgotten with their output.
    pub keep_tasks: u64,
    /// Addresses for tickets, `host:port`.
    pub addrs: Vec<String>,
    /// The hub's identity, to sign tickets.
    pub key: Arc<Ed25519KeyPair>,
    /// Seed of jitter and ids.
    pub seed: u64,
}

/// An attempt whose end is unknown.
#[derive(Debug, Clone)]
struct Held {
    task: TaskId,
    node: NodeName,
    accepted: bool,
}

/// A connection of a node that said Hello.
#[derive(Debug)]
struct Session {
    conn: ConnId,
    heard: u64,
    claims: BTreeSet<ClaimId>,
    // What it held from before was said: that is true once, at the beginning.
    settled: bool,
    // It said that it goes: what it still delivers is taken, but it is not there any more.
    leaving: bool,
    // The key set it has in force, when it trusts signatures.
    keys: Option<u64>,
    // The overlay it has in force, once it said so.
    overlay: Option<u64>,
}

/// An enrolled node and what is known of it now.
#[derive(Debug)]
struct Member {
    node: Node,
    tags: Arc<[Tag]>,
    pulse: Pulse,
    session: Option<Session>,
    // A newer connection whose handshake is not over: it may take grants, and nothing else follows from it.
    early: Option<Session>,
    boots: Boots,
    held: BTreeSet<Fence>,
    unresponsive: bool,
    board: Board,
    // The heartbeat that it last announced, in milliseconds: its own, when it found that its network allows it.
    every_ms: u64,
    // What its connections carried that are over.
    traffic: Traffic,
    last_outcome: Option<String>,
}

impl Session {
    fn new(conn: ConnId, heard: u64) -> Self {
        Self {
            conn,
            heard,
            claims: BTreeSet::new(),
            settled: false,
            leaving: false,
            keys: None,
            overlay: None,
        }
    }
}

impl Member {
    /// Time between its heartbeats, in milliseconds: its profile's, or a longer one that it announced.
    fn heartbeat_ms(&self, timing: &Timing) -> u64 {
        timing.heartbeat_ms(self.node.spec.profile).max(self.every_ms)
    }

    /// When its silence next changes its health.
    fn silence_over(&self, timing: &Timing) -> Option<u64> {
        self.pulse.poll_timeout(self.heartbeat_ms(timing), timing)
    }
}

/// A connection whose peer proved to hold a key, or did not yet.
#[derive(Debug)]
struct Conn {
    key: Key,
    node: Option<NodeName>,
    early: bool,
    // Early frames, for when it is confirmed.
    said: Vec<Numbered>,
}

/// The engine.
pub struct Hub {
    setup: Setup,
    fleet: FleetId,
    rng: fastrand::Rng,
    next_seq: u64,
    next_fence: Fence,
    last_order_ms: u64,
    halted: bool,
    // Boxed, as most of a tree's leaves are half empty.
    members: BTreeMap<NodeName, Box<Member>>,
    // Who a key is: asked at each connection's beginning and end. One that was replaced since names a member with another.
    keys: BTreeMap<Key, NodeName>,
    conns: BTreeMap<ConnId, Conn>,
    attempts: BTreeMap<Fence, Held>,
    schedule: Schedule,
    timers: Timers,
    figures: Figures,
    tails: Tails,
}

/// One batch of events: its transaction and what is said once that is committed.
struct Turn<'s> {
    write: Write<'s>,
    now: Now,
    granted_after_ms: Vec<u64>,
    effects: Vec<Effect>,
    events: Vec<(u64, EventRecord)>,
    room: Option<bool>,
}

impl Turn<'_> {
    fn send(&mut self, conn: ConnId, message: ToAgent) {
        self.effects.push(Effect::Send(conn, message));
    }

    fn event(&mut self, kind: &str, fill: impl FnOnce(&mut EventRecord)) -> Result<(), StoreError> {
        let mut record = EventRecord {
            at_ms: self.now.wall,
            kind: kind.to_owned(),
            task: None,
            node: None,
            attempt: None,
            detail: None,
        };
        fill(&mut record);
        self.events.push((self.write.append_event(&record)?, record));
        Ok(())
    }

    fn node_event(&mut self, kind: &str, node: &NodeName, detail: Option<&str>) -> Result<(), StoreError> {
        self.event(kind, |e| {
            e.node = Some(node.clone());
            e.detail = detail.map(str::to_owned);
        })
    }
}

impl Hub {
    /// Handles everything that waits: one transaction, one commit, then the effects.
    pub fn step(&mut self, writer: &mut Writer<'_>, events: Vec<Event>, now: Now) -> Vec<Effect> {
        let mut events = events.into_iter();
        let mut effects = Vec::new();
        match self.turn(writer, &mut events, now, &mut effects) {
            Ok(()) => effects,
            Err(error) => self.fail(writer, error, effects, events, now),
        }
    }

    /// Has the store's engine commit what only its log holds, when there is time for it or somebody waits to read.
    pub fn catch_up(&mut self, writer: &mut Writer<'_>, now: Now) -> Vec<Effect> {
        match writer.catch_up() {
            Ok(()) => Vec::new(),
            Err(error) => self.fail(writer, error, Vec::new(), std::iter::empty(), now),
        }
    }

    /// When [`Hub::step`] must be called although no event came, in monotonic milliseconds.
    pub fn poll_timeout(&self) -> Option<u64> {
        self.timers.poll_timeout()
    }

    fn turn(
        &mut self,
        writer: &mut Writer<'_>,
        events: &mut impl Iterator<Item = Event>,
        now: Now,
        effects: &mut Vec<Effect>,
    ) -> Result<(), StoreError> {
        let began_us = clock::micros();
        let mut turn = Turn {
            write: writer.write(),
            now,
            granted_after_ms: Vec::new(),
            effects: std::mem::take(effects),
            events: Vec::new(),
            room: None,
        };
        let done = self.fill(&mut turn, events);
        let Turn { write, granted_after_ms, effects: made, events, .. } = turn;
        *effects = made;
        done?;
        crate::fault::point("before_commit");
        let commit_us = clock::micros();
        let wrote = writer.commit(write)?;
        crate::fault::point("after_commit");
        let end_us = clock::micros();
        if wrote {
            self.figures.commit.observe(end_us - commit_us);
            self.prune_later(now);
        }
        for waited_ms in granted_after_ms {
            self.figures.claim_latency.observe(waited_ms * 1000 + (end_us - began_us));
        }
        effects.extend((!events.is_empty()).then_some(Effect::Events(events)));
        Ok(())
    }

    fn fill(
        &mut self,
        turn: &mut Turn<'_>,
        events: &mut impl Iterator<Item = Event>,
    ) -> Result<(), StoreError> {
        for event in events {
            self.handle(event, turn)?;
        }
        while let Some(timer) = self.timers.pop(turn.now.mono) {
            self.handle_timer(timer, turn)?;
        }
        self.grant_all(turn)
    }

    fn handle(&mut self, event: Event, turn: &mut Turn<'_>) -> Result<(), StoreError> {
        match event {
            Event::Opened { conn, key, early } => {
                self.handle_opened(conn, key, early, turn);
                Ok(())
            }
            Event::Confirmed { conn } => self.handle_confirmed(conn, turn),
            Event::Control { conn, frame } => self.handle_control(conn, frame, turn),
            Event::Beat { conn, every_ms, sample } => self.handle_beat(conn, every_ms, sample, turn),
            Event::Upload { conn, frame } => self.handle_upload(conn, frame, turn),
            Event::Follow { fence, stream, by } => {
                self.follow(fence, stream, by, turn);
                Ok(())
            }
            Event::Taken { fence, stream } => {
                self.top_up(fence, stream, turn);
                Ok(())
            }
            // The loop looks for who waits after each step.
            Event::Read => Ok(()),
            Event::Closed { conn, key, by, traffic } => {
                self.figures.traffic += traffic;
                let name = self.member_of(key).map(|member| member.node.spec.name.clone());
                if let Some(member) = name.and_then(|name| self.members.get_mut(&name)) {
                    member.traffic += traffic;
                }
                if let Some(code) = by {
                    *self.figures.closed.entry(code).or_default() += 1;
                }
                self.handle_closed(conn);
                Ok(())
            }
            Event::Api { actor, request, reply } => {
                // Pushed first: should the store fail underneath, the reply is there to be told so.
                turn.effects.push(Effect::Reply(reply, Err(ApiRefusal::StoreFailed)));
                let at = turn.effects.len() - 1;
                let answer = self.handle_request(&actor, request, turn)?;
                if let Some(Effect::Reply(_, slot)) = turn.effects.get_mut(at) {
                    *slot = answer;
                }
                Ok(())
            }
        }
    }

    fn member_of(&self, key: Key) -> Option<&Member> {
        let member = self.members.get(self.keys.get(&key)?)?;
        (member.node.key == key).then_some(member)
    }

    /// Nothing of the batch happened. Whoever asked is told so; what is in memory may be ahead of the store, so it is
    /// built again, and agents connect anew.
    fn fail(
        &mut self,
        writer: &mut Writer<'_>,
        error: StoreError,
        effects: Vec<Effect>,
        rest: impl Iterator<Item = Event>,
        now: Now,
    ) -> Vec<Effect> {
        tracing::error!(%error, "the store did not commit; everything since the last commit is dropped");
        let refusal = if error.is_full() { ApiRefusal::StorageFull } else { ApiRefusal::StoreFailed };
        let waiting = rest.filter_map(|event| match event {
            Event::Api { reply, .. } => Some(reply),
            _ => None,
        });
        let replies = effects.into_iter().filter_map(|effect| match effect {
            Effect::Reply(reply, _) => Some(reply),
            _ => None,
        });
        let mut out: Vec<Effect> =
            replies.chain(waiting).map(|reply| Effect::Reply(reply, Err(refusal.clone()))).collect();
        let conns = std::mem::take(&mut self.conns);
        out.extend(conns.into_keys().map(|conn| Effect::Close(conn, CloseCode::StoreFailed)));
        if let Err(error) = self.rebuild(writer, now) {
            // The store cannot even be read: the process must not go on with a memory that nothing backs.
            tracing::error!(%error, "the store cannot be read back; stopping");
            std::process::exit(74);
        }
        out
    }

    fn close(&mut self, conn: ConnId, code: CloseCode, turn: &mut Turn<'_>) {
        *self.figures.closed.entry(code).or_default() += 1;
        turn.effects.push(Effect::Close(conn, code));
        self.handle_closed(conn);
    }
}
