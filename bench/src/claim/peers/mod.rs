//! The systems that stand beside Dunlin, each from its Debian package, started and stopped here with a configuration of
//! its own, and spoken to by small blocking clients: one connection for a submitter, one for a worker.

mod beanstalkd;
mod mosquitto;
mod nats;
mod postgres;
mod rabbitmq;
mod redis;
mod ssh;

use super::dunlin::Dunlin;
use super::site::{Duplex, Side, Site};
use super::{Options, Said};
use anyhow::{Result, anyhow};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use std::io::{BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::Sender;

/// As much as a job is: its argv and ids.
pub(super) const JOB: [u8; 100] = [b'j'; 100];

/// Who submits.
pub(super) trait Submitter: Send {
    /// Submits a job; returns when the system says that it has it.
    fn submit(&mut self) -> Result<()>;
    /// Waits for the result of the oldest job whose result was not waited for.
    fn result(&mut self) -> Result<()>;
}

/// A system under measure; it ends when it is dropped.
pub(super) trait System: Send {
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

type Make = fn(&Options, Site) -> Result<Box<dyn System>>;

/// What is known of a system without starting it.
pub(super) struct Known {
    /// Its name on the command line.
    pub(super) name: &'static str,
    /// What starts it.
    pub(super) make: Make,
    /// A program of it; `None` for Dunlin itself.
    pub(super) program: Option<&'static str>,
    /// The Debian package that has it.
    pub(super) package: &'static str,
    /// Whether it has a throughput: ssh has no queue.
    pub(super) queues: bool,
}

/// Another build of Dunlin's hub, measured in the same run to see what a change does.
pub(super) const BEFORE: &str = "dunlin-before";

/// Every system, Dunlin first.
pub(super) static KNOWN: [Known; 10] = [
    Known {
        name: "dunlin",
        make: |o, s| Ok(Box::new(Dunlin::start(o.bin.as_deref(), s, false)?)),
        program: None,
        package: "",
        queues: true,
    },
    Known {
        name: "dunlin-agent",
        make: |o, s| Ok(Box::new(Dunlin::start(o.bin.as_deref(), s, true)?)),
        program: None,
        package: "",
        queues: true,
    },
    Known {
        name: BEFORE,
        make: |o, s| Ok(Box::new(Dunlin::start(o.before.as_deref(), s, false)?)),
        program: None,
        package: "",
        queues: true,
    },
    Known {
        name: "redis",
        make: |_, s| Ok(Box::new(redis::Redis::start(s)?)),
        program: Some("redis-server"),
        package: "redis-server",
        queues: true,
    },
    Known {
        name: "rabbitmq",
        make: |_, s| Ok(Box::new(rabbitmq::Rabbit::start(s)?)),
        program: Some("rabbitmq-server"),
        package: "rabbitmq-server",
        queues: true,
    },
    Known {
        name: "nats",
        make: |_, s| Ok(Box::new(nats::Nats::start(s)?)),
        program: Some("nats-server"),
        package: "nats-server",
        queues: true,
    },
    Known {
        name: "postgres",
        make: |_, s| Ok(Box::new(postgres::Postgres::start(s)?)),
        program: Some("postgres"),
        package: "postgresql",
        queues: true,
    },
    Known {
        name: "beanstalkd",
        make: |_, s| Ok(Box::new(beanstalkd::Beanstalk::start(s)?)),
        program: Some("beanstalkd"),
        package: "beanstalkd",
        queues: true,
    },
    Known {
        name: "mosquitto",
        make: |_, s| Ok(Box::new(mosquitto::Mosquitto::start(s)?)),
        program: Some("mosquitto"),
        package: "mosquitto",
        queues: false,
    },
    Known {
        name: "ssh",
        make: |_, s| Ok(Box::new(ssh::Ssh::start(s)?)),
        program: Some("ssh"),
        package: "openssh-server",
        queues: false,
    },
];

/// The path of a program, where a user, root or Debian's PostgreSQL has it.
pub(super) fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs = std::env::split_paths(&path).collect::<Vec<_>>();
    let system = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let versions = versions.map(|version| version.path().join("bin"));
    dirs.into_iter().chain(system).chain(versions).map(|dir| dir.join(program)).find(|path| path.is_file())
}

/// A key pair for servers, and what trusts it.
pub(super) struct Pair {
    pub(super) cert: PathBuf,
    pub(super) key: PathBuf,
    client: Arc<ClientConfig>,
}

impl Pair {
    pub(super) fn make(site: &Site) -> Result<Self> {
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

    /// TLS 1.3 over a connection.
    pub(super) fn wrap(&self, stream: TcpStream) -> Result<Wire> {
        let name = ServerName::try_from("hub")?;
        let tls = ClientConnection::new(self.client.clone(), name)?;
        Ok(wire(StreamOwned::new(tls, stream)))
    }
}

/// A connection that is read line by line or by length.
pub(super) type Wire = BufReader<Box<dyn Duplex>>;

pub(super) fn wire(stream: impl Duplex + 'static) -> Wire {
    BufReader::new(Box::new(stream))
}

/// The ports of a server, and how its two kinds of clients reach it.
pub(super) struct Server {
    pub(super) site: Site,
    pub(super) pair: Pair,
    /// On the hub's side, plain.
    pub(super) plain: u16,
    /// Across the link, with TLS.
    pub(super) tls: u16,
}

impl Server {
    pub(super) fn at(site: Site) -> Result<Self> {
        let (plain, tls) = (site.port(Side::Hub)?, site.port(Side::Hub)?);
        Ok(Self { pair: Pair::make(&site)?, site, plain, tls })
    }

    /// A submitter's connection: plain, beside the server.
    pub(super) fn near(&self) -> Result<Wire> {
        Ok(wire(self.site.connect(Side::Hub, SocketAddr::from(([127, 0, 0, 1], self.plain)))?))
    }

    /// A worker's connection: TLS 1.3 across the link.
    pub(super) fn far(&self) -> Result<Wire> {
        let addr = (self.site.addr(Side::Hub), self.tls).into();
        self.pair.wrap(self.site.connect(Side::Board, addr)?)
    }
}

/// Runs a worker until its connection or its listener is gone.
pub(super) fn spawn(name: &'static str, work: impl FnOnce() -> Result<()> + Send + 'static) {
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
pub(super) fn exactly(wire: &mut Wire, len: usize) -> Result<Vec<u8>> {
    anyhow::ensure!(len <= 1 << 20, "a message of {len} bytes");
    let mut bytes = vec![0; len];
    wire.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// Writes at once.
pub(super) fn put(wire: &mut Wire, bytes: &[u8]) -> Result<()> {
    wire.get_mut().write_all(bytes)?;
    Ok(wire.get_mut().flush()?)
}

/// Reads a line, without its end.
pub(super) fn line(wire: &mut Wire) -> Result<String> {
    let mut line = String::new();
    if std::io::BufRead::read_line(wire, &mut line)? == 0 {
        return Err(anyhow!("the server hung up"));
    }
    line.truncate(line.trim_end().len());
    Ok(line)
}
