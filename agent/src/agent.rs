//! The loop: events in, the core decides, one commit for everything that waits, then the effects.

use crate::clock::{self, BootMs};
use crate::config::Config;
use crate::core::Core;
use crate::core::uplinks::{self, POSTURE, Uplink};
use crate::event::{Effect, Event, Setup, Write};
use crate::exec::message::{Decision, FromExec, ToExec};
use crate::exec::{self, ExecConfig, ExecError, Executor, Signing};
use crate::files::{Enrolled, Files};
use crate::link::{self, LinkConfig, LinkState, ToLink};
use crate::spending::Spending;
use crate::store::Store;
use crate::telemetry::{Marker, sampler};
use anyhow::{Context, Result, bail};
use dunlin_wire::Tag;
use dunlin_wire::job::{Denial, Outcome, Report};
use dunlin_wire::message::Role;
use ring::rand::{SecureRandom, SystemRandom};
use serde_json::json;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, watch};

/// Events that may wait for the loop; whoever sends more waits.
const EVENTS_MAX: usize = 1024;
/// Events of one transaction at most.
const BATCH_MAX: usize = 256;
/// How often it is looked whether the status file is still true, in milliseconds.
const STATUS_MS: u64 = 5_000;

/// Turns of the link's tasks in a row before sockets and timers are looked at again, if there are so many to take.
const TURNS: u32 = 4096;

/// Runs the agent until it is told to stop.
///
/// # Errors
/// What kept it from starting, or a store that does not commit any more.
pub fn run(config: &Config) -> Result<()> {
    let files = Files::at(&config.data);
    let _lock = files.lock()?;
    let enrolled = files.enrolment()?;
    let key = files.key()?;
    let store = Arc::new(Store::open(&files.path("journal"))?);
    let loaded = store.load()?;
    let unfinished = loaded.attempts.len();
    tracing::info!(data = %config.data.display(), unfinished, "journal open");
    let setup = setup(config, &enrolled)?;
    tracing::info!(node = %setup.node, role = setup.role.as_str(), "enrolled");
    let uplinks = uplinks::choose(&config.uplinks, &enrolled.hubs);
    for uplink in &uplinks {
        let (local, posture) = (uplink.is_local(), POSTURE);
        tracing::info!(hub = %uplink.addr, label = uplink.label(), local, posture, "uplink");
    }
    let (events, mut inbox) = mpsc::channel(EVENTS_MAX);
    let (commands, to_link) = mpsc::channel(EVENTS_MAX);
    // Before anything is reported, the executor has proven gone what an earlier start left running.
    let exec = executor(config, events.clone())?;
    // The policy and what jobs can be shut in with: the first Hello says it.
    let policy = inbox.blocking_recv().context("the executor is gone")?;
    let state = LinkState { connected: false, hub: String::new(), last: None, failures: 0 };
    let (state, link_state) = watch::channel(state);
    let bytes = Arc::new(AtomicU64::new(0));
    let spending = Spending::load(config.monthly, &files, bytes.clone(), clock::boot_ms());
    let link = LinkConfig {
        hubs: uplinks.clone(),
        hub: enrolled.hub,
        key,
        profile: enrolled.profile,
        files: files.clone(),
        bytes,
        store: store.clone(),
    };
    let link = std::thread::Builder::new().name("link".into()).spawn({
        let events = events.clone();
        move || run_link(link, events, to_link, state)
    })?;
    if config.telemetry {
        // It must not keep the loop's inbox open. A reading that finds no room there is dropped: the next tells more.
        let events = events.downgrade();
        let marker = Marker { variable: exec::marker(&config.data), cgroup: exec::prefix(&config.data) };
        sampler::spawn(config.mounts.clone(), marker, move |reading| {
            events.upgrade().is_some_and(|events| match events.try_send(Event::Reading(reading)) {
                Err(TrySendError::Closed(_)) => false,
                Ok(()) | Err(TrySendError::Full(_)) => true,
            })
        })?;
    }
    drop(events);
    let mut out = Vec::new();
    let mut core = Core::new(setup, loaded, &mut out);
    core.handle(policy, clock::boot_ms(), &mut out);
    let agent = Agent {
        core,
        store,
        exec,
        commands,
        files,
        link_state,
        uplinks,
        spending,
        looked_at: 0,
        forgets: Forgets::default(),
        tidies: false,
        status: String::new(),
        welcome: false,
        stopping: false,
    };
    dunlin_systemd::notify("READY=1");
    let done = agent.run(inbox, out);
    // The loop's end of the link is gone with it: the link says its last words and ends.
    let _ = link.join();
    done
}

