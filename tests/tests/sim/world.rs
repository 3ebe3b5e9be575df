//! The world: time, the network, and what befalls hub and boards.

use crate::board::Board;
use crate::hub::{Running, enrol};
use crate::model::Model;
use dunlin_agent::event::{Effect as AgentEffect, Event as AgentEvent};
use dunlin_agent::exec::message::ToExec;
use dunlin_hub::clock::Now;
use dunlin_hub::core::task::TaskSpec;
use dunlin_hub::core::timing::Timing;
use dunlin_hub::event::{Answer, ApiRefusal, ConnId, Effect, Event, Request};
use dunlin_hub::store::Store;
use dunlin_wire::job::{Delivery, Job, OnDisconnect, Shell};
use dunlin_wire::message::{AckVerdict, Numbered, ToAgent, Upload, Verdict};
use dunlin_wire::{Fence, TaskId};
use std::collections::BTreeMap;
use tokio::sync::oneshot;

const BOARDS: usize = 4;

pub(super) enum Packet {
    Control(Numbered),
    Upload(Upload),
    Beat(u32),
    /// The hub asks whether the board lives.
    Ask,
    /// What was sent is acknowledged.
    Acknowledged,
    ToBoard(ToAgent),
    HubSeesEnd,
    BoardSeesEnd,
    /// The hub's first flight reaches the board: its handshake is over there.
    BoardConfirms,
    /// The board's answer to it reaches the hub.
    HubConfirms,
}

/// A connection: what each direction delivered last, for order is kept within a stream.
pub(super) struct Link {
    pub(super) board: usize,
    pub(super) at_hub: bool,
    pub(super) at_board: bool,
    pub(super) control_at: u64,
    pub(super) answers_at: u64,
    pub(super) uploads_at: BTreeMap<Fence, u64>,
    /// Whether the hub believes nothing of it yet, whether the board's first words are still early data, and whether
    /// the hub refuses those.
    pub(super) early: bool,
    pub(super) first: bool,
    pub(super) refused: bool,
}

/// What somebody recorded of a board's early data.
pub(super) struct Flight {
    pub(super) board: usize,
    pub(super) frames: Vec<Numbered>,
}

pub(super) enum Asked {
    Submit(TaskId, u32),
    Cancel(TaskId),
}

pub(super) type Answered = oneshot::Receiver<Result<Answer, ApiRefusal>>;

pub struct World<'s> {
    pub(super) rng: fastrand::Rng,
    pub(super) now: u64,
    pub(super) wall: u64,
    pub(super) store: &'s Store,
    pub(super) hub: Option<Running<'s>>,
    pub(super) boards: Vec<Board>,
    pub(super) links: BTreeMap<ConnId, Link>,
    pub(super) packets: BTreeMap<(u64, u64), (ConnId, Packet)>,
    pub(super) next: u64,
    pub(super) asked: Vec<(Asked, Answered)>,
    pub(super) flights: Vec<Flight>,
    pub(super) model: Model,
    pub(super) act_at: u64,
    pub(super) calm: bool,
    pub(super) crashes: u64,
    pub(super) same: u64,
}

impl<'s> World<'s> {
    pub fn new(store: &'s Store, seed: u64) -> Self {
        let start = Now { mono: 1_000_000, wall: 1_800_000_000_000 };
        let mut hub = Running::open(store, Timing::default(), start);
        let mut boards = Vec::new();
        for at in 0..BOARDS {
            let key = enrol(&mut hub, at, 2, start);
            boards.push(Board::new(at, key, format!("b{at}").parse().unwrap(), hub.hub.fleet()));
        }
        let mut world = Self {
            rng: fastrand::Rng::with_seed(seed),
            now: start.mono,
            wall: start.wall,
            store,
            hub: Some(hub),
            boards,
            links: BTreeMap::new(),
            packets: BTreeMap::new(),
            next: 1,
            asked: Vec::new(),
            flights: Vec::new(),
            model: Model::default(),
            act_at: start.mono,
            calm: false,
            crashes: 0,
            same: 0,
        };
        for at in 0..BOARDS {
            world.start_board(at);
        }
        world
    }

    pub fn figures(&self) -> String {
        let (tasks, started) = (self.model.ids().count(), self.model.started);
        format!(
            "{tasks} tasks, {started} processes, {} crashes, {} s",
            self.crashes,
            (self.now - 1_000_000) / 1000
        )
    }

