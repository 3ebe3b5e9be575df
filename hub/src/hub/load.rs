//! Builds what is in memory from the store: at start, and after a commit that failed.

use super::telemetry::HISTORY_MS;
use super::{Hub, Member, Setup};
use crate::clock::Now;
use crate::core::health::Pulse;
use crate::core::history::History;
use crate::core::node::{Boots, Node};
use crate::core::schedule::Schedule;
use crate::core::task::State;
use crate::core::telemetry::Board;
use crate::core::timer::{Timer, Timers};
use crate::event::{Figures, Traffic};
use crate::store::{StoreError, Writer};
use dunlin_wire::{Fence, FleetId, Tag};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// How often history is pruned, in milliseconds.
pub(super) const PRUNE_MS: u64 = 60_000;

impl Hub {
    /// An engine over what `writer` writes. A new store gets its fleet id here.
    ///
    /// # Errors
    /// The store's; a record that does not read back among them.
    pub fn open(writer: &mut Writer<'_>, setup: Setup, now: Now) -> Result<Self, StoreError> {
        let mut rng = fastrand::Rng::with_seed(setup.seed);
        let mut write = writer.write();
        let fleet = match write.view().meta::<FleetId>("fleet")? {
            Some(fleet) => fleet,
            None => {
                let mut id = [0; 16];
                rng.fill(&mut id);
                write.put_meta("fleet", &FleetId(id))?;
                FleetId(id)
            }
        };
        writer.commit(write)?;
        let mut hub = Self {
            setup,
            fleet,
            rng,
            next_seq: 0,
            next_fence: Fence::first(0),
            last_order_ms: 0,
            halted: false,
            members: BTreeMap::new(),
            keys: BTreeMap::new(),
            conns: BTreeMap::new(),
            attempts: BTreeMap::new(),
            schedule: Schedule::default(),
            timers: Timers::default(),
            figures: Figures::default(),
            tails: super::tails::Tails::default(),
        };
        hub.load(writer, now)?;
        Ok(hub)
    }

    /// The fleet of this store.
    pub fn fleet(&self) -> FleetId {
        self.fleet
    }

    /// Goes back to what was acknowledged.
    pub(super) fn rebuild(&mut self, writer: &mut Writer<'_>, now: Now) -> Result<(), StoreError> {
        writer.recover()?;
        self.load(writer, now)
    }

    /// Forgets everything in memory and reads the store. Live leases start again at their granted length, which is
    /// later than what any agent counts; nodes are `unheard`.
    fn load(&mut self, writer: &mut Writer<'_>, now: Now) -> Result<(), StoreError> {
        self.conns.clear();
        self.attempts.clear();
        self.members.clear();
        self.keys.clear();
        self.schedule = Schedule::default();
        self.timers = Timers::default();
        self.figures.tasks.clear();
        self.figures.queued.clear();
        let write = writer.write();
        let view = write.view();
        self.next_seq = view.meta("next_seq")?.unwrap_or(1);
        self.next_fence = view.meta("next_fence")?.unwrap_or(Fence::first(0));
        self.last_order_ms = view.meta("last_order_ms")?.unwrap_or(0);
        self.halted = view.meta("halted")?.unwrap_or(false);
        for node in view.nodes()? {
            let name = node.spec.name.clone();
            self.enroll(node, now);
            if let Some(member) = self.members.get_mut(&name) {
                member.board.history = History::new(&view.series(&name)?);
            }
        }
        for state in State::ALL {
            self.figures.tasks.insert(state, view.count_in(state)?);
        }
        let live = view.live()?;
        for task in &live {
            if let Some(attempt) = task.live() {
                self.hold(task, attempt, now.mono);
            }
            if let Some(at) = task.spec.complete_by.filter(|_| !task.state.is_terminal()) {
                self.timers.set(Timer::Overdue(task.id.clone()), now.mono + at.saturating_sub(now.wall));
            }
        }
        let mut queued = Vec::new();
        view.each_task_in(State::Queued, |task| queued.push(task))?;
        for task in &queued {
            *self.figures.queued.entry(task.spec.priority).or_default() += 1;
            self.queue(task, now);
        }
        writer.commit(write)?;
        self.prune_later(now);
        self.timers.set(Timer::History, now.mono + HISTORY_MS);
        Ok(())
    }

    /// Takes a node into memory.
    pub(super) fn enroll(&mut self, node: Node, now: Now) {
        let member = Member {
            tags: all_tags(&node),
            pulse: Pulse::unheard(now.mono),
            session: None,
            early: None,
            boots: Boots::default(),
            held: BTreeSet::new(),
            unresponsive: false,
            board: Board::default(),
            every_ms: 0,
            traffic: Traffic::default(),
            last_outcome: None,
            node,
        };
        let name = member.node.spec.name.clone();
        if let Some(at) = member.silence_over(&self.setup.timing) {
            self.timers.set(Timer::Health(name.clone()), at);
        }
        self.keys.insert(member.node.key, name.clone());
        self.members.insert(name, Box::new(member));
    }
}

/// What the scheduler matches on: the operator's tags and the node's own capabilities.
pub(super) fn all_tags(node: &Node) -> Arc<[Tag]> {
    node.spec.tags.iter().chain(&node.capabilities).cloned().collect()
}
