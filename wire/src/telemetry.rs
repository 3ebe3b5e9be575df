//! What a board reports. [`Inventory`] is what rarely changes: it names the slots, and what they mean. [`Sample`] is a
//! figure for each slot over the time since the report before. Unknown is `None` or not listed, never 0.
//!
//! Both the inventory and full samples travel on the control stream, so they arrive, in order. Between them samples are
//! deltas against the newest full one: they may be lost or come twice, for each is about its base and not about the
//! delta before it.

use crate::limits::{NAME_MAX, SLOTS_MAX, TEXT_MAX};
use serde::de::{Error as _, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use std::fmt;
use std::marker::PhantomData;

/// Full samples are at most this many reports apart.
pub const FULL_EVERY: u32 = 60;

/// Alarms of one kind are at least this far apart, in milliseconds.
pub const ALARM_MS: u64 = 30_000;

/// What cannot wait for a report. Append only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Alarm {
    /// Something began to be slowed down.
    Throttled,
    /// The supply's voltage dropped.
    UnderVoltage,
    /// The kernel killed for want of memory.
    OomKill,
    /// A filesystem has less than 5 % left.
    DiskLow,
    /// A temperature is within 5 C of its trip point.
    Hot,
}

impl Alarm {
    /// Every kind, in wire order.
    pub const ALL: [Alarm; 5] =
        [Alarm::Throttled, Alarm::UnderVoltage, Alarm::OomKill, Alarm::DiskLow, Alarm::Hot];

    /// The stable word.
    pub fn as_str(self) -> &'static str {
        match self {
            Alarm::Throttled => "throttled",
            Alarm::UnderVoltage => "under_voltage",
            Alarm::OomKill => "oom_kill",
            Alarm::DiskLow => "disk_low",
            Alarm::Hot => "hot",
        }
    }
}

/// What rarely changes. At connect, and when it did change.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inventory {
    /// Grows with each change while the agent's process lives; samples name it.
    pub number: u32,
    /// Kind of board, `t234` for example.
    pub family: String,
    /// As the board calls itself.
    pub model: Option<String>,
    /// Release of NVIDIA's L4T.
    pub l4t: Option<String>,
    /// Release of the kernel.
    pub kernel: Option<String>,
    /// The power mode that was asked for.
    pub power_mode: Option<String>,
    /// Whether every CPU's lowest clock is its highest.
    pub clocks_pinned: Option<bool>,
    /// CPUs that are online.
    pub cpus: Option<u32>,
    /// Memory, in MiB.
    pub memory_total_mib: Option<u64>,
    /// Swap, in MiB. 0 is a figure: there is none.
    pub swap_total_mib: Option<u64>,
    /// What knows the GPU; `None` when nothing knows of one.
    pub gpu: Option<String>,
    /// Whether the GPU has no memory but the board's.
    pub gpu_memory_shared: Option<bool>,
    /// Time since boot, in seconds, when this was said.
    pub uptime_s: Option<u64>,
    /// What samples are about, in their order.
    #[serde(deserialize_with = "at_most_slots")]
    pub slots: Vec<Slot>,
}

/// What one figure is about, with its unit. Append only.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Slot {
    /// Busy share of all CPUs, in permille.
    Cpu,
    /// Load over a minute, in hundredths.
    Load,
    /// Memory that programs could take without swapping, in MiB.
    MemoryAvailable,
    /// Swap in use, in MiB.
    SwapUsed,
    /// Busy share of the GPU, in permille.
    Gpu,
    /// Clock of the GPU, in MHz.
    GpuClock,
    /// Memory that the GPU uses, in MiB.
    GpuMemoryUsed,
    /// What the whole board draws, in mW.
    Power {
        /// Measured at its input; else it is the sum of the rails, which misses what has none.
        measured: bool,
    },
    /// What a rail draws, in mW. Signed: one that is off reads a little below zero.
    Rail {
        /// As the board calls it.
        name: String,
    },
    /// A temperature, in tenths of a degree Celsius.
    Temperature {
        /// As the board calls it.
        name: String,
        /// Where the kernel slows down hard or switches off, in the same unit.
        trip: Option<i32>,
    },
    /// Speed of the fan, in turns a minute.
    Fan,
    /// 1000 while something is slowed down to cool it or for want of current, else 0: the mean is a share of the time.
    Throttled,
    /// 1000 while the supply's voltage is low, else 0.
    UnderVoltage,
    /// Events of over-current, since boot: 1 under-voltage, 2 average, 3 instantaneous.
    OverCurrent {
        /// Which.
        kind: u8,
    },
    /// Processes of the agent's cgroup that were killed for want of memory.
    OomKills,
    /// Time in which something waited for a CPU, in ms since boot.
    CpuWaiting,
    /// Time in which something waited for memory, in ms since boot.
    MemoryWaiting,
    /// Time in which everything waited for memory, in ms since boot.
    MemoryStalled,
    /// Time in which something waited for a disk, in ms since boot.
    IoWaiting,
    /// Time in which everything waited for a disk, in ms since boot.
    IoStalled,
    /// Read from all disks, in MiB since boot.
    DiskRead,
    /// Written to all disks, in MiB since boot.
    DiskWritten,
    /// What is free for users on a filesystem, in MiB.
    Filesystem {
        /// Where it is mounted.
        name: String,
        /// Its size, in MiB.
        total_mib: u64,
    },
    /// Life used of a disk, in percent, as its maker counts.
    Wear {
        /// The disk.
        name: String,
    },
    /// Busy share of a further GPU, in permille: where there are several, the first is [`Slot::Gpu`].
    FurtherGpu {
        /// The driver's number of it.
        name: String,
    },
    /// What is free of the memory that a GPU, or an instance of one, has for itself, in MiB.
    GpuMemoryFree {
        /// The driver's number of it: `0`; of an instance `0/1`.
        name: String,
        /// All of it, in MiB.
        total_mib: u64,
    },
    /// Received by a network interface, in MiB since it came up.
    NetworkReceived {
        /// The interface.
        name: String,
    },
    /// Sent by a network interface, in MiB since it came up.
    NetworkSent {
        /// The interface.
        name: String,
    },
}

