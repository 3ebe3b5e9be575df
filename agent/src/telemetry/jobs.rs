//! Which attempt a process belongs to: by its cgroup where jobs have one (cgroups(7)), else by what the agent gave the
//! leader of its session (proc(5), `stat` and `environ`).

use super::sysroot::{Sysroot, TABLE_MAX, VALUE_MAX};
use dunlin_wire::Fence;

/// How the jobs of this agent are known.
#[derive(Debug, Clone, Default)]
pub struct Marker {
    /// The variable that each of them has: `DUNLIN_AGENT=...`.
    pub variable: String,
    /// What the names of their cgroups begin with.
    pub cgroup: String,
}

impl Marker {
    /// The attempt of the process `pid`; `None` when it is no job of ours.
    pub fn fence_of(&self, root: &Sysroot, pid: u32) -> Option<Fence> {
        let cgroups = root.read(&format!("proc/{pid}/cgroup"), VALUE_MAX).unwrap_or_default();
        let by_cgroup =
            cgroups.split(['\n', '/']).find_map(|part| part.strip_prefix(&self.cgroup)?.parse().ok());
        by_cgroup
            .or_else(|| {
                let leader = session(&root.read(&format!("proc/{pid}/stat"), VALUE_MAX).ok()?)?;
                let environ = root.read(&format!("proc/{leader}/environ"), TABLE_MAX).ok()?;
                let mut entries = environ.split('\0');
                // What the agent sets comes first: what the task adds cannot stand for it.
                let fence =
                    entries.clone().find_map(|entry| entry.strip_prefix("DUNLIN_FENCE="))?.parse().ok()?;
                entries.any(|entry| entry == self.variable).then_some(fence)
            })
            .map(Fence)
    }
}

/// The session of `stat`. The name of the program, in parentheses, may hold anything.
fn session(stat: &str) -> Option<u32> {
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(3)?.parse().ok().filter(|session| *session > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_belongs_to_the_attempt_whose_cgroup_or_session_it_is_in() {
        let dir = tempfile::tempdir().unwrap();
        let put = |path: &str, text: &str| {
            let path = dir.path().join("proc").join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        put("10/cgroup", "0::/system.slice/dunlin-agent.service/dunlin-ab-77/deeper\n");
        put("11/cgroup", "0::/system.slice/dunlin-cd-77\n");
        put("12/cgroup", "0::/\n");
        put("12/stat", "12 (a) b) c) R 1 5 13 0 -1");
        put("13/environ", "PATH=/\0DUNLIN_FENCE=78\0DUNLIN_AGENT=ab\0DUNLIN_FENCE=1\0");
        put("14/stat", "14 (x) R 1 5 15 0 -1");
        put("15/environ", "DUNLIN_FENCE=79\0DUNLIN_AGENT=other\0");
        put("16/stat", "16 (x R 1");
        let marker = Marker { variable: "DUNLIN_AGENT=ab".into(), cgroup: "dunlin-ab-".into() };
        let root = Sysroot::new(dir.path());
        let of = |pid| marker.fence_of(&root, pid).map(|fence| fence.0);
        assert_eq!([10, 11, 12, 14, 16, 17].map(of), [Some(77), None, Some(78), None, None, None]);
    }
}
