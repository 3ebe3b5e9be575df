//! Dunlin itself: the real hub as a process, and for workers either real agents that run `true`, or bare ones in this
//! process that speak the protocol and start nothing, so that a queue is measured beside queues.

use super::Said;
use super::peers::{JOB, Submitter, System, Wire, exactly, line, put, wire};
use super::site::{BOUND, Proc, Side, Site, until};
use crate::line::Line;
use anyhow::{Context, Result, bail, ensure};
use dunlin_agent::link::client_tls;
use dunlin_hub::clock::micros;
use dunlin_wire::datagram::{FromAgent, FromHub};
use dunlin_wire::job::{Outcome, Report};
use dunlin_wire::message::{Grant, Hello, Join, Joined, Profile, Role, ToAgent, ToHub, Upload};
use dunlin_wire::ticket::Ticket;
use dunlin_wire::window::FlooredConfig;
use dunlin_wire::{ClaimId, Fence, version};
use quinn::{ClientConfig, Connection, Endpoint, EndpointConfig, TransportConfig};
use serde_json::{Value, json};
use std::collections::HashSet;
use std::net::{SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::time::Duration;

/// How often a bare agent says that it lives.
const BEAT: Duration = Duration::from_secs(5);

/// The hub and its agents.
pub(super) struct Dunlin {
    agents: Vec<Proc>,
    _hub: Proc,
    site: Site,
    bin: PathBuf,
    real: bool,
    quic: u16,
    http: u16,
    token: String,
}

impl Dunlin {
    /// Starts the hub; with `real` its workers will be real agents.
    pub(super) fn start(bin: &Path, site: Site, real: bool) -> Result<Self> {
        let (quic, http) = (site.port(Side::Hub)?, site.port(Side::Hub)?);
        let config = format!(
            "quic = \"0.0.0.0:{quic}\"\nhttp = \"127.0.0.1:{http}\"\nadvertise = [\"{}:{quic}\"]\n[api]\n\
             rate_per_s = 1000000\nburst = 1000000\n",
            site.addr(Side::Hub)
        );
        site.write("hub.toml", &config)?;
        let policy = "schema = 1\ndefault = \"deny\"\n[[rule]]\nid = \"true\"\nprogram = \"/bin/true\"\n\
                      args = [{ re = '.*' }]\n";
        site.write("policy.toml", policy)?;
        site.write("agent.toml", "telemetry = false\n")?;
        let mut command = Command::new(bin.join("dunlin-hub"));
        command.args(["serve", "--config", "hub.toml", "--data", "hub"]);
        let hub = site.start(Side::Hub, &mut command)?;
        site.wait_port(Side::Hub, http)?;
        let token = std::fs::read_to_string(site.file("hub/owner.token"))?.trim().to_owned();
        Ok(Self { agents: Vec::new(), _hub: hub, site, bin: bin.to_owned(), real, quic, http, token })
    }

    /// A connection to the API.
    pub(super) fn api(&self) -> Result<Api> {
        let addr = SocketAddr::from(([127, 0, 0, 1], self.http));
        Ok(Api { wire: wire(self.site.connect(Side::Hub, addr)?), token: self.token.clone() })
    }

    fn ticket(&self, name: &str) -> Result<String> {
        let answer = self.api()?.call("POST", "/v1/invites", &json!({"name": name}).to_string())?;
        let answer: Value = serde_json::from_slice(&answer)?;
        Ok(answer["ticket"].as_str().with_context(|| answer.to_string())?.to_owned())
    }

    fn agent(&mut self, name: &str) -> Result<()> {
        let (ticket, program) = (self.ticket(name)?, self.bin.join("dunlin-agent"));
        let args = ["join", &ticket, "--data", name, "--config", "agent.toml"];
        let mut joining = self.site.start(Side::Board, Command::new(&program).args(args))?;
        let joined = joining.0.wait()?;
        ensure!(joined.success(), "dunlin-agent join: {joined}");
        let args =
            ["run", "--with-exec", "--data", name, "--config", "agent.toml", "--policy", "policy.toml"];
        self.agents.push(self.site.start(Side::Board, Command::new(&program).args(args))?);
        Ok(())
    }

    fn wait_ready(&self, count: usize) -> Result<()> {
        let mut api = self.api()?;
        until("every node is healthy", 20, || {
            let nodes: Value = serde_json::from_slice(&api.call("GET", "/v1/nodes", "").ok()?).ok()?;
            let list = nodes.as_array().or_else(|| nodes["nodes"].as_array())?;
            let ready = |node: &&Value| node["health"] == "healthy" && node["connected"] == true;
            (list.iter().filter(ready).count() >= count).then_some(())
        })
        .map_err(|error| self.site.explain(error))
    }

    /// Enrols bare agents and serves them in a thread.
    fn bare(&mut self, count: usize, tell: &Sender<Said>) -> Result<()> {
        let mut places = Vec::new();
        for n in 0..count {
            let ticket = Ticket::parse(&self.ticket(&format!("bare-{n}"))?)?;
            let key = dunlin_agent::files::Files::at(&self.site.file(&format!("bare-{n}"))).key()?;
            let addr = self.site.addr(Side::Board);
            let socket = self.site.at(Side::Board, || Ok(UdpSocket::bind((addr, 0))?))?;
            let hub = SocketAddr::new(self.site.addr(Side::Hub), self.quic);
            places.push((ticket, key, socket, hub));
        }
        let tell = tell.clone();
        let (ready, are_ready) = channel();
        std::thread::spawn(move || -> Result<()> {
            tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
                let mut all = tokio::task::JoinSet::new();
                for (ticket, key, socket, hub) in places {
                    let (tell, ready) = (tell.clone(), ready.clone());
                    all.spawn(async move {
                        let (connection, joined) = enrol(&ticket, &key, socket, hub).await?;
                        serve(&connection, joined, &tell, &ready).await
                    });
                }
                drop((tell, ready));
                while let Some(ended) = all.join_next().await {
                    // Whoever listened is gone at the end of a measurement.
                    if let Ok(Err(error)) = ended
                        && error.downcast_ref::<std::sync::mpsc::SendError<Said>>().is_none()
                    {
                        say_if_asked(&error);
                    }
                }
                Ok(())
            })
        });
        for _ in 0..count {
            are_ready.recv_timeout(BOUND).context("waited in vain: a bare agent is welcome")?;
        }
        Ok(())
    }
}

