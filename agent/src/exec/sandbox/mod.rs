//! What a job is shut in with: [`plan`] decides, before anything is started, which layers of EXEC.md a job gets on this
//! board, or that it may not run with what there is. The rest of the directory applies them between fork and exec; a layer
//! of the plan that cannot be applied ends the attempt.
//!
//! Deliberately absent: user namespaces, and a PID namespace (a job sees the board's processes, as their names are no
//! secret).

pub(super) mod credentials;
pub(super) mod landlock;
pub(super) mod mounts;
pub(super) mod seccomp;
pub(super) mod users;

use super::cgroup::Limits;
use crate::core::policy::{Confinement, Strictness, User};
use dunlin_wire::job::{Denial, layer};
use users::Identity;

/// What every board should have. Landlock is an extra, as few kernels of boards have it.
const BASE: u32 = layer::NO_NEW_PRIVS
    | layer::RLIMITS
    | layer::CGROUP
    | layer::MOUNTS
    | layer::IPC
    | layer::SECCOMP
    | layer::CAPABILITIES;

/// What a job will be shut in with.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Plan {
    /// Bits of [`layer`]: all of these are applied, or nothing is run.
    pub layers: u32,
    /// Whom it becomes; `None` keeps the executor's user.
    pub identity: Option<Identity>,
    /// Whether nobody else runs as that user, so that whatever does is the job's.
    pub own_user: bool,
    /// In its cgroups.
    pub limits: Limits,
    /// What it sees of the file system.
    pub view: mounts::View,
}

impl Plan {
    /// Whether a layer is in it.
    pub(super) fn has(&self, layer: u32) -> bool {
        self.layers & layer != 0
    }
}

/// What `confinement` comes to where `available` layers can be had, for a job in the slot of user `slot`.
///
/// # Errors
/// `sandbox_unavailable` when what must be there is not, `user` when the user cannot be had.
pub(super) fn plan(confinement: &Confinement, available: u32, slot: Option<&str>) -> Result<Plan, Denial> {
    let identity = identity(confinement, available, slot)?;
    let mut asked = 0;
    let asks = [
        (layer::NETWORK, !confinement.network),
        (layer::MEMORY, confinement.memory.is_some()),
        (layer::PIDS, confinement.pids.is_some()),
        (layer::CPU, confinement.cpu.is_some()),
        (layer::MOUNTS, !confinement.devices.is_empty()),
    ];
    for (bit, asks) in asks {
        asked |= if asks { bit } else { 0 };
    }
    let user = if identity.as_ref().is_some_and(|i| i.uid != 0) { layer::USER } else { 0 };
    let wanted = BASE | layer::LANDLOCK | asked | user;
    let required = match confinement.strictness {
        Strictness::BestEffort => 0,
        Strictness::Asked => asked,
        // Root has no user of its own; whoever else is asked for is there or denied above.
        Strictness::Require if confinement.user == User::Root => asked | BASE,
        Strictness::Require => asked | BASE | layer::USER,
    };
    let layers = wanted & available;
    // Either of two keeps it from writing elsewhere.
    let writes = layers & (layer::MOUNTS | layer::LANDLOCK) != 0;
    let unbounded = confinement.strictness == Strictness::Asked && !confinement.write.is_empty() && !writes;
    if required & !layers != 0 || unbounded {
        return Err(Denial::SandboxUnavailable);
    }
    let limit = |bit, value: Option<u64>| value.filter(|_| layers & bit != 0);
    Ok(Plan {
        layers,
        own_user: identity.is_some() && matches!(confinement.user, User::Slot | User::Unsaid),
        identity,
        limits: Limits {
            memory: limit(layer::MEMORY, confinement.memory),
            pids: limit(layer::PIDS, confinement.pids),
            cpu: confinement.cpu.filter(|_| layers & layer::CPU != 0),
        },
        view: mounts::View {
            write: confinement.write.clone(),
            roots: confinement.roots.clone(),
            devices: confinement.devices.clone(),
            ..mounts::View::default()
        },
    })
}

