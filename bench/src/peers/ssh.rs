//! ssh with a held master connection: it has no queue and keeps no result, but it is what people run jobs with. Its
//! server is the board's.

use super::Said;
use super::{Submitter, System};
use crate::site::{Proc, Side, Site, until};
use anyhow::{Context, Result, ensure};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::Duration;

pub(crate) struct Ssh {
    _server: Proc,
    _master: Proc,
    site: Arc<Site>,
}

impl Ssh {
    pub(crate) fn start(site: Site) -> Result<Self> {
        let port = site.port(Side::Board)?;
        for name in ["host", "user"] {
            let made = Command::new("ssh-keygen")
                .args(["-q", "-t", "ed25519", "-N", "", "-f"])
                .arg(site.file(name))
                .stdin(Stdio::null())
                .status()
                .context("ssh-keygen")?;
            ensure!(made.success(), "ssh-keygen: {made}");
        }
        std::fs::copy(site.file("user.pub"), site.file("allowed"))?;
        // Its own user needs it; Debian's unit makes it.
        std::fs::create_dir_all("/run/sshd").context("/run/sshd: sshd needs it; start this as root")?;
        let options = [
            format!("Port={port}"),
            "ListenAddress=0.0.0.0".into(),
            format!("HostKey={}", site.file("host").display()),
            format!("AuthorizedKeysFile={}", site.file("allowed").display()),
            "StrictModes=no".into(),
            "UsePAM=no".into(),
            "PasswordAuthentication=no".into(),
            "PermitRootLogin=prohibit-password".into(),
            // On a link its end of the connection may never hear that the other is gone.
            "ClientAliveInterval=5".into(),
            format!("PidFile={}", site.file("sshd.pid").display()),
        ];
        let mut sshd = Command::new(super::find("sshd").context("sshd")?);
        sshd.args(["-D", "-e", "-f", "/dev/null"]);
        for option in &options {
            sshd.args(["-o", option]);
        }
        let server = site.start(Side::Board, &mut sshd)?;
        site.wait_port(Side::Board, port)?;
        let host = site.addr(Side::Board).to_string();
        let mut master = Command::new("ssh");
        master.args(["-N", "-M", "-F", "/dev/null", "-p", &port.to_string(), "-i"]).arg(site.file("user"));
        master.arg("-S").arg(site.file("master"));
        master.args(["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"]);
        let master = site.start(Side::Hub, master.arg(host))?;
        let is_there = || Ok(site.file("master").exists().then_some(()));
        until("ssh's master connection", Duration::from_millis(20), is_there)
            .map_err(|error| site.explain(error))?;
        Ok(Self { _server: server, _master: master, site: Arc::new(site) })
    }
}

impl System for Ssh {
    fn durable(&self) -> bool {
        false
    }

    fn settings(&self) -> String {
        "ControlMaster held; `ssh -S socket host true` per job, its process in the time; keeps neither job nor result"
            .into()
    }

    fn submitter(&mut self, _: bool) -> Result<Box<dyn Submitter>> {
        Ok(Box::new(Client(self.site.clone())))
    }

    fn workers(&mut self, _: usize, _: &Sender<Said>) -> Result<()> {
        Ok(())
    }
}

struct Client(Arc<Site>);

impl Submitter for Client {
    fn submit(&mut self) -> Result<()> {
        Ok(())
    }

    fn result(&mut self) -> Result<()> {
        let mut command = Command::new("ssh");
        command.args(["-F", "/dev/null", "-S"]).arg(self.0.file("master")).args(["board", "/bin/true"]);
        let status = command.stdin(Stdio::null()).stderr(Stdio::null()).status()?;
        ensure!(status.success(), "ssh: {status}");
        Ok(())
    }
}
