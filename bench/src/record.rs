//! The one JSON schema of everything that the bench measures, so that `report` reads each command's file alike.
//!
//! A file is one [`Record`]. A field is only ever added; a change of meaning is a new [`SCHEMA`].

use crate::stats::{self, Sample};
use anyhow::{Context, Result, ensure};
use dunlin_hub::clock;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

/// The schema's number.
pub const SCHEMA: u32 = 1;

/// What one run of one command found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// [`SCHEMA`] of the program that wrote it.
    pub schema: u32,
    /// The command line.
    pub command: String,
    /// When it began, RFC 3339 in UTC. For people: no figure depends on it.
    pub started: String,
    /// Where it ran.
    pub machine: Machine,
    /// What was measured, in the order of the table.
    pub series: Vec<Series>,
    /// What of it stands beside what.
    pub ratios: Vec<Ratio>,
    /// What the figures do not say by themselves.
    pub notes: Vec<String>,
}

/// The machine, so that nobody compares two without knowing it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// Release of the kernel.
    pub kernel: String,
    /// Model of the processor, as /proc/cpuinfo has it; empty when it does not say.
    pub cpu: String,
    /// Processors that this process may use.
    pub cores: usize,
    /// Load average of one minute when the run began.
    pub load1: f64,
    /// File system and device of the directory that was written to.
    pub disk: String,
    /// What was measured, by name, as it says its version itself.
    pub versions: BTreeMap<String, String>,
}

/// One thing measured of one system.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Series {
    /// What: `claim`, `result`, `throughput`, ...
    pub name: String,
    /// Of whom: `dunlin`, `redis`, `floor`, ...
    pub system: String,
    /// The link: `loop`, `lte`, ...
    pub profile: String,
    /// What a sample counts: `us`, `jobs/s`, `bytes`, ...
    pub unit: String,
    /// Whether what was acknowledged is on the disk.
    pub durable: bool,
    /// How the system was set up.
    pub settings: String,
    /// How many samples there were.
    pub n: usize,
    /// Half of the samples are not over this (nearest rank).
    pub p50: f64,
    /// Nine tenths are not.
    pub p90: f64,
    /// Ninety-nine hundredths are not; means little when `n` is below 500.
    pub p99: f64,
    /// None is.
    pub max: f64,
    /// Every sample in the order of measuring; empty when they were left out to keep the file small.
    #[serde(default)]
    pub samples: Vec<f64>,
}

/// One figure over another of the same run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Ratio {
    /// What was measured: a series' name.
    pub name: String,
    /// Whose figure is above the line.
    pub system: String,
    /// Whose is below it.
    pub against: String,
    /// Which figure: `p50`, `p90`, `p99` or `max`.
    pub at: String,
    /// The ratio.
    pub value: f64,
    /// Lower end of its 95 % bootstrap interval.
    pub low: f64,
    /// Upper end.
    pub high: f64,
    /// What it should be at most, or at least where more is better; `None` where nothing was promised.
    pub goal: Option<f64>,
    /// Whether it is; `None` where nothing was promised.
    pub met: Option<bool>,
}

/// What of a ratio's goal is good.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Goal {
    /// At most this.
    Most(f64),
    /// At least this.
    Least(f64),
    /// Nothing was promised.
    None,
}

impl Goal {
    /// The number, and whether `value` keeps it.
    pub fn judge(self, value: f64) -> (Option<f64>, Option<bool>) {
        match self {
            Self::Most(goal) => (Some(goal), Some(value <= goal)),
            Self::Least(goal) => (Some(goal), Some(value >= goal)),
            Self::None => (None, None),
        }
    }
}

impl Record {
    /// An empty record of this run, with the machine as it is now; `dir` lies on the disk that is written to.
    pub fn new(dir: &Path) -> Self {
        Self {
            schema: SCHEMA,
            command: std::env::args().collect::<Vec<_>>().join(" "),
            started: rfc3339(clock::now().wall / 1000),
            machine: Machine::here(dir),
            series: Vec::new(),
            ratios: Vec::new(),
            notes: Vec::new(),
        }
    }

