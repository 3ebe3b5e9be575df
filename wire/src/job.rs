//! What a task asks a board to do. How an attempt at it ended is in [`crate::outcome`], re-exported here.

use crate::limits;
use serde::{Deserialize, Serialize};

pub use crate::actuation::Actuation;
pub use crate::outcome::{Denial, HookEnd, Interruption, Limit, NoGo, Outcome, SpawnStep, TimeoutPhase};
pub use crate::report::{Peaks, Report, StreamEnd, Told, Usage, layer};

/// The typed kinds of work. Append only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Job {
    /// One program with arguments, under a rule of the board's policy. Never a shell line.
    Shell(Shell),
    /// An [`crate::envelope::Envelope`] as it was signed. What runs is what the board finds in it; to everybody on the way
    /// it is opaque.
    Signed(#[serde(with = "serde_bytes")] Vec<u8>),
    /// Steps in order, behind the board's own security gate and before its own reviewer: nothing here says which.
    OrchestratorRun(OrchestratorRun),
    /// A request to a receiver that the board's policy names.
    HookDispatch(HookDispatch),
    /// Wakes whoever listens behind a hook.
    Wake(Wake),
    /// A program that moves an actuator, with what is declared of that.
    Actuation(Actuation),
}

impl Job {
    /// Checks sizes only; whether it may run is the board's decision.
    ///
    /// # Errors
    /// The first field over its bound.
    pub fn check_shape(&self) -> Result<(), ShapeError> {
        match self {
            Job::Shell(shell) => shell.check_shape(),
            Job::Actuation(actuation) => actuation.check_shape(),
            Job::Signed(bytes) if bytes.len() > limits::ENVELOPE_MAX => {
                over("payload.envelope", limits::ENVELOPE_MAX)
            }
            Job::Signed(_) => Ok(()),
            Job::OrchestratorRun(run) => run.check_shape(),
            Job::HookDispatch(HookDispatch { hook, .. }) | Job::Wake(Wake { hook, .. })
                if !is_hook_name(hook) =>
            {
                let rule = format!("must be 1 to {HOOK_NAME_MAX} of a-z, 0-9 and `-`");
                Err(ShapeError { field: "payload.hook", rule })
            }
            Job::HookDispatch(hook) if hook.payload.len() > limits::JOB_BYTES_MAX => {
                over("payload.payload", limits::JOB_BYTES_MAX)
            }
            Job::Wake(wake) if wake.text.len() > limits::WAKE_MAX => over("payload.text", limits::WAKE_MAX),
            Job::Wake(wake) if wake.text.is_empty() => {
                Err(ShapeError { field: "payload.text", rule: "must not be empty".into() })
            }
            Job::HookDispatch(_) | Job::Wake(_) => Ok(()),
        }
    }
}

/// Longest name of a hook, in bytes: with what stands before it, it is a tag.
pub const HOOK_NAME_MAX: usize = 32;

/// Whether a hook can have this name.
pub fn is_hook_name(name: &str) -> bool {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    (1..=HOOK_NAME_MAX).contains(&name.len()) && name.bytes().all(plain)
}

fn over(field: &'static str, max: usize) -> Result<(), ShapeError> {
    Err(ShapeError { field, rule: format!("must be at most {max} bytes") })
}

/// Payload of [`Job::OrchestratorRun`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OrchestratorRun {
    /// One after the other, each under a rule of the board's policy; 1 to `limits::STEPS_MAX`.
    pub steps: Vec<Shell>,
}

impl OrchestratorRun {
    fn check_shape(&self) -> Result<(), ShapeError> {
        if self.steps.is_empty() || self.steps.len() > limits::STEPS_MAX {
            let rule = format!("must have 1 to {} elements", limits::STEPS_MAX);
            return Err(ShapeError { field: "payload.steps", rule });
        }
        self.steps.iter().try_for_each(Shell::check_shape)?;
        let all: usize = self.steps.iter().map(Shell::bytes).sum();
        if all > limits::JOB_BYTES_MAX { over("payload", limits::JOB_BYTES_MAX) } else { Ok(()) }
    }
}

