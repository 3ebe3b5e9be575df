//! A program that is read from without ever waiting for it.

use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// Bytes that are taken at once at most.
const READ_MAX: usize = 64 * 1024;

/// It runs, or is not reaped yet.
#[derive(Debug)]
pub struct Program {
    child: Child,
    out: Option<ChildStdout>,
    // It ends when this does: with us, whatever becomes of us.
    _input: Option<ChildStdin>,
}

impl Program {
    /// Starts it, with nothing of our environment but where libraries are.
    ///
    /// # Errors
    /// The system's.
    pub fn start(mut command: Command) -> io::Result<Self> {
        command.env_clear().stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        command.envs(std::env::var_os("LD_LIBRARY_PATH").map(|path| ("LD_LIBRARY_PATH", path)));
        let mut child = command.spawn()?;
        let (input, out) = (child.stdin.take(), child.stdout.take());
        if let Some(out) = &out {
            // SAFETY: only sets a flag of a descriptor that we own.
            unsafe { libc::fcntl(out.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) };
        }
        Ok(Self { child, out, _input: input })
    }

    /// What it has written since; and whether it will write nothing more.
    pub fn read(&mut self) -> (Vec<u8>, bool) {
        let mut bytes = Vec::new();
        let Some(out) = &mut self.out else { return (bytes, true) };
        match out.take(READ_MAX as u64).read_to_end(&mut bytes) {
            // Less than there was room for, and no error: its end.
            Ok(n) => (bytes, n < READ_MAX),
            Err(error) => (bytes, error.kind() != io::ErrorKind::WouldBlock),
        }
    }

    /// Kills it. `true` when it is gone; until then this must be called again, for a driver may hold it.
    pub fn end(&mut self) -> bool {
        self.out = None;
        let _ = self.child.kill();
        !matches!(self.child.try_wait(), Ok(None))
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.end();
    }
}
