//! A job's cgroups: what leaves its session, its parent and its environment is still in them. They carry its limits, count
//! what hit them, and can kill or freeze all of it at once. See cgroups(7).
//!
//! In the v2 hierarchy where that has the controllers, in those of v1 where a controller is bound to one (JetPack 4, hybrid
//! boards). What is written is read back.

use dunlin_wire::job::layer;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// The period of CPU limits, in microseconds: the kernel's default.
const PERIOD_US: u64 = 100_000;
/// A limit of memory is rounded down to pages: at most this many bytes.
const PAGE_MAX: u64 = 64 * 1024;
/// The executor's own cgroup below the one it was given: with v2, processes and limits are not in the same place.
const LEAF: &str = "dunlin-executor";
/// The controllers that limits need.
const CONTROLLERS: [&str; 3] = ["memory", "pids", "cpu"];

/// Where this process may make cgroups.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Place {
    /// The v2 directory.
    v2: Option<PathBuf>,
    /// Controllers that can be given to directories in it.
    in_v2: Vec<&'static str>,
    /// v1 directories by controller.
    v1: Vec<(&'static str, PathBuf)>,
}

impl Place {
    /// Looks where our own cgroups are mounted and writable.
    pub(super) fn find() -> Self {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let mut place = Self::default();
        for (name, dir) in hierarchies(&mounts, &own) {
            match name {
                "" => place.v2 = Some(strip_leaf(dir)),
                name => place.v1.push((name, dir)),
            }
        }
        place.v2 = place.v2.filter(|dir| is_ours(dir));
        place.v1.retain(|(_, dir)| is_ours(dir));
        if let Some(dir) = &place.v2 {
            let has = fs::read_to_string(dir.join("cgroup.subtree_control")).unwrap_or_default();
            place.in_v2 =
                CONTROLLERS.into_iter().filter(|c| has.split_whitespace().any(|h| h == *c)).collect();
        }
        place
    }

    /// The same, after controllers were given to directories below where that takes no more than moving ourselves into a
    /// leaf: a cgroup with processes of its own cannot have controllers below (EBUSY).
    pub(super) fn prepare() -> Self {
        let place = Self::find();
        if let Some(dir) = &place.v2 {
            let offered = fs::read_to_string(dir.join("cgroup.controllers")).unwrap_or_default();
            let offers = |c: &&str| offered.split_whitespace().any(|o| o == *c);
            let missing: Vec<_> =
                CONTROLLERS.into_iter().filter(offers).filter(|c| !place.in_v2.contains(c)).collect();
            // A place that was given to us, not the root of all: there only somebody else's setting is changed.
            let delegated = dir.join("cgroup.type").exists();
            if !missing.is_empty() && delegated {
                let leaf = dir.join(LEAF);
                let _ = fs::create_dir(&leaf);
                let moved = fs::write(leaf.join("cgroup.procs"), "0");
                for controller in missing {
                    let _ = fs::write(dir.join("cgroup.subtree_control"), format!("+{controller}"));
                }
                if let Err(error) = moved {
                    tracing::warn!(%error, "the executor cannot move to a cgroup of its own: no limits by cgroup v2");
                }
            }
        }
        Self::find()
    }

    /// Which of [`layer`]'s bits a cgroup here can be.
    pub(super) fn layers(&self) -> u32 {
        let has = |name: &str| self.in_v2.contains(&name) || self.v1.iter().any(|(c, _)| *c == name);
        [
            (layer::CGROUP, self.v2.is_some() || has("freezer")),
            (layer::MEMORY, has("memory")),
            (layer::PIDS, has("pids")),
            (layer::CPU, has("cpu")),
        ]
        .iter()
        .fold(0, |bits, (bit, has)| if *has { bits | bit } else { bits })
    }

    /// Whether there is a v2 directory.
    pub(super) fn has_v2(&self) -> bool {
        self.v2.is_some()
    }

    /// `v2`, `v1`, `hybrid` or `none`, of what can be used.
    pub(super) fn name(&self) -> &'static str {
        match (self.v2.is_some(), self.v1.is_empty()) {
            (true, true) => "v2",
            (true, false) => "hybrid",
            (false, false) => "v1",
            (false, true) => "none",
        }
    }
}

