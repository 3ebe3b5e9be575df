//! Claim latency, submit to durable result, and durable jobs per second, of Dunlin beside its peers and its floor.
//!
//! `claim` is from before a submitter's send to the job in the hands of an idle worker, `result` from there to the
//! submitter's knowledge that the result is kept; both on this process's one clock, as submitter and worker are in it.
//! Each system has a link of its own of the same kind. On links below 100 ms rounds of all systems take turns; on longer
//! ones the systems run at once, as waiting is all they do.

mod dunlin;
mod floor;
mod known;
mod throughput;

use crate::peers::{Said, Submitter, System, find};
use crate::record::{Goal, Record, Series};
use crate::site::{BOUND, Site, version};
use crate::stats::Sample;
use crate::wan::Link;
use anyhow::{Context, Result};
use dunlin_hub::clock::micros;
use floor::Floor;
use known::{BEFORE, KNOWN, Known};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

/// How it is called.
pub const USAGE: &str = "dunlin-bench claim [--profile loop|lan|lte|sat|bad] [--peers NAME,...|all|none] [--rounds N]
         [--json FILE] [--bin DIR]        --bin has dunlin-hub and dunlin-agent; peers: redis, rabbitmq, nats, postgres,
         [--before DIR]                   beanstalkd, mosquitto, ssh; --before has another dunlin-hub, to see what a change does
         [--throughput [--workers 1,64]]  durable jobs a second instead, each kind of worker so many at once";

/// Longer links are measured for all systems at once.
const TURNS_RTT_MAX: Duration = Duration::from_millis(100);
/// A file in the repository is not larger, in bytes.
const FILE_MAX: usize = 200_000;

/// What is asked for.
#[derive(Debug, Clone)]
pub struct Options {
    profile: String,
    peers: Vec<String>,
    rounds: usize,
    json: Option<PathBuf>,
    bin: Option<PathBuf>,
    before: Option<PathBuf>,
    throughput: bool,
    workers: Vec<usize>,
}

impl Options {
    /// Reads the arguments after `claim`.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn parse(args: &[&str]) -> Result<Self, String> {
        let mut options = Self {
            profile: "loop".into(),
            peers: Vec::new(),
            rounds: 0,
            json: None,
            bin: None,
            before: None,
            throughput: false,
            workers: vec![1, 64],
        };
        let mut args = args.iter();
        while let Some(&arg) = args.next() {
            if arg == "--throughput" {
                options.throughput = true;
                continue;
            }
            let value = *args.next().ok_or_else(|| format!("`{arg}` is not known, or lacks its value"))?;
            let bad = || format!("{arg} {value}: not a value of it");
            let number = |text: &str| text.parse::<usize>().ok().filter(|n| *n > 0).ok_or_else(bad);
            match arg {
                "--profile" if value == "loop" || Link::named(value).is_some() => {
                    options.profile = value.into()
                }
                "--profile" => return Err(bad()),
                "--peers" => options.peers = peers_of(value).ok_or_else(bad)?,
                "--rounds" => options.rounds = number(value)?,
                "--json" => options.json = Some(value.into()),
                "--bin" => options.bin = Some(value.into()),
                "--before" => options.before = Some(value.into()),
                "--workers" => options.workers = value.split(',').map(number).collect::<Result<_, _>>()?,
                _ => return Err(format!("`{arg}` is not known")),
            }
        }
        if options.rounds == 0 {
            options.rounds = if options.throughput { 5 } else { 500 };
        }
        Ok(options)
    }

    fn site(&self) -> Result<Site> {
        Site::new(Link::named(&self.profile))
    }

    /// The systems to measure, Dunlin first. What is not installed is named on stderr and left out.
    fn systems(&self, record: &mut Record) -> Result<Vec<&'static Known>> {
        let mut found = Vec::new();
        for known in &KNOWN {
            let Some(program) = known.program else {
                if known.name != BEFORE || self.before.is_some() {
                    found.push(known);
                }
                continue;
            };
            if !self.peers.iter().any(|name| name == known.name) {
                continue;
            }
            if find(program).is_none() {
                eprintln!("claim: no {program}; `apt-get install {}` has it", known.package);
                record.notes.push(format!("{} was not installed", known.name));
                continue;
            }
            record.machine.versions.insert(known.name.into(), version(known.package));
            found.push(known);
        }
        Ok(found)
    }
}

