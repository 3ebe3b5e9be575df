//! What a fleet goes through, in order: connect, heartbeats, a storm of jobs, a crash of an idle hub, a storm with a crash
//! in it; then the verdict.

use super::board::{Note, Seat};
use super::tally::{Seen, lock};
use super::{Run, SHARDS, SUBMITTERS, Verdict, name, spawn};
use crate::api::Api;
use crate::proc::{Memory, cpu_us};
use crate::record::Ratio;
use crate::stats;
use anyhow::{Context, Result, ensure};
use dunlin_hub::clock::micros;
use dunlin_wire::TaskId;
use serde_json::json;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::watch;

/// Only a failure takes so long.
const BOUND: Duration = Duration::from_secs(300);
/// Between two probes while agents only show that they live.
const PROBE_EVERY: Duration = Duration::from_millis(500);
/// What the median from submission to result of a storm must stay under, in microseconds (AE-35: 100 agents, 20 jobs each).
const DONE_US_MAX: f64 = 2_000_000.0;

/// Every agent starts at once.
pub(super) fn connect(
    run: &mut Run<'_>,
    seats: Vec<Seat>,
    notes: &Sender<Note>,
    stop: &watch::Sender<bool>,
) -> Result<Vec<JoinHandle<()>>> {
    let pid = run.hub.pid();
    let agents = seats.len() as f64;
    // Before anybody is connected; enrolment has been over for as long as its connections take to be forgotten.
    std::thread::sleep(Duration::from_secs(1));
    let before = Memory::of(pid).context("the hub's memory")?;
    let cpu = cpu_us(pid).unwrap_or(0);
    let mut shards: Vec<Vec<Seat>> = (0..SHARDS).map(|_| Vec::new()).collect();
    for seat in seats {
        shards[seat.number % SHARDS].push(seat);
    }
    let began = micros();
    let threads: Result<Vec<_>> =
        shards.into_iter().map(|seats| spawn(seats, notes.clone(), stop.subscribe())).collect();
    let threads = threads?;
    run.tally.until("every agent is ready", BOUND, |t| t.is_all_ready())?;
    let used = cpu_us(pid).unwrap_or(0).saturating_sub(cpu) as f64 / 1e6;
    let took = run.tally.ready_at.iter().flatten().map(|at| at.saturating_sub(began) as f64).collect();
    run.series("connect storm: start -> ready", "us", took);
    run.series("connect storm: hub CPU", "s", vec![used]);
    connections(run, "connect storm");
    // Statistics and acknowledgements of the handshakes are over.
    std::thread::sleep(Duration::from_secs(3));
    let after = Memory::of(pid).context("the hub's memory")?;
    for (what, before, after) in [("RSS", before.rss, after.rss), ("PSS", before.pss, after.pss)] {
        let each = after.saturating_sub(before) as f64 / agents;
        run.series(&format!("hub {what} per connected agent"), "bytes", vec![each.round()]);
        run.series(&format!("hub {what} with all of them"), "bytes", vec![after as f64]);
    }
    Ok(threads)
}

/// How the connections since the tally's last reset went.
fn connections(run: &mut Run<'_>, phase: &str) {
    let failed: usize = run.tally.failed.values().sum();
    let why: Vec<String> = run.tally.failed.iter().map(|(why, n)| format!("{n} x {why}")).collect();
    let (early, refused) = (run.tally.early, run.tally.early_refused);
    let mut by_second = BTreeMap::<u64, usize>::new();
    for at in &run.tally.connects {
        *by_second.entry(at / 1_000_000).or_default() += 1;
    }
    let peak = by_second.values().max().copied().unwrap_or(0);
    run.series(&format!("{phase}: attempts that failed"), "attempts", vec![failed as f64]);
    run.series(&format!("{phase}: peak"), "connects/s", vec![peak as f64]);
    run.series(&format!("{phase}: early data refused"), "connects", vec![refused as f64]);
    run.note(format!(
        "{phase}: {} connections, {early} with early data of which {refused} refused; failed: {}",
        run.tally.connects.len(),
        if why.is_empty() { "none".to_owned() } else { why.join(", ") }
    ));
}

