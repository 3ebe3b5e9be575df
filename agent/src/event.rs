//! What the agent's core is told ([`Event`]), what it wants done ([`Effect`]), and what it keeps on disk ([`Write`],
//! [`Loaded`]). Closed lists, plain data.

use crate::core::budget::Thrift;
use crate::exec::message::{FromExec, ToExec};
use dunlin_wire::job::{Delivery, Report, Stream};
use dunlin_wire::message::{Numbered, Profile, Role, ToAgent};
use dunlin_wire::telemetry::{Inventory, Sample};
use dunlin_wire::{ClaimId, Fence, FleetId, NodeName, Tag, TaskId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Into the core.
#[derive(Debug, Clone)]
pub enum Event {
    /// A connection to the hub stands, or is being made and takes early data.
    Connected {
        /// Whether the handshake is not over yet.
        early: bool,
    },
    /// The handshake of an early connection is over, and the hub took what was said.
    Confirmed,
    /// The hub answered, if only by acknowledging.
    Heard,
    /// The hub asks whether we live.
    Asked,
    /// So much of the month's bytes is spent.
    Thrift(Thrift),
    /// The connection goes on from another socket.
    Rebound,
    /// It is gone.
    Disconnected,
    /// The hub says.
    FromHub(ToAgent),
    /// The policy's file may be another.
    ReloadPolicy,
    /// The executor is no more, and every job with it. The loop ends by it; the next start reports them.
    ExecutorGone,
    /// The executor says.
    FromExec(FromExec),
    /// The board was looked at.
    Reading(Reading),
    /// The agent must stop.
    Shutdown,
}

/// One look at the board.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reading {
    /// What it has.
    pub inventory: Arc<Inventory>,
    /// A value for each slot of the inventory, in its unit; `None` is unknown.
    pub values: Vec<Option<i64>>,
    /// Memory of GPUs with memory of their own that attempts use, in MiB; those that use none are not listed.
    pub jobs: Vec<(Fence, u64)>,
}

/// Out of the core. The loop commits every `Store` of a batch in one transaction before it does anything else of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Keep this.
    Store(Write),
    /// Say this to the hub.
    Send(Numbered),
    /// Tell the hub that we live, and when we will again; may be lost.
    Beat {
        /// Longest time until the next; 0: as often as the hub asked for.
        every_ms: u64,
        /// What the board is like, when a report is due.
        sample: Option<Box<Sample>>,
    },
    /// What a job just wrote; may be dropped, the outcome carries everything again.
    Live {
        /// The attempt.
        fence: Fence,
        /// Which stream.
        stream: Stream,
        /// Position in it.
        offset: u64,
        /// The bytes.
        bytes: Vec<u8>,
    },
    /// The same for who follows it, as far as the hub's credit goes; a part of the output it is not.
    Tail {
        /// The attempt.
        fence: Fence,
        /// Which stream.
        stream: Stream,
        /// Position in it.
        offset: u64,
        /// The bytes.
        bytes: Vec<u8>,
    },
    /// So many bytes more of an attempt's stream may be sent as `Tail`; 0 takes back what is left.
    Credit {
        /// The attempt.
        fence: Fence,
        /// Which stream.
        stream: Stream,
        /// Bytes.
        credit: u64,
    },
    /// Deliver the outcome and its output from the store: what `Live` has not sent on this connection, or from `have`.
    Upload {
        /// The attempt.
        fence: Fence,
        /// Where to begin, when the hub said it.
        have: Option<[u64; 2]>,
    },
    /// Say this to the executor.
    Exec(ToExec),
    /// The connection is dead; make another.
    Reconnect,
    /// Everything that can be delivered is: end the process.
    Exit,
}

/// One change of what is on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Write {
    /// An attempt is accepted.
    Accepted(Record),
    /// It ended; these are its report and kept output.
    Ended {
        /// The attempt's record, with its report.
        record: Record,
        /// Kept bytes of stdout and stderr.
        kept: [Vec<u8>; 2],
    },
    /// The hub has it: forget it.
    Forget(Fence),
    /// Claim ids below this may have been used.
    Claims(u64),
    /// Connection numbers below this may have been used.
    Connections(u64),
}

/// An attempt on disk, from acceptance until the hub acknowledged its outcome.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The attempt.
    pub fence: Fence,
    /// The task.
    pub task: TaskId,
    /// The claim that it filled.
    pub claim: ClaimId,
    /// Its number.
    pub attempt: u32,
    /// The kernel's boot id when it was accepted: tells a reboot from a restart.
    pub boot: [u8; 16],
    /// What the task wants done when the board dies; shown by `queue`.
    pub delivery: Delivery,
    /// How it ended, when it has.
    pub report: Option<Box<Report>>,
}

/// What was on disk at start.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Loaded {
    /// Attempts by fence.
    pub attempts: BTreeMap<Fence, Record>,
    /// First claim id that was never used.
    pub next_claim: u64,
    /// First connection number that was never used.
    pub next_connection: u64,
}

impl Loaded {
    /// What a store that holds `self` holds after `write`; output aside.
    pub fn apply(&mut self, write: &Write) {
        match write {
            Write::Accepted(record) | Write::Ended { record, .. } => {
                self.attempts.insert(record.fence, record.clone());
            }
            Write::Forget(fence) => drop(self.attempts.remove(fence)),
            Write::Claims(next) => self.next_claim = *next,
            Write::Connections(next) => self.next_connection = *next,
        }
    }
}

/// What the core is told once.
#[derive(Debug, Clone)]
pub struct Setup {
    /// The fleet.
    pub fleet: FleetId,
    /// This node.
    pub node: NodeName,
    /// What it may do.
    pub role: Role,
    /// Slots that the agent's own file allows.
    pub slots: u32,
    /// Timing until the hub says otherwise.
    pub profile: Profile,
    /// What board and kernel offer.
    pub capabilities: Vec<Tag>,
    /// Random at each start of the process.
    pub boot_id: [u8; 16],
    /// The kernel's boot id.
    pub kernel_boot: [u8; 16],
    /// Version of the agent.
    pub version: String,
}
