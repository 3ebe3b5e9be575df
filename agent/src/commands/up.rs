//! `dunlin-agent up`: from a ticket to a board that works, in one command. Each step is said, and each can be done again.
//!
//! What is local comes first: the services, and a job of the policy's own rule `selftest` under the real executor. Then
//! the hub: enrolled, connected, welcomed.

use super::{Args, EX_UNAVAILABLE, EX_USAGE, join};
use crate::agent::reach;
use crate::clock;
use crate::config::Config;
use crate::core::policy::{Matcher, Policy};
use crate::exec::message::{Decision, FromExec, ToExec, Work};
use crate::exec::{self, ExecError};
use crate::files::Files;
use crate::store::Store;
use dunlin_systemd::AGENT;
use dunlin_wire::Fence;
use dunlin_wire::job::{Job, Outcome, Shell};
use std::os::unix::fs::{MetadataExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::mpsc;
use std::time::Duration;

/// The rule whose job is run to see that jobs run here.
const RULE: &str = "selftest";
/// How long that job, and then the hub, may take, in milliseconds.
const WAIT_MS: u64 = 30_000;
/// How often it is looked whether the hub has welcomed this node.
const LOOK: Duration = Duration::from_millis(50);
/// A fence that no hub gives.
const FENCE: Fence = Fence(0);

/// A step that was not done: why, and the exit code.
struct Stop(String, u8);

type Done<T = ()> = Result<T, Stop>;

pub(super) fn run(config: &Config, args: &Args, ticket: Option<&str>) -> ExitCode {
    match up(config, args, ticket) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Stop(text, code)) => {
            eprintln!("dunlin-agent: {text}");
            ExitCode::from(code)
        }
    }
}

fn up(config: &Config, args: &Args, ticket: Option<&str>) -> Done {
    let files = Files::at(&config.data);
    let node = files.enrolment().ok().map(|enrolled| enrolled.node);
    let usage = |text: String| Stop(text, EX_USAGE);
    match (&node, ticket) {
        (Some(node), _) if !args.resume && !args.rejoin => {
            println!(
                "already joined as `{node}`; --resume does what is missing, --rejoin with a new ticket enrols anew"
            );
            return Ok(());
        }
        (None, None) => return Err(usage("`up` needs a ticket: dunlin-agent up TICKET".into())),
        (_, None) if args.rejoin => return Err(usage("--rejoin needs a new ticket".into())),
        _ => {}
    }
    // Before anything is changed.
    let ticket =
        ticket.filter(|_| node.is_none() || args.rejoin).map(join::ticket).transpose().map_err(usage)?;
    let mut config = config.clone();
    if args.no_service {
        if args.over.socket.is_none() {
            config.executor = None;
        }
        first_policy(&config.policy)?;
    }
    let aside = match args.rejoin && node.is_some() {
        true => Some(set_aside(&files, args.no_service)?),
        false => None,
    };
    if !args.no_service {
        let installed = dunlin_systemd::install(&AGENT, &args.install, &mut |step| println!("{step}"));
        installed.map_err(failed)?;
    }
    match is_welcome(&files, None) {
        true => say("ok", "selftest: not run, as the executor serves the uplink that is connected"),
        false => selftest(&config)?,
    }
    if let Some(ticket) = ticket {
        let node = join::enrol(&config, &ticket).map_err(|(text, code)| {
            put_back(&files, aside.as_deref(), args.no_service);
            Stop(text, code)
        })?;
        say("ok", &format!("enrolled as `{node}`"));
        give_to_owner(files.dir());
    }
    let mut child = None;
    match args.no_service {
        true => child = Some(start(&config, args)?),
        false => dunlin_systemd::run("systemctl", &["start", "dunlin-agent.service"]).map_err(failed)?,
    }
    let welcome = wait(&files, child.as_mut());
    if let Some(mut child) = child {
        // SAFETY: takes numbers only; the child was not waited for yet, so the number is its own.
        unsafe { libc::kill(child.id() as i32, libc::SIGTERM) };
        let _ = child.wait();
    }
    say("ok", &format!("the hub at {} welcomed this node", welcome?));
    Ok(())
}

