//! Everything the loop is told ([`Event`]) and everything it says after a commit ([`Effect`]). Closed lists.

use crate::core::health::Health;
use crate::core::history::Row;
use crate::core::node::{Node, NodeSpec};
use crate::core::task::{State, Task, TaskSpec};
use crate::core::telemetry::Raised;
use dunlin_wire::job::Stream;
use dunlin_wire::message::{Numbered, ToAgent, Upload};
use dunlin_wire::overlay::Overlay;
use dunlin_wire::telemetry::{Alarm, Figure, Inventory, Sample};
use dunlin_wire::{CloseCode, Fence, Key, NodeName, TaskId};
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::oneshot;

pub use crate::followed::{Followed, Piece};
pub use crate::refusal::ApiRefusal;

/// One QUIC connection, as the link numbers them from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnId(pub u64);

/// Into the loop.
#[derive(Debug)]
pub enum Event {
    /// A device says that it holds this key.
    Opened {
        /// The connection.
        conn: ConnId,
        /// Its key.
        key: Key,
        /// Whether the handshake is not over yet: until it is, all of this may be a copy of what the device once said.
        early: bool,
    },
    /// The handshake of an early connection is over: the device is there.
    Confirmed {
        /// The connection.
        conn: ConnId,
    },
    /// A frame of its control stream; an early connection says only what [`dunlin_wire::message::Early`] may carry.
    Control {
        /// The connection.
        conn: ConnId,
        /// The frame.
        frame: Numbered,
    },
    /// A sign of life.
    Beat {
        /// The connection.
        conn: ConnId,
        /// Milliseconds until the next at most; 0: as often as we asked for.
        every_ms: u32,
        /// What the board is like.
        sample: Option<Box<Sample>>,
    },
    /// A frame of one of its upload streams.
    Upload {
        /// The connection.
        conn: ConnId,
        /// The frame.
        frame: Upload,
    },
    /// Somebody follows what an attempt writes.
    Follow {
        /// The attempt.
        fence: Fence,
        /// The stream.
        stream: Stream,
        /// Who.
        by: Followed,
    },
    /// A follower took something, or is gone.
    Taken {
        /// The attempt.
        fence: Fence,
        /// The stream.
        stream: Stream,
    },
    /// Somebody waits to read what is acknowledged.
    Read,
    /// The connection is gone.
    Closed {
        /// The connection.
        conn: ConnId,
        /// The key of its peer.
        key: Key,
        /// The code that the link closed it with, when it did.
        by: Option<CloseCode>,
        /// What it carried.
        traffic: Traffic,
    },
    /// The HTTP API asks.
    Api {
        /// Who asks: the name of the token.
        actor: String,
        /// What.
        request: Request,
        /// Where the answer goes.
        reply: Reply,
    },
}

/// Bytes that connections of agents carried, as paid for: IPv4 and UDP headers are in `wire_*`, and in them everything
/// else. The classes are what was said, before encryption and framing by QUIC.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// From agents, on the wire.
    pub wire_in: u64,
    /// To agents, on the wire.
    pub wire_out: u64,
    /// Messages from agents.
    pub control_in: u64,
    /// Messages to agents.
    pub control_out: u64,
    /// Signs of life and samples.
    pub telemetry_in: u64,
    /// Output and outcomes on streams of their own.
    pub output_in: u64,
}

impl Traffic {
    /// Name, direction and number of each.
    pub fn classes(&self) -> [(&'static str, &'static str, u64); 6] {
        [
            ("wire", "in", self.wire_in),
            ("wire", "out", self.wire_out),
            ("control", "in", self.control_in),
            ("control", "out", self.control_out),
            ("telemetry", "in", self.telemetry_in),
            ("output", "in", self.output_in),
        ]
    }
}

impl std::ops::AddAssign for Traffic {
    fn add_assign(&mut self, more: Self) {
        self.wire_in += more.wire_in;
        self.wire_out += more.wire_out;
        self.control_in += more.control_in;
        self.control_out += more.control_out;
        self.telemetry_in += more.telemetry_in;
        self.output_in += more.output_in;
    }
}

/// Where an answer goes. Sent only after the commit that it tells of.
pub type Reply = oneshot::Sender<Result<Answer, ApiRefusal>>;

