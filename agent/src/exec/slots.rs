//! A slot per job at once: it has the user that nobody else runs as, and is out of use while something of a job is left in it.

use std::collections::BTreeMap;
use std::process::Child;

/// Which are taken.
#[derive(Debug, Default)]
pub(super) struct Slots {
    taken: BTreeMap<usize, Taken>,
}

#[derive(Debug)]
enum Taken {
    Job,
    /// By what cannot be killed, until its guard, if there still is one, has seen the end of it.
    Stuck(Option<Child>),
}

impl Slots {
    /// The first free one of so many.
    pub(super) fn find(&mut self, capacity: usize) -> Option<usize> {
        self.taken.retain(|_, taken| match taken {
            Taken::Stuck(Some(guard)) => !matches!(guard.try_wait(), Ok(Some(status)) if status.success()),
            Taken::Stuck(None) | Taken::Job => true,
        });
        (0..capacity).find(|slot| !self.taken.contains_key(slot))
    }

    pub(super) fn take(&mut self, slot: usize) {
        self.taken.insert(slot, Taken::Job);
    }

    pub(super) fn free(&mut self, slot: usize) {
        self.taken.remove(&slot);
    }

    /// Puts a slot out of use.
    pub(super) fn quarantine(&mut self, slot: usize, guard: Option<Child>) {
        tracing::error!(slot, "a job cannot be killed: its slot is out of use until it is gone");
        self.taken.insert(slot, Taken::Stuck(guard));
    }
}
