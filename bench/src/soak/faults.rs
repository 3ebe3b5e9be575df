//! Which fault comes when, from a seed: so that a run that found something can be repeated.

use fastrand::Rng;

/// What is done to the fleet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// SIGKILL of the hub, which is away for so many milliseconds.
    Hub { ms: u64 },
    /// SIGKILL of an agent's uplink, which is away for so many milliseconds.
    Agent { at: usize, ms: u64 },
    /// SIGKILL of an agent's executor.
    Executor { at: usize },
    /// No packet passes for so many milliseconds.
    Cut { ms: u64 },
    /// An agent's disk is full for so many milliseconds.
    AgentDisk { at: usize, ms: u64 },
    /// The hub's disk is.
    HubDisk { ms: u64 },
}

impl Fault {
    /// What is counted of it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Fault::Hub { .. } => "hub killed",
            Fault::Agent { .. } => "agent killed",
            Fault::Executor { .. } => "executor killed",
            Fault::Cut { .. } => "link cut",
            Fault::AgentDisk { .. } => "agent's disk full",
            Fault::HubDisk { .. } => "hub's disk full",
        }
    }

    /// How long it lasts, in milliseconds.
    pub(super) fn ms(self) -> u64 {
        match self {
            Fault::Hub { ms }
            | Fault::Agent { ms, .. }
            | Fault::Cut { ms }
            | Fault::AgentDisk { ms, .. }
            | Fault::HubDisk { ms } => ms,
            Fault::Executor { .. } => 0,
        }
    }
}

/// A fault every 3 to 12 s until `end_ms`, each with when it begins; every third or so before the last is over. Without
/// `root` there are no cuts and no full disks.
pub(super) fn schedule(seed: u64, end_ms: u64, agents: usize, root: bool) -> Vec<(u64, Fault)> {
    let mut rng = Rng::with_seed(seed);
    let mut at = 3_000;
    let mut all = Vec::new();
    while at < end_ms {
        let agent = rng.usize(0..agents);
        let fault = match rng.u32(0..if root { 12 } else { 6 }) {
            0 | 1 => Fault::Hub { ms: rng.u64(0..3_000) },
            2 | 3 => Fault::Agent { at: agent, ms: rng.u64(0..3_000) },
            4 | 5 => Fault::Executor { at: agent },
            // Longer than a lease, now and then.
            6 => Fault::Cut { ms: rng.u64(8_000..20_000) },
            7..=9 => Fault::Cut { ms: rng.u64(100..5_000) },
            10 => Fault::AgentDisk { at: agent, ms: rng.u64(1_000..6_000) },
            _ => Fault::HubDisk { ms: rng.u64(1_000..6_000) },
        };
        all.push((at, fault));
        at += rng.u64(3_000..12_000);
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn a_seed_is_a_schedule_and_an_hour_has_every_fault() {
        let hour = schedule(7, 3_600_000, 3, true);
        assert_eq!(hour, schedule(7, 3_600_000, 3, true));
        assert_ne!(hour, schedule(8, 3_600_000, 3, true));
        let names: BTreeSet<_> = hour.iter().map(|(_, fault)| fault.name()).collect();
        assert_eq!(names.len(), 6, "{names:?}");
        assert!(hour.windows(2).all(|w| w[0].0 < w[1].0));
        let names: BTreeSet<_> = schedule(7, 3_600_000, 3, false).iter().map(|(_, f)| f.name()).collect();
        assert_eq!(names.into_iter().collect::<Vec<_>>(), ["agent killed", "executor killed", "hub killed"]);
    }
}
