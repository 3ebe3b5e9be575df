//! A real hub in a process of its own, its API, and what the kernel says of a process. `fleet` and `soak` share it.

use anyhow::{Context, Result, bail, ensure};
use dunlin_hub::clock::micros;
use serde_json::Value;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Only a failure waits so long.
const BOUND: Duration = Duration::from_secs(60);
/// An answer is no longer than this, in bytes; 10,000 nodes are.
const ANSWER_MAX: usize = 64 << 20;

/// A process that ends with its owner.
pub(crate) struct Proc(Child);

impl Proc {
    /// Starts it with its standard error appended to `log`, and nothing of our own environment.
    pub(crate) fn spawn(mut command: Command, log: &Path) -> Result<Self> {
        let log = File::options().create(true).append(true).open(log)?;
        for (name, _) in std::env::vars_os() {
            if name.to_str().is_some_and(|name| name.starts_with("DUNLIN_")) {
                command.env_remove(name);
            }
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        // SAFETY: between fork and exec only one system call is made. Nothing is left behind by a bench that is killed.
        unsafe {
            command.pre_exec(|| match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            });
        }
        let program = command.get_program().to_owned();
        Ok(Self(command.spawn().with_context(|| program.display().to_string())?))
    }

    /// Its pid.
    pub(crate) fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Whether it has ended by itself.
    pub(crate) fn has_ended(&mut self) -> bool {
        !matches!(self.0.try_wait(), Ok(None))
    }