    /// Adds `system`'s `at` (a percentile; 100 is the largest) over `against`'s, both of series `name` and `profile`.
    /// Nothing, when one of them is not there or has no samples.
    pub fn ratio(
        &mut self,
        (name, profile): (&str, &str),
        [system, against]: [&str; 2],
        at: usize,
        goal: Goal,
    ) {
        let find = |who: &str| {
            let of = |s: &&Series| s.name == name && s.system == who && s.profile == profile;
            self.series.iter().find(of).filter(|s| !s.samples.is_empty())
        };
        let (Some(above), Some(below)) = (find(system), find(against)) else { return };
        let [value, low, high] = stats::ratio(&above.samples, &below.samples, at);
        let (goal, met) = goal.judge(value);
        let at = if at == 100 { "max".to_owned() } else { format!("p{at}") };
        let [name, system, against] = [name, system, against].map(str::to_owned);
        self.ratios.push(Ratio { name, system, against, at, value, low, high, goal, met });
    }

    /// Prints it for people: times in milliseconds, everything else as it is.
    pub fn print(&self) {
        let Machine { kernel, cores, load1, disk, .. } = &self.machine;
        println!("{}\n{kernel}, {cores} cores, load {load1}, {disk}", self.command);
        println!("{:<26} {:<14} {:>5} {:>10} {:>10} {:>10} {:>10}", "", "", "n", "p50", "p90", "p99", "max");
        for s in &self.series {
            let by = if s.unit == "us" { 1000.0 } else { 1.0 };
            let [p50, p90, p99, max] = [s.p50, s.p90, s.p99, s.max].map(|value| format!("{:.3}", value / by));
            let unit = if s.unit == "us" { "ms" } else { &s.unit };
            let what = format!("{} {}", s.name, s.profile);
            println!("{what:<26} {:<14} {:>5} {p50:>10} {p90:>10} {p99:>10} {max:>10} {unit}", s.system, s.n);
        }
        for r in &self.ratios {
            let goal = match (r.goal, r.met) {
                (Some(goal), Some(true)) => format!("  goal {goal}: met"),
                (Some(goal), _) => format!("  goal {goal}: NOT met"),
                (None, _) => String::new(),
            };
            let what = format!("{} {} {} / {}", r.name, r.at, r.system, r.against);
            println!("{what:<48} {:>6.3} [{:.3}, {:.3}]{goal}", r.value, r.low, r.high);
        }
        self.notes.iter().for_each(|note| println!("{note}"));
    }

    /// Writes it. Samples are left out when the file would be over `bytes_max` with them.
    ///
    /// # Errors
    /// The file system's, with the path.
    pub fn save(&self, path: &Path, bytes_max: usize) -> Result<()> {
        let mut text = serde_json::to_string(self)?;
        if text.len() > bytes_max {
            let mut short = self.clone();
            short.series.iter_mut().for_each(|series| series.samples.clear());
            text = serde_json::to_string_pretty(&short)?;
        }
        text.push('\n');
        std::fs::write(path, text).with_context(|| path.display().to_string())
    }

    /// Reads one.
    ///
    /// # Errors
    /// The file system's; a file of another schema; both with the path.
    pub fn load(path: &Path) -> Result<Self> {
        let text = std::fs::read(path).with_context(|| path.display().to_string())?;
        let record: Self = serde_json::from_slice(&text)
            .with_context(|| format!("{}: not a record of dunlin-bench", path.display()))?;
        let theirs = record.schema;
        ensure!(
            theirs == SCHEMA,
            "{}: schema {theirs}; this program reads {SCHEMA}: measure again",
            path.display()
        );
        Ok(record)
    }
}

impl Series {
    /// A series of times in microseconds.
    pub fn times(name: &str, system: &str, profile: &str, sample: &Sample) -> Self {
        let samples = sample.values().iter().map(|us| *us as f64).collect();
        Self::new([name, system, profile, "us"], samples)
    }

    /// A series: its name, system, profile and unit, and what was measured.
    pub fn new([name, system, profile, unit]: [&str; 4], samples: Vec<f64>) -> Self {
        let [p50, p90, p99, max] = [50, 90, 99, 100].map(|percent| stats::percentile(&samples, percent));
        Self {
            name: name.into(),
            system: system.into(),
            profile: profile.into(),
            unit: unit.into(),
            durable: false,
            settings: String::new(),
            n: samples.len(),
            p50,
            p90,
            p99,
            max,
            samples,
        }
    }

    /// The same with its settings stated.
    #[must_use]
    pub fn with(mut self, durable: bool, settings: &str) -> Self {
        (self.durable, self.settings) = (durable, settings.into());
        self
    }
}

