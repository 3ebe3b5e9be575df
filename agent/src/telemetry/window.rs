//! What happened between two readings of one boot. A counter that went back, or was not there before, gives no figure.

use super::cpu::{self, Stat};
use super::disk;
use super::named::Named;
use super::pressure::Totals;
use super::report::Report;
use serde::Serialize;

/// Between two readings.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Window {
    /// Its length, by the board's own /proc/uptime.
    pub dt_s: f64,
    /// Busy share of each core by its number; none for those that are offline.
    pub cpu_busy_permille: Vec<Option<u16>>,
    /// Busy share of all cores.
    pub cpu_busy_total_permille: Option<u16>,
    /// Load of the GPU, which is a figure of the later reading.
    pub gpu_util_permille: Option<u32>,
    /// Under-voltage events.
    pub oc1_delta: Option<u64>,
    /// Average over-current events.
    pub oc2_delta: Option<u64>,
    /// Instantaneous over-current events.
    pub oc3_delta: Option<u64>,
    /// All whole disks together.
    pub disk: Option<disk::Counters>,
    /// Time waited.
    pub psi_total_delta_us: Option<Totals>,
    /// The same as shares.
    pub psi_permille: Option<Shares>,
    /// Processes of the agent's cgroup that were killed for want of memory.
    pub oom_kill_delta: Option<u64>,
}

/// Shares of the window, in permille.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[allow(missing_docs, reason = "as in pressure::Totals")]
pub struct Shares {
    pub cpu_some: Option<u16>,
    pub mem_some: Option<u16>,
    pub mem_full: Option<u16>,
    pub io_some: Option<u16>,
    pub io_full: Option<u16>,
}

/// The counters of one reading.
#[derive(Debug, Clone, PartialEq)]
pub struct Counters {
    boot_id: Option<String>,
    uptime_s: Option<f64>,
    stat: Option<Stat>,
    psi: Option<Totals>,
    disks: Option<Named<disk::Counters>>,
    oc: [Option<u64>; 3],
    oom_kill: Option<u64>,
    gpu_util_permille: Option<u32>,
}

impl Counters {
    /// Those of `report`.
    pub fn of(report: &Report, stat: Option<Stat>) -> Self {
        let oc = report.oc_events.as_ref();
        Self {
            boot_id: report.boot_id.clone(),
            uptime_s: report.uptime_s,
            stat,
            psi: report.psi_total_us.clone(),
            disks: report.disks.clone(),
            oc: [oc.and_then(|o| o.oc1), oc.and_then(|o| o.oc2), oc.and_then(|o| o.oc3)],
            oom_kill: report.agent_cgroup.as_ref().and_then(|c| c.oom_kill),
            gpu_util_permille: report.gpu.as_ref().and_then(|g| g.util_permille),
        }
    }

    /// What happened since `before`; nothing when no time passed, or the board has booted in between.
    pub fn since(&self, before: &Self) -> Option<Window> {
        let dt_s = self.uptime_s? - before.uptime_s?;
        if dt_s <= 0.0 || self.boot_id != before.boot_id {
            return None;
        }
        // Uptime has two decimals; their difference is to have no more.
        let dt_s = (dt_s * 100.0).round() / 100.0;
        let delta = |after: Option<u64>, before: Option<u64>| after?.checked_sub(before?);
        let psi = self.psi.as_ref().zip(before.psi.as_ref()).map(|(after, before)| after.since(before));
        let (cpu_busy_permille, cpu_busy_total_permille) = match (&before.stat, &self.stat) {
            (Some(before), Some(after)) => busy(before, after),
            _ => (Vec::new(), None),
        };
        Some(Window {
            dt_s,
            cpu_busy_permille,
            cpu_busy_total_permille,
            gpu_util_permille: self.gpu_util_permille,
            oc1_delta: delta(self.oc[0], before.oc[0]),
            oc2_delta: delta(self.oc[1], before.oc[1]),
            oc3_delta: delta(self.oc[2], before.oc[2]),
            disk: self.disks.as_ref().zip(before.disks.as_ref()).and_then(|(a, b)| disk::since(b, a)),
            psi_permille: psi.as_ref().map(|psi| shares(psi, dt_s)),
            psi_total_delta_us: psi,
            oom_kill_delta: delta(self.oom_kill, before.oom_kill),
        })
    }
}

fn busy(before: &Stat, after: &Stat) -> (Vec<Option<u16>>, Option<u16>) {
    let mut cores = Vec::new();
    for (n, now) in &after.cores {
        let n = *n as usize;
        if cores.len() <= n {
            cores.resize(n + 1, None);
        }
        let then = before.cores.iter().find(|(m, _)| *m as usize == n);
        cores[n] = then.and_then(|(_, then)| cpu::busy_permille(*then, *now));
    }
    let all = before.all.zip(after.all).and_then(|(then, now)| cpu::busy_permille(then, now));
    (cores, all)
}

fn shares(psi: &Totals, dt_s: f64) -> Shares {
    // A little more than the whole can come out: the two files are not read at one moment.
    let share =
        |us: Option<u64>| us.map(|us| (us as f64 / (dt_s * 1000.0)).round().clamp(0.0, 1000.0) as u16);
    Shares {
        cpu_some: share(psi.cpu_some),
        mem_some: share(psi.mem_some),
        mem_full: share(psi.mem_full),
        io_some: share(psi.io_some),
        io_full: share(psi.io_full),
    }
}

#[cfg(test)]
mod tests {
    use super::super::cpu::Times;
    use super::*;

    fn at(uptime_s: f64, boot: &str) -> Counters {
        let report = Report { uptime_s: Some(uptime_s), boot_id: Some(boot.into()), ..Report::default() };
        Counters::of(&report, None)
    }

    #[test]
    fn there_is_no_window_over_a_reboot_or_no_time() {
        for (before, after, want) in [
            (at(10.0, "a"), at(20.1, "a"), Some(10.1)),
            (at(10.0, "a"), at(10.0, "a"), None),
            (at(10.0, "a"), at(5.0, "a"), None),
            (at(10.0, "a"), at(20.0, "b"), None),
        ] {
            assert_eq!(after.since(&before).map(|w| w.dt_s), want);
        }
    }

    #[test]
    fn cores_that_are_offline_have_no_share() {
        let stat = |cores: &[(u32, u64)]| Stat {
            all: None,
            cores: cores.iter().map(|(n, t)| (*n, Times { busy: *t / 2, total: *t })).collect(),
        };
        let (cores, all) = busy(&stat(&[(0, 100), (1, 100)]), &stat(&[(0, 200), (3, 100)]));
        assert_eq!(cores, [Some(500), None, None, None]);
        assert_eq!(all, None);
    }
}