fn say(level: &str, text: &str) {
    println!("{level:<10} {text}");
}

fn failed(error: impl std::fmt::Display) -> Stop {
    Stop(error.to_string(), EX_UNAVAILABLE)
}

/// Where no service is installed nobody else puts a policy there.
fn first_policy(path: &Path) -> Done {
    if path.exists() {
        return Ok(());
    }
    let own = std::env::current_exe().map_err(failed)?;
    let text = dunlin_systemd::policy(&own.display().to_string(), false);
    let made =
        path.parent().map_or(Ok(()), std::fs::create_dir_all).and_then(|()| std::fs::write(path, text));
    match made {
        Ok(()) => say("write", &path.display().to_string()),
        Err(error) => {
            say("skipped", &format!("{}: {error}; without a policy every job is denied", path.display()))
        }
    }
    Ok(())
}

/// Moves the data directory away. Never with something in it that the hub has not got.
fn set_aside(files: &Files, no_service: bool) -> Done<PathBuf> {
    let dir = files.dir().display();
    let journal = files.path("journal");
    let unacknowledged = || match journal.exists() {
        true => Store::open(&journal)
            .and_then(|store| store.load())
            .map(|loaded| loaded.attempts.len())
            .map_err(failed),
        false => Ok(0),
    };
    let refuse = |count| {
        let what = "the hub has not acknowledged yet (dunlin-agent queue): let the agent deliver them";
        Err(Stop(format!("{dir}: {count} attempts that {what}, or move that directory away"), EX_USAGE))
    };
    match unacknowledged()? {
        0 => {}
        count => return refuse(count),
    }
    if !no_service {
        // Not there yet, or not running: then there is nothing to stop.
        let _ = dunlin_systemd::run("systemctl", &["stop", "dunlin-agent.service"]);
    }
    let _lock = files.lock().map_err(failed)?;
    match unacknowledged()? {
        0 => {}
        count => return refuse(count),
    }
    let aside = (1..).map(|n| files.dir().with_extension(format!("old{n}"))).find(|path| !path.exists());
    let aside = aside.unwrap_or_default();
    std::fs::rename(files.dir(), &aside).map_err(|e| failed(format!("{dir}: {e}")))?;
    say("moved", &format!("{dir} to {}", aside.display()));
    Ok(aside)
}

/// A board whose new ticket was refused stays who it was.
fn put_back(files: &Files, aside: Option<&Path>, no_service: bool) {
    let Some(aside) = aside else { return };
    let done = std::fs::remove_dir_all(files.dir()).and_then(|()| std::fs::rename(aside, files.dir()));
    match done {
        Ok(()) => say("moved", &format!("{} back", files.dir().display())),
        Err(error) => say("kept", &format!("{}: {error}", aside.display())),
    }
    if !no_service {
        let _ = dunlin_systemd::run("systemctl", &["start", "dunlin-agent.service"]);
    }
}

/// Runs the policy's own job, as a task's would run. A board whose policy has none is told so: nothing else may be run.
fn selftest(config: &Config) -> Done {
    let policy = match exec::load(&config.policy) {
        Ok((policy, _)) => policy,
        Err(error) => return skip(&format!("every job is denied until the policy is right: {error}")),
    };
    let Some(argv) = argv_of(&policy) else {
        return skip(&format!("the policy has no rule `{RULE}` whose arguments are all literal"));
    };
    let (tell, said) = mpsc::channel();
    let executor =
        reach(config, move |message| drop(tell.send(message))).map_err(|error: ExecError| failed(error))?;
    let job = Job::Shell(Shell { argv: argv.clone(), cwd: None, env: vec![] });
    let task = "dunlin-selftest".parse().map_err(failed)?;
    executor.send(ToExec::Prepare(Box::new(Work { task, fence: FENCE, attempt: 1, job, timeout_ms: None })));
    let until = clock::boot_ms() + WAIT_MS;
    loop {
        let left = Duration::from_millis(until.saturating_sub(clock::boot_ms()));
        match said.recv_timeout(left) {
            Ok(Some(FromExec::Prepared { decision: Decision::Allow { .. }, .. })) => {
                executor.send(ToExec::Start { fence: FENCE, lease_until: until });
            }
            Ok(Some(FromExec::Prepared { decision: Decision::Deny(report), .. })) => {
                return Err(failed(format!("selftest: `{}`: {}", argv.join(" "), report.outcome)));
            }
            Ok(Some(FromExec::Ended { report, kept, .. })) if report.outcome == Outcome::Ok => {
                let text = String::from_utf8_lossy(&kept[0]);
                say("ok", &format!("selftest: a job ran under the policy and said: {}", text.trim()));
                return Ok(());
            }
            Ok(Some(FromExec::Ended { report, .. })) => {
                return Err(failed(format!("selftest: `{}` ended as {}", argv.join(" "), report.outcome)));
            }
            Ok(Some(_)) => {}
            Ok(None) | Err(_) => {
                return Err(failed("selftest: the executor gave no answer; its log says why"));
            }
        }
    }
}

