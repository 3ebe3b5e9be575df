//! The board's policy: what may run here. Default deny, argv only, no normalisation, no negative rules.
//!
//! Pure: text in, [`Policy`] out; a request in, [`decide`] says which rule allows it or why none does. Whether files are
//! what the policy wants them to be is looked at by `exec::prepare`, on the opened things.

mod actuation;
mod compile;
mod confine;
mod decide;
mod hooks;
mod names;
mod narrow;
mod raw;

pub use actuation::Actuator;
pub use compile::{PolicyError, lint};
pub use decide::{Allowed, Operand, Request, Signed, decide, hook, own};
pub use hooks::{Field, Hook, HookKind, Orchestrator};
pub(crate) use names::is_launcher;

use dunlin_wire::job::Denial;
use regex_lite::Regex;
use std::collections::BTreeMap;

/// Timeout of a rule that names none, in milliseconds.
pub const TIMEOUT_MS: u64 = 20_000;
/// Elements of an argv, the program included, that any rule may take.
pub const ARGV_MAX: usize = 128;
/// Bytes of one argument that any rule may take.
pub const ARG_BYTES_MAX: usize = 4096;

/// Longest run of a part of the gate, and of the reviewer, in milliseconds.
pub const STAGE_MS_MAX: u64 = 90_000;
/// How long a hook that says nothing waits for its answer, in milliseconds.
pub const HOOK_TIMEOUT_MS: u64 = 120_000;
/// Largest body of a hook's request, in bytes: what a job may have.
pub const HOOK_BODY_MAX: usize = dunlin_wire::limits::JOB_BYTES_MAX;

/// What nothing on this board may exceed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ceilings {
    /// Longest run time, in milliseconds.
    pub timeout_ms: u64,
    /// Time between SIGTERM and SIGKILL, in milliseconds.
    pub grace_ms: u64,
    /// Most output kept per stream, in bytes.
    pub output: u64,
    /// Jobs at once.
    pub jobs: u32,
    /// Memory of one job, in bytes.
    pub memory: Option<u64>,
    /// Processes of one job.
    pub pids: Option<u64>,
}

impl Default for Ceilings {
    fn default() -> Self {
        Self { timeout_ms: 120_000, grace_ms: 5_000, output: 8 << 20, jobs: 2, memory: None, pids: None }
    }
}

/// Which jobs must be signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signing {
    /// None.
    Never,
    /// Those under a rule that is root, shell, detached, a launcher, or moves something.
    Privileged,
    /// All.
    Always,
}

/// A directory that paths may lie beneath.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Root {
    /// Its absolute path, without a slash at the end.
    pub path: String,
    /// Symbolic links inside it may be followed, as long as they stay inside.
    pub symlinks: bool,
    /// Mount points inside it may be crossed.
    pub cross_mount: bool,
}

/// What a path operand must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PathKind {
    /// A regular file.
    File,
    /// A directory.
    Dir,
}

/// What one element of an argv must be.
#[derive(Debug, Clone)]
pub enum Matcher {
    /// Exactly this.
    Literal(String),
    /// The whole element matches; `dash` lets it begin with `-`.
    Re(Regex, bool),
    /// A canonical decimal in these bounds, both included; `dash` lets it be negative.
    Int(i64, i64, bool),
    /// One of these.
    OneOf(Vec<String>),
    /// An absolute path beneath this root.
    Path(String, PathKind),
}

/// What to do with a job whose output passes its limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnOutputLimit {
    /// Keep head and tail, and let it run.
    Truncate,
    /// End it.
    Kill,
}

/// What a signature has to do with a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grade {
    /// It is root, a free shell, detached, a launcher, or moves something.
    pub privileged: bool,
    /// Its one argument is a free line for a shell.
    pub shell: bool,
}

/// What happens when a protection cannot be had on this board.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Strictness {
    /// What the rule asks for by name must be there; of the rest, what there is.
    Asked,
    /// All of it must be there.
    Require,
    /// What there is.
    BestEffort,
}

/// Whom a job runs as. Never degraded: a user that is not to be had is a denial.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum User {
    /// The rule does not say: the slot's, where the policy has slots, else the executor's own.
    Unsaid,
    /// The slot's.
    Slot,
    /// Root.
    Root,
    /// This one, by name or number.
    Named(String),
}