impl Machine {
    /// This machine now; `dir` lies on the disk that is written to.
    pub fn here(dir: &Path) -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let info = read("/proc/cpuinfo");
        let model = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        let kernel = read("/proc/sys/kernel/osrelease").trim().to_owned();
        let load1 = read("/proc/loadavg").split(' ').next().and_then(|n| n.parse().ok()).unwrap_or(0.0);
        Self {
            kernel,
            cpu: model.map_or(String::new(), |(_, model)| model.trim().to_owned()),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            load1,
            disk: disk(dir),
            versions: BTreeMap::from([("dunlin".into(), env!("CARGO_PKG_VERSION").into())]),
        }
    }
}

/// Type and source of the file system that `dir` is in, as df(1) says; empty when it does not.
fn disk(dir: &Path) -> String {
    let said = Command::new("df").args(["--output=fstype,source"]).arg(dir).output();
    let text = said.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    text.lines().nth(1).map_or(String::new(), |line| line.split_whitespace().collect::<Vec<_>>().join(" "))
}

/// Seconds since 1970 as RFC 3339 in UTC, by Howard Hinnant's `civil_from_days`.
pub fn rfc3339(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400 + 719_468, seconds % 86_400);
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year + era * 400 + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", rest / 3600, rest / 60 % 60, rest % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        let mut record = Record::new(Path::new("/"));
        for (system, by) in [("dunlin", 1), ("redis", 2)] {
            let mut sample = Sample::new();
            (1..=100).for_each(|n| sample.push(n * by));
            record.series.push(Series::times("claim", system, "loop", &sample).with(true, "as it comes"));
        }
        record.ratio(("claim", "loop"), ["dunlin", "redis"], 50, Goal::Most(0.6));
        record.ratio(("claim", "loop"), ["dunlin", "redis"], 50, Goal::Least(2.0));
        record.ratio(("claim", "loop"), ["dunlin", "nobody"], 50, Goal::None);
        record
    }

    #[test]
    fn a_file_has_the_documented_fields() {
        let record = record();
        let file = tempfile::NamedTempFile::new().unwrap();
        record.save(file.path(), 1 << 20).unwrap();
        assert_eq!(Record::load(file.path()).unwrap(), record);
        let json: serde_json::Value = serde_json::from_slice(&std::fs::read(file.path()).unwrap()).unwrap();
        let keys = |value: &serde_json::Value| {
            let mut keys: Vec<_> = value.as_object().unwrap().keys().cloned().collect();
            keys.sort();
            keys.join(" ")
        };
        assert_eq!(keys(&json), "command machine notes ratios schema series started");
        assert_eq!(keys(&json["machine"]), "cores cpu disk kernel load1 versions");
        assert_eq!(
            keys(&json["series"][0]),
            "durable max n name p50 p90 p99 profile samples settings system unit"
        );
        assert_eq!(keys(&json["ratios"][0]), "against at goal high low met name system value");
        assert_eq!((&json["schema"], &json["series"][0]["p90"]), (&1.into(), &90.0.into()));
    }

    #[test]
    fn a_large_file_keeps_its_percentiles_and_not_its_samples() {
        let file = tempfile::NamedTempFile::new().unwrap();
        record().save(file.path(), 100).unwrap();
        let read = Record::load(file.path()).unwrap();
        assert_eq!((read.series[1].samples.len(), read.series[1].n, read.series[1].p99), (0, 100, 198.0));
    }

    #[test]
    fn a_goal_is_judged_and_a_system_that_is_not_there_has_no_ratio() {
        let ratios = record().ratios;
        assert_eq!(ratios.len(), 2);
        assert_eq!((ratios[0].value, ratios[0].met, ratios[1].met), (0.5, Some(true), Some(false)));
        assert!(ratios[0].low <= 0.5 && 0.5 <= ratios[0].high, "{:?}", ratios[0]);
    }

    #[test]
    fn another_schema_is_refused_by_name() {
        let file = tempfile::NamedTempFile::new().unwrap();
        Record { schema: 9, ..record() }.save(file.path(), 1 << 20).unwrap();
        let error = Record::load(file.path()).unwrap_err().to_string();
        assert!(error.contains("schema 9") && error.contains(&file.path().display().to_string()), "{error}");
    }

    #[test]
    fn dates_are_rfc_3339() {
        for (seconds, want) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_795_271_999, "2026-11-21T14:39:59Z"),
            (4_107_542_399, "2100-02-28T23:59:59Z"),
        ] {
            assert_eq!(rfc3339(seconds), want);
        }
        assert_eq!(rfc3339(4_107_542_400), "2100-03-01T00:00:00Z");
    }
}
