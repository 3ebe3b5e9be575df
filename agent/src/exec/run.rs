//! One job: its guard, its pipes, what it wrote, and the report in the end.

use super::asked::Prepared;
use super::guard::{self, Cause, FromGuard, ToGuard};
use super::kernel::Kernel;
use super::ladder::Ladder;
use super::message::{EndCause, FromExec};
use super::outbox::Outbox;
use super::output::Output;
use super::ready::Ready;
use super::report::ReportFile;
use super::secret::Redactor;
use super::sys;
use crate::clock::{self, BootMs};
use dunlin_wire::job::{Limit, Outcome, Report, SpawnStep, Stream, TimeoutPhase, Usage};
use dunlin_wire::{Fence, limits};
use std::borrow::Cow;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

/// How long output is drained after the job's end, in milliseconds: a descriptor may have leaked to who knows whom.
const DRAIN_MS: u64 = 500;
/// How long orphans of a dead guard may take to be gone until the job counts as stuck, in milliseconds.
const ORPHANS_MS: u64 = 2_000;

pub(super) struct Job {
    fence: Fence,
    rule: String,
    timeout_ms: u64,
    kill_on_overflow: bool,
    limited_file_size: bool,
    guard: guard::Process,
    control: OwnedFd,
    pipes: [Option<OwnedFd>; 2],
    outputs: [Output; 2],
    output_max: u64,
    redactors: [Redactor; 2],
    buffer: Vec<u8>,
    overflowed: bool,
    ended: Option<Ended>,
    slot: usize,
    layers: u32,
    ladder: Ladder,
    /// What it says of itself.
    own: ReportFile,
    /// Not the first part of its attempt: that it starts is no news.
    is_later: bool,
    hook: Option<String>,
}

/// A job that is over.
pub(super) struct Finished {
    pub(super) fence: Fence,
    pub(super) slot: usize,
    pub(super) guard: guard::Process,
    /// Our end of its socket.
    pub(super) control: OwnedFd,
    /// Without the ends of its streams.
    pub(super) report: Report,
    pub(super) outputs: [Output; 2],
    /// The hook that it called.
    pub(super) hook: Option<String>,
}

struct Ended {
    at: BootMs,
    how: How,
}

enum How {
    Spawn(SpawnStep, i32),
    Guard(Box<guard::End>),
    /// The guard itself died; what of its job is left falls to the executor, and is gone once `proven`.
    Lost {
        proven: bool,
    },
}

impl Job {
    /// Starts it by the guard that waits for that, or by one that is made now. What does not start leaves nothing behind.
    pub(super) fn start(
        mut prepared: Prepared,
        lease_until: BootMs,
        data: &Path,
        spool: &Path,
        kernel: &Kernel,
    ) -> Result<Self, Outcome> {
        let ready = match prepared.ready.take().filter(Ready::is_there) {
            Some(ready) => ready,
            None => Ready::make(&prepared, data, kernel)?,
        };
        guard::tell(&ready.control, &ToGuard::Start(lease_until));
        let redactors =
            [(); 2].map(|()| Redactor::new(prepared.secrets.iter().map(|(_, value)| value.as_str())));
        let Ready { guard, control, pipes, own, ladder, .. } = ready;
        Ok(Self {
            fence: prepared.work.fence,
            rule: prepared.rule,
            timeout_ms: prepared.timeout_ms,
            kill_on_overflow: prepared.kill_on_overflow,
            limited_file_size: prepared.file_size.is_some(),
            guard,
            control,
            pipes: pipes.map(Some),
            outputs: [Output::new(prepared.output, spool), Output::new(prepared.output, spool)],
            output_max: prepared.output * 2,
            redactors,
            buffer: vec![0; limits::CHUNK_MAX],
            overflowed: false,
            ended: None,
            slot: prepared.slot,
            layers: prepared.plan.layers,
            ladder,
            own,
            is_later: false,
            hook: prepared.hook,
        })
    }

    /// It goes on where another part of its attempt ended.
    pub(super) fn go_on(&mut self, outputs: [Output; 2]) {
        self.outputs = outputs;
        self.is_later = true;
    }

    pub(super) fn extend(&self, until: BootMs) {
        guard::tell(&self.control, &ToGuard::Extend(until));
    }

