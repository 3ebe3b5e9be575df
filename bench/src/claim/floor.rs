//! The floor: what no durable queue over QUIC can be faster than. One LMDB commit, half a round trip of bare quinn on the
//! same link, one fork, exec and wait of `true`.

use crate::site::{BOUND, Side, Site};
use anyhow::{Context, Result};
use dunlin_hub::clock::micros;
use dunlin_hub::link;
use dunlin_wire::version;
use heed::types::Bytes;
use quinn::{Endpoint, EndpointConfig};
use rustls::server::NoServerSessionStorage;
use std::net::UdpSocket;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

/// One round of it, in microseconds.
pub(super) struct Round {
    /// One LMDB commit of as many bytes as a task has.
    pub(super) commit: u64,
    /// One write and fsync of the same.
    pub(super) fsync: u64,
    /// A bare quinn round trip on the link.
    pub(super) rtt: u64,
    /// fork, exec and wait of `true`.
    pub(super) spawn: u64,
}

impl Round {
    /// Of a claim: a commit, and one way.
    pub(super) fn claim(&self) -> u64 {
        self.commit + self.rtt / 2
    }
}

/// What measures it.
pub(super) struct Floor {
    commits: Commits,
    file: std::fs::File,
    echo: Echo,
    rounds: u64,
    // The link and the disk, as long as they are measured.
    _site: Site,
}

impl Floor {
    pub(super) fn start(site: Site) -> Result<Self> {
        let commits = Commits::open(site.dir())?;
        let file = std::fs::File::create(site.file("fsync"))?;
        Ok(Self { commits, file, echo: Echo::start(&site)?, rounds: 0, _site: site })
    }

    pub(super) fn round(&mut self) -> Result<Round> {
        self.rounds += 1;
        let commit = self.commits.once(self.rounds)?;
        let began = micros();
        std::io::Write::write_all(&mut self.file, &[7; 300])?;
        self.file.sync_data()?;
        let fsync = micros() - began;
        let rtt = self.echo.once()?;
        let began = micros();
        std::process::Command::new("/bin/true").status()?;
        Ok(Round { commit, fsync, rtt, spawn: micros() - began })
    }
}

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

    fn once(&self, round: u64) -> Result<u64> {
        let began = micros();
        let mut txn = self.env.write_txn()?;
        self.table.put(&mut txn, &round.to_be_bytes(), &[7; 300])?;
        txn.commit()?;
        Ok(micros() - began)
    }
}

/// A bare quinn connection across the link whose other end sends back what it gets.
struct Echo {
    ask: Sender<()>,
    took: Receiver<u64>,
}

impl Echo {
    fn start(site: &Site) -> Result<Self> {
        let identity = link::Identity::load_or_make(&site.file("echo.key"))?;
        let key = dunlin_agent::files::Files::at(&site.file("echo")).key()?;
        let hub = identity.public();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let host = site.addr(Side::Hub);
        let endpoint = site.at(Side::Hub, || {
            let _inside = runtime.enter();
            let setup = link::Setup {
                identity: &identity,
                sessions: Arc::new(NoServerSessionStorage {}),
                lost: Vec::new(),
                peers: Arc::default(),
            };
            Ok(link::bind((host, 0).into(), setup)?)
        })?;
        let addr = endpoint.local_addr()?;
        std::thread::spawn(move || -> Result<()> {
            runtime.block_on(async {
                let connection = endpoint.accept().await.context("no connection")?.await?;
                let (mut send, mut recv) = connection.accept_bi().await?;
                while let Some(chunk) = recv.read_chunk(1024, true).await? {
                    send.write_all(&chunk.bytes).await?;
                }
                Ok(())
            })
        });
        let host = site.addr(Side::Board);
        let socket = site.at(Side::Board, || Ok(UdpSocket::bind((host, 0))?))?;
        let (ask, asked) = channel();
        let (tell, took) = channel();
        std::thread::spawn(move || -> Result<()> {
            tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
                let runtime = quinn::default_runtime().context("no runtime")?;
                let endpoint = Endpoint::new(EndpointConfig::default(), None, socket, runtime)?;
                let tls = dunlin_agent::link::client_tls(&key, hub, Default::default())?;
                let config = quinn::ClientConfig::new(Arc::new(tls));
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
        self.took.recv_timeout(BOUND).context("waited in vain: an echo")
    }
}
