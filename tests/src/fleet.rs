//! A hub and its agents in a temporary directory.

use crate::{multicall, until};
use anyhow::{Context, Result, bail, ensure};
use dunlin_bench::wan::Wan;
use serde_json::{Value, json};
use std::fs::File;
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

/// A process that is killed with its owner.
pub struct Proc {
    child: Child,
}

impl Proc {
    /// Its pid.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal by name: STOP, CONT, TERM, KILL.
    pub fn signal(&self, name: &str) {
        let sent = Command::new("kill").arg(format!("-{name}")).arg(self.pid().to_string()).status();
        assert!(sent.is_ok_and(|s| s.success()), "kill -{name} {}", self.pid());
    }

    /// Kills it at once, as a power cut would.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Its exit code, once it has ended by itself.
    pub fn wait(&mut self) -> Option<i32> {
        until("a process ends", || self.child.try_wait().ok().flatten()).code()
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }
}

impl Drop for Proc {
    fn drop(&mut self) {
        // A stopped process must not outlive the test either.
        self.kill();
    }
}

/// A running hub.
pub struct Hub {
    /// Its process.
    pub proc: Proc,
}

/// A running agent.
pub struct Agent {
    /// Its name.
    pub name: String,
    /// Its process.
    pub proc: Proc,
}

/// Everything that belongs together.
pub struct Fleet {
    dir: PathBuf,
    bin: PathBuf,
    quic: u16,
    http: u16,
    config: String,
    agent: ureq::Agent,
    wan: Option<Arc<Wan>>,
}

/// A policy that allows what the tests run.
pub const POLICY: &str = include_str!("policy.toml");

impl Fleet {
    /// A fleet in `dir`, whose programs are `binary` under other names. `config` is put into the hub's file.
    ///
    /// # Errors
    /// When there is no port, or the directory cannot be written.
    pub fn new(dir: &Path, binary: &Path, config: &str) -> Result<Self> {
        Self::make(dir, binary, config, None)
    }

    /// The same with agents on the far side of an emulated link. The calling thread moves to the hub's side, and must be
    /// the one that uses the fleet.
    ///
    /// # Errors
    /// As above.
    pub fn over(wan: Arc<Wan>, dir: &Path, binary: &Path, config: &str) -> Result<Self> {
        wan.hub.enter()?;
        Self::make(dir, binary, config, Some(wan))
    }

    fn make(dir: &Path, binary: &Path, config: &str, wan: Option<Arc<Wan>>) -> Result<Self> {
        let bin = multicall::install(binary, &dir.join("bin"))?;
        std::fs::write(dir.join("policy.toml"), POLICY.replace("@DIR@", &dir.display().to_string()))?;
        std::fs::create_dir_all(dir.join("work"))?;
        let host = if wan.is_some() { Wan::HUB } else { Ipv4Addr::LOCALHOST };
        let quic = UdpSocket::bind((host, 0))?.local_addr()?.port();
        let http = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let text = format!(
            "data = {:?}\nquic = \"{host}:{quic}\"\nhttp = \"127.0.0.1:{http}\"\n{config}",
            dir.join("hub").display().to_string()
        );
        std::fs::write(dir.join("hub.toml"), text)?;
        let agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(Duration::from_secs(20)))
            .build()
            .into();
        Ok(Self { dir: dir.to_owned(), bin, quic, http, config: config.to_owned(), agent, wan })
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// What was put into the hub's file.
    pub fn config(&self) -> &str {
        &self.config
    }

