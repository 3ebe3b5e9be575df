//! The fleet of a soak: a hub and agents in processes of their own; for root, on both sides of an emulated link and on
//! small disks of their own. Mounts and namespaces are this process's, and are gone with it.

use super::faults::Fault;
use super::job::LEDGER;
use crate::hub::Hub;
use crate::proc::{Proc, programs};
use crate::wan::{Link, Wan};
use anyhow::{Context, Result, bail};
use dunlin_hub::clock::micros;
use serde_json::json;
use std::ffi::CString;
use std::fs::File;
use std::io::Write;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Numbers of the hub, about a fifth of the usual, so that minutes hold many leases. The margin is the usual one.
pub(super) const TIMING: &str = "[timing]\nheartbeat_ms = 1000\nlease_ms_min = 6000\naccept_ms = 6000\n";
/// Size of an agent's disk and of the hub's, in bytes.
const AGENT_DISK: u64 = 512 << 20;
const HUB_DISK: u64 = 512 << 20;

struct Agent {
    name: String,
    proc: Option<Proc>,
    /// When it may start again, in microseconds.
    down_until: u64,
    /// Starts after an end that nobody caused here directly.
    ended: usize,
}

/// Everything that belongs together.
pub(super) struct Rig {
    agents: Vec<Agent>,
    pub(super) hub: Hub,
    hub_down_until: u64,
    hub_ended: usize,
    wan: Option<Wan>,
    bin: PathBuf,
    dir: PathBuf,
    // What undoes a fault, and when.
    ends: Vec<(u64, Fault)>,
}

/// Whether cuts and full disks can be had here; why not.
pub(super) fn isolate() -> Result<Wan, String> {
    // SAFETY: takes flags only. What is mounted from here on is seen by this thread and what it starts.
    if unsafe { libc::unshare(libc::CLONE_NEWNS) } != 0 {
        return Err(format!("no mounts of our own: {}", std::io::Error::last_os_error()));
    }
    // SAFETY: valid C strings or null, as mount(2) asks for with MS_PRIVATE.
    let private = unsafe {
        let flags = libc::MS_REC | libc::MS_PRIVATE;
        libc::mount(std::ptr::null(), c"/".as_ptr(), std::ptr::null(), flags, std::ptr::null())
    };
    if private != 0 {
        return Err(format!("no mounts of our own: {}", std::io::Error::last_os_error()));
    }
    let wan = Wan::new(Link::delay(2)).map_err(|e| format!("no emulated link: {e}"))?;
    wan.hub.enter().map_err(|e| format!("no network namespace: {e}"))?;
    Ok(wan)
}

impl Rig {
    /// Starts a hub and `count` agents in `dir`. The calling thread is on the hub's side of `wan` already, if there is one.
    pub(super) fn start(dir: &Path, bin: Option<&Path>, wan: Option<Wan>, count: usize) -> Result<Self> {
        let bin = programs(bin, &["dunlin-hub", "dunlin-agent"])?;
        std::fs::create_dir_all(dir.join("work/locks"))?;
        File::create(dir.join("work").join(LEDGER))?;
        // A copy, since a policy wants a program that nobody else can write.
        std::fs::copy(std::env::current_exe()?, dir.join("soak"))?;
        std::fs::write(dir.join("policy.toml"), policy(dir))?;
        std::fs::write(dir.join("agent.toml"), "telemetry = true\n")?;
        if wan.is_some() {
            tmpfs(&dir.join("hub"), HUB_DISK)?;
        }
        let host = if wan.is_some() { Wan::HUB } else { Ipv4Addr::LOCALHOST };
        let hub = Hub::start(&bin, dir, None, host, TIMING)?;
        let dir = dir.to_owned();
        let mut rig =
            Self { agents: vec![], hub, hub_down_until: 0, hub_ended: 0, wan, bin, dir, ends: vec![] };
        for n in 0..count {
            rig.enrol(&format!("board-{n}"))?;
        }
        rig.supervise()?;
        Ok(rig)
    }