fn setup(config: &Config, enrolled: &Enrolled) -> Result<Setup> {
    let mut boot_id = [0; 16];
    SystemRandom::new()
        .fill(&mut boot_id)
        .map_err(|_| anyhow::anyhow!("no random numbers from the system"))?;
    let kernel =
        std::fs::read_to_string("/proc/sys/kernel/random/boot_id").context("the kernel's boot id")?;
    let kernel = data_encoding::HEXLOWER.decode(kernel.trim().replace('-', "").as_bytes())?;
    let found = [format!("arch:{}", std::env::consts::ARCH), format!("os:{}", std::env::consts::OS)];
    let mut capabilities: Vec<Tag> = found.iter().map(|t| t.parse()).collect::<Result<_, _>>()?;
    capabilities.extend(config.tags.iter().cloned());
    let viewer = enrolled.role == Role::Viewer || config.role == Some(Role::Viewer);
    Ok(Setup {
        fleet: enrolled.fleet,
        node: enrolled.node.clone(),
        role: if viewer { Role::Viewer } else { Role::Worker },
        slots: config.slots.map_or(enrolled.slots, |own| own.min(enrolled.slots)),
        profile: enrolled.profile,
        capabilities,
        boot_id,
        kernel_boot: kernel.try_into().map_err(|_| anyhow::anyhow!("the kernel's boot id is not a UUID"))?,
        version: env!("CARGO_PKG_VERSION").into(),
    })
}

fn executor(config: &Config, events: mpsc::Sender<Event>) -> Result<Executor> {
    Ok(reach(config, move |message| {
        let event = message.map_or(Event::ExecutorGone, Event::FromExec);
        drop(events.blocking_send(event));
    })?)
}

/// The executor that the configuration names, or one of our own.
///
/// # Errors
/// When there is none.
pub fn reach(
    config: &Config,
    tell: impl Fn(Option<FromExec>) + Send + 'static,
) -> Result<Executor, ExecError> {
    match &config.executor {
        None => {
            let (policy, data, log) = (config.policy.clone(), config.data.clone(), config.log);
            let signing = Signing { trust: config.trust.clone(), tags: config.tags.clone(), board: None };
            Executor::spawn(&ExecConfig { policy, data, log, signing }, Box::new(tell))
        }
        Some(socket) => Executor::connect(socket, Box::new(tell)),
    }
}

fn run_link(
    config: LinkConfig,
    events: mpsc::Sender<Event>,
    commands: mpsc::Receiver<ToLink>,
    state: watch::Sender<LinkState>,
) {
    // So that the link goes on only when quinn's own tasks have nothing left to do. Were it to go on from another socket
    // while a reset of the connection waits between two of them, quinn-proto 0.11 would panic (`ResetToken` behind
    // `Drained`, as in n0-computer/noq#465).
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = match runtime.event_interval(TURNS).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return tracing::error!(%error, "the link has no runtime"),
    };
    runtime.block_on(async move {
        let stop = events.clone();
        tokio::spawn(async move {
            use tokio::signal::unix::{SignalKind, signal};
            let caught = [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::hangup()].map(signal);
            let [Ok(mut term), Ok(mut int), Ok(mut hup)] = caught else {
                return tracing::error!("signals cannot be caught");
            };
            loop {
                tokio::select! {
                    _ = term.recv() => break,
                    _ = int.recv() => break,
                    _ = hup.recv() => drop(stop.send(Event::ReloadPolicy).await),
                }
            }
            let _ = stop.send(Event::Shutdown).await;
        });
        if let Err(error) = link::run(config, events, commands, state).await {
            tracing::error!(%error, "the device key cannot be used");
        }
    });
}

