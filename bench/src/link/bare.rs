//! An agent without a store or jobs, in this process: it connects, claims, and reports what it is granted as done.

use super::rig::Rig;
use crate::line::Line;
use crate::wan::{Wan, inside};
use anyhow::{Context, Result, bail, ensure};
use dunlin_agent::link::{Tickets, client_tls};
use dunlin_hub::clock::micros;
use dunlin_wire::job::{Outcome, Report};
use dunlin_wire::message::{
    Grant, Hello, Join, Joined, Profile, Role, ToAgent, ToHub, Unfinished, Upload, Verdict,
};
use dunlin_wire::ticket::Ticket;
use dunlin_wire::{ClaimId, version};
use quinn::{ClientConfig, Connection, Endpoint, EndpointConfig};
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;

/// The bare agent's name.
pub(super) const BARE: &str = "bare";
const BOUND: Duration = Duration::from_secs(60);

/// How a connection begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    /// Without a session of before.
    Full,
    /// With one, and nothing said before the handshake is over.
    Resumed,
    /// Hello and claim are in the first flight.
    Early,
}

/// How a connection went.
pub(super) struct Took {
    /// From before the first packet to the grant, in microseconds.
    pub(super) us: u64,
    /// Whether early data was said and refused, so that all was said twice.
    pub(super) refused: bool,
}

/// The bare agent.
pub(super) struct Bare {
    runtime: tokio::runtime::Runtime,
    key: Vec<u8>,
    hub: dunlin_wire::Key,
    tls: ClientConfig,
    joined: Joined,
    connections: u64,
    claims: u64,
}

impl Bare {
    /// Enrols it. After this it has tickets to resume with.
    pub(super) fn enrol(rig: &mut Rig) -> Result<Self> {
        let ticket = Ticket::parse(&rig.ticket(BARE, Profile::Wan.as_str())?)?;
        let dir = tempfile::tempdir()?;
        let key = dunlin_agent::files::Files::at(dir.path()).key()?;
        let tls = tls(&key, ticket.hub)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let joined = runtime.block_on(async {
            let endpoint = endpoint(&rig.wan)?;
            let connecting = endpoint.connect_with(tls.clone(), rig.quic(), version::SERVER_NAME)?;
            let connection = timeout(BOUND, connecting).await??;
            let mut line = Line::open(&connection).await?;
            let (invite, secret) = (ticket.invite, ticket.secret);
            let join = Join { generation: version::GENERATION, invite, secret };
            line.say(ToHub::Join(Box::new(join))).await?;
            let ToAgent::Joined(joined) = timeout(BOUND, line.hear()).await?? else { bail!("not enrolled") };
            leave(&endpoint, &connection).await;
            Ok(*joined)
        })?;
        Ok(Self { runtime, key, hub: ticket.hub, tls, joined, connections: 0, claims: 0 })
    }

    /// Connects while a task waits for it, takes it, and leaves when its result is settled.
    pub(super) fn connect(&mut self, wan: &Wan, hub: SocketAddr, mode: Mode) -> Result<Took> {
        let tls = if mode == Mode::Full { tls(&self.key, self.hub)? } else { self.tls.clone() };
        // Taken apart, so that the rest can be changed while the runtime runs.
        let (connections, claims) = (&mut self.connections, &mut self.claims);
        let joined = &self.joined;
        *claims += 1;
        let claim = ClaimId(*claims);
        self.runtime.block_on(async {
            let endpoint = endpoint(wan)?;
            let began = micros();
            let connecting = endpoint.connect_with(tls, hub, version::SERVER_NAME)?;
            let (connection, mut early) = if mode == Mode::Early {
                let both = connecting.into_0rtt();
                let (connection, early) = both.map_err(|_| anyhow::anyhow!("no ticket for early data"))?;
                (connection, Some(early))
            } else {
                (timeout(BOUND, connecting).await??, None)
            };
            let mut refused = false;
            let take = async {
                *connections += 1;
                let mut line = begin(&connection, joined, *connections, claim).await?;
                let grant = loop {
                    let over = async {
                        match early.as_mut() {
                            Some(early) => early.await,
                            None => std::future::pending().await,
                        }
                    };
                    tokio::select! {
                        biased;
                        taken = over => {
                            early = None;
                            if !taken {
                                refused = true;
                                *connections += 1;
                                line = begin(&connection, joined, *connections, claim).await?;
                            }
                        }
                        message = line.hear() => if let ToAgent::Grant(grant) = message? { break grant },
                    }
                };
                Ok::<_, anyhow::Error>((line, grant, micros()))
            };
            let (mut line, grant, at) = timeout(BOUND, take).await.context("no grant came")??;
            ensure!(grant.claim == claim, "a grant of another claim");
            if let Some(early) = early {
                ensure!(timeout(BOUND, early).await?, "early data was granted and then refused");
            }
            timeout(BOUND, settle(&mut line, &grant)).await.context("no acknowledgement came")??;
            leave(&endpoint, &connection).await;
            Ok(Took { us: at - began, refused })
        })
    }
}

/// First words of a connection.
async fn begin(connection: &Connection, joined: &Joined, number: u64, claim: ClaimId) -> Result<Line> {
    let mut line = Line::open(connection).await?;
    let hello = Hello {
        generation: version::GENERATION,
        fleet: joined.fleet,
        node: joined.node.clone(),
        role: Role::Worker,
        boot_id: [1; 16],
        connection: number,
        version: "bench".into(),
        capabilities: vec![],
        slots: 1,
        profile: joined.profile,
        policy: [0; 8],
    };
    line.say(ToHub::Hello(Box::new(hello))).await?;
    line.say(ToHub::Claim { ids: vec![claim] }).await?;
    Ok(line)
}

/// Reports a grant as done, when the handshake is over.
async fn settle(line: &mut Line, grant: &Grant) -> Result<()> {
    let (task, fence) = (grant.task.clone(), grant.fence);
    let unfinished = vec![Unfinished { task: task.clone(), fence, ended: true }];
    line.say(ToHub::Holding { unfinished, claims: vec![] }).await?;
    let report = Box::new(Report::without_process(Outcome::Ok));
    line.say(ToHub::Upload(Upload::Outcome { task, fence, report })).await?;
    loop {
        match line.hear().await? {
            ToAgent::Ack { fence: acked, .. } if acked == fence => return Ok(()),
            ToAgent::Verdicts { verdicts, .. } => {
                let kept = |v: &Verdict| matches!(v, Verdict::Continue { .. } | Verdict::Ack { .. });
                ensure!(verdicts.iter().all(|(_, v)| kept(v)), "the hub took a grant back: {verdicts:?}");
            }
            _ => {}
        }
    }
}

/// Closes, and waits until that is said.
async fn leave(endpoint: &Endpoint, connection: &Connection) {
    connection.close(0u32.into(), b"leaving");
    // The hub need not answer; the next connection is a while away.
    let _ = timeout(Duration::from_millis(400), endpoint.wait_idle()).await;
}

fn tls(key: &[u8], hub: dunlin_wire::Key) -> Result<ClientConfig> {
    let tickets = Arc::new(Tickets::default());
    Ok(ClientConfig::new(Arc::new(client_tls(key, hub, tickets)?)))
}

/// A new socket for each connection, as the real agent has it.
fn endpoint(wan: &Wan) -> Result<Endpoint> {
    let socket = inside(Some(&wan.board), || Ok(UdpSocket::bind((Wan::BOARD, 0))?))?;
    let runtime = quinn::default_runtime().context("no tokio runtime")?;
    Ok(Endpoint::new(EndpointConfig::default(), None, socket, runtime)?)
}
