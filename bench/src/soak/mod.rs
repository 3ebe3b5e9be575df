//! Mixed work on a real hub and real agents under faults from a seed, and a verdict: nothing that was acknowledged is
//! lost, no task has two live attempts, nothing is stuck. The jobs themselves say when they ran (`job.rs`); the hub's word
//! is only compared with theirs (`verdict.rs`).
//!
//! Deliberately absent: steps of the clock. CLOCK_REALTIME has no namespace, the machine's own must stay as it is, and a
//! static program does not take a replaced libc; the simulation covers them (`tests/tests/sim`).

mod faults;
mod job;
mod rig;
mod verdict;

pub use job::run as job;
pub use verdict::Verdict;

use crate::api::Api;
use crate::proc::{Memory, directory, until};
use crate::record::{Record, Series};
use anyhow::{Context, Result, ensure};
use dunlin_hub::clock::micros;
use fastrand::Rng;
use job::Line;
use rig::Rig;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;
use verdict::{Kind, Told};

/// How it is called.
pub const USAGE: &str = "dunlin-bench soak --minutes M [--seed N] faults on mixed work, then a verdict
         [--agents N] [--json FILE] [--bin DIR]   real agents (3); --bin has dunlin-hub and dunlin-agent;
                                          cuts and full disks need root";

/// How long everything may take to end once nothing is broken any more.
const SETTLE: Duration = Duration::from_secs(240);
/// How long a submission is said again until it counts as refused.
const SUBMIT: Duration = Duration::from_secs(120);
const JSON_MAX: usize = 200_000;
/// Memory is looked at so often, in microseconds.
const LOOK_US: u64 = 5_000_000;
/// Wrong tasks that are named.
const NAMED_MAX: usize = 10;

/// What is asked for.
#[derive(Debug, Clone)]
pub struct Options {
    /// Minutes of work and faults.
    pub minutes: f64,
    /// Decides work and faults.
    pub seed: u64,
    /// Real agents.
    pub agents: usize,
    /// Where the record goes.
    pub json: Option<PathBuf>,
    /// Where `dunlin-hub` and `dunlin-agent` are.
    pub bin: Option<PathBuf>,
}

impl Options {
    /// Reads the arguments after `soak`.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn parse(args: &[&str]) -> Result<Self, String> {
        let mut options = Self { minutes: 0.0, seed: 1, agents: 3, json: None, bin: None };
        let mut args = args.iter();
        while let Some(&arg) = args.next() {
            let value = args.next().ok_or_else(|| format!("`{arg}` is not known, or lacks its value"))?;
            let bad = || format!("{arg} {value}: not a value of it");
            match arg {
                "--minutes" => {
                    let minutes = value.parse::<f64>().ok().filter(|n| *n > 0.0 && *n <= 100_000.0);
                    options.minutes = minutes.ok_or_else(bad)?;
                }
                "--seed" => options.seed = value.parse().map_err(|_| bad())?,
                "--agents" => {
                    options.agents = value.parse().ok().filter(|n| (1..=64).contains(n)).ok_or_else(bad)?;
                }
                "--json" => options.json = Some(value.into()),
                "--bin" => options.bin = Some(value.into()),
                _ => return Err(format!("`{arg}` is not known")),
            }
        }
        if options.minutes == 0.0 {
            return Err("--minutes M is missing".into());
        }
        Ok(options)
    }
}

/// Runs it, prints the table and writes the record.
///
/// # Errors
/// When hub or agents do not start. A bad verdict is none; its logs and ledger are kept.
pub fn run(options: &Options) -> Result<Verdict> {
    let dir = directory()?;
    // A directory that only root can write, all the way, is what policies want.
    match soak(options, dir.path()) {
        Ok((record, verdict)) => {
            record.print();
            if let Some(path) = &options.json {
                record.save(path, JSON_MAX)?;
            }
            if !verdict.is_good() {
                println!("logs and ledger are kept in {}", dir.keep().display());
            }
            Ok(verdict)
        }
        Err(error) => Err(error.context(format!("logs are kept in {}", dir.keep().display()))),
    }
}

