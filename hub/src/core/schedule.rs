//! Which queued task goes to which node. Event-driven: no sweep decides a claim.
//!
//! Queued tasks are grouped by what they need, so that a change looks at groups, not at tasks. What holds between two
//! calls of [`Schedule::next_grant`] that returned `None`: no queued task fits a seated node. So only tasks and nodes that
//! changed since then are looked at.

use super::task::Task;
use super::telemetry::Current;
use dunlin_wire::job::Delivery;
use dunlin_wire::require::Require;
use dunlin_wire::{NodeName, Tag, TaskId};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// What a task needs of a node. Untargeted ones sort first.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Need {
    /// Only this node.
    pub target: Option<NodeName>,
    /// All of these tags.
    pub tags: Vec<Tag>,
    /// None of these nodes: they refused it.
    pub denied_by: Vec<NodeName>,
    /// A node whose handshake is over: it may be granted at most once, so not to somebody who repeats a node's words.
    pub confirmed: bool,
    /// What the node's board must say of itself.
    pub requires: Vec<Require>,
}

impl Need {
    /// What `task` needs now.
    pub fn of(task: &Task) -> Self {
        let mut denied_by: Vec<NodeName> = task.denied_by().cloned().collect();
        denied_by.sort();
        denied_by.dedup();
        let confirmed = task.spec.delivery == Delivery::AtMostOnce;
        Self {
            target: task.spec.target.clone(),
            tags: task.spec.tags.clone(),
            denied_by,
            confirmed,
            requires: task.spec.requires.clone(),
        }
    }

    /// Whether a node of that name with those tags has it.
    pub fn fits(&self, name: &NodeName, held: &[Tag]) -> bool {
        self.target.as_ref().is_none_or(|t| t == name)
            && !self.denied_by.contains(name)
            && self.tags.iter().all(|tag| held.iter().any(|h| tag.matches(h)))
    }

    /// The first requirement that a board does not meet, with what it says instead.
    pub fn unmet(&self, board: Option<&Current>) -> Option<String> {
        let facts = board.map(Current::facts);
        self.requires.iter().find_map(|require| require.check(facts).err())
    }
}

/// Rank in the queue: lower goes first.
pub type Rank = (i64, u64);

/// Where a task stands in the queue.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    rank: Rank,
    need: Need,
}

impl Place {
    /// The place of `task`. A point of priority is worth `ageing_ms` of waiting, so a task waits behind later ones of
    /// higher priority for a bounded time only; among equals the order of submission holds.
    pub fn of(task: &Task, ageing_ms: u64) -> Self {
        let worth = i64::from(task.spec.priority).saturating_mul(ageing_ms as i64);
        Self { rank: ((task.order_ms as i64).saturating_sub(worth), task.seq), need: Need::of(task) }
    }
}

#[derive(Debug, Clone)]
struct Seat {
    load: u32,
    // When it last got a task, in the order of grants: among equals, who waited longest is next.
    turn: u64,
    tags: Arc<[Tag]>,
    confirmed: bool,
    // What its board last said, and until when that is believed, in monotonic milliseconds.
    board: Option<(Current, u64)>,
}

impl Seat {
    fn suits(&self, name: &NodeName, need: &Need, now: u64) -> bool {
        let board = self.board.as_ref().filter(|(_, until)| now <= *until).map(|(board, _)| board);
        (self.confirmed || !need.confirmed) && need.fits(name, &self.tags) && need.unmet(board).is_none()
    }
}

/// The queue and the nodes that can take a task now.
#[derive(Debug, Default)]
pub struct Schedule {
    groups: BTreeMap<Need, BTreeMap<Rank, TaskId>>,
    seats: BTreeMap<NodeName, Seat>,
    order: BTreeSet<(u32, u64, NodeName)>,
    changed_nodes: BTreeSet<(u32, u64, NodeName)>,
    changed_tasks: BTreeSet<Place>,
    // Of nodes that were granted something; as many as there are nodes.
    turns: BTreeMap<NodeName, u64>,
    turn: u64,
}

