//! The executor's process: one thread that polls the uplink's socket, signals, and of each job its two pipes and its guard.
//!
//! It serves one uplink at a time. When that goes, its jobs are ended; the next one hears nothing until they are gone, so
//! what it reports of them is true.

use super::client::SOCKET;
use super::outbox::Outbox;
use super::{ExecConfig, Machine, socket, sweep, sys};
use crate::exec::sandbox::{credentials, users};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::rc::Rc;

/// Listens at `path` for an uplink that runs as `user`, and serves until SIGTERM.
///
/// # Errors
/// One line that says what is in the way, and what to do.
pub fn serve(config: ExecConfig, path: &Path, user: &str) -> Result<(), String> {
    let named = |e: &dyn std::fmt::Display| format!("{}: {e}", path.display());
    let peer = users::find(user, &[]).ok_or_else(|| {
        format!("there is no user `{user}`, as whom the uplink would run; make it, or say --peer USER")
    })?;
    let listener = socket::listen(path, peer.uid).map_err(|e| match e.kind() {
        std::io::ErrorKind::AddrInUse => named(&"another executor listens there; stop that one first"),
        _ => named(&e),
    })?;
    tracing::info!(socket = %path.display(), peer = user, "executor");
    let server = Server::new(config, Some((listener, peer.uid)))?;
    dunlin_systemd::notify("READY=1");
    let done = server.run();
    let _ = std::fs::remove_file(path);
    done
}

/// Serves the uplink that started this process, on descriptor 3, and ends with it.
///
/// # Errors
/// As above.
pub fn serve_parent(config: ExecConfig) -> Result<(), String> {
    // SAFETY: the parent left the socket there; one that is none fails at the first call.
    let socket = unsafe { OwnedFd::from_raw_fd(SOCKET) };
    let mut server = Server::new(config, None)?;
    server.greet(socket)?;
    server.run()
}

struct Server {
    machine: Machine,
    outbox: Rc<Outbox>,
    listener: Option<(OwnedFd, u32)>,
    /// An uplink that was let in and hears nothing yet.
    next: Option<OwnedFd>,
    signals: OwnedFd,
}

impl Server {
    fn new(config: ExecConfig, listener: Option<(OwnedFd, u32)>) -> Result<Self, String> {
        let failed = |e: std::io::Error| e.to_string();
        // What loses its guard falls to us, so that it can be killed and proven gone. A job of our own user must not look
        // into us.
        sys::become_subreaper().map_err(failed)?;
        sys::hide().map_err(failed)?;
        // What every job would have to do again. Each looks whether it was done.
        sys::ignore_no_signal();
        let _ = credentials::drop_bounding();
        let signals = sys::signals(&[libc::SIGTERM, libc::SIGINT, libc::SIGHUP]).map_err(failed)?;
        let left_running = sweep(&config.data).map_err(|e| e.to_string())?;
        tracing::info!(left_running, "nothing of an earlier start runs");
        let outbox = Rc::new(Outbox::default());
        let machine = Machine::new(config, outbox.clone()).map_err(failed)?;
        Ok(Self { machine, outbox, listener, next: None, signals })
    }

    fn greet(&mut self, socket: OwnedFd) -> Result<(), String> {
        sys::set_nonblocking(socket.as_raw_fd()).map_err(|e| e.to_string())?;
        self.outbox.connect(socket);
        self.machine.begin();
        Ok(())
    }

    fn run(mut self) -> Result<(), String> {
        let mut stopping = false;
        loop {
            self.wait().map_err(|e| format!("the executor cannot poll: {e}"))?;
            for signal in self.caught() {
                match signal {
                    libc::SIGHUP => self.machine.reload(),
                    // An uplink that started us tells us itself; a terminal's signals go to both.
                    _ if self.listener.is_some() => stopping = true,
                    _ => {}
                }
            }
            self.let_in();
            self.listen();
            self.outbox.flush();
            if stopping {
                self.machine.stop();
            }
            self.machine.look();
            if !self.machine.is_idle() {
                continue;
            }
            match self.outbox.socket() {
                // What was reported must be on its way first.
                Some((_, is_full)) if stopping && !is_full => return Ok(()),
                None if stopping || self.listener.is_none() => return Ok(()),
                None => {
                    if let Some(socket) = self.next.take() {
                        self.greet(socket)?;
                    }
                }
                Some(_) => {}
            }
        }
    }

    fn wait(&mut self) -> std::io::Result<()> {
        let mut fds = vec![sys::input(self.signals.as_raw_fd())];
        fds.extend(self.listener.iter().map(|(listener, _)| sys::input(listener.as_raw_fd())));
        if let Some((socket, is_full)) = self.outbox.socket() {
            let events = if is_full { libc::POLLIN | libc::POLLOUT } else { libc::POLLIN };
            fds.push(libc::pollfd { fd: socket, events, revents: 0 });
        }
        let again_ms = self.machine.watch(&mut fds);
        sys::poll(&mut fds, again_ms)
    }

    /// Signals that came.
    fn caught(&self) -> Vec<i32> {
        let mut caught = Vec::new();
        let mut info = [0u8; size_of::<libc::signalfd_siginfo>()];
        while let Ok(Some(n)) = sys::read(self.signals.as_raw_fd(), &mut info) {
            if n == info.len() {
                caught.push(i32::from_ne_bytes([info[0], info[1], info[2], info[3]]));
            }
        }
        caught
    }

    /// Takes in whoever may come: the uplink's user, one at a time.
    fn let_in(&mut self) {
        let Some((listener, peer)) = &self.listener else { return };
        loop {
            match socket::accept(listener) {
                Ok(None) => return,
                Ok(Some((_, uid))) if uid != *peer && uid != 0 => {
                    tracing::warn!(uid, "somebody else than the uplink's user wants in: refused");
                }
                Ok(Some(_)) if self.outbox.socket().is_some() || self.next.is_some() => {
                    tracing::warn!("a second uplink wants in: refused");
                }
                Ok(Some((socket, _))) => self.next = Some(socket),
                Err(error) => return tracing::warn!(%error, "nobody can be let in"),
            }
        }
    }

    /// What the uplink says. One that says what is not of this protocol is not listened to any more.
    fn listen(&mut self) {
        while let Some((socket, _)) = self.outbox.socket() {
            let message = match socket::receive(socket, libc::MSG_DONTWAIT) {
                Ok((bytes, _)) if !bytes.is_empty() => postcard::from_bytes(&bytes).ok(),
                Ok(_) => None,
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => return,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(_) => None,
            };
            match message {
                Some(message) => self.machine.handle(message),
                None => {
                    tracing::info!("the uplink is gone, or cannot be understood: its jobs are ended");
                    self.outbox.disconnect();
                    self.machine.stop();
                }
            }
        }
    }
}