    fn command(&self) -> Command {
        let mut command = Command::new(self.bin.join("dunlin-agent"));
        if let Some(wan) = &self.wan {
            wan.board.place(&mut command);
        }
        command
    }

    fn data(&self, name: &str) -> PathBuf {
        self.dir.join("boards").join(name)
    }

    fn enrol(&mut self, name: &str) -> Result<()> {
        let data = self.data(name);
        std::fs::create_dir_all(&data)?;
        if self.wan.is_some() {
            tmpfs(&data, AGENT_DISK)?;
        }
        let body = json!({"name": name, "profile": "lan", "maxConcurrentTasks": 4});
        let ticket = self.hub.api().invite(&body)?;
        let mut join = self.command();
        join.arg("join").arg(ticket).arg("--data").arg(&data);
        join.arg("--config").arg(self.dir.join("agent.toml"));
        Proc::spawn(&mut join, &self.dir.join(format!("{name}.log")))?.succeed("dunlin-agent join")?;
        self.agents.push(Agent { name: name.into(), proc: None, down_until: 0, ended: 0 });
        Ok(())
    }

    /// Does what systemd would: starts what does not run. Undoes faults that are over.
    pub(super) fn supervise(&mut self) -> Result<()> {
        let now = micros();
        let (over, rest) = std::mem::take(&mut self.ends).into_iter().partition(|(at, _)| *at <= now);
        self.ends = rest;
        let over: Vec<(u64, Fault)> = over;
        for (_, fault) in over {
            self.undo(fault)?;
        }
        if now >= self.hub_down_until && !self.hub.is_running() {
            self.hub_ended += usize::from(self.hub.pid() != 0);
            self.hub.spawn()?;
            // Like RestartSec: a hub whose disk is full ends at once, and again.
            self.hub_down_until = now + 500_000;
        }
        for at in 0..self.agents.len() {
            let agent = &mut self.agents[at];
            if now < agent.down_until || agent.proc.as_mut().is_some_and(|proc| !proc.has_ended()) {
                continue;
            }
            agent.ended += usize::from(agent.proc.is_some());
            let name = agent.name.clone();
            let mut command = self.command();
            command.args(["run", "--with-exec", "--data"]).arg(self.data(&name));
            command.arg("--config").arg(self.dir.join("agent.toml"));
            command.arg("--policy").arg(self.dir.join("policy.toml"));
            let proc = Proc::spawn(&mut command, &self.dir.join(format!("{name}.log")))?;
            self.agents[at].proc = Some(proc);
            self.agents[at].down_until = now + 500_000;
        }
        Ok(())
    }

    /// Begins a fault; `supervise` ends it.
    pub(super) fn fault(&mut self, fault: Fault) -> Result<()> {
        let until = micros() + fault.ms() * 1000;
        match fault {
            Fault::Hub { .. } => {
                self.hub.kill();
                self.hub_down_until = until;
            }
            Fault::Agent { at, .. } => {
                self.agents[at].proc = None;
                self.agents[at].down_until = until;
            }
            Fault::Executor { at } => {
                let uplink = self.agents[at].proc.as_ref().map_or(0, Proc::pid);
                if let Some(pid) = executor_of(uplink) {
                    // SAFETY: sends a signal to a grandchild that was just seen; it is killed with its uplink anyway.
                    unsafe { libc::kill(pid as libc::pid_t, libc::SIGKILL) };
                }
            }
            Fault::Cut { .. } => self.cut(true),
            Fault::AgentDisk { at, .. } => fill(&self.data(&self.agents[at].name.clone()))?,
            Fault::HubDisk { .. } => fill(&self.hub.data())?,
        }
        self.ends.push((until, fault));
        Ok(())
    }

    fn undo(&mut self, fault: Fault) -> Result<()> {
        match fault {
            Fault::Hub { .. } | Fault::Agent { .. } | Fault::Executor { .. } => {}
            Fault::Cut { .. } => {
                let others = self.ends.iter().any(|(_, other)| matches!(other, Fault::Cut { .. }));
                if !others {
                    self.cut(false);
                }
            }
            Fault::AgentDisk { at, .. } => empty(&self.data(&self.agents[at].name.clone()))?,
            Fault::HubDisk { .. } => empty(&self.hub.data())?,
        }
        Ok(())
    }