impl Slot {
    /// The stable word, and the board's name for it where there are several.
    pub fn words(&self) -> (&'static str, &str) {
        match self {
            Slot::Cpu => ("cpu", ""),
            Slot::Load => ("load", ""),
            Slot::MemoryAvailable => ("memoryAvailable", ""),
            Slot::SwapUsed => ("swapUsed", ""),
            Slot::Gpu => ("gpu", ""),
            Slot::GpuClock => ("gpuClock", ""),
            Slot::GpuMemoryUsed => ("gpuMemoryUsed", ""),
            Slot::Power { .. } => ("power", ""),
            Slot::Rail { name } => ("rail", name),
            Slot::Temperature { name, .. } => ("temperature", name),
            Slot::Fan => ("fan", ""),
            Slot::Throttled => ("throttled", ""),
            Slot::UnderVoltage => ("underVoltage", ""),
            Slot::OverCurrent { kind: 1 } => ("overCurrent", "1"),
            Slot::OverCurrent { kind: 2 } => ("overCurrent", "2"),
            Slot::OverCurrent { .. } => ("overCurrent", "3"),
            Slot::OomKills => ("oomKills", ""),
            Slot::CpuWaiting => ("cpuWaiting", ""),
            Slot::MemoryWaiting => ("memoryWaiting", ""),
            Slot::MemoryStalled => ("memoryStalled", ""),
            Slot::IoWaiting => ("ioWaiting", ""),
            Slot::IoStalled => ("ioStalled", ""),
            Slot::DiskRead => ("diskRead", ""),
            Slot::DiskWritten => ("diskWritten", ""),
            Slot::Filesystem { name, .. } => ("filesystem", name),
            Slot::Wear { name } => ("wear", name),
            Slot::FurtherGpu { name } => ("gpu", name),
            Slot::GpuMemoryFree { name, .. } => ("gpuMemoryFree", name),
            Slot::NetworkReceived { name } => ("networkReceived", name),
            Slot::NetworkSent { name } => ("networkSent", name),
        }
    }

    /// Its words as one: `cpu`, `temperature:tj`.
    pub fn key(&self) -> String {
        match self.words() {
            (word, "") => word.to_owned(),
            (word, name) => format!("{word}:{name}"),
        }
    }

    /// Whether it only grows while the board runs. Of these the newest value counts, not a mean.
    pub fn is_counter(&self) -> bool {
        use Slot::*;
        matches!(
            self,
            OverCurrent { .. }
                | OomKills
                | CpuWaiting
                | MemoryWaiting
                | MemoryStalled
                | IoWaiting
                | IoStalled
        ) || matches!(self, DiskRead | DiskWritten | NetworkReceived { .. } | NetworkSent { .. })
    }

    /// What a change from `value` must exceed to be news where bytes cost: 1 C, 3 % and 20 mW of a rail, 2 points of a
    /// share, 8 MiB of memory.
    pub fn band(&self, value: i64) -> u64 {
        match self {
            Slot::Temperature { .. } => 10,
            Slot::Power { .. } | Slot::Rail { .. } => (value.unsigned_abs() * 3 / 100).max(20),
            Slot::Cpu | Slot::Gpu | Slot::FurtherGpu { .. } | Slot::Load => 20,
            Slot::MemoryAvailable | Slot::SwapUsed | Slot::GpuMemoryUsed => 8,
            Slot::GpuMemoryFree { .. } | Slot::Filesystem { .. } => 8,
            Slot::GpuClock | Slot::Fan => value.unsigned_abs() / 20,
            // Whoever asks for a rate of these looks at minutes: 6 s of waiting, 8 MiB.
            Slot::CpuWaiting | Slot::MemoryWaiting | Slot::IoWaiting => 6_000,
            Slot::DiskRead | Slot::DiskWritten => 8,
            Slot::NetworkReceived { .. } | Slot::NetworkSent { .. } => 8,
            Slot::Throttled | Slot::UnderVoltage | Slot::OverCurrent { .. } | Slot::OomKills => 0,
            Slot::MemoryStalled | Slot::IoStalled => 1_000,
            Slot::Wear { .. } => 0,
        }
    }
}

