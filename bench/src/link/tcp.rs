//! The peer that figures stand beside: TLS 1.3 over TCP, one line for a line, and lines pushed to who waits for them.

use crate::wan::{Wan, inside};
use anyhow::{Context, Result, anyhow};
use dunlin_hub::clock::micros;
use rustls::client::Resumption;
use rustls::pki_types::{PrivateKeyDer, ServerName};
use rustls::{
    ClientConfig, ClientConnection, HandshakeKind, RootCertStore, ServerConfig, ServerConnection, StreamOwned,
};
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

const PORT: u16 = 8883;
/// As much as a job is: its argv and ids.
const JOB: &[u8] = &[b'j'; 100];

type Served = StreamOwned<ServerConnection, TcpStream>;
type Dialled = StreamOwned<ClientConnection, TcpStream>;

/// The peer at the hub's end, and how to reach it from the board's.
pub(super) struct Peer {
    config: ClientConfig,
    resumes: Arc<ClientConfig>,
    waiting: Receiver<Served>,
}

impl Peer {
    /// Starts it. Its threads end with the process.
    pub(super) fn start(wan: &Wan) -> Result<Self> {
        let made = rcgen::generate_simple_self_signed(["hub".to_owned()])?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).map_err(|e| anyhow!(e))?;
        let server = ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)?;
        let mut roots = RootCertStore::empty();
        roots.add(made.cert.der().clone())?;
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let resumes = Arc::new(config.clone());
        config.resumption = Resumption::disabled();
        let listener = inside(Some(&wan.hub), || Ok(TcpListener::bind((Wan::HUB, PORT))?))?;
        let (tell, waiting) = channel();
        std::thread::spawn(move || accept(&listener, &Arc::new(server), &tell));
        Ok(Self { config, resumes, waiting })
    }

    /// From before the first packet to the answer, in microseconds.
    pub(super) fn connect(&self, wan: &Wan, resumed: bool) -> Result<u64> {
        let config = if resumed { self.resumes.clone() } else { Arc::new(self.config.clone()) };
        inside(Some(&wan.board), move || {
            let began = micros();
            let mut stream = BufReader::new(dial(config)?);
            exchange(&mut stream)?;
            let took = micros() - began;
            let kind = stream.get_ref().conn.handshake_kind();
            let ok = (kind == Some(HandshakeKind::Resumed)) == resumed;
            anyhow::ensure!(ok, "the TCP peer's handshake was {kind:?}");
            Ok(took)
        })
    }

    /// Makes a session that later connections resume.
    pub(super) fn prepare(&self, wan: &Wan) -> Result<()> {
        let config = self.resumes.clone();
        inside(Some(&wan.board), move || exchange(&mut BufReader::new(dial(config)?)))
    }

    /// A connection that asks a line and gets a line.
    pub(super) fn asker(&self, wan: &Wan) -> Result<impl FnMut() -> Result<()> + use<>> {
        let config = self.resumes.clone();
        let mut stream = BufReader::new(inside(Some(&wan.board), move || dial(config))?);
        Ok(move || exchange(&mut stream))
    }

    /// A worker that waits for lines: what pushes one, and when each came.
    pub(super) fn worker(&self, wan: &Wan) -> Result<(impl FnMut() -> Result<()> + use<>, Receiver<u64>)> {
        let config = self.resumes.clone();
        let mut stream = inside(Some(&wan.board), move || dial(config))?;
        stream.write_all(b"wait\n")?;
        let (tell, came) = channel();
        std::thread::spawn(move || {
            let mut stream = BufReader::new(stream);
            let mut line = Vec::new();
            while stream.read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
                if tell.send(micros()).is_err() {
                    return;
                }
                line.clear();
            }
        });
        let mut held = self.waiting.recv_timeout(Duration::from_secs(20)).context("no worker came")?;
        let push = move || {
            held.write_all(&line(JOB))?;
            Ok(held.flush()?)
        };
        Ok((push, came))
    }
}

fn dial(config: Arc<ClientConfig>) -> Result<Dialled> {
    let stream = TcpStream::connect((Wan::HUB, PORT)).context("the TCP peer")?;
    stream.set_nodelay(true)?;
    let name = ServerName::try_from("hub")?;
    Ok(StreamOwned::new(ClientConnection::new(config, name)?, stream))
}

/// One line out, of as many bytes as a claim with a result, and one back.
fn exchange(stream: &mut BufReader<Dialled>) -> Result<()> {
    stream.get_mut().write_all(&line(JOB))?;
    anyhow::ensure!(stream.read_until(b'\n', &mut Vec::new())? > 0, "the TCP peer hung up");
    Ok(())
}

fn line(bytes: &[u8]) -> Vec<u8> {
    [bytes, b"\n"].concat()
}

fn accept(listener: &TcpListener, config: &Arc<ServerConfig>, waiting: &Sender<Served>) {
    for stream in listener.incoming().flatten() {
        let (config, waiting) = (config.clone(), waiting.clone());
        std::thread::spawn(move || {
            // Who hangs up ends its thread.
            let _ = serve(stream, config, &waiting);
        });
    }
}

fn serve(stream: TcpStream, config: Arc<ServerConfig>, waiting: &Sender<Served>) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut stream = BufReader::new(StreamOwned::new(ServerConnection::new(config)?, stream));
    let mut line = Vec::new();
    loop {
        line.clear();
        if stream.read_until(b'\n', &mut line)? == 0 {
            return Ok(());
        }
        if line == b"wait\n" {
            waiting.send(stream.into_inner())?;
            return Ok(());
        }
        stream.get_mut().write_all(&line)?;
    }
}