/// What the API can ask of the loop. Whatever only reads the store does not come here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// Queue a task; without an id the hub makes one.
    Submit {
        /// The id.
        id: Option<TaskId>,
        /// The task.
        spec: Box<TaskSpec>,
    },
    /// End a task.
    Cancel(TaskId),
    /// Queue a failed task again.
    Retry(TaskId),
    /// One task.
    Task(TaskId),
    /// Why is a task not running?
    Why(TaskId),
    /// All nodes, by name.
    Nodes,
    /// One node.
    Node(NodeName),
    /// Give a node no new work, or again.
    Drain(NodeName, bool),
    /// Refuse a node's key for good.
    Revoke(NodeName),
    /// Ask a node whether it is there; its silence in the view tells.
    Probe(NodeName),
    /// Take it that a node is down, if it has been silent since this time, in monotonic milliseconds.
    ReportDown(NodeName, u64),
    /// Make a ticket's record: spec, life in milliseconds.
    Invite {
        /// What the node will be.
        node: NodeSpec,
        /// How long it may be used, in milliseconds.
        ttl_ms: u64,
    },
    /// Hand a set of keys on to the boards, as a root signed it.
    PushKeys(Vec<u8>),
    /// Narrow what boards allow: this one, or all that have no overlay of their own.
    PushOverlay {
        /// The board.
        node: Option<NodeName>,
        /// The overlay, not numbered yet.
        overlay: Box<Overlay>,
    },
    /// Grant nothing more and cancel what is live.
    Halt,
    /// Grant again.
    Resume,
    /// A node's reports of the last hour.
    Recent(NodeName),
    /// Figures for `/metrics` and `/health`.
    Metrics,
}

/// Answers to [`Request`].
#[derive(Debug, Clone)]
pub enum Answer {
    /// To `Submit`: the task, and whether it was there already with the same body.
    Submitted {
        /// The task.
        task: Box<Task>,
        /// It was there.
        duplicate: bool,
    },
    /// To `Cancel` and `Retry`: the task as it is now.
    Task(Box<Task>),
    /// To `Why`.
    Why(Why),
    /// To `Nodes`.
    Nodes(Vec<NodeView>),
    /// To `Node`, `Drain`, `Revoke`, `Probe` and `ReportDown`.
    Node(Box<NodeView>),
    /// To `Invite`: the ticket text, and when it ends in milliseconds since the epoch.
    Ticket {
        /// The text; a secret.
        ticket: String,
        /// Its end.
        expires_ms: u64,
    },
    /// To `PushKeys`.
    Keys {
        /// The version that the hub has now.
        version: u64,
        /// Boards it was sent to at once; others get it when they connect.
        sent: u64,
    },
    /// To `PushOverlay`.
    Overlay {
        /// The version that it got.
        version: u64,
        /// Boards it was sent to at once; others get it when they connect.
        sent: u64,
    },
    /// To `Halt`: how many tasks were cancelled. To `Resume`: 0.
    Fleet {
        /// Whether the fleet is halted now.
        halted: bool,
        /// Tasks that were cancelled.
        cancelled: u64,
    },
    /// To `Recent`.
    Recent(Recent),
    /// To `Metrics`.
    Metrics(Box<Figures>),
}

/// Why a task is not running: words for people, from a closed list of codes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Why {
    /// Where the task is.
    pub state: State,
    /// Reasons, most telling first: code and sentence.
    pub reasons: Vec<(&'static str, String)>,
}

/// What a board last said of itself.
#[derive(Debug, Clone)]
pub struct BoardView {
    /// What it has.
    pub inventory: Arc<Inventory>,
    /// A figure for each slot of it; `None` is unknown.
    pub figures: Arc<[Option<Figure>]>,
    /// Age of the figures, in milliseconds.
    pub age_ms: u64,
    /// Time between its reports, in milliseconds.
    pub report_ms: u64,
    /// Whether not too many reports were missed since.
    pub fresh: bool,
}

/// A node's reports of the last hour.
#[derive(Debug, Clone)]
pub struct Recent {
    /// Names of its series, by their places.
    pub names: Vec<String>,
    /// Reports, oldest first.
    pub rows: Vec<Row>,
}

/// A node with what the loop knows of it now.
#[derive(Debug, Clone)]
pub struct NodeView {
    /// The record.
    pub node: Node,
    /// By its silence.
    pub health: Health,
    /// When it was last heard, in monotonic milliseconds, or when this hub started.
    pub heard: u64,
    /// Milliseconds since it was last heard; `None` when not heard since the hub started.
    pub silent_ms: Option<u64>,
    /// Whether a connection is open.
    pub connected: bool,
    /// Flagged: it left a grant unaccepted for too long.
    pub unresponsive: bool,
    /// Live attempts: task and fence, claimed first.
    pub claimed: Vec<(TaskId, Fence)>,
    /// Accepted attempts.
    pub running: Vec<(TaskId, Fence)>,
    /// Standing claims.
    pub free: u32,
    /// What the board last said of itself.
    pub board: Option<BoardView>,
    /// Version of the key set it has in force; `None` when it trusts no signatures, or is not there.
    pub key_set: Option<u64>,
    /// Version of the overlay it has in force, 0 for none; `None` when it is not there.
    pub overlay: Option<u64>,
    /// Alarms since the hub started, the newest of each kind.
    pub alarms: BTreeMap<Alarm, Raised>,
    /// Code of the outcome it last reported.
    pub last_outcome: Option<String>,
    /// Its connection.
    pub conn: Option<ConnId>,
    /// Time between its signs of life, in milliseconds.
    pub heartbeat_ms: u64,
    /// Smoothed round-trip time of its connection, in microseconds.
    pub rtt_us: Option<u64>,
    /// Bytes since the hub started.
    pub traffic: Traffic,
}

