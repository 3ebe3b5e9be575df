//! What is said of an attempt beside how it ended.

use crate::limits;
use crate::outcome::Outcome;
use serde::{Deserialize, Serialize};

/// Where one stream ended.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamEnd {
    /// Bytes the job wrote in all.
    pub end: u64,
    /// Bytes of those that were cut out between head and tail.
    pub truncated: u64,
    /// Bytes kept in front of the cut; everything when nothing was cut.
    pub head: u64,
    /// The first eight bytes of the SHA-256 of what was kept (head, then tail).
    pub digest: [u8; 8],
}

impl StreamEnd {
    /// Bytes that were kept, and must be at the hub before the outcome is settled.
    pub fn kept(&self) -> u64 {
        self.end.saturating_sub(self.truncated)
    }
}

/// What an attempt used, from its guard's `getrusage(RUSAGE_CHILDREN)` and the cgroup where there is one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// From start to end, in milliseconds.
    pub duration_ms: u64,
    /// User CPU time, in milliseconds.
    pub user_ms: u64,
    /// System CPU time, in milliseconds.
    pub system_ms: u64,
    /// Largest resident set of one process, in KiB.
    pub max_rss_kib: u64,
    /// Processes that were left behind when the lead process ended, and were killed.
    pub leftovers: u32,
    /// Most memory of all its processes together, in KiB, where a cgroup counted it.
    pub peak_memory_kib: Option<u64>,
}

/// What the board was like while an attempt ran, from readings every 2 s. All but `gpu_memory_mib` is of the whole board,
/// whatever else ran on it. `None` is unknown: without a source, or when no reading fell into the attempt.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peaks {
    /// Greatest load of the (first) GPU, in permille.
    pub gpu_permille: Option<u32>,
    /// Most memory that was in use, in MiB.
    pub memory_used_mib: Option<u64>,
    /// Most memory that the attempt's own processes used of GPUs with memory of their own, in MiB.
    pub gpu_memory_mib: Option<u64>,
    /// What the board drew from start to end, in mWh: its total, or the sum of its rails.
    pub energy_mwh: Option<u64>,
}

/// What a job says of itself, through the file that `DUNLIN_REPORT` names. `None`: it said nothing of that.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Told {
    /// How far it is, in per cent.
    pub progress: Option<u8>,
    /// Tokens of a language model that it used.
    pub tokens: Option<u64>,
    /// What it cost, in units of whoever counts.
    pub cost: Option<u64>,
    /// Its result: the text of a JSON object of at most `limits::RESULT_MAX` bytes.
    pub result: Option<String>,
}

impl Told {
    /// Without what is beyond its bound.
    #[must_use]
    pub fn bounded(self) -> Self {
        let count = |n: &u64| *n <= limits::COUNT_MAX;
        Self {
            progress: self.progress.filter(|percent| *percent <= 100),
            tokens: self.tokens.filter(count),
            cost: self.cost.filter(count),
            result: self.result.filter(|text| text.len() <= limits::RESULT_MAX),
        }
    }

    /// Adds what another part of the same attempt used.
    pub fn add(&mut self, part: &Told) {
        let sum = |a: Option<u64>, b: Option<u64>| match (a, b) {
            (None, None) => None,
            (a, b) => Some(a.unwrap_or(0).saturating_add(b.unwrap_or(0))),
        };
        self.tokens = sum(self.tokens, part.tokens);
        self.cost = sum(self.cost, part.cost);
    }
}

/// An outcome with everything that belongs to it. Sent until it is acknowledged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// How it ended.
    pub outcome: Outcome,
    /// The raw wait status, when a process ran.
    pub wait_status: Option<i32>,
    /// The rule that allowed it.
    pub rule: Option<String>,
    /// First eight bytes of the SHA-256 of the policy in force.
    pub policy: [u8; 8],
    /// The timeout that was in force, in milliseconds.
    pub timeout_ms: Option<u64>,
    /// Bits of [`layer`]: which protections were applied.
    pub sandbox: u32,
    /// What was used.
    pub usage: Usage,
    /// End of stdout, then of stderr.
    pub streams: [StreamEnd; 2],
    /// What the board was like meanwhile.
    pub peaks: Peaks,
    /// What the job said of itself.
    pub told: Told,
}

impl Report {
    /// A report of an attempt for which no process ran.
    pub fn without_process(outcome: Outcome) -> Self {
        Self {
            outcome,
            wait_status: None,
            rule: None,
            policy: [0; 8],
            timeout_ms: None,
            sandbox: 0,
            usage: Usage::default(),
            streams: Default::default(),
            peaks: Peaks::default(),
            told: Told::default(),
        }
    }
}

/// Bits of [`Report::sandbox`]. Append only.
pub mod layer {
    /// `PR_SET_NO_NEW_PRIVS`.
    pub const NO_NEW_PRIVS: u32 = 1;
    /// An own cgroup.
    pub const CGROUP: u32 = 1 << 1;
    /// Resource limits.
    pub const RLIMITS: u32 = 1 << 2;
    /// A user of its own.
    pub const USER: u32 = 1 << 3;
    /// A mount namespace: read-only but for what the rule lets it write, a private /tmp, a small /dev.
    pub const MOUNTS: u32 = 1 << 4;
    /// An IPC namespace.
    pub const IPC: u32 = 1 << 5;
    /// An empty network namespace.
    pub const NETWORK: u32 = 1 << 6;
    /// A filter of system calls.
    pub const SECCOMP: u32 = 1 << 7;
    /// No capability, and none to be had.
    pub const CAPABILITIES: u32 = 1 << 8;
    /// Landlock.
    pub const LANDLOCK: u32 = 1 << 9;
    /// A limit of memory.
    pub const MEMORY: u32 = 1 << 10;
    /// A limit of processes.
    pub const PIDS: u32 = 1 << 11;
    /// A limit of CPU time per time.
    pub const CPU: u32 = 1 << 12;
    /// Every layer with its word.
    pub const ALL: &[(u32, &str)] = &[
        (NO_NEW_PRIVS, "no_new_privs"),
        (CGROUP, "cgroup"),
        (RLIMITS, "rlimits"),
        (USER, "user"),
        (MOUNTS, "mounts"),
        (IPC, "ipc"),
        (NETWORK, "network"),
        (SECCOMP, "seccomp"),
        (CAPABILITIES, "capabilities"),
        (LANDLOCK, "landlock"),
        (MEMORY, "memory"),
        (PIDS, "pids"),
        (CPU, "cpu"),
    ];

    /// The words of some layers.
    pub fn words(bits: u32) -> impl Iterator<Item = &'static str> {
        ALL.iter().filter(move |(bit, _)| bits & bit != 0).map(|(_, word)| *word)
    }
}
