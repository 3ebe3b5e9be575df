//! The ladder: how all of a job is killed, whatever it forks and wherever it hides. A process group is no boundary, and
//! walking /proc loses against what forks faster; so the walk is what is left where there is nothing better.

use super::cgroup::Cgroup;
use super::sandbox::credentials;
use super::sandbox::users::Identity;
use super::sys;
use crate::fault;

/// How long the first rung that can be had is tried alone, in milliseconds.
const ALONE_MS: u64 = 100;

/// What of a job can be reached by which way.
#[derive(Debug)]
pub(super) struct Ladder {
    pub cgroup: Option<Cgroup>,
    /// A user as whom nobody but this job runs.
    pub user: Option<Identity>,
}

impl Ladder {
    /// One round: the highest rung that can be had; all of them once the killing has gone on for longer than it should.
    /// `walk` are the processes that are known to be the job's.
    pub(super) fn kill(&self, since_ms: u64, walk: impl FnOnce() -> Vec<i32>) {
        let all = since_ms > ALONE_MS;
        let cgroup = self.cgroup.as_ref();
        let rungs: [(&str, &dyn Fn() -> bool); 4] = [
            ("cgroup.kill", &|| cgroup.is_some_and(Cgroup::kill)),
            ("cgroup.freeze", &|| cgroup.is_some_and(Cgroup::freeze_and_kill)),
            ("freezer", &|| cgroup.is_some_and(Cgroup::freeze_and_kill_v1)),
            ("kill-user", &|| self.user.as_ref().is_some_and(kill_as)),
        ];
        for (name, climb) in rungs {
            if !fault::masked(name) && climb() && !all {
                return;
            }
        }
        if !fault::masked("walk") {
            walk().into_iter().for_each(|pid| sys::kill(pid, libc::SIGKILL));
        }
    }
}

/// Whether a cgroup of v1's freezer is needed: only where nothing better is there.
pub(super) fn needs_freezer(v2: bool) -> bool {
    !v2 || (fault::masked("cgroup.kill") && fault::masked("cgroup.freeze"))
}

/// Kills all that runs as that user, at once, by a child that becomes it: no process can be forked past kill(-1).
fn kill_as(user: &Identity) -> bool {
    let done = sys::in_child(|| {
        if user.uid == 0 || credentials::become_user(user).is_err() {
            return 1;
        }
        sys::kill(-1, libc::SIGKILL);
        0
    });
    // One that was killed by its victims, who may, was not quick enough: there is a next round.
    matches!(done, Ok(0))
}
