//! The record of a task and its attempts. How it moves is in [`super::step`].

use dunlin_wire::job::{CancelledBy, Delivery, Job, OnDisconnect, Outcome, Report};
use dunlin_wire::report::Told;
use dunlin_wire::require::Require;
use dunlin_wire::{ClaimId, Fence, NodeName, Tag, TaskId};
use serde::{Deserialize, Serialize};

/// Attempts kept in a task's history over all its retries.
pub const HISTORY_MAX: usize = 50;

/// What the operator asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskSpec {
    /// The work.
    pub job: Job,
    /// Only this node may take it.
    pub target: Option<NodeName>,
    /// Tags the node must have, sorted, without duplicates.
    pub tags: Vec<Tag>,
    /// Higher first.
    pub priority: i16,
    /// Attempts until it is given up.
    pub attempts_max: u32,
    /// Run timeout, in milliseconds; `None` leaves it to the board's rule.
    pub timeout_ms: Option<u64>,
    /// What happens when the link is lost.
    pub on_disconnect: OnDisconnect,
    /// What happens when the board dies.
    pub delivery: Delivery,
    /// How long it may wait in the queue, in milliseconds.
    pub ttl_ms: Option<u64>,
    /// An attempt still live at this time, in milliseconds since the epoch, is reclaimed.
    pub complete_by: Option<u64>,
    /// How long a `carryOn` attempt is held while its agent is away, in milliseconds.
    pub offline_ms: Option<u64>,
    /// What the node's board must say of itself, sorted, without duplicates.
    pub requires: Vec<Require>,
}

/// Where a task is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum State {
    /// Waits for a node, or for its retry time.
    Queued,
    /// Granted; not yet accepted.
    Claimed,
    /// Accepted.
    Running,
    /// Ended with outcome `ok`.
    Done,
    /// Given up; it is in the dead-letter list.
    Failed,
    /// Cancelled.
    Cancelled,
}

impl State {
    /// Every state.
    pub const ALL: [State; 6] =
        [State::Queued, State::Claimed, State::Running, State::Done, State::Failed, State::Cancelled];

    /// The stable word.
    pub fn as_str(self) -> &'static str {
        match self {
            State::Queued => "queued",
            State::Claimed => "claimed",
            State::Running => "running",
            State::Done => "done",
            State::Failed => "failed",
            State::Cancelled => "cancelled",
        }
    }

    /// The state of a word.
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|s| s.as_str() == word)
    }

    /// Whether nothing more happens by itself.
    pub fn is_terminal(self) -> bool {
        matches!(self, State::Done | State::Failed | State::Cancelled)
    }
}

/// Why a task was given up. Closed list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum DeadReason {
    /// Every attempt failed or was lost.
    MaxAttemptsExhausted,
    /// The last attempt ran out of time.
    Timeout,
    /// It waited in the queue for longer than its ttl.
    TtlExpired,
    /// The board refused it.
    Denied,
    /// An at-most-once attempt that may have started was interrupted.
    Interrupted,
    /// Its job could not be killed, so it must not be tried again.
    Stuck,
    /// The board, or whoever it asked, decided against it.
    Refused,
}

impl DeadReason {
    /// The stable word.
    pub fn as_str(self) -> &'static str {
        match self {
            DeadReason::MaxAttemptsExhausted => "max_attempts_exhausted",
            DeadReason::Timeout => "timeout",
            DeadReason::TtlExpired => "ttl_expired",
            DeadReason::Denied => "denied",
            DeadReason::Interrupted => "interrupted",
            DeadReason::Stuck => "stuck",
            DeadReason::Refused => "refused",
        }
    }
}

/// How the hub saw an attempt end when no outcome came. Closed list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Lost {
    /// Lease and margin went by without a renewal.
    LeaseOver,
    /// The node said that it never took the grant, or holds no record of it.
    NotHeld,
    /// Nobody accepted the grant while its lease ran.
    NotAccepted,
}

impl Lost {
    /// The stable word.
    pub fn as_str(self) -> &'static str {
        match self {
            Lost::LeaseOver => "lease_over",
            Lost::NotHeld => "not_held",
            Lost::NotAccepted => "not_accepted",
        }
    }
}

