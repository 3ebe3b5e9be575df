//! A slot per job at once: it has the user that nobody else runs as, and is out of use while something of a job is left in it.

use super::guard::Process;
use super::sys;
use dunlin_wire::Fence;
use std::collections::BTreeMap;
use std::os::fd::{AsRawFd, OwnedFd};

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
    /// By what cannot be killed, until its guard has seen the end of it. One that died before proves nothing: there is no
    /// control then any more.
    Stuck {
        fence: Fence,
        guard: Process,
        control: Option<OwnedFd>,
    },
}

impl Slots {
    /// The first free one of so many.
    pub(super) fn find(&self, capacity: usize) -> Option<usize> {
        (0..capacity).find(|slot| !self.taken.contains_key(slot))
    }

    pub(super) fn take(&mut self, slot: usize) {
        self.taken.insert(slot, Taken::Job);
    }

    /// Gives a slot back. Its guard, which has reported, is collected when it ends: nobody has to wait for that.
    pub(super) fn free(&mut self, slot: usize, guard: Option<Process>) {
        self.taken.remove(&slot);
        guard.into_iter().for_each(|guard| self.see_off(guard));
    }

    /// Collects a guard when it ends.
    pub(super) fn see_off(&mut self, guard: Process) {
        self.leaving.push(guard);
    }

    /// Puts a slot out of use. `control` is our end of the guard's socket, which ends with it.
    pub(super) fn quarantine(&mut self, slot: usize, fence: Fence, guard: Process, control: OwnedFd) {
        tracing::error!(slot, "a job cannot be killed: its slot is out of use until it is gone");
        self.taken.insert(slot, Taken::Stuck { fence, guard, control: Some(control) });
    }

    /// Adds what tells that a guard of something stuck ended.
    pub(super) fn watch(&self, fds: &mut Vec<libc::pollfd>) {
        fds.extend(self.taken.values().filter_map(|taken| match taken {
            Taken::Stuck { control, .. } => control.as_ref().map(|fd| sys::input(fd.as_raw_fd())),
            Taken::Job => None,
        }));
    }

    /// Attempts of which nothing is stuck any more; their slots are of use again.
    pub(super) fn freed(&mut self) -> Vec<Fence> {
        let mut freed = Vec::new();
        self.taken.retain(|slot, taken| {
            let Taken::Stuck { fence, guard, control: control @ Some(_) } = taken else { return true };
            match guard.has_ended() {
                Some(true) => {
                    tracing::info!(slot, "what was stuck is gone: its slot is of use again");
                    freed.push(*fence);
                    return false;
                }
                Some(false) => *control = None,
                None => {}
            }
            true
        });
        freed
    }

    /// Whether no guard is about to end any more; collects those that have.
    pub(super) fn have_seen_off(&mut self) -> bool {
        self.leaving.retain(|guard| guard.has_ended().is_none());
        self.leaving.is_empty()
    }

    /// Guards that are not those of running jobs.
    pub(super) fn guards(&self) -> Vec<i32> {
        let stuck = self.taken.values().filter_map(|taken| match taken {
            Taken::Stuck { guard, control: Some(_), .. } => Some(guard.pid()),
            Taken::Stuck { .. } | Taken::Job => None,
        });
        stuck.chain(self.leaving.iter().map(Process::pid)).collect()
    }
}