/// Payload of [`Job::HookDispatch`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HookDispatch {
    /// The hook's name in the board's policy.
    pub hook: String,
    /// Text of the JSON object whose fields the board checks.
    pub payload: String,
}

/// Payload of [`Job::Wake`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wake {
    /// The hook's name in the board's policy.
    pub hook: String,
    /// What is said to whoever is woken.
    pub text: String,
}

/// Payload of [`Job::Shell`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shell {
    /// The program's absolute path, then its arguments.
    pub argv: Vec<String>,
    /// Working directory; `None` means a fresh scratch directory.
    pub cwd: Option<String>,
    /// Extra environment, allowed name by name by the rule.
    pub env: Vec<(String, String)>,
}

/// What is wrong with a job's shape: the field and the rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field} {rule}")]
pub struct ShapeError {
    /// The API's name of the field.
    pub field: &'static str,
    /// The rule that it breaks.
    pub rule: String,
}

impl Shell {
    /// Checks sizes only; whether it may run is the board's decision.
    ///
    /// # Errors
    /// The first field over its bound.
    pub fn check_shape(&self) -> Result<(), ShapeError> {
        let err = |field, rule: String| Err(ShapeError { field, rule });
        if self.argv.is_empty() || self.argv.len() > limits::ARGV_MAX {
            return err("payload.argv", format!("must have 1 to {} elements", limits::ARGV_MAX));
        }
        if self.argv.iter().any(|a| a.len() > limits::ARG_BYTES_MAX) {
            return err("payload.argv", format!("elements must be at most {} bytes", limits::ARG_BYTES_MAX));
        }
        if self.cwd.as_ref().is_some_and(|c| c.is_empty() || c.len() > limits::PATH_BYTES_MAX) {
            return err("payload.cwd", format!("must be 1 to {} bytes", limits::PATH_BYTES_MAX));
        }
        if self.env.len() > limits::ENV_MAX {
            return err("payload.env", format!("must have at most {} entries", limits::ENV_MAX));
        }
        if self.bytes() > limits::JOB_BYTES_MAX {
            return err("payload", format!("must be at most {} bytes in all", limits::JOB_BYTES_MAX));
        }
        Ok(())
    }

    fn bytes(&self) -> usize {
        let args: usize = self.argv.iter().map(String::len).sum();
        args + self.env.iter().map(|(k, v)| k.len() + v.len()).sum::<usize>()
    }
}

/// What happens to a running attempt when its agent cannot renew the lease.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum OnDisconnect {
    /// The board kills the job at its deadline, the hub requeues after its own later one.
    #[default]
    Fence,
    /// The job runs on and its result is taken when the link is back.
    CarryOn,
}

/// What happens when the device dies under an attempt.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Delivery {
    /// The task is tried again while attempts are left.
    #[default]
    AtLeastOnce,
    /// An attempt that may have started is never started again.
    AtMostOnce,
}

/// One of a process's two output streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Stream {
    /// File descriptor 1.
    Stdout,
    /// File descriptor 2.
    Stderr,
}

impl Stream {
    /// Both, in the order in which reports list them.
    pub const BOTH: [Stream; 2] = [Stream::Stdout, Stream::Stderr];

    /// The stable word.
    pub fn as_str(self) -> &'static str {
        match self {
            Stream::Stdout => "stdout",
            Stream::Stderr => "stderr",
        }
    }
}

/// Who asked for a cancellation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum CancelledBy {
    /// An operator cancelled the task.
    Operator,
    /// The fleet was halted.
    Halt,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_are_bounded() {
        let shell = |argv: Vec<String>| Shell { argv, cwd: None, env: vec![] };
        assert!(shell(vec!["/bin/true".into()]).check_shape().is_ok());
        assert_eq!(shell(vec![]).check_shape().unwrap_err().field, "payload.argv");
        assert!(shell(vec!["x".into(); 257]).check_shape().is_err());
        assert_eq!(shell(vec!["x".repeat(32_000); 5]).check_shape().unwrap_err().field, "payload");
    }
}