/// Mount points of our own cgroups: "" for v2, else the controller; by proc_pid_mountinfo(5) and cgroups(7).
fn hierarchies(mounts: &str, own: &str) -> Vec<(&'static str, PathBuf)> {
    let mut found: Vec<(&'static str, PathBuf)> = Vec::new();
    for line in mounts.lines() {
        let Some((before, after)) = line.split_once(" - ") else { continue };
        let before: Vec<_> = before.split(' ').collect();
        let [_, _, _, root, point, ..] = before.as_slice() else { continue };
        let mut after = after.split(' ');
        let (kind, options) = (after.next().unwrap_or_default(), after.nth(1).unwrap_or_default());
        let controllers: Vec<&'static str> = match kind {
            "cgroup2" => vec![""],
            "cgroup" => {
                let bound = ["memory", "pids", "cpu", "freezer"].into_iter();
                bound.filter(|c| options.split(',').any(|o| o == *c)).collect()
            }
            _ => continue,
        };
        for controller in controllers {
            let path = own.lines().find_map(|line| {
                let (_, rest) = line.split_once(':')?;
                let (names, path) = rest.split_once(':')?;
                names.split(',').any(|n| n == controller).then_some(path)
            });
            // Of a part of the hierarchy that is mounted, we see only what is below.
            let below = path.and_then(|path| Path::new(path).strip_prefix(root).ok());
            let below = below.filter(|_| found.iter().all(|(c, _)| *c != controller));
            if let Some(below) = below {
                found.push((controller, Path::new(point).join(below)));
            }
        }
    }
    found
}

fn strip_leaf(dir: PathBuf) -> PathBuf {
    match dir.file_name() {
        Some(name) if name == LEAF => dir.parent().map(Path::to_owned).unwrap_or(dir),
        _ => dir,
    }
}

/// Whether we may make a directory there: by making one, as no mode tells of a read-only mount.
fn is_ours(dir: &Path) -> bool {
    let probe = dir.join(format!("dunlin-probe-{}", std::process::id()));
    let made = fs::create_dir(&probe).is_ok();
    let _ = fs::remove_dir(&probe);
    made
}

/// What a job's cgroups bound.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Limits {
    /// Memory and swap together, in bytes.
    pub memory: Option<u64>,
    /// Processes and threads.
    pub pids: Option<u64>,
    /// Per cent of one CPU.
    pub cpu: Option<u32>,
}

/// One job's cgroups.
#[derive(Debug, Clone, Default)]
pub(super) struct Cgroup {
    v2: Option<PathBuf>,
    v1: Vec<(String, PathBuf)>,
}

impl Cgroup {
    /// Where they will be; `None` where there is nowhere to make one.
    pub(super) fn at(place: &Place, name: &str, limits: &Limits, freezer: bool) -> Option<Self> {
        let wanted = [
            ("memory", limits.memory.is_some()),
            ("pids", limits.pids.is_some()),
            ("cpu", limits.cpu.is_some()),
            ("freezer", freezer),
        ];
        let v1 = place.v1.iter().filter(|(controller, _)| wanted.contains(&(*controller, true)));
        let found = Self {
            v2: place.v2.as_ref().map(|dir| dir.join(name)),
            v1: v1.map(|(controller, dir)| ((*controller).to_owned(), dir.join(name))).collect(),
        };
        (found.v2.is_some() || !found.v1.is_empty()).then_some(found)
    }

    /// Makes them with their limits. An error when a limit is not in force; then there are none.
    pub(super) fn make(&self, place: &Place, limits: &Limits) -> io::Result<()> {
        let mut dirs = self.v2.iter().chain(self.v1.iter().map(|(_, dir)| dir));
        let made = dirs.try_for_each(|dir| make_dir(dir));
        made.and_then(|()| self.limit(place, limits)).inspect_err(|_| self.remove())
    }

