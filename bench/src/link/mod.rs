//! What an emulated WAN does to the real hub and the real agent, beside a plain TCP + TLS 1.3 peer on the same link in
//! the same run. Every time is CLOCK_BOOTTIME of this machine: namespaces share it.

mod bare;
mod connect;
mod cut;
mod idle;
mod job;
mod mqtt;
mod report;
mod rig;
mod tcp;

use crate::record::Record;
use crate::wan::{Link, Side, Wan};
use anyhow::{Result, ensure};
use dunlin_hub::clock::micros;
use dunlin_wire::message::Profile;
use report::Report;
use rig::Rig;
use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

/// How it is called.
pub const USAGE: &str = "dunlin-bench link [connect|cut|job|idle] [--link lan|lte|sat|bad|RTTms] [--n N]
         [--json FILE] [--bin DIR]        all of them without a word; --bin has dunlin-hub and dunlin-agent
         [--cut SECONDS[,SECONDS]]        cut: how long (5); n is 20 of each
         [--profile lan|wan|metered]      cut, job, idle: the agent's (wan)
         [--seconds S] [--nat SECONDS]    idle: how long to watch (600); a NAT that forgets after so long
         [--telemetry on|off]             whether the agent reports its board (on)";

/// What is asked for.
#[derive(Debug, Clone)]
pub struct Options {
    measures: Vec<Measure>,
    link: Option<(String, Link)>,
    n: Option<usize>,
    json: Option<PathBuf>,
    bin: Option<PathBuf>,
    cuts: Vec<u64>,
    profile: Profile,
    seconds: u64,
    nat: Option<Duration>,
    telemetry: bool,
}

type Measure = fn(&Options, &mut Rig) -> Result<Report>;

impl Options {
    /// Reads the arguments after `link`.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn parse(args: &[&str]) -> Result<Self, String> {
        let mut options = Self {
            measures: Vec::new(),
            link: None,
            n: None,
            json: None,
            bin: None,
            cuts: vec![5],
            profile: Profile::Wan,
            seconds: 600,
            nat: None,
            telemetry: true,
        };
        let mut args = args.iter();
        while let Some(&arg) = args.next() {
            let measure: Option<Measure> = match arg {
                "connect" => Some(connect::run),
                "cut" => Some(cut::run),
                "job" => Some(job::run),
                "idle" => Some(idle::run),
                _ => None,
            };
            if let Some(measure) = measure {
                options.measures.push(measure);
                continue;
            }
            let value = args.next().ok_or_else(|| format!("`{arg}` is not known, or lacks its value"))?;
            let bad = || format!("{arg} {value}: not a value of it");
            let number = || value.parse::<u64>().ok().filter(|n| *n > 0).ok_or_else(bad);
            match arg {
                "--link" => {
                    let rtt = || Some(Link::delay(value.strip_suffix("ms")?.parse().ok()?));
                    let link = Link::named(value).or_else(rtt).ok_or_else(bad)?;
                    options.link = Some(((*value).to_owned(), link));
                }
                "--n" => options.n = Some(number()? as usize),
                "--json" => options.json = Some(value.into()),
                "--bin" => options.bin = Some(value.into()),
                "--cut" => {
                    let cuts = value.split(',').map(|s| s.parse().ok().filter(|s| *s > 0));
                    options.cuts = cuts.collect::<Option<_>>().ok_or_else(bad)?;
                }
                "--profile" => options.profile = Profile::parse(value).ok_or_else(bad)?,
                "--seconds" => options.seconds = number()?,
                "--nat" => options.nat = Some(Duration::from_secs(number()?)),
                "--telemetry" if matches!(*value, "on" | "off") => options.telemetry = *value == "on",
                "--telemetry" => return Err(bad()),
                _ => return Err(format!("`{arg}` is not known")),
            }
        }
        if options.measures.is_empty() {
            options.measures = vec![connect::run, cut::run, job::run, idle::run];
        }
        Ok(options)
    }

    /// The link's name and the link; `lte` when none is asked for.
    fn link(&self) -> (String, Link) {
        self.link.clone().unwrap_or_else(|| ("lte".into(), Link::named("lte").unwrap_or(Link::delay(60))))
    }
}

/// Measures what was asked for, each in a new pair of namespaces, and prints a table for each.
///
/// # Errors
/// When this is not root, the binaries are not there, or something that must come does not.
pub fn run(options: &Options) -> Result<()> {
    // SAFETY: asks for a number.
    let root = unsafe { libc::geteuid() } == 0;
    ensure!(root, "this needs root, for network namespaces and TUN devices; run it with sudo");
    let mut record = Record::new(&std::env::current_dir()?);
    for measure in &options.measures {
        let mut rig = Rig::new(options)?;
        let report = measure(options, &mut rig).map_err(|error| rig.keep(error))?;
        report.print();
        report.add(&mut record, &options.link().0);
        if let Some(path) = &options.json {
            record.save(path, usize::MAX)?;
        }
    }
    Ok(())
}

/// What passed on a link so far: packets, bytes from the board, bytes from the hub.
fn passed(wan: &Wan) -> [u64; 3] {
    let [up, down] = [Side::Board, Side::Hub].map(|side| wan.passed(side));
    [up.packets + down.packets, up.bytes, down.bytes]
}

/// What a job does that is waited for: it appends the time to a file.
///
/// # Errors
/// The file system's.
pub fn stamp(path: &str) -> Result<()> {
    let now = micros();
    let mut file = std::fs::File::options().create(true).append(true).open(path)?;
    Ok(file.write_all(format!("{now}\n").as_bytes())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_read_or_named() {
        let parse = |text: &str| Options::parse(&text.split_whitespace().collect::<Vec<_>>());
        let options = parse("cut --link 250ms --n 3 --cut 1,5 --profile metered --nat 30").unwrap();
        assert_eq!(options.link(), ("250ms".into(), Link::delay(250)));
        assert_eq!((options.measures.len(), options.n, options.cuts), (1, Some(3), vec![1, 5]));
        assert_eq!((parse("").unwrap().measures.len(), parse("idle").unwrap().link().0), (4, "lte".into()));
        for (text, want) in [
            ("ping", "`ping` is not known"),
            ("cut --n", "`--n` is not known, or lacks its value"),
            ("cut --n 0", "--n 0: not a value"),
            ("cut --link moon", "--link moon"),
            ("cut --cut 1,", "--cut 1,"),
            ("--what 1", "`--what`"),
            ("idle --telemetry no", "--telemetry no"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(want), "{text}: {error}");
        }
    }
}