    fn clock(&self) -> Now {
        Now { mono: self.now, wall: self.wall + self.now }
    }

    /// One thing happens: whatever is next in time.
    pub fn step(&mut self) {
        let packet = self.packets.first_key_value().map(|((at, _), _)| *at);
        let hub = self.hub.as_ref().and_then(|hub| hub.hub.poll_timeout());
        let act = (!self.calm).then_some(self.act_at);
        let boards: Vec<Option<u64>> = (0..BOARDS).map(|at| self.board_due(at)).collect();
        let at = [packet, hub, act].into_iter().chain(boards.iter().copied()).flatten().min();
        let at = at.expect("something is always due").max(self.now);
        self.same = if self.now == at { self.same + 1 } else { 0 };
        assert!(self.same < 5_000, "time stands still at {at}");
        self.now = at;
        let due = |t: Option<u64>| t.is_some_and(|t| t <= at);
        if due(act) {
            self.act();
        } else if let Some(board) = boards.iter().position(|t| due(*t)) {
            self.board_step(board);
        } else if due(packet) {
            if let Some((_, (conn, packet))) = self.packets.pop_first() {
                self.deliver(conn, packet);
            }
        } else {
            self.hub_step(vec![]);
        }
    }

    /// No more faults: everything must end within a bounded time.
    pub fn heal(&mut self) {
        self.calm = true;
        for board in &mut self.boards {
            board.frozen_until = 0;
            board.partitioned_until = 0;
        }
        for at in 0..BOARDS {
            if self.boards[at].core.is_none() {
                self.start_board(at);
            }
        }
        let end = self.now + 4 * 3_600_000;
        while self.now < end {
            for _ in 0..200 {
                self.step();
            }
            self.catch_up();
            let quiet = self.model.ids().all(|id| {
                let task = self.store.read(|view| view.task(id)).unwrap();
                task.is_some_and(|t| t.state.is_terminal() && t.live().is_none())
            });
            if quiet && self.boards.iter().all(|b| b.disk.attempts.is_empty()) {
                break;
            }
        }
        self.catch_up();
        self.model.check_end(self.store);
        for board in &self.boards {
            assert!(
                board.disk.attempts.is_empty(),
                "{} never got rid of {:?}",
                board.name,
                board.disk.attempts
            );
        }
    }

    /// Something that nobody asked for, or that an operator asks for.
    fn act(&mut self) {
        self.act_at = self.now + self.rng.u64(1..3_000);
        let at = self.rng.usize(..BOARDS);
        match self.rng.u8(0..100) {
            0..=54 => self.submit(),
            55..=61 => self.cancel(),
            62..=68 => {
                let for_ms =
                    if self.rng.bool() { self.rng.u64(1_000..20_000) } else { self.rng.u64(20_000..150_000) };
                self.boards[at].partitioned_until = self.now + for_ms;
            }
            69..=74 if self.boards[at].core.is_some() => {
                let for_ms = self.rng.u64(500..90_000);
                self.boards[at].frozen_until = self.now + for_ms;
            }
            75..=79 => {
                let power = self.rng.bool();
                self.crash_board(at, power);
            }
            80..=82 => self.restart_hub(),
            83..=86 => {
                if let Some(conn) = self.link_of(at) {
                    self.cut(conn);
                }
            }
            // Somebody sets the hub's clock.
            90..=96 => self.replay(),
            87..=89 => self.wall = (self.wall + 3_600_000).wrapping_sub(self.rng.u64(0..7_200_000)),
            _ => {}
        }
    }

