//! From a report to what the protocol carries: the inventory, and a value for each of its slots.

use super::report::Report;
use crate::event::Reading;
use dunlin_wire::limits::{NAME_MAX, SLOTS_MAX, TEXT_MAX};
use dunlin_wire::nvml::Gpu;
use dunlin_wire::telemetry::{Inventory, Slot};
use std::sync::Arc;

/// Network interfaces that are told of; a host of containers has hundreds.
const INTERFACES_MAX: usize = 4;

/// Remembers the slots that were ever seen, so that a sensor which is switched off and on changes no inventory.
#[derive(Debug, Default)]
pub struct Shape {
    known: Option<Arc<Inventory>>,
}

impl Shape {
    /// The report, as it is told.
    pub fn reading(&mut self, report: &Report) -> Reading {
        let mut found = slots(report);
        found.truncate(SLOTS_MAX);
        let mut slots = self.known.as_ref().map_or_else(Vec::new, |known| known.slots.clone());
        let mut values = vec![None; slots.len()];
        let mut seen = vec![false; slots.len()];
        for (slot, value) in found {
            match slots.iter().position(|known| known.words() == slot.words()) {
                // Two of one name cannot be told apart: the first counts.
                Some(at) if seen[at] => {}
                Some(at) => {
                    // What belongs to it, as a size or a trip point, may be another now.
                    slots[at] = slot;
                    values[at] = value;
                    seen[at] = true;
                }
                None if value.is_some() && slots.len() < SLOTS_MAX => {
                    slots.push(slot);
                    values.push(value);
                    seen.push(true);
                }
                None => {}
            }
        }
        let mut now = inventory(report, slots);
        if let Some(known) = self.known.as_ref().filter(|_| now.gpu.is_none()) {
            // Who knows it may be silent for a while. It is there.
            (now.gpu, now.gpu_memory_shared) = (known.gpu.clone(), known.gpu_memory_shared);
        }
        let same = |known: &Arc<Inventory>| {
            let told = Inventory { number: known.number, uptime_s: known.uptime_s, ..now.clone() };
            **known == told
        };
        let inventory = match self.known.take() {
            Some(known) if same(&known) => known,
            before => Arc::new(Inventory { number: before.map_or(1, |i| i.number + 1), ..now }),
        };
        self.known = Some(inventory.clone());
        Reading { inventory, values, jobs: Vec::new() }
    }
}

/// What a board without a GPU of its own says of those that NVIDIA's driver knows.
fn discrete(report: &Report) -> Option<&[Gpu]> {
    report.nvml.as_deref().filter(|gpus| report.gpu.is_none() && !gpus.is_empty())
}

fn inventory(report: &Report, slots: Vec<Slot>) -> Inventory {
    let mode = report.power_mode.as_ref();
    Inventory {
        number: 0,
        family: text(report.family, TEXT_MAX),
        model: report.model.as_deref().map(|t| text(t, TEXT_MAX)),
        l4t: report.l4t.as_deref().map(|t| text(t, TEXT_MAX)),
        kernel: report.kernel.as_deref().map(|t| text(t, TEXT_MAX)),
        power_mode: mode.map(|m| m.name.as_deref().map_or_else(|| m.id.to_string(), |t| text(t, TEXT_MAX))),
        clocks_pinned: report.clocks_pinned,
        cpus: report.cpu.n,
        memory_total_mib: report.mem_kib.total.map(|kib| kib / 1024),
        swap_total_mib: report.mem_kib.swap_total.map(|kib| kib / 1024),
        gpu: match (&report.gpu, discrete(report)) {
            (Some(gpu), _) => Some(gpu.source.to_owned()),
            (None, Some([first, ..])) => Some(
                first.name.as_deref().map_or("nvml".into(), |name| text(&format!("nvml: {name}"), TEXT_MAX)),
            ),
            (None, _) => None,
        },
        gpu_memory_shared: match (&report.gpu, discrete(report)) {
            (Some(gpu), _) => Some(gpu.mem == "shared"),
            (None, gpus) => gpus.map(|_| false),
        },
        uptime_s: report.uptime_s.map(|s| s as u64),
        slots,
    }
}

/// At most `max` bytes, and nothing that moves a cursor.
fn text(raw: &str, max: usize) -> String {
    let mut out = String::new();
    for c in raw.trim().chars().map(|c| if c.is_control() { '?' } else { c }) {
        if out.len() + c.len_utf8() > max {
            break;
        }
        out.push(c);
    }
    out
}

