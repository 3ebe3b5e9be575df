//! Tasks and what is found by them: order, state, fences, claims.

use super::schema::{Table, key, number};
use super::{StoreError, View, Write};
use crate::core::task::{State, Task};
use dunlin_wire::{ClaimId, Fence, NodeName, Tag, TaskId};
use serde::{Deserialize, Serialize};
use std::ops::Bound;

/// What a listing of tasks is narrowed to.
#[derive(Debug, Clone, Default)]
pub struct TaskFilter {
    /// Only this state.
    pub state: Option<State>,
    /// Only tasks whose latest attempt is on this node, or that are meant for it.
    pub node: Option<NodeName>,
    /// Only tasks that require this tag.
    pub tag: Option<Tag>,
    /// Only tasks created at or after this time, in milliseconds since the epoch.
    pub since_ms: Option<u64>,
}

impl TaskFilter {
    fn takes(&self, task: &Task) -> bool {
        let node = self.node.as_ref();
        self.state.is_none_or(|s| task.state == s)
            && node.is_none_or(|n| task.last().map(|a| &a.node).or(task.spec.target.as_ref()) == Some(n))
            && self.tag.as_ref().is_none_or(|t| task.spec.tags.contains(t))
            && self.since_ms.is_none_or(|ms| task.created_ms >= ms)
    }
}

/// One page of tasks, newest first.
#[derive(Debug, Clone, Default)]
pub struct TaskPage {
    /// The tasks.
    pub tasks: Vec<Task>,
    /// Where the next page begins; `None` at the end. A page may be short, even empty, and still have a next one.
    pub next: Option<u64>,
}

/// Rows looked at for one page, so that a filter that nothing passes cannot hold a reader for long.
const SCAN_MAX: usize = 10_000;

/// Which attempt a claim was filled with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Filled {
    /// The attempt.
    pub fence: Fence,
    /// The task.
    pub task: TaskId,
    /// When the attempt was settled, in milliseconds since the epoch.
    pub settled_ms: Option<u64>,
}

impl View<'_> {
    /// A task by its id.
    ///
    /// # Errors
    /// The engine's, or `Corrupt`; as everywhere here.
    pub fn task(&self, id: &TaskId) -> Result<Option<Task>, StoreError> {
        self.get(Table::Tasks, id.as_str().as_bytes())
    }

    fn listed(&self, id: &TaskId) -> Result<Task, StoreError> {
        self.task(id)?.ok_or(StoreError::Corrupt { table: Table::Order.name() })
    }

    /// A page of at most `limit` tasks below `before` in the order of submission, newest first.
    pub fn tasks(
        &self,
        filter: &TaskFilter,
        before: Option<u64>,
        limit: usize,
    ) -> Result<TaskPage, StoreError> {
        let (table, prefix) = match filter.state {
            Some(state) => (Table::ByState, vec![state as u8]),
            None => (Table::Order, vec![]),
        };
        let first = key(&[&prefix, &0u64.to_be_bytes()]);
        let last = key(&[&prefix, &before.unwrap_or(u64::MAX).to_be_bytes()]);
        let range = (Bound::Included(first.as_slice()), Bound::Excluded(last.as_slice()));
        let mut page = TaskPage::default();
        for (seen, row) in self.table(table).rev_range(self.txn()?, &range)?.enumerate() {
            let (row_key, id) = row?;
            let task = self.listed(&super::schema::decode(table, id)?)?;
            if filter.takes(&task) {
                page.tasks.push(task);
            }
            if page.tasks.len() == limit || seen + 1 == SCAN_MAX {
                page.next = Some(number(table, row_key, prefix.len())?);
                break;
            }
        }
        Ok(page)
    }

    /// Calls `f` with every task in this state, oldest first.
    pub fn each_task_in(&self, state: State, mut f: impl FnMut(Task)) -> Result<(), StoreError> {
        for row in self.table(Table::ByState).prefix_iter(self.txn()?, &[state as u8])? {
            f(self.listed(&super::schema::decode(Table::ByState, row?.1)?)?);
        }
        Ok(())
    }

    /// How many tasks are in this state. Walks keys only.
    pub fn count_in(&self, state: State) -> Result<u64, StoreError> {
        Ok(self.table(Table::ByState).prefix_iter(self.txn()?, &[state as u8])?.count() as u64)
    }

    /// Every task with an attempt whose end is unknown, whatever the task's state.
    pub fn live(&self) -> Result<Vec<Task>, StoreError> {
        let mut tasks = Vec::new();
        for row in self.table(Table::Live).iter(self.txn()?)? {
            tasks.push(self.listed(&super::schema::decode(Table::Live, row?.1)?)?);
        }
        Ok(tasks)
    }

    /// The task that this fence was given to.
    pub fn task_of(&self, fence: Fence) -> Result<Option<TaskId>, StoreError> {
        self.get(Table::Fences, &fence.0.to_be_bytes())
    }

    /// What a claim was filled with.
    pub fn filled(&self, node: &NodeName, claim: ClaimId) -> Result<Option<Filled>, StoreError> {
        self.get(Table::Claims, &claim_key(node, claim))
    }

    /// The oldest tasks in terminal states beyond `keep` of them per state.
    pub fn surplus(&self, keep: u64, limit: usize) -> Result<Vec<Task>, StoreError> {
        let mut tasks = Vec::new();
        for state in [State::Done, State::Cancelled, State::Failed] {
            let surplus = self.count_in(state)?.saturating_sub(keep) as usize;
            let rows = self.table(Table::ByState).prefix_iter(self.txn()?, &[state as u8])?;
            for row in rows.take(surplus.min(limit)) {
                let task = self.listed(&super::schema::decode(Table::ByState, row?.1)?)?;
                if task.live().is_none() {
                    tasks.push(task);
                }
            }
        }
        Ok(tasks)
    }
}

