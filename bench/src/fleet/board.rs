//! A simulated agent: the real core and the real link, a journal in memory, and an executor whose jobs end at once.

use dunlin_agent::clock;
use dunlin_agent::core::Core;
use dunlin_agent::core::uplinks::Uplink;
use dunlin_agent::event::{Effect, Event, Loaded, Record, Setup};
use dunlin_agent::exec::message::{Decision, FromExec, PolicyState, ToExec};
use dunlin_agent::files::Files;
use dunlin_agent::link::{self, LinkConfig, LinkState, ToLink, Unsent};
use dunlin_agent::store::StoreError;
use dunlin_hub::clock::micros;
use dunlin_wire::job::{Outcome, Report, Stream};
use dunlin_wire::message::{Joined, ToAgent};
use dunlin_wire::{Fence, Key, TaskId};
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{mpsc, watch};

/// Events, and words for the link, that may wait for one agent.
const WAITING_MAX: usize = 256;

/// An enrolled device.
pub(super) struct Seat {
    pub(super) number: usize,
    pub(super) joined: Joined,
    pub(super) hub: Key,
    pub(super) addr: String,
    pub(super) key: Vec<u8>,
    pub(super) dir: PathBuf,
}

/// What an agent saw.
pub(super) struct Note {
    /// Which.
    pub(super) board: usize,
    /// When, in microseconds of CLOCK_BOOTTIME.
    pub(super) at: u64,
    pub(super) what: What,
}

pub(super) enum What {
    /// A connection is made, with early data or after its handshake.
    Connected { early: bool },
    /// The hub did not take the early data; it is said again.
    EarlyRefused,
    /// The hub said welcome.
    Ready,
    /// The connection is gone.
    Gone,
    /// An attempt to connect failed, for this reason.
    Failed(String),
    /// A job was granted.
    Granted(TaskId),
    /// It was started.
    Started(TaskId),
    /// Its result is durable at the hub.
    Settled(TaskId),
}

/// The journal: what the agent's store would hold. It outlives nothing, as no simulated agent is killed.
#[derive(Default)]
struct Journal(Mutex<Loaded>);

impl Unsent for Journal {
    fn record(&self, fence: Fence) -> Result<Option<Record>, StoreError> {
        Ok(self.0.lock().unwrap_or_else(PoisonError::into_inner).attempts.get(&fence).cloned())
    }

    fn kept(&self, _: Fence, _: Stream, _: u64, _: usize) -> Result<Vec<u8>, StoreError> {
        Ok(Vec::new())
    }
}

/// One running agent.
struct Board {
    number: usize,
    core: Core,
    journal: Arc<Journal>,
    tasks: HashMap<Fence, TaskId>,
    notes: Sender<Note>,
    ready: bool,
    early: bool,
}

/// Runs an agent until `stop` changes or its link ends.
pub(super) async fn run(seat: Seat, notes: Sender<Note>, mut stop: watch::Receiver<bool>) {
    let (events, mut inbox) = mpsc::channel(WAITING_MAX);
    let (commands, to_link) = mpsc::channel(WAITING_MAX);
    let state = LinkState { connected: false, hub: String::new(), last: None, failures: 0 };
    let (state, mut link_state) = watch::channel(state);
    let journal = Arc::new(Journal::default());
    let profile = seat.joined.profile;
    let link = LinkConfig {
        hubs: vec![Uplink { addr: seat.addr, label: None }],
        hub: seat.hub,
        key: seat.key,
        profile,
        files: Files::at(&seat.dir),
        bytes: Arc::default(),
        store: journal.clone(),
    };
    tokio::task::spawn_local(link::run(link, events, to_link, state));
    let setup = Setup {
        fleet: seat.joined.fleet,
        node: seat.joined.node,
        role: seat.joined.role,
        slots: seat.joined.slots,
        profile,
        capabilities: vec![],
        boot_id: (seat.number as u128 + 1).to_be_bytes(),
        kernel_boot: [1; 16],
        version: "simulated".into(),
    };
    let (mut out, mut waiting) = (Vec::new(), Vec::new());
    let policy =
        PolicyState { digest: [1; 8], jobs: setup.slots, layers: 0, error: None, kinds: vec![], overlay: 0 };
    let core = Core::new(setup, Loaded::default(), &mut out);
    let tasks = HashMap::new();
    let mut board = Board { number: seat.number, core, journal, tasks, notes, ready: false, early: false };
    waiting.push(Event::FromExec(FromExec::Policy(policy)));
    loop {
        board.handle(&mut waiting, &mut out);
        let (mut said, mut rest) = (Vec::new(), Vec::new());
        for effect in out.drain(..) {
            match effect {
                Effect::Send(frame) => said.push(frame),
                other => rest.extend(command(other)),
            }
        }
        for command in ToLink::say(said).into_iter().chain(rest) {
            if commands.send(command).await.is_err() {
                return;
            }
        }
        let now = clock::boot_ms();
        let due = board.core.poll_timeout().map_or(60_000, |at| at.saturating_sub(now).min(60_000));
        tokio::select! {
            n = inbox.recv_many(&mut waiting, WAITING_MAX) => if n == 0 { return },
            _ = stop.changed() => return,
            changed = link_state.changed() => {
                let state = link_state.borrow_and_update().clone();
                if changed.is_ok() && !state.connected {
                    board.note(What::Failed(state.last.unwrap_or_default()));
                }
            }
            () = tokio::time::sleep(Duration::from_millis(due)) => {}
        }
    }
}