impl NodeView {
    /// The state of AC-12's machine: offline, idle, assigned, working or blocked.
    pub fn state(&self) -> &'static str {
        if matches!(self.health, Health::Offline | Health::Unheard) {
            "offline"
        } else if self.unresponsive {
            "blocked"
        } else if !self.running.is_empty() {
            "working"
        } else if !self.claimed.is_empty() {
            "assigned"
        } else {
            "idle"
        }
    }
}

/// Figures that only the loop knows. Everything is a count since the start unless it says otherwise.
#[derive(Debug, Clone, Default)]
pub struct Figures {
    /// Tasks in the queue now, by priority.
    pub queued: BTreeMap<i16, u64>,
    /// Tasks now, by state.
    pub tasks: BTreeMap<State, u64>,
    /// Nodes now, by health.
    pub nodes: BTreeMap<Health, u64>,
    /// Attempts by how they ended: outcome code, or `lost`.
    pub outcomes: BTreeMap<&'static str, u64>,
    /// From queued (or its retry time) to granted.
    pub claim_latency: Histogram,
    /// From the start of a commit to its end.
    pub commit: Histogram,
    /// Connections closed by the hub, by close code.
    pub closed: BTreeMap<CloseCode, u64>,
    /// Refused messages, by verdict word.
    pub refused: BTreeMap<&'static str, u64>,
    /// Attempts that boards decided against, by code.
    pub denials: BTreeMap<&'static str, u64>,
    /// What boards last said of themselves.
    pub boards: Vec<(NodeName, BoardView)>,
    /// Alarms of boards, by kind.
    pub alarms: Vec<(NodeName, Alarm, u64)>,
    /// Open connections now.
    pub connections: u64,
    /// Bytes of all connections since the hub started.
    pub traffic: Traffic,
    /// Whether the fleet is halted.
    pub halted: bool,
    /// Bytes the store uses now, and may use.
    pub store_bytes: (u64, u64),
}

/// A histogram with fixed bounds, in microseconds.
#[derive(Debug, Clone, Default)]
pub struct Histogram {
    /// Observations at or under each of [`Histogram::BOUNDS_US`], not cumulative; the last is beyond all.
    pub counts: [u64; Self::BOUNDS_US.len() + 1],
    /// Sum of all, in microseconds.
    pub sum_us: u64,
}

impl Histogram {
    /// Upper bounds of the buckets, in microseconds.
    pub const BOUNDS_US: [u64; 14] = [
        100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 500_000, 2_500_000, 10_000_000,
        60_000_000,
    ];

    /// Adds an observation.
    pub fn observe(&mut self, us: u64) {
        self.counts[Self::BOUNDS_US.partition_point(|bound| *bound < us)] += 1;
        self.sum_us += us;
    }
}

/// Out of the loop, after the commit.
#[derive(Debug)]
pub enum Effect {
    /// Say this on a connection.
    Send(ConnId, ToAgent),
    /// Ask whether the agent lives.
    Ask(ConnId),
    /// Close a connection.
    Close(ConnId, CloseCode),
    /// Answer the API.
    Reply(Reply, Result<Answer, ApiRefusal>),
    /// These happened, oldest first, by their ids.
    Events(Vec<(u64, EventRecord)>),
}

/// One entry of the event stream, stored in the transaction of the change that it tells of.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct EventRecord {
    /// When, in milliseconds since the epoch.
    pub at_ms: u64,
    /// `task.enqueued`, `node.down` and so on.
    pub kind: String,
    /// The task concerned.
    pub task: Option<TaskId>,
    /// The node concerned.
    pub node: Option<NodeName>,
    /// The attempt concerned.
    pub attempt: Option<u32>,
    /// More: an outcome, a reason, a state.
    pub detail: Option<String>,
}

/// What a manual action did, for the audit.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct AuditRecord {
    /// When, in milliseconds since the epoch.
    pub at_ms: u64,
    /// The name of the token, or of the node for refused messages.
    pub actor: String,
    /// The action.
    pub action: String,
    /// What it was done to.
    pub target: String,
    /// `ok`, an outcome, or the refusal in words.
    pub result: String,
    /// `ok`, `allowed`, or the closed code of the denial or refusal.
    pub code: String,
    /// More, without what looks like a secret.
    pub detail: Option<String>,
}
