//! N simulated agents against one real hub: what a connect storm, heartbeats, a storm of jobs and a crash of the hub cost,
//! and whether the hub ever calls a living agent offline or loses a task.
//!
//! An agent is the real core over the real link, with a key and an enrolment of its own; only its journal is in memory and
//! its jobs end at once (`board.rs`). All are in this process, so one clock measures. They share the machine with the hub.

mod board;
mod phases;
mod tally;

use crate::hub::Hub;
use crate::proc::{directory, open_files, programs};
use crate::record::{Record, Series};
use anyhow::{Result, ensure};
use board::{Note, Seat};
use dunlin_agent::files::Files;
use dunlin_agent::link;
use dunlin_hub::clock::micros;
use dunlin_wire::message::Profile;
use dunlin_wire::ticket::Ticket;
use serde_json::json;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use tally::Tally;
use tokio::sync::{Semaphore, watch};
use tokio::task::LocalSet;

/// How it is called.
pub const USAGE: &str = "dunlin-bench fleet --agents N           simulated agents against one hub
         [--minutes M] [--jobs N]         of heartbeats (1); of a storm, for each agent (20)
         [--profile lan|wan|metered]      how often agents show that they live (lan: every 5 s)
         [--down SECONDS]                 how long the hub is away after SIGKILL (2)
         [--json FILE] [--bin DIR]        --bin has dunlin-hub";

/// Threads that carry agents, and that submit.
const SHARDS: usize = 2;
const SUBMITTERS: usize = 16;
/// Enrolments at once on a thread.
const JOINS_MAX: usize = 32;
/// A result's file is no longer than this, in bytes; without its samples when need be.
const JSON_MAX: usize = 200_000;
/// Samples of a series that are kept; a plot and an interval need no more.
const SAMPLES_MAX: usize = 2000;

/// What is asked for.
#[derive(Debug, Clone)]
pub struct Options {
    /// How many agents.
    pub agents: usize,
    /// Minutes of heartbeats.
    pub minutes: f64,
    /// Jobs for each agent in a storm.
    pub jobs: usize,
    /// The agents' profile.
    pub profile: Profile,
    /// How long the hub is away, in seconds.
    pub down: f64,
    /// Where the record goes.
    pub json: Option<PathBuf>,
    /// Where `dunlin-hub` is.
    pub bin: Option<PathBuf>,
}

impl Options {
    /// Reads the arguments after `fleet`.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn parse(args: &[&str]) -> Result<Self, String> {
        let mut options = Self {
            agents: 0,
            minutes: 1.0,
            jobs: 20,
            profile: Profile::Lan,
            down: 2.0,
            json: None,
            bin: None,
        };
        let mut args = args.iter();
        while let Some(&arg) = args.next() {
            let value = args.next().ok_or_else(|| format!("`{arg}` is not known, or lacks its value"))?;
            let bad = || format!("{arg} {value}: not a value of it");
            let count =
                |max: usize| value.parse::<usize>().ok().filter(|n| (1..=max).contains(n)).ok_or_else(bad);
            let amount =
                || value.parse::<f64>().ok().filter(|n| (0.0..=10_000.0).contains(n)).ok_or_else(bad);
            match arg {
                "--agents" => options.agents = count(100_000)?,
                "--minutes" => options.minutes = amount()?,
                "--jobs" => options.jobs = count(10_000)?,
                "--profile" => options.profile = Profile::parse(value).ok_or_else(bad)?,
                "--down" => options.down = amount()?,
                "--json" => options.json = Some(value.into()),
                "--bin" => options.bin = Some(value.into()),
                _ => return Err(format!("`{arg}` is not known")),
            }
        }
        if options.agents == 0 {
            return Err("--agents N is missing".into());
        }
        Ok(options)
    }
}

/// What must be zero.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Times that the hub called a living agent offline.
    pub false_offline: usize,
    /// Tasks that the hub acknowledged and that have no result.
    pub lost: usize,
    /// Tasks that were started more than once, although no agent was ever killed.
    pub repeated: usize,
}

/// Measures, prints the table and writes the record.
///
/// # Errors
/// When the hub does not start, or something that must come does not.
pub fn run(options: &Options) -> Result<Verdict> {
    let dir = directory()?;
    let done = measure(options, dir.path());
    match done {
        Ok((record, verdict)) => {
            record.print();
            if let Some(path) = &options.json {
                record.save(path, JSON_MAX)?;
            }
            Ok(verdict)
        }
        Err(error) => Err(error.context(format!("logs are kept in {}", dir.keep().display()))),
    }
}

/// What a run goes through in turn.
struct Run<'a> {
    options: &'a Options,
    hub: Hub,
    tally: Tally,
    record: Record,
    /// Tasks that were acknowledged so far; their names are numbers.
    submitted: usize,
}

impl Run<'_> {
    /// Adds a series.
    fn series(&mut self, name: &str, unit: &str, samples: Vec<f64>) {
        let profile = self.options.profile.as_str();
        let settings = format!("{} agents", self.options.agents);
        let mut series = Series::new([name, "dunlin", profile, unit], samples).with(true, &settings);
        thin(&mut series.samples);
        self.record.series.push(series);
    }

    fn note(&mut self, text: String) {
        eprintln!("fleet: {text}");
        self.record.notes.push(text);
    }
}

