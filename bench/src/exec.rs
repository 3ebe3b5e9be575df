//! What shutting a job in costs: a `true` through the executor with the whole sandbox, beside fork, exec and wait of the
//! same `true` by std, interleaved on the same machine; and how long a policy of a hundred rules takes to decide.
//!
//! The job's time is taken at the executor's boundary, all that it does for a job: policy, guard, cgroup, namespaces,
//! mounts, user, filter, exec, and the proof that nothing is left. Between `Prepared` and `Start` the bench does what the
//! uplink does: it commits an accepted attempt to a journal like the agent's, on the same disk. The executor makes ready
//! meanwhile, so three times are reported: from `Start` to `Ended`; from `Prepare` to `Ended` less that commit; and from
//! `Prepare` to `Ended` where the start comes at once, so that nothing of it passes beside a commit. The network is an
//! empty namespace in one of the two kinds of jobs. The floor's `true` has the argument and environment of the job's, with
//! which it reads its locale; the ratio is to that one. One without is shown.

use crate::stats::Sample;
use anyhow::{Context, Result, bail, ensure};
use dunlin_agent::core::policy::{self, Policy, Request};
use dunlin_agent::event::{Record, Write};
use dunlin_agent::exec::message::{Decision, FromExec, ToExec, Work};
use dunlin_agent::exec::{ExecConfig, Executor};
use dunlin_agent::store::Store;
use dunlin_hub::clock::micros;
use dunlin_wire::job::{Delivery, Job, Outcome, Shell, layer};
use dunlin_wire::{ClaimId, Fence, TaskId};
use std::sync::mpsc;
use std::time::Duration;

const TRUE: &str = "/usr/bin/true";
/// What of a job's environment a program's start depends on.
const ENV: [(&str, &str); 2] =
    [("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"), ("LANG", "C.UTF-8")];
const RULES: usize = 100;
/// What the design allows.
const RATIO_MAX: f64 = 3.0;
const DECISION_US_MAX: f64 = 50.0;
const WAIT: Duration = Duration::from_secs(20);

/// Runs it with `rounds` of each.
///
/// # Errors
/// When a job does not run.
pub fn run(rounds: usize) -> Result<()> {
    // On the disk that the bench is run on, not in a /tmp that may be memory.
    let dir = tempfile::Builder::new().prefix("dunlin-bench").tempdir_in(std::env::current_dir()?)?;
    let rule = |id: &str, arg: &str, more: &str| {
        format!("[[rule]]\nid = \"{id}\"\nprogram = \"{TRUE}\"\nargs = [\"{arg}\"]\n{more}\n")
    };
    let limits = "limits = { memory = \"256MiB\", pids = 64 }";
    let text = format!(
        "schema = 1\n[slots]\nusers = [\"64990\", \"64991\"]\n{}{}",
        rule("shut-in", "shut-in", limits),
        rule("alone", "alone", &format!("{limits}\nnetwork = false"))
    );
    let path = dir.path().join("policy.toml");
    std::fs::write(&path, text)?;
    let mut bench = Bench::new(ExecConfig {
        policy: path,
        data: dir.path().join("data"),
        log: dunlin_agent::exec::Level::WARN,
        signing: dunlin_agent::exec::Signing::none(),
    })?;
    let [mut bare, mut plain, mut commits] = [const { Sample::new() }; 3];
    let mut kinds = [Kind::new("shut in", "shut-in"), Kind::new("no network", "alone")];
    for round in 0..rounds + rounds.div_ceil(10) {
        let floors = [floor(&[], &[])?, floor(&["shut-in"], &ENV)?];
        // The first tenth is not counted: everything is read from the disk once.
        let counts = round >= rounds.div_ceil(10);
        if counts {
            bare.push(floors[0]);
            plain.push(floors[1]);
        }
        for kind in &mut kinds {
            let (with, at_once) = (bench.job(kind, true)?, bench.job(kind, false)?);
            if counts {
                commits.push(with.commit);
                kind.started.push(with.started);
                kind.all.push(with.all - with.commit);
                kind.at_once.push(at_once.all);
            }
        }
    }
    println!("microseconds                            p50      p90      p99");
    println!("{}", bare.line("fork, exec, wait, bare"));
    println!("{}", plain.line("fork, exec, wait"));
    println!("{}", commits.line("journal's commit before Start"));
    for Kind { name, started, all, at_once, layers, .. } in &kinds {
        println!("{}", started.line(&format!("{name}: Start to Ended")));
        println!("{}", all.line(&format!("{name}: from Prepare, less commit")));
        println!("{}", at_once.line(&format!("{name}: from Prepare, no commit")));
        let ratio = |sample: &Sample| sample.percentile(50) as f64 / plain.percentile(50) as f64;
        let words: Vec<_> = layer::words(*layers).collect();
        println!(
            "ratio of p50: from Start {:.2} (target {RATIO_MAX}), from Prepare less the commit {:.2}, without one {:.2}; {}",
            ratio(started),
            ratio(all),
            ratio(at_once),
            words.join(" ")
        );
    }
    let us = decision()?;
    println!("decision at {RULES} rules: {us:.1} us (target {DECISION_US_MAX})");
    Ok(())
}

