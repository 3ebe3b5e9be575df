//! A real hub in a process of its own.

use crate::api::Api;
use crate::proc::{Proc, until};
use crate::wan::{Namespace, inside};
use anyhow::{Result, bail};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// A hub that can be killed and started again at the same addresses.
pub(crate) struct Hub {
    proc: Option<Proc>,
    bin: PathBuf,
    dir: PathBuf,
    at: Option<Namespace>,
    quic: SocketAddr,
    http: SocketAddr,
}

impl Hub {
    /// Starts one of `bin` in `dir` and in `at`, listening for agents at `host`. Its store is in `dir/hub`; it takes as
    /// many requests as come. `more` goes at the end of its configuration.
    pub(crate) fn start(
        bin: &Path,
        dir: &Path,
        at: Option<Namespace>,
        host: Ipv4Addr,
        more: &str,
    ) -> Result<Self> {
        let (quic, http) = inside(at.as_ref(), || {
            Ok((UdpSocket::bind((host, 0))?.local_addr()?, TcpListener::bind("127.0.0.1:0")?.local_addr()?))
        })?;
        let text = format!(
            "quic = \"{quic}\"\nhttp = \"{http}\"\nlog = \"warn\"\n[api]\nrate_per_s = 1000000\nburst = 1000000\n\
             {more}"
        );
        std::fs::write(dir.join("hub.toml"), text)?;
        let mut hub = Self { proc: None, bin: bin.to_owned(), dir: dir.to_owned(), at, quic, http };
        hub.spawn()?;
        hub.wait()?;
        Ok(hub)
    }

    /// Starts it, and does not wait.
    pub(crate) fn spawn(&mut self) -> Result<()> {
        let mut command = Command::new(self.bin.join("dunlin-hub"));
        command.arg("serve").arg("--config").arg(self.dir.join("hub.toml"));
        command.arg("--data").arg(self.data());
        if let Some(at) = &self.at {
            at.place(&mut command);
        }
        self.proc = Some(Proc::spawn(&mut command, &self.dir.join("hub.log"))?);
        Ok(())
    }

    /// Waits until it answers.
    pub(crate) fn wait(&mut self) -> Result<()> {
        until("the hub answers", Duration::from_millis(1), || {
            if !self.is_running() {
                bail!("the hub ended; {} says why", self.dir.join("hub.log").display());
            }
            Ok(self.api().call("GET", "/health", None).ok())
        })
        .map(drop)
    }

    /// Ends it as a power cut would.
    pub(crate) fn kill(&mut self) {
        self.proc = None;
    }

    /// Whether it runs; one that ended by itself does not.
    pub(crate) fn is_running(&mut self) -> bool {
        self.proc.as_mut().is_some_and(|proc| !proc.has_ended())
    }

    /// Its pid; 0 while it is down.
    pub(crate) fn pid(&self) -> u32 {
        self.proc.as_ref().map_or(0, Proc::pid)
    }

    /// Its data directory.
    pub(crate) fn data(&self) -> PathBuf {
        self.dir.join("hub")
    }

    /// Where it listens for agents.
    pub(crate) fn quic(&self) -> SocketAddr {
        self.quic
    }

    /// Where its API is, for programs beside it: variables of their environment.
    pub(crate) fn env(&self) -> [(&'static str, String); 2] {
        let token = self.data().join("owner.token").display().to_string();
        [("DUNLIN_HUB", format!("http://{}", self.http)), ("DUNLIN_TOKEN_FILE", token)]
    }

    /// A connection of its own to the API.
    pub(crate) fn api(&self) -> Api {
        Api::new(self.http, self.at.clone(), self.data().join("owner.token"))
    }
}
