//! The real hub and the real agent, each at its end of the emulated link.

use super::Options;
use crate::wan::{Namespace, Side, Wan};
use anyhow::{Context, Result, anyhow, bail, ensure};
use dunlin_hub::clock::micros;
use dunlin_wire::ticket::Ticket;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tempfile::TempDir;

/// Where the hub listens for agents.
pub(super) const HUB: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Wan::HUB), 7443);
const API: &str = "127.0.0.1:7080";
/// The real agent's name.
pub(super) const BOARD: &str = "board";
/// Only a failure waits so long.
const BOUND: Duration = Duration::from_secs(180);

/// Runs `f` on a thread inside a namespace. What it opens stays there.
pub(super) fn inside<T: Send>(namespace: &Namespace, f: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            namespace.enter()?;
            f()
        });
        thread.join().map_err(|_| anyhow!("a thread panicked"))?
    })
}

/// Calls `f` until it answers.
fn until<T>(what: &str, every: Duration, mut f: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let began = micros();
    loop {
        if let Some(answer) = f()? {
            return Ok(answer);
        }
        ensure!(u128::from(micros() - began) < BOUND.as_micros(), "waited {BOUND:?} in vain: {what}");
        std::thread::sleep(every);
    }
}

/// A process that ends with its owner.
struct Proc(Child);

impl Proc {
    fn kill(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }

    fn terminate(&mut self) -> Result<()> {
        // SAFETY: sends a signal to a child that was not waited for.
        unsafe { libc::kill(self.0.id() as libc::pid_t, libc::SIGTERM) };
        until("a process ends", Duration::from_millis(5), || Ok(self.0.try_wait()?))?;
        Ok(())
    }
}

impl Drop for Proc {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Hub, agent and link in a temporary directory.
pub(super) struct Rig {
    agent: Option<Proc>,
    hub: Option<Proc>,
    api: Option<BufReader<TcpStream>>,
    /// The link.
    pub(super) wan: Wan,
    bin: PathBuf,
    stamps: usize,
    dir: Option<TempDir>,
    path: PathBuf,
}

impl Rig {
    /// Makes the link and starts the hub.
    pub(super) fn new(options: &Options) -> Result<Self> {
        let exe = std::env::current_exe()?;
        let beside = exe.parent().unwrap_or(Path::new("."));
        let bin = std::path::absolute(options.bin.as_deref().unwrap_or(beside))?;
        for name in ["dunlin-hub", "dunlin-agent"] {
            ensure!(
                bin.join(name).is_file(),
                "no {name} in {}; build it with `cargo build --release -p dunlin-hub -p dunlin-agent`, or say where \
                 it is with --bin DIR",
                bin.display()
            );
        }
        let wan = Wan::new(options.link().1).context("no emulated WAN: it needs root and /dev/net/tun")?;
        if let Some(timeout) = options.nat {
            wan.nat(timeout);
        }
        let dir = tempfile::Builder::new().prefix("dunlin-bench").tempdir_in(std::env::current_dir()?)?;
        let path = dir.path().to_owned();
        std::fs::create_dir(path.join("stamps"))?;
        // A copy, since a policy wants a program that nobody else can write.
        std::fs::copy(&exe, path.join("stamp"))?;
        std::fs::write(
            path.join("hub.toml"),
            format!("quic = \"{HUB}\"\nhttp = \"{API}\"\n[api]\nrate_per_s = 1000000\nburst = 1000000\n"),
        )?;
        std::fs::write(path.join("agent.toml"), format!("telemetry = {}\n", options.telemetry))?;
        std::fs::write(path.join("policy.toml"), policy(&path))?;
        let (agent, hub, api) = (None, None, None);
        let mut rig = Self { agent, hub, api, wan, bin, stamps: 0, dir: Some(dir), path };
        rig.start_hub()?;
        Ok(rig)
    }

    /// Keeps the logs of a run that failed, and says where.
    pub(super) fn keep(&mut self, error: anyhow::Error) -> anyhow::Error {
        match self.dir.take().map(TempDir::keep) {
            Some(path) => error.context(format!("logs are kept in {}", path.display())),
            None => error,
        }
    }

