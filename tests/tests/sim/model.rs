//! What must be true, from the outside: what was asked and answered, which processes ran where, what was acknowledged.
//! It takes no deadline, state or decision from the code that it watches.

use dunlin_hub::core::task::{End, State};
use dunlin_hub::store::Store;
use dunlin_wire::job::Outcome;
use dunlin_wire::{Fence, TaskId};
use std::collections::{BTreeMap, BTreeSet};

#[derive(Default)]
pub struct Model {
    /// Submissions that were answered, with the attempts that they may have.
    accepted: BTreeMap<TaskId, u32>,
    /// Tasks that an operator cancelled, and was told so.
    cancelled: BTreeSet<TaskId>,
    /// Processes that live now: task, board, fence.
    live: BTreeSet<(TaskId, usize, Fence)>,
    /// How processes ended.
    ended: BTreeMap<Fence, Outcome>,
    /// Grants by task.
    grants: BTreeMap<TaskId, BTreeSet<Fence>>,
    seen: BTreeSet<Fence>,
    /// Outcomes that a board was told to forget because they count.
    settled: BTreeMap<Fence, TaskId>,
    pub started: u64,
}

impl Model {
    pub fn accepted(&mut self, id: TaskId, attempts_max: u32) {
        self.accepted.insert(id, attempts_max);
    }

    pub fn ids(&self) -> impl Iterator<Item = &TaskId> {
        self.accepted.keys()
    }

    pub fn cancelled(&mut self, id: TaskId) {
        self.cancelled.insert(id);
    }

    /// The hub gives the task away: whatever ran of it must be over. A grant to a connection that is not confirmed
    /// does not count, whether it was taken or not: the one exception.
    pub fn granted(&mut self, id: &TaskId, fence: Fence, early: bool) {
        if self.seen.insert(fence) {
            let live: Vec<_> = self.live.iter().filter(|(task, _, _)| task == id).collect();
            assert!(live.is_empty(), "{id} is granted as {fence} while it runs: {live:?}");
        }
        if early {
            return;
        }
        let grants = self.grants.entry(id.clone()).or_default();
        grants.insert(fence);
        let grants = grants.len() as u32;
        let max = self.accepted.get(id).copied().unwrap_or(u32::MAX);
        assert!(grants <= max, "{id} was granted {grants} times, {max} are allowed");
    }

    pub fn started(&mut self, id: &TaskId, board: usize, fence: Fence) {
        let others: Vec<_> = self.live.iter().filter(|(task, _, _)| task == id).collect();
        assert!(others.is_empty(), "{id} starts as {fence} on {board} while it runs: {others:?}");
        assert!(!self.ended.contains_key(&fence), "{id}: fence {fence} is started a second time");
        self.live.insert((id.clone(), board, fence));
        self.started += 1;
    }

    pub fn ended(&mut self, id: &TaskId, board: usize, fence: Fence, outcome: Outcome) {
        self.live.remove(&(id.clone(), board, fence));
        self.ended.insert(fence, outcome);
    }

    /// A board forgets an outcome because the hub said that it is applied.
    pub fn settled(&mut self, id: TaskId, fence: Fence) {
        self.settled.insert(fence, id);
    }

    /// What must be on the hub's disk whatever happened: after each of its restarts, and in the end.
    pub fn check_store(&self, store: &Store) {
        let listed: u64 = State::ALL.into_iter().map(|s| store.read(|v| v.count_in(s)).unwrap()).sum();
        let mut there = 0;
        for id in self.accepted.keys() {
            let task = store.read(|view| view.task(id)).unwrap();
            let task = task.unwrap_or_else(|| panic!("{id} was acknowledged and is gone"));
            there += 1;
            assert!(
                !self.cancelled.contains(id) || task.state == State::Cancelled,
                "{id} was cancelled, is {:?}",
                task.state
            );
        }
        assert!(listed >= there, "{there} tasks are stored, {listed} are in a list of their state");
        for (fence, id) in &self.settled {
            let task = store.read(|view| view.task(id)).unwrap().unwrap();
            let attempt = task.attempts.iter().find(|a| a.fence == *fence);
            let kept = attempt.is_some_and(|a| matches!(a.end, Some(End::Reported(_))));
            assert!(kept, "the outcome of {id} as {fence} was acknowledged and is lost");
        }
    }

    /// After everything is quiet: every task ended, in a way that is true.
    pub fn check_end(&self, store: &Store) {
        self.check_store(store);
        assert!(self.live.is_empty(), "still running: {:?}", self.live);
        for id in self.accepted.keys() {
            let task = store.read(|view| view.task(id)).unwrap().unwrap();
            assert!(task.state.is_terminal(), "{id} never ended: {task:?}");
            let oks: Vec<_> = task
                .attempts
                .iter()
                .filter(|a| matches!(&a.end, Some(End::Reported(r)) if r.outcome == Outcome::Ok))
                .collect();
            if task.state == State::Done {
                assert_eq!(oks.len(), 1, "{id} is done by {} attempts", oks.len());
                assert_eq!(
                    self.ended.get(&oks[0].fence),
                    Some(&Outcome::Ok),
                    "{id} is done, but no process of it was"
                );
            }
        }
        let mut done = BTreeMap::<TaskId, u32>::new();
        let mut since = 0;
        loop {
            let events = store.read(|view| view.events_after(since, 1000)).unwrap();
            let Some((last, _)) = events.last() else { break };
            assert_eq!(events[0].0, since + 1, "event ids have a gap");
            since = *last;
            for (_, event) in events {
                if event.kind == "task.done" {
                    *done.entry(event.task.unwrap()).or_default() += 1;
                }
            }
        }
        assert!(done.values().all(|n| *n == 1), "applied more than once: {done:?}");
    }
}