    pub(super) fn end(&self, cause: Cause) {
        guard::tell(&self.control, &ToGuard::End(cause));
    }

    /// Adds what must be polled for this job.
    pub(super) fn watch(&self, fds: &mut Vec<libc::pollfd>) {
        fds.extend(self.pipes.iter().flatten().map(|fd| sys::input(fd.as_raw_fd())));
        if self.ended.is_none() {
            fds.push(sys::input(self.control.as_raw_fd()));
        }
    }

    /// It ended, and is only drained for a while yet: no descriptor tells when that is over.
    pub(super) fn is_waiting(&self) -> bool {
        self.ended.is_some()
    }

    pub(super) fn is_over(&self) -> bool {
        let drained = self.pipes.iter().all(Option::is_none);
        let now = clock::boot_ms();
        self.ended.as_ref().is_some_and(|e| match e.how {
            How::Lost { proven: false } => now >= e.at + ORPHANS_MS,
            _ => drained || now >= e.at + DRAIN_MS,
        })
    }

    /// Bytes of output that may be kept of it, both streams together.
    pub(super) fn output_max(&self) -> u64 {
        self.output_max
    }

    pub(super) fn guard_pid(&self) -> i32 {
        self.guard.pid()
    }

    /// Whether its guard died before the job, and nothing proves yet that the job is gone.
    pub(super) fn has_orphans(&self) -> bool {
        matches!(self.ended, Some(Ended { how: How::Lost { proven: false }, .. }))
    }

    /// Kills what is left of a job whose guard died; `true` when its cgroup has nothing any more.
    pub(super) fn kill_rest(&self) -> bool {
        let Some(ended) = self.ended.as_ref().filter(|_| self.has_orphans()) else { return true };
        self.ladder.kill(clock::boot_ms() - ended.at, Vec::new);
        match &self.ladder.cgroup {
            Some(cgroup) if !cgroup.processes().is_empty() => false,
            Some(cgroup) => {
                cgroup.remove();
                true
            }
            None => true,
        }
    }

    /// The executor has no child left but guards: nothing of this job is there any more.
    pub(super) fn orphans_are_gone(&mut self) {
        if let Some(Ended { how: How::Lost { proven }, .. }) = &mut self.ended {
            *proven = true;
        }
    }

    /// Reads what is there, from both pipes alike, and what the guard says.
    pub(super) fn pump(&mut self, outbox: &Outbox) {
        let mut buffer = std::mem::take(&mut self.buffer);
        for stream in Stream::BOTH {
            let at = stream as usize;
            // A job that never stops writing must not keep the others waiting.
            for _ in 0..16 {
                let Some(pipe) = &self.pipes[at] else { break };
                match sys::read(pipe.as_raw_fd(), &mut buffer) {
                    Ok(Some(n)) => self.take(stream, &buffer[..n], outbox),
                    Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => break,
                    Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                    Ok(None) | Err(_) => self.pipes[at] = None,
                }
            }
        }
        self.buffer = buffer;
        while self.ended.is_none() && self.listen(outbox) {}
        if self.ended.is_none()
            && let Some(told) = self.own.news(clock::boot_ms(), &self.redactors[0])
        {
            outbox.tell(FromExec::Told { fence: self.fence, told: Box::new(told) });
        }
    }

    fn take(&mut self, stream: Stream, bytes: &[u8], outbox: &Outbox) {
        let redactor = &mut self.redactors[stream as usize];
        let passed = if redactor.is_idle() { Cow::Borrowed(bytes) } else { Cow::Owned(redactor.push(bytes)) };
        let bytes = passed.as_ref();
        let output = &mut self.outputs[stream as usize];
        let offset = output.total();
        let fits = output.push(bytes);
        if fits > 0 {
            let bytes = bytes[..fits].to_vec();
            outbox.tell(FromExec::Output { fence: self.fence, stream, offset, bytes });
        }
        if self.kill_on_overflow && !self.overflowed && self.outputs[stream as usize].is_cut() {
            self.overflowed = true;
            self.end(Cause::Overflow);
        }
    }

