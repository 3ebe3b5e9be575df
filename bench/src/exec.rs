//! What shutting a job in costs: a `true` through the executor with the whole sandbox, beside fork, exec and wait of the
//! same `true` by std, interleaved on the same machine; and how long a policy of a hundred rules takes to decide.
//!
//! The job's time is from `Prepare` to `Ended` at the executor's boundary, all that it does for a job: policy, guard,
//! cgroup, namespaces, mounts, user, filter, exec, and the proof that nothing is left. What of it comes after `Start` is a
//! row of its own. The network is an empty namespace in one of the two kinds of jobs. The floor's `true` has the
//! argument and environment of the job's, with which it reads its locale; the ratio is to that one. One without is shown.

use crate::stats::Sample;
use anyhow::{Context, Result, bail, ensure};
use dunlin_agent::core::policy::{self, Policy, Request};
use dunlin_agent::exec::message::{Decision, FromExec, ToExec, Work};
use dunlin_agent::exec::{ExecConfig, Executor};
use dunlin_hub::clock::micros;
use dunlin_wire::Fence;
use dunlin_wire::job::{Job, Outcome, Shell, layer};
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
        signing: dunlin_agent::exec::Signing::none(),
    })?;
    let [mut bare, mut plain] = [const { Sample::new() }; 2];
    let [mut shut_in, mut alone] = [const { [const { Sample::new() }; 2] }; 2];
    let mut layers = [0; 2];
    for round in 0..rounds + rounds.div_ceil(10) {
        let floors = [floor(&[], &[])?, floor(&["shut-in"], &ENV)?];
        let jobs = [bench.job("shut-in", &mut layers[0])?, bench.job("alone", &mut layers[1])?];
        // The first tenth is not counted: everything is read from the disk once.
        if round >= rounds.div_ceil(10) {
            bare.push(floors[0]);
            plain.push(floors[1]);
            for (kind, job) in [&mut shut_in, &mut alone].into_iter().zip(jobs) {
                kind.iter_mut().zip(job).for_each(|(sample, took)| sample.push(took));
            }
        }
    }
    println!("microseconds                            p50      p90      p99");
    println!("{}", bare.line("fork, exec, wait, bare"));
    println!("{}", plain.line("fork, exec, wait"));
    for (what, [all, started], bits) in [("shut in", &shut_in, layers[0]), ("no network", &alone, layers[1])]
    {
        println!("{}", all.line(&format!("job, {what}: Prepare to Ended")));
        println!("{}", started.line(&format!("job, {what}: Start to Ended")));
        let ratio = |sample: &Sample| sample.percentile(50) as f64 / plain.percentile(50) as f64;
        let words: Vec<_> = layer::words(bits).collect();
        println!(
            "ratio of p50: {:.2} (target {RATIO_MAX}), from Start {:.2}; {}",
            ratio(all),
            ratio(started),
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

    /// One job's time from `Prepare` and from `Start`, in microseconds; its layers beside it.
    fn job(&mut self, arg: &str, layers: &mut u32) -> Result<[u64; 2]> {
        let fence = Fence(self.next);
        self.next += 1;
        let argv = vec![TRUE.to_owned(), arg.to_owned()];
        let job = Job::Shell(Shell { argv, cwd: None, env: vec![] });
        let work = Work { task: format!("t{fence}").parse()?, fence, attempt: 1, job, timeout_ms: None };
        let asked = micros();
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
                    let now = micros();
                    return Ok([now - asked, now - began]);
                }
                FromExec::Started { .. } | FromExec::Output { .. } => {}
                other => bail!("{other:?}"),
            }
        }
    }
}