fn say_if_asked(error: &anyhow::Error) {
    if std::env::var_os("DUNLIN_BENCH_LOG").is_some() {
        eprintln!("a bare agent ended: {error:#}");
    }
}

impl System for Dunlin {
    fn durable(&self) -> bool {
        true
    }

    fn settings(&self) -> String {
        let worker = if self.real {
            "real agents run /bin/true, journal and guard and all"
        } else {
            "bare agents speak the protocol, start no process and keep no journal"
        };
        format!("as it comes; every answer after a synced commit; {worker}; results seen on /v1/events")
    }

    fn counted(&self) -> Result<Option<String>> {
        let text = self.api()?.call("GET", "/metrics", "")?;
        let text = String::from_utf8_lossy(&text);
        let value = |name: String| -> Result<f64> {
            let found = text.lines().find_map(|line| line.strip_prefix(&name)?.strip_prefix(' '));
            Ok(found.with_context(|| format!("/metrics has no {name}"))?.parse()?)
        };
        let mean = |name: &str| -> Result<String> {
            let [sum, count] = ["sum", "count"].map(|of| value(format!("dunlin_{name}_seconds_{of}")));
            let (sum, count) = (sum?, count?);
            Ok(format!("{count} of {name}, mean {:.3} ms", sum * 1e3 / count.max(1.0)))
        };
        Ok(Some(format!("{}, {}", mean("claim_latency")?, mean("store_commit")?)))
    }

    fn submitter(&mut self, results: bool) -> Result<Box<dyn Submitter>> {
        let api = self.api()?;
        let events = if results { Some(self.api()?.events()?) } else { None };
        Ok(Box::new(Client { api, events }))
    }

    fn workers(&mut self, count: usize, tell: &Sender<Said>) -> Result<()> {
        if !self.real {
            return self.bare(count, tell);
        }
        for n in 0..count {
            self.agent(&format!("agent-{n}"))?;
        }
        self.wait_ready(count)?;
        let mut events = self.api()?.events()?;
        let tell = tell.clone();
        std::thread::spawn(move || -> Result<()> {
            loop {
                match events.next()?.as_str() {
                    "task.running" => tell.send(Said::Claimed(micros()))?,
                    "task.done" => tell.send(Said::Settled)?,
                    _ => {}
                }
            }
        });
        Ok(())
    }
}

struct Client {
    api: Api,
    events: Option<Events>,
}

impl Submitter for Client {
    fn submit(&mut self) -> Result<()> {
        let text = String::from_utf8_lossy(&JOB[..60]).into_owned();
        let body = json!({"payload": {"argv": ["/bin/true", text]}, "maxAttempts": 1}).to_string();
        self.api.call("POST", "/v1/tasks", &body).map(drop)
    }

    fn result(&mut self) -> Result<()> {
        let events = self.events.as_mut().context("a submitter without results")?;
        loop {
            match events.next()?.as_str() {
                "task.done" => return Ok(()),
                "task.failed" => bail!("a task failed"),
                _ => {}
            }
        }
    }
}

/// A kept connection to the API.
pub(super) struct Api {
    wire: Wire,
    token: String,
}