fn soak(options: &Options, dir: &Path) -> Result<(Record, Verdict)> {
    let mut record = Record::new(dir);
    let wan = rig::isolate();
    match &wan {
        Ok(_) => {
            record.notes.push("hub and agents on an emulated link, each on a small disk of its own".into())
        }
        Err(why) => record.notes.push(format!("without cuts and full disks: {why}; they need root")),
    }
    record.notes.push("without steps of the clock: CLOCK_REALTIME has no namespace".into());
    let root = wan.is_ok();
    let mut rig = Rig::start(dir, options.bin.as_deref(), wan.ok(), options.agents)?;
    let length = (options.minutes * 60e6) as u64;
    let schedule = faults::schedule(options.seed, length / 1000, options.agents, root);
    first(&mut rig, dir)?;
    let stop = AtomicBool::new(false);
    let api = rig.hub.api();
    let program = dir.join("soak").display().to_string();
    let work = dir.join("work").display().to_string();
    let mut looks = Looks::default();
    let tasks = std::thread::scope(|scope| {
        let stop = &stop;
        let submitter = scope.spawn(move || submit(api, options.seed, &program, &work, stop));
        let done = drive(&mut rig, &schedule, length, &mut looks);
        stop.store(true, Relaxed);
        let tasks = submitter.join().unwrap_or_else(|_| anyhow::bail!("a thread panicked"));
        done.and(tasks)
    })?;
    let (states, took) = settle(&mut rig, &tasks)?;
    let ledger = rig.ledger()?;
    let lines: Vec<Line> = ledger.lines().filter_map(Line::parse).collect();
    ensure!(lines.len() == ledger.lines().count(), "the ledger has a line that no job wrote");
    let verdict = verdict::judge(&states, &lines);
    report(&mut record, options, &rig, (&schedule, &states, &lines), &looks, &verdict);
    record.notes.push(format!("everything had ended {took:.1} s after the last fault"));
    Ok((record, verdict))
}

/// A job must run before anything is broken: a policy that denies it would make a long run say nothing.
fn first(rig: &mut Rig, dir: &Path) -> Result<()> {
    let (program, work) = (dir.join("soak").display().to_string(), dir.join("work").display().to_string());
    let mut api = rig.hub.api();
    let argv = [&program, "soak-job", &work, "ok", "0", "0"];
    api.must("POST", "/v1/tasks", Some(&json!({"taskId": "soak-first", "payload": {"argv": argv}})))?;
    until("the first job runs", Duration::from_millis(20), || {
        rig.supervise()?;
        let task = api.must("GET", "/v1/tasks/soak-first", None)?;
        match task["status"].as_str() {
            Some("done") => Ok(Some(())),
            Some("failed" | "cancelled") => anyhow::bail!(
                "the first job ended as {}: every directory down to {} must be root's, and writable by nobody else; \
                 run this elsewhere",
                outcomes(&task),
                dir.display()
            ),
            _ => Ok(None),
        }
    })
}

/// Memory and store over time.
#[derive(Default)]
struct Looks {
    hub: Vec<(f64, f64)>,
    agents: Vec<(f64, f64)>,
    store: Vec<(f64, f64)>,
}

