//! What the loop answers when it does not do what was asked.

use crate::core::task::State;
use dunlin_wire::job::Denial;
use dunlin_wire::{NodeName, TaskId};

/// Why the loop refuses a request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ApiRefusal {
    /// No such task.
    #[error("there is no task `{0}`")]
    UnknownTask(TaskId),
    /// No such node.
    #[error("there is no node `{0}`")]
    UnknownNode(NodeName),
    /// The id is taken by a task with another body.
    #[error("task `{0}` exists with another body")]
    TaskExists(TaskId),
    /// The state does not allow it.
    #[error("task `{id}` is {}, so it cannot be {verb}", state.as_str())]
    IllegalMove {
        /// The task.
        id: TaskId,
        /// Its state.
        state: State,
        /// What was asked, as a participle.
        verb: &'static str,
    },
    /// A node of that name is enrolled.
    #[error("node `{0}` is enrolled already; revoke it first, or choose another name")]
    NodeExists(NodeName),
    /// No board would take what is declared of an actuation, or nothing is.
    #[error("no board takes this actuation: {}", denied(*.0))]
    Actuation(Denial),
    /// Too many tasks wait.
    #[error("the queue holds {0} tasks, its limit; cancel some or wait")]
    QueueFull(u64),
    /// The bytes are none.
    #[error("this is not a key set that this version reads; `dunlin keys make` writes one")]
    NoKeySet,
    /// The hub has a newer set.
    #[error("version {version} of the key set is not newer than {held}, which the hub has")]
    OldKeySet {
        /// Its version.
        version: u64,
        /// The version that the hub has.
        held: u64,
    },
    /// The store is near its bound; only results are still taken.
    #[error("the store is full: free space on the data disk or raise `store.max_gib`")]
    StorageFull,
    /// The commit failed; nothing of it happened.
    #[error("the store could not commit; nothing was changed")]
    StoreFailed,
}

/// What to do about an actuation that nobody takes.
fn denied(denial: Denial) -> &'static str {
    match denial {
        Denial::LlmOnlyActuation => "a language model's word alone moves nothing; name other evidence",
        Denial::ActuationTier => {
            "the tier is more than the evidence bears: T2 wants it verified, T3 by a human"
        }
        _ => {
            "what requires `actuator:...` must be of kind `actuation`, and declare target, tier and evidence"
        }
    }
}

impl ApiRefusal {
    /// The stable code.
    pub fn code(&self) -> &'static str {
        match self {
            ApiRefusal::UnknownTask(_) | ApiRefusal::UnknownNode(_) => "not_found",
            ApiRefusal::TaskExists(_) => "task_exists",
            ApiRefusal::IllegalMove { state, .. } if state.is_terminal() => "task_already_terminal",
            ApiRefusal::IllegalMove { .. } => "illegal_state",
            ApiRefusal::NodeExists(_) => "node_exists",
            ApiRefusal::NoKeySet => "invalid_key_set",
            ApiRefusal::OldKeySet { .. } => "old_key_set",
            ApiRefusal::Actuation(denial) => denial.as_str(),
            ApiRefusal::QueueFull(_) => "queue_full",
            ApiRefusal::StorageFull => "storage_full",
            ApiRefusal::StoreFailed => "store_failed",
        }
    }
}
