//! The guard: one small process per job, apart from everything else of the agent.
//!
//! It holds the job's deadlines on CLOCK_BOOTTIME, so a stopped or hung agent changes nothing; it kills the job when its
//! control socket ends, so a killed agent leaves nothing behind. As a subreaper it gets every orphan of the job and so
//! can prove that nothing is left (ECHILD). It holds the lock on `run/<fence>` for its life.

mod child;
mod process;

pub(super) use process::Process;

use super::cgroup::Cgroup;
use super::ladder::Ladder;
use super::sandbox::Plan;
use super::sys;
use crate::clock::{self, BootMs};
use crate::exec::message::EndCause;
use dunlin_wire::job::{Interruption, SpawnStep};
use serde::{Deserialize, Serialize};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

/// The control socket's descriptor in the guard.
pub(super) const CONTROL: RawFd = 3;
/// The program.
pub(super) const PROGRAM: RawFd = 4;
/// The working directory.
pub(super) const CWD: RawFd = 5;
/// The job's stdout.
pub(super) const STDOUT: RawFd = 6;
/// The job's stderr.
pub(super) const STDERR: RawFd = 7;
/// The lock on `run/<fence>`.
pub(super) const LOCK: RawFd = 8;
/// What the program interprets, where its rule says so.
pub(super) const SCRIPT: RawFd = 9;

/// Largest message to or from a guard, in bytes.
pub(super) const WORD_MAX: usize = 256;
/// How long SIGKILL may take until the job counts as stuck, in milliseconds.
const KILL_MS: u64 = 2_000;
/// How often the rest of a tree that forks is killed again, in milliseconds.
const AGAIN_MS: u64 = 10;

/// To the guard.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum ToGuard {
    /// First: the cgroups are there, and the job may start. The lease goes on until then.
    Start(BootMs),
    /// First: the job will not be started. Who says so takes away what was made for it.
    Forget,
    /// The lease goes on until then.
    Extend(BootMs),
    /// End the job.
    End(Cause),
}

/// What to run. The guard has it from the process it was forked from.
#[derive(Debug)]
pub(super) struct Spec {
    pub argv: Vec<String>,
    pub env: Vec<String>,
    /// The program names its interpreter itself, by `#!`.
    pub script: bool,
    /// The program is given a script in [`SCRIPT`].
    pub interprets: bool,
    pub timeout_ms: u64,
    pub grace_ms: u64,
    pub file_size: Option<u64>,
    pub nofile: Option<u64>,
    pub cgroup: Option<Cgroup>,
    pub plan: Plan,
}

/// Why a job is ended by us.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Cause {
    Timeout,
    Overflow,
    Asked(EndCause),
}

impl Cause {
    fn has_grace(self) -> bool {
        self != Cause::Asked(EndCause::Interrupted(Interruption::LeaseLost))
    }
}

/// From the guard.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum FromGuard {
    Started,
    SpawnFailed { step: SpawnStep, errno: i32 },
    Ended(Box<End>),
}

/// How it ended.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct End {
    pub cause: Option<Cause>,
    pub killed: bool,
    pub stuck: bool,
    pub status: Option<i32>,
    pub leftovers: u32,
    pub duration_ms: u64,
    pub user_ms: u64,
    pub system_ms: u64,
    pub max_rss_kib: u64,
    pub oom_kills: u64,
    pub forks_refused: u64,
    pub peak_kib: Option<u64>,
}

struct Guard {
    lead: i32,
    me: i32,
    spec: Spec,
    ladder: Ladder,
    signals: RawFd,
    timer: RawFd,
    // Held to the end: taking a job's mounts apart takes the kernel a while, for which nobody is to wait.
    _around: child::Surroundings,
    began: BootMs,
    lease_until: BootMs,
    cause: Option<Cause>,
    kill_at: Option<BootMs>,
    killing_since: Option<BootMs>,
    end: End,
    lead_gone: bool,
    // Whether what the lead left behind was counted.
    counted: bool,
    agent_gone: bool,
    reported: bool,
}

