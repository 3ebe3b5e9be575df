//! The board's policy: what may run here. Default deny, argv only, no normalisation, no negative rules.
//!
//! Pure: text in, [`Policy`] out; a request in, [`decide`] says which rule allows it or why none does. Whether files are
//! what the policy wants them to be is looked at by `exec::prepare`, on the opened things.

mod compile;
mod decide;
mod names;
mod raw;

pub use compile::{PolicyError, lint};
pub use decide::{Allowed, Operand, Request, Signed, decide};
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
}

impl Default for Ceilings {
    fn default() -> Self {
        Self { timeout_ms: 120_000, grace_ms: 5_000, output: 8 << 20, jobs: 2 }
    }
}

/// Which jobs must be signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signing {
    /// None.
    Never,
    /// Those under a rule that is root, shell, detached or a launcher.
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
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grade {
    /// It is root, a free shell, detached or a launcher.
    pub privileged: bool,
    /// Its one argument is a free line for a shell.
    pub shell: bool,
    /// Whom it runs as, as the policy says it: `slot`, `root`, or a name.
    pub user: String,
}

/// One rule.
#[derive(Debug, Clone)]
pub struct Rule {
    /// Its name, unique in the policy.
    pub id: String,
    /// The program's absolute path, which argv[0] must equal byte for byte.
    pub program: String,
    /// SHA-256 digests the program may have; empty: any.
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
    /// Output kept per stream, in bytes.
    pub output: u64,
    /// What happens beyond it.
    pub on_output_limit: OnOutputLimit,
    /// Non-ASCII letters are taken.
    pub unicode: bool,
    /// The program may run other programs.
    pub launcher: bool,
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
    /// Settings for the whole board that this version does not enforce.
    pub unenforced: Vec<String>,
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
