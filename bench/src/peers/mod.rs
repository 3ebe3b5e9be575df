//! The systems that stand beside Dunlin, each from its Debian package, started and stopped here with a configuration of
//! its own, and spoken to by small blocking clients: one connection for a submitter, one for a worker.

pub(crate) mod beanstalkd;
pub(crate) mod mosquitto;
pub(crate) mod nats;
pub(crate) mod postgres;
pub(crate) mod rabbitmq;
pub(crate) mod redis;
pub(crate) mod ssh;

use crate::site::{Duplex, Side, Site};
use anyhow::{Result, anyhow};
use rustls::client::Resumption;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use std::io::{BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::Sender;

/// As much as a job is: its argv and ids.
pub(crate) const JOB: [u8; 100] = [b'j'; 100];

/// What a worker tells.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Said {
    /// It has a job, since this microsecond.
    Claimed(u64),
    /// The job's result is kept.
    Settled,
}

/// Who submits.
pub(crate) trait Submitter: Send {
    /// Submits a job; returns when the system says that it has it.
    fn submit(&mut self) -> Result<()>;
    /// Waits for the result of the oldest job whose result was not waited for.
    fn result(&mut self) -> Result<()>;
}

/// A system under measure; it ends when it is dropped.
pub(crate) trait System: Send {
    /// Whether what it acknowledged is on the disk.
    fn durable(&self) -> bool;
    /// How it is set up.
    fn settings(&self) -> String;
    /// A connection that submits; with `results`, it hears of them too.
    fn submitter(&mut self, results: bool) -> Result<Box<dyn Submitter>>;
    /// Starts workers: each takes a job at a time, tells of it, and says that it is done.
    fn workers(&mut self, count: usize, tell: &Sender<Said>) -> Result<()>;
    /// What the system itself counted, for the notes.
    fn counted(&self) -> Result<Option<String>> {
        Ok(None)
    }
}

/// The path of a program, where a user, root or Debian's PostgreSQL has it.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs = std::env::split_paths(&path).collect::<Vec<_>>();
    let system = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let versions = versions.map(|version| version.path().join("bin"));
    dirs.into_iter().chain(system).chain(versions).map(|dir| dir.join(program)).find(|path| path.is_file())
}

/// A key pair for servers, and what trusts it.
pub(crate) struct Pair {
    pub(crate) cert: PathBuf,
    pub(crate) key: PathBuf,
    client: Arc<ClientConfig>,
}

impl Pair {
    pub(crate) fn make(site: &Site) -> Result<Self> {
        let made = rcgen::generate_simple_self_signed(["hub".to_owned()])?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut roots = RootCertStore::empty();
        roots.add(made.cert.der().clone())?;
        let client = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let cert = site.write("cert.pem", &made.cert.pem())?;
        let key = site.write("key.pem", &made.signing_key.serialize_pem())?;
        Ok(Self { cert, key, client: Arc::new(client) })
    }

    /// TLS 1.3 over a connection; the session is that of a connection before, where there was one.
    pub(crate) fn wrap(&self, stream: TcpStream) -> Result<Wire> {
        tls(self.client.clone(), stream)
    }

    /// The same without a session of before.
    pub(crate) fn wrap_anew(&self, stream: TcpStream) -> Result<Wire> {
        let mut client = (*self.client).clone();
        client.resumption = Resumption::disabled();
        tls(Arc::new(client), stream)
    }
}

fn tls(client: Arc<ClientConfig>, stream: TcpStream) -> Result<Wire> {
    let tls = ClientConnection::new(client, ServerName::try_from("hub")?)?;
    Ok(wire(StreamOwned::new(tls, stream)))
}

/// A connection that is read line by line or by length.
pub(crate) type Wire = BufReader<Box<dyn Duplex>>;

pub(crate) fn wire(stream: impl Duplex + 'static) -> Wire {
    BufReader::new(Box::new(stream))
}

/// The ports of a server, and how its two kinds of clients reach it.
pub(crate) struct Server {
    pub(crate) site: Site,
    pub(crate) pair: Pair,
    /// On the hub's side, plain.
    pub(crate) plain: u16,
    /// Across the link, with TLS.
    pub(crate) tls: u16,
}

impl Server {
    pub(crate) fn at(site: Site) -> Result<Self> {
        let (plain, tls) = (site.port(Side::Hub)?, site.port(Side::Hub)?);
        Ok(Self { pair: Pair::make(&site)?, site, plain, tls })
    }

    /// A submitter's connection: plain, beside the server.
    pub(crate) fn near(&self) -> Result<Wire> {
        Ok(wire(self.site.connect(Side::Hub, SocketAddr::from(([127, 0, 0, 1], self.plain)))?))
    }

    /// A worker's connection: TLS 1.3 across the link.
    pub(crate) fn far(&self) -> Result<Wire> {
        self.pair.wrap(self.dial()?)
    }

    /// What that is made over.
    pub(crate) fn dial(&self) -> Result<TcpStream> {
        self.site.connect(Side::Board, (self.site.addr(Side::Hub), self.tls).into())
    }
}

/// Runs a worker until its connection or its listener is gone.
pub(crate) fn spawn(name: &'static str, work: impl FnOnce() -> Result<()> + Send + 'static) {
    std::thread::spawn(move || {
        if let Err(error) = work()
            && error.downcast_ref::<std::sync::mpsc::SendError<Said>>().is_none()
            && std::env::var_os("DUNLIN_BENCH_LOG").is_some()
        {
            eprintln!("a worker of {name} ended: {error:#}");
        }
    });
}

/// Reads so many bytes.
pub(crate) fn exactly(wire: &mut Wire, len: usize) -> Result<Vec<u8>> {
    anyhow::ensure!(len <= 1 << 20, "a message of {len} bytes");
    let mut bytes = vec![0; len];
    wire.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// Writes at once.
pub(crate) fn put(wire: &mut Wire, bytes: &[u8]) -> Result<()> {
    wire.get_mut().write_all(bytes)?;
    Ok(wire.get_mut().flush()?)
}

/// Reads a line, without its end.
pub(crate) fn line(wire: &mut Wire) -> Result<String> {
    let mut line = String::new();
    if std::io::BufRead::read_line(wire, &mut line)? == 0 {
        return Err(anyhow!("the server hung up"));
    }
    line.truncate(line.trim_end().len());
    Ok(line)
}