impl Api {
    /// One call; the answer's body.
    pub(super) fn call(&mut self, method: &str, path: &str, body: &str) -> Result<Vec<u8>> {
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\ncontent-type: application/json\r\n\
             content-length: {}\r\n\r\n{body}",
            self.token,
            body.len()
        );
        put(&mut self.wire, head.as_bytes())?;
        let status = line(&mut self.wire)?;
        let mut length = 0;
        loop {
            let head = line(&mut self.wire)?;
            if head.is_empty() {
                break;
            }
            if let Some(text) = head.to_ascii_lowercase().strip_prefix("content-length:") {
                length = text.trim().parse()?;
            }
        }
        let answer = exactly(&mut self.wire, length)?;
        let good = status.split(' ').nth(1).is_some_and(|code| code.starts_with('2'));
        ensure!(good, "{method} {path}: {status} {}", String::from_utf8_lossy(&answer));
        Ok(answer)
    }

    /// Listens to events from now on.
    fn events(mut self) -> Result<Events> {
        let head = format!(
            "GET /v1/events HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\naccept: text/event-stream\r\n\r\n",
            self.token
        );
        put(&mut self.wire, head.as_bytes())?;
        let status = line(&mut self.wire)?;
        ensure!(status.contains(" 200 "), "/v1/events: {status}");
        while !line(&mut self.wire)?.is_empty() {}
        Ok(Events(self.wire))
    }
}

/// The hub's events.
struct Events(Wire);

impl Events {
    /// The kind of the next one.
    fn next(&mut self) -> Result<String> {
        loop {
            // Between them are ids, data and the lengths of chunks.
            if let Some(kind) = line(&mut self.0)?.strip_prefix("event: ") {
                return Ok(kind.to_owned());
            }
        }
    }
}

/// Enrols with one connection; the next one, and who it is.
async fn enrol(
    ticket: &Ticket,
    key: &[u8],
    socket: UdpSocket,
    hub: SocketAddr,
) -> Result<(Connection, Joined)> {
    let runtime = quinn::default_runtime().context("no tokio runtime")?;
    let endpoint = Endpoint::new(EndpointConfig::default(), None, socket, runtime)?;
    let mut config = ClientConfig::new(Arc::new(client_tls(key, ticket.hub, Arc::default())?));
    // As the agent's.
    let mut transport = TransportConfig::default();
    transport.congestion_controller_factory(Arc::new(FlooredConfig::default()));
    config.transport_config(Arc::new(transport));
    let first = endpoint.connect_with(config.clone(), hub, version::SERVER_NAME)?.await?;
    let mut line = Line::open(&first).await?;
    let (invite, secret) = (ticket.invite, ticket.secret);
    line.say(ToHub::Join(Box::new(Join { generation: version::GENERATION, invite, secret }))).await?;
    let ToAgent::Joined(joined) = line.hear().await? else { bail!("not enrolled") };
    first.close(0u32.into(), b"");
    Ok((endpoint.connect_with(config, hub, version::SERVER_NAME)?.await?, *joined))
}

/// Takes a job at a time and says that it is done.
async fn serve(
    connection: &Connection,
    joined: Joined,
    tell: &Sender<Said>,
    ready: &Sender<()>,
) -> Result<()> {
    let mut line = Line::open(connection).await?;
    let hello = Hello {
        generation: version::GENERATION,
        fleet: joined.fleet,
        node: joined.node,
        role: Role::Worker,
        boot_id: [1; 16],
        connection: 1,
        version: "bench".into(),
        capabilities: vec![],
        slots: 1,
        profile: Profile::Wan,
        policy: [0; 8],
    };
    line.say(ToHub::Hello(Box::new(hello))).await?;
    line.say(ToHub::Claim { ids: vec![ClaimId(1)] }).await?;
    let mut beat = tokio::time::interval(BEAT);
    let mut taken: HashSet<Fence> = HashSet::new();
    loop {
        let message = tokio::select! {
            message = line.hear() => message?,
            datagram = connection.read_datagram() => match postcard_again(&datagram?) {
                Some(message) => message,
                None => continue,
            },
            _ = beat.tick() => {
                let alive = postcard::to_stdvec(&FromAgent::Alive)?;
                let _lost = connection.send_datagram(alive.into());
                continue;
            }
        };
        match message {
            ToAgent::Welcome(_) => ready.send(())?,
            // A grant that comes twice is one grant.
            ToAgent::Grant(grant) if taken.insert(grant.fence) => {
                tell.send(Said::Claimed(micros()))?;
                settle(&mut line, &grant).await?;
            }
            ToAgent::Ack { .. } => tell.send(Said::Settled)?,
            _ => {}
        }
    }
}

async fn settle(line: &mut Line, grant: &Grant) -> Result<()> {
    let report = Box::new(Report::without_process(Outcome::Ok));
    let outcome = Upload::Outcome { task: grant.task.clone(), fence: grant.fence, report };
    line.say(ToHub::Upload(outcome)).await?;
    line.say(ToHub::Claim { ids: vec![ClaimId(grant.claim.0 + 1)] }).await
}

fn postcard_again(datagram: &[u8]) -> Option<ToAgent> {
    match postcard::from_bytes(datagram).ok()? {
        FromHub::Again(message) => Some(*message),
        FromHub::Echo | FromHub::Ask => None,
    }
}
