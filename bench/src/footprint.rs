//! What a board and a hub cost when nothing happens: bytes of each program, memory by /proc/PID/smaps_rollup (proc(5)), how
//! long a start takes, what an idle minute and what a task writes by /proc/PID/io, and how often a task waits for the disk
//! by strace, where that is installed. Of the shipped binaries, in a directory that is named, beside the design's bounds and
//! idle peers from Debian as far as they are installed; nothing is emulated. A parked agent is a real one, connected and
//! without work.

use anyhow::{Context, Result, bail, ensure};
use dunlin_hub::clock::micros;
use std::fs;
use std::io::Write as _;
use std::net::{TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
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
/// Daemons to compare with: an idle one of each, as Debian ships it, on loopback; PORT is a free one.
const PEERS: [(&str, &[&str]); 3] = [
    ("redis-server", &["--port", "PORT", "--bind", "127.0.0.1", "--save", ""]),
    ("mosquitto", &["-p", "PORT"]),
    ("prometheus-node-exporter", &["--web.listen-address=127.0.0.1:PORT"]),
];
/// Only a failure waits so long, in microseconds.
const BOUND_US: u64 = 120_000_000;

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
                ["--bin", dir] => options.bin = std::path::absolute(dir)?,
                ["--parked", n] => options.parked = n.parse().context("--parked")?,
                ["--seconds", n] => options.seconds = n.parse().context("--seconds")?,
                _ => bail!("footprint: no such option: {}", pair.join(" ")),
            }
        }
        let agent = options.bin.join("dunlin-agent");
        ensure!(
            agent.is_file(),
            "footprint: --bin must be a directory with the programs; no {}",
            agent.display()
        );
        Ok(options)
    }
}

/// A process that ends with its owner.
struct Proc(Child);

impl Drop for Proc {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Memory of one process, in kB.
#[derive(Debug, Default, Clone, Copy)]
struct Memory {
    rss: u64,
    pss: u64,
    anon: u64,
}

impl Memory {
    fn of(proc: &Proc) -> Result<Self> {
        let path = format!("/proc/{}/smaps_rollup", proc.0.id());
        let text = fs::read_to_string(&path).context(path)?;
        let field = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|rest| rest.trim().trim_end_matches(" kB").parse().ok()).context(name.to_owned())
        };
        Ok(Self { rss: field("Rss:")?, pss: field("Pss:")?, anon: field("Anonymous:")? })
    }

    fn line(self, name: &str) {
        let Self { rss, pss, anon } = self;
        println!("{name:<34} {rss:>8} {pss:>8} {anon:>8}");
    }
}

/// A hub, one agent with both roles, and what else is parked, in a temporary directory.
struct Rig {
    hub: Proc,
    exec: Proc,
    uplink: Proc,
    parked: Vec<Proc>,
    dir: tempfile::TempDir,
    bin: PathBuf,
    http: u16,
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
    let [exec, uplink] = [Memory::of(&rig.exec)?, Memory::of(&rig.uplink)?];
    let one = Memory::of(&rig.hub)?;
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
    let many = Memory::of(&rig.hub)?;
    let each = many.pss.saturating_sub(one.pss) as f64 / options.parked.max(1) as f64;
    many.line(&format!("hub, {} more agents", options.parked));
    println!("{:<34} {each:>17.1}", "hub, each parked agent");
    let verdict =
        |what: &str, holds: bool| println!("{} {what}", if holds { "holds   " } else { "exceeded" });
    println!();
    verdict(&format!("agent {agent} bytes <= {AGENT_BYTES_MAX}"), agent <= AGENT_BYTES_MAX);
    verdict(&format!("both roles pss {} kB <= {}", both.pss, AGENT_KB_MAX.0), both.pss <= AGENT_KB_MAX.0);
    verdict(&format!("both roles anon {} kB <= {}", both.anon, AGENT_KB_MAX.1), both.anon <= AGENT_KB_MAX.1);
    verdict(&format!("hub pss {} kB <= {}", one.pss, HUB_KB_MAX.0), one.pss <= HUB_KB_MAX.0);
    verdict(&format!("each parked agent {each:.1} kB <= {}", HUB_KB_MAX.1), each <= HUB_KB_MAX.1 as f64);
    verdict("nothing written by an idle agent", written[0] == 0 && written[1] == 0);
    verdict("nothing written by an idle hub", written[2] == 0);
    Ok(())
}