/// Agents show that they live; now and then a job comes.
pub(super) fn heartbeats(run: &mut Run<'_>) -> Result<()> {
    let pid = run.hub.pid();
    let mut api = run.hub.api();
    let (mut cpu, mut rss, mut pss) = (Vec::new(), Vec::new(), Vec::new());
    let (mut claim, mut done) = (Vec::new(), Vec::new());
    let began = micros();
    let end = began + (run.options.minutes * 60e6) as u64;
    let (mut looked, mut used) = (began, cpu_us(pid).unwrap_or(0));
    while micros() < end {
        let sent = micros();
        let task = submit(&mut api, run.submitted)?;
        run.submitted += 1;
        run.tally.until("a probe is done", BOUND, |t| t.settled.contains_key(&task))?;
        claim.push(run.tally.granted[&task].0.saturating_sub(sent) as f64);
        done.push(run.tally.settled[&task].saturating_sub(sent) as f64);
        let until = sent + PROBE_EVERY.as_micros() as u64;
        while micros() < until {
            run.tally.take(Duration::from_micros(until.saturating_sub(micros())))?;
        }
        if micros() >= looked + 5_000_000 {
            let (now, total) = (micros(), cpu_us(pid).unwrap_or(0));
            cpu.push((total.saturating_sub(used)) as f64 * 100.0 / (now - looked) as f64);
            (looked, used) = (now, total);
            let memory = Memory::of(pid).context("the hub's memory")?;
            rss.push(memory.rss as f64);
            pss.push(memory.pss as f64);
        }
    }
    let minutes = (micros() - began) as f64 / 60e6;
    run.series("heartbeats: hub CPU", "% of a core", cpu);
    let slope = |bytes: &[f64]| match bytes {
        [first, .., last] => (last - first) / minutes,
        _ => 0.0,
    };
    run.series("heartbeats: hub RSS slope", "bytes/min", vec![slope(&rss).round()]);
    run.series("heartbeats: hub PSS slope", "bytes/min", vec![slope(&pss).round()]);
    run.series("heartbeats: hub PSS", "bytes", pss);
    run.series("claim, idle fleet: submit -> grant", "us", claim);
    run.series("result, idle fleet: submit -> settled", "us", done);
    Ok(())
}

/// All jobs at once.
pub(super) fn storm(run: &mut Run<'_>) -> Result<()> {
    let total = run.options.jobs * run.options.agents;
    let (pid, first) = (run.hub.pid(), run.submitted);
    let cpu = cpu_us(pid).unwrap_or(0);
    let began = micros();
    let sent = submit_all(run, total, |_, _| Ok(()))?;
    let answered = micros();
    let tasks: Vec<TaskId> = (first..first + total).map(task).collect::<Result<_>>()?;
    run.tally.until("every job of the storm is settled", BOUND, |t| {
        tasks.iter().all(|id| t.settled.contains_key(id))
    })?;
    let used = cpu_us(pid).unwrap_or(0).saturating_sub(cpu);
    let (mut claim, mut done) = (Vec::new(), Vec::new());
    let mut each = vec![0usize; run.options.agents];
    let mut last = began;
    for (task, sent) in tasks.iter().zip(&sent) {
        let (granted, board) = run.tally.granted[task];
        let settled = run.tally.settled[task];
        claim.push(granted.saturating_sub(*sent) as f64);
        done.push(settled.saturating_sub(*sent) as f64);
        each[board] += 1;
        last = last.max(settled);
    }
    let seconds = |from: u64, to: u64| to.saturating_sub(from).max(1) as f64 / 1e6;
    run.series("storm: submitted", "jobs/s", vec![total as f64 / seconds(began, answered)]);
    run.series("storm: settled", "jobs/s", vec![total as f64 / seconds(began, last)]);
    run.series("storm: hub CPU", "% of a core", vec![used as f64 / seconds(began, last) / 1e4]);
    run.series("storm: submit -> grant", "us", claim);
    let [value, low, high] = stats::ratio(&done, &[DONE_US_MAX], 50);
    run.series("storm: submit -> settled", "us", done);
    let of_record = run.options.agents == 100 && run.options.jobs == 20;
    run.record.ratios.push(Ratio {
        name: "storm: submit -> settled".into(),
        system: "dunlin".into(),
        against: "2 s".into(),
        at: "p50".into(),
        value,
        low,
        high,
        goal: of_record.then_some(1.0),
        met: of_record.then_some(value <= 1.0),
    });
    let (most, least) = (each.iter().max().copied().unwrap_or(0), each.iter().min().copied().unwrap_or(0));
    run.series("storm: jobs of each agent", "jobs", each.iter().map(|n| *n as f64).collect());
    run.note(format!("storm: {total} jobs, {SUBMITTERS} submitters; an agent got {least} to {most} of them"));
    Ok(())
}

