//! What a rule says about how its jobs are shut in.

use super::raw::RawRule;
use super::{Confinement, Policy, Strictness, User};
use dunlin_wire::units;

/// Less memory than this no program can start in, in bytes.
pub(super) const MEMORY_MIN: u64 = 1 << 20;

/// The rule's confinement, within the ceilings; `roots` is left to the caller.
pub(super) fn compile(raw: &RawRule, policy: &Policy) -> Result<Confinement, String> {
    let strictness = match raw.sandbox.as_deref() {
        None => Strictness::Asked,
        Some("best-effort") => Strictness::BestEffort,
        Some("require") => Strictness::Require,
        Some(_) => return Err("sandbox must be require or best-effort".into()),
    };
    let user = match raw.user.as_deref() {
        None => User::Unsaid,
        Some("slot") => User::Slot,
        Some("root" | "0") => User::Root,
        Some("") => return Err("user must be slot, root or a name".into()),
        Some(name) => User::Named(name.to_owned()),
    };
    let write = raw.write.iter().map(|text| write(text, policy)).collect::<Result<_, _>>()?;
    for device in &raw.devices {
        let name = device.strip_prefix("/dev/").unwrap_or_default();
        let plain = name.split('/').all(|c| !matches!(c, "" | "." | ".."));
        let dir = name.rsplit_once('/').map_or("", |(dir, _)| dir);
        if !plain || dir.contains('*') {
            return Err(format!("devices: `{device}` must lie below /dev, with `*` in its last part only"));
        }
    }
    let memory = match &raw.limits.memory {
        None => policy.ceilings.memory,
        Some(text) => match units::bytes(text) {
            Some(n) if n >= MEMORY_MIN && policy.ceilings.memory.is_none_or(|max| n <= max) => Some(n),
            Some(n) if n >= MEMORY_MIN => return Err("limits.memory is over ceilings.memory".into()),
            _ => return Err("limits.memory must be like \"1GiB\", and at least 1MiB".into()),
        },
    };
    let pids = match raw.limits.pids.map(u64::from) {
        None => policy.ceilings.pids,
        Some(0) => return Err("limits.pids must be at least 1".into()),
        Some(n) if policy.ceilings.pids.is_some_and(|max| n > max) => {
            return Err("limits.pids is over ceilings.pids".into());
        }
        some => some,
    };
    let cpu = match raw.limits.cpu.as_deref() {
        None => None,
        Some(text) => match text.strip_suffix('%').and_then(|n| n.parse().ok()) {
            Some(percent @ 1..=100_000) => Some(percent),
            _ => return Err("limits.cpu must be like \"150%\", of one CPU".into()),
        },
    };
    Ok(Confinement {
        strictness,
        user,
        groups: raw.groups.clone(),
        network: raw.network != Some(false),
        write,
        roots: Vec::new(),
        devices: raw.devices.clone(),
        memory,
        pids,
        cpu,
    })
}

/// `root:NAME` or `root:NAME/way/down`.
fn write(text: &str, policy: &Policy) -> Result<(String, String), String> {
    let rest = text
        .strip_prefix("root:")
        .ok_or_else(|| format!("write: `{text}` must be like \"root:data/out\""))?;
    let (name, way) = rest.split_once('/').unwrap_or((rest, ""));
    let root = policy.roots.get(name);
    let root = root.ok_or_else(|| format!("write names `{name}`, whose root is not defined"))?;
    if !way.is_empty() && way.split('/').any(|c| matches!(c, "" | "." | "..")) {
        return Err(format!("write: `{text}` must be a plain way down from its root"));
    }
    Ok((root.path.clone(), way.to_owned()))
}