    fn limit(&self, place: &Place, limits: &Limits) -> io::Result<()> {
        let missing = || io::Error::from_raw_os_error(libc::ENODEV);
        let v2 = |name: &str| self.v2.as_deref().filter(|_| place.in_v2.contains(&name));
        if let Some(bytes) = limits.memory {
            if let Some(dir) = v2("memory") {
                set(dir, "memory.max", bytes, PAGE_MAX)?;
                if dir.join("memory.swap.max").exists() {
                    set(dir, "memory.swap.max", 0, 0)?;
                }
                fs::write(dir.join("memory.oom.group"), "1").or_else(gone)?;
            } else {
                let dir = self.v1("memory").ok_or_else(missing)?;
                set(dir, "memory.limit_in_bytes", bytes, PAGE_MAX)?;
                // Without accounting of swap there is no such file.
                if dir.join("memory.memsw.limit_in_bytes").exists() {
                    set(dir, "memory.memsw.limit_in_bytes", bytes, PAGE_MAX)?;
                }
            }
        }
        if let Some(pids) = limits.pids {
            let dir = v2("pids").or(self.v1("pids")).ok_or_else(missing)?;
            set(dir, "pids.max", pids, 0)?;
        }
        if let Some(percent) = limits.cpu {
            let quota = u64::from(percent) * PERIOD_US / 100;
            if let Some(dir) = v2("cpu") {
                let text = format!("{quota} {PERIOD_US}");
                fs::write(dir.join("cpu.max"), &text)?;
                if fs::read_to_string(dir.join("cpu.max"))?.trim() != text {
                    return Err(io::Error::from_raw_os_error(libc::ERANGE));
                }
            } else {
                let dir = self.v1("cpu").ok_or_else(missing)?;
                set(dir, "cpu.cfs_period_us", PERIOD_US, 0)?;
                set(dir, "cpu.cfs_quota_us", quota, 0)?;
            }
        }
        Ok(())
    }

    /// Those of ours whose name begins so.
    pub(super) fn all(place: &Place, prefix: &str) -> Vec<Self> {
        let mut found: Vec<(String, Self)> = Vec::new();
        let v1 = place.v1.iter().map(|(controller, dir)| (Some(*controller), dir));
        for (controller, dir) in place.v2.iter().map(|dir| (None, dir)).chain(v1) {
            for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
                let name = entry.file_name().to_string_lossy().into_owned();
                if !name.starts_with(prefix) {
                    continue;
                }
                let at = found.iter().position(|(n, _)| *n == name).unwrap_or_else(|| {
                    found.push((name, Self::default()));
                    found.len() - 1
                });
                match controller {
                    None => found[at].1.v2 = Some(entry.path()),
                    Some(controller) => found[at].1.v1.push((controller.to_owned(), entry.path())),
                }
            }
        }
        found.into_iter().map(|(_, cgroup)| cgroup).collect()
    }

    /// The v2 directory, in which a process can be born.
    pub(super) fn v2(&self) -> Option<&Path> {
        self.v2.as_deref()
    }

    fn v1(&self, controller: &str) -> Option<&Path> {
        self.v1.iter().find(|(name, _)| name == controller).map(|(_, dir)| dir.as_path())
    }

    /// Puts the calling process, which has one thread, into them; into v2's only when it was not born there. A process
    /// that writes itself to v1's `tasks` needs no lock of the whole system, which took ten milliseconds.
    pub(super) fn join(&self, born: bool) -> io::Result<()> {
        for (_, dir) in &self.v1 {
            fs::write(dir.join("tasks"), "0")?;
        }
        match &self.v2 {
            Some(dir) if !born => fs::write(dir.join("cgroup.procs"), "0"),
            _ => Ok(()),
        }
    }

    /// Everybody in them.
    pub(super) fn processes(&self) -> Vec<i32> {
        let dir = self.v2.as_ref().or_else(|| self.v1.first().map(|(_, dir)| dir));
        let text = dir.and_then(|dir| fs::read_to_string(dir.join("cgroup.procs")).ok()).unwrap_or_default();
        text.lines().filter_map(|pid| pid.parse().ok()).collect()
    }

    /// Kills all of it by `cgroup.kill` (Linux 5.14); whether that could be asked for.
    pub(super) fn kill(&self) -> bool {
        self.v2.as_ref().is_some_and(|dir| fs::write(dir.join("cgroup.kill"), "1").is_ok())
    }

    /// Stops all of it from running on, by v2's freezer (Linux 5.2), kills each, and lets them die. `false` when it could
    /// not be asked for.
    pub(super) fn freeze_and_kill(&self) -> bool {
        let Some(dir) = &self.v2 else { return false };
        self.kill_frozen(&dir.join("cgroup.freeze"), ["1", "0"], || {
            fs::read_to_string(dir.join("cgroup.events")).is_ok_and(|text| text.contains("frozen 1"))
        })
    }

    /// The same by v1's freezer.
    pub(super) fn freeze_and_kill_v1(&self) -> bool {
        let Some(dir) = self.v1("freezer") else { return false };
        let state = dir.join("freezer.state");
        self.kill_frozen(&state, ["FROZEN", "THAWED"], || {
            fs::read_to_string(&state).is_ok_and(|text| text.trim() == "FROZEN")
        })
    }

    fn kill_frozen(&self, file: &Path, [freeze, thaw]: [&str; 2], is_frozen: impl Fn() -> bool) -> bool {
        if fs::write(file, freeze).is_err() {
            return false;
        }
        // What sleeps uninterruptibly does not freeze; it is killed all the same.
        for _ in 0..FREEZE_MS {
            if is_frozen() {
                break;
            }
            let _ = super::sys::poll(&mut [], 1);
        }
        self.processes().into_iter().for_each(|pid| super::sys::kill(pid, libc::SIGKILL));
        let _ = fs::write(file, thaw);
        true
    }

    /// Processes that the kernel killed for want of memory.
    pub(super) fn oom_kills(&self) -> u64 {
        let v2 = count(self.v2.as_deref(), "memory.events", "oom_kill ");
        v2.max(count(self.v1("memory"), "memory.oom_control", "oom_kill "))
    }

    /// Forks that were refused.
    pub(super) fn forks_refused(&self) -> u64 {
        let of = |dir| count(dir, "pids.events", "max ");
        of(self.v2.as_deref()).max(of(self.v1("pids")))
    }

    /// Most memory used at once, in KiB.
    pub(super) fn peak_kib(&self) -> Option<u64> {
        let peak = |dir: Option<&Path>, file: &str| {
            let text = dir.and_then(|dir| fs::read_to_string(dir.join(file)).ok())?;
            text.trim().parse::<u64>().ok().map(|bytes| bytes / 1024)
        };
        let v2 = peak(self.v2.as_deref(), "memory.peak");
        v2.or_else(|| peak(self.v1("memory"), "memory.max_usage_in_bytes"))
    }

    /// Removes them; one that is not empty stays.
    pub(super) fn remove(&self) {
        for dir in self.v2.iter().chain(self.v1.iter().map(|(_, dir)| dir)) {
            let _ = fs::remove_dir(dir);
        }
    }
}

