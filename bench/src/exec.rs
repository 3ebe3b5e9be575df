//! What shutting a job in costs: a `true` through the executor with the whole sandbox, beside fork, exec and wait of the
//! same `true` by std, interleaved on the same machine; and how long a policy of a hundred rules takes to decide.
//!
//! The job's time is from `Start` to `Ended` at the executor's boundary: guard, cgroup, namespaces, mounts, user, filter,
//! exec, and the proof that nothing is left. The network is an empty namespace in one of the two rows of jobs.

use crate::stats::Sample;
use anyhow::{Context, Result, bail, ensure};
use dunlin_agent::core::policy::{self, Policy, Request};
use dunlin_agent::exec::message::{Decision, FromExec, ToExec, Work};
use dunlin_agent::exec::{ExecConfig, Executor};
use dunlin_hub::clock::micros;
use dunlin_wire::Fence;
use dunlin_wire::job::{Outcome, Shell, layer};
use std::sync::mpsc;
use std::time::Duration;

const TRUE: &str = "/usr/bin/true";
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
    let dir = tempfile::tempdir()?;
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
    })?;
    let [mut plain, mut shut_in, mut alone] = [const { Sample::new() }; 3];
    let mut layers = [0; 2];
    for round in 0..rounds + rounds.div_ceil(10) {
        let began = micros();
        let status = std::process::Command::new(TRUE).env_clear().status()?;
        let took = micros() - began;
        ensure!(status.success(), "{TRUE}: {status}");
        let jobs = [bench.job("shut-in", &mut layers[0])?, bench.job("alone", &mut layers[1])?];
        // The first tenth is not counted: everything is read from the disk once.
        if round >= rounds.div_ceil(10) {
            plain.push(took);
            shut_in.push(jobs[0]);
            alone.push(jobs[1]);
        }
    }
    println!("microseconds                            p50      p90      p99");
    println!("{}", plain.line("fork, exec, wait"));
    println!("{}", shut_in.line("job, shut in"));
    println!("{}", alone.line("job, shut in, no network"));
    for (what, sample, bits) in [("shut in", &shut_in, layers[0]), ("no network", &alone, layers[1])] {
        let ratio = sample.percentile(50) as f64 / plain.percentile(50) as f64;
        let words: Vec<_> = layer::words(bits).collect();
        println!("ratio of p50, {what}: {ratio:.2} (target {RATIO_MAX}); {}", words.join(" "));
    }
    let us = decision()?;
    println!("decision at {RULES} rules: {us:.1} us (target {DECISION_US_MAX})");
    Ok(())
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
            let request = Request { argv: &argv, cwd: None, env: &[], timeout_ms: None };
            ensure!(policy::decide(&policy, std::hint::black_box(request)).is_ok(), "it is denied");
        }
        sample.push(micros() - began);
    }
    Ok(sample.percentile(50) as f64 / 100.0)
}

struct Bench {
    exec: Executor,
    said: mpsc::Receiver<FromExec>,
    next: u64,
}

impl Bench {
    fn new(config: ExecConfig) -> Result<Self> {
        std::fs::create_dir_all(&config.data)?;
        let (tell, said) = mpsc::channel();
        let tell = Box::new(move |message: Option<_>| drop(message.map(|message| tell.send(message))));
        let exec = Executor::spawn(&config, tell)?;
        match said.recv_timeout(WAIT)? {
            FromExec::Policy(policy) if policy.error.is_none() => Ok(Self { exec, said, next: 1 }),
            other => bail!("the policy is not in force: {other:?}"),
        }
    }

    /// One job's time, in microseconds; its layers beside it.
    fn job(&mut self, arg: &str, layers: &mut u32) -> Result<u64> {
        let fence = Fence(self.next);
        self.next += 1;
        let argv = vec![TRUE.to_owned(), arg.to_owned()];
        let shell = Shell { argv, cwd: None, env: vec![] };
        let work = Work { task: format!("t{fence}").parse()?, fence, attempt: 1, shell, timeout_ms: None };
        self.exec.send(ToExec::Prepare(Box::new(work)));
        match self.said.recv_timeout(WAIT)? {
            FromExec::Prepared { decision: Decision::Allow { .. }, .. } => {}
            other => bail!("it may not run: {other:?}"),
        }
        let began = micros();
        self.exec.send(ToExec::Start { fence, lease_until: u64::MAX });
        loop {
            match self.said.recv_timeout(WAIT).context("the job does not end")? {
                FromExec::Ended { report, .. } => {
                    ensure!(report.outcome == Outcome::Ok, "{}", report.outcome);
                    *layers = report.sandbox;
                    return Ok(micros() - began);
                }
                FromExec::Started { .. } | FromExec::Output { .. } => {}
                other => bail!("{other:?}"),
            }
        }
    }
}