/// Keeps processes running and breaks them on schedule, for `length` microseconds.
fn drive(rig: &mut Rig, schedule: &[(u64, faults::Fault)], length: u64, looks: &mut Looks) -> Result<()> {
    let began = micros();
    let mut faults = schedule.iter().peekable();
    let mut look = began + LOOK_US;
    let mut said = 0;
    while micros() - began < length {
        let at = micros() - began;
        if let Some((_, fault)) = faults.next_if(|(ms, _)| ms * 1000 <= at) {
            rig.fault(*fault)?;
        }
        rig.supervise()?;
        if micros() >= look {
            look += LOOK_US;
            let minute = at as f64 / 60e6;
            looks.hub.extend(Memory::of(rig.hub.pid()).map(|memory| (minute, memory.rss as f64)));
            for pid in rig.uplinks() {
                looks.agents.extend(Memory::of(pid).map(|memory| (minute, memory.rss as f64)));
            }
            looks.store.push((minute, rig.store_bytes() as f64));
        }
        if minute_of(at) > said {
            said = minute_of(at);
            eprintln!("soak: {said} min");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    rig.heal()
}

fn minute_of(us: u64) -> u64 {
    us / 60_000_000
}

/// Submits mixed work until it is told to stop; every task that was acknowledged.
fn submit(
    mut api: Api,
    seed: u64,
    program: &str,
    work: &str,
    stop: &AtomicBool,
) -> Result<Vec<(String, Kind)>> {
    let mut rng = Rng::with_seed(seed ^ 0x5eed);
    let mut tasks = Vec::new();
    while !stop.load(Relaxed) {
        let id = format!("soak-{}", tasks.len());
        let (kind, body) = draw(&mut rng, &id, program, work);
        let began = micros();
        // Until it is acknowledged: the same task under the same name is safe to say again.
        loop {
            match api.call("POST", "/v1/tasks", Some(&body)) {
                Ok((200..=299, _)) => break,
                Ok((status @ (400 | 401 | 403 | 404 | 409), answer)) => {
                    anyhow::bail!("a submission was refused: {status} {answer}")
                }
                // The hub is away, its disk full, or it took too long.
                Ok((status, answer)) => ensure!(
                    micros() - began < SUBMIT.as_micros() as u64,
                    "a submission was refused for {SUBMIT:?}: {status} {answer}"
                ),
                Err(error) => ensure!(
                    micros() - began < SUBMIT.as_micros() as u64,
                    "the hub did not answer for {SUBMIT:?}: {error:#}"
                ),
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        tasks.push((id, kind));
        std::thread::sleep(Duration::from_millis(rng.u64(50..400)));
    }
    Ok(tasks)
}

/// A task, of every kind that is dear to somebody.
fn draw(rng: &mut Rng, id: &str, program: &str, work: &str) -> (Kind, Value) {
    let (word, kind, ms, attempts) = match rng.u32(0..20) {
        0..=8 => ("ok", Kind::Ok { bytes: 0 }, rng.u64(0..200), 10),
        9..=11 => ("ok", Kind::Ok { bytes: rng.usize(1..200_000) }, rng.u64(0..500), 10),
        12..=13 => ("retry", Kind::Retry, rng.u64(0..300), 10),
        14 => ("fail", Kind::Fail, rng.u64(0..300), 2),
        15..=16 => ("once", Kind::AtMostOnce, rng.u64(0..2_000), 1),
        17..=18 => ("long", Kind::Ok { bytes: 100 }, rng.u64(3_000..15_000), 10),
        _ => ("ok", Kind::Ok { bytes: 0 }, rng.u64(500..3_000), 10),
    };
    let bytes = if let Kind::Ok { bytes } = kind { bytes } else { 0 };
    let argv = [program, "soak-job", work, word, &ms.to_string(), &bytes.to_string()];
    let mut body = json!({
        "taskId": id,
        "payload": {"argv": argv},
        "priority": rng.i64(-2..3),
        "maxAttempts": attempts,
    });
    if word == "once" {
        body["delivery"] = "atMostOnce".into();
    } else if rng.u32(0..3) == 0 {
        body["onDisconnect"] = "carryOn".into();
        body["maxOfflineMs"] = 20_000.into();
    }
    (kind, body)
}

/// Waits until every task has ended, or for as long as that may take; how each did, and how long it took in seconds.
fn settle(rig: &mut Rig, tasks: &[(String, Kind)]) -> Result<(Vec<Told>, f64)> {
    let began = micros();
    let mut api = rig.hub.api();
    let mut states: BTreeMap<&str, (String, String)> = BTreeMap::new();
    while states.len() < tasks.len() && micros() - began < SETTLE.as_micros() as u64 {
        rig.supervise()?;
        for (id, _) in tasks {
            if states.contains_key(id.as_str()) {
                continue;
            }
            match api.call("GET", &format!("/v1/tasks/{id}"), None) {
                Ok((200, task)) => {
                    let state = task["status"].as_str().unwrap_or_default();
                    if matches!(state, "done" | "failed" | "cancelled") {
                        states.insert(id, (state.to_owned(), outcomes(&task)));
                    }
                }
                Ok((404, _)) => drop(states.insert(id, Default::default())),
                // The hub is on its way back.
                Ok(_) | Err(_) => break,
            }
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    let took = (micros() - began) as f64 / 1e6;
    let mut told = Vec::new();
    for (id, kind) in tasks {
        let (state, outcomes) = match states.remove(id.as_str()) {
            Some((state, outcomes)) => (Some(state).filter(|state| !state.is_empty()), outcomes),
            None => (Some("not ended".into()), String::new()),
        };
        let output = match (*kind, state.as_deref()) {
            (Kind::Ok { bytes: 1.. }, Some("done")) => {
                let path = format!("/v1/tasks/{id}/output");
                api.bytes(&path).context("output")?.map_or(0, |bytes| bytes.len())
            }
            _ => 0,
        };
        told.push(Told { task: id.clone(), kind: *kind, state, outcomes, output });
    }
    Ok((told, took))
}

/// The outcomes of a task's attempts, in a few words.
fn outcomes(task: &Value) -> String {
    let attempts = task["attempts"].as_array().into_iter().flatten().map(|attempt| {
        let outcome = &attempt["outcome"];
        let text = |name: &str| outcome[name].as_str().unwrap_or_default().to_owned();
        format!("{}({})", text("code"), text("detail"))
    });
    attempts.collect::<Vec<_>>().join(" ")
}

type Found<'a> = (&'a [(u64, faults::Fault)], &'a [Told], &'a [Line]);

fn report(
    record: &mut Record,
    options: &Options,
    rig: &Rig,
    (schedule, states, lines): Found<'_>,
    looks: &Looks,
    verdict: &Verdict,
) {
    let settings =
        format!("{} agents, seed {}; {}", options.agents, options.seed, rig::TIMING.replace('\n', " "));
    let mut series = |name: &str, unit: &str, samples: Vec<f64>| {
        record.series.push(Series::new([name, "dunlin", "soak", unit], samples).with(true, settings.trim()));
    };
    series("tasks acknowledged", "jobs", vec![states.len() as f64]);
    let of = |state: &str| states.iter().filter(|t| t.state.as_deref() == Some(state)).count() as f64;
    series("tasks done", "jobs", vec![of("done")]);
    series("tasks failed, as they should or may", "jobs", vec![of("failed")]);
    let starts = lines.iter().filter(|line| line.word == job::Word::Start).count();
    series("attempts that ran", "attempts", vec![starts as f64]);
    let mut counts = BTreeMap::<&str, usize>::new();
    for (_, fault) in schedule {
        *counts.entry(fault.name()).or_default() += 1;
    }
    for (name, n) in counts {
        series(name, "faults", vec![n as f64]);
    }
    series("lost", "jobs", vec![verdict.lost.len() as f64]);
    series("doubled", "jobs", vec![verdict.doubled.len() as f64]);
    series("stuck", "jobs", vec![verdict.stuck.len() as f64]);
    let values = |looks: &[(f64, f64)]| looks.iter().map(|(_, bytes)| *bytes).collect::<Vec<_>>();
    series("hub RSS", "bytes", values(&looks.hub));
    series("hub RSS slope, over restarts", "bytes/min", vec![slope(&looks.hub).round()]);
    series("agent RSS", "bytes", values(&looks.agents));
    series("agent RSS slope, over restarts", "bytes/min", vec![slope(&looks.agents).round()]);
    series("hub store", "bytes", values(&looks.store));
    series("hub store slope", "bytes/min", vec![slope(&looks.store).round()]);
    let (hub, agents) = rig.ended();
    record.notes.push(format!(
        "ended by themselves and started again: the hub {hub} times, agents {agents} times (an agent ends with its \
         executor, and when its disk is full)"
    ));
    for (what, wrong) in [("lost", &verdict.lost), ("doubled", &verdict.doubled), ("stuck", &verdict.stuck)] {
        record.notes.extend(wrong.iter().take(NAMED_MAX).map(|task| format!("{what}: {task}")));
    }
}

/// The slope of the least squares line through points.
fn slope(points: &[(f64, f64)]) -> f64 {
    let n = points.len() as f64;
    let mean = |f: &dyn Fn(&(f64, f64)) -> f64| points.iter().map(f).sum::<f64>() / n.max(1.0);
    let (x, y) = (mean(&|p| p.0), mean(&|p| p.1));
    let over: f64 = points.iter().map(|p| (p.0 - x) * (p.1 - y)).sum();
    let under: f64 = points.iter().map(|p| (p.0 - x).powi(2)).sum();
    if under == 0.0 { 0.0 } else { over / under }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_read_or_named() {
        let parse = |text: &str| Options::parse(&text.split_whitespace().collect::<Vec<_>>());
        let options = parse("--minutes 0.5 --seed 9 --agents 2").unwrap();
        assert_eq!((options.minutes, options.seed, options.agents), (0.5, 9, 2));
        for (text, want) in [
            ("", "--minutes M is missing"),
            ("--minutes 0", "--minutes 0: not a value"),
            ("--minutes 1 --agents 65", "--agents 65"),
            ("--minutes 1 --what 3", "`--what` is not known"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(want), "{text}: {error}");
        }
    }

    #[test]
    fn a_slope_is_of_least_squares() {
        assert_eq!(slope(&[]), 0.0);
        assert_eq!(slope(&[(1.0, 5.0)]), 0.0);
        assert_eq!(slope(&[(0.0, 1.0), (1.0, 3.0), (2.0, 5.0)]), 2.0);
    }
}