/// Microseconds of fork, exec and wait.
fn floor(args: &[&str], env: &[(&str, &str)]) -> Result<u64> {
    let began = micros();
    let status =
        std::process::Command::new(TRUE).args(args).env_clear().envs(env.iter().copied()).status()?;
    let took = micros() - began;
    ensure!(status.success(), "{TRUE}: {status}");
    Ok(took)
}

/// Microseconds of one decision, the last rule being the one that allows; the middle of many.
fn decision() -> Result<f64> {
    let rules: String = (0..RULES)
        .map(|n| {
            format!(
                "[[rule]]\nid = \"r{n}\"\nprogram = \"/usr/bin/tool\"\n\
                 args = [\"--mode\", {{ one_of = [\"m{n}\"] }}, {{ re = '[a-z0-9_]{{1,32}}=[0-9.]{{1,8}}' }}, {{ int = [1, 5000] }}]\n"
            )
        })
        .collect();
    let policy = Policy::parse(&[("bench".into(), format!("schema = 1\n{rules}"))])?;
    let argv = ["/usr/bin/tool", "--mode", &format!("m{}", RULES - 1), "alpha=1.5", "42"].map(str::to_owned);
    let mut sample = Sample::new();
    for _ in 0..1000 {
        let began = micros();
        for _ in 0..100 {
            let request = Request { argv: &argv, ..Request::default() };
            ensure!(policy::decide(&policy, std::hint::black_box(request)).is_ok(), "it is denied");
        }
        sample.push(micros() - began);
    }
    Ok(sample.percentile(50) as f64 / 100.0)
}

/// A kind of job, and its times.
struct Kind {
    name: &'static str,
    arg: &'static str,
    started: Sample,
    all: Sample,
    at_once: Sample,
    layers: u32,
}

impl Kind {
    fn new(name: &'static str, arg: &'static str) -> Self {
        let [started, all, at_once] = [const { Sample::new() }; 3];
        Self { name, arg, started, all, at_once, layers: 0 }
    }
}

/// One job's times in microseconds: from `Prepare` and from `Start` to `Ended`, and of the commit between.
struct Times {
    all: u64,
    started: u64,
    commit: u64,
}

struct Bench {
    exec: Executor,
    said: mpsc::Receiver<FromExec>,
    journal: Store,
    next: u64,
}

impl Bench {
    fn new(config: ExecConfig) -> Result<Self> {
        std::fs::create_dir_all(&config.data)?;
        let journal = Store::open(&config.data.join("journal"))?;
        let (tell, said) = mpsc::channel();
        let tell = Box::new(move |message: Option<_>| drop(message.map(|message| tell.send(message))));
        let exec = Executor::spawn(&config, tell)?;
        match said.recv_timeout(WAIT)? {
            FromExec::Policy(policy) if policy.error.is_none() => Ok(Self { exec, said, journal, next: 1 }),
            other => bail!("the policy is not in force: {other:?}"),
        }
    }

    /// One job, with what an uplink does before it starts one, or started at once.
    fn job(&mut self, kind: &mut Kind, with_commit: bool) -> Result<Times> {
        let fence = Fence(self.next);
        self.next += 1;
        let argv = vec![TRUE.to_owned(), kind.arg.to_owned()];
        let job = Job::Shell(Shell { argv, cwd: None, env: vec![] });
        let task: TaskId = format!("t{fence}").parse()?;
        let accepted = [Write::Accepted(accepted(fence, task.clone()))];
        let work = Work { task, fence, attempt: 1, job, timeout_ms: None };
        let asked = micros();
        self.exec.send(ToExec::Prepare(Box::new(work)));
        match self.said.recv_timeout(WAIT)? {
            FromExec::Prepared { decision: Decision::Allow { .. }, .. } => {}
            other => bail!("it may not run: {other:?}"),
        }
        let prepared = micros();
        if with_commit {
            self.journal.commit(&accepted)?;
        }
        let began = micros();
        self.exec.send(ToExec::Start { fence, lease_until: u64::MAX });
        loop {
            match self.said.recv_timeout(WAIT).context("the job does not end")? {
                FromExec::Ended { report, .. } => {
                    let now = micros();
                    ensure!(report.outcome == Outcome::Ok, "{}", report.outcome);
                    kind.layers = report.sandbox;
                    self.journal.commit(&[Write::Forget(fence)])?;
                    return Ok(Times { all: now - asked, started: now - began, commit: began - prepared });
                }
                FromExec::Started { .. } | FromExec::Output { .. } => {}
                other => bail!("{other:?}"),
            }
        }
    }
}

/// What the agent's journal holds of an attempt before its start.
fn accepted(fence: Fence, task: TaskId) -> Record {
    let (claim, delivery) = (ClaimId(fence.0), Delivery::AtLeastOnce);
    Record { fence, task, claim, attempt: 1, boot: [0; 16], delivery, report: None }
}