impl Inventory {
    /// Checks what no type bounds.
    pub fn is_in_bounds(&self) -> bool {
        let texts = [&self.model, &self.l4t, &self.kernel, &self.power_mode, &self.gpu];
        self.family.len() <= TEXT_MAX
            && texts.into_iter().flatten().all(|text| text.len() <= TEXT_MAX)
            && self.slots.len() <= SLOTS_MAX
            && self.slots.iter().all(|slot| slot.words().1.len() <= NAME_MAX)
    }
}

/// A figure over the time since the last report.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Figure {
    /// The mean; of a counter its newest value.
    pub mean: i64,
    /// How far the greatest value was above the mean.
    pub over: u32,
}

impl Figure {
    /// The greatest value.
    pub fn max(&self) -> i64 {
        self.mean.saturating_add(self.over.into())
    }
}

/// What each slot of an inventory was like.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sample {
    /// Grows with each sample while the agent's process lives. Whatever is not newer than the newest is old.
    pub seq: u32,
    /// The inventory that it is about.
    pub inventory: u32,
    /// The full sample that it changes; `None` when it is full itself.
    pub base: Option<u32>,
    /// Slot and figure. Of a full sample, slots that are not listed are unknown; of a delta, unchanged.
    #[serde(deserialize_with = "at_most_slots")]
    pub figures: Vec<(u8, Option<Figure>)>,
}

impl Sample {
    /// The figures of `slots` slots after it: `base` changed, or nothing known.
    pub fn onto(&self, base: Option<&[Option<Figure>]>, slots: usize) -> Vec<Option<Figure>> {
        let mut figures = base.map_or_else(Vec::new, <[_]>::to_vec);
        figures.resize(slots, None);
        for (at, figure) in &self.figures {
            if let Some(place) = figures.get_mut(usize::from(*at)) {
                *place = *figure;
            }
        }
        figures
    }
}

/// A list with a bound that is checked before anything is allocated for it.
pub(crate) fn at_most_slots<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    from: D,
) -> Result<Vec<T>, D::Error> {
    struct Bounded<T>(PhantomData<T>);

    impl<'de, T: Deserialize<'de>> Visitor<'de> for Bounded<T> {
        type Value = Vec<T>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "at most {SLOTS_MAX} of them")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Vec<T>, A::Error> {
            let mut list = Vec::new();
            if seq.size_hint().is_some_and(|n| n > SLOTS_MAX) {
                return Err(A::Error::invalid_length(SLOTS_MAX + 1, &self));
            }
            while let Some(one) = seq.next_element()? {
                if list.len() == SLOTS_MAX {
                    return Err(A::Error::invalid_length(SLOTS_MAX + 1, &self));
                }
                list.push(one);
            }
            Ok(list)
        }
    }

    from.deserialize_seq(Bounded(PhantomData))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(seq: u32, base: Option<u32>, figures: Vec<(u8, Option<Figure>)>) -> Sample {
        Sample { seq, inventory: 1, base, figures }
    }

    #[test]
    fn a_delta_changes_its_base_and_a_full_sample_knows_nothing_else() {
        let figure = |mean| Some(Figure { mean, over: 1 });
        let base = sample(1, None, vec![(0, figure(5)), (2, figure(-7))]).onto(None, 3);
        assert_eq!(base, [figure(5), None, figure(-7)]);
        let delta = sample(2, Some(1), vec![(0, None), (1, figure(9)), (200, figure(1))]);
        let after = delta.onto(Some(&base), 3);
        assert_eq!(after, [None, figure(9), figure(-7)]);
        assert_eq!(delta.onto(Some(&base), 3), after, "twice is once");
    }

    #[test]
    fn lists_are_bounded_before_they_are_allocated() {
        for n in [SLOTS_MAX, SLOTS_MAX + 1] {
            let bytes = postcard::to_stdvec(&sample(1, None, vec![(0, None); n])).unwrap();
            assert_eq!(postcard::from_bytes::<Sample>(&bytes).is_ok(), n == SLOTS_MAX, "{n}");
        }
        // A list of 2^60, and nothing behind it.
        let huge = [1, 1, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x0f];
        assert!(postcard::from_bytes::<Sample>(&huge).is_err());
        let slots = vec![Slot::Rail { name: "x".repeat(NAME_MAX + 1) }];
        assert!(!Inventory { slots, ..Inventory::default() }.is_in_bounds());
    }
}
