//! Dunlin itself: the real hub as a process, and for workers either real agents that run `true`, or bare ones in this
//! process that speak the protocol and start nothing, so that a queue is measured beside queues.

use crate::api::{Api, Events};
use crate::hub::Hub;
use crate::line::Line;
use crate::peers::{JOB, Said, Submitter, System};
use crate::proc::programs;
use crate::site::{BOUND, Proc, Side, Site, until};
use anyhow::{Context, Result, bail};
use dunlin_agent::link::client_tls;
use dunlin_hub::clock::micros;
use dunlin_wire::datagram::{FromAgent, FromHub};
use dunlin_wire::job::{Outcome, Report};
use dunlin_wire::message::{Grant, Hello, Join, Joined, Profile, Role, ToAgent, ToHub, Upload};
use dunlin_wire::ticket::Ticket;
use dunlin_wire::window::FlooredConfig;
use dunlin_wire::{ClaimId, Fence, version};
use quinn::{ClientConfig, Connection, Endpoint, EndpointConfig, TransportConfig};
use serde_json::json;
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
    hub: Hub,
    site: Site,
    bin: PathBuf,
    real: bool,
}

impl Dunlin {
    /// Starts the hub; with `real` its workers will be real agents.
    pub(super) fn start(bin: Option<&Path>, site: Site, real: bool) -> Result<Self> {
        let bin = programs(bin, &["dunlin-hub", "dunlin-agent"])?;
        let policy = "schema = 1\ndefault = \"deny\"\n[[rule]]\nid = \"true\"\nprogram = \"/bin/true\"\n\
                      args = [{ re = '.*' }]\n";
        site.write("policy.toml", policy)?;
        site.write("agent.toml", "telemetry = false\n")?;
        let (at, host) = (site.side(Side::Hub).cloned(), site.addr(Side::Hub));
        let hub = Hub::start(&bin, site.dir(), at, host, "").map_err(|error| site.explain(error))?;
        Ok(Self { agents: Vec::new(), hub, site, bin, real })
    }

    fn ticket(&self, name: &str) -> Result<String> {
        self.hub.api().invite(&json!({"name": name}))
    }

    fn agent(&mut self, name: &str) -> Result<()> {
        let (ticket, program) = (self.ticket(name)?, self.bin.join("dunlin-agent"));
        let args = ["join", &ticket, "--data", name, "--config", "agent.toml"];
        self.site.start(Side::Board, Command::new(&program).args(args))?.succeed("dunlin-agent join")?;
        let args =
            ["run", "--with-exec", "--data", name, "--config", "agent.toml", "--policy", "policy.toml"];
        self.agents.push(self.site.start(Side::Board, Command::new(&program).args(args))?);
        Ok(())
    }

    fn wait_ready(&self, count: usize) -> Result<()> {
        let mut api = self.hub.api();
        until("every node is healthy", Duration::from_millis(20), || {
            let nodes = api.must("GET", "/v1/nodes", None)?;
            let list = nodes["nodes"].as_array().context("no nodes")?.iter();
            let ready = list.filter(|node| node["health"] == "healthy" && node["connected"] == true);
            Ok((ready.count() >= count).then_some(()))
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
            places.push((ticket, key, socket, self.hub.quic()));
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
        let text = self.hub.api().bytes("/metrics")?.context("no /metrics")?;
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
        let events = if results { Some(self.hub.api().events(None)?) } else { None };
        Ok(Box::new(Client { api: self.hub.api(), events }))
    }

    fn workers(&mut self, count: usize, tell: &Sender<Said>) -> Result<()> {
        if !self.real {
            return self.bare(count, tell);
        }
        for n in 0..count {
            self.agent(&format!("agent-{n}"))?;
        }
        self.wait_ready(count)?;
        let events = self.hub.api().events(None)?;
        let tell = tell.clone();
        std::thread::spawn(move || -> Result<()> {
            for event in events {
                match event["kind"].as_str() {
                    Some("task.running") => tell.send(Said::Claimed(micros()))?,
                    Some("task.done") => tell.send(Said::Settled)?,
                    _ => {}
                }
            }
            Ok(())
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
        let body = json!({"payload": {"argv": ["/bin/true", text]}, "maxAttempts": 1});
        self.api.must("POST", "/v1/tasks", Some(&body)).map(drop)
    }

    fn result(&mut self) -> Result<()> {
        let events = self.events.as_mut().context("a submitter without results")?;
        loop {
            let event = events.next().context("the hub's events ended")?;
            match event["kind"].as_str() {
                Some("task.done") => return Ok(()),
                Some("task.failed") => bail!("a task failed: {event}"),
                _ => {}
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
