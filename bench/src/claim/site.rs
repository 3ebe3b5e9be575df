//! Where one system lives: a directory, and two sides that its submitter and its worker are on, with a link between them
//! or, for `loop`, nothing.

use crate::wan::{Link, Namespace, Wan};
use anyhow::{Context, Result, anyhow, ensure};
use dunlin_hub::clock::micros;
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tempfile::TempDir;

pub(super) use crate::wan::Side;

/// Only a failure waits so long.
pub(super) const BOUND: Duration = Duration::from_secs(60);

/// A process that ends with its owner.
pub(super) struct Proc(pub(super) Child);

impl Drop for Proc {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Calls `f` until it answers.
pub(super) fn until<T>(what: &str, every_ms: u64, mut f: impl FnMut() -> Option<T>) -> Result<T> {
    let began = micros();
    loop {
        if let Some(answer) = f() {
            return Ok(answer);
        }
        ensure!(u128::from(micros() - began) < BOUND.as_micros(), "waited {BOUND:?} in vain: {what}");
        std::thread::sleep(Duration::from_millis(every_ms));
    }
}

/// The way that something can be read and written.
pub(super) trait Duplex: Read + Write + Send {}
impl<T: Read + Write + Send> Duplex for T {}

/// The place.
pub(super) struct Site {
    wan: Option<Wan>,
    dir: TempDir,
}

impl Site {
    /// Makes it; `link` is `None` for loopback.
    pub(super) fn new(link: Option<Link>) -> Result<Self> {
        let wan = match link {
            Some(link) => Some(Wan::new(link).context("no emulated WAN: it needs root and /dev/net/tun")?),
            None => None,
        };
        // On the disk that the caller chose by where it is started.
        let dir = tempfile::Builder::new().prefix("dunlin-bench").tempdir_in(std::env::current_dir()?)?;
        Ok(Self { wan, dir })
    }

    /// Its directory.
    pub(super) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// A file in it.
    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes a file in it; its path.
    pub(super) fn write(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.file(name);
        std::fs::write(&path, text).with_context(|| path.display().to_string())?;
        Ok(path)
    }

    /// Where the other side reaches `side`.
    pub(super) fn addr(&self, side: Side) -> IpAddr {
        match (&self.wan, side) {
            (None, _) => Ipv4Addr::LOCALHOST.into(),
            (_, Side::Hub) => Wan::HUB.into(),
            (_, Side::Board) => Wan::BOARD.into(),
        }
    }

    /// A port that is free on a side, and was not given before.
    pub(super) fn port(&self, side: Side) -> Result<u16> {
        static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());
        // Free for both: QUIC wants the one and the others the other.
        let free = || {
            let tcp = TcpListener::bind("127.0.0.1:0").ok()?;
            let port = tcp.local_addr().ok()?.port();
            let _udp = UdpSocket::bind(("127.0.0.1", port)).ok()?;
            GIVEN.lock().unwrap_or_else(PoisonError::into_inner).insert(port).then_some(port)
        };
        self.at(side, || until("a free port", 1, free))
    }

    /// Runs `f` on one side; what it opens stays there.
    pub(super) fn at<T: Send>(&self, side: Side, f: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let Some(wan) = &self.wan else { return f() };
        let namespace: &Namespace = if side == Side::Hub { &wan.hub } else { &wan.board };
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                namespace.enter()?;
                f()
            });
            thread.join().map_err(|_| anyhow!("a thread panicked"))?
        })
    }

    /// Connects from a side, without waiting for small writes to gather.
    pub(super) fn connect(&self, from: Side, addr: SocketAddr) -> Result<TcpStream> {
        self.at(from, || {
            let stream = TcpStream::connect(addr).with_context(|| addr.to_string())?;
            stream.set_nodelay(true)?;
            Ok(stream)
        })
    }

    /// Starts a program on a side; what it says goes to `NAME.log`.
    pub(super) fn start(&self, side: Side, command: &mut Command) -> Result<Proc> {
        let program = command.get_program().to_string_lossy().into_owned();
        let name = Path::new(&program).file_name().unwrap_or_default().to_string_lossy().into_owned();
        let log = File::options().create(true).append(true).open(self.file(&format!("{name}.log")))?;
        command.current_dir(self.dir()).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        self.at(side, || Ok(Proc(command.spawn().with_context(|| program.clone())?)))
    }

    /// Waits until somebody listens at a port of a side.
    pub(super) fn wait_port(&self, side: Side, port: u16) -> Result<()> {
        self.at(side, || until(&format!("port {port}"), 20, || TcpStream::connect(("127.0.0.1", port)).ok()))
            .map_err(|error| self.explain(error))?;
        Ok(())
    }

    /// The error with the end of what the programs said.
    pub(super) fn explain(&self, error: anyhow::Error) -> anyhow::Error {
        let files = std::fs::read_dir(self.dir()).into_iter().flatten().flatten();
        let logs = files.filter(|f| f.path().extension().is_some_and(|e| e == "log"));
        let said = logs.filter_map(|f| std::fs::read_to_string(f.path()).ok()).map(|text| {
            let lines: Vec<&str> = text.lines().collect();
            lines[lines.len().saturating_sub(8)..].join("\n")
        });
        let said = said.collect::<Vec<_>>().join("\n");
        if said.is_empty() { error } else { error.context(format!("its programs said:\n{said}")) }
    }
}

/// The version of a Debian package. Programs are not asked: rabbitmq's leaves a daemon behind.
pub(super) fn version(package: &str) -> String {
    let output = Command::new("dpkg-query").args(["-W", "-f", "${Version}", package]).output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    if text.is_empty() { "not from a package".into() } else { text }
}