    /// One message of the guard's; `false` when there is none.
    fn listen(&mut self, outbox: &Outbox) -> bool {
        let at = clock::boot_ms();
        let message = match sys::receive(self.control.as_raw_fd(), guard::WORD_MAX, libc::MSG_DONTWAIT) {
            Ok(bytes) => postcard::from_bytes(&bytes).ok(),
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => return false,
            // Said once, before what waits, when the guard ended without having read our last message (unix(7)).
            Err(e) if e.kind() == std::io::ErrorKind::ConnectionReset => return true,
            Err(_) => None,
        };
        let how = match message {
            Some(FromGuard::Started) => {
                if !self.is_later {
                    outbox.tell(FromExec::Started { fence: self.fence });
                }
                return true;
            }
            Some(FromGuard::SpawnFailed { step, errno }) => How::Spawn(step, errno),
            Some(FromGuard::Ended(end)) => How::Guard(end),
            None => How::Lost { proven: false },
        };
        self.ended = Some(Ended { at, how });
        true
    }

    /// Reports. Everything of the job is gone, or the report says `Stuck`.
    pub(super) fn finish(mut self, policy: [u8; 8]) -> Finished {
        let told = self.own.read(&self.redactors[0]);
        let outcome = self.outcome();
        let end = match &self.ended {
            Some(Ended { how: How::Guard(end), .. }) => (**end).clone(),
            _ => guard::End::default(),
        };
        for (output, redactor) in self.outputs.iter_mut().zip(&mut self.redactors) {
            output.push(&redactor.finish());
        }
        let report = Report {
            outcome,
            wait_status: end.status,
            rule: Some(self.rule),
            policy,
            timeout_ms: Some(self.timeout_ms),
            sandbox: self.layers,
            usage: Usage {
                duration_ms: end.duration_ms,
                user_ms: end.user_ms,
                system_ms: end.system_ms,
                max_rss_kib: end.max_rss_kib,
                leftovers: end.leftovers,
                peak_memory_kib: end.peak_kib,
            },
            streams: Default::default(),
            peaks: Default::default(),
            told,
        };
        let Self { fence, slot, guard, control, outputs, hook, .. } = self;
        Finished { fence, slot, guard, control, report, outputs, hook }
    }

    /// The cause wins over the status: exit 0 on our SIGTERM is no success.
    fn outcome(&self) -> Outcome {
        let end = match self.ended.as_ref().map(|e| &e.how) {
            Some(How::Guard(end)) => end,
            Some(How::Spawn(step, errno)) => return Outcome::SpawnFailed { step: *step, errno: *errno },
            Some(How::Lost { proven: false }) => return Outcome::Stuck,
            Some(How::Lost { proven: true }) | None => return Outcome::AgentInternal,
        };
        if end.stuck {
            return Outcome::Stuck;
        }
        let phase = if end.killed { TimeoutPhase::Kill } else { TimeoutPhase::Term };
        match end.cause {
            Some(Cause::Timeout) => Outcome::TimedOut { phase },
            Some(Cause::Overflow) => Outcome::OutputOverflow,
            Some(Cause::Asked(EndCause::Cancelled(by))) => Outcome::Cancelled { by },
            Some(Cause::Asked(EndCause::Interrupted(by))) => Outcome::Interrupted { by },
            None => self.by_status(end),
        }
    }

    /// A status that is no success has its reason in the cgroup's counters, if one of them moved.
    fn by_status(&self, end: &guard::End) -> Outcome {
        let is_ok =
            end.status.is_some_and(|status| libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0);
        match end.status {
            _ if end.oom_kills > 0 && !is_ok => Outcome::OomKilled,
            _ if end.forks_refused > 0 && !is_ok => Outcome::LimitHit { which: Limit::Pids },
            Some(status) if libc::WIFEXITED(status) => match libc::WEXITSTATUS(status) {
                0 => Outcome::Ok,
                code => Outcome::Exit { code: code as u8 },
            },
            Some(status) if libc::WIFSIGNALED(status) => match libc::WTERMSIG(status) {
                libc::SIGXFSZ if self.limited_file_size => Outcome::LimitHit { which: Limit::FileSize },
                signo => Outcome::Signal { signo: signo as u8 },
            },
            _ => Outcome::AgentInternal,
        }
    }
}
