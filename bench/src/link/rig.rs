//! The real hub and the real agent, each at its end of the emulated link.

use super::Options;
use crate::api::Api;
use crate::hub::Hub;
use crate::proc::{Proc, cpu_us, directory, programs, until};
use crate::wan::Wan;
use anyhow::{Context, Result, bail};
use dunlin_hub::clock::micros;
use serde_json::json;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;

/// The real agent's name.
pub(super) const BOARD: &str = "board";

/// Hub, agent and link in a temporary directory.
pub(super) struct Rig {
    agent: Option<Proc>,
    hub: Hub,
    api: Api,
    /// The link.
    pub(super) wan: Arc<Wan>,
    bin: PathBuf,
    stamps: usize,
    dir: Option<TempDir>,
    path: PathBuf,
}

impl Rig {
    /// Makes the link and starts the hub.
    pub(super) fn new(options: &Options) -> Result<Self> {
        let bin = programs(options.bin.as_deref(), &["dunlin-hub", "dunlin-agent"])?;
        let wan = Wan::new(options.link().1).context("no emulated WAN: it needs root and /dev/net/tun")?;
        if let Some(timeout) = options.nat {
            wan.nat(timeout);
        }
        let dir = directory()?;
        let path = dir.path().to_owned();
        std::fs::create_dir(path.join("stamps"))?;
        // A copy, since a policy wants a program that nobody else can write.
        std::fs::copy(std::env::current_exe()?, path.join("stamp"))?;
        std::fs::write(path.join("agent.toml"), format!("telemetry = {}\n", options.telemetry))?;
        std::fs::write(path.join("policy.toml"), policy(&path))?;
        let hub = Hub::start(&bin, &path, Some(wan.hub.clone()), Wan::HUB, "")?;
        let api = hub.api();
        Ok(Self { agent: None, api, hub, wan: Arc::new(wan), bin, stamps: 0, dir: Some(dir), path })
    }

    /// Keeps the logs of a run that failed, and says where.
    pub(super) fn keep(&mut self, error: anyhow::Error) -> anyhow::Error {
        match self.dir.take().map(TempDir::keep) {
            Some(path) => error.context(format!("logs are kept in {}", path.display())),
            None => error,
        }
    }

    fn agent(&self, args: &[&str]) -> Result<Proc> {
        let mut command = Command::new(self.bin.join("dunlin-agent"));
        command.args(args).current_dir(&self.path);
        self.wan.board.place(&mut command);
        Proc::spawn(&mut command, &self.path.join("agent.log"))
    }

    /// Ends the hub as a power cut would, and starts it again.
    pub(super) fn restart_hub(&mut self) -> Result<()> {
        self.hub.kill();
        self.hub.spawn()?;
        self.hub.wait()?;
        self.api = self.hub.api();
        Ok(())
    }

    /// Where the hub listens for agents.
    pub(super) fn quic(&self) -> SocketAddr {
        self.hub.quic()
    }

    /// A ticket for a device.
    pub(super) fn ticket(&mut self, name: &str, profile: &str) -> Result<String> {
        self.api.invite(&json!({"name": name, "profile": profile}))
    }

    /// Enrols the real agent.
    pub(super) fn enrol(&mut self, profile: &str) -> Result<()> {
        let ticket = self.ticket(BOARD, profile)?;
        let args = ["join", &ticket, "--data", "board", "--config", "agent.toml"];
        self.agent(&args)?.succeed("dunlin-agent join")
    }

    /// Starts the real agent, and does not wait. When it was started.
    pub(super) fn start_agent(&mut self) -> Result<u64> {
        let args =
            ["run", "--with-exec", "--data", "board", "--config", "agent.toml", "--policy", "policy.toml"];
        let began = micros();
        self.agent = Some(self.agent(&args)?);
        Ok(began)
    }

    /// Ends the real agent in order.
    pub(super) fn stop_agent(&mut self) -> Result<()> {
        self.agent.take().map_or(Ok(()), |mut agent| agent.end(libc::SIGTERM))
    }

    /// Waits until the real agent is connected and healthy.
    pub(super) fn wait_agent(&mut self) -> Result<()> {
        until("the agent is healthy", Duration::from_millis(50), || {
            let node = self.api.must("GET", &format!("/v1/nodes/{BOARD}"), None)?;
            Ok((node["health"] == "healthy" && node["connected"] == true).then_some(()))
        })
    }

    /// Submits a job for a node; its id.
    pub(super) fn submit(&mut self, node: &str, argv: &[&str]) -> Result<String> {
        let body = json!({"payload": {"argv": argv}, "targetNodeId": node, "maxAttempts": 1});
        let task = self.api.must("POST", "/v1/tasks", Some(&body))?;
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
            let task = self.api.must("GET", &format!("/v1/tasks/{id}"), None)?;
            match task["status"].as_str() {
                Some("done") => Ok(Some(())),
                Some("failed" | "cancelled") => bail!("a task failed: {task}"),
                _ => Ok(None),
            }
        })
    }

    /// Bytes of the real agent's connections by class, as the hub counts them: `telemetry in`, from the board.
    pub(super) fn classes(&mut self) -> Result<BTreeMap<String, u64>> {
        let node = self.api.must("GET", &format!("/v1/nodes/{BOARD}"), None)?;
        let classes = node["bytes"].as_object().with_context(|| node.to_string())?.iter();
        let ways = classes
            .flat_map(|(class, ways)| ways.as_object().into_iter().flatten().map(move |way| (class, way)));
        Ok(ways.filter_map(|(class, (way, n))| Some((format!("{class} {way}"), n.as_u64()?))).collect())
    }

    /// CPU time that the real agent has used, in microseconds, without its children's.
    pub(super) fn agent_cpu_us(&self) -> Result<u64> {
        let pid = self.agent.as_ref().context("no agent runs")?.pid();
        cpu_us(pid).context("the agent ended")
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