/// How an attempt ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum End {
    /// The node said so.
    Reported(Box<Report>),
    /// The hub had to conclude it.
    Lost(Lost),
}

/// Why the hub asked a live attempt to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ending {
    /// The task was cancelled.
    Cancelled(CancelledBy),
    /// Its `completeBy` passed.
    Overdue,
    /// It reported no progress for too long.
    Stuck,
}

/// One grant of a task to one node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    /// Its number since the task was queued or retried, from 1.
    pub number: u32,
    /// The node.
    pub node: NodeName,
    /// Its fence.
    pub fence: Fence,
    /// The claim that it filled.
    pub claim: ClaimId,
    /// Length of its lease, in milliseconds: what a restarted hub waits for again.
    pub lease_ms: u64,
    /// When it was granted, in milliseconds since the epoch, as the next three.
    pub granted_ms: u64,
    /// When it was accepted.
    pub accepted_ms: Option<u64>,
    /// When its process was started.
    pub started_ms: Option<u64>,
    /// When its end became known.
    pub ended_ms: Option<u64>,
    /// Granted before the node's handshake was over, and not accepted yet: the grant may have gone to somebody who only
    /// repeated the node's words.
    pub early: bool,
    /// The hub asked for its end.
    pub ending: Option<Ending>,
    /// How it ended.
    pub end: Option<End>,
    /// What its job last said of itself while it ran.
    pub told: Told,
}

/// The record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Task {
    /// Its id.
    pub id: TaskId,
    /// What was asked for.
    pub spec: TaskSpec,
    /// Order of submission, unique.
    pub seq: u64,
    /// When it was submitted, in milliseconds since the epoch.
    pub created_ms: u64,
    /// Submission time for ordering: like `created_ms`, but never goes back with the clock.
    pub order_ms: u64,
    /// When it was last queued by an operator (submitted or retried): its ttl counts from here.
    pub queued_ms: u64,
    /// Where it is.
    pub state: State,
    /// Attempts made since it was queued or retried.
    pub attempt: u32,
    /// Back-off: not to be granted before this time, in milliseconds since the epoch.
    pub retry_at_ms: Option<u64>,
    /// When it reached a terminal state.
    pub ended_ms: Option<u64>,
    /// Why it was given up.
    pub dead: Option<DeadReason>,
    /// All attempts, oldest first, at most [`HISTORY_MAX`].
    pub attempts: Vec<Attempt>,
}

impl Task {
    /// A new task in the queue.
    pub fn new(id: TaskId, spec: TaskSpec, seq: u64, created_ms: u64, order_ms: u64) -> Self {
        Self {
            id,
            spec,
            seq,
            created_ms,
            order_ms,
            queued_ms: created_ms,
            state: State::Queued,
            attempt: 0,
            retry_at_ms: None,
            ended_ms: None,
            dead: None,
            attempts: Vec::new(),
        }
    }

    /// The latest attempt.
    pub fn last(&self) -> Option<&Attempt> {
        self.attempts.last()
    }

    /// The attempt that may still have a process: its end is not known.
    pub fn live(&self) -> Option<&Attempt> {
        self.last().filter(|a| a.end.is_none())
    }

    /// Nodes that refused it since it was queued or retried; it is not offered to them again.
    pub fn denied_by(&self) -> impl Iterator<Item = &NodeName> {
        let round = self.attempts.iter().rev().take(self.attempt as usize);
        round.filter(|a| a.is_denied()).map(|a| &a.node)
    }
}

impl Attempt {
    /// A grant that was just made, at `granted_ms`.
    pub fn new(node: NodeName, claim: ClaimId, fence: Fence, granted_ms: u64) -> Self {
        Self {
            number: 0,
            node,
            fence,
            claim,
            lease_ms: 0,
            granted_ms,
            accepted_ms: None,
            started_ms: None,
            ended_ms: None,
            early: false,
            ending: None,
            end: None,
            told: Told::default(),
        }
    }

    fn is_denied(&self) -> bool {
        matches!(&self.end, Some(End::Reported(report)) if matches!(report.outcome, Outcome::Denied { .. }))
    }
}
