//! The processes that a bench starts, how it waits for them, and what the kernel says of them.

use anyhow::{Context, Result, ensure};
use dunlin_hub::clock::micros;
use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tempfile::TempDir;

/// Only a failure waits so long.
pub(crate) const BOUND: Duration = Duration::from_secs(180);

/// A process that ends with its owner, and with this one however it ends.
pub(crate) struct Proc(Child);

impl Proc {
    /// Starts it with its output appended to `log`, and without our own settings of Dunlin. It ends with the calling
    /// thread, which must therefore be one that lives as long as the bench.
    pub(crate) fn spawn(command: &mut Command, log: &Path) -> Result<Self> {
        let log = File::options().create(true).append(true).open(log)?;
        for (name, _) in std::env::vars_os() {
            if name.to_str().is_some_and(|name| name.starts_with("DUNLIN_")) {
                command.env_remove(name);
            }
        }
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        // SAFETY: between fork and exec only one system call is made. Nothing is left behind by a bench that is killed.
        unsafe {
            command.pre_exec(|| match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            });
        }
        let program = command.get_program().to_owned();
        Ok(Self(command.spawn().with_context(|| program.display().to_string())?))
    }

    /// Its pid.
    pub(crate) fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Whether it has ended by itself.
    pub(crate) fn has_ended(&mut self) -> bool {
        !matches!(self.0.try_wait(), Ok(None))
    }

    /// Waits until it ends by itself, with success.
    pub(crate) fn succeed(mut self, what: &str) -> Result<()> {
        let status = until(what, Duration::from_millis(5), || Ok(self.0.try_wait()?))?;
        ensure!(status.success(), "{what}: {status}");
        Ok(())
    }

    /// SIGKILL, and waits until it is gone.
    pub(crate) fn kill(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }

    /// Sends it a signal that ends it, and waits until it has ended.
    pub(crate) fn end(&mut self, signal: libc::c_int) -> Result<()> {
        // SAFETY: sends a signal to a child that was not waited for.
        unsafe { libc::kill(self.0.id() as libc::pid_t, signal) };
        until("a process ends", Duration::from_millis(5), || Ok(self.0.try_wait()?)).map(drop)
    }
}

impl Drop for Proc {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Calls `f` until it answers.
pub(crate) fn until<T>(what: &str, every: Duration, mut f: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let began = micros();
    loop {
        if let Some(answer) = f()? {
            return Ok(answer);
        }
        ensure!(u128::from(micros() - began) < BOUND.as_micros(), "waited {BOUND:?} in vain: {what}");
        std::thread::sleep(every);
    }
}

/// A directory for one run, on the disk that the caller chose by where it is started.
pub(crate) fn directory() -> Result<TempDir> {
    Ok(tempfile::Builder::new().prefix("dunlin-bench").tempdir_in(std::env::current_dir()?)?)
}

/// Where `dunlin-hub` and `dunlin-agent` are: what was asked for, or beside this program.
///
/// # Errors
/// Which of `names` is not there, and how to build it.
pub(crate) fn programs(asked: Option<&Path>, names: &[&str]) -> Result<PathBuf> {
    let exe = std::env::current_exe()?;
    let bin = std::path::absolute(asked.unwrap_or(exe.parent().unwrap_or(Path::new("."))))?;
    for name in names {
        ensure!(
            bin.join(name).is_file(),
            "no {name} in {}; build it with `cargo build --release -p dunlin-hub -p dunlin-agent`, or say where it is \
             with --bin DIR",
            bin.display()
        );
    }
    Ok(bin)
}

/// CPU time that a process has used, in microseconds: `utime` and `stime` of proc(5), without its children's; `None`
/// once it is gone.
pub(crate) fn cpu_us(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = stat.rsplit_once(')')?;
    let ticks: u64 = rest.split_whitespace().skip(11).take(2).filter_map(|n| n.parse::<u64>().ok()).sum();
    // SAFETY: asks for a number.
    let per_second = unsafe { libc::sysconf(libc::_SC_CLK_TCK) } as u64;
    Some(ticks * 1_000_000 / per_second.max(1))
}

/// Memory of one process, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Memory {
    /// What of it is in memory.
    pub(crate) rss: u64,
    /// The same, with each page that others have too by its share.
    pub(crate) pss: u64,
    /// What no file stands behind.
    pub(crate) anon: u64,
}

impl Memory {
    /// Of `/proc/PID/smaps_rollup` (proc(5)); `None` once the process is gone.
    pub(crate) fn of(pid: u32) -> Option<Self> {
        Self::parse(&std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?)
    }

    fn parse(text: &str) -> Option<Self> {
        let field = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name))?;
            Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
        };
        Some(Self { rss: field("Rss:")?, pss: field("Pss:")?, anon: field("Anonymous:")? })
    }
}

/// Lets this process, and what it starts, open `wanted` files.
///
/// # Errors
/// What to raise, and how.
pub(crate) fn open_files(wanted: u64) -> Result<()> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: both calls get a valid pointer to the structure that they ask for.
    unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) };
    if limit.rlim_cur >= wanted {
        return Ok(());
    }
    let raised = libc::rlimit { rlim_cur: wanted, rlim_max: limit.rlim_max.max(wanted) };
    // SAFETY: as above.
    ensure!(
        unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raised) } == 0,
        "{wanted} open files are needed, for a socket or two of each agent, and {} are allowed: `ulimit -n {wanted}`; \
         beyond `ulimit -Hn` raise nofile in /etc/security/limits.conf",
        limit.rlim_max
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_in_bytes_or_not_at_all() {
        let text = "5000-6000 ---p 00000000 00:00 0 [rollup]\nRss:  12 kB\nPss: 7 kB\nPss_Anon: 1 kB\nAnonymous: 3 kB\n";
        assert_eq!(Memory::parse(text), Some(Memory { rss: 12_288, pss: 7_168, anon: 3_072 }));
        assert_eq!(Memory::parse("Rss: 12 kB\nPss: 7 kB\n"), None);
        assert_eq!(Memory::parse("Rss: 12\nPss: 7 kB\nAnonymous: 3 kB\n"), None);
    }

    #[test]
    fn a_process_is_waited_for_and_its_failure_is_named() {
        let log = tempfile::NamedTempFile::new().unwrap();
        let spawn = |program: &str| Proc::spawn(&mut Command::new(program), log.path()).unwrap();
        spawn("/bin/true").succeed("true").unwrap();
        let error = spawn("/bin/false").succeed("what was asked").unwrap_err().to_string();
        assert!(error.starts_with("what was asked: "), "{error}");
    }
}
