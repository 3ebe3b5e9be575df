//! CPU and memory of the host, from /proc by sysinfo.

use dunlin_wire::message::HostSample;
use sysinfo::{CpuRefreshKind, MemoryRefreshKind, RefreshKind, System};

/// Reads the host's figures; CPU is the busy share since the last reading.
pub struct Host {
    system: System,
    read_before: bool,
}

impl Default for Host {
    fn default() -> Self {
        let what = RefreshKind::nothing()
            .with_cpu(CpuRefreshKind::nothing().with_cpu_usage())
            .with_memory(MemoryRefreshKind::nothing().with_ram());
        Self { system: System::new_with_specifics(what), read_before: false }
    }
}

impl Host {
    /// One reading.
    pub fn sample(&mut self) -> HostSample {
        self.system.refresh_cpu_usage();
        self.system.refresh_memory_specifics(MemoryRefreshKind::nothing().with_ram());
        let busy = (self.system.global_cpu_usage() * 10.0).clamp(0.0, 1000.0) as u16;
        let known = |kib: u64| (kib > 0).then_some(kib);
        HostSample {
            // The first reading has nothing to be a share of.
            cpu_permille: std::mem::replace(&mut self.read_before, true).then_some(busy),
            memory_total_kib: known(self.system.total_memory() / 1024),
            memory_available_kib: known(self.system.available_memory() / 1024),
            uptime_s: known(System::uptime()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_what_proc_says() {
        let text = std::fs::read_to_string("/proc/meminfo").unwrap();
        let total: u64 = text.lines().next().unwrap().split_whitespace().nth(1).unwrap().parse().unwrap();
        let sample = Host::default().sample();
        let got = sample.memory_total_kib.unwrap();
        assert!(got.abs_diff(total) * 20 <= total, "{got} against {total}");
        assert_eq!(sample.cpu_permille, None, "a share of no time is unknown");
    }
}