impl User {
    /// As the policy and a signer's scope say it.
    pub fn as_str(&self) -> &str {
        match self {
            User::Unsaid | User::Slot => "slot",
            User::Root => "root",
            User::Named(name) => name,
        }
    }
}

/// How a rule's jobs are shut in.
#[derive(Debug, Clone)]
pub struct Confinement {
    /// What must be there.
    pub strictness: Strictness,
    /// Whom it runs as.
    pub user: User,
    /// Supplementary groups, by name or number.
    pub groups: Vec<String>,
    /// Whether it sees the board's network; else an empty one.
    pub network: bool,
    /// Directories it may write to: a root's path, and the way down from it (empty for the root itself).
    pub write: Vec<(String, String)>,
    /// Every root that the rule names.
    pub roots: Vec<String>,
    /// Devices beside the harmless ones: absolute paths below /dev, `*` in the last component.
    pub devices: Vec<String>,
    /// Memory and swap together, in bytes.
    pub memory: Option<u64>,
    /// Processes and threads.
    pub pids: Option<u64>,
    /// Per cent of one CPU.
    pub cpu: Option<u32>,
}

/// One rule.
#[derive(Debug, Clone)]
pub struct Rule {
    /// Its name, unique in the policy.
    pub id: String,
    /// The program's absolute path, which argv[0] must equal byte for byte.
    pub program: String,
    /// The script that the program interprets: its absolute path, which argv[1] must equal byte for byte.
    pub script: Option<String>,
    /// SHA-256 digests the program (and the script) may have; empty: any.
    pub sha256: Vec<[u8; 32]>,
    /// The arguments, in order.
    pub args: Vec<Matcher>,
    /// Each argument behind them, and how many.
    pub rest: Option<(Matcher, usize, usize)>,
    /// Roots its working directory may be in.
    pub cwd: Vec<String>,
    /// Variables a task may set.
    pub env: BTreeMap<String, Matcher>,
    /// What it takes to be signed for.
    pub grade: Grade,
    /// Variables the board sets, by the name of the credential that holds the value.
    pub secret_env: BTreeMap<String, String>,
    /// How its jobs are shut in.
    pub confinement: Confinement,
    /// Why this version cannot run it, although the policy is in order.
    pub unmet: Option<Denial>,
    /// Largest file it may write, in bytes.
    pub file_size: Option<u64>,
    /// Files it may have open.
    pub nofile: Option<u64>,
    /// Default timeout, in milliseconds.
    pub timeout_ms: u64,
    /// Longest timeout a task may ask for, in milliseconds.
    pub timeout_ms_max: u64,
    /// What any timeout is cut to, in milliseconds: an overlay's word, else no bound.
    pub timeout_ms_cap: u64,
    /// Output kept per stream, in bytes.
    pub output: u64,
    /// What happens beyond it.
    pub on_output_limit: OnOutputLimit,
    /// Non-ASCII letters are taken.
    pub unicode: bool,
    /// The program may run other programs.
    pub launcher: bool,
    /// What it moves in the world.
    pub actuator: Option<Actuator>,
}

/// A policy that is in order.
#[derive(Debug, Clone)]
pub struct Policy {
    /// The ceilings.
    pub ceilings: Ceilings,
    /// Roots by name.
    pub roots: BTreeMap<String, Root>,
    /// The rules, in order.
    pub rules: Vec<Rule>,
    /// Which jobs must be signed.
    pub signing: Signing,
    /// Whether free shell lines are on.
    pub shell: bool,
    /// A user for each job at once, by name or number; empty: jobs run as the executor does.
    pub slots: Vec<String>,
    /// What decides over orchestrator runs; without it there are none.
    pub orchestrator: Option<Orchestrator>,
    /// Receivers on this board.
    pub hooks: Vec<Hook>,
}

impl Policy {
    /// Reads a policy from its files: name and text of each, the main one first.
    ///
    /// # Errors
    /// The first thing that is wrong, with file, line and rule.
    pub fn parse(files: &[(String, String)]) -> Result<Self, PolicyError> {
        compile::compile(files)
    }
}
