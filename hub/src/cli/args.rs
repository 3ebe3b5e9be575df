//! What `dunlin` can be told.

use super::client::{Failure, Target};
use super::key::{KeyCommand, KeysCommand};
use super::policy::PolicyCommand;
use super::sign::{BundleArgs, SignArgs};
use clap::{Args, Parser, Subcommand};

const AFTER: &str = "\
Exit codes of `submit --wait`: 0 ok; the job's own code; 128+N signal N; 124 timed out; 130 cancelled; 77 denied by the
board; 126/127 could not be started; 137 out of memory; 125 limit hit or stuck; 75 interrupted or lost; 74 output over
its limit; 70 fault of the agent.
Of `task logs -f`: 0 when the attempt has ended, however; 130 on Ctrl-C, which ends nothing but the following.
Of every command: 64 wrong usage; 65 the hub refused what was asked; 69 the hub cannot be reached; 77 token refused.
The token comes from DUNLIN_TOKEN, or from --token-file (0600; default ~/.config/dunlin/token).";

#[derive(Parser)]
#[command(name = "dunlin", version, about = "Submit jobs to a Dunlin fleet, and look after it.", after_help = AFTER)]
pub(super) struct Cli {
    #[command(flatten)]
    pub target: Target,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand)]
pub(super) enum Command {
    /// Submit a task: what follows `--` is run, without a shell.
    Submit(Box<SubmitArgs>),
    /// List tasks, newest first.
    Tasks {
        /// queued, claimed, running, done, failed or cancelled.
        #[arg(long)]
        state: Option<String>,
        /// Only tasks of this node.
        #[arg(long)]
        node: Option<String>,
        /// Only tasks that require this tag.
        #[arg(long)]
        tag: Option<String>,
        /// How many.
        #[arg(long, default_value_t = 50)]
        limit: u32,
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// One task.
    Task {
        #[command(subcommand)]
        command: TaskCommand,
    },
    /// List dead letters: tasks that were given up.
    Dlq {
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// List nodes.
    Nodes {
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Watch the nodes: load, GPU, memory, temperature, and the queue.
    Top {
        /// One frame as text; so it is too when the output is no terminal.
        #[arg(long)]
        once: bool,
    },
    /// Who did what, and what boards decided; newest first.
    Audit {
        /// Only of this token, or `node:NAME`.
        #[arg(long)]
        actor: Option<String>,
        /// Only on this task or node.
        #[arg(long)]
        target: Option<String>,
        /// Only with this code: ok, allowed, or that of a denial or refusal.
        #[arg(long)]
        code: Option<String>,
        /// Only since then, in milliseconds since the epoch.
        #[arg(long)]
        since: Option<u64>,
        /// How many.
        #[arg(long, default_value_t = 50)]
        limit: u32,
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// One node.
    Node {
        #[command(subcommand)]
        command: NodeCommand,
    },
    /// Print events as they happen.
    Watch {
        /// Begin after this event.
        #[arg(long)]
        since: Option<u64>,
        /// One JSON object per line.
        #[arg(long)]
        json: bool,
    },
    /// Keys that sign jobs.
    Key {
        #[command(subcommand)]
        command: KeyCommand,
    },
    /// Sets of keys that boards trust, and revocation.
    Keys {
        #[command(subcommand)]
        command: KeysCommand,
    },
    /// Sign a job into a file, for a board without a hub (`dunlin-agent run-bundle`).
    Bundle(Box<BundleArgs>),
    /// Narrow what boards allow.
    Policy {
        #[command(subcommand)]
        command: PolicyCommand,
    },
    /// Stop the fleet: nothing is granted, what runs is cancelled, the queue is kept.
    Halt,
    /// Let a halted fleet go on.
    Resume,
}

#[derive(Args)]
pub(super) struct SubmitArgs {
    #[command(flatten)]
    pub job: JobArgs,
    #[command(flatten)]
    pub sign: SignArgs,
    /// shell, orchestrator-run, hook-dispatch or wake; actuation is what --actuate makes.
    #[arg(long, default_value = "shell")]
    pub kind: String,
    /// The job as a JSON file instead of what follows `--`; `-` is stdin.
    #[arg(long, value_name = "FILE", conflicts_with = "argv", required_unless_present = "argv")]
    pub payload: Option<std::path::PathBuf>,
    /// Only on this node.
    #[arg(long)]
    pub node: Option<String>,
    /// Only on nodes with this tag (`gpu`, `site:oslo`, `actuator:*`); may be repeated.
    #[arg(long)]
    pub tag: Vec<String>,
    /// What the board must say of itself: `gpuMemoryFreeMib >= 2048`, `memoryFreeMib`, `diskFreeMib`,
    /// `temperatureHeadroomC >= 10`, `powerMode == "MAXN"`, `l4t >= 36.4`, `not throttled`; may be repeated.
    #[arg(long, value_name = "EXPR")]
    pub require: Vec<String>,
    /// low, normal, high, urgent, or -10 to 100.
    #[arg(long, allow_hyphen_values = true)]
    pub priority: Option<String>,
    /// Longest wait in the queue.
    #[arg(long, value_parser = duration)]
    pub ttl: Option<u64>,
    /// What happens when the board loses the hub.
    #[arg(long, value_parser = ["fence", "carryOn"])]
    pub on_disconnect: Option<String>,
    /// Stream the job's output, and exit as it did.
    #[arg(long)]
    pub wait: bool,
    /// Print the task as JSON.
    #[arg(long)]
    pub json: bool,
}

/// The job itself, whoever carries it.
#[derive(Args)]
pub(super) struct JobArgs {
    /// Id of the task; the same id again with the same body changes nothing.
    #[arg(long)]
    pub task_id: Option<String>,
    /// Run timeout, like 250ms, 10s, 2m.
    #[arg(long, value_parser = duration)]
    pub timeout: Option<u64>,
    /// Attempts until the task is given up, 1 to 10.
    #[arg(long)]
    pub max_attempts: Option<u32>,
    /// Working directory on the board.
    #[arg(long)]
    pub cwd: Option<String>,
    /// Variable for the job, NAME=VALUE; may be repeated.
    #[arg(long)]
    pub env: Vec<String>,
    /// What happens when the board loses power.
    #[arg(long, value_parser = ["atLeastOnce", "atMostOnce"])]
    pub delivery: Option<String>,
    #[command(flatten)]
    pub actuate: ActuateArgs,
    /// Program (absolute path) and arguments.
    #[arg(last = true)]
    pub argv: Vec<String>,
}

impl JobArgs {
    /// The variables.
    pub(super) fn variables(&self) -> Result<Vec<(String, String)>, Failure> {
        let pair = |entry: &String| {
            let pair = entry.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned()));
            pair.ok_or_else(|| Failure::Usage(format!("--env `{entry}` must be NAME=VALUE")))
        };
        self.env.iter().map(pair).collect()
    }
}

/// What is declared of a job that moves something.
#[derive(Args)]
pub(super) struct ActuateArgs {
    /// The job moves this: actuator:pump:P1. The board's policy decides whether that may be.
    #[arg(long, value_name = "TARGET", requires_all = ["tier", "evidence", "argv"])]
    pub actuate: Option<String>,
    /// How good the evidence is: T0 (a conclusion), T1 (an observation), T2 (verified), T3 (verified by a human for this).
    #[arg(long, requires = "actuate", value_parser = ["T0", "T1", "T2", "T3"])]
    pub tier: Option<String>,
    /// Where it comes from.
    #[arg(long, requires = "actuate", value_delimiter = ',', value_parser = ["llm", "sensor", "human"])]
    pub evidence: Vec<String>,
    /// Who verified it.
    #[arg(long, requires = "actuate", value_delimiter = ',', value_parser = ["sensor", "human"])]
    pub verified_by: Vec<String>,
}

#[derive(Subcommand)]
pub(super) enum TaskCommand {
    /// Everything about it.
    Show {
        /// The task.
        id: String,
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// End it, wherever it is.
    Cancel {
        /// The task.
        id: String,
    },
    /// Queue it again after it was given up.
    Retry {
        /// The task.
        id: String,
    },
    /// What its job wrote.
    Logs {
        /// The task.
        id: String,
        /// The job's stderr instead of its stdout.
        #[arg(long)]
        stderr: bool,
        /// Another attempt than the latest.
        #[arg(long)]
        attempt: Option<u64>,
        /// Follow it until the attempt ends, also over a metered link; what is not seen live is marked on stderr.
        #[arg(short, long)]
        follow: bool,
        /// One JSON object a line: `data` (base64) or `gap` at an `offset`, `end` in the end.
        #[arg(long, requires = "follow")]
        json: bool,
    },
    /// Why it is not running.
    Why {
        /// The task.
        id: String,
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
}

#[derive(Subcommand)]
pub(super) enum NodeCommand {
    /// Make a ticket that enrols one device under this name; it is a secret.
    Invite {
        /// Name of the node.
        name: String,
        /// Tag of the node; may be repeated.
        #[arg(long)]
        tag: Vec<String>,
        /// Tasks at once, 1 to 100.
        #[arg(long, default_value_t = 1)]
        max_concurrent: u32,
        /// lan, wan or metered.
        #[arg(long)]
        profile: Option<String>,
        /// worker or viewer.
        #[arg(long)]
        role: Option<String>,
        /// Where it is.
        #[arg(long)]
        region: Option<String>,
        /// How long the ticket can be used; 24h by default.
        #[arg(long, value_parser = duration)]
        ttl: Option<u64>,
        /// As JSON, with the ticket's end.
        #[arg(long)]
        json: bool,
    },
    /// Everything about it.
    Show {
        /// The node.
        name: String,
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Give it nothing new.
    Drain {
        /// The node.
        name: String,
    },
    /// Say that it is down. The hub asks it first, for 3 s, and believes the node.
    ReportDown {
        /// The node.
        name: String,
    },
    /// Give it work again.
    Undrain {
        /// The node.
        name: String,
    },
    /// Never let its key in again.
    Revoke {
        /// The node.
        name: String,
    },
}

/// Milliseconds of `250ms`, `10s`, `2m`, `1h`, `90d`.
pub(super) fn duration(text: &str) -> Result<u64, String> {
    dunlin_wire::units::duration_ms(text).ok_or_else(|| "write it like 250ms, 10s, 2m, 1h or 90d".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_need_a_unit() {
        for (text, want) in
            [("250ms", Some(250)), ("2m", Some(120_000)), ("1h", Some(3_600_000)), ("5", None), ("", None)]
        {
            assert_eq!(duration(text).ok(), want, "{text}");
        }
    }

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
        let cli = Cli::try_parse_from([
            "dunlin",
            "submit",
            "--wait",
            "--priority",
            "-10",
            "--",
            "/bin/echo",
            "--wait",
        ]);
        let Ok(Cli { command: Command::Submit(args), .. }) = cli else { panic!("does not parse") };
        assert_eq!(args.job.argv, ["/bin/echo", "--wait"]);
    }
}