    pub(super) fn submit(&mut self) {
        let again = self.rng.u8(..) < 12;
        let known = self.model.ids().count();
        let n = if again && known > 0 { self.rng.u64(..self.next) } else { self.next };
        self.next += 1;
        let id: TaskId = format!("t{n}").parse().unwrap();
        // The body follows from the id, so that the same id always has the same one.
        let mut of = fastrand::Rng::with_seed(n);
        let long = (of.u8(..) < 40).then(|| "long".to_owned());
        let argv = ["/bin/job".to_owned()].into_iter().chain(long).collect();
        let spec = TaskSpec {
            job: Job::Shell(Shell { argv, cwd: None, env: vec![] }),
            target: (of.u8(..) < 30).then(|| format!("b{}", of.usize(..BOARDS)).parse().unwrap()),
            tags: vec![],
            priority: of.i16(-10..=100),
            attempts_max: of.u32(1..=4),
            timeout_ms: None,
            on_disconnect: if of.u8(..) < 50 { OnDisconnect::CarryOn } else { OnDisconnect::Fence },
            delivery: if of.u8(..) < 50 { Delivery::AtMostOnce } else { Delivery::AtLeastOnce },
            ttl_ms: None,
            complete_by: None,
            offline_ms: Some(60_000),
            requires: vec![],
        };
        let asked = Asked::Submit(id.clone(), spec.attempts_max);
        self.ask_hub(asked, Request::Submit { id: Some(id), spec: Box::new(spec) });
    }

    pub(super) fn cancel(&mut self) {
        let ids: Vec<TaskId> = self.model.ids().cloned().collect();
        if let Some(id) = self.rng.choice(ids.iter().rev().take(20)).cloned() {
            self.ask_hub(Asked::Cancel(id.clone()), Request::Cancel(id));
        }
    }

    fn ask_hub(&mut self, asked: Asked, request: Request) {
        let (reply, answer) = oneshot::channel();
        self.asked.push((asked, answer));
        self.hub_step(vec![Event::Api { actor: "sim".into(), request, reply }]);
    }

    pub(super) fn hub_step(&mut self, events: Vec<Event>) {
        let fate = if self.calm { 255 } else { self.rng.u16(..) };
        if fate < 40 {
            // Dies before the commit: the events were never handled.
            return self.restart_hub();
        }
        let now = self.clock();
        let Some(hub) = self.hub.as_mut() else { return };
        let effects = hub.step(events, now);
        if self.rng.u8(..) < 60 {
            hub.catch_up();
        }
        if (40..80).contains(&fate) {
            // Dies after the commit: nobody hears of it.
            return self.restart_hub();
        }
        for effect in effects {
            match effect {
                Effect::Send(conn, message) => self.say_to_board(conn, message),
                Effect::Ask(conn) => self.ask_board(conn),
                Effect::Close(conn, _) => {
                    if let Some(link) = self.links.get_mut(&conn) {
                        link.at_hub = false;
                    }
                    let at = self.now + self.delay();
                    self.push(at, conn, Packet::BoardSeesEnd);
                }
                Effect::Reply(reply, answer) => drop(reply.send(answer)),
                Effect::Events(_) => {}
            }
        }
        for (asked, mut answer) in std::mem::take(&mut self.asked) {
            match (asked, answer.try_recv()) {
                (Asked::Submit(id, max), Ok(Ok(_))) => self.model.accepted(id, max),
                (Asked::Cancel(id), Ok(Ok(_))) => self.model.cancelled(id),
                _ => {}
            }
        }
    }

    pub(super) fn catch_up(&mut self) {
        if let Some(hub) = &mut self.hub {
            hub.catch_up();
        }
    }

    fn restart_hub(&mut self) {
        self.crashes += 1;
        self.hub = None;
        self.asked.clear();
        self.packets.retain(|_, (_, packet)| matches!(packet, Packet::BoardSeesEnd | Packet::ToBoard(_)));
        self.now += self.rng.u64(0..5_000);
        for conn in self.links.keys().copied().collect::<Vec<_>>() {
            let at = self.now + self.delay();
            self.push(at, conn, Packet::BoardSeesEnd);
            if let Some(link) = self.links.get_mut(&conn) {
                link.at_hub = false;
            }
        }
        self.hub = Some(Running::open(self.store, Timing::default(), self.clock()));
        self.model.check_store(self.store);
    }

    fn board_due(&self, at: usize) -> Option<u64> {
        let board = &self.boards[at];
        let end = board.next_end();
        let Some(core) = &board.core else { return end.into_iter().chain([board.connect_at]).min() };
        let event = board.inbox.iter().map(|(at, _)| *at).min();
        let link = self.link_of(at).is_none().then(|| board.connect_at.max(board.partitioned_until));
        let thawed = |t: u64| t.max(board.frozen_until);
        let awake = [event, core.poll_timeout(), link].into_iter().flatten().min().map(thawed);
        awake.into_iter().chain(end).min()
    }