    fn spawn(&self, at: &Namespace, name: &str, args: &[&str]) -> Result<(Proc, u64)> {
        let log = File::options().create(true).append(true).open(self.path.join(format!("{name}.log")))?;
        let mut command = Command::new(self.bin.join(name));
        command.args(args).current_dir(&self.path);
        for (name, _) in std::env::vars_os() {
            if name.to_str().is_some_and(|name| name.starts_with("DUNLIN_")) {
                command.env_remove(name);
            }
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        inside(at, || {
            let began = micros();
            Ok((Proc(command.spawn().with_context(|| name.to_owned())?), began))
        })
    }

    /// Starts the hub and waits until it answers.
    pub(super) fn start_hub(&mut self) -> Result<()> {
        let args = ["serve", "--config", "hub.toml", "--data", "hub"];
        self.hub = Some(self.spawn(&self.wan.hub, "dunlin-hub", &args)?.0);
        until("the hub answers", Duration::from_millis(2), || Ok(self.call("GET", "/health", None).ok()))?;
        Ok(())
    }

    /// Ends the hub as a power cut would.
    pub(super) fn kill_hub(&mut self) {
        self.api = None;
        self.hub = None;
    }

    /// A ticket for a device.
    pub(super) fn ticket(&mut self, name: &str, profile: &str) -> Result<Ticket> {
        Ok(Ticket::parse(&self.invite(name, profile)?)?)
    }

    fn invite(&mut self, name: &str, profile: &str) -> Result<String> {
        let body = json!({"name": name, "profile": profile});
        let answer = self.call("POST", "/v1/invites", Some(&body))?;
        Ok(answer["ticket"].as_str().with_context(|| answer.to_string())?.to_owned())
    }

    /// Enrols the real agent.
    pub(super) fn enrol(&mut self, profile: &str) -> Result<()> {
        let ticket = self.invite(BOARD, profile)?;
        let args = ["join", &ticket, "--data", "board", "--config", "agent.toml"];
        let mut joining = self.spawn(&self.wan.board, "dunlin-agent", &args)?.0;
        let status = joining.0.wait()?;
        ensure!(status.success(), "dunlin-agent join: {status}");
        Ok(())
    }

    /// Starts the real agent, and does not wait. When it was started.
    pub(super) fn start_agent(&mut self) -> Result<u64> {
        let args =
            ["run", "--with-exec", "--data", "board", "--config", "agent.toml", "--policy", "policy.toml"];
        let (proc, began) = self.spawn(&self.wan.board, "dunlin-agent", &args)?;
        self.agent = Some(proc);
        Ok(began)
    }

    /// Ends the real agent in order.
    pub(super) fn stop_agent(&mut self) -> Result<()> {
        self.agent.take().map_or(Ok(()), |mut proc| proc.terminate())
    }

    /// Waits until the real agent is connected and healthy.
    pub(super) fn wait_agent(&mut self) -> Result<()> {
        until("the agent is healthy", Duration::from_millis(50), || {
            let node = self.call("GET", &format!("/v1/nodes/{BOARD}"), None)?;
            Ok((node["health"] == "healthy" && node["connected"] == true).then_some(()))
        })
    }

    /// Submits a job for a node; its id.
    pub(super) fn submit(&mut self, node: &str, argv: &[&str]) -> Result<String> {
        let body = json!({"payload": {"argv": argv}, "targetNodeId": node, "maxAttempts": 1});
        let task = self.call("POST", "/v1/tasks", Some(&body))?;
        Ok(task["taskId"].as_str().with_context(|| task.to_string())?.to_owned())
    }

    /// Submits a job to the real agent that says when it runs; its id and where it says so.
    pub(super) fn submit_stamp(&mut self) -> Result<(String, PathBuf)> {
        self.stamps += 1;
        let stamp = self.path.join("stamps").join(self.stamps.to_string());
        let program = self.path.join("stamp");
        let id = self.submit(BOARD, &[&text(&program), "stamp", &text(&stamp)])?;
        Ok((id, stamp))
    }

    /// Waits for a stamp: when the job ran.
    pub(super) fn wait_stamp(&self, stamp: &Path) -> Result<u64> {
        until("a job runs", Duration::from_millis(5), || match std::fs::read_to_string(stamp) {
            Ok(text) if text.ends_with('\n') => Ok(Some(text.trim().parse()?)),
            _ => Ok(None),
        })
    }

    /// Waits until a task's result is at the hub.
    pub(super) fn wait_done(&mut self, id: &str) -> Result<()> {
        until(&format!("task {id} is done"), Duration::from_millis(10), || {
            let task = self.call("GET", &format!("/v1/tasks/{id}"), None)?;
            match task["status"].as_str() {
                Some("done") => Ok(Some(())),
                Some("failed" | "cancelled") => bail!("a task failed: {task}"),
                _ => Ok(None),
            }
        })
    }

    /// What passed so far: packets, bytes from the board, bytes from the hub.
    pub(super) fn passed(&self) -> [u64; 3] {
        let [up, down] = [Side::Board, Side::Hub].map(|side| self.wan.passed(side));
        [up.packets + down.packets, up.bytes, down.bytes]
    }

    /// Bytes of the real agent's connections by class, as the hub counts them: `telemetry in`, from the board.
    pub(super) fn classes(&mut self) -> Result<BTreeMap<String, u64>> {
        let node = self.call("GET", &format!("/v1/nodes/{BOARD}"), None)?;
        let classes = node["bytes"].as_object().with_context(|| node.to_string())?.iter();
        let ways = classes
            .flat_map(|(class, ways)| ways.as_object().into_iter().flatten().map(move |way| (class, way)));
        Ok(ways.filter_map(|(class, (way, n))| Some((format!("{class} {way}"), n.as_u64()?))).collect())
    }

    /// CPU time that the real agent has used, in microseconds: `utime` and `stime` of proc(5), without its children's.
    pub(super) fn agent_cpu_us(&self) -> Result<u64> {
        let pid = self.agent.as_ref().context("no agent runs")?.0.id();
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let (_, rest) = stat.rsplit_once(')').context("stat without a name")?;
        let ticks: Vec<u64> =
            rest.split_whitespace().skip(11).take(2).map(str::parse).collect::<Result<_, _>>()?;
        // SAFETY: asks for a number.
        let per_second = unsafe { libc::sysconf(libc::_SC_CLK_TCK) } as u64;
        Ok(ticks.iter().sum::<u64>() * 1_000_000 / per_second)
    }

    /// One call of the API, over loopback in the hub's namespace. A connection that broke is made anew once.
    fn call(&mut self, method: &str, path: &str, body: Option<&Value>) -> Result<Value> {
        let body = body.map(Value::to_string).unwrap_or_default();
        let kept = self.api.is_some();
        match self.ask(method, path, &body) {
            Err(_) if kept && method == "GET" => {
                self.api = None;
                self.ask(method, path, &body)
            }
            answer => answer,
        }
    }

    fn ask(&mut self, method: &str, path: &str, body: &str) -> Result<Value> {
        let api = match &mut self.api {
            Some(api) => api,
            none => {
                let stream = inside(&self.wan.hub, || Ok(TcpStream::connect(API)?))?;
                stream.set_nodelay(true)?;
                stream.set_read_timeout(Some(Duration::from_secs(20)))?;
                none.insert(BufReader::new(stream))
            }
        };
        let token = std::fs::read_to_string(self.path.join("hub/owner.token")).unwrap_or_default();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\ncontent-type: application/json\r\n\
             content-length: {}\r\n\r\n{body}",
            token.trim(),
            body.len()
        );
        api.get_mut().write_all(head.as_bytes())?;
        let (mut line, mut length) = (String::new(), 0);
        api.read_line(&mut line)?;
        let good = line.split(' ').nth(1).is_some_and(|status| status.starts_with('2'));
        let status = std::mem::take(&mut line);
        while api.read_line(&mut line)? > 2 {
            if let Some(text) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = text.trim().parse()?;
            }
            line.clear();
        }
        let mut answer = vec![0; length];
        api.read_exact(&mut answer)?;
        let answer = String::from_utf8_lossy(&answer);
        ensure!(good, "{method} {path}: {} {answer}", status.trim());
        Ok(serde_json::from_str(&answer).unwrap_or(Value::Null))
    }
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

fn policy(dir: &Path) -> String {
    let dir = dir.display();
    format!(
        "schema = 1\ndefault = \"deny\"\n[ceilings]\ntimeout = \"1m\"\njobs = 4\n\
         [root.stamps]\npath = \"{dir}/stamps\"\n\
         [[rule]]\nid = \"true\"\nprogram = \"/bin/true\"\n\
         [[rule]]\nid = \"stamp\"\nprogram = \"{dir}/stamp\"\nargs = [\"stamp\", {{ re = '{dir}/stamps/[0-9]+' }}]\n\
         write = [\"root:stamps\"]\n"
    )
}
