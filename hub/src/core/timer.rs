//! Deadlines of the hub, in memory only: a restarted hub starts them again. One queue for every kind of timer, so
//! that the loop asks one question: when is the next?

use dunlin_wire::{Fence, NodeName, TaskId};
use std::collections::{BTreeMap, BTreeSet};

/// What may come due. Each has at most one deadline.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Timer {
    /// A lease and its margin are over.
    Lease(Fence),
    /// A grant should have been accepted.
    Accept(Fence),
    /// A running attempt reported no progress.
    Stuck(Fence),
    /// A task may be granted again.
    Retry(TaskId),
    /// A task waited for too long.
    Ttl(TaskId),
    /// A task should have been complete.
    Overdue(TaskId),
    /// A node was silent.
    Health(NodeName),
    /// What boards were like goes to disk.
    History,
    /// Settled claims may be forgotten, and old history pruned.
    Prune,
}

/// Deadlines in monotonic milliseconds.
#[derive(Debug, Default)]
pub struct Timers {
    queue: BTreeSet<(u64, Timer)>,
    at: BTreeMap<Timer, u64>,
}

impl Timers {
    /// Sets or moves a deadline.
    pub fn set(&mut self, timer: Timer, at: u64) {
        self.clear(&timer);
        self.at.insert(timer.clone(), at);
        self.queue.insert((at, timer));
    }

    /// Forgets a deadline.
    pub fn clear(&mut self, timer: &Timer) {
        if let Some(at) = self.at.remove(timer) {
            self.queue.remove(&(at, timer.clone()));
        }
    }

    /// The earliest deadline.
    pub fn poll_timeout(&self) -> Option<u64> {
        self.queue.first().map(|(at, _)| *at)
    }

    /// Takes one timer that is due.
    pub fn pop(&mut self, now: u64) -> Option<Timer> {
        if self.poll_timeout()? > now {
            return None;
        }
        let (_, timer) = self.queue.pop_first()?;
        self.at.remove(&timer);
        Some(timer)
    }

    /// When a timer comes due, if it is set.
    pub fn at(&self, timer: &Timer) -> Option<u64> {
        self.at.get(timer).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_deadline_each_and_in_order() {
        let mut timers = Timers::default();
        timers.set(Timer::Lease(Fence(1)), 30);
        timers.set(Timer::Accept(Fence(1)), 20);
        timers.set(Timer::Lease(Fence(1)), 10);
        assert_eq!(timers.poll_timeout(), Some(10));
        assert_eq!(timers.pop(9), None);
        assert_eq!(timers.pop(25), Some(Timer::Lease(Fence(1))));
        assert_eq!(timers.pop(25), Some(Timer::Accept(Fence(1))));
        assert_eq!(timers.pop(99), None, "the moved deadline is gone");
        timers.set(Timer::Prune, 5);
        timers.clear(&Timer::Prune);
        assert_eq!(timers.poll_timeout(), None);
    }
}
