//! A slot per job at once: it has the user that nobody else runs as, and is out of use while something of a job is left in it.

use super::guard::Process;
use std::collections::BTreeMap;

/// Which are taken.
#[derive(Debug, Default)]
pub(super) struct Slots {
    taken: BTreeMap<usize, Taken>,
    /// Guards that have reported and are about to end.
    leaving: Vec<Process>,
}

#[derive(Debug)]
enum Taken {
    Job,
    /// By what cannot be killed, until its guard has seen the end of it. One that died before proves nothing.
    Stuck {
        guard: Process,
        for_ever: bool,
    },
}

impl Slots {
    /// The first free one of so many.
    pub(super) fn find(&mut self, capacity: usize) -> Option<usize> {
        self.taken.retain(|_, taken| match taken {
            Taken::Stuck { guard, for_ever: for_ever @ false } => match guard.has_ended() {
                Some(true) => false,
                Some(false) => {
                    *for_ever = true;
                    true
                }
                None => true,
            },
            Taken::Stuck { .. } | Taken::Job => true,
        });
        (0..capacity).find(|slot| !self.taken.contains_key(slot))
    }

    pub(super) fn take(&mut self, slot: usize) {
        self.taken.insert(slot, Taken::Job);
    }

    /// Gives a slot back. Its guard, which has reported, is collected when it ends: nobody has to wait for that.
    pub(super) fn free(&mut self, slot: usize, guard: Option<Process>) {
        self.taken.remove(&slot);
        self.leaving.extend(guard);
    }

    /// Puts a slot out of use.
    pub(super) fn quarantine(&mut self, slot: usize, guard: Process) {
        tracing::error!(slot, "a job cannot be killed: its slot is out of use until it is gone");
        self.taken.insert(slot, Taken::Stuck { guard, for_ever: false });
    }

    /// Whether no guard is about to end any more; collects those that have.
    pub(super) fn have_seen_off(&mut self) -> bool {
        self.leaving.retain(|guard| guard.has_ended().is_none());
        self.leaving.is_empty()
    }

    /// Guards that are not those of running jobs.
    pub(super) fn guards(&self) -> Vec<i32> {
        let stuck = self.taken.values().filter_map(|taken| match taken {
            Taken::Stuck { guard, for_ever: false } => Some(guard.pid()),
            Taken::Stuck { .. } | Taken::Job => None,
        });
        stuck.chain(self.leaving.iter().map(Process::pid)).collect()
    }
}