fn slots(report: &Report) -> Vec<(Slot, Option<i64>)> {
    let mut found = Vec::new();
    let mut add = |slot, value: Option<i64>| found.push((slot, value));
    let signed = |n: u64| i64::try_from(n).ok();
    let name = |raw: &str| text(raw, NAME_MAX);
    let window = report.window.as_ref();
    let memory = &report.mem_kib;
    add(Slot::Cpu, window.and_then(|w| w.cpu_busy_total_permille).map(Into::into));
    add(Slot::Load, report.load.map(|[one, ..]| (one * 100.0).round() as i64));
    add(Slot::MemoryAvailable, memory.available.and_then(|kib| signed(kib / 1024)));
    let swap = memory.swap_total.zip(memory.swap_free).and_then(|(all, free)| all.checked_sub(free));
    add(Slot::SwapUsed, swap.and_then(|kib| signed(kib / 1024)));
    if let Some(gpu) = &report.gpu {
        add(Slot::Gpu, gpu.util_permille.map(Into::into));
        add(Slot::GpuClock, gpu.freq_khz.and_then(|khz| signed(khz / 1000)));
    }
    found_by_nvml(discrete(report).unwrap_or_default(), &mut add);
    let nvmap = memory.nvmap_used.or(memory.nvmap_debugfs_root_only);
    add(Slot::GpuMemoryUsed, nvmap.and_then(|kib| signed(kib / 1024)));
    if let Some(total) = &report.power_total {
        add(Slot::Power { measured: total.kind == "measured" }, Some(total.mw.into()));
    }
    for rail in &report.rails {
        add(Slot::Rail { name: name(&rail.label) }, rail.mw.map(Into::into));
    }
    for (sensor, mc) in report.temps_mc.iter() {
        let trip = report.trips_mc.get(sensor).map(|mc| tenths(*mc));
        add(Slot::Temperature { name: name(sensor), trip }, Some(tenths(*mc).into()));
    }
    add(Slot::Fan, report.fan.as_ref().and_then(|fan| fan.rpm).map(Into::into));
    add(Slot::Throttled, throttled(report).map(|on| if on { 1000 } else { 0 }));
    add(Slot::UnderVoltage, report.undervoltage.map(|on| if on { 1000 } else { 0 }));
    if let Some(oc) = &report.oc_events {
        for (kind, n) in [(1, oc.oc1), (2, oc.oc2), (3, oc.oc3)] {
            add(Slot::OverCurrent { kind }, n.and_then(signed));
        }
    }
    add(Slot::OomKills, report.agent_cgroup.as_ref().and_then(|c| c.oom_kill).and_then(signed));
    if let Some(psi) = &report.psi_total_us {
        for (slot, us) in [
            (Slot::CpuWaiting, psi.cpu_some),
            (Slot::MemoryWaiting, psi.mem_some),
            (Slot::MemoryStalled, psi.mem_full),
            (Slot::IoWaiting, psi.io_some),
            (Slot::IoStalled, psi.io_full),
        ] {
            add(slot, us.and_then(|us| signed(us / 1000)));
        }
    }
    if let Some(disks) = report.disks.as_ref().filter(|disks| !disks.is_empty()) {
        let sum = |of: fn(&super::disk::Counters) -> u64| {
            disks.iter().try_fold(0u64, |sum, (_, disk)| sum.checked_add(of(disk))).map(|bytes| bytes >> 20)
        };
        add(Slot::DiskRead, sum(|d| d.read_bytes).and_then(signed));
        add(Slot::DiskWritten, sum(|d| d.write_bytes).and_then(signed));
    }
    let is_down = |state: &Option<String>| state.as_deref() == Some("down");
    let interfaces = report.network.iter().flat_map(|found| found.iter()).filter(|(_, i)| !is_down(&i.state));
    for (interface, counters) in interfaces.take(INTERFACES_MAX) {
        let name = name(interface);
        add(Slot::NetworkReceived { name: name.clone() }, signed(counters.rx_bytes >> 20));
        add(Slot::NetworkSent { name }, signed(counters.tx_bytes >> 20));
    }
    for (mount, usage) in report.filesystems.iter() {
        if let Some(usage) = usage {
            let slot = Slot::Filesystem { name: name(mount), total_mib: usage.total_kib / 1024 };
            add(slot, signed(usage.available_kib / 1024));
        }
    }
    for (disk, storage) in report.storage.iter() {
        let life = storage.life_used_pct.and_then(|kinds| kinds.into_iter().flatten().max());
        add(Slot::Wear { name: name(disk) }, life.map(Into::into));
    }
    found
}