    /// SIGKILL, and waits until it is gone.
    pub(crate) fn kill(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Proc {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Where `dunlin-hub` and `dunlin-agent` are: what was asked for, or beside this program.
///
/// # Errors
/// Which of `names` is not there, and how to build it.
pub(crate) fn programs(asked: Option<&Path>, names: &[&str]) -> Result<PathBuf> {
    let exe = std::env::current_exe()?;
    let bin = std::path::absolute(asked.unwrap_or(exe.parent().unwrap_or(Path::new("."))))?;
    for name in names {
        ensure!(
            bin.join(name).is_file(),
            "no {name} in {}; build it with `cargo build --release -p dunlin-hub -p dunlin-agent`, or say where it is \
             with --bin DIR",
            bin.display()
        );
    }
    Ok(bin)
}

/// A hub that can be killed and started again at the same addresses.
pub(crate) struct Hub {
    proc: Option<Proc>,
    bin: PathBuf,
    dir: PathBuf,
    http: SocketAddr,
}

impl Hub {
    /// Starts one of `bin` in `dir`, listening for agents at `host`. Its store is in `dir/hub`; it takes as many
    /// requests as come. `more` goes at the end of its configuration.
    pub(crate) fn start(bin: &Path, dir: &Path, host: Ipv4Addr, more: &str) -> Result<Self> {
        let quic = UdpSocket::bind((host, 0))?.local_addr()?;
        let http = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let text = format!(
            "quic = \"{quic}\"\nhttp = \"{http}\"\nlog = \"warn\"\n[api]\nrate_per_s = 1000000\nburst = 1000000\n\
             {more}"
        );
        std::fs::write(dir.join("hub.toml"), text)?;
        let (bin, dir) = (bin.to_owned(), dir.to_owned());
        let mut hub = Self { proc: None, bin, dir, http };
        hub.spawn()?;
        hub.wait()?;
        Ok(hub)
    }

    /// Starts it, and does not wait.
    pub(crate) fn spawn(&mut self) -> Result<()> {
        let mut command = Command::new(self.bin.join("dunlin-hub"));
        command.arg("serve").arg("--config").arg(self.dir.join("hub.toml"));
        command.arg("--data").arg(self.data());
        self.proc = Some(Proc::spawn(command, &self.dir.join("hub.log"))?);
        Ok(())
    }

    /// Waits until it answers.
    pub(crate) fn wait(&mut self) -> Result<()> {
        let began = micros();
        while self.api().call("GET", "/health", None).is_err() {
            ensure!(micros() - began < BOUND.as_micros() as u64, "the hub does not answer at {}", self.http);
            if self.proc.as_mut().is_none_or(Proc::has_ended) {
                bail!("the hub ended; {} says why", self.dir.join("hub.log").display());
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }

    /// Ends it as a power cut would.
    pub(crate) fn kill(&mut self) {
        self.proc = None;
    }

    /// Whether it runs; one that ended by itself does not.
    pub(crate) fn is_running(&mut self) -> bool {
        self.proc.as_mut().is_some_and(|proc| !proc.has_ended())
    }

    /// Its pid; 0 while it is down.
    pub(crate) fn pid(&self) -> u32 {
        self.proc.as_ref().map_or(0, Proc::pid)
    }

    /// Its data directory.
    pub(crate) fn data(&self) -> PathBuf {
        self.dir.join("hub")
    }

    /// A connection of its own to the API; made when it is first used.
    pub(crate) fn api(&self) -> Api {
        Api { addr: self.http, token: self.data().join("owner.token"), stream: None }
    }
}

/// A connection to the API.
pub(crate) struct Api {
    addr: SocketAddr,
    token: PathBuf,
    stream: Option<(BufReader<TcpStream>, String)>,
}

impl Api {
    /// One call: status and body. A connection that fails is made anew by the next call.
    pub(crate) fn call(&mut self, method: &str, path: &str, body: Option<&Value>) -> Result<(u16, Value)> {
        let (status, bytes) = self.ask(method, path, body).inspect_err(|_| self.stream = None)?;
        Ok((status, serde_json::from_slice(&bytes).unwrap_or(Value::Null)))
    }

    /// The body of an answer that is no JSON; `None` unless it is 200.
    pub(crate) fn bytes(&mut self, path: &str) -> Result<Option<Vec<u8>>> {
        let (status, bytes) = self.ask("GET", path, None).inspect_err(|_| self.stream = None)?;
        Ok((status == 200).then_some(bytes))
    }

    /// A call that must succeed.
    pub(crate) fn must(&mut self, method: &str, path: &str, body: Option<&Value>) -> Result<Value> {
        match self.call(method, path, body)? {
            (200..=299, value) => Ok(value),
            (status, value) => bail!("{method} {path}: {status} {value}"),
        }
    }

    /// Server-sent events from behind `last`: each kind, node and task is told, until `tell` says no or the hub ends.
    /// The newest id that was seen.
    pub(crate) fn events(&mut self, last: u64, mut tell: impl FnMut(&Value) -> bool) -> Result<u64> {
        let (stream, token) = self.connect()?;
        let head = format!(
            "GET /v1/events?since={last} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\naccept: \
             text/event-stream\r\n\r\n"
        );
        stream.get_mut().write_all(head.as_bytes())?;
        stream.get_mut().set_read_timeout(Some(Duration::from_secs(60)))?;
        let (mut last, mut line) = (last, String::new());
        loop {
            line.clear();
            if stream.read_line(&mut line).unwrap_or(0) == 0 {
                self.stream = None;
                return Ok(last);
            }
            // The chunks' lengths are lines of their own, and an event is one chunk.
            let Some(event) = line.strip_prefix("data: ").and_then(|t| serde_json::from_str::<Value>(t).ok())
            else {
                continue;
            };
            last = event["id"].as_u64().unwrap_or(last);
            if !tell(&event) {
                self.stream = None;
                return Ok(last);
            }
        }
    }

    fn connect(&mut self) -> Result<&mut (BufReader<TcpStream>, String)> {
        if self.stream.is_none() {
            let stream = TcpStream::connect(self.addr)?;
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(Duration::from_secs(30)))?;
            let token = std::fs::read_to_string(&self.token).unwrap_or_default();
            self.stream = Some((BufReader::new(stream), token.trim().to_owned()));
        }
        self.stream.as_mut().context("no connection")
    }

    fn ask(&mut self, method: &str, path: &str, body: Option<&Value>) -> Result<(u16, Vec<u8>)> {
        let body = body.map(Value::to_string).unwrap_or_default();
        let (stream, token) = self.connect()?;
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\ncontent-type: \
             application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.get_mut().write_all(head.as_bytes())?;
        let (mut line, mut length) = (String::new(), 0);
        ensure!(stream.read_line(&mut line)? > 0, "the hub closed the connection");
        let status = line.split(' ').nth(1).and_then(|s| s.parse().ok()).context("no HTTP status")?;
        line.clear();
        while stream.read_line(&mut line)? > 2 {
            if let Some(text) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = text.trim().parse()?;
            }
            line.clear();
        }
        ensure!(length <= ANSWER_MAX, "an answer of {length} bytes");
        let mut answer = vec![0; length];
        stream.read_exact(&mut answer)?;
        Ok((status, answer))
    }
}

/// CPU time that a process has used, in microseconds: `utime` and `stime` of proc(5), without its children's.
pub(crate) fn cpu_us(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = stat.rsplit_once(')')?;
    let ticks: u64 = rest.split_whitespace().skip(11).take(2).filter_map(|n| n.parse::<u64>().ok()).sum();
    // SAFETY: asks for a number.
    let per_second = unsafe { libc::sysconf(libc::_SC_CLK_TCK) } as u64;
    Some(ticks * 1_000_000 / per_second.max(1))
}

/// Resident and proportional memory of a process, in bytes; `None` once it is gone.
pub(crate) fn memory(pid: u32) -> Option<[u64; 2]> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
    };
    Some([field("Rss:")?, field("Pss:")?])
}

/// Lets this process, and what it starts, open `wanted` files.
///
/// # Errors
/// What to raise, and how.
pub(crate) fn open_files(wanted: u64) -> Result<()> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: both calls get a valid pointer to the structure that they ask for.
    unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) };
    if limit.rlim_cur >= wanted {
        return Ok(());
    }
    let raised = libc::rlimit { rlim_cur: wanted, rlim_max: limit.rlim_max.max(wanted) };
    // SAFETY: as above.
    ensure!(
        unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raised) } == 0,
        "{wanted} open files are needed, one socket for each agent, and {} are allowed: `ulimit -n {wanted}`; \
         beyond `ulimit -Hn` raise nofile in /etc/security/limits.conf",
        limit.rlim_max
    );
    Ok(())
}