impl Schedule {
    /// A task may be granted.
    pub fn insert(&mut self, place: Place, id: TaskId) {
        self.groups.entry(place.need.clone()).or_default().insert(place.rank, id);
        self.changed_tasks.insert(place);
    }

    /// A task may not be granted any more. Harmless when it was not there.
    pub fn remove(&mut self, place: &Place) {
        self.changed_tasks.remove(place);
        if let Some(group) = self.groups.get_mut(&place.need) {
            group.remove(&place.rank);
            if group.is_empty() {
                self.groups.remove(&place.need);
            }
        }
    }

    /// A node can take a task now; `load` is what it holds already, `confirmed` whether its handshake is over.
    pub fn seat(&mut self, name: &NodeName, load: u32, tags: Arc<[Tag]>, confirmed: bool) {
        self.unseat(name);
        let turn = self.turns.get(name).copied().unwrap_or(0);
        self.seats.insert(name.clone(), Seat { load, turn, tags, confirmed, board: None });
        self.order.insert((load, turn, name.clone()));
        self.changed_nodes.insert((load, turn, name.clone()));
    }

    /// What a seated node's board last said, and until when that is believed, in monotonic milliseconds. Seating it anew
    /// forgets this.
    pub fn tell(&mut self, name: &NodeName, board: Current, until: u64) {
        if let Some(seat) = self.seats.get_mut(name) {
            seat.board = Some((board, until));
        }
    }

    /// A node can take nothing now. Harmless when it could not.
    pub fn unseat(&mut self, name: &NodeName) {
        if let Some(seat) = self.seats.remove(name) {
            let at = (seat.load, seat.turn, name.clone());
            self.order.remove(&at);
            self.changed_nodes.remove(&at);
        }
    }

    /// The next grant to make. The caller then removes the task and seats the node anew, or unseats it; both must
    /// happen before the next call. `now` is in monotonic milliseconds.
    pub fn next_grant(&mut self, now: u64) -> Option<(TaskId, NodeName)> {
        let (task, name) = self.fit(now)?;
        self.turn += 1;
        self.turns.insert(name.clone(), self.turn);
        Some((task, name))
    }

    fn fit(&mut self, now: u64) -> Option<(TaskId, NodeName)> {
        while let Some(at) = self.changed_nodes.first().cloned() {
            if let Some((place, task)) = self.best_task(&at.2, now) {
                // A task that is new fits every seat alike, so whoever just came back is not before those who wait.
                let is_new = self.changed_tasks.contains(&place);
                let best = is_new.then(|| self.least_loaded(&place.need, now)).flatten();
                return Some((task, best.unwrap_or(at.2)));
            }
            self.changed_nodes.remove(&at);
        }
        while let Some(place) = self.changed_tasks.first().cloned() {
            let id = self.groups.get(&place.need).and_then(|group| group.get(&place.rank)).cloned();
            if let (Some(id), Some(node)) = (id, self.least_loaded(&place.need, now)) {
                return Some((id, node));
            }
            self.changed_tasks.remove(&place);
        }
        None
    }

    fn best_task(&self, name: &NodeName, now: u64) -> Option<(Place, TaskId)> {
        let seat = self.seats.get(name)?;
        let untargeted = self.groups.iter().take_while(|(need, _)| need.target.is_none());
        let first = Need { target: Some(name.clone()), ..Need::default() };
        let targeted = self.groups.range(first..).take_while(|(need, _)| need.target.as_ref() == Some(name));
        untargeted
            .chain(targeted)
            .filter(|(need, _)| seat.suits(name, need, now))
            .filter_map(|(need, group)| Some((need, group.first_key_value()?)))
            .min_by_key(|(_, (rank, _))| **rank)
            .map(|(need, (rank, id))| (Place { rank: *rank, need: need.clone() }, id.clone()))
    }

