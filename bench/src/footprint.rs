//! What a board and a hub cost when nothing happens: bytes of each program, memory by /proc/PID/smaps_rollup (proc(5)), how
//! long a start takes, what an idle minute and what a task writes by /proc/PID/io, and how often a task waits for the disk
//! by strace, where that is installed. Of the shipped binaries, in a directory that is named, beside the design's bounds and
//! idle peers from Debian as far as they are installed; nothing is emulated. A parked agent is a real one, connected and
//! without work.

use crate::hub::Hub;
use crate::proc::{Memory, Proc, directory, programs, until};
use anyhow::{Context, Result, bail, ensure};
use dunlin_hub::clock::micros;
use serde_json::json;
use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// Largest agent, in bytes.
const AGENT_BYTES_MAX: u64 = 3 << 20;
/// Both roles of an idle agent: PSS and anonymous memory, in kB.
const AGENT_KB_MAX: (u64, u64) = (3_500, 1_000);
/// A hub with one agent, and what each further one may add, in kB.
const HUB_KB_MAX: (u64, u64) = (12_000, 41);
/// Until what was just started has come to rest.
const SETTLE: Duration = Duration::from_secs(20);
/// The hub forgets what is old a minute after its last commit; then it is idle.
const PRUNED: Duration = Duration::from_secs(60);
/// Tasks that are run to see what one costs.
const TASKS: u64 = 50;
/// What must be there.
const PROGRAMS: [&str; 3] = ["dunlin-hub", "dunlin-agent", "dunlin"];
/// Daemons to compare with: an idle one of each, as Debian ships it, on loopback; PORT is a free one.
const PEERS: [(&str, &[&str]); 3] = [
    ("redis-server", &["--port", "PORT", "--bind", "127.0.0.1", "--save", ""]),
    ("mosquitto", &["-p", "PORT"]),
    ("prometheus-node-exporter", &["--web.listen-address=127.0.0.1:PORT"]),
];

/// What to measure.
#[derive(Debug)]
pub struct Options {
    bin: PathBuf,
    parked: usize,
    seconds: u64,
}

impl Options {
    /// From `--bin DIR [--parked N] [--seconds N]`.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn parse(args: &[&str]) -> Result<Self> {
        let mut options = Self { bin: PathBuf::new(), parked: 100, seconds: 60 };
        for pair in args.chunks(2) {
            match pair {
                ["--bin", dir] => options.bin = programs(Some(Path::new(dir)), &PROGRAMS)?,
                ["--parked", n] => options.parked = n.parse().context("--parked")?,
                ["--seconds", n] => options.seconds = n.parse().context("--seconds")?,
                _ => bail!("footprint: no such option: {}", pair.join(" ")),
            }
        }
        ensure!(
            options.bin.is_absolute(),
            "footprint: --bin is missing: the directory with the shipped programs"
        );
        Ok(options)
    }
}

impl Memory {
    fn line(self, name: &str) {
        let [rss, pss, anon] = [self.rss, self.pss, self.anon].map(|bytes| bytes / 1024);
        println!("{name:<34} {rss:>8} {pss:>8} {anon:>8}");
    }
}

fn memory(proc: &Proc) -> Result<Memory> {
    Memory::of(proc.pid()).context("a process ended")
}

/// A hub, one agent with both roles, and what else is parked, in a temporary directory.
struct Rig {
    hub: Hub,
    exec: Proc,
    uplink: Proc,
    parked: Vec<Proc>,
    dir: tempfile::TempDir,
    bin: PathBuf,
}

