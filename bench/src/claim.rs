//! Claim latency on loopback: from a submission to the grant in the hands of an idle agent, beside its floor, which is
//! one LMDB commit and half a round trip of bare quinn, interleaved in the same run on the same disk.
//!
//! The hub is the real one, with its HTTP API and its store; it and a bare agent that speaks the protocol are in this
//! process, so that one clock measures.

use crate::line::Line;
use crate::stats::Sample;
use anyhow::{Context, Result, bail};
use dunlin_hub::clock::micros;
use dunlin_hub::config::{Config, Overrides};
use dunlin_hub::link;
use dunlin_wire::job::{Outcome, Report};
use dunlin_wire::message::{Hello, Join, Profile, Role, ToAgent, ToHub, Upload};
use dunlin_wire::ticket::Ticket;
use dunlin_wire::{ClaimId, version};
use heed::types::Bytes;
use rustls::server::NoServerSessionStorage;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

/// Rounds that are not counted.
const WARM_UP: usize = 50;

/// Measures `n` rounds and prints the report.
///
/// # Errors
/// When the hub does not start or a message does not come.
pub fn run(n: usize) -> Result<()> {
    let dir = tempfile::Builder::new().prefix("dunlin-bench").tempdir_in(std::env::current_dir()?)?;
    let mut hub = Hub::start(dir.path())?;
    let ticket = hub.ticket()?;
    let (grants, granted) = channel();
    std::thread::spawn(move || match agent(&ticket, &grants) {
        Ok(()) => {}
        Err(error) => eprintln!("the bare agent ended: {error:#}"),
    });
    wait(&granted, "the agent is welcome")?;
    let commits = Commits::open(dir.path())?;
    let echo = Echo::start()?;
    let (mut claim, mut answer, mut commit, mut rtt) =
        (Sample::default(), Sample::default(), Sample::default(), Sample::default());
    for round in 0..n + WARM_UP {
        let committed = commits.once(round)?;
        let echoed = echo.once()?;
        let began = micros();
        hub.submit()?;
        let answered = micros() - began;
        let at = wait(&granted, "a grant comes")?;
        // The outcome's acknowledgement: the agent is idle again.
        wait(&granted, "the outcome is acknowledged")?;
        if round >= WARM_UP {
            claim.push(at.saturating_sub(began));
            answer.push(answered);
            commit.push(committed);
            rtt.push(echoed);
        }
    }
    let floor = commit.percentile(50) + rtt.percentile(50) / 2;
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    println!("claim latency on loopback, one idle agent, in microseconds (load {})", load.trim());
    println!("{:<34} {:>8} {:>8} {:>8}", "", "p50", "p90", "p99");
    println!("{}", claim.line("claim: HTTP request -> grant"));
    println!("{}", answer.line("submit: HTTP request -> 201"));
    println!("{}", commit.line("floor: one LMDB commit"));
    println!("{}", rtt.line("floor: quinn round trip"));
    let ratio = claim.percentile(50) as f64 / floor as f64;
    println!(
        "claim p50 / (commit p50 + round trip p50 / 2) = {} / {floor} = {ratio:.2}",
        claim.percentile(50)
    );
    Ok(())
}

fn wait(granted: &Receiver<u64>, what: &str) -> Result<u64> {
    granted.recv_timeout(Duration::from_secs(20)).with_context(|| format!("waited in vain: {what}"))
}

/// The real hub, and a connection to its API.
struct Hub {
    api: BufReader<TcpStream>,
    token: String,
}

impl Hub {
    fn start(dir: &Path) -> Result<Self> {
        let quic = UdpSocket::bind("127.0.0.1:0")?.local_addr()?;
        let http = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let file = dir.join("hub.toml");
        std::fs::write(&file, "[api]\nrate_per_s = 1000000\nburst = 1000000\n")?;
        let over = Overrides { data: Some(dir.join("hub")), quic: Some(quic), http: Some(http) };
        let config = Config::load(Some(&file), &over)?;
        // Ends with this process.
        std::thread::spawn(move || {
            if let Err(error) = dunlin_hub::run::serve(&config, None) {
                eprintln!("the hub ended: {error:#}");
            }
        });
        for _ in 0..500 {
            if let Ok(stream) = TcpStream::connect(http) {
                stream.set_nodelay(true)?;
                let token = std::fs::read_to_string(dir.join("hub/owner.token"))?;
                return Ok(Self { api: BufReader::new(stream), token: token.trim().to_owned() });
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        bail!("the hub did not start")
    }

    fn post(&mut self, path: &str, body: &str) -> Result<serde_json::Value> {
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\ncontent-type: application/json\r\n\
             content-length: {}\r\n\r\n{body}",
            self.token,
            body.len()
        );
        self.api.get_mut().write_all(head.as_bytes())?;
        let mut length = 0;
        let mut line = String::new();
        while self.api.read_line(&mut line)? > 2 {
            if let Some(text) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = text.trim().parse()?;
            }
            line.clear();
        }
        let mut answer = vec![0; length];
        self.api.read_exact(&mut answer)?;
        Ok(serde_json::from_slice(&answer)?)
    }