fn identity(
    confinement: &Confinement,
    available: u32,
    slot: Option<&str>,
) -> Result<Option<Identity>, Denial> {
    let can = available & layer::USER != 0;
    let name = match (&confinement.user, slot) {
        (User::Unsaid, None) if confinement.groups.is_empty() => return Ok(None),
        (User::Unsaid, Some(_)) if !can && confinement.groups.is_empty() => return Ok(None),
        (User::Unsaid | User::Slot, Some(slot)) => slot,
        (User::Unsaid | User::Slot, None) => return Err(Denial::User),
        (User::Root, _) => "0",
        (User::Named(name), _) => name,
    };
    if !can {
        return Err(Denial::User);
    }
    users::find(name, &confinement.groups).map(Some).ok_or(Denial::User)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::policy::Policy;

    /// What a rule comes to: the words of its layers, or the denial.
    fn check(rule: &str, available: u32, slot: Option<&str>, want: &str) {
        let text = format!(
            "schema = 1\n[slots]\nusers = [\"65001\"]\n[root.data]\npath = \"/srv/data\"\n[[rule]]\nid = \"r\"\nprogram = \"/x\"\n{rule}\n"
        );
        let policy = Policy::parse(&[("p".to_owned(), text)]).unwrap();
        let found = match plan(&policy.rules[0].confinement, available, slot) {
            Ok(plan) => layer::words(plan.layers).collect::<Vec<_>>().join(" "),
            Err(denial) => denial.to_string(),
        };
        assert_eq!(found, want, "{rule}, {available:b}");
    }

    #[test]
    fn what_is_asked_for_is_there_or_the_job_does_not_run() {
        let all = layer::ALL.iter().fold(0, |bits, (bit, _)| bits | bit);
        let base = "no_new_privs cgroup rlimits user mounts ipc seccomp capabilities landlock";
        let few = layer::NO_NEW_PRIVS | layer::RLIMITS | layer::SECCOMP | layer::CAPABILITIES;
        let slot = Some("65001");
        let few_words = "no_new_privs rlimits seccomp capabilities";
        for (rule, available, slot, want) in [
            ("", all, slot, base),
            ("sandbox = \"require\"", all, slot, base),
            ("sandbox = \"require\"", all, None, "sandbox_unavailable"),
            ("user = \"root\"\nsandbox = \"require\"", all, slot, &base.replace("user ", "")),
            ("", few, slot, few_words),
            ("sandbox = \"require\"", few, slot, "sandbox_unavailable"),
            ("sandbox = \"require\"", all & !layer::LANDLOCK, slot, &base.replace(" landlock", "")),
            ("sandbox = \"require\"", all & !layer::SECCOMP, slot, "sandbox_unavailable"),
            ("sandbox = \"require\"", all & !layer::USER, slot, "sandbox_unavailable"),
            ("network = false", few, slot, "sandbox_unavailable"),
            ("network = false\nsandbox = \"best-effort\"", few, slot, few_words),
            ("limits = { memory = \"1GiB\" }", all & !layer::MEMORY, slot, "sandbox_unavailable"),
            ("limits = { memory = \"1GiB\" }", all, slot, &format!("{base} memory")),
            ("limits = { pids = 9 }", few, slot, "sandbox_unavailable"),
            ("limits = { cpu = \"50%\" }", few, slot, "sandbox_unavailable"),
            ("devices = [\"/dev/nvmap\"]", few, slot, "sandbox_unavailable"),
            ("write = [\"root:data/out\"]", few, slot, "sandbox_unavailable"),
            (
                "write = [\"root:data/out\"]",
                few | layer::LANDLOCK,
                slot,
                "no_new_privs rlimits seccomp capabilities landlock",
            ),
            ("user = \"slot\"", few, slot, "user"),
            ("user = \"slot\"\nsandbox = \"best-effort\"", few, slot, "user"),
            ("user = \"slot\"", all, None, "user"),
            ("user = \"nobody-of-that-name\"", all, slot, "user"),
            ("groups = [\"44\"]", few, slot, "user"),
            ("groups = [\"44\"]", all, slot, base),
        ] {
            check(rule, available, slot, want);
        }
    }
}