fn peers_of(value: &str) -> Option<Vec<String>> {
    let all = || KNOWN.iter().filter(|known| known.program.is_some()).map(|known| known.name);
    match value {
        "none" => Some(Vec::new()),
        "all" => Some(all().map(str::to_owned).collect()),
        list => list.split(',').map(|name| all().find(|n| *n == name).map(str::to_owned)).collect(),
    }
}

/// Measures what was asked for, prints the table and writes the record.
///
/// # Errors
/// When something does not start, or what must come does not.
pub fn run(options: &Options) -> Result<()> {
    let mut record = Record::new(&std::env::current_dir()?);
    let systems = options.systems(&mut record)?;
    if options.throughput {
        throughput::measure(options, &systems, &mut record)?;
    } else {
        measure(options, &systems, &mut record)?;
    }
    record.print();
    options.json.as_deref().map_or(Ok(()), |path: &Path| record.save(path, FILE_MAX))
}

/// A system, its submitter and what its worker tells.
struct Measured {
    known: &'static Known,
    submitter: Box<dyn Submitter>,
    said: Receiver<Said>,
    claim: Sample,
    result: Sample,
    // Ends after its clients.
    system: Box<dyn System>,
}

impl Measured {
    fn start(options: &Options, known: &'static Known) -> Result<Self> {
        eprintln!("claim: starting {}", known.name);
        let start = || -> Result<Self> {
            let mut system = (known.make)(options, options.site()?)?;
            let (tell, said) = channel();
            system.workers(1, &tell)?;
            let submitter = system.submitter(true)?;
            Ok(Self { known, submitter, said, claim: Sample::new(), result: Sample::new(), system })
        };
        start().with_context(|| format!("{} did not start", known.name))
    }

    fn round(&mut self, counts: bool) -> Result<()> {
        while self.said.try_recv().is_ok() {}
        let began = micros();
        self.submitter.submit()?;
        self.submitter.result()?;
        let result = micros() - began;
        // ssh has no worker that tells.
        while self.known.name != "ssh" {
            if let Said::Claimed(at) = self.said.recv_timeout(BOUND)? {
                if counts {
                    self.claim.push(at.saturating_sub(began));
                }
                break;
            }
        }
        if counts {
            self.result.push(result);
        }
        Ok(())
    }

    fn rounds(&mut self, rounds: std::ops::Range<usize>, warm: usize) -> Result<()> {
        rounds.into_iter().try_for_each(|round| self.round(round >= warm))
    }
}

