//! How an attempt ended. Closed lists: the same words in the wire, the API, the command line, the dashboard and metrics.

use crate::job::CancelledBy;
use serde::{Deserialize, Serialize};
use std::fmt;

/// How far a job that ran out of time had to be pushed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum TimeoutPhase {
    /// It ended on SIGTERM within its grace.
    Term,
    /// It needed SIGKILL.
    Kill,
}

/// What cut an attempt short without anybody's intent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Interruption {
    /// The board lost power or rebooted.
    PowerLoss,
    /// The agent's process ended under the job.
    ExecutorRestart,
    /// The agent was being updated.
    AgentUpdate,
    /// The lease ran out and the board killed the job.
    LeaseLost,
}

macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $word:literal,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub enum $name { $($(#[$vdoc])* $variant,)* }

        impl $name {
            /// Every value, in wire order.
            pub const ALL: &'static [$name] = &[$($name::$variant,)*];

            /// The stable word.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word,)* }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

words! {
    /// Why a board refused a job. Append only.
    Denial {
        /// The job's shape is wrong.
        Malformed = "malformed",
        /// The program is not an absolute path.
        NotAbsolute = "not_absolute",
        /// No rule names the program.
        NotAllowlisted = "not_allowlisted",
        /// An argument matches no matcher, or their number is wrong.
        Argument = "argument",
        /// A value starts with `-` where no option may stand.
        ArgumentOption = "argument_option",
        /// A path operand lies outside its root or is of the wrong kind.
        ArgumentPath = "argument_path",
        /// An argument has a NUL byte.
        ArgumentNul = "argument_nul",
        /// An argument has a control character.
        ArgumentControl = "argument_control",
        /// An argument has characters that the rule does not take.
        ArgumentCharset = "argument_charset",
        /// An argument is too long.
        ArgumentLength = "argument_length",
        /// A variable is not allowed, or its value is not.
        Env = "env",
        /// The working directory is not one the rule allows.
        Cwd = "cwd",
        /// The user is not available.
        User = "user",
        /// The asked timeout is over the rule's ceiling.
        TimeoutOverCeiling = "timeout_over_ceiling",
        /// The asked output is over the ceiling.
        OutputOverCeiling = "output_over_ceiling",
        /// The program does not exist.
        ProgramMissing = "program_missing",
        /// The program or a directory above it could be changed by others.
        ProgramUntrusted = "program_untrusted",
        /// The program is set-id.
        ProgramSetid = "program_setid",
        /// The program is not the pinned one.
        ProgramDigest = "program_digest",
        /// Free shell lines are off on this board.
        ShellDisabled = "shell_disabled",
        /// A free shell line needs a signature.
        ShellUnsigned = "shell_unsigned",
        /// The rule needs a signature.
        SignatureMissing = "signature_missing",
        /// The signature is wrong.
        SignatureInvalid = "signature_invalid",
        /// The key is not trusted here.
        KeyUnknown = "key_unknown",
        /// The key was revoked.
        KeyRevoked = "key_revoked",
        /// The key may not do this.
        KeyScope = "key_scope",
        /// The job was signed for others.
        Audience = "audience",
        /// The job's time has not come.
        NotYetValid = "not_yet_valid",
        /// The job's time is over.
        Expired = "expired",
        /// The job was seen before.
        Replayed = "replayed",
        /// No attempts are left.
        AttemptsExhausted = "attempts_exhausted",
        /// The board's clock cannot be trusted for this.
        ClockUntrusted = "clock_untrusted",
        /// The table of seen jobs is full.
        ReplayStoreFull = "replay_store_full",
        /// The sandbox that the rule requires cannot be had.
        SandboxUnavailable = "sandbox_unavailable",
        /// The board lacks what the task needs.
        CapabilityMissing = "capability_missing",
        /// Every slot is taken.
        Busy = "busy",
        /// The agent is shutting down.
        Draining = "draining",
        /// There is no room to keep the result.
        DiskFull = "disk_full",
        /// The board's policy file is invalid, so everything is denied.
        PolicyInvalid = "policy_invalid",
    }
}

words! {
    /// A step of starting a process that can fail. Append only.
    SpawnStep {
        /// Starting the guard process.
        Guard = "guard",
        /// Making the scratch directory.
        Scratch = "scratch",
        /// Joining the cgroup.
        Cgroup = "cgroup",
        /// Making the pipes.
        Pipe = "pipe",
        /// fork or clone.
        Fork = "fork",
        /// setsid.
        Session = "session",
        /// Resetting signals.
        Signals = "signals",
        /// Entering the working directory.
        Cwd = "cwd",
        /// Wiring stdin, stdout and stderr.
        Stdio = "stdio",
        /// Resource limits.
        Rlimit = "rlimit",
        /// no_new_privs.
        NoNewPrivs = "no_new_privs",
        /// Closing inherited descriptors.
        CloseFds = "close_fds",
        /// The exec itself.
        Exec = "exec",
        /// Namespaces of its own.
        Namespaces = "namespaces",
        /// What it sees of the file system.
        Mounts = "mounts",
        /// Becoming its user.
        User = "user",
        /// Giving up capabilities.
        Capabilities = "capabilities",
        /// Landlock.
        Landlock = "landlock",
        /// The filter of system calls.
        Seccomp = "seccomp",
    }
}

words! {
    /// A limit that ended a job. Append only.
    Limit {
        /// CPU seconds.
        Cpu = "cpu",
        /// File size.
        FileSize = "file_size",
        /// Process count.
        Pids = "pids",
    }
}

/// How an attempt ended. Append only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// Exit status 0.
    Ok,
    /// The program ended with another status.
    Exit {
        /// Its status, 1 to 255.
        code: u8,
    },
    /// The program died of a signal that was not ours.
    Signal {
        /// The signal's number.
        signo: u8,
    },
    /// The run timeout was over.
    TimedOut {
        /// What it took.
        phase: TimeoutPhase,
    },
    /// Cancelled on request.
    Cancelled {
        /// By whom.
        by: CancelledBy,
    },
    /// The board refused it; nothing was started.
    Denied {
        /// The closed reason.
        reason: Denial,
    },
    /// The process could not be started.
    SpawnFailed {
        /// Where.
        step: SpawnStep,
        /// The system's error number.
        errno: i32,
    },
    /// The rule ends a job whose output is over its limit.
    OutputOverflow,
    /// The kernel killed it for memory (by the cgroup's counter).
    OomKilled,
    /// A resource limit ended it.
    LimitHit {
        /// Which.
        which: Limit,
    },
    /// Something else ended it.
    Interrupted {
        /// What.
        by: Interruption,
    },
    /// It could not be killed; its slot is out of use.
    Stuck,
    /// A fault of the agent.
    AgentInternal,
}

impl Outcome {
    /// The closed code, as shown everywhere.
    pub fn code(&self) -> &'static str {
        match self {
            Outcome::Ok => "ok",
            Outcome::Exit { .. } => "exit",
            Outcome::Signal { .. } => "signal",
            Outcome::TimedOut { .. } => "timed_out",
            Outcome::Cancelled { .. } => "cancelled",
            Outcome::Denied { .. } => "denied",
            Outcome::SpawnFailed { .. } => "spawn_failed",
            Outcome::OutputOverflow => "output_overflow",
            Outcome::OomKilled => "oom_killed",
            Outcome::LimitHit { .. } => "limit_hit",
            Outcome::Interrupted { .. } => "interrupted",
            Outcome::Stuck => "stuck",
            Outcome::AgentInternal => "agent_internal",
        }
    }

    /// What is said beside the code: `7` of `exit`, `cwd` of `denied`; empty when there is nothing.
    pub fn detail(&self) -> String {
        match self {
            Outcome::Exit { code } => code.to_string(),
            Outcome::Signal { signo } => signo.to_string(),
            Outcome::TimedOut { phase: TimeoutPhase::Term } => "term".into(),
            Outcome::TimedOut { phase: TimeoutPhase::Kill } => "kill".into(),
            Outcome::Cancelled { by: CancelledBy::Operator } => "operator".into(),
            Outcome::Cancelled { by: CancelledBy::Halt } => "halt".into(),
            Outcome::Denied { reason } => reason.to_string(),
            Outcome::SpawnFailed { step, errno } => format!("{step},{errno}"),
            Outcome::LimitHit { which } => which.to_string(),
            Outcome::Interrupted { by } => match by {
                Interruption::PowerLoss => "power_loss",
                Interruption::ExecutorRestart => "executor_restart",
                Interruption::AgentUpdate => "agent_update",
                Interruption::LeaseLost => "lease_lost",
            }
            .into(),
            Outcome::Ok
            | Outcome::OutputOverflow
            | Outcome::OomKilled
            | Outcome::Stuck
            | Outcome::AgentInternal => String::new(),
        }
    }

    /// The exit code of `dunlin submit --wait` for it (EXEC, "CLI exit").
    pub fn exit_code(&self) -> u8 {
        match self {
            Outcome::Ok => 0,
            Outcome::Exit { code } => *code,
            Outcome::Signal { signo } => 128u8.saturating_add(*signo),
            Outcome::TimedOut { .. } => 124,
            Outcome::Cancelled { .. } => 130,
            Outcome::Denied { .. } => 77,
            // The shell's convention: 127 when there is nothing to run, 126 when it cannot be run.
            Outcome::SpawnFailed { errno: 2, .. } => 127,
            Outcome::SpawnFailed { .. } => 126,
            Outcome::OutputOverflow => 74,
            Outcome::OomKilled => 137,
            Outcome::LimitHit { .. } | Outcome::Stuck => 125,
            Outcome::Interrupted { .. } => 75,
            Outcome::AgentInternal => 70,
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let detail = self.detail();
        f.write_str(self.code())?;
        if detail.is_empty() { Ok(()) } else { write!(f, "({detail})") }
    }
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_follow_the_table() {
        for (outcome, code) in [
            (Outcome::Ok, 0),
            (Outcome::Exit { code: 7 }, 7),
            (Outcome::Signal { signo: 11 }, 139),
            (Outcome::TimedOut { phase: TimeoutPhase::Term }, 124),
            (Outcome::Cancelled { by: CancelledBy::Operator }, 130),
            (Outcome::Denied { reason: Denial::Cwd }, 77),
            (Outcome::SpawnFailed { step: SpawnStep::Exec, errno: 2 }, 127),
            (Outcome::SpawnFailed { step: SpawnStep::Exec, errno: 13 }, 126),
            (Outcome::OomKilled, 137),
            (Outcome::Stuck, 125),
            (Outcome::Interrupted { by: Interruption::PowerLoss }, 75),
            (Outcome::OutputOverflow, 74),
            (Outcome::AgentInternal, 70),
        ] {
            assert_eq!(outcome.exit_code(), code, "{outcome}");
        }
    }
}