impl Guard {
    fn begin(spec: Spec) -> std::io::Result<Option<Self>> {
        // SAFETY: none of these calls takes memory from us beyond live locals; this process has one thread.
        let (signals, timer, me) = unsafe {
            sys::become_subreaper()?;
            // A job of the same user must not look into us: what we hold, it may not.
            libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0);
            libc::setsid();
            let mut set: libc::sigset_t = std::mem::zeroed();
            libc::sigfillset(&mut set);
            sys::check(libc::sigprocmask(libc::SIG_BLOCK, &set, std::ptr::null_mut()))?;
            libc::sigemptyset(&mut set);
            libc::sigaddset(&mut set, libc::SIGCHLD);
            let signals = sys::check(libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK))?;
            let kind = libc::TFD_CLOEXEC | libc::TFD_NONBLOCK;
            let timer = sys::check(libc::timerfd_create(libc::CLOCK_BOOTTIME, kind))?;
            (signals, timer, libc::getpid())
        };
        let around = child::surround(&spec.plan);
        let first = sys::receive(CONTROL, WORD_MAX, 0).unwrap_or_default();
        let lease_until = match postcard::from_bytes(&first) {
            Ok(ToGuard::Start(lease_until)) => lease_until,
            Ok(_) => return Ok(None),
            // The end of the socket: the executor is gone, and cannot take them away.
            Err(_) => {
                spec.cgroup.iter().for_each(Cgroup::remove);
                return Ok(None);
            }
        };
        let spawned = around.and_then(|around| child::spawn(&spec, &around).map(|lead| (lead, around)));
        let (lead, around) = match spawned {
            Ok(spawned) => spawned,
            Err((step, errno)) => {
                say(&FromGuard::SpawnFailed { step, errno });
                if let Some(cgroup) = &spec.cgroup {
                    cgroup.remove();
                }
                return Ok(None);
            }
        };
        let script = spec.interprets.then_some(SCRIPT);
        for fd in [PROGRAM, CWD, STDOUT, STDERR].into_iter().chain(script) {
            // SAFETY: these are ours, and nothing else in this process uses them.
            unsafe { libc::close(fd) };
        }
        say(&FromGuard::Started);
        let began = clock::boot_ms();
        let user = spec.plan.identity.clone().filter(|_| spec.plan.own_user);
        Ok(Some(Self {
            lead,
            me,
            ladder: Ladder { cgroup: spec.cgroup.clone(), user },
            spec,
            signals,
            timer,
            _around: around,
            began,
            lease_until,
            cause: None,
            kill_at: None,
            killing_since: None,
            end: End::default(),
            lead_gone: false,
            counted: false,
            agent_gone: false,
            reported: false,
        }))
    }

    fn run(&mut self) -> u8 {
        loop {
            let now = clock::boot_ms();
            let empty = self.reap();
            if empty {
                self.report(false, now);
                if let Some(cgroup) = &self.spec.cgroup {
                    cgroup.remove();
                }
                return 0;
            }
            self.act(now);
            self.arm(self.next_deadline());
            let mut fds = [sys::input(self.signals), sys::input(self.timer), sys::input(CONTROL)];
            let watched = if self.agent_gone { &mut fds[..2] } else { &mut fds[..] };
            if sys::poll(watched, -1).is_err() {
                return 70;
            }
            let mut scratch = [0; 256];
            let _ = sys::read(self.signals, &mut scratch);
            let _ = sys::read(self.timer, &mut scratch);
            if !self.agent_gone {
                self.listen();
            }
        }
    }

    /// Collects what has ended; `true` when nothing at all is left.
    fn reap(&mut self) -> bool {
        loop {
            let mut status = 0;
            // SAFETY: `status` is valid for writes, no rusage is asked for.
            let pid = unsafe { libc::wait4(-1, &mut status, libc::WNOHANG, std::ptr::null_mut()) };
            match pid {
                0 => {
                    if self.lead_gone && !self.counted {
                        self.counted = true;
                        self.end.leftovers = sys::descendants(self.me).len() as u32;
                    }
                    return false;
                }
                // Nothing is left, which is the usual end: no need to look through /proc.
                -1 => return true,
                pid if pid == self.lead => {
                    self.lead_gone = true;
                    self.end.status = Some(status);
                }
                _ => {}
            }
        }
    }

    /// Deadlines, and the next rung of the ladder.
    fn act(&mut self, now: BootMs) {
        if self.cause.is_none() && !self.lead_gone {
            if now >= self.lease_until {
                self.ask(Cause::Asked(EndCause::Interrupted(Interruption::LeaseLost)), now);
            } else if now >= self.began + self.spec.timeout_ms {
                self.ask(Cause::Timeout, now);
            }
        }
        // The lease holds for whatever is left, too, and also during somebody's grace.
        let over = self.lead_gone || self.agent_gone || now >= self.lease_until;
        if over || self.kill_at.is_some_and(|at| at <= now) {
            self.end.killed |= !self.lead_gone;
            let since = *self.killing_since.get_or_insert(now);
            self.ladder.kill(now - since, || sys::descendants(self.me));
            if now >= since + KILL_MS && !self.reported {
                self.report(true, now);
            }
        }
    }

    fn ask(&mut self, cause: Cause, now: BootMs) {
        if self.cause.is_some() && cause.has_grace() {
            return;
        }
        self.cause.get_or_insert(cause);
        if cause.has_grace() {
            self.kill_at = Some(now + self.spec.grace_ms);
            for pid in sys::descendants(self.me) {
                sys::kill(pid, libc::SIGTERM);
                // One that was stopped must run to see it.
                sys::kill(pid, libc::SIGCONT);
            }
        } else {
            self.kill_at = Some(now);
        }
    }

    fn next_deadline(&self) -> BootMs {
        if let Some(since) = self.killing_since {
            // A job that cannot be killed is tried for ever, but not so often.
            let pause = if self.reported { 1_000 } else { AGAIN_MS };
            return clock::boot_ms().max(since) + pause;
        }
        let end = if self.cause.is_none() { self.began + self.spec.timeout_ms } else { BootMs::MAX };
        end.min(self.lease_until).min(self.kill_at.unwrap_or(BootMs::MAX))
    }

    fn arm(&self, at: BootMs) {
        let value = libc::timespec { tv_sec: (at / 1000) as _, tv_nsec: (at % 1000 * 1_000_000) as _ };
        let interval = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        let spec = libc::itimerspec { it_interval: interval, it_value: value };
        // SAFETY: `spec` lives through the call; the old value is not asked for.
        unsafe { libc::timerfd_settime(self.timer, libc::TFD_TIMER_ABSTIME, &spec, std::ptr::null_mut()) };
    }

    fn listen(&mut self) {
        loop {
            match sys::receive(CONTROL, WORD_MAX, libc::MSG_DONTWAIT) {
                Ok(bytes) if bytes.is_empty() => {
                    self.agent_gone = true;
                    return;
                }
                Ok(bytes) => match postcard::from_bytes(&bytes) {
                    Ok(ToGuard::Extend(until)) => self.lease_until = self.lease_until.max(until),
                    Ok(ToGuard::End(cause)) => self.ask(cause, clock::boot_ms()),
                    Ok(ToGuard::Start(_) | ToGuard::Forget) | Err(_) => {}
                },
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => return,
                Err(_) => {
                    self.agent_gone = true;
                    return;
                }
            }
        }
    }

    fn report(&mut self, stuck: bool, now: BootMs) {
        if self.reported {
            return;
        }
        self.reported = true;
        let mut end = std::mem::take(&mut self.end);
        end.cause = self.cause;
        end.stuck = stuck;
        end.duration_ms = now - self.began;
        // SAFETY: all-zero is a valid `rusage`, and the kernel fills it.
        let usage = unsafe {
            let mut usage: libc::rusage = std::mem::zeroed();
            libc::getrusage(libc::RUSAGE_CHILDREN, &mut usage);
            usage
        };
        let ms = |time: libc::timeval| time.tv_sec as u64 * 1000 + time.tv_usec as u64 / 1000;
        end.user_ms = ms(usage.ru_utime);
        end.system_ms = ms(usage.ru_stime);
        end.max_rss_kib = usage.ru_maxrss as u64;
        if let Some(cgroup) = &self.spec.cgroup {
            end.peak_kib = cgroup.peak_kib();
            // Of what went well nobody asks what it ran into.
            if end.status != Some(0) {
                (end.oom_kills, end.forks_refused) = (cgroup.oom_kills(), cgroup.forks_refused());
            }
        }
        say(&FromGuard::Ended(Box::new(end)));
    }
}

/// Says something to the guard at the other end of `control`.
pub(super) fn tell(control: &OwnedFd, message: &ToGuard) {
    let bytes = postcard::to_stdvec(message).unwrap_or_default();
    if let Err(error) = sys::send(control.as_raw_fd(), &bytes) {
        // A guard that is gone is noticed by the end of its socket.
        tracing::debug!(%error, "a guard did not take a message");
    }
}

fn say(message: &FromGuard) {
    let bytes = postcard::to_stdvec(message).unwrap_or_default();
    // An agent that is gone is noticed by its end of file.
    let _ = sys::send(CONTROL, &bytes);
}
