//! The uplink's way to the executor: a process of its own, started by systemd or, for development, by the uplink itself.

use super::message::{FromExec, Said, ToExec};
use super::output::read_kept;
use super::{ExecConfig, socket, sys};
use dunlin_wire::limits;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// How long an executor may take until nothing of an earlier start is left, in seconds.
const READY_S: i64 = 30;
/// The socket's descriptor in an executor that the uplink started.
pub(super) const SOCKET: i32 = 3;

/// Why there is no executor: what, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// Nobody listens there.
    #[error(
        "no executor at {0} ({1}): start it (systemctl start dunlin-exec, or `dunlin-agent exec` as root), \
         or use `dunlin-agent run --with-exec`"
    )]
    Absent(PathBuf, io::Error),
    /// It could not be started.
    #[error("the executor does not start: {0}")]
    Start(io::Error),
    /// It ended, or is not ready in time.
    #[error("the executor is not ready ({0}); its own log says why. It serves one uplink at a time")]
    NotReady(io::Error),
}

/// The way to the executor.
pub struct Executor {
    socket: OwnedFd,
}

impl Executor {
    /// Starts one as a process of its own that ends with this one. `tell` is called, on a thread, in order, with
    /// everything that it says, and with `None` when it is gone.
    ///
    /// # Errors
    /// When it does not start, or does not get ready.
    pub fn spawn(config: &ExecConfig, tell: Box<dyn Fn(Option<FromExec>) + Send>) -> Result<Self, ExecError> {
        let (ours, its) = sys::seqpacket_pair().map_err(ExecError::Start)?;
        let its = sys::dup_high(its.as_fd()).map_err(ExecError::Start)?;
        let from = its.as_raw_fd();
        let mut command = Command::new("/proc/self/exe");
        command
            .arg0(std::env::args_os().next().unwrap_or_else(|| "dunlin-agent".into()))
            .arg("executor")
            .args([&config.data, &config.policy])
            .arg(config.log.as_str())
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        // SAFETY: between fork and exec only dup2 is called, which is safe there.
        unsafe { command.pre_exec(move || sys::check(libc::dup2(from, SOCKET)).map(drop)) };
        command.spawn().map_err(ExecError::Start)?;
        Self::begin(ours, tell)
    }

    /// Connects to the one that listens at `path`. `tell` as above.
    ///
    /// # Errors
    /// When nobody listens there, or it does not get ready.
    pub fn connect(path: &Path, tell: Box<dyn Fn(Option<FromExec>) + Send>) -> Result<Self, ExecError> {
        let socket = socket::connect(path).map_err(|error| ExecError::Absent(path.to_owned(), error))?;
        Self::begin(socket, tell)
    }

    /// Waits for its first message, which it only sends when nothing of an earlier start is left.
    fn begin(socket: OwnedFd, tell: Box<dyn Fn(Option<FromExec>) + Send>) -> Result<Self, ExecError> {
        let not_ready = ExecError::NotReady;
        sys::receive_timeout(socket.as_raw_fd(), READY_S).map_err(not_ready)?;
        let first = next(&socket).map_err(not_ready)?;
        let first = first.ok_or_else(|| not_ready(io::ErrorKind::UnexpectedEof.into()))?;
        sys::receive_timeout(socket.as_raw_fd(), 0).map_err(not_ready)?;
        let reader = socket.try_clone().map_err(not_ready)?;
        let thread = std::thread::Builder::new().name("executor".into()).spawn(move || {
            tell(Some(first));
            loop {
                match next(&reader) {
                    Ok(Some(message)) => tell(Some(message)),
                    Ok(None) => return tell(None),
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => {
                        tracing::error!(%error, "the executor cannot be understood");
                        return tell(None);
                    }
                }
            }
        });
        thread.map_err(not_ready)?;
        Ok(Self { socket })
    }

    /// Says something to the executor. One that is gone hears nothing; the reader's thread tells of that.
    pub fn send(&self, message: ToExec) {
        let bytes = postcard::to_stdvec(&message).unwrap_or_default();
        if let Err(error) = socket::send(self.socket.as_raw_fd(), &bytes, &[], 0) {
            tracing::debug!(%error, "the executor did not take a message");
        }
    }
}

impl Drop for Executor {
    fn drop(&mut self) {
        // The reader holds a copy of the socket; this ends both.
        sys::shut_down(self.socket.as_raw_fd());
    }
}

/// The next message, with what is kept of a job's output; `None` at the end.
fn next(socket: &OwnedFd) -> io::Result<Option<FromExec>> {
    let (bytes, files) = socket::receive(socket.as_raw_fd(), 0)?;
    if bytes.is_empty() {
        return Ok(None);
    }
    let invalid = || io::Error::from(io::ErrorKind::InvalidData);
    let said: Said = postcard::from_bytes(&bytes).map_err(|_| invalid())?;
    let mut message = said.message;
    if let FromExec::Ended { kept, .. } = &mut message {
        let mut files = files.into_iter();
        for (bytes, layout) in kept.iter_mut().zip(said.spooled) {
            let Some(layout) = layout else { continue };
            let file = File::from(files.next().ok_or_else(invalid)?);
            if layout.head.checked_add(layout.tail).is_none_or(|n| n > limits::OUTPUT_MAX) {
                return Err(invalid());
            }
            bytes.reserve_exact((layout.head + layout.tail) as usize);
            read_kept(&file, layout, |piece| bytes.extend_from_slice(piece))?;
        }
    }
    Ok(Some(message))
}