    fn board_step(&mut self, at: usize) {
        let now = self.now;
        self.boards[at].end_processes(now, &mut self.rng, &mut self.model);
        if now < self.boards[at].frozen_until {
            return;
        }
        let Some(core) = self.boards[at].core.as_mut() else {
            if self.boards[at].connect_at <= now {
                self.start_board(at);
            }
            return;
        };
        let mut out = Vec::new();
        core.handle_timeout(now, &mut out);
        let first = self.boards[at].inbox.iter().position(|(t, _)| *t <= now);
        if let Some(first) = first {
            let (_, event) = self.boards[at].inbox.remove(first);
            let settled = settled(&event);
            let known = |f: &Fence| {
                self.boards[at].disk.attempts.get(f).filter(|r| r.report.is_some()).map(|r| r.task.clone())
            };
            let settled: Vec<(TaskId, Fence)> =
                settled.iter().filter_map(|f| Some((known(f)?, *f))).collect();
            settled.into_iter().for_each(|(id, fence)| self.model.settled(id, fence));
            if let Some(core) = self.boards[at].core.as_mut() {
                core.handle(event, now, &mut out);
            }
        }
        if self.release(at, out) && self.link_of(at).is_none() {
            let board = &self.boards[at];
            if now >= board.connect_at.max(board.partitioned_until) {
                self.connect(at);
            }
        }
    }

    pub(super) fn start_board(&mut self, at: usize) {
        let now = self.now;
        self.boards[at].connect_at = now + self.rng.u64(0..1_000);
        let out = self.boards[at].start(now);
        self.release(at, out);
    }

    pub(super) fn crash_board(&mut self, at: usize, power: bool) {
        self.crashes += 1;
        if let Some(conn) = self.link_of(at) {
            self.cut(conn);
        }
        self.boards[at].crash(power, &mut self.model);
        self.boards[at].connect_at = self.now + self.rng.u64(500..60_000);
    }

    /// Commits, then does; `false` when the board died between.
    pub(super) fn release(&mut self, at: usize, out: Vec<AgentEffect>) -> bool {
        let fate = if self.calm || out.is_empty() { 999 } else { self.rng.u16(..) };
        if fate < 40 {
            self.crash_board(at, fate % 2 == 0);
            return false;
        }
        for effect in &out {
            if let AgentEffect::Store(write) = effect {
                self.boards[at].commit(write);
            }
        }
        if (40..80).contains(&fate) {
            self.crash_board(at, fate % 2 == 0);
            return false;
        }
        for effect in out {
            match effect {
                AgentEffect::Exec(message) => {
                    let now = self.now;
                    if let ToExec::Start { fence, .. } = &message {
                        let known = self.boards[at].disk.attempts.contains_key(fence);
                        assert!(known, "{fence} is started before it is on the board's disk");
                    }
                    self.boards[at].exec(message, now, &mut self.rng, &mut self.model);
                }
                AgentEffect::Send(frame) => self.say_to_hub(at, frame),
                AgentEffect::Beat { every_ms, .. } => self.beat(at, every_ms),
                AgentEffect::Upload { fence, have } => self.upload(at, fence, have.unwrap_or([0, 0])),
                AgentEffect::Reconnect => {
                    if let Some(conn) = self.link_of(at) {
                        self.cut(conn);
                    }
                }
                AgentEffect::Live { .. } | AgentEffect::Tail { .. } | AgentEffect::Credit { .. } => {}
                AgentEffect::Store(_) | AgentEffect::Exit => {}
            }
        }
        true
    }
}

/// The fences whose outcome counts, as this message tells the board.
fn settled(event: &AgentEvent) -> Vec<Fence> {
    let counts = |v: &AckVerdict| matches!(v, AckVerdict::Applied | AckVerdict::Duplicate);
    match event {
        AgentEvent::FromHub(ToAgent::Ack { fence, verdict }) if counts(verdict) => vec![*fence],
        AgentEvent::FromHub(ToAgent::Verdicts { verdicts, .. }) => {
            let acks =
                verdicts.iter().filter(|(_, v)| matches!(v, Verdict::Ack { verdict } if counts(verdict)));
            acks.map(|(fence, _)| *fence).collect()
        }
        _ => vec![],
    }
}