fn measure(options: &Options, dir: &Path) -> Result<(Record, Verdict)> {
    // A socket for each agent and another for those that just connect anew; API connections, files.
    open_files(options.agents as u64 * 3 / 2 + 200)?;
    map_large_buffers();
    let bin = programs(options.bin.as_deref(), &["dunlin-hub"])?;
    let hub = Hub::start(&bin, dir, None, Ipv4Addr::LOCALHOST, "")?;
    let record = Record::new(dir);
    let seen = tally::listen(hub.api());
    let began = micros();
    let seats = enrol(options, &hub, dir)?;
    let took = (micros() - began) as f64 / 1e6;
    let (notes, inbox) = channel();
    let tally = Tally::new(options.agents, inbox);
    let mut run = Run { options, hub, tally, record, submitted: 0 };
    run.series("enrol", "agents/s", vec![options.agents as f64 / took]);
    run.note(format!("{} agents invited and enrolled in {took:.1} s, one by one", options.agents));
    let (stop, _) = watch::channel(false);
    let threads = phases::connect(&mut run, seats, &notes, &stop)?;
    drop(notes);
    phases::heartbeats(&mut run)?;
    phases::storm(&mut run)?;
    phases::restart(&mut run)?;
    phases::crash(&mut run)?;
    let verdict = phases::judge(&mut run, &seen)?;
    let _ = stop.send(true);
    threads.into_iter().for_each(|thread| drop(thread.join()));
    Ok((run.record, verdict))
}

/// quinn gives each endpoint 3 MiB to receive into, of which an agent here touches a page. glibc would come to take them
/// from its heap and clear them first, once some were freed; mapped, a page that is not touched is not there.
fn map_large_buffers() {
    #[cfg(target_env = "gnu")]
    // SAFETY: sets a number of the allocator's.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 1 << 20);
    }
}

/// Leaves evenly spread ones of many samples; the percentiles are of all.
fn thin(samples: &mut Vec<f64>) {
    let every = samples.len().div_ceil(SAMPLES_MAX).max(1);
    let mut at = 0;
    samples.retain(|_| {
        at += 1;
        (at - 1) % every == 0
    });
}

/// Runs the boards of one shard on a thread of their own.
fn spawn(seats: Vec<Seat>, notes: Sender<Note>, stop: watch::Receiver<bool>) -> Result<JoinHandle<()>> {
    Ok(std::thread::Builder::new().name("agents".into()).spawn(move || {
        let local = LocalSet::new();
        let boards = async {
            let tasks: Vec<_> = seats
                .into_iter()
                .map(|seat| tokio::task::spawn_local(board::run(seat, notes.clone(), stop.clone())))
                .collect();
            drop(notes);
            for task in tasks {
                let _ = task.await;
            }
        };
        // As the agent's own link has it (`agent.rs`): here thousands of tasks take turns.
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        match runtime.event_interval(1_000_000).enable_all().build() {
            Ok(runtime) => local.block_on(&runtime, boards),
            Err(error) => eprintln!("fleet: no runtime: {error}"),
        }
    })?)
}

/// Invites and enrols every agent as an operator and a board would: a ticket through the API, a join over QUIC.
fn enrol(options: &Options, hub: &Hub, dir: &Path) -> Result<Vec<Seat>> {
    let (agents, profile) = (options.agents, options.profile.as_str());
    let shard = |shard: usize| -> Result<Vec<Seat>> {
        let mut api = hub.api();
        let mut tickets = Vec::new();
        for number in (shard..agents).step_by(SHARDS) {
            let body = json!({"name": name(number), "profile": profile, "maxConcurrentTasks": 1});
            tickets.push((number, Ticket::parse(&api.invite(&body)?)?));
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        LocalSet::new().block_on(&runtime, async {
            let room = Arc::new(Semaphore::new(JOINS_MAX));
            let mut joining = Vec::new();
            for (number, ticket) in tickets {
                let (room, dir) = (room.clone(), dir.join("boards").join(number.to_string()));
                joining.push(tokio::task::spawn_local(async move {
                    let _place = room.acquire_owned().await?;
                    std::fs::create_dir_all(&dir)?;
                    let key = Files::at(&dir).key()?;
                    let joined = link::join(&ticket, &key).await?;
                    let addr = ticket.addrs[0].clone();
                    Ok::<_, anyhow::Error>(Seat { number, joined, hub: ticket.hub, addr, key, dir })
                }));
            }
            let mut seats = Vec::new();
            for seat in joining {
                seats.push(seat.await??);
            }
            Ok(seats)
        })
    };
    let shard = &shard;
    let seats = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..SHARDS).map(|n| scope.spawn(move || shard(n))).collect();
        let done =
            threads.into_iter().map(|t| t.join().unwrap_or_else(|_| anyhow::bail!("a thread panicked")));
        done.collect::<Result<Vec<_>>>()
    })?;
    let seats: Vec<Seat> = seats.into_iter().flatten().collect();
    ensure!(seats.len() == agents, "{} of {agents} agents were enrolled", seats.len());
    Ok(seats)
}

/// An agent's name.
fn name(number: usize) -> String {
    format!("sim-{number}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_thinned_evenly() {
        let mut samples: Vec<f64> = (0..4001).map(f64::from).collect();
        thin(&mut samples);
        assert_eq!((samples.len(), samples[0], samples[1]), (1334, 0.0, 3.0));
        thin(&mut samples);
        assert_eq!(samples.len(), 1334);
    }

    #[test]
    fn arguments_are_read_or_named() {
        let parse = |text: &str| Options::parse(&text.split_whitespace().collect::<Vec<_>>());
        let options = parse("--agents 50 --minutes 0.5 --profile wan").unwrap();
        assert_eq!((options.agents, options.minutes, options.profile), (50, 0.5, Profile::Wan));
        for (text, want) in [
            ("", "--agents N is missing"),
            ("--agents", "`--agents` is not known, or lacks its value"),
            ("--agents 0", "--agents 0: not a value"),
            ("--agents 1 --minutes -1", "--minutes -1"),
            ("--agents 1 --what 3", "`--what` is not known"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(want), "{text}: {error}");
        }
    }
}