/// Measures, and prints.
///
/// # Errors
/// When something does not start.
pub fn run(options: &Options) -> Result<()> {
    println!("bytes of each program");
    for name in ["dunlin-agent", "dunlin-hub", "dunlin", "dunlin-nvml"] {
        if let Ok(meta) = fs::metadata(options.bin.join(name)) {
            println!("{name:<34} {:>8}", meta.len());
        }
    }
    let agent = fs::metadata(options.bin.join("dunlin-agent"))?.len();
    let mut rig = Rig::start(options)?;
    std::thread::sleep(SETTLE);
    let [exec, uplink] = [memory(&rig.exec)?, memory(&rig.uplink)?];
    let one = Memory::of(rig.hub.pid()).context("the hub ended")?;
    println!("\nidle, kB                                rss      pss     anon");
    exec.line("agent, executor");
    uplink.line("agent, uplink");
    let both =
        Memory { rss: exec.rss + uplink.rss, pss: exec.pss + uplink.pss, anon: exec.anon + uplink.anon };
    both.line("agent, both");
    one.line("hub, 1 agent");
    peers(rig.dir.path())?;
    std::thread::sleep(PRUNED);
    let written = rig.written(options.seconds)?;
    println!(
        "\nbytes written in {} idle s: executor {}, uplink {}, hub {}",
        options.seconds, written[0], written[1], written[2]
    );
    rig.tasks()?;
    rig.park(options.parked)?;
    std::thread::sleep(SETTLE);
    let many = Memory::of(rig.hub.pid()).context("the hub ended")?;
    let each = many.pss.saturating_sub(one.pss) as f64 / 1024.0 / options.parked.max(1) as f64;
    many.line(&format!("hub, {} more agents", options.parked));
    println!("{:<34} {each:>17.1}", "hub, each parked agent");
    let verdict =
        |what: &str, holds: bool| println!("{} {what}", if holds { "holds   " } else { "exceeded" });
    println!();
    verdict(&format!("agent {agent} bytes <= {AGENT_BYTES_MAX}"), agent <= AGENT_BYTES_MAX);
    let [pss, anon, hub] = [both.pss, both.anon, one.pss].map(|bytes| bytes / 1024);
    verdict(&format!("both roles pss {pss} kB <= {}", AGENT_KB_MAX.0), pss <= AGENT_KB_MAX.0);
    verdict(&format!("both roles anon {anon} kB <= {}", AGENT_KB_MAX.1), anon <= AGENT_KB_MAX.1);
    verdict(&format!("hub pss {hub} kB <= {}", HUB_KB_MAX.0), hub <= HUB_KB_MAX.0);
    verdict(&format!("each parked agent {each:.1} kB <= {}", HUB_KB_MAX.1), each <= HUB_KB_MAX.1 as f64);
    verdict("nothing written by an idle agent", written[0] == 0 && written[1] == 0);
    verdict("nothing written by an idle hub", written[2] == 0);
    Ok(())
}

impl Rig {
    fn start(options: &Options) -> Result<Self> {
        let dir = directory()?;
        let at = dir.path().to_owned();
        let rule = "[[rule]]\nid = \"true\"\nprogram = \"/usr/bin/true\"\n";
        fs::write(at.join("policy.toml"), format!("schema = 1\n{rule}"))?;
        let bin = &options.bin;
        println!("\nms from start to");
        let begun = micros();
        let hub = Hub::start(bin, &at, None, Ipv4Addr::LOCALHOST, "")?;
        println!("{:<34} {:>8.1}", "hub answers", (micros() - begun) as f64 / 1000.0);
        let begun = micros();
        // SAFETY: asks for a number.
        let me = unsafe { libc::geteuid() }.to_string();
        let args =
            ["exec", "--socket", "exec.sock", "--peer", &me, "--data", "exec", "--policy", "policy.toml"];
        let exec = spawn(bin, &at, "dunlin-agent", &args)?;
        wait("the executor listens", || at.join("exec.sock").exists())?;
        println!("{:<34} {:>8.1}", "executor listens", (micros() - begun) as f64 / 1000.0);
        enrol(bin, &at, &hub, "board")?;
        let begun = micros();
        let uplink = spawn(bin, &at, "dunlin-agent", &["run", "--socket", "exec.sock", "--data", "board"])?;
        wait("the uplink is welcome", || is_welcome(&at.join("board")))?;
        println!("{:<34} {:>8.1}", "uplink welcomed by the hub", (micros() - begun) as f64 / 1000.0);
        Ok(Self { hub, exec, uplink, parked: Vec::new(), dir, bin: bin.clone() })
    }

    fn park(&mut self, count: usize) -> Result<()> {
        let at = self.dir.path();
        for n in 0..count {
            let name = format!("parked-{n}");
            enrol(&self.bin, at, &self.hub, &name)?;
            let args = ["run", "--with-exec", "--data", &name, "--policy", "policy.toml"];
            self.parked.push(spawn(&self.bin, at, "dunlin-agent", &args)?);
        }
        let names: Vec<_> = (0..count).map(|n| at.join(format!("parked-{n}"))).collect();
        wait("all are welcome", || names.iter().all(|dir| is_welcome(dir)))
    }