/// SIGKILL of a hub that does nothing, and all agents come back at once.
pub(super) fn restart(run: &mut Run<'_>) -> Result<()> {
    run.tally.until("every agent is ready before the restart", BOUND, |t| t.is_all_ready())?;
    run.tally.reset();
    run.hub.kill();
    // They must all have been told, or the count of those that are ready is of before.
    std::thread::sleep(Duration::from_secs_f64(run.options.down));
    run.tally.take(Duration::from_millis(1))?;
    run.tally.ready_at.fill(None);
    run.hub.spawn()?;
    run.hub.wait()?;
    let answers = micros();
    let agents = run.options.agents;
    run.tally.until("every agent is back", BOUND, |t| t.ready_at.iter().flatten().count() == agents)?;
    let back: Vec<f64> =
        run.tally.ready_at.iter().flatten().map(|at| at.saturating_sub(answers) as f64).collect();
    let half = stats::percentile(&back, 50) / 1e6;
    let all = stats::percentile(&back, 100) / 1e6;
    run.series("herd: hub answers -> agent ready", "us", back);
    connections(run, "herd");
    run.note(format!(
        "herd: half are back {half:.2} s after the restarted hub answered, all after {all:.2} s"
    ));
    Ok(())
}

/// A storm in whose middle the hub is killed and started again.
pub(super) fn crash(run: &mut Run<'_>) -> Result<()> {
    run.tally.until("every agent is ready before the crash", BOUND, |t| t.is_all_ready())?;
    let total = run.options.jobs.div_ceil(4) * run.options.agents;
    let first = run.submitted;
    let killed = AtomicBool::new(false);
    let down = run.options.down;
    submit_all(run, total, |run, acknowledged| {
        if acknowledged >= total / 2 && !killed.swap(true, Relaxed) {
            run.hub.kill();
            std::thread::sleep(Duration::from_secs_f64(down));
            run.hub.spawn()?;
            run.hub.wait()?;
        }
        Ok(())
    })?;
    ensure!(killed.load(Relaxed), "the hub was not killed");
    let tasks: Vec<TaskId> = (first..first + total).map(task).collect::<Result<_>>()?;
    // Not an error here: what does not come is counted by the verdict.
    let _late =
        run.tally.until("every job is settled", BOUND, |t| tasks.iter().all(|id| t.settled.contains_key(id)));
    run.tally.until("every agent is ready after the crash", BOUND, |t| t.is_all_ready())?;
    run.note(format!(
        "crash: {total} jobs, the hub killed when half of them were acknowledged, away {down} s"
    ));
    Ok(())
}