    fn cut(&self, cut: bool) {
        if let Some(wan) = &self.wan {
            wan.cut(cut);
        }
    }

    /// Undoes every fault at once.
    pub(super) fn heal(&mut self) -> Result<()> {
        self.cut(false);
        for (_, fault) in std::mem::take(&mut self.ends) {
            self.undo(fault)?;
        }
        self.hub_down_until = 0;
        self.agents.iter_mut().for_each(|agent| agent.down_until = 0);
        self.supervise()
    }

    /// Pids of the uplinks that run.
    pub(super) fn uplinks(&self) -> Vec<u32> {
        self.agents.iter().filter_map(|agent| agent.proc.as_ref().map(Proc::pid)).collect()
    }

    /// How often hub and agents ended by themselves.
    pub(super) fn ended(&self) -> (usize, usize) {
        (self.hub_ended, self.agents.iter().map(|agent| agent.ended).sum())
    }

    /// The ledger's lines.
    pub(super) fn ledger(&self) -> Result<String> {
        Ok(std::fs::read_to_string(self.dir.join("work").join(LEDGER))?)
    }

    /// Bytes that the hub's store has on its disk.
    pub(super) fn store_bytes(&self) -> u64 {
        use std::os::unix::fs::MetadataExt;
        std::fs::metadata(self.hub.data().join("store/data.mdb")).map_or(0, |meta| meta.blocks() * 512)
    }
}

/// The executor that an uplink started: its child with that word in its command line.
fn executor_of(uplink: u32) -> Option<u32> {
    let text = std::fs::read_to_string(format!("/proc/{uplink}/task/{uplink}/children")).ok()?;
    text.split_whitespace().filter_map(|pid| pid.parse().ok()).find(|pid: &u32| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.split(|b| *b == 0).any(|word| word == b"executor")
    })
}

fn tmpfs(dir: &Path, bytes: u64) -> Result<()> {
    std::fs::create_dir_all(dir)?;
    let target = CString::new(dir.as_os_str().as_encoded_bytes())?;
    let options = CString::new(format!("size={bytes},mode=0700"))?;
    // SAFETY: four valid C strings.
    let done = unsafe {
        libc::mount(c"soak".as_ptr(), target.as_ptr(), c"tmpfs".as_ptr(), 0, options.as_ptr().cast())
    };
    if done != 0 {
        bail!("a disk for {}: {}", dir.display(), std::io::Error::last_os_error());
    }
    Ok(())
}

fn filler(dir: &Path) -> PathBuf {
    dir.join("soak-filler")
}

/// Writes until the disk is full.
fn fill(dir: &Path) -> Result<()> {
    let mut file = File::create(filler(dir))?;
    let row = vec![0; 1 << 20];
    // A last piece that fits is smaller than a row.
    for size in [row.len(), 4096, 1] {
        while file.write_all(&row[..size]).is_ok() {}
    }
    Ok(())
}

fn empty(dir: &Path) -> Result<()> {
    match std::fs::remove_file(filler(dir)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).context("the disk stays full")
        }
        _ => Ok(()),
    }
}

fn policy(dir: &Path) -> String {
    let dir = dir.display();
    format!(
        "schema = 1\ndefault = \"deny\"\n[ceilings]\ntimeout = \"2m\"\ngrace = \"1s\"\njobs = 4\n\
         [signing]\nrequire = \"never\"\n[root.work]\npath = \"{dir}/work\"\n\
         [[rule]]\nid = \"soak\"\nprogram = \"{dir}/soak\"\n\
         args = [\"soak-job\", \"{dir}/work\", {{ re = '[a-z]+' }}, {{ int = [0, 60000] }}, {{ int = [0, 1000000] }}]\n\
         write = [\"root:work\"]\n"
    )
}
