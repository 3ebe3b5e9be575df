//! The command line of `dunlin-agent`.

mod audit;
mod bundle;
mod doctor;
pub mod executor;
mod hook;
mod inspect;
mod install;
mod join;
pub mod policy;
mod telemetry;
mod up;

use crate::agent;
use crate::config::{Config, EXECUTOR_DATA, Overrides};
use dunlin_systemd::Options;
use lexopt::{Arg, Parser, ValueExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Wrong usage or configuration (sysexits EX_USAGE).
const EX_USAGE: u8 = 64;
/// The hub cannot be reached, or the agent could not start or go on (EX_UNAVAILABLE).
const EX_UNAVAILABLE: u8 = 69;
/// Refused (EX_NOPERM).
const EX_NOPERM: u8 = 77;

const HELP: &str = "\
dunlin-agent: runs jobs of a Dunlin hub on this board, as far as the board's policy allows.

  dunlin-agent join TICKET [--data DIR]         enrol this device; TICKET `-` is read from stdin
  dunlin-agent up TICKET [--rejoin | --resume] [--no-service]    join, install the services, start, and see that it works
  dunlin-agent install-service [--uninstall] [--dry-run] [--root D] [--bin F]    have systemd run both roles
  dunlin-agent run [--socket S | --with-exec] [--config F] [--data DIR] [--role worker|viewer]
                                                the uplink: talks to the hub, and has the executor run the jobs
  dunlin-agent exec [--socket S] [--peer USER] [--data DIR] [--policy F]
                                                the executor: no network; SIGHUP reads the policy again
  dunlin-agent check [--config F] [--data DIR] [--policy F]    is everything in order for `run`?
  dunlin-agent status [--data DIR] [--json]     the uplink, as the running agent last saw it
  dunlin-agent queue [--data DIR] [--json]      attempts on disk that the hub has not acknowledged
  dunlin-agent policy check [--policy F]        read the policy, and point out what looks like a mistake
  dunlin-agent policy test CASES [--policy F]   decide every case of a TOML file, and compare
  dunlin-agent audit [--verify] [--json]        what was decided here, oldest first; --verify only checks the chain
  dunlin-agent run-bundle FILE --out RESULT     run a signed job from a file, without any network
  dunlin-agent doctor [--data DIR] [--json]     what this kernel and board offer
  dunlin-agent telemetry [--sysroot D] [--watch] [--json]    what this board reports, with the source of each field
  dunlin-agent --version | --help

Options and their defaults:
  --config F   TOML; /etc/dunlin/agent.toml when it is there. Fields: data, policy, trust, socket, slots, tags, role,
               log, mounts, telemetry (false: none is sent), and up to 8 [[uplink]] with url and label, tried in order instead of the ticket's
  --data DIR   /var/lib/dunlin-agent, or the variable DUNLIN_AGENT_DATA; of `exec`: /var/lib/dunlin-exec
  --socket S   /run/dunlin/exec.sock: where the executor listens
  --with-exec  no socket: an executor of the uplink's own, with its rights and in its data directory (for development)
  --peer USER  dunlin-agent: whose uplink the executor serves
  --policy F   /etc/dunlin/policy.toml; policy.d/*.toml beside it is read too
  --json       machine-readable
  --sysroot D  read the files below D instead of /: a copy of a board's /proc, /sys, /etc and /var
  --watch      again every 2 s; with --json, one line each

  --resume     enrolled already: do the rest. --rejoin: move the old enrolment away, and enrol anew
  --no-service start nothing for good: run until it is seen to work, then stop
  --uninstall  take the services away; configuration, data and users stay. --dry-run: only say what would be done
  --root D     write an image whose root is D; nothing of this machine is touched. --bin F: where the program is

Exit codes: 0 done or stopped in order; 1 a check failed; 64 wrong usage or configuration; 69 hub not reachable, or
the agent could not start; 77 the hub refused (ticket used, expired or unknown; key revoked), or only root may.
";

/// Everything the command line can say.
#[derive(Debug, Default)]
struct Args {
    words: Vec<String>,
    over: Overrides,
    json: bool,
    watch: bool,
    verify: bool,
    out: Option<PathBuf>,
    sysroot: Option<PathBuf>,
    peer: Option<String>,
    resume: bool,
    rejoin: bool,
    no_service: bool,
    install: Options,
}

/// The uplink's user.
const PEER: &str = "dunlin-agent";

/// Runs `dunlin-agent` with the process's arguments.
pub fn main() -> ExitCode {
    let mut raw = std::env::args_os().skip(1);
    if raw.next().is_some_and(|word| word == "executor") {
        return executor::of_parent(raw);
    }
    let args = match parse() {
        Ok(args) => args,
        Err(error) => {
            eprintln!("dunlin-agent: {error}; see dunlin-agent --help");
            return ExitCode::from(EX_USAGE);
        }
    };
    let words: Vec<&str> = args.words.iter().map(String::as_str).collect();
    match words.as_slice() {
        // The executor starts it, for a job of its own.
        ["hook"] => hook::run(),
        ["help"] => {
            print!("{HELP}");
            ExitCode::SUCCESS
        }
        ["version"] => {
            println!("dunlin-agent {}", env!("CARGO_PKG_VERSION"));
            ExitCode::SUCCESS
        }
        ["join", ticket] => with_config(&args, |config| join::run(config, ticket)),
        ["up", rest @ ..] if rest.len() < 2 => {
            with_config(&args, |config| up::run(config, &args, rest.first().copied()))
        }
        ["install-service"] => install::run(&args.install),
        ["run"] => with_config(&args, run),
        ["exec"] => with_config(&args, |config| {
            let data = args.over.data.as_deref().unwrap_or(Path::new(EXECUTOR_DATA));
            executor::run(config, data, args.peer.as_deref().unwrap_or(PEER))
        }),
        ["check"] => with_config(&args, inspect::check),
        ["status"] => with_config(&args, |config| inspect::status(config, args.json)),
        ["queue"] => with_config(&args, |config| inspect::queue(config, args.json)),
        ["policy", "check"] => with_config(&args, |config| policy::check(&config.policy)),
        ["policy", "test", cases] => with_config(&args, |config| policy::test(&config.policy, cases)),
        ["audit"] => {
            let own = Path::new(EXECUTOR_DATA);
            let data = args.over.data.as_deref().or(own.exists().then_some(own));
            with_config(&args, |config| audit::run(data.unwrap_or(&config.data), args.verify, args.json))
        }
        ["run-bundle", file] => {
            with_config(&args, |config| bundle::run(config, std::path::Path::new(file), args.out.as_deref()))
        }
        ["doctor"] => with_config(&args, |config| doctor::run(config, args.json)),
        ["telemetry"] => with_config(&args, |config| {
            telemetry::run(config, args.sysroot.as_deref(), args.watch, args.json)
        }),
        _ => {
            eprintln!("dunlin-agent: no such command; see dunlin-agent --help");
            ExitCode::from(EX_USAGE)
        }
    }
}

fn parse() -> Result<Args, lexopt::Error> {
    let mut args = Args::default();
    args.over.data = std::env::var_os("DUNLIN_AGENT_DATA").map(PathBuf::from);
    let mut parser = Parser::from_env();
    while let Some(arg) = parser.next()? {
        match arg {
            Arg::Long("config") => args.over.config = Some(parser.value()?.into()),
            Arg::Long("data") => args.over.data = Some(parser.value()?.into()),
            Arg::Long("policy") => args.over.policy = Some(parser.value()?.into()),
            Arg::Long("socket") => args.over.socket = Some(parser.value()?.into()),
            Arg::Long("with-exec") => args.over.with_exec = true,
            Arg::Long("peer") => args.peer = Some(parser.value()?.string()?),
            Arg::Long("role") => args.over.role = Some(parser.value()?.string()?),
            Arg::Long("json") => args.json = true,
            Arg::Long("watch") => args.watch = true,
            Arg::Long("verify") => args.verify = true,
            Arg::Long("out") => args.out = Some(parser.value()?.into()),
            Arg::Long("sysroot") => args.sysroot = Some(parser.value()?.into()),
            Arg::Long("resume") => args.resume = true,
            Arg::Long("rejoin") => args.rejoin = true,
            Arg::Long("no-service") => args.no_service = true,
            Arg::Long("uninstall") => args.install.uninstall = true,
            Arg::Long("dry-run") => args.install.dry_run = true,
            Arg::Long("root") => args.install.root = Some(parser.value()?.into()),
            Arg::Long("bin") => args.install.bin = Some(parser.value()?.into()),
            Arg::Long("help") | Arg::Short('h') => {
                args.words = vec!["help".into()];
                return Ok(args);
            }
            Arg::Long("version") | Arg::Short('V') => {
                args.words = vec!["version".into()];
                return Ok(args);
            }
            Arg::Value(word) => args.words.push(word.string()?),
            other => return Err(other.unexpected()),
        }
    }
    Ok(args)
}

fn with_config(args: &Args, f: impl FnOnce(&Config) -> ExitCode) -> ExitCode {
    match Config::load(&args.over) {
        Ok(config) => f(&config),
        Err(error) => {
            eprintln!("dunlin-agent: {error}");
            ExitCode::from(EX_USAGE)
        }
    }
}

fn run(config: &Config) -> ExitCode {
    tracing_subscriber::fmt().with_max_level(config.log).with_writer(std::io::stderr).init();
    tracing::info!(version = env!("CARGO_PKG_VERSION"), policy = %config.policy.display(), "dunlin-agent");
    match agent::run(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("dunlin-agent: {error:#}");
            ExitCode::from(EX_UNAVAILABLE)
        }
    }
}
