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

            /// The value of a word.
            pub fn parse(word: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|value| value.as_str() == word)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

pub(crate) use words;

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
        /// The board has no hook of that name and kind.
        HookUnknown = "hook_unknown",
        /// A field of a hook's payload is not allowed, or not so.
        HookField = "hook_field",
        /// The hook's receiver refused its token again and again.
        HookPaused = "hook_paused",
        /// It would move an actuator, and says nothing of that.
        ActuationUndeclared = "actuation_declaration_required",
        /// The rule drives another actuator, or none.
        ActuationTarget = "actuation_target",
        /// Only a language model wants it.
        LlmOnlyActuation = "llm_only_actuation_blocked",
        /// The tier is lower than the board wants, or higher than the evidence bears.
        ActuationTier = "actuation_tier",
        /// Those did not verify it whom the board wants.
        ActuationUnverified = "actuation_unverified",
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
    /// What a run was not cleared for. Append only.
    NoGo {
        /// The board's security gate did not pass: no step was started.
        SecurityGateFailed = "security_gate_failed",
        /// A step did not end well.
        StepFailed = "step_failed",
        /// The board's reviewer did not agree.
        ReviewerNoGo = "reviewer_no_go",
    }
}

words! {
    /// How a hook's receiver answered, when it was no success. Append only.
    HookEnd {
        /// It took the request, and chose to do nothing.
        Skipped = "skipped",
        /// It did it, and that failed.
        Error = "error",
        /// It does not take such a request.
        Rejected = "rejected",
        /// It does not take the token.
        Unauthorized = "unauthorized",
        /// It could not be reached, or not now.
        Unavailable = "unavailable",
        /// The time was over before it answered: it may still do it.
        TimeoutUnknown = "timeout_unknown",
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
    /// The board decided against a run.
    NoGo {
        /// What it was not cleared for.
        why: NoGo,
    },
    /// A hook's receiver did not do it.
    Hook {
        /// What it answered.
        how: HookEnd,
    },
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
            Outcome::NoGo { .. } => "no_go",
            Outcome::Hook { .. } => "hook",
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
            Outcome::NoGo { why } => why.to_string(),
            Outcome::Hook { how } => how.to_string(),
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
            Outcome::NoGo { .. } => 1,
            Outcome::Hook { how: HookEnd::Unavailable } => 75,
            Outcome::Hook { how: HookEnd::TimeoutUnknown } => 124,
            Outcome::Hook { .. } => 76,
        }
    }

    /// Whether somebody decided against it: asking again would ask for another answer.
    pub fn is_refusal(&self) -> bool {
        match self {
            Outcome::NoGo { .. } => true,
            Outcome::Hook { how } => !matches!(how, HookEnd::Unavailable | HookEnd::TimeoutUnknown),
            _ => false,
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