fn measure(options: &Options, systems: &[&'static Known], record: &mut Record) -> Result<()> {
    let link = Link::named(&options.profile);
    let mut floor = Floor::start(options.site()?)?;
    let mut all = Vec::new();
    for &known in systems {
        all.push(Measured::start(options, known)?);
    }
    let warm = (options.rounds / 10).clamp(1, 50);
    let total = options.rounds + warm;
    let mut floors = Vec::new();
    if link.is_some_and(|link| link.rtt >= TURNS_RTT_MAX) {
        eprintln!("claim: {total} rounds of all systems at once");
        let ended = std::thread::scope(|scope| {
            let threads: Vec<_> =
                all.iter_mut().map(|one| scope.spawn(move || one.rounds(0..total, warm))).collect();
            floors = (0..total).map(|_| floor.round()).collect::<Result<_>>()?;
            threads
                .into_iter()
                .try_for_each(|t| t.join().map_err(|_| anyhow::anyhow!("a thread panicked"))?)
        });
        ended?;
    } else {
        // The floor, and then each system.
        let mut order: Vec<usize> = (0..=all.len()).collect();
        for round in 0..total {
            if round % 100 == 0 {
                eprintln!("claim: round {round} of {total}");
            }
            // In another order each time: who comes after a long round finds everything cold.
            fastrand::shuffle(&mut order);
            for &at in &order {
                match at.checked_sub(1).and_then(|at| all.get_mut(at)) {
                    None => floors.push(floor.round()?),
                    Some(one) => one.rounds(round..round + 1, warm).with_context(|| one.known.name)?,
                }
            }
        }
    }
    floors.drain(..warm);
    for one in &all {
        if let Some(counted) = one.system.counted()? {
            record.notes.push(format!("{} by its own count, warm-up and all: {counted}", one.known.name));
        }
    }
    report(options, &all, &floors, record);
    Ok(())
}

fn report(options: &Options, all: &[Measured], floors: &[floor::Round], record: &mut Record) {
    let profile = options.profile.as_str();
    let mut add = |name: &str, of: fn(&floor::Round) -> u64| {
        let mut sample = Sample::new();
        floors.iter().for_each(|round| sample.push(of(round)));
        record.series.push(Series::times(name, "floor", profile, &sample).with(true, "measured by itself"));
    };
    add("commit", |round| round.commit);
    add("fsync", |round| round.fsync);
    add("rtt", |round| round.rtt);
    add("spawn", |round| round.spawn);
    add("claim", floor::Round::claim);
    // Every end waits for its disk: two commits at the hub, two at the agent that overlap with spawn and send.
    add("result", |round| 2 * round.commit + round.spawn + round.rtt);
    for one in all {
        let (durable, settings) = (one.system.durable(), one.system.settings());
        // A real agent's claim is told by the hub, which is another thing.
        for (name, sample) in [("claim", &one.claim), ("result", &one.result)] {
            if sample.count() > 0 && (name, one.known.name) != ("claim", "dunlin-agent") {
                let series = Series::times(name, one.known.name, profile, sample);
                record.series.push(series.with(durable, &settings));
            }
        }
    }
    let claim = ("claim", profile);
    let floor_goal = if profile == "bad" { Goal::None } else { Goal::Most(1.3) };
    record.ratio(claim, ["dunlin", "floor"], 50, floor_goal);
    for at in [50, 90, 99] {
        record.ratio(claim, ["dunlin", BEFORE], at, Goal::None);
    }
    for peer in ["redis", "rabbitmq", "nats", "postgres", "beanstalkd", "mosquitto"] {
        record.ratio(claim, ["dunlin", peer], 50, Goal::None);
        // Promised beside the durable ones whose link has TLS.
        let promised = profile == "bad" && matches!(peer, "redis" | "rabbitmq");
        let goal = |most| if promised { Goal::Most(most) } else { Goal::None };
        record.ratio(claim, ["dunlin", peer], 90, goal(0.25));
        record.ratio(claim, ["dunlin", peer], 99, goal(0.35));
        record.ratio(("result", profile), ["dunlin", peer], 50, Goal::None);
    }
    let ssh = match profile {
        "loop" => Goal::Most(0.25),
        "lte" => Goal::Most(0.55),
        _ => Goal::None,
    };
    record.ratio(("result", profile), ["dunlin-agent", "ssh"], 50, ssh);
    record.ratio(("result", profile), ["dunlin-agent", "floor"], 50, Goal::None);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_read_or_named() {
        let parse = |text: &str| Options::parse(&text.split_whitespace().collect::<Vec<_>>());
        let options = parse("--profile bad --peers redis,ssh --rounds 7 --throughput --workers 1,8").unwrap();
        assert_eq!((options.profile.as_str(), options.rounds, options.throughput), ("bad", 7, true));
        assert_eq!((options.peers, options.workers), (vec!["redis".into(), "ssh".into()], vec![1, 8]));
        assert_eq!((parse("").unwrap().rounds, parse("--throughput").unwrap().rounds), (500, 5));
        assert_eq!(parse("--peers all").unwrap().peers.len(), KNOWN.len() - 3);
        for (text, want) in [
            ("--peers kafka", "--peers kafka"),
            ("--profile moon", "--profile moon"),
            ("--rounds 0", "--rounds 0"),
            ("--workers 1,", "--workers 1,"),
            ("--rounds", "lacks its value"),
            ("300 7", "`300`"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(want), "{text}: {error}");
        }
    }
}