/// What goes to the link.
fn command(effect: Effect) -> Option<ToLink> {
    match effect {
        Effect::Beat { every_ms, sample } => Some(ToLink::Beat { every_ms, sample }),
        Effect::Upload { fence, have } => Some(ToLink::Upload { fence, have }),
        Effect::Reconnect => Some(ToLink::Reconnect),
        // What is said goes in one command, a job here writes nothing, and no agent is told to stop.
        Effect::Send(_)
        | Effect::Store(_)
        | Effect::Exec(_)
        | Effect::Live { .. }
        | Effect::Tail { .. }
        | Effect::Credit { .. }
        | Effect::Exit => None,
    }
}

impl Board {
    /// Handles what waits, and what the executor answers to it at once. What was to be stored is stored when it returns,
    /// before anything of `out` is said.
    fn handle(&mut self, waiting: &mut Vec<Event>, out: &mut Vec<Effect>) {
        let now = clock::boot_ms();
        for event in waiting.drain(..) {
            self.observe(&event);
            self.core.handle(event, now, out);
        }
        self.core.handle_timeout(now, out);
        let mut at = 0;
        while let Some(effect) = out.get(at) {
            at += 1;
            let answers = match effect {
                Effect::Store(write) => {
                    self.journal.0.lock().unwrap_or_else(PoisonError::into_inner).apply(write);
                    continue;
                }
                Effect::Exec(message) => self.execute(message.clone()),
                _ => continue,
            };
            for answer in answers {
                self.core.handle(Event::FromExec(answer), now, out);
            }
        }
        let ready = self.core.is_welcome();
        if ready && !self.ready {
            self.note(What::Ready);
        }
        self.ready = ready;
    }

    fn observe(&mut self, event: &Event) {
        match event {
            Event::Connected { early } => {
                if self.early {
                    self.note(What::EarlyRefused);
                }
                self.early = *early;
                self.note(What::Connected { early: *early });
            }
            Event::Confirmed => self.early = false,
            Event::Disconnected => {
                self.early = false;
                self.note(What::Gone);
            }
            Event::FromHub(ToAgent::Grant(grant)) => self.note(What::Granted(grant.task.clone())),
            Event::FromHub(ToAgent::Ack { fence, .. }) => {
                if let Some(task) = self.tasks.remove(fence) {
                    self.note(What::Settled(task));
                }
            }
            Event::FromHub(ToAgent::Verdicts { verdicts, .. }) => {
                for (fence, verdict) in verdicts {
                    let settled = matches!(verdict, dunlin_wire::message::Verdict::Ack { .. });
                    if let Some(task) = settled.then(|| self.tasks.remove(fence)).flatten() {
                        self.note(What::Settled(task));
                    }
                }
            }
            _ => {}
        }
    }

    /// An executor that allows every job, and whose jobs succeed at once.
    fn execute(&mut self, message: ToExec) -> Vec<FromExec> {
        match message {
            ToExec::Prepare(work) => {
                let fence = work.fence;
                self.tasks.insert(fence, work.task);
                let decision = Decision::Allow { rule: "simulated".into(), timeout_ms: 60_000 };
                vec![FromExec::Prepared { fence, decision }]
            }
            ToExec::Start { fence, .. } => {
                if let Some(task) = self.tasks.get(&fence) {
                    self.note(What::Started(task.clone()));
                }
                let report = Box::new(Report::without_process(Outcome::Ok));
                vec![FromExec::Started { fence }, FromExec::Ended { fence, report, kept: Default::default() }]
            }
            _ => vec![],
        }
    }

    fn note(&self, what: What) {
        // Nobody reads any more when the run is over.
        let _ = self.notes.send(Note { board: self.number, at: micros(), what });
    }
}
