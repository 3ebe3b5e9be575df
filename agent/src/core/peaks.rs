//! What the board was like while an attempt ran: greatest values, and energy as the area under its power.

use crate::clock::BootMs;
use crate::event::Reading;
use dunlin_wire::Fence;
use dunlin_wire::job::Peaks;
use dunlin_wire::telemetry::Slot;

/// Between two figures of power that are further apart than this nothing is known of it, in milliseconds. Readings
/// come every 2 s.
const GAP_MS: BootMs = 10_000;
/// Micro joules of a milliwatt hour.
const UJ_PER_MWH: i128 = 3_600_000;

/// Of one attempt, from its start.
#[derive(Debug, Clone)]
pub struct Watch {
    peaks: Peaks,
    readings: u32,
    // Energy until `at`, in micro joules, and the power then, in mW. `None` once a part of it is unknown.
    energy: Option<i128>,
    at: BootMs,
    power: Option<i64>,
}

impl Watch {
    /// It starts; `power` was read before, at the time that goes with it.
    pub fn new(now: BootMs, power: Option<(BootMs, i64)>) -> Self {
        let power = power.filter(|(at, _)| now.saturating_sub(*at) <= GAP_MS).map(|(_, mw)| mw);
        Self { peaks: Peaks::default(), readings: 0, energy: Some(0), at: now, power }
    }

    /// The board was looked at.
    pub fn handle_reading(&mut self, reading: &Reading, fence: Fence, now: BootMs) {
        self.readings += 1;
        let find = |wanted: &dyn Fn(&Slot) -> bool| {
            reading
                .inventory
                .slots
                .iter()
                .zip(&reading.values)
                .find(|(slot, _)| wanted(slot))?
                .1
                .as_ref()
                .copied()
        };
        let unsigned = |value: Option<i64>| value.and_then(|n| u64::try_from(n).ok());
        let free = unsigned(find(&|slot| *slot == Slot::MemoryAvailable));
        let used = reading.inventory.memory_total_mib.zip(free).and_then(|(all, free)| all.checked_sub(free));
        let gpu = unsigned(find(&|slot| *slot == Slot::Gpu)).and_then(|n| u32::try_from(n).ok());
        let own = reading.jobs.iter().find(|(job, _)| *job == fence).map(|(_, mib)| *mib);
        // `None` is less than any figure.
        self.peaks.gpu_permille = self.peaks.gpu_permille.max(gpu);
        self.peaks.memory_used_mib = self.peaks.memory_used_mib.max(used);
        self.peaks.gpu_memory_mib = self.peaks.gpu_memory_mib.max(own);
        self.add(find(&|slot| matches!(slot, Slot::Power { .. })), now);
    }

    /// It ended.
    pub fn finish(mut self, now: BootMs) -> Peaks {
        if self.readings == 0 {
            return Peaks::default();
        }
        self.add(self.power, now);
        let mwh = self.energy.map(|uj| (uj + UJ_PER_MWH / 2) / UJ_PER_MWH);
        Peaks { energy_mwh: mwh.and_then(|mwh| u64::try_from(mwh).ok()), ..self.peaks }
    }

    fn add(&mut self, power: Option<i64>, now: BootMs) {
        let time = now.saturating_sub(self.at);
        // What was not read before the start was as it was read first.
        let before = self.power.or(power.filter(|_| self.readings == 1));
        let area = before.zip(power).filter(|_| time <= GAP_MS);
        let area = area.map(|(a, b)| (i128::from(a) + i128::from(b)) * i128::from(time) / 2);
        self.energy = self.energy.zip(area).map(|(sum, area)| sum + area);
        (self.at, self.power) = (now, power);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dunlin_wire::telemetry::Inventory;
    use std::sync::Arc;

    fn reading(gpu: Option<i64>, free: Option<i64>, power: Option<i64>, job: Option<u64>) -> Reading {
        let slots = vec![Slot::Gpu, Slot::MemoryAvailable, Slot::Power { measured: true }];
        let inventory = Inventory { memory_total_mib: Some(1000), slots, ..Inventory::default() };
        let jobs = job.map(|mib| (Fence(7), mib)).into_iter().collect();
        Reading { inventory: Arc::new(inventory), values: vec![gpu, free, power], jobs }
    }

    fn energy(start: Option<(BootMs, i64)>, powers: &[(BootMs, Option<i64>)], end: BootMs) -> Option<u64> {
        let mut watch = Watch::new(100_000, start);
        for (at, power) in powers {
            watch.handle_reading(&reading(None, None, *power, None), Fence(7), *at);
        }
        watch.finish(end).energy_mwh
    }

    #[test]
    fn the_greatest_counts_and_unknown_is_less_than_any() {
        let mut watch = Watch::new(0, None);
        for (gpu, free, job) in
            [(Some(300), Some(900), None), (Some(630), Some(100), Some(5)), (None, None, Some(4))]
        {
            watch.handle_reading(&reading(gpu, free, None, job), Fence(7), 2_000);
        }
        let want = Peaks {
            gpu_permille: Some(630),
            memory_used_mib: Some(900),
            gpu_memory_mib: Some(5),
            energy_mwh: None,
        };
        assert_eq!(watch.clone().finish(2_500), want);
        watch.handle_reading(&reading(None, None, None, Some(99)), Fence(8), 3_000);
        assert_eq!(watch.finish(3_500).gpu_memory_mib, Some(5), "another attempt's");
        assert_eq!(Watch::new(0, Some((0, 5_000))).finish(1_000), Peaks::default(), "no reading, no figure");
    }

    #[test]
    fn energy_is_the_area_under_the_power_or_unknown() {
        let steady = [(104_000, Some(36_000)), (110_000, Some(36_000))];
        assert_eq!(energy(Some((99_000, 36_000)), &steady, 120_000), Some(200), "36 W for 20 s");
        assert_eq!(energy(None, &steady, 120_000), Some(200));
        let rising = [(110_000, Some(72_000))];
        assert_eq!(energy(Some((99_000, 0)), &rising, 110_000), Some(100));
        assert_eq!(
            energy(Some((50_000, 0)), &rising, 110_000),
            Some(200),
            "what was read long before says nothing"
        );
        for (powers, end) in [
            (&[(104_000, Some(36_000)), (106_000, None), (108_000, Some(36_000))][..], 109_000),
            (&[(104_000, Some(36_000)), (114_001, Some(36_000))], 115_000),
            (&[(104_000, Some(36_000))], 114_001),
            (&[(110_001, Some(36_000))], 111_000),
            (&[(104_000, None)], 105_000),
            (&[(104_000, Some(-9_000_000))], 105_000),
        ] {
            assert_eq!(energy(None, powers, end), None, "{powers:?}");
        }
    }
}
