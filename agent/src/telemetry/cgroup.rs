//! The agent's own cgroup: what it may use, and whether the kernel killed something in it.
//! Formats: cgroups(7) (/proc/self/cgroup), Documentation/admin-guide/cgroup-v2.rst (`memory.*`).

use super::parse;
use super::scan::Scan;
use super::sysroot::Absent;
use serde::Serialize;

/// Memory of the agent's cgroup, its jobs below it included.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Cgroup {
    /// Bytes in use.
    pub current: Option<u64>,
    /// Bytes at most; none when there is no limit.
    pub max: Option<u64>,
    /// How often it was throttled for going above `memory.high`.
    pub high_events: Option<u64>,
    /// Processes that were killed for want of memory.
    pub oom_kill: Option<u64>,
}

/// Reads it; nothing where memory is not counted by cgroup v2.
pub fn read(scan: &Scan) -> Option<Cgroup> {
    let path = scan.value("agent_cgroup", "proc/self/cgroup", own).ok()?;
    let dir = ["sys/fs/cgroup", "sys/fs/cgroup/unified"]
        .iter()
        .map(|top| format!("{top}{}", path.trim_end_matches('/')))
        .find(|dir| scan.look(&format!("{dir}/memory.current"), |_| Ok(())).is_ok());
    let Some(dir) = dir else {
        let why = Absent::Says("memory is not counted there by cgroup v2");
        scan.note("agent_cgroup", &format!("sys/fs/cgroup{path}"), Some(&why));
        return None;
    };
    let file = |what: &str| format!("{dir}/{what}");
    let event = |name: &'static str, field: &str| {
        scan.value(format_args!("agent_cgroup.{field}"), &file("memory.events"), |t| event(t, name)).ok()
    };
    Some(Cgroup {
        current: scan.value("agent_cgroup.current", &file("memory.current"), parse::count).ok(),
        max: scan.value("agent_cgroup.max", &file("memory.max"), limit).ok(),
        high_events: event("high", "high_events"),
        oom_kill: event("oom_kill", "oom_kill"),
    })
}

/// The path behind `0::`.
///
/// # Errors
/// When there is none, or it leads upwards.
pub fn own(text: &str) -> Result<String, Absent> {
    let path = text.lines().find_map(|line| line.strip_prefix("0::"));
    let path = path.ok_or(Absent::Says("no cgroup v2"))?;
    if !path.starts_with('/')
        || path.split('/').any(|part| part == "..")
        || path.chars().any(char::is_control)
    {
        return Err(Absent::Malformed);
    }
    Ok(path.to_owned())
}

/// Bytes, or `max`.
///
/// # Errors
/// Anything else, and `max`.
pub fn limit(text: &str) -> Result<u64, Absent> {
    if text.trim() == "max" { Err(Absent::Says("no limit")) } else { parse::count(text) }
}

/// The line `name 3`.
///
/// # Errors
/// When there is none.
pub fn event(text: &str, name: &str) -> Result<u64, Absent> {
    let mut lines = text.lines().filter_map(|line| line.split_once(' '));
    let (_, n) = lines.find(|(n, _)| *n == name).ok_or(Absent::Says("no such line"))?;
    parse::count(n)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_path() {
        for (text, want) in [
            ("0::/system.slice/dunlin-agent.service\n", Ok("/system.slice/dunlin-agent.service")),
            ("9:name=systemd:/\n0::/\n", Ok("/")),
            ("4:memory:/x\n", Err(Absent::Says("no cgroup v2"))),
            ("0::/../x\n", Err(Absent::Malformed)),
            ("0::x\n", Err(Absent::Malformed)),
            ("", Err(Absent::Says("no cgroup v2"))),
        ] {
            assert_eq!(own(text), want.map(str::to_owned), "{text:?}");
        }
    }

    #[test]
    fn events_and_limits() {
        let text = "low 0\nhigh 3\nmax 0\noom 0\noom_kill 7\noom_group_kill 0\n";
        assert_eq!(event(text, "high"), Ok(3));
        assert_eq!(event(text, "oom_kill"), Ok(7));
        assert_eq!(event("oom_kill", "oom_kill"), Err(Absent::Says("no such line")));
        assert_eq!(event("oom_kill x", "oom_kill"), Err(Absent::Malformed));
        assert_eq!(limit("67108864\n"), Ok(67_108_864));
        assert_eq!(limit("max\n"), Err(Absent::Says("no limit")));
    }
}