/// What a file of the kernel's counts under `name`; 0 where it is not there.
fn count(dir: Option<&Path>, file: &str, name: &str) -> u64 {
    let text = dir.and_then(|dir| fs::read_to_string(dir.join(file)).ok()).unwrap_or_default();
    text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok()).unwrap_or(0)
}

/// How long freezing may take, in milliseconds.
const FREEZE_MS: u32 = 50;

fn make_dir(dir: &Path) -> io::Result<()> {
    match fs::create_dir(dir) {
        // One of an earlier start was emptied by the sweep, but may carry its limits and counts.
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
            fs::remove_dir(dir)?;
            fs::create_dir(dir)
        }
        done => done,
    }
}

/// Writes a number and reads it back: at most `slack` less.
fn set(dir: &Path, file: &str, value: u64, slack: u64) -> io::Result<()> {
    let file = dir.join(file);
    fs::write(&file, value.to_string())?;
    let read = fs::read_to_string(&file)?.trim().parse::<u64>().unwrap_or(u64::MAX);
    match read <= value && value - read <= slack {
        true => Ok(()),
        false => Err(io::Error::from_raw_os_error(libc::ERANGE)),
    }
}

/// A file that this kernel does not have is no error.
fn gone(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_cgroups_are_found_in_any_layout() {
        let hybrid = "30 24 0:26 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n\
                      31 24 0:27 / /sys/fs/cgroup/cpu,cpuacct rw shared:9 - cgroup cgroup rw,cpu,cpuacct\n\
                      32 24 0:28 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw";
        let own = "4:memory:/a/b\n1:cpu,cpuacct:/\n0::/c\n";
        let v2 = "29 23 0:25 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate";
        let part = "29 23 0:25 /docker/x /sys/fs/cgroup rw - cgroup2 cgroup rw";
        for (mounts, own, want) in [
            (
                hybrid,
                own,
                &[
                    ("memory", "/sys/fs/cgroup/memory/a/b"),
                    ("cpu", "/sys/fs/cgroup/cpu,cpuacct"),
                    ("", "/sys/fs/cgroup/unified/c"),
                ][..],
            ),
            (v2, "0::/system.slice/x.service\n", &[("", "/sys/fs/cgroup/system.slice/x.service")]),
            (part, "0::/docker/x/y\n", &[("", "/sys/fs/cgroup/y")]),
            (part, "0::/elsewhere\n", &[]),
            ("", own, &[]),
            ("nonsense\n1 2 - cgroup", own, &[]),
        ] {
            let want: Vec<_> = want.iter().map(|(c, p)| (*c, PathBuf::from(p))).collect();
            assert_eq!(hierarchies(mounts, own), want, "{mounts}");
        }
    }
}