impl Write<'_> {
    /// Writes a task and keeps every index of it right. `before` is its stored state, `None` for a new one.
    pub fn put_task(&mut self, task: &Task, before: Option<State>) -> Result<(), StoreError> {
        let seq = task.seq.to_be_bytes();
        if before.is_none() {
            self.put(Table::Order, &seq, &task.id)?;
        }
        if before != Some(task.state) {
            if let Some(state) = before {
                self.delete(Table::ByState, &key(&[&[state as u8], &seq]))?;
            }
            self.put(Table::ByState, &key(&[&[task.state as u8], &seq]), &task.id)?;
        }
        if let Some(attempt) = task.last() {
            let fence = attempt.fence.0.to_be_bytes();
            if task.live().is_some() {
                self.put(Table::Fences, &fence, &task.id)?;
                self.put(Table::Live, &fence, &task.id)?;
            } else {
                self.delete(Table::Live, &fence)?;
            }
        }
        self.put(Table::Tasks, task.id.as_str().as_bytes(), task)
    }

    /// Forgets a task that has ended, its attempts and their output.
    pub fn remove_task(&mut self, task: &Task) -> Result<(), StoreError> {
        let seq = task.seq.to_be_bytes();
        for attempt in &task.attempts {
            self.delete(Table::Fences, &attempt.fence.0.to_be_bytes())?;
            self.remove_output(attempt.fence)?;
        }
        self.delete(Table::Order, &seq)?;
        self.delete(Table::ByState, &key(&[&[task.state as u8], &seq]))?;
        self.delete(Table::Tasks, task.id.as_str().as_bytes())?;
        Ok(())
    }

    /// Binds a claim to the attempt that fills it.
    pub fn put_filled(&mut self, node: &NodeName, claim: ClaimId, filled: &Filled) -> Result<(), StoreError> {
        if let Some(ms) = filled.settled_ms {
            self.put(Table::Settled, &key(&[&ms.to_be_bytes(), &claim_key(node, claim)]), &())?;
        }
        self.put(Table::Claims, &claim_key(node, claim), filled)
    }

    /// Forgets at most `limit` claims that were settled before `ms`.
    pub fn forget_claims(&mut self, ms: u64, limit: usize) -> Result<(), StoreError> {
        let mut old = Vec::new();
        let view = self.view();
        for row in view.table(Table::Settled).iter(view.txn()?)?.take(limit) {
            let (row_key, _) = row?;
            if number(Table::Settled, row_key, 0)? >= ms {
                break;
            }
            old.push(row_key.to_vec());
        }
        for row_key in old {
            self.delete(Table::Claims, &row_key[8..])?;
            self.delete(Table::Settled, &row_key)?;
        }
        Ok(())
    }
}

fn claim_key(node: &NodeName, claim: ClaimId) -> Vec<u8> {
    key(&[node.as_str().as_bytes(), &[0], &claim.0.to_be_bytes()])
}
