//! Where one system lives: a directory, and two sides that its submitter and its worker are on, with a link between them
//! or, for `loop`, nothing.

use crate::proc::directory;
use crate::wan::{Link, Namespace, Wan, inside};
use anyhow::{Context, Result};
use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tempfile::TempDir;

pub(crate) use crate::proc::{BOUND, Proc, until};
pub(crate) use crate::wan::Side;

/// The way that something can be read and written.
pub(crate) trait Duplex: Read + Write + Send {}
impl<T: Read + Write + Send> Duplex for T {}

/// The place.
pub(crate) struct Site {
    wan: Option<Wan>,
    dir: TempDir,
}

impl Site {
    /// Makes it; `link` is `None` for loopback.
    pub(crate) fn new(link: Option<Link>) -> Result<Self> {
        let wan = match link {
            Some(link) => Some(Wan::new(link).context("no emulated WAN: it needs root and /dev/net/tun")?),
            None => None,
        };
        Ok(Self { wan, dir: directory()? })
    }

    /// Its directory.
    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// A file in it.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes a file in it; its path.
    pub(crate) fn write(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.file(name);
        std::fs::write(&path, text).with_context(|| path.display().to_string())?;
        Ok(path)
    }

    /// The link; `None` on loopback.
    pub(crate) fn wan(&self) -> Option<&Wan> {
        self.wan.as_ref()
    }

    /// Where the other side reaches `side`.
    pub(crate) fn addr(&self, side: Side) -> Ipv4Addr {
        match (&self.wan, side) {
            (None, _) => Ipv4Addr::LOCALHOST,
            (_, Side::Hub) => Wan::HUB,
            (_, Side::Board) => Wan::BOARD,
        }
    }

    /// The namespace of a side; `None` on loopback.
    pub(crate) fn side(&self, side: Side) -> Option<&Namespace> {
        self.wan.as_ref().map(|wan| wan.side(side))
    }

    /// A port that is free on a side, and was not given before.
    pub(crate) fn port(&self, side: Side) -> Result<u16> {
        static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());
        // Free for both: QUIC wants the one and the others the other.
        let free = || {
            let tcp = TcpListener::bind("127.0.0.1:0").ok()?;
            let port = tcp.local_addr().ok()?.port();
            let _udp = UdpSocket::bind(("127.0.0.1", port)).ok()?;
            GIVEN.lock().unwrap_or_else(PoisonError::into_inner).insert(port).then_some(port)
        };
        self.at(side, || until("a free port", Duration::from_millis(1), || Ok(free())))
    }

    /// Runs `f` on one side; what it opens stays there.
    pub(crate) fn at<T: Send>(&self, side: Side, f: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        inside(self.side(side), f)
    }

    /// Connects from a side, without waiting for small writes to gather.
    pub(crate) fn connect(&self, from: Side, addr: SocketAddr) -> Result<TcpStream> {
        self.at(from, || {
            let stream = TcpStream::connect(addr).with_context(|| addr.to_string())?;
            stream.set_nodelay(true)?;
            Ok(stream)
        })
    }

    /// Starts a program on a side; what it says goes to `NAME.log`.
    pub(crate) fn start(&self, side: Side, command: &mut Command) -> Result<Proc> {
        let program = command.get_program().to_string_lossy().into_owned();
        let name = Path::new(&program).file_name().unwrap_or_default().to_string_lossy().into_owned();
        command.current_dir(self.dir());
        if let Some(namespace) = self.side(side) {
            namespace.place(command);
        }
        Proc::spawn(command, &self.file(&format!("{name}.log")))
    }

    /// Waits until somebody listens at a port of a side.
    pub(crate) fn wait_port(&self, side: Side, port: u16) -> Result<()> {
        let connect = || Ok(TcpStream::connect(("127.0.0.1", port)).ok());
        self.at(side, || until(&format!("port {port}"), Duration::from_millis(20), connect))
            .map_err(|error| self.explain(error))
            .map(drop)
    }

    /// The error with the end of what the programs said.
    pub(crate) fn explain(&self, error: anyhow::Error) -> anyhow::Error {
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
pub(crate) fn version(package: &str) -> String {
    let output = Command::new("dpkg-query").args(["-W", "-f", "${Version}", package]).output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    if text.is_empty() { "not from a package".into() } else { text }
}