    fn least_loaded(&self, need: &Need, now: u64) -> Option<NodeName> {
        if let Some(name) = &need.target {
            let seat = self.seats.get(name)?;
            return seat.suits(name, need, now).then(|| name.clone());
        }
        let mut names = self.order.iter().map(|(_, _, name)| name);
        names.find(|name| self.seats.get(*name).is_some_and(|seat| seat.suits(name, need, now))).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dunlin_wire::telemetry::{Figure, Inventory, Slot};

    fn place(rank: i64, seq: u64, tags: &[&str], target: Option<&str>) -> Place {
        let tags = tags.iter().map(|t| t.parse().unwrap()).collect();
        let need = Need { target: target.map(|t| t.parse().unwrap()), tags, ..Need::default() };
        Place { rank: (rank, seq), need }
    }

    /// Runs grants until none is left; each node has `slots` free.
    fn drain(
        schedule: &mut Schedule,
        places: &[(&str, Place)],
        free: &mut BTreeMap<NodeName, (u32, u32)>,
    ) -> Vec<String> {
        let mut granted = Vec::new();
        while let Some((task, node)) = schedule.next_grant(0) {
            let place = places.iter().find(|(id, _)| *id == task.as_str()).unwrap();
            schedule.remove(&place.1);
            let tags = schedule.seats[&node].tags.clone();
            let (load, slots) = free.get_mut(&node).unwrap();
            *load += 1;
            if load < slots {
                schedule.seat(&node, *load, tags, true);
            } else {
                schedule.unseat(&node);
            }
            granted.push(format!("{task}>{node}"));
        }
        granted
    }

    fn check(nodes: &[(&str, u32, &[&str])], tasks: &[(&str, Place)], want: &[&str]) {
        for nodes_first in [true, false] {
            let mut schedule = Schedule::default();
            let mut free = BTreeMap::new();
            let mut seat = |schedule: &mut Schedule| {
                for (name, slots, tags) in nodes {
                    let name: NodeName = name.parse().unwrap();
                    schedule.seat(&name, 0, tags.iter().map(|t| t.parse().unwrap()).collect(), true);
                    free.insert(name, (0, *slots));
                }
            };
            if nodes_first {
                seat(&mut schedule);
            }
            for (id, place) in tasks {
                schedule.insert(place.clone(), id.parse().unwrap());
            }
            if !nodes_first {
                seat(&mut schedule);
            }
            let mut got = drain(&mut schedule, tasks, &mut free);
            got.sort();
            assert_eq!(got, want, "nodes first: {nodes_first}");
        }
    }

    #[test]
    fn lowest_rank_first_and_tags_and_targets_hold() {
        check(&[("a", 1, &[])], &[("t1", place(5, 1, &[], None)), ("t2", place(3, 2, &[], None))], &["t2>a"]);
        check(
            &[("a", 2, &["linux"]), ("b", 2, &["linux", "gpu"])],
            &[("t1", place(0, 1, &["gpu", "linux"], None)), ("t2", place(0, 2, &[], Some("b")))],
            &["t1>b", "t2>b"],
        );
        check(
            &[("a", 1, &["x"])],
            &[("t1", place(0, 1, &["y"], None)), ("t2", place(9, 2, &["x"], None))],
            &["t2>a"],
        );
        check(&[("a", 1, &[])], &[("t1", place(0, 1, &[], Some("b")))], &[]);
    }

    #[test]
    fn the_least_loaded_node_is_taken() {
        let places: Vec<(String, Place)> =
            (0..20).map(|i| (format!("t{i}"), place(i, i as u64, &[], None))).collect();
        let places: Vec<(&str, Place)> = places.iter().map(|(id, p)| (id.as_str(), p.clone())).collect();
        for tasks_first in [true, false] {
            let mut schedule = Schedule::default();
            let mut free = BTreeMap::new();
            if tasks_first {
                places.iter().for_each(|(id, p)| schedule.insert(p.clone(), id.parse().unwrap()));
            }
            for name in ["a", "b", "c", "d"] {
                let name: NodeName = name.parse().unwrap();
                schedule.seat(&name, 0, Arc::from([]), true);
                free.insert(name, (0, 100));
            }
            if !tasks_first {
                places.iter().for_each(|(id, p)| schedule.insert(p.clone(), id.parse().unwrap()));
            }
            drain(&mut schedule, &places, &mut free);
            assert!(free.values().all(|(load, _)| *load == 5), "{free:?}");
        }
    }

    #[test]
    fn jobs_that_end_at_once_go_round() {
        let mut schedule = Schedule::default();
        let names: Vec<NodeName> = ["a", "b", "c", "d"].iter().map(|n| n.parse().unwrap()).collect();
        names.iter().for_each(|name| schedule.seat(name, 0, Arc::from([]), true));
        let mut jobs = BTreeMap::<NodeName, u32>::new();
        for at in 0..20 {
            let place = place(at, at as u64, &[], None);
            schedule.insert(place.clone(), format!("t{at}").parse().unwrap());
            let (_, node) = schedule.next_grant(0).unwrap();
            schedule.remove(&place);
            schedule.unseat(&node);
            assert_eq!(schedule.next_grant(0), None);
            // It comes back together with the next job.
            schedule.seat(&node, 0, Arc::from([]), true);
            *jobs.entry(node).or_default() += 1;
        }
        assert_eq!(jobs.into_values().collect::<Vec<_>>(), [5; 4]);
    }

    #[test]
    fn what_may_be_granted_once_waits_for_a_confirmed_node() {
        let (node, id): (NodeName, TaskId) = ("a".parse().unwrap(), "t1".parse().unwrap());
        let mut place = place(0, 1, &[], None);
        place.need.confirmed = true;
        let mut schedule = Schedule::default();
        schedule.insert(place, id.clone());
        schedule.seat(&node, 0, Arc::from([]), false);
        assert_eq!(schedule.next_grant(0), None);
        schedule.seat(&node, 0, Arc::from([]), true);
        assert_eq!(schedule.next_grant(0), Some((id, node)));
    }

    #[test]
    fn a_node_that_refused_is_not_asked_again() {
        let mut refused = place(0, 1, &[], None);
        refused.need.denied_by = vec!["a".parse().unwrap()];
        check(&[("a", 1, &[]), ("b", 1, &[])], &[("t1", refused)], &["t1>b"]);
    }

    #[test]
    fn requirements_are_decided_on_fresh_figures_and_again_when_they_change() {
        let (node, id): (NodeName, TaskId) = ("a".parse().unwrap(), "t1".parse().unwrap());
        let mut place = place(0, 1, &[], None);
        place.need.requires = vec!["memoryFreeMib >= 100".parse().unwrap()];
        let mut schedule = Schedule::default();
        let seat = |schedule: &mut Schedule, free: i64| {
            schedule.seat(&node, 0, Arc::from([]), true);
            let inventory = Inventory { slots: vec![Slot::MemoryAvailable], ..Inventory::default() };
            let figures = [Some(Figure { mean: free, over: 0 })];
            let board = Current { inventory: inventory.into(), figures: figures.into(), at: 0 };
            schedule.tell(&node, board, 1000);
        };
        schedule.insert(place, id.clone());
        schedule.seat(&"a".parse().unwrap(), 0, Arc::from([]), true);
        assert_eq!(schedule.next_grant(0), None, "unknown is not met");
        seat(&mut schedule, 99);
        assert_eq!(schedule.next_grant(0), None);
        seat(&mut schedule, 100);
        assert_eq!(schedule.next_grant(1001), None, "too old");
        seat(&mut schedule, 100);
        assert_eq!(schedule.next_grant(1000), Some((id, "a".parse().unwrap())));
    }
}
