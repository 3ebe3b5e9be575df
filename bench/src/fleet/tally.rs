//! What all simulated agents saw, added up; and what the hub's event stream says of them meanwhile.

use super::board::{Note, What};
use crate::api::Api;
use anyhow::{Result, bail};
use dunlin_hub::clock::micros;
use dunlin_wire::TaskId;
use std::collections::{BTreeMap, HashMap};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// The simulator's truth.
pub(super) struct Tally {
    notes: Receiver<Note>,
    /// Which agents the hub has welcomed.
    pub(super) ready: Vec<bool>,
    ready_count: usize,
    /// When each became ready since the last [`Tally::reset`].
    pub(super) ready_at: Vec<Option<u64>>,
    /// When connections were made since then, and how many of them with early data.
    pub(super) connects: Vec<u64>,
    pub(super) early: usize,
    pub(super) early_refused: usize,
    /// Attempts to connect that failed since then, by reason.
    pub(super) failed: BTreeMap<String, usize>,
    /// By task: when it was first granted and to whom, how often it was started, when its result was settled.
    pub(super) granted: HashMap<TaskId, (u64, usize)>,
    pub(super) started: HashMap<TaskId, u32>,
    pub(super) settled: HashMap<TaskId, u64>,
}

impl Tally {
    pub(super) fn new(agents: usize, notes: Receiver<Note>) -> Self {
        Self {
            notes,
            ready: vec![false; agents],
            ready_count: 0,
            ready_at: vec![None; agents],
            connects: Vec::new(),
            early: 0,
            early_refused: 0,
            failed: BTreeMap::new(),
            granted: HashMap::new(),
            started: HashMap::new(),
            settled: HashMap::new(),
        }
    }

    /// Forgets how connections went before.
    pub(super) fn reset(&mut self) {
        self.ready_at.fill(None);
        self.connects.clear();
        (self.early, self.early_refused) = (0, 0);
        self.failed.clear();
    }

    pub(super) fn is_all_ready(&self) -> bool {
        self.ready_count == self.ready.len()
    }

    /// Agents that are ready.
    pub(super) fn ready_count(&self) -> usize {
        self.ready_count
    }

    /// Takes notes until `done`.
    ///
    /// # Errors
    /// When that is not in `bound`, with the numbers that stand then.
    pub(super) fn until(
        &mut self,
        what: &str,
        bound: Duration,
        mut done: impl FnMut(&Self) -> bool,
    ) -> Result<()> {
        let end = micros() + bound.as_micros() as u64;
        while !done(self) {
            if micros() > end {
                bail!(
                    "waited {bound:?} in vain: {what}; {} of {} agents are ready, {} tasks of {} granted are settled, \
                     failures {:?}",
                    self.ready_count,
                    self.ready.len(),
                    self.settled.len(),
                    self.granted.len(),
                    self.failed
                );
            }
            self.take(Duration::from_millis(20))?;
        }
        Ok(())
    }

    /// Takes the notes that there are, and waits for one at most so long.
    pub(super) fn take(&mut self, wait: Duration) -> Result<()> {
        match self.notes.recv_timeout(wait) {
            Ok(note) => self.add(note),
            Err(RecvTimeoutError::Timeout) => return Ok(()),
            Err(RecvTimeoutError::Disconnected) => bail!("every simulated agent has ended"),
        }
        for _ in 0..4096 {
            match self.notes.try_recv() {
                Ok(note) => self.add(note),
                Err(_) => break,
            }
        }
        Ok(())
    }

    fn add(&mut self, note: Note) {
        let Note { board, at, what } = note;
        match what {
            What::Connected { early } => {
                self.connects.push(at);
                self.early += usize::from(early);
            }
            What::EarlyRefused => self.early_refused += 1,
            What::Ready => {
                self.ready_count += usize::from(!std::mem::replace(&mut self.ready[board], true));
                self.ready_at[board].get_or_insert(at);
            }
            What::Gone => self.ready_count -= usize::from(std::mem::replace(&mut self.ready[board], false)),
            What::Failed(why) => *self.failed.entry(why).or_default() += 1,
            What::Granted(task) => drop(self.granted.entry(task).or_insert((at, board))),
            What::Started(task) => *self.started.entry(task).or_default() += 1,
            What::Settled(task) => drop(self.settled.entry(task).or_insert(at)),
        }
    }
}

/// What the hub's event stream said of nodes.
#[derive(Default, Clone)]
pub(super) struct Seen {
    /// Events of nodes by kind.
    pub(super) kinds: BTreeMap<String, usize>,
    /// Each `node.down`: no simulated agent ever leaves, so each is wrong.
    pub(super) down: Vec<String>,
    /// Stretches of events that the hub no longer had when they were asked for.
    pub(super) gaps: usize,
}

/// Listens to the hub's events for as long as the process lives, over restarts of the hub.
pub(super) fn listen(mut api: Api) -> Arc<Mutex<Seen>> {
    let seen = Arc::new(Mutex::new(Seen::default()));
    let ours = seen.clone();
    std::thread::spawn(move || {
        let mut last = 0;
        loop {
            for event in api.events(Some(last)).into_iter().flatten() {
                last = event["id"].as_u64().unwrap_or(last);
                let kind = event["kind"].as_str().unwrap_or_default();
                let node = event["nodeId"].as_str().unwrap_or_default();
                let mut seen = lock(&ours);
                if kind == "gap" {
                    seen.gaps += 1;
                } else if kind.starts_with("node.") {
                    *seen.kinds.entry(kind.to_owned()).or_default() += 1;
                }
                if kind == "node.down" {
                    seen.down.push(node.to_owned());
                }
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    });
    seen
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