    /// Bytes that executor, uplink and hub caused to be written in so many seconds.
    fn written(&self, seconds: u64) -> Result<[u64; 3]> {
        let before = self.bytes()?;
        std::thread::sleep(Duration::from_secs(seconds));
        let after = self.bytes()?;
        Ok([0, 1, 2].map(|n| after[n] - before[n]))
    }

    /// The same since they started.
    fn bytes(&self) -> Result<[u64; 3]> {
        let mut all = [0; 3];
        for (bytes, pid) in all.iter_mut().zip(self.pids()) {
            let text = fs::read_to_string(format!("/proc/{pid}/io"))?;
            let line = text.lines().find_map(|line| line.strip_prefix("write_bytes: "));
            *bytes = line.context("write_bytes")?.parse()?;
        }
        Ok(all)
    }

    /// What one task writes, and how often it waits for the disk. One after the other: nothing is shared between them.
    fn tasks(&self) -> Result<()> {
        let at = self.dir.path();
        let run = |count: u64| -> Result<()> {
            for _ in 0..count {
                let mut submit = Command::new(self.bin.join("dunlin"));
                submit.args(["submit", "--wait", "--", "/usr/bin/true"]).envs(self.hub.env());
                let out = submit.output()?;
                ensure!(out.status.success(), "a task: {}", String::from_utf8_lossy(&out.stderr));
            }
            Ok(())
        };
        run(1)?;
        let before = self.bytes()?;
        run(TASKS)?;
        let after = self.bytes()?;
        let each = [0, 1, 2].map(|n| (after[n] - before[n]) / TASKS);
        println!("bytes written per task: executor {}, uplink {}, hub {}", each[0], each[1], each[2]);
        let mut syncs = Vec::new();
        for (name, pid) in ["executor", "uplink", "hub"].into_iter().zip(self.pids()) {
            let log = at.join(format!("{name}.strace"));
            let mut strace = Command::new("strace");
            strace.args(["-f", "-e", "trace=fsync,fdatasync,msync", "-p", &pid.to_string(), "-o"]);
            strace.arg(&log);
            let said = at.join(format!("{name}.strace.log"));
            let Ok(strace) = Proc::spawn(&mut strace, &said) else {
                println!("waits for the disk per task: not counted, strace is not installed");
                return Ok(());
            };
            wait("strace is attached", || {
                fs::read_to_string(&said).is_ok_and(|text| text.contains("attached"))
            })?;
            syncs.push((name, log, strace));
        }
        run(TASKS)?;
        let counted = syncs.into_iter().map(|(name, log, strace)| {
            drop(strace);
            let text = fs::read_to_string(log).unwrap_or_default();
            format!("{name} {:.2}", text.matches("sync(").count() as f64 / TASKS as f64)
        });
        println!("waits for the disk per task: {}", counted.collect::<Vec<_>>().join(", "));
        Ok(())
    }

    fn pids(&self) -> [u32; 3] {
        [self.exec.pid(), self.uplink.pid(), self.hub.pid()]
    }
}

/// An idle one of each peer that is installed.
fn peers(at: &Path) -> Result<()> {
    for (name, args) in PEERS {
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let args: Vec<String> = args.iter().map(|arg| arg.replace("PORT", &port.to_string())).collect();
        let mut command = Command::new(name);
        command.args(&args).current_dir(at);
        let Ok(peer) = Proc::spawn(&mut command, &at.join(format!("{name}.log"))) else {
            println!("{name:<34} not installed");
            continue;
        };
        wait(name, || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok())?;
        std::thread::sleep(Duration::from_secs(5));
        memory(&peer)?.line(name);
    }
    Ok(())
}

fn spawn(bin: &Path, at: &Path, name: &str, args: &[&str]) -> Result<Proc> {
    Proc::spawn(Command::new(bin.join(name)).args(args).current_dir(at), &at.join(format!("{name}.log")))
}

fn enrol(bin: &Path, at: &Path, hub: &Hub, name: &str) -> Result<()> {
    let ticket = hub.api().invite(&json!({"name": name}))?;
    spawn(bin, at, "dunlin-agent", &["join", &ticket, "--data", name])?.succeed("dunlin-agent join")
}

fn is_welcome(data: &Path) -> bool {
    let text = fs::read_to_string(data.join("status.json")).unwrap_or_default();
    serde_json::from_str::<serde_json::Value>(&text).is_ok_and(|status| status["connected"] == true)
}

fn wait(what: &str, mut done: impl FnMut() -> bool) -> Result<()> {
    until(what, Duration::from_millis(1), || Ok(done().then_some(())))
}