/// Compares what the hub says with what the agents know.
pub(super) fn judge(run: &mut Run<'_>, seen: &Arc<Mutex<Seen>>) -> Result<Verdict> {
    let mut api = run.hub.api();
    let answer = api.must("GET", "/v1/nodes", None)?;
    let nodes = answer["nodes"].as_array().context("no nodes")?;
    let offline = nodes.iter().filter(|node| node["health"] == "offline").count();
    ensure!(nodes.len() == run.options.agents, "the hub lists {} nodes", nodes.len());
    ensure!(run.tally.ready_count() == run.options.agents, "an agent is not connected");
    let seen = lock(seen).clone();
    let verdict = Verdict {
        false_offline: seen.down.len() + offline,
        lost: (0..run.submitted)
            .filter_map(|n| task(n).ok())
            .filter(|id| !run.tally.settled.contains_key(id))
            .count(),
        repeated: run.tally.started.values().filter(|n| **n > 1).count(),
    };
    run.series("false offline", "nodes", vec![verdict.false_offline as f64]);
    run.series("lost", "jobs", vec![verdict.lost as f64]);
    run.series("started more than once", "jobs", vec![verdict.repeated as f64]);
    let kinds: Vec<String> = seen.kinds.iter().map(|(kind, n)| format!("{kind} {n}")).collect();
    run.note(format!("the hub's events of nodes: {}; gaps {}", kinds.join(", "), seen.gaps));
    if let Some(node) = seen.down.first() {
        run.note(format!("false offline: first {node}, an agent that was never stopped"));
    }
    Ok(verdict)
}

fn task(number: usize) -> Result<TaskId> {
    Ok(format!("fleet-{number}").parse()?)
}

fn submit(api: &mut Api, number: usize) -> Result<TaskId> {
    let task = task(number)?;
    let body = json!({"taskId": task.as_str(), "payload": {"argv": ["/bin/true"]}});
    api.must("POST", "/v1/tasks", Some(&body))?;
    Ok(task)
}

/// Submits so many tasks from many connections; when each was sent. `look` is called meanwhile with how many were
/// acknowledged. What was not acknowledged is said again under the same name, which is safe.
fn submit_all(
    run: &mut Run<'_>,
    total: usize,
    mut look: impl FnMut(&mut Run<'_>, usize) -> Result<()>,
) -> Result<Vec<u64>> {
    let first = run.submitted;
    let acknowledged = AtomicUsize::new(0);
    let apis: Vec<Api> = (0..SUBMITTERS).map(|_| run.hub.api()).collect();
    let sent = std::thread::scope(|scope| {
        let acknowledged = &acknowledged;
        let threads: Vec<_> = apis
            .into_iter()
            .enumerate()
            .map(|(at, mut api)| {
                scope.spawn(move || {
                    let mut sent = Vec::new();
                    for number in (at..total).step_by(SUBMITTERS) {
                        let began = micros();
                        while let Err(error) = submit(&mut api, first + number) {
                            ensure!(micros() - began < BOUND.as_micros() as u64, "a submission: {error:#}");
                            std::thread::sleep(Duration::from_millis(20));
                        }
                        acknowledged.fetch_add(1, Relaxed);
                        sent.push((number, began));
                    }
                    Ok(sent)
                })
            })
            .collect();
        while acknowledged.load(Relaxed) < total && threads.iter().any(|t| !t.is_finished()) {
            run.tally.take(Duration::from_millis(5))?;
            look(run, acknowledged.load(Relaxed))?;
        }
        let mut all = vec![0; total];
        for thread in threads {
            let sent = thread.join().unwrap_or_else(|_| anyhow::bail!("a thread panicked"))?;
            sent.into_iter().for_each(|(number, at)| all[number] = at);
        }
        Ok::<_, anyhow::Error>(all)
    })?;
    run.submitted += total;
    ensure!(sent.iter().all(|at| *at > 0), "{} is not known", name(0));
    Ok(sent)
}