/// The first GPU has the slots that an SoC's has. Free memory is of each that has some, instances too.
fn found_by_nvml(gpus: &[Gpu], add: &mut impl FnMut(Slot, Option<i64>)) {
    for gpu in gpus {
        let unit = text(&gpu.unit, NAME_MAX);
        let (used, total) = gpu.memory_mib.unzip();
        let signed = |n: Option<u64>| n.and_then(|n| i64::try_from(n).ok());
        let named = |what: &str| if unit == "0" { what.to_owned() } else { format!("{what}{unit}") };
        if unit == "0" {
            add(Slot::Gpu, gpu.busy_permille.map(Into::into));
            add(Slot::GpuClock, gpu.clock_mhz.map(Into::into));
            add(Slot::GpuMemoryUsed, signed(used));
        } else {
            add(Slot::FurtherGpu { name: unit.clone() }, gpu.busy_permille.map(Into::into));
        }
        add(Slot::Rail { name: named("GPU") }, gpu.power_mw.map(Into::into));
        let trip = gpu.slowdown_c.map(|c| i32::from(c) * 10);
        let celsius = gpu.temperature_c.map(|c| i64::from(c) * 10);
        add(Slot::Temperature { name: named("gpu"), trip }, celsius);
        if let (Some(used), Some(total_mib)) = (used, total) {
            add(Slot::GpuMemoryFree { name: unit, total_mib }, signed(total_mib.checked_sub(used)));
        }
    }
}

/// Rounded to the nearest.
fn tenths(mc: i32) -> i32 {
    (f64::from(mc) / 100.0).round() as i32
}

/// Is anything slowed down? Unknown where nothing could say so, and while a part of it is unknown and the rest says no.
fn throttled(report: &Report) -> Option<bool> {
    let alerts = report.throttle_alerts.iter().map(|(_, alert)| alert.map(|n| n > 0));
    let cooling = report.cooling.iter().map(|(_, cooling)| cooling.cur.map(|n| n > 0));
    let firmware = report.rpi.iter().map(|f| Some(f.throttled_now || f.freq_capped_now || f.soft_temp_now));
    let gpus = report.nvml.iter().flatten().filter_map(|gpu| gpu.throttled.map(Some));
    let said: Vec<Option<bool>> = alerts.chain(cooling).chain(firmware).chain(gpus).collect();
    match said.contains(&Some(true)) {
        true => Some(true),
        false => (!said.is_empty() && !said.contains(&None)).then_some(false),
    }
}

#[cfg(test)]
mod tests {
    use super::super::power::Rail;
    use super::*;

    #[test]
    fn slots_stay_and_unknown_is_no_value() {
        let rail = |mw| Rail { label: "VDD\u{7}IN".into(), mv: None, ma: None, mw };
        let mut report = Report { family: "t234", rails: vec![rail(Some(-392))], ..Report::default() };
        let mut shape = Shape::default();
        let first = shape.reading(&report);
        assert_eq!(first.inventory.slots, [Slot::Rail { name: "VDD?IN".into() }]);
        assert_eq!((first.values, first.inventory.number), (vec![Some(-392)], 1));
        report.rails = vec![rail(Some(-391)), rail(Some(7))];
        assert_eq!(shape.reading(&report).values, [Some(-391)], "the first of two of one name");
        report.rails = vec![rail(None)];
        report.uptime_s = Some(5.0);
        let off = shape.reading(&report);
        assert_eq!((off.values, off.inventory.number), (vec![None], 1), "switched off is not another board");
        report.load = Some([0.5, 0.0, 0.0]);
        let more = shape.reading(&report);
        assert_eq!((more.values, more.inventory.number), (vec![None, Some(50)], 2));
    }

    #[test]
    fn a_part_that_is_unknown_leaves_throttling_unknown_unless_another_says_yes() {
        let check = |alerts: &[Option<u32>], want| {
            let mut report = Report::default();
            for (n, alert) in alerts.iter().enumerate() {
                report.throttle_alerts.insert(n.to_string(), *alert);
            }
            assert_eq!(throttled(&report), want, "{alerts:?}");
        };
        check(&[], None);
        check(&[Some(0), Some(0)], Some(false));
        check(&[Some(0), None], None);
        check(&[Some(1), None], Some(true));
    }
}