impl Rig {
    fn start(options: &Options) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("dunlin-footprint").tempdir_in(std::env::current_dir()?)?;
        let at = dir.path().to_owned();
        let quic = UdpSocket::bind("127.0.0.1:0")?.local_addr()?.port();
        let http = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        fs::write(
            at.join("hub.toml"),
            format!(
                "data = {:?}\nquic = \"127.0.0.1:{quic}\"\nhttp = \"127.0.0.1:{http}\"\n\
                 [api]\nrate_per_s = 10000\nburst = 10000\n",
                at.join("hub")
            ),
        )?;
        let rule = "[[rule]]\nid = \"true\"\nprogram = \"/usr/bin/true\"\n";
        fs::write(at.join("policy.toml"), format!("schema = 1\n{rule}"))?;
        let bin = &options.bin;
        println!("\nms from start to");
        let begun = micros();
        let hub = spawn(bin, &at, "dunlin-hub", &["serve", "--config", "hub.toml"])?;
        wait("the hub answers", || std::net::TcpStream::connect(("127.0.0.1", http)).is_ok())?;
        println!("{:<34} {:>8.1}", "hub listens", (micros() - begun) as f64 / 1000.0);
        let begun = micros();
        // SAFETY: asks for a number.
        let me = unsafe { libc::geteuid() }.to_string();
        let args =
            ["exec", "--socket", "exec.sock", "--peer", &me, "--data", "exec", "--policy", "policy.toml"];
        let exec = spawn(bin, &at, "dunlin-agent", &args)?;
        wait("the executor listens", || at.join("exec.sock").exists())?;
        println!("{:<34} {:>8.1}", "executor listens", (micros() - begun) as f64 / 1000.0);
        enrol(bin, &at, http, "board")?;
        let begun = micros();
        let uplink = spawn(bin, &at, "dunlin-agent", &["run", "--socket", "exec.sock", "--data", "board"])?;
        wait("the uplink is welcome", || is_welcome(&at.join("board")))?;
        println!("{:<34} {:>8.1}", "uplink welcomed by the hub", (micros() - begun) as f64 / 1000.0);
        Ok(Self { hub, exec, uplink, parked: Vec::new(), dir, bin: bin.clone(), http })
    }

    fn park(&mut self, count: usize) -> Result<()> {
        let at = self.dir.path();
        for n in 0..count {
            let name = format!("parked-{n}");
            enrol(&self.bin, at, self.http, &name)?;
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
        for (bytes, proc) in all.iter_mut().zip([&self.exec, &self.uplink, &self.hub]) {
            let text = fs::read_to_string(format!("/proc/{}/io", proc.0.id()))?;
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
                submit.args(["submit", "--wait", "--", "/usr/bin/true"]).envs(self.api());
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
        for (name, proc) in [("executor", &self.exec), ("uplink", &self.uplink), ("hub", &self.hub)] {
            let log = at.join(format!("{name}.strace"));
            let mut strace = Command::new("strace");
            strace.args(["-f", "-e", "trace=fsync,fdatasync,msync", "-p", &proc.0.id().to_string(), "-o"]);
            strace.arg(&log).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
            let Ok(mut child) = strace.spawn() else {
                println!("waits for the disk per task: not counted, strace is not installed");
                return Ok(());
            };
            // It says so when it is attached.
            let mut said = std::io::BufReader::new(child.stderr.take().context("stderr")?);
            std::io::BufRead::read_line(&mut said, &mut String::new())?;
            syncs.push((name, log, Proc(child)));
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

    fn api(&self) -> [(String, String); 2] {
        api(self.dir.path(), self.http)
    }
}

/// An idle one of each peer that is installed.
fn peers(at: &Path) -> Result<()> {
    for (name, args) in PEERS {
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let args: Vec<String> = args.iter().map(|arg| arg.replace("PORT", &port.to_string())).collect();
        let mut command = Command::new(name);
        command.args(&args).current_dir(at).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let Ok(child) = command.spawn() else {
            println!("{name:<34} not installed");
            continue;
        };
        let peer = Proc(child);
        wait(name, || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok())?;
        std::thread::sleep(Duration::from_secs(5));
        Memory::of(&peer)?.line(name);
    }
    Ok(())
}

/// Where the API is, and its token.
fn api(at: &Path, http: u16) -> [(String, String); 2] {
    let token = at.join("hub/owner.token").display().to_string();
    [("DUNLIN_HUB".into(), format!("http://127.0.0.1:{http}")), ("DUNLIN_TOKEN_FILE".into(), token)]
}

fn spawn(bin: &Path, at: &Path, name: &str, args: &[&str]) -> Result<Proc> {
    let log = fs::File::options().create(true).append(true).open(at.join(format!("{name}.log")))?;
    let mut command = Command::new(bin.join(name));
    command.args(args).current_dir(at).env_clear();
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    Ok(Proc(command.spawn().with_context(|| name.to_owned())?))
}

fn enrol(bin: &Path, at: &Path, http: u16, name: &str) -> Result<()> {
    let invite =
        Command::new(bin.join("dunlin")).args(["node", "invite", name]).envs(api(at, http)).output()?;
    ensure!(invite.status.success(), "invite: {}", String::from_utf8_lossy(&invite.stderr));
    let mut join = Command::new(bin.join("dunlin-agent"))
        .args(["join", "-", "--data", name])
        .current_dir(at)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()?;
    join.stdin.take().context("stdin")?.write_all(&invite.stdout)?;
    ensure!(join.wait()?.success(), "join of {name} failed");
    Ok(())
}

fn is_welcome(data: &Path) -> bool {
    let text = fs::read_to_string(data.join("status.json")).unwrap_or_default();
    serde_json::from_str::<serde_json::Value>(&text).is_ok_and(|status| status["connected"] == true)
}

fn wait(what: &str, mut done: impl FnMut() -> bool) -> Result<()> {
    let begun = micros();
    while !done() {
        ensure!(micros() - begun < BOUND_US, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}