    fn ticket(&mut self) -> Result<Ticket> {
        let answer = self.post("/v1/invites", r#"{"name": "bench", "profile": "lan"}"#)?;
        let text = answer["ticket"].as_str().with_context(|| answer.to_string())?;
        Ok(Ticket::parse(text)?)
    }

    fn submit(&mut self) -> Result<()> {
        let answer = self.post("/v1/tasks", r#"{"payload": {"argv": ["/bin/true"]}}"#)?;
        anyhow::ensure!(answer["taskId"].is_string(), "{answer}");
        Ok(())
    }
}

/// Enrols, claims, and tells `grants` when a grant is there, and again when its outcome is acknowledged.
fn agent(ticket: &Ticket, grants: &Sender<u64>) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let key = dunlin_agent::files::Files::at(dir.path()).key()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let addr = ticket.addrs[0].parse()?;
    runtime.block_on(async {
        let endpoint = quinn::Endpoint::client("127.0.0.1:0".parse()?)?;
        let config = quinn::ClientConfig::new(Arc::new(dunlin_agent::link::client_tls(
            &key,
            ticket.hub,
            Default::default(),
        )?));
        let join = Join { generation: version::GENERATION, invite: ticket.invite, secret: ticket.secret };
        let first = endpoint.connect_with(config.clone(), addr, version::SERVER_NAME)?.await?;
        let mut line = Line::open(&first).await?;
        line.say(ToHub::Join(Box::new(join))).await?;
        let ToAgent::Joined(joined) = line.hear().await? else { bail!("not enrolled") };
        first.close(0u32.into(), b"");
        let connection = endpoint.connect_with(config, addr, version::SERVER_NAME)?.await?;
        let mut line = Line::open(&connection).await?;
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
            profile: Profile::Lan,
            policy: [0; 8],
        };
        line.say(ToHub::Hello(Box::new(hello))).await?;
        let mut claim = 1;
        line.say(ToHub::Claim { ids: vec![ClaimId(claim)] }).await?;
        loop {
            match line.hear().await? {
                ToAgent::Welcome(_) => grants.send(micros())?,
                ToAgent::Grant(grant) => {
                    grants.send(micros())?;
                    let report = Box::new(Report::without_process(Outcome::Ok));
                    let outcome = Upload::Outcome { task: grant.task, fence: grant.fence, report };
                    line.say(ToHub::Upload(outcome)).await?;
                    claim += 1;
                    line.say(ToHub::Claim { ids: vec![ClaimId(claim)] }).await?;
                }
                ToAgent::Ack { .. } => grants.send(micros())?,
                _ => {}
            }
        }
    })
}

/// One LMDB commit that waits for the disk, of as many bytes as a task has.
struct Commits {
    env: heed::Env,
    table: heed::Database<'static, Bytes, Bytes>,
}

impl Commits {
    fn open(dir: &Path) -> Result<Self> {
        let dir = dir.join("floor");
        std::fs::create_dir_all(&dir)?;
        // SAFETY: nothing else opens this directory.
        let env = unsafe { heed::EnvOpenOptions::new().map_size(1 << 30).max_dbs(1).open(dir)? };
        let txn = env.write_txn()?;
        let table = env
            .create_databases_and_commit(txn, |opener, txn| {
                let table = opener.create_database::<Bytes, Bytes>(txn, Some("t"))?;
                Ok::<_, heed::Error>(heed::CommitOrAbort::<_, ()>::Commit(table))
            })?
            .unwrap_commit();
        Ok(Self { env, table })
    }

    fn once(&self, round: usize) -> Result<u64> {
        let began = micros();
        let mut txn = self.env.write_txn()?;
        self.table.put(&mut txn, &(round as u64).to_be_bytes(), &[7; 300])?;
        txn.commit()?;
        Ok(micros() - began)
    }
}

/// A bare quinn connection whose other end sends back what it gets.
struct Echo {
    ask: Sender<()>,
    took: Receiver<u64>,
}

impl Echo {
    fn start() -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let identity = dunlin_hub::link::Identity::load_or_make(&dir.path().join("key"))?;
        let key = dunlin_agent::files::Files::at(dir.path()).key()?;
        let (addr, bound) = channel();
        let hub = identity.public();
        std::thread::spawn(move || -> Result<()> {
            tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
                let setup = link::Setup {
                    identity: &identity,
                    sessions: Arc::new(NoServerSessionStorage {}),
                    lost: Vec::new(),
                    peers: Arc::default(),
                };
                let endpoint = link::bind("127.0.0.1:0".parse()?, setup)?;
                addr.send(endpoint.local_addr()?)?;
                let connection = endpoint.accept().await.context("no connection")?.await?;
                let (mut send, mut recv) = connection.accept_bi().await?;
                while let Some(chunk) = recv.read_chunk(1024, true).await? {
                    send.write_all(&chunk.bytes).await?;
                }
                Ok(())
            })
        });
        let addr = bound.recv_timeout(Duration::from_secs(10))?;
        let (ask, asked) = channel();
        let (tell, took) = channel();
        std::thread::spawn(move || -> Result<()> {
            tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
                let endpoint = quinn::Endpoint::client("127.0.0.1:0".parse()?)?;
                let config = quinn::ClientConfig::new(Arc::new(dunlin_agent::link::client_tls(
                    &key,
                    hub,
                    Default::default(),
                )?));
                let connection = endpoint.connect_with(config, addr, version::SERVER_NAME)?.await?;
                let (mut send, mut recv) = connection.open_bi().await?;
                let mut buffer = [0; 100];
                while asked.recv().is_ok() {
                    let began = micros();
                    send.write_all(&[1; 100]).await?;
                    recv.read_exact(&mut buffer).await?;
                    tell.send(micros() - began)?;
                }
                Ok(())
            })
        });
        Ok(Self { ask, took })
    }

    fn once(&self) -> Result<u64> {
        self.ask.send(())?;
        wait(&self.took, "an echo")
    }
}
