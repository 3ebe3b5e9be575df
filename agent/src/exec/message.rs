//! The executor's message boundary. The agent's loop says [`ToExec`], the executor answers [`FromExec`]; nothing
//! else crosses the socket between them. The executor believes nothing that it is told: what it starts is what the
//! board's policy allows.

use super::output::Layout;
use crate::clock::BootMs;
use dunlin_wire::job::{CancelledBy, Interruption, Job, Report, Stream};
use dunlin_wire::overlay::Overlay;
use dunlin_wire::report::Told;
use dunlin_wire::{Fence, Tag, TaskId};
use serde::{Deserialize, Serialize};

/// To the executor. For one fence: `Prepare`, then `Start` or `Forget`, then any number of `Extend`, then `End`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToExec {
    /// Check this work against the policy and open what it needs. Answered by `Prepared`.
    Prepare(Box<Work>),
    /// Start what was prepared; the agent's journal already holds the fence. Answered by `Started` and `Ended`, or
    /// by `Ended` alone.
    Start {
        /// The attempt.
        fence: Fence,
        /// The guard kills the job at this time unless it is extended.
        lease_until: BootMs,
    },
    /// What was prepared will not be started.
    Forget {
        /// The attempt.
        fence: Fence,
    },
    /// The lease was renewed.
    Extend {
        /// The attempt.
        fence: Fence,
        /// The new end of the lease.
        lease_until: BootMs,
    },
    /// End the job. `Ended` follows.
    End {
        /// The attempt.
        fence: Fence,
        /// Why; also decides whether it gets its grace.
        cause: EndCause,
    },
    /// Read the policy again, and the trust file. Answered by `Policy`.
    ReloadPolicy,
    /// End every job, then stop: the last `Ended` is followed by the end of the channel.
    Shutdown,
    /// A key set, as a root is said to have signed it. Answered by `Keys`.
    Keys(Vec<u8>),
    /// What to leave out of the policy, instead of the overlay before. Answered by `Policy`.
    Overlay(Box<Overlay>),
}

/// Why the agent ends a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum EndCause {
    /// On request: SIGTERM, the policy's grace, SIGKILL.
    Cancelled(CancelledBy),
    /// `LeaseLost`: SIGKILL at once. Otherwise SIGTERM, grace, SIGKILL.
    Interrupted(Interruption),
}

/// One attempt to check and run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Work {
    /// The task, shown to the job as `DUNLIN_TASK_ID`.
    pub task: TaskId,
    /// The attempt, shown as `DUNLIN_FENCE`.
    pub fence: Fence,
    /// Its number from 1, shown as `DUNLIN_ATTEMPT`.
    pub attempt: u32,
    /// What to run. Of a signed job only what was signed counts.
    pub job: Job,
    /// Timeout asked for, in milliseconds; `None` takes the rule's. A signed job brings its own.
    pub timeout_ms: Option<u64>,
}

/// From the executor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromExec {
    /// The policy in force: first message of all, and after each reload.
    Policy(PolicyState),
    /// Answer to `Prepare`.
    Prepared {
        /// The attempt.
        fence: Fence,
        /// Whether it may run.
        decision: Decision,
    },
    /// The program was exec'ed.
    Started {
        /// The attempt.
        fence: Fence,
    },
    /// What the job just wrote, as long as the head is not full; nothing is lost when this is dropped.
    Output {
        /// The attempt.
        fence: Fence,
        /// Which stream.
        stream: Stream,
        /// Position in the stream.
        offset: u64,
        /// The bytes, at most `limits::CHUNK_MAX`.
        bytes: Vec<u8>,
    },
    /// Every process of the attempt is gone (or `Outcome::Stuck` says that it is not).
    Ended {
        /// The attempt.
        fence: Fence,
        /// How.
        report: Box<Report>,
        /// Kept bytes of stdout and stderr: head, then tail.
        kept: [Vec<u8>; 2],
    },
    /// What the job says of itself while it runs; the report has the last word.
    Told {
        /// The attempt.
        fence: Fence,
        /// What it says.
        told: Box<Told>,
    },
    /// The key set in force, 0 for none. Never said where no signature is trusted.
    Keys {
        /// Its version.
        version: u64,
    },
    /// What was stuck of an attempt is gone: its slot is of use again.
    Freed {
        /// The attempt, which has ended as stuck.
        fence: Fence,
    },
}

/// A message of the executor's as it crosses the socket. What is kept of much output follows as files, in the order of
/// the streams.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Said {
    pub(super) message: FromExec,
    pub(super) spooled: [Option<Layout>; 2],
}

/// Answer to `Prepare`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Decision {
    /// It may run.
    Allow {
        /// The rule that allows it.
        rule: String,
        /// The timeout in force, in milliseconds.
        timeout_ms: u64,
    },
    /// It may not; the report says why.
    Deny(Box<Report>),
}

/// The policy in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyState {
    /// First eight bytes of the SHA-256 of the file or files in force; zero when everything is denied.
    pub digest: [u8; 8],
    /// Jobs at once that the policy's ceiling allows.
    pub jobs: u32,
    /// Bits of `wire::outcome::layer`: what jobs can be shut in with on this board.
    pub layers: u32,
    /// Why the file on disk is not in force.
    pub error: Option<String>,
    /// What the policy offers beside rules: `kind:orchestrator-run`, `hook:NAME`.
    pub kinds: Vec<Tag>,
    /// Version of the overlay in force, 0 for none.
    pub overlay: u64,
}