fn skip(why: &str) -> Done {
    say("skipped", &format!("selftest: {why}"));
    Ok(())
}

fn argv_of(policy: &Policy) -> Option<Vec<String>> {
    let rule = policy.rules.iter().find(|rule| rule.id == RULE)?;
    let literal = |matcher: &Matcher| match matcher {
        Matcher::Literal(text) => Some(text.clone()),
        _ => None,
    };
    let args: Option<Vec<_>> = rule.args.iter().map(literal).collect();
    Some([vec![rule.program.clone()], rule.script.iter().cloned().collect(), args?].concat())
}

/// What `join` wrote as root belongs to the directory's owner. A directory that root made systemd gives to the uplink.
fn give_to_owner(dir: &Path) {
    let Ok(meta) = std::fs::metadata(dir) else { return };
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let _ = chown(entry.path(), Some(meta.uid()), Some(meta.gid()));
    }
}

fn start(config: &Config, args: &Args) -> Done<Child> {
    let mut command = Command::new("/proc/self/exe");
    command.arg0(std::env::args_os().next().unwrap_or_else(|| "dunlin-agent".into())).arg("run");
    command.arg("--data").arg(&config.data).arg("--policy").arg(&config.policy);
    match &config.executor {
        None => command.arg("--with-exec"),
        Some(socket) => command.arg("--socket").arg(socket),
    };
    if let Some(file) = &args.over.config {
        command.arg("--config").arg(file);
    }
    command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().map_err(failed)
}

/// Waits until the hub has welcomed this node; which hub.
fn wait(files: &Files, mut child: Option<&mut Child>) -> Done<String> {
    let until = clock::boot_ms() + WAIT_MS;
    let pid = child.as_ref().map(|child| child.id());
    while clock::boot_ms() < until {
        if is_welcome(files, pid) {
            return Ok(status(files)["hub"].as_str().unwrap_or_default().to_owned());
        }
        if child.as_mut().is_some_and(|child| !matches!(child.try_wait(), Ok(None))) {
            return Err(failed("the uplink ended by itself; its log says why"));
        }
        std::thread::sleep(LOOK);
    }
    let why = status(files)["lastError"].as_str().unwrap_or("see `journalctl -u dunlin-agent`").to_owned();
    Err(failed(format!("no hub welcomed this node within {} s: {why}; it goes on trying", WAIT_MS / 1000)))
}

fn status(files: &Files) -> serde_json::Value {
    let text = std::fs::read_to_string(files.path("status.json")).unwrap_or_default();
    serde_json::from_str(&text).unwrap_or_default()
}

/// Whether the running uplink, `pid` if that is known, is connected and welcomed.
fn is_welcome(files: &Files, pid: Option<u32>) -> bool {
    let status = status(files);
    let running = status["pid"].as_u64().unwrap_or(0);
    let alive = running > 0 && Path::new(&format!("/proc/{running}")).exists();
    status["connected"] == true && alive && pid.is_none_or(|pid| u64::from(pid) == running)
}