struct Agent {
    core: Core,
    store: Arc<Store>,
    exec: Executor,
    commands: mpsc::Sender<ToLink>,
    files: Files,
    link_state: watch::Receiver<LinkState>,
    uplinks: Vec<Uplink>,
    spending: Spending,
    looked_at: BootMs,
    forgets: Forgets,
    // Whether the next commit is made although nobody waits for it.
    tidies: bool,
    status: String,
    welcome: bool,
    stopping: bool,
}

/// Attempts that the hub has settled, and that are to leave the journal. Nobody waits for that, and a crash before it only
/// has them reported once more; so they go with the next commit, which is one less for each task.
#[derive(Debug, Default)]
struct Forgets(Vec<Write>);

impl Forgets {
    /// What to commit of `writes` now: nothing when they can all wait, unless `all` is asked for.
    fn take(&mut self, writes: Vec<Write>, all: bool) -> Vec<Write> {
        let (later, mut now): (Vec<_>, Vec<_>) =
            writes.into_iter().partition(|write| matches!(write, Write::Forget(_)));
        self.0.extend(later);
        if all || !now.is_empty() {
            now.append(&mut self.0);
        }
        now
    }
}

impl Agent {
    fn run(mut self, mut inbox: mpsc::Receiver<Event>, mut out: Vec<Effect>) -> Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
        let mut waiting = Vec::new();
        loop {
            if self.release(&mut out)? {
                tracing::info!("stopped");
                return Ok(());
            }
            let now = clock::boot_ms();
            let due = self.core.poll_timeout().unwrap_or(BootMs::MAX).min(self.looked_at + STATUS_MS);
            let wait = Duration::from_millis(due.saturating_sub(now).min(60_000));
            // Whether the link's state is another. A link that is gone must end the loop, not make it spin.
            let mut look = runtime
                .block_on(async {
                    tokio::select! {
                        n = inbox.recv_many(&mut waiting, BATCH_MAX) => (n > 0).then_some(false),
                        changed = self.link_state.changed() => changed.is_ok().then_some(true),
                        () = tokio::time::sleep(wait) => Some(false),
                    }
                })
                .context("the link or the executor is gone")?;
            let now = clock::boot_ms();
            if now >= self.looked_at + STATUS_MS {
                self.looked_at = now;
                self.tidies = true;
                dunlin_systemd::notify("WATCHDOG=1");
                look = true;
                waiting.extend(self.spending.look(now).map(Event::Thrift));
            }
            for event in waiting.drain(..) {
                self.stopping |= matches!(event, Event::Shutdown);
                if matches!(event, Event::ExecutorGone) && !self.stopping {
                    bail!("the executor is gone, and its jobs with it; the next start reports them");
                }
                let event = self.check_room(event);
                self.core.handle(event, now, &mut out);
            }
            self.core.handle_timeout(now, &mut out);
            look |= self.welcome != self.core.is_welcome();
            if look {
                self.write_status();
            }
        }
    }

    /// Only what can be finished is accepted: there must be room for its outcome.
    fn check_room(&self, event: Event) -> Event {
        match event {
            Event::FromExec(FromExec::Prepared { fence, decision: Decision::Allow { rule, .. } })
                if !self.store.has_room() =>
            {
                self.exec.send(ToExec::Forget { fence });
                let mut report = Report::without_process(Outcome::Denied { reason: Denial::DiskFull });
                report.rule = Some(rule);
                Event::FromExec(FromExec::Prepared { fence, decision: Decision::Deny(Box::new(report)) })
            }
            other => other,
        }
    }

    /// Commits, then does. `true` when the process should end.
    fn release(&mut self, out: &mut Vec<Effect>) -> Result<bool> {
        let (mut writes, mut said, mut rest) = (Vec::new(), Vec::new(), Vec::new());
        for effect in out.drain(..) {
            match effect {
                Effect::Store(write) => writes.push(write),
                Effect::Send(frame) => said.push(frame),
                other => rest.push(other),
            }
        }
        let all =
            std::mem::take(&mut self.tidies) || rest.iter().any(|effect| matches!(effect, Effect::Exit));
        let writes = self.forgets.take(writes, all);
        if !writes.is_empty() {
            // An agent that cannot commit must not go on as if it had: it ends, its jobs with it, and says so when it
            // can write again.
            self.store.commit(&writes).context("the journal does not commit")?;
        }
        // In one command, so that an outcome and the claim for its slot ride in one packet.
        if let Some(said) = ToLink::say(said) {
            drop(self.commands.blocking_send(said));
        }
        let mut exit = false;
        for effect in rest {
            match effect {
                Effect::Store(_) | Effect::Send(_) => {}
                Effect::Exec(message) => self.exec.send(message),
                Effect::Beat { every_ms, sample } => {
                    drop(self.commands.blocking_send(ToLink::Beat { every_ms, sample }));
                }
                live @ (Effect::Live { .. } | Effect::Tail { .. }) => {
                    drop(self.commands.try_send(ToLink::Live(live)));
                }
                Effect::Credit { fence, stream, credit } => {
                    drop(self.commands.blocking_send(ToLink::Credit { fence, stream, credit }));
                }
                Effect::Upload { fence, have } => {
                    drop(self.commands.blocking_send(ToLink::Upload { fence, have }));
                }
                Effect::Reconnect => drop(self.commands.blocking_send(ToLink::Reconnect)),
                Effect::Exit => exit = true,
            }
        }
        Ok(exit)
    }

    /// For `dunlin-agent status`. A file that cannot be written stops nothing.
    fn write_status(&mut self) {
        let state = self.link_state.borrow_and_update().clone();
        let policy = self.core.policy();
        let connected = self.core.is_welcome();
        self.welcome = connected;
        let uplinks = self.uplinks.iter().map(|uplink| {
            json!({
                "addr": uplink.addr,
                "label": uplink.label,
                "local": uplink.is_local(),
                "posture": POSTURE,
                "current": connected && state.hub == uplink.addr,
            })
        });
        let mut status = json!({
            "pid": std::process::id(),
            "version": env!("CARGO_PKG_VERSION"),
            "connected": connected,
            "hub": state.hub,
            // No hub is looked for on the network: only these are ever called.
            "discovery": false,
            "uplinks": uplinks.collect::<Vec<_>>(),
            "lastError": state.last,
            "failures": state.failures,
            "budget": self.spending.status().map(|(thrift, spent, limit)| {
                json!({ "state": thrift.as_str(), "spentBytes": spent, "monthlyBytes": limit })
            }),
            "policy": policy.map(|p| data_encoding::HEXLOWER.encode(&p.digest)),
            "policyVersion": policy.map(|p| p.overlay),
            "policyError": policy.and_then(|p| p.error.clone()),
        });
        let text = format!("{status:#}\n");
        // Written on a change only: the board's flash wears.
        if text != self.status {
            // Not a reason to write: it grows for some minutes, and what was seen to hold goes on holding.
            status["heartbeatMs"] = json!(self.core.heartbeat_ms());
            let shown = format!("{status:#}\n");
            if let Err(error) = self.files.write_lossy("status.json", shown.as_bytes()) {
                tracing::debug!(%error, "the status file was not written");
            }
            self.status = text;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dunlin_wire::Fence;

    #[test]
    fn what_the_hub_has_leaves_the_journal_with_the_next_commit() {
        let mut forgets = Forgets::default();
        let forget = |n| Write::Forget(Fence(n));
        assert_eq!(forgets.take(vec![forget(1), forget(2)], false), [], "nobody waits for it");
        assert_eq!(forgets.take(Vec::new(), false), []);
        let now = forgets.take(vec![forget(3), Write::Claims(9)], false);
        assert_eq!(
            now,
            [Write::Claims(9), forget(1), forget(2), forget(3)],
            "after what is recorded with them"
        );
        assert_eq!(forgets.take(vec![forget(4)], true), [forget(4)], "now and then, and before the end");
        assert_eq!(forgets.take(vec![Write::Claims(10)], false), [Write::Claims(10)]);
    }
}