    /// The API's URL.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.http)
    }

    /// The hub's QUIC address.
    pub fn quic(&self) -> String {
        format!("127.0.0.1:{}", self.quic)
    }

    /// A command of one of the three programs, with its environment clean but for what it needs.
    pub fn command(&self, name: &str) -> Command {
        let mut command = Command::new(self.bin.join(name));
        command.env("DUNLIN_HUB", self.url()).env("DUNLIN_TOKEN_FILE", self.dir.join("hub/owner.token"));
        for name in ["DUNLIN_TOKEN", "DUNLIN_FAULT", "DUNLIN_CA", "DUNLIN_INSECURE_HTTP"] {
            command.env_remove(name);
        }
        command
    }

    fn log(&self, name: &str) -> Result<Stdio> {
        let path = self.dir.join(format!("{name}.log"));
        Ok(File::options().create(true).append(true).open(path)?.into())
    }

    /// What a process has logged.
    pub fn logged(&self, name: &str) -> String {
        std::fs::read_to_string(self.dir.join(format!("{name}.log"))).unwrap_or_default()
    }

    /// Starts the hub and waits until it answers.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start_hub(&self) -> Result<Hub> {
        let hub = self.start_hub_with(&[])?;
        until("the hub answers", || self.get("/health").is_ok().then_some(()));
        Ok(hub)
    }

    /// Starts the hub with variables, and does not wait.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_hub_with(&self, env: &[(&str, &str)]) -> Result<Hub> {
        let mut command = self.command("dunlin-hub");
        command.arg("serve").arg("--config").arg(self.dir.join("hub.toml"));
        command.envs(env.iter().copied()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(self.log("hub")?);
        Ok(Hub { proc: Proc { child: command.spawn().context("dunlin-hub")? } })
    }

    /// Invites and enrols a device; `extra` goes to `dunlin node invite`.
    ///
    /// # Errors
    /// When either is refused.
    pub fn enrol(&self, name: &str, extra: &[&str]) -> Result<()> {
        let invite = self.command("dunlin").args(["node", "invite", name]).args(extra).output()?;
        ensure!(invite.status.success(), "invite: {}", String::from_utf8_lossy(&invite.stderr));
        let ticket = String::from_utf8(invite.stdout)?;
        let mut join = self.command("dunlin-agent");
        self.place(&mut join);
        let join = join.args(["join", ticket.trim(), "--data"]).arg(self.data(name)).output()?;
        ensure!(join.status.success(), "join: {}", String::from_utf8_lossy(&join.stderr));
        Ok(())
    }

    /// On the boards' side of the link, if there is one.
    fn place(&self, command: &mut Command) {
        if let Some(wan) = &self.wan {
            wan.board.place(command);
        }
    }

    /// An agent's data directory.
    pub fn data(&self, name: &str) -> PathBuf {
        self.dir.join("boards").join(name)
    }

    /// An agent's configuration; it is used once somebody has written it.
    pub fn agent_config(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.toml"))
    }

    /// Starts an enrolled agent, and does not wait.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_agent(&self, name: &str) -> Result<Agent> {
        self.start_agent_with(name, &[])
    }

    /// The same with variables.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_agent_with(&self, name: &str, env: &[(&str, &str)]) -> Result<Agent> {
        let mut command = self.command("dunlin-agent");
        self.place(&mut command);
        self.run_agent(name, env, command)
    }

    /// Starts an enrolled agent on the hub's side of the link.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_agent_near(&self, name: &str) -> Result<Agent> {
        self.run_agent(name, &[], self.command("dunlin-agent"))
    }

    fn run_agent(&self, name: &str, env: &[(&str, &str)], mut command: Command) -> Result<Agent> {
        command.args(["run", "--with-exec", "--policy"]).arg(self.dir.join("policy.toml"));
        command.envs(env.iter().copied());
        self.run_uplink(name, command)
    }

    /// Starts the uplink of an enrolled agent, whose configuration says where the executor is.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_uplink(&self, name: &str) -> Result<Agent> {
        let mut command = self.command("dunlin-agent");
        command.arg("run");
        self.run_uplink(name, command)
    }

    fn run_uplink(&self, name: &str, mut command: Command) -> Result<Agent> {
        command.arg("--data").arg(self.data(name));
        let config = self.agent_config(name);
        if config.exists() {
            command.arg("--config").arg(config);
        }
        Ok(Agent { name: name.to_owned(), proc: self.spawn(name, command)? })
    }

    /// Starts a command whose log goes to `NAME.log`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn(&self, name: &str, mut command: Command) -> Result<Proc> {
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(self.log(name)?);
        Ok(Proc { child: command.spawn().with_context(|| name.to_owned())? })
    }

    /// Enrols and starts an agent, and waits until it is there.
    ///
    /// # Errors
    /// When it does not come.
    pub fn add_agent(&self, name: &str, extra: &[&str]) -> Result<Agent> {
        self.enrol(name, extra)?;
        let agent = self.start_agent(name)?;
        self.wait_health(name, "healthy");
        Ok(agent)
    }

    /// Waits until a node's health is `health`.
    pub fn wait_health(&self, name: &str, health: &str) {
        until(&format!("{name} is {health}"), || (self.node(name)["health"] == health).then_some(()));
    }

    /// A node as the API shows it.
    pub fn node(&self, name: &str) -> Value {
        self.get(&format!("/v1/nodes/{name}")).unwrap_or_default()
    }

    fn token(&self) -> String {
        std::fs::read_to_string(self.dir.join("hub/owner.token")).unwrap_or_default().trim().to_owned()
    }

    /// One call of the API: status and JSON.
    ///
    /// # Errors
    /// When the hub does not answer.
    pub fn call(&self, method: &str, path: &str, body: Option<&Value>) -> Result<(u16, Value)> {
        let request = ureq::http::Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.url()))
            .header("authorization", format!("Bearer {}", self.token()))
            .header("accept", "application/json")
            .header("content-type", "application/json");
        let mut response = match body {
            Some(body) => self.agent.run(request.body(body.to_string())?)?,
            None => self.agent.run(request.body(())?)?,
        };
        let text = response.body_mut().read_to_string()?;
        Ok((response.status().as_u16(), serde_json::from_str(&text).unwrap_or(Value::String(text))))
    }

    /// A successful GET.
    ///
    /// # Errors
    /// When it is not one.
    pub fn get(&self, path: &str) -> Result<Value> {
        match self.call("GET", path, None)? {
            (200..=299, value) => Ok(value),
            (status, value) => bail!("GET {path}: {status} {value}"),
        }
    }

    /// A successful POST.
    ///
    /// # Errors
    /// When it is not one.
    pub fn post(&self, path: &str, body: &Value) -> Result<Value> {
        match self.call("POST", path, Some(body))? {
            (200..=299, value) => Ok(value),
            (status, value) => bail!("POST {path}: {status} {value}"),
        }
    }

    /// Submits a job with `more` fields; its id.
    ///
    /// # Errors
    /// When the hub refuses it.
    pub fn submit(&self, argv: &[&str], more: Value) -> Result<String> {
        let mut body = json!({"payload": {"argv": argv}});
        for (name, value) in more.as_object().into_iter().flatten() {
            match name.as_str() {
                "cwd" | "env" => body["payload"][name] = value.clone(),
                _ => body[name] = value.clone(),
            }
        }
        let task = self.post("/v1/tasks", &body)?;
        Ok(task["taskId"].as_str().unwrap_or_default().to_owned())
    }

    /// A task as the API shows it.
    pub fn task(&self, id: &str) -> Value {
        self.get(&format!("/v1/tasks/{id}")).unwrap_or_default()
    }

    /// Waits until a task has ended; the task then.
    pub fn wait_ended(&self, id: &str) -> Value {
        self.wait_state(id, &["done", "failed", "cancelled"])
    }

    /// Waits until a task is in one of `states`; the task then.
    pub fn wait_state(&self, id: &str, states: &[&str]) -> Value {
        until(&format!("{id} is {states:?}"), || {
            let task = self.task(id);
            states.iter().any(|s| task["status"] == *s).then_some(task)
        })
    }

    /// The code of a task's latest outcome, with its detail: `exit(7)`.
    pub fn outcome(task: &Value) -> String {
        let outcome =
            &task["attempts"].as_array().and_then(|a| a.last()).cloned().unwrap_or_default()["outcome"];
        let text = |name: &str| outcome[name].as_str().unwrap_or_default().to_owned();
        if text("detail").is_empty() { text("code") } else { format!("{}({})", text("code"), text("detail")) }
    }
}
